"""Tensors in channels-last memory, the addresses and sizes that compiled kernels are told, the switch they refuse."""

import torch
from torch import Tensor

Grads = tuple[Tensor, Tensor | None]  # of a weight and, if wanted, of its bias
Pooled = tuple[Tensor, Tensor]  # a map and its switches


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised channels-last tensor on `like`'s device: the form of every op's result."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def pooled(like: Tensor, *shape: int) -> Pooled:
    """Where a pooled map of this shape and its switches go."""
    return empty(like, *shape), empty(like, *shape, dtype=torch.uint8)


def dense(x: Tensor) -> Tensor:
    """x in dense channels-last memory: itself, or a copy."""
    return x.contiguous(memory_format=torch.channels_last)


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def conv_sizes(shape, weight: Tensor, output_size, stride, padding) -> tuple[int, ...]:
    """csrc/problem.h, struct Conv, for x of this shape."""
    return *shape, weight.shape[0], *output_size, *weight.shape[2:], *stride, *padding, *weight.stride()


def pool_sizes(shape, output_size, kernel_size, stride, padding) -> tuple[int, ...]:
    """csrc/problem.h, struct Pool, for a map of this shape."""
    return *shape, *output_size, *kernel_size, *stride, *padding


def bad_switch(value: int, place: tuple[int, ...], kernel_size, stride, padding, size) -> ValueError:
    """The error for the switch of this value at (n, c, h, w), which a backend found while it unpooled onto `size`."""
    return ValueError(
        f"switches: the value {value} at {place} points outside its {kernel_size[0]}x{kernel_size[1]} window "
        f"(stride {tuple(stride)}, padding {tuple(padding)}) or outside the {size[0]}x{size[1]} map; "
        "expected the switches that max_pool2d_with_switches returned for a map of that size"
    )
