"""The progress bar of everything that takes long."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any


def bar(
    items: Iterable, what: str, unit: str, shown: bool, *, leave: bool = True, sizes: Sequence[int] | None = None
) -> Iterable:
    """`items`, with a bar on stderr while a loop takes them if `shown` (needs tqdm), and without one otherwise.

    Args:
        what: the words in front of the bar.
        unit: what the bar counts.
        leave: whether the bar stays when it is full.
        sizes: how many units each item is, if not 1.
    """
    if not shown:
        return items
    from tqdm import tqdm

    if sizes is None:
        return tqdm(items, desc=what, unit=unit, leave=leave)
    return _in_units(items, sizes, tqdm(total=sum(sizes), desc=what, unit=unit, leave=leave))


def _in_units(items: Iterable, sizes: Sequence[int], drawn: Any) -> Iterator:
    with drawn:
        for item, size in zip(items, sizes, strict=True):
            yield item
            drawn.update(size)
