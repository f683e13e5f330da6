"""Picture files in batches, or all at once."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from .folders import PictureSet, find_pictures
from .pictures import read_picture


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


def read_all(paths: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """The pictures as uint8 (N, 3, H, W)."""
    return torch.stack([read_picture(path, size) for path in paths])


def pictures_or_folders(paths: Sequence[Path]) -> list[Path]:
    """The files as they are, and the pictures of the folders."""
    return [picture for path in paths for picture in ([path] if path.is_file() else find_pictures(path))]
