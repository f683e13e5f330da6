"""Words for a name that does not exist: what it may have been meant to be, and what there is."""

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
