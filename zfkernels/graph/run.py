"""A graph run forward on whole maps, its reverse, and the receptive fields of its units.

Reversed, a sum gives both branches the same signal and a concatenation cuts it up; where branches part, what comes back
from each is summed.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..window import Pair, covered
from .graph import Graph
from .rules import Rules, Shapes

WHOLE = 2**40  # more than any map


class Run(NamedTuple):
    """A forward pass and what its reverse needs of it, by a value's number."""

    value: Tensor
    recorded: dict[int, Tensor | None]  # a pool's switches, a norm's input, a ReLU's derivative
    kept: dict[int, Tensor]


def run(graph: Graph, stop: int, images: Tensor, rules: Rules, keep: Collection[int] = ()) -> Run:
    """The value numbered `stop`, those to keep, and what is needed to reverse."""
    needed = graph.ancestors(stop, *keep)
    last_use = last_uses(graph, needed)
    values, recorded = {0: images}, {}
    for number in needed:
        node = graph.node(number)
        values[number], recorded[number] = node.step.run([values[i] for i in node.inputs], rules)
        for i in node.inputs:
            if last_use[i] == number and i != stop and i not in keep:
                values.pop(i, None)
    return Run(values[stop], recorded, {i: values[i] for i in keep})


def last_uses(graph: Graph, needed: list[int]) -> dict[int, int]:
    """The last of the values `needed` that each value is used for."""
    return {i: number for number in needed for i in graph.node(number).inputs}


def reverse(graph: Graph, shapes: Shapes, done: Run, g: Tensor, images: np.ndarray, rules: Rules) -> Tensor:
    """From signals g (N, *value's shape) of the last value, each of image images[i], to the pixels (N, C, H, W)."""
    stop = len(shapes) - 1
    index = None if np.array_equal(images, np.arange(len(done.value))) else torch.from_numpy(images).to(g.device)
    signals = {stop: g}
    for number in reversed(graph.ancestors(stop)):
        node, record = graph.node(number), done.recorded[number]
        record = record if record is None or index is None else record[index]
        below = [shapes[i] for i in node.inputs]
        parts = node.step.reverse(signals.pop(number), below, record, rules)
        for i, part in zip(node.inputs, parts if isinstance(parts, tuple) else (parts,), strict=True):
            signals[i] = signals[i] + part if i in signals else part
    return signals[0]


def fields(graph: Graph, stop: int, positions: np.ndarray, image_size: Pair) -> np.ndarray:
    """The union over all paths of the receptive fields of the units at positions (N, 2): boxes (N, 4) in the image."""
    boxes = {stop: np.concatenate([positions, positions + 1], 1)}
    for number in reversed(graph.ancestors(stop)):
        node = graph.node(number)
        box = seen(node.step.windows, boxes.pop(number))
        for i in node.inputs:
            other = boxes.get(i, box)
            boxes[i] = np.concatenate([np.minimum(box[:, :2], other[:, :2]), np.maximum(box[:, 2:], other[:, 2:])], 1)
    return boxes[0].clip(0, (*image_size, *image_size))


def seen(windows: tuple | None, box: np.ndarray) -> np.ndarray:
    """What boxes (N, 4) of a step's value see of its input, the padding included."""
    if windows is None:
        return np.broadcast_to(np.array([-WHOLE, -WHOLE, WHOLE, WHOLE]), box.shape)
    for window in reversed(windows):
        first, last = covered(box[:, :2], box[:, 2:], *map(np.array, window))
        box = np.concatenate([first, last], 1).clip(-WHOLE, WHOLE)
    return box
