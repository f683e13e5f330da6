"""Cross-map contrast normalisation.

With window W(c) = {c - size//2, ..., c - size//2 + size - 1} cut to the maps that exist:

    center=False   d_c = x_c
    center=True    d_c = x_c - mean over j in W(c) of x_j
    s_c = k + alpha/size * sum over j in W(c) of d_j^2
    y_c = d_c * s_c^(-beta)

Backward, for a gradient g of y:

    t_c  = g_c d_c s_c^(-beta-1)
    gd_j = g_j s_j^(-beta) - 2 alpha beta / size * d_j * sum over the c with j in W(c) of t_c
    center=False   gx_j = gd_j
    center=True    gx_j = gd_j - sum over the c with j in W(c) of gd_c / |W(c)|

The sums over {c : j in W(c)} run over the mirrored window, which differs from W(j) for even sizes.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .. import window
from ..backends.memory import empty
from . import checks
from .define import Context, Gradients, Inputs, define


class _ContrastNorm:
    """The formula above."""

    @staticmethod
    def fake(x: Tensor, size: int, alpha: float, beta: float, k: float, center: bool, backend: str) -> Tensor:
        return empty(x, *x.shape)

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> Gradients:
        (x,) = ctx.saved_tensors
        return (contrast_norm_backward(g, x, *ctx.settings),)


contrast_norm_op: Callable[..., Tensor] = define(
    "contrast_norm(Tensor x, SymInt size, float alpha, float beta, float k, bool center, str backend) -> Tensor",
    _ContrastNorm,
)


class _ContrastNormBackward:
    """Its vector-Jacobian product, the formula above; it cannot be differentiated."""

    @staticmethod
    def fake(
        g: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, center: bool, backend: str
    ) -> Tensor:
        return empty(x, *x.shape)

    @staticmethod
    def setup_context(ctx: Context, inputs: Inputs, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Context, gg: Tensor) -> Gradients:
        raise RuntimeError(
            "contrast_norm has no second derivative: its backward cannot be differentiated; use "
            "torch.nn.functional.local_response_norm where a second derivative is needed"
        )


contrast_norm_backward: Callable[..., Tensor] = define(
    "contrast_norm_backward(Tensor g, Tensor x, int size, float alpha, float beta, float k, bool center, "
    "str backend) -> Tensor",
    _ContrastNormBackward,
)


def check_norm(size: int, alpha: float, beta: float, k: float, center: bool) -> tuple[float, float, float]:
    """Check a norm's settings; alpha, beta and k as floats."""
    if not window.whole(size):
        raise TypeError(f"size must be an int, got {size!r}")
    if size < 1 or size > window.LARGEST:
        raise ValueError(f"size must be from 1 to {window.LARGEST}, got {size!r}")
    alpha = checks.number("alpha", alpha)
    beta = checks.number("beta", beta)
    k = checks.number("k", k)
    if alpha < 0:
        raise ValueError(f"alpha must be at least 0, got {alpha!r}")
    if k <= 0:
        raise ValueError(f"k must be above 0, got {k!r}")
    checks.flag("center", center)
    return alpha, beta, k


def contrast_norm(
    x: Tensor,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    *,
    center: bool = False,
    backend: str | None = None,
) -> Tensor:
    """y_c = d_c * (k + alpha/size * sum over j in W(c) of d_j^2)^(-beta): normalise each pixel across maps.

    W(c) = {c - size//2, ..., c - size//2 + size - 1}, cut to the maps that exist. With center=False d is x, and y
    equals torch's local_response_norm (Krizhevsky's paper does not divide alpha by size: pass alpha*size). With
    center=True d_c = x_c - the mean of x over W(c), and a stack that is constant across maps becomes 0.
    Backward: the module's docstring gives the formula; it has no second derivative. It keeps x and nothing else.

    Args:
        x: (N, C, H, W), float32, float64, bfloat16 or float16, of any strides; N may be 0.
        size: maps in the window, at least 1; may exceed C.
        alpha: at least 0. beta: any finite number. k: above 0, so that the denominator is never 0.
        center: whether to subtract the window's mean first.
        backend: one of `available_backends()`; None takes `use_backend`'s, else the device's best.

    Returns:
        x's shape and dtype, channels-last. Under autocast x's dtype stays.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or value, named in the message.
        RuntimeError: the backend cannot run here, or does not serve x's device or dtype.

    Source: Krizhevsky et al. 2012, section 3.3; cuda-convnet's convContrastNormCrossMap; torch's local_response_norm.
    """
    checks.tensor("x", x, ("N", "C", "H", "W"))
    alpha, beta, k = check_norm(size, alpha, beta, k, center)
    return contrast_norm_op(x, size, alpha, beta, k, center, checks.backend(backend, x))
