"""One case of verify's search as a value, as a line of text, and as tensors.

    conv2d backward n=2 c=3 k=5 size=9x8 kernel=3x3 stride=2x2 flag=1 x=nan/strided bias=ties dtype=float16 seed=7

The op, what is checked of it (checks.py), then what differs from the defaults of Spec. `c` and `k` are the channels and
the filters of one group. A tensor's name gives its values and, after a slash, its memory; naming an optional tensor
(bias, add, scale) is what makes it exist. The same text is the same numbers on every machine.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..backends import reference
from ..window import Pair, conv_map, pool_map
from ..words import no_such
from .memory import placed

DTYPES = {str(dtype)[6:]: dtype for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16)}
CHECKS = ("forward", "backward", "parts", "again", "threads", "alone", "prepared")  # checks.py
MODES = ("exact", "fastest", "tiles", "rows", "nonzeros")  # of the cpu backend: csrc/cpu/kernels.h, enum Mode
LAYOUTS = ("contiguous", "channels_last", "strided", "permuted", "offset", "expanded", "negative")
FILLS = ("normal", "positive", "negative", "ties", "zeros", "negative_zeros", "sparse", "nan", "inf", "nonfinite")
EXTREMES = ("huge", "denormal")  # of one tensor at most: the product of two is infinity, or 0
NONFINITE = ("nan", "inf", "nonfinite")
FEW = 64  # results, below which values must not cancel, or the relative error is not fair
OPTIONAL = ("bias", "add", "scale", "grad")  # grad: what the gradients of the outputs are drawn as

# The tensors of each op, in the order of the backends' functions.
TENSORS = {
    "conv2d": ("x", "weight", "bias"),
    "conv2d_add": ("x", "weight", "bias", "add"),
    "conv_transpose2d": ("y", "weight"),
    "conv2d_weight_grad": ("x", "g"),
    "max_pool2d": ("x",),
    "max_unpool2d": ("y", "switches"),
    "max_unpool2d_backward": ("g", "switches"),
    "contrast_norm": ("x",),
    "contrast_norm_backward": ("g", "x"),
    "max_pool2d_contrast_norm": ("x",),
    "conv2d_relu_max_pool2d": ("x", "weight", "bias"),
    "conv2d_relu_max_pool2d_weight_grad": ("x", "g", "switches"),
    "max_unpool2d_relu_conv_transpose2d": ("y", "switches", "weight"),
    "linear": ("x", "weight", "bias"),
}
LAYERS = tuple(op for op in TENSORS if op.startswith(("conv2d_relu", "max_unpool2d_relu")))
CONVS = ("conv2d", "conv2d_add", "conv_transpose2d", "conv2d_weight_grad")
POOLED = (*LAYERS, "max_pool2d", "max_unpool2d", "max_unpool2d_backward", "max_pool2d_contrast_norm")
NORMS = ("contrast_norm", "contrast_norm_backward", "max_pool2d_contrast_norm")


@dataclass(frozen=True)
class Spec:
    """A case. `flag` is the op's: relu, rectify, with_bias; `bottom` a norm's k. `tensors` are (name, fill, layout)."""

    op: str
    check: str = "forward"
    backend: str = "cpu"
    dtype: str = "float32"
    n: int = 1
    c: int = 1
    k: int = 1
    groups: int = 1
    size: Pair = (1, 1)
    kernel: Pair = (1, 1)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    pool: Pair = (1, 1)
    pool_stride: Pair = (1, 1)
    pool_padding: Pair = (0, 0)
    ceil: bool = False
    norm: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    bottom: float = 2.0
    center: bool = False
    flag: bool = False
    cap: float = math.inf
    mode: str = "fastest"
    isa: str = ""
    threads: int = 1
    seed: int = 0
    tensors: tuple[tuple[str, str, str], ...] = ()

    @property
    def conv(self) -> Pair:
        """The size of the convolution's map."""
        return conv_map(self.size, self.kernel, self.stride, self.padding, self.dilation)

    @property
    def window(self) -> tuple[Pair, Pair, Pair]:
        return self.pool, self.pool_stride, self.pool_padding

    @property
    def whole(self) -> Pair:
        """The size of the map that is pooled."""
        return self.conv if self.op in LAYERS else self.size

    @property
    def pooled(self) -> Pair:
        return pool_map(self.whole, *self.window, self.ceil)

    def of(self, name: str) -> tuple[str, str] | None:
        """The fill and the layout of a tensor; None for an optional one that is not there."""
        named = {tensor: (fill, layout) for tensor, fill, layout in self.tensors}
        return named.get(name, None if name in OPTIONAL else ("normal", "contiguous"))

    def with_tensor(self, name: str, fill: str | None, layout: str = "contiguous") -> "Spec":
        """The same with this tensor so; without it for None."""
        rest = tuple(tensor for tensor in self.tensors if tensor[0] != name)
        plain = name not in OPTIONAL and (fill, layout) == ("normal", "contiguous")
        return replace(self, tensors=rest if fill is None or plain else (*rest, (name, fill, layout)))

    @property
    def finite(self) -> bool:
        return not any(fill in NONFINITE for _, fill, _ in self.tensors)

    def text(self) -> str:
        words = [self.op, self.check]
        for field in fields(self)[2:-1]:
            value = getattr(self, field.name)
            if value != field.default:
                words.append(f"{field.name}={'x'.join(map(str, value)) if isinstance(value, tuple) else shown(value)}")
        words += (f"{name}={fill}" + f"/{layout}" * (layout != "contiguous") for name, fill, layout in self.tensors)
        return " ".join(words)


def shown(value: object) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def parse(text: str) -> Spec:
    """The Spec of this text; ValueError that says what is wrong."""
    op, *words = text.split() or [""]
    if op not in TENSORS:
        raise ValueError(f"case: {no_such('op', op, tuple(TENSORS))}")
    values: dict[str, Any] = {"check": words.pop(0)} if words and "=" not in words[0] else {}
    types = {field.name: type(field.default) for field in fields(Spec)[2:-1]}
    tensors = []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in types:
            values[name] = _value(name, types[name], value)
        elif equals and name in (*TENSORS[op], "scale", "grad"):
            fill, _, layout = value.partition("/")
            tensors.append((name, fill, layout or "contiguous"))
        else:
            raise ValueError(f"case: {word!r} is neither a tensor of {op} nor one of {', '.join(types)}")
    spec = Spec(op, **values, tensors=tuple(tensors))
    if reason := problem(spec):
        raise ValueError(f"case: {reason}, got {text!r}")
    return spec


def _value(name: str, kind: type, value: str) -> object:
    try:
        if kind is tuple:
            height, width = value.split("x")
            return int(height), int(width)
        return bool(int(value)) if kind is bool else kind(value)
    except ValueError:
        expected = {tuple: "a pair as 3x4", bool: "0 or 1", int: "a whole number", float: "a number"}[kind]
        raise ValueError(f"case: {name} must be {expected}, got {value!r}") from None


def problem(spec: Spec) -> str | None:
    """Why this is no case; None where it is one."""
    least = {"n": 0, "padding": 0, "pool_padding": 0, "seed": 0}
    for field in fields(Spec):
        value = getattr(spec, field.name)
        numbers = value if isinstance(value, tuple) and field.name != "tensors" else (value,)
        if any(type(v) is int and v < least.get(field.name, 1) for v in numbers):
            return f"{field.name} must be at least {least.get(field.name, 1)}"
    for word, known in (
        (spec.check, CHECKS),
        (spec.dtype, DTYPES),
        (spec.mode, MODES),
        (spec.backend, backends.MODULES),
    ):
        if word not in known:
            return f"{word!r} is not one of {', '.join(known)}"
    for name, fill, layout in spec.tensors:
        if fill not in (*FILLS, *EXTREMES) or layout not in LAYOUTS:
            return f"{name} must be one of {', '.join((*FILLS, *EXTREMES))} / {', '.join(LAYOUTS)}"
    if spec.op in (*CONVS, *LAYERS) and min(spec.conv) < 1:
        return "the kernel must fit into the padded map"
    if spec.op in POOLED:
        halves = all(p <= side // 2 for p, side in zip(spec.pool_padding, spec.pool, strict=True))
        if not halves or math.prod(spec.pool) > 256 or min(spec.pooled) < 1:
            return "the pooling window must fit, of at most 256 pixels, with at most half of it padding"
    if not (spec.alpha >= 0 and spec.bottom > 0 and spec.cap > 0):
        return "alpha must be at least 0, bottom and cap above 0"
    return None


def shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that the case has (and of scale)."""
    n, c, k = spec.n, spec.c * spec.groups, spec.k * spec.groups
    if spec.op == "linear":
        shape = {"x": (n, c), "weight": (k, c), "bias": (k,)}
    elif spec.op in (*CONVS, *LAYERS):
        after = (n, k, *(spec.pooled if spec.op in LAYERS else spec.conv))
        shape = {"x": (n, c, *spec.size), "weight": (k, spec.c, *spec.kernel), "bias": (k,), "scale": (k,)}
        shape |= dict.fromkeys(("add", "y", "g", "switches"), after)
    else:
        after = (n, c, *(spec.pooled if spec.op in POOLED else spec.size))
        shape = {"x": (n, c, *spec.size), "y": after, "switches": after}
        shape["g"] = shape["x"]
    names = (*TENSORS[spec.op], "scale")
    return {name: shape[name] for name in names if name in shape and spec.of(name) is not None}


# What follows the tensors in a backend's function.
SETTINGS: dict[str, Callable[[Spec], tuple[Any, ...]]] = {
    "conv2d": lambda s: (s.stride, s.padding, s.flag, s.dilation, s.groups),
    "conv2d_add": lambda s: (s.stride, s.padding, s.flag, _cap(s), s.dilation, s.groups),
    "conv_transpose2d": lambda s: (s.stride, s.padding, s.size, s.flag, s.dilation, s.groups),
    "conv2d_weight_grad": lambda s: (s.kernel, s.stride, s.padding, s.flag, s.dilation, s.groups),
    "max_pool2d": lambda s: (*s.window, s.pooled),
    "max_unpool2d": lambda s: (*s.window, s.size),
    "max_unpool2d_backward": lambda s: s.window,
    "contrast_norm": lambda s: _constants(s),
    "contrast_norm_backward": lambda s: _constants(s),
    "max_pool2d_contrast_norm": lambda s: (*s.window, s.pooled, *_constants(s)),
    "conv2d_relu_max_pool2d": lambda s: (s.stride, s.padding, *s.window, s.pooled),
    "conv2d_relu_max_pool2d_weight_grad": lambda s: (s.kernel, s.stride, s.padding, *s.window, s.flag),
    "max_unpool2d_relu_conv_transpose2d": lambda s: (s.stride, s.padding, *s.window, s.size, s.flag),
    "linear": lambda s: (),
}


def _cap(spec: Spec) -> float | None:
    return spec.cap if spec.flag and spec.cap < math.inf else None


def _constants(spec: Spec) -> tuple[Any, ...]:
    # Of few results the gradient's two terms must not cancel.
    alpha = min(spec.alpha, 1e-4) if few(spec) else spec.alpha
    return spec.norm, alpha, spec.beta, spec.bottom, spec.center


def results(spec: Spec) -> list[tuple[int, ...]]:
    """The shapes of what is computed: the outputs, and for a backward check the gradients."""
    n, c, k = spec.n, spec.c * spec.groups, spec.k * spec.groups
    filters: list[tuple[int, ...]] = [(k, spec.c, *spec.kernel), (k,)]
    outputs: list[tuple[int, ...]]
    if spec.op == "linear":
        outputs = [(n, k)]
    elif spec.op in ("conv2d", "conv2d_add"):
        outputs = [(n, k, *spec.conv)]
    elif spec.op.endswith("weight_grad"):
        outputs = filters if spec.flag else filters[:1]
    elif spec.op == "conv2d_relu_max_pool2d":
        outputs = [(n, k, *spec.pooled)]
    elif spec.op in ("max_pool2d", "max_pool2d_contrast_norm", "max_unpool2d_backward"):
        outputs = [(n, c, *spec.pooled)]
    else:
        outputs = [(n, c, *spec.size)]
    if spec.check == "backward":
        outputs += [shape for name, shape in shapes(spec).items() if name != "switches"]
    return outputs


def few(spec: Spec) -> bool:
    """Are there so few results that sums of values of both signs could cancel? (Of those that what is not finite
    leaves, or of those that gradients meet in.)"""
    counts = [math.prod(shape) for shape in results(spec)]
    if spec.op in POOLED:  # windows that overlap may all have one winner
        apart = [max(1, side // window) for side, window in zip(spec.whole, spec.pool, strict=True)]
        counts.append(spec.n * (spec.k if spec.op in LAYERS else spec.c) * math.prod(apart))
    return min(counts, default=0) < FEW * (1 if spec.finite else 16)


def values(spec: Spec, name: str, shape: tuple[int, ...], fill: str) -> Tensor:
    """The float64 values of a tensor."""
    draw = random.Random(f"{spec.seed}/{name}")
    generator = torch.Generator().manual_seed(draw.getrandbits(32))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).clamp(-4, 4)
    sign = torch.ones(())
    if few(spec):
        x = x.abs() / 2 + 0.5
        if spec.op in NORMS and len(shape) == 4:  # what is centred cancels where all have one sign
            sign = 1 - 2 * (torch.arange(shape[1]) % 2).double()[:, None, None]
        x *= sign
    info = torch.finfo(DTYPES[spec.dtype])
    if fill == "positive":
        return (x.abs() / 2 + 0.5) * sign
    if fill == "negative":
        return (-x.abs() / 2 - 0.5) * sign
    if fill == "ties":
        return x.round()
    if fill in ("zeros", "negative_zeros"):
        return torch.zeros_like(x) if fill == "zeros" else -torch.zeros_like(x)
    if fill == "sparse":
        return x.masked_fill(torch.rand(shape, generator=generator) < 0.8, 0)
    if fill == "denormal":  # the largest of them, so that rounding them loses little
        return x.abs().clamp(0.5, 0.99) * x.sign() * info.tiny
    if fill == "huge":
        return x * huge(spec, info.max)
    if fill in NONFINITE and x.numel():
        count = max(1, x.numel() // 50) if fill == "nonfinite" else 1
        choices = {"nan": [math.nan], "inf": [math.inf, -math.inf]}.get(fill, [math.nan, math.inf, -math.inf])
        for place in draw.choices(range(x.numel()), k=count):
            x.view(-1)[place] = draw.choice(choices)
    return x


def huge(spec: Spec, largest: float) -> float:
    """A factor under which no sum of products overflows, in whatever order.

    Where s_c is all of large values, the terms of a norm's gradient cancel, and of centred maps; and s_c^-beta must not
    vanish.
    """
    if spec.op in NORMS:
        cancels = spec.center or spec.check == "backward" or spec.op == "contrast_norm_backward"
        return (spec.bottom / max(_constants(spec)[1], 1e-4)) ** 0.5 if cancels else min(1e6, largest / 64)
    terms = max(math.prod(shape) for shape in shapes(spec).values())
    return largest / 256 / max(terms, 1)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """A copy of x in memory of that layout (one of LAYOUTS), on its device. "expanded" makes all images, or filters,
    the first; where a dtype has no complex twin, "negative" is contiguous."""
    if layout == "offset":  # one element behind where torch's memory begins, which is aligned to 64 bytes
        wide = torch.full((x.numel() + 1,), math.nan if x.is_floating_point() else 77, dtype=x.dtype, device=x.device)
        return wide[1:].view(x.shape).copy_(x)
    if layout == "expanded":
        return x[:1].clone().expand(x.shape) if x.numel() else x.clone()
    if layout == "negative":
        if x.dtype not in (torch.float32, torch.float64):
            return x.clone()
        return torch.complex(torch.zeros_like(x), -x).conj().imag
    return placed(x, layout)


def materialized(spec: Spec) -> dict[str, Tensor]:
    """The case's tensors in its dtype, on its backend's device and in the memory that it names."""
    device, dtype, result = backends.module(spec.backend).DEVICES[0], DTYPES[spec.dtype], {}
    for name, shape in shapes(spec).items():
        fill, layout = spec.of(name) or ("normal", "contiguous")
        if name == "switches":
            whole = values(spec, "map", (*shape[:2], *spec.whole), "normal")
            value = reference.max_pool2d(whole, *spec.window, spec.pooled)[1].contiguous()
            layout = "contiguous" if layout in ("expanded", "negative") else layout
        else:
            value = values(spec, name, shape, fill).to(dtype)
        result[name] = laid_out(value.to(device), layout)
    return result


def arguments(spec: Spec, tensors: dict[str, Tensor]) -> tuple[Any, ...]:
    """The arguments of the backends' function."""
    return *(tensors.get(name) for name in TENSORS[spec.op]), *SETTINGS[spec.op](spec)
