"""Picture files in batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .folders import PictureSet


def stream(
    paths: Sequence[Path],
    size: tuple[int, int],
    normalise: Callable[[Tensor], Tensor],
    batch: int = 32,
    workers: int = 0,
    part: tuple[int, int] = (0, 1),
) -> Iterable[tuple[Tensor, Tensor]]:
    """Batches (inputs, numbers) of the pictures; `part` (rank, count) gives every count-th picture from rank on."""
    pictures = PictureSet(list(paths), size)
    numbers = list(range(part[0], len(pictures), part[1]))
    batches = [numbers[i : i + batch] for i in range(0, len(numbers), batch)]
    loader = DataLoader(pictures, batch_sampler=batches, num_workers=workers, generator=torch.Generator())
    return _Normalised(loader, normalise)


class _Normalised:
    """A loader's batches as the network takes them; it has a length, for progress bars."""

    def __init__(self, loader: DataLoader, normalise: Callable[[Tensor], Tensor]) -> None:
        self.loader, self.normalise = loader, normalise

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for pixels, _, numbers in self.loader:
            yield self.normalise(pixels), numbers
