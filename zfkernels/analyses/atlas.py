"""The atlas: every map's strongest activations, projected to pixels, beside the patches that caused them (Fig. 2).

One PNG sheet a layer, and one HTML page that holds all its pictures itself, so that it can be mailed and opened from a
disk. Of each map the projections are cropped to the receptive field and share one scale (the largest 0.5% of the
values clipped), so that their contrast compares within a map.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..deconvnet.deconvnet import Deconvnet
from ..drawing.tiles import cut, frame, plain_picture, signed_picture, tile
from .activations import TopActivations

UNITS_AT_ONCE = 288  # projections held in memory: 32 maps of 9


@dataclass(frozen=True)
class Card:
    """One map: k projections and the k patches beside them, uint8 (H, W, 3) each, cropped alike."""

    channel: int
    values: list[float]
    images: list[int]
    boxes: list[tuple[int, int, int, int]]
    projections: list[np.ndarray]
    patches: list[np.ndarray]
    limit: float  # full colour of the projections, in the network's input units


def cards(
    deconv: Deconvnet,
    top: TopActivations,
    layer: str,
    read: Callable[[list[int]], tuple[Tensor, Tensor]],
    channels: Sequence[int] | None = None,
    norm: str = "identity",
) -> Iterator[Card]:
    """A card for each map of `channels` (all of them if None) that responds to any image, in order.

    The units of many maps are projected in one pass over the images they share.

    Args:
        top: of `layer`, as `top_activations` gives.
        read: numbers of images -> (inputs (n, C, H, W) float, the same pixels as uint8 (n, 3, H, W)).
    """
    channels = range(len(top.values)) if channels is None else channels
    live = [channel for channel in channels if float(top.values[channel, 0]) > 0]
    k = top.values.shape[1]
    step = max(1, UNITS_AT_ONCE // k)
    for some in (live[i : i + step] for i in range(0, len(live), step)):
        numbers, index = top.images[some].unique(return_inverse=True)
        inputs, pixels = read(numbers.tolist())
        found = deconv.project(
            inputs,
            layer,
            channel=[channel for channel in some for _ in range(k)],
            position=top.positions[some].reshape(-1, 2),
            norm=norm,
            image_index=index.flatten(),
        )
        shape = tuple(inputs.shape[2:])
        side = (found.boxes[:, 2:] - found.boxes[:, :2]).amax(0).tolist()
        for place, channel in enumerate(some):
            units = range(place * k, (place + 1) * k)
            frames = [frame(found.boxes[u].tolist(), side, shape) for u in units]
            parts = [cut(found.pixels[u], box).cpu() for u, box in zip(units, frames, strict=True)]
            limit = float(torch.cat([part.abs().flatten() for part in parts]).float().quantile(0.995))
            yield Card(
                channel=channel,
                values=top.values[channel].tolist(),
                images=top.images[channel].tolist(),
                boxes=frames,
                projections=[signed_picture(part, limit) for part in parts],
                patches=[plain_picture(cut(pixels[i], b)) for i, b in zip(index[place].tolist(), frames, strict=True)],
                limit=limit,
            )


def panel(card: Card, zoom: int = 1, gap: int = 2) -> np.ndarray:
    """Projections and, to their right, patches, each as a grid of ceil(sqrt(k)) columns; uint8 (H, W, 3)."""
    columns = int(np.ceil(len(card.values) ** 0.5))
    grids = [tile(pictures, columns, zoom, gap) for pictures in (card.projections, card.patches)]
    return np.concatenate([grids[0], np.full((len(grids[0]), 3 * gap, 3), 255, np.uint8), grids[1]], 1)


def sheet(panels: Sequence[np.ndarray], width: int = 2400, gap: int = 14) -> np.ndarray:
    """Panels of one size row by row, as many in a row as fit into `width` pixels."""
    columns = max(1, min(len(panels), (width + gap) // (panels[0].shape[1] + gap)))
    return tile(list(panels), columns, 1, gap)


@dataclass(frozen=True)
class LayerSheet:
    name: str
    maps: int
    png: Path
    cards: list[dict]  # what the page shows of each


def write_layer(out: Path, layer: str, maps: int, made: Iterator[Card], names: Sequence[str]) -> LayerSheet:
    """Writes out/LAYER.png; the pictures are kept only in compressed form."""
    from PIL import Image

    kept, panels = [], []
    for card in made:
        side = max(card.projections[0].shape[:2])
        pixels = panel(card, gap=1 if side <= 16 else 2)
        zoom = max(1, round(48 / side))
        small = Image.fromarray(pixels if zoom == 1 else panel(card, zoom))
        if side > 72:
            factor = 72 / side
            small = small.resize((round(small.width * factor), round(small.height * factor)), Image.Resampling.LANCZOS)
        panels.append(np.asarray(small))
        buffer = io.BytesIO()
        # PNG for small tiles, whose pixels are looked at one by one; WebP for the rest, at a fifth of the bytes.
        kind = "png" if side <= 32 else "webp"
        Image.fromarray(pixels).save(buffer, kind, **({"quality": 88} if kind == "webp" else {"optimize": True}))
        kept.append(
            {
                "map": card.channel,
                "src": f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}",
                "w": pixels.shape[1],
                "h": pixels.shape[0],
                "limit": f"{card.limit:.3g}",
                "units": [
                    f"{value:.4g}: {names[image]}, rows {box[0]} to {box[2] - 1}, columns {box[1]} to {box[3] - 1}"
                    for value, image, box in zip(card.values, card.images, card.boxes, strict=True)
                ],
            }
        )
    path = out / f"{layer.replace('/', '_')}.png"
    if panels:
        Image.fromarray(sheet(panels)).save(path, optimize=True)
    return LayerSheet(layer, maps, path, kept)


STYLE = """
body{font:15px/1.5 system-ui,"DejaVu Sans",sans-serif;color:#1c1e21;background:#fff;margin:0 auto;max-width:1500px;
padding:20px 26px 60px}h1{font-size:25px;margin:0 0 4px}h2{font-size:18px;margin:38px 0 6px}p{max-width:80ch;margin:6px
0}nav a{margin-right:14px}.soft{color:#6a7079;font-size:13px}.cards{display:flex;flex-wrap:wrap;gap:14px}
button{border:1px solid #ddd;background:#fff;padding:5px;cursor:zoom-in;font:inherit;font-size:12px;color:#4a4f57;
text-align:left}button:hover,button:focus{border-color:#b3401f}img{display:block;image-rendering:pixelated}
dialog{border:1px solid #999;max-width:96vw;max-height:94vh;overflow:auto;padding:16px 20px}dialog::backdrop{
background:#000a}ol{columns:2;font-size:13px;padding-left:24px;max-width:110ch}
"""
SCRIPT = """
const layers=JSON.parse(document.getElementById('data').textContent),view=document.querySelector('dialog');
function open_card(l,i){const layer=layers[l],c=layer.cards[i],z=Math.max(1,Math.min(Math.floor(innerWidth*.9/c.w),
Math.round(900/c.w)));view.querySelector('h2').textContent=layer.name+', map '+c.map;
const img=view.querySelector('img');img.src=c.src;img.width=c.w*z;img.height=c.h*z;
view.querySelector('p').textContent='Left: projections, mid-grey is 0, full colour \\u00b1'+c.limit+
' in input units. Right: the patches, the same pixels. One pixel is shown as '+z+' x '+z+
'. Strongest first, row by row; Escape closes, arrow keys turn the page.';
view.querySelector('ol').replaceChildren(...c.units.map(t=>{const li=document.createElement('li');li.textContent=t;
return li}));view.dataset.l=l;view.dataset.i=i;if(!view.open)view.showModal();location.hash=layer.name+'/'+c.map}
document.querySelectorAll('button').forEach(b=>b.onclick=()=>open_card(+b.dataset.l,+b.dataset.i));
view.onclick=e=>{if(e.target===view)view.close()};
view.onkeydown=e=>{const step={ArrowRight:1,ArrowLeft:-1}[e.key],l=+view.dataset.l,i=+view.dataset.i+(step||0);
if(step&&layers[l].cards[i])open_card(l,i)};
const [name,map]=decodeURIComponent(location.hash.slice(1)).split('/');
layers.forEach((layer,l)=>layer.cards.forEach((c,i)=>{if(map&&layer.name===name&&String(c.map)===map)open_card(l,i)}));
document.querySelectorAll('button img').forEach(i=>{const b=i.parentElement;i.src=layers[b.dataset.l].cards[
b.dataset.i].src});
"""


def write_page(path: Path, title: str, searched: int, layers: Sequence[LayerSheet]) -> None:
    """One HTML file with every picture inside; a map's card opens its projections at full size."""
    sections = []
    for number, layer in enumerate(layers):
        shown = "".join(
            f'<button data-l="{number}" data-i="{i}"><img width="{_shown(card["w"])}" alt="map {card["map"]}">'
            f"map {card['map']}, {html.escape(card['units'][0].partition(':')[0])}</button>"
            for i, card in enumerate(layer.cards)
        )
        name = html.escape(layer.name)
        sections.append(
            f'<h2 id="{name}">{name} <span class="soft">{len(layer.cards)} of {layer.maps} maps shown; the others '
            f'responded to no image</span></h2><div class="cards">{shown}</div>'
        )
    data = json.dumps([{"name": layer.name, "cards": layer.cards} for layer in layers]).replace("</", "<\\/")
    links = "".join(f'<a href="#{html.escape(layer.name)}">{html.escape(layer.name)}</a>' for layer in layers)
    path.write_text(
        f"""<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>{STYLE}</style></head><body><h1>{html.escape(title)}</h1>
<p>For each map its strongest activations over {searched} images, at most one an image. Left of a card: each activation
alone, projected back to pixels; right: the patch that caused it, the same pixels (Zeiler &amp; Fergus, Fig. 2). A map's
projections share one scale. A projection shows what of this image the switches let through; it is less particular to
its unit than it looks, so compare with an untrained network before reading much into one.</p>
<nav>{links}</nav>{"".join(sections)}
<dialog><h2></h2><img alt="projections and patches"><p class="soft"></p><ol></ol></dialog>
<script type="application/json" id="data">{data}</script><script>{SCRIPT}</script></body></html>
""",
        encoding="utf-8",
    )


def _shown(width: int) -> int:
    """The width at which a card is shown: whole multiples of its pixels, or at most 300."""
    return width * max(1, 220 // width) if width <= 300 else 300
