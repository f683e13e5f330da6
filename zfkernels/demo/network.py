"""The small ZFNet of the demo and the gallery: its numbers, and its training in a folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data.folders import Memory
from ..data.photographs import Crops, Photographs
from ..models.zfnet import ZFNet
from ..progress import Shown
from ..training import history
from ..training.fit import fit
from ..training.processes import seeded
from ..training.recipe import Plan, resized_side
from ..training.run import Epoch, Run

SIDE = 96
CHANNELS = (24, 48, 64, 64, 48)
FEATURES = (128, 128)
SCALE = 16.0  # pixels of 0..255 less their mean are divided by this
CONV1_STD = 3e-3  # far below He's, which the other layers start from: what its filters show is learned, not left over
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5")

EPOCHS = (1, 2, 3, 5, 8, 12)  # kept, for the evolution
# The weight decay is many times Krizhevsky et al.'s 5e-4: so few steps would leave filters of random noise
PLAN = Plan(epochs=EPOCHS[-1], batch_size=32, learning_rate=0.006, weight_decay=0.04, patience=4)
CROPS = 160  # a photograph


def arguments(classes: int) -> dict[str, Any]:
    """The keyword arguments that build the network."""
    return {"num_classes": classes, "image_size": SIDE, "channels": CHANNELS, "fc": FEATURES, "weight_std": None}


def untrained(classes: int, conv1_std: float | None = CONV1_STD) -> ZFNet:
    """The network with weights drawn from torch's random numbers; `conv1_std` None leaves conv1's to He's."""
    model = ZFNet(**arguments(classes))
    if conv1_std is not None:
        torch.nn.init.normal_(model.get_parameter("conv1.weight"), std=conv1_std)
    return model


def in_memory(crops: Crops) -> Memory:
    """The crops to train or validate on."""
    return Memory(crops.images, crops.labels)


def train_network(out: Path, plan: Plan, *, conv1_std: float | None = CONV1_STD, progress: Shown = False) -> Path:
    """The file of the network trained on photographs; a run that was stopped continues, one that is whole is kept."""
    if (out / "zfnet.pt").exists() and len(history.read_log(out / "log.jsonl")) == plan.epochs:
        return out / "zfnet.pt"
    photographs = Photographs(resized_side(SIDE))
    random = np.random.default_rng(0)
    held_out = in_memory(photographs.held_out_crops(20, random))
    training = in_memory(photographs.training_crops(CROPS, random))
    classes = photographs.classes
    with seeded(0):
        model = untrained(len(classes), conv1_std)
    run = Run(plan, training, held_out, model.image_size, SCALE, progress=progress)
    fit_in(out, model, run, arguments(len(classes)), classes, EPOCHS)
    return out / "zfnet.pt"


def fit_in(
    out: Path, model: ZFNet, run: Run, arguments: dict[str, Any], classes: Sequence[str], keep: Iterable[int] = ()
) -> list[Epoch]:
    """Train the ZFNet that `arguments` build in a folder of the run's own, and continue there if it was stopped."""
    state = history.begin(out, run.plan, overwrite=False, model=model, run=run, classes=classes)
    return fit(model, run, history.files(out, arguments, classes, keep), state)
