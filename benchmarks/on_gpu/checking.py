"""Parts that say whether results are right: verify, the sanitizers, the same bits again.

Of verify and the sanitizers each op runs in a process of its own and leaves its own file: what a crash or an overrun
takes is that op's result.
"""

import math
import os
import shutil
import subprocess
import traceback
from collections.abc import Callable
from dataclasses import asdict
from functools import partial

from .processes import EARLY, cores, each_in_a_fork
from .rows import case_of, chosen
from .settings import Run, skip, write

CASES = {"cuda": 10, "triton": 2, "cpu": 5}  # random cases an op, besides the fixed ones
DTYPES = ("bf16", "tf32")
REFUSED = ("Device not supported", "not supported on this")  # a sanitizer's words where it cannot run


def verify(run: Run, backend: str) -> int:
    """`zfkernels verify`, the ops beside each other; verify-<backend>/<op>.json as each is done."""
    words = run.machine()["backends"][backend]
    if words["reason"] is not None:
        print(words["reason"])
        return 1
    if (variable := os.environ.get("ZFKERNELS_ISA")) and variable not in run.machine()["isas"]:
        return skip(f"this processor has no {variable}, or it is not compiled in")
    folder = run.out / f"verify-{backend}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cases = 0 if run.rehearsed else CASES[backend]
    tasks = {op: partial(verify_one, run, backend, op, cases) for op in dict.fromkeys(op for op, _ in words["checks"])}
    return report(each_in_a_fork(tasks, cores()))


def verify_one(run: Run, backend: str, op: str, cases: int, name: str = "") -> int:
    """One op in every dtype; 1 where a check failed."""
    import torch

    from zfkernels.testing import verify

    torch.set_num_threads(1)  # the other ops run beside it
    rows = verify.run(backend, cases=cases, ops=[op])
    for row in rows:
        print(row.op, row.backend, row.dtype, f"error {row.error:.3g}, bound {row.bound:.3g}", row.failure or "")
    results = [asdict(row) | {"error": row.error if math.isfinite(row.error) else str(row.error)} for row in rows]
    write(run, name or f"verify-{backend}/{op}", results)
    return 1 if any(row.failure for row in rows) else 0


def report(codes: dict[str, int]) -> int:
    """Prints how the tasks ended; 1 unless all passed."""
    for name, code in codes.items():
        print(f"{name}: " + {0: "passed", 1: "FAILED", EARLY: "ended on the way"}.get(code, f"died, exit code {code}"))
    return 1 if any(codes.values()) else 0


def sanitizer(run: Run, tool: str) -> int:
    """compute-sanitizer's `tool` over the fixed cases of the CUDA backend, an op a process; <tool>.json."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if run.machine()["backends"].get("cuda", {"reason": "not asked for"})["reason"] is not None:
        return skip("the CUDA backend does not run here")
    if not run.rehearsed and not os.access(program, os.X_OK):
        print("compute-sanitizer is not installed: nothing says that the kernels stay in bounds; it comes with CUDA")
        return 1
    prefix = ["env"] if run.rehearsed else [program, "--tool", tool, "--error-exitcode", "9"]
    ops = dict.fromkeys(op for op, _ in run.machine()["backends"]["cuda"]["checks"])
    ops = [*ops][-1:] if run.rehearsed else [*ops]
    shutil.rmtree(run.out / tool, ignore_errors=True)
    rows: list[dict] = []
    for code, op, words in checked_by(run, prefix, tool, ops):
        if code != 0 and any(text in words for text in REFUSED):
            return skip(f"compute-sanitizer refuses this device: {words.strip().splitlines()[-1]}")
        rows.append({"op": op, "exit_code": code})
        if code != 0:
            rows[-1]["words"] = words[-4000:]
            print(f"{op}: exit code {code}\n{words[-4000:]}", flush=True)
        write(run, tool, rows)
    return 1 if any(row["exit_code"] for row in rows) else 0


def checked_by(run: Run, prefix: list[str], tool: str, ops: list[str]):
    """(exit code, op, what it printed) of each op's process as it ends, several at a time."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    def one(op: str) -> tuple[int, str, str]:
        command = [*prefix, *run.command("--inside", f"{tool}-op", "--op", op)]
        done = subprocess.run(command, capture_output=True, text=True)
        early = done.returncode == 0 and not (run.out / tool / f"{op}.json").exists()
        return EARLY if early else done.returncode, op, done.stdout + done.stderr

    with ThreadPoolExecutor(cores()) as pool:
        for done in as_completed([pool.submit(one, op) for op in ops]):
            yield done.result()


def sanitized_op(run: Run) -> int:
    """Within the sanitizer: one op of the CUDA backend. Its results are compared, but not counted as verified."""
    tool = run.part.removesuffix("-op")
    return verify_one(run, "cuda", run.op, 0, f"{tool}/{run.op}")


def determinism(run: Run) -> int:
    """Every case three times, the same bits; one that raises is that case's."""
    import torch

    from zfkernels.bench.measure import OURS

    different: list[str] = []
    checked = 0
    for dtype in DTYPES:
        for name in chosen(run):
            for backend in run.backends():
                try:
                    call = case_of(run, name, min(16, run.batch), backend, dtype).run[OURS]
                    first, *others = (call() for _ in range(3))
                    same = all(torch.equal(bits(a), bits(b)) for o in others for a, b in zip(first, o, strict=True))
                except Exception:
                    traceback.print_exc()
                    same = False
                different += [] if same else [f"{name} {dtype} {backend}"]
                checked += 1
        write(run, "determinism", [{"checked": checked, "different": different}])
    print("different:", ", ".join(different) or "none")
    return 1 if different else 0


def bits(x):
    import torch

    return x.contiguous().view(torch.uint8) if x.is_floating_point() else x


def bench_cpu(run: Run) -> int:
    """`zfkernels bench` of the cpu backend at several numbers of threads; bench-cpu-<threads>.json row by row."""
    if (variable := os.environ.get("ZFKERNELS_ISA")) and variable not in run.machine()["isas"]:
        return skip(f"this processor has no {variable}, or it is not compiled in")
    jobs = "norm1" if run.rehearsed else "conv2,conv3,pool1,norm1,fused1,forward"
    threads = [1] if run.rehearsed else [t for t in (2, 8, 16) if t <= cores()]
    tasks: dict[str, Callable[[], int]] = {str(t): partial(bench, run, jobs, t) for t in threads}
    return report(each_in_a_fork(tasks, 1))


def bench(run: Run, jobs: str, threads: int) -> int:
    from zfkernels import cli

    file = str(run.out / f"bench-cpu-{threads}.json")
    words = ["--quick", "--jobs", jobs, "--n", "1" if run.rehearsed else "8", "--peers", "eager", "--backend", "cpu"]
    return cli.main(["bench", *words, "--threads", str(threads), "--json", file])
