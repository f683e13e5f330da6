"""One op, two ways in.

The backend's function of the op's name computes it. The rest is written once, as functions of a class that is only
their namespace:

    fake(*arguments)                     the same shapes, dtypes and strides, nothing computed
    setup_context(ctx, inputs, output)   what the backward needs; if left out, all tensors, and the rest as ctx.settings
    backward(ctx, *gradients)            one gradient a tensor argument

`define` gives them two ways in. In eager mode: the backend itself when nothing needs a gradient, else an
autograd.Function. Under torch.compile, export, a dispatch mode, or with tensors that are not plain ones: the
`torch.library` op `torch.ops.zfkernels.<name>`, which such machinery can see (torch.jit.trace its overload `traced`). A
call with gradients costs some 90 microseconds through the library, about 10 in eager mode. torch.func's transforms take
the eager way in the slower form that they require; vmap runs its batch one by one. Forward-mode differentiation raises.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import backends
from ..backends.prepared import PreparedFilters

LIBRARY = torch.library.Library("zfkernels", "DEF")
PLAIN = (Tensor, torch.nn.Parameter)

Function = Callable[..., Any]
Context = Any  # torch's, in which an op's functions keep what they like
Inputs = tuple[Any, ...]
Gradients = tuple[Tensor | None, ...]


class Op(Protocol):
    """What `define` is given: a class, as the namespace of these functions and perhaps of setup_context."""

    @staticmethod
    def fake(*arguments: Any, **keywords: Any) -> Any: ...

    @staticmethod
    def backward(*arguments: Any, **keywords: Any) -> Any: ...


def define(schema: str, op: type[Op]) -> Function:
    """The op of this schema, whose first arguments are tensors or None and whose last is the backend."""
    name, tensors = schema[: schema.index("(")], schema[: schema.index(")")].count("Tensor")
    forward, setup_context = _forward(name), getattr(op, "setup_context", _save_tensors(tensors))
    library_op, full_backward = _library_op(name, schema, tensors, forward, op, setup_context)
    # torch.jit.trace cannot record a list of SymInt: it gets a twin of the op with plain ints.
    plain_schema = schema.replace(f"{name}(", f"{name}.traced(", 1).replace("SymInt[2]", "int[2]")
    traced_op, _ = _library_op(f"{name}.traced", plain_schema, tensors, forward, op, setup_context)
    eager = _eager_function(name, forward, op, setup_context)
    # What Function.apply ends in; what it does before is for function transforms, and costs 2 microseconds.
    apply: Function = super(torch.autograd.Function, eager).apply  # type: ignore[misc]

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return library_op(*arguments)
        if forward_ad._current_level >= 0:
            refuse_tangents(name, arguments[:tensors])
        if torch._C._are_functorch_transforms_active():
            return transformed.apply(*arguments)
        if torch._C._get_tracing_state() is not None:
            return traced_op(*arguments[:tensors], *map(_constant, arguments[tensors:]))
        if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
            return library_op(*arguments)
        needs_gradient = False
        for tensor in arguments[:tensors]:
            if tensor is None:
                continue
            # A view with a pending negation (from `z.conj().imag`) holds the wrong sign in memory.
            if type(tensor) not in PLAIN or tensor.is_meta or tensor.is_neg():
                return (forward if isinstance(tensor, PreparedFilters) else library_op)(*arguments)
            needs_gradient = needs_gradient or tensor.requires_grad
        if needs_gradient and torch.is_grad_enabled():
            return apply(*arguments[:tensors], arguments)
        return forward(*arguments)

    transformed = _function(
        name, forward=call, setup_context=setup_context, backward=full_backward, vmap=_one_by_one(name, call)
    )
    call.__name__ = call.__qualname__ = name
    return call


def _function(name: str, **methods: Function) -> type[torch.autograd.Function]:
    return type(name, (torch.autograd.Function,), {key: staticmethod(method) for key, method in methods.items()})


def _forward(name: str) -> Function:
    """The op on plain values; what the backend leaves out is an empty tensor, since an op cannot give None."""

    def forward(*arguments: Any) -> Any:
        compute = getattr(backends.module(arguments[-1]), name)
        try:
            result = compute(*arguments[:-1])
        except MemoryError as error:
            raise RuntimeError(f"can't allocate memory for {name} on backend {arguments[-1]!r}: {error}") from error
        if type(result) is tuple and result[-1] is None:
            return (*result[:-1], arguments[0].new_empty(0))
        return result

    return forward


def _constant(value: object) -> object:
    """A setting as torch.jit.trace records it: sizes, which it hands out as tensors, become ints."""
    if isinstance(value, (tuple, list)):
        return [int(v) for v in value]
    return int(value) if isinstance(value, Tensor) else value


def _tuples(arguments: Sequence[object]) -> list[object]:
    """The library passes lists; backends take tuples."""
    return [tuple(value) if isinstance(value, list) else value for value in arguments]


def _save_tensors(tensors: int) -> Function:
    def setup_context(ctx: Context, inputs: Inputs, output: object) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.settings = inputs[tensors:]

    return setup_context


def _library_op(
    name: str, schema: str, tensors: int, forward: Function, op: type[Op], setup_context: Function
) -> tuple[Function, Function]:
    """The op for torch.library, and its backward with a None for each argument that is no tensor."""
    LIBRARY.define(schema)
    LIBRARY.impl(name, lambda *arguments: forward(*_tuples(arguments)), "CompositeExplicitAutograd")
    torch.library.register_fake(f"zfkernels::{name}", op.fake, lib=LIBRARY)
    packet, _, overload = name.partition(".")
    library_op: Any = getattr(getattr(torch.ops.zfkernels, packet), overload or "default")
    no_gradients = (None,) * (len(library_op._schema.arguments) - tensors)

    def full_backward(ctx: Context, *gradients: Any) -> Gradients:
        return (*op.backward(ctx, *gradients), *no_gradients)

    def setup_library(ctx: Context, inputs: Inputs, output: object) -> None:
        setup_context(ctx, _tuples(inputs), output)

    torch.library.register_autograd(f"zfkernels::{name}", full_backward, setup_context=setup_library, lib=LIBRARY)
    return library_op, full_backward


def _eager_function(
    name: str, compute: Function, op: type[Op], setup_context: Function
) -> type[torch.autograd.Function]:
    """It sees the tensors, and all the arguments as one: each costs autograd.Function a quarter of a microsecond."""

    def forward(ctx: Context, *tensors_and_arguments: Any) -> Any:
        arguments = tensors_and_arguments[-1]
        output = compute(*arguments)
        setup_context(ctx, arguments, output)
        return output

    def backward(ctx: Context, *gradients: Any) -> Gradients:
        return (*op.backward(ctx, *gradients), None)

    return _function(name, forward=forward, backward=backward)


def _one_by_one(name: str, call: Function) -> Function:
    """vmap's rule."""

    def one_by_one(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Any, Any]:
        def item(i: int) -> Any:
            pairs = zip(arguments, in_dims, strict=True)
            return call(*(value.select(dim, i) if isinstance(dim, int) else value for value, dim in pairs))

        if not info.batch_size:
            raise ValueError(f"{name} cannot be mapped over an empty dimension")
        items = [item(i) for i in range(info.batch_size)]
        if isinstance(items[0], Tensor):
            return torch.stack(items), 0
        return tuple(torch.stack(output) for output in zip(*items, strict=True)), (0,) * len(items[0])

    return one_by_one


def refuse_tangents(name: str, tensors: tuple[Tensor | None, ...]) -> None:
    """Forward-mode differentiation would find no derivative, and take it for 0."""
    if any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(f"{name} has no forward-mode derivative; use reverse mode (backward, grad, vjp)")
