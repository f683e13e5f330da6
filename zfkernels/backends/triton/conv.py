"""Convolution, its adjoint and its weight gradient as products of matrices that are gathered, never built.

    conv2d               rows are output pixels, columns output channels, the sum runs over taps x input channels
    conv_transpose2d     rows are the input pixels of one residue class, columns input channels, the sum runs over the
                         class's taps x output channels
    conv2d_weight_grad   rows are output channels, columns taps x input channels, the sum runs over output pixels

Memory is channels-last, and a weight is read as [C_out][KH][KW][C_in]: a channels-last weight; any other
is copied into that order. Sums are float32. A float32 product is IEEE or TF32 as torch.backends.cudnn says (tuning.py).

Channels. 16-byte asynchronous copies need a multiple of 8 channels (4 in float32); other counts are right but slow,
but for images: up to 4 channels are padded to 4, the border's zeros included, in one pass over x (conv1: 38 MB read,
52 written). There the KW pixels of a tap row are one run of 4 KW contiguous numbers, so conv1's sum has 7 steps of 28
terms (32 with 4 masked) where a step a tap would have 49, each 3/4 empty.

Strides in the transposed convolution. With stride s, pixel h receives from the taps kh that are congruent to h + p
modulo s and from no other. Each of the s*s residue classes is a small stride-1 problem on its own pixels with its own
taps (5x5, s = 2: 9, 6, 6 and 4 of them), all in one launch; nothing is multiplied by an inserted zero. Where x is an
image a class would have 3 columns for a tile's 16 and read y again for each class (15 GB through L2 at conv1, N=128);
there the classes are the columns of one product, 12 of 16, which reads a third of that, most of it from L1.

Rectifying before the transposed convolution is a pass of its own (torch.relu, which keeps NaN). Inside, it would sit
between the load and the product of the product's first operand; on Hopper that operand then travels in registers, which
ptxas before 13.3 reuses while the asynchronous product still reads them (triton issues 9433, 11781), and an unpipelined
loop would cost every step of the large layers what the pass costs once: 33 MB at conv4, N=128, bf16, 8 us at 4.3 TB/s
beside 73 us of arithmetic. The pass is large for conv1 alone (138 us); there fused.py rectifies while it unpools.

Arithmetic for one H200 (790 TFLOP/s in bf16, 4.3 TB/s; N=128, bf16, forward; predictions, not measurements):

             rows     tile          tiles  terms of a sum  TFLOP done  us    MB   us
    conv1    1548800  128x128x32    12100  147 as 224      .089        112   349  81   128 columns for 96
    conv2    86528    128x128x32    1352   2400            .106        135   120  28
    conv3    21632    128x128x64    507    2304            .038        48    29   7
    conv4    21632    128x128x64    507    3456            .057        73    36   8
    conv5    21632    128x128x64    338    3456            .038        48    30   7

The transposed convolutions do the same products but for conv2's (96 columns padded to 128: 180 us) and conv1's: 25500
tiles of 64x16 with 48 steps each, 40 cycles of shared memory a step, 206 us; y is 297 MB, 69 us. The weight gradients
read as much as the forward pass and do its products (conv1: 196 columns as 256, 96 rows as 128: .10 TFLOP, 129 us),
the bias's ones 1/8 more; the partial sums, 2 to 20 MB, come and go through L2.

Why 128x128: a step of 64 reads 32 KB for 2 MFLOP, 512 cycles of a multiprocessor's matrix unit for 256 of its shared
memory; 8 warps hold 64 sums a thread without spilling, and three stages (96 KB) leave room for a second program, whose
products hide the first one's prologue and epilogue. 21632 rows are exactly 169 tiles. 96 columns have no tile of their
own (Triton's sizes are powers of two): 64 + 32 would do 5/4 the shared-memory reads a product of 128 does, and gain
nothing. conv2's runs of 96 channels are three steps of 32, so that no step is masked.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import window
from . import tuning
from .tensors import INTERPRETED, Compilation, dense, empty, launch
from .tuning import Config, Problem, Target

IMAGE_CHANNELS = 4  # x with up to so many channels is padded to exactly so many

# Triton 3.6's interpreter cannot count to a number that is known at run time (NumPy 2.4 refuses its conversion), so a
# loop that does has a compile-time STEPS there; in compiled kernels STEPS is 0 and unused.
SIZES = ("images", "H", "W", "OH", "OW", "PH", "PW")  # one compiled kernel serves all of them


@triton.jit
def _product(a, b, sums, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """sums + a b."""
    if INTERPRETED:  # the interpreter multiplies the bit patterns of bfloat16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def _pixels(first, images, height, width, BLOCK: tl.constexpr):
    """Pixels first ... first + BLOCK - 1 of a stack of maps: the first one's image (int64), how many images there are
    from it on, and of each pixel (images past the first one's, row, column), in 32 bits."""
    area = height * width
    image = first // area
    remaining = (images - image).to(tl.int32)
    place = (first - image * area).to(tl.int32) + tl.arange(0, BLOCK)
    ahead = place // area
    place = place - ahead * area
    row = place // width
    return image, remaining, ahead, row, place - row * width


@triton.jit(do_not_specialize=SIZES)
def conv2d_kernel(
    x,
    weight,
    bias,
    y,
    images,
    H,
    W,
    OH,
    OW,
    PH,
    PW,
    C: tl.constexpr,
    CW: tl.constexpr,
    PITCH: tl.constexpr,
    C_OUT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """y[m,o] = bias[o] + sum over taps and c of weight[o,tap,c] x[pixel m under tap, c]; max(0, .) if RELU.

    Program i: output pixels (i // tiles) * BM ..., channels (i % tiles) * BN ..., so that programs which run together
    read the same pixels. x is (images, H, W) pixels, PITCH numbers apart, C of them read at each tap; weight is
    [C_OUT][KH][KW][CW], zeros past C, y (images, OH, OW, C_OUT). The steps run over (kh, kw, block of BK channels), in
    that order whatever the tile: it decides the bits.
    """
    TILES: tl.constexpr = (C_OUT + BN - 1) // BN
    BLOCKS: tl.constexpr = (C + BK - 1) // BK
    pid = tl.program_id(0)
    first = (pid // TILES).to(tl.int64) * BM
    o = (pid % TILES) * BN + tl.arange(0, BN)
    image, remaining, ahead, i, j = _pixels(first, images, OH, OW, BM)
    row = i * SH - PH
    column = j * SW - PW
    there = ahead < remaining
    # Bases in 64 bits, what is added inside the loop in 32.
    pixel = (image * H * W + ahead.to(tl.int64) * H * W + row.to(tl.int64) * W + column) * PITCH
    filters = o.to(tl.int64) * (KH * KW * CW)
    k = tl.arange(0, BK)
    sums = tl.zeros((BM, BN), tl.float32)
    for step in range(KH * KW * BLOCKS):
        tap = step // BLOCKS
        c = (step % BLOCKS) * BK
        kh = tap // KW
        kw = tap % KW
        inside = there & (row + kh >= 0) & (row + kh < H) & (column + kw >= 0) & (column + kw < W)
        a_mask = inside[:, None]
        b_mask = (o < C_OUT)[None, :]
        if C % BK != 0:
            a_mask = a_mask & (c + k < C)[None, :]
            if CW < BLOCKS * BK:
                b_mask = b_mask & (c + k < C)[:, None]
        a = tl.load(x + (pixel + (kh.to(tl.int64) * W + kw) * PITCH + c)[:, None] + k[None, :], mask=a_mask, other=0.0)
        b = tl.load(weight + (filters + tap * CW + c)[None, :] + k[:, None], mask=b_mask, other=0.0)
        sums = _product(a, b, sums, PRECISION, INTERPRETED)
    if BIAS:
        sums += tl.load(bias + o, mask=o < C_OUT, other=0.0).to(tl.float32)[None, :]
    if RELU:
        sums = tl.where(sums <= 0.0, 0.0, sums)  # NaN is not <= 0 and stays
    rows = tl.arange(0, BM)
    there = (first + rows < images.to(tl.int64) * OH * OW)[:, None] & (o < C_OUT)[None, :]
    tl.store(y + first * C_OUT + (rows[:, None] * C_OUT + o[None, :]), sums.to(y.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize=SIZES)
def conv_transpose2d_kernel(
    y,
    weight,
    x,
    images,
    H,
    W,
    OH,
    OW,
    PH,
    PW,
    C: tl.constexpr,
    C_OUT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    FILTER: tl.constexpr,
    TAP: tl.constexpr,
    CHANNEL: tl.constexpr,
    STEPS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """x[n, q*SH + rh - PH, q'*SW + rw - PW, c] = sum over a, b, o of
    weight[o, rh + a*SH, rw + b*SW, c] y[n, q - a, q' - b, o]: one residue class (rh, rw) a program.

    Program i: channels (i % tiles) * BN ..., class i // tiles % (SH*SW), and BM of that class's pixels; programs that
    run together read the same part of y. y is (images, OH, OW, C_OUT), x (images, H, W, C); weight's strides are
    FILTER, TAP and CHANNEL; STEPS is the most steps of a class. A class without taps (a kernel smaller than the
    stride) writes zeros.
    """
    TILES: tl.constexpr = (C + BN - 1) // BN
    BLOCKS: tl.constexpr = (C_OUT + BK - 1) // BK
    pid = tl.program_id(0)
    c = (pid % TILES) * BN + tl.arange(0, BN)
    rh = (pid // TILES) % (SH * SW) // SW
    rw = (pid // TILES) % SW
    first = (pid // (TILES * SH * SW)).to(tl.int64) * BM

    # The class's pixels in the padded map: rows q*SH + rh, q = top ... top + height - 1.
    top = (PH - rh + SH - 1) // SH
    left = (PW - rw + SW - 1) // SW
    height = (H + PH - rh + SH - 1) // SH - top
    width = (W + PW - rw + SW - 1) // SW - left
    if first >= images.to(tl.int64) * height * width:  # also a class without pixels
        return
    image, remaining, ahead, i, j = _pixels(first, images, height, width, BM)
    i += top
    j += left
    there = ahead < remaining
    taps_h = (KH - rh + SH - 1) // SH
    taps_w = (KW - rw + SW - 1) // SW

    window = (image * OH * OW + ahead.to(tl.int64) * OH * OW + i.to(tl.int64) * OW + j) * C_OUT
    k = tl.arange(0, BK)
    sums = tl.zeros((BM, BN), tl.float32)
    steps = taps_h * taps_w * BLOCKS
    for step in range(STEPS if INTERPRETED else steps):
        tap = step // BLOCKS
        o = (step % BLOCKS) * BK
        a = tap // taps_w
        b = tap % taps_w
        inside = there & (i - a >= 0) & (i - a < OH) & (j - b >= 0) & (j - b < OW)
        y_mask = inside[:, None]
        w_mask = (c < C)[None, :]
        if C_OUT % BK != 0:
            y_mask = y_mask & (o + k < C_OUT)[None, :]
            w_mask = w_mask & (o + k < C_OUT)[:, None]
        if INTERPRETED:  # a tensor: the newest interpreter makes a Python bool an integer, and a mask of integers
            real = tl.zeros((1, 1), tl.int32) + step < steps
            y_mask = y_mask & real
            w_mask = w_mask & real
        ys = tl.load(y + (window - (a.to(tl.int64) * OW + b) * C_OUT + o)[:, None] + k[None, :], mask=y_mask, other=0.0)
        place = o.to(tl.int64) * FILTER + ((rh + a * SH) * KW + rw + b * SW) * TAP
        ws = tl.load(weight + place + (k[:, None] * FILTER + c[None, :] * CHANNEL), mask=w_mask, other=0.0)
        sums = _product(ys, ws, sums, PRECISION, INTERPRETED)

    h = i * SH + rh - PH
    w = j * SW + rw - PW
    pixel = (image * H * W + ahead.to(tl.int64) * H * W + h.to(tl.int64) * W + w) * C
    tl.store(x + pixel[:, None] + c[None, :], sums.to(x.dtype.element_ty), mask=there[:, None] & (c < C)[None, :])


@triton.jit
def _image_tap(
    y,
    weight,
    window,
    there,
    i,
    j,
    a,
    b,
    o,
    columns,
    OH,
    OW,
    COLUMNS: tl.constexpr,
    C_OUT: tl.constexpr,
    TAPS_H: tl.constexpr,
    TAPS_W: tl.constexpr,
    BK: tl.constexpr,
):
    """The operands of tap (a, b) and channels o ... o + BK - 1 in conv_transpose2d_image_kernel."""
    k = tl.arange(0, BK)
    inside = there & (i >= a) & (i - a < OH) & (j >= b) & (j - b < OW)
    y_mask = inside[:, None]
    w_mask = (columns < COLUMNS)[None, :]
    if C_OUT % BK != 0:
        y_mask = y_mask & (o + k < C_OUT)[None, :]
        w_mask = w_mask & (o + k < C_OUT)[:, None]
    place = (window - (a.to(tl.int64) * OW + b) * C_OUT + o)[:, None] + k[None, :]
    # 16-byte asynchronous copies pass L1 by; 8-byte ones find there what the tap beside this one has read.
    place = tl.max_contiguous(place, (1, 4))
    ys = tl.load(y + place, mask=y_mask, other=0.0)
    spot = columns * (TAPS_H * TAPS_W * C_OUT) + (a * TAPS_W + b) * C_OUT + o
    ws = tl.load(weight + spot[None, :] + k[:, None], mask=w_mask, other=0.0)
    return ys, ws


@triton.jit(do_not_specialize=SIZES)
def conv_transpose2d_image_kernel(
    y,
    weight,
    x,
    images,
    H,
    W,
    OH,
    OW,
    PH,
    PW,
    C: tl.constexpr,
    C_OUT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """conv_transpose2d_kernel for few channels: the residue classes side by side as columns of one product.

    Program i: BM cells (q, q') of SH x SW pixels, all SH*SW*C <= BN numbers of each, so that y is read once for all
    classes and not once for each. weight is [SH][SW][C][TAPS_H][TAPS_W][C_OUT], the tap (rh + a*SH, rw + b*SW) at
    (rh, rw, :, a, b), zeros where KH or KW have no such tap. Taps that only some classes have are summed apart and
    dropped from the others, where y's NaN and infinities must not meet the zeros.
    """
    COLUMNS: tl.constexpr = SH * SW * C
    TAPS_H: tl.constexpr = (KH + SH - 1) // SH
    TAPS_W: tl.constexpr = (KW + SW - 1) // SW
    FULL_H: tl.constexpr = KH // SH
    FULL_W: tl.constexpr = KW // SW
    BLOCKS: tl.constexpr = (C_OUT + BK - 1) // BK
    RIGHT: tl.constexpr = FULL_H * (TAPS_W - FULL_W)  # taps beside the full ones; the rest are below
    columns = tl.arange(0, BN)
    rh = columns // (SW * C)
    rw = columns // C % SW
    height = (H + PH + SH - 1) // SH
    width = (W + PW + SW - 1) // SW
    first = tl.program_id(0).to(tl.int64) * BM
    image, remaining, ahead, i, j = _pixels(first, images, height, width, BM)
    there = ahead < remaining
    window = (image * OH * OW + ahead.to(tl.int64) * OH * OW + i.to(tl.int64) * OW + j) * C_OUT
    sums = tl.zeros((BM, BN), tl.float32)
    for step in range(FULL_H * FULL_W * BLOCKS):
        tap = step // BLOCKS
        a = tap // FULL_W
        b = tap % FULL_W
        o = (step % BLOCKS) * BK
        ys, ws = _image_tap(
            y, weight, window, there, i, j, a, b, o, columns, OH, OW, COLUMNS, C_OUT, TAPS_H, TAPS_W, BK
        )
        sums = _product(ys, ws, sums, PRECISION, INTERPRETED)
    for step in range((TAPS_H * TAPS_W - FULL_H * FULL_W) * BLOCKS):
        tap = step // BLOCKS
        a = tl.where(tap < RIGHT, tap // max(TAPS_W - FULL_W, 1), FULL_H + (tap - RIGHT) // TAPS_W)
        b = tl.where(tap < RIGHT, FULL_W + tap % max(TAPS_W - FULL_W, 1), (tap - RIGHT) % TAPS_W)
        o = (step % BLOCKS) * BK
        ys, ws = _image_tap(
            y, weight, window, there, i, j, a, b, o, columns, OH, OW, COLUMNS, C_OUT, TAPS_H, TAPS_W, BK
        )
        some = _product(ys, ws, tl.zeros((BM, BN), tl.float32), PRECISION, INTERPRETED)
        exists = (rh + a * SH < KH) & (rw + b * SW < KW)
        sums += tl.where(exists[None, :], some, 0.0)
    h = (i * SH - PH)[:, None] + rh[None, :]
    w = (j * SW - PW)[:, None] + rw[None, :]
    mask = there[:, None] & (columns < COLUMNS)[None, :] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    place = (image + ahead)[:, None] * H * W + h.to(tl.int64) * W + w
    tl.store(x + place * C + (columns % C)[None, :], sums.to(x.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=(*SIZES, "blocks"))
def conv2d_weight_grad_kernel(
    x,
    g,
    partial,
    partial_bias,
    images,
    H,
    W,
    OH,
    OW,
    PH,
    PW,
    blocks,
    C: tl.constexpr,
    PITCH: tl.constexpr,
    C_OUT: tl.constexpr,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    BIAS: tl.constexpr,
    STEPS: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """partial[s,o,tap,c] = sum over the s-th part of the output pixels m of g[m,o] x[pixel m under tap, c].

    Program i: columns (i % tiles) * BN ... of taps x C, BM channels o, part s of the pixels: `blocks` blocks of BK;
    programs that run together read the same pixels. BIAS: partial_bias[s,o] = the part's sum of g[m,o], as the product
    of the same tile of g with ones (1/8 of a 128-column product; a sum in registers would take the tile from the
    matrix unit's path through shared memory, and a pass of its own would read g again, 69 us at conv1).
    x, g and the sizes: as x, y and the sizes of conv2d_kernel.
    """
    COLUMNS: tl.constexpr = KH * KW * C
    TILES: tl.constexpr = (COLUMNS + BN - 1) // BN
    TILES_O: tl.constexpr = (C_OUT + BM - 1) // BM
    pid = tl.program_id(0)
    part = (pid // (TILES * TILES_O)).to(tl.int64)
    o = (pid // TILES) % TILES_O * BM + tl.arange(0, BM)
    column = (pid % TILES) * BN + tl.arange(0, BN)
    tap = column // C
    kh = tap // KW
    kw = tap % KW
    offset = (kh.to(tl.int64) * W + kw) * PITCH + column % C

    first = part * blocks * BK
    image, remaining, ahead, i, j = _pixels(first, images, OH, OW, BK)
    x += image * H * W * PITCH
    g += first * C_OUT
    # One block further on, in mixed radix: a division a pixel and step would cost more than its share of the product.
    step_j = BK % OW
    step_i = BK // OW % OH
    step_n = BK // (OH * OW)
    k = tl.arange(0, BK)
    sums = tl.zeros((BM, BN), tl.float32)
    sums_bias = tl.zeros((BM, 16), tl.float32)
    ones = tl.full((BK, 16), 1.0, tl.float32).to(g.dtype.element_ty)
    for _ in range(STEPS if INTERPRETED else blocks):
        there = ahead < remaining
        row = i * SH - PH
        col = j * SW - PW
        gs = tl.load(g + (k[None, :] * C_OUT + o[:, None]), mask=there[None, :] & (o < C_OUT)[:, None], other=0.0)
        h = row[:, None] + kh[None, :]
        w = col[:, None] + kw[None, :]
        inside = there[:, None] & (column < COLUMNS)[None, :] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        pixel = ((ahead.to(tl.int64) * H + row) * W + col) * PITCH
        xs = tl.load(x + pixel[:, None] + offset[None, :], mask=inside, other=0.0)
        sums = _product(gs, xs, sums, PRECISION, INTERPRETED)
        if BIAS:
            sums_bias = _product(gs, ones, sums_bias, PRECISION, INTERPRETED)
        g += BK * C_OUT
        j += step_j
        carry = j >= OW
        j = tl.where(carry, j - OW, j)
        i += step_i + carry.to(tl.int32)
        carry = i >= OH
        i = tl.where(carry, i - OH, i)
        ahead += step_n + carry.to(tl.int32)

    place = partial + part * (C_OUT * COLUMNS) + o.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    tl.store(place, sums, mask=(o < C_OUT)[:, None] & (column < COLUMNS)[None, :])
    if BIAS:  # noqa: SIM102
        if pid % TILES == 0:
            total = tl.sum(tl.where(tl.arange(0, 16)[None, :] == 0, sums_bias, 0.0), axis=1)
            tl.store(partial_bias + part * C_OUT + o, total, mask=o < C_OUT)


@triton.jit(do_not_specialize=("parts",))
def weight_grad_reduce_kernel(
    partial,
    partial_bias,
    gw,
    gb,
    parts,
    C_IN: tl.constexpr,
    C: tl.constexpr,
    C_OUT: tl.constexpr,
    TAPS: tl.constexpr,
    BIAS: tl.constexpr,
    STEPS: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BLOCK: tl.constexpr,
    PARTS: tl.constexpr,
):
    """gw[o,c,tap] = sum over s of partial[s,o,tap,c], gb[o] = sum over s of partial_bias[s,o]: in fixed order.

    Program i: BLOCK numbers of a part (C >= C_IN of them a tap; those past C_IN are padding), PARTS parts at a time;
    the programs after those that cover a part reduce the bias.
    """
    WEIGHTS: tl.constexpr = C_OUT * TAPS * C
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, PARTS)
    sums = tl.zeros((BLOCK,), tl.float32)
    if tl.program_id(0) < (WEIGHTS + BLOCK - 1) // BLOCK:
        for done in range(0, STEPS if INTERPRETED else parts, PARTS):
            part = done + s
            there = (part < parts)[:, None] & (place < WEIGHTS)[None, :]
            sums += tl.sum(tl.load(partial + part.to(tl.int64)[:, None] * WEIGHTS + place[None, :], there, 0.0), axis=0)
        c = place % C
        tap = place // C % TAPS
        o = place // (C * TAPS)
        there = (place < WEIGHTS) & (c < C_IN)
        tl.store(gw + (o * C_IN + c) * TAPS + tap, sums.to(gw.dtype.element_ty), mask=there)
    elif BIAS:
        o = place - (WEIGHTS + BLOCK - 1) // BLOCK * BLOCK
        for done in range(0, STEPS if INTERPRETED else parts, PARTS):
            part = done + s
            there = (part < parts)[:, None] & (o < C_OUT)[None, :]
            sums += tl.sum(tl.load(partial_bias + part.to(tl.int64)[:, None] * C_OUT + o[None, :], there, 0.0), axis=0)
        tl.store(gb + o, sums.to(gb.dtype.element_ty), mask=o < C_OUT)


@triton.jit(do_not_specialize=("images", "H", "W", "PH", "PW", "stride_n", "stride_c", "stride_h", "stride_w"))
def pad_image_kernel(
    x,
    padded,
    images,
    H,
    W,
    PH,
    PW,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """padded[n, h + PH, w + PW, c] = x[n,c,h,w], 0 in the border and in channels c >= C.

    Program i: BLOCK pixels of the (images, H + 2 PH, W + 2 PW, CHANNELS) result. x has any strides.
    """
    height = H + 2 * PH
    width = W + 2 * PW
    first = tl.program_id(0).to(tl.int64) * BLOCK
    image, remaining, ahead, i, j = _pixels(first, images, height, width, BLOCK)
    h = i - PH
    w = j - PW
    c = tl.arange(0, CHANNELS)
    n = image + ahead
    inside = (ahead < remaining) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    place = n * stride_n + h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w
    place = place[:, None] + c.to(tl.int64)[None, :] * stride_c
    value = tl.load(x + place, mask=inside[:, None] & (c < C)[None, :], other=0.0)
    spot = tl.arange(0, BLOCK)[:, None] * CHANNELS + c[None, :]
    tl.store(padded + first * CHANNELS + spot, value, mask=(ahead < remaining)[:, None])


# Launches


class Conv(NamedTuple):
    """The shapes of a forward convolution, which the transposed one and the weight gradient share."""

    images: int
    size: tuple[int, int]
    channels: int
    filters: int
    out: tuple[int, int]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    pitch: int  # numbers between two pixels of x
    run: int  # numbers between two taps of the weight

    @classmethod
    def of(cls, images, size, channels, filters, out, kernel, stride, padding) -> "Conv":
        """The shapes, with x's pixels next to each other."""
        plain = map(tuple, (size, out, kernel, stride, padding))
        size, out, kernel, stride, padding = plain
        return cls(images, size, channels, filters, out, kernel, stride, padding, channels, channels)

    @property
    def sizes(self) -> dict[str, int]:
        """The kernels' arguments that are not compiled in."""
        return dict(zip(SIZES, (self.images, *self.size, *self.out, *self.padding), strict=True))

    @property
    def rows(self) -> int:
        return self.images * self.out[0] * self.out[1]

    @property
    def constants(self) -> dict[str, int]:
        shape = (self.filters, *self.kernel, *self.stride)
        return dict(zip(("C_OUT", "KH", "KW", "SH", "SW"), shape, strict=True))

    def is_image(self) -> bool:
        """Whether x goes through pad_image_kernel."""
        return self.channels <= IMAGE_CHANNELS

    def joins_classes(self) -> bool:
        """Whether conv_transpose2d_image_kernel makes x: few enough numbers a cell of stride x stride pixels."""
        return self.is_image() and self.stride[0] * self.stride[1] * self.channels <= 64

    def padded(self) -> "Conv":
        """The same convolution of a padded image: a tap row is one tap of KW * IMAGE_CHANNELS channels."""
        height, width = (self.size[d] + 2 * self.padding[d] for d in (0, 1))
        return self._replace(
            size=(height, width),
            channels=self.kernel[1] * IMAGE_CHANNELS,
            kernel=(self.kernel[0], 1),
            padding=(0, 0),
            pitch=IMAGE_CHANNELS,
            run=-(-self.kernel[1] * IMAGE_CHANNELS // 32) * 32,  # whole steps of 16-byte copies
        )


class Call(NamedTuple):
    """A launch but for its tensors."""

    name: str
    kernel: Any
    programs: int
    arguments: dict[str, Any]
    options: dict[str, int]

    def __call__(self, **tensors: Tensor) -> None:
        launch(self.kernel, self.programs, tensors, self.arguments, **self.options)


def conv2d_problem(conv: Conv, dtype: torch.dtype, target: Target) -> Problem:
    """Rows are output pixels, columns filters."""
    depth = conv.channels * conv.kernel[0] * conv.kernel[1]
    precision = tuning.precision(dtype, target.kind)
    op = "conv2d" if conv.pitch == conv.channels else "conv2d of an image"
    return Problem(op, conv.rows, conv.filters, depth, conv.channels, precision)


def conv_transpose2d_problem(conv: Conv, dtype: torch.dtype, target: Target) -> Problem:
    """Rows are the input pixels of the largest residue class, columns input channels; or of an image, the cells' rows
    and all classes' channels."""
    if conv.joins_classes():
        cells = [-(-(conv.size[d] + conv.padding[d]) // conv.stride[d]) for d in (0, 1)]
        taps = -(-conv.kernel[0] // conv.stride[0]) * -(-conv.kernel[1] // conv.stride[1])
        columns = conv.stride[0] * conv.stride[1] * conv.channels
        precision = tuning.precision(dtype, target.kind)
        rows = conv.images * cells[0] * cells[1]
        return Problem("conv_transpose2d to an image", rows, columns, taps * conv.filters, conv.filters, precision)
    rows = conv.images * -(-conv.size[0] // conv.stride[0]) * -(-conv.size[1] // conv.stride[1])
    depth = -(-conv.kernel[0] // conv.stride[0]) * -(-conv.kernel[1] // conv.stride[1]) * conv.filters
    precision = tuning.precision(dtype, target.kind)
    return Problem("conv_transpose2d", rows, conv.channels, depth, conv.filters, precision)


def conv2d_weight_grad_problem(conv: Conv, dtype: torch.dtype, target: Target) -> Problem:
    """Rows are filters, columns taps x input channels."""
    columns = conv.kernel[0] * conv.kernel[1] * conv.channels
    precision = tuning.precision(dtype, target.kind)
    return Problem("conv2d_weight_grad", conv.filters, columns, conv.rows, conv.channels, precision)


def conv2d_call(conv: Conv, dtype: torch.dtype, target: Target, bias: bool, relu: bool) -> Call:
    """conv2d_kernel on these shapes; of a padded image's shapes where x is one."""
    problem = conv2d_problem(conv, dtype, target)
    config = tuning.choose(problem, target)
    arguments = conv.sizes | {"C": conv.channels, "CW": conv.run, "PITCH": conv.pitch} | conv.constants
    arguments |= {"BIAS": bias, "RELU": relu} | numeric(problem.precision, config)
    return Call("conv2d", conv2d_kernel, tuning.programs(problem, config), arguments, launch_options(config))


def conv_transpose2d_call(conv: Conv, dtype: torch.dtype, target: Target) -> Call:
    """conv_transpose2d_kernel on the shapes of its forward convolution."""
    problem = conv_transpose2d_problem(conv, dtype, target)
    config = tuning.choose(problem, target)
    if conv.joins_classes():
        config = config._replace(n=max(16, tuning.power_of_two(problem.columns)))
        arguments = conv.sizes | {"C": conv.channels} | conv.constants | numeric(problem.precision, config)
        programs = tuning.programs(problem, config)
        return Call("conv_transpose2d", conv_transpose2d_image_kernel, programs, arguments, launch_options(config))
    area = conv.kernel[0] * conv.kernel[1]
    if transposes_weight(conv, dtype):
        strides = {"FILTER": 1, "TAP": conv.filters, "CHANNEL": area * conv.filters}
    else:
        strides = {"FILTER": area * conv.channels, "TAP": conv.channels, "CHANNEL": 1}
    strides["STEPS"] = interpreted_steps(problem.depth // conv.filters * -(-conv.filters // config.k))
    arguments = conv.sizes | {"C": conv.channels} | conv.constants | strides | numeric(problem.precision, config)
    programs = tuning.programs(problem, config) * conv.stride[0] * conv.stride[1]
    return Call("conv_transpose2d", conv_transpose2d_kernel, programs, arguments, launch_options(config))


def transposes_weight(conv: Conv, dtype: torch.dtype) -> bool:
    """Whether the transposed convolution reads a copy of the weight as [C_in][KH][KW][C_out].

    Hopper's product takes its second operand with either axis contiguous in 16-bit types but not in TF32, and a short
    run of C_in leaves 2-byte loads.
    """
    return dtype == torch.float32 or conv.channels % 8 != 0


def conv2d_weight_grad_calls(
    conv: Conv, dtype: torch.dtype, target: Target, c_in: int, bias: bool
) -> tuple[Call, Call]:
    """The two stages of the weight gradient; `parts` of the second is the number of partial sums."""
    problem = conv2d_weight_grad_problem(conv, dtype, target)
    config = tuning.choose(problem, target)
    tiles = tuning.programs(problem, config)
    steps = -(-conv.rows // config.k)
    # The tile's registers leave room for one program on a multiprocessor.
    most = min(steps, -(-3 * target.processors // tiles))
    blocks = -(-steps // tuning.shares(tiles, most, target.processors))
    parts = -(-steps // max(blocks, 1))
    arguments = conv.sizes | {"blocks": blocks, "C": conv.channels, "PITCH": conv.pitch} | conv.constants
    arguments |= {"BIAS": bias, "STEPS": interpreted_steps(blocks)} | numeric(problem.precision, config)
    first = Call("conv2d_weight_grad", conv2d_weight_grad_kernel, tiles * parts, arguments, launch_options(config))

    channels = conv.pitch  # a padded image's tap row holds KW pixels of `pitch` channels
    taps = problem.columns // channels
    block = 128
    arguments = {"parts": parts, "C_IN": c_in, "C": channels, "C_OUT": conv.filters, "TAPS": taps}
    arguments |= {
        "BIAS": bias,
        "STEPS": interpreted_steps(parts),
        "INTERPRETED": INTERPRETED,
        "BLOCK": block,
        "PARTS": 16,
    }
    programs = -(-conv.filters * problem.columns // block) + (-(-conv.filters // block) if bias else 0)
    options = {"num_warps": 4, "num_stages": 1}
    second = Call("conv2d_weight_grad reduce", weight_grad_reduce_kernel, programs, arguments, options)
    return first, second


def pad_image_call(conv: Conv, strides: tuple[int, ...], target: Target) -> Call:
    """pad_image_kernel on x of these strides; `conv` is the convolution of x itself."""
    padded = conv.padded()
    names = ("images", "H", "W", "PH", "PW", "stride_n", "stride_c", "stride_h", "stride_w")
    values = (conv.images, *conv.size, *conv.padding, *strides)
    block = 256
    arguments = dict(zip(names, values, strict=True))
    arguments |= {"C": conv.channels, "CHANNELS": IMAGE_CHANNELS, "BLOCK": block}
    programs = -(-conv.images * padded.size[0] * padded.size[1] // block)
    return Call("pad_image", pad_image_kernel, programs, arguments, {"num_warps": 4, "num_stages": 1})


def numeric(precision: str, config: Config) -> dict[str, Any]:
    tile = {"BM": config.m, "BN": config.n, "BK": config.k}
    return {"PRECISION": "tf32" if precision == "tf32" else "ieee", "INTERPRETED": INTERPRETED} | tile


def interpreted_steps(number: int) -> int:
    return number if INTERPRETED else 0


def launch_options(config: Config) -> dict[str, int]:
    return {"num_warps": config.warps, "num_stages": config.stages}


# The backend's functions


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, relu: bool) -> Tensor:
    out = window.conv_map(x.shape[2:], weight.shape[2:], stride, padding)
    conv = Conv.of(x.shape[0], x.shape[2:], x.shape[1], weight.shape[0], out, weight.shape[2:], stride, padding)
    y = empty(x, conv.images, conv.filters, *out)
    tune_if_asked("conv2d", conv, x.dtype, x.device)
    xs, ws, conv = operands(x, weight, conv)
    call = conv2d_call(conv, x.dtype, tuning.target(x.device), bias is not None, relu)
    call(x=xs, weight=ws, bias=ws if bias is None else bias.contiguous(), y=y)
    return y


def conv_transpose2d(y: Tensor, weight: Tensor, stride, padding, output_size, rectify: bool) -> Tensor:
    kernel = weight.shape[2:]
    conv = Conv.of(y.shape[0], output_size, weight.shape[1], weight.shape[0], y.shape[2:], kernel, stride, padding)
    tune_if_asked("conv_transpose2d", conv, y.dtype, y.device)
    x = empty(y, conv.images, conv.channels, *output_size)
    ys = dense(y)
    if rectify:
        ys = torch.relu(ys)
    conv_transpose2d_call(conv, y.dtype, tuning.target(y.device))(y=ys, weight=transposed(weight, conv), x=x)
    return x


def transposed(weight: Tensor, conv: Conv) -> Tensor:
    """The weight as the transposed convolution of these shapes reads it."""
    if not conv.joins_classes():
        return weight.permute(1, 2, 3, 0).contiguous() if transposes_weight(conv, weight.dtype) else dense(weight)
    taps = [-(-conv.kernel[d] // conv.stride[d]) for d in (0, 1)]
    whole = weight.new_zeros((*weight.shape[:2], taps[0] * conv.stride[0], taps[1] * conv.stride[1]))
    whole[:, :, : conv.kernel[0], : conv.kernel[1]] = weight
    cells = whole.unflatten(3, (taps[1], conv.stride[1])).unflatten(2, (taps[0], conv.stride[0]))
    return cells.permute(3, 5, 1, 2, 4, 0).contiguous()  # (o, c, a, rh, b, rw) -> (rh, rw, c, a, b, o)


def conv2d_weight_grad(
    x: Tensor, g: Tensor, kernel_size, stride, padding, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    c_in, target = x.shape[1], tuning.target(x.device)
    conv = Conv.of(x.shape[0], x.shape[2:], c_in, g.shape[1], g.shape[2:], kernel_size, stride, padding)
    tune_if_asked("conv2d_weight_grad", conv, x.dtype, x.device)
    gw = x.new_empty((conv.filters, c_in, *kernel_size))
    gb = x.new_empty(conv.filters) if with_bias else None
    xs, conv = gathered(x, conv)
    first, second = conv2d_weight_grad_calls(conv, x.dtype, target, c_in, with_bias)
    parts = second.arguments["parts"]
    partial = x.new_empty((parts, conv.filters, conv.kernel[0] * conv.kernel[1] * conv.channels), dtype=torch.float32)
    partial_bias = x.new_empty((parts, conv.filters), dtype=torch.float32) if with_bias else partial
    first(x=xs, g=dense(g), partial=partial, partial_bias=partial_bias)
    second(partial=partial, partial_bias=partial_bias, gw=gw, gb=gb if with_bias else gw)
    return gw, gb


def gathered(x: Tensor, conv: Conv) -> tuple[Tensor, Conv]:
    """x as the kernels gather from it, dense channels-last or a padded image, and the convolution of that."""
    if not conv.is_image():
        return dense(x), conv
    padded = conv.padded()
    image = x.new_empty((conv.images, *padded.size, IMAGE_CHANNELS))
    pad_image_call(conv, x.stride(), tuning.target(x.device))(x=x, padded=image)
    return image, padded


def operands(x: Tensor, weight: Tensor, conv: Conv) -> tuple[Tensor, Tensor, Conv]:
    """x and weight as conv2d_kernel reads them, and the convolution of them."""
    xs, of = gathered(x, conv)
    if not conv.is_image():
        return xs, dense(weight), of
    ws = weight.new_zeros((conv.filters, conv.kernel[0], of.run))
    taps = ws[..., : of.channels].unflatten(-1, (conv.kernel[1], IMAGE_CHANNELS))
    taps[..., : conv.channels].copy_(weight.permute(0, 2, 3, 1))
    return xs, ws, of


# Tuning (tuning.py says how)


def tune(op: str, conv: Conv, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Measures `op` on these shapes, on random data, and keeps the fastest configuration that computes it right.

    op is "conv2d", "conv_transpose2d" or "conv2d_weight_grad"; returns the entry of `tuning.table`.
    """
    target, how = tuning.target(device), (conv.stride, conv.padding)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)

    x, weight = random(conv.images, conv.channels, *conv.size), random(conv.filters, conv.channels, *conv.kernel)
    y = random(conv.images, conv.filters, *conv.out)
    wide = x.double(), weight.double(), y.double()
    if op == "conv2d":
        read = conv.padded() if conv.is_image() else conv
        problem, expected = conv2d_problem(read, dtype, target), torch.nn.functional.conv2d(*wide[:2], None, *how)
        return tuning.measure(problem, target, lambda: conv2d(x, weight, None, *how, False), expected)
    if op == "conv_transpose2d":
        problem = conv_transpose2d_problem(conv, dtype, target)
        expected = torch.nn.grad.conv2d_input(x.shape, *wide[1:], *how)
        return tuning.measure(problem, target, lambda: conv_transpose2d(y, weight, *how, conv.size, False), expected)
    read = conv.padded() if conv.is_image() else conv
    problem = conv2d_weight_grad_problem(read, dtype, target)
    expected = torch.nn.grad.conv2d_weight(wide[0], weight.shape, wide[2], *how)
    return tuning.measure(problem, target, lambda: conv2d_weight_grad(x, y, conv.kernel, *how, True)[0], expected)


def tune_if_asked(op: str, conv: Conv, dtype: torch.dtype, device: torch.device) -> None:
    """`tune` where ZFKERNELS_TUNE is set and this problem was not measured on this device yet."""
    if not tuning.asked() or conv.images == 0:
        return
    target = tuning.target(device)
    read = conv.padded() if conv.is_image() and op != "conv_transpose2d" else conv
    problem = {
        "conv2d": conv2d_problem,
        "conv_transpose2d": conv_transpose2d_problem,
        "conv2d_weight_grad": conv2d_weight_grad_problem,
    }[op](read, dtype, target)
    if tuning.wanted(problem, target):
        tune(op, conv, dtype, device)


# What the compile gate builds


def zfnet(images: int = 128) -> dict[str, Conv]:
    """The convolutions of ZFNet's five layers."""
    shapes = {
        "conv1": ((224, 224), 3, 96, (110, 110), (7, 7), (2, 2), (1, 1)),
        "conv2": ((55, 55), 96, 256, (26, 26), (5, 5), (2, 2), (0, 0)),
        "conv3": ((13, 13), 256, 384, (13, 13), (3, 3), (1, 1), (1, 1)),
        "conv4": ((13, 13), 384, 384, (13, 13), (3, 3), (1, 1), (1, 1)),
        "conv5": ((13, 13), 384, 256, (13, 13), (3, 3), (1, 1), (1, 1)),
    }
    return {name: Conv.of(images, *shape) for name, shape in shapes.items()}


def compilations(dtype: torch.dtype, target: Target) -> list[Compilation]:
    """Every launch that ZFNet's layers make on `target`, forward and backward, for one image and for 128."""
    found = []
    for images in (1, 128):
        for layer, conv in zfnet(images).items():
            read = conv
            if conv.is_image():
                read = conv.padded()
                strides = conv.channels * conv.size[0] * conv.size[1], conv.size[0] * conv.size[1], conv.size[1], 1
                call = pad_image_call(conv, strides, target)
                found.append(compilation(f"{layer} N={images}", call, dtype, {"x": dtype, "padded": dtype}))
            forward = conv2d_call(read, dtype, target, True, True)
            tensors = {"x": dtype, "weight": dtype, "bias": dtype, "y": dtype}
            found.append(compilation(f"{layer} N={images}", forward, dtype, tensors))
            transposed = conv_transpose2d_call(conv, dtype, target)
            found.append(
                compilation(f"{layer} N={images}", transposed, dtype, {"y": dtype, "weight": dtype, "x": dtype})
            )
            first, second = conv2d_weight_grad_calls(read, dtype, target, conv.channels, True)
            sums = {"partial": torch.float32, "partial_bias": torch.float32}
            found.append(compilation(f"{layer} N={images}", first, dtype, {"x": dtype, "g": dtype} | sums))
            found.append(compilation(f"{layer} N={images}", second, dtype, sums | {"gw": dtype, "gb": dtype}))
    return found


def compilation(case: str, call: Call, dtype: torch.dtype, tensors: dict[str, torch.dtype]) -> Compilation:
    """What launching `call` on such tensors compiles. IEEE products of float32 have no matrix unit on NVIDIA's."""
    precision = call.arguments.get("PRECISION")
    matrix = precision is not None and (dtype != torch.float32 or precision == "tf32")
    return Compilation(f"{case} {call.name}", call.kernel, tensors | call.arguments, call.options, matrix)
