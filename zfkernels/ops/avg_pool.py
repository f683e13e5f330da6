"""Average pooling and its adjoint: both are linear, and each is the other's derivative.

avg_pool2d            y[n,c,i,j] = (sum of x over window (i,j)) / (pixels that the window counts)
avg_pool2d_backward   <avg_pool2d(x), g> = <x, avg_pool2d_backward(g)>
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..backends.memory import empty
from ..window import Sides
from . import checks
from .define import Context, Gradients, Inputs, define
from .max_pool import POOL, pooled_size


def _defined(name: str, adjoint: Callable[[], Callable[..., Tensor]]) -> Callable[..., Tensor]:
    """The op of this name, onto maps of `output_size`; its derivative is `adjoint`'s."""

    class Pooling:
        @staticmethod
        def fake(
            x: Tensor,
            kernel_size: Sides,
            stride: Sides,
            padding: Sides,
            output_size: Sides,
            count_include_pad: bool,
            backend: str,
        ) -> Tensor:
            return empty(x, *x.shape[:2], *output_size)

        @staticmethod
        def setup_context(ctx: Context, inputs: Inputs, output: Any) -> None:
            x, *ctx.settings = inputs
            ctx.input_shape = x.shape

        @staticmethod
        def backward(ctx: Context, g: Tensor) -> Gradients:
            *pool, _, count_include_pad, backend = ctx.settings
            return (adjoint()(g, *pool, ctx.input_shape[2:], count_include_pad, backend),)

    return define(
        f"{name}(Tensor x, SymInt[2] kernel_size, SymInt[2] stride, int[2] padding, SymInt[2] output_size, "
        "bool count_include_pad, str backend) -> Tensor",
        Pooling,
    )


avg_pool2d_op: Callable[..., Tensor] = _defined("avg_pool2d", lambda: avg_pool2d_backward)
avg_pool2d_backward: Callable[..., Tensor] = _defined("avg_pool2d_backward", lambda: avg_pool2d_op)


def avg_pool2d(
    x: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    *,
    backend: str | None = None,
) -> Tensor:
    """y[n,c,i,j] = the mean of x over the window (i,j): `avg_pool2d(x, x.shape[2:])` is the mean of each map.

    The padding around x is zeros, which are counted if `count_include_pad`; what a window of ceil_mode has beyond that
    is never counted. Backward: each gradient, divided by what its window counts, goes to the window's pixels.

    Args:
        x: (N, C, H, W), float32, float64, bfloat16 or float16, of any strides; N may be 0.
        kernel_size: int or (KH, KW). stride: likewise, None for kernel_size.
        padding: int or pair, at most half of kernel_size.
        ceil_mode: whether pixels left over at the end get a window, under torch's rule.
        count_include_pad: whether a window that reaches into the padding is divided by that too.
        backend: one of `available_backends()`; None takes `use_backend`'s, else the device's best. triton and cuda
            have no kernel for it and say so.

    Returns:
        (N, C, OH, OW) of x's dtype, sizes and numbers as torch.nn.functional.avg_pool2d's, channels-last. Half types
        are summed in float32. Under autocast x is pooled in its own dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value, named in the message.
        RuntimeError: the backend cannot run here, has no kernel for it, or does not serve x's device or dtype.

    Source: torch.nn.functional.avg_pool2d.
    """
    checks.tensor("x", x, ("N", "C", "H", "W"))
    kernel, stride, padding = checks.window_of(kernel_size, stride, padding, POOL)
    checks.flag("ceil_mode", ceil_mode)
    checks.flag("count_include_pad", count_include_pad)
    size = pooled_size("x's height and width", x.shape[2:], kernel, stride, padding, ceil_mode, "kernel_size")
    return avg_pool2d_op(x, kernel, stride, padding, size, count_include_pad, checks.backend(backend, x))
