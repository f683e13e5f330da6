"""What an analysis looks at where nothing is named: the last convolution, the true classes."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet
from ..models.checkpoint import Network
from ..models.modes import evaluated
from ..nn import ConvReLU
from ..words import listed, nearest


def last_convolution(model: nn.Module) -> str:
    """The name of the model's last convolution, in the order of its modules."""
    names: list[str] = [name for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, ConvReLU))]
    if not names:
        raise ValueError(f"--layer must be given, for {type(model).__name__} has no convolution among its modules")
    return names[-1]


def method_for(deconv: Deconvnet, layer: str, wanted: str | None = None) -> str:
    """The method that is wanted; if None "deconvnet", or "guided" where no max-pooling lies below the layer."""
    return wanted or ("guided" if deconv.switchless(layer) else "deconvnet")


def true_classes(network: Network, paths: Sequence[Path], images: Tensor, label: str | None = None) -> Tensor:
    """The class of each picture, (N,) int64.

    `label`, a name or number, if it is given. Otherwise the picture's folder, or the network's answer where the folder
    is no class.
    """
    if label is not None:
        if label not in network.classes and not (label.isdecimal() and int(label) < len(network.classes)):
            raise ValueError(
                f"--class must be a class or a number in 0..{len(network.classes) - 1}, got {label!r}"
                f"{nearest(label, network.classes)}; classes: {listed(network.classes)}"
            )
        number = network.classes.index(label) if label in network.classes else int(label)
        return torch.full((len(paths),), number)
    result = evaluated(network.model, images).argmax(1)
    for i, path in enumerate(paths):
        if path.parent.name in network.classes:
            result[i] = network.classes.index(path.parent.name)
    return result
