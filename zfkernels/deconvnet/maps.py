"""The engine for any graph and any method: whole maps up, and down from each unit.

A projection is cut to the union of its unit's receptive fields over all paths, so that the rounding of a dense
computation puts nothing outside.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ..graph import run
from ..graph.graph import Graph
from ..graph.rules import Rules, Shapes
from .units import Units, alone, together


class WholeMaps:
    """Up to the value numbered `stop` of a graph whose values have these shapes, and down to the pixels."""

    def __init__(self, graph: Graph, stop: int, shapes: Shapes) -> None:
        self.graph, self.stop, self.shapes = graph, stop, shapes
        self.unit_elements = largest(shapes)

    def up(self, images: Tensor, rules: Rules) -> run.Run:
        return run.run(self.graph, self.stop, images, rules)

    def down(self, done: run.Run, units: Units, values: Tensor, rules: Rules, pixels: Sequence[Tensor]) -> None:
        """Write the projections of the units, with these values in the place of their own, into `pixels`, one each."""
        dense = run.reverse(self.graph, self.shapes, done, alone(done.value, units, values), units.images, rules)
        boxes = run.fields(self.graph, self.stop, units.positions, tuple(dense.shape[2:])).tolist()
        for out, whole, (top, left, bottom, right) in zip(pixels, dense, boxes, strict=True):
            out[:, top:bottom, left:right] = whole[:, top:bottom, left:right]

    def down_together(self, done: run.Run, units: Units, values: Tensor, rules: Rules) -> Tensor:
        """One projection (C, H, W) of all the units, which are of one image."""
        g = together(done.value, units, values)
        return run.reverse(self.graph, self.shapes, done, g, np.zeros(1, np.int64), rules)[0]


def largest(shapes: Shapes) -> int:
    """The elements of the largest value of one image."""
    return max(shape[1:].numel() for shape in shapes if shape is not None)


def passes(numbers: np.ndarray, elements: int, most: int) -> list[np.ndarray]:
    """`numbers` in runs that make at most `most` elements, each making so many; at least 1 in each run."""
    count = max(1, most // elements)
    return [numbers[i : i + count] for i in range(0, len(numbers), count)]
