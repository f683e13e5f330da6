"""y = x W^T + b where W is large and the batch is small, on a CPU: torch's own products, called the way that is fast.

What a fully-connected layer of 150 MB costs there is memory. torch.nn.functional.linear makes the gradient of W in
fresh pages of 4 KiB, whose first touch took 62 ms of 84 (4096 x 9216, one image, two threads); huge pages are asked for
here. And for 2 to 64 images W x^T, which takes half as long as x W^T or less: 9 ms against 26 for four.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from .. import _C
from .door import PLAIN

LARGE = 32 << 20  # bytes from which malloc maps fresh pages for every result
MOST_IMAGES = 64


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """torch.nn.functional.linear: x (N, in_features), weight (out_features, in_features), bias (out_features,) or None
    -> (N, out_features).

    Only float32 on a CPU, in eager mode, with a weight of 32 MB or more, goes its own way; the rest is torch's.
    """
    plain = (
        type(x) in PLAIN
        and x.device.type == "cpu"
        and x.ndim == 2
        and x.dtype == weight.dtype == torch.float32
        and weight.nbytes >= LARGE
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
    )
    return _Linear.apply(x, weight, bias) if plain else F.linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if not 2 <= len(x) <= MOST_IMAGES:
            return F.linear(x, weight, bias)
        y = weight @ x.T if bias is None else torch.addmm(bias[:, None], weight, x.T)
        return y.T.contiguous()

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
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
