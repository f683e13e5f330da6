"""modules and calls to steps."""

import math
import operator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from ..nn import ContrastNorm, ConvReLU, ConvReLUMaxPool, MaxPoolSwitches
from ..nn import Linear as LargeLinear
from ..ops.checks import LARGEST_WINDOW
from ..ops.contrast_norm import contrast_norm
from ..ops.conv import conv2d_relu
from ..ops.fused import conv2d_relu_max_pool2d
from ..ops.max_pool import max_pool2d_with_switches
from .steps import (
    NO_REVERSE,
    Add,
    Affine,
    Average,
    AveragePool,
    Concat,
    Conv,
    Flatten,
    Irreversible,
    Linear,
    Mean,
    Norm,
    Opaque,
    Pair,
    Pool,
    Read,
    ReLU,
    Scale,
    Step,
)

# From a module or a function's arguments to steps


@dataclass
class _Part:
    """The steps of one module or call."""

    steps: list[Step] = field(default_factory=list)
    role: str = "part"  # as a Node's

    def begin(self, name: str, *steps: Step) -> None:
        """These steps are the layer `name`."""
        self.steps += steps
        self.role = "layer"

    def join(self, name: str, *steps: Step) -> None:
        """These steps belong to the layer below."""
        self.steps += steps

    def between(self, step: Step) -> None:
        """This step belongs to no layer."""
        self.steps.append(step)
        self.role = "between"


def _pair(value: object) -> Pair:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _add_conv(part, name, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> None:
    shape = weight().shape
    stride, dilation, kernel = _pair(stride), _pair(dilation), tuple(shape[2:])
    if isinstance(padding, str):
        total = tuple((kernel[a] - 1) * dilation[a] if padding == "same" else 0 for a in (0, 1))
        before = tuple(sides // 2 for sides in total)
        after = tuple(total[a] - before[a] for a in (0, 1))
    else:
        before = after = _pair(padding)
    channels = shape[1] * groups, shape[0]
    part.begin(name, Conv(name, weight, bias, channels, kernel, stride, before, after, dilation, groups))


def _add_conv_relu(part, name, weight, bias=None, stride=1, padding=0, *, backend=None) -> None:
    _add_conv(part, name, weight, bias, stride, padding)
    part.join(name, ReLU(name))


def _add_pool(
    part, name, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> None:
    if _pair(dilation) != (1, 1):
        raise Irreversible(f"its dilation must be 1, not {dilation}")
    if return_indices:
        raise Irreversible("return_indices must be False")
    kernel = _pair(kernel_size)
    if math.prod(kernel) > LARGEST_WINDOW:
        raise Irreversible(f"its window {kernel} has more than {LARGEST_WINDOW} pixels")
    part.begin(name, Pool(name, kernel, _pair(stride) if stride else kernel, _pair(padding), ceil_mode))


def _add_switches(part, name, kernel_size, stride=None, padding=0, ceil_mode=False, *, backend=None) -> None:
    _add_pool(part, name, kernel_size, stride, padding, ceil_mode=ceil_mode)


def _add_layer(
    part,
    name,
    weight,
    bias,
    stride,
    padding,
    pool_kernel,
    pool_stride,
    pool_padding,
    ceil_mode,
    *,
    backend=None,
) -> None:
    """A conv, ReLU and pool in one, whose only name is that of the pooled map."""
    parts = _Part()
    _add_conv_relu(parts, name, weight, bias, stride, padding)
    _add_pool(parts, name, pool_kernel, pool_stride, pool_padding, ceil_mode=ceil_mode)
    part.begin(name, *parts.steps)


def _add_norm(part, name, size=5, alpha=1e-4, beta=0.75, k=2.0, *, center=False, backend=None) -> None:
    part.begin(name, Norm(name, (size, alpha, beta, k, center)))


def _add_response_norm(part, name, size, alpha=1e-4, beta=0.75, k=1.0) -> None:
    _add_norm(part, name, size, alpha, beta, k)


def _add_relu(part, name, inplace=False) -> None:
    part.join(name, ReLU(name))


def _add_relu6(part, name, inplace=False) -> None:
    part.join(name, ReLU(name, cap=6.0))


def _add_leaky_relu(part, name, negative_slope=0.01, inplace=False) -> None:
    if not 0 <= negative_slope < math.inf:
        raise Irreversible(f"its negative_slope must be at least 0, not {negative_slope}")
    part.join(name, ReLU(name, slope=float(negative_slope)))


def _add_average(part, name, output_size) -> None:
    part.between(Average(name, _pair(output_size)))


def _add_average_pool(
    part,
    name,
    kernel_size,
    stride=None,
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
) -> None:
    kernel = _pair(kernel_size)
    pool = AveragePool(
        name,
        kernel,
        _pair(stride) if stride else kernel,
        _pair(padding),
        ceil_mode,
        count_include_pad,
        divisor_override,
    )
    part.begin(name, pool)


def _add_mean(part, name, dim=None, keepdim=False) -> None:
    if not isinstance(dim, (tuple, list)) or {d % 4 for d in dim} != {2, 3}:
        raise Irreversible(f"a mean must be over the maps' places, (2, 3), not over {dim}")
    part.between(Average(name, (1, 1)) if keepdim else Mean(name))


def _add_number(part, name, called, first, second) -> None:
    """A sum, difference, product or quotient of a value, which is a placeholder None here, and a number."""
    number = second if first is None else first
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        raise Irreversible(NO_REVERSE)
    if called == "mul":
        scale, shift = number, 0
    elif called == "truediv" and first is None:
        scale, shift = 1 / number, 0
    elif called == "truediv":
        raise Irreversible("a number divided by it is not linear")
    else:
        scale = -1 if called == "sub" and second is None else 1
        shift = -number if called == "sub" and first is None else number
    part.between(Scale(name, float(scale), float(shift)))


def _add_linear(part, name, weight, bias=None) -> None:
    part.begin(name, Linear(name, weight, bias, tuple(reversed(weight().shape))))


def _add_batch_norm(part: _Part, name: str, batch_norm: nn.Module) -> None:
    if batch_norm.running_mean is None:
        raise Irreversible("it keeps no running mean and variance (track_running_stats=False)")
    part.begin(name, Affine(name, batch_norm))


def _add_nothing(part, name, *args, **kwargs) -> None:
    part.join(name)


def _add_layout(part, name, *, memory_format) -> None:
    part.join(name)


CALLS = {
    F.conv2d: _add_conv,
    F.relu: _add_relu,
    F.relu_: _add_relu,
    torch.relu: _add_relu,
    torch.relu_: _add_relu,
    "relu": _add_relu,
    "relu_": _add_relu,
    F.relu6: _add_relu6,
    F.leaky_relu: _add_leaky_relu,
    F.leaky_relu_: _add_leaky_relu,
    F.max_pool2d: _add_pool,
    torch.max_pool2d: _add_pool,
    F.avg_pool2d: _add_average_pool,
    torch.mean: _add_mean,
    "mean": _add_mean,
    F.local_response_norm: _add_response_norm,
    F.adaptive_avg_pool2d: _add_average,
    F.linear: _add_linear,
    F.dropout: _add_nothing,
    F.dropout1d: _add_nothing,
    F.dropout2d: _add_nothing,
    F.alpha_dropout: _add_nothing,
    F.feature_alpha_dropout: _add_nothing,
    torch.dropout: _add_nothing,
    "contiguous": _add_nothing,
    "clone": _add_nothing,
    "detach": _add_nothing,
    "to": _add_layout,
    conv2d_relu: _add_conv_relu,
    conv2d_relu_max_pool2d: _add_layer,
    contrast_norm: _add_norm,
    max_pool2d_with_switches: _add_switches,
}
# What these spell, of two values or a value and a number
ARITHMETIC = {
    function: name
    for name, functions in {
        "add": (operator.add, operator.iadd, torch.add, "add", "add_"),
        "sub": (operator.sub, operator.isub, torch.sub, "sub", "sub_"),
        "mul": (operator.mul, operator.imul, torch.mul, "mul", "mul_"),
        "truediv": (operator.truediv, operator.itruediv, torch.div, torch.true_divide, "div", "div_"),
    }.items()
    for function in functions
}
AUGMENTED = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
CONCATS = (torch.cat, torch.concat, torch.concatenate)
WITH_SWITCHES = (conv2d_relu_max_pool2d, max_pool2d_with_switches)
RESHAPES = (torch.flatten, torch.reshape, "flatten", "reshape", "view")
SIZES = ("size", "dim", "ndimension", "numel", "nelement", "shape", "ndim")

# Without a reverse here, but computed element by element
POINTWISE = {
    *(nn.SiLU, nn.GELU, nn.ELU, nn.SELU, nn.CELU, nn.Mish, nn.Softplus, nn.Sigmoid, nn.Tanh, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, F.silu, F.gelu, F.elu, F.hardswish, F.hardsigmoid, F.hardtanh, F.softplus),
    *(torch.sigmoid, torch.tanh, torch.exp, torch.abs, torch.clamp, "sigmoid", "tanh", "clamp", "clamp_", "abs"),
}
LINEAR = (nn.Linear, LargeLinear)
NOTHING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)
LEAVES = (
    nn.Conv2d,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.LocalResponseNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AdaptiveAvgPool2d,
    *LINEAR,
    nn.Flatten,
    ConvReLUMaxPool,
    ConvReLU,
    MaxPoolSwitches,
    ContrastNorm,
    *NOTHING,
)


def _leaf(module: nn.Module) -> type | None:
    """Which of LEAVES `module` is, or is a subclass of that runs its forward."""
    if isinstance(module, nn.Conv2d) and type(module)._conv_forward is not nn.Conv2d._conv_forward:
        return None
    return next((leaf for leaf in LEAVES if isinstance(module, leaf) and type(module).forward is leaf.forward), None)


def _add_module(part: _Part, name: str, m: nn.Module) -> None:
    leaf = _leaf(m)
    if any(isinstance(hook, (WeightNorm, SpectralNorm)) for hook in m._forward_pre_hooks.values()):
        raise Irreversible("a hook makes its weight when it runs; use torch.nn.utils.parametrizations instead")
    if leaf in (nn.Conv2d, ConvReLU, ConvReLUMaxPool, *LINEAR):
        weights = (lambda: m.weight), (None if m.bias is None else lambda: m.bias)
    if leaf is nn.Conv2d:
        if m.padding_mode != "zeros":
            raise Irreversible(f"padding_mode must be 'zeros', not {m.padding_mode!r}")
        _add_conv(part, name, *weights, m.stride, m.padding, m.dilation, m.groups)
    elif leaf is ConvReLU:
        _add_conv_relu(part, name, *weights, m.stride, m.padding)
    elif leaf is ConvReLUMaxPool:
        pool = m.pool_kernel, m.pool_stride, m.pool_padding, m.ceil_mode
        _add_layer(part, name, *weights, m.stride, m.padding, *pool)
    elif leaf is nn.ReLU:
        _add_relu(part, name)
    elif leaf is nn.ReLU6:
        _add_relu6(part, name)
    elif leaf is nn.LeakyReLU:
        _add_leaky_relu(part, name, m.negative_slope)
    elif leaf is nn.AvgPool2d:
        _add_average_pool(
            part, name, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
        )
    elif leaf is nn.MaxPool2d:
        _add_pool(part, name, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)
    elif leaf is MaxPoolSwitches:
        _add_switches(part, name, m.kernel_size, m.stride, m.padding, m.ceil_mode)
    elif leaf is nn.LocalResponseNorm:
        _add_response_norm(part, name, m.size, m.alpha, m.beta, m.k)
    elif leaf is ContrastNorm:
        _add_norm(part, name, m.size, m.alpha, m.beta, m.k, center=m.center)
    elif leaf in (nn.BatchNorm1d, nn.BatchNorm2d):
        _add_batch_norm(part, name, m)
    elif leaf is nn.AdaptiveAvgPool2d:
        _add_average(part, name, m.output_size)
    elif leaf in LINEAR:
        _add_linear(part, name, *weights)
    elif leaf is nn.Flatten:
        part.between(Flatten(name, lambda before, _: m(torch.empty(before, device="meta")).shape))
    elif leaf in NOTHING:
        _add_nothing(part, name)
    else:
        raise Irreversible(NO_REVERSE)


def _is_size(node: fx.Node) -> bool:
    return node.op != "call_module" and (node.target in SIZES or (node.target is getattr and node.args[1] in SIZES))


def _hooked(model: nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    module = model.get_submodule(node.target)
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _part(name: str, model: nn.Module, node: fx.Node, made: dict[fx.Node, int]) -> tuple[_Part, tuple[int, ...]]:
    """The steps of one node and the numbers of the values that they take."""
    part, arguments, keywords = _Part(), list(node.args), dict(node.kwargs)
    if node.op != "call_module" and node.target in ARITHMETIC:
        operands = [*arguments, *(keywords.pop(key) for key in ("input", "other") if key in keywords)]
        if len(operands) != 2 or any(keywords.get(key) not in (None, 1) for key in keywords):
            raise Irreversible(NO_REVERSE)
        values = tuple(made[operand] for operand in operands if operand in made)
        if len(values) == 1:
            _add_number(part, name, ARITHMETIC[node.target], *(None if o in made else o for o in operands))
        elif ARITHMETIC[node.target] == "add":
            part.begin(name, Add(name))
        else:
            raise Irreversible("it joins branches of the model, and only their sum or concatenation has a reverse here")
        return part, values
    if node.op != "call_module" and node.target in CONCATS:
        joined = arguments.pop(0) if arguments else keywords.pop("tensors", None)
        dim = arguments.pop(0) if arguments else keywords.pop("dim", keywords.pop("axis", 0))
        if not isinstance(joined, (list, tuple)) or arguments or keywords or any(value not in made for value in joined):
            raise Irreversible(NO_REVERSE)
        if dim not in (1, -3):
            raise Irreversible(f"it must join values of the model along dimension 1, not {dim}")
        part.begin(name, Concat(name))
        return part, tuple(made[value] for value in joined)
    first = arguments.pop(0) if arguments else keywords.pop("input", keywords.pop("x", None))
    if not isinstance(first, fx.Node) or first not in made:
        raise Irreversible(NO_REVERSE)
    if any(other in made for other in node.all_input_nodes if other is not first):
        raise Irreversible("it joins branches of the model, and only their sum or concatenation has a reverse here")
    if node.op == "call_module":
        _add_module(part, name, model.get_submodule(node.target))
    elif node.target in RESHAPES:
        held = dict(made)

        def reshaped(_: torch.Size, shapes: list[torch.Size | None]) -> torch.Size:
            known = {other: shapes[number] for other, number in held.items() if shapes[number] is not None}
            return _evaluate(node, known).shape

        part.between(Flatten(name, reshaped))
    elif node.target is operator.getitem:
        if (first.target not in WITH_SWITCHES and not _returns_switches(model, first)) or arguments != [0]:
            raise Irreversible(NO_REVERSE)
    elif node.target in CALLS:
        computed = [other for other in node.all_input_nodes if other not in made and other.op != "get_attr"]
        if computed:
            raise Irreversible(f"its argument {computed[0].name!r} is computed when the model runs")

        def reader(attribute: fx.Node) -> Read:
            return lambda: operator.attrgetter(attribute.target)(model)

        arguments, keywords = fx.map_arg((tuple(arguments), keywords), reader)
        try:
            CALLS[node.target](part, name, *arguments, **keywords)
        except TypeError as error:
            raise Irreversible(f"its arguments cannot be read: {error}") from error
    else:
        raise Irreversible(NO_REVERSE)
    return part, (made[first],)


def _opaque(name: str, model: nn.Module, node: fx.Node, made: dict[fx.Node, int]) -> Opaque:
    def call(values: dict[int, object], shapes: list[torch.Size | None]) -> object:
        known = {other: shapes[number] for other, number in made.items() if shapes[number] is not None}

        def value(other: fx.Node) -> object:
            if other in made:
                return values[made[other]]
            if other.op == "get_attr":
                return operator.attrgetter(other.target)(model)
            return _evaluate(other, known)

        arguments, keywords = fx.map_arg((node.args, node.kwargs), value)
        if _in_place(model, node):
            arguments = (arguments[0].clone(), *arguments[1:])
        if node.op == "call_module":
            return model.get_submodule(node.target)(*arguments, **keywords)
        if node.op == "call_method":
            return getattr(arguments[0], node.target)(*arguments[1:], **keywords)
        return node.target(*arguments, **keywords)

    kind = type(model.get_submodule(node.target)) if node.op == "call_module" else node.target
    return Opaque(name, call, kind in POINTWISE and len(node.all_input_nodes) == 1)


def _evaluate(node: fx.Node, shapes: dict[fx.Node, torch.Size]) -> object:
    """What `node` gives for values of these shapes, without looking at them."""

    def value(other: fx.Node) -> object:
        return torch.empty(shapes[other], device="meta") if other in shapes else _evaluate(other, shapes)

    arguments, keywords = fx.map_arg((node.args, node.kwargs), value)
    if node.op == "call_method":
        return getattr(arguments[0], node.target)(*arguments[1:], **keywords)
    return node.target(*arguments, **keywords)


def _returns_switches(model: nn.Module, node: fx.Node) -> bool:
    return node.op == "call_module" and getattr(model.get_submodule(node.target), "return_switches", False)


def _in_place(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "call_module":
        return getattr(model.get_submodule(node.target), "inplace", False)
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return (
        called.endswith("_")
        or node.target in AUGMENTED
        or node.kwargs.get("inplace", False)
        or (node.target is F.relu and True in node.args)
    )


def _describe(model: nn.Module, node: fx.Node, used: set[str]) -> tuple[str, str]:
    """A node's name, qualified where it is a module's (first) use, and its type and place."""
    if node.op == "call_module":
        return node.name if node.target in used else node.target, type(model.get_submodule(node.target)).__name__
    kind = "method" if node.op == "call_method" else "function"
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return node.name, f"{kind} {called}" + (f" in {modules[-1]}" if modules else "")
