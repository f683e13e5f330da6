"""The demonstration's page: index.html and the PNG files it shows, readable from a disk with no network."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..analyses import occlusion
from ..analyses.atlas import Card, grids
from ..analyses.occlusion import Occluded
from ..drawing.page import FIGURE, Picture, picture_of, render
from ..drawing.style import ACCENT, INK, SOFT, Figure, font, new_figure, outline, plain_axes, save_twins
from ..drawing.tiles import BETWEEN, beside, signed_picture, tile, zoom_to
from ..files import write_text, write_whole
from ..models.pretrained import EFFICIENTNET_LITE0
from ..training.run import Epoch
from .real import PATCH, UNITS, Real

TILE = 64  # pixels a side that a tile of a map's picture aims at


@dataclass(frozen=True)
class LayerTop:
    """A layer and the cards of its strongest maps."""

    name: str
    maps: int  # how many maps the layer has
    live: int  # how many of them respond to any image at all
    receptive_field: int
    stride: int
    tops: list[Card]
    method: str = "deconvnet"  # of their projections


@dataclass(frozen=True)
class Photograph:
    """A thumbnail of a class with its held-out cells, and how well its held-out crops were recognised."""

    name: str
    pixels: np.ndarray  # uint8 (H, W, 3)
    cells: list[tuple[int, int, int, int]]
    accuracy: float


@dataclass(frozen=True)
class Findings:
    classes: list[str]
    photographs: list[Photograph]
    history: list[Epoch]
    filters: torch.Tensor  # (maps, 3, KH, KW) of the first layer
    layers: list[LayerTop]
    occluded: list[Occluded]
    facts: dict[str, str]  # label -> value with its unit, for the head of the page
    sources: list[str]  # of each image that was searched the photograph it was cut from
    real: Real | None = None  # a network that others have trained; None where its packages are not installed


def write_page(out: Path, findings: Findings) -> Path:
    """Write the page and its pictures under `out`; return index.html. gallery.png sums it up in one picture."""
    out.mkdir(parents=True, exist_ok=True)
    save_twins(_photographs_figure(findings.photographs), out / "photographs.png")
    save_twins(_training_figure(findings.history, len(findings.classes)), out / "training.png")
    height, width = findings.filters.shape[-2:]
    limit = float(findings.filters.abs().amax())
    filters = [signed_picture(weight, limit) for weight in findings.filters]
    columns = -(-len(filters) // 2) if len(filters) <= 32 else 16
    write_whole(out / "filters.png", Image.fromarray(tile(filters, columns, 9, 4, BETWEEN)).save)
    for layer in findings.layers:
        for card in layer.tops:
            panel = beside(*_grids(card, TILE), 10, BETWEEN)
            write_whole(out / _panel_name(layer, card), Image.fromarray(panel).save)
    for occluded in findings.occluded:
        save_twins(occlusion.figure(occluded, findings.classes), out / f"occlusion_{occluded.name}.png")
    _gallery(findings, out / "gallery.png")
    boxes = findings.occluded[0].result.boxes if findings.occluded else None
    text = render(
        "demo.html",
        findings=findings,
        accuracy=f"{findings.history[-1].accuracy:.1%}",
        filter_size=f"{height} x {width}",
        filter_limit=f"{limit:.2f}",
        patch="" if boxes is None else f"{int(boxes[0, 0, 2])} x {int(boxes[0, 0, 3])}",
        pictures=_pictures(out, findings),
        panel=lambda layer, card: _panel(out, findings, layer, card),
        range_of=_range,
        names_of=lambda card: _names(findings, card),
        counted=_counted,
        real=findings.real,
        covered=PATCH,
        hint=EFFICIENTNET_LITE0.missing(),
    )
    page = out / "index.html"
    write_text(page, text)
    return page


def _pictures(out: Path, findings: Findings) -> dict[str, list[Picture]]:
    """The page's pictures, all but the panels of the maps, with what is seen on them."""
    first, last = findings.history[0], findings.history[-1]
    learned = (
        f"by epoch: the training loss, from {first.loss:.2f} to {last.loss:.2f}, and the held-out accuracy, from "
        f"{first.accuracy:.0%} to {last.accuracy:.0%}"
    )
    named = ", ".join(f"{photograph.name} {photograph.accuracy:.0%}" for photograph in findings.photographs)
    shown: dict[str, list[tuple[str, str]]] = {
        "photographs": [
            ("photographs.png", f"photographs with their held-out cells outlined, and recognised: {named}")
        ],
        "training": [("training.png", learned)],
        "filters": [("filters.png", f"the {len(findings.filters)} filters of conv1 as colour tiles")],
        "occluded": [(f"occlusion_{o.name}.png", _occlusion_seen(o, findings.classes)) for o in findings.occluded],
        "units": [],
        "covered": [],
    }
    if findings.real is not None:
        seen = "; ".join(f"{unit.photograph}, {unit.layer} map {unit.channel}" for unit in findings.real.units)
        seen = f"three photographs, and below each the guided projections of units: {seen}; last, deconvnet's"
        shown["units"] = [(UNITS, seen)]
        shown["covered"] = [(file, f"what the answer depends on: {said}") for file, said in findings.real.occluded]
    sheets = ("filters.png", UNITS)  # drawn pixel by pixel
    return {
        part: [picture_of(out / file, out, alt, 1.0 if file in sheets else FIGURE) for file, alt in files]
        for part, files in shown.items()
    }


def _occlusion_seen(occluded: Occluded, classes: list[str]) -> str:
    result = occluded.result
    lowest = int(result.probability.argmin())
    target, instead = classes[result.target], classes[int(result.label.flatten()[lowest])]
    falls = f"P({target}) falls from {result.clear_probability:.2f} to {float(result.probability.min()):.2f}"
    then = "" if instead == target else f", where the answer is {instead}"
    return f"{occluded.name}, parts covered: {falls} at the worst place{then}"


def _panel(out: Path, findings: Findings, layer: LayerTop, card: Card) -> Picture:
    """A map's picture."""
    seen = (
        f"{layer.name} map {card.channel}, {layer.method}: projections of its {len(card.values)} strongest activations"
    )
    alt = f"{seen}, {_range(card)}, beside their patches, of {_counted(_names(findings, card))}"
    return picture_of(out / _panel_name(layer, card), out, alt)


def _names(findings: Findings, card: Card) -> list[str]:
    return [findings.sources[number] for number in card.numbers.tolist()]


def _counted(names: list[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in Counter(names).most_common())


def _panel_name(layer: LayerTop, card: Card) -> str:
    return f"{layer.name}_map{card.channel:03d}.png"


def _range(card: Card) -> str:
    return f"{float(card.values.min()):.2g} to {float(card.values.max()):.2g}"


def _grids(card: Card, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The projections and the patches, each tile about `side` pixels a side."""
    return grids(card, zoom_to(max(card.shape), side))


def _photographs_figure(photographs: list[Photograph]) -> Figure:
    """Each photograph with its held-out cells outlined and its accuracy."""
    columns = 5
    rows = -(-len(photographs) // columns)
    figure = new_figure(9.6, 1.95 * rows)
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid[len(photographs) :]:
        axes.set_axis_off()
    for axes, photograph in zip(grid, photographs, strict=False):
        height, width = photograph.pixels.shape[:2]
        small = Image.fromarray(photograph.pixels)
        small.thumbnail((280, 280))
        axes.imshow(np.asarray(small), extent=(0, width, height, 0))
        for cell in photograph.cells:
            outline(axes, cell)
        axes.set_title(f"{photograph.name}: {photograph.accuracy:.0%}", fontsize=9, color=INK)
        axes.set_axis_off()
    return figure


def _training_figure(history: list[Epoch], classes: int) -> Figure:
    """Loss and held-out accuracy by epoch; a line where the learning rate falls."""
    figure = new_figure(8.4, 2.6)
    loss, accuracy = figure.subplots(1, 2)
    epochs = np.arange(1, len(history) + 1)
    loss.plot(epochs, [epoch.loss for epoch in history], color=ACCENT, marker=".")
    loss.set(xlabel="epoch", title="training loss", ylabel="cross-entropy (nats)", ylim=(0, None))
    accuracy.plot(epochs, [100 * epoch.accuracy for epoch in history], color=ACCENT, marker=".")
    accuracy.axhline(100 / classes, color=SOFT, linewidth=1, linestyle=":")
    accuracy.annotate(
        "chance", (epochs[-1], 100 / classes), (0, 3), textcoords="offset points", ha="right", fontsize=8, color=SOFT
    )
    accuracy.set(xlabel="epoch", title="held-out accuracy", ylabel="crops recognised (%)", ylim=(0, 102))
    for axes in (loss, accuracy):
        plain_axes(axes)
        axes.title.set_fontsize(10)
        axes.xaxis.get_major_locator().set_params(integer=True)
        for before, after in zip(range(len(history)), range(1, len(history)), strict=False):
            if history[after].learning_rate != history[before].learning_rate:
                axes.axvline(after + 0.5, color=SOFT, linewidth=0.6)
    return figure


def _gallery(findings: Findings, path: Path) -> None:
    """The first maps of each layer in one picture with its own titles."""
    layers = [layer for layer in findings.layers if layer.tops]
    across, side, gap, head, line = 3, 56, 26, 74, 26
    panel_height = 3 * side + 4
    panel_width = 2 * panel_height + 4
    row_height = panel_height + 2 * line + 8
    drawn = Image.new("RGB", (gap + across * (panel_width + gap), head + len(layers) * row_height + 8), "white")
    draw = ImageDraw.Draw(drawn)
    title, text, small = (font(size) for size in (22, 15, 13))
    draw.text((gap, 16), "Single activations projected to pixels, beside the patches that caused them", INK, title)
    draw.text((gap, 46), "left: projections (mid-grey is 0)   right: image patches", SOFT, small)
    for row, layer in enumerate(layers):
        y = head + row * row_height
        draw.text((gap, y), f"{layer.name}: receptive field {layer.receptive_field} px", INK, text)
        kind = Image.Resampling.NEAREST if layer.receptive_field <= side else Image.Resampling.LANCZOS
        for column, card in enumerate(layer.tops[:across]):
            x = gap + column * (panel_width + gap)
            draw.text((x, y + line - 2), f"map {card.channel}, activations {_range(card)}", SOFT, small)
            size = panel_height, panel_height
            left, right = (np.asarray(Image.fromarray(grid).resize(size, kind)) for grid in _grids(card, side))
            drawn.paste(Image.fromarray(beside(left, right, 4, BETWEEN)), (x, y + 2 * line - 4))
    write_whole(path, drawn.save)
