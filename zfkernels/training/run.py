"""What is trained how, and what was measured of it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.folders import Labelled
from ..progress import Shown
from .crops import crop_places
from .recipe import Plan


@dataclass(frozen=True)
class Epoch:
    """What was measured of an epoch: a line of log.jsonl."""

    epoch: int  # from 1
    loss: float  # mean cross-entropy of the training crops, nats, dropout on
    train_error: float  # of those crops, 0..1
    error: float  # of the validation pictures, as `fit.evaluate` measures it
    error5: float
    learning_rate: float
    images_per_second: float  # of all processes, training alone
    seconds: float  # evaluation included
    processes: int

    @property
    def accuracy(self) -> float:
        """The fraction of the validation pictures that were recognised."""
        return 1 - self.error


@dataclass(frozen=True)
class Run:
    """What is trained how: a plan, the pictures, and what a run on this machine needs.

    Raises:
        ValueError: no pictures, or crops larger than the pictures; named.
    """

    plan: Plan
    training: Labelled  # item i is (uint8 (C, H, W), label, i), C is `channels` (3, or 1 if grey), (H, W) is `size`
    validation: Labelled
    side: tuple[int, int]  # (height, width) of the crops: the model's input
    scale: float = 1.0  # pixels less their mean are divided by this (1 in the paper)
    mean: Tensor | None = None  # float (C, H, W) of the pictures; measured if None
    precision: torch.dtype = torch.float32  # torch.bfloat16: mixed precision (autocast; weights stay in float32)
    workers: int = 0  # processes that read pictures, for each training process
    progress: Shown = False  # show progress bars (needs tqdm), or "lines": one every half minute

    def __post_init__(self) -> None:
        for name in ("training", "validation"):
            pictures = getattr(self, name)
            if len(pictures) == 0:
                raise ValueError(f"{name} must hold at least one picture, got none")
            crop_places(pictures.size, self.side)


@dataclass(frozen=True)
class Trained:
    """A run after some of its epochs: what callbacks are given."""

    run: Run
    model: nn.Module
    optimiser: torch.optim.Optimizer
    mean: Tensor
    history: list[Epoch]
    id: str  # of this run, the same in all its files and after it was continued

    @property
    def best(self) -> Epoch:
        """The epoch of the lowest validation error, the first of several."""
        return min(self.history, key=lambda epoch: epoch.error)
