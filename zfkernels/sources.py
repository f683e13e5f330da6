"""What every analysis runs on: the user's network and the user's pictures."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from . import checkpoint
from .checkpoint import Network
from .deconvnet import Deconvnet
from .folders import PictureSet, find_pictures

NETWORK = """
FILE is a zfnet.pt of `zfkernels demo` or `zfkernels train`, or torch.save(model.state_dict()) of a full
ZFNet. MODULE:CALLABLE builds a network of yours instead, say torchvision.models:alexnet; FILE is then its
state dict. Its pictures are normalised as torchvision's (ImageNet's mean and standard deviation).
"""


def add_network(parser: argparse.ArgumentParser) -> None:
    """The options that `network` reads."""
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the network's weights (see below)")
    parser.add_argument("--model", metavar="MODULE:CALLABLE", help="a network of yours (see below)")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures --model takes (%(default)s)")


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


def input_size(args: argparse.Namespace, made: Network) -> tuple[int, int]:
    return tuple(getattr(made.model, "image_size", (args.size, args.size)))


def normalise(made: Network, pixels: Tensor) -> Tensor:
    """uint8 (..., 3, H, W) -> what the network takes: (pixels - mean) / scale."""
    return (pixels.float() - made.mean) / made.scale


def stream(made: Network, paths: Sequence[Path], size: tuple[int, int], batch: int = 32, workers: int = 0, part=(0, 1)):
    """Batches (inputs, numbers) of the pictures; `part` (rank, count) gives every count-th picture from rank on."""
    pictures = PictureSet(list(paths), size)
    numbers = list(range(part[0], len(pictures), part[1]))
    batches = [numbers[i : i + batch] for i in range(0, len(numbers), batch)]
    loader = DataLoader(pictures, batch_sampler=batches, num_workers=workers, generator=torch.Generator())
    return _Normalised(made, loader)


class _Normalised:
    """A loader with a length, for progress bars."""

    def __init__(self, made: Network, loader: DataLoader) -> None:
        self.made, self.loader = made, loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self):
        for pixels, _, numbers in self.loader:
            yield normalise(self.made, pixels), numbers


def read_all(paths: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """The pictures as uint8 (N, 3, H, W)."""
    pictures = PictureSet(list(paths), size)
    return torch.stack([pictures[i][0] for i in range(len(pictures))])


def pictures_or_folders(places: Sequence[Path]) -> list[Path]:
    """Files as they are, folders searched."""
    return [path for place in places for path in ([place] if place.is_file() else find_pictures(place))]


def chosen_layers(deconv: Deconvnet, wanted: Sequence[str] | None, vectors: bool = False) -> list[str]:
    """The layers named, or every layer; of a network with norms or pools those of its convolutions."""
    known = (*deconv.layers, *deconv.vector_layers)
    if wanted:
        for name in wanted:
            if name not in known:
                raise ValueError(f"--layers must be of {', '.join(known)}, got {name!r}")
        return list(wanted)
    convolutions = [name for name in deconv.layers if not _is_pool_or_norm(deconv, name)]
    return [*convolutions, *(deconv.vector_layers if vectors else ())]


def _is_pool_or_norm(deconv: Deconvnet, name: str) -> bool:
    module = dict(deconv.model.named_modules()).get(name)
    kind = type(module).__name__.lower() if module is not None else name.lower()
    return "pool" in kind or "norm" in kind


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


def true_classes(made: Network, paths: Sequence[Path], images: Tensor, label: str | None = None) -> Tensor:
    """(N,) int64: `label`, a name or number; or the picture's folder where that is a class; or what it is taken for."""
    if label is not None:
        if label not in made.classes and not (label.isdecimal() and int(label) < len(made.classes)):
            raise ValueError(f"--class must be a class or a number in 0..{len(made.classes) - 1}, got {label!r}")
        number = made.classes.index(label) if label in made.classes else int(label)
        return torch.full((len(paths),), number)
    taken_for = evaluated(made.model, images).argmax(1)
    for i, path in enumerate(paths):
        if path.parent.name in made.classes:
            taken_for[i] = made.classes.index(path.parent.name)
    return taken_for
