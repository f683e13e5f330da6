"""The network that --weights and --model name."""

import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from . import checkpoint
from .checkpoint import Network


def network(weights: Path | None, model: str | None = None, size: int = 224) -> Network:
    """The network of a weights file, or the one that "package.module:callable" builds, in evaluation mode.

    Args:
        weights: a checkpoint, or the state dict of `model`.
        model: builds a torch.nn.Module; its pictures are normalised as torchvision's.
        size: the side of the pictures that `model` takes, unless it has an `image_size`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither of the two is given, a file or callable gives no network, or it takes no such pictures.
    """
    if weights is not None and not weights.exists():
        raise FileNotFoundError(f"there is no weights file {weights}; `zfkernels demo` writes one (zfnet.pt)")
    if model is None:
        if weights is None:
            raise ValueError("--weights (or --model) is required: `zfkernels demo` trains a network and writes one")
        result = checkpoint.load(weights)
        if result.model.in_channels != 3:
            raise ValueError(f"{weights} is of a network of {result.model.in_channels} channels; pictures have 3")
        return result
    module = build(model)
    if weights is not None:
        try:
            module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{weights} does not fit {model}: {str(error).splitlines()[0]}") from error
    try:
        with torch.no_grad():
            classes = module.eval()(torch.zeros(1, 3, size, size)).shape[-1]
    except RuntimeError as error:
        raise ValueError(
            f"{model} cannot take pictures of {size} x {size} (--size): {str(error).splitlines()[0]}"
        ) from error
    image_size = tuple(getattr(module, "image_size", (size, size)))
    return Network(module, checkpoint.numbered(classes), *checkpoint.imagenet(), image_size)


def build(name: str) -> nn.Module:
    """The module that "package.module:callable" gives; the current folder is searched too."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"--model must be MODULE:CALLABLE, such as torchvision.models:alexnet, got {name!r}")
    sys.path.insert(0, "")
    try:
        result = getattr(importlib.import_module(module), attribute)()
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"--model {name}: {error}") from error
    finally:
        sys.path.remove("")
    if not isinstance(result, nn.Module):
        raise ValueError(f"--model {name} must give a torch.nn.Module, got {type(result).__name__}")
    return result
