"""Draws docs/eyes.jpg: what single units of EfficientNet-Lite0 (ImageNet weights) see in scikit-image's photographs.

python docs/pictures.py        (extra pretrained; nothing is downloaded)
"""

from pathlib import Path

import torch
from PIL import Image, ImageDraw

import zfkernels as zf
from zfkernels.data.photographs import data_file
from zfkernels.data.pictures import read_picture
from zfkernels.drawing.style import font
from zfkernels.drawing.tiles import plain_picture, size_picture
from zfkernels.models.pretrained import efficientnet_lite0

PHOTOGRAPHS = {"chelsea.png": "cat", "coffee.png": "coffee", "rocket.jpg": "rocket", "astronaut.png": "astronaut"}
LAYERS = {"_blocks.9._expand_conv": "block 9", "_blocks.13._expand_conv": "block 13", "_conv_head": "the last maps"}
SIDE, SHOWN, GAP, INK, PAPER = 224, 224, 8, (235, 235, 235), (0, 0, 0)


def main(path: Path) -> None:
    network = efficientnet_lite0()
    deconv = zf.Deconvnet(network.model)
    pictures = torch.stack([read_picture(data_file(name), (SIDE, SIDE)) for name in PHOTOGRAPHS])
    images = network.normalise(pictures)
    rows = [[plain_picture(picture) for picture in pictures]]
    for layer in LAYERS:
        channels = deconv.strengths(images, [layer])[layer].amax((2, 3)).argmax(1)  # each photograph's strongest map
        found = deconv.project(images, layer, channels, image_index=range(len(images)), method="guided")
        rows.append([size_picture(pixels) for pixels in found.pixels])
    labels = ["photograph", *LAYERS.values()]
    left, step = 140, SHOWN + GAP
    sheet = Image.new("RGB", (left + step * len(PHOTOGRAPHS), GAP + step * len(rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (label, cells) in enumerate(zip(labels, rows, strict=True)):
        draw.text((GAP, GAP + row * step + SHOWN // 2 - 12), label, INK, font(17))
        for column, cell in enumerate(cells):
            picture = Image.fromarray(cell).resize((SHOWN, SHOWN), Image.Resampling.LANCZOS)
            sheet.paste(picture, (left + column * step, GAP + row * step))
    sheet.save(path, quality=88)


if __name__ == "__main__":
    main(Path(__file__).with_name("eyes.jpg"))
