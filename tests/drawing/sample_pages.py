"""Small pages of each kind, written without a network."""

import numpy as np
import torch
from PIL import Image

from zfkernels.analyses import atlas, atlas_page, evolution
from zfkernels.analyses.projection import Unit
from zfkernels.demo import gallery_page
from zfkernels.demo import page as demo_page
from zfkernels.demo.captions import CAPTIONS
from zfkernels.drawing.style import LIGHT, NIGHT, dark
from zfkernels.drawing.tiles import cut, plain_picture
from zfkernels.training.history import Epoch

HOSTILE = """x<!--<script>"'&</script><b>.png"""
IMAGES = ("cat/a.png", "cat/b.png", "cup/c.png", "cat/d.png")


def card(channel=3, k=4, side=7, size=40):
    generator = torch.Generator().manual_seed(channel)
    corners = torch.tensor([[0, 0], [5, 2], [size - side - 3, size - side - 3], [size - side, 1]])[:k]
    boxes = torch.cat([corners, corners + side], 1)
    if k > 3:
        boxes[3, 0] += 2  # a field that is cut off at the image's border
    images = torch.randint(0, 256, (k, 3, size, size), generator=generator).to(torch.uint8)
    pixels = torch.randn(k, 3, size, size, generator=generator)
    frames = [atlas.filling(box, (side, side), (size, size)) for box in boxes.tolist()]
    return atlas.Card(
        channel=channel,
        values=torch.tensor([4.0, 3.0, 2.0, 1.0])[:k],
        numbers=torch.arange(k),
        shape=(side, side),
        frames=frames,
        parts=[cut(*both) for both in zip(pixels, frames, strict=True)],
        patches=[plain_picture(cut(*both)) for both in zip(images, frames, strict=True)],
    )


def findings(classes, facts=None, sources=None):
    layer = demo_page.LayerTop("conv1", maps=5, live=2, receptive_field=7, stride=2, tops=[card(3), card(4)])
    grey = np.full((60, 90, 3), 120, np.uint8)
    return demo_page.Findings(
        classes=classes,
        photographs=[demo_page.Photograph(name, grey, [(0, 0, 5, 5)], 0.5) for name in classes],
        history=[Epoch(1, 1.0, 0.5, 0.25, 0.0, 0.01, 100.0, 1.0, 1)],
        filters=torch.randn(5, 3, 7, 7),
        layers=[layer],
        occluded=[],
        facts=facts or {"seed": "0"},
        sources=sources or [classes[0], *classes, classes[0]],
    )


def write_demo(folder, classes=("brick", "cat"), **more):
    return demo_page.write_page(folder, findings(list(classes), **more))


def write_atlas(folder, layers=(("conv1", 7), ("conv5", 80)), maps=3, names=IMAGES):
    """index.html of layers of these receptive fields."""
    sheets = []
    for name, side in layers:
        cards = iter([card(channel, side=side, size=max(40, side + 16)) for channel in range(2, 2 + maps)])
        sheets.append(atlas_page.write_layer(folder, atlas.LayerCards(name, maps + 2, cards, "guided"), names))
    atlas_page.write_page(folder / "index.html", f"Atlas of {layers[0][0]}", len(names), sheets)
    return folder / "index.html"


def changing(layer="conv2", side=7):
    """An evolution of two maps over three checkpoints, and the pictures it is of."""
    pictures = torch.randint(0, 256, (4, 3, 40, 40), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    moments = {
        f"epoch {epoch}": [
            Unit(layer, channel, (0, 0), float(epoch), (2, 2, 2 + side, 2 + side), torch.randn(3, 40, 40), epoch % 4)
            for channel in (1, 5)
        ]
        for epoch in (1, 2, 9)
    }
    return evolution.Evolution(layer, [1, 5], moments), pictures


def write_evolution(folder, layer="conv2", names=IMAGES, side=7):
    result, pictures = changing(layer, side)
    evolution.write_page(folder / "evolution.html", result, pictures, names, "deconvnet")
    return folder / "evolution.html"


def write_gallery(folder, body="a | b\n1 | <2>"):
    """With grey pictures in place of the figures."""
    sections = []
    for name, caption in CAPTIONS.items():
        for file in caption.pictures:
            for path, inks in ((folder / file, LIGHT), (dark(folder / file), NIGHT)):
                Image.new("RGB", (900, 300), inks.soft).save(path)
        values = {"error": 0.25, "maps": "4, 8", "network": HOSTILE}
        sections.append(gallery_page.Section(name, caption, body, values))
    gallery_page.write_page(folder / "gallery.html", sections)
    return folder / "gallery.html"


PAGES = {"atlas": write_atlas, "demo": write_demo, "evolution": write_evolution, "gallery": write_gallery}
