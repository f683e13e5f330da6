"""Names in words: one that does not exist, what it may have been meant to be, what there is, and one too long."""

import difflib
from collections.abc import Sequence


def nearest(word: str, known: Sequence[str]) -> str:
    """What is said of the known name nearest to `word`, upper and lower case alike; empty if none is near."""
    lower = {name.lower(): name for name in reversed(known)}
    near = difflib.get_close_matches(word.lower(), lower, n=1)
    return f", did you mean {lower[near[0]]!r}?" if near else ""


def no_such(kind: str, name: str, known: Sequence[str]) -> str:
    """What is said of a name that none of the known things of this kind has."""
    return f"no {kind} {name!r}{nearest(name, known)}; the {kind}s are {', '.join(known)}"


def listed(known: Sequence[str], most: int = 40) -> str:
    """The names by commas, of many the first."""
    return ", ".join(known[:most]) + (", ..." if len(known) > most else "")


def shortened(name: str, most: int, keep_end: bool = False) -> str:
    """The name in at most so many letters: of a longer one the beginning, or the end, with a mark."""
    if len(name) <= most:
        return name
    return f"\u2026{name[1 - most :]}" if keep_end else f"{name[: most - 1]}\u2026"
