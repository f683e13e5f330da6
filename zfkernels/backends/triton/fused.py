"""Whole layers: convolution, rectifier and pooling in one kernel where that is less work, and the layer run backwards.

Forward. A program follows BM pooled columns (of any images) down a strip of pooled rows. For each of the convolution's
rows it computes the tile of every window column, one product a column, rounds it, and folds it into the running maxima;
the unpooled map is never written. Where windows overlap by one row (3x3, stride 2) that row's maxima serve the window
above and then start the one below, so rows are computed once; window columns are computed for each window, 3 where 2
would do. So the price is 3/2 of the arithmetic, and a row more a strip; what it saves is one write and one read of the
convolution's map, and its memory.

    time saved   2 * bytes of a value / 4.3 TB/s                 .93 ns for 1000 values of the map in bf16
    time paid    (PKW / PSW - 1) * 2 * depth / 790 TFLOP/s       .28 ns at depth 224 (conv1), 3.0 at 2400 (conv2)

so on an H200 it pays up to a padded depth of about 730. `fuses` takes image layers (up to 4 channels) below that, in
16-bit types. Every other layer, conv2 and conv5 of ZFNet among them, is the composition: their products take 135 and
48 us, the map's round trip 20 and 5. float32 is composed too: its maxima would take twice the registers.

Predicted at conv1, N=128, bf16: 96 columns are 3 tiles of 32, which pad nothing; a step of 64 x 32 x 32 takes 48 cycles
(the pixels' reads from shared memory, which so narrow a product waits for; its arithmetic would take 32). 330 tiles x
113 rows x 3 columns x 7 steps x 48 cycles on 132 multiprocessors are 285000 cycles, 158 us, beside 207 for the
composition (112 + 95), both before what latency costs; and 297 MB less of memory. Wider tiles keep the running maxima
in too many registers (64 x 128: 236) for a second program to hide the first one's epilogues.

Equal bits. The steps of the sum are those of conv2d_kernel, in its order; values are rounded before they are compared.

Maxima are compared as integers: a rectified value's bits are not negative and ordered as the values are, NaN (one
pattern for all of them) above infinity, so key = bits * 256 + 255 - switch orders by value, then by the first switch.

Backward. The unpooled map is written, rectified in the same pass (138 us less at conv1, N=128), and then filtered.
To gather it inside the transposed convolution would be elementwise work on the product's first operand, which Hopper
must not have (conv.py); and each of its pixels would be gathered, from two tensors, for every tap that reads it: 16
times at conv1.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import window
from . import conv, max_pool, tuning
from .contrast_norm import contrast_norm
from .conv import Call, Conv, _pixels, _product
from .tensors import INTERPRETED, Compilation, empty
from .tuning import Config, Target

SIZES = ("images", "H", "W", "OH", "OW", "POOLED_H", "POOLED_W", "POOL_PH", "POOL_PW", "strip")


@triton.jit
def _rounded_bits(value, DTYPE: tl.constexpr, INTERPRETED: tl.constexpr):
    """The bits of value >= 0 or NaN, rounded to DTYPE, in an int32.

    In assembly, because the compiler looks for 16-bit values that it widens, to change layouts there: for the two
    stores' two layouts it would keep the running maxima in each of them throughout the loop, and spill.
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
    """y[n,i,j,o] = the maximum over window (i,j) of max(0, convolution), switches = its place; POOL_KH <= POOL_SH + 1.

    Program i: channels (i % tiles) * BN ..., one strip of `strip` pooled rows, and BM of the pooled columns
    of all images. x is a padded image (images, H, W) of PITCH channels, weight [C_OUT][KH][CW], of which C <= BK <= CW
    are a tap row's; the convolution's map is (OH, OW), y and switches are (images, POOLED_H, POOLED_W, C_OUT).
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
    image, remaining, ahead, _, j = _pixels(first, images, 1, POOLED_W, BM)
    there = ahead < remaining

    k = tl.arange(0, BK)
    x_mask = there[:, None] & (k < C)[None, :]
    filters = o * (KH * CW)
    w_mask = (o < C_OUT)[None, :]
    if BIAS:
        shift = tl.load(bias + o, mask=o < C_OUT, other=0.0).to(tl.float32)
    map_x = x + image * H * W * PITCH
    ahead_x = ahead * H * W * PITCH
    pooled = image * POOLED_H * POOLED_W * C_OUT
    place = (ahead * POOLED_H * POOLED_W + j) * C_OUT

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
        sums = _product(xs, ws, sums, PRECISION, INTERPRETED)
        if kh == KH - 1:
            value = sums
            if BIAS:
                value += shift[None, :]
            value = tl.where(value <= 0.0, 0.0, value)
            key = tl.minimum(_rounded_bits(value, y.dtype.element_ty, INTERPRETED), INFINITY + 1) * 256 + (255 - b)
            on_map = there & (row >= 0) & (row < OH) & (column >= 0) & (column < OW)
            key = tl.where(on_map[:, None], key, -1)
            line = tl.where(b == 0, key, tl.maximum(line, key))
            sums = tl.zeros((BM, BN), tl.float32)
            if b == POOL_KW - 1:
                best = tl.maximum(best, line - a * POOL_KW)
                if a == POOL_KH - 1:
                    bits = best >> 8
                    bits = tl.where(bits > INFINITY, INFINITY | (1 << (MANTISSA - 1)), bits)  # a quiet NaN
                    maxima = bits.to(tl.int16).to(y.dtype.element_ty, bitcast=True)
                    spot = (place + i * POOLED_W * C_OUT)[:, None] + o[None, :]
                    mask = (there & (i < i0 + rows))[:, None] & (o < C_OUT)[None, :]
                    tl.store(y + pooled + spot, maxima, mask=mask)
                    tl.store(switches + pooled + spot, (255 - (best & 255)).to(tl.uint8), mask=mask)
                    best = line if SHARED else tl.full((BM, BN), -1, tl.int32)


def fuses(of: Conv, dtype: torch.dtype, pool_kernel, pool_stride, pooled, target: Target) -> bool:
    """Whether the layer runs as one kernel; the module's text has the arithmetic.

    An image layer in a 16-bit type, on an NVIDIA device (the rounding is PTX), whose windows share at most one row,
    whose tap rows are one step, whose extra arithmetic costs less than the map's round trip, and whose tiles (64 pooled
    columns, and so parts of 64 / columns + 2 images at most) lie within the 32 bits that offsets in a tile have.
    """
    if not of.is_image() or dtype == torch.float32 or target.kind == "hip" or pool_kernel[0] > pool_stride[0] + 1:
        return False
    read = of.padded()
    extra = pool_kernel[1] / min(pool_stride[1], pool_kernel[1]) - 1
    image = max(read.size[0] * read.size[1] * read.pitch, pooled[0] * pooled[1] * of.filters)
    near = (64 // pooled[1] + 2) * image < 2**31 and of.filters * of.kernel[0] * read.run < 2**31
    return read.channels <= 32 and extra * of.kernel[0] * 32 <= 365 and near


def conv2d_relu_max_pool2d_call(
    of: Conv, dtype: torch.dtype, target: Target, bias: bool, pool_kernel, pool_stride, pool_padding, pooled
) -> Call:
    """conv2d_relu_max_pool2d_kernel on a padded image's shapes."""
    config = Config(64, 32, 32, 4, 1) if INTERPRETED else Config(64, 32, 32, 4, 4)
    config = config._replace(n=min(config.n, max(16, tuning.power_of_two(of.filters))))
    tiles = -(-of.filters // config.n) * -(-of.images * pooled[1] // config.m)
    shared = max(0, pool_kernel[0] - pool_stride[0])
    new = pool_kernel[0] - shared
    strips = tuning.shares(tiles, pooled[0], 2 * target.processors, shared / (new * pooled[0]))
    strip = -(-pooled[0] // strips)
    sizes = of.sizes
    arguments = {name: sizes[name] for name in ("images", "H", "W", "OH", "OW")}
    arguments |= {"POOLED_H": pooled[0], "POOLED_W": pooled[1], "POOL_PH": pool_padding[0], "POOL_PW": pool_padding[1]}
    arguments |= {"C": of.channels, "CW": of.run, "PITCH": of.pitch} | of.constants
    del arguments["KW"]
    names = ("POOL_KH", "POOL_KW", "POOL_SH", "POOL_SW")
    arguments |= dict(zip(names, (*pool_kernel, *pool_stride), strict=True)) | {"strip": strip, "BIAS": bias}
    arguments["STEPS"] = conv.interpreted_steps((strip * new + shared) * pool_kernel[1] * of.kernel[0])
    arguments |= conv.numeric("half", config)
    programs, options = tiles * -(-pooled[0] // strip), conv.launch_options(config)
    return Call("conv2d_relu_max_pool2d", conv2d_relu_max_pool2d_kernel, programs, arguments, options)


def conv2d_relu_max_pool2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, pool_kernel, pool_stride, pool_padding, output_size
) -> tuple[Tensor, Tensor]:
    out, target = window.conv_map(x.shape[2:], weight.shape[2:], stride, padding), tuning.target(x.device)
    of = Conv.of(x.shape[0], x.shape[2:], x.shape[1], weight.shape[0], out, weight.shape[2:], stride, padding)
    if not fuses(of, x.dtype, pool_kernel, pool_stride, output_size, target):
        y = conv.conv2d(x, weight, bias, stride, padding, True)
        return max_pool.max_pool2d(y, pool_kernel, pool_stride, pool_padding, output_size)
    y = empty(x, of.images, of.filters, *output_size)
    switches = empty(x, of.images, of.filters, *output_size, dtype=torch.uint8)
    xs, ws, of = conv.operands(x, weight, of)
    pool = pool_kernel, pool_stride, pool_padding, output_size
    call = conv2d_relu_max_pool2d_call(of, x.dtype, target, bias is not None, *pool)
    call(x=xs, weight=ws, bias=ws if bias is None else bias.contiguous(), y=y, switches=switches)
    return y, switches


def conv2d_relu_max_pool2d_weight_grad(
    x: Tensor,
    g: Tensor,
    switches: Tensor,
    kernel_size,
    stride,
    padding,
    pool_kernel,
    pool_stride,
    pool_padding,
    with_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    """The composition: the weight gradient reads each gradient once a tile of taps, and would gather it each time."""
    size = window.conv_map(x.shape[2:], kernel_size, stride, padding)
    unpooled = max_pool.max_unpool2d(g, switches, pool_kernel, pool_stride, pool_padding, size)
    return conv.conv2d_weight_grad(x, unpooled, kernel_size, stride, padding, with_bias)


def max_pool2d_contrast_norm(
    x: Tensor, kernel_size, stride, padding, output_size, size: int, alpha: float, beta: float, k: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The composition: one program would have to hold a pooled pixel's whole stack of maps."""
    y, switches = max_pool.max_pool2d(x, kernel_size, stride, padding, output_size)
    return y, switches, contrast_norm(y, size, alpha, beta, k, center)


def max_unpool2d_relu_conv_transpose2d(
    y: Tensor,
    switches: Tensor,
    weight: Tensor,
    stride,
    padding,
    pool_kernel,
    pool_stride,
    pool_padding,
    output_size,
    rectify: bool,
) -> Tensor:
    size = window.conv_map(output_size, weight.shape[2:], stride, padding)
    unpooled = max_pool.unpooled(y, switches, pool_kernel, pool_stride, pool_padding, size, rectify)
    return conv.conv_transpose2d(unpooled, weight, stride, padding, output_size, False)


def compilations(dtype: torch.dtype, target: Target) -> list[Compilation]:
    """The whole layers of ZFNet that `fuses` makes one kernel."""
    found = []
    for layer, pooled in (("conv1", (55, 55)), ("conv2", (13, 13)), ("conv5", (6, 6))):
        of = conv.zfnet()[layer]
        if fuses(of, dtype, (3, 3), (2, 2), pooled, target):
            call = conv2d_relu_max_pool2d_call(of.padded(), dtype, target, True, (3, 3), (2, 2), (0, 0), pooled)
            tensors = dict.fromkeys(("x", "weight", "bias", "y"), dtype) | {"switches": torch.uint8}
            found.append(conv.compilation(layer, call, dtype, tensors))
    return found
