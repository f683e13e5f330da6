"""verify's search: random cases until the time is over, each failure shrunk to a small one.

A case is a Spec (spec.py): a shape with what belongs to it, values, memory, and settings of the backend. Every check of
checks.py that there is of it is made. The cases follow from the seed alone; how many are reached, from the machine.
"""

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from .. import backends
from ..window import as_pair
from .checks import CHECKS, applies, failure
from .spec import (
    CONVS,
    DTYPES,
    EXTREMES,
    FILLS,
    LAYERS,
    LAYOUTS,
    MODES,
    NONFINITE,
    NORMS,
    OPTIONAL,
    POOLED,
    TENSORS,
    Spec,
    problem,
    results,
    shapes,
)

MOST_WORK = 2e7  # products, which are the reference's time
MOST_VALUES = 2e5
SHRINKING = 20.0  # seconds for one failure


@dataclass
class Found:
    """A failed case, as small as it could be made; what failed; and the case that the search met."""

    case: Spec
    failure: str
    met: Spec


@dataclass
class Search:
    """What a search did: cases drawn, checks made, and the first failure of each op, check and backend."""

    cases: int
    checks: int
    seconds: float
    found: list[Found]


def search(
    seconds: float,
    seed: int,
    chosen: Iterable[str],
    ops: Iterable[str] | None = None,
    report: Callable[[Found], None] = lambda found: None,
    tick: Callable[[float], None] = lambda elapsed: None,
) -> Search:
    """Searches for `seconds` on the chosen backends in turn; `report` gets each failure when it is shrunk, and `tick`
    the seconds that have passed."""
    start, result, known = time.monotonic(), Search(0, 0, 0.0, []), set()
    names = tuple(chosen)
    while time.monotonic() - start < seconds:
        spec = drawn(random.Random(f"{seed}/{result.cases}"), names[result.cases % len(names)], ops)
        result.cases += 1
        for check in own_checks(spec):
            case = replace(spec, check=check)
            for name, only in (("grad", "backward"), ("scale", "prepared")):
                case = case if check == only else case.with_tensor(name, None)
            case = case if check == "threads" else replace(case, threads=1)
            key = case.op, check, case.backend
            if key in known or time.monotonic() - start > seconds:
                continue
            result.checks += 1
            if (reason := failure(case)) is None:
                continue
            known.add(key)
            small = shrunk(case)
            result.found.append(Found(small, failure(small) or reason, case))
            report(result.found[-1])
        tick(time.monotonic() - start)
    result.seconds = time.monotonic() - start
    return result


def own_checks(spec: Spec) -> list[str]:
    """The checks of a case; of a backend that is interpreted the first alone, for it is slow."""
    if getattr(backends.module(spec.backend), "INTERPRETED", False):
        return ["forward"]
    return [check for check in CHECKS if applies(check, spec)]


# Drawing


def drawn(choice: random.Random, backend: str, ops: Iterable[str] | None = None) -> Spec:
    """A random case."""
    module = backends.module(backend)
    known = [op for op in TENSORS if op != "linear" or backend == "cpu"]
    op = choice.choice([op for op in known if ops is None or op in ops])
    dtype = "float32" if op == "linear" else choice.choice([d for d in DTYPES if DTYPES[d] in module.DTYPES])
    spec = Spec(op, backend=backend, dtype=dtype, seed=choice.randrange(10**6))
    spec = sized(choice, spec, getattr(module, "GROUPS", True))
    if backend == "cpu":
        mode = choice.choice(MODES) if choice.random() < 0.6 else "fastest"
        if mode in ("tiles", "rows") and any(p > k // 2 for p, k in zip(spec.padding, spec.kernel, strict=True)):
            mode = "fastest"  # sums over few pixels have Winograd's error of their whole tile
        spec = replace(spec, isa=choice.choice(module._C.isas()), mode=mode, threads=choice.randint(2, 3))
    return filled(choice, spec, not getattr(module, "MULTIPLIES_PADDING", False))


def sized(choice: random.Random, spec: Spec, groups: bool) -> Spec:
    """With random sizes that are a case, and not too much work."""
    while True:
        case = replace(spec, n=0 if choice.random() < 0.03 else choice.randint(1, 3))
        case = replace(case, c=channels(choice), k=channels(choice), flag=choice.random() < 0.5)
        if case.op in (*CONVS, *LAYERS):
            case = with_window(choice, case, groups and case.op in CONVS)
        else:
            case = replace(case, size=(choice.randint(1, 18), choice.randint(1, 18)))
        if case.op in POOLED:
            pool = choice.choice([(3, 3), (2, 2), pair(choice, 1, 4), pair(choice, 1, 4), pair(choice, 5, 16)])
            case = replace(case, pool=pool, pool_stride=pair(choice, 1, 4), ceil=choice.random() < 0.5)
            case = replace(case, pool_padding=as_pair(choice.randint(0, side // 2) for side in pool))
        if case.op in NORMS:
            norm, beta = choice.choice([5, choice.randint(1, 9)]), choice.choice([0.75, 0.5, 1.0, 1.3])
            alpha, bottom = choice.choice([1e-4, 0.1, 1.0]), choice.choice([1.0, 2.0])
            case = replace(case, norm=norm, beta=beta, alpha=alpha, bottom=bottom, center=choice.random() < 0.5)
        if case.op == "conv2d_add" and choice.random() < 0.3:
            case = replace(case, cap=2.0)
        if problem(case) is None and small_enough(case):
            return case


def channels(choice: random.Random) -> int:
    return choice.choice([1, 2, 3, choice.randint(1, 9), choice.randint(1, 40), choice.randint(1, 40), wide(choice)])


def wide(choice: random.Random) -> int:
    return choice.choice([64, 65, 96, 128, 130, choice.randint(41, 200)])


def pair(choice: random.Random, low: int, high: int) -> tuple[int, int]:
    return choice.randint(low, high), choice.randint(low, high)


def with_window(choice: random.Random, case: Spec, groups: bool) -> Spec:
    """A convolution's window, a map into which it fits, and perhaps groups."""
    side = choice.randint(1, 5)
    kernel = (side, side) if choice.random() < 0.6 else pair(choice, 1, 7)
    stride = choice.choice([(1, 1), (2, 2), pair(choice, 1, 3), pair(choice, 1, 5)])
    padding = as_pair(choice.randint(0, k if choice.random() < 0.2 else k // 2) for k in kernel)
    dilation = pair(choice, 1, 3) if groups and choice.random() < 0.25 else (1, 1)
    if groups and (kind := choice.random()) < 0.35:
        count = choice.randint(2, 70) if kind < 0.2 else choice.randint(2, 4)
        case = replace(case, groups=count, c=1, k=1) if kind < 0.2 else replace(case, groups=count)
    spans = [(k - 1) * d + 1 - 2 * p for k, d, p in zip(kernel, dilation, padding, strict=True)]
    size = as_pair(max(1, span) + choice.choice([0, 1, choice.randint(0, 14)]) for span in spans)
    return replace(case, kernel=kernel, stride=stride, padding=padding, dilation=dilation, size=size)


def small_enough(case: Spec) -> bool:
    tensors = [math.prod(shape) for shape in (*shapes(case).values(), *results(case))]
    maps = math.prod(case.conv) if case.op in (*CONVS, *LAYERS) else 1
    work = case.n * case.groups * case.c * case.k * math.prod(case.kernel) * maps
    return max(tensors) <= MOST_VALUES and work <= MOST_WORK


def filled(choice: random.Random, spec: Spec, spoils: bool) -> Spec:
    """With random values and memory. `spoils`: may tensors other than the first hold what is not finite?"""
    names = list(shapes(replace(spec, tensors=tuple((n, "normal", "contiguous") for n in OPTIONAL))))
    names = [n for n in names if n != "scale" or spec.op in ("conv2d", "conv2d_add", "conv2d_relu_max_pool2d")]
    names = [n for n in (*names, "grad") if n not in OPTIONAL or choice.random() < (0.4 if n == "scale" else 0.7)]
    kind, special = choice.random(), choice.choice(names)
    allowed = [*FILLS[1:], *NONFINITE, *EXTREMES, *EXTREMES]
    fills = dict.fromkeys(names, "normal")
    if kind < 0.2:
        fills = dict.fromkeys(names, "ties")
    elif kind < 0.65:
        fills[special] = choice.choice(allowed)
    elif kind < 0.8:
        fills[special], fills[choice.choice(names)] = choice.choice(FILLS), choice.choice(FILLS)
    for name in names:
        layout = choice.choice(LAYOUTS) if choice.random() < 0.6 else "contiguous"
        fill = fills[name]
        if fill == "denormal" and spec.center:  # differences of denormals have few digits
            fill = "normal"
        if not spoils and fill in NONFINITE and (name != names[0] or spec.op.endswith("weight_grad")):
            fill = "normal"
        spec = spec.with_tensor(name, "normal" if name == "switches" else fill, layout)
    return spec


# Shrinking


def shrunk(spec: Spec) -> Spec:
    """A smaller and simpler case that fails the same check: greedily, the first simplification that still fails."""
    end = time.monotonic() + SHRINKING
    simplest = False
    while not simplest:
        simplest = True
        for candidate in simpler(spec):
            if time.monotonic() > end:
                return spec
            if problem(candidate) is None and applies(spec.check, candidate) and failure(candidate) is not None:
                spec, simplest = candidate, False
                break
    return spec


def simpler(spec: Spec) -> Iterator[Spec]:
    """Candidates, those that take the most away first."""
    for name, fill, layout in spec.tensors:
        if name in OPTIONAL:
            yield spec.with_tensor(name, None)
        if layout != "contiguous":
            yield spec.with_tensor(name, fill)
        if fill != "normal":
            yield spec.with_tensor(name, "normal", layout)
        if fill == "nonfinite":
            yield from (spec.with_tensor(name, one, layout) for one in ("nan", "inf"))
    yield from narrower(spec)
    for field in fields(Spec)[3:-1]:  # after op, check and backend
        value: Any = getattr(spec, field.name)
        default: Any = field.default
        if value == default:
            continue
        yield changed(spec, field.name, default)
        if field.name == "seed":
            continue
        if type(value) is int:
            yield from (changed(spec, field.name, less) for less in smaller(value, default))
        elif isinstance(value, tuple):
            for axis in (0, 1):
                for less in (default[axis], *smaller(value[axis], default[axis])):
                    if less != value[axis]:
                        yield changed(spec, field.name, (less, value[1]) if axis == 0 else (value[0], less))


def narrower(spec: Spec) -> Iterator[Spec]:
    """With a smaller window, and no more padding than then is right."""
    for window, padding in (("pool", "pool_padding"), ("kernel", "padding")):
        sides, pads = getattr(spec, window), getattr(spec, padding)
        for axis in (0, 1):
            for less in (1, *smaller(sides[axis], 1)):
                if less < sides[axis] and pads[axis]:
                    side, pad = list(sides), list(pads)
                    side[axis], pad[axis] = less, min(pads[axis], less // 2)
                    yield changed(changed(spec, window, tuple(side)), padding, tuple(pad))


def changed(spec: Spec, name: str, value: Any) -> Spec:
    return replace(spec, **{name: value})


def smaller(value: int, least: int) -> list[int]:
    """Half of it, and one less."""
    return [less for less in (value // 2, value - 1) if least <= less < value]
