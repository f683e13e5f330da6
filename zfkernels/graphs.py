"""A traced graph run forward on whole maps, and its reverse: for models that branch, and for every rule of a ReLU.

Reversed, a sum gives both branches the same signal and a concatenation cuts it up; where branches part, what comes back
from each is summed. A unit's projection is cut to the union of its receptive fields over all paths, so that the
rounding of a dense computation puts nothing outside.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .ops import checks
from .ops.contrast_norm import contrast_norm, contrast_norm_backward
from .ops.conv import conv2d, relu_conv_transpose2d
from .ops.max_pool import max_pool2d_with_switches, max_unpool2d_with_switches
from .ops.window import covered
from .tracing import (
    Add,
    Affine,
    Average,
    AveragePool,
    Concat,
    Conv,
    Flatten,
    Graph,
    Linear,
    Mean,
    Norm,
    Pair,
    Pool,
    ReLU,
    Scale,
    Step,
    averages,
    shape_after,
)

# How a ReLU sends a signal g down, m being its derivative at what was its input:
METHODS = (
    "deconvnet",  # max(0, g)       Zeiler & Fergus
    "gradient",  #  m g             Simonyan et al. 2013
    "guided",  #    m max(0, g)     Springenberg et al. 2014
)


class Run(NamedTuple):
    """A forward pass and what its reverse needs of it, all by a value's number."""

    stop: int
    shapes: list[torch.Size | None]
    recorded: dict[int, list[Tensor | None]]  # a step: a pool's switches, a norm's input, a ReLU's derivative
    value: Tensor
    kept: dict[int, Tensor]


def run(
    graph: Graph, shapes: list[torch.Size | None], images: Tensor, method: str | None, keep: Collection[int] = ()
) -> Run:
    """The value whose shape is the last, those to keep, and what is needed to reverse; with method None, nothing."""
    stop = len(shapes) - 1
    needed = graph.ancestors(stop, *keep)
    last_use = {number: reader for reader in needed for number in graph.nodes[reader - 1].inputs}
    values, recorded = {0: images}, {}
    for number in needed:
        node = graph.nodes[number - 1]
        x, recorded[number] = [values[i] for i in node.inputs], []
        for step in node.steps:
            x, record = forward(step, x, method)
            recorded[number].append(record)
            x = [x]
        values[number] = x[0]
        for i in node.inputs:
            if last_use[i] == number and i != stop and i not in keep:
                values.pop(i, None)
    return Run(stop, shapes, recorded, values[stop], {i: values[i] for i in keep})


def forward(step: Step, inputs: list[Tensor], method: str | None = None) -> tuple[Tensor, Tensor | None]:
    """A step's value, and what its reverse needs."""
    x = inputs[0]
    if isinstance(step, Conv):
        return convolve(step, x, step.padding), None
    if isinstance(step, Pool):
        y, switches = max_pool2d_with_switches(x, step.kernel, step.stride, step.padding, step.ceil_mode)
        return y, None if method is None else switches
    if isinstance(step, Norm):
        *parameters, center = step.parameters
        return contrast_norm(x, *parameters, center=center), None if method is None else x
    if isinstance(step, ReLU):
        return rectify(step, x), None if method in (None, "deconvnet") else _derivative(step, x)
    if isinstance(step, AveragePool):
        y = F.avg_pool2d(
            x, step.kernel, step.stride, step.padding, step.ceil_mode, step.count_include_pad, step.divisor
        )
    elif isinstance(step, Average):
        y = F.adaptive_avg_pool2d(x, step.size) if averages(step, x.shape) else x
    elif isinstance(step, Mean):
        y = x.mean((2, 3))
    elif isinstance(step, Affine):
        scale, shift = (part.view(-1, *[1] * (x.ndim - 2)) for part in step.scale_and_shift())
        y = x * scale + shift
    elif isinstance(step, Scale):
        y = x * step.scale + step.shift
    elif isinstance(step, Flatten):
        y = x.flatten(1)
    elif isinstance(step, Linear):
        y = F.linear(x, step.weight(), None if step.bias is None else step.bias())
    elif isinstance(step, Add):
        y = x + inputs[1]
    elif isinstance(step, Concat):
        y = torch.cat(inputs, 1)
    else:
        raise AssertionError(step)
    return y, None


def convolve(step: Conv, x: Tensor, padding: Pair) -> Tensor:
    """The convolution, with other zeros around it than its own where x is a part of a map."""
    if _by_torch(step):
        bias = None if step.bias is None else step.bias()
        return F.conv2d(x, step.weight(), bias, step.stride, padding, step.dilation, step.groups)
    filters, bias = step.filters()
    return conv2d(x, filters, bias, step.stride, padding, False, checks.backend(None, x))


def _by_torch(step: Conv) -> bool:
    """Grouped filters, which as dense ones would be mostly zeros: 99% of a depthwise convolution's at 100 maps."""
    return step.groups > 1 and step.before == step.after and not step.batch_norms


def rectify(step: ReLU, x: Tensor) -> Tensor:
    if step.slope:
        return F.leaky_relu(x, step.slope)
    return x.relu() if step.cap == torch.inf else F.hardtanh(x, 0.0, step.cap)


def _derivative(step: ReLU, x: Tensor) -> Tensor:
    """As torch's backward has it: 0 (or the slope) at 0, 0 at the cap."""
    if step.slope:
        return torch.full_like(x, step.slope).masked_fill_(x > 0, 1)
    return (x > 0) & (x < step.cap)


def reverse(graph: Graph, done: Run, g: Tensor, of: np.ndarray, norm: str, method: str) -> Tensor:
    """From signals g (N, *value's shape), each of image of[i], down to the pixels (N, C, H, W)."""
    index = None if np.array_equal(of, np.arange(len(done.value))) else torch.from_numpy(of).to(g.device)
    signals = {done.stop: g}
    for number in reversed(graph.ancestors(done.stop)):
        node, g = graph.nodes[number - 1], signals.pop(number)
        shapes = [done.shapes[i] for i in node.inputs]
        for k in reversed(range(len(node.steps))):
            step, record = node.steps[k], done.recorded[number][k]
            if isinstance(step, (Add, Concat)):
                break
            below = _shape_below(done, node.inputs[0], node.steps[:k])
            record = record if record is None or index is None else record[index]
            g = _reverse_step(step, g, below, record, norm, method)
        parts = [g] * len(node.inputs)
        if node.steps and isinstance(node.steps[0], Concat):
            parts = g.split([shape[1] for shape in shapes], 1)
        for i, part in zip(node.inputs, parts, strict=True):
            signals[i] = signals[i] + part if i in signals else part
    return signals[0]


def _shape_below(done: Run, number: int, steps: tuple[Step, ...]) -> torch.Size:
    """The shape of what a node's step takes, after the node's steps before it."""
    shape = done.shapes[number]
    for step in steps:
        shape = shape_after(step, [shape], done.shapes)
    return shape


def _reverse_step(step: Step, g: Tensor, below: torch.Size, record: Tensor | None, norm: str, method: str) -> Tensor:
    size = tuple(below[2:])
    if isinstance(step, Conv):
        if _by_torch(step):
            return _transposed(step, g, size)
        return relu_conv_transpose2d(g, step.filters()[0], step.stride, step.padding, output_size=size, rectify=False)
    if isinstance(step, Pool):
        return max_unpool2d_with_switches(g, record, step.kernel, step.stride, step.padding, output_size=size)
    if isinstance(step, ReLU):
        if method != "gradient":
            g = F.leaky_relu(g, step.slope) if step.slope else g.relu()
        return g if method == "deconvnet" else g * record
    if isinstance(step, Norm):
        if norm == "identity":
            return g
        if norm == "gradient":
            return contrast_norm_backward(g, record, *step.parameters, checks.backend(None, g))
        return g * norm_factors(record, *step.parameters)
    if isinstance(step, Affine):
        scale, _ = step.scale_and_shift()
        return g * scale.view(-1, *[1] * (g.ndim - 2))
    if isinstance(step, Scale):
        return g * step.scale
    if isinstance(step, (AveragePool, Average)):
        rows, columns = (_averaging(step, below[2 + a], g.shape[2 + a], a).to(g) for a in (0, 1))
        return torch.einsum("ncij,ih,jw->nchw", g, rows, columns)
    if isinstance(step, Mean):
        return (g / (size[0] * size[1]))[:, :, None, None].expand(-1, -1, *size)
    if isinstance(step, Linear):
        return g @ step.weight()
    if isinstance(step, Flatten):
        return g.reshape(-1, *below[1:])
    raise AssertionError(step)


def _transposed(step: Conv, g: Tensor, size: Pair) -> Tensor:
    """The adjoint of a grouped convolution."""
    left = [size[a] - ((g.shape[2 + a] - 1) * step.stride[a] + step.reach[a] - 2 * step.padding[a]) for a in (0, 1)]
    return F.conv_transpose2d(
        g, step.weight(), None, step.stride, step.padding, tuple(left), step.groups, step.dilation
    )


def _averaging(step: AveragePool | Average, below: int, above: int, axis: int) -> Tensor:
    """Along one axis, the part that each of `below` pixels has in each of `above` windows: (above, below)."""
    windows, pixels = np.arange(above), np.arange(below)
    if isinstance(step, Average):
        first, last = windows * below // above, -(-(windows + 1) * below // above)
        sizes = last - first
    else:
        first = windows * step.stride[axis] - step.padding[axis]
        last = first + step.kernel[axis]
        sizes = window_sizes(step, below, above, axis)
    inside = (pixels >= first[:, None]) & (pixels < last[:, None])
    return torch.from_numpy(inside / sizes[:, None])


def window_sizes(step: AveragePool, below: int, above: int, axis: int) -> np.ndarray:
    """Along one axis, what a window's sum is divided by, window by window: (above,). The axes' divisors multiply."""
    if step.divisor:
        return np.full(above, step.divisor if axis == 0 else 1)
    first = np.arange(above) * step.stride[axis] - step.padding[axis]
    last = np.minimum(first + step.kernel[axis], below + step.padding[axis])
    return last - first if step.count_include_pad else last.clip(max=below) - first.clip(0)


def norm_factors(x: Tensor, size: int, alpha: float, beta: float, k: float, center: bool) -> Tensor:
    """Of contrast_norm(x), the factor denominator^(-beta) at each place."""
    d = x.float() if x.element_size() < 4 else x
    if center:
        d = d - _window_sum(d, size) / _window_sum(torch.ones_like(d[:1, :, :1, :1]), size)
    return ((k + alpha / size * _window_sum(d * d, size)) ** -beta).to(x.dtype)


def _window_sum(x: Tensor, size: int) -> Tensor:
    """Over the maps c - size//2 ... c - size//2 + size - 1 that exist."""
    padded = F.pad(x, (0, 0, 0, 0, size // 2, size - 1 - size // 2))
    return sum(padded[:, j : j + x.shape[1]] for j in range(size))


def fields(graph: Graph, stop: int, places: np.ndarray, image_size: Pair) -> np.ndarray:
    """The union over all paths of the receptive fields of the places (N, 2), as boxes (N, 4) clipped to the image."""
    whole = np.array([[-(2**40)] * 2 + [2**40] * 2])  # more than any map
    boxes = {stop: np.concatenate([places, places + 1], 1)}
    for number in reversed(graph.ancestors(stop)):
        node, box = graph.nodes[number - 1], boxes.pop(number)
        for step in reversed(node.steps):
            if isinstance(step, (Conv, Pool, AveragePool)):
                reach, padding = (step.reach, step.before) if isinstance(step, Conv) else (step.kernel, step.padding)
                first, last = covered(box[:, :2], box[:, 2:], np.array(reach), np.array(step.stride), np.array(padding))
                box = np.concatenate([first, last], 1).clip(whole[0, 0], whole[0, 3])
            elif isinstance(step, (Average, Mean, Flatten, Linear)):
                box = np.broadcast_to(whole, box.shape)
        for i in node.inputs:
            other = boxes.get(i, box)
            boxes[i] = np.concatenate([np.minimum(box[:, :2], other[:, :2]), np.maximum(box[:, 2:], other[:, 2:])], 1)
    return boxes[0].clip(0, (*image_size, *image_size))
