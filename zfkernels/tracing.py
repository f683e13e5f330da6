"""A torch model as a chain of steps, each of which can be run and reversed on its own.

The model is traced with torch.fx, so modules and functional calls, in-place or not, come out alike and in the order in
which they run. A layer that has no reverse here, and a model that is no chain, raise NotImplementedError naming the
layer. Weights stay in the model: a step reads them when it is asked to.

A chain's layers carry the qualified names of the model's conv, pool, norm and Linear modules (a functional call, or a
module's second use, the name that torch.fx gives it). A layer's value is that after the batch norm and the ReLU that
follow it, whose names, and those of dropouts, are aliases of it. A batch norm that follows anything but a conv or a
Linear is a layer of its own.
"""

import inspect
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .nn import ContrastNorm, ConvReLU, ConvReLUMaxPool, MaxPoolSwitches
from .ops.checks import LARGEST_WINDOW
from .ops.contrast_norm import contrast_norm
from .ops.conv import conv2d_relu
from .ops.fused import conv2d_relu_max_pool2d
from .ops.max_pool import max_pool2d_with_switches
from .ops.window import conv_size, pool_size

Pair = tuple[int, int]
Read = Callable[[], Tensor]  # gives a tensor of the model as it is now

NO_REVERSE = (
    "it has no reverse here; Conv2d, ReLU, MaxPool2d, LocalResponseNorm, BatchNorm, Dropout, Linear, flattening to "
    "vectors and the modules and functions of zfkernels have"
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

    @property
    def reach(self) -> Pair:
        """The height and width that a filter spans."""
        return tuple((self.kernel[a] - 1) * self.dilation[a] + 1 for a in (0, 1))

    @property
    def padding(self) -> Pair:
        return tuple(max(self.before[a], self.after[a]) for a in (0, 1))

    @property
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
    name: str


@dataclass(frozen=True)
class Average:
    """Adaptive average pooling, which must be the identity where it is run."""

    name: str
    size: tuple


@dataclass(frozen=True)
class Flatten:
    name: str
    reshaped: Callable[[list[torch.Size]], torch.Size]  # the shapes after each step so far -> the shape it makes


@dataclass(frozen=True)
class Linear:
    name: str
    weight: Read
    bias: Read | None
    features: tuple[int, int]  # in, out


Step = Conv | Pool | Norm | ReLU | Affine | Average | Flatten | Linear


class Irreversible(Exception):
    """Why a step cannot be reversed."""


def irreversible(name: str, kind: str, why: object) -> NotImplementedError:
    return NotImplementedError(f"cannot reverse layer {name!r} ({kind}): {why}")


@dataclass
class Chain:
    """The steps in the order in which they run, and how many of them give each layer's value."""

    steps: list[Step] = field(default_factory=list)
    layers: dict[str, int] = field(default_factory=dict)  # those that make maps
    vector_layers: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    _present: str | None = None  # the layer to which a ReLU would belong now

    def stop(self, layer: object) -> int:
        """How many steps give the value of `layer`, a layer's name or an alias of it."""
        stops = self.layers | self.vector_layers
        name = self.aliases.get(layer, layer) if isinstance(layer, str) else None
        if name not in stops:
            raise ValueError(f"layer must be one of {', '.join(stops)}, got {layer!r}")
        return stops[name]

    def begin(self, name: str, *steps: Step) -> None:
        """These steps are the layer `name`."""
        self.steps += steps
        stops = self.vector_layers if any(isinstance(s, (Flatten, Linear)) for s in self.steps) else self.layers
        stops[name] = len(self.steps)
        self._present = name

    def join(self, name: str, *steps: Step) -> None:
        """These steps, called `name`, belong to the present layer."""
        self.steps += steps
        if self._present is not None:
            stops = self.layers if self._present in self.layers else self.vector_layers
            stops[self._present] = len(self.steps)
            if name not in self.layers and name not in self.vector_layers:
                self.aliases.setdefault(name, self._present)

    def between(self, step: Step) -> None:
        """This step belongs to no layer."""
        self.steps.append(step)
        self._present = None

    def shapes(self, images: torch.Size, stop: int) -> list[torch.Size]:
        """The shape of the images and of the value after each of the first `stop` steps.

        ValueError for images that do not suit a step, NotImplementedError where one cannot be reversed for them.
        """
        shapes = [images]
        for step in self.steps[:stop]:
            shapes.append(_shape_after(step, shapes))
        return shapes


def _shape_after(step: Step, shapes: list[torch.Size]) -> torch.Size:
    before = shapes[-1]
    given = f"images of shape {tuple(shapes[0])} reach it as {tuple(before)}"
    if isinstance(step, (Conv, Pool, Norm, Average)) and len(before) != 4:
        raise irreversible(step.name, type(step).__name__, f"it works on maps, but {given}")
    if isinstance(step, Conv):
        _check_count("channels", before[1], step.channels[0], step, given)
        size = [conv_size(before[2 + a], step.window[a], step.stride[a], step.padding[a]) for a in (0, 1)]
        return _with_size(before[0], step.channels[1], size, step, step.window, given)
    if isinstance(step, Pool):
        size = [
            pool_size(before[2 + a], step.kernel[a], step.stride[a], step.padding[a], step.ceil_mode) for a in (0, 1)
        ]
        return _with_size(before[0], before[1], size, step, step.kernel, given)
    if isinstance(step, Affine):
        _check_count("channels", before[1], step.batch_norm.num_features, step, given)
    elif isinstance(step, Average) and any(
        want not in (None, n) for want, n in zip(step.size, before[2:], strict=True)
    ):
        raise irreversible(
            step.name,
            "AdaptiveAvgPool2d",
            f"it can be only where it changes nothing, but it averages to {step.size} here ({given}); choose a layer "
            "below it, or images of the size it expects",
        )
    elif isinstance(step, Flatten):
        try:
            after = step.reshaped(shapes)
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


def _with_size(count: int, channels: int, size: list[int], step: Conv | Pool, window: Pair, given: str) -> torch.Size:
    if min(size) < 1:
        raise ValueError(
            f"images are too small for layer {step.name!r}: no {window[0]}x{window[1]} window fits (padding "
            f"{step.padding}); {given}"
        )
    return torch.Size((count, channels, *size))


# From a module or a function's arguments to steps


def _pair(value: object) -> Pair:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def _add_conv(chain, name, weight, bias=None, stride=1, padding=0, dilation=1, groups=1) -> None:
    shape = weight().shape
    stride, dilation, kernel = _pair(stride), _pair(dilation), tuple(shape[2:])
    if isinstance(padding, str):
        total = tuple((kernel[a] - 1) * dilation[a] if padding == "same" else 0 for a in (0, 1))
        before = tuple(sides // 2 for sides in total)
        after = tuple(total[a] - before[a] for a in (0, 1))
    else:
        before = after = _pair(padding)
    channels = shape[1] * groups, shape[0]
    chain.begin(name, Conv(name, weight, bias, channels, kernel, stride, before, after, dilation, groups))


def _add_conv_relu(chain, name, weight, bias=None, stride=1, padding=0, *, backend=None) -> None:
    _add_conv(chain, name, weight, bias, stride, padding)
    chain.join(name, ReLU(name))


def _add_pool(
    chain, name, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> None:
    if _pair(dilation) != (1, 1):
        raise Irreversible(f"its dilation must be 1, not {dilation}")
    if return_indices:
        raise Irreversible("return_indices must be False")
    kernel = _pair(kernel_size)
    if math.prod(kernel) > LARGEST_WINDOW:
        raise Irreversible(f"its window {kernel} has more than {LARGEST_WINDOW} pixels")
    chain.begin(name, Pool(name, kernel, _pair(stride) if stride else kernel, _pair(padding), ceil_mode))


def _add_switches(chain, name, kernel_size, stride=None, padding=0, ceil_mode=False, *, backend=None) -> None:
    _add_pool(chain, name, kernel_size, stride, padding, ceil_mode=ceil_mode)


def _add_layer(
    chain,
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
    parts = Chain()
    _add_conv_relu(parts, name, weight, bias, stride, padding)
    _add_pool(parts, name, pool_kernel, pool_stride, pool_padding, ceil_mode=ceil_mode)
    chain.begin(name, *parts.steps)


def _add_norm(chain, name, size=5, alpha=1e-4, beta=0.75, k=2.0, *, center=False, backend=None) -> None:
    chain.begin(name, Norm(name, (size, alpha, beta, k, center)))


def _add_response_norm(chain, name, size, alpha=1e-4, beta=0.75, k=1.0) -> None:
    _add_norm(chain, name, size, alpha, beta, k)


def _add_relu(chain, name, inplace=False) -> None:
    chain.join(name, ReLU(name))


def _add_average(chain, name, output_size) -> None:
    chain.between(Average(name, _pair(output_size)))


def _add_linear(chain, name, weight, bias=None) -> None:
    chain.begin(name, Linear(name, weight, bias, tuple(reversed(weight().shape))))


def _add_batch_norm(chain: Chain, name: str, batch_norm: nn.Module) -> None:
    if batch_norm.running_mean is None:
        raise Irreversible("it keeps no running mean and variance (track_running_stats=False)")
    last = chain.steps[-1] if chain.steps else None
    if isinstance(last, Conv):
        chain.steps[-1] = replace(last, batch_norms=(*last.batch_norms, Affine(name, batch_norm)))
        chain.join(name)
    elif isinstance(last, Linear):
        chain.join(name, Affine(name, batch_norm))
    else:
        chain.begin(name, Affine(name, batch_norm))


def _add_nothing(chain, name, *args, **kwargs) -> None:
    chain.join(name)


def _add_layout(chain, name, *, memory_format) -> None:
    chain.join(name)


CALLS = {
    F.conv2d: _add_conv,
    F.relu: _add_relu,
    F.relu_: _add_relu,
    torch.relu: _add_relu,
    torch.relu_: _add_relu,
    "relu": _add_relu,
    "relu_": _add_relu,
    F.max_pool2d: _add_pool,
    torch.max_pool2d: _add_pool,
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
WITH_SWITCHES = (conv2d_relu_max_pool2d, max_pool2d_with_switches)
RESHAPES = (torch.flatten, torch.reshape, "flatten", "reshape", "view")
SIZES = ("size", "dim", "ndimension", "numel", "nelement", "shape", "ndim")

NOTHING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)
LEAVES = (
    nn.Conv2d,
    nn.ReLU,
    nn.MaxPool2d,
    nn.LocalResponseNorm,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.AdaptiveAvgPool2d,
    nn.Linear,
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


def _add_module(chain: Chain, name: str, m: nn.Module) -> None:
    leaf = _leaf(m)
    if any(isinstance(hook, (WeightNorm, SpectralNorm)) for hook in m._forward_pre_hooks.values()):
        raise Irreversible("a hook makes its weight when it runs; use torch.nn.utils.parametrizations instead")
    if leaf in (nn.Conv2d, ConvReLU, ConvReLUMaxPool, nn.Linear):
        weights = (lambda: m.weight), (None if m.bias is None else lambda: m.bias)
    if leaf is nn.Conv2d:
        if m.padding_mode != "zeros":
            raise Irreversible(f"padding_mode must be 'zeros', not {m.padding_mode!r}")
        _add_conv(chain, name, *weights, m.stride, m.padding, m.dilation, m.groups)
    elif leaf is ConvReLU:
        _add_conv_relu(chain, name, *weights, m.stride, m.padding)
    elif leaf is ConvReLUMaxPool:
        pool = m.pool_kernel, m.pool_stride, m.pool_padding, m.ceil_mode
        _add_layer(chain, name, *weights, m.stride, m.padding, *pool)
    elif leaf is nn.ReLU:
        _add_relu(chain, name)
    elif leaf is nn.MaxPool2d:
        _add_pool(chain, name, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices)
    elif leaf is MaxPoolSwitches:
        _add_switches(chain, name, m.kernel_size, m.stride, m.padding, m.ceil_mode)
    elif leaf is nn.LocalResponseNorm:
        _add_response_norm(chain, name, m.size, m.alpha, m.beta, m.k)
    elif leaf is ContrastNorm:
        _add_norm(chain, name, m.size, m.alpha, m.beta, m.k, center=m.center)
    elif leaf in (nn.BatchNorm1d, nn.BatchNorm2d):
        _add_batch_norm(chain, name, m)
    elif leaf is nn.AdaptiveAvgPool2d:
        _add_average(chain, name, m.output_size)
    elif leaf is nn.Linear:
        _add_linear(chain, name, *weights)
    elif leaf is nn.Flatten:
        chain.between(Flatten(name, lambda shapes: m(torch.empty(shapes[-1], device="meta")).shape))
    elif leaf in NOTHING:
        _add_nothing(chain, name)
    else:
        raise Irreversible(NO_REVERSE)


# From a model to its chain


def trace(model: nn.Module) -> Chain:
    """The chain of `model`; NotImplementedError naming the first layer that cannot be reversed."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    if _leaf(model) is not None:
        model = nn.Sequential(model)
    chain = _walk(model, _graph(model))
    if not chain.layers and not chain.vector_layers:
        raise ValueError(f"model must have at least one conv, pool, norm or Linear layer, got {type(model).__name__}")
    return chain


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return _leaf(module) is not None or super().is_leaf_module(module, name)


def _graph(model: nn.Module) -> fx.Graph:
    import zfkernels

    calls = (conv2d_relu, conv2d_relu_max_pool2d, contrast_norm, max_pool2d_with_switches)
    try:
        _, *others = inspect.signature(model.forward).parameters.values()
        defaults = {other.name: other.default for other in others if other.default is not other.empty}
        return _Tracer(autowrap_modules=(math, zfkernels), autowrap_functions=calls).trace(model, defaults)
    except Exception as error:
        raise NotImplementedError(
            f"cannot trace {type(model).__name__}, for torch.fx says: {error} ({type(error).__name__}). The forward "
            "must take images alone, and no `if`, `assert` or loop in it may look at their values or shape; pass the "
            "part of the model that is a plain chain of layers, such as model.features, or rewrite its forward"
        ) from error


def _walk(model: nn.Module, graph: fx.Graph) -> Chain:
    """Follow the images through the graph: each node that takes them must take what the last one made."""
    chain = Chain()
    live = _live(model, graph)
    made: dict[fx.Node, int] = {}  # a node that holds what the chain made after some steps -> how many
    current: set[fx.Node] = set()  # those that hold what it made last
    sizes: set[fx.Node] = set()  # nodes computed from the sizes of such values alone
    for node in graph.nodes:
        if node.op == "placeholder" and not made:
            current, made[node] = {node}, 0
        taken = [other for other in node.all_input_nodes if other in made]
        if node not in live or node.op == "output" or not (taken or sizes.intersection(node.all_input_nodes)):
            continue
        if not taken or node.target in SIZES or (node.target is getattr and node.args[1] in SIZES):
            sizes.add(node)
            continue
        name, kind = _describe(model, node, chain)
        if len(taken) > 1:
            raise irreversible(name, kind, "it joins branches of the model, which must be a chain of layers")
        if taken[0] not in current:
            raise irreversible(
                name, kind, "the model branches there (an earlier layer has used the same input), and must be a chain"
            )
        before = list(chain.steps)
        try:
            _add_node(chain, name, model, node, made)
        except Irreversible as why:
            raise irreversible(name, kind, why) from None
        if [id(step) for step in chain.steps] == [id(step) for step in before]:
            current = current | {node}
        else:
            current = {node, taken[0]} if _in_place(model, node) else {node}
        made[node] = len(chain.steps)
    return chain


def _add_node(chain: Chain, name: str, model: nn.Module, node: fx.Node, made: dict[fx.Node, int]) -> None:
    """The steps of one node, whose first argument is the chain's present value."""
    arguments = list(node.args)
    keywords = dict(node.kwargs)
    first = arguments.pop(0) if arguments else keywords.pop("input", keywords.pop("x", None))
    if not isinstance(first, fx.Node) or first not in made:
        raise Irreversible(NO_REVERSE)
    if node.op == "call_module":
        _add_module(chain, name, model.get_submodule(node.target))
    elif node.target in RESHAPES:

        def reshaped(shapes: list[torch.Size]) -> torch.Size:
            return _evaluate(node, {other: shapes[steps] for other, steps in made.items() if steps < len(shapes)}).shape

        chain.between(Flatten(name, reshaped))
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
            CALLS[node.target](chain, name, *arguments, **keywords)
        except TypeError as error:
            raise Irreversible(f"its arguments cannot be read: {error}") from error
    else:
        raise Irreversible(NO_REVERSE)


def _evaluate(node: fx.Node, shapes: dict[fx.Node, torch.Size]) -> object:
    """What `node` gives for images of these shapes, without their values."""

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
    return called.endswith("_") or node.kwargs.get("inplace", False) or (node.target is F.relu and True in node.args)


def _live(model: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    """The nodes that something depends on: the output, or a value that a later node finds changed in place."""
    live = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or live.intersection(node.users) or _in_place(model, node):
            live.add(node)
    return live


def _describe(model: nn.Module, node: fx.Node, chain: Chain) -> tuple[str, str]:
    """A node's name, qualified where it is a module's (first) use, and its type."""
    if node.op == "call_module":
        used = {**chain.layers, **chain.vector_layers, **chain.aliases}
        return node.name if node.target in used else node.target, type(model.get_submodule(node.target)).__name__
    kind = "method" if node.op == "call_method" else "function"
    called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return node.name, f"{kind} {called}"
