"""Processes that end as a whole: whatever a part starts, in whatever group or session, does not outlive it."""

import contextlib
import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from .settings import DONE

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
EARLY = 254  # for the exit code 0 of a process that did not come to its end
LARGEST_LOG = 64 << 20  # bytes; a part that prints more is killed before it has filled the disk
GONE = 15.0  # seconds within which a killed process is gone, unless it waits for a device that does not answer


def adopt_orphans() -> None:
    """From now on a descendant whose parent ended becomes this process's child, so that `end` finds it."""
    with contextlib.suppress(OSError, AttributeError):  # only Linux has it; elsewhere a group's own members are found
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> None:
    """From now on this process is killed where its parent is, who then cannot end anything."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def start(command: list[str], log: Path, environment: dict[str, str], inherited: bool = True) -> subprocess.Popen:
    """The command in a session of its own, without input, its words in `log`."""
    variables = os.environ | environment if inherited else environment
    with log.open("w") as file:
        return subprocess.Popen(
            command, env=variables, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
        )


def wait(process: subprocess.Popen, seconds: float, log: Path) -> tuple[int | None, str]:
    """The exit code, or None and why: it runs after so many seconds, or has printed too much."""
    until = time.monotonic() + seconds
    while True:
        try:
            return process.wait(max(0.0, min(0.2, until - time.monotonic()))), ""
        except subprocess.TimeoutExpired:
            if size_of(log) > LARGEST_LOG:
                return None, f"it printed more than {LARGEST_LOG >> 20} MiB"
            if time.monotonic() >= until:
                return None, "its time was over"


def wait_for(process: subprocess.Popen, text: str, seconds: float, log: Path) -> None:
    """Until the log holds the text, the process has ended, or so many seconds have passed."""
    until = time.monotonic() + seconds
    while process.poll() is None and time.monotonic() < until and text not in log.read_text(errors="replace"):
        time.sleep(0.1)


def size_of(log: Path) -> int:
    try:
        return log.stat().st_size
    except OSError:  # somebody has removed it
        return 0


def end(process: subprocess.Popen, kept: tuple[subprocess.Popen, ...] = ()) -> list[int]:
    """Kills the process's group and all descendants of this process but those below `kept`; who is left, normally none.

    To be called when the process has ended, too: it may have left others behind.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    return sweep(process, kept)


def sweep(process: subprocess.Popen | None = None, kept: tuple[subprocess.Popen, ...] = ()) -> list[int]:
    """Kills all descendants of this process but those below `kept`, until there are none; who is left."""
    until = time.monotonic() + GONE
    while True:
        if process:
            process.poll()
        left = below(os.getpid(), {p.pid for p in kept})
        if not left or time.monotonic() > until:
            return left
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
            if process is None or pid != process.pid:  # an orphan that has become a child of this process
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
        time.sleep(0.05)


def below(root: int, kept: set[int]) -> list[int]:
    """The processes below `root` that run, without `kept` and what is below those."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            state, parent, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if state != "X":
            children.setdefault(int(parent), []).append(int(entry.name))
    found, to_see = [], [root]
    while to_see:
        own = [pid for pid in children.get(to_see.pop(), ()) if pid not in kept]
        found += own
        to_see += own
    return found


def each_in_a_fork(tasks: dict[str, Callable[[], int]], workers: int) -> dict[str, int]:
    """Runs each task in a fork of this process, `workers` at a time; what it returned, or how it was ended: negative
    by a signal, EARLY by an exit code of 0.

    This process must not have used a GPU: a fork could then not.
    """
    import multiprocessing.connection

    context = multiprocessing.get_context("fork")
    waiting, running, codes = list(tasks.items()), {}, {}
    while waiting or running:
        while waiting and len(running) < workers:
            name, task = waiting.pop(0)
            child = context.Process(target=exit_with, args=(task,))
            child.start()
            running[child.sentinel] = name, child
        for sentinel in multiprocessing.connection.wait(list(running)):
            name, child = running.pop(sentinel)
            child.join()
            codes[name] = returned(child.exitcode)
    return codes


def exit_with(task: Callable[[], int]) -> None:
    end_with_parent()
    raise SystemExit(task() or DONE)


def returned(code: int) -> int:
    """What a process's task returned, by its exit code."""
    return {DONE: 0, 0: EARLY}.get(code, code)


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
