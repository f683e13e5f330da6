"""A model's own forward, watched: which torch functions it calls on what comes from the images, and in which modules.

Nothing of the model is rewritten or copied. A function mode sees every call, hooks that are there only meanwhile tell
which module runs. What was seen is a graph of the same steps and the same names as trace.py's, good for names, shapes
and receptive fields; the values come from the model itself.
"""

import builtins
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Size, Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from . import library, translate
from .graph import Graph, Node, name_layers, name_modules
from .makers import Part, with_number
from .rules import Arguments, Function, Irreversible, Keywords
from .steps import Add, Concat, Flatten, Opaque
from .translate import ARITHMETIC, CONCATS, POINTWISE_NAMES, RESHAPES

# Runs a call: (its function, arguments, keywords, the module it stands in, the number that its value will have)
Call = Callable[[Function, Arguments, Keywords, nn.Module, int], object]

# What torch.fx calls what a function mode sees under another name
SPELLED = {
    **{"add_": "iadd", "sub_": "isub", "mul_": "imul", "div_": "itruediv", "div": "truediv", "__getitem__": "getitem"},
    **{"__rsub__": "sub", "__rdiv__": "truediv", "__get__": "getattr", "_threshold": "threshold"},
}


class Stopped(BaseException):
    """All that was wanted has been seen. No Exception, which a model might catch."""


@dataclass
class Seen:
    """One forward pass. Lists are by a value's number."""

    graph: Graph = field(default_factory=Graph)
    shapes: list[Size] = field(default_factory=list)  # of each value; of the first tensor where a call gives several
    calls: list[str] = field(default_factory=list)  # what was called
    kinds: list[str] = field(default_factory=list)  # what to call a call's function, or the module that is nothing else
    kept: dict[int, Tensor] = field(default_factory=dict)
    rectified: frozenset[int] = frozenset()  # the values whose calls were run as rectifiers


class Watch(TorchFunctionMode):
    """Sees a forward pass of `model` on `images`; `call` runs each call.

    `wanted`: the numbers of the values to keep; the pass stops when it has them.
    """

    def __init__(self, model: nn.Module, images: Tensor, call: Call, wanted: Collection[int] = ()) -> None:
        super().__init__()
        self.model, self.call, self.wanted = model, call, set(wanted)
        self.seen = Seen(shapes=[images.shape], calls=[""], kinds=[""])
        self.held = WeakTensorKeyDictionary({images: 0})
        self.running: list[tuple[str, nn.Module, bool]] = [("", model, False)]  # name, module, whether it is a leaf
        self.results: dict[str, int] = {}
        self.uses: Counter[str] = Counter()  # how often each leaf has been entered
        self.counts: Counter[str] = Counter()  # how often each name has been given
        self.passed: dict[str, int] = {}
        self.begun = False  # whether the leaf that runs has made a value

    def __torch_function__(
        self, function: Function, types: object, args: Arguments = (), kwargs: Keywords | None = None
    ) -> object:
        kwargs = kwargs or {}
        taken = [self.held[x] for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x in self.held]
        if not taken:
            return function(*args, **kwargs)
        first = args[0] if args and isinstance(args[0], Tensor) else None
        version = None if first is None or first.is_inference() else first._version
        result = self.call(function, args, kwargs, self.running[-1][1], len(self.seen.shapes))
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        if made:
            unchanged = made[0] is first and first in self.held and version == first._version
            self._note(function, args, kwargs, list(dict.fromkeys(taken)), made, unchanged)
        return result

    # Modules

    @property
    def _leaf(self) -> tuple[str, nn.Module] | None:
        """The outermost of the running modules that is a leaf, one of torch's own."""
        return next(((name, module) for name, module, leaf in self.running if leaf), None)

    def enter(self, name: str, module: nn.Module) -> None:
        outside, leaf = self._leaf is None, translate.is_leaf(module)
        self.running.append((name, module, leaf))
        if outside and leaf:
            self.uses[name] += 1
            self.begun = False

    def leave(self, name: str, module: nn.Module, output: object) -> None:
        while len(self.running) > 1 and self.running.pop()[0] != name:
            pass
        value = next((x for x in tree_leaves(output) if isinstance(x, Tensor) and x in self.held), None)
        leaf = translate.is_leaf(module)
        if value is not None and leaf and not self.begun:
            self.passed.setdefault(name, self.held[value])
        elif value is not None and (name not in self.results or not leaf):
            self.results[name] = self.held[value]

    # Calls

    def _note(
        self,
        function: Function,
        args: Arguments,
        kwargs: Keywords,
        taken: list[int],
        made: list[Tensor],
        unchanged: bool,
    ) -> None:
        called, leaf = name_of(function), self._leaf
        name = self._name(called, leaf)
        if unchanged:
            self.passed[name] = self.held[made[0]]
            return
        try:
            part, inputs = self._part(name, function, args, kwargs, made[0])
        except Irreversible:
            pointwise = self._pointwise(called, taken, made[0])
            opaque = Opaque(name, None, pointwise)  # type: ignore[arg-type]  # the values come from the model
            part, inputs = Part("layer", (opaque,)), tuple(taken)
        if not part.steps:  # what traced models pass over; here it may have made another tensor
            for x in made:
                self.held[x] = inputs[0]
            self.passed[name] = inputs[0]
            return
        role = "part" if leaf is not None and self.begun else part.role
        seen, self.begun = self.seen, True
        for step in part.steps:
            last = step is part.steps[-1]
            module = self.running[-1][0]
            seen.graph.nodes.append(Node(name, step, inputs, role if last else "between", module))
            seen.shapes.append(made[0].shape)
            seen.calls.append(called)
            seen.kinds.append(called if leaf is None or list(leaf[1].children()) else type(leaf[1]).__name__)
            inputs = (len(seen.graph.nodes),)
        number = inputs[0]
        for x in made:
            self.held[x] = number
        if number in self.wanted:
            self._keep(number, made[0])

    def _keep(self, number: int, value: Tensor) -> None:
        kept = self.seen.kept
        complete = len(kept) + 1 == len(self.wanted)
        kept[number] = value if complete else value.clone()  # which nothing that follows changes in place
        if complete:
            raise Stopped

    def _name(self, called: str, leaf: tuple[str, nn.Module] | None) -> str:
        """As torch.fx would name it: a leaf's first use by its path."""
        if leaf is not None and self.begun:
            return self._numbered(f"{leaf[0]}.{called}")
        if leaf is None:
            return self._numbered(called)
        path = leaf[0].replace(".", "_")
        if self.uses[leaf[0]] == 1:
            self.counts[path] += 1
            return leaf[0]
        return self._numbered(path)

    def _numbered(self, base: str) -> str:
        number = self.counts[base] + hasattr(builtins, base)
        self.counts[base] += 1
        return f"{base}_{number}" if number else base

    def _part(
        self, name: str, function: Function, args: Arguments, kwargs: Keywords, made: Tensor
    ) -> tuple[Part, tuple[int, ...]]:
        """The steps of a call and the numbers of the values that they take, as trace.py reads them."""
        key = key_of(function)
        arguments, keywords = list(args), dict(kwargs)
        if key in ARITHMETIC:
            operands = [*arguments, *(keywords.pop(k) for k in ("input", "other") if k in keywords)]
            values = tuple(number for x in operands if (number := self._number(x)) is not None)
            if len(operands) != 2 or any(v not in (None, 1) for v in keywords.values()):
                raise Irreversible("")
            if len(values) == 1:
                numbers = (None if self._number(x) is not None else x for x in operands)
                return with_number(name, ARITHMETIC[key], *numbers), values
            if ARITHMETIC[key] != "add" or operands[0].shape != operands[1].shape:
                raise Irreversible("")
            return Part("layer", (Add(name),)), values
        if key in CONCATS:
            joined = arguments.pop(0) if arguments else keywords.pop("tensors", ())
            dim = arguments.pop(0) if arguments else keywords.pop("dim", keywords.pop("axis", 0))
            values = tuple(number for x in joined if (number := self._number(x)) is not None)
            if len(values) < len(joined) or dim not in (1, -3):
                raise Irreversible("")
            return Part("layer", (Concat(name),)), values
        first = arguments.pop(0) if arguments else keywords.pop("input", keywords.pop("x", None))
        number = self._number(first)
        others = tree_leaves((arguments, keywords))
        if number is None or any(self._number(x) is not None for x in others):
            raise Irreversible("")
        if key in RESHAPES:
            if made.shape != (len(first), first[0].numel()):
                raise Irreversible("")
            return Part("between", (Flatten(name, lambda before, _: Size((before[0], before[1:].numel()))),)), (number,)
        if isinstance(function, OpOverload):
            return library.op_part(function.name(), name, arguments, keywords), (number,)
        if key not in translate.FUNCTIONS:
            raise Irreversible("")
        read = [_reader(x) for x in arguments], {k: _reader(x) for k, x in keywords.items()}
        return translate.function_part(key, name, *read), (number,)

    def _number(self, value: object) -> int | None:
        return self.held.get(value) if isinstance(value, Tensor) else None

    def _pointwise(self, called: str, taken: list[int], made: Tensor) -> bool:
        """Whether each place of a value depends on the same place of what it is made of."""
        sizes = {self.seen.shapes[i][2:] for i in taken if len(self.seen.shapes[i]) == 4}
        return made.ndim == 4 and sizes <= {made.shape[2:]} and called in POINTWISE_NAMES


def key_of(function: Function) -> Function | str:
    """What tables of functions name a call by: a tensor's method by its name."""
    return function.__name__ if type(function).__name__ in ("method_descriptor", "wrapper_descriptor") else function


def _reader(value: object) -> object:
    return (lambda: value) if isinstance(value, Tensor) else value


def name_of(function: object) -> str:
    """What a call is named after."""
    if isinstance(function, OpOverload):
        op: str = function.name()
        return library.OP_NAMES.get(op, op.partition("::")[2])
    name: str = getattr(function, "__name__", type(function).__name__)
    return SPELLED.get(name, name)


@contextmanager
def _hooked(model: nn.Module, watch: Watch) -> Iterator[None]:
    """Every module but the model tells `watch` when it begins and ends, after the hooks that it has already."""
    thread = threading.get_ident()

    def tell(name: str) -> tuple[Function, Function]:
        def enter(module: nn.Module, args: Arguments) -> None:
            if threading.get_ident() == thread:
                watch.enter(name, module)

        def leave(module: nn.Module, args: Arguments, output: object) -> None:
            if threading.get_ident() == thread:
                watch.leave(name, module, output)

        return enter, leave

    handles = []
    try:
        for name, module in model.named_modules():
            if name:
                enter, leave = tell(name)
                handles += [module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)]
        yield
    finally:
        for handle in handles:
            handle.remove()


def watched(
    model: nn.Module, forward: Function | None, images: Tensor, call: Call, wanted: Collection[int] = ()
) -> tuple[Seen, object]:
    """What a pass of forward(model, images) shows, or of model(images) if `forward` is None; and its output.

    The output is None if the pass stopped before the end.
    """
    watch, output = Watch(model, images, call, wanted), None
    eager, exact = torch.compiler.set_stance("force_eager"), torch.autocast(images.device.type, enabled=False)
    with _hooked(model, watch), eager, exact:
        try:
            with watch:
                output = model(images) if forward is None else forward(model, images)
        except Stopped:
            pass
    seen = watch.seen
    value = next((x for x in tree_leaves(output) if isinstance(x, Tensor) and x in watch.held), None)
    seen.graph.output = None if value is None else watch.held[value]
    seen.graph.submodules = watch.results
    name_layers(seen.graph, watch.passed)
    name_modules(seen.graph, watch.results, lambda number: len(seen.shapes[number]))
    return seen, output
