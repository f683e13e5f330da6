"""An op's two doors.

An op is written once, as four functions:

    forward(*arguments) -> tensor or tuple of tensors      calls the backend
    fake(*arguments)                                       the same shapes, dtypes and strides, nothing computed
    setup_context(ctx, inputs, output)                     what the backward needs
    backward(ctx, *gradients)                              one gradient a tensor argument

`door` gives them two ways in. In eager mode: the backend itself when nothing needs a gradient, else an
autograd.Function. Under torch.compile, export, a dispatch mode, or with tensors that are not plain ones: the
`torch.library` op `torch.ops.zfkernels.<name>`, which such machinery can see. (The library door costs some 90
microseconds a call with gradients, the eager one about 10.) torch.func's transforms take the eager door in the slower
form that they require; vmap runs its batch one by one. Forward-mode differentiation raises.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("zfkernels", "DEF")
PLAIN = (Tensor, torch.nn.Parameter)


def door(
    schema: str,
    tensors: int,
    forward: Callable,
    fake: Callable,
    setup_context: Callable,
    backward: Callable,
) -> Callable:
    """The op of this schema, whose first `tensors` arguments are tensors or None and whose last is the backend."""
    name = schema[: schema.index("(")]
    LIBRARY.define(schema)
    LIBRARY.impl(name, forward, "CompositeExplicitAutograd")
    torch.library.register_fake(f"zfkernels::{name}", fake, lib=LIBRARY)
    library_op = getattr(torch.ops.zfkernels, name).default
    no_gradients = (None,) * (len(library_op._schema.arguments) - tensors)

    def full_backward(ctx, *gradients):
        return (*backward(ctx, *gradients), *no_gradients)

    torch.library.register_autograd(f"zfkernels::{name}", full_backward, setup_context=setup_context, lib=LIBRARY)

    # autograd.Function sees the tensors, and all the arguments as one: each costs it a quarter of a microsecond.
    def eager_forward(ctx, *tensors_and_arguments):
        arguments = tensors_and_arguments[-1]
        output = forward(*arguments)
        setup_context(ctx, arguments, output)
        return output

    def eager_backward(ctx, *gradients):
        return (*backward(ctx, *gradients), None)

    eager = type(
        name,
        (torch.autograd.Function,),
        {"forward": staticmethod(eager_forward), "backward": staticmethod(eager_backward)},
    )
    # What Function.apply ends in; what it does before is for function transforms, and costs 2 microseconds.
    apply = super(torch.autograd.Function, eager).apply

    def call(*arguments):
        if torch.compiler.is_compiling():
            return library_op(*arguments)
        if forward_ad._current_level >= 0:
            refuse_tangents(name, arguments[:tensors])
        if torch._C._are_functorch_transforms_active():
            return transformed.apply(*arguments)
        if torch._C._len_torch_dispatch_stack() or torch._C._get_tracing_state() is not None:
            return library_op(*arguments)
        needs_gradient = False
        for tensor in arguments[:tensors]:
            if tensor is None:
                continue
            # A view with a pending negation (from `z.conj().imag`) holds the wrong sign in memory.
            if type(tensor) not in PLAIN or tensor.is_meta or tensor.is_neg():
                return library_op(*arguments)
            needs_gradient = needs_gradient or tensor.requires_grad
        if needs_gradient and torch.is_grad_enabled():
            return apply(*arguments[:tensors], arguments)
        return forward(*arguments)

    def one_by_one(info, in_dims, *arguments):
        def item(i):
            pairs = zip(arguments, in_dims, strict=True)
            return call(*(value.select(dim, i) if isinstance(dim, int) else value for value, dim in pairs))

        if not info.batch_size:
            raise ValueError(f"{name} cannot be mapped over an empty dimension")
        items = [item(i) for i in range(info.batch_size)]
        if isinstance(items[0], Tensor):
            return torch.stack(items), 0
        return tuple(torch.stack(output) for output in zip(*items, strict=True)), (0,) * len(items[0])

    transformed = type(
        name,
        (torch.autograd.Function,),
        {
            "forward": staticmethod(call),
            "setup_context": staticmethod(setup_context),
            "backward": staticmethod(full_backward),
            "vmap": staticmethod(one_by_one),
        },
    )

    call.__name__ = call.__qualname__ = name
    return call


def refuse_tangents(name: str, tensors: tuple[Tensor | None, ...]) -> None:
    """Forward-mode differentiation would find no derivative, and take it for 0."""
    if any(tensor is not None and forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        raise NotImplementedError(f"{name} has no forward-mode derivative; use reverse mode (backward, grad, vjp)")


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised channels-last tensor on `like`'s device: the form of every op's result."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)
