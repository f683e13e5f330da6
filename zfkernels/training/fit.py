"""The trainer: the paper's recipe (Zeiler & Fergus, section 3), and what differs from it as a `Plan` says.

Pictures: the shortest side resized to 256, the centre 256 x 256, less the mean of each pixel over the training set; one
of 10 sub-crops of 224 x 224 (four corners and centre, each also mirrored), drawn anew each epoch. Stochastic gradient
descent, 128 pictures a step, momentum 0.9, learning rate 1e-2, which falls to a tenth when the validation error has
stopped falling (the paper did this by hand). After each step every convolution filter whose root mean square exceeds
0.1 is scaled back to 0.1. In evaluation the class probabilities of the 10 sub-crops are averaged. Dropout and the
starting weights are the network's.

Everything random follows from (seed, epoch, process), so a run that was stopped continues from its last whole epoch to
the same bits. Order and crops depend on (seed, epoch) alone, so several processes take the same steps as one.

A plan may differ in the crops, in when the rate falls, and in drawing order, crops and dropout from one stream for the
whole run (dropout's is torch's global one), which then takes one process and cannot be continued.
"""

import math
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from ..data.folders import Item, Labelled
from ..data.loading import plainly
from ..models.states import misfit
from ..models.zfnet import clamp_filters_
from ..progress import Shown, bar
from .crops import Cropped, draw_steps, stack_crops
from .processes import drawn_anew, processes, summed
from .recipe import CROPS, EVALUATED
from .run import Epoch, Run, Trained


def fit(
    model: nn.Module, run: Run, callbacks: Sequence[Callable[[Trained], None]] = (), state: dict[str, Any] | None = None
) -> list[Epoch]:
    """Train `model` in place; the measurements of each epoch.

    Under torchrun each process calls it with the same arguments; gradients are averaged by DistributedDataParallel, a
    step takes `batch_size` pictures of all processes together, and process 0 calls the callbacks. The crops and what
    nn.Dropout modules drop are the same on any number of processes, and so, except for rounding, is the loss.

    Args:
        callbacks: called in turn after each epoch; those of `history.files` write the run's folder. Where a run is
            continued they are called once before, so that what a stopped process left undone is done.
        state: what `history.begin` gave, to continue from.

    Raises:
        ValueError: a plan that draws "run" in several processes, or continued; a state of another model.
        FloatingPointError: the loss is not finite.
    """
    plan, (rank, world) = run.plan, processes()
    if plan.draws == "run" and (world > 1 or state is not None):
        raise ValueError('a plan that draws "run" trains in one process and cannot be continued')
    trained = _started(model, run, state)
    history, device = trained.history, next(model.parameters()).device
    parallel = model
    if world > 1:
        parallel = nn.parallel.DistributedDataParallel(model, [device.index] if device.type == "cuda" else None)
    for callback in callbacks if rank == 0 and state is not None else ():
        callback(trained)
    stream = torch.Generator().manual_seed(plan.seed), lambda pictures, mine: None  # one process has all
    for epoch in range(len(history) + 1, plan.epochs + 1):
        began = time.perf_counter()
        rate = trained.optimiser.param_groups[0]["lr"] = plan.rate([line.error for line in history])
        draws = nullcontext(stream) if plan.draws == "run" else drawn_anew(plan, epoch, model, device)
        with draws as (generator, share):
            loss, train_error = _pass(trained, parallel, generator, share)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of epoch {epoch} is {loss}; a lower learning rate (--rate) may help")
        pace = len(run.training) / (time.perf_counter() - began)
        error, error5 = evaluate(model, run, run.validation, trained.mean)
        seconds = time.perf_counter() - began
        history.append(Epoch(epoch, loss, train_error, error, error5, rate, pace, seconds, world))
        for callback in callbacks if rank == 0 else ():
            callback(trained)
    return history


def _started(model: nn.Module, run: Run, state: dict[str, Any] | None) -> Trained:
    """The run before its first epoch, or after the last of `state`."""
    plan = run.plan
    optimiser = torch.optim.SGD(
        model.parameters(), lr=plan.learning_rate, momentum=plan.momentum, weight_decay=plan.weight_decay
    )
    if state is not None:
        if problem := misfit(state["model"], model):
            raise ValueError(f"the state to continue from is of another network: {problem}")
        try:
            model.load_state_dict(state["model"])
            optimiser.load_state_dict(state["optimiser"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"the state to continue from is damaged ({error!r})") from error
        history = [Epoch(**line) for line in state["history"]]
        return Trained(run, model, optimiser, state["mean"], history, state.get("id") or new_id())
    mean = run.mean
    if mean is None:
        mean = mean_picture(run.training, run.workers, run.progress, next(model.parameters()).device)
    return Trained(run, model, optimiser, mean, [], new_id())


def new_id() -> str:
    return uuid.uuid4().hex[:12]


def _pass(
    trained: Trained, parallel: nn.Module, generator: torch.Generator, share: Callable[[int, slice], None]
) -> tuple[float, float]:
    """One pass over the training set: (mean loss, fraction wrong), of all processes together."""
    run, plan, model = trained.run, trained.run.plan, trained.model
    rank, world = processes()
    device = next(model.parameters()).device
    mean_crops = stack_crops(trained.mean, range(CROPS), run.side, dim=0).to(device)
    steps = draw_steps(plan, len(run.training), generator)
    # A process that a short last step leaves without pictures still takes part in it, with one that counts 0.
    mine = [step[rank::world] or step[:1] for step in steps]
    loader = _loader(Cropped(run.training, run.side), mine, run.workers, device)
    what, sizes = f"epoch {len(trained.history) + 1}/{plan.epochs}", [len(step) for step in steps]
    batches = bar(loader, what, " images", rank == 0 and run.progress, leave=False, sizes=sizes)
    totals = torch.zeros(2, dtype=torch.float64, device=device)
    model.train()
    for size, (images, labels, crops) in zip(sizes, plainly(batches), strict=True):
        labels, crops = labels.to(device), crops.to(device)
        counts = float(size > rank)
        share(size, slice(rank, None, world) if counts else slice(1))
        inputs = (images.to(device, non_blocking=True).float() - mean_crops[crops]) / run.scale
        with _autocast(device, run.precision):
            logits = parallel(inputs)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum") * counts
        trained.optimiser.zero_grad()
        # DistributedDataParallel averages over the processes: times `world` it is the mean over the step's pictures
        (loss * (world / size)).backward()
        trained.optimiser.step()
        if plan.filter_rms is not None:
            clamp_filters_(model, plan.filter_rms)
        loss = loss.detach()
        # A run of one stream has the loss of its steps' float32 means
        summed_loss = (loss / size).double() * size if plan.draws == "run" else loss.double()
        totals += torch.stack([summed_loss, counts * (logits.argmax(1) != labels).sum().double()])
    loss, wrong = (summed(totals.cpu(), device) / len(run.training)).tolist()
    return loss, wrong


@torch.no_grad()
def evaluate(model: nn.Module, run: Run, pictures: Labelled, mean: Tensor) -> tuple[float, float]:
    """The fractions of the pictures whose class is not the most probable, and not among the 5 most probable.

    A picture's probabilities are the mean of the softmax over its 10 sub-crops, or those of its centre crop where
    training takes that (`Plan.crops`). Of two equal probabilities the class with the lower number goes first. The
    pictures are divided among the processes, the result is the same on each.
    """
    rank, world = processes()
    device = next(model.parameters()).device
    which, batch_size = EVALUATED[run.plan.crops]
    was_training = model.training
    model.eval()
    mean = mean.to(device)
    counts = torch.zeros(3, dtype=torch.int64)
    loader = _loader(pictures, _batches(range(rank, len(pictures), world), batch_size), run.workers, device)
    for images, labels, _ in plainly(bar(loader, "evaluation", "batch", rank == 0 and run.progress, leave=False)):
        crops = stack_crops((images.to(device).float() - mean) / run.scale, which, run.side)
        with _autocast(device, run.precision):
            logits = model(crops.flatten(0, 1))
        probabilities = logits.float().softmax(1).unflatten(0, (-1, len(which))).mean(1).cpu()
        order = probabilities.argsort(dim=1, descending=True, stable=True)
        hits = order == labels[:, None]
        counts += torch.tensor([len(labels), int((~hits[:, 0]).sum()), int((~hits[:, :5].any(1)).sum())])
    model.train(was_training)
    count, first, fifth = summed(counts, device).tolist()
    return first / count, fifth / count


@torch.no_grad()
def mean_picture(
    pictures: Labelled, workers: int = 0, progress: Shown = False, device: str | torch.device = "cpu"
) -> Tensor:
    """The mean of each pixel over the set: float32 (C, H, W) in 0..255, the same on any number of processes."""
    rank, world = processes()
    total = torch.zeros(pictures.channels, *pictures.size, dtype=torch.int64)
    loader = _loader(pictures, _batches(range(rank, len(pictures), world), 64), workers, torch.device("cpu"))
    for images, _, _ in plainly(bar(loader, "mean picture", "batch", rank == 0 and progress, leave=False)):
        total += images.sum(0, dtype=torch.int64)
    mean: Tensor = (summed(total, torch.device(device)).double() / len(pictures)).float()
    return mean


def _loader(
    pictures: Dataset[Item], batches: Iterable[list[Any]], workers: int, device: torch.device
) -> DataLoader[Item]:
    """`batches` of the pictures, for `device`; the loader's own generator leaves torch's random numbers alone."""
    return DataLoader(
        pictures,
        generator=torch.Generator(),
        batch_sampler=batches,
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )


def _batches(numbers: Sequence[int], size: int) -> list[list[int]]:
    return [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]


def _autocast(device: torch.device, precision: torch.dtype) -> AbstractContextManager[object]:
    return nullcontext() if precision == torch.float32 else torch.autocast(device.type, precision)
