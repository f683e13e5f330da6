"""The atlas: every map's strongest activations, projected to pixels, beside the patches that caused them (Fig. 2).

One PNG sheet a layer, and one HTML page that holds all its pictures itself, so that it can be mailed and opened from a
disk. A map's projections are cropped to the receptive field and share one scale (the largest 0.5% of the values are
clipped), so that their contrast compares within a map.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ..deconvnet.deconvnet import Deconvnet
from ..drawing.page import data_uri, render
from ..drawing.tiles import beside, cut, frame, full_scale, plain_picture, signed_picture, tile, zoom_to
from ..files import write_text, write_whole
from ..progress import Shown
from ..training.processes import processes
from .activations import TopActivations, gather, top_activations
from .choices import method_for

SHEET_WIDTH, SHEET_GAP = 2400, 14  # pixels
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
    side: int | tuple[int, int]  # what is shown of each image: a receptive field that is not cut off

    @cached_property
    def frames(self) -> list[tuple[int, int, int, int]]:
        """The receptive fields, moved inward and of one size, so that they can be shown in one grid."""
        return [frame(box, self.side, tuple(self.images.shape[2:])) for box in self.boxes.tolist()]

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
        method = None if methods is None else methods[layer]
        yield LayerCards(layer, len(channels), cards(deconv, top, layer, read, channels, norm, method=method))


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
        side: of the square, or (height, width), that is shown; the largest receptive field among the units projected
            together if None.
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
        largest = tuple((projection.boxes[:, 2:] - projection.boxes[:, :2]).amax(0).tolist())
        for row, channel in enumerate(chunk):
            units = slice(row * k, (row + 1) * k)
            yield Card(
                channel=channel,
                values=top.values[channel],
                numbers=top.images[channel],
                images=images[index[row]],
                pixels=projection.pixels[units],
                boxes=projection.boxes[units],
                side=side or largest,
            )


def grids(card: Card, zoom: int = 1, gap: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The projections and the patches, each as a grid of ceil(sqrt(k)) columns; uint8 (H, W, 3)."""
    columns = int(np.ceil(len(card.values) ** 0.5))
    return tile(card.projections, columns, zoom, gap), tile(card.patches, columns, zoom, gap)


def panel(card: Card, zoom: int = 1, gap: int = 2) -> np.ndarray:
    """The grid of projections and, to its right, that of patches."""
    return beside(*grids(card, zoom, gap), 3 * gap)


@dataclass(frozen=True)
class LayerSheet:
    name: str
    maps: int
    png: Path
    cards: list[dict[str, Any]]  # what the page shows of each


def write_layer(folder: Path, layer: LayerCards, names: Sequence[str]) -> LayerSheet:
    """Writes folder/LAYER.png; the pictures are kept only in compressed form. `names`: the images'."""
    shown, panels = [], []
    for card in layer.cards:
        side = max(card.projections[0].shape[:2])
        pixels = panel(card, gap=1 if side <= 16 else 2)
        panels.append(_on_sheet(card, side, pixels))
        shown.append(_on_page(card, side, pixels, names))
    path = folder / f"{layer.name.replace('/', '_')}.png"
    if panels:
        columns = max(1, min(len(panels), (SHEET_WIDTH + SHEET_GAP) // (panels[0].shape[1] + SHEET_GAP)))
        sheet = Image.fromarray(tile(panels, columns, 1, SHEET_GAP))
        write_whole(path, lambda half: sheet.save(half, optimize=True))
    return LayerSheet(layer.name, layer.maps, path, shown)


def _on_sheet(card: Card, side: int, pixels: np.ndarray) -> np.ndarray:
    """The card's panel with tiles of 48 pixels or so, at most 72."""
    zoom = zoom_to(side, 48)
    picture = Image.fromarray(pixels if zoom == 1 else panel(card, zoom))
    if side > 72:
        factor = 72 / side
        size = round(picture.width * factor), round(picture.height * factor)
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return np.asarray(picture)


def _on_page(card: Card, side: int, pixels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """What the page shows of a card."""
    # PNG for small tiles, whose pixels are looked at one by one; WebP for the rest, at a fifth of the bytes.
    kind, options = ("png", {"optimize": True}) if side <= 32 else ("webp", {"quality": 88})
    height, width = pixels.shape[:2]
    values = [f"{value:.4g}" for value in card.values.tolist()]
    return {
        "map": card.channel,
        "src": data_uri(pixels, kind, **options),
        "w": width,
        "h": height,
        "shown": width * max(1, 220 // width) if width <= 300 else 300,  # whole multiples of its pixels, or 300
        "limit": f"{card.limit:.3g}",
        "strongest": values[0],
        "units": [
            f"{value}: {names[number]}, rows {box[0]} to {box[2] - 1}, columns {box[1]} to {box[3] - 1}"
            for value, number, box in zip(values, card.numbers.tolist(), card.frames, strict=True)
        ],
    }


def write_page(path: Path, title: str, searched: int, layers: Sequence[LayerSheet]) -> None:
    """One HTML file with every picture inside; a map's card opens its projections at full size."""
    data = [{"name": layer.name, "cards": layer.cards} for layer in layers]
    page = render("atlas.html", title=title, searched=searched, layers=layers, data=data)
    write_text(path, page)
