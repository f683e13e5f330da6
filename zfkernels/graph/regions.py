"""A network's answer to images that differ from one image inside a box, for the cost of what the boxes reach.

The image is run once and every value kept. For a batch of boxes, each value of the graph is then a region: the pixels
of its maps that the change can reach, (N, C, height, width), one size for the batch, with an origin a box. A
convolution or a pool makes its region from that below and, around it, from what was kept; what works pixel by pixel
works on the region alone; a sum or concatenation takes the smallest rectangle that holds both. What needs whole
maps (flattening, means, calls that only torch knows) gets them, the kept pixels around the region. So what comes out is
what the network gives for the whole changed image, to the rounding of its kernels; nothing is approximated.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops.max_pool import max_pool2d_with_switches
from .graph import Graph
from .steps import (
    Add,
    Affine,
    Average,
    AveragePool,
    Concat,
    Conv,
    Mean,
    Norm,
    Opaque,
    Pair,
    Pool,
    ReLU,
    Scale,
    Step,
    averages,
    convolve,
    forward,
    window_sizes,
)


class Region(NamedTuple):
    """The part of N maps from origins[i] on; outside of it they are as in the clear image."""

    pixels: Tensor  # (N, C, height, width)
    origins: np.ndarray  # (N, 2) int64


class Recomputed:
    """What the graph makes of images that differ from `image` (1, C, H, W) in a box.

    `wanted` are the numbers of the values asked for; `clear` holds what each value is for `image` itself.
    NotImplementedError for a step of maps that is given something else.
    """

    def __init__(self, graph: Graph, image: Tensor, wanted: list[int]) -> None:
        self.graph, self.wanted = graph, wanted
        self.needed = sorted({number for value in wanted for number in graph.ancestors(value)})
        self.last_use = {i: number for number in self.needed for i in graph.nodes[number - 1].inputs}
        self.clear: dict[int, object] = {0: image}
        self.before: dict[int, list[object]] = {}  # what each step of a node took
        sizes: list[torch.Size | None] = [image.shape] + [None] * len(graph.nodes)
        for number in self.needed:
            node, self.before[number] = graph.nodes[number - 1], []
            x = [self.clear[i] for i in node.inputs]
            for step in node.steps:
                if isinstance(step, (Conv, Pool, Norm, Average, AveragePool, Mean)) and x[0].ndim != 4:
                    raise NotImplementedError(f"layer {step.name!r} is given {x[0].ndim} dimensions, not maps")
                self.before[number].append(x[0])
                if isinstance(step, Opaque):
                    x = [step.call({i: _plain(self.clear[i]) for i in node.inputs}, sizes)]
                else:
                    x = [forward(step, x)[0]]
            self.clear[number] = x[0]
            sizes[number] = x[0].shape if isinstance(x[0], Tensor) else None

    def __call__(self, changed: Region) -> dict[int, Region | object]:
        """The wanted values, by number, for images that are `changed`: regions of maps, and whole all else."""
        values: dict[int, object] = {0: changed}
        sizes: list[torch.Size | None] = [None] * (len(self.graph.nodes) + 1)  # that each has, or would have if whole
        sizes[0] = self._size(0, changed)
        for number in self.needed:
            node = self.graph.nodes[number - 1]
            x = [values[i] for i in node.inputs]
            for k, step in enumerate(node.steps):
                if isinstance(step, Opaque):
                    x = [self._opaque(step, node.inputs, values, sizes)]
                else:
                    after = self.before[number][k + 1] if k + 1 < len(node.steps) else self.clear[number]
                    clear = [self.clear[i] for i in node.inputs] if k == 0 else [self.before[number][k]]
                    x = [_step(step, x, clear, after)]
            values[number], sizes[number] = x[0], self._size(number, x[0])
            for i in node.inputs:
                if self.last_use[i] == number and i not in self.wanted:
                    values.pop(i, None)
        return {number: values[number] for number in self.wanted}

    def whole(self, number: int, value: object, channel: int | None = None) -> object:
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

    def _opaque(self, step: Opaque, inputs: tuple[int, ...], values: dict[int, object], sizes: list) -> object:
        if step.pointwise and isinstance(values[inputs[0]], Region):
            region = values[inputs[0]]
            return Region(step.call({inputs[0]: region.pixels}, sizes), region.origins)
        wholes = {i: _plain(self.whole(i, values[i])) for i in inputs}
        y = step.call(wholes, sizes)
        if isinstance(y, Tensor) and y.ndim == 4 and len(y) == sizes[0][0]:
            return Region(y, np.zeros((len(y), 2), np.int64))
        return y


def _step(step: Step, inputs: list, clear: list, after: Tensor) -> Region | Tensor:
    """One step on regions (or on whole vectors); `clear` and `after` are what it takes and makes of the clear image."""
    x = inputs[0]
    if len({kept.shape[2:] for kept in clear}) > 1 or not all(isinstance(value, Region) for value in inputs):
        y = forward(step, [_whole(value, kept) for value, kept in zip(inputs, clear, strict=True)])[0]
        return Region(y, np.zeros((len(y), 2), np.int64)) if y.ndim == 4 else y
    if isinstance(step, Average) and not averages(step, clear[0].shape):
        return x
    if isinstance(step, (ReLU, Norm, Affine, Scale)):
        return Region(forward(step, [x.pixels])[0], x.origins)
    if isinstance(step, (Conv, Pool, AveragePool)):
        return _windows(step, x, clear[0], after)
    if isinstance(step, (Add, Concat)):
        low = np.minimum.reduce([region.origins for region in inputs])
        high = np.maximum.reduce([region.origins + region.pixels.shape[2:] for region in inputs])
        size, low = _fit(low, high, tuple(after.shape[2:]))
        parts = [_cut(kept, low, size, region, 0.0) for kept, region in zip(clear, inputs, strict=True)]
        return Region(forward(step, parts)[0], low)
    y = forward(step, [_whole(x, clear[0])])[0]
    return Region(y, np.zeros_like(x.origins)) if y.ndim == 4 else y


def _windows(step: Conv | Pool | AveragePool, x: Region, clear: Tensor, after: Tensor) -> Region:
    """The outputs of which a window touches the region."""
    window = np.array(step.window if isinstance(step, Conv) else step.kernel)
    stride, padding = np.array(step.stride), np.array(step.padding)
    above = tuple(after.shape[2:])
    low = -(-(x.origins + padding - window + 1) // stride)
    high = (x.origins + x.pixels.shape[2:] - 1 + padding) // stride + 1
    size, low = _fit(low, high, above)
    if size == above and x.pixels.shape[2:] == clear.shape[2:]:
        return Region(forward(step, [x.pixels])[0], low)
    reach = tuple(int(n) for n in (np.array(size) - 1) * stride + window)
    fill = -torch.inf if isinstance(step, Pool) else 0.0
    y = _cut(clear, low * stride - padding, reach, x, fill)
    if isinstance(step, Conv):
        return Region(convolve(step, y, (0, 0)), low)
    if isinstance(step, Pool):
        return Region(max_pool2d_with_switches(y, step.kernel, step.stride)[0], low)
    y = F.avg_pool2d(y, step.kernel, step.stride, divisor_override=1)
    rows, columns = (
        torch.from_numpy(window_sizes(step, clear.shape[2 + a], above[a], a)[low[:, a, None] + np.arange(size[a])])
        for a in (0, 1)
    )
    return Region(y / (rows[:, None, :, None] * columns[:, None, None, :]).to(y), low)


def _fit(low: np.ndarray, high: np.ndarray, size: Pair) -> tuple[Pair, np.ndarray]:
    """Boxes of one size within maps of `size` that hold low ... high - 1: their size and origins."""
    low, high = np.clip(low, 0, np.array(size) - 1), np.clip(high, 1, size)
    box = np.maximum((high - low).max(0), 1)
    return tuple(int(n) for n in box), np.clip(low, 0, np.array(size) - box)


def _whole(x: Region | object, clear: Tensor) -> Tensor:
    if not isinstance(x, Region):
        return x
    if x.pixels.shape[2:] == clear.shape[2:]:
        return x.pixels
    return _cut(clear, np.zeros_like(x.origins), tuple(clear.shape[2:]), x, 0.0)


def _cut(clear: Tensor, origins: np.ndarray, size: Pair, x: Region, fill: float) -> Tensor:
    """Boxes of `size` at `origins` (N, 2) of maps that are x within its region, `clear` outside it and `fill` outside
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
    table = torch.cat(
        [_pixels(clear), clear.new_full((1, channels), fill), _pixels(x.pixels)],
    )
    boxes = table.index_select(0, torch.from_numpy(index.ravel()).to(clear.device))
    return boxes.view(len(origins), *size, channels).permute(0, 3, 1, 2)


def _plain(value: object) -> object:
    """As torch's own layers would have made it, for models that `view` it."""
    return value.contiguous() if isinstance(value, Tensor) else value


def _pixels(maps: Tensor) -> Tensor:
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])
