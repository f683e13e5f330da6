"""The compiled kernels of csrc/cpu: float32 and float64 on the CPU, as fast as its instruction set allows.

bfloat16 and float16 are computed in float32 and rounded once at the end. Inputs of any strides are taken; what is not
dense channels-last memory is copied into it first. The instruction set is the best that the CPU has, or the one that
the environment variable ZFKERNELS_ISA names ("baseline", "avx2", "avx512").

float32 convolutions, and what is computed in float32, go by Winograd's minimal filtering where that is faster
(csrc/cpu/winograd.h, winograd_rows.h): relative errors of 4e-7 to 3e-6 in norm where direct summation has 2e-7 to
1e-6, both under the bound of 1e-5. `use_exact(True)`, or ZFKERNELS_EXACT=1 in the environment, makes every
convolution direct. Transposed ones of unpooled maps, or on small maps, are direct sums over what is not 0
(csrc/cpu/nonzeros.h).
"""

import math
import os
from typing import Any, TypeVar

import torch
from torch import Tensor

from .. import _C, window
from ..window import Sides
from .memory import Grads, Pooled, address, bad_switch, conv_sizes, pixels, pool_sizes
from .prepared import PreparedFilters

DEVICES = ("cpu",)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

ONE = (1, 1)

_LARGE = 32 << 20  # bytes from which malloc maps fresh pages for every result (csrc/cpu/memory.h has the cost)
_ROUNDING = {torch.bfloat16: 1, torch.float16: 2}  # csrc/cpu/kernels.h, enum Rounding

if os.environ.get("ZFKERNELS_ISA"):
    try:
        _C.set_isa(os.environ["ZFKERNELS_ISA"])
    except ValueError as error:
        raise ValueError(f"ZFKERNELS_ISA: {error}") from None

# Which kernels float32 convolutions use, _C.set_winograd's argument: csrc/cpu/kernels.h, enum Mode.
NEVER, WHERE_FASTER, ALWAYS, ALWAYS_ROWS, NONZEROS = range(5)

if os.environ.get("ZFKERNELS_EXACT", "") not in ("", "0", "1"):
    raise ValueError(f"ZFKERNELS_EXACT must be 0 or 1, got {os.environ['ZFKERNELS_EXACT']!r}")
_C.set_winograd(NEVER if os.environ.get("ZFKERNELS_EXACT") == "1" else WHERE_FASTER)


def unavailable() -> str | None:
    """None: the module could not have been imported without its kernels."""
    return None


def conv2d(
    x: Tensor,
    weight: Tensor | PreparedFilters,
    bias: Tensor | None,
    stride: Sides,
    padding: Sides,
    relu: bool,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    return conv2d_add(x, weight, bias, None, stride, padding, relu, None, dilation, groups)


def conv2d_add(
    x: Tensor,
    weight: Tensor | PreparedFilters,
    bias: Tensor | None,
    add: Tensor | None,
    stride: Sides,
    padding: Sides,
    relu: bool,
    cap: float | None,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    output_size = window.conv_map(x.shape[2:], weight.shape[2:], stride, padding, dilation)
    y = _empty(x, x.shape[0], weight.shape[0], output_size)
    xs, ys, zs = _dense(x), _computed_empty(y), None if add is None else _dense(add)
    sizes, ws, packed, bs = _filters(weight, bias, x.shape, output_size, stride, padding, dilation, groups)
    addresses = xs.data_ptr(), ws.data_ptr(), packed, address(bs), address(zs), ys.data_ptr()
    pitches = x.shape[1], y.shape[1]
    _C.conv2d(_f64(x), sizes, *addresses, relu, math.inf if cap is None else cap, _threads(), *pitches)
    return _rounded(ys, y)


def conv_transpose2d(
    y: Tensor,
    weight: Tensor | PreparedFilters,
    stride: Sides,
    padding: Sides,
    output_size: Sides,
    rectify: bool,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    x = _empty(y, y.shape[0], weight.shape[1] * groups, output_size)
    ys, xs, most = _dense(y), _computed_empty(x), y.shape[1] // groups * y.shape[2] * y.shape[3]
    call = most, rectify, tuple(x.shape), y.shape[2:], stride, padding, dilation, groups
    sizes, ws, packed = _transposed_filters(weight, *call)
    _C.conv_transpose2d(_f64(y), sizes, ys.data_ptr(), ws.data_ptr(), packed, xs.data_ptr(), rectify, _threads())
    return _rounded(xs, x)


def conv2d_weight_grad(
    x: Tensor,
    g: Tensor,
    kernel_size: Sides,
    stride: Sides,
    padding: Sides,
    with_bias: bool,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Grads:
    gw = x.new_empty((g.shape[1], x.shape[1] // groups, *kernel_size))
    gb = x.new_empty(g.shape[1]) if with_bias else None
    xs, gs, gws, gbs = _dense(x), _dense(g), _computed(gw), _computed(gb)
    sizes = conv_sizes(xs.shape, gws, g.shape[2:], stride, padding, dilation, groups)
    addresses = xs.data_ptr(), gs.data_ptr(), gws.data_ptr(), address(gbs)
    _C.conv2d_weight_grad(_f64(x), sizes, *addresses, _threads())
    return gws.to(x.dtype), None if gbs is None else gbs.to(x.dtype)


def max_pool2d(x: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides) -> Pooled:
    y = _empty(x, x.shape[0], x.shape[1], output_size)
    switches = torch.empty_like(y, dtype=torch.uint8)
    xs, ys = _dense(x), _computed_empty(y)
    sizes = pool_sizes(xs.shape, output_size, kernel_size, stride, padding)
    _C.max_pool2d(_f64(x), sizes, xs.data_ptr(), ys.data_ptr(), switches.data_ptr(), _threads())
    return _rounded(ys, y), switches


def max_unpool2d(
    y: Tensor, switches: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides
) -> Tensor:
    x = _empty(y, y.shape[0], y.shape[1], output_size)
    ys, s, xs = _dense(y), _dense(switches), _computed_empty(x)
    sizes = pool_sizes(xs.shape, y.shape[2:], kernel_size, stride, padding)
    bad = _C.max_unpool2d(_f64(y), sizes, ys.data_ptr(), s.data_ptr(), xs.data_ptr(), _threads())
    _check_switches(bad, s, kernel_size, stride, padding, output_size)
    return _rounded(xs, x)


def max_unpool2d_backward(g: Tensor, switches: Tensor, kernel_size: Sides, stride: Sides, padding: Sides) -> Tensor:
    gy = _empty(g, switches.shape[0], switches.shape[1], switches.shape[2:])
    gs, s, gys = _dense(g), _dense(switches), _computed_empty(gy)
    sizes = pool_sizes(gs.shape, switches.shape[2:], kernel_size, stride, padding)
    bad = _C.max_unpool2d_backward(_f64(g), sizes, gs.data_ptr(), s.data_ptr(), gys.data_ptr(), _threads())
    _check_switches(bad, s, kernel_size, stride, padding, g.shape[2:])
    return _rounded(gys, gy)


def avg_pool2d(
    x: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides, padded: bool
) -> Tensor:
    y = _empty(x, x.shape[0], x.shape[1], output_size)
    xs, ys = _dense(x), _computed_empty(y)
    sizes = pool_sizes(xs.shape, output_size, kernel_size, stride, padding)
    _C.avg_pool2d(_f64(x), sizes, xs.data_ptr(), ys.data_ptr(), padded, _threads())
    return _rounded(ys, y)


def avg_pool2d_backward(
    g: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides, padded: bool
) -> Tensor:
    gx = _empty(g, g.shape[0], g.shape[1], output_size)
    gs, gxs = _dense(g), _computed_empty(gx)
    sizes = pool_sizes(gxs.shape, g.shape[2:], kernel_size, stride, padding)
    _C.avg_pool2d_backward(_f64(g), sizes, gs.data_ptr(), gxs.data_ptr(), padded, _threads())
    return _rounded(gxs, gx)


def contrast_norm(x: Tensor, size: int, alpha: float, beta: float, k: float, center: bool) -> Tensor:
    y = _empty(x, x.shape[0], x.shape[1], x.shape[2:])
    xs, ys = _dense(x), _computed_empty(y)
    norm = size, alpha, beta, k, center
    _C.contrast_norm(_f64(x), pixels(x), x.shape[1], *norm, xs.data_ptr(), ys.data_ptr(), _threads())
    return _rounded(ys, y)


def contrast_norm_backward(
    g: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, center: bool
) -> Tensor:
    gx = _empty(x, x.shape[0], x.shape[1], x.shape[2:])
    gs, xs, gxs = _dense(g), _dense(x), _computed_empty(gx)
    norm = size, alpha, beta, k, center
    addresses = gs.data_ptr(), xs.data_ptr(), gxs.data_ptr()
    _C.contrast_norm_backward(_f64(x), pixels(x), x.shape[1], *norm, *addresses, _threads())
    return _rounded(gxs, gx)


def conv2d_relu_max_pool2d(x: Tensor, weight: Tensor | PreparedFilters, bias: Tensor | None, *settings: Any) -> Pooled:
    stride, padding, *pool, output_size = settings
    n, k = x.shape[0], weight.shape[0]
    conv_size = window.conv_map(x.shape[2:], weight.shape[2:], stride, padding)
    y = _empty(x, n, k, output_size)
    switches = torch.empty_like(y, dtype=torch.uint8)
    xs, ys = _dense(x), _computed_empty(y)
    conv, ws, packed, bs = _filters(weight, bias, x.shape, conv_size, stride, padding)
    sizes = conv, pool_sizes((n, k, *conv_size), output_size, *pool)
    addresses = xs.data_ptr(), ws.data_ptr(), packed, address(bs), ys.data_ptr(), switches.data_ptr()
    _C.conv2d_relu_max_pool2d(_f64(x), *sizes, *addresses, _ROUNDING.get(x.dtype, 0), _threads())
    return _rounded(ys, y), switches


def conv2d_relu_max_pool2d_weight_grad(x: Tensor, g: Tensor, switches: Tensor, *settings: Any) -> Grads:
    kernel_size, stride, padding, pool_kernel, pool_stride, pool_padding, with_bias = settings
    size = window.conv_map(x.shape[2:], kernel_size, stride, padding)
    unpooled = max_unpool2d(g, switches, pool_kernel, pool_stride, pool_padding, size)
    return conv2d_weight_grad(x, unpooled, kernel_size, stride, padding, with_bias)


def max_pool2d_contrast_norm(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    y, switches = max_pool2d(x, *settings[:4])
    return y, switches, contrast_norm(y, *settings[4:])


def max_unpool2d_relu_conv_transpose2d(
    y: Tensor, switches: Tensor, weight: Tensor | PreparedFilters, *settings: Any
) -> Tensor:
    stride, padding, pool_kernel, pool_stride, pool_padding, output_size, rectify = settings
    pool = pool_kernel, pool_stride, pool_padding
    n, k = y.shape[:2]
    conv_size = window.conv_map(output_size, weight.shape[2:], stride, padding)
    x = _empty(y, n, weight.shape[1], output_size)
    ys, s, xs = _dense(y), _dense(switches), _computed_empty(x)
    most = min(y.shape[2] * y.shape[3], conv_size[0] * conv_size[1]) * k
    conv, ws, packed = _transposed_filters(weight, most, rectify, tuple(x.shape), conv_size, stride, padding)
    sizes = conv, pool_sizes((n, k, *conv_size), y.shape[2:], *pool)
    addresses = ys.data_ptr(), s.data_ptr(), ws.data_ptr(), packed, xs.data_ptr()
    rounding = _ROUNDING.get(y.dtype, 0)
    bad = _C.max_unpool2d_relu_conv_transpose2d(_f64(y), *sizes, *addresses, rectify, rounding, _threads())
    _check_switches(bad, s, *pool, conv_size)
    return _rounded(xs, x)


def _filters(
    weight: Tensor | PreparedFilters, bias: Tensor | None, shape: Sides, output_size: Sides, *settings: Any
) -> tuple[tuple[int, ...], Tensor, int, Tensor | None]:
    """A convolution's sizes, filters, the address of the same packed (0: they are not) and bias."""
    if isinstance(weight, PreparedFilters):
        sizes, packed = weight.call(tuple(shape), output_size, *settings)
        return sizes, weight.filters, packed, weight.bias if bias is None else _bias(bias)
    ws = _computed(weight)
    return conv_sizes(shape, ws, output_size, *settings), ws, 0, _bias(bias)


def _transposed_filters(
    weight: Tensor | PreparedFilters, most: int, rectify: bool, shape: tuple[int, ...], *settings: Any
) -> tuple[tuple[int, ...], Tensor, int]:
    """The same of a transposed one, of a map with at most `most` values an image that are not 0."""
    if isinstance(weight, PreparedFilters):
        sizes, packed = weight.transposed_call(most, rectify, shape, *settings)
        return sizes, weight.filters, packed
    ws = _computed(weight)
    return conv_sizes(shape, ws, *settings), ws, 0


def _threads() -> int:
    return torch.get_num_threads()


def _f64(x: Tensor) -> bool:
    return x.dtype == torch.float64


def _empty(like: Tensor, n: int, channels: int, size: Sides) -> Tensor:
    height, width = size
    row = width * channels
    # As torch.empty with memory_format=torch.channels_last, a microsecond sooner.
    y = like.new_empty_strided((n, channels, height, width), (height * row, 1, row, channels))
    if y.nbytes >= _LARGE:
        _C.prefer_huge_pages(y.data_ptr(), y.nbytes)
    return y


Maybe = TypeVar("Maybe", Tensor, Tensor | None)


def _computed(x: Maybe) -> Maybe:
    """x in the type that the kernels compute in."""
    return x.float() if x is not None and x.dtype in _ROUNDING else x


def _bias(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else _computed(bias).contiguous()


def _dense(x: Tensor) -> Tensor:
    """x in the type that the kernels compute in (switches as they are), in dense channels-last memory."""
    x = x.float() if x.dtype in _ROUNDING else x
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous(memory_format=torch.channels_last)


def _computed_empty(y: Tensor) -> Tensor:
    """Where a kernel writes what becomes y: y itself, or memory of the type that the kernels compute in."""
    return torch.empty_like(y, dtype=torch.float32) if y.dtype in _ROUNDING else y


def _rounded(computed: Tensor, y: Tensor) -> Tensor:
    return y if computed is y else y.copy_(computed)


def _check_switches(bad: int, switches: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, size: Sides) -> None:
    """Raises for the switch at the flat channels-last index that a kernel refused (-1: none)."""
    if bad >= 0:
        _, c, h, w = switches.shape
        place = bad // (w * h * c), bad % c, bad // (w * c) % h, bad // c % w
        raise bad_switch(int(switches[place]), place, kernel_size, stride, padding, size)
