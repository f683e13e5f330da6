import argparse
import json
from pathlib import Path
from typing import Any

import zfkernels

EXAMPLES = """examples:
  zfkernels info
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(args: argparse.Namespace) -> None:
    from ..environment import environment

    report = environment()
    print(json.dumps(report, indent=1) if args.json else text(report))


def text(report: dict[str, Any]) -> str:
    """The report for a reader."""
    from ..backends import VARIABLE

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
        f"  chosen by {VARIABLE}: {report['default_backend'] or 'unset, the best for the tensor is taken'}",
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
    devices = report["cuda"]["devices"]
    lines += ["", f"CUDA devices: {len(devices) if devices else 'none; ' + (report['cuda']['problem'] or '')}"]
    for device in devices:
        major, minor = device["capability"]
        memory = device["memory"] / 2**30
        lines.append(
            f"  {device['name']}, sm_{major}{minor}, {memory:.0f} GiB, self-test kernel: {device['self_test']}"
        )
    return "\n".join(lines)
