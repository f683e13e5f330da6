"""What makes the steps of a call: one function a kind, given the call's name and its arguments, and giving a `Part`.

A tensor of the model is handed to it as a function that reads it. translate.py says what is made by which.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from ..ops.checks import LARGEST_WINDOW
from ..window import Pair, as_pair
from .rules import Irreversible, Read
from .steps import Copy, Linear, Mean, Norm, Opaque, ReLU, Scale, Step
from .windowed import Affine, Average, AveragePool, Conv, Pad, Pool

NO_REVERSE = (
    "it has no reverse here; Conv2d, ReLU, ReLU6, LeakyReLU, MaxPool2d, average pooling, LocalResponseNorm, BatchNorm, "
    "Dropout, Linear, flattening to vectors, sums, concatenations of maps and the modules and functions of zfkernels "
    "have"
)


class Part(NamedTuple):
    """The steps of one call, and what they are to the layers: see Node.role."""

    role: str
    steps: tuple[Step | Opaque, ...] = ()


Sides = int | Sequence[int]
Bias = Read | None
Stride = Sides | None  # None: the window's own size


def pair(value: object) -> Pair:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def conv(
    name: str,
    weight: Read,
    bias: Bias = None,
    stride: Sides = 1,
    padding: Sides | str = 0,
    dilation: Sides = 1,
    groups: int = 1,
) -> Part:
    shape = weight().shape
    kernel, dilation = as_pair(shape[2:]), pair(dilation)
    if isinstance(padding, str):
        total = as_pair((kernel[a] - 1) * dilation[a] if padding == "same" else 0 for a in (0, 1))
        before = as_pair(sides // 2 for sides in total)
        after = as_pair(total[a] - before[a] for a in (0, 1))
    else:
        before = after = pair(padding)
    channels = shape[1] * groups, shape[0]
    conv = Conv(name, weight, bias, channels, kernel, pair(stride), before, after, dilation, groups)
    return Part("layer", (conv,))


def conv_relu(
    name: str,
    weight: Read,
    bias: Bias = None,
    stride: Sides = 1,
    padding: Sides = 0,
    dilation: Sides = 1,
    groups: int = 1,
    *,
    backend: object = None,
) -> Part:
    return Part("layer", (*conv(name, weight, bias, stride, padding, dilation, groups).steps, ReLU(name)))


def pad(name: str, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Part:
    if mode != "constant" or len(pad) not in (2, 4) or min(pad) < 0:
        raise Irreversible(f"a padding of maps must be by a constant on two or four sides, not {mode} {tuple(pad)}")
    left, right, top, bottom = (*pad, 0, 0)[:4]
    return Part("between", (Pad(name, (top, left), (bottom, right), 0.0 if value is None else float(value)),))


def max_pool(
    name: str,
    kernel_size: Sides,
    stride: Stride = None,
    padding: Sides = 0,
    dilation: Sides = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Part:
    if pair(dilation) != (1, 1):
        raise Irreversible(f"its dilation must be 1, not {dilation}")
    if return_indices:
        raise Irreversible("return_indices must be False")
    kernel = pair(kernel_size)
    if math.prod(kernel) > LARGEST_WINDOW:
        raise Irreversible(f"its window {kernel} has more than {LARGEST_WINDOW} pixels")
    return Part("layer", (Pool(name, kernel, pair(stride) if stride else kernel, pair(padding), ceil_mode),))


def max_pool_with_switches(
    name: str,
    kernel_size: Sides,
    stride: Stride = None,
    padding: Sides = 0,
    ceil_mode: bool = False,
    *,
    backend: object = None,
) -> Part:
    return max_pool(name, kernel_size, stride, padding, ceil_mode=ceil_mode)


def conv_relu_max_pool(
    name: str,
    weight: Read,
    bias: Bias,
    stride: Sides,
    padding: Sides,
    pool_kernel: Sides,
    pool_stride: Stride,
    pool_padding: Sides,
    ceil_mode: bool,
    *,
    backend: object = None,
) -> Part:
    """A whole layer in one, whose only name is that of the pooled map."""
    below = conv_relu(name, weight, bias, stride, padding)
    pool = max_pool(name, pool_kernel, pool_stride, pool_padding, ceil_mode=ceil_mode)
    return Part("layer", below.steps + pool.steps)


def contrast_norm(
    name: str,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    *,
    center: bool = False,
    backend: object = None,
) -> Part:
    return Part("layer", (Norm(name, (size, alpha, beta, k, center)),))


def response_norm(name: str, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Part:
    return contrast_norm(name, size, alpha, beta, k)


def relu(name: str, inplace: bool = False) -> Part:
    return Part("part", (ReLU(name),))


def relu6(name: str, inplace: bool = False) -> Part:
    return Part("part", (ReLU(name, cap=6.0),))


def leaky_relu(name: str, negative_slope: float = 0.01, inplace: bool = False) -> Part:
    if not 0 <= negative_slope < math.inf:
        raise Irreversible(f"its negative_slope must be at least 0, not {negative_slope}")
    return Part("part", (ReLU(name, slope=float(negative_slope)),))


def hardtanh(name: str, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Part:
    if min_val != 0 or not max_val > 0:
        raise Irreversible(f"its limits must be 0 and more to be a rectifier's, not {min_val} and {max_val}")
    return Part("part", (ReLU(name, cap=float(max_val)),))


def clamp(name: str, min: object = None, max: object = None) -> Part:
    if not isinstance(min, (int, float)) or not isinstance(max, (int, float, type(None))):
        raise Irreversible(NO_REVERSE)
    return hardtanh(name, min, math.inf if max is None else max)


def threshold(name: str, threshold: float, value: float, inplace: bool = False) -> Part:
    if threshold != 0 or value != 0:
        raise Irreversible(f"its threshold and value must be 0 to be a rectifier's, not {threshold} and {value}")
    return relu(name)


def adaptive_average(name: str, output_size: object) -> Part:
    return Part("between", (Average(name, pair(output_size)),))


def average_pool(
    name: str,
    kernel_size: Sides,
    stride: Stride = None,
    padding: Sides = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Part:
    kernel = pair(kernel_size)
    stride = pair(stride) if stride else kernel
    pool = AveragePool(name, kernel, stride, pair(padding), ceil_mode, count_include_pad, divisor_override)
    return Part("layer", (pool,))


def mean(name: str, dim: object = None, keepdim: bool = False) -> Part:
    if not isinstance(dim, (tuple, list)) or {d % 4 for d in dim} != {2, 3}:
        raise Irreversible(f"a mean must be over the maps' places, (2, 3), not over {dim}")
    return Part("between", (Average(name, (1, 1)) if keepdim else Mean(name),))


def with_number(name: str, operation: str, first: object, second: object) -> Part:
    """A sum, difference, product or quotient of a value, for which None stands, and a number."""
    number = second if first is None else first
    scale: float
    shift: float
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise Irreversible(NO_REVERSE)
    if operation == "mul":
        scale, shift = number, 0
    elif operation == "truediv" and first is None:
        scale, shift = 1 / number, 0
    elif operation == "truediv":
        raise Irreversible("a number divided by it is not linear")
    else:
        scale = -1 if operation == "sub" and second is None else 1
        shift = -number if operation == "sub" and first is None else number
    return Part("between", (Scale(name, float(scale), float(shift)),))


def linear(name: str, weight: Read, bias: Bias = None) -> Part:
    return Part("layer", (Linear(name, weight, bias, as_pair(reversed(weight().shape))),))


def batch_norm(name: str, batch_norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Part:
    if batch_norm.running_mean is None:
        raise Irreversible("it keeps no running mean and variance (track_running_stats=False)")
    return Part("layer", (Affine(name, batch_norm),))


@dataclass(frozen=True)
class _Statistics:
    """What F.batch_norm is given, under the names that a batch norm module has."""

    mean: Read
    var: Read
    scale: Read | None
    shift: Read | None
    eps: float
    training: bool

    running_mean = property(lambda self: self.mean())
    running_var = property(lambda self: self.var())
    weight = property(lambda self: None if self.scale is None else self.scale())
    bias = property(lambda self: None if self.shift is None else self.shift())
    num_features = property(lambda self: len(self.running_mean))


def batch_norm_function(
    name: str,
    running_mean: Read | None,
    running_var: Read | None,
    weight: Read | None = None,
    bias: Bias = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Part:
    if not callable(running_mean) or not callable(running_var):
        raise Irreversible("it is given no running mean and variance")
    return Part("layer", (Affine(name, _Statistics(running_mean, running_var, weight, bias, eps, training)),))


def nothing(name: str, *args: object, **keywords: object) -> Part:
    return Part("part")


def copy(name: str, *, memory_format: torch.memory_format | None = None) -> Part:
    return Part("part", (Copy(name),))


def layout(name: str, *, memory_format: torch.memory_format) -> Part:
    return Part("part")
