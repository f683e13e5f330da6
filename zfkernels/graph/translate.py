"""What modules, functions and methods are as steps: two tables from what is called to what makes its steps.

A maker gets the call's name and its arguments and gives a `Part`. A tensor of the model is handed to it as a function
that reads it.
"""

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ..nn import ContrastNorm, ConvReLU, ConvReLUMaxPool, MaxPoolSwitches
from ..nn import Linear as LargeLinear
from ..ops.checks import LARGEST_WINDOW
from ..ops.contrast_norm import contrast_norm
from ..ops.conv import conv2d_relu
from ..ops.fused import conv2d_relu_max_pool2d
from ..ops.max_pool import max_pool2d_with_switches
from ..window import Pair, as_pair
from .rules import Function, Irreversible, Read
from .steps import Copy, Flatten, Linear, Mean, Norm, Opaque, ReLU, Scale, Step
from .windowed import Affine, Average, AveragePool, Conv, Pad, Pool

NO_REVERSE = (
    "it has no reverse here; Conv2d, ReLU, ReLU6, LeakyReLU, MaxPool2d, average pooling, LocalResponseNorm, BatchNorm, "
    "Dropout, Linear, flattening to vectors, sums, concatenations of maps and the modules and functions of zfkernels "
    "have"
)


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class Part(NamedTuple):
    """The steps of one call, and what they are to the layers: see Node.role."""

    role: str
    steps: tuple[Step | Opaque, ...] = ()


Sides = int | Sequence[int]


def _pair(value: object) -> Pair:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


# The makers


def _conv(
    name: str,
    weight: Read,
    bias: Read | None = None,
    stride: Sides = 1,
    padding: Sides | str = 0,
    dilation: Sides = 1,
    groups: int = 1,
) -> Part:
    shape = weight().shape
    kernel, dilation = as_pair(shape[2:]), _pair(dilation)
    if isinstance(padding, str):
        total = as_pair((kernel[a] - 1) * dilation[a] if padding == "same" else 0 for a in (0, 1))
        before = as_pair(sides // 2 for sides in total)
        after = as_pair(total[a] - before[a] for a in (0, 1))
    else:
        before = after = _pair(padding)
    channels = shape[1] * groups, shape[0]
    conv = Conv(name, weight, bias, channels, kernel, _pair(stride), before, after, dilation, groups)
    return Part("layer", (conv,))


def _conv_relu(
    name: str,
    weight: Read,
    bias: Read | None = None,
    stride: Sides = 1,
    padding: Sides = 0,
    *,
    backend: str | None = None,
) -> Part:
    return Part("layer", (*_conv(name, weight, bias, stride, padding).steps, ReLU(name)))


def _pad(name: str, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Part:
    if mode != "constant" or len(pad) not in (2, 4) or min(pad) < 0:
        raise Irreversible(f"a padding of maps must be by a constant on two or four sides, not {mode} {tuple(pad)}")
    left, right, top, bottom = (*pad, 0, 0)[:4]
    return Part("between", (Pad(name, (top, left), (bottom, right), 0.0 if value is None else float(value)),))


def _max_pool(
    name: str,
    kernel_size: Sides,
    stride: Sides | None = None,
    padding: Sides = 0,
    dilation: Sides = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Part:
    if _pair(dilation) != (1, 1):
        raise Irreversible(f"its dilation must be 1, not {dilation}")
    if return_indices:
        raise Irreversible("return_indices must be False")
    kernel = _pair(kernel_size)
    if math.prod(kernel) > LARGEST_WINDOW:
        raise Irreversible(f"its window {kernel} has more than {LARGEST_WINDOW} pixels")
    return Part("layer", (Pool(name, kernel, _pair(stride) if stride else kernel, _pair(padding), ceil_mode),))


def _max_pool_with_switches(
    name: str,
    kernel_size: Sides,
    stride: Sides | None = None,
    padding: Sides = 0,
    ceil_mode: bool = False,
    *,
    backend: str | None = None,
) -> Part:
    return _max_pool(name, kernel_size, stride, padding, ceil_mode=ceil_mode)


def _conv_relu_max_pool(
    name: str,
    weight: Read,
    bias: Read | None,
    stride: Sides,
    padding: Sides,
    pool_kernel: Sides,
    pool_stride: Sides | None,
    pool_padding: Sides,
    ceil_mode: bool,
    *,
    backend: str | None = None,
) -> Part:
    """A whole layer in one, whose only name is that of the pooled map."""
    below = _conv_relu(name, weight, bias, stride, padding)
    pool = _max_pool(name, pool_kernel, pool_stride, pool_padding, ceil_mode=ceil_mode)
    return Part("layer", below.steps + pool.steps)


def _contrast_norm(
    name: str,
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 2.0,
    *,
    center: bool = False,
    backend: str | None = None,
) -> Part:
    return Part("layer", (Norm(name, (size, alpha, beta, k, center)),))


def _response_norm(name: str, size: int, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0) -> Part:
    return _contrast_norm(name, size, alpha, beta, k)


def _relu(name: str, inplace: bool = False) -> Part:
    return Part("part", (ReLU(name),))


def _relu6(name: str, inplace: bool = False) -> Part:
    return Part("part", (ReLU(name, cap=6.0),))


def _leaky_relu(name: str, negative_slope: float = 0.01, inplace: bool = False) -> Part:
    if not 0 <= negative_slope < math.inf:
        raise Irreversible(f"its negative_slope must be at least 0, not {negative_slope}")
    return Part("part", (ReLU(name, slope=float(negative_slope)),))


def _hardtanh(name: str, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Part:
    if min_val != 0 or not max_val > 0:
        raise Irreversible(f"its limits must be 0 and more to be a rectifier's, not {min_val} and {max_val}")
    return Part("part", (ReLU(name, cap=float(max_val)),))


def _clamp(name: str, min: object = None, max: object = None) -> Part:
    if not isinstance(min, (int, float)) or not isinstance(max, (int, float, type(None))):
        raise Irreversible(NO_REVERSE)
    return _hardtanh(name, min, math.inf if max is None else max)


def _threshold(name: str, threshold: float, value: float, inplace: bool = False) -> Part:
    if threshold != 0 or value != 0:
        raise Irreversible(f"its threshold and value must be 0 to be a rectifier's, not {threshold} and {value}")
    return _relu(name)


def _adaptive_average(name: str, output_size: object) -> Part:
    return Part("between", (Average(name, _pair(output_size)),))


def _average_pool(
    name: str,
    kernel_size: Sides,
    stride: Sides | None = None,
    padding: Sides = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Part:
    kernel = _pair(kernel_size)
    stride = _pair(stride) if stride else kernel
    pool = AveragePool(name, kernel, stride, _pair(padding), ceil_mode, count_include_pad, divisor_override)
    return Part("layer", (pool,))


def _mean(name: str, dim: object = None, keepdim: bool = False) -> Part:
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


def _linear(name: str, weight: Read, bias: Read | None = None) -> Part:
    return Part("layer", (Linear(name, weight, bias, as_pair(reversed(weight().shape))),))


def _batch_norm(name: str, batch_norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Part:
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


def _batch_norm_function(
    name: str,
    running_mean: Read | None,
    running_var: Read | None,
    weight: Read | None = None,
    bias: Read | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Part:
    if not callable(running_mean) or not callable(running_var):
        raise Irreversible("it is given no running mean and variance")
    return Part("layer", (Affine(name, _Statistics(running_mean, running_var, weight, bias, eps, training)),))


def _nothing(name: str, *args: object, **keywords: object) -> Part:
    return Part("part")


def _copy(name: str, *, memory_format: torch.memory_format | None = None) -> Part:
    return Part("part", (Copy(name),))


def _layout(name: str, *, memory_format: torch.memory_format) -> Part:
    return Part("part")


DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout)
SPELLINGS: dict[Callable[..., Part], tuple[Function | str, ...]] = {
    _conv: (F.conv2d,),
    _pad: (F.pad,),
    _conv_relu: (conv2d_relu,),
    _conv_relu_max_pool: (conv2d_relu_max_pool2d,),
    _linear: (F.linear,),
    _batch_norm_function: (F.batch_norm,),
    _relu: (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"),
    _relu6: (F.relu6,),
    _leaky_relu: (F.leaky_relu, F.leaky_relu_),
    _hardtanh: (F.hardtanh, F.hardtanh_),
    _clamp: (
        torch.clamp,
        torch.clip,
        torch.clamp_min,
        "clamp",
        "clip",
        "clamp_",
        "clip_",
        "clamp_min",
        "clamp_min_",
    ),
    _threshold: (F.threshold, F.threshold_),  # type: ignore[attr-defined]  # which torch's types lack
    _max_pool: (F.max_pool2d, torch.max_pool2d),
    _max_pool_with_switches: (max_pool2d_with_switches,),
    _average_pool: (F.avg_pool2d,),
    _adaptive_average: (F.adaptive_avg_pool2d,),
    _mean: (torch.mean, "mean"),
    _response_norm: (F.local_response_norm,),
    _contrast_norm: (contrast_norm,),
    _nothing: (*DROPOUTS, "contiguous", "detach"),
    _copy: ("clone",),
    _layout: ("to",),
}
FUNCTIONS = {function: maker for maker, functions in SPELLINGS.items() for function in functions}
WITH_SWITCHES = (conv2d_relu_max_pool2d, max_pool2d_with_switches)
# What these spell, of two values or of a value and a number
OPERATIONS: dict[str, tuple[Function | str, ...]] = {
    "add": (operator.add, operator.iadd, torch.add, "add", "add_"),
    "sub": (operator.sub, operator.isub, torch.sub, "sub", "sub_"),
    "mul": (operator.mul, operator.imul, torch.mul, "mul", "mul_"),
    "truediv": (operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_"),
}
ARITHMETIC = {function: name for name, functions in OPERATIONS.items() for function in functions}
CONCATS = (torch.cat, torch.concat, torch.concatenate)
RESHAPES = (torch.flatten, torch.reshape, "flatten", "reshape", "view")
# Without a reverse here, but computed element by element
POINTWISE = {
    *(nn.SiLU, nn.GELU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, F.silu, F.gelu, F.elu, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus),
    *(torch.sigmoid, torch.tanh, torch.exp, torch.abs, torch.clamp, "sigmoid", "tanh", "clamp", "clamp_", "abs"),
}
# The same by name, and what joins values place by place or leaves each pixel where it is
POINTWISE_NAMES = words(
    "silu gelu elu selu celu mish softplus softsign sigmoid logsigmoid tanh hardswish hardsigmoid hardtanh relu relu_ "
    "relu6 leaky_relu prelu rrelu threshold clamp clip clamp_min exp log abs neg pow sqrt rsqrt square add iadd sub "
    "isub mul imul truediv itruediv maximum minimum where float double half to type type_as chunk split contiguous "
    "clone"
)


# The modules


def _parameters(m: Any) -> tuple[Read, Read | None]:
    return (lambda: m.weight), (None if m.bias is None else lambda: m.bias)


def _conv2d_module(name: str, m: nn.Conv2d) -> Part:
    if m.padding_mode != "zeros":
        raise Irreversible(f"padding_mode must be 'zeros', not {m.padding_mode!r}")
    return _conv(name, *_parameters(m), m.stride, m.padding, m.dilation, m.groups)


def _by_attributes(maker: Callable[..., Part], *attributes: str, weights: bool = False) -> Callable[..., Part]:
    """A maker for modules: `maker` with these attributes of the module, after its weight and bias if it has them."""

    def make(name: str, m: nn.Module) -> Part:
        return maker(name, *(_parameters(m) if weights else ()), *(getattr(m, attribute) for attribute in attributes))

    return make


def _flatten(name: str, m: nn.Flatten) -> Part:
    step = Flatten(name, lambda before, _: m(torch.empty(before, device="meta")).shape)
    return Part("between", (step,))


POOL = ("kernel_size", "stride", "padding")
FUSED = ("stride", "padding", "pool_kernel", "pool_stride", "pool_padding", "ceil_mode")
MODULES: dict[type[nn.Module], Callable[..., Part]] = {
    nn.Conv2d: _conv2d_module,
    nn.ConstantPad2d: lambda name, m: _pad(name, m.padding, value=m.value),
    nn.ReLU: _by_attributes(_relu),
    nn.ReLU6: _by_attributes(_relu6),
    nn.Hardtanh: _by_attributes(_hardtanh, "min_val", "max_val"),
    nn.Threshold: _by_attributes(_threshold, "threshold", "value"),
    nn.LeakyReLU: _by_attributes(_leaky_relu, "negative_slope"),
    nn.MaxPool2d: _by_attributes(_max_pool, *POOL, "dilation", "ceil_mode", "return_indices"),
    nn.AvgPool2d: _by_attributes(_average_pool, *POOL, "ceil_mode", "count_include_pad", "divisor_override"),
    nn.LocalResponseNorm: _by_attributes(_response_norm, "size", "alpha", "beta", "k"),
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.AdaptiveAvgPool2d: _by_attributes(_adaptive_average, "output_size"),
    nn.Linear: _by_attributes(_linear, weights=True),
    LargeLinear: _by_attributes(_linear, weights=True),
    nn.Flatten: _flatten,
    ConvReLUMaxPool: _by_attributes(_conv_relu_max_pool, *FUSED, weights=True),
    ConvReLU: _by_attributes(_conv_relu, "stride", "padding", weights=True),
    MaxPoolSwitches: _by_attributes(_max_pool_with_switches, *POOL, "ceil_mode"),
    ContrastNorm: lambda name, m: _contrast_norm(name, m.size, m.alpha, m.beta, m.k, center=m.center),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout), _nothing),
    nn.Identity: _nothing,
}


def kind_of(module: nn.Module) -> type[nn.Module] | None:
    """Which of MODULES `module` is, or is a subclass of that runs its forward."""
    if isinstance(module, nn.Conv2d) and type(module)._conv_forward is not nn.Conv2d._conv_forward:
        return None
    if "forward" in vars(module):
        return None
    return next((kind for kind in MODULES if isinstance(module, kind) and type(module).forward is kind.forward), None)


def is_leaf(module: nn.Module) -> bool:
    """Whether a module is one layer, whatever it calls: those that have a maker, and torch's own."""
    own = type(module).__module__.startswith(("torch.nn", "torch.ao.nn"))
    return kind_of(module) is not None or (own and not isinstance(module, nn.Sequential))


def module_part(name: str, module: nn.Module) -> Part:
    """The steps of a module."""
    kind = kind_of(module)
    if kind is None:
        raise Irreversible(NO_REVERSE)
    return MODULES[kind](name, module)


def function_part(target: Function | str, name: str, arguments: Sequence[object], keywords: dict[str, object]) -> Part:
    """The steps of a call of a function or method, its first tensor left out."""
    try:
        return FUNCTIONS[target](name, *arguments, **keywords)
    except TypeError as error:
        raise Irreversible(f"its arguments cannot be read: {error}") from error
