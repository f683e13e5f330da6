"""`zfkernels bench`: the options and the run."""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

import torch

from .. import backends
from . import ceilings, measure, memory, plots, record, tables
from .jobs import JOBS, make
from .measure import OURS
from .peers import PEERS, Setting

SIZES = {"cpu": (1, 8, 32), "cuda": (1, 16, 128)}
QUICK = ("conv1", "conv2", "conv3", "convt2", "wgrad3", "pool1", "unpool1", "norm1",
         "normtrain1", "fused1", "unfused1", "forward", "logits", "project", "smallstep")  # fmt: skip
SCALED = ("conv2", "conv3", "fused1", "convt2", "wgrad2", "pool1", "norm1", "forward")
MALLOC = "GLIBC_TUNABLES"
KEEP = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels bench`."""
    parser.add_argument("--quick", action="store_true",
                        help="some jobs at N = 1, few rounds, no torch.compile: under 2 minutes")  # fmt: skip
    parser.add_argument("--jobs", default="",
                        help="by commas: names (conv3), ops (conv), groups (op, network, others, growth)")  # fmt: skip
    parser.add_argument("--n", default="", help="batch sizes, by commas (default: 1,8,32; on a GPU 1,16,128)")
    parser.add_argument("--threads", type=int, help="threads of every contender (default: torch's)")
    parser.add_argument("--backend", default="cpu", help="the zfkernels backend that is compared (%(default)s)")
    parser.add_argument("--peers", default="", help=f"by commas, of {', '.join(PEERS)} (default: all installed)")
    parser.add_argument("--compile-seconds", type=float, default=60, metavar="S",
                        help="what torch.compile may take for one case (%(default)g)")  # fmt: skip
    parser.add_argument("--compile-total", type=float, default=1800, metavar="S",
                        help="and in the whole run (%(default)g)")  # fmt: skip
    parser.add_argument("--keep-malloc", action="store_true", help="let malloc keep big blocks, for all contenders")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw ratios, roofline and growth here")
    parser.add_argument("--show", type=Path, metavar="FILE", help="print (and plot) what --json wrote, and stop")
    parser.add_argument("--list", action="store_true", help="print the jobs and stop")


def main(args: argparse.Namespace) -> int:
    """Prints the table; 0, or 1 when a result of ours was wrong."""
    if args.list:
        print("\n".join(f"{name:<19} {job.group:<8} {job.text}" for name, job in JOBS.items()))
        return 0
    if args.show:
        found = json.loads(args.show.read_text())
        print(tables.table(found))
    else:
        names, sizes, setting = chosen(args)
        if args.keep_malloc and os.environ.get(MALLOC) != KEEP:  # malloc reads it at start only
            os.execve(sys.executable, [sys.executable, "-m", "zfkernels", *sys.argv[1:]], os.environ | {MALLOC: KEEP})
        for path in filter(None, (args.json, args.plots)):
            path.parent.mkdir(parents=True, exist_ok=True)

        def save(found: dict) -> None:
            if args.json:
                args.json.write_text(json.dumps(found, indent=1) + "\n")

        found = run(names, sizes, setting, args.quick, extras=not args.jobs, save=save)
    if args.plots:
        for path in plots.write(found, args.plots):
            print(f"plot: {path}")
    return 0 if all(OURS in row["ms"] for row in found["rows"]) else 1


def chosen(args: argparse.Namespace) -> tuple[list[str], list[int], Setting]:
    """The jobs, the batch sizes and the terms that the options ask for; ValueError for what there is not."""
    peers = tuple(parts(args.peers)) or (tuple(p for p in PEERS if p != "compile") if args.quick else PEERS)
    for peer in peers:
        if peer.split()[0] not in PEERS:
            raise ValueError(f"--peers: no peer {peer!r}; the peers are {', '.join(PEERS)}")
    threads = args.threads if args.threads is not None else torch.get_num_threads()
    if threads < 1:
        raise ValueError(f"--threads must be at least 1, got {threads}")
    try:
        setting = Setting(args.backend, threads, peers, args.compile_seconds, args.compile_total)
        device = setting.device
    except RuntimeError as error:
        raise ValueError(f"--backend: {error}") from error
    try:
        sizes = [int(n) for n in parts(args.n)]
    except ValueError:
        raise ValueError(f"--n must be batch sizes by commas, got {args.n!r}") from None
    if any(n < 1 for n in sizes):
        raise ValueError(f"--n must be at least 1, got {args.n!r}")
    return select(args.jobs, args.quick), sizes or ([1] if args.quick else list(SIZES[device])), setting


def parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def select(wanted: str, quick: bool = False) -> list[str]:
    """The jobs that a comma list asks for: by name, by op (a name without its layer), by group; none: all of them."""
    if not wanted:
        return list(QUICK if quick else JOBS)
    named = {name: (name, name.rstrip("0123456789"), job.group) for name, job in JOBS.items()}
    for part in parts(wanted):
        if not any(part in names for names in named.values()):
            raise ValueError(f"--jobs: no job {part!r}; the jobs are {', '.join(JOBS)}")
    return [name for name, names in named.items() if set(parts(wanted)) & set(names)]


def run(
    names: list[str],
    sizes: list[int],
    setting: Setting,
    quick: bool = False,
    extras: bool = True,
    save: Callable[[dict], None] = lambda found: None,
) -> dict:
    """Measures, prints as it goes, and returns the record. `extras`: memory and threads as well.

    `save` is called with the record so far after each row, for a long run may be stopped.
    """
    torch.set_num_threads(setting.threads)
    pace = measure.QUICK if quick else measure.FULL
    if setting.device == "cuda":  # float32 means float32, for every contender
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    found = record.environment(setting.backend) | {
        "threads": setting.threads, "peers": list(setting.peers), "quick": quick,
        "keep_malloc": os.environ.get(MALLOC) == KEEP,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip
    with torch.no_grad():
        top = ceilings.measured(setting.device, setting.synchronize, quick)
        found |= {"ceilings": asdict(top), "rows": []}
        print(tables.heading())
        for name in names:
            for n in JOBS[name].sizes or sizes:
                case = make(name, n, setting)
                found["rows"].append(measure.measure(case, pace, top))
                print(tables.line(found["rows"][-1]), flush=True)
                save(found)
        if extras:
            n = sizes[0] if quick else sizes[min(1, len(sizes) - 1)]
            found["memory"] = memory.rows(setting, n, ("forward",) if quick else memory.JOBS)
            if setting.threads > 1 and "cpu" in backends.module(setting.backend).DEVICES:
                found["threads_scaling"] = measure.thread_scaling(setting, SCALED[-1:] if quick else SCALED, n, pace)
            save(found)
    print("", *tables.summaries(found), sep="\n")
    return found
