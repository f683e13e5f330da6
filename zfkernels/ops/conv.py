"""Convolution, transposed convolution and weight gradient: one triple, each the others' derivative.

    conv2d               y[n,o,i,j] = bias[o] + sum over c,h,w of weight[o,c,h,w] x[n,c', i*s+h*d-p, j*s+w*d-p]
    conv_transpose2d     its adjoint in x:       <conv2d(x, weight), y> = <x, conv_transpose2d(y, weight)>
    conv2d_weight_grad   its adjoint in weight:  <conv2d(x, weight), g> = <weight, conv2d_weight_grad(x, g)>

All three are linear in each of their two tensors, so these identities are all the derivatives there are, of any order.
c' is channel c of o's group. `weight` has the forward convolution's shape (C_out, C_in / groups, KH, KW) everywhere.
conv2d_add is conv2d with what follows it in a network: the sum with another map, the rectifier, a cap.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import window
from ..backends import module
from ..backends.memory import dense, empty
from ..backends.prepared import PreparedFilters
from ..window import Sides
from . import checks
from .conv_checks import check_addend, check_conv, check_transposed
from .define import Context, Gradients, Inputs, define
from .prepared import opened

ONE = (1, 1)


def conv_size(x: Tensor, weight: Tensor, stride: Sides, padding: Sides, dilation: Sides) -> window.Pair:
    """The (height, width) of a convolution's map."""
    return window.conv_map(x.shape[2:], weight.shape[2:], stride, padding, dilation)


def capped_grad(g: Tensor, y: Tensor, cap: float) -> Tensor:
    """g where 0 < y < cap or y is NaN, else 0: the backward of y = min(cap, max(0, .)), from its result."""
    return rectifier_grad(g, y).masked_fill(y.detach() >= cap, 0)


def rectifier_grad(g: Tensor, y: Tensor) -> Tensor:
    """g where y > 0 or y is NaN, else 0: the backward of y = max(0, .), from its result or its argument."""
    gx: Tensor = torch.ops.aten.threshold_backward(g, y.detach().contiguous(memory_format=torch.channels_last), 0)
    return gx


def conv2d_grads(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sides,
    padding: Sides,
    backend: str,
    needs: Sequence[bool],
    dilation: Sides = ONE,
    groups: int = 1,
) -> Gradients:
    """Those gradients of x, weight and bias that are needed, given that of the convolution's (unrectified) result."""
    gx = gw = gb = None
    needs_bias, grouped = needs[2], (dilation, groups)
    if needs[0]:
        gx = conv_transpose2d(g, weight, stride, padding, x.shape[2:], False, backend, *grouped)
    if needs[1]:
        gw, gb = conv2d_weight_grad(x, g, weight.shape[2:], stride, padding, needs_bias, backend, *grouped)
    elif needs_bias:
        gb = g.sum((0, 2, 3))
    return gx, gw, gb if needs_bias else None


class _Conv2d:
    """y = conv2d(x, weight, bias), rectified with `relu`."""

    @staticmethod
    def fake(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sides, padding: Sides, *rest: Any) -> Tensor:
        _, dilation, *_ = rest
        return empty(x, x.shape[0], weight.shape[0], *conv_size(x, weight, stride, padding, dilation))

    @staticmethod
    def setup_context(ctx: Context, inputs: Inputs, output: Any) -> None:
        x, weight, _, *ctx.settings = inputs
        ctx.save_for_backward(x, weight, output if ctx.settings[2] else None)

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> Gradients:
        x, weight, y = ctx.saved_tensors
        stride, padding, relu, dilation, groups, backend = ctx.settings
        if relu:
            g = rectifier_grad(g, y)
        return conv2d_grads(g, x, weight, stride, padding, backend, ctx.needs_input_grad, dilation, groups)


_conv2d: Callable[..., Tensor] = define(
    "conv2d(Tensor x, Tensor weight, Tensor? bias, int[2] stride, int[2] padding, bool relu, int[2] dilation, "
    "SymInt groups, str backend) -> Tensor",
    _Conv2d,
)


class _Conv2dAdd:
    """y = conv2d(x, weight, bias) + add, rectified with `relu`, and min(y, cap)."""

    @staticmethod
    def fake(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        add: Tensor | None,
        stride: Sides,
        padding: Sides,
        relu: bool,
        cap: float | None,
        dilation: Sides,
        groups: int,
        backend: str,
    ) -> Tensor:
        return empty(x, x.shape[0], weight.shape[0], *conv_size(x, weight, stride, padding, dilation))

    @staticmethod
    def setup_context(ctx: Context, inputs: Inputs, output: Any) -> None:
        x, weight, _, _, *ctx.settings = inputs
        ctx.save_for_backward(x, weight, output if ctx.settings[2] else None)

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> Gradients:
        x, weight, y = ctx.saved_tensors
        stride, padding, relu, cap, dilation, groups, backend = ctx.settings
        if relu:
            g = rectifier_grad(g, y) if cap is None else capped_grad(g, y, cap)
        g, needs = dense(g), ctx.needs_input_grad
        grads = conv2d_grads(g, x, weight, stride, padding, backend, needs, dilation, groups)
        return *grads, g if needs[3] else None


_conv2d_add: Callable[..., Tensor] = define(
    "conv2d_add(Tensor x, Tensor weight, Tensor? bias, Tensor? add, int[2] stride, int[2] padding, bool relu, "
    "float? cap, int[2] dilation, SymInt groups, str backend) -> Tensor",
    _Conv2dAdd,
)


class _ConvTranspose2d:
    """The adjoint of conv2d in x, of y or, with `rectify`, of max(0, y)."""

    @staticmethod
    def fake(y: Tensor, weight: Tensor, stride: Sides, padding: Sides, output_size: Sides, *rest: Any) -> Tensor:
        *_, groups, _ = rest
        return empty(y, y.shape[0], weight.shape[1] * groups, *output_size)

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> Gradients:
        y, weight = ctx.saved_tensors
        stride, padding, _, rectify, *grouped, backend = ctx.settings
        gy = gw = None
        if ctx.needs_input_grad[0]:
            gy = conv2d(g, weight, None, stride, padding, False, backend, *grouped)
            if rectify:
                gy = rectifier_grad(gy, y)
        if ctx.needs_input_grad[1]:
            y = torch.relu(y) if rectify else y
            gw, _ = conv2d_weight_grad(g, y, weight.shape[2:], stride, padding, False, backend, *grouped)
        return gy, gw


_conv_transpose2d: Callable[..., Tensor] = define(
    "conv_transpose2d(Tensor y, Tensor weight, int[2] stride, int[2] padding, SymInt[2] output_size, bool rectify, "
    "int[2] dilation, SymInt groups, str backend) -> Tensor",
    _ConvTranspose2d,
)


class _Conv2dWeightGrad:
    """The adjoint of conv2d in weight. Without a bias its gradient is an empty tensor, for an op cannot give None."""

    @staticmethod
    def fake(
        x: Tensor,
        g: Tensor,
        kernel_size: Sides,
        stride: Sides,
        padding: Sides,
        with_bias: bool,
        dilation: Sides,
        groups: int,
        backend: str,
    ) -> tuple[Tensor, Tensor]:
        gw = x.new_empty((g.shape[1], x.shape[1] // groups, *kernel_size))
        return gw, x.new_empty(g.shape[1] if with_bias else 0)

    @staticmethod
    def backward(ctx: Context, ggw: Tensor, ggb: Tensor) -> Gradients:
        x, g = ctx.saved_tensors
        _, stride, padding, with_bias, *grouped, backend = ctx.settings
        gx = gg = None
        if ctx.needs_input_grad[0]:
            gx = conv_transpose2d(g, ggw, stride, padding, x.shape[2:], False, backend, *grouped)
        if ctx.needs_input_grad[1]:
            gg = conv2d(x, ggw, ggb if with_bias else None, stride, padding, False, backend, *grouped)
        return gx, gg


_conv2d_weight_grad: Callable[..., tuple[Tensor, Tensor]] = define(
    "conv2d_weight_grad(Tensor x, Tensor g, SymInt[2] kernel_size, int[2] stride, int[2] padding, bool with_bias, "
    "int[2] dilation, SymInt groups, str backend) -> (Tensor, Tensor)",
    _Conv2dWeightGrad,
)


# The ops, for those who have neither dilation nor groups.


def conv2d(
    x: Tensor,
    weight: Tensor | PreparedFilters,
    bias: Tensor | None,
    stride: Sides,
    padding: Sides,
    relu: bool,
    backend: str,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    return _conv2d(x, weight, bias, stride, padding, relu, dilation, groups, backend)


def conv2d_add(
    x: Tensor,
    weight: Tensor | PreparedFilters,
    bias: Tensor | None,
    add: Tensor | None,
    stride: Sides,
    padding: Sides,
    relu: bool,
    cap: float | None,
    backend: str,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    return _conv2d_add(x, weight, bias, add, stride, padding, relu, cap, dilation, groups, backend)


def conv_transpose2d(
    y: Tensor,
    weight: Tensor | PreparedFilters,
    stride: Sides,
    padding: Sides,
    output_size: Sides,
    rectify: bool,
    backend: str,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    return _conv_transpose2d(y, weight, stride, padding, output_size, rectify, dilation, groups, backend)


def conv2d_weight_grad(
    x: Tensor,
    g: Tensor,
    kernel_size: Sides,
    stride: Sides,
    padding: Sides,
    with_bias: bool,
    backend: str,
    dilation: Sides = ONE,
    groups: int = 1,
) -> tuple[Tensor, Tensor]:
    return _conv2d_weight_grad(x, g, kernel_size, stride, padding, with_bias, dilation, groups, backend)


# The public functions


def conv2d_relu(
    x: Tensor,
    weight: Tensor | PreparedFilters,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    add: Tensor | None = None,
    cap: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """y = max(0, corr(x, weight) + bias + add): a convolution layer and its rectifier in one pass.

    y[n,o,i,j] = max(0, bias[o] + add[n,o,i,j] + sum over c,h,w of weight[o,c,h,w] x[n,c', i s+h d-p, j s+w d-p]), x
    being 0 outside and c' channel c of o's group. Backward: with g masked to y > 0, the input's gradient is the
    transposed convolution of g, the weight's the correlation of x with g, the bias's the sum of g, add's g; one that is
    not needed is not computed.

    Args:
        x: (N, C_in, H, W), float32, float64, bfloat16 or float16, of any strides; N may be 0.
        weight: (C_out, C_in / groups, KH, KW). bias: (C_out,) or None. Both of x's dtype and device. In the place of
            both what `prepare` makes of them.
        stride, padding, dilation: int or (vertical, horizontal) pair; taps lie `dilation` pixels apart.
        groups: into how many groups channels are cut; a divisor of C_in and C_out. Every backend but triton and cuda,
            which have no kernel for groups or dilation and say so.
        add: a map of y's shape, x's dtype and device, or None: a residual network's other branch.
        cap: the most that y may be, 6 for ReLU6, or None; the gradient is 0 there.
        backend: one of `available_backends()`; None takes `use_backend`'s, else the device's best.

    Returns:
        (N, C_out, (H + 2p - (KH - 1) d - 1) // s + 1, (W + 2p - (KW - 1) d - 1) // s + 1), channels-last. NaN stays
        NaN. A weight that is not finite spoils the outputs that it reaches; on triton and cuda, which multiply the
        zeros around the map too, also those where it reaches beyond the map. Half types accumulate in float32. Under
        autocast the tensors are cast to the autocast dtype, as torch's conv2d does (never float64).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape, value or device, named in the message.
        RuntimeError: the backend cannot run here, or does not serve the tensors' device or dtype.

    Source: Zeiler & Fergus, arXiv 1311.2901, section 3; torch.nn.functional.conv2d for the sizes.
    """
    prepared = None
    if isinstance(weight, PreparedFilters):
        prepared, weight, bias = opened(weight, bias, x, backend)
    else:
        x, weight, bias, add = checks.autocast(x, weight, bias, add)
    stride, padding, size, dilation = check_conv(x, weight, bias, stride, padding, dilation, groups)
    if prepared is not None:
        cap = check_addend(add, cap, (x.shape[0], weight.shape[0], *size), x)
        add = None if add is None else add.resolve_neg()
        y: Tensor = module("cpu").conv2d_add(x, prepared, None, add, stride, padding, True, cap, dilation, groups)
        return y
    if add is None and cap is None:
        name = checks.backend(backend, x, "conv2d", weight)
        return _conv2d(x, weight, bias, stride, padding, True, dilation, groups, name)
    cap = check_addend(add, cap, (x.shape[0], weight.shape[0], *size), x)
    name = checks.backend(backend, x, "conv2d", weight)
    return _conv2d_add(x, weight, bias, add, stride, padding, True, cap, dilation, groups, name)


def relu_conv_transpose2d(
    y: Tensor,
    weight: Tensor | PreparedFilters,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    *,
    output_size: int | tuple[int, int],
    rectify: bool = True,
    backend: str | None = None,
) -> Tensor:
    """x = conv_transpose2d(max(0, y), weight): one layer of the deconvnet, rectify then filter with the same filters.

    x[n,c',h,w] = sum over the o of c's group and over the windows (i,j) that cover (h,w) of
    max(0, y[n,o,i,j]) weight[o,c, (h-i s+p)/d, (w-j s+p)/d]: filtering with every filter flipped. No bias.
    With rectify=False it is the plain adjoint of the convolution: <conv(x), y> = <x, relu_conv_transpose2d(y)>.

    Args:
        y: (N, C_out, OH, OW), float32, float64, bfloat16 or float16, of any strides; N may be 0.
        weight: (C_out, C_in / groups, KH, KW), the FORWARD convolution's; of y's dtype and device. In its place what
            `prepare` makes of it.
        stride, padding, dilation, groups: the forward convolution's, as `conv2d_relu`'s.
        output_size: (H, W) of the forward convolution's input, from which it makes y's (OH, OW).
        rectify: whether to rectify y first. backend: as `conv2d_relu`'s.

    Returns:
        (N, C_in, H, W), channels-last. NaN stays NaN. Half types accumulate in float32. Under autocast the tensors are
        cast to the autocast dtype, as torch's conv_transpose2d does (never float64).

    Raises: as `conv2d_relu`.

    Source: Zeiler & Fergus, arXiv 1311.2901, section 2.1 (rectification, filtering).
    """
    prepared = None
    if isinstance(weight, PreparedFilters):
        prepared, weight, _ = opened(weight, None, y, backend, "y")
    else:
        y, weight = checks.autocast(y, weight)
    checks.tensor("y", y, ("N", "C_out", "OH", "OW"))
    checks.flag("rectify", rectify)
    settings = check_transposed(y, weight, stride, padding, output_size, dilation, groups)
    stride, padding, output_size, size, dilation = settings
    if size != tuple(y.shape[2:]):
        least = tuple(
            window.transposed_size(y.shape[2 + a], (weight.shape[2 + a] - 1) * dilation[a] + 1, stride[a], padding[a])
            for a in (0, 1)
        )
        raise ValueError(
            f"output_size must be the size of an input from which the convolution makes y's {tuple(y.shape[2:])}: from "
            f"{least} to {(least[0] + stride[0] - 1, least[1] + stride[1] - 1)}, got {output_size}"
        )
    if prepared is not None:
        transposed = module("cpu").conv_transpose2d
        result: Tensor = transposed(y, prepared, stride, padding, output_size, rectify, dilation, groups)
        return result
    name = checks.backend(backend, y, "conv_transpose2d", weight)
    return _conv_transpose2d(y, weight, stride, padding, output_size, rectify, dilation, groups, name)
