"""Which activations are meant: an image, a map and a place each."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Size, Tensor


class Units(NamedTuple):
    """N activations of a layer, one row each."""

    images: np.ndarray  # (N,) int64, the image's index
    channels: np.ndarray  # (N,) int64, the map or feature
    positions: np.ndarray  # (N, 2) int64, (vertical, horizontal) in the map; zeros for a feature

    def take(self, rows: np.ndarray | slice) -> "Units":
        return Units(*(part[rows] for part in self))


def named_units(
    shape: Size, layer: str, images: int, image_index: object, channel: object, position: object
) -> tuple[Units, bool]:
    """The units that the arguments of `Deconvnet.project` name, and whether their positions are still to be found.

    `shape` is that of the layer's value for so many images.
    """
    index = np.arange(images) if image_index is None else integers("image_index", image_index, 1).reshape(-1)
    channels = integers("channel", channel, 1).reshape(-1)
    _check_range("image_index", index, images, f"there are {images} images")
    _check_range("channel", channels, shape[1], f"layer {layer!r} has {shape[1]}")
    named = {"image_index" if image_index is not None else "images": index, "channel": channels}
    if position is not None:
        named["position"] = _positions(position, shape, layer)
    counts = {len(part) for part in named.values()} - {1} or {1}
    if len(counts) > 1:
        raise ValueError(
            "images (or image_index), channel and position must name as many units each, or one for all, got "
            + ", ".join(f"{len(part)} by {name}" for name, part in named.items())
        )
    (count,) = counts
    index, channels, *rest = (part if len(part) == count else part.repeat(count, 0) for part in named.values())
    positions = rest[0].copy() if rest else np.zeros((count, 2), np.int64)
    return Units(index, channels, positions), not rest and len(shape) == 4


def _positions(position: object, shape: Size, layer: str) -> np.ndarray:
    positions = integers("position", position, 2)
    if positions.ndim == 0 or (positions.size and positions.shape[-1] != 2):
        raise ValueError(f"position must be (vertical, horizontal), or one such pair a unit, got {position!r}")
    positions = positions.reshape(-1, 2)
    size = tuple(shape[2:]) or (1, 1)
    for axis, along in enumerate(("vertically", "horizontally")):
        text = f"{along}; layer {layer!r} is {size[0]}x{size[1]}"
        _check_range("position", positions[:, axis], size[axis], text)
    return positions


def named_layers(layer: str | Sequence[str]) -> list[str]:
    """One layer's name, or several's, as a list; what is neither stands in it as it is, to be refused by name."""
    return [layer] if isinstance(layer, str) or not isinstance(layer, Sequence) else list(layer)


def one_image(image: object) -> Tensor:
    """`image` (C, H, W) or (1, C, H, W) as a batch."""
    if not isinstance(image, Tensor):
        raise TypeError(f"image must be a torch.Tensor, got {type(image).__name__}")
    images = image[None] if image.ndim == 3 else image
    if images.ndim != 4 or len(images) != 1:
        raise ValueError(f"image must be one image, (C, H, W) or (1, C, H, W), got shape {tuple(image.shape)}")
    return images


def integers(name: str, value: object, axes: int) -> np.ndarray:
    """`value` as an int64 array with at most `axes` dimensions."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an int or a sequence or tensor of ints, got {value!r}") from error
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
        raise TypeError(f"{name} must be a dense tensor that holds values, got {described(tensor)}")
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool):
        raise TypeError(f"{name} must be an int or a sequence or tensor of ints, got {value!r}")
    if tensor.ndim > axes:
        raise ValueError(f"{name} must have at most {axes} dimension(s), got shape {tuple(tensor.shape)}")
    return tensor.to("cpu", torch.int64).numpy()


def described(tensor: Tensor) -> str:
    """What kind of tensor it is that has no values to read."""
    kind = "a nested" if tensor.is_nested else f"a {tensor.layout}" if tensor.layout is not torch.strided else "a"
    return f"{kind} tensor on {tensor.device}"


def _check_range(name: str, values: np.ndarray, count: int, text: str) -> None:
    wrong = values[(values < 0) | (values >= count)]
    if len(wrong):
        raise ValueError(f"{name} must be from 0 to {count - 1} ({text}), got {wrong[0]}")


def strongest(value: Tensor, units: Units) -> np.ndarray:
    """Where each unit's map is strongest, the first place in row-major order: (N, 2)."""
    maps = value[on(value.device, units.images), on(value.device, units.channels)]
    return np.stack(np.divmod(maps.flatten(1).argmax(1).cpu().numpy(), value.shape[3]), 1)


def at(value: Tensor, units: Units) -> Tensor:
    """The units' entries of maps (or vectors): (N,)."""
    index = (units.images, units.channels, *units.positions.T)[: value.ndim]
    return value[tuple(on(value.device, part) for part in index)]


def alone(like: Tensor, units: Units, values: Tensor) -> Tensor:
    """Maps (or vectors) shaped as those of `like`, one a unit, that are 0 except for the unit's value."""
    return _placed(like.new_zeros(len(values), *like.shape[1:]), np.arange(len(values)), units, values)


def together(like: Tensor, units: Units, values: Tensor) -> Tensor:
    """Maps (or vectors) shaped as those of `like`, one for all units, that are 0 except for the units' values."""
    return _placed(like.new_zeros(1, *like.shape[1:]), np.zeros(len(values), np.int64), units, values)


def _placed(g: Tensor, rows: np.ndarray, units: Units, values: Tensor) -> Tensor:
    index = (rows, units.channels, *units.positions.T)[: g.ndim]
    g[tuple(on(g.device, part) for part in index)] = values
    return g


def known_values(values: object, units: Units, look: bool, like: Tensor) -> Tensor:
    """The units' values as they were given; ValueError or TypeError where they do not fit."""
    if look:
        raise ValueError("position must be given with values, which are of the units there")
    if isinstance(values, Tensor) and (values.layout is not torch.strided or values.is_nested or values.is_complex()):
        raise TypeError(f"values must be a dense tensor of real numbers, got {values.dtype}, {described(values)}")
    try:
        known = torch.as_tensor(values, dtype=like.dtype, device=like.device).detach()
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"values must be a number a unit, got {values!r}") from None
    if known.shape != (len(units.images),):
        raise ValueError(f"values must have shape ({len(units.images)},), one a unit, got {tuple(known.shape)}")
    return known


def check_fits(name: str, number: float | None, like: Tensor) -> None:
    """ValueError for a number that is beyond the dtype of `like`, the images."""
    most = torch.finfo(like.dtype).max
    if number is not None and not -most <= number <= most:
        raise ValueError(f"{name} must be from {-most:g} to {most:g}, for images of {like.dtype}, got {number!r}")


def check_finite(values: Tensor, layer: str, units: Units) -> None:
    finite = torch.isfinite(values).tolist()
    if not all(finite):
        i = finite.index(False)
        raise ValueError(
            f"images or weights hold values that are not finite: channel {units.channels[i]} of layer {layer!r} is "
            f"{values[i].item()} at position {tuple(units.positions[i].tolist())}"
        )


def on(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(device)
