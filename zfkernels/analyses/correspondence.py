"""Does a network relate the same part of different images? (Zeiler & Fergus, section 4.3 and Table 1)"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Correspondence:
    """Delta of one part in one layer: low when hiding the part changes every image's features alike."""

    delta: float  # mean over the pairs i != j of the fraction of features whose sign of change differs
    deviation: float  # of the images' own means delta_i over j != i; sample deviation
    per_image: Tensor  # (N,) delta_i


def sign_disagreement(changes: Tensor) -> Correspondence:
    """Delta = sum_{i != j} H(sign eps_i, sign eps_j) / (N (N - 1) D) of changes eps (N, D); 0 has a sign of its own.

    The paper's Delta is the sum, "normalised"; the mean over pairs and features makes it a fraction from 0 to 1.
    """
    if changes.ndim != 2 or len(changes) < 2 or changes.shape[1] < 1:
        raise ValueError(f"changes must be (N, D) with N of at least 2, got shape {tuple(changes.shape)}")
    signs = changes.sign()
    per_image = torch.stack([(signs != one).double().mean(1).sum() / (len(signs) - 1) for one in signs])
    return Correspondence(float(per_image.mean()), float(per_image.std()), per_image)


@torch.no_grad()
def correspondence(
    model: nn.Module | Deconvnet,
    images: Tensor,
    parts: Mapping[str, Sequence[Box]],
    layers: Sequence[str],
    *,
    fill: float | Tensor = 0.0,
) -> dict[str, dict[str, Correspondence]]:
    """Table 1: for each layer and part, how alike the images' features change when the part is hidden.

    eps_i = x_i - x~_i, the features of image i less those with the part covered by `fill`.

    Args:
        model: a ZFNet, any model that `Deconvnet` traces, or a Deconvnet; in evaluation mode.
        images: (N, C, H, W), N of at least 2.
        parts: for each part its box in every image: (top, left, bottom, right), half-open, in the input's pixels.
            Random boxes ("random") are the yardstick.
        layers: the paper's are the fifth (pool5) and the seventh.
        fill: 0 is the mean image where the mean was subtracted.

    Raises:
        ValueError: a part without a box for each image, or an empty box or one that leaves the image.
    """
    deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)
    clear = deconv.activations(images, layers)
    found: dict[str, dict[str, Correspondence]] = {layer: {} for layer in layers}
    for name, boxes in parts.items():
        if len(boxes) != len(images):
            raise ValueError(f"part {name!r} must have a box for each of {len(images)} images, got {len(boxes)}")
        hidden = images.clone()
        cover = torch.as_tensor(fill, dtype=images.dtype).expand(images.shape[1:])
        for image, (top, left, bottom, right) in zip(hidden, boxes, strict=True):
            if not (0 <= top < bottom <= images.shape[2] and 0 <= left < right <= images.shape[3]):
                raise ValueError(
                    f"part {name!r} has the box {(top, left, bottom, right)}, outside images of "
                    f"{tuple(images.shape[2:])}"
                )
            image[:, top:bottom, left:right] = cover[:, top:bottom, left:right]
        for layer, features in deconv.activations(hidden, layers).items():
            found[layer][name] = sign_disagreement((clear[layer] - features).flatten(1))
    return found


def random_boxes(parts: Mapping[str, Sequence[Box]], size: tuple[int, int], seed: int = 0) -> list[Box]:
    """For each image a box at a random place, of the size of one of its parts drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    boxes = []
    for of_one in zip(*parts.values(), strict=True):
        top, left, bottom, right = of_one[int(torch.randint(len(of_one), (), generator=generator))]
        height, width = bottom - top, right - left
        y = int(torch.randint(size[0] - height + 1, (), generator=generator))
        x = int(torch.randint(size[1] - width + 1, (), generator=generator))
        boxes.append((y, x, y + height, x + width))
    return boxes


def to_input(box: Box, picture: tuple[int, int], size: tuple[int, int]) -> Box:
    """A box in a picture's own pixels (height, width) -> in those of the input cut from its centre."""
    ratio = max(size[0] / picture[0], size[1] / picture[1])
    offset = [(picture[axis] * ratio - size[axis]) / 2 for axis in (0, 1)]
    ends = [round(box[i] * ratio - offset[i % 2]) for i in range(4)]
    top, left = (min(max(ends[i], 0), size[i] - 1) for i in (0, 1))
    return top, left, min(max(ends[2], top + 1), size[0]), min(max(ends[3], left + 1), size[1])


def read_parts(path: Path, size: tuple[int, int]) -> tuple[list[Path], dict[str, list[Box]]]:
    """The pictures of a JSON list [{"image": FILE, "parts": {NAME: [top, left, bottom, right]}}, ...] and their boxes.

    Files are relative to the JSON's folder; boxes are in the picture's own pixels and come back in the input's.
    """
    from PIL import Image, ImageOps

    try:
        listed = json.loads(path.read_text())
        paths = [path.parent / one["image"] for one in listed]
        names = list(listed[0]["parts"])
        boxes = [[tuple(map(int, one["parts"][name])) for name in names] for one in listed]
        if any(len(box) != 4 for of_one in boxes for box in of_one):
            raise ValueError("a box must be [top, left, bottom, right]")
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(
            f'{path} must hold [{{"image": FILE, "parts": {{NAME: [top, left, bottom, right]}}}}, ...], with the same '
            f"parts for each image ({error!r})"
        ) from error
    parts: dict[str, list[Box]] = {name: [] for name in names}
    for file, of_one in zip(paths, boxes, strict=True):
        with Image.open(file) as opened:
            width, height = ImageOps.exif_transpose(opened).size
        for name, box in zip(names, of_one, strict=True):
            parts[name].append(to_input(box, (height, width), size))
    return paths, parts


def table(found: Mapping[str, Mapping[str, Correspondence]]) -> str:
    """Table 1's rows and columns: mean +- deviation."""
    layers = list(found)
    lines = [f"{'part hidden':<18}" + "".join(f"{layer:>18}" for layer in layers)]
    for part in found[layers[0]]:
        cells = (found[layer][part] for layer in layers)
        lines.append(f"{part:<18}" + "".join(f"{f'{c.delta:.3f} ± {c.deviation:.3f}':>18}" for c in cells))
    return "\n".join(lines)
