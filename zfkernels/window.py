"""Window arithmetic: kernel, stride, padding, ceil -> sizes, and the receptive field of a stack of windows.

Every function here works on one axis unless it says otherwise, and every part of the package that needs a size asks
this file.
"""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, NamedTuple

import torch

LARGEST = 2**31 - 1
MOST_ELEMENTS = 2**59  # of a tensor: the bytes of more, in float64, are more than torch can count
Pair = tuple[int, int]
Sides = Sequence[int]  # likewise two numbers, such as the end of a tensor's shape


def whole(value: object) -> bool:
    """Is `value` an integer (a traced one and NumPy's included), and no bool?"""
    return type(value) is int or (isinstance(value, (int, torch.SymInt, Integral)) and not isinstance(value, bool))


def count(name: str, value: Any) -> int:
    """`value`, a number of channels or the like; TypeError or ValueError naming `name` unless it is an integer >= 1."""
    if not whole(value):
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not 1 <= value <= LARGEST:
        raise ValueError(f"{name} must be at {'least 1' if value < 1 else f'most {LARGEST}'}, got {value!r}")
    given: int = value
    return given if isinstance(value, (int, torch.SymInt)) else int(value)


def check_holdable(name: str, what: str, shape: Sequence[int], value: object) -> None:
    """ValueError if `what` has this shape, for the `value` of argument `name`, and torch cannot count its bytes."""
    if math.prod(shape) > MOST_ELEMENTS:
        raise ValueError(f"{name} must leave {what} that some memory can hold, got {value}: {tuple(shape)}")


def pair(name: str, value: object, least: int) -> Pair:
    """`value` as a (vertical, horizontal) pair of integers >= `least`; TypeError or ValueError naming `name`."""
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{name} must be an int or a pair of ints (vertical, horizontal), got {value!r}")
        vertical, horizontal = value
    else:
        vertical = horizontal = value
    if torch._C._get_tracing_state() is not None:  # torch.jit.trace hands sizes out as tensors
        vertical, horizontal = (int(v) if isinstance(v, torch.Tensor) else v for v in (vertical, horizontal))
    if not (whole(vertical) and whole(horizontal)):
        raise TypeError(f"{name} must be an int or a pair of ints, got {value!r}")
    if vertical < least or horizontal < least:
        raise ValueError(f"{name} must be at least {least}, got {value!r}")
    if vertical > LARGEST or horizontal > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST}, got {value!r}")
    return vertical, horizontal


def as_pair(values: Iterable[int]) -> Pair:
    """Two values as a pair."""
    vertical, horizontal = values
    return vertical, horizontal


def conv_size(size: int, kernel: int, stride: int, padding: int, dilation: int = 1) -> int:
    """How many windows of `kernel` taps, `dilation` pixels apart, fit into `size` pixels padded on both sides:
    floor((size + 2 padding - ((kernel - 1) dilation + 1)) / stride) + 1."""
    return (size + 2 * padding - (kernel - 1) * dilation - 1) // stride + 1


def pool_size(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """`conv_size`, or with `ceil_mode` one window more when pixels are left over.

    torch's rule: a window that would start beyond the pixels and the left padding is dropped.
    """
    if not ceil_mode:
        return conv_size(size, kernel, stride, padding)
    windows = (size + 2 * padding - kernel + stride - 1) // stride + 1
    return windows - 1 if (windows - 1) * stride >= size + padding else windows


def conv_map(size: Sides, kernel: Sides, stride: Sides, padding: Sides, dilation: Sides = (1, 1)) -> Pair:
    """The (height, width) of a convolution's map over an input of (height, width) `size`."""
    return (
        conv_size(size[0], kernel[0], stride[0], padding[0], dilation[0]),
        conv_size(size[1], kernel[1], stride[1], padding[1], dilation[1]),
    )


def pool_map(size: Sides, kernel: Sides, stride: Sides, padding: Sides, ceil_mode: bool) -> Pair:
    """The (height, width) of a map of (height, width) `size` after pooling."""
    return (
        pool_size(size[0], kernel[0], stride[0], padding[0], ceil_mode),
        pool_size(size[1], kernel[1], stride[1], padding[1], ceil_mode),
    )


def transposed_size(windows: int, kernel: int, stride: int, padding: int) -> int:
    """The smallest size into which exactly `windows` windows fit; `conv_size` undone."""
    return (windows - 1) * stride + kernel - 2 * padding


class Field(NamedTuple):
    """Unit i of a stack sees the input's pixels start + i * stride ... start + i * stride + size - 1."""

    size: int
    stride: int
    start: int


def receptive_field(windows: Iterable[tuple[int, int, int]]) -> Field:
    """The receptive field of a stack of (kernel, stride, padding), the layer nearest the input first."""
    field = Field(1, 1, 0)
    for kernel, stride, padding in windows:
        field = Field(
            field.size + (kernel - 1) * field.stride, field.stride * stride, field.start - padding * field.stride
        )
    return field


def covered(first: int, last: int, kernel: int, stride: int, padding: int) -> Pair:
    """The half-open range of pixels, not clipped to the map, that windows `first` ... `last - 1` look at."""
    return first * stride - padding, (last - 1) * stride - padding + kernel


class Window(NamedTuple):
    """Output (i, j) sees the input's pixels i * stride - padding ... + kernel - 1, vertically, and j's horizontally."""

    kernel: Pair
    stride: Pair
    padding: Pair
