"""Whole layers."""

import torch
from torch import Tensor

from ...ops import window
from . import conv, max_pool
from .tensors import Compilation
from .tuning import Target


def conv2d_relu_max_pool2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, pool_kernel, pool_stride, pool_padding, output_size
) -> tuple[Tensor, Tensor]:
    y = conv.conv2d(x, weight, bias, stride, padding, True)
    return max_pool.max_pool2d(y, pool_kernel, pool_stride, pool_padding, output_size)


def max_unpool2d_relu_conv_transpose2d(
    y: Tensor,
    switches: Tensor,
    weight: Tensor,
    stride,
    padding,
    pool_kernel,
    pool_stride,
    pool_padding,
    output_size,
    rectify: bool,
) -> Tensor:
    size = window.conv_map(output_size, weight.shape[2:], stride, padding)
    unpooled = max_pool.max_unpool2d(y, switches, pool_kernel, pool_stride, pool_padding, size)
    return conv.conv_transpose2d(unpooled, weight, stride, padding, output_size, rectify)


def compilations(dtype: torch.dtype, target: Target) -> list[Compilation]:
    return []
