"""Folders of pictures: class folders to train on, and any folder to search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from .pictures import read_picture
from .scan import Scan, scan


@dataclass(frozen=True)
class Pictures:
    """Picture files with their classes, in an order that depends only on their names."""

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def pick(self, numbers: Sequence[int]) -> Pictures:
        """The pictures of these numbers, in this order."""
        return Pictures(tuple(self.paths[i] for i in numbers), tuple(self.labels[i] for i in numbers), self.classes)


def class_folders(folder: Path | Scan, classes: tuple[str, ...] | None = None) -> Pictures:
    """The pictures of a folder of class folders; a picture's class is the first folder below `folder`.

    Args:
        folder: or what `scan.scan` found in it.
        classes: the classes, if another folder has fixed them; otherwise every subfolder that holds pictures.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: pictures outside class folders, fewer than two classes, or a class that `classes` lacks.
    """
    found = folder if isinstance(folder, Scan) else scan(folder)
    folder, paths = found.folder, found.paths
    names = [path.relative_to(folder).parts for path in paths]
    loose = [path for path, parts in zip(paths, names, strict=True) if len(parts) == 1]
    if loose:
        raise ValueError(f"{folder} must hold a folder of pictures for each class; {loose[0].name} lies in none")
    subfolders = tuple(sorted({parts[0] for parts in names}))
    if classes is None:
        if len(subfolders) < 2:
            raise ValueError(f"{folder} must hold at least 2 class folders with pictures, got {', '.join(subfolders)}")
        classes = subfolders
    elif unknown := set(subfolders) - set(classes):
        raise ValueError(f"{folder} has a class {min(unknown)!r} that the training folder lacks")
    return Pictures(tuple(paths), tuple(classes.index(parts[0]) for parts in names), tuple(classes))


def empty_classes(found: Scan) -> list[tuple[Path, str]]:
    """The class folders that hold no picture that can be read, and so would be missed: (folder, why)."""
    used = {path.relative_to(found.folder).parts[0] for path in found.paths}
    folders = sorted(path for path in found.folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return [(folder, "class folders without pictures") for folder in folders if folder.name not in used]


def hold_out(pictures: Pictures, fraction: float, seed: int = 0) -> tuple[Pictures, Pictures]:
    """(kept, held out): `fraction` of each class, rounded, at least one and never all, drawn by `seed`.

    Raises:
        ValueError: a fraction outside (0, 1), or a class of one picture.
    """
    kept, out = drawn(pictures.labels, pictures.classes, fraction, seed)
    return pictures.pick(kept), pictures.pick(out)


def drawn(labels: Sequence[int], classes: Sequence[str], fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """The numbers of the pictures that `hold_out` keeps and holds out."""
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, got {fraction}")
    of, random = np.array(labels), np.random.default_rng(seed)
    out: list[int] = []
    for label, name in enumerate(classes):
        members = random.permutation(np.flatnonzero(of == label))
        if len(members) == 1:
            raise ValueError(
                f"class {name!r} has one picture, which cannot be both trained on and held out; add others, or give a "
                "folder to validate on (--validation)"
            )
        out += members[: min(max(1, round(fraction * len(members))), max(len(members) - 1, 0))].tolist()
    chosen = set(out)
    return [i for i in range(len(labels)) if i not in chosen], sorted(chosen)


Item = tuple[Tensor, int, int]  # pixels, label, number


class PictureSet(Dataset[Item]):
    """item i -> (uint8 (3, height, width), label, i): read when asked for, resized to cover `size`, its centre cut."""

    channels = 3

    def __init__(self, pictures: Pictures | list[Path], size: tuple[int, int]) -> None:
        self.paths = pictures.paths if isinstance(pictures, Pictures) else tuple(pictures)
        self.labels = pictures.labels if isinstance(pictures, Pictures) else (-1,) * len(self.paths)
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        return read_picture(self.paths[index], self.size), self.labels[index], index


class Memory(Dataset[Item]):
    """The same items from uint8 images (N, C, H, W) and labels (N,) in memory."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) != len(labels):
            raise ValueError(
                f"images must be uint8 (N, C, H, W) with N labels, got {images.dtype} {tuple(images.shape)} and "
                f"{len(labels)} labels"
            )
        self.images, self.labels, self.size = images, labels.tolist(), (images.shape[2], images.shape[3])
        self.channels = images.shape[1]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Item:
        return self.images[index], self.labels[index], index

    def pick(self, numbers: Sequence[int]) -> Memory:
        """The items of these numbers, in this order."""
        return Memory(self.images[list(numbers)], torch.tensor(self.labels)[list(numbers)])


Labelled = PictureSet | Memory
