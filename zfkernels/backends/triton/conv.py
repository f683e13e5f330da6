"""conv2d: output pixels x output channels, summed over taps x input channels (correlation.py)."""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from ...window import Pair, conv_map
from ..memory import dense, empty, finished, refuse_windows
from . import tuning
from .correlation import (
    IMAGE_CHANNELS,
    SIZES,
    Conv,
    Problem,
    gather,
    interpreted_steps,
    pixels,
    precision,
    product,
    product_call,
)
from .launch import Call, Target, target


@triton.jit
def _tile(
    tile,
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
    DESCRIBED: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """Tile `tile` of conv2d_kernel. DESCRIBED: weight is a descriptor of its blocks (BN, BK), and BK divides C."""
    TILES: tl.constexpr = (C_OUT + BN - 1) // BN
    BLOCKS: tl.constexpr = (C + BK - 1) // BK
    first = (tile // TILES).to(tl.int64) * BM
    o_first = (tile % TILES) * BN
    o = o_first + tl.arange(0, BN)
    image, remaining, ahead, i, j = pixels(first, images, OH, OW, BM)
    row = i * SH - PH
    column = j * SW - PW
    exists = ahead < remaining
    # Bases are 64 bits wide, what the loop adds to them 32.
    pixel = (image * H * W + ahead.to(tl.int64) * H * W + row.to(tl.int64) * W + column) * PITCH
    filters = o.to(tl.int64) * (KH * KW * CW)
    k = tl.arange(0, BK)
    sums = tl.zeros((BM, BN), tl.float32)
    for step in range(KH * KW * BLOCKS):
        tap = step // BLOCKS
        c = (step % BLOCKS) * BK
        kh = tap // KW
        kw = tap % KW
        inside = exists & (row + kh >= 0) & (row + kh < H) & (column + kw >= 0) & (column + kw < W)
        a_mask = inside[:, None]
        if C % BK != 0:
            a_mask = a_mask & (c + k < C)[None, :]
        a = tl.load(x + (pixel + (kh.to(tl.int64) * W + kw) * PITCH + c)[:, None] + k[None, :], mask=a_mask, other=0.0)
        if DESCRIBED:
            b = weight.load([o_first, tap * CW + c]).T
        else:
            b_mask = (o < C_OUT)[None, :]
            if C % BK != 0 and CW < BLOCKS * BK:
                b_mask = b_mask & (c + k < C)[:, None]
            b = tl.load(weight + (filters + tap * CW + c)[None, :] + k[:, None], mask=b_mask, other=0.0)
        sums = product(a, b, sums, PRECISION, INTERPRETED)
    if BIAS:
        sums += tl.load(bias + o, mask=o < C_OUT, other=0.0).to(tl.float32)[None, :]
    if RELU:
        sums = tl.where(sums <= 0.0, 0.0, sums)  # NaN is not <= 0 and stays
    rows = tl.arange(0, BM)
    mask = (first + rows < images.to(tl.int64) * OH * OW)[:, None] & (o < C_OUT)[None, :]
    tl.store(y + first * C_OUT + (rows[:, None] * C_OUT + o[None, :]), sums.to(y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=(*SIZES, "tiles"))
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
    tiles,
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
    STEPS: tl.constexpr,
    PERSISTENT: tl.constexpr,
    PRECISION: tl.constexpr,
    INTERPRETED: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
):
    """y[m,o] = bias[o] + sum over taps and c of weight[o,tap,c] x[pixel m under tap, c]; max(0, .) if RELU.

    Tile i: output pixels (i // tiles) * BM ..., channels (i % tiles) * BN ..., so that programs which run together
    read the same pixels. x is (images, H, W) pixels, PITCH numbers apart; C numbers are read at each tap. weight is
    [C_OUT][KH][KW][CW], zeros past C; y is (images, OH, OW, C_OUT). The steps run over (kh, kw, block of BK channels),
    in that order for every tile: the order decides the bits.

    Program i makes tile i; PERSISTENT: tiles i, i + the number of programs, ... of `tiles`, STEPS at most, and copies
    filters by a descriptor.
    """
    pid = tl.program_id(0)
    if PERSISTENT:
        programs = tl.num_programs(0)
        for turn in tl.range(STEPS if INTERPRETED else (tiles - pid + programs - 1) // programs):
            tile = pid + turn * programs
            _tile(tile, x, weight, bias, y, images, H, W, OH, OW, PH, PW, C, CW, PITCH, C_OUT, KH, KW, SH, SW, BIAS,
                  RELU, True, PRECISION, INTERPRETED, BM, BN, BK)  # fmt: skip
    else:
        _tile(pid, x, weight, bias, y, images, H, W, OH, OW, PH, PW, C, CW, PITCH, C_OUT, KH, KW, SH, SW, BIAS,
              RELU, False, PRECISION, INTERPRETED, BM, BN, BK)  # fmt: skip


def conv2d_problem(conv: Conv, dtype: torch.dtype, target: Target) -> Problem:
    """Rows are output pixels, columns filters."""
    op = "conv2d" if conv.pitch == conv.channels else "conv2d of an image"
    return Problem(op, conv.rows, conv.filters, conv.terms, conv.channels, precision(dtype, target))


def conv2d_call(conv: Conv, dtype: torch.dtype, target: Target, bias: bool, relu: bool) -> Call:
    """conv2d_kernel on these shapes: those of the padded image where x is one."""
    problem = conv2d_problem(conv, dtype, target)
    config = tuning.choose(problem, target)
    arguments = conv.sizes | {"C": conv.channels, "CW": conv.run, "PITCH": conv.pitch} | conv.constants
    tiles = problem.programs(config)
    programs = min(tiles, config.programs * target.processors) if config.programs else tiles
    arguments |= {"BIAS": bias, "RELU": relu, "tiles": tiles, "PERSISTENT": config.programs > 0}
    arguments["STEPS"] = interpreted_steps(-(-tiles // max(programs, 1)))
    return product_call(conv2d_kernel, programs, arguments, problem.precision, config)


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    relu: bool,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    refuse_windows("triton", dilation, groups)
    out = conv_map(x.shape[2:], weight.shape[2:], stride, padding)
    conv = Conv.of(x.shape, weight.shape, out, stride, padding)
    gathered, device = conv.gathered(), target(x.device)
    if tuning.asked():
        tuning.tune(conv2d_problem(gathered, x.dtype, device), device, lambda: _trial(conv, x.dtype, x.device))
    y = empty(x, conv.images, conv.filters, *out)
    xs, ws = operands(x, weight, conv)
    call = conv2d_call(gathered, x.dtype, device, bias is not None, relu)
    filters = described(ws, gathered, call) if call.arguments["PERSISTENT"] else ws
    call(x=xs, weight=filters, bias=ws if bias is None else bias.contiguous(), y=y)
    return y


def described(weight: Tensor, conv: Conv, call: Call) -> TensorDescriptor:
    """The weight as a matrix [C_OUT][taps x channels] of which conv2d_kernel copies blocks."""
    if weight.data_ptr() % 16:
        weight = weight.clone()
    columns = conv.kernel[0] * conv.kernel[1] * conv.run
    block = [call.arguments["BN"], call.arguments["BK"]]
    return TensorDescriptor(weight, [conv.filters, columns], [columns, 1], block)


def conv2d_add(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    add: Tensor | None,
    stride: Pair,
    padding: Pair,
    relu: bool,
    cap: float | None,
    dilation: Pair = (1, 1),
    groups: int = 1,
) -> Tensor:
    """The convolution, and the rest in a pass of torch's for each part of it."""
    y = conv2d(x, weight, bias, stride, padding, relu and add is None, dilation, groups)
    return finished(y, add, relu, cap)


def operands(x: Tensor, weight: Tensor, conv: Conv) -> tuple[Tensor, Tensor]:
    """x and weight as conv2d_kernel reads them, for the shapes of conv.gathered()."""
    xs = gather(x, conv)
    if not conv.is_image():
        return xs, dense(weight)
    padded = conv.gathered()
    ws = weight.new_zeros((conv.filters, conv.kernel[0], padded.run))
    taps = ws[..., : padded.channels].unflatten(-1, (conv.kernel[1], IMAGE_CHANNELS))
    taps[..., : conv.channels].copy_(weight.permute(0, 2, 3, 1))
    return xs, ws


def _trial(conv: Conv, dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], Tensor], Tensor]:
    """For tuning: conv2d on random data, as layers call it, and its result in float64."""
    x, weight, _ = conv.samples(dtype, device)
    bias = torch.randn(conv.filters, device=device, dtype=dtype)
    window = conv.stride, conv.padding
    expected = torch.nn.functional.conv2d(x.double(), weight.double(), bias.double(), *window).relu_()
    return lambda: conv2d(x, weight, bias, *window, True), expected
