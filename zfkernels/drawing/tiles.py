"""Tensors as pictures, uint8 (H, W, 3), and pictures side by side."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

GREY = 128
BETWEEN = 40  # the grey between the tiles of a panel, which is seen on light pages and on dark ones
SAMPLED = 16  # every so many of the values give an idea of all
Image = TypeVar("Image", np.ndarray, torch.Tensor)


def signed_picture(values: torch.Tensor, limit: float) -> np.ndarray:
    """(3, H, W), or grey (1, H, W), values to uint8 (H, W, 3): 0 is mid-grey, +limit full, -limit none of a colour."""
    values = values.expand(3, -1, -1) if len(values) == 1 else values
    scaled = (values.detach().float().cpu() * (127 / limit if limit > 0 else 0.0)).add_(GREY)
    return scaled.round_().clamp_(1, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def size_picture(values: torch.Tensor) -> np.ndarray:
    """(C, H, W) values to uint8 (H, W, 3): each pixel's absolute values summed; 0 is black, the largest 1% white."""
    size = values.detach().float().cpu().abs().sum(0)
    limit = float(size.flatten().quantile(0.99)) or 1.0
    return (size * (255 / limit)).clamp(0, 255).to(torch.uint8)[..., None].expand(-1, -1, 3).numpy()


def full_scale(parts: Sequence[torch.Tensor]) -> float:
    """The limit that projections shown together share: the largest 0.5% of the absolute values lie beyond it."""
    values = torch.cat([part.abs().flatten() for part in parts])
    values = values if values.dtype == torch.float64 else values.float()
    place = 0.995 * (len(values) - 1)  # among the values by rising size, linear between two, as of torch.quantile
    count = len(values) - int(place)
    if len(values) > 64 * SAMPLED:  # few are as large as the largest 2% of every so many: only these are sorted
        sample = values[::SAMPLED]
        few = values[values >= sample.topk(len(sample) // 50).values[-1]]
        values = few if len(few) >= count else values
    largest = values.topk(count).values
    return float(largest[-1].lerp(largest[-2:][0], place - int(place)))


def plain_picture(image: torch.Tensor) -> np.ndarray:
    """A uint8 (3, H, W) image to (H, W, 3)."""
    return image.permute(1, 2, 0).cpu().numpy()


def zoom_to(side: int, target: int) -> int:
    """The whole zoom that brings `side` pixels nearest to `target`, at least 1."""
    return max(1, round(target / side))


def tile(pictures: Sequence[np.ndarray], columns: int, zoom: int, gap: int = 2, background: int = 255) -> np.ndarray:
    """Equal (H, W, 3) pictures row by row in a grid, each pixel a zoom x zoom block, `gap` pixels between."""
    height, width = pictures[0].shape[0] * zoom, pictures[0].shape[1] * zoom
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), background, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture.repeat(zoom, 0).repeat(zoom, 1)
    return sheet


def beside(left: np.ndarray, right: np.ndarray, gap: int, background: int = 255) -> np.ndarray:
    """Two pictures of one height with a gutter of `gap` pixels between."""
    return np.concatenate([left, np.full((len(left), gap, 3), background, np.uint8), right], 1)


def stretched(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """The picture (H, W, 3) at that size: grown by whole pixels where that is possible, shrunk by averages."""
    if picture.shape[:2] == (height, width):
        return picture
    if height % len(picture) == width % picture.shape[1] == 0:
        return picture.repeat(height // len(picture), 0).repeat(width // picture.shape[1], 1)
    from PIL import Image as ImageModule

    grows = height >= len(picture) and width >= picture.shape[1]
    kind = ImageModule.Resampling.NEAREST if grows else ImageModule.Resampling.BOX
    return np.asarray(ImageModule.fromarray(picture).resize((width, height), kind))


def cut(image: Image, box: Sequence[int]) -> Image:
    """The part of a (..., H, W) image inside a half-open box (top, left, bottom, right)."""
    top, left, bottom, right = box
    return image[..., top:bottom, left:right]


def frame(box: Sequence[int], size: int | Sequence[int], shape: Sequence[int]) -> tuple[int, int, int, int]:
    """`box` grown, inside an image of `shape`, to `size` = (height, width) or a square's side, or to the image's sides.

    The receptive fields of units near the border are cut there; framed alike, they can be shown in one grid.
    """
    wanted = (size, size) if isinstance(size, int) else size
    height, width = (min(want, side) for want, side in zip(wanted, shape, strict=True))
    top, left = min(box[0], shape[0] - height), min(box[1], shape[1] - width)
    return top, left, top + height, left + width
