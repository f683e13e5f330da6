"""Weights of a sensible scale for any network, and batch norms whose statistics and weights are nothing special."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Forward = Callable[[nn.Module, Tensor], object]


@torch.no_grad()
def randomised(model: nn.Module, images: Tensor, seed: int = 0, forward: Forward | None = None) -> nn.Module:
    """`model` in the images' dtype and evaluation mode, without gradients of its weights, which are drawn anew.

    Running means and variances are those of the values that arrive, moved at random, so that values neither die nor
    explode however deep the network.
    """
    generator = torch.Generator().manual_seed(seed)
    model = model.to(images.dtype).eval().requires_grad_(False)
    slopes = {id(module.weight) for module in model.modules() if isinstance(module, nn.PReLU)}
    for name, parameter in model.named_parameters():
        if id(parameter) in slopes:
            parameter.uniform_(0.05, 0.5, generator=generator)
        elif parameter.ndim > 1:
            parameter.normal_(0, (2 / max(1, parameter[0].numel())) ** 0.5, generator=generator)
        else:
            low, high = (-0.2, 0.2) if "bias" in name.rpartition(".")[2] else (0.5, 1.5)
            parameter.uniform_(low, high, generator=generator)

    norms: list[Any] = [
        module for module in model.modules() if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    for norm in norms:  # those whose statistics are read without a call of the module keep these
        norm.running_mean.normal_(0, 0.3, generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)

    def statistics(module: Any, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        spread, mean = torch.std_mean(x, [axis for axis in range(x.ndim) if axis != 1], correction=0)
        spread = spread.clamp(min=float(x.std()) / 2)  # a map of few values may vary by next to nothing
        module.running_mean.normal_(0, 0.3, generator=generator).mul_(spread).add_(mean)
        module.running_var.uniform_(0.5, 2, generator=generator).mul_(spread.square())

    handles = [norm.register_forward_pre_hook(statistics) for norm in norms]
    forward(model, images) if forward else model(images)
    for handle in handles:
        handle.remove()
    return model


def pictures(size: int, count: int = 2, seed: int = 0) -> Tensor:
    """Random images (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, size, size, dtype=torch.float64, generator=generator)
