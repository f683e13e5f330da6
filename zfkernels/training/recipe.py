"""The numbers of the paper's training recipe (Zeiler & Fergus, section 3), and where other recipes differ from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

CROPS = 10  # of a picture: see crops.crop
CENTRE = 4  # the centre crop among them; CENTRE + 5 is its mirror image
PAPER_EPOCHS = (1, 2, 5, 10, 20, 30, 40, 64)  # those of Fig. 4
EVALUATED = {"ten": (tuple(range(CROPS)), 16), "mirrored": ((CENTRE,), 64)}  # crops averaged, pictures a pass


@dataclass(frozen=True)
class Plan:
    """How a network is trained; the defaults are section 3's numbers."""

    epochs: int = 70
    batch_size: int = 128  # of all processes together
    learning_rate: float = 1e-2
    momentum: float = 0.9
    weight_decay: float = 0.0  # the paper names none
    filter_rms: float | None = 0.1  # None: no clamp, as on the left of Fig. 6
    patience: int = 3  # the rate falls after more than this many epochs without a lower validation error
    fall: float = 0.1  # to this fraction of what it was
    seed: int = 0
    falls_at: tuple[float, ...] = ()  # if given, the rate falls at these fractions of the epochs instead
    cosine: bool = False  # the rate goes down half a cosine, an epoch a step, instead
    crops: Literal["ten", "mirrored"] = "ten"  # seen in training: one of ten, or the centre or its mirror image
    draws: Literal["epoch", "run"] = "epoch"  # random numbers: by (seed, epoch, process), or one stream for the run

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "fall"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {getattr(self, name)}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be from 0 to below 1, got {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be at least 0 and finite, got {self.weight_decay}")
        if not self.fall < 1:
            raise ValueError(f"fall must be below 1, got {self.fall}")
        if self.cosine and self.falls_at:
            raise ValueError(f"falls_at must not be given with cosine, got {self.falls_at}")
        if self.patience < 0:
            raise ValueError(f"patience must be at least 0, got {self.patience}")
        for name, known in (("crops", tuple(EVALUATED)), ("draws", ("epoch", "run"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")

    def rate(self, errors: Sequence[float]) -> float:
        """The learning rate of the epoch that follows those with these validation errors."""
        if self.cosine:
            return self.learning_rate * (1 + math.cos(math.pi * len(errors) / self.epochs)) / 2
        if self.falls_at:
            falls = sum(len(errors) >= fraction * self.epochs for fraction in self.falls_at)
            return self.learning_rate * self.fall**falls
        rate, lowest, waited = self.learning_rate, float("inf"), 0
        for error in errors:
            lowest, waited = (error, 0) if error < lowest else (lowest, waited + 1)
            if waited > self.patience:
                rate, waited = rate * self.fall, 0
        return rate


def resized_side(side: int) -> int:
    """The side to which pictures are resized for crops of `side`: 256 for 224, in proportion for others."""
    return round(side * 256 / 224)
