"""A graph run forward on whole maps, and the receptive fields of its units."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..window import Pair, Window
from .graph import Graph
from .layer import Layer
from .plan import Planned, plan
from .rules import Rules, Shapes
from .steps import Norm, Step
from .windowed import Pool

WHOLE = 2**40  # more than any map

# The elements of the largest value that one pass makes: more images or units are taken in several passes. On a CPU
# malloc keeps blocks of up to 32 MiB; a larger one is made of fresh pages each time, a quarter of ResNet-50's time.
PASS_ELEMENTS = 2**24
PASS_ELEMENTS_CPU = 2**23


class Run(NamedTuple):
    """A forward pass and what its reverse needs of it, by a value's number."""

    value: Tensor
    last: int  # its number in the steps
    steps: list[Planned]
    recorded: dict[int, Any]  # a pool's switches, a norm's input, a ReLU's value, all of a layer's
    kept: dict[int, Tensor]


def run(graph: Graph, stop: int, images: Tensor, rules: Rules, keep: Collection[int] = ()) -> Run:
    """The value numbered `stop`, those to keep, and what is needed to reverse."""
    way = plan(graph, (stop, *keep))
    values: dict[int, Tensor] = {0: images}
    recorded: dict[int, Any] = {}
    for number, step, inputs, last in way.steps:
        values[number], recorded[number] = step.run([values[i] for i in inputs], rules)
        for i in last:
            del values[i]
    return Run(values[way.same[stop]], way.same[stop], way.steps, recorded, {i: values[way.same[i]] for i in keep})


def run_for_reverse(graph: Graph, stop: int, images: Tensor, shapes: Shapes, rules: Rules) -> Run:
    """What is needed to reverse from the value numbered `stop`, which is not computed where nothing recorded needs it.

    `shapes`: of the graph's values for these images, by number. For method "deconvnet", which records the switches of
    pools, and what a norm was given if its rule asks for that; no value of a rectifier.
    """
    way = plan(graph, (stop,))
    values: dict[int, Tensor] = {0: images}
    recorded: dict[int, Any] = {}
    needed = max((i for i, planned in enumerate(way.steps) if _records(planned.step, rules)), default=-1)
    for i, (number, step, inputs, last) in enumerate(way.steps):
        if i <= needed:
            values[number], recorded[number] = step.run([values[i] for i in inputs], rules)
            for input in last:
                del values[input]
        elif isinstance(step, Layer):
            shape = shapes[inputs[0]]
            assert shape is not None
            recorded[number] = step.record_of(images.new_empty(len(images), *shape[1:]), rules)
        else:
            recorded[number] = None
    return Run(images.new_empty(0), way.same[stop], way.steps, recorded, {})


def _records(step: Step | Layer, rules: Rules) -> bool:
    """Whether the way down needs something of the maps that the step was run on."""
    if isinstance(step, Norm):
        return rules.norm != "identity"
    return step.pool is not None if isinstance(step, Layer) else isinstance(step, Pool)


def pass_elements(device: torch.device) -> int:
    return PASS_ELEMENTS_CPU if device.type == "cpu" else PASS_ELEMENTS


def split(images: Tensor, shapes: Shapes) -> Sequence[Tensor]:
    """So many images at a time as fit into a pass; `shapes` of the values, by number."""
    parts: Sequence[Tensor] = images.split(max(1, pass_elements(images.device) // largest(shapes)))
    return parts


def joined(parts: list[Tensor]) -> Tensor:
    """The batch whose parts the passes served; of one pass its own tensor, not a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def largest(shapes: Shapes) -> int:
    """The elements of the largest value of one image."""
    return max(shape[1:].numel() for shape in shapes if shape is not None)


def last_uses(graph: Graph, needed: list[int]) -> dict[int, int]:
    """The last of the values `needed` that each value is used for."""
    return {i: number for number in needed for i in graph.node(number).inputs}


Windows = tuple[Window, ...] | None  # of a step
Reach = dict[int, Pair]  # along an axis, stride -> (low, high): a unit at p sees p * stride + low ... + high - 1


def fields(graph: Graph, stop: int, positions: np.ndarray, image_size: Sequence[int]) -> np.ndarray:
    """The union over all paths of the receptive fields of the units at positions (N, 2): boxes (N, 4) in the image."""
    if ("field", stop) not in graph.known:
        nodes = [(n, graph.node(n).step.windows, graph.node(n).inputs) for n in graph.ancestors(stop)]
        graph.known["field", stop] = reaches(nodes, stop)[0]
    return np.concatenate(ranges(graph.known["field", stop], positions, image_size), 1)


def ranges(reach: list[Reach], positions: np.ndarray, size: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """What the units at positions (N, 2) see of a map of `size`: from, to, (N, 2) each."""
    low, high = np.empty_like(positions), np.empty_like(positions)
    for axis, of_strides in enumerate(reach):
        place = positions[:, axis]
        firsts = [stride * place + first for stride, (first, _) in of_strides.items()]
        lasts = [stride * place + last for stride, (_, last) in of_strides.items()]
        low[:, axis] = firsts[0] if len(firsts) == 1 else np.minimum.reduce(firsts)
        high[:, axis] = lasts[0] if len(lasts) == 1 else np.maximum.reduce(lasts)
    least, most = np.int64(0), np.array(size)  # ndarray.clip takes five times as long on so few numbers
    return np.minimum(np.maximum(low, least), most), np.minimum(np.maximum(high, least), most)


def reaches(nodes: list[tuple[int, Windows, tuple[int, ...]]], stop: int) -> dict[int, list[Reach]]:
    """What a unit of the value `stop` sees of each value that it is made of, along both axes, over all paths.

    `nodes`: the number of a value, the windows and the inputs of the step that makes it.
    """
    found: dict[int, list[Reach]] = {stop: [{1: (0, 1)}, {1: (0, 1)}]}
    for number, windows, inputs in reversed(nodes):
        for axis in (0, 1) if number in found else ():
            for stride, (low, high) in seen(windows, found[number][axis], axis).items():
                for i in inputs:
                    reach = found.setdefault(i, [{}, {}])[axis]
                    least, most = reach.get(stride, (low, high))
                    reach[stride] = min(low, least), max(high, most)
    return found


def seen(windows: Windows, reach: Reach, axis: int) -> Reach:
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
