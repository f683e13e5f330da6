"""`zfkernels gallery`: every analysis once, on the photographs that scikit-image carries, as pictures with captions."""

import io
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..analyses import ablation, atlas, correspondence, evolution, filters, invariance, neighbours, occlusion, probes
from ..analyses.activations import TopActivations, diverse, top_activations
from ..data.folders import Memory
from ..data.parts import Box
from ..data.photographs import Crops, Photographs, data_file
from ..deconvnet.deconvnet import Deconvnet
from ..drawing.style import LIGHT, NIGHT, Figure, Inks, dark, darken, font
from ..drawing.tiles import zoom_to
from ..files import write_whole
from ..models import checkpoint
from ..models.checkpoint import Network
from ..models.pretrained import VGG16, vgg16
from ..models.zfnet import ZFNet
from ..progress import Shown
from ..training.history import figure as training_figure
from ..training.history import read_log
from ..training.processes import seeded
from ..training.recipe import Plan, resized_side
from ..training.run import Run
from .captions import CAPTIONS
from .demo import most_occluded
from .gallery_page import Section
from .methods import compared, methods_sheet, methods_table
from .network import EPOCHS, LAYERS, PLAN, SCALE, SIDE, fit_in, in_memory, train_network, untrained

FILTERS_PLAN = Plan(epochs=6, batch_size=32, learning_rate=0.012)
QUERIES = ("brick", "tissue")
FACE_SIDE, FACES = 75, 100  # scikit-image's lfw_subset: 100 faces of 25 x 25 pixels, then 100 patches without one
FACE_PARTS = {
    "left eye": (6, 4, 11, 11),
    "right eye": (6, 13, 11, 20),
    "nose": (10, 9, 16, 16),
    "mouth": (16, 7, 21, 18),
}
FACES_PLAN = Plan(epochs=12, batch_size=10, learning_rate=0.01)
TABLE3: dict[str, Any] = {"channels": (12, 24, 24, 24, 16), "fc": (64, 64), "side": 64}
TABLE3_PLAN = Plan(epochs=10, batch_size=16, learning_rate=0.01, weight_decay=0.01, patience=4)


class Stage:
    """What the sections share: folders, and the network and the pictures to search, made when one first needs them."""

    def __init__(self, out: Path, work: Path, method: str = "deconvnet", progress: Shown = False) -> None:
        self.out, self.work, self.method, self.progress = out, work, method, progress

    @cached_property
    def trained(self) -> Path:
        """The folder of the small network's run."""
        return train_network(self.work / "clamped", PLAN, progress=self.progress).parent

    @cached_property
    def network(self) -> Network:
        return checkpoint.load(self.trained / "zfnet.pt")

    @cached_property
    def deconv(self) -> Deconvnet:
        return Deconvnet(self.network.model)

    @cached_property
    def photographs(self) -> Photographs:
        return Photographs(SIDE)

    @cached_property
    def crops(self) -> Crops:
        """Of no pixel that was trained on."""
        return self.photographs.held_out_crops(40, np.random.default_rng(7))

    @cached_property
    def inputs(self) -> Tensor:
        return self.network.normalise(self.crops.images)

    @cached_property
    def _tiles(self) -> tuple[Tensor, Tensor]:
        return self.photographs.tiles()

    @property
    def tiles(self) -> Tensor:
        """The whole photographs, cut so that no two overlap."""
        return self._tiles[0]

    @property
    def tile_labels(self) -> Tensor:
        return self._tiles[1]

    @cached_property
    def tile_inputs(self) -> Tensor:
        return self.network.normalise(self.tiles)

    @cached_property
    def tops(self) -> dict[str, TopActivations]:
        """Of each layer the strongest activations over the tiles."""
        return top_activations(self.deconv, self.tile_inputs.split(64), LAYERS, 9)

    def wholes(self, *names: str) -> Tensor:
        """The photographs' centre squares, as the network takes them."""
        views = [self.photographs.centre_square(self.photographs.classes.index(name)) for name in names]
        return self.network.normalise(torch.stack(views))


def _save(image: Image.Image, path: Path) -> None:
    """A chart as a PNG with 256 colours of its own, a third of the bytes; anything else as a JPEG."""
    image = image.convert("RGB")
    options: dict[str, Any]
    if path.suffix == ".png":
        drawn, options = image.quantize(256, dither=Image.Dither.NONE), {"optimize": True}
    else:
        drawn, options = image, {"quality": 86, "subsampling": 0, "optimize": True}
    write_whole(path, lambda half: drawn.save(half, **options))


def _save_figure(figure: Figure, path: Path) -> None:
    """The figure, and beside it the same for pages that are dark."""
    for place in (path, dark(path)):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        _save(Image.open(buffer), place)
        darken(figure)


def _section(name: str, body: str = "", **values: object) -> Section:
    return Section(name, CAPTIONS[name], body, values)


def training_section(stage: Stage) -> Section:
    history = read_log(stage.trained / "log.jsonl")
    _save_figure(training_figure(history), stage.out / "training.png")
    return _section("training")


def filters_section(stage: Stage) -> Section:
    results = {}
    for name, rms in (("held to 0.1", 0.1), ("not held", None)):
        plan = replace(FILTERS_PLAN, filter_rms=rms)
        file = train_network(stage.work / f"filters-{rms}", plan, conv1_std=None, progress=stage.progress)
        results[name] = filters.filters(filters.first_filters(checkpoint.load(file).model))
    _save_figure(filters.figure(results), stage.out / "filters.png")
    return _section("filters", filters.table(results))


def atlas_section(stage: Stage) -> Section:
    read = lambda numbers: (stage.tile_inputs[numbers], stage.tiles[numbers])  # noqa: E731
    rows = []
    for layer in LAYERS:
        top = stage.tops[layer]
        order = diverse(top, stage.tile_labels)[:4]
        panels = []
        for card in atlas.cards(stage.deconv, top, layer, read, order, method=stage.method):
            zoom = zoom_to(card.shape[0], 50)
            panel = Image.fromarray(atlas.panel(card, zoom))
            kind = Image.Resampling.NEAREST if panel.width < 330 else Image.Resampling.LANCZOS
            panels.append(panel.resize((330, round(panel.height * (330 / panel.width))), kind))
        rows.append((layer, order, panels))
    path = stage.out / "atlas.jpg"
    _save(_labelled(rows, LIGHT), path)
    _save(_labelled(rows, NIGHT), dark(path))
    return _section("atlas")


def _labelled(rows: list[tuple[str, list[int], list[Image.Image]]], inks: Inks) -> Image.Image:
    gap, head = 14, 24
    height = sum(panels[0].height + head + gap for _, _, panels in rows) + gap
    width = max(sum(panel.width + gap for panel in panels) for _, _, panels in rows) + gap
    drawn = Image.new("RGB", (width, height), inks.paper)
    draw, y = ImageDraw.Draw(drawn), gap
    for layer, channels, panels in rows:
        for column, (channel, panel) in enumerate(zip(channels, panels, strict=True)):
            x = gap + column * (panel.width + gap)
            text = f"{layer}, map {channel}" if column == 0 else f"map {channel}"
            draw.text((x, y), text, inks.ink if column == 0 else inks.soft, font(13))
            drawn.paste(panel, (x, y + head - 4))
        y += panels[0].height + head + gap
    return drawn


def evolution_section(stage: Stage) -> Section:
    files = evolution.checkpoints(stage.trained / f"epoch_{epoch:03d}.pt" for epoch in EPOCHS)
    for layer in ("conv2", "conv4"):
        maps = diverse(stage.tops[layer], stage.tile_labels)[:2]
        result = evolution.evolution(
            evolution.load_each(files, checkpoint.load, stage.tiles), layer, maps, method=stage.method
        )
        _save_figure(evolution.figure(result, stage.tiles), stage.out / f"evolution_{layer}.jpg")
    return _section("evolution")


def invariance_section(stage: Stage) -> Section:
    names = ("cat", "coffee", "retina", "brick", "moon")
    labels = torch.tensor([stage.photographs.classes.index(name) for name in names])
    result = invariance.invariance(stage.deconv, stage.wholes(*names), ["conv1", "fc7"], labels=labels)
    _save_figure(invariance.figure(result, names), stage.out / "invariance.png")
    return _section("invariance")


def methods_section(stage: Stage) -> Section | None:
    """On a network that others have trained; where its packages are not installed, what to do to have it."""
    if said := VGG16.missing():
        print(f"methods     left out: {said}", flush=True)
        return None
    found = compared(vgg16())
    path = stage.out / "methods.jpg"
    _save(methods_sheet(found, LIGHT), path)
    _save(methods_sheet(found, NIGHT), dark(path))
    return _section("methods", methods_table(found), network=VGG16)


def occlusion_section(stage: Stage) -> Section:
    classes = stage.photographs.classes
    occluded = most_occluded(stage.network, stage.photographs)[0]
    channel = occluded.result.channel
    assert channel is not None
    exciting = stage.tops["conv5"].images[channel, :3]
    names = [classes[int(stage.tile_labels[i])] for i in exciting.tolist()]
    image = stage.network.normalise(occluded.image)
    others = stage.tile_inputs[exciting], names
    projected = occlusion.project_map(stage.deconv, image, "conv5", channel, *others, method=stage.method)
    _save_figure(occlusion.figure(replace(occluded, projected=projected), classes), stage.out / "occlusion.jpg")
    return _section("occlusion")


def correspondence_section(stage: Stage) -> Section:
    resized = resized_side(FACE_SIDE)
    images, labels, odd = _faces(resized)
    arguments: dict[str, Any] = {
        "num_classes": 2,
        "image_size": FACE_SIDE,
        "channels": (12, 24, 32, 32, 24),
        "fc": (48, 48),
    }
    arguments["weight_std"] = None
    with seeded(0):
        model = ZFNet(**arguments)
    training, held_out = (Memory(images[chosen], labels[chosen]) for chosen in (~odd, odd))
    run = Run(FACES_PLAN, training, held_out, model.image_size, scale=64.0, progress=stage.progress)
    history = fit_in(stage.work / "faces", model, run, arguments, ("face", "no face"))
    network = checkpoint.load(stage.work / "faces" / "zfnet.pt")
    offset = (resized - FACE_SIDE) // 2
    shown = images[odd & (labels == 0)][:20]
    inputs = network.normalise(shown[..., offset : offset + FACE_SIDE, offset : offset + FACE_SIDE])
    ratio = resized / 25
    parts = {name: [_placed(box, ratio, offset)] * len(inputs) for name, box in FACE_PARTS.items()}
    parts["random"] = correspondence.random_boxes(parts, (FACE_SIDE, FACE_SIDE))
    result = correspondence.correspondence(network.model, inputs, parts, ["pool5", "fc7"])
    return _section("correspondence", correspondence.table(result), error=history[-1].error)


def _placed(box: Box, ratio: float, offset: int) -> Box:
    """A box of a face as it is, in the same face enlarged and cut."""
    top, left, bottom, right = (min(max(round(x * ratio) - offset, 0), FACE_SIDE) for x in box)
    return top, left, bottom, right


def _faces(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """scikit-image's lfw_subset, enlarged: uint8 (200, 3, side, side), faces first; labels; which ones are held out."""
    values = torch.from_numpy(np.load(data_file("lfw_subset.npy"))).float()[:, None] * 255
    pixels = torch.nn.functional.interpolate(values, size=(side, side), mode="bicubic").clamp(0, 255)
    images, number = pixels.round().to(torch.uint8).expand(-1, 3, -1, -1), torch.arange(2 * FACES)
    return images, (number >= FACES).long(), number % 2 == 1


def ablation_section(stage: Stage) -> Section:
    side = TABLE3["side"]
    photographs, random = Photographs(resized_side(side)), np.random.default_rng(0)
    training, held_out = photographs.training_crops(60, random), photographs.held_out_crops(20, random)
    run = Run(TABLE3_PLAN, in_memory(training), in_memory(held_out), (side, side), SCALE, progress=stage.progress)
    results = ablation.ablation(
        ablation.variants(TABLE3["channels"], TABLE3["fc"]),
        run,
        {"num_classes": len(photographs.classes), "image_size": side, "weight_std": None},
        out=stage.work / "ablation",
    )
    body = "\n".join([ablation.HEAD, *map(ablation.line, results)])
    return _section("ablation", body, maps=", ".join(map(str, TABLE3["channels"])))


def probes_section(stage: Stage) -> Section:
    known = probes.features(stage.deconv, stage.inputs.split(64), ["conv1", "conv3", "conv5", "fc7"])
    with seeded(0):
        random = untrained(len(stage.photographs.classes), conv1_std=None)
    yardstick = probes.features(random, stage.inputs.split(64), ["conv5"])
    known["conv5, random"] = yardstick["conv5"]
    result = probes.probes(known, stage.crops.labels, (5, 30), draws=2)
    return _section("probes", probes.table(result))


def neighbours_section(stage: Stage) -> Section:
    queries = [int((stage.tile_labels == stage.photographs.classes.index(name)).nonzero()[3]) for name in QUERIES]
    others = [i for i in range(len(stage.tiles)) if i not in queries]
    results = [
        neighbours.neighbours(stage.deconv, stage.tile_inputs[queries], stage.tile_inputs[others].split(64), layer, 6)
        for layer in ("conv1", "conv5", "fc7")
    ]
    names = [stage.photographs.classes[int(stage.tile_labels[i])] for i in others]
    drawn = neighbours.figure(results, stage.tiles[queries], stage.tiles[others], names)
    _save_figure(drawn, stage.out / "neighbours.jpg")
    return _section("neighbours")


SECTIONS: tuple[tuple[str, Callable[[Stage], Section | None]], ...] = (
    ("training", training_section),
    ("filters", filters_section),
    ("atlas", atlas_section),
    ("evolution", evolution_section),
    ("invariance", invariance_section),
    ("occlusion", occlusion_section),
    ("methods", methods_section),
    ("correspondence", correspondence_section),
    ("ablation", ablation_section),
    ("probes", probes_section),
    ("neighbours", neighbours_section),
)
