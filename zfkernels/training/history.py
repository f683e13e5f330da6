"""What a run leaves behind: its epochs' measurements, and the callbacks of `fit.fit` that write and draw them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from ..files import write_whole
from ..models import checkpoint
from .crops import crop
from .processes import processes
from .recipe import CENTRE, Plan
from .run import Epoch, Trained

Callback = Callable[[Trained], None]
STATE_FORMAT = "zfkernels.training.1"


def begin(out: Path, plan: Plan, resume: bool | None = None) -> dict[str, Any] | None:
    """Make the folder of a run; gives the state to continue from, or None, and cuts log.jsonl to the state's epochs.

    Args:
        resume: whether to continue from out/state.pt; None: if there is one.

    Raises:
        FileNotFoundError: nothing to resume.
        ValueError: a state of another plan; what differs is named. More epochs are no difference.
    """
    state = None
    if resume or (resume is None and (out / "state.pt").exists()):
        state = _read_state(out / "state.pt", plan)
    if processes()[0] == 0:
        out.mkdir(parents=True, exist_ok=True)
        _write_log(out / "log.jsonl", [] if state is None else state["history"])
    return state


def files(
    out: Path,
    arguments: dict[str, Any] | None = None,
    classes: Sequence[str] = (),
    keep: Iterable[int] = (),
    plot: bool = False,
) -> list[Callback]:
    """The callbacks that write a run's folder, so that all else is whole when a line is in log.jsonl.

    Args:
        out: the folder, which `begin` has made: log.jsonl and state.pt (all that continuing needs).
        arguments: the keyword arguments that build the ZFNet; if given, zfnet.pt holds the network.
        classes: their names, for zfnet.pt.
        keep: the epochs whose network is kept as epoch_NNN.pt.
        plot: also draw training.png.
    """
    callbacks: list[Callback] = []
    if arguments is not None:
        kept = frozenset(keep)
        callbacks.append(lambda trained: _write_networks(trained, out, arguments, classes, kept))
    callbacks.append(lambda trained: _write_state(trained, out / "state.pt"))
    callbacks.append(lambda trained: _write_log(out / "log.jsonl", map(asdict, trained.history)))
    if plot:
        callbacks.append(lambda trained: plot_history(trained.history, out / "training.png"))
    return callbacks


def _write_state(trained: Trained, path: Path) -> None:
    """All that continuing needs."""
    state = {
        "format": STATE_FORMAT,
        "plan": asdict(trained.run.plan),
        "history": [asdict(line) for line in trained.history],
        "mean": trained.mean,
        "model": trained.model.state_dict(),
        "optimiser": trained.optimiser.state_dict(),
    }
    write_whole(path, lambda beside: torch.save(state, beside))


def _read_state(path: Path, plan: Plan) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"there is nothing to resume: no {path}")
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


def _write_networks(
    trained: Trained, out: Path, arguments: dict[str, Any], classes: Sequence[str], keep: frozenset[int]
) -> None:
    """zfnet.pt, and a copy of it after each epoch in `keep`."""
    run, epoch = trained.run, len(trained.history)
    mean, scale = crop(trained.mean, CENTRE, run.side).clone(), torch.full((1, 1, 1), float(run.scale))
    network = checkpoint.Network(trained.model, list(classes), mean, scale, run.side)
    for name in ("zfnet.pt", *([f"epoch_{epoch:03d}.pt"] if epoch in keep else [])):
        write_whole(out / name, lambda beside: checkpoint.save(beside, network, arguments))


def _write_log(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    write_whole(path, lambda beside: beside.write_text(text))


def read_log(path: Path) -> list[Epoch]:
    """The epochs of a log.jsonl."""
    return [Epoch(**json.loads(line)) for line in path.read_text().splitlines() if line.strip()]


def plot_history(history: Sequence[Epoch], path: Path) -> None:
    """Loss, errors and learning rate against the epoch, as a PNG (needs matplotlib)."""
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
    drawn.savefig(path)
