"""The peer that anyone can write in torch: autograd, with another backward for the rectifiers that a forward calls.

The forward stops at the layer that is asked for. The images and filters are channels-last.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

RELUS = (F.relu, torch.relu, torch.Tensor.relu, F.relu_, torch.relu_, torch.Tensor.relu_)
CAPPED = (F.relu6, F.hardtanh, F.hardtanh_)


class Rectifier(torch.autograd.Function):
    """max(0, x), at most cap, in place; its backward max(0, g), times the derivative when guided."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cap: float, guided: bool) -> Tensor:
        ctx.cap, ctx.guided = cap, guided
        ctx.mark_dirty(x)
        x.clamp_(0, cap) if cap else x.relu_()
        if guided:
            ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        g = g.clamp(min=0)
        if not ctx.guided:
            return g, None, None
        (y,) = ctx.saved_tensors
        passed = (y > 0) & (y < ctx.cap) if ctx.cap else y > 0
        return g * passed, None, None


rectified: Callable[[Tensor, float, bool], Tensor] = Rectifier.apply


class Rules(TorchFunctionMode):
    """Calls of ReLU and ReLU6 get the method's backward. What they rectify is theirs alone in the networks measured."""

    def __init__(self, guided: bool) -> None:
        super().__init__()
        self.guided = guided

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        if function in RELUS:
            return rectified(args[0], 0.0, self.guided)
        if function in CAPPED:
            return rectified(args[0], 6.0, self.guided)
        return function(*args, **(kwargs or {}))


class Reached(Exception):
    """The layer's value is there, and nothing above it is run."""


@contextmanager
def stopping(model: nn.Module, layer: str) -> Iterator[list[Tensor]]:
    """Within it a forward of `model` that reaches `layer` raises `Reached`, and its value is in the list."""
    values: list[Tensor] = []

    def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
        values[:] = [output]
        raise Reached

    handle = model.get_submodule(layer).register_forward_hook(keep)
    try:
        yield values
    finally:
        handle.remove()


def value_of(model: nn.Module, layer: str, x: Tensor) -> Tensor:
    """The value of `layer`, for which nothing above it is run."""
    with stopping(model, layer) as values:
        try:
            model(x)
        except Reached:
            return values[0]
    raise ValueError(f"layer {layer!r} is not reached")


def project(
    model: nn.Module,
    layer: str,
    images: Tensor,
    index: Sequence[int] | Tensor,
    channels: Sequence[int] | Tensor,
    positions: Tensor,
    method: str = "deconvnet",
    batched: bool = True,
) -> Tensor:
    """The projections (N, C, H, W) of units: one forward pass of the images that they are of, which is needed once.

    With `batched` one backward of all units at a time, else one each. Units of several images, one of each, take one
    backward either way.
    """
    with torch.enable_grad():
        x = images.detach().clone(memory_format=torch.preserve_format).requires_grad_()
        if method == "gradient":
            value = value_of(model, layer, x + 0)
        else:
            with Rules(method == "guided"):
                value = value_of(model, layer, x + 0)
        places = (torch.as_tensor(index), torch.as_tensor(channels), *positions.T)
        chosen = value[places]
        if len(images) == len(index):
            return torch.autograd.grad(chosen, x, chosen.detach())[0]
        if batched:
            seeds = torch.diag(chosen.detach())
            return torch.autograd.grad(chosen, x, seeds, is_grads_batched=True)[0].sum(1)
        each = [torch.autograd.grad(one, x, one.detach(), retain_graph=True)[0].sum(0) for one in chosen]
        return torch.stack(each)
