"""Cross-map contrast normalisation, forward and backward (formulas: zfkernels/ops/contrast_norm.py).

A program holds the whole channel stacks of a few pixels, so that each value is read from memory once and each result
written once. The sums over neighbouring channels are direct sums of at most `size` terms. (A prefix sum loses the
digits that it cancels, and one infinity spoils the rest of the stack; a product with a banded matrix turns an infinity
times the band's zeros into NaN, and rounds to TF32.)
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..memory import dense, empty
from .launch import Call, power_of_two

UNROLLED = 16  # up to this many neighbours are summed in registers; more in a loop, one exchange a neighbour
ELEMENTS = 2048  # of a program's tile: 16 a thread, two or four 16-byte loads each


@triton.jit
def _split(v, P: tl.constexpr, G: tl.constexpr, V: tl.constexpr):
    """The (P, G * V) tile as V tiles (P, G), the e-th holding channels g * V + e: a thread's own registers, unmoved."""
    if V == 8:
        even, odd = tl.split(tl.reshape(v, (P, G, 2, 2, 2)))
        e0, e1 = tl.split(even)
        o0, o1 = tl.split(odd)
        v0, v4 = tl.split(e0)
        v2, v6 = tl.split(e1)
        v1, v5 = tl.split(o0)
        v3, v7 = tl.split(o1)
        parts = (v0, v1, v2, v3, v4, v5, v6, v7)
    else:
        even, odd = tl.split(tl.reshape(v, (P, G, 2, 2)))
        v0, v2 = tl.split(even)
        v1, v3 = tl.split(odd)
        parts = (v0, v1, v2, v3)
    return parts


@triton.jit
def _join(v, P: tl.constexpr, G: tl.constexpr, V: tl.constexpr):
    """The inverse of _split."""
    if V == 8:
        even = tl.join(tl.join(v[0], v[4]), tl.join(v[2], v[6]))
        odd = tl.join(tl.join(v[1], v[5]), tl.join(v[3], v[7]))
    else:
        even = tl.join(v[0], v[2])
        odd = tl.join(v[1], v[3])
    return tl.reshape(tl.join(even, odd), (P, G * V))


@triton.jit
def _channel(v, offset, C, P: tl.constexpr, B: tl.constexpr):
    """v of the channel, or group of channels, `offset` further on, 0 where there is none: for a group one shuffle
    between neighbouring lanes."""
    j = tl.arange(0, B) + offset
    exists = (j >= 0) & (j < C)
    index = tl.broadcast_to(tl.where(exists, j, 0)[None, :], (P, B))
    return tl.where(exists[None, :], tl.gather(v, index, 1), 0.0)


@triton.jit
def _neighbours(parts, P: tl.constexpr, G: tl.constexpr, V: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr):
    """Tiles (P, G) of channels g * V - LO ... g * V + V - 1 + HI."""
    out = ()
    for i in tl.static_range(-LO, V + HI):
        if i >= 0 and i < V:
            out = out + (parts[i],)
        else:
            out = out + (_channel(parts[(i + 64 * V) % V], (i + 64 * V) // V - 64, G, P, G),)
    return out


@triton.jit
def _window_sum(
    v, C, P: tl.constexpr, B: tl.constexpr, V: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, UNROLL: tl.constexpr
):
    """The sum of v over channels c - LO ... c + HI; v is 0 at channels that do not exist."""
    if UNROLL:
        near = _neighbours(_split(v, P, B // V, V), P, B // V, V, LO, HI)
        sums = ()
        for e in tl.static_range(V):
            total = near[e]
            for o in tl.static_range(1, LO + HI + 1):
                total = total + near[e + o]
            sums = sums + (total,)
        out = _join(sums, P, B // V, V)
    else:
        out = tl.zeros_like(v)
        for o in range(-LO, HI + 1):
            out += _channel(v, o, C, P, B)
    return out


@triton.jit
def _differences(
    x, C, P: tl.constexpr, B: tl.constexpr, V: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr, UNROLL: tl.constexpr
):
    """The sum of x_c - x_j over the channels j = c - LO ... c + HI that exist: exactly 0 in a constant stack."""
    if UNROLL:
        near = _neighbours(_split(x, P, B // V, V), P, B // V, V, LO, HI)
        first = tl.arange(0, B // V) * V - LO
        sums = ()
        for e in tl.static_range(V):
            total = tl.zeros_like(near[e])
            for o in tl.static_range(LO + HI + 1):
                exists = (first + (e + o) >= 0) & (first + (e + o) < C)
                total = total + tl.where(exists[None, :], near[LO + e] - near[e + o], 0.0)
            sums = sums + (total,)
        out = _join(sums, P, B // V, V)
    else:
        out = tl.zeros_like(x)
        for o in range(-LO, HI + 1):
            j = tl.arange(0, B) + o
            exists = (j >= 0) & (j < C)
            out += tl.where(exists[None, :], x - _channel(x, o, C, P, B), 0.0)
    # Channels that do not exist stay 0 for the sums of squares.
    return tl.where((tl.arange(0, B) < C)[None, :], out, 0.0)


@triton.jit
def _count(C, B: tl.constexpr, LO: tl.constexpr, HI: tl.constexpr):
    """|W(c)|, at least 1 (for channels that do not exist)."""
    c = tl.arange(0, B)
    count = tl.minimum(c + HI, C - 1) - tl.maximum(c - LO, 0) + 1
    return tl.maximum(count, 1).to(tl.float32)[None, :]


@triton.jit
def _power(s, beta, THREE_QUARTERS: tl.constexpr):
    """s^(-beta), s > 0; for 3/4 two square roots, which are faster and more exact than exp2(log2)."""
    if THREE_QUARTERS:
        r = tl.rsqrt(s)
        p = r * tl.sqrt(r)
    else:
        p = tl.exp2(-beta * tl.log2(s))
    return p


@triton.jit
def contrast_norm_kernel(
    x,
    y,
    pixels,
    C,
    scale,
    beta,
    k,
    CENTER: tl.constexpr,
    THREE_QUARTERS: tl.constexpr,
    LO: tl.constexpr,
    HI: tl.constexpr,
    UNROLL: tl.constexpr,
    V: tl.constexpr,
    P: tl.constexpr,
    B: tl.constexpr,
):
    """y_c = d_c (k + scale * sum over c - LO ... c + HI of d_j^2)^(-beta), d as in the module's formulas.

    Program i: pixels i * P ... i * P + P - 1 of (pixels, C) dense maps, all C <= B channels of each; scale is
    alpha / size. A thread holds V neighbouring channels (16 bytes) of a pixel, its neighbours in the warp the next.
    """
    p = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    c = tl.arange(0, B)
    offset = p[:, None] * C + c[None, :]
    mask = (p < pixels)[:, None] & (c < C)[None, :]
    d = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    if CENTER:
        d = _differences(d, C, P, B, V, LO, HI, UNROLL) / _count(C, B, LO, HI)
    s = k + scale * _window_sum(d * d, C, P, B, V, LO, HI, UNROLL)
    tl.store(y + offset, (d * _power(s, beta, THREE_QUARTERS)).to(y.dtype.element_ty), mask=mask)


@triton.jit
def contrast_norm_backward_kernel(
    g,
    x,
    gx,
    pixels,
    C,
    scale,
    beta,
    k,
    CENTER: tl.constexpr,
    THREE_QUARTERS: tl.constexpr,
    LO: tl.constexpr,
    HI: tl.constexpr,
    UNROLL: tl.constexpr,
    V: tl.constexpr,
    P: tl.constexpr,
    B: tl.constexpr,
):
    """gd_j = g_j s_j^(-beta) - 2 scale beta d_j * (sum over j - HI ... j + LO, the window mirrored, of t_c),
    t_c = g_c d_c s_c^(-beta-1); gx = gd, less the mirrored sum of gd_c / |W(c)| if CENTER.

    Tiles as in contrast_norm_kernel; d and s are computed again from x.
    """
    p = tl.program_id(0).to(tl.int64) * P + tl.arange(0, P)
    c = tl.arange(0, B)
    offset = p[:, None] * C + c[None, :]
    mask = (p < pixels)[:, None] & (c < C)[None, :]
    d = tl.load(x + offset, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(g + offset, mask=mask, other=0.0).to(tl.float32)
    if CENTER:
        d = _differences(d, C, P, B, V, LO, HI, UNROLL) / _count(C, B, LO, HI)
    s = k + scale * _window_sum(d * d, C, P, B, V, LO, HI, UNROLL)
    b = b * _power(s, beta, THREE_QUARTERS)
    gd = b - (2.0 * scale * beta) * d * _window_sum(b * d / s, C, P, B, V, HI, LO, UNROLL)
    if CENTER:
        gd -= _window_sum(gd / _count(C, B, LO, HI), C, P, B, V, HI, LO, UNROLL)
    tl.store(gx + offset, gd.to(gx.dtype.element_ty), mask=mask)


def contrast_norm(x: Tensor, *norm: Any) -> Tensor:
    y = empty(x, *x.shape)
    norm_call(contrast_norm_kernel, x.dtype, x.shape, *norm)(x=dense(x), y=y)
    return y


def contrast_norm_backward(g: Tensor, x: Tensor, *norm: Any) -> Tensor:
    gx = empty(x, *x.shape)
    norm_call(contrast_norm_backward_kernel, x.dtype, x.shape, *norm)(g=dense(g), x=dense(x), gx=gx)
    return gx


def norm_call(
    kernel: Any,
    dtype: torch.dtype,
    shape: Sequence[int],
    size: int,
    alpha: float,
    beta: float,
    k: float,
    center: bool,
) -> Call:
    """The launch of either kernel on maps of `shape`."""
    n, channels, height, width = shape
    vector = 16 // dtype.itemsize
    block = max(2 * vector, power_of_two(channels))
    pixels = max(1, ELEMENTS // block)
    # A window that reaches past both ends of the stack is the whole stack.
    lo, hi = min(size // 2, channels - 1), min(size - 1 - size // 2, channels - 1)
    arguments = {"pixels": n * height * width, "C": channels, "scale": alpha / size, "beta": beta, "k": k}
    arguments |= {"CENTER": center, "THREE_QUARTERS": beta == 0.75, "LO": lo, "HI": hi, "UNROLL": lo + hi <= UNROLLED}
    arguments |= {"V": vector, "P": pixels, "B": block}
    return Call(kernel, -(-n * height * width // pixels), arguments, {"num_warps": min(16, max(4, block // 512))})
