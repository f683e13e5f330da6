"""Tensors in channels-last memory, the addresses and sizes that compiled kernels are told, the switch they refuse."""

from typing import NoReturn

import torch
from torch import Tensor

from ..window import Sides

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


def conv_sizes(
    shape: Sides,
    weight: Tensor,
    output_size: Sides,
    stride: Sides,
    padding: Sides,
    dilation: Sides = (1, 1),
    groups: int = 1,
) -> tuple[int, ...]:
    """csrc/problem.h, struct Conv, for x of this shape."""
    kernel, strides = weight.shape[2:], weight.stride()
    return *shape, weight.shape[0], *output_size, *kernel, *stride, *padding, *strides, *dilation, groups


def refuse_windows(backend: str, dilation: Sides, groups: int) -> None:
    """For a backend that has neither dilated nor grouped convolutions."""
    if tuple(dilation) != (1, 1) or groups != 1:
        raise RuntimeError(
            f"backend {backend!r} has no kernel for dilation {tuple(dilation)} and groups {groups}, only (1, 1) and 1; "
            "use torch.nn.functional.conv2d there, or backend='cpu' or 'reference' on tensors in host memory"
        )


def refuse_averages(backend: str) -> NoReturn:
    """For a backend that has no average pooling."""
    raise RuntimeError(
        f"backend {backend!r} has no kernel for average pooling; use torch.nn.functional.avg_pool2d there, or "
        "backend='cpu' or 'reference' on tensors in host memory"
    )


def finished(y: Tensor, add: Tensor | None, relu: bool, cap: float | None) -> Tensor:
    """y + add, rectified if asked and at most `cap`, in y's memory: for a backend whose kernels do not."""
    if add is not None:
        y += add
    if relu:
        y.relu_()
    return y if cap is None else y.clamp_(max=cap)


def pool_sizes(shape: Sides, output_size: Sides, kernel_size: Sides, stride: Sides, padding: Sides) -> tuple[int, ...]:
    """csrc/problem.h, struct Pool, for a map of this shape."""
    return *shape, *output_size, *kernel_size, *stride, *padding


def bad_switch(
    value: int, place: tuple[int, ...], kernel_size: Sides, stride: Sides, padding: Sides, size: Sides
) -> ValueError:
    """The error for the switch of this value at (n, c, h, w), which a backend found while it unpooled onto `size`."""
    return ValueError(
        f"switches: the value {value} at {place} points outside its {kernel_size[0]}x{kernel_size[1]} window "
        f"(stride {tuple(stride)}, padding {tuple(padding)}) or outside the {size[0]}x{size[1]} map; "
        "expected the switches that max_pool2d_with_switches returned for a map of that size"
    )
