"""Max-pooling with switches, unpooling by them, and the gather at them: each is linear once the switches are fixed.

    max_unpool2d            the adjoint of pooling at fixed switches, and so max-pooling's backward
    max_unpool2d_backward   the adjoint of that: the gather at the switches

A switch is the winner's offset kh*KW + kw inside its own window, one byte.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import window
from ..backends.memory import Pooled, empty, pooled
from ..window import Sides
from . import checks
from .conv_checks import check_output_size
from .define import Context, Gradients, Inputs, define


def mark_switches(ctx: Context, switches: Tensor) -> None:
    ctx.mark_non_differentiable(switches)
    ctx.set_materialize_grads(False)  # no map of zeros as the gradient of the switches


class _MaxPool2d:
    """Each window's largest value, and its place in the window."""

    @staticmethod
    def fake(x: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides, backend: str) -> Pooled:
        return pooled(x, *x.shape[:2], *output_size)

    @staticmethod
    def setup_context(ctx: Context, inputs: Inputs, output: Any) -> None:
        x, *ctx.settings = inputs
        ctx.input_shape = x.shape
        ctx.save_for_backward(output[1])
        mark_switches(ctx, output[1])

    @staticmethod
    def backward(ctx: Context, g: Tensor | None, _: None) -> Gradients:
        (switches,) = ctx.saved_tensors
        *pool, _, backend = ctx.settings
        return (None if g is None else max_unpool2d(g, switches, *pool, ctx.input_shape[2:], backend),)


max_pool2d: Callable[..., tuple[Tensor, Tensor]] = define(
    "max_pool2d(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding, SymInt[2] output_size, str backend) "
    "-> (Tensor, Tensor)",
    _MaxPool2d,
)


class _MaxUnpool2d:
    """The adjoint of max_pool2d at fixed switches."""

    @staticmethod
    def fake(
        y: Tensor, switches: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides, backend: str
    ) -> Tensor:
        return empty(y, *y.shape[:2], *output_size)

    @staticmethod
    def setup_context(ctx: Context, inputs: Inputs, output: Any) -> None:
        _, switches, *ctx.settings = inputs
        ctx.save_for_backward(switches)

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> Gradients:
        (switches,) = ctx.saved_tensors
        *pool, _, backend = ctx.settings
        return max_unpool2d_backward(g, switches, *pool, backend), None


max_unpool2d: Callable[..., Tensor] = define(
    "max_unpool2d(Tensor y, Tensor switches, int[2] kernel_size, int[2] stride, int[2] padding, "
    "SymInt[2] output_size, str backend) -> Tensor",
    _MaxUnpool2d,
)


class _MaxUnpool2dBackward:
    """The gather at the switches, the adjoint of max_unpool2d."""

    @staticmethod
    def fake(g: Tensor, switches: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, backend: str) -> Tensor:
        return empty(g, *switches.shape)

    @staticmethod
    def setup_context(ctx: Context, inputs: Inputs, output: Any) -> None:
        g, switches, *ctx.settings = inputs
        ctx.input_shape = g.shape
        ctx.save_for_backward(switches)

    @staticmethod
    def backward(ctx: Context, gg: Tensor) -> Gradients:
        (switches,) = ctx.saved_tensors
        *pool, backend = ctx.settings
        return max_unpool2d(gg, switches, *pool, ctx.input_shape[2:], backend), None


max_unpool2d_backward: Callable[..., Tensor] = define(
    "max_unpool2d_backward(Tensor g, Tensor switches, int[2] kernel_size, int[2] stride, int[2] padding, str backend) "
    "-> Tensor",
    _MaxUnpool2dBackward,
)


# The public functions

POOL = ("kernel_size", "stride", "padding")


def pooled_size(
    name: str, size: Sides, kernel: Sides, stride: Sides, padding: Sides, ceil_mode: bool, window_name: str
) -> window.Pair:
    """The size that pooling a map of `size` gives; ValueError when no window fits."""
    pooled = window.pool_map(size, kernel, stride, padding, ceil_mode)
    if pooled[0] < 1 or pooled[1] < 1:
        raise ValueError(
            f"{window_name} must fit into {name}, {tuple(size)}, with padding {padding}: no window does; got {kernel}"
        )
    return pooled


def check_unpooled(y: Tensor, size: Sides, kernel: Sides, stride: Sides, padding: Sides, output_size: Sides) -> None:
    """Pooling a map of `size`, which `output_size` stands for, must give y's size, with ceil_mode or without it."""
    _, _, height, width = y.shape
    floor = window.pool_map(size, kernel, stride, padding, False)
    if floor == (height, width):
        return
    ceil = window.pool_map(size, kernel, stride, padding, True)
    if height not in (floor[0], ceil[0]) or width not in (floor[1], ceil[1]):
        raise ValueError(
            f"output_size must be a size from which pooling makes y's {(height, width)}, got {output_size}, which "
            f"makes {floor}, or {ceil} with ceil_mode"
        )


def max_pool2d_with_switches(
    x: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """y[n,c,i,j] = max of x over the window (i,j); switches[n,c,i,j] = kh*KW + kw, the winner's place inside it.

    The first maximum in row-major order wins, NaN is the maximum and the first NaN wins; padding never wins.
    Backward: each gradient goes to its window's winner, and those that meet on one pixel add up (max_unpool2d).

    Args:
        x: (N, C, H, W), float32, float64, bfloat16 or float16, of any strides; N may be 0.
        kernel_size: int or (KH, KW), at most 256 pixels. stride: likewise, None for kernel_size.
        padding: int or pair, at most half of kernel_size.
        ceil_mode: whether pixels left over at the end get a window, under torch's rule.
        backend: one of `available_backends()`; None takes `use_backend`'s, else the device's best.

    Returns:
        y of x's dtype and switches of dtype uint8, (N, C, OH, OW) as torch's max_pool2d, channels-last. Under autocast
        x is pooled in its own dtype. The switches carry no gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value, named in the message.
        RuntimeError: the backend cannot run here, or does not serve x's device or dtype.

    Source: Zeiler & Fergus, arXiv 1311.2901, section 2.1 (unpooling).
    """
    checks.tensor("x", x, ("N", "C", "H", "W"))
    pool = checks.pool_window(kernel_size, stride, padding, POOL)
    checks.flag("ceil_mode", ceil_mode)
    size = pooled_size("x's height and width", x.shape[2:], *pool, ceil_mode, "kernel_size")
    return max_pool2d(x, *pool, size, checks.backend(backend, x))


def max_unpool2d_with_switches(
    y: Tensor,
    switches: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    *,
    output_size: int | tuple[int, int],
    backend: str | None = None,
) -> Tensor:
    """x = the exact adjoint of max-pooling with these switches: every y goes back to the pixel its window chose.

    x[n,c,h,w] = the SUM of y[n,c,i,j] over the windows (i,j) whose switch points at (h,w); 0 where none does. (torch's
    MaxUnpool2d keeps one arbitrary write of those that meet, and loses the others.)
    Backward: gy[n,c,i,j] = g at the pixel the switch points at.

    Args:
        y: (N, C, OH, OW), float32, float64, bfloat16 or float16, of any strides; N may be 0.
        switches: y's shape, dtype uint8, as `max_pool2d_with_switches` returned them.
        kernel_size, stride, padding: the pooling's. output_size: (H, W) of the pooling's input.
        backend: as `max_pool2d_with_switches`'s.

    Returns:
        (N, C, H, W) of y's dtype, channels-last. Under autocast y's dtype stays.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, value or device, named in the message; a
            switch that points outside its window or the map (on a GPU such a switch is passed over).
        RuntimeError: the backend cannot run here, or does not serve y's device or dtype.

    Source: Zeiler & Fergus, arXiv 1311.2901, section 2.1 (unpooling).
    """
    checks.tensor("y", y, ("N", "C", "OH", "OW"))
    checks.switches(switches, y)
    pool = checks.pool_window(kernel_size, stride, padding, POOL)
    output_size = window.pair("output_size", output_size, 1)
    check_output_size(y, y.shape[1], output_size, *pool[1])
    check_unpooled(y, output_size, *pool, output_size)
    return max_unpool2d(y, switches, *pool, output_size, checks.backend(backend, y))
