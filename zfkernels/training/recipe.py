"""section 3's numbers and crops."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

CROPS = 10
PAPER_EPOCHS = (1, 2, 5, 10, 20, 30, 40, 64)  # those of Fig. 4


@dataclass(frozen=True)
class Plan:
    """The numbers of section 3."""

    epochs: int = 70
    batch_size: int = 128  # of all processes together
    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 0.0  # the paper names none
    filter_rms: float | None = 0.1  # None: no clamp, as on the left of Fig. 6
    patience: int = 3  # the rate falls after more than this many epochs without a lower validation error
    fall: float = 0.1  # to this fraction of what it was
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "fall"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.fall < 1:
            raise ValueError(f"fall must be below 1, got {self.fall}")
        if self.patience < 0:
            raise ValueError(f"patience must be at least 0, got {self.patience}")


def resized_side(side: int) -> int:
    """The side to which pictures are resized for crops of `side`: 256 for 224, in proportion for others."""
    return round(side * 256 / 224)


def crop_places(size: tuple[int, int], side: tuple[int, int]) -> list[tuple[int, int]]:
    """(top, left) of the corner crops (top left, top right, bottom left, bottom right) and of the centre crop."""
    down, right = size[0] - side[0], size[1] - side[1]
    if down < 0 or right < 0:
        raise ValueError(f"crops of {side} do not fit into pictures of {size}")
    return [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]


def crop(images: Tensor, which: int, side: tuple[int, int]) -> Tensor:
    """Sub-crop `which` (0..9) of images (..., H, W) -> (..., *side): place which % 5, mirrored from 5 on."""
    top, left = crop_places(tuple(images.shape[-2:]), side)[which % 5]
    part = images[..., top : top + side[0], left : left + side[1]]
    return part.flip(-1) if which >= 5 else part


def ten_crops(images: Tensor, side: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> (N, 10, C, *side)."""
    return torch.stack([crop(images, which, side) for which in range(CROPS)], 1)


class _Cropped(Dataset):
    """item (index, which) -> (uint8 crop, label, which)."""

    def __init__(self, pictures: Dataset, side: tuple[int, int]) -> None:
        self.pictures, self.side = pictures, side

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int]:
        image, label, _ = self.pictures[item[0]]
        return crop(image, item[1], self.side).contiguous(), label, item[1]
