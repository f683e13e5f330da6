"""The progress of everything that takes long: a bar on a terminal, a line every half minute elsewhere."""

import sys
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TYPE_CHECKING, Literal, TypeVar

if TYPE_CHECKING:
    from tqdm import tqdm

Item = TypeVar("Item")
Shown = bool | Literal["lines"]
EVERY = 30.0  # seconds between two lines


def wanted(quiet: bool = False) -> Shown:
    """What a command shows on stderr: bars on a terminal, lines where there is none, nothing if it is to be quiet."""
    return not quiet and (sys.stderr.isatty() or "lines")


def bar(
    items: Iterable[Item], what: str, unit: str, shown: Shown, *, leave: bool = True, sizes: Sequence[int] | None = None
) -> Iterable[Item]:
    """`items`, with a bar on stderr while a loop takes them if `shown` (needs tqdm), and without one otherwise.

    Args:
        what: the words in front of the bar.
        unit: what the bar counts.
        shown: "lines": a line every half minute in place of the bar.
        leave: whether the bar stays when it is full.
        sizes: how many units each item is, if not 1.
    """
    if not (isinstance(shown, (bool, str)) and shown in (True, False, "lines")):
        raise ValueError(f'progress must be True, False or "lines", got {shown!r}')
    if not shown:
        return items
    if shown == "lines":
        total = sum(sizes) if sizes is not None else len(items) if isinstance(items, Sized) else None
        return _in_lines(items, what, unit.strip(), sizes, total)
    from tqdm import tqdm

    if sizes is None:
        drawn: Iterable[Item] = tqdm(items, desc=what, unit=unit, leave=leave)
        return drawn
    return _in_units(items, sizes, tqdm(total=sum(sizes), desc=what, unit=unit, leave=leave))


def _in_units(items: Iterable[Item], sizes: Sequence[int], drawn: "tqdm") -> Iterator[Item]:
    with drawn:
        for item, size in zip(items, sizes, strict=True):
            yield item
            drawn.update(size)


def _in_lines(
    items: Iterable[Item], what: str, unit: str, sizes: Sequence[int] | None, total: int | None
) -> Iterator[Item]:
    began = said = time.monotonic()
    done = 0
    for number, item in enumerate(items):
        yield item
        done += 1 if sizes is None else sizes[number]
        now = time.monotonic()
        if now - said >= EVERY:
            said = now
            left = "" if not total else f" of {total}, {_minutes((now - began) * (total - done) / done)} left"
            print(f"{what}: {done}{left} ({unit}, after {_minutes(now - began)})", file=sys.stderr, flush=True)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
