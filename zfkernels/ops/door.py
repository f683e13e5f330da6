"""An op's two doors.

An op is written once, as four functions:

    forward(*arguments) -> tensor or tuple of tensors      calls the backend
    fake(*arguments)                                       the same shapes, dtypes and strides, nothing computed
    setup_context(ctx, inputs, output)                     what the backward needs
    backward(ctx, *gradients)                              one gradient an argument

`door` gives them two ways in. In eager mode: the backend itself when nothing needs a gradient, else an
autograd.Function. Under torch.compile, export, a dispatch mode, a function transform or with tensors that are not
plain ones: the `torch.library` op `torch.ops.zfkernels.<name>`, which such machinery can see. (The library door costs
some 90 microseconds a call with gradients, the eager one about 10.)
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIBRARY = torch.library.Library("zfkernels", "DEF")
PLAIN = {Tensor, torch.nn.Parameter, type(None)}


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
    torch.library.register_autograd(f"zfkernels::{name}", backward, setup_context=setup_context, lib=LIBRARY)
    library_op = getattr(torch.ops.zfkernels, name).default

    def eager_forward(ctx, *arguments):
        output = forward(*arguments)
        setup_context(ctx, arguments, output)
        return output

    eager = type(
        name,
        (torch.autograd.Function,),
        {"forward": staticmethod(eager_forward), "backward": staticmethod(backward)},
    )

    def call(*arguments):
        if (
            torch.compiler.is_compiling()
            or torch._C._len_torch_dispatch_stack()
            or torch._C._are_functorch_transforms_active()
            or torch._C._get_tracing_state() is not None
            or forward_ad._current_level >= 0
        ):
            return library_op(*arguments)
        needs_gradient = False
        for tensor in arguments[:tensors]:
            # A view with a pending negation (from `z.conj().imag`) holds the wrong sign in memory.
            if type(tensor) not in PLAIN or (tensor is not None and (tensor.is_meta or tensor.is_neg())):
                return library_op(*arguments)
            needs_gradient = needs_gradient or (tensor is not None and tensor.requires_grad)
        if needs_gradient and torch.is_grad_enabled():
            return eager.apply(*arguments)
        return forward(*arguments)

    call.__name__ = call.__qualname__ = name
    return call


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised channels-last tensor on `like`'s device: the form of every op's result."""
    return torch.empty(shape, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)
