"""Picture files in batches."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..models.checkpoint import Network
from .folders import Item, PictureSet

Batch = TypeVar("Batch")


def plainly(batches: Iterable[Batch]) -> Iterator[Batch]:
    """`batches`; an error in a process that reads pictures is the one line that it was there, without its traceback.

    Raises:
        ValueError: what that process raised, or that it ended.
    """
    try:
        yield from batches
        return
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        if "in DataLoader worker process" in lines[0]:
            said = lines[-1].partition(": ")[2] or lines[-1]
        elif isinstance(error, RuntimeError) and "DataLoader worker" in lines[0]:
            said = f"a process that reads pictures ended; fewer --workers take less memory ({lines[0]})"
        else:
            raise
    raise ValueError(said)  # with nothing of `error`, which would keep the other processes alive


class Stream(DataLoader[Item]):
    """Batches (inputs, numbers) of the pictures, as the network takes them; its length is for progress bars.

    `part` (rank, count) gives every count-th picture from rank on.
    """

    def __init__(
        self, paths: Sequence[Path], network: Network, batch: int = 32, workers: int = 0, part: tuple[int, int] = (0, 1)
    ) -> None:
        pictures = PictureSet(list(paths), network.image_size)
        numbers = list(range(part[0], len(pictures), part[1]))
        batches = [numbers[i : i + batch] for i in range(0, len(numbers), batch)]
        super().__init__(pictures, batch_sampler=batches, num_workers=workers, generator=torch.Generator())
        self.network = network

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # type: ignore[override]  # torch names its own iterator
        for pixels, _, numbers in plainly(super().__iter__()):
            yield self.network.normalise(pixels), numbers
