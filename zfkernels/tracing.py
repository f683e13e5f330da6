"""A torch model as a graph of steps, each of which can be run and reversed on its own, and as a chain where it is one.

The model is traced with torch.fx, so modules and functional calls, in-place or not, come out alike and in the order in
which they run; what an in-place call changes, its later readers read. A layer that has no reverse here raises
NotImplementedError naming it and its place. Weights stay in the model: a step reads them when it is asked to.

Layers carry the qualified names of the model's conv, pool, norm and Linear modules (a functional call, a sum, a
concatenation, or a module's second use, the name that torch.fx gives it). A layer's value is that after the batch norm
and the ReLU that alone follow it, whose names, and those of dropouts, are aliases of it. A batch norm that follows
anything but a conv or a Linear is a layer of its own, and so is a ReLU whose argument others read too.
"""

import inspect
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .nn import ContrastNorm, ConvReLU, ConvReLUMaxPool, MaxPoolSwitches
from .nn import Linear as LargeLinear
from .ops.checks import LARGEST_WINDOW
from .ops.contrast_norm import contrast_norm
from .ops.conv import conv2d_relu
from .ops.fused import conv2d_relu_max_pool2d
from .ops.max_pool import max_pool2d_with_switches
from .ops.window import conv_size, pool_size

Pair = tuple[int, int]
Read = Callable[[], Tensor]  # gives a tensor of the model as it is now

NO_REVERSE = (
    "it has no reverse here; Conv2d, ReLU, ReLU6, LeakyReLU, MaxPool2d, average pooling, LocalResponseNorm, BatchNorm, "
    "Dropout, Linear, flattening to vectors, sums, concatenations of maps and the modules and functions of zfkernels "
    "have"
)


@dataclass(frozen=True)
class Affine:
    """A batch norm."""

    name: str
    batch_norm: nn.Module

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """In evaluation mode it is x * scale + shift, one of each a channel."""
        norm = self.batch_norm
        if norm.training:
            raise RuntimeError(
                f"layer {self.name!r} ({type(norm).__name__}) is in training mode, in which it uses the mean and "
                "variance of each batch; call model.eval() first"
            )
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.detach()
        shift = -norm.running_mean * scale
        return scale, shift if norm.bias is None else shift + norm.bias.detach()


@dataclass(frozen=True)
class Conv:
    """A convolution, and the batch norms folded into it."""

    name: str
    weight: Read
    bias: Read | None
    channels: tuple[int, int]  # in, out
    kernel: Pair
    stride: Pair
    before: Pair  # zeros above and left of the map
    after: Pair  # zeros below and right of it
    dilation: Pair
    groups: int
    batch_norms: tuple[Affine, ...] = ()

    @cached_property
    def reach(self) -> Pair:
        """The height and width that a filter spans."""
        return tuple((self.kernel[a] - 1) * self.dilation[a] + 1 for a in (0, 1))

    @cached_property
    def padding(self) -> Pair:
        return tuple(max(self.before[a], self.after[a]) for a in (0, 1))

    @cached_property
    def window(self) -> Pair:
        """The size of `filters()`: `reach`, and zeros in front where the padding is not the same on both sides."""
        return tuple(self.reach[a] + self.padding[a] - self.before[a] for a in (0, 1))

    def filters(self) -> tuple[Tensor, Tensor | None]:
        """The filters (C_out, C_in, *window) and bias of a plain convolution with `stride` and `padding` that does all
        of this one: batch norms, groups, dilation.
        """
        weight = self.weight().detach()
        bias = None if self.bias is None else self.bias().detach()
        for batch_norm in self.batch_norms:
            scale, shift = batch_norm.scale_and_shift()
            weight = weight * scale[:, None, None, None]
            bias = shift if bias is None else bias * scale + shift
        if self.groups == 1 and self.window == self.kernel:
            return weight, bias
        before, after = (channels // self.groups for channels in self.channels)
        dense = weight.new_zeros(self.groups, after, self.groups, before, *self.window)
        rows, columns = (slice(self.window[a] - self.reach[a], None, self.dilation[a]) for a in (0, 1))
        for group, some in enumerate(weight.chunk(self.groups)):
            dense[group, :, group, :, rows, columns] = some
        return dense.reshape(*reversed(self.channels), *self.window), bias


@dataclass(frozen=True)
class Pool:
    name: str
    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool


@dataclass(frozen=True)
class Norm:
    name: str
    parameters: tuple  # size, alpha, beta, k, center: of contrast_norm


@dataclass(frozen=True)
class ReLU:
    """max(0, x) + slope * min(0, x), at most `cap`."""

    name: str
    slope: float = 0.0
    cap: float = math.inf


@dataclass(frozen=True)
class Average:
    """Adaptive average pooling; a chain has it only where it changes nothing."""

    name: str
    size: tuple


@dataclass(frozen=True)
class AveragePool:
    name: str
    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool
    count_include_pad: bool
    divisor: int | None


@dataclass(frozen=True)
class Mean:
    """Over each map, which leaves a vector an image."""

    name: str


@dataclass(frozen=True)
class Scale:
    """x * scale + shift, of two numbers."""

    name: str
    scale: float
    shift: float


@dataclass(frozen=True)
class Add:
    """The sum of two values of one shape."""

    name: str


@dataclass(frozen=True)
class Concat:
    """Several values' maps or features, one after another."""

    name: str


@dataclass(frozen=True)
class Opaque:
    """What only torch knows how to run, as it stands in the model."""

    name: str
    call: Callable[[dict[int, object], list], object]  # (values by number, shapes by number) -> what it gives
    pointwise: bool  # whether each element depends on its own place alone


@dataclass(frozen=True)
class Flatten:
    name: str
    reshaped: Callable[[torch.Size, list], torch.Size]  # of what it takes, and of all values so far -> of what it makes


@dataclass(frozen=True)
class Linear:
    name: str
    weight: Read
    bias: Read | None
    features: tuple[int, int]  # in, out


Step = (
    Conv | Pool | Norm | ReLU | Affine | Average | Flatten | Linear | AveragePool | Mean | Scale | Add | Concat | Opaque
)


class Irreversible(Exception):
    """Why a step cannot be reversed."""


def irreversible(name: str, kind: str, why: object) -> NotImplementedError:
    return NotImplementedError(f"cannot reverse layer {name!r} ({kind}): {why}")


def _stop(traced: "Chain | Graph", layer: object) -> int:
    stops = traced.layers | traced.vector_layers
    name = traced.aliases.get(layer, layer) if isinstance(layer, str) else None
    if name not in stops:
        raise ValueError(f"layer must be one of {', '.join(stops)}, got {layer!r}")
    return stops[name]


@dataclass
class Chain:
    """The steps in the order in which they run, and how many of them give each layer's value."""

    steps: list[Step] = field(default_factory=list)
    layers: dict[str, int] = field(default_factory=dict)  # those that make maps
    vector_layers: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def stop(self, layer: object) -> int:
        """How many steps give the value of `layer`, a layer's name or an alias of it."""
        return _stop(self, layer)

    def shapes(self, images: torch.Size, stop: int) -> list[torch.Size]:
        """The shape of the images and of the value after each of the first `stop` steps.

        ValueError for images that do not suit a step, NotImplementedError where one cannot be reversed for them.
        """
        shapes = [images]
        for step in self.steps[:stop]:
            shapes.append(shape_after(step, [shapes[-1]], shapes))
        return shapes


@dataclass(frozen=True)
class Node:
    """Steps that run one after another on the values numbered `inputs`."""

    name: str
    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    role: str  # "layer": it begins one; "part": it belongs to that of its input; "between": to none


@dataclass
class Graph:
    """A model's values: number 0 is the images, number i + 1 what `nodes[i]` makes; each is made before it is used."""

    nodes: list[Node] = field(default_factory=list)
    layers: dict[str, int] = field(default_factory=dict)  # the number of each layer's value; those that make maps
    vector_layers: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    submodules: dict[str, int] = field(default_factory=dict)  # the value that each submodule gave last
    output: int | None = None  # the model's, if it is one value

    def stop(self, layer: object) -> int:
        """The number of the value of `layer`, a layer's name or an alias of it."""
        return _stop(self, layer)

    def ancestors(self, *values: int) -> list[int]:
        """The numbers of the values, the images but for, that `values` are made of, themselves included, in order."""
        needed = set(values)
        for number in reversed(range(1, max(values) + 1)):
            if number in needed:
                needed.update(self.nodes[number - 1].inputs)
        return sorted(needed - {0})

    def shapes(self, images: torch.Size, *values: int) -> list[torch.Size | None]:
        """The shape of each value that `values` are made of, by number, up to the last of them.

        ValueError for images that do not suit a step, NotImplementedError where one cannot be reversed for them.
        """
        shapes: list[torch.Size | None] = [images] + [None] * max(values)
        for number in self.ancestors(*values):
            node = self.nodes[number - 1]
            shape = [shapes[i] for i in node.inputs]
            for step in node.steps:
                shape = [shape_after(step, shape, shapes)]
            shapes[number] = shape[0]
        return shapes


def averages(step: Average, shape: torch.Size) -> bool:
    """Whether adaptive pooling changes maps of this shape."""
    return len(shape) == 4 and any(want not in (None, n) for want, n in zip(step.size, shape[2:], strict=True))


def shape_after(step: Step, inputs: list[torch.Size], shapes: list[torch.Size | None]) -> torch.Size:
    """The shape of a step's value; `shapes` are those of all values so far."""
    before = inputs[0]
    given = f"images of shape {tuple(shapes[0])} reach it as {', '.join(str(tuple(shape)) for shape in inputs)}"
    if isinstance(step, (Conv, Pool, Norm, Average, AveragePool, Mean)) and len(before) != 4:
        raise irreversible(step.name, type(step).__name__, f"it works on maps, but {given}")
    if isinstance(step, Conv):
        _check_count("channels", before[1], step.channels[0], step, given)
        size = [conv_size(before[2 + a], step.window[a], step.stride[a], step.padding[a]) for a in (0, 1)]
        return _with_size(before[0], step.channels[1], size, step, step.window, given)
    if isinstance(step, (Pool, AveragePool)):
        size = [
            pool_size(before[2 + a], step.kernel[a], step.stride[a], step.padding[a], step.ceil_mode) for a in (0, 1)
        ]
        return _with_size(before[0], before[1], size, step, step.kernel, given)
    if isinstance(step, Affine):
        _check_count("channels", before[1], step.batch_norm.num_features, step, given)
    elif isinstance(step, Average):
        return torch.Size(n if want is None else want for want, n in zip((None, None, *step.size), before, strict=True))
    elif isinstance(step, Mean):
        return before[:2]
    elif isinstance(step, Add):
        if any(shape != before for shape in inputs):
            raise irreversible(step.name, "sum", f"it must add values of one shape, but {given}")
    elif isinstance(step, Concat):
        if any(shape[:1] + shape[2:] != before[:1] + before[2:] for shape in inputs):
            raise ValueError(f"images do not suit layer {step.name!r}, which joins maps of one size: {given}")
        return torch.Size((before[0], sum(shape[1] for shape in inputs), *before[2:]))
    elif isinstance(step, Flatten):
        try:
            after = step.reshaped(before, shapes)
        except RuntimeError as error:
            raise ValueError(f"images do not suit layer {step.name!r}: {given}, and {error}") from error
        if after != (before[0], math.prod(before[1:])):
            raise irreversible(
                step.name, "reshaping", f"it must make one vector an image, but makes {tuple(after)}: {given}"
            )
        return after
    elif isinstance(step, Linear):
        if len(before) != 2:
            raise irreversible(step.name, "Linear", f"it must follow a flattening to vectors, but {given}")
        _check_count("features", before[1], step.features[0], step, given)
        return torch.Size((before[0], step.features[1]))
    return before


def _check_count(what: str, count: int, taken: int, step: Step, given: str) -> None:
    if count != taken:
        raise ValueError(f"images do not suit layer {step.name!r}, which takes {taken} {what}: {given}")


def _with_size(
    count: int, channels: int, size: list[int], step: Conv | Pool | AveragePool, window: Pair, given: str
) -> torch.Size:
    if min(size) < 1:
        raise ValueError(
            f"images are too small for layer {step.name!r}: no {window[0]}x{window[1]} window fits (padding "
            f"{step.padding}); {given}"
        )
    return torch.Size((count, channels, *size))


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


# From a model to its graph


def trace(model: nn.Module) -> tuple[Graph, Chain | None]:
    """The graph of `model`, and its chain if it is one of the steps that chains have.

    NotImplementedError naming the first layer that cannot be reversed.
    """
    model = unwrapped(model)
    graph = _walk(model, *_graph(model), opaque=False)
    if not graph.layers and not graph.vector_layers:
        raise ValueError(f"model must have at least one conv, pool, norm or Linear layer, got {type(model).__name__}")
    return graph, _chain(graph)


def trace_whole(model: nn.Module) -> Graph:
    """The graph of `model`, all of it: what has no step of its own is run as it stands (`Opaque`).

    NotImplementedError where torch.fx cannot trace it, or where a view is changed in place.
    """
    model = unwrapped(model)
    return _walk(model, *_graph(model), opaque=True)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that DataParallel or torch.compile wrapped; a single layer in a Sequential."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    return model if _leaf(model) is None else nn.Sequential(model)


class _Proxy(fx.Proxy):
    """torch.fx takes `x += y` for `x = x + y`, which leaves other names of x as they were."""

    def __iadd__(self, other: object) -> fx.Proxy:
        return self._in_place(operator.iadd, other)

    def __isub__(self, other: object) -> fx.Proxy:
        return self._in_place(operator.isub, other)

    def __imul__(self, other: object) -> fx.Proxy:
        return self._in_place(operator.imul, other)

    def __itruediv__(self, other: object) -> fx.Proxy:
        return self._in_place(operator.itruediv, other)

    def _in_place(self, function: Callable, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class _Tracer(fx.Tracer):
    """A tracer that also keeps, in `results`, what each submodule gave last."""

    def __init__(self, **settings) -> None:
        super().__init__(**settings)
        self.results: dict[str, fx.Node] = {}

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return _leaf(module) is not None or super().is_leaf_module(module, name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, module, forward, args, kwargs):
        result = super().call_module(module, forward, args, kwargs)
        first = result[0] if isinstance(result, tuple) and result else result
        if isinstance(first, fx.Proxy):
            self.results[self.path_of_module(module)] = first.node
        return result


def _graph(model: nn.Module) -> tuple[fx.Graph, dict[str, fx.Node]]:
    import zfkernels

    calls = (conv2d_relu, conv2d_relu_max_pool2d, contrast_norm, max_pool2d_with_switches)
    try:
        _, *others = inspect.signature(model.forward).parameters.values()
        defaults = {other.name: other.default for other in others if other.default is not other.empty}
        tracer = _Tracer(autowrap_modules=(math, zfkernels), autowrap_functions=calls)
        return tracer.trace(model, defaults), tracer.results
    except Exception as error:
        raise NotImplementedError(
            f"cannot trace {type(model).__name__}, for torch.fx says: {error} ({type(error).__name__}). The forward "
            "must take images alone, and no `if`, `assert` or loop in it may look at their values or shape; pass the "
            "part of the model that looks at neither, such as model.features, or rewrite its forward"
        ) from error


def _walk(model: nn.Module, fx_graph: fx.Graph, results: dict[str, fx.Node], opaque: bool) -> Graph:
    """Follow the images through torch.fx's graph."""
    graph = Graph()
    live = _live(model, fx_graph)
    made: dict[fx.Node, int] = {}  # a node -> the number of the value that it holds now
    sizes: set[fx.Node] = set()  # nodes computed from the sizes of values alone
    stale: set[int] = set()  # values that share memory with one that was changed in place
    names: set[str] = set()
    passed: dict[str, int] = {}  # what changes nothing, by name -> the value that passes
    for node in fx_graph.nodes:
        if node.op == "placeholder" and not made:
            made[node] = 0
        if node.op == "output" and isinstance(node.args[0], fx.Node):
            graph.output = made.get(node.args[0])
        taken = [other for other in node.all_input_nodes if other in made]
        if node not in live or node.op == "output" or not (taken or sizes.intersection(node.all_input_nodes)):
            continue
        if not taken or _is_size(node):
            sizes.add(node)
            continue
        name, kind = _describe(model, node, names)
        names.add(name)
        if stale.intersection(made[other] for other in taken):
            why = "what it takes shares memory with a value, of which it is or has a view, that was changed in place"
            raise irreversible(name, kind, why)
        try:
            if opaque and _hooked(model, node):
                raise Irreversible("hooks may change what it gives")
            part, inputs = _part(name, model, node, made)
            if opaque and any(isinstance(step, Flatten) for step in part.steps):
                raise Irreversible("it may make other shapes than vectors")
        except Irreversible as why:
            if not opaque:
                raise irreversible(name, kind, why) from None
            part, inputs = _Part([_opaque(name, model, node, dict(made))], "layer"), tuple(made[o] for o in taken)
        if part.steps or node.target == "clone":
            graph.nodes.append(Node(name, tuple(part.steps), inputs, part.role))
            made[node] = number = len(graph.nodes)
            if _in_place(model, node):
                stale |= _sharing(graph, inputs[0]) - {number}
                made |= dict.fromkeys([other for other, held in made.items() if held == inputs[0]], number)
        else:
            made[node] = inputs[0]
            passed[name] = inputs[0]
    graph.submodules = {name: made[node] for name, node in results.items() if node in made}
    _name_layers(graph, passed)
    return graph


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


def _sharing(graph: Graph, value: int) -> set[int]:
    """The values, besides `value`, that may share its memory: what it is a view of, and views of that."""

    def views(number: int) -> bool:
        steps = graph.nodes[number - 1].steps
        return bool(steps) and isinstance(steps[0], (Flatten, Opaque))

    sharing = [value]
    while sharing[-1] and views(sharing[-1]):
        sharing += graph.nodes[sharing[-1] - 1].inputs[:1]
    sharing = set(sharing)
    for number, node in enumerate(graph.nodes, 1):
        if views(number) and sharing.intersection(node.inputs):
            sharing.add(number)
    return sharing - {value}


def _name_layers(graph: Graph, passed: dict[str, int]) -> None:
    """Give each layer's name the number of its value, that after the batch norm and the ReLU that alone follow it."""
    readers = [0] * (len(graph.nodes) + 1)
    for node in graph.nodes:
        for number in node.inputs:
            readers[number] += 1
    owner: dict[int, str] = {}  # a value -> the layer whose value it is, or was
    vectors: set[int] = set()
    for number, node in enumerate(graph.nodes, 1):
        before, role = node.inputs[0], node.role
        if before in vectors or any(isinstance(step, (Flatten, Linear, Mean)) for step in node.steps):
            vectors.add(number)
        stops = graph.vector_layers if number in vectors else graph.layers
        if len(node.steps) == 1 and isinstance(node.steps[0], Affine) and before:
            below = graph.nodes[before - 1].steps
            role = "part" if below and isinstance(below[-1], (Conv, Linear)) else "layer"
        if role == "part" and before not in owner:
            continue
        if role == "part" and readers[before] == 1:
            owner[number] = owner[before]
            stops[owner[before]] = number
            graph.aliases[node.name] = owner[before]
        elif role != "between":
            owner[number] = node.name
            stops[node.name] = number
    graph.aliases |= {name: owner[number] for name, number in passed.items() if number in owner}


def _chain(graph: Graph) -> Chain | None:
    """The same as a chain, batch norms folded into convolutions; None where it branches or has other steps."""
    steps: list[Step] = []
    ends = [0]  # how many steps give each value
    for number, node in enumerate(graph.nodes, 1):
        if node.inputs != (number - 1,) or not all(_in_chains(step) for step in node.steps):
            return None
        folded = isinstance(node.steps[0], Affine) and node.name in graph.aliases if node.steps else False
        if folded and isinstance(steps[-1], Conv):
            steps[-1] = replace(steps[-1], batch_norms=(*steps[-1].batch_norms, node.steps[0]))
        else:
            steps += [_by_steps(step, tuple(ends)) if isinstance(step, Flatten) else step for step in node.steps]
        ends.append(len(steps))
    layers, vector_layers = (
        {name: ends[number] for name, number in stops.items()} for stops in (graph.layers, graph.vector_layers)
    )
    return Chain(steps, layers, vector_layers, graph.aliases)


def _in_chains(step: Step) -> bool:
    if isinstance(step, ReLU):
        return step == ReLU(step.name)
    return isinstance(step, (Conv, Pool, Norm, Affine, Average, Flatten, Linear))


def _by_steps(step: Flatten, ends: tuple[int, ...]) -> Flatten:
    """The same, of shapes by a chain's step instead of by a graph's value."""
    return replace(step, reshaped=lambda before, shapes: step.reshaped(before, [shapes[end] for end in ends]))


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


def _live(model: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    """The nodes that something depends on: the output, or a value that a later node finds changed in place."""
    live = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or live.intersection(node.users) or _in_place(model, node):
            live.add(node)
    return live


def _describe(model: nn.Module, node: fx.Node, used: set[str]) -> tuple[str, str]:
    """A node's name, qualified where it is a module's (first) use, and its type and place."""
    if node.op == "call_module":
        return node.name if node.target in used else node.target, type(model.get_submodule(node.target)).__name__
    kind = "method" if node.op == "call_method" else "function"
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
    return node.name, f"{kind} {called}" + (f" in {modules[-1]}" if modules else "")
