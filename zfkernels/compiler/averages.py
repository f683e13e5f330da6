"""An average pooling, an adaptive one whose windows are alike, and a mean over whole maps, as calls of one kernel.

On channels-last maps of CHANNELS or more it takes no longer than torch's anywhere, and half as long on maps that the
cache holds; others are left to torch.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .. import _C, window
from ..backends.memory import pool_sizes
from .graph import argument
from .kernels import Registers, Run, dense, keeping, last
from .match import Pair, pair
from .memory import Place
from .segments import Native, Operand

CHANNELS = 16
# A window (kernel, stride, padding, ceil_mode, count_include_pad), and whether the result is one value a map.
Found = tuple[tuple[Pair, Pair, Pair, bool, bool], bool]


def average_run(node: fx.Node, place: dict[fx.Node, int], r: Registers, threads: int) -> Run | None:
    """The node by our kernel; None where it is no average or the kernel does not serve it."""
    find, source = FOUND.get(node.target), argument(node, 0, "input")
    if find is None or not isinstance(source, fx.Node):
        return None
    x, out, at = r[place[source]], place[node], place[source]
    if type(x) is not Tensor or x.ndim != 4 or x.numel() == 0 or x.dtype not in (torch.float32, torch.float64):
        return None
    if x.device.type != "cpu" or not dense(x) or x.shape[1] < CHANNELS:
        return None
    found = find(node, (x.shape[2], x.shape[3]))
    if found is None:
        return None
    (kernel, stride, padding, ceil_mode, padded), flat = found
    size = window.pool_map(x.shape[2:], kernel, stride, padding, ceil_mode)
    if min(size) < 1 or any(2 * p > k for p, k in zip(padding, kernel, strict=True)):
        return None  # torch says what is wrong
    sizes, (shape, strides) = pool_sizes(x.shape, size, kernel, stride, padding), last(x.shape[0], x.shape[1], *size)
    shape, strides = (shape[:2], (*strides[:1], 1)) if flat else (shape, strides)
    f64, avg_pool2d, made = x.dtype == torch.float64, _C.avg_pool2d, Place(shape, strides, x.dtype)

    def run(r: Registers) -> None:
        x = r[at]
        y = r[out] = made.of(r, x)
        avg_pool2d(f64, sizes, x.data_ptr(), y.data_ptr(), padded, threads)

    def put(calls: _C.Calls, reads: list[Operand], to: Operand) -> None:
        calls.avg_pool2d(f64, sizes, reads[0], to, padded)

    return keeping(run, None, Native((at,), out, made, put), made)


def pooling(node: fx.Node, size: Pair) -> Found | None:
    kernel, padding = pair(argument(node, 1, "kernel_size")), pair(argument(node, 3, "padding", 0))
    stride = argument(node, 2, "stride")
    stride = kernel if stride in (None, [], ()) else pair(stride)
    ceil_mode, padded = argument(node, 4, "ceil_mode", False), argument(node, 5, "count_include_pad", True)
    if kernel is None or stride is None or padding is None or argument(node, 6, "divisor_override") is not None:
        return None
    plain = isinstance(ceil_mode, bool) and isinstance(padded, bool)
    return ((kernel, stride, padding, ceil_mode, padded), False) if plain else None


def adaptive(node: fx.Node, size: Pair) -> Found | None:
    """Its windows are alike where the number of them divides the map."""
    wanted = pair(argument(node, 1, "output_size"))
    if wanted is None or min(wanted) < 1 or size[0] % wanted[0] or size[1] % wanted[1]:
        return None
    kernel = size[0] // wanted[0], size[1] // wanted[1]
    return (kernel, kernel, (0, 0), False, True), False


def mean(node: fx.Node, size: Pair) -> Found | None:
    """Over height and width."""
    axes, keepdim = argument(node, 1, "dim"), argument(node, 2, "keepdim", False)
    known = isinstance(axes, (tuple, list)) and all(isinstance(axis, int) for axis in axes)
    if not known or sorted(axis % 4 for axis in axes) != [2, 3] or not isinstance(keepdim, bool):
        return None
    if set(node.kwargs) - {"input", "dim", "keepdim"} or len(node.args) > 3:
        return None
    return (size, size, (0, 0), False, True), not keepdim


FOUND: dict[object, Callable[[fx.Node, Pair], Found | None]] = {
    F.avg_pool2d: pooling,
    torch._C._nn.avg_pool2d: pooling,
    F.adaptive_avg_pool2d: adaptive,
    torch.mean: mean,
    "mean": mean,  # a tensor's method
}
