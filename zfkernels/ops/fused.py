"""The fusions: convolution, rectifier and pooling in one, the same layer run backwards, its weight gradient from the
pooled map's gradient, and pooling with the normalisation after it.

Each gives the result of its parts composed on the same backend. The map between the parts is never kept: the forward
saves the pooled map and the switches, for the rectifier's mask at a window's winner is the pooled value's own sign.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import window
from ..backends import module
from ..backends.memory import Pooled, empty, pooled
from ..backends.prepared import PreparedFilters
from ..window import Sides
from . import checks
from .contrast_norm import check_norm, contrast_norm_backward
from .conv import conv2d, conv2d_grads, conv2d_weight_grad, rectifier_grad
from .conv_checks import check_conv, check_output_size, check_transposed
from .define import Context, Gradients, Inputs, define
from .max_pool import POOL, check_unpooled, mark_switches, max_unpool2d, max_unpool2d_backward, pooled_size
from .prepared import opened


class _Layer:
    """conv2d, rectified, and max_pool2d."""

    @staticmethod
    def fake(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Pooled:
        return pooled(x, x.shape[0], weight.shape[0], *settings[-2])

    @staticmethod
    def setup_context(ctx: Context, inputs: Inputs, output: Any) -> None:
        x, weight, _, *ctx.settings = inputs
        ctx.save_for_backward(x, weight, *output)
        mark_switches(ctx, output[1])

    @staticmethod
    def backward(ctx: Context, g: Tensor | None, _: None) -> Gradients:
        x, weight, y, switches = ctx.saved_tensors
        stride, padding, *pool, _, backend = ctx.settings
        if g is None:
            return None, None, None
        g = rectifier_grad(g, y)
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        if needs_weight and not needs_x:
            gw, gb = layer_weight_grad(x, g, switches, weight.shape[2:], stride, padding, *pool, needs_bias, backend)
            return None, gw, gb if needs_bias else None
        if needs_weight:
            size = window.conv_map(x.shape[2:], weight.shape[2:], stride, padding)
            g = max_unpool2d(g, switches, *pool, size, backend)
            return conv2d_grads(g, x, weight, stride, padding, backend, ctx.needs_input_grad)
        gx = None
        if needs_x:
            gx = layer_reversed(g, switches, weight, stride, padding, *pool, x.shape[2:], False, backend)
        return gx, None, g.sum((0, 2, 3)) if needs_bias else None


layer: Callable[..., tuple[Tensor, Tensor]] = define(
    "conv2d_relu_max_pool2d(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, int[2] pool_kernel, "
    "int[2] pool_stride, int[2] pool_padding, SymInt[2] output_size, str backend) -> (Tensor, Tensor)",
    _Layer,
)


class _LayerWeightGrad:
    """conv2d_weight_grad of the unpooled g, the pooled map's gradient masked to where that map is positive."""

    @staticmethod
    def fake(x: Tensor, g: Tensor, switches: Tensor, kernel_size: Sides, *settings: Any) -> tuple[Tensor, Tensor]:
        return x.new_empty((g.shape[1], x.shape[1], *kernel_size)), x.new_empty(g.shape[1] if settings[-2] else 0)

    @staticmethod
    def backward(ctx: Context, ggw: Tensor, ggb: Tensor) -> Gradients:
        x, g, switches = ctx.saved_tensors
        _, stride, padding, *pool, with_bias, backend = ctx.settings
        gx = gg = None
        if ctx.needs_input_grad[0]:
            gx = layer_reversed(g, switches, ggw, stride, padding, *pool, x.shape[2:], False, backend)
        if ctx.needs_input_grad[1]:
            gg = conv2d(x, ggw, ggb if with_bias else None, stride, padding, False, backend)
            gg = max_unpool2d_backward(gg, switches, *pool, backend)
        return gx, gg, None


layer_weight_grad: Callable[..., tuple[Tensor, Tensor]] = define(
    "conv2d_relu_max_pool2d_weight_grad(Tensor x, Tensor g, Tensor switches, SymInt[2] kernel_size, int[2] stride, "
    "int[2] padding, int[2] pool_kernel, int[2] pool_stride, int[2] pool_padding, bool with_bias, str backend) "
    "-> (Tensor, Tensor)",
    _LayerWeightGrad,
)


class _LayerReversed:
    """conv_transpose2d of the unpooled y."""

    @staticmethod
    def fake(y: Tensor, switches: Tensor, weight: Tensor, *settings: Any) -> Tensor:
        return empty(y, y.shape[0], weight.shape[1], *settings[-3])

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> Gradients:
        y, switches, weight = ctx.saved_tensors
        stride, padding, *pool, output_size, rectify, backend = ctx.settings
        needs_y, _, needs_weight = ctx.needs_input_grad[:3]
        gy = gw = None
        unpooled: Any = None  # made where it is needed
        if needs_weight or rectify:
            size = window.conv_map(output_size, weight.shape[2:], stride, padding)
            unpooled = max_unpool2d(y, switches, *pool, size, backend)
        if needs_y:
            gy = conv2d(g, weight, None, stride, padding, False, backend)
            if rectify:
                gy = rectifier_grad(gy, unpooled)
            gy = max_unpool2d_backward(gy, switches, *pool, backend)
        if needs_weight:
            unpooled = torch.relu(unpooled) if rectify else unpooled
            gw, _ = conv2d_weight_grad(g, unpooled, weight.shape[2:], stride, padding, False, backend)
        return gy, None, gw


layer_reversed: Callable[..., Tensor] = define(
    "max_unpool2d_relu_conv_transpose2d(Tensor y, Tensor switches, Tensor weight, int[2] stride, int[2] padding, "
    "int[2] pool_kernel, int[2] pool_stride, int[2] pool_padding, SymInt[2] output_size, bool rectify, str backend) "
    "-> Tensor",
    _LayerReversed,
)


class _PoolNorm:
    """max_pool2d and contrast_norm of its map."""

    @staticmethod
    def fake(
        x: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides, *norm_and_backend: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        shape = *x.shape[:2], *output_size
        return *pooled(x, *shape), empty(x, *shape)

    @staticmethod
    def setup_context(ctx: Context, inputs: Inputs, output: Any) -> None:
        x, *ctx.settings = inputs
        ctx.input_shape = x.shape
        ctx.save_for_backward(*output[:2])
        mark_switches(ctx, output[1])

    @staticmethod
    def backward(ctx: Context, g: Tensor | None, _: None, gn: Tensor | None) -> Gradients:
        y, switches = ctx.saved_tensors
        pool, norm, backend = ctx.settings[:3], ctx.settings[4:-1], ctx.settings[-1]
        if gn is not None:
            gn = contrast_norm_backward(gn, y, *norm, backend)
            g = gn if g is None else g + gn
        return (None if g is None else max_unpool2d(g, switches, *pool, ctx.input_shape[2:], backend),)


pool_norm: Callable[..., tuple[Tensor, Tensor, Tensor]] = define(
    "max_pool2d_contrast_norm(Tensor x, int[2] kernel_size, int[2] stride, int[2] padding, SymInt[2] output_size, "
    "SymInt size, float alpha, float beta, float k, bool center, str backend) -> (Tensor, Tensor, Tensor)",
    _PoolNorm,
)


# The public functions

LAYER_POOL = ("pool_kernel", "pool_stride", "pool_padding")


def conv2d_relu_max_pool2d(
    x: Tensor,
    weight: Tensor | PreparedFilters,
    bias: Tensor | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    pool_kernel: int | tuple[int, int],
    pool_stride: int | tuple[int, int] | None,
    pool_padding: int | tuple[int, int],
    ceil_mode: bool,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """y, switches = max_pool2d_with_switches(conv2d_relu(x, weight, bias, stride, padding), pool_...): a whole layer.

    The same result as the two parts on the same backend, without the convolution's map in memory: values are rounded
    to the dtype before a window compares them, so ties fall alike. Backward: g masked to y > 0, unpooled by the
    switches, then the convolution's gradients; one that is not needed is not computed.

    Args:
        x, weight, bias, stride, padding, backend: as `conv2d_relu`'s.
        pool_kernel, pool_stride, pool_padding, ceil_mode: as `max_pool2d_with_switches`'s.

    Returns:
        y (N, C_out, PH, PW) of x's dtype and switches of dtype uint8, channels-last. Under autocast x, weight and bias
        are cast to the autocast dtype, as torch's conv2d does (never float64). The switches carry no gradient.

    Raises: as `conv2d_relu`.

    Source: Zeiler & Fergus, arXiv 1311.2901, figure 3 (layers 1, 2 and 5).
    """
    prepared = None
    if isinstance(weight, PreparedFilters):
        prepared, weight, bias = opened(weight, bias, x, backend)
    else:
        x, weight, bias = checks.autocast(x, weight, bias)
    stride, padding, conv_size, _ = check_conv(x, weight, bias, stride, padding)
    pool = checks.pool_window(pool_kernel, pool_stride, pool_padding, LAYER_POOL)
    checks.flag("ceil_mode", ceil_mode)
    size = pooled_size("the convolution's map", conv_size, *pool, ceil_mode, "pool_kernel")
    if prepared is not None:
        made: Pooled = module("cpu").conv2d_relu_max_pool2d(x, prepared, None, stride, padding, *pool, size)
        return made
    name = checks.backend(backend, x, "conv2d_relu_max_pool2d", weight)
    return layer(x, weight, bias, stride, padding, *pool, size, name)


def max_unpool2d_relu_conv_transpose2d(
    y: Tensor,
    switches: Tensor,
    weight: Tensor | PreparedFilters,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    pool_kernel: int | tuple[int, int],
    pool_stride: int | tuple[int, int] | None,
    pool_padding: int | tuple[int, int],
    *,
    output_size: int | tuple[int, int],
    rectify: bool = True,
    backend: str | None = None,
) -> Tensor:
    """x = relu_conv_transpose2d(max_unpool2d_with_switches(y, switches, ...), weight, ...): a layer run backwards.

    Unpool y by its switches, rectify, filter with the transposed filters: one whole layer of the deconvnet, without the
    unpooled map in memory. rectify=False gives the plain adjoint of the layer at fixed switches.

    Args:
        y: (N, C_out, PH, PW), float32, float64, bfloat16 or float16, of any strides; N may be 0.
        switches: y's shape, dtype uint8, as the forward layer returned them.
        weight: (C_out, C_in, KH, KW), the FORWARD convolution's; of y's dtype and device. In its place what `prepare`
            makes of it.
        stride, padding, pool_kernel, pool_stride, pool_padding: the forward layer's.
        output_size: (H, W) of the forward layer's input.
        rectify: whether to rectify the unpooled map. backend: as `conv2d_relu`'s.

    Returns:
        (N, C_in, H, W) of y's dtype, channels-last. Under autocast y and weight are cast to the autocast dtype (never
        float64).

    Raises: as `max_unpool2d_with_switches`.

    Source: Zeiler & Fergus, arXiv 1311.2901, section 2.1.
    """
    prepared = None
    if isinstance(weight, PreparedFilters):
        prepared, weight, _ = opened(weight, None, y, backend, "y")
    else:
        y, weight = checks.autocast(y, weight)
    checks.tensor("y", y, ("N", "C_out", "PH", "PW"))
    checks.switches(switches, y)
    checks.flag("rectify", rectify)
    stride, padding, output_size, conv_size, _ = check_transposed(y, weight, stride, padding, output_size)
    pool = checks.pool_window(pool_kernel, pool_stride, pool_padding, LAYER_POOL)
    check_output_size(y, max(weight.shape[:2]), output_size, *pool[1])
    if conv_size[0] < 1 or conv_size[1] < 1:
        raise ValueError(
            f"output_size must be at least weight's window {tuple(weight.shape[2:])} less twice padding {padding}, "
            f"got {output_size}"
        )
    check_unpooled(y, conv_size, *pool, output_size)
    if prepared is not None:
        reverse = module("cpu").max_unpool2d_relu_conv_transpose2d
        result: Tensor = reverse(y, switches, prepared, stride, padding, *pool, output_size, rectify)
        return result
    name = checks.backend(backend, y, "max_unpool2d_relu_conv_transpose2d", weight)
    return layer_reversed(y, switches, weight, stride, padding, *pool, output_size, rectify, name)


def max_pool2d_contrast_norm(
    x: Tensor,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    *,
    center: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, switches = max_pool2d_with_switches(x, ...); z = contrast_norm(y, ...): both, reading the pooled map once.

    The same results as the two calls on the same backend. Backward: z's gradient through the norm at y, plus y's own,
    each sent to its window's winner. It has no second derivative through z.

    Args:
        x, kernel_size, stride, padding, ceil_mode, backend: as `max_pool2d_with_switches`'s.
        size, alpha, beta, k, center: as `contrast_norm`'s.

    Returns:
        y of x's dtype, switches of dtype uint8 and z of x's dtype, (N, C, OH, OW) each, channels-last. Under autocast
        x's dtype stays. The switches carry no gradient.

    Raises: as `contrast_norm`.

    Source: Zeiler & Fergus, arXiv 1311.2901, figure 3 (layers 1 and 2).
    """
    checks.tensor("x", x, ("N", "C", "H", "W"))
    pool = checks.pool_window(kernel_size, stride, padding, POOL)
    checks.flag("ceil_mode", ceil_mode)
    output_size = pooled_size("x's height and width", x.shape[2:], *pool, ceil_mode, "kernel_size")
    alpha, beta, k = check_norm(size, alpha, beta, k, center)
    return pool_norm(x, *pool, output_size, size, alpha, beta, k, center, checks.backend(backend, x))
