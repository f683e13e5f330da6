"""What a run leaves behind: its epochs' measurements, and the callbacks of `fit.fit` that write and draw them.

state.pt is the one commit point of an epoch. It is written first and whole; the other files follow from it, so that a
run that is continued writes anew what a stopped process had not come to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..files import half_of, hold, load_tensors, save_tensors, write_text, write_whole
from ..models import checkpoint
from ..models.states import misfit, unusable
from .crops import crop
from .processes import processes
from .recipe import CENTRE, Plan
from .run import Epoch, Run, Trained

if TYPE_CHECKING:
    from ..drawing.style import Figure

Callback = Callable[[Trained], None]
STATE_FORMAT = "zfkernels.training.1"
NAMES = ("state.pt", "zfnet.pt", "best.pt", "log.jsonl", "training.png", "epoch_*.pt")  # what a run's folder holds


def begin(
    out: Path,
    plan: Plan,
    resume: bool | None = None,
    *,
    overwrite: bool = True,
    model: nn.Module | None = None,
    run: Run | None = None,
    classes: Sequence[str] | None = None,
) -> dict[str, Any] | None:
    """Make the folder of a run; gives the state to continue from, or None, and cuts log.jsonl to the state's epochs.

    Args:
        resume: whether to continue from out/state.pt; None: if there is one.
        overwrite: whether a new run may replace one that is there, all of whose files are then removed.
        model, run, classes: what is to be trained; if given, a state of another network, side, scale or other classes
            is refused.

    Raises:
        FileNotFoundError: nothing to resume.
        FileExistsError: a run that is there, neither to be resumed nor overwritten.
        ValueError: a state of another plan, network or other classes; what differs is named. More epochs are no
            difference. Another process that writes to the folder now.
    """
    state = None
    if resume or (resume is None and (out / "state.pt").exists()):
        state = _read_state(out / "state.pt", plan)
        for problem in _other(state, model, run, classes):
            raise ValueError(f"{out / 'state.pt'} cannot be resumed: {problem}")
    elif not overwrite:
        refuse_existing(out)
    if processes()[0] == 0:
        out.mkdir(parents=True, exist_ok=True)
        hold(out)
        for name in NAMES:
            for half in out.glob(half_of(out / name).name):
                half.unlink()
            for file in out.glob(name) if state is None else ():
                file.unlink()
        _write_log(out / "log.jsonl", [] if state is None else state["history"])
    return state


def refuse_existing(out: Path) -> None:
    """FileExistsError if the folder holds a run of at least one epoch."""
    names = [name for name in NAMES if name != "training.png"]
    found = [file.name for name in names for file in sorted(out.glob(name)) if file.stat().st_size > 0]
    if found:
        raise FileExistsError(
            f"{out} holds a run already ({', '.join(found[:3])}{' ...' if len(found) > 3 else ''}): --resume continues "
            "it, --overwrite removes it and trains anew, another --out leaves it alone"
        )


def files(
    out: Path,
    arguments: dict[str, Any] | None = None,
    classes: Sequence[str] = (),
    keep: Iterable[int] = (),
    plot: bool = False,
) -> list[Callback]:
    """The callbacks that write a run's folder: state.pt first, a line in log.jsonl when all else is whole.

    Args:
        out: the folder, which `begin` has made: log.jsonl and state.pt (all that continuing needs).
        arguments: the keyword arguments that build the ZFNet; if given, zfnet.pt holds the network, and best.pt that
            of the lowest validation error.
        classes: their names, for zfnet.pt.
        keep: the epochs whose network is kept as epoch_NNN.pt.
        plot: also draw training.png.
    """
    kept = frozenset(keep)
    callbacks: list[Callback] = [lambda trained: _write_state(trained, out / "state.pt", classes)]
    if arguments is not None:
        callbacks.append(lambda trained: _write_networks(trained, out, arguments, classes, kept))
    callbacks.append(lambda trained: _write_log(out / "log.jsonl", map(asdict, trained.history)))
    if plot:
        callbacks.append(lambda trained: plot_history(trained.history, out / "training.png"))
    return callbacks


def pictures_digest(run: Run) -> str | None:
    """Of the training pictures' names and classes; None where they come from no files."""
    paths = getattr(run.training, "paths", None)
    if paths is None:
        return None
    names = "".join(
        f"{path.parent.name}/{path.name} {label}\n" for path, label in zip(paths, run.training.labels, strict=True)
    )
    return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()


def _write_state(trained: Trained, path: Path, classes: Sequence[str]) -> None:
    """All that continuing needs."""
    run = trained.run
    state = {
        "format": STATE_FORMAT,
        "id": trained.id,
        "plan": asdict(run.plan),
        "side": tuple(run.side),
        "scale": float(run.scale),
        "classes": list(classes),
        "pictures": pictures_digest(run),
        "history": [asdict(line) for line in trained.history],
        "mean": trained.mean,
        "model": trained.model.state_dict(),
        "optimiser": trained.optimiser.state_dict(),
    }
    save_tensors(path, state)


def _read_state(path: Path, plan: Plan) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"there is nothing to resume: no {path}")
    state = load_tensors(path)
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise ValueError(f"{path} is no training state; --overwrite trains anew")
    try:
        before = Plan(**state["plan"])
        epochs = [Epoch(**line).epoch for line in state["history"]]
        if epochs != list(range(1, len(epochs) + 1)) or not epochs:
            raise ValueError(f"epochs {epochs}")
        if not isinstance(state["mean"], Tensor) or not isinstance(state["model"], dict):
            raise TypeError("mean or model")
        state["optimiser"]["state"], state["optimiser"]["param_groups"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is a damaged training state ({error!r}); --overwrite trains anew") from error
    if replace(before, epochs=plan.epochs) != plan:
        other = [name for name, value in asdict(before).items() if name != "epochs" and value != getattr(plan, name)]
        raise ValueError(
            f"{path} was trained with {', '.join(f'{n} {getattr(before, n)}' for n in other)}, got "
            + ", ".join(f"{n} {getattr(plan, n)}" for n in other)
        )
    return state


def _other(
    state: dict[str, Any], model: nn.Module | None, run: Run | None, classes: Sequence[str] | None
) -> Iterable[str]:
    """What of a state is of another run than the one that is to continue it, in words."""
    before = state.get("classes")
    if classes is not None and before and list(before) != list(classes):
        gone, new = sorted(set(before) - set(classes)), sorted(set(classes) - set(before))
        words = [f"{name} is gone" for name in gone[:3]] + [f"{name} is new" for name in new[:3]]
        which = ", ".join(words) or "in another order"
        yield f"it is of {len(before)} classes, and the folder has {len(classes)} ({which})"
    if run is not None:
        for name, given in (("side", tuple(run.side)), ("scale", float(run.scale))):
            if name in state and state[name] != given:
                yield f"it was trained with {name} {state[name]}, got {given}"
        images = (run.training.channels, *run.training.size)
        if tuple(state["mean"].shape) != images or unusable(state["mean"], True, True):
            yield f"its mean picture is damaged, or of others than those of {images} here; --overwrite trains anew"
    if model is not None and (problem := misfit(state["model"], model)):
        yield f"it is of another network: {problem}"
    if model is not None and not _continues(state["optimiser"], model):
        yield "its momentum is damaged, or of another network; --overwrite trains anew"


def _continues(optimiser: Any, model: nn.Module) -> bool:
    """Whether the state of an optimiser is one of the model's parameters."""
    shapes = [parameter.shape for parameter in model.parameters()]
    try:
        (group,) = optimiser["param_groups"]
        buffers = [(shapes[number], kept.get("momentum_buffer")) for number, kept in optimiser["state"].items()]
        of_all = list(group["params"]) == list(range(len(shapes)))
        kept = [(shape, buffer) for shape, buffer in buffers if buffer is not None]  # there is none of momentum 0
        return of_all and all(buffer.shape == shape and not unusable(buffer, True, True) for shape, buffer in kept)
    except (TypeError, ValueError, LookupError, AttributeError):
        return False


def _write_networks(
    trained: Trained, out: Path, arguments: dict[str, Any], classes: Sequence[str], keep: frozenset[int]
) -> None:
    """zfnet.pt; after each epoch in `keep` a copy of it, and after the best epoch so far best.pt."""
    run, epoch = trained.run, len(trained.history)
    mean, scale = crop(trained.mean, CENTRE, run.side).clone(), torch.full((1, 1, 1), float(run.scale))
    network = checkpoint.Network(trained.model, list(classes), mean, scale, run.side)
    names = ["zfnet.pt"] + ["best.pt"] * (trained.best.epoch == epoch) + [f"epoch_{epoch:03d}.pt"] * (epoch in keep)
    for name in names:
        checkpoint.save(out / name, network, arguments, {"id": trained.id, "epoch": epoch})


def _write_log(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(line) + "\n" for line in lines))


def read_log(path: Path) -> list[Epoch]:
    """The epochs of a log.jsonl.

    Raises:
        ValueError: a line is no epoch; the file and the line are named.
    """
    epochs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            epochs += [Epoch(**json.loads(line))] if line.strip() else []
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number}, is no epoch of a training run ({error})") from error
    return epochs


def plot_history(history: Sequence[Epoch], path: Path) -> None:
    """Loss, errors and learning rate against the epoch, as a PNG (needs matplotlib)."""
    write_whole(path, figure(history).savefig)


def figure(history: Sequence[Epoch]) -> Figure:
    """Loss, errors and learning rate against the epoch."""
    from ..drawing.style import ACCENT, SOFT, new_figure, plain_axes

    drawn = new_figure(10.5, 2.8)
    loss, error, rate = drawn.subplots(1, 3)
    epochs = [line.epoch for line in history]
    loss.plot(epochs, [line.loss for line in history], color=ACCENT, marker=".")
    loss.set(title="training loss", ylabel="cross-entropy (nats)", ylim=(0, None))
    for values, colour, label in (
        ([line.train_error for line in history], SOFT, "training crops, dropout on"),
        ([line.error for line in history], ACCENT, "validation"),
        ([line.error5 for line in history], "#1f6fb3", "validation, top 5"),
    ):
        error.plot(epochs, [100 * value for value in values], color=colour, marker=".", label=label)
    error.set(title="error", ylabel="pictures wrong (%)", ylim=(0, 102))
    error.legend(fontsize=7, frameon=False)
    rate.step(epochs, [line.learning_rate for line in history], color=ACCENT, where="mid")
    rate.set(title="learning rate", yscale="log")
    for axes in (loss, error, rate):
        plain_axes(axes)
        axes.set_xlabel("epoch", fontsize=8)
        axes.title.set_fontsize(10)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return drawn
