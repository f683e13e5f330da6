"""`zfkernels gallery`: every analysis once, on the photographs that scikit-image carries, as pictures with captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..analyses import ablation, atlas, correspondence, evolution, filters, invariance, neighbours, probes
from ..analyses.activations import TopActivations, diverse, top_activations
from ..analyses.occlusion import occlusion_figure
from ..data.folders import Memory
from ..data.photographs import Photographs, data_file
from ..deconvnet.deconvnet import Deconvnet
from ..models import checkpoint
from ..models.zfnet import ZFNet
from ..training.fit import Run
from ..training.history import Epoch, plot_history, read_log
from ..training.processes import seeded
from ..training.recipe import Plan, resized_side
from .demo import most_occluded
from .network import EPOCHS, LAYERS, PLAN, SCALE, SIDE, fit_in, in_memory, train_network, untrained

if TYPE_CHECKING:
    from PIL import Image as ImageModule
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
TABLE3 = {"channels": (12, 24, 24, 24, 16), "fc": (64, 64), "side": 64}
TABLE3_PLAN = Plan(epochs=10, batch_size=16, learning_rate=0.01, weight_decay=0.01, patience=4)


HEAD = """# Gallery

Every analysis once, by `zfkernels gallery`. The network is a small ZFNet (96 x 96 pixels; 24, 48, 64, 64, 48 maps)
trained for 12 epochs to tell ten photographs apart from crops of them. It is a stand-in for a network that has seen a
million: the figures show what each analysis looks like and how to read it, not what the paper found. Projections are
drawn around mid-grey, which is 0; their scale is given or said to be each picture's own.
"""


class Stage:
    """What the sections share: folders, the networks, the pictures to search."""

    def __init__(self, out: Path, work: Path, progress: bool = False) -> None:
        self.out, self.work, self.progress = out, work, progress
        self.network = checkpoint.load(train_network(work / "clamped", PLAN, progress=progress))
        self.photographs = Photographs(SIDE)
        self.crops = self.photographs.held_out_crops(40, np.random.default_rng(7))  # of no pixel that was trained on
        self.inputs = self.network.normalise(self.crops.images)
        self.tiles, self.tile_labels = self.photographs.tiles()  # the whole photographs; no two overlap
        self.tile_inputs = self.network.normalise(self.tiles)
        self.deconv = Deconvnet(self.network.model)

    @cached_property
    def tops(self) -> dict[str, TopActivations]:
        """Of each layer the strongest activations over the tiles."""
        return top_activations(self.deconv, self.tile_inputs.split(64), LAYERS, 9)

    def wholes(self, *names: str) -> Tensor:
        """The photographs' centre squares, as the network takes them."""
        views = [self.photographs.centre_square(self.photographs.classes.index(name)) for name in names]
        return self.network.normalise(torch.stack(views))


def _few_colours(path: Path) -> None:
    """A chart's PNG with 256 colours of its own, a third of the bytes."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    small.save(path, optimize=True)


def _jpeg(image: ImageModule.Image, path: Path) -> None:
    """A JPEG whose colours are sampled as finely as its greys."""
    image.convert("RGB").save(path, quality=86, subsampling=0, optimize=True)


def _shrink(path: Path) -> None:
    """A JPEG in the PNG's place."""
    from PIL import Image

    with Image.open(path) as image:
        _jpeg(image, path.with_suffix(".jpg"))
    path.unlink()


def _section(title: str, picture: str | None, shows: str, does_not: str, body: str = "") -> str:
    drawn = f"![{title}]({picture})\n\n" if picture else ""
    text = f"```\n{body}\n```\n\n" if body else ""
    return f"\n## {title}\n\n{drawn}{text}**Shows.** {shows}\n\n**Does not show.** {does_not}\n"


def training_section(stage: Stage) -> str:
    plot_history(read_log(stage.work / "clamped" / "log.jsonl"), stage.out / "training.png")
    _few_colours(stage.out / "training.png")
    return _section(
        "Training (section 3)",
        "training.png",
        "`zfkernels train --plot`: the loss of the training crops, the errors, and the rate, which falls to a tenth "
        "when the validation error has not fallen for more than 4 epochs. Validation averages 10 sub-crops; the "
        "training crops are measured with dropout on, and so look worse.",
        "How well such a network can do: the crops of a photograph share its light and camera, and the recipe's "
        "numbers (rate 0.006, weight decay 0.04, batches of 32) were chosen for this small task, not the paper's.",
    )


def filters_section(stage: Stage) -> str:
    networks = {}
    for name, rms in (("held to 0.1", 0.1), ("not held", None)):
        plan = replace(FILTERS_PLAN, filter_rms=rms)
        file = train_network(stage.work / f"filters-{rms}", plan, conv1_std=None, progress=stage.progress)
        networks[name] = filters.first_filters(checkpoint.load(file).model)
    filters.filters_figure(networks, stage.out / "filters.png")
    _few_colours(stage.out / "filters.png")
    return _section(
        "First-layer filters with and without the clamp (Fig. 6)",
        "filters.png",
        "`zfkernels filters`: the filters by falling size, each network on a scale of its own; the sizes against the "
        "clamp (line) and against a tenth of the median, below which a filter counts as dead (dots); and how much of "
        "each filter's energy lies at low and at high frequencies.",
        "What the paper saw in a network of 96 filters and 70 epochs. These two ran 6 epochs, without weight decay, "
        "from the same weights of He's scale, much of which still shows. A filter of 7 x 7 pixels resolves frequencies "
        "to about a quarter of the range, and the thresholds of what counts as dead or all low are this command's own.",
        filters.table(networks),
    )


def atlas_section(stage: Stage) -> str:
    read = lambda numbers: (stage.tile_inputs[numbers], stage.tiles[numbers])  # noqa: E731
    rows = []
    for layer in LAYERS:
        top = stage.tops[layer]
        order = diverse(top, stage.tile_labels)[:4]
        panels = []
        for card in atlas.cards(stage.deconv, top, layer, read, order):
            zoom = max(1, round(50 / card.projections[0].shape[0]))
            panels.append(_resized(atlas.panel(card, zoom), 330))
        rows.append((layer, order, panels))
    _jpeg(_labelled(rows), stage.out / "atlas.jpg")
    return _section(
        "Strongest activations, projected (Fig. 2)",
        "atlas.jpg",
        "`zfkernels atlas`, four maps a layer: the nine strongest activations over the photographs, cut into tiles "
        "that do not overlap, at most one a tile; left of each panel the projections (one scale a map), right the "
        "patches that caused them. Chosen are the maps whose ninth activation is strongest, each photograph's "
        "favourite in turn. The command itself draws every map, and a page on which each opens at full size.",
        "What the map as a whole responds to: nine images are its extreme, not its range. A projection is made of the "
        "image's own switches, so it shows edges that are in the image even where the map does not need them; compare "
        "with an untrained network. From conv4 on a unit sees the whole image.",
    )


def _resized(pixels: np.ndarray, width: int) -> np.ndarray:
    from PIL import Image

    factor = width / pixels.shape[1]
    kind = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    return np.asarray(Image.fromarray(pixels).resize((width, round(pixels.shape[0] * factor)), kind))


def _labelled(rows: list[tuple[str, list[int], list[np.ndarray]]]) -> ImageModule.Image:
    from PIL import Image, ImageDraw

    from ..drawing.style import INK, SOFT, font

    gap, head = 14, 24
    height = sum(panels[0].shape[0] + head + gap for _, _, panels in rows) + gap
    width = max(sum(panel.shape[1] + gap for panel in panels) for _, _, panels in rows) + gap
    drawn = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(drawn), gap
    for layer, channels, panels in rows:
        for column, (channel, panel) in enumerate(zip(channels, panels, strict=True)):
            x = gap + column * (panel.shape[1] + gap)
            text = f"{layer}, map {channel}" if column == 0 else f"map {channel}"
            draw.text((x, y), text, INK if column == 0 else SOFT, font(13))
            drawn.paste(Image.fromarray(panel), (x, y + head - 4))
        y += panels[0].shape[0] + head + gap
    return drawn


def evolution_section(stage: Stage) -> str:
    networks = evolution.Checkpoints([stage.work / "clamped" / f"epoch_{epoch:03d}.pt" for epoch in EPOCHS])
    parts = []
    for layer in ("conv2", "conv4"):
        maps = diverse(stage.tops[layer], stage.tile_labels)[:2]
        found = evolution.evolution(networks, stage.tile_inputs, layer, maps)
        evolution.evolution_figure(found, stage.tiles, layer, maps, stage.out / f"evolution_{layer}.png")
        _shrink(stage.out / f"evolution_{layer}.png")
        parts.append(f"evolution_{layer}.jpg")
    first = _section(
        "Features as training goes on (Fig. 4)",
        parts[0],
        "`zfkernels evolution`: a column a checkpoint; for each map the projection of its strongest activation over "
        "the tiles, with its value above and its patch below. A jump in the patch is a change of which image drives "
        "the map hardest.",
        "Sizes: each projection has a scale of its own, only the values compare. Maps were chosen by the last "
        "checkpoint, so that maps which died are not seen.",
    )
    return first.replace(f"]({parts[0]})\n", f"]({parts[0]})\n\n![conv4]({parts[1]})\n")


def invariance_section(stage: Stage) -> str:
    names = ("cat", "coffee", "retina", "brick", "moon")
    inputs = stage.wholes(*names)
    labels = torch.tensor([stage.photographs.classes.index(name) for name in names])
    curves = [
        invariance.invariance_curves(
            stage.deconv, inputs, ["conv1", "fc7"], t, invariance.paper_parameters(t, SIDE), labels=labels
        )
        for t in invariance.TRANSFORMS
    ]
    invariance.invariance_figure(curves, names, stage.out / "invariance.png")
    _few_colours(stage.out / "invariance.png")
    return _section(
        "Invariance (Fig. 5)",
        "invariance.png",
        "`zfkernels invariance`: five whole photographs shifted, magnified and turned; the distance of the layer's "
        "features from the untouched image's, over the latter's norm; and the probability of the true class. Every "
        "curve starts at 0 at no change. Layer 1 jumps at the smallest change, layer 7 moves gradually.",
        "Invariance to content that leaves or enters: a shift brings in the mean colour at one edge, a turn at the "
        "corners, and part of each distance is that. Whole photographs were never seen in training, so P(true class) "
        "need not start at 1. The distance is relative; the command's table and the API give the raw ones.",
    )


def occlusion_section(stage: Stage) -> str:
    names = stage.photographs.classes
    one = most_occluded(stage.network, stage.photographs)[0]
    channel = one.result.channel
    chosen = stage.tops["conv5"].images[channel, :3]
    inputs = torch.cat([stage.network.normalise(one.image)[None], stage.tile_inputs[chosen]])
    found = stage.deconv.project(inputs, "conv5", channel)
    titles = ["(c) projection, this picture"] + [f"(c) {names[int(stage.tile_labels[i])]}" for i in chosen.tolist()]
    projected = list(zip(titles, found.pixels, map(tuple, found.boxes.tolist()), strict=True))
    occlusion_figure(replace(one, projected=projected), list(names), stage.out / "occlusion.png")
    _shrink(stage.out / "occlusion.png")
    return _section(
        "What the answer depends on (Fig. 7)",
        "occlusion.jpg",
        "`zfkernels occlude --images`: (a) the picture and the place where covering it costs most, (b) the summed "
        "activity of the conv5 map that responds most, (c) that map's strongest activation projected, in this picture "
        "and in the three tiles that excite it most, (d) the probability of the true class, (e) the most probable "
        "class. Each cell of (b), (d), (e) is one raw answer, at the centre of a 20-pixel square.",
        "That the dark place alone would produce the answer; and the mean-coloured square is itself something the "
        "network never saw. One picture is an anecdote, and this one was chosen among ten for the largest loss.",
    )


def correspondence_section(stage: Stage) -> str:
    resized = resized_side(FACE_SIDE)
    images, labels, odd = _faces(resized)
    network, history = _face_network(stage, images, labels, odd)
    offset = (resized - FACE_SIDE) // 2
    shown = images[odd & (labels == 0)][:20]
    inputs = network.normalise(shown[..., offset : offset + FACE_SIDE, offset : offset + FACE_SIDE])
    ratio = resized / 25
    parts = {
        name: [tuple(min(max(round(x * ratio) - offset, 0), FACE_SIDE) for x in box)] * len(inputs)
        for name, box in FACE_PARTS.items()
    }
    parts["random"] = correspondence.random_boxes(parts, (FACE_SIDE, FACE_SIDE))
    body = correspondence.table(correspondence.correspondence(network.model, inputs, parts, ["pool5", "fc7"]))
    return _section(
        "Correspondence (Table 1)",
        None,
        "`zfkernels correspond`: 20 faces of scikit-image's lfw_subset (25 x 25 pixels, enlarged), unseen by a small "
        f"network trained to tell faces from other patches ({history[-1].error:.0%} of the held-out ones wrong). A "
        "part is covered in all of them; Delta is the fraction of features whose change has a different sign in two "
        "faces, averaged over all pairs, ± the deviation over the faces. Lower than random: hiding the part means the "
        "same to the network in every face.",
        "A relation, where the parts lie below random by less than the deviation over the faces, as they did when this "
        "page was made: a small network and 20 coarse faces are too little. And these faces are aligned, so a part is "
        "also a place, and the random boxes differ in place. The boxes are the same for every face. A feature that "
        "is 0 before and after counts as agreeing, so numbers compare within a layer and not between layers.",
        body,
    )


def _faces(side: int) -> tuple[Tensor, Tensor, Tensor]:
    """scikit-image's lfw_subset, enlarged: uint8 (200, 3, side, side), faces first; labels; which ones are held out."""
    values = torch.from_numpy(np.load(data_file("lfw_subset.npy"))).float()[:, None] * 255
    pixels = torch.nn.functional.interpolate(values, size=(side, side), mode="bicubic").clamp(0, 255)
    images, number = pixels.round().to(torch.uint8).expand(-1, 3, -1, -1), torch.arange(2 * FACES)
    return images, (number >= FACES).long(), number % 2 == 1


def _face_network(
    stage: Stage, images: Tensor, labels: Tensor, held_out: Tensor
) -> tuple[checkpoint.Network, list[Epoch]]:
    """A network that tells faces from other patches, and its training."""
    arguments = {"num_classes": 2, "image_size": FACE_SIDE, "channels": (12, 24, 32, 32, 24), "fc": (48, 48)}
    arguments["weight_std"] = None
    with seeded(0):
        model = ZFNet(**arguments)
    sets = [Memory(images[chosen], labels[chosen]) for chosen in (~held_out, held_out)]
    run = Run(FACES_PLAN, *sets, model.image_size, scale=64.0, progress=stage.progress)
    history = fit_in(stage.work / "faces", model, run, arguments, ("face", "no face"))
    return checkpoint.load(stage.work / "faces" / "zfnet.pt"), history


def ablation_section(stage: Stage) -> str:
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
    return _section(
        "Ablation (Table 3)",
        None,
        "`zfkernels ablate`: each variant trained alike, 10 epochs of 600 crops of 64 x 64 pixels, by a network of "
        f"{', '.join(map(str, TABLE3['channels']))} maps; errors in percent on the training crops and on 200 held-out "
        "ones, beside the paper's on ImageNet for the rows of its own network.",
        "What the architecture is worth: one seed and 10 epochs, in which most variants have not finished learning, so "
        "that rows differ more by how far they have come than by what they can reach.",
        "\n".join([ablation.HEAD, *map(ablation.line, results)]),
    )


def probes_section(stage: Stage) -> str:
    known = probes.features(stage.deconv, stage.inputs.split(64), ["conv1", "conv3", "conv5", "fc7"])
    with seeded(0):
        random = untrained(len(stage.photographs.classes), conv1_std=None)
    yardstick = probes.features(random, stage.inputs.split(64), ["conv5"])
    known["conv5, random"] = yardstick["conv5"]
    found = [one for count in (5, 30) for one in probes.probe(known, stage.crops.labels, count, draws=2)]
    return _section(
        "What each layer holds (Table 7)",
        None,
        "`zfkernels probe`: linear classifiers on each layer's features of 400 crops that the network was not trained "
        "on, by the number of training crops a class, mean ± deviation over two draws; and the same on a network of "
        "random weights, which is the yardstick.",
        "A difference between layers: crops from the same few cells overlap, so that even random weights do well here, "
        "and the task is too easy. Nor transfer: the classes are those the network was trained on. Maps larger than "
        "6 x 6 are max-pooled to that, "
        "which the paper does not say it did; chance is 10%.",
        probes.table(found),
    )


def neighbours_section(stage: Stage) -> str:
    queries = [int((stage.tile_labels == stage.photographs.classes.index(name)).nonzero()[3]) for name in QUERIES]
    keep = [i for i in range(len(stage.tiles)) if i not in queries]
    found = {
        layer: neighbours.neighbours(
            stage.deconv, stage.tile_inputs[queries], stage.tile_inputs[keep].split(64), layer, 6
        )
        for layer in ("conv1", "conv5", "fc7")
    }
    names = [stage.photographs.classes[int(stage.tile_labels[i])] for i in keep]
    neighbours.neighbours_figure(found, stage.tiles[queries], stage.tiles[keep], stage.out / "neighbours.png", names)
    _shrink(stage.out / "neighbours.png")
    return _section(
        "Nearest neighbours",
        "neighbours.jpg",
        "`zfkernels neighbours`: two tiles and, in the features of three layers, the six nearest of the others, with "
        "their distances and the photograph each is from. Layer 1 finds the same light in the same place, layer 7 what "
        "gets the same answer.",
        "Why they are near: the distance adds all features, and a few strong ones decide it.",
    )


SECTIONS: tuple[tuple[str, Callable[[Stage], str]], ...] = (
    ("training", training_section),
    ("filters", filters_section),
    ("atlas", atlas_section),
    ("evolution", evolution_section),
    ("invariance", invariance_section),
    ("occlusion", occlusion_section),
    ("correspondence", correspondence_section),
    ("ablation", ablation_section),
    ("probes", probes_section),
    ("neighbours", neighbours_section),
)
