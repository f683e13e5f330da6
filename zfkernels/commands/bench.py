"""`zfkernels bench`."""

import argparse
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from ..files import check_regular, check_writable, reason, write_json
from ..limits import LARGEST, most_processes

PEERS = ("eager", "compile", "onednn", "ort", "openvino", "autograd", "captum")  # those of bench.peers
EXAMPLES = """examples:
  zfkernels bench --quick
  zfkernels bench --jobs conv,project --n 1,8 --threads 2
  zfkernels bench --jobs models --n 1,8   # torch.compile(model, backend="zfkernels"); of one: model-resnet18
  zfkernels bench --jobs nets        # or resnet50,densenet121
  zfkernels bench --json run.json --plots plots
  zfkernels bench --show run.json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels bench`."""
    add = parser.add_argument
    add("--quick", action="store_true", help="some jobs at N = 1, few rounds, no torch.compile: under 2 minutes")
    text = (
        "by commas: names (conv3), ops (conv), networks (resnet50), groups (op, network, others, growth, models, nets)"
    )
    text += "; default: all but models and nets, other packages' networks, which take minutes"
    add("--jobs", default="", help=text)
    add("--n", default="", help="batch sizes, by commas (default: 1,8,32; on a GPU 1,16,128)")
    add("--threads", type=int, help="threads of every contender (default: torch's)")
    add("--backend", default="cpu", help="the zfkernels backend that is compared (%(default)s)")
    add("--peers", default="", help=f"by commas, of {', '.join(PEERS)} (default: all installed)")
    text = "what torch.compile may take for one case (%(default)g)"
    add("--compile-seconds", type=float, default=60, metavar="S", help=text)
    add("--compile-total", type=float, default=1800, metavar="S", help="and in the whole run (%(default)g)")
    add("--keep-malloc", action="store_true", help="let malloc keep big blocks, for all contenders")
    add("--json", type=Path, metavar="FILE", help="write everything here")
    add("--plots", type=Path, metavar="FOLDER", help="draw ratios, roofline and growth here")
    add("--show", type=Path, metavar="FILE", help="print (and plot) what --json wrote, and stop")
    add("--list", action="store_true", help="print the jobs and stop")


def run(args: argparse.Namespace) -> int:
    """Prints the table; 0, or 1 when a result of ours was wrong."""
    if args.json:
        check_writable(args.json, "--json")
    if args.plots:
        check_writable(args.plots, "--plots", folder=True)
    from ..bench import plots, tables
    from ..bench.jobs import JOBS
    from ..bench.measure import OURS

    if args.list:
        print("\n".join(f"{name:<19} {job.group:<8} {job.text}" for name, job in JOBS.items()))
        return 0
    if args.show:
        result = shown(args.show)
        print(tables.table(result))
    else:
        result = measured(args)
    if args.plots:
        for path in plots.write(result, args.plots):
            print(f"plot: {path}")
    return 0 if all(OURS in row["ms"] for row in result["rows"]) else 1


def shown(path: Path) -> dict[str, Any]:
    """The record in a file that --json wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it holds something else.
    """
    from ..bench import tables

    if not path.exists():
        raise FileNotFoundError(f"--show: there is no file {path}; `zfkernels bench --json {path}` writes one")
    check_regular(path)
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(row["ms"], dict) for row in result["rows"]):
            raise ValueError("a row without times")
        tables.table(result)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = f"{type(error).__name__}: {reason(error)}"
        raise ValueError(f"--show: {path} holds no record that `zfkernels bench --json` wrote ({said})") from error
    return result


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The record of the run that the options ask for; ValueError for what does not exist."""
    import torch

    from ..bench import run as bench
    from ..bench.peers import Setting

    peers = tuple(bench.parts(args.peers)) or (tuple(p for p in PEERS if p != "compile") if args.quick else PEERS)
    for peer in peers:
        if peer.split()[0] not in PEERS:
            raise ValueError(f"--peers: no peer {peer!r}; the peers are {', '.join(PEERS)}")
    threads = args.threads if args.threads is not None else torch.get_num_threads()
    if not 1 <= threads <= most_processes():
        raise ValueError(f"--threads must be at least 1 and at most {most_processes()}, got {threads}")
    try:
        setting = Setting(args.backend, threads, peers, args.compile_seconds, args.compile_total)
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    try:
        sizes = [int(n) for n in bench.parts(args.n)]
    except ValueError:
        raise ValueError(f"--n must be batch sizes by commas, got {args.n!r}") from None
    if any(n < 1 for n in sizes):
        raise ValueError(f"--n must be at least 1, got {args.n!r}")
    if max(sizes, default=1) > LARGEST:
        raise ValueError(f"--n must be at most {LARGEST}, got {args.n!r}")
    sizes = sizes or ([1] if args.quick else list(bench.SIZES[setting.device]))
    names = bench.select(args.jobs, args.quick)
    bench.check_sizes(names, sizes, setting)
    if args.keep_malloc and os.environ.get(bench.MALLOC) != bench.KEEP:  # malloc reads it only when a process starts
        command = [sys.executable, "-m", "zfkernels", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | {bench.MALLOC: bench.KEEP})

    def save(result: dict[str, Any]) -> None:
        if args.json:
            write_json(args.json, result)

    show = partial(print, flush=True)
    return bench.run(names, sizes, setting, args.quick, extras=not args.jobs, save=save, report=show)
