"""A torch model as a graph of steps, each of which can be run and reversed on its own.

The model is traced with torch.fx, so modules and functional calls, in-place or not, come out alike and in the order in
which they run; what an in-place call changes, its later readers read. A layer that has no reverse here raises
NotImplementedError naming it and its place. Weights stay in the model: a step reads them when it is asked to.

Layers carry the qualified names of the model's conv, pool, norm and Linear modules (a functional call, a sum, a
concatenation, or a module's second use, the name that torch.fx gives it). A layer's value is that after the batch norm
and the ReLU that alone follow it, whose names, and those of dropouts, are aliases of it. A batch norm that follows
anything but a conv or a Linear is a layer of its own, and so is a ReLU whose argument others read too.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor, fx, nn

from . import translate
from .graph import Graph, Node, name_layers, name_modules
from .makers import NO_REVERSE, Part, with_number
from .marks import hooked
from .rules import Function, Irreversible, Shapes, irreversible
from .steps import Add, Concat, Flatten, Opaque
from .tracer import Tracer, traced
from .translate import ARITHMETIC

AUGMENTED = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
SIZES = ("size", "dim", "ndimension", "numel", "nelement", "shape", "ndim")
JOINS_BRANCHES = "it joins branches of the model, and only their sum or concatenation has a reverse here"


def trace(model: nn.Module, reshapes: bool = False) -> Graph:
    """The graph of `model`, all of it: what has no step of its own is run as it stands (`Opaque`).

    `reshapes`: so is what may make other shapes than vectors; otherwise it is taken for a flattening, which its shape
    shows to be right or wrong. NotImplementedError where torch.fx cannot trace it, or where a view is changed in place.
    """
    model = unwrapped(model)
    return _Walk(model, *traced(model), opaque_reshapes=reshapes).walked()


def unwrapped(model: nn.Module) -> nn.Module:
    """The model that DataParallel or torch.compile wrapped; a single layer in a Sequential."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    model = getattr(model, "_orig_mod", model)  # what torch.compile wrapped
    return model if translate.kind_of(model) is None else nn.Sequential(model)


@dataclass
class _Walk:
    """The images followed through torch.fx's graph."""

    model: nn.Module
    source: fx.Graph
    tracer: Tracer
    constants: dict[str, Tensor]
    opaque_reshapes: bool
    hooked: set[str] = field(default_factory=set)  # modules with hooks; "": the model itself, or all modules
    graph: Graph = field(default_factory=Graph)
    held: dict[fx.Node, int] = field(default_factory=dict)  # a node -> the number of the value that it holds now
    sizes: set[fx.Node] = field(default_factory=set)  # nodes computed from the sizes of values alone
    stale: set[int] = field(default_factory=set)  # values that share memory with one that was changed in place
    names: set[str] = field(default_factory=set)
    passed: dict[str, int] = field(default_factory=dict)  # what changes nothing, by name -> the value that passes

    def walked(self) -> Graph:
        live, self.hooked = self._live(), hooked(self.model)
        for node in self.source.nodes:
            if node.op == "placeholder" and not self.held:
                self.held[node] = 0
            if node.op == "output" and isinstance(node.args[0], fx.Node):
                self.graph.output = self.held.get(node.args[0])
            if node in live and node.op != "output":
                self._visit(node)
        first, self.graph.submodules = (
            {name: self.held[node] for name, node in results.items() if node in self.held}
            for results in (self.tracer.first, self.tracer.last)
        )
        vectors = name_layers(self.graph, self.passed)
        name_modules(self.graph, first, lambda number: 2 if number in vectors else 4)
        return self.graph

    def _live(self) -> set[fx.Node]:
        """The nodes that something depends on: the output, or a value that a later node finds changed in place."""
        live: set[fx.Node] = set()
        for node in reversed(self.source.nodes):
            if node.op == "output" or live.intersection(node.users) or self._in_place(node):
                live.add(node)
        return live

    def _visit(self, node: fx.Node) -> None:
        taken = [other for other in node.all_input_nodes if other in self.held]
        if not taken or _is_size(node):
            if taken or self.sizes.intersection(node.all_input_nodes):
                self.sizes.add(node)
            return
        name, kind = self._describe(node)
        self.names.add(name)
        if self.stale.intersection(self.held[other] for other in taken):
            why = "what it takes shares memory, as a view or as what it views, with a value that was changed in place"
            raise irreversible(name, kind, why)
        try:
            part, inputs = self._part(name, node)
            doubt = self._doubt(node)
        except Irreversible as why:
            part, inputs = Part("layer", (self._opaque(name, node, taken),)), tuple(self.held[o] for o in taken)
            doubt = f"{name!r} ({kind}): {why}"
        before, module = inputs[0], self._modules(node)[-1]
        if not part.steps:
            self.held[node] = self.passed[name] = before
            return
        for step in part.steps:
            role = part.role if step is part.steps[-1] else "between"
            self.graph.nodes.append(Node(name, step, inputs, role, module, doubt))
            inputs = (len(self.graph.nodes),)
        self.held[node] = number = len(self.graph.nodes)
        if self._in_place(node):
            self.stale |= self._sharing(before) - {number}
            self.held |= dict.fromkeys([other for other, value in self.held.items() if value == before], number)

    # Reading one node

    def _part(self, name: str, node: fx.Node) -> tuple[Part, tuple[int, ...]]:
        """The steps of one node and the numbers of the values that they take."""
        reader = _Walk._module if node.op == "call_module" else READERS.get(node.target, _Walk._unknown)
        part, inputs = reader(self, name, node)
        if self.opaque_reshapes and any(isinstance(step, Flatten) for step in part.steps):
            raise Irreversible("it may make other shapes than vectors")
        return part, inputs

    def _first(self, node: fx.Node) -> tuple[fx.Node, list[Any], dict[str, Any]]:
        """The value that a call of one value takes, and the call's other arguments."""
        arguments, keywords = list(node.args), dict(node.kwargs)
        first = arguments.pop(0) if arguments else keywords.pop("input", keywords.pop("x", None))
        if not isinstance(first, fx.Node) or first not in self.held:
            raise Irreversible(NO_REVERSE)
        if any(other in self.held for other in node.all_input_nodes if other is not first):
            raise Irreversible(JOINS_BRANCHES)
        return first, arguments, keywords

    def _module(self, name: str, node: fx.Node) -> tuple[Part, tuple[int, ...]]:
        first, _, _ = self._first(node)
        return translate.module_part(name, self.model.get_submodule(str(node.target))), (self.held[first],)

    def _unknown(self, name: str, node: fx.Node) -> tuple[Part, tuple[int, ...]]:
        self._first(node)
        raise Irreversible(NO_REVERSE)

    def _arithmetic(self, name: str, node: fx.Node) -> tuple[Part, tuple[int, ...]]:
        operation, keywords = ARITHMETIC[node.target], dict(node.kwargs)
        operands: list[Any] = [*node.args, *(keywords.pop(key) for key in ("input", "other") if key in keywords)]
        if len(operands) != 2 or any(keywords.get(key) not in (None, 1) for key in keywords):
            raise Irreversible(NO_REVERSE)
        values = tuple(self.held[operand] for operand in operands if operand in self.held)
        if len(values) == 1:
            return with_number(name, operation, *(None if o in self.held else o for o in operands)), values
        if operation != "add":
            raise Irreversible(JOINS_BRANCHES)
        return Part("layer", (Add(name),)), values

    def _concat(self, name: str, node: fx.Node) -> tuple[Part, tuple[int, ...]]:
        arguments, keywords = list(node.args), dict(node.kwargs)
        joined: Any = arguments.pop(0) if arguments else keywords.pop("tensors", None)
        dim = arguments.pop(0) if arguments else keywords.pop("dim", keywords.pop("axis", 0))
        tensors: Sequence[Any] = joined if isinstance(joined, (list, tuple)) else [None]
        if arguments or keywords or any(value not in self.held for value in tensors):
            raise Irreversible(NO_REVERSE)
        if dim not in (1, -3):
            raise Irreversible(f"it must join values of the model along dimension 1, not {dim}")
        return Part("layer", (Concat(name),)), tuple(self.held[value] for value in tensors)

    def _reshape(self, name: str, node: fx.Node) -> tuple[Part, tuple[int, ...]]:
        first, _, _ = self._first(node)
        held = dict(self.held)

        def reshaped(_: Size, shapes: Shapes) -> Size:
            shape: Size = _evaluate(node, _known(held, shapes)).shape
            return shape

        return Part("between", (Flatten(name, reshaped),)), (self.held[first],)

    def _item(self, name: str, node: fx.Node) -> tuple[Part, tuple[int, ...]]:
        """The map out of (map, switches)."""
        first, arguments, _ = self._first(node)
        if not (first.target in translate.WITH_SWITCHES or self._returns_switches(first)) or arguments != [0]:
            raise Irreversible(NO_REVERSE)
        return Part("part"), (self.held[first],)

    def _function(self, name: str, node: fx.Node) -> tuple[Part, tuple[int, ...]]:
        first, arguments, keywords = self._first(node)
        computed = [other for other in node.all_input_nodes if other in self.sizes]
        if computed:
            raise Irreversible(f"its argument {computed[0].name!r} is computed from the images' size")

        def reader(constant: fx.Node) -> Any:
            return lambda: self._constant(constant)

        given: Any = tuple(arguments), keywords
        read, read_keywords = fx.map_arg(given, reader)
        return translate.function_part(node.target, name, read, read_keywords), (self.held[first],)

    def _opaque(self, name: str, node: fx.Node, taken: list[fx.Node]) -> Opaque:
        model, held, index, sizes = self.model, dict(self.held), {o: i for i, o in enumerate(taken)}, set(self.sizes)

        def call(inputs: list[Any], shapes: Shapes) -> object:
            known = _known(held, shapes)

            def value(other: fx.Node) -> Any:
                if other in index:
                    return inputs[index[other]]
                return _evaluate(other, known) if other in sizes else self._constant(other)

            arguments, keywords = _given(node, value)
            if self._in_place(node):
                arguments = (arguments[0].clone(), *arguments[1:])
            if node.op == "call_module":
                return model.get_submodule(str(node.target))(*arguments, **keywords)
            return _called(node, arguments, keywords)

        kind = type(model.get_submodule(str(node.target))) if node.op == "call_module" else node.target
        return Opaque(name, call, kind in translate.POINTWISE and len(node.all_input_nodes) == 1)

    def _constant(self, node: fx.Node) -> Any:
        """What does not depend on the images, as it is now: a parameter, a buffer, what is computed of those alone."""
        if node.op == "get_attr":
            constant = self.constants.get(str(node.target))
            return operator.attrgetter(str(node.target))(self.model) if constant is None else constant
        arguments, keywords = _given(node, self._constant)
        if node.op == "call_module":
            return self.model.get_submodule(str(node.target))(*arguments, **keywords)
        return _called(node, arguments, keywords)

    # Facts about a node

    def _modules(self, node: fx.Node) -> list[str]:
        """The modules that run it, from the model itself on."""
        inside = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
        return ["", *inside, *([str(node.target)] if node.op == "call_module" else [])]

    def _doubt(self, node: fx.Node) -> str | None:
        names = self.hooked.intersection(self._modules(node))
        return (
            f"{min(names) or type(self.model).__name__!r} has hooks, which may change what it gives" if names else None
        )

    def _describe(self, node: fx.Node) -> tuple[str, str]:
        """A node's name, qualified where it is a module's (first) use, and its type and place."""
        if node.op == "call_module":
            target = str(node.target)
            module = self.model.get_submodule(target)
            return node.name if target in self.names else target, type(module).__name__
        kind = "method" if node.op == "call_method" else "function"
        called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        modules = [path for path, _ in node.meta.get("nn_module_stack", {}).values() if path]
        return node.name, f"{kind} {called}" + (f" in {modules[-1]}" if modules else "")

    def _returns_switches(self, node: fx.Node) -> bool:
        return node.op == "call_module" and getattr(
            self.model.get_submodule(str(node.target)), "return_switches", False
        )

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self.model.get_submodule(str(node.target)), "inplace", False))
        called = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return bool(
            called.endswith("_")
            or node.target in AUGMENTED
            or node.kwargs.get("inplace", False)
            or (node.target is F.relu and True in node.args)
        )

    def _sharing(self, value: int) -> set[int]:
        """The values, besides `value`, that may share its memory: what it is a view of, and views of that."""

        def views(number: int) -> bool:
            return isinstance(self.graph.node(number).step, (Flatten, Opaque))

        chain = [value]
        while chain[-1] and views(chain[-1]):
            chain += self.graph.node(chain[-1]).inputs[:1]
        sharing = set(chain)
        for number, node in enumerate(self.graph.nodes, 1):
            if views(number) and sharing.intersection(node.inputs):
                sharing.add(number)
        return sharing - {value}


READERS: dict[Function | str, Callable[..., tuple[Part, tuple[int, ...]]]] = {
    **dict.fromkeys(translate.FUNCTIONS, _Walk._function),
    **dict.fromkeys(ARITHMETIC, _Walk._arithmetic),
    **dict.fromkeys(translate.CONCATS, _Walk._concat),
    **dict.fromkeys(translate.RESHAPES, _Walk._reshape),
    operator.getitem: _Walk._item,
}


def _is_size(node: fx.Node) -> bool:
    return node.op != "call_module" and (node.target in SIZES or (node.target is getattr and node.args[1] in SIZES))


def _known(held: dict[fx.Node, int], shapes: Shapes) -> dict[fx.Node, Size]:
    return {node: shape for node, number in held.items() if (shape := shapes[number]) is not None}


def _called(node: fx.Node, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> object:
    if node.op == "call_method":
        return getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
    function: Any = node.target
    return function(*arguments, **keywords)


def _given(node: fx.Node, value: Callable[[fx.Node], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A call's arguments, each node among them as its `value`."""
    given: Any = node.args, node.kwargs
    arguments, keywords = fx.map_arg(given, value)
    return arguments, keywords


def _evaluate(node: fx.Node, shapes: dict[fx.Node, Size]) -> Any:
    """What `node` gives for values of these shapes, without looking at them."""

    def value(other: fx.Node) -> Any:
        return torch.empty(shapes[other], device="meta") if other in shapes else _evaluate(other, shapes)

    return _called(node, *_given(node, value))
