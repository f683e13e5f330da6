"""Whole layers: convolution, rectifier and pooling in one kernel where that is less work, and the layer run backwards.

Forward. A program follows BM pooled columns (of any images) down a strip of pooled rows. For each of the convolution's
rows it computes the tile of every window column, one product a column, rounds it, and folds it into the running maxima;
the unpooled map is never written. Where windows overlap by one row (3x3, stride 2), that row's maxima serve the window
above and then start the one below, so rows are computed once; window columns are computed for each window, 3 where 2
would do. The price is 3/2 of the arithmetic, and a row more a strip; what it saves is one write and one read of the
map, and its memory. `fuses` takes the layers where that pays; every other one is the composition.

Bits. The steps of the sum are those of conv2d_kernel, in its order; values are rounded before they are compared. Maxima
are compared as integers: a rectified value's bits are not negative and ordered as the values are, NaN (one pattern for
all of them) above infinity, so key = bits * 256 + 255 - switch orders by value, then by the first switch.

Backward. The unpooled map is written, rectified in the same pass, and then filtered. Gathered inside the transposed
convolution, it would be elementwise work on the product's first operand, which Hopper must not have
(conv_transpose.py), and each pixel would be gathered for every tap that reads it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...window import Pair, conv_map
from ..memory import Grads, Pooled, pooled
from . import tuning
from .contrast_norm import contrast_norm
from .conv import conv2d, operands
from .conv_transpose import conv_transpose2d
from .conv_weight_grad import conv2d_weight_grad
from .correlation import Config, Conv, interpreted_steps, pixels, product, product_call
from .launch import INTERPRETED, Call, Target, power_of_two, target
from .max_pool import Pool, max_pool2d, max_unpool2d, unpooled

SIZES = ("images", "H", "W", "OH", "OW", "POOLED_H", "POOLED_W", "POOL_PH", "POOL_PW", "strip")


@triton.jit
def _rounded_bits(value, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """The bits of value >= 0 or NaN, rounded to DTYPE, in an int32.

    In assembly: the compiler likes to change layouts where it widens 16-bit values. For the two stores' two layouts it
    would keep the running maxima in both throughout the loop, and spill.
    """
    if INTERPRETED:
        bits = value.to(DTYPE).to(tl.int16, bitcast=True).to(tl.int32) & 0x7FFF
    else:
        if DTYPE == tl.bfloat16:  # noqa: SIM300
            convert: tl.constexpr = "{ .reg .b16 t; cvt.rn.bf16.f32 t, $1; cvt.u32.u16 $0, t; }"
        else:
            convert: tl.constexpr = "{ .reg .b16 t; cvt.rn.f16.f32 t, $1; cvt.u32.u16 $0, t; }"
        bits = tl.inline_asm_elementwise(convert, "=r,r", [value], dtype=tl.int32, is_pure=True, pack=1)
        bits = bits & 0x7FFF
    return bits


@triton.jit(do_not_specialize=SIZES)
def conv2d_relu_max_pool2d_kernel(
    x,
    weight,
    bias,
    y,
    switches,
    images,
    H,
    W,
    OH,
    OW,
    POOLED_H,
    POOLED_W,
    POOL_PH,
    POOL_PW,
    strip,
    C: tl.constexpr,
    CW: tl.constexpr,
    PITCH: tl.constexpr,
    C_OUT: tl.constexpr,
    KH: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    POOL_KH: tl.constexpr,
    POOL_KW: tl.constexpr,
    POOL_SH: tl.constexpr,
    POOL_SW: tl.constexpr,
    BIAS: tl.constexpr,
    STEPS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """y[n,i,j,o] = the maximum over window (i,j) of max(0, convolution), switches = its tap; POOL_KH <= POOL_SH + 1.

    Program i: channels (i % tiles) * BN ..., one strip of `strip` pooled rows, and BM of the pooled columns of all
    images. x is a padded image (images, H, W) of PITCH channels, weight [C_OUT][KH][CW], whose first C <= BK <= CW are
    a tap row's; the convolution's map is (OH, OW), y and switches are (images, POOLED_H, POOLED_W, C_OUT).
    """
    TILES: tl.constexpr = (C_OUT + BN - 1) // BN
    SHARED: tl.constexpr = 1 if POOL_KH > POOL_SH else 0  # rows that a window shares with the one below
    NEW: tl.constexpr = POOL_KH - SHARED
    MANTISSA: tl.constexpr = 7 if y.dtype.element_ty == tl.bfloat16 else 10
    INFINITY: tl.constexpr = 0x7FFF >> MANTISSA << MANTISSA
    strips = (POOLED_H + strip - 1) // strip
    pid = tl.program_id(0)
    o = (pid % TILES) * BN + tl.arange(0, BN)
    i0 = (pid // TILES) % strips * strip
    rows = tl.minimum(POOLED_H - i0, strip)
    first = (pid // (TILES * strips)).to(tl.int64) * BM
    image, remaining, ahead, _, j = pixels(first, images, 1, POOLED_W, BM)
    exists = ahead < remaining

    k = tl.arange(0, BK)
    x_mask = exists[:, None] & (k < C)[None, :]
    filters = o * (KH * CW)
    w_mask = (o < C_OUT)[None, :]
    if BIAS:
        shift = tl.load(bias + o, mask=o < C_OUT, other=0.0).to(tl.float32)
    map_x = x + image * H * W * PITCH
    ahead_x = ahead * H * W * PITCH
    pooled = image * POOLED_H * POOLED_W * C_OUT
    pooled_pixel = (ahead * POOLED_H * POOLED_W + j) * C_OUT

    line = tl.full((BM, BN), -1, tl.int32)  # the maxima of one row of windows' pixels, their switches kw
    best = tl.full((BM, BN), -1, tl.int32)
    sums = tl.zeros((BM, BN), tl.float32)
    steps = (rows * NEW + SHARED) * POOL_KW * KH
    # One flat loop over rows, window columns and tap rows, so that loads run ahead across all of them.
    for step in range(STEPS if INTERPRETED else steps):
        kh = step % KH
        b = step // KH % POOL_KW
        v = step // (KH * POOL_KW) - SHARED
        i = i0 + tl.where(v < 0, 0, v // NEW)
        a = tl.where(v < 0, 0, v % NEW + SHARED)
        row = i * POOL_SH - POOL_PH + a
        column = j * POOL_SW - POOL_PW + b
        # Pixels off the map are computed at its edge and left out below.
        h = tl.minimum(tl.maximum(row, 0), OH - 1) * SH + kh
        w = tl.minimum(tl.maximum(column, 0), OW - 1) * SW
        pixel = ahead_x + (h * W + w) * PITCH
        xs = tl.load(map_x + pixel[:, None] + k[None, :], mask=x_mask, other=0.0)
        ws = tl.load(weight + (filters + kh * CW)[None, :] + k[:, None], mask=w_mask, other=0.0)
        sums = product(xs, ws, sums, PRECISION, INTERPRETED)
        if kh == KH - 1:
            value = sums
            if BIAS:
                value += shift[None, :]
            value = tl.where(value <= 0.0, 0.0, value)
            key = tl.minimum(_rounded_bits(value, y.dtype.element_ty, INTERPRETED), INFINITY + 1) * 256 + (255 - b)
            on_map = exists & (row >= 0) & (row < OH) & (column >= 0) & (column < OW)
            key = tl.where(on_map[:, None], key, -1)
            line = tl.where(b == 0, key, tl.maximum(line, key))
            sums = tl.zeros((BM, BN), tl.float32)
            if b == POOL_KW - 1:
                best = tl.maximum(best, line - a * POOL_KW)
                if a == POOL_KH - 1:
                    bits = best >> 8
                    bits = tl.where(bits > INFINITY, INFINITY | (1 << (MANTISSA - 1)), bits)  # a quiet NaN
                    maxima = bits.to(tl.int16).to(y.dtype.element_ty, bitcast=True)
                    offset = (pooled_pixel + i * POOLED_W * C_OUT)[:, None] + o[None, :]
                    # (The interpreter of triton 3.9 cannot take a block's mask "and" a scalar for one.)
                    written = ahead < tl.where(i < i0 + rows, remaining, 0)
                    mask = written[:, None] & (o < C_OUT)[None, :]
                    tl.store(y + pooled + offset, maxima, mask=mask)
                    tl.store(switches + pooled + offset, (255 - (best & 255)).to(tl.uint8), mask=mask)
                    best = line if SHARED else tl.full((BM, BN), -1, tl.int32)


def fuses(conv: Conv, dtype: torch.dtype, pool: Pool, target: Target) -> bool:
    """Whether the layer runs as one kernel.

    An image layer in a 16-bit type, on an NVIDIA device (the rounding is PTX), whose windows share at most one row,
    whose tap rows are one step, whose extra arithmetic costs less than the map's round trip (docs/design/triton.md has
    the estimate), and whose tiles (64 pooled columns, and so parts of 64 / columns + 2 images at most) lie within the
    32 bits that offsets in a tile have.
    """
    if not conv.is_image() or dtype == torch.float32 or target.kind == "hip" or pool.kernel[0] > pool.stride[0] + 1:
        return False
    padded = conv.gathered()
    extra = pool.kernel[1] / min(pool.stride[1], pool.kernel[1]) - 1
    image = max(padded.size[0] * padded.size[1] * padded.pitch, pool.size[0] * pool.size[1] * conv.filters)
    near = (64 // pool.size[1] + 2) * image < 2**31 and conv.filters * conv.kernel[0] * padded.run < 2**31
    return padded.channels <= 32 and extra * conv.kernel[0] * 32 <= 365 and near


def layer_call(conv: Conv, target: Target, bias: bool, pool: Pool) -> Call:
    """conv2d_relu_max_pool2d_kernel on a padded image's shapes."""
    config = Config(64, 32, 32, 4, 1) if INTERPRETED else Config(64, 32, 32, 4, 4)
    config = config._replace(n=min(config.n, max(16, power_of_two(conv.filters))))
    tiles = -(-conv.filters // config.n) * -(-conv.images * pool.size[1] // config.m)
    shared = max(0, pool.kernel[0] - pool.stride[0])
    new = pool.kernel[0] - shared
    strips = tuning.shares(tiles, pool.size[0], 2 * target.processors, shared / (new * pool.size[0]))
    strip = -(-pool.size[0] // strips)
    arguments = conv.sizes | {"C": conv.channels, "CW": conv.run, "PITCH": conv.pitch} | conv.constants
    for name in ("PH", "PW", "KW"):  # 0, 0 and 1 for a padded image: the kernel does not take them
        del arguments[name]
    names = ("POOL_KH", "POOL_KW", "POOL_SH", "POOL_SW", "POOL_PH", "POOL_PW", "POOLED_H", "POOLED_W")
    arguments |= dict(zip(names, (*pool.kernel, *pool.stride, *pool.padding, *pool.size), strict=True))
    arguments |= {"strip": strip, "BIAS": bias}
    arguments["STEPS"] = interpreted_steps((strip * new + shared) * pool.kernel[1] * conv.kernel[0])
    programs = tiles * -(-pool.size[0] // strip)
    return product_call(conv2d_relu_max_pool2d_kernel, programs, arguments, "half", config)


def conv2d_relu_max_pool2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, *settings: Pair
) -> Pooled:
    pool, device = Pool(*settings), target(x.device)
    layer = Conv.of(x.shape, weight.shape, conv_map(x.shape[2:], weight.shape[2:], stride, padding), stride, padding)
    if not fuses(layer, x.dtype, pool, device):
        return max_pool2d(conv2d(x, weight, bias, stride, padding, True), *pool)
    y, switches = pooled(x, layer.images, layer.filters, *pool.size)
    xs, ws = operands(x, weight, layer)
    call = layer_call(layer.gathered(), device, bias is not None, pool)
    call(x=xs, weight=ws, bias=ws if bias is None else bias.contiguous(), y=y, switches=switches)
    return y, switches


def conv2d_relu_max_pool2d_weight_grad(x: Tensor, g: Tensor, switches: Tensor, *settings: Any) -> Grads:
    """The composition: the weight gradient reads each gradient once a tile of taps, and would gather it each time."""
    kernel_size, stride, padding, pool_kernel, pool_stride, pool_padding, with_bias = settings
    size = conv_map(x.shape[2:], kernel_size, stride, padding)
    gradient = max_unpool2d(g, switches, pool_kernel, pool_stride, pool_padding, size)
    return conv2d_weight_grad(x, gradient, kernel_size, stride, padding, with_bias)


def max_pool2d_contrast_norm(x: Tensor, *settings: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The composition: one program would have to hold a pooled pixel's whole stack of maps."""
    y, switches = max_pool2d(x, *settings[:4])
    return y, switches, contrast_norm(y, *settings[4:])


def max_unpool2d_relu_conv_transpose2d(
    y: Tensor, switches: Tensor, weight: Tensor, stride: Pair, padding: Pair, *settings: Any
) -> Tensor:
    kernel_size, pool_stride, pool_padding, output_size, rectify = settings
    pool = Pool(kernel_size, pool_stride, pool_padding, y.shape[2:])
    size = conv_map(output_size, weight.shape[2:], stride, padding)
    whole = unpooled(y, switches, pool, size, rectify)
    return conv_transpose2d(whole, weight, stride, padding, output_size, False)
