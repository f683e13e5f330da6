"""What is refused before any work: memory that there is not, and more processes or threads than a machine can use."""

import os
import re

LARGEST = 2**31 - 1  # of a whole number that an option takes
# What torch, NumPy and Python say of memory that cannot be had, or of a size whose bytes no number of theirs can hold
MEMORY = re.compile(r"allocate|out of memory|Storage size calculation overflow|integer multiplication overflow", re.I)
ASKED = re.compile(r"allocate ([\d.]+) (bytes|KiB|MiB|GiB|TiB|PiB|EiB)")
UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def memory_there() -> int | None:
    """The bytes that this machine, or the container, has left; None where nothing is known (no Linux)."""
    try:
        with open("/proc/meminfo") as file:
            there = next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            return min(there, int(file.read()))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return there


def check_memory(need: int, what: str, instead: str = "take fewer") -> None:
    """ValueError, before the work, if `what` needs more memory than there is."""
    there = memory_there()
    if there is not None and need > there:
        raise ValueError(f"{what} need {need / 1e9:.1f} GB of memory, and there are {there / 1e9:.1f}; {instead}")


def is_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(MEMORY.search(str(error))))


def memory_in_words(error: BaseException) -> str:
    """What such an error says, and what to do."""
    asked = ASKED.search(str(error))
    size = float(asked[1]) * 1024 ** UNITS.index(asked[2]) if asked else 0.0
    there = memory_there()
    parts = [f"{size / 1e9:.1f} GB at once" if size else "", f"{there / 1e9:.1f} GB are left" if there else ""]
    known = ", ".join(filter(None, parts))
    return (
        f"this takes more memory than there is{f' ({known})' if known else ''}: smaller pictures or networks, or fewer "
        "pictures at a time, take less"
    )


def most_processes() -> int:
    """The most processes, or threads, that make sense here."""
    return max(64, 4 * (os.cpu_count() or 1))
