"""Evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode; afterwards each module in the mode it was in."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def evaluated(model: nn.Module, images: Tensor) -> Tensor:
    """The model's outputs in evaluation mode, without gradients."""
    with evaluation(model):
        outputs: Tensor = model(images)
        return outputs
