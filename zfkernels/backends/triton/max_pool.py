"""Max-pooling with switches, unpooling by them, and the gather at them (formulas: zfkernels/ops/max_pool.py).

Maps are dense channels-last. A program works on a tile of ROWS x COLUMNS pixels or windows of one image and B channels,
a thread on 16 bytes of neighbouring channels, so that every access is 16 bytes wide and L1 serves what windows share.
Each result has one writer and a fixed order of its terms: no atomics, and the same bits on every run.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...window import Sides
from ..memory import Pooled, dense, empty, pooled
from .launch import INTERPRETED, Call, power_of_two

# A tile has 8 columns and 4 rows (2 in float32) of 32 channels: 8 values a thread (4), one 16-byte access. 4 x 8
# windows of 3x3, stride 2, read 1.2 times the bytes of their pixels; 32 in a row would read 1.5 times.
COLUMNS, THREADS = 8, 128
# Loops over at most this many taps are unrolled, to have their loads in flight at once; longer ones by UNROLLED_PART.
UNROLLED, UNROLLED_PART = 16, 4


@triton.jit
def _tile(height, width, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCKS: tl.constexpr, B: tl.constexpr):
    """This program's image, rows and columns (of ROWS * COLUMNS positions), and channels. Blocks of channels vary
    fastest, then columns. Divisions are unsigned: they take half as many instructions."""
    program = tl.program_id(0).to(tl.uint32)
    across = ((width + COLUMNS - 1) // COLUMNS).to(tl.uint32)
    down = ((height + ROWS - 1) // ROWS).to(tl.uint32)
    tile = program // BLOCKS
    line = tile // across
    n = line // down
    position = tl.arange(0, ROWS * COLUMNS)
    row = (line - n * down).to(tl.int32) * ROWS + position // COLUMNS
    column = (tile - line * across).to(tl.int32) * COLUMNS + position % COLUMNS
    return n.to(tl.int64), row, column, (program % BLOCKS).to(tl.int32) * B + tl.arange(0, B)


@triton.jit
def _at(n, row, column, height, width, C, c):
    """Offsets, in 64 bits, of pixels (n, row, column) and channels c in dense memory. Rows and columns are apart, so
    that the taps of an unrolled window share the products."""
    pixel = (n * height + row) * (width.to(tl.int64) * C) + column.to(tl.int64) * C
    return pixel[:, None] + c[None, :]


@triton.jit
def _widened(v):
    """v as float32. bfloat16 by its bits: with an ordinary conversion LLVM compares pairs of bfloat16, which takes 1.5
    times the instructions, to move predicates."""
    if v.dtype == tl.bfloat16:
        w = (v.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        w = v.to(tl.float32)
    return w


@triton.jit
def max_pool2d_kernel(
    x,
    y,
    switches,
    H,
    W,
    OH,
    OW,
    C,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
    B: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """y[n,i,j,c] = max of x over window (i,j); switches = kh * KW + kw of the first maximum, NaN being the maximum.

    A tap off the map is read at the window's nearest pixel on it, which changes no maximum: no load needs a mask.
    Taps are visited backwards, so that `>=` leaves the first maximum, and NaN replaces every value.
    """
    n, i, j, c = _tile(OH, OW, ROWS, COLUMNS, BLOCKS, B)
    mask = ((i < OH) & (j < OW))[:, None] & (c < C)[None, :]
    top = tl.minimum(i, OH - 1) * SH - PH
    left = tl.minimum(j, OW - 1) * SW - PW
    best = tl.full((ROWS * COLUMNS, B), float("-inf"), tl.float32)
    switch = tl.zeros((ROWS * COLUMNS, B), tl.int32)
    for t in tl.range(KH * KW, loop_unroll_factor=UNROLL):
        tap = KH * KW - 1 - t
        row = tl.minimum(tl.maximum(top + tap // KW, 0), H - 1)
        column = tl.minimum(tl.maximum(left + tap % KW, 0), W - 1)
        v = tl.load(x + _at(n, row, column, H, W, C, c), mask=(c < C)[None, :])
        v = _widened(v)
        wins = (v >= best) | (v != v)
        best = tl.where(wins, v, best)
        switch = tl.where(wins, tap, switch)
    if PH + PW > 0:
        # The first maximum may be at a tap off the map that stood for one on it.
        kh = tl.maximum(switch // KW, -top[:, None])
        kw = tl.maximum(switch % KW, -left[:, None])
        switch = kh * KW + kw
    offset = _at(n, i, j, OH, OW, C, c)
    tl.store(y + offset, best.to(y.dtype.element_ty), mask=mask)
    tl.store(switches + offset, switch.to(tl.uint8), mask=mask)


@triton.jit
def _sum_at(
    y,
    switches,
    n,
    a,
    b,
    c,
    r,
    q,
    OH,
    OW,
    C,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    RECTIFY: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The float32 sum of what is unpooled to pixel (r, q) of cells (a, b); rectified if RECTIFY, NaN kept."""
    T: tl.constexpr = (KH + SH - 1) // SH
    U: tl.constexpr = (KW + SW - 1) // SW
    total = tl.zeros((a.shape[0], c.shape[0]), tl.float32)
    for window in tl.range(T * U, loop_unroll_factor=UNROLL):
        t, u = window // U, window % U
        i, j, kh, kw = a - t, b - u, r + t * SH, q + u * SW
        mask = (i >= 0) & (i < OH) & (j >= 0) & (j < OW) & (kh < KH) & (kw < KW)
        mask = mask[:, None] & (c < C)[None, :]
        offset = _at(n, i, j, OH, OW, C, c)
        switch = tl.load(switches + offset, mask=mask, other=0).to(tl.int32)
        v = tl.load(y + offset, mask=mask, other=0.0).to(tl.float32)
        total = tl.where(switch == kh * KW + kw, total + v, total)
    if RECTIFY:
        total = tl.where(total <= 0.0, 0.0, total)
    return total


@triton.jit
def _put(x, values, n, row, column, H, W, C, c):
    """Writes the values whose pixels and channels exist."""
    mask = ((row >= 0) & (row < H) & (column >= 0) & (column < W))[:, None] & (c < C)[None, :]
    tl.store(x + _at(n, row, column, H, W, C, c), values.to(x.dtype.element_ty), mask=mask)


@triton.jit
def max_unpool2d_kernel(
    y,
    switches,
    x,
    H,
    W,
    OH,
    OW,
    C,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
    B: tl.constexpr,
    RECTIFY: tl.constexpr,
    UNROLL_CELL: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """x[n,h,w,c] = sum of y over the windows (i,j) that cover (h,w) and whose switch points at it.

    The tile is of cells of SH x SW pixels: pixel (r, q) of cell (a, b) is (a * SH + r - PH, b * SW + q - PW), and the
    windows over it are (a - t, b - u), at taps (r + t * SH, q + u * SW). All lanes then look at the same taps: 9 a cell
    of 3x3 stride-2 windows, against 16 for masked candidates a pixel. A switch that points off the map adds nothing.
    """
    n, a, b, c = _tile(tl.cdiv(H + PH, SH), tl.cdiv(W + PW, SW), ROWS, COLUMNS, BLOCKS, B)
    if UNROLL_CELL:
        # All sums come before the first store, which the loads would otherwise have to wait for.
        sums = ()
        for pixel in tl.static_range(SH * SW):
            r, q = pixel // SW, pixel % SW
            sums = sums + (_sum_at(y, switches, n, a, b, c, r, q, OH, OW, C, KH, KW, SH, SW, RECTIFY, UNROLL),)
        for pixel in tl.static_range(SH * SW):
            row, column = a * SH + pixel // SW - PH, b * SW + pixel % SW - PW
            _put(x, sums[pixel], n, row, column, H, W, C, c)
    else:
        for pixel in range(SH * SW):
            r, q = pixel // SW, pixel % SW
            total = _sum_at(y, switches, n, a, b, c, r, q, OH, OW, C, KH, KW, SH, SW, RECTIFY, UNROLL)
            _put(x, total, n, a * SH + r - PH, b * SW + q - PW, H, W, C, c)


@triton.jit
def max_unpool2d_backward_kernel(
    g,
    switches,
    gy,
    H,
    W,
    OH,
    OW,
    C,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    PH: tl.constexpr,
    PW: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCKS: tl.constexpr,
    B: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """gy[n,i,j,c] = g at the pixel that the switch of window (i,j) points at, 0 where that is off the map.

    Every tap of a window is read, 16 bytes wide and mostly from L1, and the switch's tap kept: a load at the switch
    alone would be one channel wide and touch a cache line of its own.
    """
    n, i, j, c = _tile(OH, OW, ROWS, COLUMNS, BLOCKS, B)
    channel = (c < C)[None, :]
    mask = ((i < OH) & (j < OW))[:, None] & channel
    offset = _at(n, i, j, OH, OW, C, c)
    switch = tl.load(switches + offset, mask=mask, other=0).to(tl.int32)
    picked = tl.zeros((ROWS * COLUMNS, B), g.dtype.element_ty)
    for tap in tl.range(KH * KW, loop_unroll_factor=UNROLL):
        row, column = i * SH - PH + tap // KW, j * SW - PW + tap % KW
        on_map = ((row >= 0) & (row < H) & (column >= 0) & (column < W))[:, None] & channel
        v = tl.load(g + _at(n, row, column, H, W, C, c), mask=on_map, other=0.0)
        picked = tl.where(switch == tap, v, picked)
    tl.store(gy + offset, picked, mask=mask)


class Pool(NamedTuple):
    """A pooling's window; `size` is the pooled map's."""

    kernel: Sides
    stride: Sides
    padding: Sides
    size: Sides


def max_pool2d(x: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides) -> Pooled:
    pool = Pool(kernel_size, stride, padding, output_size)
    y, switches = pooled(x, *x.shape[:2], *pool.size)
    pool_call(max_pool2d_kernel, x.dtype, x.shape, pool)(x=dense(x), y=y, switches=switches)
    return y, switches


def max_unpool2d(
    y: Tensor, switches: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides
) -> Tensor:
    return unpooled(y, switches, Pool(kernel_size, stride, padding, y.shape[2:]), output_size, False)


def unpooled(y: Tensor, switches: Tensor, pool: Pool, size: Sides, rectify: bool) -> Tensor:
    """max_unpool2d's result, rectified in the same pass if `rectify`."""
    x = empty(y, *y.shape[:2], *size)
    unpool_call(y.dtype, x.shape, pool, rectify)(y=dense(y), switches=dense(switches), x=x)
    return x


def max_unpool2d_backward(g: Tensor, switches: Tensor, kernel_size: Sides, stride: Sides, padding: Sides) -> Tensor:
    gy = empty(g, *switches.shape)
    pool = Pool(kernel_size, stride, padding, gy.shape[2:])
    call = pool_call(max_unpool2d_backward_kernel, g.dtype, g.shape, pool)
    call(g=dense(g), switches=dense(switches), gy=gy)
    return gy


def pool_call(kernel: Any, dtype: torch.dtype, shape: Sequence[int], pool: Pool) -> Call:
    """The launch of a kernel whose tiles are of windows, on maps of `shape`."""
    return _call(kernel, shape[0], pool.size, _arguments(dtype, shape, pool))


def unpool_call(dtype: torch.dtype, shape: Sequence[int], pool: Pool, rectify: bool = False) -> Call:
    """max_unpool2d_kernel's launch: tiles are of cells, loops over the pixels of a cell and the windows over each."""
    arguments = _arguments(dtype, shape, pool)
    pixels = pool.stride[0] * pool.stride[1]
    windows = -(-pool.kernel[0] // pool.stride[0]) * -(-pool.kernel[1] // pool.stride[1])
    arguments["UNROLL"] = windows if windows <= UNROLLED else UNROLLED_PART
    arguments |= {"RECTIFY": rectify, "UNROLL_CELL": pixels * windows <= UNROLLED}
    cells = [-(-(size + p) // s) for size, p, s in zip(shape[2:], pool.padding, pool.stride, strict=True)]
    return _call(max_unpool2d_kernel, shape[0], cells, arguments)


def _arguments(dtype: torch.dtype, shape: Sequence[int], pool: Pool) -> dict[str, int]:
    """What the kernels take besides the tensors."""
    _, channels, height, width = shape
    taps = pool.kernel[0] * pool.kernel[1]
    # At least 64 bytes, two whole sectors of memory, and no lane without a channel where 32 divides them.
    block = 32 if channels % 32 == 0 else min(64, power_of_two(channels))
    rows, columns = 8 // dtype.itemsize, COLUMNS
    if INTERPRETED:  # there programs and taps cost time, and values do not
        rows, columns = (8, 8) if taps <= UNROLLED else (64, 64)
    names = ("H", "W", "OH", "OW", "C", "KH", "KW", "SH", "SW", "PH", "PW")
    values = (height, width, *pool.size, channels, *pool.kernel, *pool.stride, *pool.padding)
    return dict(zip(names, values, strict=True)) | {
        "ROWS": rows,
        "COLUMNS": columns,
        "BLOCKS": -(-channels // block),
        "B": block,
        "UNROLL": taps if taps <= UNROLLED else UNROLLED_PART,
    }


def _call(kernel: Any, images: int, size: Sequence[int], arguments: dict[str, int]) -> Call:
    """One program a tile of the `size` windows or cells of each image, and a block of channels."""
    tiles = -(-size[0] // arguments["ROWS"]) * -(-size[1] // arguments["COLUMNS"])
    return Call(kernel, images * tiles * arguments["BLOCKS"], arguments, {"num_warps": THREADS // 32})
