"""A run that is killed at every write in turn, continued each time, must end as if nothing had happened.

A program of its own, because it forks: `python kills.py FOLDER`; test_runs.py starts it.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from zfkernels import ZFNet, files
from zfkernels.data.folders import Memory
from zfkernels.models import checkpoint
from zfkernels.training import history
from zfkernels.training.fit import fit
from zfkernels.training.recipe import Plan
from zfkernels.training.run import Run

ARGUMENTS = {"num_classes": 2, "image_size": 40, "channels": (2,) * 5, "fc": (3, 3), "weight_std": None}
ARGUMENTS |= {"without": ("pool5",)}
PLAN = Plan(epochs=2, batch_size=4, learning_rate=0.02)
KEEP = (1, 2)
EXPECTED = {"state.pt", "zfnet.pt", "best.pt", "epoch_001.pt", "epoch_002.pt", "log.jsonl"}
SOME = 80  # of torch's many small writes to a file, how many lie between two kills


def pictures(count: int, seed: int) -> Memory:
    labels = torch.arange(count) % 2
    images = torch.randint(0, 120, (count, 3, 46, 46), generator=torch.Generator().manual_seed(seed))
    images[torch.arange(count), labels] += 135
    return Memory(images.to(torch.uint8), labels)


def train(out: Path) -> None:
    torch.manual_seed(0)
    model = ZFNet(**ARGUMENTS)
    run = Run(PLAN, pictures(12, 0), pictures(6, 1), (40, 40), 64.0)
    classes = ("a", "b")
    state = history.begin(out, PLAN, overwrite=False, model=model, run=run, classes=classes)
    fit(model, run, history.files(out, ARGUMENTS, classes, KEEP), state)


def killed_at(which: int) -> None:
    """From now on this process ends at its write number `which`."""
    count, writes = 0, 0

    def event() -> None:
        nonlocal count
        if count == which:
            os.kill(os.getpid(), signal.SIGKILL)
        count += 1

    def around(call):
        def wrapped(*arguments):
            event()
            call(*arguments)
            event()

        return wrapped

    write = files._Sink.write

    def counted(sink, data):
        nonlocal writes
        writes += 1
        if writes % SOME == 0:
            half = len(data) // 2
            sink.file.write(data[:half])
            sink.file.flush()
            event()
            sink.file.write(data[half:])
            return len(data)
        return write(sink, data)

    files._Sink.write = counted
    files.os.replace = around(os.replace)


def forked(action) -> int:
    """How the action, in a process of its own, ended: as os.waitpid says."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
    return os.waitpid(child, 0)[1]


def content(out: Path) -> dict[str, object]:
    """What of a run must not depend on where it was stopped."""
    found = {file.name for file in out.iterdir()}
    assert found == EXPECTED, found ^ EXPECTED
    result, runs = {}, set()
    for name in sorted(EXPECTED - {"log.jsonl"}):
        tensors = files.load_tensors(out / name)
        runs.add(tensors["id"] if name == "state.pt" else tensors["run"]["id"])
        result[name] = tensors["model"] if name == "state.pt" else tensors["state_dict"]
        if name != "state.pt":
            result[name + " epoch"] = tensors["run"]["epoch"]
            checkpoint.load(out / name)
    assert len(runs) == 1, runs
    for line in history.read_log(out / "log.jsonl"):
        result[f"epoch {line.epoch}"] = (line.loss, line.train_error, line.error, line.learning_rate)
    return result


def same(a: object, b: object) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    assert forked(lambda: train(folder / "whole")) == 0
    expected = content(folder / "whole")
    for which in range(10_000):
        out = folder / f"{which}"

        def stopped(out: Path = out, which: int = which) -> None:
            killed_at(which)
            train(out)

        status = forked(stopped)
        if status == 0:
            break
        assert os.WIFSIGNALED(status), f"kill {which} ended with {status}"
        assert forked(lambda out=out: train(out)) == 0, f"continued after kill {which}"
        assert same(content(out), expected), f"continued after kill {which}: another result"
    print(f"{which} kills")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
