"""Every long command, stopped by SIGINT at many places: it ends with 130 and one line, and continued it gives the same.

A program of its own, because it forks: `python interrupts.py FOLDER COMMAND [--places N]`; test_signals.py starts it.
"""

import argparse
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from small import SMALL, network

from zfkernels import cli, files
from zfkernels.backends import cpu
from zfkernels.data import folders
from zfkernels.models import checkpoint

TRAIN = "--side 64 --channels 4 4 4 4 4 --fc 8 8 --he --scale 32 --batch 4 --held-out 0.3 --device cpu"
LOOK = "--weights {w}/zfnet.pt --out {t}/o.png"
COMMANDS = {  # name -> its arguments; {w}: the folder of pictures and networks, {t}: where it writes
    "train": "{w}/photos --out {t}/run --epochs 3 --keep 1 2 " + TRAIN,
    "ablate": "{w}/photos --out {t}/run --epochs 2 --rows 0 4 " + TRAIN,
    "atlas": "{w}/photos --weights {w}/zfnet.pt --layers conv1 conv3 --maps 2 --top 3 --batch 2 --out {t}/atlas",
    "gallery": "--only training --out {t}/gallery --work {t}/work",
    "demo": "--epochs 1 --crops 2 --out {t}/demo",
    "project": "{w}/photos/a/0.png --layer conv3 " + LOOK,
    "occlude": "{w}/photos/a/0.png --patch 16 --stride 12 --raw {t}/cells.npz " + LOOK,
    "evolution": "{w}/photos --weights {w}/zfnet.pt {w}/zfnet.pt --layer conv2 --maps 1 --out {t}/o.png",
    "invariance": "{w}/photos/a/0.png --layers conv1 " + LOOK,
    "neighbours": "{w}/photos/a/0.png {w}/photos --layers conv1 " + LOOK,
    "probe": "{w}/photos --weights {w}/zfnet.pt --layers conv1 --per-class 2 --draws 1",
    "sanity": "{w}/photos/a/0.png --layer conv2 --repeats 1 " + LOOK,
    "correspond": "{w}/parts.json --weights {w}/zfnet.pt --layers conv1",
    "explore": "{w}/photos --weights {w}/zfnet.pt --layers conv1 --maps 2 --export {t}/page",
    "verify": "--backend cpu --ops contrast_norm,max_pool2d --cases 3",
}
# What a continued run must not differ in; the other commands begin anew.
RESULTS = {"train": "run/*", "ablate": "run/**/*", "atlas": "atlas/**/*", "gallery": "work/**/*"}
# Values of a run that are times, or drawn for each run.
UNLIKE = ("id", "run", "images_per_second", "seconds")


class End(NamedTuple):
    code: int  # as os.waitpid says it: of an exit, or minus the signal
    events: int
    errors: str


def world(folder: Path) -> Path:
    """Three classes of six pictures, and a network."""
    random = np.random.default_rng(0)
    for label, name in enumerate("abc"):
        (folder / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 100, (70, 70, 3), dtype=np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(folder / "photos" / name / f"{i}.png")
    parts = [{"image": f"photos/a/{i}.png", "parts": {"eye": [10, 10, 30, 30]}} for i in range(3)]
    (folder / "parts.json").write_text(json.dumps(parts))
    mean, scale = torch.full((3, 48, 48), 120.0), torch.full((1, 1, 1), 60.0)
    checkpoint.save(folder / "zfnet.pt", checkpoint.Network(network(), ["x", "y", "z"], mean, scale, (48, 48)), SMALL)
    return folder


def shorten() -> None:
    """The networks of demo and gallery are narrow and learn from fewer crops, and an atlas writes its state more often.
    What commands import is imported once, before any process is forked."""
    from zfkernels.analyses import activations
    from zfkernels.demo import demo, gallery, network  # noqa: F401
    from zfkernels.testing import verify  # noqa: F401

    activations.SAVE_EVERY = 2
    network.CROPS, network.CHANNELS = 6, (8,) * 5
    gallery.PLAN = replace(network.PLAN, epochs=2)


def counted(stop: int | None) -> Callable[[], int]:
    """Kernels, pictures and writes are counted from now on, and SIGINT comes in place `stop`; gives the counter."""
    count = 0

    def event() -> None:
        nonlocal count
        count += 1
        if count == stop:
            os.kill(os.getpid(), signal.SIGINT)

    def around(call: Callable, *arguments: object, **settings: object) -> object:
        event()
        return call(*arguments, **settings)

    for module, names in (
        (cpu, [name for name in vars(cpu) if name.startswith(("conv", "max_", "contrast", "linear"))]),
        (folders, ["read_picture"]),
        (files.os, ["replace"]),
        (files._Sink, ["write"]),
    ):
        for name in names:
            call = getattr(module, name)
            if callable(call) and not isinstance(call, type):
                wrapped = partial(around, call)
                setattr(
                    module, name, (lambda sink, data, f=wrapped: f(sink, data)) if module is files._Sink else wrapped
                )
    return lambda: count


def forked(arguments: list[str], folder: Path, stop: int | None = None) -> End:
    """The command in a process of its own, stopped in place `stop`; its output goes to files of `folder`."""
    folder.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        for stream in (1, 2):
            file = os.open(folder / f"{stream}.txt", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(file, stream)
        try:
            count = counted(stop)
            code = cli.main(arguments)
            (folder / "count.txt").write_text(str(count()))
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    count = folder / "count.txt"
    return End(status, int(count.read_text()) if count.exists() else 0, (folder / "2.txt").read_text())


def content(folder: Path, pattern: str) -> dict[str, object]:
    """Of each file what must not depend on where its command was stopped."""
    found = {}
    for file in sorted(folder.glob(pattern)):
        name = str(file.relative_to(folder))
        if file.suffix == ".pt":
            found[name] = plain(files.load_tensors(file))
        elif file.suffix == ".jsonl":
            found[name] = [plain(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.is_file() and file.suffix in (".png", ".jpg", ".html"):
            found[name] = file.read_bytes() if "training" not in name else b""
    return found


def plain(value: object) -> object:
    """Without what differs between two runs, tensors as bytes."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in UNLIKE}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def check(name: str, w: Path, folder: Path, places: int) -> None:
    """Raises AssertionError with what is wrong."""

    def command(t: Path, more: str = "") -> list[str]:
        return [name, *f"{COMMANDS[name]} {more}".format(w=w, t=t).split()]

    whole = forked(command(folder / "whole"), folder / "whole")
    assert whole.code == 0, whole.errors
    assert whole.events > 1, "nothing to count"
    expected = content(folder / "whole", RESULTS[name]) if name in RESULTS else None
    assert expected is None or expected, "no results"
    chosen = np.linspace(1, whole.events, places) if places > 1 else np.array([(whole.events + 1) / 2])
    for place in np.unique(chosen.astype(int)).tolist():
        t = folder / f"{place}"
        stopped = forked(command(t), t, place)
        assert stopped.code == 130, f"place {place} of {whole.events}: code {stopped.code}, {stopped.errors}"
        line = f"zfkernels {name}: stopped{cli.AGAIN.get(name, '')}\n"
        assert stopped.errors == line, f"place {place} of {whole.events}: {stopped.errors}"
        if expected is not None:
            resume = "--resume" if name == "train" and (t / "run" / "state.pt").exists() else ""
            again = forked(command(t, resume), t)
            assert again.code == 0, f"continued after place {place}: {again.errors}"
            found = content(t, RESULTS[name])
            assert found.keys() == expected.keys(), f"place {place}: {found.keys() ^ expected.keys()}"
            for file, value in expected.items():
                assert found[file] == value, f"continued after place {place} of {whole.events}: another {file}"
        shutil.rmtree(t)
    print(f"{name}: {whole.events} places")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("commands", nargs="*", metavar="COMMAND")
    parser.add_argument("--places", type=int, default=4, help="of each command in which it is stopped (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shorten()
    w = world(arguments.folder / "world")
    for name in arguments.commands or COMMANDS:
        (arguments.folder / name).mkdir()
        check(name, w, arguments.folder / name, arguments.places)


if __name__ == "__main__":
    main()
