"""The steps that slide a window over maps: convolutions, the batch norms folded into them, and pooling.

steps.py says what a step has.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Size, Tensor, nn

from ..ops import checks
from ..ops.conv import conv2d, conv_transpose2d
from ..ops.fused import layer as conv2d_relu_max_pool2d
from ..ops.fused import layer_reversed as max_unpool2d_relu_conv_transpose2d
from ..ops.max_pool import max_pool2d, max_unpool2d
from ..window import Pair, Window, conv_map, pool_map
from .rules import Read, Rules, Shapes, check_count, check_size


@dataclass(frozen=True)
class Affine:
    """A batch norm."""

    name: str
    batch_norm: nn.Module

    maps = False
    windows = ()

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """In evaluation mode it is x * scale + shift, one of each a channel."""
        norm = self.batch_norm
        if norm.training:
            raise RuntimeError(
                f"layer {self.name!r} ({type(norm).__name__}) is in training mode, in which it uses the mean and "
                "variance of each batch; call model.eval() first"
            )
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
        return x * scale + shift, None

    def reverse(self, g: Tensor, below: list[Size], record: None, rules: Rules) -> Tensor:
        scale, _ = self.scale_and_shift()
        return g * scale.view(-1, *[1] * (g.ndim - 2))


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
    batch_norms: tuple[Affine, ...] = ()

    maps = True
    margin = 0.0  # what lies around the map

    @cached_property
    def reach(self) -> Pair:
        """The height and width that a filter spans."""
        return tuple((self.kernel[a] - 1) * self.dilation[a] + 1 for a in (0, 1))

    @cached_property
    def padding(self) -> Pair:
        return tuple(max(self.before[a], self.after[a]) for a in (0, 1))

    @cached_property
    def window(self) -> Pair:
        """The size of `filters()`: `reach`, and zeros in front where the padding differs between the sides."""
        return tuple(self.reach[a] + self.padding[a] - self.before[a] for a in (0, 1))

    windows = property(lambda self: (Window(self.reach, self.stride, self.before),))

    def filters(self) -> tuple[Tensor, Tensor | None]:
        """The filters (C_out, C_in, *window) and bias of a plain convolution with `stride` and `padding` that does all
        of this one: batch norms, groups, dilation.
        """
        weight = self.weight().detach()
        bias = None if self.bias is None else self.bias().detach()
        for batch_norm in self.batch_norms:
            scale, shift = batch_norm.scale_and_shift()
            weight = weight * scale[:, None, None, None]
            bias = shift if bias is None else bias * scale + shift
        if self.groups == 1 and self.window == self.kernel:
            return weight, bias
        before, after = (channels // self.groups for channels in self.channels)
        dense = weight.new_zeros(self.groups, after, self.groups, before, *self.window)
        rows, columns = (slice(self.window[a] - self.reach[a], None, self.dilation[a]) for a in (0, 1))
        for group, part in enumerate(weight.chunk(self.groups)):
            dense[group, :, group, :, rows, columns] = part
        return dense.reshape(*reversed(self.channels), *self.window), bias

    @property
    def by_torch(self) -> bool:
        """Grouped filters, which would be mostly zeros as dense ones: 99% of a depthwise convolution's at 100 maps."""
        return self.groups > 1 and self.before == self.after and not self.batch_norms

    def shape(self, inputs: list[Size], shapes: Shapes) -> Size:
        check_count(self, "channels", self.channels[0], inputs, shapes)
        size = conv_map(inputs[0][2:], self.window, self.stride, self.padding)
        check_size(self, size, self.window, self.padding, inputs, shapes)
        return Size((inputs[0][0], self.channels[1], *size))

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, None]:
        return self.convolve(inputs[0], self.padding, rules), None

    def convolve(self, x: Tensor, padding: Pair, rules: Rules) -> Tensor:
        """The convolution, with other zeros around it than its own where x is a part of a map."""
        if self.by_torch:
            bias = None if self.bias is None else self.bias()
            return F.conv2d(x, self.weight(), bias, self.stride, padding, self.dilation, self.groups)
        filters, bias = self.filters()
        checks.alike("weight", filters, "x", x)
        return conv2d(x, filters, bias, self.stride, padding, False, rules.backend)

    def inside(self, x: Tensor, low: np.ndarray, below: Size, above: Pair, rules: Rules) -> Tensor:
        return self.convolve(x, (0, 0), rules)

    def reverse(self, g: Tensor, below: list[Size], record: None, rules: Rules) -> Tensor:
        size = tuple(below[0][2:])
        if self.by_torch:
            least = [(g.shape[2 + a] - 1) * self.stride[a] + self.reach[a] - 2 * self.padding[a] for a in (0, 1)]
            left = tuple(size[a] - least[a] for a in (0, 1))
            weight = self.weight()
            return F.conv_transpose2d(g, weight, None, self.stride, self.padding, left, self.groups, self.dilation)
        filters, _ = self.filters()
        return conv_transpose2d(g, filters, self.stride, self.padding, size, False, rules.backend)


@dataclass(frozen=True)
class Layer:
    """A convolution with the filters it has now, the ReLU on it and the pool on that, if they are there: one kernel."""

    conv: Conv
    rectify: bool
    pool: "Pool | None"
    filters: Tensor
    bias: Tensor | None

    @property
    def windows(self) -> tuple[Window, ...]:
        conv = Window(self.conv.window, self.conv.stride, self.conv.padding)
        return (conv,) if self.pool is None else (conv, *self.pool.windows)

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, Tensor | None]:
        (x,), conv, pool = inputs, self.conv, self.pool
        checks.alike("weight", self.filters, "x", x)
        convolution = x, self.filters, self.bias, conv.stride, conv.padding
        if pool is None or not self.rectify:
            y = conv2d(*convolution, self.rectify, rules.backend)
            return (y, None) if pool is None else pool.run([y], rules)
        size = pool.size(conv_map(x.shape[2:], conv.window, conv.stride, conv.padding))
        return conv2d_relu_max_pool2d(*convolution, pool.kernel, pool.stride, pool.padding, size, rules.backend)

    def reverse(
        self, g: Tensor, below: list[Size], record: Tensor | None, rules: Rules, paddings: Sequence[Pair] = ()
    ) -> Tensor:
        conv, pool, size = self.conv, self.pool, tuple(below[0][2:])
        if pool is None:
            return conv_transpose2d(g, self.filters, conv.stride, paddings[0], size, self.rectify, rules.backend)
        pooling = pool.kernel, pool.stride, paddings[1]
        return max_unpool2d_relu_conv_transpose2d(
            g, record, self.filters, conv.stride, paddings[0], *pooling, size, self.rectify, rules.backend
        )


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

    def size(self, below: Pair) -> Pair:
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

    def reverse(
        self, g: Tensor, below: list[Size], record: Tensor, rules: Rules, paddings: Sequence[Pair] = ()
    ) -> Tensor:
        padding = paddings[0] if paddings else self.padding
        return max_unpool2d(g, record, self.kernel, self.stride, padding, tuple(below[0][2:]), rules.backend)


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

    def reverse(self, g: Tensor, below: list[Size], record: None, rules: Rules) -> Tensor:
        def shares(axis: int) -> Tensor:
            size, count = below[0][2 + axis], g.shape[2 + axis]
            first = np.arange(count) * self.stride[axis] - self.padding[axis]
            return _shares(first, first + self.kernel[axis], self.divisors(size, count, axis), size)

        return _spread(g, shares)

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
        def shares(axis: int) -> Tensor:
            size, count = below[0][2 + axis], g.shape[2 + axis]
            windows = np.arange(count)
            first, last = windows * size // count, -(-(windows + 1) * size // count)
            return _shares(first, last, last - first, size)

        return _spread(g, shares)


def _shares(first: np.ndarray, last: np.ndarray, divisors: np.ndarray, size: int) -> Tensor:
    """Along one axis, the share that each of `size` pixels has in the windows first ... last - 1: (windows, size)."""
    pixels = np.arange(size)
    inside = (pixels >= first[:, None]) & (pixels < last[:, None])
    return torch.from_numpy(inside / divisors[:, None])


def _spread(g: Tensor, shares: Callable[[int], Tensor]) -> Tensor:
    rows, columns = (shares(axis).to(g) for axis in (0, 1))
    return torch.einsum("ncij,ih,jw->nchw", g, rows, columns)
