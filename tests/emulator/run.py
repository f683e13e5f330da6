"""Runs the CUDA kernels' own source on the CPU: faults on purpose first, then the kernels.

    python tests/emulator/run.py [--quick]

1. Kernels that are wrong on purpose (faults.cpp), and real ones without a barrier or a wait: each must be caught.
2. tests/backends/test_backends.py through the emulated backend, its threads in order.
3. `zfkernels verify`'s fixed cases, and those that are made to run every instance of a kernel, the threads in a random
   order: no instance may be left (instances.py).
4. `zfkernels verify`'s cases under AddressSanitizer and UndefinedBehaviorSanitizer, the threads in reverse.

--quick leaves out what takes longest, the sanitizers. Objects are kept in build/emulator.
Needs g++ or clang++ (CXX) on Linux, and zfkernels installed or built in place.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import build

T = TypeVar("T")

OUT = build.ROOT / "build/emulator"
ORDERS = ("forward", "reverse", "1")

RIGHT = ("right", "right_rewriting")
# Fault -> the message in one of the orders at least, and whether it takes the sanitizers.
FAULTS = {
    "missing_barrier": ("wrong result", False),
    "missing_second_barrier": ("wrong result", False),
    "divergent_barrier": ("some threads wait at __syncthreads", False),
    "different_barriers": ("threads wait at different __syncthreads", False),
    "unwritten_shared_memory": ("wrong result", False),
    "read_before_wait": ("wrong result", False),
    "wait_for_too_few": ("wrong result", False),
    "never_waits": ("cp.async that was never waited for", False),
    "lanes_missing": ("threads wait for each other", False),
    "lanes_disagree": ("different masks", False),
    "read_past_array": ("heap-buffer-overflow", True),
    "write_past_array": ("heap-buffer-overflow", True),
    "past_shared_memory": ("heap-buffer-overflow", True),
    "misaligned_vector": ("misaligned address", True),
}

# A real kernel's source, the text to change in it (each must occur), what it becomes, and the op that must fail.
MUTATIONS = [
    (
        "contrast_norm.cu",
        "    __syncthreads();\n    if (!works) return;",
        "    if (!works) return;",
        "max_pool2d_contrast_norm",
    ),
    (
        "max_pool.cu",
        "if (switches[i] == static_cast<uint32_t>(tap)) ",
        "if (switches[i] <= static_cast<uint32_t>(tap)) ",
        "max_unpool2d",
    ),
    ("conv.cu", "ptx::cp_async_wait<kStages - 2>();\n", "ptx::cp_async_wait<kStages - 1>();\n", "conv2d"),
    ("conv.cu", "cp_async_wait<kStages - 2>();\n        __syncthreads();", "cp_async_wait<kStages - 2>();", "conv2d"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="no sanitizers")
    quick = parser.parse_args().quick
    started = time.monotonic()
    in_parallel([partial(faults, sanitize) for sanitize in ((False,) if quick else (True, False))])
    module = build.build()
    mutations()
    forward, reverse, drawn = ORDERS
    runs = [lambda: pytest(module, forward, "emulated"), lambda: every_instance(module, drawn)]
    if not quick:  # what takes longest first
        runs.insert(0, lambda: verify(build.build(sanitize=True), reverse, sanitize=True))
    in_parallel(runs)
    print(f"passed in {time.monotonic() - started:.0f} s")
    return 0


def in_parallel(runs: list[Callable[[], T]]) -> list[T]:
    """The results of functions that wait for processes of one thread each."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda run: run(), runs))


def faults(sanitize: bool) -> None:
    """Every fault of FAULTS must end the program with its message, and the right kernels must pass."""
    program = OUT / ("faults-sanitized" if sanitize else "faults")
    OUT.mkdir(parents=True, exist_ok=True)
    flags = [*build.COMMON, *(build.SANITIZED if sanitize else build.PLAIN), f"-I{build.ROOT}/csrc", f"-I{build.HERE}"]
    build.run([*build.compiler(), *flags, str(build.HERE / "faults.cpp"), "-o", str(program)])

    def report(name: str, order: str) -> tuple[int, str]:
        environment = os.environ | {"ZFKERNELS_EMULATOR_ORDER": order, "ASAN_OPTIONS": "detect_leaks=0"}
        done = subprocess.run([program, name], capture_output=True, text=True, env=environment)
        return done.returncode, done.stderr

    for name in RIGHT:
        for order in ORDERS:
            if report(name, order) != (0, ""):
                raise SystemExit(f"the kernel {name!r} failed in order {order}: {report(name, order)[1]}")
    for name, (text, needs_sanitizer) in FAULTS.items():
        if needs_sanitizer == sanitize:
            reports = [report(name, order) for order in ORDERS]
            if not any(code != 0 and text in words for code, words in reports):
                raise SystemExit(f"the fault {name!r} was not caught: {reports}")
            print(f"fault {name}: caught ({text})", flush=True)


def mutations() -> None:
    """The emulated tests must fail for every kernel of MUTATIONS in one of the orders."""
    modules = []
    for number, (file, before, after, _) in enumerate(MUTATIONS):
        source = (build.ROOT / "csrc/cuda" / file).read_text()
        if source.count(before) != 1:
            raise SystemExit(f"the text to change is not in {file} once: {before!r}")
        mutated = OUT / f"mutated_{number}.cu"
        mutated.write_text(source.replace(before, after))
        others = [p for p in (build.ROOT / "csrc/cuda").glob("*.cu") if p.name not in (file, "device.cu")]
        modules.append(lambda s=[mutated, *others], n=f"mutated_{number}": build.build(sources=s, name=n))

    def check(module: Path, file: str, before: str, after: str, op: str) -> None:
        if not any(verify(module, order=order, ops=op, check=False) for order in ORDERS):
            raise SystemExit(f"{op} passed with {before!r} changed to {after!r} in {file}")
        print(f"mutation of {file}: caught by {op}", flush=True)

    modules = in_parallel(modules)
    in_parallel([partial(check, module, *row) for module, row in zip(modules, MUTATIONS, strict=True)])


def environment(module: Path, order: str) -> dict[str, str]:
    return os.environ | {
        "ZFKERNELS_EMULATED": str(module),
        "ZFKERNELS_EMULATOR_ORDER": order,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(build.ROOT), os.environ.get("PYTHONPATH", "")]),
    }


def pytest(module: Path, order: str, which: str) -> None:
    """The tests of test_backends.py whose names match `which`; their output is printed in one piece."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/backends/test_backends.py"]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run([*command, "-k", which], cwd=build.ROOT, env=environment(module, order), **output)
    print(f"order {order}: pytest -k {which!r}\n{done.stdout}", flush=True)
    done.check_returncode()


def every_instance(module: Path, order: str) -> None:
    """instances.py in a process of its own; its output is printed in one piece."""
    command = [sys.executable, str(build.HERE / "instances.py"), str(module)]
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, cwd=build.ROOT, env=environment(module, order), **output)
    print(f"order {order}: every instance of a kernel\n{done.stdout}", flush=True)
    done.check_returncode()


def verify(
    module: Path, order: str = "forward", ops: str = "", sanitize: bool = False, check: bool = True, cases: int = 2
) -> int:
    """`zfkernels verify` of the emulated backend, in a process of its own; returns its exit code. Under the sanitizers
    without float16, whose kernels access what bfloat16's do."""
    code = f"""
import sys
sys.path.insert(0, {str(build.HERE)!r})
from pathlib import Path
import backend
registered = backend.register(Path({str(module)!r}))
registered.DTYPES = registered.DTYPES[: 2 if {sanitize} else 3]
from zfkernels.cli import main
from zfkernels.testing.cases import OPS
ops = {ops!r} or ",".join(op for op in OPS if op != "conv2d_add" and "avg" not in op)  # without what is torch's
sys.exit(main(["verify", "--backend", "emulated", "--cases", "{cases}", "--ops", ops]))
"""
    variables = environment(module, order)
    if sanitize:
        library = subprocess.run([*build.compiler(), "-print-file-name=libasan.so"], capture_output=True, text=True)
        variables |= {"LD_PRELOAD": library.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    quiet = {} if check else {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.run([sys.executable, "-c", code], cwd=build.ROOT, env=variables, check=check, **quiet).returncode


if __name__ == "__main__":
    sys.exit(main())
