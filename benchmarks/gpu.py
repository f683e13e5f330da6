"""On a GPU machine: build, verify and time every GPU backend beside torch, within a time limit, into JSON files.

    python benchmarks/gpu.py --out benchmarks/results/<device>           # everything, in about 9 minutes
    python benchmarks/gpu.py --out run --part build,verify-cuda          # some of it
    python benchmarks/gpu.py --out run --rehearse                        # without a GPU: the cpu backend in its place
    python benchmarks/gpu.py --out run --rehearse hang:bf16-128          # the same with a fault in one part

Each part runs in a process of its own and writes its results as they come, an op or a row at a time. Each has a share
of the time, and what the parts before it left; the build, without which nothing runs, may take some of the others'. At
its end, when its time is over, and when it prints without end, all that it started is killed.
Parts, in order:

    build           the compiled module for this GPU's architecture; ZFKERNELS_CUDA_ARCHITECTURES names others
    machine         what there is: the GPU, the backends that run, what verify has to check of each
    compile-triton  beside all others: ZFNet's kernels into Triton's cache, on all cores but one
    verify-cuda     `zfkernels verify`, every op and dtype
    memcheck        compute-sanitizer over verify's fixed cases, where the tool takes the device
    racecheck
    ceilings        a large copy and large matrix products: the rates that the floors are computed with
    bf16-128        rows: every case at N = 128 in bfloat16, error against float64 first, then time
    bf16-1          the same at N = 1, each contender as a CUDA graph
    tune            every case of the Triton backend once with ZFKERNELS_TUNE=1: what follows runs what was measured
    verify-triton   as verify-cuda, with two random cases an op
    determinism     every case three times, the same bits
    verify-cpu      the cpu backend on this host, where it has AVX-512 with ZFKERNELS_ISA=avx512
    bench-cpu       the same backend's times at 2, 8 and 16 threads
    tf32-128 tf32-1 bf16-16    more rows; "tf32" is float32 tensors with TF32 products
    torch-compile   whole paths and layers by torch.compile(mode="max-autotune-no-cudagraphs")

The exit code is 0 when every part passed or, for a reason that is printed, cannot run here; 1 when one did not, when a
backend that is wanted does not run, or when anything of what was timed was not verified by these sources; 2 for a wrong
call. run.json has how each part ended and what was not verified.

Timing: contenders interleaved in a shuffled order within each round, on random data, the L2 cache flushed before every
call, the device spinning while the host queues it; medians and quartiles over the rounds. A floor is the larger of the
bytes that must move by the measured copy rate and the operations by the measured product rate; `of_floor` is floor /
time. What a case is, its bytes, operations and right results are those of the job of that name in `zfkernels bench`.
"""

import argparse
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from on_gpu import processes, rehearsal, reports, settings  # noqa: E402
from on_gpu.settings import Run  # noqa: E402

AVX512 = (("ZFKERNELS_ISA", "avx512"),)


class Part(NamedTuple):
    """A part: its share in seconds, the module and function of on_gpu that do it with these arguments, variables of
    its environment, and the backends that must have been verified when it has run."""

    share: float
    module: str
    function: str
    arguments: tuple = ()
    environment: tuple[tuple[str, str], ...] = ()
    relies_on: tuple[str, ...] = ()


GPU = ("cuda", "triton")
BATCH = "batch"  # stands for the large rows' batch
PARTS = {
    "build": Part(70, "building", "build"),
    "machine": Part(15, "building", "machine"),
    "compile-triton": Part(300, "building", "compile_triton"),
    "verify-cuda": Part(60, "checking", "verify", ("cuda",), (), ("cuda",)),
    "memcheck": Part(30, "checking", "sanitizer", ("memcheck",)),
    "racecheck": Part(30, "checking", "sanitizer", ("racecheck",)),
    "ceilings": Part(12, "rows", "ceilings"),
    "bf16-128": Part(60, "rows", "timed_rows", ("bf16", BATCH), (), GPU),
    "bf16-1": Part(40, "rows", "timed_rows", ("bf16", 1), (), GPU),
    "tune": Part(40, "rows", "tune", (), (("ZFKERNELS_TUNE", "1"),)),
    "verify-triton": Part(50, "checking", "verify", ("triton",), (), ("triton",)),
    "determinism": Part(12, "checking", "determinism", (), (), GPU),
    "verify-cpu": Part(15, "checking", "verify", ("cpu",), AVX512),
    "bench-cpu": Part(40, "checking", "bench_cpu", (), AVX512),
    "tf32-128": Part(20, "rows", "timed_rows", ("tf32", BATCH), (), GPU),
    "tf32-1": Part(12, "rows", "timed_rows", ("tf32", 1), (), GPU),
    "bf16-16": Part(12, "rows", "timed_rows", ("bf16", 16), (), GPU),
    "torch-compile": Part(17, "rows", "compiled", (), (), GPU),
}
BESIDE = "compile-triton"  # runs in the background
REHEARSED = {"jobs": "pool5,norm1", "ops": "max_pool2d,contrast_norm", "rounds": 2}
BUILD_SECONDS = 150.0  # the most
HANG_SECONDS = 5.0  # that a rehearsal's part hangs before it is killed


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--part", default="", help=f"by commas, in their order: {', '.join(PARTS)}; default: all")
    parser.add_argument("--backends", default=",".join(GPU), help="by commas (default %(default)s)")
    parser.add_argument("--jobs", default="", help="by commas: names (conv3) or ops (conv); default: all")
    parser.add_argument("--ops", default="", help="by commas: what verify checks; default: all")
    parser.add_argument("--minutes", type=float, default=9.0, help="for everything (default %(default)g)")
    parser.add_argument("--rounds", type=int, default=15)
    text = f"without a GPU; with a fault where one is named, {', '.join(rehearsal.FAULTS)}, in a part (hang:tune)"
    parser.add_argument("--rehearse", nargs="?", const="none", metavar="FAULT[:PART]", help=text)
    parser.add_argument("--inside", help=argparse.SUPPRESS)  # in the process of one part
    parser.add_argument("--op", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rehearse:
        for name, value in REHEARSED.items():
            if getattr(args, name) == parser.get_default(name):
                setattr(args, name, value)
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the parts; 0, 1 or 2 as above."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = arguments(argv)
    if args.inside:
        return inside(args, argv)
    if problem := refused(args):
        print(problem, file=sys.stderr)
        return 2
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / settings.MACHINE).unlink(missing_ok=True)  # what another run found
    except OSError as error:
        print(f"--out: {error}", file=sys.stderr)
        return 2
    processes.adopt_orphans()
    until_stopped()
    parts, ended = chosen_parts(args), {}
    until, beside = time.monotonic() + 60 * args.minutes, None
    try:
        for name in parts:
            if name == BESIDE:
                beside = begun(args, argv, name, ended)
                continue
            ended[name] = reports.Ended(name, "stopped", 0.0, "the run was stopped")
            limit = limit_of(args, name, parts, until - time.monotonic())
            ended[name] = run_part(args, argv, name, limit, (beside[0],) if beside else ())
            if ended[name].code == 2 and name in ("build", "machine"):  # a wrong call, or nothing to run on
                print(ended[name].log, file=sys.stderr)
                return 2
        if beside:
            limit = max(1.0, min(PARTS[BESIDE].share - (time.monotonic() - beside[1]), until - time.monotonic()))
            ended[BESIDE] = finish(args, BESIDE, *beside, limit)
            beside = None
    finally:
        if beside:
            ended[BESIDE] = finish(args, BESIDE, *beside, 0)
        processes.sweep()  # where a signal came while a part was being started
        code = reports.conclude(args.out, parts, ended, relied_on(args, parts, ended))
    return code


def until_stopped() -> None:
    """Ctrl-C and other requests to stop end the run as a whole, once: another would end the ending."""
    known = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    asking = [each for each in known if signal.getsignal(each) != signal.SIG_IGN]  # nohup's is ignored

    def stop(number: int, _: object) -> None:
        for each in asking:
            signal.signal(each, signal.SIG_IGN)
        print(f"stopped by {signal.Signals(number).name}", flush=True)
        sys.exit(1)

    for each in asking:
        signal.signal(each, stop)


def refused(args: argparse.Namespace) -> str:
    """What is wrong with the call, without importing anything of the package."""
    if not 0 < args.minutes < float("inf"):
        return f"--minutes: expected a number over 0, got {args.minutes:g}"
    if args.rounds < 2:
        return f"--rounds: expected at least 2, which quartiles need, got {args.rounds}"
    for name in filter(None, args.part.split(",")):
        if name not in PARTS:
            return f"--part: no part {name!r}; the parts are {', '.join(PARTS)}"
    if args.rehearse in (None, "none"):
        return ""
    kind, _, part = args.rehearse.partition(":")
    if kind not in rehearsal.FAULTS or (part or "verify-cuda") not in PARTS:
        return (
            f"--rehearse: no fault {args.rehearse!r}; a fault is {', '.join(rehearsal.FAULTS)}, after : a part's name"
        )
    if kind == "wrong" and part in rehearsal.WITHOUT_RESULTS:
        return f"--rehearse {args.rehearse}: {part} has no results that could be wrong"
    return ""


def chosen_parts(args: argparse.Namespace) -> list[str]:
    """The parts that were asked for, in order; "machine" is always one of them."""
    wanted = args.part.split(",") if args.part else PARTS
    return [name for name in PARTS if name in wanted or name == "machine"]


def fault_of(args: argparse.Namespace) -> tuple[str, str]:
    """The fault to plant and the part to plant it in."""
    if args.rehearse in (None, "none"):
        return "", ""
    kind, _, part = args.rehearse.partition(":")
    return kind, part or "verify-cuda"


def limit_of(args: argparse.Namespace, name: str, parts: list[str], left: float) -> float:
    """The part's seconds: its share, and what of `left` the parts after it have no share in; the build's, without which
    none of them runs, may be theirs."""
    if name == "build":
        return min(left, BUILD_SECONDS)
    after = sum(PARTS[other].share for other in parts[parts.index(name) + 1 :] if other != BESIDE)
    return min(left, max(PARTS[name].share, left - after))


def begun(args: argparse.Namespace, argv: list[str], name: str, ended: dict) -> tuple[subprocess.Popen, float] | None:
    """Starts the part's process: (it, when). None where it cannot be started, which then stands in `ended`."""
    command = [sys.executable, str(HERE / "gpu.py"), *argv, "--inside", name]
    try:
        return processes.start(command, args.out / f"{name}.log", variables_of(args.out, name)), time.monotonic()
    except OSError as error:  # its log cannot be written
        ended[name] = reports.said(reports.Ended(name, "FAILED", 0.0, str(error)))
        return None


def variables_of(out: Path, name: str) -> dict[str, str]:
    """The part's own variables, as they are set already or, of an instruction set, where this host has it."""
    isas = (settings.whole(out / settings.MACHINE) or {}).get("isas", ())
    wanted = {key: value for key, value in PARTS[name].environment if key != "ZFKERNELS_ISA" or value in isas}
    return wanted | {key: os.environ[key] for key, _ in PARTS[name].environment if key in os.environ}


def run_part(args: argparse.Namespace, argv: list[str], name: str, limit: float, kept: tuple) -> reports.Ended:
    if limit < 5:
        return reports.said(reports.Ended(name, "stopped", 0.0, "no time was left"))
    ended: dict[str, reports.Ended] = {}
    started = begun(args, argv, name, ended)
    return finish(args, name, *started, limit, kept) if started else ended[name]


def finish(
    args: argparse.Namespace, name: str, process: subprocess.Popen, since: float, limit: float, kept: tuple = ()
) -> reports.Ended:
    """Waits for the part at most `limit` seconds, ends all that it started, and says how it ended."""
    log, began = args.out / f"{name}.log", time.time() - (time.monotonic() - since)
    try:
        if fault_of(args) == ("hang", name) and not name[-1].isdigit():
            processes.wait_for(process, rehearsal.HANGS, limit, log)
            limit = HANG_SECONDS
        code, why = processes.wait(process, limit, log)
    finally:
        left = processes.end(process, kept)
    ended = reports.how(name, code, time.monotonic() - since, log, why)
    if left:
        ended = ended._replace(how="FAILED", why=f"{ended.why}; processes {left} could not be ended")
    if halves := reports.cut_off(args.out, began):
        ended = ended._replace(how="FAILED", why=f"{ended.why}; it left {', '.join(halves)} cut off".strip("; "))
    return reports.said(ended)


def relied_on(args: argparse.Namespace, parts: list[str], ended: dict) -> list[str]:
    """The backends of which the parts that ran timed or checked results."""
    wanted = args.backends.split(",")
    used = {backend for name in parts if name in ended for backend in PARTS[name].relies_on}
    return [backend for backend in wanted if backend in used]


def inside(args: argparse.Namespace, argv: list[str]) -> int:
    """The part itself, in its own process: DONE in place of 0; or what the sanitizer runs."""
    processes.end_with_parent()
    name, (kind, planted) = args.inside, fault_of(args)
    tool = name.removesuffix("-op")
    run = Run(
        out=args.out.resolve(),
        part=name,
        wanted=tuple(args.backends.split(",")),
        jobs=args.jobs,
        ops=tuple(filter(None, args.ops.split(","))),
        rounds=args.rounds,
        argv=tuple(argv[: argv.index("--inside")]),
        rehearsed=bool(args.rehearse),
        fault=kind if planted == tool else "",
        op=args.op,
    )
    if run.rehearsed:
        rehearsal.install()
    if run.fault:
        rehearsal.plant(kind, tool)
    if name.endswith("-op"):
        return importlib.import_module("on_gpu.checking").sanitized_op(run)  # compute-sanitizer minds what is not 0
    part = PARTS[name]
    given = [run.batch if value == BATCH else value for value in part.arguments]
    return getattr(importlib.import_module(f"on_gpu.{part.module}"), part.function)(run, *given) or settings.DONE


if __name__ == "__main__":
    settings.line_buffered()
    sys.exit(main())
