"""What runs here and why: the report of `zfkernels info`."""

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import torch

import zfkernels

from . import backends
from .backends import cuda, triton


def environment() -> dict[str, Any]:
    """Versions, backends, instruction sets, threads and devices, as plain values that JSON can hold."""
    devices = [device | {"self_test": self_test(index)} for index, device in enumerate(cuda.devices())]
    return {
        "zfkernels": zfkernels.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "numpy": installed("numpy"),
        "triton": installed("triton"),
        "backends": {name: backends.reason(name) for name in backends.MODULES},
        "default_backend": os.environ.get(backends.VARIABLE) or None,
        "triton_notes": list(triton.NOTES),
        "triton_measured": triton.measured(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **compiled(),
        "cuda": {"problem": cuda.device_problem(), "devices": devices},
    }


def compiled() -> dict[str, Any]:
    """The instruction set in use, those that this CPU can use, and whose threads the kernels run on."""
    try:
        from . import _C
    except ImportError:
        return {"isa": None, "isas": [], "thread_pool": None, "built_with_cuda": None, "exact": None}
    return {
        "isa": _C.isa(),
        "isas": list(_C.isas()),
        "thread_pool": _C.pool(),
        "built_with_cuda": _C.built_with_cuda,
        "exact": _C.winograd() == backends.module("cpu").NEVER,
    }


def self_test(index: int) -> str:
    """ "passed", or what went wrong when a kernel of this module ran on CUDA device `index`."""
    from . import _C

    try:
        _C.cuda_self_test(index)
    except RuntimeError as error:
        return f"FAILED: {error}"
    return "passed"


def installed(package: str) -> str | None:
    """A package's version, None when it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
