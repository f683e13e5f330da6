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

from torch import fx, nn

from ..ops.contrast_norm import contrast_norm
from ..ops.conv import conv2d_relu
from ..ops.fused import conv2d_relu_max_pool2d
from ..ops.max_pool import max_pool2d_with_switches
from .graph import Chain, Graph, Node, _chain, _name_layers
from .steps import Flatten, Irreversible, Opaque, irreversible
from .translate import _describe, _hooked, _in_place, _is_size, _leaf, _opaque, _Part, _part

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


def _live(model: nn.Module, graph: fx.Graph) -> set[fx.Node]:
    """The nodes that something depends on: the output, or a value that a later node finds changed in place."""
    live = set()
    for node in reversed(graph.nodes):
        if node.op == "output" or live.intersection(node.users) or _in_place(model, node):
            live.add(node)
    return live
