"""`zfkernels verify`."""

import argparse
import math
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from ..files import check_writable, write_json

# Those of testing.cases.
OPS: tuple[str, ...] = ("conv2d", "conv2d_add", "conv_transpose2d", "conv2d_weight_grad", "max_pool2d", "max_unpool2d")
OPS += ("max_unpool2d_backward", "contrast_norm", "contrast_norm_backward", "max_pool2d_contrast_norm")
OPS += ("conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d_weight_grad", "max_unpool2d_relu_conv_transpose2d")
EXAMPLES = """examples:
  zfkernels verify
  zfkernels verify --compile-only --quick
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels verify`."""
    add = parser.add_argument
    add("--backend", help="check this backend only; default: every backend that can run here")
    add("--ops", help=f"check these only, by commas: {', '.join(OPS)}")
    add("--seed", type=int, default=0, help="seed of the random cases (default 0)")
    add("--cases", type=int, default=20, help="random cases an op, besides the fixed ones (default 20)")
    add("--json", type=Path, metavar="FILE", help="write the results, with device and versions, to FILE")
    add(
        "--compile-only",
        action="store_true",
        help="run nothing: compile the Triton kernels of every layer for sm_80, sm_90, sm_100 and gfx942, for which no "
        "GPU is needed, and fail on spills, too much shared memory, or matrix units left unused",
    )
    add("--quick", action="store_true", help="with --compile-only: bfloat16 on sm_90 alone")


def run(args: argparse.Namespace) -> int:
    """Prints the table; 0 when every check passed, 1 when one failed."""
    from .. import backends
    from ..environment import environment
    from ..testing import verify

    if args.json:
        check_writable(args.json, "--json")
    if args.compile_only:
        return compile_only(args)
    ops = args.ops.split(",") if args.ops else None
    print(verify.heading())
    try:
        rows = verify.run(args.backend, args.seed, args.cases, ops, lambda rows: print(verify.line(rows), flush=True))
    except RuntimeError as error:
        raise ValueError(str(error)) from error
    failures = [row for row in rows if row.failure]
    for row in failures:
        print(f"\nFAILED {row.op} on {row.backend} in {row.dtype}: {row.failure}")
    if args.backend is None:
        for name in backends.MODULES:
            if reason := backends.reason(name):
                print(f"not checked: {name}: {reason}")
    checked = sum(row.cases for row in rows)
    print(f"{checked} checks, {len(failures)} of {len(rows)} combinations of op, backend and dtype failed")
    if args.json:
        head = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "seed": args.seed}
        results = [asdict(row) | {"error": row.error if math.isfinite(row.error) else str(row.error)} for row in rows]
        write_json(args.json, head | environment() | {"results": results})
    return 1 if failures else 0


def compile_only(args: argparse.Namespace) -> int:
    """The compile gate of the Triton backend; 0, or 1 when it failed."""
    import triton  # noqa: F401, a missing one is an error of its own

    from ..backends.triton import gate

    return gate.main(args.quick, args.json)
