"""`zfkernels demo`: train a small ZFNet on photographs, then show what it learned, on one page."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch

from .. import backends
from ..analyses.activations import diverse, top_activations
from ..analyses.occlusion import Occluded, occlusion_map
from ..data.photographs import Photographs
from ..deconvnet.deconvnet import Deconvnet
from ..models import checkpoint
from ..models.zfnet import ZFNet
from ..training.fit import Recipe, normalise, predict, train
from .network import CHANNELS, CONV1_STD, FEATURES, LAYERS, SCALE, SIDE
from .page import Findings, LayerTop, MapTop, Photograph, write_page

MAPS_SHOWN = 6  # a layer
TOP = 9
PATCH, STRIDE = 20, 4  # of the square that covers, in pixels
OCCLUSIONS = 3


def run(out: Path, *, seed: int, epochs: int, crops: int, quiet: bool) -> tuple[Path, Findings]:
    """Train, analyse, write; returns index.html's path and what is on it. zfnet.pt beside it holds the network."""
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    photographs = Photographs(SIDE)
    classes = list(photographs.classes)
    random = np.random.default_rng(seed)
    held_out = photographs.held_out_crops(50, random)
    training = photographs.training_crops(crops, random)
    mean = training.images.float().mean(0)
    arguments = {
        "num_classes": len(classes), "image_size": SIDE, "channels": CHANNELS, "fc": FEATURES, "weight_std": None,
    }  # fmt: skip
    recipe = Recipe(epochs=epochs)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ZFNet(**arguments)
        torch.nn.init.normal_(model.conv1.weight, std=CONV1_STD)
        history = train(
            model,
            (training.images, training.labels),
            (held_out.images, held_out.labels),
            recipe,
            mean=mean,
            scale=SCALE,
            generator=torch.Generator().manual_seed(seed),
            quiet=quiet,
        )
    trained = time.perf_counter()
    network = checkpoint.Network(model.eval(), classes, mean, torch.tensor(SCALE).view(1, 1, 1), model.image_size)
    checkpoint.save(out / "zfnet.pt", network, arguments)

    say = (lambda text: None) if quiet else print
    say("projecting the strongest activations ...")
    tiles, tile_labels = photographs.tiles()
    layers = _strongest(model, tiles, tile_labels, classes, mean)
    say("covering parts of photographs ...")
    occluded = most_occluded(model, photographs, mean)
    right = predict(model, held_out.images, mean=mean, scale=SCALE).argmax(1) == held_out.labels
    facts = {
        "held-out accuracy": f"{history[-1].accuracy:.1%} of {len(right)} crops; chance is {1 / len(classes):.0%}",
        "network": f"{SIDE} x {SIDE} pixels; maps {', '.join(map(str, CHANNELS))}; "
        f"{sum(p.numel() for p in model.parameters()):,} parameters",
        "training": f"{epochs} epochs of {crops * len(classes)} crops in {trained - began:.0f} s, "
        f"{np.median([epoch.images_per_second for epoch in history]):.0f} images/s",
        "kernels": f"backend {backends.choose(None, 'cpu')}, {torch.get_num_threads()} thread(s) on {os.cpu_count()} "
        f"core(s), torch {torch.__version__}",
        "seed": str(seed),
    }
    findings = Findings(
        classes=classes,
        photographs=[
            Photograph(name, pixels, cells, right[held_out.labels == label].float().mean().item())
            for label, (name, pixels, cells) in enumerate(
                zip(classes, photographs.pixels, photographs.cells, strict=True)
            )
        ],
        history=history,
        filters=model.conv1.weight.detach(),
        layers=layers,
        occluded=occluded,
        facts=facts,
        images_searched=len(tiles),
    )
    return write_page(out, findings), findings


def _strongest(
    model: ZFNet, images: torch.Tensor, labels: torch.Tensor, classes: list[str], mean: torch.Tensor
) -> list[LayerTop]:
    """For each layer the strongest of its maps, and the projections of their TOP strongest activations."""
    deconv = Deconvnet(model)
    inputs = normalise(images, mean, SCALE)
    layers = []
    for layer, top in top_activations(deconv, inputs.split(64), LAYERS, k=TOP).items():
        chosen = diverse(top, labels)[:MAPS_SHOWN]
        field = model.receptive_field(layer)
        tops = []
        for channel in chosen:
            index = top.images[channel]
            found = deconv.project(inputs[index], layer=layer, channel=channel, position=top.positions[channel])
            tops.append(
                MapTop(
                    channel=channel,
                    values=found.values,
                    images=images[index],
                    labels=[classes[label] for label in labels[index].tolist()],
                    pixels=found.pixels,
                    boxes=found.boxes,
                )
            )
        live = int((top.values[:, 0] > 0).sum())
        layers.append(LayerTop(layer, len(top.values), live, field.size, field.stride, tops))
    return layers


def most_occluded(model: ZFNet, photographs: Photographs, mean: torch.Tensor) -> list[Occluded]:
    """Of the photographs, each seen whole, those whose answer depends most on one place, with their maps."""
    found = []
    for label, name in enumerate(photographs.classes):
        view = photographs.centre_square(label)
        result = occlusion_map(
            model, normalise(view, mean, SCALE), label, patch=PATCH, stride=STRIDE, fill=0.0, layer="conv5"
        )
        found.append(Occluded(name, view, result))

    def drop(occluded: Occluded) -> tuple[bool, float]:
        result = occluded.result
        return result.clear_label == result.target, result.clear_probability - float(result.probability.min())

    return sorted(found, key=drop, reverse=True)[:OCCLUSIONS]
