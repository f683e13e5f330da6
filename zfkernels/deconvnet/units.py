"""which activations are meant."""

import numpy as np
import torch
from torch import Tensor


def _set(g: Tensor, maps: np.ndarray, places: np.ndarray, values: Tensor) -> None:
    """One activation of each of g (N, channels, ...)."""
    where = (np.arange(len(g)), maps, *places.T)[: g.ndim]
    g[tuple(_on(g.device, part) for part in where)] = values


# What is asked for


def _integers(name: str, value: object, axes: int) -> np.ndarray:
    """`value` as an int64 array with at most `axes` dimensions."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an int or a sequence or tensor of ints, got {value!r}") from error
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool):
        raise TypeError(f"{name} must be an int or a sequence or tensor of ints, got {value!r}")
    if tensor.ndim > axes:
        raise ValueError(f"{name} must have at most {axes} dimension(s), got shape {tuple(tensor.shape)}")
    return tensor.to("cpu", torch.int64).numpy()


def _check_range(name: str, values: np.ndarray, count: int, text: str) -> None:
    wrong = values[(values < 0) | (values >= count)]
    if len(wrong):
        raise ValueError(f"{name} must be from 0 to {count - 1}, {text}, got {wrong[0]}")


def _units(
    shape: torch.Size, layer: str, image_index: object, channel: object, position: object, images: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Image, channel and (vertical, horizontal) place, or None, of each unit; `shape` is that of the layer's value."""
    index = np.arange(images) if image_index is None else _integers("image_index", image_index, 1).reshape(-1)
    channels = _integers("channel", channel, 1).reshape(-1)
    _check_range("image_index", index, images, f"there being {images} images")
    _check_range("channel", channels, shape[1], f"layer {layer!r} having {shape[1]}")
    named = {"image_index" if image_index is not None else "images": index, "channel": channels}
    if position is not None:
        places = _integers("position", position, 2)
        if places.ndim == 0 or (places.size and places.shape[-1] != 2):
            raise ValueError(f"position must be (vertical, horizontal), or one such pair a unit, got {position!r}")
        named["position"] = places = places.reshape(-1, 2)
        size = tuple(shape[2:]) or (1, 1)
        for axis, side in enumerate(("vertical", "horizontal")):
            _check_range(f"{side} position", places[:, axis], size[axis], f"layer {layer!r} being {size[0]}x{size[1]}")
    counts = {len(units) for units in named.values()} - {1} or {1}
    if len(counts) > 1:
        raise ValueError(
            "images (or image_index), channel and position must name as many units each, or one for all, got "
            + ", ".join(f"{len(units)} by {name}" for name, units in named.items())
        )
    (count,) = counts
    index, channels, *places = (units if len(units) == count else units.repeat(count, 0) for units in named.values())
    return index, channels, places[0] if places else None


def _strongest(value: Tensor, of: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Where map maps[i] of image of[i] is strongest, the first place in row-major order: (N, 2)."""
    flat = value[_on(value.device, of), _on(value.device, maps)].flatten(1).argmax(1).cpu().numpy()
    return np.stack([flat // value.shape[3], flat % value.shape[3]], 1)


def _at(value: Tensor, of: np.ndarray, maps: np.ndarray, places: np.ndarray) -> Tensor:
    where = (of, maps, places[:, 0], places[:, 1]) if value.ndim == 4 else (of, maps)
    return value[tuple(_on(value.device, part) for part in where)]


def _check_finite(values: Tensor, layer: str, maps: np.ndarray, places: np.ndarray) -> None:
    finite = torch.isfinite(values).tolist()
    if not all(finite):
        i = finite.index(False)
        raise ValueError(
            f"images or weights hold values that are not finite: channel {maps[i]} of layer {layer!r} is "
            f"{values[i].item()} at position {tuple(places[i].tolist())}"
        )


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(device)
