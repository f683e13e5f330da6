"""The atlas: every map's strongest activations, projected to pixels, beside the patches that caused them (Fig. 2).

What each map's card holds; `atlas_page` draws them. A map's projections are cropped to the receptive field and share
one scale (the largest 0.5% of the values are clipped), so that their contrast compares within a map.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from torch import Tensor

from ..deconvnet.deconvnet import Deconvnet
from ..drawing.tiles import BETWEEN, beside, cut, frame, full_scale, plain_picture, signed_picture, stretched, tile
from ..progress import Shown
from ..training.processes import processes
from .activations import TopActivations, gather, top_activations
from .choices import method_for

UNITS_AT_ONCE = 288  # projections held in memory: 32 maps of 9
Read = Callable[[list[int]], tuple[Tensor, Tensor]]  # images' numbers -> (inputs (n, C, H, W), uint8 (n, 3, H, W))


@dataclass(frozen=True)
class Card:
    """One map's k strongest activations, each with its projection and the image that caused it."""

    channel: int
    values: Tensor  # (k,), strongest first
    numbers: Tensor  # (k,) int64: the images' numbers
    images: Tensor  # uint8 (k, 3, H, W)
    pixels: Tensor  # (k, C, H, W) projections, in the network's input units
    boxes: Tensor  # (k, 4) receptive fields, cut off at the images' borders
    side: int | tuple[int, int]  # what a tile shows of an image: a receptive field that is not cut off

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a tile, in pixels of the image."""
        wanted = (self.side, self.side) if isinstance(self.side, int) else self.side
        height, width = (min(want, side) for want, side in zip(wanted, self.images.shape[2:], strict=True))
        return height, width

    @cached_property
    def frames(self) -> list[tuple[int, int, int, int]]:
        """What each tile shows of its image: of the tile's shape, and as small as the unit's field allows.

        The field of a unit near the border is cut off there; what is left fills its tile, too.
        """
        (height, width), frames = self.shape, []
        for box in self.boxes.tolist():
            high, wide = box[2] - box[0], box[3] - box[1]
            size = (
                (high, -(-width * high // height))
                if high * width >= wide * height
                else (-(-height * wide // width), wide)
            )
            frames.append(frame(box, size, tuple(self.images.shape[2:])))
        return frames

    @cached_property
    def parts(self) -> list[Tensor]:
        """The projections inside their frames."""
        return [cut(pixels, box).float().cpu() for pixels, box in zip(self.pixels, self.frames, strict=True)]

    @cached_property
    def limit(self) -> float:
        """The full colour of the projections, in the network's input units."""
        return full_scale(self.parts)

    @cached_property
    def projections(self) -> list[np.ndarray]:
        return [signed_picture(part, self.limit) for part in self.parts]

    @cached_property
    def patches(self) -> list[np.ndarray]:
        return [plain_picture(cut(image, box)) for image, box in zip(self.images, self.frames, strict=True)]


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


def cards(
    deconv: Deconvnet,
    top: TopActivations,
    layer: str,
    read: Read,
    channels: Sequence[int] | None = None,
    norm: str = "identity",
    side: int | tuple[int, int] | None = None,
    method: str | None = None,
) -> Iterator[Card]:
    """A card for each map of `channels` (all of them if None) that responds to any image, in order.

    The units of many maps are projected in one pass over the images they share.

    Args:
        top: of `layer`, as `top_activations` gives.
        side: of the square, or (height, width), that a tile shows; the largest receptive field among the units if None.
    """
    channels = range(len(top.values)) if channels is None else channels
    live = [channel for channel in channels if float(top.values[channel, 0]) > 0]
    k, method = top.values.shape[1], method_for(deconv, layer, method)
    step = max(1, UNITS_AT_ONCE // k)
    for chunk in (live[i : i + step] for i in range(0, len(live), step)):
        numbers, index = top.images[chunk].unique(return_inverse=True)
        inputs, images = read(numbers.tolist())
        projection = deconv.project(
            inputs,
            layer,
            channel=[channel for channel in chunk for _ in range(k)],
            position=top.positions[chunk].reshape(-1, 2),
            norm=norm,
            image_index=index.flatten(),
            method=method,
        )
        side = side or _largest(deconv.boxes(layer, top.positions[live].reshape(-1, 2), tuple(images.shape[2:])))
        for row, channel in enumerate(chunk):
            units = slice(row * k, (row + 1) * k)
            yield Card(
                channel=channel,
                values=top.values[channel],
                numbers=top.images[channel],
                images=images[index[row]],
                pixels=projection.pixels[units],
                boxes=projection.boxes[units],
                side=side,
            )


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
