"""On a GPU machine: verify, tune and time every GPU backend beside torch, within a time limit, into JSON files.

    python benchmarks/gpu.py --out benchmarks/results/<device>
    python benchmarks/gpu.py --out dry-run --device cpu --backends cpu --jobs pool5,norm2 --n 1   # without a GPU

Each section runs in a process of its own with a share of the time, and writes <section>.json row by row: a crash or an
overrun loses what it had not reached and nothing else. Sections, in order:

    verify        zfkernels verify on every op and dtype, one file a backend
    determinism   every case three times, the same bits
    sanitizer     compute-sanitizer's memcheck over a few cases of verify, where the tool is installed
    tune          every case once with ZFKERNELS_TUNE=1, so that what follows runs the measured configurations
    ceilings      a large copy and large matrix products: the rates that the floors are computed with
    <dtype>-<n>   every case: error against float64 first, then time (a wrong result has none)
    compile       whole paths and layers under torch.compile(mode="max-autotune-no-cudagraphs")

Timing: contenders interleaved in a shuffled order within each round, on random data, the L2 cache flushed before every
call; batch 1 as a CUDA graph, for every contender; medians and quartiles over the rounds. "tf32" is float32 tensors
with TF32 products. A floor is the larger of the bytes that must move by the measured copy rate and the operations by
the measured product rate; `of_floor` is floor / time. What a case is, its bytes, operations and right results are those
of the job of that name in `zfkernels bench`.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch

from zfkernels import backends
from zfkernels.bench import jobs, measure, record
from zfkernels.bench.measure import OURS
from zfkernels.bench.peers import Case, Setting
from zfkernels.bench.run import select
from zfkernels.bench.shapes import CONVS
from zfkernels.testing import compare

PATHS = ("forward", "descent")
CASES = [name for name, job in jobs.JOBS.items() if job.group == "op" or name in PATHS]
DTYPES = {"bf16": torch.bfloat16, "tf32": torch.float32}
BOUNDS = {"bf16": compare.BOUNDS[torch.bfloat16], "tf32": compare.TF32_BOUND}
PATH_LAYERS = 5  # convolutions of a path, which rounds as often: its bound is that of one times their root
COMPILED = (*PATHS, "fused1", "unfused1", "conv2", "norm1")
SHARES = {"verify": 90, "determinism": 30, "sanitizer": 40, "tune": 100, "ceilings": 30, "compile": 90}  # seconds
ROWS_SHARE = 45


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--backends", help="by commas; default: all that run on a GPU here")
    parser.add_argument("--jobs", default="", help="by commas: names (conv3) or ops (conv); default: all")
    parser.add_argument("--n", default="128,1,16", help="batch sizes, by commas, in this order")
    parser.add_argument("--dtypes", default="bf16,tf32")
    parser.add_argument("--sections", help="by commas; default: all")
    parser.add_argument("--minutes", type=float, default=8.0, help="for everything")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--section", help=argparse.SUPPRESS)  # in the process of one section
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Runs the sections; 0 when all ended and no result of ours was wrong, otherwise 1; 2 for a wrong call."""
    args = arguments(argv)
    args.backends = args.backends or ",".join(gpu_backends())
    if not args.backends:
        print("no backend runs on a GPU here; `zfkernels info` says why", file=sys.stderr)
        return 2
    if args.section:
        return section(args)
    try:
        chosen(args)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    rows = [f"{dtype}-{n}" for n in args.n.split(",") for dtype in args.dtypes.split(",")]
    names = ["verify", "determinism", "sanitizer", "tune", "ceilings", *rows, "compile"]
    end, bad = time.monotonic() + 60 * args.minutes, []
    for name in [n for n in names if not args.sections or n in args.sections.split(",")]:
        limit = min(SHARES.get(name, ROWS_SHARE), end - time.monotonic())
        done = run_section(args, name, limit)
        print(f"{name:<14}{done}", flush=True)
        bad += [name] if done not in ("passed", "skipped") and not done.startswith("stopped") else []
    print(summary(args.out, rows))
    return 1 if bad else 0


def gpu_backends() -> list[str]:
    return [name for name in backends.available_backends() if backends.module(name).DEVICES[0] == "cuda"]


def run_section(args: argparse.Namespace, name: str, limit: float) -> str:
    """How the section ended: passed, FAILED, stopped (out of time; what it wrote stays) or skipped."""
    if limit < 5:
        return "stopped: no time was left"
    own = [f"--out={args.out}", f"--device={args.device}", f"--backends={args.backends}", f"--jobs={args.jobs}"]
    command = [sys.executable, __file__, *own, f"--rounds={args.rounds}", f"--n={args.n}", f"--dtypes={args.dtypes}"]
    command += [f"--section={name}"]
    environment = os.environ | ({"ZFKERNELS_TUNE": "1"} if name == "tune" else {})
    log = args.out / f"{name}.log"
    start = time.monotonic()
    with log.open("w") as file:
        try:
            code = subprocess.run(command, env=environment, stdout=file, stderr=file, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            return f"stopped after {limit:.0f} s"
    if code == 0:
        log.unlink()
        return "passed"
    return "skipped" if code == 77 else f"FAILED after {time.monotonic() - start:.0f} s: {log}"


def section(args: argparse.Namespace) -> int:
    if args.device == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
    named = {"verify": verify, "determinism": determinism, "sanitizer": sanitizer, "tune": tune, "ceilings": ceilings}
    if args.section in named:
        return named[args.section](args)
    return compiled(args) if args.section == "compile" else timed_rows(args, *args.section.split("-"))


def verify(args: argparse.Namespace) -> int:
    worst = 0
    for name in args.backends.split(","):
        command = [sys.executable, "-m", "zfkernels", "verify", "--backend", name, "--cases", "10"]
        command += ["--json", str(args.out / f"verify-{name}.json")]
        worst = max(worst, subprocess.run(command).returncode)
    return worst


def determinism(args: argparse.Namespace) -> int:
    different, checked = [], 0
    for dtype in args.dtypes.split(","):
        for name in chosen(args):
            for backend in args.backends.split(","):
                run = case_of(args, name, 16 if args.device == "cuda" else 1, backend, dtype).run[OURS]
                first, *others = (run() for _ in range(3))
                same = all(torch.equal(bits(a), bits(b)) for o in others for a, b in zip(first, o, strict=True))
                different += [] if same else [f"{name} {dtype} {backend}"]
                checked += 1
                write(args, "determinism", [{"checked": checked, "different": different}])
    return 1 if different else 0


def bits(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(torch.uint8) if x.is_floating_point() else x


def sanitizer(args: argparse.Namespace) -> int:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if args.device != "cuda" or not os.access(tool, os.X_OK):
        return 77
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-m", "zfkernels", "verify"]
    codes = [subprocess.run([*command, "--backend", b, "--cases", "0"]).returncode for b in args.backends.split(",")]
    write(args, "sanitizer", [{"tool": "memcheck", "exit_codes": codes}])
    return max(codes)


def tune(args: argparse.Namespace) -> int:
    for n in args.n.split(","):
        for dtype in args.dtypes.split(","):
            for name in chosen(args):
                for backend in args.backends.split(","):
                    case_of(args, name, int(n), backend, dtype).run[OURS]()
    return 0


def ceilings(args: argparse.Namespace) -> int:
    """Bytes a second of a copy (read plus written) and operations a second of products, medians of 20."""
    large = args.device == "cuda"
    x = torch.randn(2**28 if large else 2**22, device=args.device)
    y = torch.empty_like(x)
    row = {"copy": 2 * x.nbytes / statistics.median(times({"copy": lambda: y.copy_(x)}, 20, args.device)["copy"])}
    size = 8192 if large else 256
    for dtype in args.dtypes.split(","):
        a = torch.randn(size, size, device=args.device, dtype=DTYPES[dtype])
        taken = times({"product": lambda a=a: a @ a}, 20, args.device)["product"]
        row[dtype] = 2 * size**3 / statistics.median(taken)
    write(args, "ceilings", [row])
    return 0


def timed_rows(args: argparse.Namespace, dtype: str, n: str) -> int:
    """Every case of one dtype and batch size; 1 when a result of ours is wrong or raises."""
    rows, wrong = [], 0
    for name in chosen(args):
        case = case_with_contenders(args, name, int(n), dtype)
        row = measured(args, case, dtype)
        wrong |= any(who in row["failures"] for who in args.backends.split(","))
        rows.append(row)
        write(args, args.section, rows)
        del case
        if args.device == "cuda":
            torch.cuda.empty_cache()
    return int(wrong)


def compiled(args: argparse.Namespace) -> int:
    if args.device != "cuda":
        return 77
    rows = []
    for dtype in args.dtypes.split(","):
        for name in [c for c in COMPILED if c in chosen(args)]:
            case = case_with_contenders(args, name, 128, dtype)
            eager = case.run["eager nhwc"]  # a partial: torch's function and its tensors
            call = torch.compile(eager.func, dynamic=False, mode="max-autotune-no-cudagraphs")
            case.run["torch.compile"] = partial(call, *eager.args)
            rows.append(measured(args, case, dtype))
            write(args, "compile", rows)
    return 0


def chosen(args: argparse.Namespace) -> list[str]:
    return [name for name in select(args.jobs) if name in CASES]


def case_of(args: argparse.Namespace, name: str, n: int, backend: str, dtype: str, peers: tuple[str, ...] = ()) -> Case:
    bound = BOUNDS[dtype] * (PATH_LAYERS**0.5 if name in PATHS else 1)
    return jobs.make(name, n, Setting(backend, 1, peers, device=args.device, dtype=DTYPES[dtype], bound=bound))


def case_with_contenders(args: argparse.Namespace, name: str, n: int, dtype: str) -> Case:
    """The case with each of our backends by its name, torch in channels-last, and cuDNN's own fused convolution."""
    first, *rest = args.backends.split(",")
    case = case_of(args, name, n, first, dtype, ("eager",))
    case.run[first] = case.run.pop(OURS)
    for backend in rest:
        case.run[backend] = case_of(args, name, n, backend, dtype).run[OURS]
    case.run = {who: run for who, run in case.run.items() if not who.endswith("nchw")}
    if args.device == "cuda" and name.rstrip("0123456789") == "conv":
        x, w, b = case.run["eager nhwc"].args
        c = CONVS[int(name[4:])]
        stride, padding = [c.stride] * 2, [c.padding] * 2
        case.run["cudnn_convolution_relu"] = lambda: (
            torch.cudnn_convolution_relu(x, w, b, stride, padding, [1, 1], 1),
        )
    return case


def measured(args: argparse.Namespace, case: Case, dtype: str) -> dict:
    """One row: every contender's error, the times of the right ones, the floor."""
    errors, bound, right = measure.errors(case), case.setting.bound, {}
    row = {"case": case.name, "n": case.n, "dtype": dtype, "bound": bound, "flops": case.flops, "bytes": case.bytes}
    row["errors"] = {who: e if e < float("inf") else str(e) for who, e in errors.items()}
    row["failures"] = {who: f"error {e:.2g}, bound {bound:.2g}" for who, e in errors.items() if not e <= bound}
    row["failures"] |= case.missing
    for who in [who for who in errors if who not in row["failures"]]:
        try:
            right[who] = graphed(case.run[who]) if case.n == 1 and args.device == "cuda" else case.run[who]
        except Exception as error:  # one contender's crash is its row's, not the others'
            row["failures"][who] = f"{type(error).__name__}: {str(error)[:300]}"
    taken = times(right, args.rounds, args.device)
    row["us"] = {who: statistics.median(t) * 1e6 for who, t in taken.items()}
    row["us_quartiles"] = {who: [q * 1e6 for q in statistics.quantiles(t, n=4)] for who, t in taken.items()}
    file = args.out / "ceilings.json"
    if file.exists():
        rates = json.loads(file.read_text())["rows"][0]
        row["floor_us"] = 1e6 * max(row["bytes"] / rates["copy"], row["flops"] / rates[dtype])
        row["of_floor"] = {who: row["floor_us"] / us for who, us in row["us"].items()}
    return row


def graphed(run: Callable) -> Callable:
    """`run` as the replay of a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def times(runs: dict, rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of single calls, one a round for each contender, with a cold L2 cache on a GPU."""
    if device == "cpu":
        return measure.timed(runs, measure.Pace(0, 0, rounds, rounds))[0] if runs else {}
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    order, shuffle = list(runs), random.Random(0).shuffle
    for run in runs.values():
        run(), run()
    flush = torch.empty(256 << 20, dtype=torch.uint8, device=device)  # several times any L2
    for _ in range(rounds):
        shuffle(order)
        for who in order:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            flush.zero_()
            torch.cuda._sleep(300_000)  # cycles, in which the host queues the call while the device waits
            start.record()
            runs[who]()
            end.record()
            torch.cuda.synchronize()
            seconds[who].append(start.elapsed_time(end) / 1e3)
    return seconds


def write(args: argparse.Namespace, name: str, rows: list[dict]) -> None:
    """Writes the section's file, never half of it: the rows, and the device, versions, commit, digests and date."""
    head = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "section": name, "rounds": args.rounds}
    head |= record.environment(args.backends)
    if args.device == "cuda":
        head["gpu"], head["torch_cuda"] = torch.cuda.get_device_name(), torch.version.cuda
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        if shutil.which(query[0]):
            head["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    file = args.out / f"{name}.json"
    part = file.with_suffix(".part")
    part.write_text(json.dumps(head | {"rows": rows}, indent=1) + "\n")
    part.replace(file)


def summary(out: Path, names: list[str]) -> str:
    """The rows of the files, as a table."""
    lines = []
    for file in (out / f"{name}.json" for name in [*names, "compile"]):
        for row in json.loads(file.read_text())["rows"] if file.exists() else ():
            cells = [f"{who} {us:.1f}" for who, us in row["us"].items()]
            cells += [f"{who} FAILED ({why})" for who, why in row["failures"].items()]
            floor = f"floor {row['floor_us']:.1f}" if "floor_us" in row else ""
            lines.append(f"{row['case']:<13}{row['n']:>4} {row['dtype']:<5} us: {', '.join([*cells, floor])}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
