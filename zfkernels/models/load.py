"""--weights, --model."""

from __future__ import annotations

import argparse
import importlib
import sys

import torch
from torch import nn

from . import checkpoint
from .checkpoint import Network


def network(args: argparse.Namespace) -> Network:
    """The network of --weights and --model, in evaluation mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither option, a file or callable that gives no network, or a network that takes no pictures.
    """
    if args.weights is not None and not args.weights.exists():
        raise FileNotFoundError(f"there is no weights file {args.weights}; `zfkernels demo` writes one (zfnet.pt)")
    if args.model is None:
        if args.weights is None:
            raise ValueError("--weights (or --model) is required: `zfkernels demo` trains a network and writes one")
        made = checkpoint.load(args.weights)
        if made.model.in_channels != 3:
            raise ValueError(f"{args.weights} is of a network of {made.model.in_channels} channels; pictures have 3")
        return made
    model = build(args.model)
    if args.weights is not None:
        try:
            model.load_state_dict(torch.load(args.weights, map_location="cpu", weights_only=True))
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{args.weights} does not fit {args.model}: {str(error).splitlines()[0]}") from error
    mean, std = (255 * torch.tensor(v).view(3, 1, 1) for v in (checkpoint.IMAGENET_MEAN, checkpoint.IMAGENET_STD))
    try:
        with torch.no_grad():
            classes = model.eval()(torch.zeros(1, 3, args.size, args.size)).shape[-1]
    except RuntimeError as error:
        raise ValueError(
            f"{args.model} cannot take pictures of {args.size} x {args.size} (--size): {str(error).splitlines()[0]}"
        ) from error
    return Network(model, [f"class {i}" for i in range(classes)], mean, std)


def build(name: str) -> nn.Module:
    """The module that "package.module:callable" gives; the current folder is searched too."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"--model must be MODULE:CALLABLE, such as torchvision.models:alexnet, got {name!r}")
    sys.path.insert(0, "")
    try:
        made = getattr(importlib.import_module(module), attribute)()
    except (ModuleNotFoundError, AttributeError) as error:
        raise ValueError(f"--model {name}: {error}") from error
    finally:
        sys.path.remove("")
    if not isinstance(made, nn.Module):
        raise ValueError(f"--model {name} must give a torch.nn.Module, got {type(made).__name__}")
    return made
