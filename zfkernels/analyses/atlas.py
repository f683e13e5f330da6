"""The atlas: every map's strongest activations, projected to pixels, beside the patches that caused them (Fig. 2).

What each map's card holds; `atlas_page` draws them. A map's projections are cropped to the receptive field and share
one scale (the largest 0.5% of the values are clipped), so that their contrast compares within a map.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..deconvnet.deconvnet import Deconvnet
from ..drawing.tiles import BETWEEN, beside, cut, frame, full_scale, plain_picture, signed_picture, stretched, tile
from ..progress import Shown
from ..training.processes import processes
from .activations import TopActivations, gather, top_activations
from .choices import method_for

UNITS_AT_ONCE = 288  # projections of whole images held in memory, at most
KEPT = 25 * 2**20  # bytes of them: malloc gives blocks of up to 32 MB again, larger ones are fresh pages each time
PARTS_HELD = 2**29  # bytes of the parts of them that are shown: the maps of which are made together
Read = Callable[[list[int]], tuple[Tensor, Tensor]]  # images' numbers -> (inputs (n, C, H, W), uint8 (n, 3, H, W))
Box = tuple[int, int, int, int]  # top, left, bottom, right; half-open
Framed = Callable[[Sequence[int], tuple[int, int], tuple[int, int]], Box]  # a field, a tile's shape, an image's size


@dataclass(frozen=True)
class Card:
    """One map's k strongest activations, each with its projection and the patch that caused it."""

    channel: int
    values: Tensor  # (k,), strongest first
    numbers: Tensor  # (k,) int64: the images' numbers
    shape: tuple[int, int]  # height and width of a tile, in pixels of the image: a receptive field that is not cut off
    frames: list[Box]  # what each tile shows of its image
    parts: list[Tensor]  # the projections there, (C, height, width), in the network's input units
    patches: list[np.ndarray]  # the images there, uint8 (height, width, 3)

    @cached_property
    def limit(self) -> float:
        """The full colour of the projections, in the network's input units."""
        return full_scale(self.parts)

    @cached_property
    def projections(self) -> list[np.ndarray]:
        """As pictures, uint8 (height, width, 3)."""
        return [signed_picture(part, self.limit) for part in self.parts]


@dataclass(frozen=True)
class LayerCards:
    name: str
    maps: int  # how many were looked at
    cards: Iterator[Card]  # of the maps that respond to any image
    method: str = "deconvnet"  # of the projections


def search(
    deconv: Deconvnet,
    batches: Iterable[tuple[Tensor, Tensor]],
    layers: Sequence[str],
    k: int,
    paths: Sequence[Path],
    folder: Path,
    progress: Shown = False,
    also: bytes = b"",
) -> dict[str, TopActivations]:
    """The `k` strongest activations of every map over the pictures `paths`, the same on each process.

    A search that was stopped continues from folder/search-*.pt, one file for these pictures and each process.

    Args:
        batches: (inputs, numbers) of this process's share of the pictures.
        also: what else makes it another search: how pictures become inputs.
    """
    rank, world = processes()
    digest = hashlib.sha256("\n".join(map(_version, paths)).encode("utf-8", "surrogateescape") + also).hexdigest()[:12]
    state = folder / f"search-{digest}-{rank}-of-{world}.pt"
    return gather(top_activations(deconv, batches, layers, k, numbered=True, state=state, progress=progress), k)


def _version(path: Path) -> str:
    """The path, and of a file that is there what changes with its content."""
    if not path.exists():
        return str(path)
    found = path.stat()
    return f"{path} {found.st_size} {found.st_mtime_ns}"


def atlas(
    deconv: Deconvnet,
    tops: Mapping[str, TopActivations],
    read: Read,
    maps: int | None = None,
    norm: str = "identity",
    methods: Mapping[str, str] | None = None,
) -> Iterator[LayerCards]:
    """The cards of each layer's first `maps` maps (all of them if None), made as they are asked for.

    `methods`: each layer's, as of `Deconvnet.project`; None for choices.method_for.
    """
    for layer, top in tops.items():
        channels = range(min(len(top.values), maps or len(top.values)))
        method = method_for(deconv, layer, None if methods is None else methods[layer])
        yield LayerCards(layer, len(channels), cards(deconv, top, layer, read, channels, norm, method=method), method)


def fitted(shape: tuple[int, int], size: tuple[int, int]) -> tuple[int, int]:
    """A tile's shape where images are of this size."""
    return min(shape[0], size[0]), min(shape[1], size[1])


def filling(box: Sequence[int], shape: tuple[int, int], size: tuple[int, int]) -> Box:
    """What a tile shows of an image of this size: of the tile's proportions, and as small as the unit's field allows.

    The field of a unit near the border is cut off there; what is left fills its tile, too.
    """
    (height, width), high, wide = shape, box[2] - box[0], box[3] - box[1]
    if high * width >= wide * height:
        return frame(box, (high, -(-width * high // height)), size)
    return frame(box, (-(-height * wide // width), wide), size)


def cards(
    deconv: Deconvnet,
    top: TopActivations,
    layer: str,
    read: Read,
    channels: Sequence[int] | None = None,
    norm: str = "identity",
    side: int | tuple[int, int] | None = None,
    method: str | None = None,
    framed: Framed = filling,
) -> Iterator[Card]:
    """A card for each map of `channels` (all of them if None) that responds to any image, in order.

    The units of many maps are projected together, in one pass over the images that they share.

    Args:
        top: of `layer`, as `top_activations` gives.
        side: of the square, or (height, width), that a tile shows; the largest receptive field among the units if None.
        framed: what a tile shows; `tiles.frame` for all of that size, also of a unit that sees less.
    """
    channels = range(len(top.values)) if channels is None else channels
    live = [channel for channel in channels if float(top.values[channel, 0]) > 0]
    if not live:
        return
    k, method = top.values.shape[1], method_for(deconv, layer, method)
    inputs, images = read([int(top.images[live[0], 0])])
    size = (int(images.shape[2]), int(images.shape[3]))
    side = side or _largest(deconv.boxes(layer, top.positions[live].reshape(-1, 2), size))
    shape = fitted((side, side) if isinstance(side, int) else side, size)
    enough = min(UNITS_AT_ONCE, max(1, KEPT // (inputs[0].numel() * inputs.element_size())))
    together = max(1, PARTS_HELD // (4 * k * inputs.shape[1] * shape[0] * shape[1]))
    for chunk in (live[i : i + together] for i in range(0, len(live), together)):
        units = dict(_units(deconv, top, layer, read, chunk, norm, method, shape, framed, enough))
        for channel in chunk:
            frames, parts, patches = zip(*(units.pop((channel, rank)) for rank in range(k)), strict=True)
            found = channel, top.values[channel], top.images[channel]
            yield Card(*found, shape, list(frames), list(parts), list(patches))


def _units(
    deconv: Deconvnet,
    top: TopActivations,
    layer: str,
    read: Read,
    channels: Sequence[int],
    norm: str,
    method: str,
    shape: tuple[int, int],
    framed: Framed,
    enough: int,
) -> Iterator[tuple[tuple[int, int], tuple[Box, Tensor, np.ndarray]]]:
    """Of each unit (channel, rank) its frame, and its projection and image there.

    Image after image, so that each goes up through the network once; `enough` units together.
    """

    def image_of(unit: tuple[int, int]) -> int:
        return int(top.images[unit])

    units = sorted(product(channels, range(top.values.shape[1])), key=image_of)
    for some in _of_whole_images(units, image_of, enough):
        numbers, index = torch.stack([top.images[unit] for unit in some]).unique(return_inverse=True)
        inputs, images = read(numbers.tolist())
        places, of_channels = torch.stack([top.positions[unit] for unit in some]), [channel for channel, _ in some]
        how: dict[str, Any] = {"image_index": index, "method": method, "values": [float(top.values[u]) for u in some]}
        projection = deconv.project(inputs, layer, of_channels, places, norm, **how)
        rows = zip(some, index.tolist(), projection.pixels, projection.boxes.tolist(), strict=True)
        for unit, image, pixels, box in rows:
            place = framed(box, shape, (int(images.shape[2]), int(images.shape[3])))
            part, patch = cut(pixels, place).float().cpu(), plain_picture(cut(images[image], place))
            yield unit, (place, part.clone(), patch.copy())  # or each would hold the memory of whole images


def _of_whole_images(
    units: Sequence[tuple[int, int]], image_of: Callable[[tuple[int, int]], int], enough: int
) -> Iterator[list[tuple[int, int]]]:
    """Runs of so many units, or some more: those of an image are in one, unless they are more than UNITS_AT_ONCE."""
    some: list[tuple[int, int]] = []
    for _, of_image in groupby(units, image_of):
        some += of_image
        if len(some) >= enough:
            yield from (some[i : i + UNITS_AT_ONCE] for i in range(0, len(some), UNITS_AT_ONCE))
            some = []
    if some:
        yield some


def _largest(boxes: Tensor) -> tuple[int, int]:
    height, width = (boxes[:, 2:] - boxes[:, :2]).amax(0).tolist()
    return height, width


def grids(card: Card, zoom: int = 1, gap: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The projections and the patches, each as a grid of ceil(sqrt(k)) columns; uint8 (H, W, 3)."""
    columns = int(np.ceil(len(card.values) ** 0.5))
    height, width = (side * zoom for side in card.shape)
    projections, patches = (
        tile([stretched(picture, height, width) for picture in pictures], columns, 1, gap, BETWEEN)
        for pictures in (card.projections, card.patches)
    )
    return projections, patches


def panel(card: Card, zoom: int = 1, gap: int = 2) -> np.ndarray:
    """The grid of projections and, to its right, that of patches."""
    return beside(*grids(card, zoom, gap), 3 * gap, BETWEEN)
