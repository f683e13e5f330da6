"""what a model can do: run, reverse, shape, reach."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import checks
from ..ops.contrast_norm import contrast_norm, contrast_norm_backward
from ..ops.conv import conv2d, relu_conv_transpose2d
from ..ops.max_pool import max_pool2d_with_switches, max_unpool2d_with_switches
from ..window import conv_size, pool_size

Pair = tuple[int, int]
Read = Callable[[], Tensor]  # gives a tensor of the model as it is now

NO_REVERSE = (
    "it has no reverse here; Conv2d, ReLU, ReLU6, LeakyReLU, MaxPool2d, average pooling, LocalResponseNorm, BatchNorm, "
    "Dropout, Linear, flattening to vectors, sums, concatenations of maps and the modules and functions of zfkernels "
    "have"
)


@dataclass(frozen=True)
class Affine:
    """A batch norm."""

    name: str
    batch_norm: nn.Module

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


@dataclass(frozen=True)
class Conv:
    """A convolution, and the batch norms folded into it."""

    name: str
    weight: Read
    bias: Read | None
    channels: tuple[int, int]  # in, out
    kernel: Pair
    stride: Pair
    before: Pair  # zeros above and left of the map
    after: Pair  # zeros below and right of it
    dilation: Pair
    groups: int
    batch_norms: tuple[Affine, ...] = ()

    @cached_property
    def reach(self) -> Pair:
        """The height and width that a filter spans."""
        return tuple((self.kernel[a] - 1) * self.dilation[a] + 1 for a in (0, 1))

    @cached_property
    def padding(self) -> Pair:
        return tuple(max(self.before[a], self.after[a]) for a in (0, 1))

    @cached_property
    def window(self) -> Pair:
        """The size of `filters()`: `reach`, and zeros in front where the padding is not the same on both sides."""
        return tuple(self.reach[a] + self.padding[a] - self.before[a] for a in (0, 1))

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
        for group, some in enumerate(weight.chunk(self.groups)):
            dense[group, :, group, :, rows, columns] = some
        return dense.reshape(*reversed(self.channels), *self.window), bias


@dataclass(frozen=True)
class Pool:
    name: str
    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool


@dataclass(frozen=True)
class Norm:
    name: str
    parameters: tuple  # size, alpha, beta, k, center: of contrast_norm


@dataclass(frozen=True)
class ReLU:
    """max(0, x) + slope * min(0, x), at most `cap`."""

    name: str
    slope: float = 0.0
    cap: float = math.inf


@dataclass(frozen=True)
class Average:
    """Adaptive average pooling; a chain has it only where it changes nothing."""

    name: str
    size: tuple


@dataclass(frozen=True)
class AveragePool:
    name: str
    kernel: Pair
    stride: Pair
    padding: Pair
    ceil_mode: bool
    count_include_pad: bool
    divisor: int | None


@dataclass(frozen=True)
class Mean:
    """Over each map, which leaves a vector an image."""

    name: str


@dataclass(frozen=True)
class Scale:
    """x * scale + shift, of two numbers."""

    name: str
    scale: float
    shift: float


@dataclass(frozen=True)
class Add:
    """The sum of two values of one shape."""

    name: str


@dataclass(frozen=True)
class Concat:
    """Several values' maps or features, one after another."""

    name: str


@dataclass(frozen=True)
class Opaque:
    """What only torch knows how to run, as it stands in the model."""

    name: str
    call: Callable[[dict[int, object], list], object]  # (values by number, shapes by number) -> what it gives
    pointwise: bool  # whether each element depends on its own place alone


@dataclass(frozen=True)
class Flatten:
    name: str
    reshaped: Callable[[torch.Size, list], torch.Size]  # of what it takes, and of all values so far -> of what it makes


@dataclass(frozen=True)
class Linear:
    name: str
    weight: Read
    bias: Read | None
    features: tuple[int, int]  # in, out


Step = (
    Conv | Pool | Norm | ReLU | Affine | Average | Flatten | Linear | AveragePool | Mean | Scale | Add | Concat | Opaque
)


class Irreversible(Exception):
    """Why a step cannot be reversed."""


def irreversible(name: str, kind: str, why: object) -> NotImplementedError:
    return NotImplementedError(f"cannot reverse layer {name!r} ({kind}): {why}")


def averages(step: Average, shape: torch.Size) -> bool:
    """Whether adaptive pooling changes maps of this shape."""
    return len(shape) == 4 and any(want not in (None, n) for want, n in zip(step.size, shape[2:], strict=True))


def shape_after(step: Step, inputs: list[torch.Size], shapes: list[torch.Size | None]) -> torch.Size:
    """The shape of a step's value; `shapes` are those of all values so far."""
    before = inputs[0]
    given = f"images of shape {tuple(shapes[0])} reach it as {', '.join(str(tuple(shape)) for shape in inputs)}"
    if isinstance(step, (Conv, Pool, Norm, Average, AveragePool, Mean)) and len(before) != 4:
        raise irreversible(step.name, type(step).__name__, f"it works on maps, but {given}")
    if isinstance(step, Conv):
        _check_count("channels", before[1], step.channels[0], step, given)
        size = [conv_size(before[2 + a], step.window[a], step.stride[a], step.padding[a]) for a in (0, 1)]
        return _with_size(before[0], step.channels[1], size, step, step.window, given)
    if isinstance(step, (Pool, AveragePool)):
        size = [
            pool_size(before[2 + a], step.kernel[a], step.stride[a], step.padding[a], step.ceil_mode) for a in (0, 1)
        ]
        return _with_size(before[0], before[1], size, step, step.kernel, given)
    if isinstance(step, Affine):
        _check_count("channels", before[1], step.batch_norm.num_features, step, given)
    elif isinstance(step, Average):
        return torch.Size(n if want is None else want for want, n in zip((None, None, *step.size), before, strict=True))
    elif isinstance(step, Mean):
        return before[:2]
    elif isinstance(step, Add):
        if any(shape != before for shape in inputs):
            raise irreversible(step.name, "sum", f"it must add values of one shape, but {given}")
    elif isinstance(step, Concat):
        if any(shape[:1] + shape[2:] != before[:1] + before[2:] for shape in inputs):
            raise ValueError(f"images do not suit layer {step.name!r}, which joins maps of one size: {given}")
        return torch.Size((before[0], sum(shape[1] for shape in inputs), *before[2:]))
    elif isinstance(step, Flatten):
        try:
            after = step.reshaped(before, shapes)
        except RuntimeError as error:
            raise ValueError(f"images do not suit layer {step.name!r}: {given}, and {error}") from error
        if after != (before[0], math.prod(before[1:])):
            raise irreversible(
                step.name, "reshaping", f"it must make one vector an image, but makes {tuple(after)}: {given}"
            )
        return after
    elif isinstance(step, Linear):
        if len(before) != 2:
            raise irreversible(step.name, "Linear", f"it must follow a flattening to vectors, but {given}")
        _check_count("features", before[1], step.features[0], step, given)
        return torch.Size((before[0], step.features[1]))
    return before


def _check_count(what: str, count: int, taken: int, step: Step, given: str) -> None:
    if count != taken:
        raise ValueError(f"images do not suit layer {step.name!r}, which takes {taken} {what}: {given}")


def _with_size(
    count: int, channels: int, size: list[int], step: Conv | Pool | AveragePool, window: Pair, given: str
) -> torch.Size:
    if min(size) < 1:
        raise ValueError(
            f"images are too small for layer {step.name!r}: no {window[0]}x{window[1]} window fits (padding "
            f"{step.padding}); {given}"
        )
    return torch.Size((count, channels, *size))


# How a ReLU sends a signal g down, m being its derivative at what was its input:
METHODS = (
    "deconvnet",  # max(0, g)       Zeiler & Fergus
    "gradient",  #  m g             Simonyan et al. 2013
    "guided",  #    m max(0, g)     Springenberg et al. 2014
)


def forward(step: Step, inputs: list[Tensor], method: str | None = None) -> tuple[Tensor, Tensor | None]:
    """A step's value, and what its reverse needs."""
    x = inputs[0]
    if isinstance(step, Conv):
        return convolve(step, x, step.padding), None
    if isinstance(step, Pool):
        y, switches = max_pool2d_with_switches(x, step.kernel, step.stride, step.padding, step.ceil_mode)
        return y, None if method is None else switches
    if isinstance(step, Norm):
        *parameters, center = step.parameters
        return contrast_norm(x, *parameters, center=center), None if method is None else x
    if isinstance(step, ReLU):
        return rectify(step, x), None if method in (None, "deconvnet") else _derivative(step, x)
    if isinstance(step, AveragePool):
        y = F.avg_pool2d(
            x, step.kernel, step.stride, step.padding, step.ceil_mode, step.count_include_pad, step.divisor
        )
    elif isinstance(step, Average):
        y = F.adaptive_avg_pool2d(x, step.size) if averages(step, x.shape) else x
    elif isinstance(step, Mean):
        y = x.mean((2, 3))
    elif isinstance(step, Affine):
        scale, shift = (part.view(-1, *[1] * (x.ndim - 2)) for part in step.scale_and_shift())
        y = x * scale + shift
    elif isinstance(step, Scale):
        y = x * step.scale + step.shift
    elif isinstance(step, Flatten):
        y = x.flatten(1)
    elif isinstance(step, Linear):
        y = F.linear(x, step.weight(), None if step.bias is None else step.bias())
    elif isinstance(step, Add):
        y = x + inputs[1]
    elif isinstance(step, Concat):
        y = torch.cat(inputs, 1)
    else:
        raise AssertionError(step)
    return y, None


def convolve(step: Conv, x: Tensor, padding: Pair) -> Tensor:
    """The convolution, with other zeros around it than its own where x is a part of a map."""
    if _by_torch(step):
        bias = None if step.bias is None else step.bias()
        return F.conv2d(x, step.weight(), bias, step.stride, padding, step.dilation, step.groups)
    filters, bias = step.filters()
    return conv2d(x, filters, bias, step.stride, padding, False, checks.backend(None, x))


def _by_torch(step: Conv) -> bool:
    """Grouped filters, which as dense ones would be mostly zeros: 99% of a depthwise convolution's at 100 maps."""
    return step.groups > 1 and step.before == step.after and not step.batch_norms


def rectify(step: ReLU, x: Tensor) -> Tensor:
    if step.slope:
        return F.leaky_relu(x, step.slope)
    return x.relu() if step.cap == torch.inf else F.hardtanh(x, 0.0, step.cap)


def _derivative(step: ReLU, x: Tensor) -> Tensor:
    """As torch's backward has it: 0 (or the slope) at 0, 0 at the cap."""
    if step.slope:
        return torch.full_like(x, step.slope).masked_fill_(x > 0, 1)
    return (x > 0) & (x < step.cap)


def _reverse_step(step: Step, g: Tensor, below: torch.Size, record: Tensor | None, norm: str, method: str) -> Tensor:
    size = tuple(below[2:])
    if isinstance(step, Conv):
        if _by_torch(step):
            return _transposed(step, g, size)
        return relu_conv_transpose2d(g, step.filters()[0], step.stride, step.padding, output_size=size, rectify=False)
    if isinstance(step, Pool):
        return max_unpool2d_with_switches(g, record, step.kernel, step.stride, step.padding, output_size=size)
    if isinstance(step, ReLU):
        if method != "gradient":
            g = F.leaky_relu(g, step.slope) if step.slope else g.relu()
        return g if method == "deconvnet" else g * record
    if isinstance(step, Norm):
        if norm == "identity":
            return g
        if norm == "gradient":
            return contrast_norm_backward(g, record, *step.parameters, checks.backend(None, g))
        return g * norm_factors(record, *step.parameters)
    if isinstance(step, Affine):
        scale, _ = step.scale_and_shift()
        return g * scale.view(-1, *[1] * (g.ndim - 2))
    if isinstance(step, Scale):
        return g * step.scale
    if isinstance(step, (AveragePool, Average)):
        rows, columns = (_averaging(step, below[2 + a], g.shape[2 + a], a).to(g) for a in (0, 1))
        return torch.einsum("ncij,ih,jw->nchw", g, rows, columns)
    if isinstance(step, Mean):
        return (g / (size[0] * size[1]))[:, :, None, None].expand(-1, -1, *size)
    if isinstance(step, Linear):
        return g @ step.weight()
    if isinstance(step, Flatten):
        return g.reshape(-1, *below[1:])
    raise AssertionError(step)


def _transposed(step: Conv, g: Tensor, size: Pair) -> Tensor:
    """The adjoint of a grouped convolution."""
    left = [size[a] - ((g.shape[2 + a] - 1) * step.stride[a] + step.reach[a] - 2 * step.padding[a]) for a in (0, 1)]
    return F.conv_transpose2d(
        g, step.weight(), None, step.stride, step.padding, tuple(left), step.groups, step.dilation
    )


def _averaging(step: AveragePool | Average, below: int, above: int, axis: int) -> Tensor:
    """Along one axis, the part that each of `below` pixels has in each of `above` windows: (above, below)."""
    windows, pixels = np.arange(above), np.arange(below)
    if isinstance(step, Average):
        first, last = windows * below // above, -(-(windows + 1) * below // above)
        sizes = last - first
    else:
        first = windows * step.stride[axis] - step.padding[axis]
        last = first + step.kernel[axis]
        sizes = window_sizes(step, below, above, axis)
    inside = (pixels >= first[:, None]) & (pixels < last[:, None])
    return torch.from_numpy(inside / sizes[:, None])


def window_sizes(step: AveragePool, below: int, above: int, axis: int) -> np.ndarray:
    """Along one axis, what a window's sum is divided by, window by window: (above,). The axes' divisors multiply."""
    if step.divisor:
        return np.full(above, step.divisor if axis == 0 else 1)
    first = np.arange(above) * step.stride[axis] - step.padding[axis]
    last = np.minimum(first + step.kernel[axis], below + step.padding[axis])
    return last - first if step.count_include_pad else last.clip(max=below) - first.clip(0)


def norm_factors(x: Tensor, size: int, alpha: float, beta: float, k: float, center: bool) -> Tensor:
    """Of contrast_norm(x), the factor denominator^(-beta) at each place."""
    d = x.float() if x.element_size() < 4 else x
    if center:
        d = d - _window_sum(d, size) / _window_sum(torch.ones_like(d[:1, :, :1, :1]), size)
    return ((k + alpha / size * _window_sum(d * d, size)) ** -beta).to(x.dtype)


def _window_sum(x: Tensor, size: int) -> Tensor:
    """Over the maps c - size//2 ... c - size//2 + size - 1 that exist."""
    padded = F.pad(x, (0, 0, 0, 0, size // 2, size - 1 - size // 2))
    return sum(padded[:, j : j + x.shape[1]] for j in range(size))
