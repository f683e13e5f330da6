"""log, state, curves."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from .recipe import Plan

STATE_FORMAT = "zfkernels.training.1"


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
    from ..drawing.style import ACCENT, SOFT, new_figure, plain_axes

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
