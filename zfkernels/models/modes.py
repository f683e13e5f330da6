"""zfkernels.models.modes."""

from __future__ import annotations

from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def _evaluation(model: torch.nn.Module):
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@torch.no_grad()
def evaluated(model: nn.Module, images: Tensor) -> Tensor:
    """The model's outputs in evaluation mode, and the mode as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        return model(images)
    finally:
        for module in training:
            module.training = True
