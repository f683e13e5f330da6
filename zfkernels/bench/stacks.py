"""ZFNet's five convolutional layers as one stack, up and down: by torch as its user would, and by our functions."""

import math
from collections.abc import Iterable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .checks import switches_of
from .ops import twice, weights
from .peers import LAST, Case, Graph, Setting
from .shapes import CONVS, NORMS, POOLS
from .torch_ops import in_whole, normalized, pooled, unpooled

FLOPS = sum(c.flops for c in CONVS.values())


def climb(x: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
    """Images to conv5's map and the indices of pools 1 and 2."""
    kept = []
    for i, c in CONVS.items():
        x = F.relu_(F.conv2d(x, flat[2 * i - 2], flat[2 * i - 1], c.stride, c.padding))
        if i in NORMS:
            x, indices = pooled(POOLS[i], x)
            kept.append(indices)
            x = normalized(NORMS[i], x)
    return x, *kept


def alone(x: Tensor, channels: Tensor) -> Tensor:
    """x (N, C, H, W) with every activation 0 except the strongest of map channels[i] of image i."""
    images = torch.arange(len(x), device=x.device)
    value, position = x[images, channels].flatten(1).max(1, keepdim=True)
    kept = torch.zeros_like(x)
    kept[images[:, None], channels[:, None], position // x.shape[3], position % x.shape[3]] = value
    return kept


def descend(g: Tensor, first: Tensor, second: Tensor, map1: Tensor, map2: Tensor, *flat: Tensor) -> Tensor:
    """conv5's map to pixels. map1 and map2 have the shape and format of what pools 1 and 2 pooled."""
    pooled_maps = {1: (first, map1), 2: (second, map2)}
    for i, c in reversed(CONVS.items()):
        if i in pooled_maps:
            g = unpooled(POOLS[i], g, *pooled_maps[i])
        g = F.conv_transpose2d(F.relu(g), flat[2 * i - 2], None, c.stride, c.padding, c.extra)
    return g


def empty_maps(n: int) -> tuple[Tensor, Tensor]:
    first, second = (torch.empty(n, POOLS[i].channels, POOLS[i].size, POOLS[i].size) for i in (1, 2))
    return first, second


def add_climb(
    graph: Graph, parameters: dict[int, tuple[Tensor, Tensor]], pools: Iterable[int], keep_indices: bool = True
) -> Graph:
    """The convolutional layers as nodes of a graph, with some of the poolings."""
    for i, c in CONVS.items():
        graph.conv(c, *parameters[i])
        if i in pools:
            graph.pool(POOLS[i], keep_indices)
        if i in NORMS:
            graph.norm(NORMS[i])
    return graph


def add_descent(graph: Graph, parameters: dict[int, tuple[Tensor, Tensor]], n: int, indices: dict[int, str]) -> Graph:
    """`descend` as nodes of a graph, through the poolings that have indices."""
    for i, (w, _) in reversed(parameters.items()):
        if i in indices:
            graph.unpool(POOLS[i], n, indices[i])
        graph.node("Relu", [graph.value])
        graph.transposed(CONVS[i], w)
    return graph


def exact_stack(x: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
    """pool5's map in float64, and the maps that were pooled, before their ReLU."""
    value, maps = x.double(), []
    for i, c in CONVS.items():
        value = F.conv2d(value, flat[2 * i - 2].double(), flat[2 * i - 1].double(), c.stride, c.padding)
        if i in POOLS:
            maps.append(value)
            value = pooled(POOLS[i], value)[0]
        value = value.relu()
        if i in NORMS:
            value = normalized(NORMS[i], value)
    return value, *maps


def our_stack(ours: ModuleType, value: Tensor, parameters: dict[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
    """Images to pool5's map and every pooling's switches, by the functions of one of our backends."""
    kept = []
    for i, c in CONVS.items():
        w, b = parameters[i]
        stride, padding = twice(c.stride, c.padding)
        if i in POOLS:
            p = POOLS[i]
            window = *twice(p.kernel, p.stride), (0, 0), (p.out, p.out)
            value, switches = ours.conv2d_relu_max_pool2d(value, w, b, stride, padding, *window)
            kept.append(switches)
        else:
            value = ours.conv2d(value, w, b, stride, padding, True)
        if i in NORMS:
            s = NORMS[i]
            value = ours.contrast_norm(value, s.window, s.alpha, s.beta, s.k, False)
    return value, *kept


def forward(n: int, setting: Setting) -> Case:
    """The five convolutional layers, from the images to pool5, with every pooling's switches."""
    x, parameters = torch.randn(n, 3, 224, 224), {i: weights(c) for i, c in CONVS.items()}
    flat = [t for pair in parameters.values() for t in pair]

    def dense(x: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        top, *kept = climb(x, *flat)
        top, indices = pooled(POOLS[5], top)
        return top, *kept, indices

    def check(outs: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
        hold = all(
            checks.switches_hold(p, switches, maps, setting.bound, True)
            for p, switches, maps in zip(POOLS.values(), outs[1:], right[1:], strict=True)
        )
        return checks.values(outs[:1], right) if hold else math.inf

    outputs = sum(p.channels * p.out**2 for p in POOLS.values())
    outputs += setting.dtype.itemsize * POOLS[5].channels * POOLS[5].out ** 2
    traffic = x.nbytes + sum(t.nbytes for t in flat) + n * outputs
    case = Case(setting, n, lambda: exact_stack(x, *flat), n * FLOPS, traffic, check)
    last, ours = x.contiguous(memory_format=LAST), setting.ours
    case.run["zfkernels"] = lambda: our_stack(ours, last, parameters)
    case.add_torch(dense, x, *flat)
    return case.add_graph(add_climb(Graph(x=x), parameters, POOLS))


def descent(n: int, setting: Setting) -> Case:
    """The deconvnet's way down, dense, from pool5's map to the pixels: unpooling, ReLU, transposed convolution."""
    parameters = {i: weights(c) for i, c in CONVS.items()}
    maps = {i: torch.randn(n, p.channels, p.size, p.size) for i, p in POOLS.items()}
    indices = {i: pooled(p, maps[i])[1] for i, p in POOLS.items()}
    y = torch.randn(indices[5].shape)

    def dense(y: Tensor, fifth: Tensor, map5: Tensor, *others: Tensor) -> tuple[Tensor]:
        return (descend(unpooled(POOLS[5], y, fifth, map5), *others),)

    floats = [y, maps[5], maps[1], maps[2], *(t for pair in parameters.values() for t in pair)]

    def arguments(y: Tensor, map5: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        return y, indices[5], map5, indices[1], indices[2], *others

    switches = {i: switches_of(p, indices[i]) for i, p in POOLS.items()}
    last, ours = y.contiguous(memory_format=LAST), setting.ours

    def run() -> tuple[Tensor]:
        value = last
        for i, c in reversed(CONVS.items()):
            w, (stride, padding, size) = parameters[i][0], twice(c.stride, c.padding, c.size)
            if i in POOLS:
                window = stride, padding, *twice(POOLS[i].kernel, POOLS[i].stride), (0, 0), size
                value = ours.max_unpool2d_relu_conv_transpose2d(value, switches[i], w, *window, True)
            else:
                value = ours.conv_transpose2d(value, w, stride, padding, size, True)
        return (value,)

    read = [y, *switches.values(), *(w for w, _ in parameters.values())]
    traffic = sum(t.nbytes for t in read) + setting.dtype.itemsize * n * CONVS[1].channels * CONVS[1].size ** 2
    case = Case(setting, n, lambda: dense(*arguments(*(t.double() for t in floats))), flops=n * FLOPS, bytes=traffic)
    case.run["zfkernels"] = run
    case.add_torch(dense, *arguments(*floats))
    names = {i: f"indices{i}" for i in POOLS}
    graph = Graph(x=y, **{names[i]: in_whole(p, n, indices[i]) for i, p in POOLS.items()})
    return case.add_graph(add_descent(graph, parameters, n, names))
