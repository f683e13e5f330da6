"""`zfkernels bench`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch

from ..bench import plots, tables
from ..bench import run as bench
from ..bench.jobs import JOBS
from ..bench.measure import OURS
from ..bench.peers import PEERS, Setting
from ..bench.run import KEEP, MALLOC, SIZES, parts, select


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


def run(args: argparse.Namespace) -> int:
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

        found = bench.run(names, sizes, setting, args.quick, extras=not args.jobs, save=save)
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


EXAMPLES = """examples:
  zfkernels bench --quick
  zfkernels bench --jobs conv,project --n 1,8 --threads 2
  zfkernels bench --json run.json --plots plots
  zfkernels bench --show run.json
"""
