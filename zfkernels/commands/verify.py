"""`zfkernels verify`."""

import argparse
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import check_writable, write_json
from .options import add_quiet

if TYPE_CHECKING:
    from ..testing.search import Found, Search
    from ..testing.verify import Row

# Those of testing.cases.
OPS: tuple[str, ...] = ("conv2d", "conv2d_add", "conv_transpose2d", "conv2d_weight_grad", "max_pool2d", "max_unpool2d")
OPS += ("max_unpool2d_backward", "avg_pool2d", "avg_pool2d_backward", "contrast_norm", "contrast_norm_backward")
OPS += ("max_pool2d_contrast_norm",)
OPS += ("conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d_weight_grad", "max_unpool2d_relu_conv_transpose2d")
EXAMPLES = """examples:
  zfkernels verify
  zfkernels verify --seconds 60 --seed 7
  zfkernels verify --case 'conv2d backward n=2 c=3 k=5 size=9x8 kernel=3x3 stride=2x2 flag=1 x=nan/strided'
  zfkernels verify --coverage
  zfkernels verify --compile-only --quick
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels verify`."""
    add = parser.add_argument
    add("--backend", help="check this backend only; default: every backend that can run here")
    add("--ops", help=f"check these only, by commas: {', '.join(OPS)}")
    add("--seed", type=int, default=0, help="seed of the random cases (default 0)")
    add("--cases", type=int, default=20, help="random cases an op, besides the fixed ones (default 20)")
    add(
        "--seconds",
        type=float,
        default=0,
        metavar="S",
        help="besides, search random shapes, memory and values for S seconds: results, gradients, fused against "
        "separate, runs and threads to the bit, prepared filters; a failure is shrunk to a small case",
    )
    add("--case", metavar="CASE", help="run this case alone, as the search printed it")
    add(
        "--coverage",
        action="store_true",
        help="besides, run the cases that are made for single kernel instances, on every instruction set, and fail if "
        "there is an instance that no case ran",
    )
    add_quiet(parser)
    add("--json", type=Path, metavar="FILE", help="write the results, with device and versions, to FILE")
    add(
        "--compile-only",
        action="store_true",
        help="run nothing: compile the Triton kernels of every layer for sm_80, sm_90, sm_100 and gfx942, for which no "
        "GPU is needed, and fail on spills, too much shared memory, or matrix units left unused",
    )
    add("--quick", action="store_true", help="with --compile-only: bfloat16 on sm_90, of layers alike one")


def run(args: argparse.Namespace) -> int:
    """Prints the table; 0 when every check passed, 1 when one failed."""
    if not 0 <= args.seconds < math.inf:
        raise ValueError(f"--seconds must be a number of seconds, got {args.seconds}")
    if args.json:
        check_writable(args.json, "--json")
    if args.compile_only:
        return compile_only(args)
    try:
        return one_case(args) if args.case is not None else everything(args)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


def everything(args: argparse.Namespace) -> int:
    """The fixed cases and, if asked for, those of the instances and the search."""
    from .. import backends
    from ..environment import environment
    from ..testing import coverage, verify

    ops = args.ops.split(",") if args.ops is not None else None
    names = (args.backend,) if args.backend else backends.available_backends()
    missing: list[str] = []
    verify.modules_of(args.backend, args.cases, ops)
    print(verify.heading())
    watched: AbstractContextManager[set[str]] = coverage.recording(names) if args.coverage else nullcontext(set())
    with watched as ran:
        rows = verify.run(args.backend, args.seed, args.cases, ops, lambda rows: print(verify.line(rows), flush=True))
        found = instances(names, ops, args.quiet) if args.coverage else []
        searched = search(args, names, ops) if args.seconds else None
    if args.coverage:
        known = {instance for name in names for instance in coverage.expected(name)}
        missing = sorted(known - ran)
        for instance in missing:
            print(f"NOT RUN {instance}")
        print(f"{len(known)} kernel instances, {len(missing)} that no case ran")
    if args.backend is None:
        for name in backends.MODULES:
            if reason := backends.reason(name):
                print(f"not checked: {name}: {reason}")
    found += searched.found if searched else []
    failures = report(rows, searched)
    if args.json:
        head = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "seed": args.seed}
        results = [asdict(row) | {"error": row.error if math.isfinite(row.error) else str(row.error)} for row in rows]
        more: dict[str, Any] = {"failed_cases": [in_words(one) for one in found]}
        more |= {"searched": {"cases": searched.cases, "checks": searched.checks}} if searched else {}
        more |= {"coverage": {"instances": len(known), "not_run": missing}} if args.coverage else {}
        write_json(args.json, head | environment() | {"results": results} | more)
    return 1 if failures or found or missing else 0


def report(rows: "list[Row]", searched: "Search | None") -> int:
    """Prints the failures of the fixed cases and the totals; how many failed."""
    failures = [row for row in rows if row.failure]
    for row in failures:
        print(f"\nFAILED {row.op} on {row.backend} in {row.dtype}: {row.failure}")
    if searched:
        print(
            f"searched {searched.cases} cases, {searched.checks} checks in {searched.seconds:.0f} s: "
            f"{len(searched.found)} failures"
        )
    checked = sum(row.cases for row in rows)
    print(f"{checked} checks, {len(failures)} of {len(rows)} combinations of op, backend and dtype failed")
    return len(failures)


def instances(names: tuple[str, ...], ops: list[str] | None, quiet: bool) -> "list[Found]":
    """Runs the cases that are made for the kernel instances; those that failed."""
    from ..progress import bar, wanted
    from ..testing import coverage
    from ..testing.checks import failure
    from ..testing.search import Found

    found = []
    cases = [case for name in names for case in coverage.cases(name) if not ops or case.op in ops]
    for case in bar(cases, "kernel instances", " cases", wanted(quiet), leave=False):
        if reason := failure(case):
            found.append(Found(case, reason, case))
            say(found[-1])
    return found


def search(args: argparse.Namespace, names: tuple[str, ...], ops: list[str] | None) -> "Search":
    from ..progress import bar, wanted
    from ..testing.search import search

    seconds: Iterator[int] = iter(
        bar(range(math.ceil(args.seconds)), "searching", "s", wanted(args.quiet), leave=False)
    )
    passed = 0

    def tick(elapsed: float) -> None:
        nonlocal passed
        while passed < elapsed:
            next(seconds, None)
            passed += 1

    chosen = [name for name in names if name != "reference" or len(names) == 1]
    return search(args.seconds, args.seed, chosen, ops, say, tick)


def say(found: "Found") -> None:
    """One line that reproduces the failure."""
    print(f"FAILED {found.failure}: zfkernels verify --case '{found.case.text()}'", flush=True)


def in_words(found: "Found") -> dict[str, str]:
    return {"case": found.case.text(), "failure": found.failure, "met": found.met.text()}


def one_case(args: argparse.Namespace) -> int:
    """Runs the case of --case; 0 where it passes, 1 where it fails."""
    from .. import backends
    from ..environment import environment
    from ..testing.checks import applies, failure
    from ..testing.search import Found
    from ..testing.spec import parse

    spec = parse(args.case)
    if not applies(spec.check, spec):
        raise ValueError(f"case: there is no check {spec.check!r} of such a case, got {args.case!r}")
    if why := backends.reason(spec.backend):
        raise ValueError(f"case: backend {spec.backend!r} cannot run here: {why}")
    try:
        reason = failure(spec)
    except ValueError as error:  # an instruction set that this machine lacks
        raise ValueError(f"case: {error}") from error
    if reason:
        say(Found(spec, reason, spec))
    else:
        print(f"passed: {spec.text()}")
    if args.json:
        head = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds")}
        cases = [{"case": spec.text(), "failure": reason}] if reason else []
        write_json(args.json, head | environment() | {"case": spec.text(), "failed_cases": cases})
    return 1 if reason else 0


def compile_only(args: argparse.Namespace) -> int:
    """The compile gate of the Triton backend; 0, or 1 when it failed."""
    import triton  # noqa: F401, a missing one is an error of its own

    from ..backends.triton import gate

    return gate.main(args.quick, args.json)
