"""the small ZFNet of demo and gallery."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from ..data.folders import Memory
from ..data.photographs import Photographs
from ..models.zfnet import ZFNet
from ..training.fit import fit
from ..training.history import read_log
from ..training.recipe import Plan, resized_side

SIDE = 96
CHANNELS = (24, 48, 64, 64, 48)
FEATURES = (128, 128)
SCALE = 16.0  # pixels of 0..255 less their mean are divided by this
CONV1_STD = 3e-3  # far below He's, which the other layers start from: what its filters show is learned, not left over
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")

EPOCHS = (1, 2, 3, 5, 8, 12)  # kept, for the evolution
PLAN = Plan(epochs=EPOCHS[-1], batch_size=32, learning_rate=0.006, weight_decay=0.04, patience=4)
CROPS = 160  # a photograph


def train_network(out: Path, plan: Plan, *, conv1_std: float | None = CONV1_STD, quiet: bool = True) -> Path:
    """The file of a network that `recipe.fit` trains; a run that was stopped continues, one that is whole is kept."""
    if (out / "zfnet.pt").exists() and len(read_log(out / "log.jsonl")) == plan.epochs:
        return out / "zfnet.pt"
    photographs = Photographs(resized_side(SIDE))
    random = np.random.default_rng(0)
    held_out = photographs.held_out_crops(20, random)
    training = photographs.training_crops(CROPS, random)
    describe = {"num_classes": len(photographs.classes), "image_size": SIDE, "channels": CHANNELS, "fc": FEATURES}
    describe["weight_std"] = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ZFNet(**describe)
        if conv1_std is not None:
            torch.nn.init.normal_(model.conv1.weight, std=conv1_std)
    fit(
        model,
        Memory(training.images, training.labels),
        Memory(held_out.images, held_out.labels),
        plan,
        side=SIDE,
        scale=SCALE,
        out=out,
        describe=describe,
        classes=photographs.classes,
        keep=EPOCHS,
        resume=(out / "state.pt").exists(),
        quiet=quiet,
    )
    return out / "zfnet.pt"
