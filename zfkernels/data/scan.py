"""What a folder holds: its pictures, and what is left out and why. The one search that all commands make."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

MOST_TIMES = 16  # that links lead to one folder: a few that link to each other would have no end of ways


@dataclass(frozen=True)
class Scan:
    """The picture files under a folder, sorted by path, and what is no picture, in the order it was met."""

    folder: Path
    paths: tuple[Path, ...]
    left_out: tuple[tuple[Path, str], ...] = ()  # (file or folder, why)

    def without(self, unreadable: Sequence[tuple[Path, str]]) -> Scan:
        """Less the pictures that were found to be unreadable, which are left out."""
        gone = {path for path, _ in unreadable}
        kept = tuple(path for path in self.paths if path not in gone)
        return replace(self, paths=kept, left_out=(*self.left_out, *((path, "unreadable") for path, _ in unreadable)))

    def line(self, classes: Sequence[str] = ()) -> str:
        """How many pictures, of how many classes, were found, and how many files were left out for which reason."""
        text = f"{len(self.paths)} pictures" + (f" of {len(classes)} classes" if classes else "") + f" in {self.folder}"
        if not self.left_out:
            return f"{text}; nothing left out"
        reasons = Counter(why for _, why in self.left_out)
        return f"{text}; left out {len(self.left_out)}: " + ", ".join(f"{n} {why}" for why, n in reasons.most_common())


@cache
def endings() -> frozenset[str]:
    """The endings of the files that Pillow, with the plugins it has here, reads as pictures."""
    from PIL import Image, ImageFile

    known = Image.registered_extensions()
    stubs = {name for name, (kind, _) in Image.OPEN.items() if _is(kind, ImageFile.StubImageFile)}
    return frozenset(end for end, name in known.items() if name in Image.OPEN and name not in stubs | {"MPEG", "PDF"})


def _is(kind: object, stub: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, stub)


def scan(folder: Path) -> Scan:
    """Every picture file under `folder`, subfolders and links to folders included.

    Names that begin with a dot are hidden and ignored (.ipynb_checkpoints, ._x.png). A link to a folder that it lies in
    is left out, so that no search goes round in a circle.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: a folder without pictures.
    """
    if not folder.is_dir():
        what = "no folder" if folder.exists() else "there is no folder"
        raise FileNotFoundError(f"{folder} is {what}" if folder.exists() else f"{what} {folder}")
    paths: list[Path] = []
    left_out: list[tuple[Path, str]] = []
    for path, why in _walk(folder):
        if why:
            left_out.append((path, why))
        else:
            paths.append(path)
    result = Scan(folder, tuple(sorted(paths)), tuple(left_out))
    if not paths:
        said = f"; {result.line().partition('; ')[2]}" if left_out else ""
        raise ValueError(f"{folder} holds no pictures ({', '.join(sorted(endings()))}){said}")
    return result


def _walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """(file, "") for each picture, (file or folder, why) for what is none; a folder's own files before its folders'."""
    rest: list[tuple[Path, tuple[tuple[int, int], ...]]] = [(folder, (_identity(folder),))]  # with those they lie in
    times: Counter[tuple[int, int]] = Counter()
    while rest:
        place, above = rest.pop()
        try:
            names = sorted(os.listdir(place))
        except OSError as error:
            yield place, f"folders that cannot be opened ({error.strerror})"
            continue
        folders: list[tuple[Path, tuple[tuple[int, int], ...]]] = []
        for name in names:
            path = place / name
            if name.startswith("."):
                yield path, "hidden"
                continue
            try:
                mode = path.stat().st_mode
            except OSError:
                yield path, "links to nothing" if path.is_symlink() else "that cannot be looked at"
                continue
            if stat.S_ISDIR(mode):
                identity = _identity(path)
                if identity in above:
                    yield path, "links to a folder that they lie in"
                elif path.is_symlink() and times[identity] >= MOST_TIMES:
                    yield path, f"links to a folder that was searched {MOST_TIMES} times"
                else:
                    times[identity] += 1
                    folders.append((path, (*above, identity)))
            elif not stat.S_ISREG(mode):
                yield path, "no regular files"
            elif path.suffix.lower() not in endings():
                yield path, f"no pictures ({path.suffix.lower() or 'without an ending'})"
            else:
                yield path, ""
        rest += reversed(folders)


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino
