"""Networks on disk: what `zfkernels demo` saves, and plain state dicts of a ZFNet."""

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .zfnet import ZFNet

FORMAT = "zfkernels.zfnet.1"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of pixels in 0..1, as torchvision's


@dataclass(frozen=True)
class Network:
    """A model, and how pictures become its input: resized to cover `image_size`, then (pixels - mean) / scale."""

    model: nn.Module
    classes: list[str]
    mean: Tensor  # (3, 1, 1) or (3, H, W), in 0..255
    scale: Tensor  # (1, 1, 1) or (3, 1, 1)
    image_size: tuple[int, int]  # height, width

    def normalise(self, pixels: Tensor) -> Tensor:
        """uint8 (..., 3, H, W) -> what the model takes, float32."""
        return (pixels.float() - self.mean) / self.scale


def save(path: Path, network: Network, arguments: dict) -> None:
    """Write the network; `arguments` are the keyword arguments that build its ZFNet."""
    torch.save(
        {
            "format": FORMAT,
            "arguments": arguments,
            "classes": network.classes,
            "mean": network.mean,
            "scale": network.scale,
            "state_dict": network.model.state_dict(),
        },
        path,
    )


def load(path: Path) -> Network:
    """The network in a file that `save` wrote, or in a ZFNet's own `torch.save(model.state_dict(), path)`.

    A plain state dict carries no preprocessing: its pictures are scaled to 0..1 and normalised by ImageNet's mean and
    standard deviation, as torchvision's weights are. Only tensors and plain containers are unpickled.

    Raises:
        ValueError: the file is neither; the message says what it is instead.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if zipfile.is_zipfile(path):
            raise ValueError(
                f"{path} holds Python objects, which could run code and are not loaded: save model.state_dict(), not "
                "the model"
            ) from error
        raise ValueError(f"{path} is not a checkpoint: torch.save did not write it") from error
    except (RuntimeError, EOFError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable checkpoint: it is empty, damaged or cut short") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state dict or a zfkernels checkpoint")
    if content.get("format") == FORMAT:
        try:
            model = ZFNet(**content["arguments"])
            state, classes, mean, scale = (content[key] for key in ("state_dict", "classes", "mean", "scale"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is a damaged zfkernels checkpoint ({error!r})") from error
    else:
        state = content.get("state_dict", content)
        model, classes, mean, scale = _plain(path, state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]  # below torch's heading
        raise ValueError(f"{path} does not fit a ZFNet: {' '.join(lines)[:300]}") from error
    return Network(model.eval(), list(classes), mean, scale, model.image_size)


def untrained(seed: int = 0) -> Network:
    """The full ZFNet with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ZFNet()
    return Network(model.eval(), numbered(model.num_classes), *imagenet(), model.image_size)


def _plain(path: Path, state: object) -> tuple[ZFNet, list[str], Tensor, Tensor]:
    """Model, classes, mean and scale for a ZFNet's own state dict."""
    last = state.get("fc8.weight") if isinstance(state, dict) else None
    if not isinstance(last, Tensor) or last.dim() != 2:
        content = ", ".join(list(map(str, state))[:4]) if isinstance(state, dict) else type(state).__name__
        raise ValueError(f"{path} holds no ZFNet (no fc8.weight); it holds: {content or 'nothing'}")
    return ZFNet(num_classes=len(last)), numbered(len(last)), *imagenet()


def numbered(count: int) -> list[str]:
    """Names for classes that have none."""
    return [f"class {index}" for index in range(count)]


def imagenet() -> tuple[Tensor, Tensor]:
    """The mean and standard deviation that torchvision's networks expect, (3, 1, 1) each, for pixels in 0..255."""
    return tuple(255 * torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
