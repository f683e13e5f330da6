"""One process or many: who does what, and random numbers that do not depend on how many there are."""

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


def chosen_device(device: str | None = None) -> torch.device:
    """The device of this name; without one the GPU if there is one, or the CPU.

    Raises:
        ValueError: no such device here.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = None
    if chosen is None or chosen.type not in ("cpu", "cuda"):
        raise ValueError(f"--device must be cpu, cuda or cuda:NUMBER, got {device!r}")
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            there = f"there are {count}" if count else "torch sees no CUDA device"
            raise ValueError(f"--device {device}: {there}; `zfkernels info` says why; --device cpu always works")
    return chosen


@contextmanager
def launched(device: str | None = None) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; gives this process's device.

    NCCL and a GPU each (LOCAL_RANK) where there are GPUs, otherwise gloo on the CPU. Without torchrun: `device`, or the
    GPU if there is one, or the CPU.
    """
    chosen = chosen_device(device)
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

    Gives the generator of the epoch's order and crops, and take(pictures, mine): a step of so many pictures begins, and
    this process has those of the slice. The model's nn.Dropout modules draw one mask for all pictures of a step,
    each process the same, and each takes its own rows: what is dropped of a picture does not depend on the number of
    processes.
    """
    modules = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p < 1]
    generator = torch.Generator(device).manual_seed(_seed(plan, epoch, 1, 0))
    step = (0, slice(None))

    def take(pictures: int, mine: slice) -> None:
        nonlocal step
        step = pictures, mine

    def forward(module: nn.Dropout, x: Tensor) -> Tensor:
        if not module.training or module.p == 0:
            return x
        pictures, mine = step
        drawn = torch.rand((pictures, *x.shape[1:]), generator=generator, device=x.device)
        return x * ((drawn[mine] >= module.p).to(x.dtype) / (1 - module.p))

    with seeded(_seed(plan, epoch, 1 + processes()[0]), device):
        for module in modules:
            module.forward = partial(forward, module)  # type: ignore[method-assign]  # of this one module
        try:
            yield torch.Generator().manual_seed(_seed(plan, epoch, 0)), take
        finally:
            for module in modules:
                del module.forward


def _seed(plan: Plan, *parts: int) -> int:
    return int(np.random.SeedSequence([plan.seed, *parts]).generate_state(1, np.uint64)[0] >> 1)
