"""The second part of the demo: what a network that has seen a million photographs sees in three of scikit-image's."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..analyses import occlusion
from ..analyses.occlusion import Occluded, occlusion_map
from ..data.photographs import data_file
from ..data.pictures import read_picture
from ..deconvnet.deconvnet import Deconvnet
from ..deconvnet.results import Projection
from ..drawing.style import LIGHT, NIGHT, Inks, dark, font, save_twins
from ..drawing.tiles import plain_picture, size_picture
from ..files import write_whole
from ..models.checkpoint import Network
from ..models.pretrained import EFFICIENTNET_LITE0, efficientnet_lite0

PHOTOGRAPHS = {"cat": "chelsea.png", "coffee": "coffee.png", "rocket": "rocket.jpg"}
LAYERS = {"_blocks.9._expand_conv": "block 9", "_blocks.13._expand_conv": "block 13", "_conv_head": "the last maps"}
COVERED = "_conv_head"  # the layer whose strongest map is summed while parts are covered
PATCH, STRIDE = 48, 16  # of the square that covers, in pixels
UNITS, OCCLUSION = "lite0_units.png", "lite0_occlusion_{}.png"


@dataclass(frozen=True)
class Unit:
    """The strongest unit of a layer in a photograph, and how much of its projection depends on the photograph."""

    photograph: str
    layer: str
    channel: int
    value: float
    deconvnet: float  # image_dependence of its deconvnet projection, 0..1
    guided: float


@dataclass(frozen=True)
class Real:
    """What the page shows of the network."""

    source: str  # which network, whose weights
    answers: list[str]  # to each photograph
    units: list[Unit]
    occluded: list[tuple[str, str]]  # an occlusion map's file, and what it shows in a sentence

    @property
    def why_guided(self) -> str:
        """Why plain deconvnet projections show nothing here, with the numbers."""
        plain, guided = max(unit.deconvnet for unit in self.units), [unit.guided for unit in self.units]
        return (
            "Plain deconvnet projections show nothing of the photograph here, only a grid that is the same for all "
            "three. They know an image by the switches of max-pooling alone, and this network has none. The part that "
            f"depends on the photograph (image_dependence), in these {len(self.units)} units: at most {plain:.2%} of a "
            f"plain projection, {min(guided):.0%} to {max(guided):.0%} of a guided one."
        )


def look(out: Path, report: Callable[[str], None] = lambda text: None) -> Real:
    """Project, cover, and write the pictures into the folder `out`."""
    report(f"looking into {EFFICIENTNET_LITE0.network} ...")
    network = efficientnet_lite0()
    pictures = torch.stack([read_picture(data_file(name), network.image_size) for name in PHOTOGRAPHS.values()])
    images = network.normalise(pictures)
    probabilities = occlusion.answers(network.model, images)
    answers = [f"{network.classes[int(row.argmax())]} ({float(row.max()):.0%})" for row in probabilities]
    deconv = Deconvnet(network.model)
    units: list[Unit] = []
    rows: dict[str, list[np.ndarray]] = {}
    for layer, name in LAYERS.items():
        found, of_layer = _strongest(deconv, images, layer, name)
        units += of_layer
        rows[name] = [size_picture(pixels) for pixels in found.pixels]
    channels = [unit.channel for unit in of_layer]
    plain = deconv.project(images, layer, channels, found.positions, image_index=range(len(images)))
    rows[f"{name},\ndeconvnet"] = [size_picture(pixels) for pixels in plain.pixels]
    for file, inks in ((out / UNITS, LIGHT), (dark(out / UNITS), NIGHT)):
        write_whole(file, _sheet(network.source, pictures, answers, rows, [*units, *of_layer], inks).save)
    report("covering parts of three photographs ...")
    return Real(network.source, answers, units, _occlusions(out, network, pictures, images))


def _strongest(deconv: Deconvnet, images: Tensor, layer: str, name: str) -> tuple[Projection, list[Unit]]:
    """The guided projections of each photograph's strongest unit."""
    channels = deconv.strengths(images, [layer])[layer].amax((2, 3)).argmax(1)
    each = range(len(images))
    found = deconv.project(images, layer, channels, image_index=each, method="guided")
    parts = [
        deconv.image_dependence(images, layer, channels, found.positions, image_index=each, method=method).tolist()
        for method in ("deconvnet", "guided")
    ]
    rows = zip(PHOTOGRAPHS, channels.tolist(), found.values.tolist(), *parts, strict=True)
    return found, [Unit(photograph, name, *numbers) for photograph, *numbers in rows]


def _occlusions(out: Path, network: Network, pictures: Tensor, images: Tensor) -> list[tuple[str, str]]:
    """A figure of each photograph, with what it says; covered with ImageNet's mean colour, which is 0."""
    told = []
    for name, picture, image in zip(PHOTOGRAPHS, pictures, images, strict=True):
        result = occlusion_map(network.model, image, patch=PATCH, stride=STRIDE, fill=0.0, layer=COVERED)
        file = OCCLUSION.format(name)
        save_twins(occlusion.figure(Occluded(name, picture, result), network.classes), out / file)
        lowest = int(result.probability.argmin())
        instead = network.classes[int(result.label.flatten()[lowest])]
        then = "" if instead == network.classes[result.target] else f", and the answer becomes {instead}"
        falls = f"falls from {result.clear_probability:.2f} to {float(result.probability.min()):.2f}"
        told.append((file, f"{name}: P({network.classes[result.target]}) {falls} at the worst place{then}"))
    return told


def _sheet(
    source: str,
    pictures: Tensor,
    answers: list[str],
    rows: dict[str, list[np.ndarray]],
    units: list[Unit],
    inks: Inks,
) -> Image.Image:
    """A column a photograph: itself with the answer, then projections; at the foot whose network it is."""
    side, gap, head, left = pictures.shape[-1], 10, 24, 120
    cells = [[plain_picture(picture) for picture in pictures], *rows.values()]
    words = [[f"{name}: {answer}" for name, answer in zip(PHOTOGRAPHS, answers, strict=True)]]
    for row in range(len(rows)):
        of_row = units[row * len(pictures) : (row + 1) * len(pictures)]
        words.append([f"map {unit.channel}, activation {unit.value:.3g}" for unit in of_row])
    step = side + head + gap
    sheet = Image.new("RGB", (left + len(pictures) * (side + gap), gap + len(cells) * step + head), inks.paper)
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap + len(cells) * step), source, inks.soft, font(11))
    for row, (label, line, drawn) in enumerate(zip(["photograph", *rows], words, cells, strict=True)):
        draw.text((gap, gap + row * step + head + side // 2 - 8), label, inks.ink, font(14))
        for column, (text, cell) in enumerate(zip(line, drawn, strict=True)):
            x, y = left + column * (side + gap), gap + row * step
            draw.text((x, y + 2), text, inks.accent if row == 0 else inks.soft, font(13))
            sheet.paste(Image.fromarray(cell), (x, y + head))
    return sheet
