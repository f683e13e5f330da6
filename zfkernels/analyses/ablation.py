"""Which parts of the network matter: variants of its architecture, trained alike (Zeiler & Fergus, Table 3)."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..models.zfnet import TABLE, ZFNet
from ..training import history
from ..training.fit import evaluate, fit, mean_picture
from ..training.processes import seeded
from ..training.run import Run


@dataclass(frozen=True)
class Variant:
    """A row of Table 3."""

    name: str
    changes: dict[str, Any]  # to the ZFNet's keyword arguments
    paper: tuple[float, float, float] | None  # train top-1, validation top-1 and top-5 error on ImageNet, percent


@dataclass(frozen=True)
class Result:
    variant: Variant
    parameters: int
    train_error: float  # 0..1, of the training pictures, 10 crops averaged, dropout off
    error: float  # likewise of the validation pictures
    error5: float


def variants(channels: Sequence[int] | None = None, fc: Sequence[int] | None = None) -> list[Variant]:
    """The rows of Table 3's lower part, and the same cuts of its upper part on the paper's own network.

    Args:
        channels, fc: the base network's, if not the paper's; changed sizes keep the paper's proportions: hidden layers
            halved and doubled, layers 3, 4, 5 of 4/3, 8/3 and 2 times the maps (512, 1024, 512).
    """
    channels = tuple(channels or (row.channels for row in TABLE if row.kind == "conv"))
    fc = tuple(fc or (row.channels for row in TABLE[:-1] if row.kind == "fc"))
    wide = (*channels[:2], channels[2] * 4 // 3, channels[3] * 8 // 3, channels[4] * 2)
    half, double = (tuple(max(1, int(size * factor)) for size in fc) for factor in (0.5, 2))
    base = {"channels": channels, "fc": fc}
    rows: Iterable[tuple[str, dict[str, Any], tuple[float, float, float] | None]] = (
        ("as in the paper", {}, (33.1, 38.4, 16.5)),
        ("without 3, 4", {"without": ("conv3", "conv4")}, None),
        ("without 7", {"without": ("fc7",), "fc": (fc[0], fc[1])}, None),
        ("without 6, 7", {"without": ("fc6", "fc7")}, None),
        ("without 3, 4, 6, 7", {"without": ("conv3", "conv4", "fc6", "fc7")}, None),
        (f"6, 7 of {half[0]}", {"fc": half}, (38.2, 40.2, 17.6)),
        (f"6, 7 of {double[0]}", {"fc": double}, (22.0, 38.8, 17.0)),
        (f"3, 4, 5 of {wide[2]}, {wide[3]}, {wide[4]}", {"channels": wide}, (18.8, 37.5, 16.0)),
        ("the last two together", {"fc": double, "channels": wide}, (10.0, 38.3, 16.9)),
    )
    return [Variant(name, base | changes, paper) for name, changes, paper in rows]


def ablation(
    rows: Sequence[Variant],
    run: Run,
    arguments: dict[str, Any],
    device: torch.device | str = "cpu",
    out: Path | None = None,
    report: Callable[[Result], None] | None = None,
) -> list[Result]:
    """Train each variant by the same plan from the same seed, and measure it.

    Args:
        run: the plan and the pictures.
        arguments: the ZFNet's other keyword arguments (num_classes, image_size, weight_std ...).
        out: a folder; each variant's run goes to a folder in it and continues there if it was stopped.
        report: called with each result as it comes.
    """
    mean = mean_picture(run.training, run.workers, run.progress, device)
    run = replace(run, mean=mean)
    results = []
    for number, variant in enumerate(rows):
        with seeded(run.plan.seed, device):
            model = ZFNet(**arguments | variant.changes).to(device)
        state, callbacks = None, []
        if out is not None:
            state = history.begin(out / f"{number}", run.plan, overwrite=False, model=model, run=run)
            callbacks = history.files(out / f"{number}")
        last = fit(model, run, callbacks, state)[-1]
        train_error, _ = evaluate(model, run, run.training, mean)
        parameters = sum(p.numel() for p in model.parameters())
        results.append(Result(variant, parameters, train_error, last.error, last.error5))
        if report is not None:
            report(results[-1])
    return results


HEAD = f"{'layers':<32}{'parameters':>13}{'train':>8}{'val':>8}{'val 5':>8}   {'the paper, on ImageNet':>22}"


def line(result: Result) -> str:
    """A row of the table; errors in percent."""
    paper = result.variant.paper
    return (
        f"{result.variant.name:<32}{result.parameters:>13,}{100 * result.train_error:>8.1f}{100 * result.error:>8.1f}"
        f"{100 * result.error5:>8.1f}   {' '.join(f'{x:>6.1f}' for x in paper) if paper else '-':>22}"
    )
