"""What a map responds to as training goes on (Zeiler & Fergus, section 4.1 and Fig. 4)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet
from ..drawing.style import INK, SOFT, Figure, new_figure
from ..drawing.tiles import BETWEEN, cut, frame, full_scale, plain_picture, signed_picture, stretched, tile, zoom_to
from ..files import check_regular, write_text
from ..models import checkpoint
from ..models.checkpoint import Network
from ..progress import Shown, bar
from .activations import top_activations
from .choices import method_for
from .projection import Unit, unit

if TYPE_CHECKING:
    from ..drawing.page import Picture
PAGE_TILE = 112  # pixels that a tile of the page aims at


@dataclass(frozen=True)
class Evolution:
    layer: str
    channels: list[int]
    moments: dict[str, list[Unit]]  # checkpoint -> the strongest activation of each channel over the images, projected


def evolution(
    networks: Iterable[tuple[str, nn.Module | Deconvnet, Tensor]],
    layer: str,
    channels: Sequence[int],
    *,
    norm: str = "identity",
    method: str | None = None,
    batch: int = 64,
    progress: Shown = False,
) -> Evolution:
    """For each checkpoint the strongest activation of each map over all images, projected to pixels.

    As in the paper it is one (image, position) a map; a jump in what is shown is a change of that image.

    Args:
        networks: (name, model, images (N, C, H, W) as that model takes them), in the order of training. One is used at
            a time, so an iterator that loads holds one in memory.
        channels: the maps of `layer`.
        norm, method: as of `Deconvnet.project`; method None for the layer's (choices.method_for).
        progress: show a progress bar (needs tqdm).
    """
    channels, moments = list(channels), {}
    for name, model, images in bar(networks, "evolution", "checkpoint", progress):
        deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)
        top = top_activations(deconv, images.split(batch), layer, k=1)
        if not channels or min(channels) < 0 or max(channels) >= len(top.values):
            raise ValueError(f"channels must be from 0 to {len(top.values) - 1}, got {channels}")
        numbers, positions = top.images[channels, 0], top.positions[channels, 0]
        strongest, index = numbers.unique(return_inverse=True)
        how = {"image_index": index, "method": method_for(deconv, layer, method)}
        result = deconv.project(images[strongest], layer, channels, positions, norm, **how)
        pairs = enumerate(zip(channels, numbers.tolist(), strict=True))
        moments[name] = [unit(result, i, layer, channel, image) for i, (channel, image) in pairs]
    return Evolution(layer, channels, moments)


def table(result: Evolution) -> str:
    """A line a checkpoint: the value of each map."""
    lines = []
    for name, moments in result.moments.items():
        cells = (f"map {c}: {m.value:.4g}" for c, m in zip(result.channels, moments, strict=True))
        lines.append(f"{name:<14}" + "  ".join(cells))
    return "\n".join(lines)


def figure(result: Evolution, pictures: Tensor) -> Figure:
    """A row a map, a column a checkpoint: the projection, each on its own scale, and below it its patch.

    `pictures`: the images as uint8 (N, 3, H, W).
    """
    columns, rows = len(result.moments), len(result.channels)
    drawn = new_figure(1.25 * columns + 0.7, 2.75 * rows + 0.5)
    drawn.suptitle(f"{result.layer}: strongest activation over {len(pictures)} images, projected", fontsize=10)
    grid = drawn.add_gridspec(3 * rows - 1, columns, height_ratios=([1, 1, 0.06] * rows)[:-1])  # room between maps
    for row, channel in enumerate(result.channels):
        for column, (name, moments) in enumerate(result.moments.items()):
            pair = [drawn.add_subplot(grid[3 * row + half, column]) for half in (0, 1)]
            for axes, view in zip(pair, _views(result, moments[row], pictures), strict=True):
                axes.imshow(view, interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            pair[0].set_title(f"{moments[row].value:.3g}", fontsize=8, color=SOFT)
            if column == 0:
                pair[0].set_ylabel(f"map {channel}", fontsize=9, color=INK)
                pair[1].set_ylabel("patch", fontsize=8, color=SOFT)
            if row == 0:
                above: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points", "ha": "center"}
                pair[0].annotate(name, (0.5, 1), (0, 19), fontsize=9, color=INK, **above)
    return drawn


def _views(result: Evolution, moment: Unit, pictures: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """The projection on its own scale, and its patch; those of all moments are of one size."""
    sides = [(m.box[2] - m.box[0], m.box[3] - m.box[1]) for moments in result.moments.values() for m in moments]
    box = frame(moment.box, np.max(sides, 0).tolist(), tuple(pictures.shape[2:]))
    part = cut(moment.pixels, box)
    return signed_picture(part, full_scale([part])), plain_picture(cut(pictures[moment.image], box))


def write_page(path: Path, result: Evolution, pictures: Tensor, names: Sequence[str], method: str) -> None:
    """The same as one HTML file, which holds its pictures. `names`: of the images."""
    from ..drawing.page import render

    maps = []
    for row, channel in enumerate(result.channels):
        moments = {name: of_all[row] for name, of_all in result.moments.items()}
        strongest = max(moment.value for moment in moments.values()) or 1.0
        words = []
        for name, moment in moments.items():
            seen = f"{result.layer} map {channel} at {name}, {method}: its strongest activation, {moment.value:.3g}, "
            alt = f"{seen}projected, above the patch of {names[moment.image]} that caused it"
            picture = _picture(_views(result, moment, pictures), alt)
            of_moment = {"name": name, "value": f"{moment.value:.3g}", "image": names[moment.image], "picture": picture}
            words.append(of_moment | {"share": round(100 * max(0.0, moment.value) / strongest)})
        maps.append({"map": channel, "moments": words})
    path.parent.mkdir(parents=True, exist_ok=True)
    page = {"layer": result.layer, "maps": maps, "method": method, "searched": len(pictures)}
    write_text(path, render("evolution.html", **page))


def _picture(views: Sequence[np.ndarray], alt: str) -> Picture:
    """The views below one another, small ones enlarged by whole pixels and without loss."""
    from ..drawing.page import Picture, data_uri

    zoom = zoom_to(max(views[0].shape[:2]), PAGE_TILE)
    height, width = (side * zoom for side in views[0].shape[:2])
    drawn = tile([stretched(view, height, width) for view in views], 1, 1, 2, BETWEEN)
    source = data_uri(drawn, "png") if zoom > 1 else data_uri(drawn, "jpeg", quality=88)
    return Picture(source, drawn.shape[1], drawn.shape[0], alt)


def checkpoints(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by name: "epoch 12" for epoch_012.pt, otherwise the file's stem.

    Raises:
        FileNotFoundError: no such file.
        ValueError: files of two training runs, or two of one name.
    """

    def name(path: Path) -> str:
        number = re.fullmatch(r"epoch_0*(\d+)", path.stem)
        return f"epoch {number[1]}" if number else path.stem

    paths = list(paths)
    if missing := [path for path in paths if not path.is_file()]:
        check_regular(missing[0])
        raise FileNotFoundError(f"there is no weights file {missing[0]}")
    files = {name(path): path for path in paths}
    for path in paths:
        if files[name(path)] != path:
            raise ValueError(f"{files[name(path)]} and {path} would both be {name(path)!r}; give files of one run")
    runs = {checkpoint.run_of(path)[0]: path for path in reversed(paths)}
    if len(runs) > 1:
        (one, first), (other, second), *_ = reversed(runs.items())
        raise ValueError(
            f"{first} is of {_run(one)} and {second} of {_run(other)}: networks of two runs have nothing to do with "
            "each other, so give files of one"
        )
    return files


def _run(identity: str | None) -> str:
    return f"run {identity}" if identity else "an unnamed run"


def load_each(
    files: dict[str, Path], load: Callable[[Path], Network], pixels: Tensor
) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """What `evolution` takes, of checkpoints and uint8 pictures (N, 3, H, W): each is loaded when it is its turn."""
    for name, file in files.items():
        network = load(file)
        yield name, network.model, network.normalise(pixels)
