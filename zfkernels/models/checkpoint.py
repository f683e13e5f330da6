"""Networks on disk: what `zfkernels demo` saves, and plain state dicts of a ZFNet."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import load_tensors, save_tensors
from . import states
from .zfnet import ZFNet

FORMAT = "zfkernels.zfnet.1"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in 0..1, as torchvision's
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's convert("L")
OWN = "; of another network give --model MODULE:CALLABLE, too, say torchvision.models:resnet18"
# The arguments of ZFNet that a file may give
ARGUMENTS = {"num_classes", "in_channels", "image_size", "channels", "fc", "without", "dropout", "center", "weight_std"}


@dataclass(frozen=True)
class Network:
    """A model, and how pictures become its input: resized to cover `image_size`, then (pixels - mean) / scale."""

    model: nn.Module
    classes: list[str]
    mean: Tensor  # (C, 1, 1) or (C, H, W), C being `channels`, in 0..255
    scale: Tensor  # (1, 1, 1) or (C, 1, 1)
    image_size: tuple[int, int]  # height, width
    channels: int = 3  # 1: the model takes grey pictures, and `mean` and `scale` have one channel
    source: str = ""  # of a network that others have trained: which it is, and whose weights it has

    @property
    def preprocessing(self) -> bytes:
        """What tells apart two ways in which pictures become inputs."""
        numbers = b"".join(values.float().numpy().tobytes() for values in (self.mean, self.scale))
        return numbers + f"{self.image_size} {self.channels}".encode()

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (..., 3, H, W) -> what the model takes, float32 on its device; of a grey network (..., 1, H, W)."""
        device = next((p.device for p in self.model.parameters()), pixels.device)
        pixels, mean, scale = (values.to(device) for values in (pixels, self.mean, self.scale))
        pixels = pixels.float()
        return ((grey(pixels) if self.channels == 1 else pixels) - mean) / scale

    def seen(self, pixels: Tensor) -> Tensor:
        """uint8 (..., 3, H, W) -> the same, as the network sees it: grey, if it takes one channel."""
        return grey(pixels.float()).round().to(torch.uint8).expand_as(pixels) if self.channels == 1 else pixels


def grey(pixels: Tensor) -> Tensor:
    """(..., 3, H, W) -> (..., 1, H, W)."""
    return (pixels * torch.tensor(LUMA, device=pixels.device).view(3, 1, 1)).sum(-3, keepdim=True)


def save(path: Path, network: Network, arguments: dict[str, Any], run: dict[str, Any] | None = None) -> None:
    """Write the network, whole or not at all.

    Args:
        arguments: the keyword arguments that build its ZFNet.
        run: {"id": ..., "epoch": ...}: the training run that it is of.
    """
    content = {
        "format": FORMAT,
        "arguments": arguments,
        "classes": network.classes,
        "mean": network.mean,
        "scale": network.scale,
        "state_dict": network.model.state_dict(),
    }
    save_tensors(path, content if run is None else content | {"run": run})


def load(path: Path) -> Network:
    """The network in a file that `save` wrote, or in a ZFNet's own `torch.save(model.state_dict(), path)`.

    A plain state dict carries no preprocessing: its pictures are scaled to 0..1 and normalised by ImageNet's mean and
    standard deviation, as torchvision's weights are. It may be wrapped, and its names prefixed, as `states.fitted`
    knows. Only tensors and plain containers are unpickled.

    Raises:
        ValueError: the file is neither; the message says what it is instead.
    """
    return from_content(path, load_tensors(path))


def from_content(path: Path, content: object) -> Network:
    """The network in what `load_tensors` read from the file `path`."""
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict or a zfkernels checkpoint")
    made = content.get("format")
    if isinstance(made, str) and made != FORMAT and made.startswith(FORMAT.rstrip("0123456789")):
        raise ValueError(f"{path} is of the format {made}, which a later zfkernels wrote; a newer zfkernels reads it")
    if isinstance(made, str) and made.startswith("zfkernels.") and made != FORMAT:
        raise ValueError(f"{path} is no network but a {made}, which continues a run or a search; give its zfnet.pt")
    classes: list[str] | None
    if made == FORMAT:
        arguments, state, classes, mean, scale = _own(path, content)
    else:
        arguments, state, classes, mean, scale = _plain(path, content)
    # Few numbers can be stored as a view of many, which would then ask for any amount of memory
    if sum(value.numel() for value in state.values() if isinstance(value, Tensor)) > path.stat().st_size:
        raise ValueError(f"{path} is a damaged checkpoint: it holds fewer numbers than its network")
    classes = numbered(arguments["num_classes"]) if classes is None else classes
    problem = states.misfit(state, ZFNet(**arguments, device="meta"))
    if problem is not None:
        raise ValueError(f"{path} does not fit a ZFNet: {problem}{'' if made == FORMAT else OWN}")
    model = ZFNet(**arguments)
    model.load_state_dict(state)
    return Network(model.eval(), classes, mean, scale, model.image_size, model.in_channels)


def preprocessing(content: object, channels: int) -> tuple[list[str], Tensor, Tensor] | None:
    """(classes, mean, scale) of a zfkernels checkpoint's content, if it is one of a network of so many channels."""
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        return None
    classes: Any = content.get("classes")
    mean, scale = content.get("mean"), content.get("scale")
    if not isinstance(mean, Tensor) or not isinstance(scale, Tensor) or not isinstance(classes, (list, tuple)):
        return None
    if any(states.unusable(value, True, True) for value in (mean, scale)) or not scale.all():
        return None
    fits = mean.ndim == 3 and len(mean) in (1, channels) and _are_names(classes, len(classes))
    return (list(classes), mean, scale) if fits else None


def run_of(path: Path) -> tuple[str | None, int | None]:
    """(the id of the training run, the epoch) that a file says it is of; (None, None) where it says nothing."""
    content = load_tensors(path)
    run = content.get("run", content) if isinstance(content, dict) else None  # a state says it at its top
    if not isinstance(run, dict) or run.get("id") is None:
        return None, None
    return str(run["id"]), run.get("epoch")


def _own(path: Path, content: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, Any], list[str], Tensor, Tensor]:
    """Arguments, state, classes, mean and scale of a file that `save` wrote, all looked at before anything is built."""
    try:
        arguments, state, classes, mean, scale = (
            content[key] for key in ("arguments", "state_dict", "classes", "mean", "scale")
        )
        if unknown := set(arguments) - ARGUMENTS:
            raise ValueError(f"no argument of ZFNet: {min(map(str, unknown))}")
        model = ZFNet(**arguments, device="meta")
        if not _are_names(classes, model.num_classes):
            raise ValueError(f"classes must be {model.num_classes} names, got {str(classes)[:80]}")
        for name, value in (("mean", mean), ("scale", scale)):
            if problem := states.unusable(value, True, True):
                raise ValueError(f"{name} {problem}")
        images = torch.Size((model.in_channels, *model.image_size))
        if torch.broadcast_shapes(mean.shape, scale.shape, images) != images or mean.ndim != 3 or not scale.all():
            raise ValueError(
                f"mean {tuple(mean.shape)} and scale {tuple(scale.shape)} fit no pictures of {tuple(images)}"
            )
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ValueError(f"{path} is a damaged zfkernels checkpoint ({error!r})") from error
    if model.in_channels not in (1, 3):
        raise ValueError(
            f"{path} is of a network of {model.in_channels} channels; pictures have 3, or 1 if they are grey"
        )
    return arguments, state, list(classes), mean, scale


def untrained(seed: int = 0) -> Network:
    """The full ZFNet with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ZFNet()
    return Network(model.eval(), numbered(model.num_classes), *imagenet(), model.image_size)


def _plain(path: Path, content: dict[Any, Any]) -> tuple[dict[str, Any], dict[str, Any], None, Tensor, Tensor]:
    """The same of a ZFNet's own state dict."""
    try:
        state = states.fitted(content, ZFNet(device="meta"))
    except ValueError as error:
        raise ValueError(f"{path} {error}") from error
    last = state.get("fc8.weight")
    if not isinstance(last, Tensor) or last.dim() != 2:
        raise ValueError(
            f"{path} holds no ZFNet (no fc8.weight); it holds: {', '.join(list(state)[:4]) or 'nothing'}{OWN}"
        )
    return {"num_classes": len(last)}, state, None, *imagenet()


def _are_names(classes: object, count: int) -> bool:
    named = isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)
    return named and len(classes) == count  # type: ignore[arg-type]  # a list or tuple, as was asked


def numbered(count: int) -> list[str]:
    """Names for classes that have none."""
    return [f"class {index}" for index in range(count)]


def imagenet(channels: int = 3) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation that torchvision's networks expect, (3, 1, 1) each, for pixels in 0..255.

    Of a grey network the mean of the three, (1, 1, 1) each.
    """
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (mean, std) if channels == 3 else (mean.mean(0, keepdim=True), std.mean(0, keepdim=True))
