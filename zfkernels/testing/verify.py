"""Checks every backend on this machine against the float64 reference: `zfkernels verify`.

Each backend function, forward and backward, runs on fixed awkward cases and on seeded random ones, in each dtype that
the backend takes. The backend gets its arguments in awkward memory (contiguous, channels-last, strided views between
NaNs) and writes into memory that torch has filled with NaN; the reference gets the same numbers as plain float64. The
error is ||out - ref|| / ||ref||, non-finite values compared by place; what only moves or compares data must be exact.
Of the reference itself this checks rounding and strides; its formulas are checked against torch in the tests.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from .. import backends
from ..backends import reference
from ..words import no_such
from .cases import AVERAGES, OPS, Case
from .compare import BOUNDS, TF32_BOUND, is_float, tuple_of
from .memory import placed, poisoned_memory

# The bound of each column of the table, by the name of its dtype.
MOST_CASES = 1_000_000  # an op: they are drawn before they run
COLUMNS = {str(dtype).removeprefix("torch."): bound for dtype, bound in BOUNDS.items()} | {"tf32": TF32_BOUND}


@dataclass
class Row:
    """One op of one backend in one dtype: the worst error over its cases, its bound, and the first failure if any."""

    op: str
    backend: str
    dtype: str
    cases: int
    error: float
    bound: float
    failure: str | None = None


def run(
    backend: str | None = None,
    seed: int = 0,
    cases: int = 20,
    ops: Iterable[str] | None = None,
    report: Callable[[list[Row]], None] = lambda rows: None,
) -> list[Row]:
    """Checks `backend` (default: all that can run) and returns a Row for each op x backend x dtype.

    `cases` is the number of random cases an op, drawn from `seed`, besides the fixed ones; `ops` names some of OPS.
    `report` is called with the rows of one op and backend as they come. Raises ValueError for an unknown op or backend
    and RuntimeError for a backend that cannot run here. A failed check is a Row with a `failure`, not an exception.
    """
    modules, rows = modules_of(backend, cases, ops), []
    with np.errstate(all="ignore"):  # the cases hold NaN and infinities on purpose
        for op in ops or OPS:
            drawn = list(OPS[op].cases(seed, cases))
            for name, module in modules.items():
                if op in AVERAGES and not getattr(module, "AVERAGES", True):
                    continue
                own = [case for case in drawn if served(module, case)]
                rows.append([check(op, name, module, dtype, own) for dtype in BOUNDS if dtype in module.DTYPES])
                if getattr(module, "TF32", False) and "conv" in op:
                    rows[-1].append(check(op, name, module, torch.float32, own, tf32=True))
                report(rows[-1])
    return [row for group in rows for row in group]


def modules_of(backend: str | None, cases: int, ops: Iterable[str] | None) -> dict[str, ModuleType]:
    """The backends that `run` checks; it raises what `run` raises."""
    if unknown := set(ops or ()) - set(OPS):
        raise ValueError(f"ops: {no_such('op', min(unknown), tuple(OPS))}")
    if not 0 <= cases <= MOST_CASES:
        raise ValueError(f"cases must be at least 0 and at most {MOST_CASES}, got {cases}")
    chosen = (backend,) if backend is not None else backends.available_backends()
    return {name: backends.module(name) for name in chosen}


def served(module: ModuleType, case: Case) -> bool:
    """Has the backend a kernel for the case, and does it promise what comes out?"""
    if case.grouped and not getattr(module, "GROUPS", True):
        return False
    return not (case.spoils and getattr(module, "MULTIPLIES_PADDING", False))


def check(op: str, name: str, module: ModuleType, dtype: torch.dtype, cases: list[Case], tf32: bool = False) -> Row:
    """One Row: backend `module`'s function against the reference on all the cases."""
    bound = 0.0 if OPS[op].exact else TF32_BOUND if tf32 else BOUNDS[dtype]
    row = Row(op, name, "tf32" if tf32 else str(dtype).removeprefix("torch."), len(cases), 0.0, bound)
    device = module.DEVICES[0]
    for case in cases:
        plain = tuple(a.to(dtype) if is_float(a) else a for a in case.args)
        # Each tensor gets its memory on the device: a copy to it would make a strided one dense.
        moved = (a.to(device) if isinstance(a, Tensor) else a for a in plain)
        args = tuple(placed(a, case.layout) if is_float(a) else a for a in moved)
        try:
            exact = tuple(a.double() if is_float(a) else a for a in plain)
            right = tuple_of(getattr(reference, op)(*exact))
            with poisoned_memory(), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                out = tuple(o.cpu() if o is not None else None for o in tuple_of(getattr(module, op)(*args)))
            error = OPS[op].error(out, right, exact, dtype, row.bound)
        except Exception as problem:  # a crash of the function is a failed check of this case, whatever it is
            error, row.failure = math.inf, row.failure or f"{type(problem).__name__}: {problem}; {case.label}"
        if not error <= row.bound:  # also true for NaN
            row.failure = row.failure or f"error {error:.3g}, bound {row.bound:.3g}; {case.label}"
        row.error = error if math.isnan(error) or error > row.error else row.error
    return row


def heading() -> str:
    """The head of the table: each dtype with the bound of its column."""
    cells = (f"{name} {bound:.0e}" for name, bound in COLUMNS.items())
    return f"{'op':<35}{'backend':<10}{'cases':>5}  " + "".join(f"{cell:<16}" for cell in cells).rstrip()


def line(rows: list[Row]) -> str:
    """One line of the table: an op of a backend, and in each dtype the worst error ("exact": it must be, and is, 0)."""
    by_dtype = {row.dtype: row for row in rows}
    cells = "".join(f"{cell(by_dtype.get(name)):<16}" for name in COLUMNS)
    return f"{rows[0].op:<35}{rows[0].backend:<10}{rows[0].cases:>5}  " + cells.rstrip()


def cell(row: Row | None) -> str:
    if row is None:
        return "-"
    return ("exact" if row.bound == 0 == row.error else f"{row.error:.1e}") + (" FAILED" if row.failure else "")
