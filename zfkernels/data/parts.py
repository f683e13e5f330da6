"""Parts of pictures: boxes that are listed in a picture's own pixels, and the same boxes in a network's input."""

import json
from pathlib import Path

from ..files import check_regular, reason
from .pictures import decoded, unreadable

Box = tuple[int, int, int, int]  # top, left, bottom, right; half-open


def to_input(box: Box, picture: tuple[int, int], size: tuple[int, int]) -> Box:
    """A box in a picture of (height, width) pixels -> in the input of `size` cut from the picture's centre."""
    ratio = max(size[0] / picture[0], size[1] / picture[1])
    offset = [(picture[axis] * ratio - size[axis]) / 2 for axis in (0, 1)]
    ends = [round(box[i] * ratio - offset[i % 2]) for i in range(4)]
    top, left = (min(max(ends[i], 0), size[i] - 1) for i in (0, 1))
    return top, left, min(max(ends[2], top + 1), size[0]), min(max(ends[3], left + 1), size[1])


def read_parts(path: Path, size: tuple[int, int]) -> tuple[list[Path], dict[str, list[Box]]]:
    """The pictures of a JSON list [{"image": FILE, "parts": {NAME: [top, left, bottom, right]}}, ...] and their boxes.

    Files are relative to the JSON's folder. Boxes are in the picture's own pixels and are returned in the input's.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no such list, of two pictures or more; a picture that cannot be read; a box that leaves its picture.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    check_regular(path)
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
        paths = [path.parent / entry["image"] for entry in entries]
        names = list(entries[0]["parts"]) if entries else []
        boxes = [[tuple(map(int, entry["parts"][name])) for name in names] for entry in entries]
        if len(entries) < 2 or not names:
            raise ValueError(f"{len(entries)} pictures with {len(names)} parts; at least 2 are compared in 1 part")
        if "random" in names:
            raise ValueError("no part may be named 'random', which the random boxes are")
        if any(len(box) != 4 for row in boxes for box in row):
            raise ValueError("a box must be [top, left, bottom, right]")
        if any(
            tuple(entry["parts"][name]) != box
            for entry, row in zip(entries, boxes, strict=True)
            for name, box in zip(names, row, strict=True)
        ):
            raise ValueError("a box must be of whole numbers, the pixels of its picture")
    except (OSError, ValueError, LookupError, TypeError, OverflowError, AttributeError, RecursionError) as error:
        raise ValueError(
            f'{path} must hold [{{"image": FILE, "parts": {{NAME: [top, left, bottom, right]}}}}, ...], with the same '
            f"parts for each image ({type(error).__name__}: {reason(error)})"
        ) from error
    parts: dict[str, list[Box]] = {name: [] for name in names}
    if bad := unreadable(paths):
        raise ValueError(
            f"{len(bad)} of {len(paths)} pictures of {path} cannot be read: " + "; ".join(w for _, w in bad[:3])
        )
    for file, row in zip(paths, boxes, strict=True):
        width, height = decoded(file).size
        for name, (top, left, bottom, right) in zip(names, row, strict=True):
            if not (0 <= top < bottom <= height and 0 <= left < right <= width):
                raise ValueError(
                    f"{path}: the box of {name!r} in {file} must be [top, left, bottom, right], top above bottom, "
                    f"left of right, within its {height} x {width} pixels, got {[top, left, bottom, right]}"
                )
            parts[name].append(to_input((top, left, bottom, right), (height, width), size))
    return paths, parts
