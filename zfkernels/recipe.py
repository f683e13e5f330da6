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
import os
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from . import checkpoint
from .zfnet import clamp_filters_

CROPS = 10
STATE_FORMAT = "zfkernels.training.1"
PAPER_EPOCHS = (1, 2, 5, 10, 20, 30, 40, 64)  # those of Fig. 4


@dataclass(frozen=True)
class Plan:
    """The numbers of section 3."""

    epochs: int = 70
    batch_size: int = 128  # of all processes together
    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 0.0  # the paper names none
    filter_rms: float | None = 0.1  # None: no clamp, as on the left of Fig. 6
    patience: int = 3  # the rate falls after more than this many epochs without a lower validation error
    fall: float = 0.1  # to this fraction of what it was
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "fall"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not self.fall < 1:
            raise ValueError(f"fall must be below 1, got {self.fall}")
        if self.patience < 0:
            raise ValueError(f"patience must be at least 0, got {self.patience}")


def resized_side(side: int) -> int:
    """The side to which pictures are resized for crops of `side`: 256 for 224, in proportion for others."""
    return round(side * 256 / 224)


def crop_places(size: tuple[int, int], side: tuple[int, int]) -> list[tuple[int, int]]:
    """(top, left) of the corner crops (top left, top right, bottom left, bottom right) and of the centre crop."""
    down, right = size[0] - side[0], size[1] - side[1]
    if down < 0 or right < 0:
        raise ValueError(f"crops of {side} do not fit into pictures of {size}")
    return [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]


def crop(images: Tensor, which: int, side: tuple[int, int]) -> Tensor:
    """Sub-crop `which` (0..9) of images (..., H, W) -> (..., *side): place which % 5, mirrored from 5 on."""
    top, left = crop_places(tuple(images.shape[-2:]), side)[which % 5]
    part = images[..., top : top + side[0], left : left + side[1]]
    return part.flip(-1) if which >= 5 else part


def ten_crops(images: Tensor, side: tuple[int, int]) -> Tensor:
    """(N, C, H, W) -> (N, 10, C, *side)."""
    return torch.stack([crop(images, which, side) for which in range(CROPS)], 1)


class _Cropped(Dataset):
    """item (index, which) -> (uint8 crop, label, which)."""

    def __init__(self, pictures: Dataset, side: tuple[int, int]) -> None:
        self.pictures, self.side = pictures, side

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int, int]:
        image, label, _ = self.pictures[item[0]]
        return crop(image, item[1], self.side).contiguous(), label, item[1]


# Processes


def processes() -> tuple[int, int]:
    """(rank, count) of torch.distributed; (0, 1) without it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def launched(device: str | None = None):
    """Join the processes that torchrun started, if it did; gives this process's device.

    NCCL and a GPU each (LOCAL_RANK) where there are GPUs, otherwise gloo on the CPU. Without torchrun: `device`, or the
    GPU if there is one, or the CPU.
    """
    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield torch.device(wanted)
        return
    made = torch.device(wanted)
    if made.type == "cuda":
        made = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(made)
    dist.init_process_group("nccl" if made.type == "cuda" else "gloo")
    try:
        yield made
    finally:
        dist.destroy_process_group()


def _summed(values: Tensor, device: torch.device) -> Tensor:
    if processes()[1] == 1:
        return values
    values = values.to(device)
    dist.all_reduce(values)
    return values.cpu()


def _seed(plan: Plan, *parts: int) -> int:
    return int(np.random.SeedSequence([plan.seed, *parts]).generate_state(1, np.uint64)[0] >> 1)


class _Dropout:
    """Within the block, the model's nn.Dropout modules draw one mask for all pictures of a step, each process the same,
    and each takes its own pictures' rows: what is dropped of a picture does not depend on the number of processes."""

    def __init__(self, model: nn.Module, seed: int, device: torch.device) -> None:
        self.modules = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p < 1]
        self.generator = torch.Generator(device).manual_seed(seed)
        self.pictures, self.mine = 0, slice(None)

    def take(self, pictures: int, mine: slice) -> None:
        """A step of so many pictures begins, of which this process has those of the slice."""
        self.pictures, self.mine = pictures, mine

    def __enter__(self) -> _Dropout:
        for module in self.modules:
            module.forward = partial(self._forward, module)
        return self

    def __exit__(self, *error: object) -> None:
        for module in self.modules:
            del module.forward

    def _forward(self, module: nn.Dropout, x: Tensor) -> Tensor:
        if not module.training or module.p == 0:
            return x
        drawn = torch.rand((self.pictures, *x.shape[1:]), generator=self.generator, device=x.device)
        return x * ((drawn[self.mine] >= module.p).to(x.dtype) / (1 - module.p))


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
                    model, list(classes), crop(mean, 4, side).clone(), torch.full((1, 1, 1), float(scale))
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


def _bar(loader: Iterable, what: str, quiet: bool) -> Iterable:
    if quiet:
        return loader
    from tqdm import tqdm

    return tqdm(loader, desc=what, unit="batch", leave=False)


class _Progress:
    """A bar that counts images, and so shows images/s; nothing when quiet."""

    def __init__(self, total: int, what: str, quiet: bool) -> None:
        self.bar = None
        if not quiet:
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit=" images", leave=False)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, count: int) -> None:
        if self.bar is not None:
            self.bar.update(count)


# Files


def _read_state(out: Path | None, plan: Plan) -> dict[str, Any]:
    path = None if out is None else out / "state.pt"
    if path is None or not path.exists():
        raise FileNotFoundError(f"there is nothing to resume: no {path or 'out folder with a state.pt'}")
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise ValueError(f"{path} is no training state")
    before = Plan(**state["plan"])
    if replace(before, epochs=plan.epochs) != plan:
        other = [name for name, value in asdict(before).items() if name != "epochs" and value != getattr(plan, name)]
        raise ValueError(
            f"{path} was trained with {', '.join(f'{n} {getattr(before, n)}' for n in other)}, got "
            + ", ".join(f"{n} {getattr(plan, n)}" for n in other)
        )
    return state


def _replace(path: Path, write) -> None:
    """Write beside `path`, then move into its place, so that no reader and no crash meets half a file."""
    beside = path.with_name(path.name + ".part")
    write(beside)
    os.replace(beside, path)


def _write(path: Path, text: str) -> None:
    _replace(path, lambda beside: beside.write_text(text))


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def plot_history(history: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss, errors and learning rate against the epoch, as a PNG (needs matplotlib)."""
    from .report import ACCENT, SOFT, new_figure, plain_axes

    drawn = new_figure(10.5, 2.8)
    loss, error, rate = drawn.subplots(1, 3)
    epochs = [line["epoch"] for line in history]
    loss.plot(epochs, [line["loss"] for line in history], color=ACCENT, marker=".")
    loss.set(title="training loss", ylabel="cross-entropy (nats)", ylim=(0, None))
    for name, colour, label in (
        ("train_error", SOFT, "training crops, dropout on"),
        ("error", ACCENT, "validation"),
        ("error5", "#1f6fb3", "validation, top 5"),
    ):
        error.plot(epochs, [100 * line[name] for line in history], color=colour, marker=".", label=label)
    error.set(title="error", ylabel="pictures wrong (%)", ylim=(0, 102))
    error.legend(fontsize=7, frameon=False)
    rate.step(epochs, [line["learning_rate"] for line in history], color=ACCENT, where="mid")
    rate.set(title="learning rate", yscale="log")
    for axes in (loss, error, rate):
        plain_axes(axes)
        axes.set_xlabel("epoch", fontsize=8)
        axes.title.set_fontsize(10)
        axes.xaxis.get_major_locator().set_params(integer=True)
    drawn.savefig(path)
