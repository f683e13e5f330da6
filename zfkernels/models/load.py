"""The network that --weights and --model name."""

import importlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import check_regular, load_tensors, reason
from ..limits import check_memory, is_memory
from ..words import nearest
from . import checkpoint, states
from .checkpoint import Network


def network(weights: Path | None, model: str | None = None, size: int = 224) -> Network:
    """The network of a weights file, or the one that "package.module:callable" builds, in evaluation mode.

    Args:
        weights: a checkpoint, or the state dict of `model`.
        model: builds a torch.nn.Module; its pictures are normalised as torchvision's. A first layer of one channel
            gets grey pictures. Of a dict or tuple that it gives, the logits are looked at.
        size: the side of the pictures that `model` takes, unless it has an `image_size`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: neither of the two is given, a file or callable gives no network, or it takes no such pictures.
    """
    if weights is not None and not weights.exists():
        raise FileNotFoundError(f"there is no weights file {weights}; `zfkernels demo` writes one (zfnet.pt)")
    if model is not None:
        return _of_callable(weights, model, size)
    if weights is None:
        raise ValueError("--weights (or --model) is required: `zfkernels demo` trains a network and writes one")
    return checkpoint.load(weights)


def adjusted(
    network: Network,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Path | None = None,
) -> Network:
    """The network with what is given in place of its own.

    Args:
        mean, std: of pixels in 0..1, one number or one a channel.
        classes: a file of the classes' names, one a line or a JSON list.

    Raises:
        FileNotFoundError: no such file.
        ValueError: numbers or names that do not fit the network.
    """
    if mean is not None:
        network = replace(network, mean=_per_channel("--mean", mean, network.channels))
    if std is not None:
        network = replace(network, scale=_per_channel("--std", std, network.channels))
    return network if classes is None else replace(network, classes=read_classes(classes, len(network.classes)))


def _of_callable(weights: Path | None, name: str, size: int) -> Network:
    built = build(name)
    if isinstance(built, Network):
        if weights is not None:
            raise ValueError(f"--weights {weights}: {name} comes with weights of its own; leave --weights out")
        return built
    module = built.eval()
    content = None if weights is None else load_tensors(weights)
    if weights is not None:
        load_into(module, content, weights, name)
    channels, image_size = _channels(module), _image_size(module, size)
    if channels not in (1, 3):
        raise ValueError(f"{name} takes {channels} channels; pictures have 3, or 1 if they are grey")
    need = channels * math.prod(image_size) * 4 * 4  # a picture, as bytes and floats, and some maps
    check_memory(need, f"--size {size}: the pictures of {name}", "a smaller --size takes less")
    try:
        with torch.no_grad():
            output = module(torch.zeros(1, channels, *image_size))
    except Exception as error:
        if is_memory(error):
            raise
        shown = " x ".join(map(str, image_size))
        raise ValueError(f"{name} cannot take pictures of {shown} (--size): {_first_line(error)}") from error
    key = _key_of_logits(output, name)
    if key is not None:
        module, output = answering(module, key), output[key]
    if output.ndim < 2:
        raise ValueError(f"{name} must give (N, classes), got shape {tuple(output.shape)}")
    classes, (mean, scale) = checkpoint.numbered(output.shape[1]), checkpoint.imagenet(channels)
    if own := checkpoint.preprocessing(
        content, channels
    ):  # a zfkernels checkpoint says how its pictures are normalised
        classes, mean, scale = own if len(own[0]) == len(classes) else (classes, *own[1:])
    return Network(module, classes, mean, scale, image_size, channels)


def load_into(module: nn.Module, content: object, weights: Path, name: str) -> None:
    """The state dict that the file `weights` holds, loaded into the module that `name` built.

    Raises:
        ValueError: it does not fit; the first missing and unexpected key are named.
    """
    try:
        state = states.fitted(content, module)
    except ValueError as error:
        raise ValueError(f"{weights} {error}") from error
    problem = states.misfit(state, module)
    if problem is not None:
        raise ValueError(f"{weights} does not fit {name}: {problem}")
    try:
        module.load_state_dict(state, strict=False)  # misfit has looked
    except Exception as error:
        raise ValueError(f"{weights} does not fit {name}: {_first_line(error)}") from error


def build(name: str) -> nn.Module | Network:
    """The module or `Network` that "package.module:callable" gives; the current folder is searched too."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ValueError(f"--model must be MODULE:CALLABLE, such as torchvision.models:alexnet, got {name!r}")
    sys.path.insert(0, "")
    try:
        found = importlib.import_module(module)
        result = getattr(found, attribute)() if hasattr(found, attribute) else None
    except ModuleNotFoundError as error:
        where = "it is looked for in the current folder and among the packages that are installed"
        raise ValueError(f"--model {name}: {_first_line(error)}; {where}") from error
    except TypeError as error:
        hint = "it is called without arguments: name a function of yours that builds the network"
        raise ValueError(f"--model {name}: TypeError: {_first_line(error)}; {hint}") from error
    except (Exception, SystemExit) as error:  # a script that ends itself when it is imported
        said = "" if isinstance(error, (ImportError, AttributeError)) else f"{type(error).__name__}: "
        raise ValueError(f"--model {name}: {said}{_first_line(error)}") from error
    finally:
        sys.path.remove("")
    if not hasattr(found, attribute):
        near = nearest(attribute, dir(found))
        raise ValueError(f"--model {name}: module {module!r} has no attribute {attribute!r}{near}")
    if not isinstance(result, (nn.Module, Network)):
        raise ValueError(f"--model {name} must give a torch.nn.Module, got {type(result).__name__}")
    return result


def answering(module: nn.Module, key: str | int) -> nn.Module:
    """The module, in place, giving output[key] of what it gave: of a class of its own, so that tracing sees it too."""
    kind = type(module)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        output: Tensor = kind.forward(self, x)[key]
        return output

    module.__class__ = type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
    return module


def _key_of_logits(output: Any, name: str) -> str | int | None:
    """Where in a model's output the logits are; None if it is they."""
    if isinstance(output, Tensor):
        return None
    if isinstance(output, Mapping):
        tensors = [key for key, value in output.items() if isinstance(value, Tensor)]
        known = [key for key in ("logits", "out", "output", "pred") if key in tensors]
        if tensors:
            return (known or tensors)[0]
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        return 0
    raise ValueError(f"{name} must give a tensor of logits, or a dict or tuple with one, got {type(output).__name__}")


def _channels(module: nn.Module) -> int:
    """The channels of the pictures that the module takes: its first convolution's."""
    if isinstance(own := getattr(module, "in_channels", None), int):
        return own
    for part in module.modules():
        weight = getattr(part, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim == 4:
            return weight.shape[1] * getattr(part, "groups", 1)
    return 3


def _image_size(module: nn.Module, size: int) -> tuple[int, int]:
    """(height, width): the module's `image_size`, one number or two, or `size`."""
    own = getattr(module, "image_size", size)
    try:
        sides = tuple(int(side) for side in own) if isinstance(own, Sequence) else (int(own),) * 2
    except (TypeError, ValueError):
        sides = (size, size)
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(f"--size must be at least 1, got {own}")
    return sides


def _per_channel(option: str, values: Sequence[float], channels: int) -> Tensor:
    """(channels, 1, 1) for pixels in 0..255."""
    if len(values) not in (1, channels):
        raise ValueError(f"{option} takes one number or {channels}, one a channel, got {len(values)}")
    lowest = 0 if option == "--mean" else 1e-6
    if not all(lowest <= value <= 1 for value in values):
        hint = "; they are of pixels in 0..1, so divide those of 0..255 by 255" if max(values) > 1 else ""
        raise ValueError(f"{option} must be from {lowest:g} to 1, got {' '.join(f'{v:g}' for v in values)}{hint}")
    return 255 * torch.tensor([float(value) for value in values]).expand(channels).clone().view(channels, 1, 1)


def read_classes(path: Path, count: int) -> list[str]:
    """The classes' names in a file, one a line or a JSON list, as many as the network has.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another number of names, or no text.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    check_regular(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.lstrip().startswith("{"):
            raise ValueError("it holds a JSON object")
        names = json.loads(text) if text.lstrip().startswith("[") else text.splitlines()
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must hold the classes' names, one a line or a JSON list ({reason(error)})") from error
    if any(isinstance(name, (list, dict)) for name in names):
        raise ValueError(f"{path} must hold the classes' names, one a line or a JSON list, and holds a list of lists")
    names = [str(name).strip() for name in names if str(name).strip()]
    if len(names) != count:
        raise ValueError(f"--classes must name the network's {count} classes, and {path} holds {len(names)} names")
    return names


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
