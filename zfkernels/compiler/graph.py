"""The graph that dynamo gives, with in-place ops made plain where nobody could tell the difference.

`relu(x, inplace=True)` writes into x, and everything that reads x later reads the result. Where x is memory that an op
of the graph made, and nothing but plain ops has read it before, the later readers may as well read the op's own result.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

Function = Callable[..., Any]

METHODS: dict[object, Function] = {  # a tensor's method -> the function that does the same
    "relu": torch.relu,
    "relu_": torch.relu_,
    "add": torch.add,
    "add_": operator.iadd,
    "mul": torch.mul,
    "mul_": operator.imul,
    "clamp": torch.clamp,
    "clamp_": torch.clamp_,
    "sigmoid": torch.sigmoid,
    "sigmoid_": torch.sigmoid_,
}
PLAIN: dict[object, Function] = {  # in place -> the same as a plain function
    operator.iadd: operator.add,
    operator.imul: operator.mul,
    operator.isub: operator.sub,
    operator.itruediv: operator.truediv,
    torch.relu_: torch.relu,
    F.relu_: F.relu,
    torch.clamp_: torch.clamp,
    torch.sigmoid_: torch.sigmoid,
}
# Functions with an argument `inplace` whose result is of its first argument's shape and dtype.
WITH_INPLACE: tuple[Function, ...]
WITH_INPLACE = (F.relu, F.relu6, F.hardtanh, F.silu, F.hardswish, F.hardsigmoid, F.leaky_relu, F.elu, F.celu, F.selu)
WITH_INPLACE += (F.mish, F.threshold)
# Their results share no memory with their arguments.
FRESH: set[object] = {
    *(torch.conv2d, F.conv2d, torch.conv1d, torch.conv3d, torch.conv_transpose2d, F.batch_norm, F.group_norm),
    *(F.layer_norm, F.linear, torch.cat, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, torch.max_pool2d),
    *(torch.relu, torch.add, torch.mul, torch.clamp, torch.sigmoid, torch.tanh, torch.mean, torch.matmul),
    *(operator.add, operator.sub, operator.mul, operator.truediv, F.softmax, F.interpolate, F.gelu),
    *(F.local_response_norm, torch._C._nn.linear, torch._C._nn.avg_pool2d, torch._C._nn.gelu, *WITH_INPLACE),
}
READERS = {"size", "mean", "sum", "dim", "sigmoid", "softmax", "amax"}  # methods whose results share no memory either
UNSUPPORTED = ("autocast", "as_strided", "set_", "resize_")  # parts of names: such graphs are left to torch


def functional(graph: fx.Graph) -> bool:
    """Makes in-place ops plain and drops dropout that does nothing; False where an op that writes stays, or one whose
    meaning depends on how tensors lie in memory: the graph must then run as it is."""
    for node in graph.nodes:
        if node.op == "call_method" and node.target in METHODS and not set(node.kwargs) - {"min", "max"}:
            node.op, node.target = "call_function", METHODS[node.target]
    order = {node: place for place, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if idle_dropout(node):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
        elif writes(node):
            if not may_be_plain(node, order):
                return False
            make_plain(node, order)
    return not any(unsupported(node) for node in graph.nodes)


def function(node: object) -> Function | None:
    if not isinstance(node, fx.Node) or node.op != "call_function" or isinstance(node.target, str):
        return None
    return node.target


def argument(node: fx.Node, place: int, name: str, default: object = None) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def idle_dropout(node: fx.Node) -> bool:
    if function(node) not in (F.dropout, F.dropout2d, F.alpha_dropout, torch.dropout) or not node.args:
        return False
    name, default = ("train", None) if node.target is torch.dropout else ("training", True)
    return argument(node, 2, name, default) is False


def writes(node: fx.Node) -> bool:
    """Does it write into its first argument?"""
    target = function(node)
    if target is None:
        return node.op == "call_method" and named_in_place(str(node.target))
    if target in PLAIN or target is operator.setitem or node.kwargs.get("out") is not None:
        return True
    place = inplace_argument(node)
    return bool(place is not None and argument(node, place, "inplace", False)) or named_in_place(name_of(target))


def inplace_argument(node: fx.Node) -> int | None:
    """The place of the argument `inplace`."""
    target = function(node)
    if target in (F.dropout, F.dropout2d, F.alpha_dropout):
        return 3
    if target not in WITH_INPLACE:
        return None
    names = target.__code__.co_varnames[: target.__code__.co_argcount]
    return names.index("inplace") if "inplace" in names else None


def named_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def name_of(target: object) -> str:
    name: str = getattr(target, "__name__", str(target))
    return name


def may_be_plain(node: fx.Node, order: dict[fx.Node, int]) -> bool:
    written = argument(node, 0, "input")
    target = function(node)
    if (target not in PLAIN and target not in WITH_INPLACE) or not alone(written):
        return False
    if target in (operator.iadd, operator.imul, operator.isub, operator.itruediv) and not same_kind(node):
        return False
    earlier = [user for user in written.users if order[user] < order[node]]
    return all(function(u) in FRESH or (u.op == "call_method" and u.target in READERS) for u in earlier)


def alone(written: Any) -> bool:
    """Is it memory that an op of the graph made, or a part of such memory of which nothing else is read?"""
    if function(written) is operator.getitem and function(base := written.args[0]) in FRESH:
        return len(base.users) == 1
    return function(written) in FRESH


def same_kind(node: fx.Node) -> bool:
    """Does a plain op give the shape and dtype of the tensor that the op in place writes into?"""
    into: Any = node.args[0]
    written, result = (n.meta.get("example_value") for n in (into, node))
    other = node.args[1].meta.get("example_value") if isinstance(node.args[1], fx.Node) else node.args[1]
    if not isinstance(written, torch.Tensor) or not isinstance(result, torch.Tensor):
        return False
    return not isinstance(other, torch.Tensor) or (other.dtype == written.dtype and other.ndim <= written.ndim)


def make_plain(node: fx.Node, order: dict[fx.Node, int]) -> None:
    written = argument(node, 0, "input")
    written.replace_all_uses_with(node, delete_user_cb=lambda user: order.get(user, -1) > order[node])
    if node.target in PLAIN:
        node.target = PLAIN[node.target]
        return
    place = inplace_argument(node)
    node.args = tuple(False if i == place else value for i, value in enumerate(node.args))
    node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}


def unsupported(node: fx.Node) -> bool:
    name = node.target if isinstance(node.target, str) else name_of(node.target)
    if node.op not in ("call_function", "call_method"):
        return node.op == "call_module"
    return any(part in name for part in UNSUPPORTED) or isinstance(node.target, torch._ops.HigherOrderOperator)
