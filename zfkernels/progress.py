"""zfkernels.progress."""

from __future__ import annotations

from collections.abc import Iterable


def _bar(loader: Iterable, what: str, quiet: bool) -> Iterable:
    if quiet:
        return loader
    from tqdm import tqdm

    return tqdm(loader, desc=what, unit="batch", leave=False)


class _Progress:
    """A bar that counts images, and so shows images/s; nothing when quiet."""

    def __init__(self, total: int, what: str, quiet: bool) -> None:
        self.bar = None
        if not quiet:
            from tqdm import tqdm

            self.bar = tqdm(total=total, desc=what, unit=" images", leave=False)

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_) -> None:
        if self.bar is not None:
            self.bar.close()

    def update(self, count: int) -> None:
        if self.bar is not None:
            self.bar.update(count)
