"""Parts that measure: the ceilings, rows of contenders, Triton's tuning, torch.compile.

The rows of a part come from a fork of its process, one after the other, each written as it is done. A row that raises,
kills its process (an illegal access ends all further work on the GPU) or takes too long is written as failed, and a new
fork goes on behind it.
"""

import contextlib
import json
import math
import multiprocessing
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from zfkernels.bench import jobs, measure
from zfkernels.bench.measure import OURS
from zfkernels.bench.peers import Case, Setting
from zfkernels.bench.run import select
from zfkernels.bench.shapes import CONVS
from zfkernels.files import write_json
from zfkernels.testing import compare

from .clock import times
from .processes import end_with_parent
from .settings import Run, content_of, skip, whole, write

PATHS = ("forward", "descent")
CASES = [name for name, job in jobs.JOBS.items() if job.group == "op" or name in PATHS]
TYPES = {"bf16": torch.bfloat16, "tf32": torch.float32}
BOUNDS = {"bf16": compare.BOUNDS[torch.bfloat16], "tf32": compare.TF32_BOUND}
PATH_LAYERS = 5  # convolutions of a path, which rounds as often: its bound is that of one times their root
RAISED = 3  # a fork's exit code when the row at which it ends is written
COMPILED = (*PATHS, "fused1", "unfused1", "conv2", "norm1")


def chosen(run: Run) -> list[str]:
    return [name for name in select(run.jobs) if name in CASES]


def allow_tf32() -> None:
    """float32 products may be TF32's, for every contender, and cuDNN measures its algorithms."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True


def ceilings(run: Run) -> int:
    """Bytes a second of a copy (read plus written) and operations a second of products, medians of 20."""
    allow_tf32()
    x = torch.randn(2**22 if run.rehearsed else 2**28, device=run.device)
    y = torch.empty_like(x)

    def seconds(call: Callable) -> float:
        return statistics.median(times({"call": call}, 20, run.device)[0]["call"])

    row = {"copy": 2 * x.nbytes / seconds(lambda: y.copy_(x))}
    size = 256 if run.rehearsed else 8192
    for dtype in TYPES:
        a = torch.randn(size, size, device=run.device, dtype=TYPES[dtype])
        row[dtype] = 2 * size**3 / seconds(lambda a=a: a @ a)
    if not finite(row):
        print(f"no rates: {row}")
        return 1
    write(run, "ceilings", [row])
    return 0


def timed_rows(run: Run, dtype: str, n: int) -> int:
    """<dtype>-<n>.json, every case: error against float64 first, then time (a wrong result has none)."""
    return each_row(run, run.part, chosen(run), partial(timed_row, run, dtype, n))


def timed_row(run: Run, dtype: str, n: int, name: str) -> dict:
    case = case_with_contenders(run, name, n, dtype)
    return measured(run, case, dtype)


def each_row(run: Run, file: str, names: list[str], make: Callable[[str], dict]) -> int:
    """Writes make(name) for each name; 1 when a result of ours is wrong, a row failed or the file cannot be written."""
    if not run.backends():
        return skip("no backend of ours runs here")
    path, content = run.out / f"{file}.json", {"part": run.part, "rows": []}
    path.unlink(missing_ok=True)
    while len(content["rows"]) < len(names):
        content = rows_of_a_fork(run, path, content, names, make)
    rows = content["rows"]
    wrong = [f"{row['case']}: {who}: {why}" for row in rows for who, why in row["failures"].items() if ours(run, who)]
    wrong += [] if whole(path) == content else [f"{path} could not be written"]
    say("\n".join(wrong) or f"{len(rows)} rows")
    return 1 if wrong else 0


def rows_of_a_fork(run: Run, path: Path, content: dict, names: list[str], make: Callable[[str], dict]) -> dict:
    """The file's content with the rows that a fork has made behind those of `content`; the one at which it ended, where
    it says nothing of it itself, as failed. The fork writes the file; whatever it leaves there, it is written again."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    before = len(content["rows"])
    context = multiprocessing.get_context("fork")
    child = context.Process(target=rows_of, args=(run, path, sender, content["rows"], names, make))
    child.start()
    sender.close()
    since, slow, running = time.monotonic(), False, True
    while running and not slow:
        running = child.is_alive()
        try:
            if receiver.poll(0.2):
                content, since, running = json.loads(receiver.recv_bytes()), time.monotonic(), True
        except (EOFError, OSError, ValueError):  # it has ended, or is about to
            child.join(1.0)
            running = child.is_alive()
        slow = running and time.monotonic() - since > run.row_seconds
    child.kill()
    child.join()
    rows = content["rows"]
    if len(rows) < len(names) and not (child.exitcode == RAISED and len(rows) > before):
        why = f"took over {run.row_seconds:.0f} s" if slow else f"exit code {child.exitcode}"
        say(f"{names[len(rows)]}: {why}")
        content = content | {"rows": [*rows, failed(names[len(rows)], why)]}
    if whole(path) != content:
        written(path, content)
    return content


def written(path: Path, content: dict) -> None:
    try:
        write_json(path, content)
    except OSError as error:  # a full disk, say: what comes later may find room
        say(str(error))


def say(text: str) -> None:
    """Prints; where the log cannot be written either, what is known counts more than what is said."""
    with contextlib.suppress(OSError):
        print(text, flush=True)


def failed(name: str, why: str) -> dict:
    return {"case": name, "failures": {"row": why}, "us": {}}


def ours(run: Run, who: str) -> bool:
    return who == "row" or who in run.wanted


def rows_of(run: Run, path: Path, sender: Connection, rows: list[dict], names: list[str], make: Callable) -> None:
    """In a fork: the rows behind those that there are, in turn, until one raises; all are sent as each is done."""
    end_with_parent()
    allow_tf32()
    for name in names[len(rows) :]:
        raised = False
        try:
            row = make(name)
            if not isinstance(row, dict) or not finite(row):
                raise ValueError(f"a row that is not of numbers: {row}")
        except Exception as error:
            say(traceback.format_exc())
            row, raised = failed(name, f"{type(error).__name__}: {str(error)[:300]}"), True
        rows = [*rows, row]
        content = content_of(run, rows)
        sender.send_bytes(json.dumps(content).encode())
        written(path, content)
        if raised or (run.device == "cuda" and not works()):
            sys.exit(RAISED)


def finite(value: object) -> bool:
    """Whether no number within is NaN or infinite."""
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def works() -> bool:
    """Whether the GPU still serves this process: after an illegal access, which may be one contender's, it does not."""
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except Exception:
        traceback.print_exc()
        return False
    return True


def tune(run: Run) -> int:
    """Triton's configurations measured at the large batch in bfloat16, ZFKERNELS_TUNE being set, for what follows."""
    if "triton" not in run.backends():
        return skip("the Triton backend does not run here")

    def row(name: str) -> dict:
        begin = time.monotonic()
        case = case_of(run, name, run.batch, "triton", "bf16")
        case.run["triton"] = case.run.pop(OURS)
        error = measure.errors(quiet(case))["triton"]
        failed = {} if error <= case.setting.bound else {"triton": case.missing.get("triton", f"error {error:.2g}")}
        return {"case": name, "seconds": time.monotonic() - begin, "failures": failed, "us": {}}

    return each_row(run, "tune", chosen(run), row)


def compiled(run: Run) -> int:
    """Whole paths and layers by torch.compile(mode="max-autotune-no-cudagraphs") beside the others."""

    def row(name: str) -> dict:
        case = case_with_contenders(run, name, run.batch, "bf16")
        eager = case.run["eager nhwc"]  # a partial: torch's function and its tensors
        call = torch.compile(eager.func, dynamic=False, mode="max-autotune-no-cudagraphs")
        case.run["torch.compile"] = partial(call, *eager.args)
        return measured(run, case, "bf16")

    return each_row(run, "torch-compile", [name for name in COMPILED if name in chosen(run)], row)


def case_of(run: Run, name: str, n: int, backend: str, dtype: str, peers: tuple[str, ...] = ()) -> Case:
    bound = BOUNDS[dtype] * (PATH_LAYERS**0.5 if name in PATHS else 1)
    return jobs.make(name, n, Setting(backend, 1, peers, device=run.device, dtype=TYPES[dtype], bound=bound))


def case_with_contenders(run: Run, name: str, n: int, dtype: str) -> Case:
    """The case with each of our backends by its name, torch in channels-last, and cuDNN's own fused convolution."""
    first, *rest = run.backends()
    case = case_of(run, name, n, first, dtype, ("eager",))
    case.run[first] = case.run.pop(OURS)
    for backend in rest:
        case.run[backend] = case_of(run, name, n, backend, dtype).run[OURS]
    case.run = {who: call for who, call in case.run.items() if not who.endswith("nchw")}
    if name.rstrip("0123456789") == "conv":
        x, w, b = case.run["eager nhwc"].args
        c = CONVS[int(name[4:])]
        stride, padding = [c.stride] * 2, [c.padding] * 2
        case.run["cudnn_convolution_relu"] = lambda: (
            torch.cudnn_convolution_relu(x, w, b, stride, padding, [1, 1], 1),
        )
    return quiet(case)


def quiet(case: Case) -> Case:
    """The case with cudnn.benchmark off while its reference is made: in float64 the search takes seconds."""
    right = case.right

    def made() -> tuple[torch.Tensor, ...]:
        before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, False
        try:
            return right()
        finally:
            torch.backends.cudnn.benchmark = before

    case.right = made
    return case


def measured(run: Run, case: Case, dtype: str) -> dict:
    """One row: every contender's error, the times of the right ones, the floor."""
    errors, bound, right = measure.errors(case), case.setting.bound, {}
    row = {"case": case.name, "n": case.n, "dtype": dtype, "bound": bound, "flops": case.flops, "bytes": case.bytes}
    row["errors"] = {who: e if e < float("inf") else str(e) for who, e in errors.items()}
    row["failures"] = {who: f"error {e:.2g}, bound {bound:.2g}" for who, e in errors.items() if not e <= bound}
    row["failures"] |= case.missing
    for who in [who for who in errors if who not in row["failures"]]:
        try:
            right[who] = graphed(case.run[who]) if case.n == 1 else case.run[who]
        except Exception as error:  # one contender's crash is its own, not the others'
            row["failures"][who] = f"{type(error).__name__}: {str(error)[:300]}"
    taken, late = times(right, run.rounds, run.device)
    row["us"] = {who: statistics.median(t) * 1e6 for who, t in taken.items()}
    row["us_quartiles"] = {who: [q * 1e6 for q in statistics.quantiles(t, n=4)] for who, t in taken.items()}
    row["host_time_in"] = late
    if found := whole(run.out / "ceilings.json"):
        rates = found["rows"][0]
        row["floor_us"] = 1e6 * max(row["bytes"] / rates["copy"], row["flops"] / rates[dtype])
        row["of_floor"] = {who: row["floor_us"] / us for who, us in row["us"].items() if us > 0}
    return row


def graphed(call: Callable) -> Callable:
    """`call` as the replay of a CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay
