"""Labelled pictures in pairs of IDX files, the format of MNIST and of Fashion-MNIST.

A pair is NAME-images-idx3-ubyte and NAME-labels-idx1-ubyte, each as it is or gzipped (.gz). A file has two zero bytes,
a byte for the kind of its numbers (8: unsigned bytes), a byte for how many sizes follow, the sizes as big-endian 32-bit
numbers, and the numbers, row by row.
"""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .folders import Memory

NAME = re.compile(r"(?P<name>.*?)[-._]?(?P<what>images|labels)[-.]idx(?P<sizes>[13])[-.]ubyte(?P<zipped>\.gz)?")
TRAINING = "train"  # what the name of the pair to train on ends with
UNSIGNED_BYTES = 8
SHAPES = {1: "(count)", 3: "(count, height, width)"}


@dataclass(frozen=True)
class Pair:
    """The two files of a set of pictures."""

    images: Path
    labels: Path


@dataclass(frozen=True)
class IdxPictures:
    """What a pair of files holds: grey pictures and a class for each."""

    pair: Pair
    images: Tensor  # uint8 (N, H, W)
    labels: Tensor  # int64 (N,)
    left_out: tuple[tuple[Path, str], ...] = ()  # nothing is: as of a `scan.Scan`

    def line(self) -> str:
        """How many pictures, of how many classes, were found."""
        count = len(self.labels.unique())
        height, width = self.images.shape[1:]
        return f"{len(self.labels)} pictures of {count} classes in {self.pair.images}, {height} x {width}, grey"


def holds_idx(path: Path) -> bool:
    """Whether `path` is the images' file of a pair, or a folder that holds one."""
    files = path.iterdir() if path.is_dir() else [path] if path.is_file() else []
    return any(found and found["what"] == "images" for found in (NAME.fullmatch(file.name) for file in files))


def pairs(path: Path) -> tuple[Pair, Pair | None]:
    """The pair to train on, and another one that is to validate on, in a folder; of a file of images, its own alone.

    In a folder the pair to train on is the one whose name ends with "train" (train-images-idx3-ubyte.gz), or the only
    one; the other one (t10k-, test-) is to validate on.

    Raises:
        ValueError: images without labels, or pairs of which it cannot be said what they are for.
    """
    folder = path if path.is_dir() else path.parent
    found: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.iterdir()):
        if (one := NAME.fullmatch(file.name)) and file.is_file():
            found.setdefault(one["name"], {}).setdefault(one["what"], file)  # of two, the one that is not gzipped
    if path.is_file() and (one := NAME.fullmatch(path.name)):
        found = {one["name"]: {**found[one["name"]], "images": path}}
    sets = {name: files for name, files in found.items() if "images" in files}
    for name, files in sets.items():
        if "labels" not in files:
            raise ValueError(f"{files['images']} must have {name}-labels-idx1-ubyte beside it, or the same with .gz")
    training = [name for name in sets if name.endswith(TRAINING)] if len(sets) > 1 else list(sets)
    others = [name for name in sets if name not in training]
    if len(training) != 1 or len(others) > 1:
        raise ValueError(
            f"{path} holds {len(sets)} sets of IDX files ({', '.join(sets)}), of which one must end with {TRAINING!r} "
            "and one may be another, to validate on; or give the file of the pictures to train on, not the folder"
        )
    return Pair(**sets[training[0]]), Pair(**sets[others[0]]) if others else None


def read_pair(pair: Pair) -> IdxPictures:
    """The pictures and classes of a pair.

    Raises:
        ValueError: a file that is no IDX file of that kind, or is damaged; no pictures; not as many labels.
    """
    images, labels = read_idx(pair.images, 3), read_idx(pair.labels, 1)
    if not images.size:
        raise ValueError(f"{pair.images} holds no pictures: its sizes are {' x '.join(map(str, images.shape))}")
    if len(images) != len(labels):
        raise ValueError(f"{pair.images} holds {len(images)} pictures and {pair.labels} {len(labels)} labels")
    return IdxPictures(pair, torch.from_numpy(images), torch.from_numpy(labels).long())


def read_idx(path: Path, sizes: int) -> np.ndarray:
    """The unsigned bytes of an IDX file that has so many sizes.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else that is wrong with it; one line that names the file.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            start = file.read(4 + 4 * sizes)
            _check_start(path, start, sizes)
            shape = struct.unpack(f">{sizes}I", start[4:])
            count = math.prod(shape)
            values = file.read(count + 1)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (OSError, EOFError, zlib.error, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read: it is damaged or cut short ({error}); copy it again") from error
    if len(values) != count:
        more = "more" if len(values) > count else f"{len(values)}"
        said = " x ".join(map(str, shape))
        raise ValueError(f"{path} must hold {said} = {count} bytes after its sizes, and holds {more}; copy it again")
    numbers: np.ndarray = np.frombuffer(values, np.uint8).reshape(shape).copy()
    return numbers


def _check_start(path: Path, start: bytes, sizes: int) -> None:
    wanted = bytes((0, 0, UNSIGNED_BYTES, sizes))
    if start[:4] != wanted:
        raise ValueError(
            f"{path} must begin with {wanted.hex(' ')}, as an IDX file of unsigned bytes of {SHAPES[sizes]} does, got "
            f"{start[:4].hex(' ') or 'nothing'}"
        )
    if len(start) < 4 + 4 * sizes:
        raise ValueError(f"{path} ends before its sizes; copy it again")


def class_names(pictures: Sequence[IdxPictures]) -> tuple[str, ...]:
    """The classes' names, which are their numbers.

    Raises:
        ValueError: one class alone, or a class that the first of the sets lacks.
    """
    training, *others = pictures
    count = int(training.labels.max()) + 1
    if len(training.labels.unique()) < 2:
        raise ValueError(f"{training.pair.labels} must hold at least 2 classes, got {count - 1} alone")
    for other in others:
        if (most := int(other.labels.max())) >= count:
            raise ValueError(
                f"{other.pair.labels} has a class {most}, and the classes of {training.pair.labels} end at {count - 1}"
            )
    return tuple(map(str, range(count)))


def resized(pictures: IdxPictures, size: tuple[int, int]) -> Memory:
    """The pictures as `PictureSet` would give them from files, of one channel."""
    from PIL import Image, ImageOps

    height, width = size
    fitted = torch.empty(len(pictures.images), 1, height, width, dtype=torch.uint8)
    for picture, to in zip(pictures.images.numpy(), fitted, strict=True):
        drawn = ImageOps.fit(Image.fromarray(picture), (width, height), method=Image.Resampling.BICUBIC)
        to[0] = torch.from_numpy(np.array(drawn))
    return Memory(fitted, pictures.labels)
