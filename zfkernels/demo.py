"""`zfkernels demo`: train a small ZFNet on photographs, then show what it learned, on one page."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import numpy as np
import torch

from . import backends, checkpoint
from .activations import diverse, top_activations
from .deconvnet import Deconvnet
from .occlusion import occlusion_map
from .photographs import Photographs
from .report import Findings, LayerTop, MapTop, Occluded, Photograph, write_page
from .training import Recipe, normalise, predict, train
from .zfnet import ZFNet

SIDE = 96
CHANNELS = (24, 48, 64, 64, 48)
FEATURES = (128, 128)
SCALE = 16.0  # pixels of 0..255 less their mean are divided by this
CONV1_STD = 3e-3  # far below He's, which the other layers start from: what its filters show is learned, not left over
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")
MAPS_SHOWN = 6  # a layer
TOP = 9
PATCH, STRIDE = 20, 4  # of the square that covers, in pixels
OCCLUSIONS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels demo`."""
    parser.add_argument("--out", type=Path, default=Path("zfkernels-demo"), help="folder of the page (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops, mirroring and dropout (%(default)s)")
    parser.add_argument("--epochs", type=int, default=14, help="passes over the crops (%(default)s)")
    parser.add_argument("--crops", type=int, default=240, help="training crops a photograph (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars; print the results only")


def main(args: argparse.Namespace) -> int:
    """Runs the demonstration and prints what it found; 0."""
    for name in ("epochs", "crops"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.out.exists() and not args.out.is_dir():
        raise ValueError(f"--out must be a folder, and {args.out} is a file")
    began = time.perf_counter()
    page, findings = run(args.out, seed=args.seed, epochs=args.epochs, crops=args.crops, quiet=args.quiet)
    for name, value in findings.facts.items():
        print(f"{name:<28} {value}")
    print(f"{'whole run':<28} {time.perf_counter() - began:.0f} s")
    print(f"\nThe page: {page.resolve()}")
    print(f"Next:     zfkernels project PICTURE --weights {args.out / 'zfnet.pt'}")
    return 0


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
    network = checkpoint.Network(model.eval(), classes, mean, torch.tensor(SCALE).view(1, 1, 1))
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
