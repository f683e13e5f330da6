"""The ops as jobs: each on one layer, at the level of the backend's functions."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks
from .checks import switches_of
from .peers import LAST, Case, Graph, Setting, in_float64
from .shapes import Conv, Norm, Pool
from .torch_ops import conv_backward, in_whole, normalized, pooled, scattered, unpooled


def weights(c: Conv) -> tuple[Tensor, Tensor]:
    scale = (2 / (c.depth * c.kernel**2)) ** 0.5
    return torch.randn(c.filters, c.depth, c.kernel, c.kernel) * scale, torch.randn(c.filters) * 0.1


def twice(*values: int) -> tuple[tuple[int, int], ...]:
    return tuple((v, v) for v in values)


# Convolutions


def conv(c: Conv, n: int, setting: Setting) -> Case:
    x, (w, b) = torch.randn(n, c.channels, c.size, c.size), weights(c)

    def dense(x: Tensor, w: Tensor, b: Tensor) -> tuple[Tensor]:
        return (F.relu_(F.conv2d(x, w, b, c.stride, c.padding, c.dilation, c.groups)),)

    case = Case(setting, n, in_float64(dense, x, w, b), n * c.flops, c.bytes(n, setting.dtype.itemsize))
    last, ours = x.contiguous(memory_format=LAST), setting.ours
    stride, padding, dilation = twice(c.stride, c.padding, c.dilation)
    case.run["zfkernels"] = lambda: (ours.conv2d(last, w, b, stride, padding, True, dilation, c.groups),)
    case.add_torch(dense, x, w, b)
    case.add_onednn(c, x, w, b)
    return case.add_graph(Graph(x=x).conv(c, w, b))


def convt(c: Conv, n: int, setting: Setting) -> Case:
    """The convolution's input gradient: transposed, with the same filters, onto the input's size."""
    g, (w, _) = torch.randn(n, c.filters, c.out, c.out), weights(c)

    def dense(g: Tensor, w: Tensor) -> tuple[Tensor]:
        return (F.conv_transpose2d(g, w, None, c.stride, c.padding, c.extra),)

    def backward(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return conv_backward(c, g, x, w, (True, False, False))[:1]

    case = Case(setting, n, in_float64(dense, g, w), n * c.flops, c.bytes(n, setting.dtype.itemsize))
    last, ours = g.contiguous(memory_format=LAST), setting.ours
    stride, padding, size = twice(c.stride, c.padding, c.size)
    case.run["zfkernels"] = lambda: (ours.conv_transpose2d(last, w, stride, padding, size, False),)
    case.add_torch(dense, g, w)
    case.add_torch(backward, g, torch.empty(n, c.channels, c.size, c.size), w, label="backward", compiled=False)
    case.add_onednn_transposed(c, g, w)
    return case.add_graph(Graph(x=g).transposed(c, w))


def wgrad(c: Conv, n: int, setting: Setting) -> Case:
    """The gradients of filters and biases."""
    x, g, (w, _) = torch.randn(n, c.channels, c.size, c.size), torch.randn(n, c.filters, c.out, c.out), weights(c)

    def dense(g: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        return conv_backward(c, g, x, w, (False, True, True))[1:]

    case = Case(setting, n, in_float64(dense, g, x, w), n * c.flops, c.bytes(n, setting.dtype.itemsize))
    last, ours = (x.contiguous(memory_format=LAST), g.contiguous(memory_format=LAST)), setting.ours
    kernel, stride, padding = twice(c.kernel, c.stride, c.padding)
    case.run["zfkernels"] = lambda: ours.conv2d_weight_grad(*last, kernel, stride, padding, True)
    case.add_torch(dense, g, x, w)
    return case


# Pooling


def pool(p: Pool, n: int, setting: Setting) -> Case:
    """Max-pooling with switches; the peers' with their indices."""
    x = torch.randn(n, p.channels, p.size, p.size)
    count = n * p.channels * p.out**2
    traffic = x.nbytes + (setting.dtype.itemsize + 1) * count
    case = Case(setting, n, lambda: (pooled(p, x)[0], x), bytes=traffic, check=checks.pooled(p, 0.0))
    last, ours = x.contiguous(memory_format=LAST), setting.ours
    kernel, stride, out = twice(p.kernel, p.stride, p.out)
    case.run["zfkernels"] = lambda: ours.max_pool2d(last, kernel, stride, (0, 0), out)
    case.add_torch(lambda x: pooled(p, x), x)
    return case.add_graph(Graph(x=x).pool(p))


def average(p: Pool, n: int, setting: Setting) -> Case:
    """Average pooling; of whole maps where the window is as large."""
    x = torch.randn(n, p.channels, p.size, p.size)

    def averaged(x: Tensor) -> tuple[Tensor]:
        return (F.avg_pool2d(x, p.kernel, p.stride, ceil_mode=p.ceil_mode),)

    traffic = x.nbytes + setting.dtype.itemsize * n * p.channels * p.out**2
    case = Case(setting, n, in_float64(averaged, x), bytes=traffic)
    last, ours = x.contiguous(memory_format=LAST), setting.ours
    kernel, stride, out = twice(p.kernel, p.stride, p.out)
    case.run["zfkernels"] = lambda: (ours.avg_pool2d(last, kernel, stride, (0, 0), out, True),)
    case.add_torch(averaged, x)
    if p.kernel == p.size:
        case.add_torch(lambda x: (x.mean((2, 3), keepdim=True),), x, label="mean", compiled=False)
    graph = Graph(x=x)
    graph.node("AveragePool", ["x"], kernel_shape=[p.kernel] * 2, strides=[p.stride] * 2, ceil_mode=int(p.ceil_mode))
    return case.add_graph(graph)


def averagegrad(p: Pool, n: int, setting: Setting) -> Case:
    """Average pooling's input gradient."""
    g, x = torch.randn(n, p.channels, p.out, p.out), torch.empty(n, p.channels, p.size, p.size)
    window = [p.kernel] * 2, [p.stride] * 2, [0, 0], p.ceil_mode, True, None

    def spread(g: Tensor, x: Tensor) -> tuple[Tensor]:
        return (torch.ops.aten.avg_pool2d_backward(g, x, *window),)

    case = Case(setting, n, in_float64(spread, g, x), bytes=g.nbytes + x.nbytes)
    last, ours = g.contiguous(memory_format=LAST), setting.ours
    kernel, stride, size = twice(p.kernel, p.stride, p.size)
    case.run["zfkernels"] = lambda: (ours.avg_pool2d_backward(last, kernel, stride, (0, 0), size, True),)
    case.add_torch(spread, g, x, compiled=False)
    return case


def unpool(p: Pool, n: int, setting: Setting) -> Case:
    """Unpooling by switches, and by the peers' indices.

    torch's max_unpool2d and ONNX Runtime's MaxUnpool keep one value where windows meet, and are compared elsewhere.
    """
    case, g, indices = unpooling(p, n, setting)
    size = [p.size, p.size]
    once = checks.apart_from(scattered(p, torch.ones_like(g), indices) > 1)

    def unpool_once(g: Tensor, indices: Tensor) -> tuple[Tensor]:
        return (F.max_unpool2d(g, indices, [p.kernel] * 2, [p.stride] * 2, output_size=size),)

    case.add_torch(unpool_once, g, indices, label="max_unpool2d", compiled=False)
    case.checks |= {who: once for who in case.run if "max_unpool2d" in who}
    case.add_torch(lambda g, indices: (scattered(p, g, indices),), g, indices, label="scatter_add")
    add_pool_backward(case, p, g, indices)
    full = (p.out - 1) * p.stride + p.kernel  # ONNX Runtime takes no smaller map; an overhang is cut off afterwards
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
    """Max-pooling's backward: our kernel is the unpooling's, torch's the backward of its pooling."""
    case, g, indices = unpooling(p, n, setting)
    add_pool_backward(case, p, g, indices, compiled=True)
    return case


def add_pool_backward(case: Case, p: Pool, g: Tensor, indices: Tensor, compiled: bool = False) -> None:
    tensors = g, indices, torch.empty(case.n, p.channels, p.size, p.size)
    case.add_torch(lambda *tensors: (unpooled(p, *tensors),), *tensors, label="pool backward", compiled=compiled)


def unpooling(p: Pool, n: int, setting: Setting) -> tuple[Case, Tensor, Tensor]:
    _, indices = pooled(p, torch.randn(n, p.channels, p.size, p.size))
    g = torch.randn(indices.shape)
    traffic = (setting.dtype.itemsize + 1) * g.numel() + setting.dtype.itemsize * n * p.channels * p.size**2
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

    traffic = (2 * setting.dtype.itemsize + 1) * indices.numel()
    case = Case(setting, n, in_float64(gathered, g, indices), bytes=traffic)
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
    return case.add_graph(Graph(x=x).norm(s))


def normtrain(s: Norm, n: int, setting: Setting) -> Case:
    """Forward and backward."""
    x, g = torch.randn(2, n, s.channels, s.size, s.size) * 30
    constants = s.window, s.alpha, s.beta, s.k, False

    def train(x: Tensor, g: Tensor, forward: Callable[[Norm, Tensor], Tensor] = normalized) -> tuple[Tensor, ...]:
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


def fused(layer: tuple[Conv, Pool], n: int, setting: Setting) -> Case:
    """Convolution + bias + ReLU + pooling with switches."""
    c, p = layer
    x, (w, b) = torch.randn(n, c.channels, c.size, c.size), weights(c)

    def right() -> tuple[Tensor, Tensor]:
        linear = F.conv2d(x.double(), w.double(), b.double(), c.stride, c.padding)
        return pooled(p, linear)[0].relu(), linear

    traffic = x.nbytes + w.nbytes + (setting.dtype.itemsize + 1) * n * p.channels * p.out**2
    case = Case(setting, n, right, flops=n * c.flops, bytes=traffic, check=checks.pooled(p, setting.bound))
    last, ours = x.contiguous(memory_format=LAST), setting.ours
    window = *twice(c.stride, c.padding, p.kernel, p.stride), (0, 0), (p.out, p.out)
    case.run["zfkernels"] = lambda: ours.conv2d_relu_max_pool2d(last, w, b, *window)
    case.add_torch(lambda x, w, b: pooled(p, F.relu_(F.conv2d(x, w, b, c.stride, c.padding))), x, w, b)
    return case.add_graph(Graph(x=x).conv(c, w, b).pool(p))


def unfused(layer: tuple[Conv, Pool], n: int, setting: Setting) -> Case:
    """The layer run backwards: unpooling by switches + ReLU + transposed convolution."""
    c, p = layer
    _, indices = pooled(p, torch.randn(n, p.channels, p.size, p.size))
    y, (w, _), like = torch.randn(indices.shape), weights(c), torch.empty(n, p.channels, p.size, p.size)

    def reverse(y: Tensor, indices: Tensor, w: Tensor, like: Tensor) -> tuple[Tensor]:
        return (F.conv_transpose2d(F.relu_(unpooled(p, y, indices, like)), w, None, c.stride, c.padding, c.extra),)

    traffic = y.nbytes + y.numel() + w.nbytes + setting.dtype.itemsize * n * c.channels * c.size**2
    case = Case(setting, n, in_float64(reverse, y, indices, w, like), n * c.flops, traffic)
    last, switches, ours = y.contiguous(memory_format=LAST), switches_of(p, indices), setting.ours
    window = *twice(c.stride, c.padding, p.kernel, p.stride), (0, 0), (c.size, c.size)
    case.run["zfkernels"] = lambda: (ours.max_unpool2d_relu_conv_transpose2d(last, switches, w, *window, True),)
    case.add_torch(reverse, y, indices, w, like)
    graph = Graph(x=y, indices=in_whole(p, n, indices))
    graph.unpool(p, n, "indices")
    graph.node("Relu", [graph.value])
    return case.add_graph(graph.transposed(c, w))
