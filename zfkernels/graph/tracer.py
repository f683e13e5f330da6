"""torch.fx's graph of a model, in which what is changed in place shows, and each submodule's results are known."""

import inspect
import math
import operator
import sys
from typing import Any

from torch import Tensor, fx, nn

from . import translate
from .rules import Function


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

    def _in_place(self, function: Function, other: object) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", function, (self, other), {})


class Tracer(fx.Tracer):
    """A tracer that also keeps what each submodule gave first and last, and that runs no hooks."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.first: dict[str, fx.Node] = {}
        self.last: dict[str, fx.Node] = {}

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return translate.is_leaf(module)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(
        self, module: nn.Module, forward: Function, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> object:
        result = super().call_module(module, module.forward, args, kwargs)
        first = result[0] if isinstance(result, tuple) and result else result
        if isinstance(first, fx.Proxy):
            path = self.path_of_module(module)
            self.last[path] = first.node
            if path not in self.first or not translate.is_leaf(module):
                self.first[path] = first.node
        return result


def traced(model: nn.Module) -> tuple[fx.Graph, Tracer, dict[str, Tensor]]:
    """torch.fx's graph of the model, its tracer, and the constants that the graph names.

    The constants would stay behind on the model, as attributes.
    """
    if "forward" in vars(model) or type(model).__call__ is not nn.Module.__call__:
        raise NotImplementedError(f"the forward of {type(model).__name__} is not its class's own")
    package = sys.modules[__package__.partition(".")[0]]
    # torch.fx leaves whole what a forward calls of these, by name or as zfkernels.NAME; getattr puts them there.
    ops = [getattr(package, name) for name, module in package.MODULES.items() if module.startswith("ops.")]
    before = set(vars(model))
    try:
        _, *others = inspect.signature(model.forward).parameters.values()
        defaults = {other.name: other.default for other in others if other.default is not other.empty}
        tracer = Tracer(autowrap_modules=(math, package), autowrap_functions=tuple(ops))
        graph = tracer.trace(model, defaults)
        return graph, tracer, {name: vars(model)[name] for name in set(vars(model)) - before}
    except Exception as error:
        raise NotImplementedError(
            f"cannot trace {type(model).__name__}, for torch.fx says: {error} ({type(error).__name__}). The forward "
            "must take images alone, and no `if`, `assert` or loop in it may look at their values or shape"
        ) from error
    finally:
        for name in set(vars(model)) - before:
            delattr(model, name)
