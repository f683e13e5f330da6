"""What is measured: every op on the real layers, whole networks, other people's layers, growth. JOBS names them all.

`make(name, n, setting)` builds one `Case`. zfkernels' ops are called at the level of the backend's functions, its
networks through the public API.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import zfkernels

from . import checks, networks
from .checks import switches_of
from .peers import LAST, Case, Graph, Setting
from .shapes import CONVS, GROWTH, GROWTH_BASE, NORMS, OTHERS, POOLS, Conv, Norm, Pool, square
from .torch_ops import conv_backward, normalized, pooled, scattered, unpooled

# Plain convolutions, for which the compiler's code is torch's own or oneDNN's call: its time goes to the other groups.
WITHOUT_COMPILER = ("others", "growth")


class Job(NamedTuple):
    """A line of the table: its words, what builds its case at a batch size, its group, its batch sizes if not all."""

    text: str
    make: Callable[[int, Setting], Case]
    group: str  # "op", "network", "others" or "growth"
    sizes: tuple[int, ...] | None = None


def make(name: str, n: int, setting: Setting) -> Case:
    """The case of that name at batch size n on the setting's device, with the peers installed and asked for.

    The same job, size, device and dtype give the same numbers, whatever the backend.
    """
    torch.manual_seed(0)
    if JOBS[name].group in WITHOUT_COMPILER:
        setting = replace(setting, peers=tuple(peer for peer in setting.peers if peer != "compile"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(setting.dtype)
    try:
        with torch.device(setting.device), zfkernels.use_backend(setting.backend):
            case = JOBS[name].make(n, setting)
    finally:
        torch.set_default_dtype(before)
    case.name = name
    return case


def weights(c: Conv) -> tuple[Tensor, Tensor]:
    scale = (2 / (c.channels * c.kernel**2)) ** 0.5
    return torch.randn(c.filters, c.channels, c.kernel, c.kernel) * scale, torch.randn(c.filters) * 0.1


def twice(*values: int) -> tuple[tuple[int, int], ...]:
    return tuple((v, v) for v in values)


# Convolutions


def conv(c: Conv, n: int, setting: Setting) -> Case:
    x, (w, b) = torch.randn(n, c.channels, c.size, c.size), weights(c)
    case = Case(
        setting, n, lambda: (F.relu(F.conv2d(x.double(), w.double(), b.double(), c.stride, c.padding)),),
        flops=n * c.flops, bytes=c.bytes(n, setting.itemsize),
    )  # fmt: skip
    last, ours = x.contiguous(memory_format=LAST), setting.ours
    stride, padding = twice(c.stride, c.padding)
    case.run["zfkernels"] = lambda: (ours.conv2d(last, w, b, stride, padding, True),)
    case.add_torch(lambda x, w, b: (F.relu_(F.conv2d(x, w, b, c.stride, c.padding)),), x, w, b)
    case.add_onednn(c, x, w, b)
    graph = Graph(x=x)
    graph.conv(c, w, b)
    case.add_graph(graph)
    return case


def convt(c: Conv, n: int, setting: Setting) -> Case:
    """The convolution's input gradient: transposed, with the same filters, onto the input's size."""
    g, (w, _) = torch.randn(n, c.filters, c.out, c.out), weights(c)
    case = Case(
        setting, n, lambda: (F.conv_transpose2d(g.double(), w.double(), None, c.stride, c.padding, c.extra),),
        flops=n * c.flops, bytes=c.bytes(n, setting.itemsize),
    )  # fmt: skip
    last, ours = g.contiguous(memory_format=LAST), setting.ours
    stride, padding, size = twice(c.stride, c.padding, c.size)
    case.run["zfkernels"] = lambda: (ours.conv_transpose2d(last, w, stride, padding, size, False),)
    case.add_torch(lambda g, w: (F.conv_transpose2d(g, w, None, c.stride, c.padding, c.extra),), g, w)
    x = torch.empty(n, c.channels, c.size, c.size)
    case.add_torch(
        lambda g, x, w: conv_backward(c, g, x, w, (True, False, False))[:1], g, x, w, label="backward", compiled=False
    )
    case.add_onednn_transposed(c, g, w)
    graph = Graph(x=g)
    graph.transposed(c, w)
    case.add_graph(graph)
    return case


def wgrad(c: Conv, n: int, setting: Setting) -> Case:
    """The gradients of filters and biases."""
    x, g, (w, _) = torch.randn(n, c.channels, c.size, c.size), torch.randn(n, c.filters, c.out, c.out), weights(c)
    case = Case(
        setting, n, lambda: conv_backward(c, g.double(), x.double(), w.double(), (False, True, True))[1:],
        flops=n * c.flops, bytes=c.bytes(n, setting.itemsize),
    )  # fmt: skip
    last, ours = (x.contiguous(memory_format=LAST), g.contiguous(memory_format=LAST)), setting.ours
    kernel, stride, padding = twice(c.kernel, c.stride, c.padding)
    case.run["zfkernels"] = lambda: ours.conv2d_weight_grad(*last, kernel, stride, padding, True)
    case.add_torch(lambda g, x, w: conv_backward(c, g, x, w, (False, True, True))[1:], g, x, w)
    return case


# Pooling


def pool(p: Pool, n: int, setting: Setting) -> Case:
    """Max-pooling with switches; the peers' with their indices."""
    x = torch.randn(n, p.channels, p.size, p.size)
    count = n * p.channels * p.out**2
    traffic = x.nbytes + (setting.itemsize + 1) * count
    case = Case(setting, n, lambda: (pooled(p, x)[0], x), bytes=traffic, check=checks.pooled(p, 0.0))
    last, ours = x.contiguous(memory_format=LAST), setting.ours
    kernel, stride, out = twice(p.kernel, p.stride, p.out)
    case.run["zfkernels"] = lambda: ours.max_pool2d(last, kernel, stride, (0, 0), out)
    case.add_torch(lambda x: pooled(p, x), x)
    graph = Graph(x=x)
    graph.pool(p)
    case.add_graph(graph)
    return case


def unpool(p: Pool, n: int, setting: Setting) -> Case:
    """Unpooling by switches, and by the peers' indices.

    torch's max_unpool2d and ONNX Runtime's MaxUnpool keep one value where windows meet, and are compared elsewhere.
    """
    case, g, indices = unpooling(p, n, setting)
    size = [p.size, p.size]
    once = checks.apart_from(scattered(p, torch.ones_like(g), indices) > 1)
    case.add_torch(
        lambda g, indices: (F.max_unpool2d(g, indices, p.kernel, p.stride, output_size=size),),
        g, indices, label="max_unpool2d", compiled=False,
    )  # fmt: skip
    case.checks |= {who: once for who in case.run if "max_unpool2d" in who}
    case.add_torch(lambda g, indices: (scattered(p, g, indices),), g, indices, label="scatter_add")
    add_pool_backward(case, p, g, indices)
    full = (p.out - 1) * p.stride + p.kernel  # ONNX Runtime takes no smaller map, so an overhang is cut off after
    planes = torch.arange(n * p.channels).view(n, p.channels, 1, 1) * full**2
    graph = Graph(x=g, indices=planes + indices // p.size * full + indices % p.size)
    shape = graph.constant([n, p.channels, full, full])
    graph.node("MaxUnpool", ["x", "indices", shape], kernel_shape=[p.kernel] * 2, strides=[p.stride] * 2)
    if full > p.size:
        graph.node("Slice", [graph.value, *(graph.constant(v) for v in ([0, 0], size, [2, 3]))])
    case.add_graph(graph)
    case.checks |= {"ort": once, "openvino": once}
    return case


def poolgrad(p: Pool, n: int, setting: Setting) -> Case:
    """Max-pooling's backward: the same kernel of ours as the unpooling, against the backward of torch's pooling."""
    case, g, indices = unpooling(p, n, setting)
    add_pool_backward(case, p, g, indices, compiled=True)
    return case


def add_pool_backward(case: Case, p: Pool, g: Tensor, indices: Tensor, compiled: bool = False) -> None:
    map_ = torch.empty(case.n, p.channels, p.size, p.size)
    case.add_torch(
        lambda g, indices, map_: (unpooled(p, g, indices, map_),),
        g, indices, map_, label="pool backward", compiled=compiled,
    )  # fmt: skip


def unpooling(p: Pool, n: int, setting: Setting) -> tuple[Case, Tensor, Tensor]:
    _, indices = pooled(p, torch.randn(n, p.channels, p.size, p.size))
    g = torch.randn(indices.shape)
    traffic = (setting.itemsize + 1) * g.numel() + setting.itemsize * n * p.channels * p.size**2
    case = Case(setting, n, lambda: (scattered(p, g.double(), indices),), bytes=traffic)
    last, switches, ours = g.contiguous(memory_format=LAST), switches_of(p, indices), setting.ours
    kernel, stride, size = twice(p.kernel, p.stride, p.size)
    case.run["zfkernels"] = lambda: (ours.max_unpool2d(last, switches, kernel, stride, (0, 0), size),)
    return case, g, indices


def unpoolgrad(p: Pool, n: int, setting: Setting) -> Case:
    """Unpooling's backward, a gather."""
    g = torch.randn(n, p.channels, p.size, p.size)
    _, indices = pooled(p, torch.randn_like(g))

    def gathered(g: Tensor, indices: Tensor) -> tuple[Tensor]:
        return (g.flatten(2).gather(2, indices.flatten(2)).view(indices.shape),)

    case = Case(setting, n, lambda: gathered(g.double(), indices), bytes=(2 * setting.itemsize + 1) * indices.numel())
    last, switches, ours = g.contiguous(memory_format=LAST), switches_of(p, indices), setting.ours
    kernel, stride = twice(p.kernel, p.stride)
    case.run["zfkernels"] = lambda: (ours.max_unpool2d_backward(last, switches, kernel, stride, (0, 0)),)
    case.add_torch(gathered, g, indices)
    return case


# Normalization


def norm(s: Norm, n: int, setting: Setting) -> Case:
    x = torch.randn(n, s.channels, s.size, s.size) * 30
    case = Case(setting, n, lambda: (normalized(s, x.double()),), bytes=2 * x.nbytes)
    last, ours = x.contiguous(memory_format=LAST), setting.ours
    case.run["zfkernels"] = lambda: (ours.contrast_norm(last, s.window, s.alpha, s.beta, s.k, False),)
    case.add_torch(lambda x: (normalized(s, x),), x)
    graph = Graph(x=x)
    graph.norm(s)
    case.add_graph(graph)
    return case


def normtrain(s: Norm, n: int, setting: Setting) -> Case:
    """Forward and backward."""
    x, g = torch.randn(2, n, s.channels, s.size, s.size) * 30
    constants = s.window, s.alpha, s.beta, s.k, False

    def train(x: Tensor, g: Tensor, forward: Callable = normalized) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            y = forward(s, x)
            return y.detach(), torch.autograd.grad(y, x, g)[0]

    case = Case(setting, n, lambda: train(x.double(), g.double()), bytes=5 * x.nbytes)
    last_x, last_g, ours = x.contiguous(memory_format=LAST), g.contiguous(memory_format=LAST), setting.ours
    case.run["zfkernels"] = lambda: (
        ours.contrast_norm(last_x, *constants),
        ours.contrast_norm_backward(last_g, last_x, *constants),
    )
    case.add_torch(train, x, g, compiled=False)
    case.add_compiled(lambda: partial(train, last_x, last_g, torch.compile(normalized, dynamic=False)))
    return case


# Whole layers


def fused(c: Conv, p: Pool, n: int, setting: Setting) -> Case:
    """Convolution + bias + ReLU + pooling with switches."""
    x, (w, b) = torch.randn(n, c.channels, c.size, c.size), weights(c)

    def right() -> tuple[Tensor, Tensor]:
        linear = F.conv2d(x.double(), w.double(), b.double(), c.stride, c.padding)
        return pooled(p, linear)[0].relu(), linear

    traffic = x.nbytes + w.nbytes + (setting.itemsize + 1) * n * p.channels * p.out**2
    case = Case(setting, n, right, flops=n * c.flops, bytes=traffic, check=checks.pooled(p, setting.bound))
    last, ours = x.contiguous(memory_format=LAST), setting.ours
    where = *twice(c.stride, c.padding, p.kernel, p.stride), (0, 0), (p.out, p.out)
    case.run["zfkernels"] = lambda: ours.conv2d_relu_max_pool2d(last, w, b, *where)
    case.add_torch(lambda x, w, b: pooled(p, F.relu_(F.conv2d(x, w, b, c.stride, c.padding))), x, w, b)
    graph = Graph(x=x)
    graph.conv(c, w, b)
    graph.pool(p)
    case.add_graph(graph)
    return case


def unfused(c: Conv, p: Pool, n: int, setting: Setting) -> Case:
    """The layer run backwards: unpooling by switches + ReLU + transposed convolution."""
    _, indices = pooled(p, torch.randn(n, p.channels, p.size, p.size))
    y, (w, _), map_ = torch.randn(indices.shape), weights(c), torch.empty(n, p.channels, p.size, p.size)

    def reverse(y: Tensor, indices: Tensor, w: Tensor, map_: Tensor) -> tuple[Tensor]:
        return (F.conv_transpose2d(F.relu_(unpooled(p, y, indices, map_)), w, None, c.stride, c.padding, c.extra),)

    case = Case(
        setting, n, lambda: reverse(y.double(), indices, w.double(), map_.double()),
        flops=n * c.flops,
        bytes=y.nbytes + y.numel() + w.nbytes + setting.itemsize * n * c.channels * c.size**2,
    )  # fmt: skip
    last, switches, ours = y.contiguous(memory_format=LAST), switches_of(p, indices), setting.ours
    where = *twice(c.stride, c.padding, p.kernel, p.stride), (0, 0), (c.size, c.size)
    case.run["zfkernels"] = lambda: (ours.max_unpool2d_relu_conv_transpose2d(last, switches, w, *where, True),)
    case.add_torch(reverse, y, indices, w, map_)
    planes = torch.arange(n * p.channels).view(n, p.channels, 1, 1) * p.size**2
    graph = Graph(x=y, indices=planes + indices)
    graph.unpool(p, n, "indices")
    graph.node("Relu", [graph.value])
    graph.transposed(c, w)
    case.add_graph(graph)
    return case


def forward(n: int, setting: Setting) -> Case:
    """ZFNet's five convolutional layers, from the images to pool5, with every pooling's switches."""
    x, parameters = torch.randn(n, 3, 224, 224), {i: weights(c) for i, c in CONVS.items()}
    flat = [t for pair in parameters.values() for t in pair]

    def torch_forward(x: Tensor, *flat: Tensor) -> tuple[Tensor, ...]:
        kept = []
        for i, c in CONVS.items():
            x = F.relu_(F.conv2d(x, flat[2 * i - 2], flat[2 * i - 1], c.stride, c.padding))
            if i in POOLS:
                x, indices = pooled(POOLS[i], x)
                kept.append(indices)
            if i in NORMS:
                x = normalized(NORMS[i], x)
        return x, *kept

    def right() -> tuple[Tensor, ...]:
        value, maps = x.double(), []
        for i, c in CONVS.items():
            value = F.conv2d(value, parameters[i][0].double(), parameters[i][1].double(), c.stride, c.padding)
            if i in POOLS:
                maps.append(value)
                value = pooled(POOLS[i], value)[0]
            value = value.relu()
            if i in NORMS:
                value = normalized(NORMS[i], value)
        return value, *maps

    def check(outs: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
        hold = all(
            checks.switches_hold(p, switches, maps, setting.bound, True)
            for p, switches, maps in zip(POOLS.values(), outs[1:], right[1:], strict=True)
        )
        return checks.values(outs[:1], right) if hold else float("inf")

    last, ours = x.contiguous(memory_format=LAST), setting.ours

    def run() -> tuple[Tensor, ...]:
        value, kept = last, []
        for i, c in CONVS.items():
            w, b = parameters[i]
            stride, padding = twice(c.stride, c.padding)
            if i in POOLS:
                p = POOLS[i]
                where = *twice(p.kernel, p.stride), (0, 0), (p.out, p.out)
                value, switches = ours.conv2d_relu_max_pool2d(value, w, b, stride, padding, *where)
                kept.append(switches)
            else:
                value = ours.conv2d(value, w, b, stride, padding, True)
            if i in NORMS:
                s = NORMS[i]
                value = ours.contrast_norm(value, s.window, s.alpha, s.beta, s.k, False)
        return value, *kept

    made = sum(p.channels * p.out**2 for p in POOLS.values()) + setting.itemsize * POOLS[5].channels * POOLS[5].out ** 2
    traffic = x.nbytes + sum(t.nbytes for t in flat) + n * made
    case = Case(setting, n, right, flops=n * sum(c.flops for c in CONVS.values()), bytes=traffic, check=check)
    case.run["zfkernels"] = run
    case.add_torch(torch_forward, x, *flat)
    graph = Graph(x=x)
    for i, c in CONVS.items():
        graph.conv(c, *parameters[i])
        if i in POOLS:
            graph.pool(POOLS[i])
        if i in NORMS:
            graph.norm(NORMS[i])
    case.add_graph(graph)
    return case


def descent(n: int, setting: Setting) -> Case:
    """The deconvnet's way down, dense, from pool5's map to the pixels: unpooling, ReLU, transposed convolution."""
    parameters = {i: weights(c) for i, c in CONVS.items()}
    maps = {i: torch.randn(n, p.channels, p.size, p.size) for i, p in POOLS.items()}
    indices = {i: pooled(p, maps[i])[1] for i, p in POOLS.items()}
    y = torch.randn(indices[5].shape)

    def dense(y: Tensor, fifth: Tensor, map5: Tensor, *others: Tensor) -> tuple[Tensor]:
        return (networks.descend(unpooled(POOLS[5], y, fifth, map5), *others),)

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
                where = stride, padding, *twice(POOLS[i].kernel, POOLS[i].stride), (0, 0), size
                value = ours.max_unpool2d_relu_conv_transpose2d(value, switches[i], w, *where, True)
            else:
                value = ours.conv_transpose2d(value, w, stride, padding, size, True)
        return (value,)

    read = [y, *switches.values(), *(w for w, _ in parameters.values())]
    traffic = sum(t.nbytes for t in read) + setting.itemsize * n * CONVS[1].channels * CONVS[1].size ** 2
    case = Case(
        setting, n, lambda: dense(*arguments(*(t.double() for t in floats))),
        flops=n * sum(c.flops for c in CONVS.values()), bytes=traffic,
    )  # fmt: skip
    case.run["zfkernels"] = run
    case.add_torch(dense, *arguments(*floats))
    planes = {i: torch.arange(n * p.channels).view(n, p.channels, 1, 1) * p.size**2 for i, p in POOLS.items()}
    names = {i: f"indices{i}" for i in POOLS}
    graph = Graph(x=y, **{names[i]: planes[i] + indices[i] for i in POOLS})
    networks.add_descent(graph, parameters, n, names)
    case.add_graph(graph)
    return case


def grown(axis: str, value: int) -> Callable[[int, Setting], Case]:
    """A 3x3 convolution with one of its dimensions at `value`; the n of the call is the base's, or that dimension."""
    _, channels, size = GROWTH_BASE
    channels, size = (value if axis == "channels" else channels), (value if axis == "pixels" else size)
    return partial(conv, square(channels, size, channels, 3, 1, 1))


JOBS: dict[str, Job] = {
    **{f"conv{i}": Job(f"conv{i} + bias + ReLU", partial(conv, c), "op") for i, c in CONVS.items()},
    **{f"convt{i}": Job(f"conv{i}'s input gradient", partial(convt, c), "op") for i, c in CONVS.items()},
    **{f"wgrad{i}": Job(f"conv{i}'s weight gradient", partial(wgrad, c), "op") for i, c in CONVS.items()},
    **{f"pool{i}": Job(f"pool{i} with switches", partial(pool, p), "op") for i, p in POOLS.items()},
    **{f"unpool{i}": Job(f"unpooling {i}", partial(unpool, p), "op") for i, p in POOLS.items()},
    **{f"poolgrad{i}": Job(f"pool{i}'s backward", partial(poolgrad, p), "op") for i, p in POOLS.items()},
    **{f"unpoolgrad{i}": Job(f"unpooling {i}'s backward", partial(unpoolgrad, p), "op") for i, p in POOLS.items()},
    **{f"norm{i}": Job(f"contrast norm {i}", partial(norm, s), "op") for i, s in NORMS.items()},
    **{f"normtrain{i}": Job(f"contrast norm {i} and backward", partial(normtrain, s), "op") for i, s in NORMS.items()},
    **{
        f"fused{i}": Job(f"conv{i} + ReLU + pool with switches", partial(fused, CONVS[i], p), "op")
        for i, p in POOLS.items()
    },
    **{
        f"unfused{i}": Job(f"unpool + ReLU + transposed conv{i}", partial(unfused, CONVS[i], p), "op")
        for i, p in POOLS.items()
    },
    "forward": Job("images to pool5 with switches", forward, "network"),
    "descent": Job("pool5 to pixels by switches, dense", descent, "network"),
    "logits": Job("images to logits", networks.logits, "network"),
    "project": Job("images to one conv5 projection each", networks.project, "network"),
    "reverse": Job("the projections alone", networks.reverse, "network"),
    "atlas": Job("top 9 of 64 conv5 maps projected", networks.atlas, "network", (64,)),
    "smallstep": Job("training step, the demo's ZFNet", networks.small_step, "network", (32,)),
    "step": Job("training step, ZFNet", networks.step, "network"),
    **{name: Job(name, partial(conv, c), "others") for name, c in OTHERS.items()},
    **{
        f"grow-{axis}-{value}": Job(
            f"3x3 convolution, {axis} {value}",
            grown(axis, value),
            "growth",
            (value if axis == "n" else GROWTH_BASE[0],),
        )
        for axis, values in GROWTH.items()
        for value in values
    },
}
