"""What the CUDA kernels are launched with on ZFNet's layers: nothing runs.

    python tests/emulator/launches.py MODULE

MODULE is what build.py made. Prints JSON: a kernel's name -> [threads a block, bytes of shared memory, the most].
"""

import json
import sys
from pathlib import Path

import backend
import torch
from instances import instances

from zfkernels.bench import jobs
from zfkernels.bench.measure import OURS
from zfkernels.bench.peers import Setting

ARITHMETIC = ((torch.bfloat16, False), (torch.float16, False), (torch.float32, True), (torch.float32, False))


def launches(module: Path) -> dict[str, list[int]]:
    compiled = backend.register(module)._C
    compiled.record()
    for name in [name for name, job in jobs.JOBS.items() if job.group == "op"]:
        for dtype, tf32 in ARITHMETIC:
            case = jobs.make(name, 1, Setting(backend.NAME, 1, (), device="cpu", dtype=dtype, bound=1.0))
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                case.run[OURS]()
    names, found = instances(module), {}
    for address, threads, shared in compiled.recorded():
        known = found.setdefault(names[address], [threads, 0])
        known[:] = max(known[0], threads), max(known[1], shared)
    return found


if __name__ == "__main__":
    print(json.dumps(launches(Path(sys.argv[1]).resolve())))
