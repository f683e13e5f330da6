"""The ten sub-crops of a picture, and which of them each step of an epoch sees."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..data.folders import Item
from .recipe import CENTRE, CROPS, Plan


def crop_places(size: tuple[int, int], side: tuple[int, int]) -> list[tuple[int, int]]:
    """(top, left) of the corner crops (top left, top right, bottom left, bottom right) and of the centre crop."""
    down, right = size[0] - side[0], size[1] - side[1]
    if down < 0 or right < 0:
        raise ValueError(f"crops of {side} do not fit into pictures of {size}")
    return [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]


def crop(images: Tensor, which: int, side: tuple[int, int]) -> Tensor:
    """Sub-crop `which` (0..9) of images (..., H, W) -> (..., *side): place which % 5, mirrored from 5 on."""
    top, left = crop_places((images.shape[-2], images.shape[-1]), side)[which % 5]
    part = images[..., top : top + side[0], left : left + side[1]]
    return part.flip(-1) if which >= 5 else part


def stack_crops(images: Tensor, which: Iterable[int], side: tuple[int, int], dim: int = 1) -> Tensor:
    """Several sub-crops of images (N, C, H, W) -> (N, len(which), C, *side), or stacked along another axis."""
    return torch.stack([crop(images, each, side) for each in which], dim)


def draw_steps(plan: Plan, pictures: int, generator: torch.Generator) -> list[list[tuple[int, int]]]:
    """The steps of an epoch over so many pictures: of each step the (picture, sub-crop) pairs."""
    steps = torch.randperm(pictures, generator=generator).split(plan.batch_size)
    if plan.crops == "ten":
        drawn = torch.randint(CROPS, (pictures,), generator=generator)
        which = [drawn[step] for step in steps]
    else:
        which = [CENTRE + 5 * (torch.rand(len(step), generator=generator) < 0.5) for step in steps]
    return [list(zip(a.tolist(), b.tolist(), strict=True)) for a, b in zip(steps, which, strict=True)]


class Cropped(Dataset[Item]):
    """item (index, which) -> (uint8 sub-crop, label, which)."""

    def __init__(self, pictures: Dataset[Item], side: tuple[int, int]) -> None:
        self.pictures, self.side = pictures, side

    def __getitem__(self, item: tuple[int, int]) -> Item:
        image, label, _ = self.pictures[item[0]]
        return crop(image, item[1], self.side).contiguous(), label, item[1]
