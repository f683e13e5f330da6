"""`zfkernels verify`."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..testing.verify import Row

OPS = (  # those of testing.cases
    "conv2d",
    "conv_transpose2d",
    "conv2d_weight_grad",
    "max_pool2d",
    "max_unpool2d",
    "max_unpool2d_backward",
    "contrast_norm",
    "contrast_norm_backward",
    "max_pool2d_contrast_norm",
    "conv2d_relu_max_pool2d",
    "conv2d_relu_max_pool2d_weight_grad",
    "max_unpool2d_relu_conv_transpose2d",
)
EXAMPLES = """examples:
  zfkernels verify
  zfkernels verify --compile-only --quick
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels verify`."""
    parser.add_argument("--backend", help="check this backend only; default: every backend that can run here")
    parser.add_argument("--ops", help=f"check these only, by commas: {', '.join(OPS)}")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random cases (default 0)")
    parser.add_argument("--cases", type=int, default=20, help="random cases an op, besides the fixed ones (default 20)")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the results, with device and versions, to FILE"
    )
    parser.add_argument(
        "--compile-only",
        action="store_true",
        help="run nothing: compile the Triton kernels of every layer for sm_80, sm_90, sm_100 and gfx942, for which no "
        "GPU is needed, and fail on spills, too much shared memory, or matrix units left unused",
    )
    parser.add_argument("--quick", action="store_true", help="with --compile-only: bfloat16 on sm_90 alone")


def run(args: argparse.Namespace) -> int:
    """Prints the table; 0 when every check passed, 1 when one failed."""
    from .. import backends
    from ..environment import environment
    from ..testing import verify

    if args.compile_only:
        return compile_only(args)
    ops = args.ops.split(",") if args.ops else None
    bounds = columns()
    print(heading(bounds))
    try:
        rows = verify.run(args.backend, args.seed, args.cases, ops, lambda rows: print(line(rows, bounds), flush=True))
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
        args.json.write_text(json.dumps(head | environment() | {"results": results}, indent=1) + "\n")
    return 1 if failures else 0


def compile_only(args: argparse.Namespace) -> int:
    """The compile gate of the Triton backend; 0, or 1 when it failed."""
    import triton  # noqa: F401, a missing one is an error of its own

    from ..backends.triton import gate

    return gate.main(args.quick, args.json)


def columns() -> dict[str, float]:
    """The bound of each column of the table, by the name of its dtype."""
    from ..testing.compare import BOUNDS, TF32_BOUND

    return {str(dtype).removeprefix("torch."): bound for dtype, bound in BOUNDS.items()} | {"tf32": TF32_BOUND}


def heading(bounds: dict[str, float]) -> str:
    """The head of the table: each dtype with the bound of its column."""
    cells = (f"{name} {bound:.0e}" for name, bound in bounds.items())
    return f"{'op':<35}{'backend':<10}{'cases':>5}  " + "".join(f"{cell:<16}" for cell in cells).rstrip()


def line(rows: list[Row], bounds: dict[str, float]) -> str:
    """One line of the table: an op of a backend, and in each dtype the worst error ("exact": it must be, and is, 0)."""
    by_dtype = {row.dtype: row for row in rows}
    cells = "".join(f"{cell(by_dtype.get(name)):<16}" for name in bounds)
    return f"{rows[0].op:<35}{rows[0].backend:<10}{rows[0].cases:>5}  " + cells.rstrip()


def cell(row: Row | None) -> str:
    if row is None:
        return "-"
    return ("exact" if row.bound == 0 == row.error else f"{row.error:.1e}") + (" FAILED" if row.failure else "")
