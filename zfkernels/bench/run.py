"""A run of `zfkernels bench`: which jobs, and the record of what they took."""

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime, timezone

import torch

from .. import backends
from ..limits import check_memory
from ..words import nearest
from . import ceilings, measure, memory, record, tables
from .jobs import JOBS, make
from .peers import Setting
from .record import Row

ORDINARY = 128  # a batch size that every machine holds
SIZES = {"cpu": (1, 8, 32), "cuda": (1, 16, 128)}
QUICK_OPS = ("conv1", "conv2", "conv3", "convt2", "wgrad3", "pool1", "unpool1", "norm1", "normtrain1")
QUICK = (*QUICK_OPS, "fused1", "unfused1", "forward", "logits", "project", "smallstep")
SCALED = ("conv2", "conv3", "fused1", "convt2", "wgrad2", "pool1", "norm1", "forward")
MALLOC = "GLIBC_TUNABLES"
OTHERS = ("models", "nets")  # groups of other packages' networks, which take minutes: only where they are asked for
KEEP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def select(wanted: str, quick: bool = False) -> list[str]:
    """The jobs that a list by commas asks for: names, ops (a name without its layer), networks (resnet50), groups.

    Where it is empty all but those of OTHERS.
    """
    if not wanted:
        return list(QUICK) if quick else [name for name, job in JOBS.items() if job.group not in OTHERS]
    named = {
        name: (name, name.partition("-")[0] if job.group == "nets" else name.rstrip("0123456789"), job.group)
        for name, job in JOBS.items()
    }
    for part in parts(wanted):
        if not any(part in names for names in named.values()):
            known = sorted({name for names in named.values() for name in names})
            groups = dict.fromkeys(job.group for job in JOBS.values())
            raise ValueError(
                f"--jobs: no job {part!r}{nearest(part, known)}; `zfkernels bench --list` prints the jobs; their "
                f"groups are {', '.join(groups)}"
            )
    return [name for name, names in named.items() if set(parts(wanted)) & set(names)]


def check_sizes(names: list[str], sizes: list[int], setting: Setting) -> None:
    """ValueError, before anything is measured, for a batch size whose tensors memory cannot hold."""
    largest = max(sizes)
    if largest <= ORDINARY or setting.device != "cpu":
        return
    for name in names:
        if JOBS[name].sizes is None and not JOBS[name].missing():
            each = make(name, 1, replace(setting, peers=())).bytes
            check_memory(largest * each, f"--n {largest}: the tensors of {name}")


def run(
    names: list[str],
    sizes: list[int],
    setting: Setting,
    quick: bool = False,
    extras: bool = True,
    save: Callable[[Row], None] = lambda result: None,
    report: Callable[[str], None] = lambda text: None,
) -> Row:
    """Measures and returns the record. `extras`: memory and threads as well; memory of whole networks always.

    `save` is called with the record so far after each row, because a long run may be stopped; `report` with what there
    is to print.
    """
    torch.set_num_threads(setting.threads)
    pace = measure.QUICK if quick else measure.FULL
    if setting.device == "cuda":  # float32 means float32, for every contender
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    result = record.environment(setting.backend)
    result |= {"threads": setting.threads, "peers": list(setting.peers), "quick": quick}
    result |= {"keep_malloc": os.environ.get(MALLOC) == KEEP}
    result |= {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    with torch.no_grad():
        top = ceilings.measured(setting.device, setting.synchronize, quick)
        result |= {"ceilings": asdict(top), "rows": []}
        report(tables.heading())
        missing = {name: JOBS[name].missing() for name in names}
        for text in dict.fromkeys(filter(None, missing.values())):
            report(f"left out: {text}")
        for name in (name for name in names if not missing[name]):
            for n in JOBS[name].sizes or sizes:
                case = make(name, n, setting)
                own = measure.LONG if JOBS[name].group in OTHERS else pace
                result["rows"].append(measure.measure(case, own, top))
                report(tables.line(result["rows"][-1]))
                save(result)
        if networks := [name for name in names if JOBS[name].group == "models" and not missing[name]]:
            result["memory"] = memory.rows(setting, sizes[-1], networks)
            save(result)
        if extras:
            n = sizes[0] if quick else sizes[min(1, len(sizes) - 1)]
            result["memory"] = memory.rows(setting, n, ("forward",) if quick else memory.JOBS)
            if setting.threads > 1 and "cpu" in backends.module(setting.backend).DEVICES:
                result["threads_scaling"] = measure.thread_scaling(setting, SCALED[-1:] if quick else SCALED, n, pace)
            save(result)
    report("\n".join(["", *tables.summaries(result)]))
    return result
