"""A step as a call of one kernel, its sizes, addresses and packed filters at hand: made when a graph first meets inputs
of some shapes, for these alone.

`possible` says which our kernels can compute; choice.py, which of these they do.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _C, window
from ..backends import cpu
from ..backends.memory import address, pool_sizes
from ..backends.prepared import PreparedFilters
from .match import Conv, Pair
from .memory import Place, Slice
from .segments import Link, Native, Operand

LAST = torch.channels_last
NO_SWITCHES = 0  # the address of none: maxima alone are made
Registers = list[Any]
Run = Callable[[Registers], None]


@dataclass(frozen=True)
class Places:
    """Where a step's values lie among the registers (-1: there is none)."""

    x: int
    weight: int
    bias: int
    add: int
    out: int
    norm: tuple[int, int, int, int]  # mean, variance, weight, bias


@torch.inference_mode(False)
@torch.no_grad()
def prepared(step: Conv, at: Places, r: Registers) -> PreparedFilters:
    """The step's filters with its batch norm folded into them."""
    filters = folded(step, at, r)
    filters.sources = {}  # the program looks at them; to change them in the middle of a call is no error
    return filters


def folded(step: Conv, at: Places, r: Registers) -> PreparedFilters:
    weight: Any = plain(r, at.weight)
    bias = plain(r, at.bias)
    if step.norm is None:
        return PreparedFilters(weight, bias, None)
    statistics: list[Any] = [None if (t := plain(r, place)) is None else t.double() for place in at.norm]
    mean, var, gamma, beta = statistics
    scale = torch.rsqrt(var + step.norm.eps)
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale if bias is None else (bias.double() - mean) * scale
    shift = shift if beta is None else shift + beta
    kind = r[at.norm[0]].dtype if weight is None else weight.dtype
    scale, shift = scale.to(kind), shift.to(kind)
    if weight is None:
        return PreparedFilters(scale.view(-1, 1, 1, 1), shift, None)
    return PreparedFilters(weight, shift, scale)


def plain(r: Registers, place: int) -> Tensor | None:
    """A register's tensor as memory that holds its values, whose changes torch counts."""
    if place < 0:
        return None
    value: Tensor = r[place].detach().resolve_neg()
    return value.clone() if value.is_inference() else value


def possible(step: Conv, at: Places, r: Registers) -> bool:
    """Can our kernels compute the step?"""
    x = r[at.x]
    filters = r[at.weight if at.weight >= 0 else at.norm[0]]
    if type(x) not in (Tensor, torch.nn.Parameter) or x.device.type != "cpu" or x.ndim != 4 or x.numel() == 0:
        return False
    if (
        x.dtype not in cpu.DTYPES
        or filters.dtype != x.dtype
        or not all(r[p].dtype == x.dtype for p in at.norm if p >= 0)
    ):
        return False
    if at.add >= 0 and (r[at.add].dtype != x.dtype or r[at.add].device != x.device):
        return False
    if step.weight is None:
        return int(x.shape[1]) >= 16
    return bool(filters.shape[1] * step.groups == x.shape[1])


def conv_run(
    step: Conv, at: Places, r: Registers, filters: PreparedFilters, threads: int, part: Slice | None = None
) -> Run:
    """One kernel for the whole step, whose result is `part` of a larger map if that is given."""
    x = r[at.x]
    n, k = x.shape[0], filters.shape[0]
    conv_size = map_size(step, x, filters)
    if min(conv_size) < 1:
        return torch_run(step, at)  # torch says what is wrong
    if x.dtype not in (torch.float32, torch.float64):
        return rounded_run(step, at, filters) if step.after == (0, 0) else torch_run(step, at)
    if step.pool is not None:
        return pooled_run(step, at, r, filters, conv_size, threads)
    sizes, packed = filters.call(tuple(x.shape), conv_size, *step_window(step))
    made = Place(*last(n, k, *conv_size), x.dtype)
    f64, w, b = x.dtype == torch.float64, filters.filters.data_ptr(), address(filters.bias)
    relu, cap, conv2d, x_pitch, y_pitch = step.relu, step.cap, _C.conv2d, pitch(x), k if part is None else part.pitch
    to = part or made
    makes = [made] if part is None else []

    def put(calls: _C.Calls, reads: list[Operand], to: Operand) -> None:
        calls.conv2d(f64, sizes, reads[0], w, packed, b, reads[1], to, relu, cap, x_pitch, y_pitch)

    # Maps that lie otherwise are torch's to copy
    link = link_of(f64, sizes, w, packed, b, relu, cap, x_pitch, y_pitch)
    fits = x_pitch and (at.add < 0 or dense(r[at.add]))
    native = Native((at.x, at.add), at.out, to, put, link=link) if fits else None
    if at.add < 0 and x_pitch:

        def run(r: Registers) -> None:
            x = r[at.x]
            y = r[at.out] = to.of(r, x)
            conv2d(f64, sizes, x.data_ptr(), w, packed, b, 0, y.data_ptr(), relu, cap, threads, x_pitch, y_pitch)

        return keeping(run, filters, native, *makes)

    def run_any(r: Registers) -> None:
        x = r[at.x].contiguous(memory_format=LAST)
        add = r[at.add].contiguous(memory_format=LAST) if at.add >= 0 else None
        y = r[at.out] = to.of(r, x)
        z = 0 if add is None else add.data_ptr()
        conv2d(f64, sizes, x.data_ptr(), w, packed, b, z, y.data_ptr(), relu, cap, threads, x.shape[1], y_pitch)

    return keeping(run_any, filters, native if dense(x) else None, *makes)


def link_of(
    f64: bool,
    sizes: tuple[int, ...],
    weight: int,
    packed: int,
    bias: int,
    relu: bool,
    cap: float,
    x_pitch: int,
    y_pitch: int,
) -> Link | None:
    """The convolution as a part of a chain, where it goes by direct sums and every window meets the map."""
    kernel = _C.conv2d_kernels(_C.isa(), _C.winograd(), f64, sizes, 0, False)[0]
    height, maps_high, taps, stride, padding, dilation = (sizes[i] for i in (2, 5, 7, 9, 11, 17))
    inside = padding <= (taps - 1) * dilation and (maps_high - 1) * stride - padding < height
    if not inside or kernel not in ("direct", "depthwise"):
        return None
    return Link(f64, sizes, weight, packed, bias, relu, cap, x_pitch, y_pitch, kernel)


def map_size(step: Conv, x: Tensor, filters: Tensor | PreparedFilters) -> tuple[int, int]:
    """Rows and columns of the convolution's map, before it is pooled."""
    size = x.shape[2] + step.after[0], x.shape[3] + step.after[1]
    return window.conv_map(size, filters.shape[2:], step.stride, step.padding, step.dilation)


def keeping(run: Any, filters: PreparedFilters | None, native: Native | None, made: Place | None = None) -> Run:
    """The call with the filters, which it knows by their addresses alone, what a segment does in its place, and the
    memory of its result, which it fills."""
    run.filters, run.native, run.makes = filters, native, () if made is None else (made,)
    kept: Run = run
    return kept


def pooled_run(step: Conv, at: Places, r: Registers, filters: PreparedFilters, conv_size: Pair, threads: int) -> Run:
    x = r[at.x]
    n, k = x.shape[0], filters.shape[0]
    assert step.pool is not None
    kernel, stride, padding, ceil_mode = step.pool
    size = window.pool_map(conv_size, kernel, stride, padding, ceil_mode)
    if not pools(kernel, padding, size):
        return torch_run(step, at)
    sizes, packed = filters.call(tuple(x.shape), conv_size, step.stride, step.padding)
    pool = pool_sizes((n, k, *conv_size), size, kernel, stride, padding)
    made = Place(*last(n, k, *size), x.dtype)
    f64, w, b = x.dtype == torch.float64, filters.filters.data_ptr(), address(filters.bias)

    def run(r: Registers) -> None:
        x = r[at.x].contiguous(memory_format=LAST)
        y = r[at.out] = made.of(r, x)
        _C.conv2d_relu_max_pool2d(f64, sizes, pool, x.data_ptr(), w, packed, b, y.data_ptr(), NO_SWITCHES, 0, threads)

    def put(calls: _C.Calls, reads: list[Operand], to: Operand) -> None:
        calls.conv2d_relu_max_pool2d(f64, sizes, pool, reads[0], w, packed, b, to)

    return keeping(run, filters, Native((at.x,), at.out, made, put) if dense(x) else None, made)


def pool_alone(place: int, out: int, r: Registers, pool: tuple[Pair, Pair, Pair, bool], threads: int) -> Run | None:
    """A max-pooling of torch's, by our kernel: up to twice as fast on channels-last maps. None where it has none."""
    x, (kernel, stride, padding, ceil_mode) = r[place], pool
    if type(x) is not Tensor or x.ndim != 4 or x.numel() == 0 or x.dtype not in (torch.float32, torch.float64):
        return None
    size = window.pool_map(x.shape[2:], kernel, stride, padding, ceil_mode)
    if x.device.type != "cpu" or not dense(x) or not pools(kernel, padding, size):
        return None
    sizes = pool_sizes(x.shape, size, kernel, stride, padding)
    made = Place(*last(x.shape[0], x.shape[1], *size), x.dtype)
    f64 = x.dtype == torch.float64

    def run(r: Registers) -> None:
        x = r[place]
        y = r[out] = made.of(r, x)
        _C.max_pool2d(f64, sizes, x.data_ptr(), y.data_ptr(), NO_SWITCHES, threads)

    def put(calls: _C.Calls, reads: list[Operand], to: Operand) -> None:
        calls.max_pool2d(f64, sizes, reads[0], to)

    return keeping(run, None, Native((place,), out, made, put), made)


def pools(kernel: tuple[int, int], padding: tuple[int, int], size: tuple[int, int]) -> bool:
    """Have our kernels such a window, and does one fit into the map?"""
    return (
        min(size) >= 1
        and kernel[0] * kernel[1] <= 255
        and all(2 * p <= k for p, k in zip(padding, kernel, strict=True))
    )


def rounded_run(step: Conv, at: Places, filters: PreparedFilters) -> Run:
    """bfloat16 and float16: computed in float32, and rounded once."""
    stride, padding, dilation, groups = step_window(step)
    cap = None if step.cap == math.inf else step.cap

    def run(r: Registers) -> None:
        add = r[at.add] if at.add >= 0 else None
        y = cpu.conv2d_add(r[at.x], filters, None, add, stride, padding, step.relu, cap, dilation, groups)
        r[at.out] = y if step.pool is None else by_torch_pool(step, y)

    return run


def torch_run(step: Conv, at: Places) -> Run:
    """The step by torch's functions, one after another."""

    def run(r: Registers) -> None:
        value = r[at.x]
        if step.weight is not None:
            bias = r[at.bias] if at.bias >= 0 else None
            padding: Pair | int = step.padding
            if step.after != (0, 0):
                (top, left), (below, right) = step.padding, step.after
                value, padding = F.pad(value, (left, left + right, top, top + below)), 0
            value = F.conv2d(value, r[at.weight], bias, step.stride, padding, step.dilation, step.groups)
        if step.norm is not None:
            mean, var, gamma, beta = (r[place] if place >= 0 else None for place in at.norm)
            value = F.batch_norm(value, mean, var, gamma, beta, False, 0.0, step.norm.eps)
        if at.add >= 0:
            value = value + r[at.add]
        r[at.out] = rectified(step, value)

    return run


def rectified(step: Conv, value: Tensor) -> Tensor:
    """The step's rectifier in place, and its pooling, by torch."""
    if step.relu:
        value = value.relu_() if step.cap == math.inf else value.clamp_(0, step.cap)
    return value if step.pool is None else by_torch_pool(step, value)


def by_torch_pool(step: Conv, value: Tensor) -> Tensor:
    assert step.pool is not None
    kernel, stride, padding, ceil_mode = step.pool
    return F.max_pool2d(value, kernel, stride, padding, 1, ceil_mode)


def step_window(step: Conv) -> tuple[Pair, Pair, Pair, int]:
    return step.stride, step.padding, step.dilation, step.groups


def dense(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=LAST)


def pitch(x: Tensor) -> int:
    """Elements from one pixel of a map to the next, where its pixels lie equally far apart, each one's channels side by
    side; 0 where they do not."""
    n, channels, height, width = x.shape
    if dense(x):
        return channels
    image, channel, row, pixel = x.stride()
    even = pixel >= channels and (height == 1 or row == width * pixel) and (n == 1 or image == height * width * pixel)
    return pixel if even and channel == 1 and width > 1 else 0


def last(n: int, channels: int, height: int, width: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape and strides of a channels-last map."""
    row = width * channels
    return (n, channels, height, width), (height * row, 1, row, channels)
