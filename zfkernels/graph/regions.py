"""A network's answer to images that differ from one image inside a box, for the cost of what the boxes reach.

The image is run once and every value kept. For a batch of boxes, each value of the graph is then a region: the pixels
of its maps that the change can reach, (N, C, height, width), one size for the batch, with an origin a box. A
convolution or a pool makes its region from that below and, around it, from what was kept; what works pixel by pixel
works on the region alone; a sum or concatenation takes the smallest rectangle that holds both. What needs whole
maps (flattening, means, calls that only torch knows) gets them, the kept pixels around the region. So what comes out is
what the network gives for the whole changed image, to the rounding of its kernels; nothing is approximated.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..window import Pair, as_pair
from .graph import Graph, Node
from .rules import Rules, Shapes
from .run import last_uses
from .steps import Linear, Opaque, Step
from .windowed import AveragePool, Conv, Pad, Pool


class Region(NamedTuple):
    """The part of N maps from origins[i] on; outside of it they are as in the clear image."""

    pixels: Tensor  # (N, C, height, width)
    origins: np.ndarray  # (N, 2) int64


class Recomputed:
    """What the graph makes of images that differ from `image` (1, C, H, W) in a box.

    `wanted` are the numbers of the values asked for; `clear` holds what each value is for `image` itself.
    NotImplementedError for a step of maps that is given something else.
    """

    def __init__(self, graph: Graph, image: Tensor, wanted: list[int], rules: Rules) -> None:
        self.graph, self.wanted, self.rules = graph, wanted, rules
        self.needed = graph.ancestors(*wanted)
        self.last_use = last_uses(graph, self.needed)
        self.clear: dict[int, Any] = {0: image}
        sizes: Shapes = [image.shape] + [None] * len(graph.nodes)
        for number in self.needed:
            node = graph.node(number)
            value = self._clear(node, [self.clear[i] for i in node.inputs], sizes)
            self.clear[number] = value
            sizes[number] = value.shape if isinstance(value, Tensor) else None

    def _clear(self, node: Node, inputs: list[Any], sizes: Shapes) -> object:
        if isinstance(node.step, Opaque):
            return node.step.call([_plain(x) for x in inputs], sizes)
        if node.step.maps:
            if inputs[0].ndim != 4:
                raise NotImplementedError(f"layer {node.name!r} is given {inputs[0].ndim} dimensions, not maps")
            node.step.shape([inputs[0].shape], sizes)
        return node.step.run(inputs, self.rules)[0]

    def __call__(self, changed: Region) -> dict[int, Any]:
        """The wanted values, by number, for images that are `changed`: regions of maps, and whole all else."""
        values: dict[int, Any] = {0: changed}
        sizes: Shapes = [None] * (len(self.graph.nodes) + 1)  # that each has, or would have if whole
        sizes[0] = self._size(0, changed)
        for number in self.needed:
            node = self.graph.node(number)
            inputs = [values[i] for i in node.inputs]
            if isinstance(node.step, Opaque):
                values[number] = self._opaque(node, node.step, inputs, sizes)
            else:
                clear = [self.clear[i] for i in node.inputs]
                values[number] = _recomputed(node.step, inputs, clear, self.clear[number], self.rules)
            sizes[number] = self._size(number, values[number])
            for i in node.inputs:
                if self.last_use[i] == number and i not in self.wanted:
                    values.pop(i, None)
        return {number: values[number] for number in self.wanted}

    def whole(self, number: int, value: object, channel: int | None = None) -> Any:
        """A value of `__call__` with what is around its region; of maps, that numbered `channel` alone if given."""
        clear = self.clear[number]
        if channel is not None and isinstance(value, Region):
            clear = clear[:, channel : channel + 1]
            value = Region(value.pixels[:, channel : channel + 1], value.origins)
        return _whole(value, clear)

    def _size(self, number: int, value: object) -> torch.Size | None:
        if isinstance(value, Region):
            return torch.Size((len(value.origins), *self.clear[number].shape[1:]))
        return value.shape if isinstance(value, Tensor) else None

    def _opaque(self, node: Node, step: Opaque, inputs: list[Any], sizes: Shapes) -> object:
        images = sizes[0]
        if step.pointwise and isinstance(inputs[0], Region):
            return Region(step.call([inputs[0].pixels], sizes), inputs[0].origins)
        y = step.call([_plain(self.whole(i, x)) for i, x in zip(node.inputs, inputs, strict=True)], sizes)
        of_images = isinstance(y, Tensor) and y.ndim == 4 and images is not None and len(y) == images[0]
        return _at_origin(y) if of_images else y


def share(graph: Graph, wanted: list[int], shapes: Shapes, size: Pair) -> float:
    """How much of a whole pass's multiplications regions take for boxes of this size in the image.

    `shapes` of the values, by number; None for what is no tensor.
    """
    sizes: dict[int, Pair | None] = {0: size}
    spent, whole = 0.0, 0.0
    for number in graph.ancestors(*wanted):
        node, after = graph.node(number), shapes[number]
        sizes[number] = None if after is None else _reached(node.step, [sizes[i] for i in node.inputs], after)
        if after is not None:
            work = _work(node.step, after)
            whole += work
            reached = sizes[number]
            spent += work * (1.0 if reached is None else math.prod(reached) / after[2:].numel())
    return spent / whole if whole else 1.0


def _reached(step: Step | Opaque, below: list[Pair | None], after: torch.Size) -> Pair | None:
    """The size of the region that a step makes of regions of these sizes; None for the whole value."""
    parts = [part for part in below if part is not None]
    if step.windows is None or len(parts) < len(below) or len(after) != 4:
        return None
    size = as_pair(max(part[a] for part in parts) for a in (0, 1))
    for window in step.windows:
        size = as_pair((size[a] + window.kernel[a] - 2) // window.stride[a] + 1 for a in (0, 1))
    return as_pair(min(size[a], after[2 + a]) for a in (0, 1))


def _work(step: Step | Opaque, after: torch.Size) -> float:
    """Multiplications, or what takes as long: memory moves a number in the time of some ten."""
    numbers = after[1:].numel()
    if isinstance(step, Conv):
        return numbers * (step.channels[0] // step.groups * step.kernel[0] * step.kernel[1] + 10.0)
    return numbers * (step.features[0] / 4 if isinstance(step, Linear) else 10.0)


def _recomputed(step: Step, inputs: list[Any], clear: list[Any], after: Tensor, rules: Rules) -> Region | Tensor:
    """One step on regions (or on whole vectors); `clear` and `after` are what it takes and makes of the clear image."""
    if after is clear[0]:
        same: Region | Tensor = inputs[0]
        return same
    regions = all(isinstance(x, Region) for x in inputs) and len({kept.shape[2:] for kept in clear}) == 1
    if step.windows is None or not regions:
        y = step.run([_whole(x, kept) for x, kept in zip(inputs, clear, strict=True)], rules)[0]
        return _at_origin(y) if y.ndim == 4 else y
    if isinstance(step, (Conv, Pad, Pool, AveragePool)):
        return _windowed(step, inputs[0], clear[0], after, rules)
    if len(inputs) == 1:
        return Region(step.run([inputs[0].pixels], rules)[0], inputs[0].origins)
    low = np.minimum.reduce([region.origins for region in inputs])
    high = np.maximum.reduce([region.origins + region.pixels.shape[2:] for region in inputs])
    size, low = _fit(low, high, as_pair(after.shape[2:]))
    parts = [_cut(kept, low, size, region, 0.0) for kept, region in zip(clear, inputs, strict=True)]
    return Region(step.run(parts, rules)[0], low)


def _windowed(step: Conv | Pad | Pool | AveragePool, x: Region, clear: Tensor, after: Tensor, rules: Rules) -> Region:
    """The outputs whose windows touch the region."""
    window, stride, padding = (np.array(pair) for pair in (step.window, step.stride, step.padding))
    above = as_pair(after.shape[2:])
    low = -(-(x.origins + padding - window + 1) // stride)
    high = (x.origins + x.pixels.shape[2:] - 1 + padding) // stride + 1
    size, low = _fit(low, high, above)
    if size == above and x.pixels.shape[2:] == clear.shape[2:]:
        return Region(step.run([x.pixels], rules)[0], low)
    reach = as_pair(int(n) for n in (np.array(size) - 1) * stride + window)
    part = _cut(clear, low * stride - padding, reach, x, step.margin)
    return Region(step.inside(part, low, clear.shape, above, rules), low)


def _at_origin(y: Tensor) -> Region:
    return Region(y, np.zeros((len(y), 2), np.int64))


def _fit(low: np.ndarray, high: np.ndarray, size: Pair) -> tuple[Pair, np.ndarray]:
    """Boxes of one size within maps of `size` that hold low ... high - 1: their size and origins."""
    low, high = np.clip(low, 0, np.array(size) - 1), np.clip(high, 1, size)
    box = np.maximum((high - low).max(0), 1)
    return as_pair(int(n) for n in box), np.clip(low, 0, np.array(size) - box)


def _whole(x: Any, clear: Tensor) -> Any:
    if not isinstance(x, Region):
        return x
    if x.pixels.shape[2:] == clear.shape[2:]:
        return x.pixels
    return _cut(clear, np.zeros_like(x.origins), as_pair(clear.shape[2:]), x, 0.0)


def _cut(clear: Tensor, origins: np.ndarray, size: Pair, x: Region, margin: float) -> Tensor:
    """Boxes of `size` at `origins` (N, 2) of maps that are x within its region, `clear` outside it and `margin` outside
    the maps: (N, C, height, width), channels-last. One gather from the rows of all three.
    """
    if size == tuple(x.pixels.shape[2:]) and np.array_equal(origins, x.origins):
        return x.pixels
    channels, height, width = clear.shape[1:]
    inner_height, inner_width = x.pixels.shape[2:]
    rows, columns = (origins[:, a, None] + np.arange(size[a]) for a in (0, 1))
    within = [(rows >= 0) & (rows < height), (columns >= 0) & (columns < width)]
    index = rows[:, :, None] * width + columns[:, None]
    index[~(within[0][:, :, None] & within[1][:, None])] = height * width
    down, across = rows - x.origins[:, :1], columns - x.origins[:, 1:]
    touched = ((down >= 0) & (down < inner_height))[:, :, None] & ((across >= 0) & (across < inner_width))[:, None]
    first = height * width + 1 + inner_height * inner_width * np.arange(len(origins))[:, None, None]
    index = np.where(touched, first + down[:, :, None] * inner_width + across[:, None], index)
    table = torch.cat([_pixels(clear), clear.new_full((1, channels), margin), _pixels(x.pixels)])
    boxes = table.index_select(0, torch.from_numpy(index.ravel()).to(clear.device))
    return boxes.view(len(origins), *size, channels).permute(0, 3, 1, 2)


def _plain(value: object) -> object:
    """As torch's own layers would have made it, for models that `view` it."""
    return value.contiguous() if isinstance(value, Tensor) else value


def _pixels(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
