"""conv_transpose2d: input pixels x input channels, summed over taps x output channels (correlation.py).

With stride s, pixel h receives from the taps kh that are congruent to h + p modulo s and from no other. Each of the s*s
residue classes is a small stride-1 problem on its own pixels with its own taps (5x5, s = 2: 9, 6, 6 and 4 of them), all
in one launch; nothing is multiplied by an inserted zero. Where x is an image, a class would have 3 columns for a tile's
16 and read y again for each class; there the classes are the columns of one product.

Rectifying y first is a pass of its own (torch.relu, which keeps NaN). Inside, it would sit between the load and the
product of the product's first operand; on Hopper that operand then travels in registers, which ptxas before 13.3 reuses
while the asynchronous product still reads them (triton issues 9433, 11781).
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import grad

from ...window import Pair
from ..memory import dense, empty, refuse_windows
from . import tuning
from .correlation import SIZES, Conv, Problem, interpreted_steps, pixels, precision, product, product_call
from .launch import Call, Target, power_of_two, target


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
    FILTER, TAP and CHANNEL; STEPS is the largest number of steps of a class. A class without taps (a kernel smaller
    than the stride) writes zeros.
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
    image, remaining, ahead, i, j = pixels(first, images, height, width, BM)
    i += top
    j += left
    exists = ahead < remaining
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
        inside = exists & (i - a >= 0) & (i - a < OH) & (j - b >= 0) & (j - b < OW)
        y_mask = inside[:, None]
        w_mask = (c < C)[None, :]
        if C_OUT % BK != 0:
            y_mask = y_mask & (o + k < C_OUT)[None, :]
            w_mask = w_mask & (o + k < C_OUT)[:, None]
        if INTERPRETED:  # as a tensor: the newest interpreter makes a Python bool an integer, and the mask integers
            real = tl.zeros((1, 1), tl.int32) + step < steps
            y_mask = y_mask & real
            w_mask = w_mask & real
        ys = tl.load(y + (window - (a.to(tl.int64) * OW + b) * C_OUT + o)[:, None] + k[None, :], mask=y_mask, other=0.0)
        offset = o.to(tl.int64) * FILTER + ((rh + a * SH) * KW + rw + b * SW) * TAP
        ws = tl.load(weight + offset + (k[:, None] * FILTER + c[None, :] * CHANNEL), mask=w_mask, other=0.0)
        sums = product(ys, ws, sums, PRECISION, INTERPRETED)

    h = i * SH + rh - PH
    w = j * SW + rw - PW
    pixel = (image * H * W + ahead.to(tl.int64) * H * W + h.to(tl.int64) * W + w) * C
    tl.store(x + pixel[:, None] + c[None, :], sums.to(x.dtype.element_ty), mask=exists[:, None] & (c < C)[None, :])


@triton.jit
def _tap(
    y,
    weight,
    window,
    exists,
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
    inside = exists & (i >= a) & (i - a < OH) & (j >= b) & (j - b < OW)
    y_mask = inside[:, None]
    w_mask = (columns < COLUMNS)[None, :]
    if C_OUT % BK != 0:
        y_mask = y_mask & (o + k < C_OUT)[None, :]
        w_mask = w_mask & (o + k < C_OUT)[:, None]
    y_offset = (window - (a.to(tl.int64) * OW + b) * C_OUT + o)[:, None] + k[None, :]
    # 16-byte asynchronous copies bypass L1; 8-byte copies find in it what the neighbouring tap has read.
    y_offset = tl.max_contiguous(y_offset, (1, 4))
    ys = tl.load(y + y_offset, mask=y_mask, other=0.0)
    w_offset = columns * (TAPS_H * TAPS_W * C_OUT) + (a * TAPS_W + b) * C_OUT + o
    ws = tl.load(weight + w_offset[None, :] + k[:, None], mask=w_mask, other=0.0)
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
    classes. weight is [SH][SW][C][TAPS_H][TAPS_W][C_OUT], with tap (rh + a*SH, rw + b*SW) at (rh, rw, :, a, b), zeros
    where there is no such tap. Taps that only some classes have are summed apart and dropped from the others, where y's
    NaN and infinities must not meet the zeros.
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
    image, remaining, ahead, i, j = pixels(first, images, height, width, BM)
    exists = ahead < remaining
    window = (image * OH * OW + ahead.to(tl.int64) * OH * OW + i.to(tl.int64) * OW + j) * C_OUT
    sums = tl.zeros((BM, BN), tl.float32)
    for step in range(FULL_H * FULL_W * BLOCKS):
        tap = step // BLOCKS
        a = tap // FULL_W
        b = tap % FULL_W
        o = (step % BLOCKS) * BK
        ys, ws = _tap(y, weight, window, exists, i, j, a, b, o, columns, OH, OW, COLUMNS, C_OUT, TAPS_H, TAPS_W, BK)
        sums = product(ys, ws, sums, PRECISION, INTERPRETED)
    for step in range((TAPS_H * TAPS_W - FULL_H * FULL_W) * BLOCKS):
        tap = step // BLOCKS
        a = tl.where(tap < RIGHT, tap // max(TAPS_W - FULL_W, 1), FULL_H + (tap - RIGHT) // TAPS_W)
        b = tl.where(tap < RIGHT, FULL_W + tap % max(TAPS_W - FULL_W, 1), (tap - RIGHT) % TAPS_W)
        o = (step % BLOCKS) * BK
        ys, ws = _tap(y, weight, window, exists, i, j, a, b, o, columns, OH, OW, COLUMNS, C_OUT, TAPS_H, TAPS_W, BK)
        terms = product(ys, ws, tl.zeros((BM, BN), tl.float32), PRECISION, INTERPRETED)
        has_tap = (rh + a * SH < KH) & (rw + b * SW < KW)
        sums += tl.where(has_tap[None, :], terms, 0.0)
    h = (i * SH - PH)[:, None] + rh[None, :]
    w = (j * SW - PW)[:, None] + rw[None, :]
    mask = exists[:, None] & (columns < COLUMNS)[None, :] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    pixel = (image + ahead)[:, None] * H * W + h.to(tl.int64) * W + w
    tl.store(x + pixel * C + (columns % C)[None, :], sums.to(x.dtype.element_ty), mask=mask)


def joins_classes(conv: Conv) -> bool:
    """Whether conv_transpose2d_image_kernel makes x: few enough numbers a cell of stride x stride pixels."""
    return conv.is_image() and conv.stride[0] * conv.stride[1] * conv.channels <= 64


def transposes_weight(conv: Conv, dtype: torch.dtype) -> bool:
    """Whether conv_transpose2d_kernel reads a copy of the weight as [C_in][KH][KW][C_out].

    Hopper's product takes its second operand with either axis contiguous in 16-bit types but not in TF32, and a short
    run of C_in leaves 2-byte loads.
    """
    return dtype == torch.float32 or conv.channels % 8 != 0


def conv_transpose2d_problem(conv: Conv, dtype: torch.dtype, target: Target) -> Problem:
    """Rows are the input pixels of the largest residue class, columns input channels; for an image, rows are cells and
    columns the channels of all classes."""
    cells = (conv.size[0] + conv.padding[0], conv.size[1] + conv.padding[1]) if joins_classes(conv) else conv.size
    rows, columns = conv.images, conv.channels
    taps = 1
    for d in (0, 1):
        rows *= -(-cells[d] // conv.stride[d])
        taps *= -(-conv.kernel[d] // conv.stride[d])
    op = "conv_transpose2d"
    if joins_classes(conv):
        op, columns = "conv_transpose2d to an image", conv.stride[0] * conv.stride[1] * columns
    return Problem(op, rows, columns, taps * conv.filters, conv.filters, precision(dtype, target))


def conv_transpose2d_call(conv: Conv, dtype: torch.dtype, target: Target) -> Call:
    """The launch for the shapes of its forward convolution."""
    problem = conv_transpose2d_problem(conv, dtype, target)
    config = tuning.choose(problem, target)
    arguments = conv.sizes | {"C": conv.channels} | conv.constants
    if joins_classes(conv):
        config = config._replace(n=max(16, power_of_two(problem.columns)))
        programs = problem.programs(config)
        return product_call(conv_transpose2d_image_kernel, programs, arguments, problem.precision, config)
    area = conv.kernel[0] * conv.kernel[1]
    if transposes_weight(conv, dtype):
        arguments |= {"FILTER": 1, "TAP": conv.filters, "CHANNEL": area * conv.filters}
    else:
        arguments |= {"FILTER": area * conv.channels, "TAP": conv.channels, "CHANNEL": 1}
    arguments["STEPS"] = interpreted_steps(problem.depth // conv.filters * -(-conv.filters // config.k))
    programs = problem.programs(config) * conv.stride[0] * conv.stride[1]
    return product_call(conv_transpose2d_kernel, programs, arguments, problem.precision, config)


def conv_transpose2d(
    y: Tensor,
    weight: Tensor,
    stride: Pair,
    padding: Pair,
    output_size: Pair,
    rectify: bool,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    refuse_windows("triton", dilation, groups)
    conv = Conv.of((y.shape[0], weight.shape[1], *output_size), weight.shape, y.shape[2:], stride, padding)
    device = target(y.device)
    if tuning.asked():
        problem = conv_transpose2d_problem(conv, y.dtype, device)
        tuning.tune(problem, device, lambda: _trial(conv, y.dtype, y.device))
    x = empty(y, conv.images, conv.channels, *output_size)
    ys = dense(y)
    if rectify:
        ys = torch.relu(ys)
    conv_transpose2d_call(conv, y.dtype, device)(y=ys, weight=transposed(weight, conv), x=x)
    return x


def transposed(weight: Tensor, conv: Conv) -> Tensor:
    """The weight as the transposed convolution of these shapes reads it."""
    if not joins_classes(conv):
        return weight.permute(1, 2, 3, 0).contiguous() if transposes_weight(conv, weight.dtype) else dense(weight)
    taps = [-(-conv.kernel[d] // conv.stride[d]) for d in (0, 1)]
    whole = weight.new_zeros((*weight.shape[:2], taps[0] * conv.stride[0], taps[1] * conv.stride[1]))
    whole[:, :, : conv.kernel[0], : conv.kernel[1]] = weight
    cells: Tensor = whole.unflatten(3, (taps[1], conv.stride[1])).unflatten(2, (taps[0], conv.stride[0]))
    return cells.permute(3, 5, 1, 2, 4, 0).contiguous()  # (o, c, a, rh, b, rw) -> (rh, rw, c, a, b, o)


def _trial(conv: Conv, dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], Tensor], Tensor]:
    """For tuning: conv_transpose2d on random data, and its result in float64."""
    x, weight, y = conv.samples(dtype, device)
    window = conv.stride, conv.padding
    expected = grad.conv2d_input(x.shape, weight.double(), y.double(), *window)
    return lambda: conv_transpose2d(y, weight, *window, conv.size, False), expected
