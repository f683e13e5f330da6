"""Options that commands share."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..drawing.style import Figure, save
from ..graph.methods import METHODS

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.loading import Stream
    from ..deconvnet.deconvnet import Deconvnet
    from ..models.checkpoint import Network

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
NETWORK = """
FILE is a zfnet.pt of `zfkernels demo` or `zfkernels train`, or torch.save(model.state_dict()) of a full
ZFNet. MODULE:CALLABLE builds a network of yours instead, say torchvision.models:alexnet; FILE is then its
state dict. Its pictures are normalised as torchvision's (ImageNet's mean and standard deviation).
"""


def add_picture(parser: argparse.ArgumentParser) -> None:
    """PICTURE, and the options of `add_network`."""
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="a picture file")
    add_network(parser)


def add_network(parser: argparse.ArgumentParser) -> None:
    """The options that `open_network` reads."""
    parser.add_argument("--weights", type=Path, metavar="FILE", help="the network's weights (see below)")
    parser.add_argument("--model", metavar="MODULE:CALLABLE", help="a network of yours (see below)")
    parser.add_argument("--size", type=int, default=224, help="side of the pictures --model takes (%(default)s)")


def add_method(parser: argparse.ArgumentParser) -> None:
    """The option that `Opened.method` reads."""
    text = (
        "what rectifiers do: deconvnet (the paper's), the plain gradient, or both at once (default: deconvnet; guided "
        "for layers without max-pooling below them)"
    )
    parser.add_argument("--method", choices=METHODS, help=text)


@dataclass(frozen=True)
class Opened:
    """A network that a command looks into."""

    network: Network

    @cached_property
    def deconv(self) -> Deconvnet:
        from ..deconvnet.deconvnet import Deconvnet

        return Deconvnet(self.network.model)

    @property
    def hidden(self) -> tuple[str, ...]:
        """The layers without maps, except the last, whose features are the classes."""
        return tuple(self.deconv.vector_layers[:-1])

    def layers(self, names: Sequence[str] | None = None) -> list[str]:
        """The layers named, which must exist; otherwise every layer with maps that is no pool and no norm."""
        known = (*self.deconv.layers, *self.deconv.vector_layers)
        for name in names or ():
            if name not in known:
                raise ValueError(f"--layers must be of {', '.join(known)}, got {name!r}")
        kinds = {name: type(module).__name__ for name, module in self.network.model.named_modules()}
        maps = [name for name in self.deconv.layers if not re.search("pool|norm", kinds.get(name, name).lower())]
        return list(names or maps)

    def method(self, layer: str, wanted: str | None, images: Tensor) -> str:
        """The method to project units of `layer` with; why, if it is another than the paper's, is printed."""
        from ..analyses.choices import method_for

        method = method_for(self.deconv, layer, wanted)
        if self.deconv.switchless(layer):
            part = self.deconv.image_dependence(images[:1], layer, self._strongest(images[:1], layer))
            why = "as asked; but" if wanted else "because"
            said = (
                f"no max-pooling lies below {layer}: {float(part):.1%} of a deconvnet projection depends on the picture"
            )
            print(f"method      {method}, {why} {said}")
        return method

    def _strongest(self, images: Tensor, layer: str) -> int:
        from ..analyses.activations import top_activations

        return int(top_activations(self.deconv, [images], layer, k=1).values[:, 0].argmax())

    def read(self, paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
        """The pictures as uint8 (N, 3, H, W), and as the network takes them."""
        import torch

        from ..data.pictures import read_picture

        pixels = torch.stack([read_picture(path, self.network.image_size) for path in paths])
        return pixels, self.network.normalise(pixels)

    def stream(self, paths: Sequence[Path], *more: Any) -> Stream:
        """Batches of the pictures, as the network takes them, and of their numbers; see `data.loading.Stream`."""
        from ..data.loading import Stream

        return Stream(paths, self.network, *more)


def open_network(args: argparse.Namespace, or_random: bool = False) -> Opened:
    """The network that the options of `add_network` name.

    `or_random`: without --weights and --model it is the full ZFNet with random weights, after a warning.
    """
    from ..models import checkpoint, load

    if not or_random or args.model is not None or args.weights is not None:
        return Opened(load.network(args.weights, args.model, args.size))
    print(
        "zfkernels: warning: random weights, because no --weights were given; what follows means nothing. "
        "`zfkernels demo` trains a network and writes zfkernels-demo/zfnet.pt",
        file=sys.stderr,
    )
    return Opened(checkpoint.untrained())


def report(figure: Figure, path: Path, *lines: str, note: str = "") -> None:
    """Write the figure; then print the lines, and where the figure is."""
    save(figure, path)
    print(*lines, f"picture     {path}{note}", sep="\n")
