"""The reference: NumPy, float64, plain loops over a window's taps and slices of a map.

It is the text that a reader checks the formulas against, and the oracle of every test. Inputs are converted to float64,
results rounded once to the input's dtype. Where a value is compared after rounding (the fused layer's pooling) or an
op is a composition, the parts are literally composed.

Names: n image, c or i input channel, o output channel, g group; (kh, kw) a tap, the offset inside a window; s stride;
p padding; d dilation. Tap (kh, kw) of window (i, j) is the padded map's pixel (i*s + kh*d, j*s + kw*d).
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..window import Sides
from ..window import conv_map as map_size
from .memory import Grads, Pooled, bad_switch

DEVICES = ("cpu", "cuda")  # other devices' tensors are copied to the CPU and back
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
ONE = (1, 1)

quiet = np.errstate(invalid="ignore", over="ignore")  # NaN and inf are values like others


def unavailable() -> str | None:
    """Why this backend cannot run here; None, for it always can."""
    return None


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()


def _bytes(switches: Tensor) -> np.ndarray:
    return switches.detach().to("cpu").numpy()


def _tensor(
    array: np.ndarray,
    like: Tensor,
    dtype: torch.dtype | None = None,
    memory_format: torch.memory_format = torch.channels_last,
) -> Tensor:
    """`array` rounded to `like`'s dtype (or `dtype`) on `like`'s device."""
    out = torch.empty(array.shape, dtype=dtype or like.dtype, device=like.device, memory_format=memory_format)
    return out.copy_(torch.from_numpy(np.ascontiguousarray(array)))


def _pad(x: np.ndarray, padding: Sides, size: Sides, value: float) -> np.ndarray:
    """x with `padding` above and on the left, on a canvas of at least `size`, filled with `value`."""
    height, width = max(size[0], x.shape[2] + 2 * padding[0]), max(size[1], x.shape[3] + 2 * padding[1])
    canvas = np.full((*x.shape[:2], height, width), value, x.dtype)
    canvas[:, :, padding[0] : padding[0] + x.shape[2], padding[1] : padding[1] + x.shape[3]] = x
    return canvas


def _crop(canvas: np.ndarray, padding: Sides, size: Sides) -> np.ndarray:
    return canvas[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]


def _tap(canvas: np.ndarray, kh: int, kw: int, stride: Sides, windows: Sides) -> np.ndarray:
    """The pixels at (kh, kw) from every window's first, as a view of shape (..., *windows)."""
    rows = slice(kh, kh + (windows[0] - 1) * stride[0] + 1, stride[0])
    columns = slice(kw, kw + (windows[1] - 1) * stride[1] + 1, stride[1])
    return canvas[..., rows, columns]


def _extent(windows: Sides, kernel: Sides, stride: Sides) -> tuple[int, int]:
    """The size of the canvas that `windows` windows cover."""
    return (windows[0] - 1) * stride[0] + kernel[0], (windows[1] - 1) * stride[1] + kernel[1]


# Convolution


def _grouped(a: np.ndarray, groups: int) -> np.ndarray:
    """Axis 1 as (groups, channels of a group)."""
    return a.reshape(a.shape[0], groups, a.shape[1] // groups, *a.shape[2:])


def _filters(w: np.ndarray, groups: int) -> np.ndarray:
    """(filters, ...) as (groups, filters of a group, ...)."""
    return w.reshape(groups, w.shape[0] // groups, *w.shape[1:])


def _convolve(
    a: np.ndarray, w: np.ndarray, bias: np.ndarray | None, stride: Sides, padding: Sides, dilation: Sides, groups: int
) -> np.ndarray:
    kernel = w.shape[2:]
    windows = map_size(a.shape[2:], kernel, stride, padding, dilation)
    canvas, w = _grouped(_pad(a, padding, (0, 0), 0.0), groups), _filters(w, groups)
    y = np.zeros((a.shape[0], *w.shape[:2], *windows))
    for kh, kw in np.ndindex(*kernel):
        tap = _tap(canvas, kh * dilation[0], kw * dilation[1], stride, windows)
        y += np.einsum("goc,ngcij->ngoij", w[:, :, :, kh, kw], tap, optimize=True)
    y = y.reshape(a.shape[0], w.shape[0] * w.shape[1], *windows)
    return y if bias is None else y + bias[:, None, None]


@quiet
def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sides,
    padding: Sides,
    relu: bool,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    """y[n,o,i,j] = bias[o] + sum over c,kh,kw of w[o,c,kh,kw] x[n,c', i*s+kh*d-p, j*s+kw*d-p]; then max(0, y) if relu.

    c' is channel c of o's group.
    """
    offsets = None if bias is None else _array(bias)
    y = _convolve(_array(x), _array(weight), offsets, stride, padding, dilation, groups)
    return _tensor(np.maximum(y, 0) if relu else y, x)


@quiet
def conv2d_add(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    add: Tensor | None,
    stride: Sides,
    padding: Sides,
    relu: bool,
    cap: float | None,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    """y = conv2d(x) + add (or not); then max(0, y) if relu, and min(y, cap) unless cap is None."""
    offsets = None if bias is None else _array(bias)
    y = _convolve(_array(x), _array(weight), offsets, stride, padding, dilation, groups)
    y = y if add is None else y + _array(add)
    y = np.maximum(y, 0) if relu else y
    return _tensor(y if cap is None else np.minimum(y, cap), x)


@quiet
def conv_transpose2d(
    y: Tensor,
    weight: Tensor,
    stride: Sides,
    padding: Sides,
    output_size: Sides,
    rectify: bool,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    """x[n,c', i*s+kh*d-p, j*s+kw*d-p] += sum over o of w[o,c,kh,kw] max(0, y[n,o,i,j]), for every window and tap."""
    b, w = _array(y), _filters(_array(weight), groups)
    if rectify:
        b = np.maximum(b, 0)
    windows, kernel, b = b.shape[2:], w.shape[3:], _grouped(b, groups)
    size = (output_size[0] + 2 * padding[0], output_size[1] + 2 * padding[1])
    canvas = np.zeros((b.shape[0], groups, w.shape[2], *size))
    for kh, kw in np.ndindex(*kernel):
        tap = _tap(canvas, kh * dilation[0], kw * dilation[1], stride, windows)
        tap += np.einsum("goc,ngoij->ngcij", w[:, :, :, kh, kw], b, optimize=True)
    return _tensor(_crop(canvas.reshape(b.shape[0], groups * w.shape[2], *size), padding, output_size), y)


@quiet
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
    """gw[o,c,kh,kw] = sum over n,i,j of g[n,o,i,j] x[n,c', i*s+kh*d-p, j*s+kw*d-p]; gb[o] = sum over n,i,j of g."""
    a, b = _array(x), _array(g)
    canvas, grouped = _grouped(_pad(a, padding, (0, 0), 0.0), groups), _grouped(b, groups)
    gw = np.zeros((groups, grouped.shape[2], canvas.shape[2], *kernel_size))
    for kh, kw in np.ndindex(*kernel_size):
        tap = _tap(canvas, kh * dilation[0], kw * dilation[1], stride, b.shape[2:])
        gw[..., kh, kw] = np.einsum("ngoij,ngcij->goc", grouped, tap, optimize=True)
    gb = _tensor(b.sum((0, 2, 3)), x, memory_format=torch.contiguous_format) if with_bias else None
    gw = gw.reshape(b.shape[1], canvas.shape[2], *kernel_size)
    return _tensor(gw, x, memory_format=torch.contiguous_format), gb


# Pooling


def max_pool2d(x: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides) -> Pooled:
    """The first maximum of each window in row-major order; NaN is the maximum, and the first NaN wins."""
    a = _array(x)
    size = _extent(output_size, kernel_size, stride)
    canvas = _pad(a, padding, size, 0.0)
    on_map = _pad(np.ones(a.shape, bool), padding, size, False)
    best = np.zeros((*a.shape[:2], *output_size))
    switches = np.zeros(best.shape, np.uint8)
    empty = np.ones(best.shape, bool)
    for kh, kw in np.ndindex(*kernel_size):
        value = _tap(canvas, kh, kw, stride, output_size)
        greater = (value > best) | (np.isnan(value) & ~np.isnan(best))
        wins = _tap(on_map, kh, kw, stride, output_size) & (empty | greater)
        best[wins] = value[wins]
        switches[wins] = kh * kernel_size[1] + kw
        empty &= ~wins
    return _tensor(best, x), _tensor(switches, x, torch.uint8)


def _check_switches(switches: np.ndarray, kernel_size: Sides, stride: Sides, padding: Sides, size: Sides) -> None:
    """Every switch must point into its own window (below KH*KW) and onto the map of (height, width) `size`."""
    s = switches.astype(np.int64)
    i, j = np.indices(s.shape)[2:]
    row = i * stride[0] + s // kernel_size[1] - padding[0]
    column = j * stride[1] + s % kernel_size[1] - padding[1]
    wrong = (s >= kernel_size[0] * kernel_size[1]) | (row < 0) | (row >= size[0]) | (column < 0) | (column >= size[1])
    if wrong.any():
        n, h, w, c = (int(index) for index in np.argwhere(wrong.transpose(0, 2, 3, 1))[0])
        raise bad_switch(s[n, c, h, w], (n, c, h, w), kernel_size, stride, padding, size)


@quiet
def max_unpool2d(
    y: Tensor, switches: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides
) -> Tensor:
    """x[n,c, i*s+kh-p, j*s+kw-p] += y[n,c,i,j] for every window (i,j), (kh,kw) being its switch."""
    b, s = _array(y), _bytes(switches)
    _check_switches(s, kernel_size, stride, padding, output_size)
    windows = b.shape[2:]
    extent = _extent(windows, kernel_size, stride)
    canvas = np.zeros((*b.shape[:2], *(max(extent[d], output_size[d] + 2 * padding[d]) for d in (0, 1))))
    for kh, kw in np.ndindex(*kernel_size):
        tap = _tap(canvas, kh, kw, stride, windows)
        tap += np.where(s == kh * kernel_size[1] + kw, b, 0.0)
    return _tensor(_crop(canvas, padding, output_size), y)


def max_unpool2d_backward(g: Tensor, switches: Tensor, kernel_size: Sides, stride: Sides, padding: Sides) -> Tensor:
    """gy[n,c,i,j] = g[n,c, i*s+kh-p, j*s+kw-p], (kh,kw) being window (i,j)'s switch."""
    a, s = _array(g), _bytes(switches)
    _check_switches(s, kernel_size, stride, padding, a.shape[2:])
    windows = s.shape[2:]
    canvas = _pad(a, padding, _extent(windows, kernel_size, stride), 0.0)
    gy = np.zeros(s.shape)
    for kh, kw in np.ndindex(*kernel_size):
        here = s == kh * kernel_size[1] + kw
        gy[here] = _tap(canvas, kh, kw, stride, windows)[here]
    return _tensor(gy, g)


def _counts(size: int, kernel: int, stride: int, padding: int, windows: int, padded: bool) -> np.ndarray:
    """How many pixels each window of one axis counts: those on the map, and with `padded` those of the padding."""
    first = np.arange(windows) * stride - padding
    last = np.minimum(first + kernel, size + padding)
    counts: np.ndarray = last - first if padded else np.minimum(last, size) - np.maximum(first, 0)
    return counts


def _shares(size: Sides, kernel_size: Sides, stride: Sides, padding: Sides, windows: Sides, padded: bool) -> np.ndarray:
    """1 / (what window (i, j) counts)."""
    rows, columns = (
        _counts(size[d], kernel_size[d], stride[d], padding[d], windows[d], padded).astype(np.float64) for d in (0, 1)
    )
    shares: np.ndarray = 1 / (rows[:, None] * columns[None, :])
    return shares


@quiet
def avg_pool2d(
    x: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides, padded: bool
) -> Tensor:
    """y[n,c,i,j] = (sum over kh,kw of x[n,c, i*s+kh-p, j*s+kw-p]) / (the pixels that window (i,j) counts)."""
    a = _array(x)
    canvas = _pad(a, padding, _extent(output_size, kernel_size, stride), 0.0)
    y = np.zeros((*a.shape[:2], *output_size))
    for kh, kw in np.ndindex(*kernel_size):
        y += _tap(canvas, kh, kw, stride, output_size)
    return _tensor(y * _shares(a.shape[2:], kernel_size, stride, padding, output_size, padded), x)


@quiet
def avg_pool2d_backward(
    g: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides, padded: bool
) -> Tensor:
    """gx[n,c, i*s+kh-p, j*s+kw-p] += g[n,c,i,j] / (the pixels that window (i,j) counts), for every window and tap."""
    b = _array(g)
    windows, extent = b.shape[2:], _extent(b.shape[2:], kernel_size, stride)
    b = b * _shares(output_size, kernel_size, stride, padding, windows, padded)
    canvas = np.zeros((*b.shape[:2], *(max(extent[d], output_size[d] + 2 * padding[d]) for d in (0, 1))))
    for kh, kw in np.ndindex(*kernel_size):
        tap = _tap(canvas, kh, kw, stride, windows)
        tap += b
    return _tensor(_crop(canvas, padding, output_size), g)


# Contrast normalisation


def _windows(channels: int, size: int) -> list[slice]:
    """W(c) = {c - size//2, ..., c - size//2 + size - 1}, cut to the maps that exist, for every c."""
    return [slice(max(0, c - size // 2), min(channels, c - size // 2 + size)) for c in range(channels)]


def _difference_and_scale(
    x: np.ndarray, size: int, alpha: float, k: float, center: bool
) -> tuple[np.ndarray, np.ndarray]:
    """d (x, less its window's mean if `center`) and s_c = k + alpha/size * sum over j in W(c) of d_j^2."""
    d, s = x.copy(), np.empty_like(x)
    for c, window in enumerate(_windows(x.shape[1], size)):
        if center:
            d[:, c] = (x[:, c, None] - x[:, window]).mean(1)  # 0 where all are equal, which x - mean is not
    for c, window in enumerate(_windows(x.shape[1], size)):
        s[:, c] = k + alpha / size * np.square(d[:, window]).sum(1)
    return d, s


@quiet
def contrast_norm(x: Tensor, size: int, alpha: float, beta: float, k: float, center: bool) -> Tensor:
    """y_c = d_c s_c^(-beta)."""
    d, s = _difference_and_scale(_array(x), size, alpha, k, center)
    return _tensor(d * s**-beta, x)


@quiet
def contrast_norm_backward(
    g: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, center: bool
) -> Tensor:
    """gd_j = g_j s_j^(-beta) - 2 alpha beta / size * d_j * sum over {c : j in W(c)} of g_c d_c s_c^(-beta-1).

    gx is gd, less, if `center`, the sum over {c : j in W(c)} of gd_c / |W(c)|.
    """
    b = _array(g)
    d, s = _difference_and_scale(_array(x), size, alpha, k, center)
    t = b * d * s ** (-beta - 1)
    sums = np.zeros_like(t)
    for c, window in enumerate(_windows(d.shape[1], size)):
        sums[:, window] += t[:, c, None]
    gd = b * s**-beta - 2 * alpha * beta / size * d * sums
    gx = gd.copy()
    if center:
        for c, window in enumerate(_windows(d.shape[1], size)):
            gx[:, window] -= gd[:, c, None] / (window.stop - window.start)
    return _tensor(gx, x)


# Whole layers: the parts, composed


def conv2d_relu_max_pool2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sides, padding: Sides, *pool: Any
) -> Pooled:
    """max_pool2d(conv2d(x)); the convolution's result is rounded to x's dtype before a window compares it."""
    return max_pool2d(conv2d(x, weight, bias, stride, padding, True), *pool)


def conv2d_relu_max_pool2d_weight_grad(x: Tensor, g: Tensor, switches: Tensor, *settings: Any) -> Grads:
    """conv2d_weight_grad(x, max_unpool2d(g, switches))."""
    kernel_size, stride, padding, pool_kernel, pool_stride, pool_padding, with_bias = settings
    size = map_size(x.shape[2:], kernel_size, stride, padding)
    unpooled = max_unpool2d(g, switches, pool_kernel, pool_stride, pool_padding, size)
    return conv2d_weight_grad(x, unpooled, kernel_size, stride, padding, with_bias)


def max_pool2d_contrast_norm(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    """y, switches = max_pool2d(x); contrast_norm(y), of y rounded to x's dtype."""
    y, switches = max_pool2d(x, *settings[:4])
    return y, switches, contrast_norm(y, *settings[4:])


def max_unpool2d_relu_conv_transpose2d(y: Tensor, switches: Tensor, weight: Tensor, *settings: Any) -> Tensor:
    """conv_transpose2d(max_unpool2d(y, switches))."""
    stride, padding, pool_kernel, pool_stride, pool_padding, output_size, rectify = settings
    size = map_size(output_size, weight.shape[2:], stride, padding)
    unpooled = max_unpool2d(y, switches, pool_kernel, pool_stride, pool_padding, size)
    return conv_transpose2d(unpooled, weight, stride, padding, output_size, rectify)
