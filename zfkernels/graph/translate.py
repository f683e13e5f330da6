"""What modules, functions and methods are as steps: two tables from what is called to what makes its steps.

The makers are in makers.py.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..nn import ContrastNorm, ConvReLU, ConvReLUMaxPool, MaxPoolSwitches
from ..nn import Linear as LargeLinear
from ..ops.contrast_norm import contrast_norm
from ..ops.conv import conv2d_relu
from ..ops.fused import conv2d_relu_max_pool2d
from ..ops.max_pool import max_pool2d_with_switches
from . import makers
from .makers import NO_REVERSE, Part
from .rules import Function, Irreversible, Read
from .steps import Flatten


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout)
SPELLINGS: dict[Callable[..., Part], tuple[Function | str, ...]] = {
    makers.conv: (F.conv2d,),
    makers.pad: (F.pad,),
    makers.conv_relu: (conv2d_relu,),
    makers.conv_relu_max_pool: (conv2d_relu_max_pool2d,),
    makers.linear: (F.linear,),
    makers.batch_norm_function: (F.batch_norm,),
    makers.relu: (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"),
    makers.relu6: (F.relu6,),
    makers.leaky_relu: (F.leaky_relu, F.leaky_relu_),
    makers.hardtanh: (F.hardtanh, F.hardtanh_),
    makers.clamp: (
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
    makers.threshold: (F.threshold, F.threshold_),  # type: ignore[attr-defined]  # which torch's types lack
    makers.max_pool: (F.max_pool2d, torch.max_pool2d),
    makers.max_pool_with_switches: (max_pool2d_with_switches,),
    makers.average_pool: (F.avg_pool2d,),
    makers.adaptive_average: (F.adaptive_avg_pool2d,),
    makers.mean: (torch.mean, "mean"),
    makers.response_norm: (F.local_response_norm,),
    makers.contrast_norm: (contrast_norm,),
    makers.nothing: (*DROPOUTS, "contiguous", "detach"),
    makers.copy: ("clone",),
    makers.layout: ("to",),
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
    return makers.conv(name, *_parameters(m), m.stride, m.padding, m.dilation, m.groups)


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
    nn.ConstantPad2d: lambda name, m: makers.pad(name, m.padding, value=m.value),
    nn.ReLU: _by_attributes(makers.relu),
    nn.ReLU6: _by_attributes(makers.relu6),
    nn.Hardtanh: _by_attributes(makers.hardtanh, "min_val", "max_val"),
    nn.Threshold: _by_attributes(makers.threshold, "threshold", "value"),
    nn.LeakyReLU: _by_attributes(makers.leaky_relu, "negative_slope"),
    nn.MaxPool2d: _by_attributes(makers.max_pool, *POOL, "dilation", "ceil_mode", "return_indices"),
    nn.AvgPool2d: _by_attributes(makers.average_pool, *POOL, "ceil_mode", "count_include_pad", "divisor_override"),
    nn.LocalResponseNorm: _by_attributes(makers.response_norm, "size", "alpha", "beta", "k"),
    nn.BatchNorm1d: makers.batch_norm,
    nn.BatchNorm2d: makers.batch_norm,
    nn.AdaptiveAvgPool2d: _by_attributes(makers.adaptive_average, "output_size"),
    nn.Linear: _by_attributes(makers.linear, weights=True),
    LargeLinear: _by_attributes(makers.linear, weights=True),
    nn.Flatten: _flatten,
    ConvReLUMaxPool: _by_attributes(makers.conv_relu_max_pool, *FUSED, weights=True),
    ConvReLU: _by_attributes(makers.conv_relu, "stride", "padding", "dilation", "groups", weights=True),
    MaxPoolSwitches: _by_attributes(makers.max_pool_with_switches, *POOL, "ceil_mode"),
    ContrastNorm: lambda name, m: makers.contrast_norm(name, m.size, m.alpha, m.beta, m.k, center=m.center),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout), makers.nothing),
    nn.Identity: makers.nothing,
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
