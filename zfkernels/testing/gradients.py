"""The gradients of every op in float64, each formula written with the reference's primitives."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..window import Pair, conv_map

Arguments = tuple[Any, ...]
Gradients = tuple[Tensor | None, ...]


def expected(op: str, arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    """Of each tensor argument of `op`, for these gradients of its outputs; all in float64.

    `outputs` are the results of the backend that is checked: its rectifier's mask and its switches are taken as found,
    for they are checked with the forward pass.
    """
    return FORMULAS[op](arguments, outputs, gradients)


def masked(g: Tensor, y: Tensor) -> Tensor:
    return torch.where(y <= 0, 0.0, g)


def of_convolution(
    g: Tensor, x: Tensor, weight: Tensor, stride: Pair, padding: Pair, dilation: Pair = (1, 1), groups: int = 1
) -> Gradients:
    grouped = dilation, groups
    gx = reference.conv_transpose2d(g, weight, stride, padding, x.shape[2:], False, *grouped)
    gw, gb = reference.conv2d_weight_grad(x, g, weight.shape[2:], stride, padding, True, *grouped)
    return gx, gw, gb


def _conv2d(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    x, weight, _, stride, padding, relu, *grouped = arguments
    g = masked(gradients[0], outputs[0]) if relu else gradients[0]
    return of_convolution(g, x, weight, stride, padding, *grouped)


def _conv2d_add(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    x, weight, _, _, stride, padding, relu, cap, *grouped = arguments
    g = masked(gradients[0], outputs[0]) if relu else gradients[0]
    g = g if cap is None else torch.where(outputs[0] >= cap, 0.0, g)
    return *of_convolution(g, x, weight, stride, padding, *grouped), g


def _conv_transpose2d(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    y, weight, stride, padding, _, rectify, *grouped = arguments
    gy = reference.conv2d(gradients[0], weight, None, stride, padding, False, *grouped)
    values = y.relu() if rectify else y
    gw, _ = reference.conv2d_weight_grad(gradients[0], values, weight.shape[2:], stride, padding, False, *grouped)
    return masked(gy, y) if rectify else gy, gw


def _conv2d_weight_grad(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    x, g, _, stride, padding, with_bias, *grouped = arguments
    ggw, ggb = gradients
    gx = reference.conv_transpose2d(g, ggw, stride, padding, x.shape[2:], False, *grouped)
    return gx, reference.conv2d(x, ggw, ggb if with_bias else None, stride, padding, False, *grouped)


def _max_pool2d(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    x, kernel, stride, padding, _ = arguments
    return (reference.max_unpool2d(gradients[0], outputs[1], kernel, stride, padding, x.shape[2:]),)


def _max_unpool2d(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    _, switches, *pool, _ = arguments
    return reference.max_unpool2d_backward(gradients[0], switches, *pool), None


def _max_unpool2d_backward(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    g, switches, kernel, stride, padding = arguments
    return reference.max_unpool2d(gradients[0], switches, kernel, stride, padding, g.shape[2:]), None


def _contrast_norm(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    return (reference.contrast_norm_backward(gradients[0], *arguments),)


def _max_pool2d_contrast_norm(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    x, *settings = arguments
    through = reference.contrast_norm_backward(gradients[2], outputs[0], *settings[4:])
    kernel, stride, padding = settings[:3]
    return (reference.max_unpool2d(gradients[0] + through, outputs[1], kernel, stride, padding, x.shape[2:]),)


def _layer(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    x, weight, _, stride, padding, kernel, pool_stride, pool_padding, _ = arguments
    size = conv_map(x.shape[2:], weight.shape[2:], stride, padding)
    g = reference.max_unpool2d(masked(gradients[0], outputs[0]), outputs[1], kernel, pool_stride, pool_padding, size)
    return of_convolution(g, x, weight, stride, padding)


def _layer_weight_grad(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    x, g, switches, kernel, stride, padding, *pool, with_bias = arguments
    ggw, ggb = gradients
    size, (pool_kernel, pool_stride, pool_padding) = conv_map(x.shape[2:], kernel, stride, padding), pool
    unpooled = reference.max_unpool2d(g, switches, pool_kernel, pool_stride, pool_padding, size)
    gx = reference.conv_transpose2d(unpooled, ggw, stride, padding, x.shape[2:], False)
    gg = reference.conv2d(x, ggw, ggb if with_bias else None, stride, padding, False)
    return gx, reference.max_unpool2d_backward(gg, switches, *pool), None


def _layer_reversed(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    y, switches, weight, stride, padding, *pool, size, rectify = arguments
    middle, (kernel, pool_stride, pool_padding) = conv_map(size, weight.shape[2:], stride, padding), pool
    unpooled = reference.max_unpool2d(y, switches, kernel, pool_stride, pool_padding, middle)
    gu = reference.conv2d(gradients[0], weight, None, stride, padding, False)
    gu = masked(gu, unpooled) if rectify else gu
    unpooled = unpooled.relu() if rectify else unpooled
    gw, _ = reference.conv2d_weight_grad(gradients[0], unpooled, weight.shape[2:], stride, padding, False)
    return reference.max_unpool2d_backward(gu, switches, *pool), None, gw


def _linear(arguments: Arguments, outputs: Arguments, gradients: Arguments) -> Gradients:
    x, weight, _ = arguments
    return gradients[0] @ weight, gradients[0].T @ x, gradients[0].sum(0)


FORMULAS: dict[str, Callable[[Arguments, Arguments, Arguments], Gradients]] = {
    "conv2d": _conv2d,
    "conv2d_add": _conv2d_add,
    "conv_transpose2d": _conv_transpose2d,
    "conv2d_weight_grad": _conv2d_weight_grad,
    "max_pool2d": _max_pool2d,
    "max_unpool2d": _max_unpool2d,
    "max_unpool2d_backward": _max_unpool2d_backward,
    "contrast_norm": _contrast_norm,
    "max_pool2d_contrast_norm": _max_pool2d_contrast_norm,
    "conv2d_relu_max_pool2d": _layer,
    "conv2d_relu_max_pool2d_weight_grad": _layer_weight_grad,
    "max_unpool2d_relu_conv_transpose2d": _layer_reversed,
    "linear": _linear,
}
