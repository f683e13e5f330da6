"""Parts that need no GPU: what the machine has, the build for its architecture, Triton's kernels compiled ahead."""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from itertools import chain

from .processes import cores
from .settings import MACHINE, ROOT, Run, skip, write


def machine(run: Run) -> int:
    """Writes machine.json: the GPU, which backends run and what verify has to check of each; 2 for an unknown job."""
    import torch

    from zfkernels import backends
    from zfkernels.bench import record
    from zfkernels.environment import compiled
    from zfkernels.files import write_json
    from zfkernels.testing.cases import OPS

    from .rows import chosen

    try:
        chosen(run)
        if unknown := set(run.ops) - set(OPS):
            raise ValueError(f"--ops: no op {sorted(unknown)[0]!r}; the ops are {', '.join(OPS)}")
        if unknown := set(run.wanted) - set(backends.MODULES):
            raise ValueError(f"--backends: no backend {sorted(unknown)[0]!r}; they are {', '.join(backends.MODULES)}")
    except ValueError as error:
        print(error)
        return 2
    if not run.rehearsed and (problem := no_gpu()):
        print(problem)
        return 2
    found = {name: {"reason": backends.reason(name)} for name in dict.fromkeys((*run.wanted, "cpu"))}
    for name, words in found.items():
        if words["reason"] is None:
            words["checks"] = checks_of(backends.module(name), run.ops or tuple(OPS))
    properties = torch.cuda.get_device_properties(0)
    content = {"gpu": torch.cuda.get_device_name(), "capability": list(torch.cuda.get_device_capability())}
    content |= {"processors": properties.multi_processor_count, "cores": cores(), "isas": compiled()["isas"]}
    write_json(run.out / MACHINE, content | {"backends": found} | record.digests())
    return 0


def checks_of(module, ops: tuple[str, ...]) -> list[list[str]]:
    """Every [op, column] that verify has for the backend."""
    import torch

    from zfkernels.testing.compare import BOUNDS

    columns = [str(dtype).removeprefix("torch.") for dtype in BOUNDS if dtype in module.DTYPES]
    pairs = [[op, column] for op in ops for column in columns]
    tf32 = getattr(module, "TF32", False) and torch.float32 in module.DTYPES
    return pairs + [[op, "tf32"] for op in ops if tf32 and "conv" in op]


def no_gpu() -> str:
    """Why there is nothing to run on, "" where there is."""
    import torch

    if torch.cuda.is_available():
        return ""
    return f"torch {torch.__version__} finds no GPU here; `python benchmarks/gpu.py --rehearse` needs none"


def architecture(capability: tuple[int, int]) -> str:
    """What setup.py calls the GPU: Hopper's with its own features."""
    major, minor = capability
    return f"{major}{minor}" + ("a" if major == 9 else "")


def build(run: Run) -> int:
    """zfkernels' compiled module for this GPU's architecture alone. Without it the package cannot even be imported, so
    this part imports nothing of it."""
    import torch

    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    if run.rehearsed:
        command = [sys.executable, "-c", "print('as if built')"]
    elif problem := no_gpu():
        print(problem)
        return 2
    elif not (ROOT / "setup.py").exists():
        return skip("no sources here: what is installed runs")
    elif not (shutil.which("nvcc") or os.access("/usr/local/cuda/bin/nvcc", os.X_OK)):
        if not list((ROOT / "zfkernels").glob("_C*.so")):
            code = subprocess.run(command, cwd=ROOT, env=os.environ | {"ZFKERNELS_CUDA": "0"}).returncode
            if code != 0:
                return code
        return skip("nvcc not found: install the CUDA toolkit; what is built already runs, else all but CUDA")
    wanted = os.environ.get("ZFKERNELS_CUDA_ARCHITECTURES") or architecture(torch.cuda.get_device_capability())
    variables = {"ZFKERNELS_CUDA": "1", "ZFKERNELS_CUDA_RESOURCES": "1", "ZFKERNELS_CUDA_ARCHITECTURES": wanted}
    return subprocess.run(command, cwd=ROOT, env=os.environ | variables).returncode


def compile_triton(run: Run) -> int:
    """Every launch of ZFNet's layers in bfloat16 and TF32, then what "tune" tries, compiled into Triton's cache on all
    cores but one."""
    if importlib.util.find_spec("triton") is None:
        return skip("triton is not installed")
    from concurrent.futures import ProcessPoolExecutor, as_completed
    from multiprocessing import get_context

    os.nice(10)  # what is measured meanwhile goes first
    _todo[:] = launches(run.machine())[: 2 if run.rehearsed else None]  # a kernel cannot be sent; a fork has it
    rows: list[dict] = []
    with ProcessPoolExecutor(max(1, cores() - 1), get_context("fork")) as pool:
        for done in as_completed([pool.submit(compile_one, i) for i in range(len(_todo))]):
            rows.append(done.result())
            write(run, "compile-triton", rows, launches=len(_todo))
    failed = [row["kernel"] for row in rows if "error" in row]
    print(f"{len(rows)} launches compiled, failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


def launches(machine: dict) -> list[tuple]:
    """The gate's launches for this GPU, each once, those that tuning alone makes last."""
    import torch

    from zfkernels.backends.triton import gate
    from zfkernels.backends.triton.launch import Target

    major, minor = machine["capability"]
    target = Target("cuda", 10 * major + minor, machine["processors"])
    found = {}
    bf16, tf32 = torch.bfloat16, torch.float32
    for one in chain(gate.launches(bf16, target), gate.launches(tf32, target), gate.tried(bf16, target)):
        key = one.kernel.__name__, repr(gate.signature(one)), repr(sorted(one.options.items()))
        found.setdefault(key, (one, target.arch))
    return list(found.values())


_todo: list[tuple] = []


def compile_one(number: int) -> dict:
    """One launch by Triton's own launcher, which compiles into its cache and, without a device, runs nothing."""
    import torch
    import triton
    from triton.runtime.jit import MockTensor

    compilation, arch = _todo[number]
    triton.runtime.driver.set_active(AbsentDriver(arch))
    values = {p.name: compilation.arguments[p.name] for p in compilation.kernel.params}
    values = {name: MockTensor(v) if isinstance(v, torch.dtype) else v for name, v in values.items()}
    row, begin = {"kernel": compilation.name}, time.monotonic()
    try:
        compilation.kernel.warmup(**values, **compilation.options, grid=(1,))
    except Exception as error:  # one kernel's failure is its own
        row["error"] = f"{type(error).__name__}: {str(error).strip()[-300:]}"
    return row | {"seconds": time.monotonic() - begin}


class AbsentDriver:
    """What the launcher asks of a driver before it compiles, of a GPU that this process does not touch."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int = 0) -> int:
        return 0
