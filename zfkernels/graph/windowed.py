"""Batch norms, and the steps that slide a window over maps: convolutions and pooling.

steps.py says what a step has.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Size, Tensor

from ..backends.prepared import PreparedFilters
from ..ops import checks
from ..ops.conv import conv2d, conv2d_add, conv_transpose2d
from ..ops.max_pool import max_pool2d, max_unpool2d
from ..window import Pair, Window, as_pair, conv_map, pool_map
from .rules import Read, Rules, Shapes, check_count, check_size


def plain_filters(filters: Tensor | PreparedFilters) -> Tensor:
    return filters.filters if isinstance(filters, PreparedFilters) else filters


@dataclass(frozen=True)
class Affine:
    """A batch norm."""

    name: str
    batch_norm: Any  # torch's module, or what has its names

    maps = False
    windows = ()

    @property
    def tensors(self) -> list[Tensor]:
        norm = self.batch_norm
        return [t for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias) if t is not None]

    def check(self) -> None:
        norm = self.batch_norm
        if norm.training:
            raise RuntimeError(
                f"layer {self.name!r} ({type(norm).__name__}) is in training mode, in which it uses the mean and "
                "variance of each batch; call model.eval() first"
            )

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """In evaluation mode it is x * scale + shift, one of each a channel."""
        self.check()
        norm = self.batch_norm
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.detach()
        shift = -norm.running_mean * scale
        return scale, shift if norm.bias is None else shift + norm.bias.detach()

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        check_count(self, "channels", self.batch_norm.num_features, inputs, shapes)
        return inputs[0]

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        (x,) = inputs
        scale, shift = (part.view(-1, *[1] * (x.ndim - 2)) for part in self.scale_and_shift())
        return torch.addcmul(shift, x, scale), None

    def reverse(self, g: Tensor, below: list[Size], record: None, rules: Rules, own: bool = False) -> Tensor:
        scale, _ = self.scale_and_shift()
        scale = scale.view(-1, *[1] * (g.ndim - 2))
        return g.mul_(scale) if own else g * scale


def capped(y: Tensor, cap: float) -> Tensor:
    """min(max(0, y), cap) in the place of y."""
    return y.relu_() if cap == math.inf else F.hardtanh(y, 0.0, cap, True)


@dataclass(frozen=True)
class Conv:
    """A convolution, and the batch norms folded into it."""

    name: str
    weight: Read
    bias: Read | None
    channels: Pair  # in, out
    kernel: Pair
    stride: Pair
    before: Pair  # zeros above and left of the map
    after: Pair  # zeros below and right of it
    dilation: Pair
    groups: int

    maps = True
    margin = 0.0  # what lies around the map

    @cached_property
    def reach(self) -> Pair:
        """The height and width that a filter spans."""
        return as_pair((self.kernel[a] - 1) * self.dilation[a] + 1 for a in (0, 1))

    @cached_property
    def padding(self) -> Pair:
        return as_pair(max(self.before[a], self.after[a]) for a in (0, 1))

    @cached_property
    def window(self) -> Pair:
        """What `filters()` span: `reach`, and zeros on one side where the padding differs between the sides."""
        return as_pair(self.reach[a] + 2 * self.padding[a] - self.before[a] - self.after[a] for a in (0, 1))

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        return (Window(self.reach, self.stride, self.before),)

    @cached_property
    def dense(self) -> bool:
        """Whether it is carried out as one without groups and dilation.

        Grouped or dilated filters would be mostly zeros as dense ones: 99% of a depthwise convolution's at 100 maps,
        64% of a 3x3 one's of dilation 2. They remain where zeros beside them cannot lie a dilation apart.
        """
        apart = [(self.window[a] - self.reach[a]) % self.dilation[a] for a in (0, 1)]
        return (self.groups == 1 and self.dilation == (1, 1)) or any(apart)

    @cached_property
    def plain(self) -> bool:
        """Whether `filters` are the weight itself."""
        return self.window == self.reach and (self.groups == 1 or not self.dense)

    def filters(self, weight: Tensor) -> Tensor:
        """Of this weight: the filters of a convolution with `stride` and `padding` that does all of this one, padding
        of other sizes on either side too; with its groups and dilation, unless it is `dense`.
        """
        if self.plain:
            return weight
        first = tuple(self.padding[a] - self.before[a] for a in (0, 1))
        if not self.dense:
            last = tuple(self.padding[a] - self.after[a] for a in (0, 1))
            return F.pad(weight, [side[a] // self.dilation[a] for a in (1, 0) for side in (first, last)])
        before, after = (channels // self.groups for channels in self.channels)
        dense = weight.new_zeros(self.groups, after, self.groups, before, *self.window)
        rows, columns = (slice(first[a], first[a] + self.reach[a], self.dilation[a]) for a in (0, 1))
        for group, part in enumerate(weight.chunk(self.groups)):
            dense[group, :, group, :, rows, columns] = part
        return dense.reshape(*reversed(self.channels), *self.window)

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        check_count(self, "channels", self.channels[0], inputs, shapes)
        size = conv_map(inputs[0][2:], self.window, self.stride, self.padding)
        check_size(self, size, self.window, self.padding, inputs, shapes)
        return Size((inputs[0][0], self.channels[1], *size))

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        return self.convolve(inputs[0], self.padding, rules), None

    def inside(self, x: Tensor, low: np.ndarray, below: Size, above: Pair, rules: Rules) -> Tensor:
        return self.convolve(x, (0, 0), rules)

    def convolve(self, x: Tensor, padding: Pair, rules: Rules) -> Tensor:
        filters = self.filters(self.weight().detach())
        checks.alike("weight", filters, "x", x)
        return self.by_filters(x, filters, None if self.bias is None else self.bias().detach(), padding, None, rules)

    def by_filters(
        self,
        x: Tensor,
        filters: Tensor | PreparedFilters,
        bias: Tensor | None,
        padding: Pair,
        cap: float | None,
        rules: Rules,
    ) -> Tensor:
        """The convolution with what `filters` gave and this padding; with a cap, which may be infinite, rectified."""
        rectify = cap is not None
        if self.by_torch(rules):
            y = F.conv2d(x, plain_filters(filters), bias, self.stride, padding, self.dilation, self.groups)
            return y if cap is None else capped(y, cap)
        name = rules.serving("conv2d", x, filters)
        if cap is not None and cap < math.inf:
            window = self.stride, padding, rectify, cap
            return conv2d_add(x, filters, bias, None, *window, name, *self._grouping)
        return conv2d(x, filters, bias, self.stride, padding, rectify, name, *self._grouping)

    def transposed(
        self, g: Tensor, filters: Tensor | PreparedFilters, padding: Pair, size: Pair, rectify: bool, rules: Rules
    ) -> Tensor:
        """Its adjoint, of g or, with `rectify`, of max(0, g), onto a map of `size`."""
        if not self.by_torch(rules):
            settings = self.stride, padding, size, rectify, rules.serving("conv_transpose2d", g, filters)
            return conv_transpose2d(g, filters, *settings, *self._grouping)
        least = [(g.shape[2 + a] - 1) * self.stride[a] + self.window[a] - 2 * padding[a] for a in (0, 1)]
        left = tuple(size[a] - least[a] for a in (0, 1))
        g, plain = g.relu() if rectify else g, plain_filters(filters)
        return F.conv_transpose2d(g, plain, None, self.stride, padding, left, self.groups, self.dilation)

    @cached_property
    def _grouping(self) -> tuple[Pair, int]:
        return ((1, 1), 1) if self.dense else (self.dilation, self.groups)

    def by_torch(self, rules: Rules) -> bool:
        """Of what is not dense our kernels are the faster ones for depthwise convolutions, on the CPU."""
        depthwise = self.groups == self.channels[0] == self.channels[1] and self.dilation == (1, 1)
        return not (self.dense or (depthwise and rules.backend == "cpu"))


@dataclass(frozen=True)
class Pad:
    """A value around each map."""

    name: str
    before: Pair  # how many pixels above and left of the map
    after: Pair  # and below and right of it
    margin: float

    maps = True
    window = stride = (1, 1)

    padding = property(lambda self: self.before)
    windows = property(lambda self: (Window(self.window, self.stride, self.before),))

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        size = (inputs[0][2 + a] + self.before[a] + self.after[a] for a in (0, 1))
        return Size((*inputs[0][:2], *size))

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        (top, left), (bottom, right) = self.before, self.after
        return F.pad(inputs[0], (left, right, top, bottom), value=self.margin), None

    def inside(self, x: Tensor, low: np.ndarray, below: Size, above: Pair, rules: Rules) -> Tensor:
        return x


@dataclass(frozen=True)
class Pool:
    name: str
    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool

    maps = True
    margin = -math.inf

    window = property(lambda self: self.kernel)
    windows = property(lambda self: (Window(self.kernel, self.stride, self.padding),))

    def size(self, below: Sequence[int]) -> Pair:
        return pool_map(below, self.kernel, self.stride, self.padding, self.ceil_mode)

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        size = self.size(inputs[0][2:])
        check_size(self, size, self.kernel, self.padding, inputs, shapes)
        return Size((*inputs[0][:2], *size))

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, Tensor | None]:
        (x,) = inputs
        y, switches = max_pool2d(x, self.kernel, self.stride, self.padding, self.size(x.shape[2:]), rules.backend)
        return y, None if rules.method is None else switches

    def inside(self, x: Tensor, low: np.ndarray, below: Size, above: Pair, rules: Rules) -> Tensor:
        size = pool_map(x.shape[2:], self.kernel, self.stride, (0, 0), False)
        return max_pool2d(x, self.kernel, self.stride, (0, 0), size, rules.backend)[0]

    def unpool(self, g: Tensor, switches: Tensor, padding: Pair, size: Pair, rules: Rules) -> Tensor:
        """Its adjoint at these switches, onto a map of `size`, with this padding in the place of its own."""
        return max_unpool2d(g, switches, self.kernel, self.stride, padding, size, rules.backend)


@dataclass(frozen=True)
class AveragePool:
    name: str
    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool
    count_include_pad: bool
    divisor: int | None

    maps = True
    margin = 0.0

    window = property(lambda self: self.kernel)
    windows = property(lambda self: (Window(self.kernel, self.stride, self.padding),))

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        size = pool_map(inputs[0][2:], self.kernel, self.stride, self.padding, self.ceil_mode)
        check_size(self, size, self.kernel, self.padding, inputs, shapes)
        return Size((*inputs[0][:2], *size))

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        window = self.kernel, self.stride, self.padding, self.ceil_mode
        return F.avg_pool2d(inputs[0], *window, self.count_include_pad, self.divisor), None

    def inside(self, x: Tensor, low: np.ndarray, below: Size, above: Pair, rules: Rules) -> Tensor:
        y = F.avg_pool2d(x, self.kernel, self.stride, divisor_override=1)
        rows, columns = (
            torch.from_numpy(self.divisors(below[2 + a], above[a], a)[low[:, a, None] + np.arange(y.shape[2 + a])])
            for a in (0, 1)
        )
        return y / (rows[:, None, :, None] * columns[:, None, None, :]).to(y)

    def spread(self, g: Tensor, origins: np.ndarray, below: Pair, above: Pair) -> Tensor:
        """What boxes g, at `origins` of maps of size `above`, send to all the pixels that their windows see."""
        rows, columns = (
            torch.from_numpy(self.divisors(below[a], above[a], a)[origins[:, a, None] + np.arange(g.shape[2 + a])])
            for a in (0, 1)
        )
        if (rows == rows[0, 0]).all() and (columns == columns[0, 0]).all():
            g = g / int(rows[0, 0] * columns[0, 0])
        else:
            g = g / (rows[:, None, :, None] * columns[:, None, None, :]).to(g)
        (height, width), (down, right) = self.kernel, self.stride
        last = tuple((g.shape[2 + a] - 1) * self.stride[a] for a in (0, 1))
        size = last[0] + height, last[1] + width
        x = torch.empty((*g.shape[:2], *size), dtype=g.dtype, device=g.device, memory_format=torch.channels_last)
        if self.kernel == self.stride:
            for i, j in np.ndindex(self.kernel):
                x[:, :, i::down, j::right] = g
            return x
        x.zero_()
        for i, j in np.ndindex(self.kernel):
            x[:, :, i : i + last[0] + 1 : down, j : j + last[1] + 1 : right] += g
        return x

    def divisors(self, below: int, above: int, axis: int) -> np.ndarray:
        """Along one axis, what each window's sum is divided by: (above,). The axes' divisors multiply."""
        if self.divisor:
            return np.full(above, self.divisor if axis == 0 else 1)
        first = np.arange(above) * self.stride[axis] - self.padding[axis]
        last = np.minimum(first + self.kernel[axis], below + self.padding[axis])
        return last - first if self.count_include_pad else last.clip(max=below) - first.clip(0)


@dataclass(frozen=True)
class Average:
    """Adaptive average pooling."""

    name: str
    size: tuple[int | None, int | None]

    maps = True
    windows = None

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        return Size(n if want is None else want for want, n in zip((None, None, *self.size), inputs[0], strict=True))

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        """The very tensor where nothing is to be averaged."""
        (x,) = inputs
        return x if self.shape([x.shape], [x.shape]) == x.shape else F.adaptive_avg_pool2d(x, self.size), None

    def reverse(self, g: Tensor, below: list[Size], record: None, rules: Rules) -> Tensor:
        """Of whole maps g."""
        size = below[0][2:]
        if g.shape[2:] == (1, 1):
            return (g / size.numel()).expand(-1, -1, *size)
        rows, columns = (_shares(g.shape[2 + a], size[a]).to(g) for a in (0, 1))
        return torch.einsum("ncij,ih,jw->nchw", g, rows, columns)


def _shares(count: int, size: int) -> Tensor:
    """Along one axis, the share that each of `size` pixels has in each of `count` windows: (count, size)."""
    windows, pixels = np.arange(count)[:, None], np.arange(size)
    first, last = windows * size // count, -(-(windows + 1) * size // count)
    return torch.from_numpy(((pixels >= first) & (pixels < last)) / (last - first))
