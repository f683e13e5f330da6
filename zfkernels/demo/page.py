"""The demonstration's page: index.html and the PNG files it shows, readable from a disk with no network."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..analyses import occlusion
from ..analyses.occlusion import Occluded
from ..drawing.style import ACCENT, INK, SOFT, font, new_figure, outline, plain_axes, save
from ..drawing.tiles import cut, frame, plain_picture, signed_picture, tile
from ..training.history import Epoch

TILE = 64  # pixels a side that a tile of a figure aims at; the zoom is the nearest whole number


@dataclass(frozen=True)
class MapTop:
    """The strongest activations of one map, each with the image that caused it and its projection."""

    channel: int
    values: torch.Tensor  # (k,)
    images: torch.Tensor  # uint8 (k, 3, H, W)
    labels: list[str]  # (k,) the photograph each image was cut from
    pixels: torch.Tensor  # (k, 3, H, W) projections, in the network's input units
    boxes: torch.Tensor  # (k, 4)


@dataclass(frozen=True)
class LayerTop:
    name: str
    maps: int  # how many maps the layer has
    live: int  # how many of them respond to any image at all
    receptive_field: int
    stride: int
    tops: list[MapTop]


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
    images_searched: int


def write_page(out: Path, findings: Findings) -> Path:
    """Write the page and its pictures under `out`; return index.html. gallery.png sums it up in one picture."""
    out.mkdir(parents=True, exist_ok=True)
    _photographs_figure(findings.photographs, out / "photographs.png")
    _training_figure(findings.history, len(findings.classes), out / "training.png")
    _save(_filter_sheet(findings.filters), out / "filters.png")
    for layer in findings.layers:
        for top in layer.tops:
            projections, patches = _panel(layer, top)
            _save(np.concatenate([projections, _gutter(projections, 10), patches], 1), out / _panel_name(layer, top))
    for occluded in findings.occluded:
        save(occlusion.figure(occluded, findings.classes), out / f"occlusion_{occluded.name}.png")
    _gallery(findings, out / "gallery.png")
    page = out / "index.html"
    page.write_text(_html(findings), encoding="utf-8")
    return page


def _save(pixels: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(pixels).save(path)


def _gutter(beside: np.ndarray, width: int) -> np.ndarray:
    return np.full((beside.shape[0], width, 3), 255, np.uint8)


def _panel_name(layer: LayerTop, top: MapTop) -> str:
    return f"{layer.name}_map{top.channel:03d}.png"


def _panel(layer: LayerTop, top: MapTop, side: int = TILE) -> tuple[np.ndarray, np.ndarray]:
    """The map's projections and image patches as two grids, cropped alike; projections on one scale around mid-grey."""
    limit, frames = _limit(layer, top), _frames(layer, top)
    projections = [signed_picture(pixels, limit) for pixels in _cut(layer, top)]
    patches = [plain_picture(cut(image, box)) for image, box in zip(top.images, frames, strict=True)]
    columns = max(1, round(len(patches) ** 0.5))
    zoom = max(1, round(side / max(patches[0].shape[:2])))
    return tile(projections, columns, zoom), tile(patches, columns, zoom)


def _limit(layer: LayerTop, top: MapTop) -> float:
    """The full scale of a map's projections: all but the largest 0.5% of the values shown lie within it."""
    return float(torch.cat([pixels.abs().flatten() for pixels in _cut(layer, top)]).quantile(0.995))


def _cut(layer: LayerTop, top: MapTop) -> list[torch.Tensor]:
    return [cut(pixels, box) for pixels, box in zip(top.pixels, _frames(layer, top), strict=True)]


def _frames(layer: LayerTop, top: MapTop) -> list[tuple[int, int, int, int]]:
    return [frame(box, layer.receptive_field, tuple(top.images.shape[2:])) for box in top.boxes.tolist()]


def _filter_sheet(filters: torch.Tensor) -> np.ndarray:
    limit = float(filters.abs().amax())
    pictures = [signed_picture(weight, limit) for weight in filters]
    return tile(pictures, columns=-(-len(pictures) // 2) if len(pictures) <= 32 else 16, zoom=9, gap=4)


def _photographs_figure(photographs: list[Photograph], path: Path) -> None:
    from PIL import Image

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
    figure.savefig(path)


def _training_figure(history: list[Epoch], classes: int, path: Path) -> None:
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
    figure.savefig(path)


def _gallery(findings: Findings, path: Path) -> None:
    """Layers 1, 2, 3 and 5 (or as many as there are), a few maps each, in one picture with its own titles."""
    from PIL import Image, ImageDraw

    chosen = [layer for layer in findings.layers if layer.tops]
    panels_across, tile_side, gap, head, line = 3, 56, 26, 74, 26
    rows = []
    for layer in chosen:
        panels = []
        for top in layer.tops[:panels_across]:
            projections, patches = (
                np.asarray(Image.fromarray(grid).resize((tile_side * 3 + 4,) * 2, _filter(layer, tile_side)))
                for grid in _panel(layer, top, tile_side)
            )
            panels.append((top, np.concatenate([projections, _gutter(projections, 4), patches], 1)))
        rows.append((layer, panels))
    panel_h = tile_side * 3 + 4
    panel_w = 2 * panel_h + 4
    width = gap + panels_across * (panel_w + gap)
    height = head + len(rows) * (panel_h + 2 * line + 8) + 8
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    title, text, small = (font(size) for size in (22, 15, 13))
    draw.text((gap, 16), "Single activations projected to pixels, beside the patches that caused them", INK, title)
    draw.text((gap, 46), "left: projections (mid-grey is 0)   right: image patches", SOFT, small)
    y = head
    for layer, panels in rows:
        draw.text((gap, y), f"{layer.name}: receptive field {layer.receptive_field} px", INK, text)
        for index, (top, pixels) in enumerate(panels):
            x = gap + index * (panel_w + gap)
            draw.text((x, y + line - 2), f"map {top.channel}, activations {_range(top)}", SOFT, small)
            sheet.paste(Image.fromarray(pixels), (x, y + 2 * line - 4))
        y += panel_h + 2 * line + 8
    sheet.save(path)


def _filter(layer: LayerTop, side: int):
    from PIL import Image

    return Image.Resampling.NEAREST if layer.receptive_field <= side else Image.Resampling.LANCZOS


def _range(top: MapTop) -> str:
    low, high = float(top.values.min()), float(top.values.max())
    return f"{low:.2g} to {high:.2g}"


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1c1e21; background: #fff; margin: 0 auto;
       max-width: 1340px; padding: 24px 28px 64px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 44px 0 6px; }
h3 { font-size: 15px; margin: 22px 0 2px; } p, figcaption { max-width: 78ch; } p { margin: 6px 0; }
figure { margin: 12px 0; } figcaption { color: #4a4f57; font-size: 14px; }
table { border-collapse: collapse; margin: 14px 0; } th { text-align: left; font-weight: 400; color: #6a7079;
padding: 2px 22px 2px 0; } td { padding: 2px 0; font-variant-numeric: tabular-nums; }
img { max-width: 100%; height: auto; } img.pixels { image-rendering: pixelated; }
.maps { display: flex; flex-wrap: wrap; gap: 18px 28px; margin: 10px 0;
        align-items: flex-start; } .maps figure { margin: 0; display: table; }
.maps figcaption { font-size: 13px; display: table-caption; caption-side: bottom; } .soft { color: #6a7079; }
"""


def _html(findings: Findings) -> str:
    accuracy = findings.history[-1].accuracy
    facts = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(value)}</td></tr>" for name, value in findings.facts.items()
    )
    layers = "".join(_layer_html(layer) for layer in findings.layers)
    occlusions = "".join(
        f'<figure><img src="occlusion_{html.escape(o.name)}.png" alt="occlusion map of {html.escape(o.name)}"></figure>'
        for o in findings.occluded
    )
    limit = float(findings.filters.abs().amax())
    side = tuple(findings.filters.shape[-2:])
    first = findings.occluded[0].result if findings.occluded else None
    patch = f"{int(first.boxes[0, 0, 2])} x {int(first.boxes[0, 0, 3])}" if first else ""
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>zfkernels demo</title><style>{STYLE}</style></head><body>
<h1>What a small ZFNet learned from {len(findings.classes)} photographs</h1>
<p>Trained and taken apart with zfkernels: the network, its training and every projection ran through the package's
own kernels. It names the photograph of {accuracy:.1%} of the crops whose pixels it never saw.</p>
<table>{facts}</table>

<h2>The photographs</h2>
<figure><img src="photographs.png" alt="the photographs with their held-out cells outlined" width="960">
<figcaption>One photograph is one class; these were chosen because the parts of each resemble one another. Training
crops touch no pixel of the outlined cells; held-out crops lie wholly inside them. The percentages are of held-out
crops recognised. Crops of one photograph share its light, its camera and its colours, so this measures recognition
of a photograph, not of the kind of thing it shows; and the photographs, the held-out cells and the recipe were
chosen while looking at it. It shows that the network learned, not how well such a network can.</figcaption>
</figure>

<h2>Training</h2>
<figure><img src="training.png" alt="loss and accuracy by epoch" width="840">
<figcaption>Momentum, dropout, mirrored crops, and every convolution filter held to a root mean square of 0.1 at most,
as in the paper. Unlike the paper's: the starting weights (He's; smaller in conv1), the weight decay and the fixed
steps of the learning rate (vertical lines). The loss is measured with dropout on.</figcaption>
</figure>

<h2>First-layer filters</h2>
<figure><img class="pixels" src="filters.png" alt="the filters of the first layer">
<figcaption>All {len(findings.filters)} filters of {side[0]} x {side[1]} pixels, one common scale: mid-grey is 0, full
colour is &plusmn;{limit:.2f}. The paper's Fig. 6.</figcaption>
</figure>

<h2>Strongest activations, projected to pixels</h2>
<p>For each map its strongest activations over {findings.images_searched} images (tiles of the photographs that do not
overlap; one activation an image). Left: the activation alone, sent back down through the network (unpooled by the
recorded switches, rectified, filtered with the flipped filters). Right: the patch of the image that caused it, the
same pixels. The paper's Fig. 2. Shown of each layer are its strongest maps, of maps that prefer the same photograph
the strongest first and the others only when every photograph has had its turn.</p>
<p class="soft">Mid-grey is 0, and a map's projections share one scale (the largest 0.5% of the values are clipped),
so contrast compares within a map and not between maps. A projection shows what in this image the switches let
through: edges and outlines come from the image as much as from the unit, and a projection is less particular to its
unit than it looks. Patches at an image's border are shifted inward; a layer whose receptive field exceeds the image
shows all of it.</p>
{layers}
<h2>What the answer depends on</h2>
<p>A square of {patch} pixels of the mean training image, a grey, is moved over the image and the network asked
again at each place. (a) the image, and the place where covering it lowers (c) most; (b) the sum over the map that
responds most to the clear image (white line on the scale: its value then); (c) the probability of the true class;
(d) the class the network would name. The paper's Fig. 7. The images are whole photographs (their centre squares),
smaller than any training crop showed them and with parts that were trained on; chosen are those whose answer
depends most on one place. Each cell is one raw answer, drawn at the centre of its square. Darkness in (c) says that
covering this place changes the answer, not that the place alone would produce it; and the square is itself
something the network never saw in training.</p>
{occlusions}
</body></html>
"""


def _layer_html(layer: LayerTop) -> str:
    maps = "".join(
        f'<figure><img class="pixels" src="{_panel_name(layer, top)}" '
        f'alt="{layer.name} map {top.channel}: projections and patches" title="{html.escape(", ".join(top.labels))}">'
        f"<figcaption>map {top.channel}: activations {_range(top)}; full scale &plusmn;{_limit(layer, top):.2g}; "
        f"{html.escape(_sources(top.labels))}</figcaption></figure>"
        for top in layer.tops
    )
    return (
        f"<h3>{layer.name} <span class='soft'>{layer.live} of {layer.maps} maps respond; receptive field "
        f"{layer.receptive_field} px, stride {layer.stride} px</span></h3><div class='maps'>{maps}</div>"
    )


def _sources(labels: list[str]) -> str:
    counts = sorted({name: labels.count(name) for name in labels}.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count}" for name, count in counts)
