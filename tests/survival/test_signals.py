"""Ctrl-C: 130 and one line, at any place of any long command; what is continued gives the same bits."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from interrupts import COMMANDS, RESULTS, TRAIN, world

from zfkernels import cli

pytest.importorskip("PIL.Image")
pytest.importorskip("skimage")
TESTS = Path(__file__).resolve().parent.parent
# Those that are continued and, of those that begin anew, a few, two of a process; the others with --long.
SHORT = ["train,ablate", "atlas,gallery", "occlude,neighbours"]


def environment() -> dict[str, str]:
    paths = os.pathsep.join([str(TESTS), *(p for p in sys.path if p)])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}


def stopped_everywhere(folder: Path, names: list[str], places: int) -> None:
    command = [sys.executable, TESTS / "survival" / "interrupts.py", folder, *names, "--places", str(places)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == names


@pytest.mark.parametrize("names", SHORT)
def test_a_command_is_stopped_and_continued(tmp_path, names, long):
    stopped_everywhere(tmp_path, names.split(","), 30 if long else 1)


def test_all_commands_are_stopped(tmp_path, long):
    if not long:
        pytest.skip("with --long")
    stopped_everywhere(tmp_path, [name for name in COMMANDS if name not in RESULTS], 12)


def test_ctrl_c_reaches_the_processes_that_read_pictures_too(tmp_path):
    """A terminal sends it to all processes of the command; none of them says more than the one line."""
    w = world(tmp_path)
    arguments = f"train {w}/photos --out {tmp_path}/run --epochs 100000 --workers 2 --quiet {TRAIN}".split()
    command = [sys.executable, "-m", "zfkernels", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), start_new_session=True
    ) as process:
        while not (tmp_path / "run" / "best.pt").exists() and process.poll() is None:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert errors == "zfkernels train: stopped; --resume continues the run after its last whole epoch\n"


def test_ctrl_c_in_the_text_of_a_function_ends_with_130_too(tmp_path):
    """As where Python makes a dataclass: with -m it would end itself by a signal then, once all was done."""
    (tmp_path / "begins.py").write_text(BEGINS)
    paths = environment() | {"PYTHONPATH": os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]])}
    done = subprocess.run([sys.executable, "-m", "begins"], capture_output=True, text=True, env=paths)
    assert (done.returncode, done.stdout, done.stderr) == (130, "at the end\n", "")


BEGINS = """
import atexit
from zfkernels import cli

def main():
    try:
        exec("raise KeyboardInterrupt")
    except KeyboardInterrupt:
        return 130

cli.main = main
atexit.register(print, "at the end")
import zfkernels.__main__
"""


class HalfMade:
    """Stopped while it is made, and unable to end then, as torch's iterators with processes are."""

    def __init__(self):
        signal.raise_signal(signal.SIGINT)
        self.processes = []

    def __del__(self):
        self.processes.clear()


def test_nothing_is_said_of_what_ctrl_c_left_half_made(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with cli.interrupts(), contextlib.suppress(KeyboardInterrupt):
        HalfMade()
    assert not said


class Ending:
    """Stopped where it ends, as torch's iterators are while they wait for their processes."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_a_destructor_is_not_lost():
    began = time.monotonic()
    with cli.interrupts() as seen:
        Ending()
        assert seen, "Python ran the handler in the destructor, and dropped what it raised"
        with pytest.raises(KeyboardInterrupt):
            time.sleep(20)
    assert time.monotonic() - began < 10


def test_ctrl_c_ends_a_forked_process_without_a_word():
    """A terminal sends it to all; a reader that had just begun showed where it was."""
    with cli.interrupts():
        child = os.fork()
        if not child:
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_forked_process_does_not_tell_that_its_parent_went(capfd):
    with cli.interrupts():
        for error in (EOFError("gone"), ValueError("other")):
            child = os.fork()
            if not child:
                try:
                    sys.excepthook(type(error), error, None)
                    sys.stderr.flush()
                finally:
                    os._exit(0)
            os.waitpid(child, 0)
    assert capfd.readouterr().err == "ValueError: other\n"


def test_errors_in_destructors_are_said_otherwise(monkeypatch):
    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: said.append(found.exc_type))
    with cli.interrupts():
        HalfMade.__new__(HalfMade)
    assert said == [AttributeError]


@pytest.mark.parametrize("after", [0.3, 0.8])
def test_ctrl_c_while_a_command_still_starts(tmp_path, after):
    """Before any work, while modules are imported."""
    command = [sys.executable, "-c", STARTS, "filters", "--out", tmp_path / "o.png"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    ) as process:
        assert process.stdout.readline() == "starts\n"
        time.sleep(after)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode in (0, 130, 2), errors
    if process.returncode == 130:
        assert errors == "zfkernels filters: stopped\n"
    else:  # it was faster
        assert not re.search("Traceback|Interrupt", errors)


STARTS = """
import sys
from zfkernels.cli import main
print("starts", flush=True)
sys.exit(main())
"""
