"""One process or many: who does what, and random numbers that do not depend on how many there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from .recipe import Plan


def processes() -> tuple[int, int]:
    """(rank, count) of torch.distributed; (0, 1) without it."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextmanager
def launched(device: str | None = None) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; gives this process's device.

    NCCL and a GPU each (LOCAL_RANK) where there are GPUs, otherwise gloo on the CPU. Without torchrun: `device`, or the
    GPU if there is one, or the CPU.
    """
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield chosen
        return
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def summed(values: Tensor, device: torch.device) -> Tensor:
    """`values` added up over the processes, on the CPU."""
    if processes()[1] == 1:
        return values
    values = values.to(device)
    dist.all_reduce(values)
    return values.cpu()


@contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Within the block torch's random numbers follow from `seed`; afterwards they go on as if none had been drawn."""
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextmanager
def drawn_anew(
    plan: Plan, epoch: int, model: nn.Module, device: torch.device
) -> Iterator[tuple[torch.Generator, Callable[[int, slice], None]]]:
    """Within the block all random numbers follow from (seed, epoch, process), and of nn.Dropout from (seed, epoch).

    Gives the generator of the epoch's order and crops, and `SharedDropout.take`.
    """
    dropout = SharedDropout(model, _seed(plan, epoch, 1, 0), device)
    with seeded(_seed(plan, epoch, 1 + processes()[0]), device), dropout:
        yield torch.Generator().manual_seed(_seed(plan, epoch, 0)), dropout.take


def _seed(plan: Plan, *parts: int) -> int:
    return int(np.random.SeedSequence([plan.seed, *parts]).generate_state(1, np.uint64)[0] >> 1)


class SharedDropout:
    """Within the block, the model's nn.Dropout modules draw one mask for all pictures of a step, each process the same,
    and each takes its own pictures' rows: what is dropped of a picture does not depend on the number of processes."""

    def __init__(self, model: nn.Module, seed: int, device: torch.device) -> None:
        self.modules = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p < 1]
        self.generator = torch.Generator(device).manual_seed(seed)
        self.pictures, self.mine = 0, slice(None)

    def take(self, pictures: int, mine: slice) -> None:
        """A step of so many pictures begins; this process has those of the slice."""
        self.pictures, self.mine = pictures, mine

    def __enter__(self) -> SharedDropout:
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
