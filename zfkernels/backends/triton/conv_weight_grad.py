"""conv2d_weight_grad: output channels x (taps x input channels), summed over output pixels (correlation.py).

Two stages in a fixed order, without atomics: programs sum parts of the pixels, then the parts are added up.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import grad

from ...window import Pair
from ..memory import Grads, dense, refuse_windows
from . import tuning
from .correlation import SIZES, Conv, Problem, gather, interpreted_steps, pixels, precision, product, product_call
from .launch import INTERPRETED, Call, Target, target


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
    of the same tile of g with ones: a sum in registers would take the tile off the matrix unit's path through shared
    memory, and a pass of its own would read g again. x, g and the sizes: as x, y and the sizes of conv2d_kernel.
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
    image, remaining, ahead, i, j = pixels(first, images, OH, OW, BK)
    x += image * H * W * PITCH
    g += first * C_OUT
    # One block further on, in mixed radix: a division a pixel would cost more than the pixel's share of the product.
    step_j = BK % OW
    step_i = BK // OW % OH
    step_n = BK // (OH * OW)
    k = tl.arange(0, BK)
    sums = tl.zeros((BM, BN), tl.float32)
    sums_bias = tl.zeros((BM, 16), tl.float32)
    ones = tl.full((BK, 16), 1.0, tl.float32).to(g.dtype.element_ty)
    for _ in range(STEPS if INTERPRETED else blocks):
        exists = ahead < remaining
        row = i * SH - PH
        col = j * SW - PW
        gs = tl.load(g + (k[None, :] * C_OUT + o[:, None]), mask=exists[None, :] & (o < C_OUT)[:, None], other=0.0)
        h = row[:, None] + kh[None, :]
        w = col[:, None] + kw[None, :]
        inside = exists[:, None] & (column < COLUMNS)[None, :] & (h >= 0) & (h < H) & (w >= 0) & (w < W)
        pixel = ((ahead.to(tl.int64) * H + row) * W + col) * PITCH
        xs = tl.load(x + pixel[:, None] + offset[None, :], mask=inside, other=0.0)
        sums = product(gs, xs, sums, PRECISION, INTERPRETED)
        if BIAS:
            sums_bias = product(gs, ones, sums_bias, PRECISION, INTERPRETED)
        g += BK * C_OUT
        j += step_j
        carry = j >= OW
        j = tl.where(carry, j - OW, j)
        i += step_i + carry.to(tl.int32)
        carry = i >= OH
        i = tl.where(carry, i - OH, i)
        ahead += step_n + carry.to(tl.int32)

    to = partial + part * (C_OUT * COLUMNS) + o.to(tl.int64)[:, None] * COLUMNS + column[None, :]
    tl.store(to, sums, mask=(o < C_OUT)[:, None] & (column < COLUMNS)[None, :])
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
    """gw[o,c,tap] = sum over s of partial[s,o,tap,c], gb[o] = sum over s of partial_bias[s,o], in a fixed order.

    Program i: BLOCK numbers of a part, PARTS parts at a time; a tap has C >= C_IN of them, and those past C_IN are
    padding. The programs after those that cover a part reduce the bias.
    """
    WEIGHTS: tl.constexpr = C_OUT * TAPS * C
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, PARTS)
    sums = tl.zeros((BLOCK,), tl.float32)
    if tl.program_id(0) < (WEIGHTS + BLOCK - 1) // BLOCK:
        for done in range(0, STEPS if INTERPRETED else parts, PARTS):
            part = done + s
            mask = (part < parts)[:, None] & (index < WEIGHTS)[None, :]
            sums += tl.sum(tl.load(partial + part.to(tl.int64)[:, None] * WEIGHTS + index[None, :], mask, 0.0), axis=0)
        c = index % C
        tap = index // C % TAPS
        o = index // (C * TAPS)
        mask = (index < WEIGHTS) & (c < C_IN)
        tl.store(gw + (o * C_IN + c) * TAPS + tap, sums.to(gw.dtype.element_ty), mask=mask)
    elif BIAS:
        o = index - (WEIGHTS + BLOCK - 1) // BLOCK * BLOCK
        for done in range(0, STEPS if INTERPRETED else parts, PARTS):
            part = done + s
            mask = (part < parts)[:, None] & (o < C_OUT)[None, :]
            sums += tl.sum(tl.load(partial_bias + part.to(tl.int64)[:, None] * C_OUT + o[None, :], mask, 0.0), axis=0)
        tl.store(gb + o, sums.to(gb.dtype.element_ty), mask=o < C_OUT)


def conv2d_weight_grad_problem(conv: Conv, dtype: torch.dtype, target: Target) -> Problem:
    """Rows are filters, columns taps x input channels."""
    return Problem("conv2d_weight_grad", conv.filters, conv.terms, conv.rows, conv.channels, precision(dtype, target))


def conv2d_weight_grad_call(conv: Conv, dtype: torch.dtype, target: Target, bias: bool) -> tuple[Call, int]:
    """The launch of the first stage, and the number of parts that it leaves."""
    problem = conv2d_weight_grad_problem(conv, dtype, target)
    config = tuning.choose(problem, target)
    tiles = problem.programs(config)
    steps = -(-conv.rows // config.k)
    # The tile's registers leave room for one program on a multiprocessor.
    most = min(steps, -(-3 * target.processors // tiles))
    blocks = -(-steps // tuning.shares(tiles, most, target.processors))
    parts = -(-steps // max(blocks, 1))
    arguments = conv.sizes | {"blocks": blocks, "C": conv.channels, "PITCH": conv.pitch} | conv.constants
    arguments |= {"BIAS": bias, "STEPS": interpreted_steps(blocks)}
    return product_call(conv2d_weight_grad_kernel, tiles * parts, arguments, problem.precision, config), parts


def weight_grad_reduce_call(conv: Conv, parts: int, c_in: int, bias: bool) -> Call:
    """The launch of the second stage, on sums of these shapes and `parts` parts; c_in is the weight's."""
    block = 128
    # A padded image's tap row holds KW pixels of `pitch` channels.
    arguments = {"C_IN": c_in, "C": conv.pitch, "C_OUT": conv.filters, "TAPS": conv.terms // conv.pitch, "BIAS": bias}
    arguments |= {"parts": parts, "STEPS": interpreted_steps(parts), "INTERPRETED": INTERPRETED}
    arguments |= {"BLOCK": block, "PARTS": 16}
    programs = -(-conv.filters * conv.terms // block) + (-(-conv.filters // block) if bias else 0)
    return Call(weight_grad_reduce_kernel, programs, arguments, {"num_warps": 4, "num_stages": 1})


def conv2d_weight_grad(
    x: Tensor,
    g: Tensor,
    kernel_size: Pair,
    stride: Pair,
    padding: Pair,
    with_bias: bool,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Grads:
    refuse_windows("triton", dilation, groups)
    device = target(x.device)
    conv = Conv.of(x.shape, (g.shape[1], x.shape[1], *kernel_size), g.shape[2:], stride, padding)
    gathered = conv.gathered()
    if tuning.asked():
        problem = conv2d_weight_grad_problem(gathered, x.dtype, device)
        tuning.tune(problem, device, lambda: _trial(conv, x.dtype, x.device))
    gw = x.new_empty((conv.filters, conv.channels, *kernel_size))
    gb = x.new_empty(conv.filters) if with_bias else None
    xs = gather(x, conv)
    first, parts = conv2d_weight_grad_call(gathered, x.dtype, device, with_bias)
    second = weight_grad_reduce_call(gathered, parts, conv.channels, with_bias)
    partial = x.new_empty((parts, conv.filters, gathered.terms), dtype=torch.float32)
    partial_bias = x.new_empty((parts, conv.filters), dtype=torch.float32) if with_bias else partial
    first(x=xs, g=dense(g), partial=partial, partial_bias=partial_bias)
    second(partial=partial, partial_bias=partial_bias, gw=gw, gb=gw if gb is None else gb)
    return gw, gb


def _trial(conv: Conv, dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], Tensor], Tensor]:
    """For tuning: conv2d_weight_grad on random data, and its result in float64."""
    x, weight, y = conv.samples(dtype, device)
    window = conv.stride, conv.padding
    expected = grad.conv2d_weight(x.double(), weight.shape, y.double(), *window)
    return lambda: conv2d_weight_grad(x, y, conv.kernel, *window, True)[0], expected
