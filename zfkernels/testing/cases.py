"""The cases of `zfkernels verify`: calls of the backends' functions, on fixed awkward shapes and on seeded random ones.

A case's tensors depend on its seed, its op and its number alone. Results before and after a change of the kernels can
therefore be compared bit for bit, and a failure can be run again by its label.
"""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..window import conv_map, pool_map
from .compare import fused_error, values_error
from .memory import LAYOUTS

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
    (1, 8, 96, (5, 6), (3, 3), (1, 1), (1, 1)),  # more than 64 outputs
    (1, 130, 9, (4, 5), (3, 3), (1, 1), (1, 1)),  # more than 128 of the transposed convolution
    (1, 16, 200, (5, 4), (3, 3), (2, 1), (1, 1)),  # more than 128
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
FIXED_AVERAGES = (  # whole maps, and what only an average may have
    (2, 40, (7, 7), (7, 7), (7, 7), (0, 0), False),
    (1, 130, (31, 29), (31, 29), (1, 1), (0, 0), False),  # a large map
    (3, 5, (6, 9), (6, 9), (6, 9), (3, 4), False),  # whole maps are not all of these windows
    (1, 17, (19, 33), (18, 20), (1, 1), (9, 10), True),  # more than 256 pixels
    (0, 8, (5, 5), (5, 5), (5, 5), (0, 0), False),  # no images
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


GROUPED_CONVS = (  # the same, dilation, groups
    (2, 40, 40, (9, 13), (3, 3), (1, 1), (1, 1), (1, 1), 40),  # depthwise
    (1, 33, 33, (12, 11), (5, 5), (2, 2), (2, 2), (1, 1), 33),
    (1, 20, 20, (13, 14), (3, 2), (2, 1), (2, 0), (2, 3), 20),
    (1, 6, 12, (7, 8), (3, 3), (1, 1), (1, 1), (1, 1), 6),  # two filters a channel
    (2, 34, 66, (9, 8), (3, 3), (1, 1), (1, 1), (1, 1), 2),
    (1, 35, 18, (14, 15), (3, 3), (1, 2), (2, 3), (2, 3), 1),  # dilated
    (0, 32, 32, (8, 8), (3, 3), (1, 1), (1, 1), (1, 1), 32),  # no images
)

FILLS = ("normal", "ties", "nonfinite", "zeros")
CONV_FILLS = (*FILLS, "broken")


@dataclass
class Case:
    """One call of a backend's function: its arguments (tensors in float64), a label to find it again, and the memory
    layout that the tensors get. Is it of a convolution in groups, or dilated, which a backend may not have? And does
    something that is not finite meet the zeros around a map (infinity times 0 is NaN), which a backend may multiply?"""

    args: tuple[Any, ...]
    label: str
    layout: str
    grouped: bool = False
    spoils: bool = False


def values(shape: tuple[int, ...], fill: str, generator: torch.Generator) -> Tensor:
    """float64 values: normal; small integers, with ties; normal with some NaN and infinities; zeros; positive.

    A "broken" call's first tensor is normal, and its others are not finite.
    """
    x = torch.randn(shape, generator=generator, dtype=torch.float64)
    if fill == "ties":
        return x.round()
    if fill == "positive":
        return x.abs() / 2 + 0.5
    if fill == "zeros":
        return torch.zeros_like(x)
    if fill == "nonfinite" and x.numel():
        positions = torch.randint(x.numel(), (max(1, x.numel() // 50),), generator=generator)
        x.view(-1)[positions] = torch.tensor([math.nan, math.inf, -math.inf], dtype=x.dtype)[positions % 3]
    return x


def narrow(fill: str) -> str:
    """The fill of a call's other tensors: they stay finite where the first is not, and are not zero where it is."""
    if fill == "broken":
        return "nonfinite"
    return "normal" if fill in ("nonfinite", "zeros") else fill


class Draw:
    """The random choices of one case, the same for the same seed, op and number on every machine."""

    def __init__(self, seed: int, op: str, index: int, fixed: bool) -> None:
        self.choice = random.Random(f"{seed}/{op}/{index}/{fixed}")
        self.generator = torch.Generator().manual_seed(self.choice.getrandbits(32))
        self.index, self.fixed, self.seed = index, fixed, seed

    def pair(self, low: int, high: int) -> tuple[int, int]:
        return self.choice.randint(low, high), self.choice.randint(low, high)

    def tensor(self, *shape: int, fill: str = "normal") -> Tensor:
        return values(shape, fill, self.generator)

    def fill(self, smallest: int) -> str:
        """A fill; where an output has few values, one under which they cannot cancel and the relative error is fair."""
        if smallest < 64:
            return "positive"
        return CONV_FILLS[self.index % len(CONV_FILLS)] if self.index % 3 == 2 else "normal"

    def case(self, args: tuple[Any, ...], label: str, grouped: bool = False, spoils: bool = False) -> Case:
        kind = "fixed" if self.fixed else f"random, seed {self.seed},"
        layout = LAYOUTS[self.index % len(LAYOUTS)]
        return Case(args, f"{kind} case {self.index}: {label}, {layout}", layout, grouped, spoils)


def draws(op: str, seed: int, count: int, fixed: tuple[Any, ...]) -> Iterable[tuple[Draw, tuple[Any, ...] | None]]:
    for index, shape in enumerate(fixed):
        yield Draw(0, op, index, True), shape
    for index in range(count):
        yield Draw(seed, op, index, False), None


def random_conv(draw: Draw) -> tuple[Any, ...]:
    n, c_in, c_out = draw.choice.randint(1, 3), draw.choice.randint(1, 40), draw.choice.randint(1, 40)
    kernel, stride = draw.pair(1, 5), draw.pair(1, 3)
    padding = tuple(draw.choice.randint(0, k - 1) for k in kernel)
    size = tuple(draw.choice.randint(max(1, k - 2 * p), 18) for k, p in zip(kernel, padding, strict=True))
    return n, c_in, c_out, size, kernel, stride, padding


def random_pool(draw: Draw) -> tuple[Any, ...]:
    kernel, stride = draw.pair(1, 4), draw.pair(1, 4)
    padding = tuple(draw.choice.randint(0, k // 2) for k in kernel)
    size = tuple(draw.choice.randint(max(1, k - 2 * p), 18) for k, p in zip(kernel, padding, strict=True))
    n, c = draw.choice.randint(1, 3), draw.choice.randint(1, 40)
    return n, c, size, kernel, stride, padding, draw.choice.random() < 0.5


def random_norm(draw: Draw) -> tuple[Any, ...]:
    integer, choice = draw.choice.randint, draw.choice.choice
    n, c, size, window = integer(1, 3), integer(1, 70), draw.pair(1, 9), integer(1, 9)
    alpha, beta, k = choice((1e-4, 0.1, 1.0)), choice((0.5, 0.75, 1.1)), choice((1.0, 2.0))
    return n, c, size, window, alpha, beta, k, draw.choice.random() < 0.5


def random_grouped(draw: Draw) -> tuple[Any, ...]:
    """Depthwise, in groups, or dilated."""
    integer = draw.choice.randint
    kind, n = integer(0, 2), integer(1, 3)
    groups, depth, filters = ((integer(2, 70), 1, 1), (integer(2, 5), integer(1, 20), integer(1, 20)), (1, 20, 20))[
        kind
    ]
    kernel, stride, dilation = draw.pair(1, 5), draw.pair(1, 3), draw.pair(1, 3) if kind or integer(0, 1) else (1, 1)
    padding = tuple(integer(0, k) for k in kernel)
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    size = tuple(integer(max(1, s - 2 * p), 20) for s, p in zip(spans, padding, strict=True))
    return n, groups * depth, groups * filters, size, kernel, stride, padding, dilation, groups


def conv_cases(op: str, seed: int, count: int) -> Iterable[Case]:
    for draw, shape in draws(op, seed, count, FIXED_CONVS):
        yield conv_case(op, draw, shape or random_conv(draw))
    for draw, shape in draws(f"{op} in groups", seed, count, GROUPED_CONVS):
        yield conv_case(op, draw, shape or random_grouped(draw), grouped=True)


def conv_case(op: str, draw: Draw, shape: tuple[Any, ...], grouped: bool = False) -> Case:
    n, c_in, c_out, size, kernel, stride, padding, *grouping = shape
    out, depth = conv_map(size, kernel, stride, padding, *grouping[:1]), c_in // (grouping[1] if grouped else 1)
    flag, label = bool(draw.index % 2), f"n, c_in, c_out, size, kernel, stride, padding, dilation, groups = {shape}"
    if op in ("conv2d", "conv2d_add"):
        fill = draw.fill(n * c_out * math.prod(out))
        x, w = draw.tensor(n, c_in, *size, fill=fill), draw.tensor(c_out, depth, *kernel, fill=narrow(fill))
        bias = draw.tensor(c_out, fill=narrow(fill)) if draw.index % 4 else None
        label = f"{label}, {fill}, relu {flag}, bias {bias is not None}"
        if op == "conv2d":
            return draw.case((x, w, bias, stride, padding, flag, *grouping), label, grouped, fill == "broken")
        add = draw.tensor(n, c_out, *out, fill=narrow(fill)) if draw.index % 3 else None
        cap = 2.0 if flag and draw.index % 4 == 1 else None
        args = x, w, bias, add, stride, padding, flag, cap, *grouping
        return draw.case(args, f"{label}, add {add is not None}, cap {cap}", grouped, fill == "broken")
    if op == "conv_transpose2d":
        fill = draw.fill(n * c_in * math.prod(size))
        y, w = draw.tensor(n, c_out, *out, fill=fill), draw.tensor(c_out, depth, *kernel, fill=narrow(fill))
        args = y, w, stride, padding, size, flag, *grouping
        return draw.case(args, f"{label}, {fill}, rectify {flag}", grouped, fill == "broken")
    fill = draw.fill(min(c_out, depth * math.prod(kernel)))
    x, g = draw.tensor(n, c_in, *size, fill=narrow(fill)), draw.tensor(n, c_out, *out, fill=fill)
    spoils, label = fill in ("broken", "nonfinite"), f"{label}, {fill}, with_bias {flag}"
    return draw.case((x, g, kernel, stride, padding, flag, *grouping), label, grouped, spoils)


def pool_cases(op: str, seed: int, count: int) -> Iterable[Case]:
    for draw, shape in draws(op, seed, count, FIXED_POOLS):
        n, c, size, kernel, stride, padding, ceil = shape = shape or random_pool(draw)
        out, fill = pool_map(size, kernel, stride, padding, ceil), FILLS[draw.index % len(FILLS)]
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


def average_cases(op: str, seed: int, count: int) -> Iterable[Case]:
    for draw, shape in draws(op, seed, count, (*FIXED_POOLS, *FIXED_AVERAGES)):
        n, c, size, kernel, stride, padding, ceil = shape = shape or random_pool(draw)
        out, fill, padded = pool_map(size, kernel, stride, padding, ceil), draw.fill(n * c), draw.index % 3 > 0
        label = f"n, c, size, kernel, stride, padding, ceil = {shape}, {fill}, padding counted {padded}"
        if op == "avg_pool2d":
            yield draw.case((draw.tensor(n, c, *size, fill=fill), kernel, stride, padding, out, padded), label)
        else:
            yield draw.case((draw.tensor(n, c, *out, fill=fill), kernel, stride, padding, size, padded), label)


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
        out = pool_map(size, kernel, stride, padding, ceil)
        label = f"n, c, size, kernel, stride, padding, ceil = {shape}, {c} maps, norm {constants}"
        yield draw.case((draw.tensor(n, c, *size), kernel, stride, padding, out, *constants), label)


def layer_cases(op: str, seed: int, count: int) -> Iterable[Case]:
    """A convolution and a pooling after it that fits the convolution's map."""
    for draw, shape in draws(op, seed, count, FIXED_CONVS):
        n, c_in, c_out, size, kernel, stride, padding = shape = shape or random_conv(draw)
        middle = conv_map(size, kernel, stride, padding)
        pool_kernel = tuple(draw.choice.randint(1, min(3, m)) for m in middle)
        pool_stride, ceil = draw.pair(1, 3), bool(draw.index % 2)
        if draw.index % 2 and min(middle) >= 3:  # the windows that the fused kernels are made for
            pool_kernel, pool_stride = (3, 3), (2, 2)
        pool_padding = tuple(draw.choice.randint(0, k // 2) for k in pool_kernel)
        pool = pool_kernel, pool_stride, pool_padding
        out = pool_map(middle, *pool, ceil)
        smallest = {
            "conv2d_relu_max_pool2d": n * c_out * math.prod(out),
            "conv2d_relu_max_pool2d_weight_grad": min(c_out, c_in * math.prod(kernel)),
        }
        fill = draw.fill(smallest.get(op, n * c_in * math.prod(size)))
        w = draw.tensor(c_out, c_in, *kernel, fill=narrow(fill))
        label = f"n, c_in, c_out, size, kernel, stride, padding = {shape}, pool {pool}, ceil {ceil}, {fill}"
        if op == "conv2d_relu_max_pool2d":
            x, offsets = draw.tensor(n, c_in, *size, fill=fill), draw.tensor(c_out, fill=narrow(fill))
            bias = offsets if draw.index % 4 else None
            label = f"{label}, bias {bias is not None}"
            yield draw.case((x, w, bias, stride, padding, *pool, out), label, spoils=fill == "broken")
            continue
        switches = reference.max_pool2d(draw.tensor(n, c_out, *middle), *pool, out)[1]
        if op == "conv2d_relu_max_pool2d_weight_grad":
            x, g, flag = draw.tensor(n, c_in, *size, fill=narrow(fill)), draw.tensor(n, c_out, *out, fill=fill), True
            spoils = fill in ("broken", "nonfinite")
            yield draw.case((x, g, switches, kernel, stride, padding, *pool, flag), label, spoils=spoils)
        else:
            y, flag = draw.tensor(n, c_out, *out, fill=fill), bool(draw.index % 2)
            label = f"{label}, rectify {flag}"
            yield draw.case((y, switches, w, stride, padding, *pool, size, flag), label, spoils=fill == "broken")


@dataclass
class Op:
    """How an op's cases are made, how its results are compared, and whether they must be exact."""

    make: Callable[[str, int, int], Iterable[Case]]
    name: str
    exact: bool = False
    error: Callable[..., float] = values_error

    def cases(self, seed: int, count: int) -> Iterable[Case]:
        return self.make(self.name, seed, count)


EXACT = ("max_pool2d", "max_unpool2d_backward")
AVERAGES = ("avg_pool2d", "avg_pool2d_backward")
CASES = {
    conv_cases: ("conv2d", "conv2d_add", "conv_transpose2d", "conv2d_weight_grad"),
    pool_cases: ("max_pool2d", "max_unpool2d", "max_unpool2d_backward"),
    average_cases: AVERAGES,
    norm_cases: ("contrast_norm", "contrast_norm_backward"),
    pool_norm_cases: ("max_pool2d_contrast_norm",),
    layer_cases: ("conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d_weight_grad", "max_unpool2d_relu_conv_transpose2d"),
}
ERRORS = {"conv2d_relu_max_pool2d": fused_error}
OPS = {
    name: Op(make, name, name in EXACT, ERRORS.get(name, values_error))
    for make, names in CASES.items()
    for name in names
}
