"""A graph run forward on whole maps, and the receptive fields of its units."""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ..window import Pair
from .graph import Graph
from .layer import Record
from .plan import Planned, plan
from .rules import Rules

WHOLE = 2**40  # more than any map


class Run(NamedTuple):
    """A forward pass and what its reverse needs of it, by a value's number."""

    value: Tensor
    last: int  # its number in the steps
    steps: list[Planned]
    recorded: dict[int, Tensor | Record | None]  # a pool's switches, a norm's input, a ReLU's value, all of a layer's
    kept: dict[int, Tensor]


def run(graph: Graph, stop: int, images: Tensor, rules: Rules, keep: Collection[int] = ()) -> Run:
    """The value numbered `stop`, those to keep, and what is needed to reverse."""
    way = plan(graph, (stop, *keep))
    values, recorded = {0: images}, {}
    for number, step, inputs, last in way.steps:
        values[number], recorded[number] = step.run([values[i] for i in inputs], rules)
        for i in last:
            del values[i]
    return Run(values[way.same[stop]], way.same[stop], way.steps, recorded, {i: values[way.same[i]] for i in keep})


def last_uses(graph: Graph, needed: list[int]) -> dict[int, int]:
    """The last of the values `needed` that each value is used for."""
    return {i: number for number in needed for i in graph.node(number).inputs}


def fields(graph: Graph, stop: int, positions: np.ndarray, image_size: Pair) -> np.ndarray:
    """The union over all paths of the receptive fields of the units at positions (N, 2): boxes (N, 4) in the image."""
    rows, columns = (
        [(stride * positions[:, axis] + low, stride * positions[:, axis] + high) for stride, (low, high) in reach]
        for axis, reach in enumerate(_reaches(graph, stop))
    )
    sides = [np.minimum.reduce([low for low, _ in side]) for side in (rows, columns)]
    sides += [np.maximum.reduce([high for _, high in side]) for side in (rows, columns)]
    return np.stack(sides, 1).clip(0, (*image_size, *image_size))


Reach = dict[int, Pair]  # along an axis, stride -> (low, high): a unit at p sees p * stride + low ... + high - 1


def _reaches(graph: Graph, stop: int) -> list[list[tuple[int, Pair]]]:
    """What a unit sees of the images along each axis, over all paths. It is computed once."""
    if ("reaches", stop) not in graph.known:
        graph.known["reaches", stop] = [list(_reach(graph, stop, axis).items()) for axis in (0, 1)]
    return graph.known["reaches", stop]


def _reach(graph: Graph, stop: int, axis: int) -> Reach:
    reaches: dict[int, Reach] = {stop: {1: (0, 1)}}
    for number in reversed(graph.ancestors(stop)):
        node = graph.node(number)
        for stride, (low, high) in seen(node.step.windows, reaches.pop(number), axis).items():
            for i in node.inputs:
                reach = reaches.setdefault(i, {})
                least, most = reach.get(stride, (low, high))
                reach[stride] = min(low, least), max(high, most)
    return reaches[0]


def seen(windows: tuple | None, reach: Reach, axis: int) -> Reach:
    """The same of a step's input, the padding included."""
    if windows is None:
        return {0: (-WHOLE, WHOLE)}
    for window in reversed(windows):
        kernel, step, padding = (pair[axis] for pair in window)
        reach = {
            stride * step: (low * step - padding, (high - 1) * step - padding + kernel)
            for stride, (low, high) in reach.items()
        }
    return reach
