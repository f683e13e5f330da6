"""y = x W^T + b where W is large and the batch is small, on a CPU.

What a fully-connected layer of 150 MB costs there is memory. Up to 64 images go by our own kernel, which reads W once
(csrc/cpu/linear.cpp): for 4096 x 9216 and 1, 8, 48 images 1.6, 3.6 and 1.5 times as fast as torch.nn.functional.linear
(2.3 and 1.1 times as W x^T for 8 and 48). torch makes the gradient of W in fresh pages of 4 KiB, whose first touch took
62 ms of 84; huge pages are asked for here.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from .. import _C
from ..backends.memory import address
from .define import PLAIN, Context

LARGE = 8 << 20  # bytes from which a weight is read from memory at each call
MOST_IMAGES = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch.nn.functional.linear: x (N, in_features), weight (out_features, in_features), bias (out_features,) or None
    -> (N, out_features).

    Only float32 on a CPU, in eager mode, with a weight of 8 MB or more, goes its own way; the rest is torch's, and so
    is what a dispatch mode or a tracer must see, and a view with a pending negation: its memory has the wrong sign.
    """
    plain = (
        not torch.compiler.is_compiling()
        and torch._C._get_tracing_state() is None
        and not torch._C._len_torch_dispatch_stack()
        and not torch._C._len_torch_function_stack()
        and type(x) in PLAIN
        and type(weight) in PLAIN
        and (bias is None or type(bias) in PLAIN)
        and x.device.type == weight.device.type == "cpu"
        and x.ndim == 2
        and x.dtype == weight.dtype == torch.float32
        and x.shape[1] == weight.shape[1]
        and (bias is None or bias.dtype == torch.float32)
        and weight.nbytes >= LARGE
        and weight.is_contiguous()
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not any(value is not None and value.is_neg() for value in (x, weight, bias))
    )
    return _linear(x, weight, bias) if plain else F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Context, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if len(x) > MOST_IMAGES:
            return F.linear(x, weight, bias)
        x, bias = x.contiguous(), None if bias is None else bias.contiguous()
        y = x.new_empty((len(x), len(weight)))
        inputs, outputs = x.shape[1], len(weight)
        addresses = address(x), address(weight), address(bias), address(y)
        _C.linear(False, len(x), inputs, outputs, *addresses, torch.get_num_threads())
        return y

    @staticmethod
    def backward(ctx: Context, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        gx = g @ weight if ctx.needs_input_grad[0] else None
        gb = g.sum(0) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[1]:
            return gx, None, gb
        if torch.is_grad_enabled():  # the gradient's own gradient is wanted
            return gx, g.T @ x, gb
        gw = torch.empty_like(weight, memory_format=torch.contiguous_format)
        _C.prefer_huge_pages(gw.data_ptr(), gw.nbytes)
        return gx, torch.mm(g.T, x, out=gw), gb


_linear: Callable[[Tensor, Tensor, Tensor | None], Tensor] = _Linear.apply
