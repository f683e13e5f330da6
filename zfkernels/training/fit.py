"""The paper's training recipe in full (Zeiler & Fergus, section 3), on a folder of class folders.

Pictures: the shortest side resized to 256, the centre 256 x 256, less the mean of each pixel over the training set; one
of 10 sub-crops of 224 x 224 (four corners and centre, each also mirrored), drawn anew each epoch. Stochastic gradient
descent, 128 pictures a step, momentum 0.9, learning rate 1e-2, which falls to a tenth when the validation error has
stopped falling (the paper did this by hand). After each step every convolution filter whose root mean square exceeds
0.1 is scaled back to 0.1. In evaluation the class probabilities of the 10 sub-crops are averaged. Dropout and the
starting weights are the network's.

Everything random follows from (seed, epoch, process), so a run that was stopped continues from its last whole epoch to
the same bits. Order and crops depend on (seed, epoch) alone, so several processes take the same steps as one.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ..models import checkpoint
from ..models.zfnet import clamp_filters_
from ..progress import _bar, _Progress
from .history import STATE_FORMAT, _read_state, _replace, _write, plot_history
from .processes import _Dropout, _seed, _summed, processes
from .recipe import CROPS, Plan, _Cropped, crop, crop_places, ten_crops

# The recipe


@torch.no_grad()
def mean_picture(pictures: Dataset, *, workers: int = 0, quiet: bool = True, device: str | torch.device = "cpu"):
    """The mean of each pixel over the set: float32 (3, H, W) in 0..255, the same on any number of processes."""
    rank, world = processes()
    total = torch.zeros(3, *pictures.size, dtype=torch.int64)
    loader = DataLoader(
        pictures,
        generator=torch.Generator(),
        batch_sampler=_batches(range(rank, len(pictures), world), 64),
        num_workers=workers,
    )
    for images, _, _ in _bar(loader, "mean picture", quiet):
        total += images.sum(0, dtype=torch.int64)
    return (_summed(total, torch.device(device)).double() / len(pictures)).float()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    pictures: Dataset,
    mean: Tensor,
    side: tuple[int, int],
    *,
    scale: float = 1.0,
    batch_size: int = 16,
    workers: int = 0,
    precision: torch.dtype = torch.float32,
    quiet: bool = True,
) -> dict[str, float]:
    """{"error", "error5"}: the fractions whose class is not the most probable, or not among the 5 most probable.

    A picture's probabilities are the mean of the softmax over its 10 sub-crops. Of two equal probabilities the class
    with the lower number goes first. The pictures are divided among the processes, the result is the same on each.
    """
    rank, world = processes()
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    mean = mean.to(device)
    wrong = torch.zeros(3, dtype=torch.int64)
    loader = DataLoader(
        pictures,
        generator=torch.Generator(),
        batch_sampler=_batches(range(rank, len(pictures), world), batch_size),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    for images, labels, _ in _bar(loader, "evaluation", quiet):
        crops = ten_crops((images.to(device).float() - mean) / scale, side)
        with _autocast(device, precision):
            logits = model(crops.flatten(0, 1))
        probabilities = logits.float().softmax(1).unflatten(0, (-1, CROPS)).mean(1).cpu()
        order = probabilities.argsort(dim=1, descending=True, stable=True)
        hits = order == labels[:, None]
        wrong += torch.tensor([len(labels), int((~hits[:, 0]).sum()), int((~hits[:, :5].any(1)).sum())])
    model.train(was_training)
    count, first, fifth = _summed(wrong, device).tolist()
    return {"error": first / count, "error5": fifth / count}


def fit(
    model: nn.Module,
    training: Dataset,
    validation: Dataset,
    plan: Plan,
    *,
    side: int | tuple[int, int],
    scale: float = 1.0,
    mean: Tensor | None = None,
    precision: torch.dtype = torch.float32,
    workers: int = 0,
    out: Path | None = None,
    describe: dict[str, Any] | None = None,
    classes: Sequence[str] = (),
    keep: Iterable[int] = (),
    resume: bool = False,
    plot: bool = False,
    quiet: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Train `model` in place by the paper's recipe; one dict of measurements an epoch (the lines of log.jsonl).

    Under torchrun each process calls it with the same arguments; gradients are averaged by DistributedDataParallel, a
    step takes `plan.batch_size` pictures of all processes together, and process 0 writes. The crops and what
    nn.Dropout modules drop are the same on any number of processes, and so, but for rounding, is the loss.

    Args:
        training, validation: `folders.PictureSet` or `folders.Memory`: item i is (uint8 (3, H, W), label, i), and
            `size` is (H, W).
        side: the crops' side, or (height, width): the model's input.
        scale: pixels less their mean are divided by this (1 in the paper).
        mean: float (3, H, W) of the pictures; measured if None.
        precision: torch.float32, or torch.bfloat16 for mixed precision (autocast; weights stay in float32).
        workers: processes that read pictures, for each training process.
        out: folder for log.jsonl, state.pt (all that continuing needs), zfnet.pt (the network, if `describe` is
            given) and epoch_NNN.pt for the epochs in `keep`.
        describe: the keyword arguments that build the ZFNet, for zfnet.pt.
        resume: continue from out/state.pt.
        plot: write out/training.png after each epoch.
        report: called with each epoch's measurements, by process 0.

    Returns:
        for each epoch: epoch (from 1), loss (mean cross-entropy of the training crops, nats, dropout on), train_error
        (of those crops, 0..1), error and error5 (of the validation set, 10 crops), learning_rate, images_per_second
        (of all processes, training alone), seconds (of the epoch), processes.

    Raises:
        ValueError: no pictures, crops larger than the pictures, or a state of another plan; named.
        FileNotFoundError: nothing to resume.
        FloatingPointError: the loss is not finite.
    """
    side = (side, side) if isinstance(side, int) else tuple(side)
    for name, pictures in (("training", training), ("validation", validation)):
        if len(pictures) == 0:
            raise ValueError(f"{name} must hold at least one picture, got none")
        crop_places(pictures.size, side)
    rank, world = processes()
    device = next(model.parameters()).device
    optimiser = torch.optim.SGD(
        model.parameters(), lr=plan.learning_rate, momentum=plan.momentum, weight_decay=plan.weight_decay
    )
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=plan.fall, patience=plan.patience, threshold=0.0, eps=0.0
    )
    history: list[dict[str, Any]] = []
    if resume:
        state = _read_state(out, plan)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        history, mean = state["history"], state["mean"]
    if mean is None:
        mean = mean_picture(training, workers=workers, quiet=quiet, device=device)
    if out is not None and rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        _write(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in history))
    quiet = quiet or rank > 0
    mean_crops = torch.stack([crop(mean, which, side) for which in range(CROPS)]).to(device)
    parallel = model
    if world > 1:
        parallel = nn.parallel.DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
    for epoch in range(len(history) + 1, plan.epochs + 1):
        began = time.perf_counter()
        rate = optimiser.param_groups[0]["lr"]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(_seed(plan, epoch, 1 + rank))
            loss, error = _epoch(
                parallel, model, training, plan, epoch, optimiser, mean_crops, side, scale, precision, workers, quiet
            )
        trained = time.perf_counter() - began
        found = evaluate(model, validation, mean, side, scale=scale, workers=workers, precision=precision, quiet=quiet)
        schedule.step(found["error"])
        line = {
            "epoch": epoch,
            "loss": loss,
            "train_error": error,
            **found,
            "learning_rate": rate,
            "images_per_second": len(training) / trained,
            "seconds": time.perf_counter() - began,
            "processes": world,
        }
        history.append(line)
        if report is not None and rank == 0:
            report(line)
        if out is not None and rank == 0:
            with (out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            state = {
                "format": STATE_FORMAT,
                "plan": asdict(plan),
                "history": history,
                "mean": mean,
                "model": model.state_dict(),
                "optimiser": optimiser.state_dict(),
                "schedule": schedule.state_dict(),
            }
            _replace(out / "state.pt", lambda path, state=state: torch.save(state, path))
            if describe is not None:
                network = checkpoint.Network(
                    model, list(classes), crop(mean, 4, side).clone(), torch.full((1, 1, 1), float(scale)), side
                )
                for name in ("zfnet.pt", *([f"epoch_{epoch:03d}.pt"] if epoch in keep else [])):
                    _replace(out / name, lambda path, network=network: checkpoint.save(path, network, describe))
            if plot:
                plot_history(history, out / "training.png")
    return history


def _epoch(
    parallel: nn.Module,
    model: nn.Module,
    training: Dataset,
    plan: Plan,
    epoch: int,
    optimiser: torch.optim.Optimizer,
    mean_crops: Tensor,
    side: tuple[int, int],
    scale: float,
    precision: torch.dtype,
    workers: int,
    quiet: bool,
) -> tuple[float, float]:
    """One pass over the training set: (mean loss, fraction wrong), of all processes together."""
    rank, world = processes()
    device = mean_crops.device
    generator = torch.Generator().manual_seed(_seed(plan, epoch, 0))
    order = torch.randperm(len(training), generator=generator).tolist()
    which = torch.randint(CROPS, (len(training),), generator=generator).tolist()
    steps = [[(i, which[i]) for i in pick] for pick in _batches(order, plan.batch_size)]
    # A process that a short last step leaves without pictures still takes part in it, with one that counts 0.
    mine = [step[rank::world] or step[:1] for step in steps]
    loader = DataLoader(
        _Cropped(training, side),
        generator=torch.Generator(),
        batch_sampler=mine,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    model.train()
    dropout = _Dropout(model, _seed(plan, epoch, 1, 0), device)
    with dropout, _Progress(len(training), f"epoch {epoch}/{plan.epochs}", quiet) as bar:
        for step, (images, labels, crops) in zip(steps, loader, strict=True):
            labels, crops = labels.to(device), crops.to(device)
            counts = float(len(step) > rank)
            dropout.take(len(step), slice(rank, None, world) if counts else slice(1))
            inputs = (images.to(device, non_blocking=True).float() - mean_crops[crops]) / scale
            with _autocast(device, precision):
                logits = parallel(inputs)
            loss = F.cross_entropy(logits.float(), labels, reduction="sum") * counts
            optimiser.zero_grad()
            # DistributedDataParallel averages over the processes: times `world` it is the mean over the step's pictures
            (loss * (world / len(step))).backward()
            optimiser.step()
            if plan.filter_rms is not None:
                clamp_filters_(model, plan.filter_rms)
            totals += torch.stack([loss.detach().double(), counts * (logits.argmax(1) != labels).sum().double()])
            bar.update(len(step))
    loss, wrong = (_summed(totals.cpu(), device) / len(training)).tolist()
    if not np.isfinite(loss):
        raise FloatingPointError(f"the loss of epoch {epoch} is {loss}; a lower learning_rate may help")
    return loss, wrong


def _batches(numbers: Sequence[int], size: int) -> list[list[int]]:
    return [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]


def _autocast(device: torch.device, precision: torch.dtype):
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)


@dataclass(frozen=True)
class Recipe:
    epochs: int
    batch_size: int = 32
    learning_rate: float = 0.006
    momentum: float = 0.9
    weight_decay: float = 0.04  # many times Krizhevsky et al.'s 5e-4: so few steps would leave filters of random noise
    filter_rms: float = 0.1
    steps: tuple[float, ...] = (0.5, 0.8)  # the rate falls at these fractions of the epochs
    fall: float = 0.2  # to this fraction of what it was

    def rate(self, epoch: int) -> float:
        return self.learning_rate * self.fall ** sum(epoch >= step * self.epochs for step in self.steps)


@dataclass(frozen=True)
class Epoch:
    loss: float  # mean cross-entropy of the training crops, nats, with dropout on
    accuracy: float  # on the held-out crops, 0..1
    learning_rate: float
    images_per_second: float  # training alone


def normalise(images: torch.Tensor, mean: torch.Tensor, scale: float) -> torch.Tensor:
    """(images - mean) / scale in float32: uint8 (N, 3, H, W) images as the network takes them."""
    return (images.float() - mean) / scale


def train(
    model: nn.Module,
    training: tuple[torch.Tensor, torch.Tensor],
    held_out: tuple[torch.Tensor, torch.Tensor],
    recipe: Recipe,
    *,
    mean: torch.Tensor,
    scale: float,
    generator: torch.Generator,
    quiet: bool = False,
) -> list[Epoch]:
    """Train `model` in place and return what each epoch measured.

    Args:
        training: (images, labels): uint8 (N, 3, H, W) and int64 (N,); an epoch takes them in a new random order.
        held_out: likewise; only evaluated.
        mean, scale: see `normalise`.
        generator: of the order and the mirroring. Dropout uses torch's global generator.
        quiet: no progress bar.
    """
    from tqdm import tqdm

    optimiser = torch.optim.SGD(
        model.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    history: list[Epoch] = []
    images, labels = training
    with tqdm(desc="training", total=len(labels) * recipe.epochs, unit=" images", disable=quiet) as bar:
        for epoch in range(recipe.epochs):
            optimiser.param_groups[0]["lr"] = recipe.rate(epoch)
            model.train()
            start, total_loss = time.perf_counter(), 0.0
            for pick in torch.randperm(len(labels), generator=generator).split(recipe.batch_size):
                batch = normalise(images[pick], mean, scale)
                mirrored = torch.rand(len(batch), generator=generator) < 0.5
                batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
                loss = F.cross_entropy(model(batch), labels[pick])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                clamp_filters_(model, recipe.filter_rms)
                total_loss += loss.item() * len(batch)
                bar.set_postfix_str(f"epoch {epoch + 1}/{recipe.epochs}, loss {loss.item():.3f}", refresh=False)
                bar.update(len(batch))
            seconds = time.perf_counter() - start
            correct = predict(model, held_out[0], mean=mean, scale=scale).argmax(1) == held_out[1]
            history.append(
                Epoch(
                    loss=total_loss / len(labels),
                    accuracy=correct.float().mean().item(),
                    learning_rate=recipe.rate(epoch),
                    images_per_second=len(labels) / seconds,
                )
            )
    return history


@torch.no_grad()
def predict(model: nn.Module, images: torch.Tensor, *, mean: torch.Tensor, scale: float) -> torch.Tensor:
    """Class probabilities (N, classes) of uint8 images, in evaluation mode."""
    model.eval()
    return torch.cat([model(normalise(batch, mean, scale)).softmax(1) for batch in images.split(64)])
