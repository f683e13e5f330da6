"""Convolution, transposed convolution and weight gradient: one triple, each the others' derivative.

    conv2d               y[n,o,i,j] = bias[o] + sum over c,h,w of weight[o,c,h,w] x[n,c, i*s+h-p, j*s+w-p]
    conv_transpose2d     its adjoint in x:       <conv2d(x, weight), y> = <x, conv_transpose2d(y, weight)>
    conv2d_weight_grad   its adjoint in weight:  <conv2d(x, weight), g> = <weight, conv2d_weight_grad(x, g)>

All three are linear in each of their two tensors, so these identities are all the derivatives there are, of any order.
`weight` has the forward convolution's shape (C_out, C_in, KH, KW) everywhere.
"""

import torch
from torch import Tensor

from .. import window
from ..backends.memory import empty
from . import checks
from .define import define


def rectifier_grad(g: Tensor, y: Tensor) -> Tensor:
    """g where y > 0 or y is NaN, else 0: the backward of y = max(0, .), from its result or its argument."""
    return torch.ops.aten.threshold_backward(g, y.detach().contiguous(memory_format=torch.channels_last), 0)


def conv2d_grads(g, x, weight, stride, padding, backend, needs):
    """Those gradients of x, weight and bias that are needed, given that of the convolution's (unrectified) result."""
    gx = gw = gb = None
    needs_bias = needs[2]
    if needs[0]:
        gx = conv_transpose2d(g, weight, stride, padding, x.shape[2:], False, backend)
    if needs[1]:
        gw, gb = conv2d_weight_grad(x, g, weight.shape[2:], stride, padding, needs_bias, backend)
    elif needs_bias:
        gb = g.sum((0, 2, 3))
    return gx, gw, gb if needs_bias else None


class _Conv2d:
    """y = conv2d(x, weight, bias), rectified with `relu`."""

    def fake(x, weight, bias, stride, padding, relu, backend):
        return empty(x, x.shape[0], weight.shape[0], *window.conv_map(x.shape[2:], weight.shape[2:], stride, padding))

    def setup_context(ctx, inputs, output):
        x, weight, _, *ctx.settings = inputs
        ctx.save_for_backward(x, weight, output if ctx.settings[2] else None)

    def backward(ctx, g):
        x, weight, y = ctx.saved_tensors
        stride, padding, relu, backend = ctx.settings
        if relu:
            g = rectifier_grad(g, y)
        return conv2d_grads(g, x, weight, stride, padding, backend, ctx.needs_input_grad)


conv2d = define(
    "conv2d(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, bool relu, str backend) -> Tensor",
    _Conv2d,
)


class _ConvTranspose2d:
    """The adjoint of conv2d in x, of y or, with `rectify`, of max(0, y)."""

    def fake(y, weight, stride, padding, output_size, rectify, backend):
        return empty(y, y.shape[0], weight.shape[1], *output_size)

    def backward(ctx, g):
        y, weight = ctx.saved_tensors
        stride, padding, _, rectify, backend = ctx.settings
        gy = gw = None
        if ctx.needs_input_grad[0]:
            gy = conv2d(g, weight, None, stride, padding, False, backend)
            if rectify:
                gy = rectifier_grad(gy, y)
        if ctx.needs_input_grad[1]:
            y = torch.relu(y) if rectify else y
            gw, _ = conv2d_weight_grad(g, y, weight.shape[2:], stride, padding, False, backend)
        return gy, gw


conv_transpose2d = define(
    "conv_transpose2d(Tensor y, Tensor weight, int[2] stride, int[2] padding, SymInt[2] output_size, bool rectify, "
    "str backend) -> Tensor",
    _ConvTranspose2d,
)


class _Conv2dWeightGrad:
    """The adjoint of conv2d in weight. Without a bias its gradient is an empty tensor, for an op cannot give None."""

    def fake(x, g, kernel_size, stride, padding, with_bias, backend):
        gw = x.new_empty((g.shape[1], x.shape[1], *kernel_size))
        return gw, x.new_empty(g.shape[1] if with_bias else 0)

    def backward(ctx, ggw, ggb):
        x, g = ctx.saved_tensors
        _, stride, padding, with_bias, backend = ctx.settings
        gx = gg = None
        if ctx.needs_input_grad[0]:
            gx = conv_transpose2d(g, ggw, stride, padding, x.shape[2:], False, backend)
        if ctx.needs_input_grad[1]:
            gg = conv2d(x, ggw, ggb if with_bias else None, stride, padding, False, backend)
        return gx, gg


conv2d_weight_grad = define(
    "conv2d_weight_grad(Tensor x, Tensor g, SymInt[2] kernel_size, int[2] stride, int[2] padding, bool with_bias, "
    "str backend) -> (Tensor, Tensor)",
    _Conv2dWeightGrad,
)


# The public functions


def check_conv(x, weight, bias, stride, padding) -> tuple[window.Pair, window.Pair, window.Pair]:
    """Check a convolution's arguments; stride, padding and the result's size as pairs."""
    checks.tensor("x", x, ("N", "C_in", "H", "W"))
    checks.tensor("weight", weight, ("C_out", "C_in", "KH", "KW"))
    checks.alike("weight", weight, "x", x)
    _, channels, *input_size = x.shape
    filters, depth, *kernel_size = weight.shape
    if depth != channels:
        raise ValueError(
            f"weight must have x's {channels} channels as its second dimension (C_out, C_in, KH, KW), "
            f"got shape {tuple(weight.shape)} for x of shape {tuple(x.shape)}"
        )
    if bias is not None:
        checks.tensor("bias", bias, ("C_out",))
        checks.alike("bias", bias, "x", x)
        if bias.shape[0] != filters:
            raise ValueError(f"bias must have shape ({filters},), one value a filter, got {tuple(bias.shape)}")
    stride, padding = window.pair("stride", stride, 1), window.pair("padding", padding, 0)
    size = window.conv_map(input_size, kernel_size, stride, padding)
    if size[0] < 1 or size[1] < 1:
        raise ValueError(
            f"weight's window {tuple(kernel_size)} must fit into x's height and width {tuple(input_size)} with padding "
            f"{padding}"
        )
    return stride, padding, size


def check_transposed(y, weight, stride, padding, output_size) -> tuple[window.Pair, ...]:
    """Check a transposed convolution's weight and window; stride, padding, output_size and the map's size as pairs."""
    checks.tensor("weight", weight, ("C_out", "C_in", "KH", "KW"))
    checks.alike("weight", weight, "y", y)
    if weight.shape[0] != y.shape[1]:
        raise ValueError(
            f"weight must have y's {y.shape[1]} channels as its first dimension (C_out, C_in, KH, KW: the forward "
            f"convolution's shape), got shape {tuple(weight.shape)} for y of shape {tuple(y.shape)}"
        )
    stride, padding = window.pair("stride", stride, 1), window.pair("padding", padding, 0)
    output_size = window.pair("output_size", output_size, 1)
    return stride, padding, output_size, window.conv_map(output_size, weight.shape[2:], stride, padding)


def conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    *,
    backend: str | None = None,
) -> Tensor:
    """y = max(0, corr(x, weight) + bias): a convolution layer and its rectifier in one pass.

    y[n,o,i,j] = max(0, bias[o] + sum over c,h,w of weight[o,c,h,w] x[n,c, i*s+h-p, j*s+w-p]), x being 0 outside.
    Backward: with g masked to y > 0, the input's gradient is the transposed convolution of g, the weight's the
    correlation of x with g, the bias's the sum of g; one that is not needed is not computed.

    Args:
        x: (N, C_in, H, W), float32, float64, bfloat16 or float16, of any strides; N may be 0.
        weight: (C_out, C_in, KH, KW). bias: (C_out,) or None. Both of x's dtype and device.
        stride, padding: int or (vertical, horizontal) pair.
        backend: one of `available_backends()`; None takes `use_backend`'s, else the device's best.

    Returns:
        (N, C_out, (H + 2p - KH) // s + 1, (W + 2p - KW) // s + 1), channels-last. NaN stays NaN. Half types accumulate
        in float32. Under autocast the tensors are cast to the autocast dtype, as torch's conv2d does (never float64).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, value or device, named in the message.
        RuntimeError: the backend cannot run here, or does not serve the tensors' device or dtype.

    Source: Zeiler & Fergus, arXiv 1311.2901, section 3; torch.nn.functional.conv2d for the sizes.
    """
    x, weight, bias = checks.autocast(x, weight, bias)
    stride, padding, _ = check_conv(x, weight, bias, stride, padding)
    return conv2d(x, weight, bias, stride, padding, True, checks.backend(backend, x))


def relu_conv_transpose2d(
    y: Tensor,
    weight: Tensor,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    *,
    output_size: int | tuple[int, int],
    rectify: bool = True,
    backend: str | None = None,
) -> Tensor:
    """x = conv_transpose2d(max(0, y), weight): one layer of the deconvnet, rectify then filter with the same filters.

    x[n,c,h,w] = sum over o and over the windows (i,j) that cover (h,w) of
    max(0, y[n,o,i,j]) weight[o,c, h-i*s+p, w-j*s+p]: filtering with every filter flipped. No bias.
    With rectify=False it is the plain adjoint of the convolution: <conv(x), y> = <x, relu_conv_transpose2d(y)>.

    Args:
        y: (N, C_out, OH, OW), float32, float64, bfloat16 or float16, of any strides; N may be 0.
        weight: (C_out, C_in, KH, KW), the FORWARD convolution's; of y's dtype and device.
        stride, padding: the forward convolution's; int or (vertical, horizontal) pair.
        output_size: (H, W) of the forward convolution's input, from which it makes y's (OH, OW).
        rectify: whether to rectify y first. backend: as `conv2d_relu`'s.

    Returns:
        (N, C_in, H, W), channels-last. NaN stays NaN. Half types accumulate in float32. Under autocast the tensors are
        cast to the autocast dtype, as torch's conv_transpose2d does (never float64).

    Raises: as `conv2d_relu`.

    Source: Zeiler & Fergus, arXiv 1311.2901, section 2.1 (rectification, filtering).
    """
    y, weight = checks.autocast(y, weight)
    checks.tensor("y", y, ("N", "C_out", "OH", "OW"))
    checks.flag("rectify", rectify)
    stride, padding, output_size, size = check_transposed(y, weight, stride, padding, output_size)
    if size != tuple(y.shape[2:]):
        least = tuple(
            window.transposed_size(y.shape[2 + a], weight.shape[2 + a], stride[a], padding[a]) for a in (0, 1)
        )
        raise ValueError(
            f"output_size must be the size of an input from which the convolution makes y's {tuple(y.shape[2:])}: from "
            f"{least} to {(least[0] + stride[0] - 1, least[1] + stride[1] - 1)}, got {output_size}"
        )
    return conv_transpose2d(y, weight, stride, padding, output_size, rectify, checks.backend(backend, y))
