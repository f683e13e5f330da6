"""options that commands share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import zfkernels

from .. import backends
from ..data.pictures import read_picture
from ..deconvnet.deconvnet import Deconvnet
from ..models import checkpoint, load
from ..models.checkpoint import Network
from ..models.modes import evaluated

PICTURE = """
PICTURE is any file Pillow reads: the camera's rotation is undone, transparency laid over grey,
16-bit greys brought to 8 bits. It is resized, proportions kept, until it covers the network's
input; what sticks out on either side is cut off.

FILE is the zfnet.pt that `zfkernels demo` writes, or torch.save(model.state_dict()) of a full
ZFNet, whose pictures are normalised as torchvision's (ImageNet's mean and standard deviation).
Without --weights the network is a full ZFNet with random weights, which shows the machinery and
means nothing. MODULE:CALLABLE builds a network of yours instead, say torchvision.models:resnet18;
FILE is then its state dict.
"""


def _add_picture(command: argparse.ArgumentParser) -> None:
    command.add_argument("picture", type=Path, metavar="PICTURE", help="a picture file")
    add_network(command)


def require_backend() -> None:
    try:
        backends.resolve(None, "cpu")
    except RuntimeError as error:
        raise ValueError(f"{error}; `zfkernels info` lists the backends, ZFKERNELS_BACKEND chooses one") from error


def _load(args: argparse.Namespace):
    """The network and the picture: (network, uint8 (3, H, W), float (3, H, W) as the network takes it)."""
    if args.model is None and args.weights is None:
        print(
            "zfkernels: warning: random weights, because no --weights were given; what follows means nothing. "
            "`zfkernels demo` trains a network and writes zfkernels-demo/zfnet.pt",
            file=sys.stderr,
        )
        network = checkpoint.untrained()
    else:
        network = load_network(args)
    picture = read_picture(args.picture, network.image_size)
    return network, picture, network.normalise(picture)


def _last_convolution(model: torch.nn.Module) -> str:
    kinds = (torch.nn.Conv2d, zfkernels.nn.ConvReLU)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    if not names:
        raise ValueError(f"--layer must be given, for {type(model).__name__} has no convolution among its modules")
    return names[-1]


def _make_folder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)


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


def load_network(args: argparse.Namespace) -> Network:
    """The network that the options of `add_network` name."""
    return load.network(args.weights, args.model, args.size)


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


def true_classes(network: Network, paths: Sequence[Path], images: Tensor, label: str | None = None) -> Tensor:
    """(N,) int64: `label`, a name or number; or the picture's folder where that is a class; or what it is taken for."""
    if label is not None:
        if label not in network.classes and not (label.isdecimal() and int(label) < len(network.classes)):
            raise ValueError(f"--class must be a class or a number in 0..{len(network.classes) - 1}, got {label!r}")
        number = network.classes.index(label) if label in network.classes else int(label)
        return torch.full((len(paths),), number)
    taken_for = evaluated(network.model, images).argmax(1)
    for i, path in enumerate(paths):
        if path.parent.name in network.classes:
            taken_for[i] = network.classes.index(path.parent.name)
    return taken_for
