"""`zfkernels verify`."""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from .. import backends
from ..environment import environment
from ..testing import verify
from ..testing.cases import OPS
from ..testing.compare import BOUNDS, TF32_BOUND
from ..testing.verify import Row

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
    """Prints the table; 0 when every check passed, 1 when one failed, 2 when the request cannot be met."""
    if args.compile_only:
        return compile_only(args)
    try:
        ops = args.ops.split(",") if args.ops else None
        print(heading())
        rows = verify.run(args.backend, args.seed, args.cases, ops, report=lambda rows: print(line(rows), flush=True))
    except (RuntimeError, ValueError) as error:
        print(f"zfkernels verify: {error}", file=sys.stderr)
        return 2
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
    """The compile gate of the Triton backend; 2 where triton is missing."""
    if importlib.util.find_spec("triton") is None:
        print("zfkernels verify: triton is not installed; run: pip install 'zfkernels[triton]'", file=sys.stderr)
        return 2
    from ..backends.triton import gate

    return gate.main(args.quick, args.json)


COLUMNS = {str(dtype).removeprefix("torch."): bound for dtype, bound in BOUNDS.items()} | {"tf32": TF32_BOUND}


def heading() -> str:
    """The head of the table: each dtype with the bound of its column."""
    cells = (f"{name} {bound:.0e}" for name, bound in COLUMNS.items())
    return f"{'op':<35}{'backend':<10}{'cases':>5}  " + "".join(f"{cell:<16}" for cell in cells).rstrip()


def line(rows: list[Row]) -> str:
    """One line of the table: an op of a backend, and in each dtype the worst error ("exact": it must be, and is, 0)."""
    found = {row.dtype: row for row in rows}
    cells = []
    for name in COLUMNS:
        row = found.get(name)
        if row is None:
            cells.append("-")
        else:
            cells.append("exact" if row.bound == 0 == row.error else f"{row.error:.1e}")
            cells[-1] += " FAILED" if row.failure else ""
    return f"{rows[0].op:<35}{rows[0].backend:<10}{rows[0].cases:>5}  " + "".join(f"{c:<16}" for c in cells).rstrip()
