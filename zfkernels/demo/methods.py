"""The gallery's comparison of the three ways down, on VGG-16 with weights that others have trained."""

from dataclasses import dataclass
from textwrap import wrap

import numpy as np
import torch
from PIL import Image, ImageDraw

from ..data.photographs import data_file
from ..data.pictures import read_picture
from ..deconvnet.deconvnet import Deconvnet
from ..drawing.style import ACCENT, Inks, font
from ..drawing.tiles import cut, frame, full_scale, plain_picture, signed_picture
from ..graph.methods import METHODS
from ..models.checkpoint import Network
from ..models.pretrained import VGG16
from .real import PHOTOGRAPHS

LAYERS = ("conv3_3", "conv4_3", "conv5_3")
SIDE, GAP, HEAD = 176, 10, 22  # pixels of the sheet


@dataclass(frozen=True)
class Compared:
    """A unit of one photograph, projected by each method."""

    photograph: str
    layer: str
    channel: int
    picture: np.ndarray  # uint8 (H, W, 3)
    box: tuple[int, int, int, int]  # what the unit sees; at the border as large as elsewhere
    projections: dict[str, np.ndarray]  # inside the box, a picture a method
    dependence: dict[str, float]  # image_dependence a method


def compared(network: Network) -> list[Compared]:
    """In each photograph the strongest unit of each layer by each method."""
    pictures = torch.stack([read_picture(data_file(name), network.image_size) for name in PHOTOGRAPHS.values()])
    images, deconv, each = network.normalise(pictures), Deconvnet(network.model), range(len(PHOTOGRAPHS))
    result = []
    for layer in LAYERS:
        channels = deconv.activations(images, layer).amax((2, 3)).argmax(1)
        projected = {m: deconv.project(images, layer, channels, image_index=each, method=m) for m in METHODS}
        places, boxes = projected[METHODS[0]].positions, projected[METHODS[0]].boxes
        largest = (boxes[:, 2:] - boxes[:, :2]).amax(0).tolist()
        parts = {
            m: deconv.image_dependence(images, layer, channels, places, image_index=each, method=m) for m in METHODS
        }
        for i, photograph in enumerate(PHOTOGRAPHS):
            box = frame(boxes[i].tolist(), largest, network.image_size)
            seen = {m: cut(p.pixels[i], box) for m, p in projected.items()}
            drawn = {m: signed_picture(part, full_scale([part])) for m, part in seen.items()}
            depends = {m: float(part[i]) for m, part in parts.items()}
            picture = plain_picture(pictures[i])
            result.append(Compared(photograph, layer, int(channels[i]), picture, box, drawn, depends))
    return result


def methods_table(found: list[Compared]) -> str:
    """How much of each projection depends on the photograph."""
    head = f"{'depends on the photograph':<28}" + "".join(f"{method:>12}" for method in METHODS)
    rows = [
        f"{f'{unit.layer}, map {unit.channel}, {unit.photograph}':<28}"
        + "".join(f"{unit.dependence[method]:>12.2f}" for method in METHODS)
        for unit in found
    ]
    return "\n".join([head, *rows])


def methods_sheet(found: list[Compared], inks: Inks) -> Image.Image:
    """A row a unit: the photograph with what the unit sees, then of that each method's projection, enlarged."""
    columns = 1 + len(METHODS)
    step = SIDE + HEAD + GAP
    lines = [VGG16.network, *wrap(VGG16.weights, 92)]
    top = GAP + 18 * len(lines) + 8
    sheet = Image.new("RGB", (GAP + columns * (SIDE + GAP), top + step * len(found)), inks.paper)
    draw = ImageDraw.Draw(sheet)
    for number, line in enumerate(lines):
        colour, size = (inks.ink, 14) if number == 0 else (inks.soft, 12)
        draw.text((GAP, GAP + 18 * number), line, colour, font(size))
    for row, unit in enumerate(found):
        y = top + row * step
        pictures = [_boxed(unit.picture, unit.box), *(unit.projections[method] for method in METHODS)]
        words = [f"{unit.layer}, map {unit.channel}", *(f"{m}: {unit.dependence[m]:.2f}" for m in METHODS)]
        for column, (text, pixels) in enumerate(zip(words, pictures, strict=True)):
            x = GAP + column * (SIDE + GAP)
            draw.text((x, y + 3), text, inks.ink if column == 0 else inks.soft, font(12))
            sheet.paste(Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.LANCZOS), (x, y + HEAD))
    return sheet


def _boxed(picture: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
    top, left, bottom, right = box
    drawn = Image.fromarray(picture)
    ImageDraw.Draw(drawn).rectangle((left, top, right - 1, bottom - 1), outline=ACCENT, width=2)
    return np.asarray(drawn)
