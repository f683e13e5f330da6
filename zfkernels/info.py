"""What runs here and why: `zfkernels info`."""

import argparse
import importlib.metadata
import json
import os
import platform
from pathlib import Path

import torch

import zfkernels
from zfkernels import backends
from zfkernels.backends import cuda, triton


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels info`."""
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def main(args: argparse.Namespace) -> int:
    """Prints the report; 0."""
    report = environment()
    print(json.dumps(report, indent=1) if args.json else text(report))
    return 0


def environment() -> dict:
    """Versions, backends, instruction sets, threads and devices, as plain values that JSON can hold."""
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
        "cuda": {"problem": cuda.device_problem(), "devices": [d | {"self_test": self_test(i)} for i, d in devices()]},
    }


def compiled() -> dict:
    """The instruction set in use, those that this CPU can use, and whose threads the kernels run on."""
    try:
        from zfkernels import _C
    except ImportError:
        return {"isa": None, "isas": [], "thread_pool": None, "built_with_cuda": None, "exact": None}
    return {
        "isa": _C.isa(),
        "isas": list(_C.isas()),
        "thread_pool": _C.pool(),
        "built_with_cuda": _C.built_with_cuda,
        "exact": _C.winograd() == backends.module("cpu").NEVER,
    }


def devices() -> list[tuple[int, dict]]:
    """The usable CUDA devices with their numbers."""
    return list(enumerate(cuda.devices()))


def self_test(index: int) -> str:
    """ "passed", or what went wrong when a kernel of this module ran on CUDA device `index`."""
    from zfkernels import _C

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


def text(report: dict) -> str:
    """The report for a reader."""
    lines = [
        f"zfkernels {report['zfkernels']} in {Path(zfkernels.__file__).parent}",
        f"python {report['python']}, torch {report['torch']}, numpy {report['numpy']}, "
        + (f"triton {report['triton']}" if report["triton"] else "triton not installed"),
        report["platform"],
        "",
        "backends",
        *(f"  {name:<10} {reason or 'available'}" for name, reason in report["backends"].items()),
        *(f"  triton: {note}" for note in report["triton_notes"]),
        *(
            f"  triton: measured on {device}: {problem}: {choice['config']}"
            for device, choices in report["triton_measured"].items()
            for problem, choice in choices.items()
        ),
        f"  chosen by {backends.VARIABLE}: {report['default_backend'] or 'unset, the best for the tensor is taken'}",
        "",
        f"CPU: {report['cpu']}, {report['cores']} cores",
    ]
    if report["isa"]:
        lines.append(
            f"instruction set: {report['isa']} (usable: {', '.join(report['isas'])}; ZFKERNELS_ISA=<name> forces one)"
        )
        lines.append(f"threads: {report['threads']} (torch.set_num_threads), pool: {report['thread_pool']}")
        kind = "direct only" if report["exact"] else "float32 by Winograd's filtering where faster, error 3e-6 in norm"
        lines.append(f"convolutions: {kind} (ZFKERNELS_EXACT=1 or zf.use_exact() for direct only, error 1e-6)")
    else:
        lines.append("compiled module: not built")
    found = report["cuda"]["devices"]
    lines += ["", f"CUDA devices: {len(found) if found else 'none; ' + (report['cuda']['problem'] or '')}"]
    for d in found:
        major, minor = d["capability"]
        memory = d["memory"] / 2**30
        lines.append(f"  {d['name']}, sm_{major}{minor}, {memory:.0f} GiB, self-test kernel: {d['self_test']}")
    return "\n".join(lines)
