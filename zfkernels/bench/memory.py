"""The most memory that a job needs, each contender in a process of its own.

    python -m zfkernels.bench.memory forward "eager nhwc" 8 2 cpu

prints {"held": bytes, "peak": bytes}: what the process holds once it has weights and images, and its high-water mark
while it runs the job twice. On a CPU these are VmRSS and VmHWM of /proc/self/status (Linux), on a GPU torch's own
counts.
"""

import ctypes
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import jobs
from .measure import OURS
from .peers import Setting
from .record import Row

JOBS = ("forward", "smallstep", "step")
STATUS = Path("/proc/self/status")


def rows(setting: Setting, n: int, names: Sequence[str] = JOBS) -> list[Row]:
    """For each job the bytes of ours and of torch eager in both formats; for a contender that failed, why."""
    result = []
    for name in names:
        sizes = jobs.JOBS[name].sizes
        size = sizes[0] if sizes else n
        row: Row = {"job": name, "n": size, "bytes": {}, "missing": {}}
        for who in (OURS, "eager nchw", "eager nhwc"):
            command = [sys.executable, "-m", __name__, name, who, str(size), str(setting.threads), setting.backend]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode == 0:
                row["bytes"][who] = json.loads(done.stdout)
            else:
                row["missing"][who] = (done.stderr.strip().splitlines() or ["no message"])[-1][:120]
        result.append(row)
    return result


def status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", STATUS.read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


def of_this_process(name: str, who: str, n: int, setting: Setting) -> dict[str, int]:
    case = jobs.make(name, n, setting)
    run = case.run[who]
    case.run.clear()  # the other contenders' tensors
    if setting.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        run(), run()
        return {"held": held, "peak": torch.cuda.max_memory_allocated()}
    ctypes.CDLL(None).malloc_trim(0)
    held = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is held
    run(), run()
    return {"held": held, "peak": status("VmHWM")}


def main() -> None:
    name, who, n, threads, backend = sys.argv[1:]
    torch.set_num_threads(int(threads))
    setting = Setting(backend, int(threads), () if who == OURS else (who,))
    with torch.no_grad():
        print(json.dumps(of_this_process(name, who, int(n), setting)))


if __name__ == "__main__":
    main()
