"""Files that are whole or not there."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a file beside `path`, then move it to `path`: no reader and no crash meets half a file."""
    beside = path.with_name(path.name + ".part")
    write(beside)
    os.replace(beside, path)
