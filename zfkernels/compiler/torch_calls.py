"""A node that no convolution took: poolings, means over maps and Linear by our kernels, the rest by its own function;
and what the graph gives back."""

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .. import _C
from ..backends.memory import address
from ..ops.define import PLAIN
from ..ops.linear import MOST_IMAGES
from . import kernels
from .averages import average_run
from .graph import Function, argument, function
from .kernels import LAST, Registers, Run
from .match import LINEARS, POOLS, pool_of

LEAST_LINEAR = 1 << 20  # bytes of a weight


def of_node(node: fx.Node, place: dict[fx.Node, int], r: Registers, threads: int) -> Run:
    """The node as a call on the registers."""
    if function(node) in POOLS and (pool := pool_of(node)) is not None:
        run = kernels.pool_alone(place[argument(node, 0, "input")], place[node], r, pool, threads)
    elif function(node) in LINEARS:
        run = linear_run(node, place, r, threads)
    else:
        run = average_run(node, place, r, threads)
    return run or by_torch(node, place)


def linear_run(node: fx.Node, place: dict[fx.Node, int], r: Registers, threads: int) -> Run | None:
    """A Linear of few images reads its weight once by our kernel. None where it has none."""
    values = [argument(node, i, name) for i, name in enumerate(("input", "weight", "bias"))]
    at = [place[v] if isinstance(v, fx.Node) else -1 for v in values]
    if min(at[:2]) < 0:
        return None
    tensors = [r[i] for i in at if i >= 0]
    x, weight = tensors[:2]
    if any(type(t) not in PLAIN or t.dtype != torch.float32 or not t.is_contiguous() or t.is_neg() for t in tensors):
        return None
    images, most = (len(x), MOST_IMAGES) if x.ndim == 2 else (0, 0)
    if any(t.device.type != "cpu" for t in tensors) or not 0 < images <= most or weight.nbytes < LEAST_LINEAR:
        return None
    outputs, inputs = weight.shape
    shape, (x_at, w_at, b_at), out = (images, outputs), at, place[node]

    def run(r: Registers) -> None:
        x, w, b = r[x_at], r[w_at], r[b_at] if b_at >= 0 else None
        if not w.is_contiguous() or w.shape != (outputs, inputs):  # the weight was swapped for another
            r[out] = F.linear(x, w, b)
            return
        y = r[out] = x.new_empty(shape)
        _C.linear(False, images, inputs, outputs, x.data_ptr(), w.data_ptr(), address(b), y.data_ptr(), threads)

    return run


def by_torch(node: fx.Node, place: dict[fx.Node, int]) -> Run:
    """The node's function on the registers; the commonest forms of arguments without a search for nodes in them."""
    target, out = function_of(node), place[node]
    args: Any = node.args
    kwargs: Any = dict(node.kwargs)
    if not nodes_in(kwargs) and args:
        head, rest = args[0], args[1:]
        if isinstance(head, fx.Node) and not nodes_in(rest):
            return of_one(target, place[head], rest, kwargs, out)
        if isinstance(head, (list, tuple)) and all(isinstance(n, fx.Node) for n in head) and not nodes_in(rest):
            return of_list(target, [place[n] for n in head], rest, kwargs, out)
        if all(a is None or isinstance(a, fx.Node) for a in args):
            return of_tensors(target, [None if a is None else place[a] for a in args], kwargs, out)

    def run(r: Registers) -> None:
        values, named = fx.map_arg((args, kwargs), lambda n: r[place[n]])
        r[out] = target(*values, **named)

    return run


def of_one(target: Function, first: int, rest: tuple[Any, ...], kwargs: dict[str, Any], out: int) -> Run:
    def run(r: Registers) -> None:
        r[out] = target(r[first], *rest, **kwargs)

    return run


def of_list(target: Function, many: list[int], rest: tuple[Any, ...], kwargs: dict[str, Any], out: int) -> Run:
    def run(r: Registers) -> None:
        r[out] = target([r[i] for i in many], *rest, **kwargs)

    return run


def of_tensors(target: Function, many: list[int | None], kwargs: dict[str, Any], out: int) -> Run:
    known = [i for i in many if i is not None]
    if len(known) == len(many) == 2 and not kwargs:
        one, two = known

        def run_two(r: Registers) -> None:
            r[out] = target(r[one], r[two])

        return run_two

    def run(r: Registers) -> None:
        r[out] = target(*(None if i is None else r[i] for i in many), **kwargs)

    return run


def function_of(node: fx.Node) -> Function:
    """A method is looked up by name. `view` is `reshape`, for maps are channels-last here."""
    if node.op == "call_method":
        name = str(node.target)
        if name == "view" and not any(isinstance(a, torch.dtype) for a in (*node.args, *node.kwargs.values())):
            name = "reshape"
        return operator.methodcaller(name) if len(node.args) == 1 and not node.kwargs else method(name)
    assert not isinstance(node.target, str)
    return node.target


def method(name: str) -> Function:
    return lambda value, *args, **kwargs: getattr(value, name)(*args, **kwargs)


def nodes_in(values: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(values, found.append)
    return found


def attribute(module: torch.nn.Module, name: str) -> object:
    return operator.attrgetter(name)(module)


def described(r: Registers, place: int) -> object:
    """What the calls depend on, of an input; a pending negation is done first."""
    value = r[place]
    if not isinstance(value, Tensor):
        return value
    if value.is_neg():
        value = r[place] = value.resolve_neg()
    return value.shape, value.stride(), value.dtype


def result_of(output: fx.Node, place: dict[fx.Node, int]) -> Callable[[Registers], object]:
    """What the graph gives back, from the registers; maps lie as torch's own ops would have left them."""
    formats = {place[node]: memory_format(node) for node in nodes_in(output.args)}
    kept = [(i, form) for i, form in formats.items() if form is not None]
    values: Any = output.args[0]
    flat = isinstance(values, (tuple, list)) and all(isinstance(v, fx.Node) for v in values)
    places = [place[v] for v in values] if flat else []

    def result(r: Registers) -> object:
        for i, form in kept:
            if isinstance(r[i], Tensor):
                r[i] = r[i].contiguous(memory_format=form)
        if flat:
            return tuple([r[i] for i in places])
        return fx.map_arg(values, lambda node: r[place[node]])

    return result


def memory_format(node: fx.Node) -> torch.memory_format | None:
    """The format in which torch would give this map; None where it is not among an op's dense results."""
    value = node.meta.get("example_value")
    if node.op not in ("call_function", "call_method") or not isinstance(value, Tensor) or value.ndim != 4:
        return None
    if value.is_contiguous():
        return torch.contiguous_format
    return LAST if value.is_contiguous(memory_format=LAST) else None
