"""Checks every backend on this machine against the float64 reference: `zfkernels verify`.

Each backend function, forward and backward, runs on fixed awkward cases and on seeded random ones, in each dtype that
the backend takes. The backend gets its arguments in awkward memory (contiguous, channels-last, strided views between
NaNs) and writes into memory that torch has filled with NaN; the reference gets the same numbers as plain float64. The
error is ||out - ref|| / ||ref||, non-finite values compared by place; what only moves or compares data must be exact.
Of the reference itself this checks rounding and strides; its formulas are checked against torch in the tests.
"""

import argparse
import importlib.util
import json
import math
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import backends, info
from .backends import reference

BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
FIXED_CONVS = (  # n, c_in, c_out, (h, w), kernel, stride, padding
    (1, 1, 1, (1, 1), (1, 1), (1, 1), (0, 0)),
    (2, 3, 24, (17, 15), (7, 7), (2, 2), (1, 1)),  # conv1's form
    (1, 7, 5, (13, 11), (3, 3), (1, 1), (1, 1)),  # prime sizes
    (2, 5, 3, (4, 6), (4, 6), (1, 1), (0, 0)),  # a kernel as large as the map
    (1, 4, 6, (9, 10), (2, 1), (3, 4), (0, 0)),  # strides that skip pixels
    (1, 2, 4, (3, 3), (3, 3), (1, 1), (2, 2)),  # windows almost wholly in the padding
    (2, 4, 8, (11, 12), (3, 3), (3, 3), (0, 1)),  # pixels at the edge that no window covers
    (1, 8, 16, (1, 37), (1, 5), (1, 2), (0, 2)),  # one row
    (1, 33, 17, (6, 7), (3, 3), (1, 1), (1, 1)),  # channels just past a vector's width
    (2, 32, 40, (13, 13), (3, 3), (1, 1), (1, 1)),  # conv3's map
    (0, 3, 4, (8, 8), (3, 3), (1, 1), (1, 1)),  # no images
)
FIXED_POOLS = (  # n, c, (h, w), kernel, stride, padding, ceil
    (1, 1, (1, 1), (1, 1), (1, 1), (0, 0), False),
    (2, 6, (12, 14), (3, 3), (2, 2), (0, 0), True),  # overlapping, overhanging: pool1's form
    (1, 16, (13, 13), (3, 3), (2, 2), (0, 0), False),
    (1, 5, (7, 5), (2, 3), (1, 2), (1, 1), True),
    (2, 3, (9, 11), (2, 2), (3, 3), (0, 0), False),  # gaps between windows
    (1, 33, (17, 16), (16, 16), (1, 1), (8, 8), False),  # 256 taps, the most a switch can name
    (1, 2, (5, 5), (5, 5), (5, 5), (0, 0), False),  # one window
    (0, 4, (6, 6), (3, 3), (2, 2), (0, 0), False),
)
FIXED_NORMS = (  # n, c, (h, w), size, alpha, beta, k, center
    (1, 1, (1, 1), 5, 1e-4, 0.75, 2.0, False),
    (2, 96, (5, 7), 5, 1e-4, 0.75, 2.0, False),
    (1, 7, (3, 3), 4, 0.5, 0.75, 1.0, False),  # an even size
    (2, 6, (4, 5), 4, 0.5, 0.75, 1.0, True),
    (1, 3, (6, 2), 9, 2.0, 0.5, 1.0, True),  # windows wider than the stack
    (1, 17, (2, 2), 1, 1.0, 1.0, 0.5, False),
    (1, 33, (3, 5), 2, 0.1, 1.3, 1.5, True),
    (0, 8, (4, 4), 5, 1e-4, 0.75, 2.0, True),
)
TF32_BOUND = 1e-3  # of the ops that multiply, where a backend may round float32 operands to TF32
FILLS = ("normal", "ties", "nonfinite", "zeros")
LAYOUTS = ("contiguous", "channels_last", "strided")


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


@dataclass
class Case:
    """The arguments of one call, tensors in float64, and words to find it again by."""

    args: tuple
    label: str
    layout: str


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


def main(args: argparse.Namespace) -> int:
    """Prints the table; 0 when every check passed, 1 when one failed, 2 when the request cannot be met."""
    if args.compile_only:
        return compile_only(args)
    try:
        ops = args.ops.split(",") if args.ops else None
        print(heading())
        rows = run(args.backend, args.seed, args.cases, ops, report=lambda rows: print(line(rows), flush=True))
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
        args.json.write_text(json.dumps(head | info.environment() | {"results": results}, indent=1) + "\n")
    return 1 if failures else 0


def compile_only(args: argparse.Namespace) -> int:
    """The compile gate of the Triton backend; 2 where triton is missing."""
    if importlib.util.find_spec("triton") is None:
        print("zfkernels verify: triton is not installed; run: pip install 'zfkernels[triton]'", file=sys.stderr)
        return 2
    from .backends.triton import gate

    return gate.main(args.quick, args.json)


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
    if unknown := set(ops or ()) - set(OPS):
        raise ValueError(f"ops: no op {sorted(unknown)[0]!r}; the ops are {', '.join(OPS)}")
    if cases < 0:
        raise ValueError(f"cases must be at least 0, got {cases}")
    chosen = (backend,) if backend is not None else backends.available_backends()
    modules = {name: backends.module(name) for name in chosen}
    rows = []
    with np.errstate(all="ignore"):  # the cases hold NaN and infinities on purpose
        for op in ops or OPS:
            drawn = list(OPS[op].cases(seed, cases))
            for name, module in modules.items():
                rows.append([check(op, name, module, dtype, drawn) for dtype in BOUNDS if dtype in module.DTYPES])
                if getattr(module, "TF32", False) and "conv" in op:
                    rows[-1].append(check(op, name, module, torch.float32, drawn, tf32=True))
                report(rows[-1])
    return [row for group in rows for row in group]


def check(op: str, name: str, module, dtype: torch.dtype, cases: list[Case], tf32: bool = False) -> Row:
    """One Row: backend `module`'s function against the reference on all the cases."""
    bound = 0.0 if OPS[op].exact else TF32_BOUND if tf32 else BOUNDS[dtype]
    row = Row(op, name, "tf32" if tf32 else str(dtype).removeprefix("torch."), len(cases), 0.0, bound)
    device = module.DEVICES[0]
    for case in cases:
        args = tuple(placed(a.to(dtype), case.layout) if is_float(a) else a for a in case.args)
        try:
            exact = tuple(a.double() if is_float(a) else a for a in args)
            right = tuple_of(getattr(reference, op)(*exact))
            with poisoned_memory(), torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32):
                moved = (a.to(device) if isinstance(a, Tensor) else a for a in args)
                out = tuple(o.cpu() if o is not None else None for o in tuple_of(getattr(module, op)(*moved)))
            error = OPS[op].error(out, right, exact, dtype, row.bound)
        except Exception as problem:  # a crash of the function is a failed check of this case, whatever it is
            error, row.failure = math.inf, row.failure or f"{type(problem).__name__}: {problem}; {case.label}"
        if not error <= row.bound:  # also true for NaN
            row.failure = row.failure or f"error {error:.3g}, bound {row.bound:.3g}; {case.label}"
        row.error = error if math.isnan(error) or error > row.error else row.error
    return row


class poisoned_memory:
    """Within it torch fills the memory it allocates with NaN (integers: the largest), so an unwritten value shows."""

    def __enter__(self) -> None:
        self._before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *error: object) -> None:
        torch.use_deterministic_algorithms(self._before[0], warn_only=self._before[1])


# Errors


def relative_error(out: Tensor | None, right: Tensor | None) -> float:
    """||out - right|| / ||right|| over the finite values; inf if a shape or the place of a NaN or infinity differs."""
    if out is None or right is None:
        return 0.0 if out is right else math.inf
    if out.shape != right.shape:
        return math.inf
    out, right = out.double(), right.double()
    finite = right.isfinite()
    same = (out == right) | (out.isnan() & right.isnan())
    if not torch.equal(out.isfinite(), finite) or not bool(same[~finite].all()):
        return math.inf
    difference, size = float((out - right)[finite].norm()), float(right[finite].norm())
    return difference / size if size > 0 else difference


def values_error(out: tuple, right: tuple, args: tuple, dtype: torch.dtype, bound: float) -> float:
    """The worst relative error of the outputs."""
    if len(out) != len(right):
        return math.inf
    return max(relative_error(o, r) for o, r in zip(out, right, strict=True))


def fused_error(out: tuple, right: tuple, args: tuple, dtype: torch.dtype, bound: float) -> float:
    """values_error of the pooled map; inf for a switch that no summation order within the bound explains.

    A switch must be the reference's where its window's two largest values differ by more than the bound (times the
    map's largest value), where the ReLU zeroes the whole window, and where a value is not finite. Elsewhere it must
    point at a value that is within the bound of the largest.
    """
    if len(out) != 2 or out[1].dtype != torch.uint8 or out[1].shape != right[1].shape:
        return math.inf
    x, weight, bias, stride, padding, kernel, pool_stride, pool_padding, _ = args
    linear = reference.conv2d(x, weight, bias, stride, padding, False)
    taps = windows_of(linear, kernel, pool_stride, pool_padding, right[1].shape[2:])
    gap = bound * float(linear[linear.isfinite()].abs().max()) if linear.isfinite().any() else 0.0
    switches = out[1].long()
    if int(switches.max() if switches.numel() else 0) >= taps.shape[-1]:
        return math.inf
    rectified = taps.clamp(min=0).masked_fill(taps == -math.inf, -math.inf)  # taps off the map stay out of it
    largest = rectified.topk(min(2, taps.shape[-1]), -1).values
    unsettled = rectified.gather(-1, switches[..., None])[..., 0]
    clear = (largest[..., 0] - largest[..., -1] > gap) | (taps.amax(-1) < -gap) | (taps.shape[-1] == 1)
    clear |= ~(taps.isfinite() | (taps == -math.inf)).all(-1)
    settled = torch.where(clear, switches == right[1], unsettled >= largest[..., 0] - gap)
    return relative_error(out[0], right[0]) if bool(settled.all()) else math.inf


def windows_of(maps: Tensor, kernel, stride, padding, size) -> Tensor:
    """Every pooling window's values, shape (n, c, *size, KH*KW), -inf off the map."""
    extent = [(size[d] - 1) * stride[d] + kernel[d] - padding[d] - maps.shape[2 + d] for d in (0, 1)]
    canvas = torch.nn.functional.pad(
        maps, (padding[1], max(extent[1], 0), padding[0], max(extent[0], 0)), value=-math.inf
    )
    taps = canvas.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
    return taps[:, :, : size[0], : size[1]].flatten(-2)


# Cases


class Draw:
    """The random choices of one case, the same for the same seed, op and number on every machine."""

    def __init__(self, seed: int, op: str, index: int, fixed: bool):
        self.choice = random.Random(f"{seed}/{op}/{index}/{fixed}")
        self.generator = torch.Generator().manual_seed(self.choice.getrandbits(32))
        self.index, self.fixed, self.seed = index, fixed, seed

    def pair(self, low: int, high: int) -> tuple[int, int]:
        return self.choice.randint(low, high), self.choice.randint(low, high)

    def tensor(self, *shape: int, fill: str = "normal") -> Tensor:
        """float64 values: normal; small integers, with ties; normal with some NaN and infinities; zeros; positive."""
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        if fill == "ties":
            return x.round()
        if fill == "positive":
            return x.abs() / 2 + 0.5
        if fill == "zeros":
            return torch.zeros_like(x)
        if fill == "nonfinite" and x.numel():
            places = torch.randint(x.numel(), (max(1, x.numel() // 50),), generator=self.generator)
            x.view(-1)[places] = torch.tensor([math.nan, math.inf, -math.inf], dtype=x.dtype)[places % 3]
        return x

    def fill(self, smallest: int) -> str:
        """A fill; where an output has few values, one under which they cannot cancel and the relative error is fair."""
        return "positive" if smallest < 64 else FILLS[self.index % len(FILLS)] if self.index % 3 == 2 else "normal"

    def case(self, args: tuple, label: str) -> Case:
        kind = "fixed" if self.fixed else f"random, seed {self.seed},"
        layout = LAYOUTS[self.index % len(LAYOUTS)]
        return Case(args, f"{kind} case {self.index}: {label}, {layout}", layout)


def draws(op: str, seed: int, count: int, fixed: tuple) -> Iterable[tuple[Draw, tuple | None]]:
    for index, shape in enumerate(fixed):
        yield Draw(0, op, index, True), shape
    for index in range(count):
        yield Draw(seed, op, index, False), None


def random_conv(draw: Draw) -> tuple:
    n, c_in, c_out = draw.choice.randint(1, 3), draw.choice.randint(1, 40), draw.choice.randint(1, 40)
    kernel, stride = draw.pair(1, 5), draw.pair(1, 3)
    padding = tuple(draw.choice.randint(0, k - 1) for k in kernel)
    size = tuple(draw.choice.randint(max(1, k - 2 * p), 18) for k, p in zip(kernel, padding, strict=True))
    return n, c_in, c_out, size, kernel, stride, padding


def random_pool(draw: Draw) -> tuple:
    kernel, stride = draw.pair(1, 4), draw.pair(1, 4)
    padding = tuple(draw.choice.randint(0, k // 2) for k in kernel)
    size = tuple(draw.choice.randint(max(1, k - 2 * p), 18) for k, p in zip(kernel, padding, strict=True))
    n, c = draw.choice.randint(1, 3), draw.choice.randint(1, 40)
    return n, c, size, kernel, stride, padding, draw.choice.random() < 0.5


def random_norm(draw: Draw) -> tuple:
    n, c, size, window = (
        draw.choice.randint(1, 3),
        draw.choice.randint(1, 70),
        draw.pair(1, 9),
        draw.choice.randint(1, 9),
    )
    alpha, beta, k = (
        draw.choice.choice((1e-4, 0.1, 1.0)),
        draw.choice.choice((0.5, 0.75, 1.1)),
        draw.choice.choice((1.0, 2.0)),
    )
    return n, c, size, window, alpha, beta, k, draw.choice.random() < 0.5


def conv_size(size, kernel, stride, padding) -> tuple[int, int]:
    return tuple((size[d] + 2 * padding[d] - kernel[d]) // stride[d] + 1 for d in (0, 1))


def pool_size(size, kernel, stride, padding, ceil: bool) -> tuple[int, int]:
    """torch's rule: in ceil mode the last window starts inside the input or the padding before it."""
    sizes = []
    for h, k, s, p in zip(size, kernel, stride, padding, strict=True):
        out = (h + 2 * p - k + (s - 1 if ceil else 0)) // s + 1
        sizes.append(out - 1 if ceil and (out - 1) * s >= h + p else out)
    return tuple(sizes)


def conv_cases(op: str, seed: int, count: int) -> Iterable[Case]:
    for draw, shape in draws(op, seed, count, FIXED_CONVS):
        n, c_in, c_out, size, kernel, stride, padding = shape = shape or random_conv(draw)
        out = conv_size(size, kernel, stride, padding)
        flag, label = bool(draw.index % 2), f"n, c_in, c_out, size, kernel, stride, padding = {shape}"
        if op == "conv2d":
            fill = draw.fill(n * c_out * math.prod(out))
            x, w = draw.tensor(n, c_in, *size, fill=fill), draw.tensor(c_out, c_in, *kernel, fill=narrow(fill))
            bias = draw.tensor(c_out, fill=narrow(fill)) if draw.index % 4 else None
            yield draw.case(
                (x, w, bias, stride, padding, flag), f"{label}, {fill}, relu {flag}, bias {bias is not None}"
            )
        elif op == "conv_transpose2d":
            fill = draw.fill(n * c_in * math.prod(size))
            y, w = draw.tensor(n, c_out, *out, fill=fill), draw.tensor(c_out, c_in, *kernel, fill=narrow(fill))
            yield draw.case((y, w, stride, padding, size, flag), f"{label}, {fill}, rectify {flag}")
        else:
            fill = draw.fill(min(c_out, c_in * math.prod(kernel)))
            x, g = draw.tensor(n, c_in, *size, fill=narrow(fill)), draw.tensor(n, c_out, *out, fill=fill)
            yield draw.case((x, g, kernel, stride, padding, flag), f"{label}, {fill}, with_bias {flag}")


def narrow(fill: str) -> str:
    """The fill of an op's other operands: they stay finite where the first is not."""
    return "normal" if fill in ("nonfinite", "zeros") else fill


def pool_cases(op: str, seed: int, count: int) -> Iterable[Case]:
    for draw, shape in draws(op, seed, count, FIXED_POOLS):
        n, c, size, kernel, stride, padding, ceil = shape = shape or random_pool(draw)
        out, fill = pool_size(size, kernel, stride, padding, ceil), FILLS[draw.index % len(FILLS)]
        x = draw.tensor(n, c, *size, fill=fill)
        label = f"n, c, size, kernel, stride, padding, ceil = {shape}, {fill}"
        if op == "max_pool2d":
            yield draw.case((x, kernel, stride, padding, out), label)
            continue
        switches = reference.max_pool2d(x, kernel, stride, padding, out)[1]
        if op == "max_unpool2d":
            yield draw.case((draw.tensor(n, c, *out, fill=fill), switches, kernel, stride, padding, size), label)
        else:
            yield draw.case((x, switches, kernel, stride, padding), label)


def norm_cases(op: str, seed: int, count: int) -> Iterable[Case]:
    for draw, shape in draws(op, seed, count, FIXED_NORMS):
        n, c, size, *constants = shape = shape or random_norm(draw)
        fill = "zeros" if draw.index % 7 == 3 else "nonfinite" if draw.index % 7 == 5 else "normal"
        x, g = draw.tensor(n, c, *size, fill=fill), draw.tensor(n, c, *size)
        label = f"n, c, size, window, alpha, beta, k, center = {shape}, {fill}"
        yield draw.case((x, *constants) if op == "contrast_norm" else (g, x, *constants), label)


def pool_norm_cases(op: str, seed: int, count: int) -> Iterable[Case]:
    for draw, shape in draws(op, seed, count, FIXED_POOLS):
        n, c, size, kernel, stride, padding, ceil = shape = shape or random_pool(draw)
        constants = random_norm(draw)[3:]
        if draw.index % 2:  # what the fused kernels are made for
            c, constants = round(c / 16 + 0.5) * 16, (5, *constants[1:4], False)
        out = pool_size(size, kernel, stride, padding, ceil)
        label = f"n, c, size, kernel, stride, padding, ceil = {shape}, {c} maps, norm {constants}"
        yield draw.case((draw.tensor(n, c, *size), kernel, stride, padding, out, *constants), label)


def layer_cases(op: str, seed: int, count: int) -> Iterable[Case]:
    """A convolution and a pooling after it that fits the convolution's map."""
    for draw, shape in draws(op, seed, count, FIXED_CONVS):
        n, c_in, c_out, size, kernel, stride, padding = shape = shape or random_conv(draw)
        middle = conv_size(size, kernel, stride, padding)
        pool_kernel = tuple(draw.choice.randint(1, min(3, m)) for m in middle)
        pool_stride, ceil = draw.pair(1, 3), bool(draw.index % 2)
        pool_padding = tuple(draw.choice.randint(0, k // 2) for k in pool_kernel)
        pool = pool_kernel, pool_stride, pool_padding
        out = pool_size(middle, *pool, ceil)
        values = {
            "conv2d_relu_max_pool2d": n * c_out * math.prod(out),
            "conv2d_relu_max_pool2d_weight_grad": min(c_out, c_in * math.prod(kernel)),
        }
        fill = draw.fill(values.get(op, n * c_in * math.prod(size)))
        w = draw.tensor(c_out, c_in, *kernel, fill=narrow(fill))
        label = f"n, c_in, c_out, size, kernel, stride, padding = {shape}, pool {pool}, ceil {ceil}, {fill}"
        if op == "conv2d_relu_max_pool2d":
            x, bias = draw.tensor(n, c_in, *size, fill=fill), draw.tensor(c_out, fill=narrow(fill))
            bias = bias if draw.index % 4 else None
            yield draw.case((x, w, bias, stride, padding, *pool, out), f"{label}, bias {bias is not None}")
            continue
        switches = reference.max_pool2d(draw.tensor(n, c_out, *middle), *pool, out)[1]
        if op == "conv2d_relu_max_pool2d_weight_grad":
            x, g, flag = draw.tensor(n, c_in, *size, fill=narrow(fill)), draw.tensor(n, c_out, *out, fill=fill), True
            yield draw.case((x, g, switches, kernel, stride, padding, *pool, flag), label)
        else:
            y, flag = draw.tensor(n, c_out, *out, fill=fill), bool(draw.index % 2)
            yield draw.case((y, switches, w, stride, padding, *pool, size, flag), f"{label}, rectify {flag}")


@dataclass
class Op:
    """How an op's cases are made, how its results are compared, and whether they must be exact."""

    make: Callable[[str, int, int], Iterable[Case]]
    name: str
    exact: bool = False
    error: Callable[..., float] = values_error

    def cases(self, seed: int, count: int) -> Iterable[Case]:
        return self.make(self.name, seed, count)


OPS = {
    op.name: op
    for op in (
        Op(conv_cases, "conv2d"),
        Op(conv_cases, "conv_transpose2d"),
        Op(conv_cases, "conv2d_weight_grad"),
        Op(pool_cases, "max_pool2d", exact=True),
        Op(pool_cases, "max_unpool2d"),
        Op(pool_cases, "max_unpool2d_backward", exact=True),
        Op(norm_cases, "contrast_norm"),
        Op(norm_cases, "contrast_norm_backward"),
        Op(pool_norm_cases, "max_pool2d_contrast_norm"),
        Op(layer_cases, "conv2d_relu_max_pool2d", error=fused_error),
        Op(layer_cases, "conv2d_relu_max_pool2d_weight_grad"),
        Op(layer_cases, "max_unpool2d_relu_conv_transpose2d"),
    )
}


# Small things


def is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def tuple_of(result: "Tensor | tuple") -> tuple:
    return result if isinstance(result, tuple) else (result,)


def placed(x: Tensor, layout: str) -> Tensor:
    """The same values in memory of that layout; "strided" is a view of every other element of a tensor of NaNs."""
    if x.dim() != 4 or layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    wide = torch.full([2 * s for s in x.shape], math.nan, dtype=x.dtype)
    wide[::2, 1::2, ::2, 1::2] = x
    return wide[::2, 1::2, ::2, 1::2]


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
