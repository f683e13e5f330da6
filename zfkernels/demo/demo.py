"""`zfkernels demo`: train a small ZFNet on photographs, then show what it learned, on one page."""

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import backends
from ..analyses.activations import diverse, top_activations
from ..analyses.atlas import cards
from ..analyses.choices import method_for
from ..analyses.occlusion import Occluded, occlusion_map
from ..data.photographs import Crops, Photographs
from ..deconvnet.deconvnet import Deconvnet
from ..limits import check_memory
from ..models import checkpoint
from ..models.pretrained import EFFICIENTNET_LITE0
from ..models.zfnet import ZFNet
from ..progress import Shown
from ..training.fit import fit
from ..training.processes import seeded
from ..training.run import Epoch, Run
from .network import CHANNELS, LAYERS, PLAN, SCALE, SIDE, arguments, in_memory, untrained
from .page import Findings, LayerTop, Photograph, write_page
from .real import look

# Whole crops, mirrored at random; the rate falls to a fifth at half and at four fifths of the epochs
DEMO_PLAN = replace(PLAN, crops="mirrored", draws="run", falls_at=(0.5, 0.8), fall=0.2)
MAPS_SHOWN = 6  # a layer
TOP = 9
PATCH, STRIDE = 20, 4  # of the square that covers, in pixels
OCCLUSIONS = 3


def run(
    out: Path,
    *,
    seed: int,
    epochs: int,
    crops: int,
    progress: Shown = False,
    report: Callable[[str], None] = lambda text: None,
) -> tuple[Path, Findings]:
    """Train, analyse, write; returns index.html's path and what is on it. zfnet.pt beside it holds the network.

    A second part, on a network that others have trained, follows where its packages are installed.

    Args:
        seed: of crops, weights, order, mirroring and dropout.
        crops: to train on, of each photograph.
        progress: show progress bars.
        report: is told what is being done.
    """
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    photographs = Photographs(SIDE)
    count = crops * len(photographs.classes)
    check_memory(count * 3 * SIDE * SIDE * 5, f"crops: {count} pictures")  # as bytes, and for their mean as floats
    random = np.random.default_rng(seed)
    held_out = photographs.held_out_crops(50, random)
    training = photographs.training_crops(crops, random)
    plan, mean = replace(DEMO_PLAN, epochs=epochs, seed=seed), training.images.float().mean(0)
    with seeded(seed):
        model = untrained(len(photographs.classes))
        sets = in_memory(training), in_memory(held_out)
        history = fit(model, Run(plan, *sets, model.image_size, SCALE, mean, progress=progress))
    scale = torch.full((1, 1, 1), SCALE)
    network = checkpoint.Network(model.eval(), list(photographs.classes), mean, scale, model.image_size)
    seconds = time.perf_counter() - began
    checkpoint.save(out / "zfnet.pt", network, arguments(len(photographs.classes)))
    findings = analyse(network, history, photographs, held_out, report)
    findings = replace(findings, facts=_facts(findings, network, held_out, len(training.labels), seconds, seed))
    if not EFFICIENTNET_LITE0.missing():
        findings = replace(findings, real=look(out, report))
    return write_page(out, findings), findings


def analyse(
    network: checkpoint.Network,
    history: list[Epoch],
    photographs: Photographs,
    held_out: Crops,
    report: Callable[[str], None],
) -> Findings:
    """What the page shows, without the facts at its head."""
    report("projecting the strongest activations ...")
    tiles, tile_labels = photographs.tiles()
    layers = _strongest(network, tiles, tile_labels)
    report("covering parts of photographs ...")
    occluded = most_occluded(network, photographs)
    with torch.no_grad():
        answers = [network.model(network.normalise(batch)).softmax(1) for batch in held_out.images.split(64)]
    right = torch.cat(answers).argmax(1) == held_out.labels
    shown = zip(photographs.classes, photographs.pixels, photographs.cells, strict=True)
    return Findings(
        classes=network.classes,
        photographs=[
            Photograph(name, pixels, cells, right[held_out.labels == label].float().mean().item())
            for label, (name, pixels, cells) in enumerate(shown)
        ],
        history=history,
        filters=network.model.get_parameter("conv1.weight").detach(),
        layers=layers,
        occluded=occluded,
        facts={},
        sources=[network.classes[label] for label in tile_labels.tolist()],
    )


def _facts(
    findings: Findings, network: checkpoint.Network, held_out: Crops, trained_on: int, seconds: float, seed: int
) -> dict[str, str]:
    history, classes = findings.history, len(findings.classes)
    return {
        "held-out accuracy": f"{history[-1].accuracy:.1%} of {len(held_out.labels)} crops; chance is {1 / classes:.0%}",
        "network": f"{SIDE} x {SIDE} pixels; maps {', '.join(map(str, CHANNELS))}; "
        f"{sum(p.numel() for p in network.model.parameters()):,} parameters",
        "training": f"{len(history)} epochs of {trained_on} crops in {seconds:.0f} s, "
        f"{np.median([epoch.images_per_second for epoch in history]):.0f} images/s",
        "kernels": f"backend {backends.choose(None, 'cpu')}, {torch.get_num_threads()} thread(s) on {os.cpu_count()} "
        f"core(s), torch {torch.__version__}",
        "seed": str(seed),
    }


def _strongest(network: checkpoint.Network, images: Tensor, labels: Tensor) -> list[LayerTop]:
    """For each layer the strongest of its maps, and the projections of their TOP strongest activations."""
    model = network.model
    assert isinstance(model, ZFNet)
    deconv = Deconvnet(model)
    inputs = network.normalise(images)
    layers = []
    for layer, top in top_activations(deconv, inputs.split(64), LAYERS, k=TOP).items():
        field = model.receptive_field(layer)
        channels = diverse(top, labels)[:MAPS_SHOWN]
        read = lambda numbers: (inputs[numbers], images[numbers])  # noqa: E731
        method = method_for(deconv, layer)
        tops = list(cards(deconv, top, layer, read, channels, side=field.size, method=method))
        live = int((top.values[:, 0] > 0).sum())
        layers.append(LayerTop(layer, len(top.values), live, field.size, field.stride, tops, method))
    return layers


def most_occluded(network: checkpoint.Network, photographs: Photographs) -> list[Occluded]:
    """Of the photographs, each seen whole, those whose answer depends most on one place, with their maps."""
    occluded = []
    for label, name in enumerate(photographs.classes):
        view = photographs.centre_square(label)
        image = network.normalise(view)
        result = occlusion_map(network.model, image, label, patch=PATCH, stride=STRIDE, fill=0.0, layer="conv5")
        occluded.append(Occluded(name, view, result))

    def drop(occluded: Occluded) -> tuple[bool, float]:
        result = occluded.result
        return result.clear_label == result.target, result.clear_probability - float(result.probability.min())

    return sorted(occluded, key=drop, reverse=True)[:OCCLUSIONS]
