"""What a model can do, step by step. A step is a frozen dataclass with

    name                            the layer it stands for in messages
    maps                            whether it takes maps (N, C, H, W) and nothing else
    windows                         what one place of its value sees of its input: windows, the lowest first; (): the
                                    same place; None: all of it
    shape(inputs, shapes)           the shape of its value; `shapes` are those of all values so far, by number
    run(inputs, rules)              its value, and what its reverse needs of it
    reverse(g, below, record, rules)
                                    the signal g of its value, or of a part of it, sent down to its input, whose shape
                                    `below` holds. Windows and joins have other means: deconvnet/cones.py. What works
                                    place by place is told whether it may write into g (`own`).

The weights stay in the model: a step reads them when it needs them. The ops are called without the checks of the public
functions: `shape` has made them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from ..ops.contrast_norm import contrast_norm_backward, contrast_norm_op
from ..window import Pair
from .layer import passed_on, rectified
from .rules import Read, Rules, Shapes, check_count, irreversible, told
from .windowed import Affine, Average, AveragePool, Conv, Pad, Pool


def _same_shape(step: object, inputs: list[Size], shapes: Shapes) -> Size:
    return inputs[0]


@dataclass(frozen=True)
class Mean:
    """Over each map, which leaves a vector an image."""

    name: str

    maps = True
    windows = None

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        return inputs[0][:2]

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        return inputs[0].mean((2, 3)), None

    def reverse(self, g: Tensor, below: list[Size], record: None, rules: Rules) -> Tensor:
        height, width = below[0][2:]
        return (g / (height * width))[:, :, None, None].expand(-1, -1, height, width)


# Place by place


@dataclass(frozen=True)
class Norm:
    """contrast_norm."""

    name: str
    parameters: tuple[int, float, float, float, bool]  # size, alpha, beta, k, center

    maps = True
    windows = ()

    shape = _same_shape

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, Tensor | None]:
        (x,) = inputs
        y = contrast_norm_op(x, *self.parameters, rules.backend)
        return y, None if rules.method is None or rules.norm == "identity" else x

    def reverse(self, g: Tensor, below: list[Size], record: Tensor, rules: Rules) -> Tensor:
        if rules.norm == "gradient":
            return contrast_norm_backward(g, record, *self.parameters, rules.backend)
        return g * norm_factors(record, *self.parameters)


def norm_factors(x: Tensor, size: int, alpha: float, beta: float, k: float, center: bool) -> Tensor:
    """Of contrast_norm(x), the factor denominator^(-beta) at each place."""
    d = x.float() if x.element_size() < 4 else x
    if center:
        d = d - _window_sum(d, size) / _window_sum(torch.ones_like(d[:1, :, :1, :1]), size)
    return ((k + alpha / size * _window_sum(d * d, size)) ** -beta).to(x.dtype)


def _window_sum(x: Tensor, size: int) -> Tensor:
    """Over the maps c - size//2 ... c - size//2 + size - 1 that exist."""
    padded = F.pad(x, (0, 0, 0, 0, size // 2, size - 1 - size // 2))
    parts = [padded[:, j : j + x.shape[1]] for j in range(size)]
    return sum(parts[1:], parts[0])


@dataclass(frozen=True)
class ReLU:
    """max(0, x) + slope * min(0, x), at most `cap`."""

    name: str
    slope: float = 0.0
    cap: float = math.inf
    in_place: bool = False  # whether nothing else reads what it takes

    maps = False
    windows = ()

    shape = _same_shape

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, Tensor | None]:
        y = self._rectified(inputs[0])
        return y, None if rules.method in (None, "deconvnet") else y

    def _rectified(self, x: Tensor) -> Tensor:
        if self.slope:
            return F.leaky_relu(x, self.slope, self.in_place)
        if self.cap == math.inf:
            return x.relu_() if self.in_place else x.relu()
        return F.hardtanh(x, 0.0, self.cap, self.in_place)

    def reverse(self, g: Tensor, below: list[Size], record: Tensor, rules: Rules, own: bool = False) -> Tensor:
        """`record` is its value, which says where its derivative is 1: as torch's, not at 0 nor at the cap."""
        if rules.method != "gradient":
            g, own = rectified(g, own, self.slope), True
        if rules.method == "deconvnet":
            return g
        if self.slope:
            return torch.where(record > 0, g, self.slope * g)
        return passed_on(g, record, own, self.cap)


@dataclass(frozen=True)
class Scale:
    """x * scale + shift, of two numbers."""

    name: str
    scale: float
    shift: float

    maps = False
    windows = ()

    shape = _same_shape

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        return inputs[0] * self.scale + self.shift, None

    def reverse(self, g: Tensor, below: list[Size], record: None, rules: Rules, own: bool = False) -> Tensor:
        return g.mul_(self.scale) if own else g * self.scale


@dataclass(frozen=True)
class Copy:
    """The same, which nothing that later changes its input in place changes."""

    name: str

    maps = False
    windows = ()

    shape = _same_shape

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        return inputs[0], None


# Joins


@dataclass(frozen=True)
class Add:
    """The sum of two values of one shape."""

    name: str
    into: int | None = None  # which of them nothing else reads

    maps = False
    windows = ()

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        if any(shape != inputs[0] for shape in inputs):
            raise irreversible(self.name, "sum", f"it must add values of one shape, but {told(inputs, shapes)}")
        return inputs[0]

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        if self.into is not None:
            return inputs[self.into].add_(inputs[1 - self.into]), None
        return inputs[0] + inputs[1], None


@dataclass(frozen=True)
class Concat:
    """Several values' maps or features, one after another."""

    name: str

    maps = False
    windows = ()

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        first = inputs[0]
        if any(shape[:1] + shape[2:] != first[:1] + first[2:] for shape in inputs):
            text = told(inputs, shapes)
            raise ValueError(f"images do not suit layer {self.name!r}, which joins maps of one size: {text}")
        return Size((first[0], sum(shape[1] for shape in inputs), *first[2:]))

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        return torch.cat(inputs, 1), None


# Vectors


@dataclass(frozen=True)
class Flatten:
    name: str
    reshaped: Callable[[Size, Shapes], Size]  # of what it takes, and of all values so far -> of what it makes

    maps = False
    windows = None

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        (before,) = inputs
        try:
            after = self.reshaped(before, shapes)
        except RuntimeError as error:
            text = told(inputs, shapes)
            raise ValueError(f"images do not suit layer {self.name!r}: {text}, and {error}") from error
        if tuple(after) != (before[0], math.prod(before[1:])):
            why = f"it must make one vector an image, but makes {tuple(after)}: {told(inputs, shapes)}"
            raise irreversible(self.name, "reshaping", why)
        return after

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        return inputs[0].flatten(1), None

    def reverse(self, g: Tensor, below: list[Size], record: None, rules: Rules) -> Tensor:
        return g.reshape(-1, *below[0][1:])


@dataclass(frozen=True)
class Linear:
    name: str
    weight: Read
    bias: Read | None
    features: Pair  # in, out

    maps = False
    windows = None

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        (before,) = inputs
        if len(before) != 2:
            why = f"it must follow a flattening to vectors, but {told(inputs, shapes)}"
            raise irreversible(self.name, "Linear", why)
        check_count(self, "features", self.features[0], inputs, shapes)
        return Size((before[0], self.features[1]))

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        return F.linear(inputs[0], self.weight(), None if self.bias is None else self.bias()), None

    def reverse(self, g: Tensor, below: list[Size], record: None, rules: Rules) -> Tensor:
        return g @ self.weight()


@dataclass(frozen=True)
class Opaque:
    """What only torch knows how to run, as it stands in the model; without a shape before it has run, or a reverse."""

    name: str
    call: Callable[[list[Any], Shapes], Any]  # (inputs, shapes by number) -> what it gives
    pointwise: bool  # whether each element depends on its own place alone

    @property
    def windows(self) -> tuple[()] | None:
        return () if self.pointwise else None


Step = (
    Conv
    | Pad
    | Pool
    | AveragePool
    | Average
    | Mean
    | Norm
    | ReLU
    | Affine
    | Scale
    | Copy
    | Add
    | Concat
    | Flatten
    | Linear
)
