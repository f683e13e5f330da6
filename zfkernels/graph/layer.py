"""A convolution and what stands on it alone, as one step: batch norms, the ReLU, the max-pool.

A batch norm is folded into the filters, or, where the filters are larger than the map, carried out on the map: what
costs less, for the weights are read anew at each run.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends.exact import exact_in_thread
from ..backends.prepared import PreparedFilters
from ..ops import checks
from ..ops.fused import layer as conv2d_relu_max_pool2d
from ..ops.fused import layer_reversed as max_unpool2d_relu_conv_transpose2d
from ..ops.kept import kept
from ..window import Pair, Window, conv_map
from .rules import Rules
from .windowed import Affine, Conv, Pool, capped, plain_filters

REVERSED = "max_unpool2d_relu_conv_transpose2d"
Weights = tuple[Tensor, Tensor | None]  # filters and bias


class Record(NamedTuple):
    """What the reverse of a layer needs of its run."""

    filters: Tensor | PreparedFilters  # with the batch norms, unless there is a scale
    scale: Tensor | None  # (channels,) that batch norms multiply the convolution's maps by
    passed: Tensor | None  # the layer's value, positive where the ReLU let its input pass; if the method asks for it
    switches: Tensor | None


@dataclass(frozen=True)
class Layer:
    conv: Conv
    batch_norms: tuple[Affine, ...] = ()
    rectify: bool = False
    cap: float = math.inf  # the most that a rectified value may be
    pool: Pool | None = None
    exact: bool = False  # whether a max-pool's ties depend on it, so that a run with switches must sum exactly

    @cached_property
    def windows(self) -> tuple[Window, ...]:
        """As the kernels slide them, the convolution's with the zeros that its filters are given."""
        conv = Window(self.conv.window, self.conv.stride, self.conv.padding)
        return (conv,) if self.pool is None else (conv, *self.pool.windows)

    @property
    def sees(self) -> tuple[Window, ...]:
        return self.conv.windows if self.pool is None else (*self.conv.windows, *self.pool.windows)

    def run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, Record | None]:
        if self.exact and rules.method is not None:
            with exact_in_thread(rules.backend):
                return self._run(inputs, rules)
        return self._run(inputs, rules)

    def _run(self, inputs: list[Tensor], rules: Rules) -> tuple[Tensor, Record | None]:
        (x,), conv, pool = inputs, self.conv, self.pool
        filters, bias, scale, shift = self._weights(x, rules)
        if not isinstance(filters, PreparedFilters):
            checks.alike("weight", filters, "x", x)
        switches = None
        if pool is not None and self.rectify and conv.dense:
            size = pool.size(conv_map(x.shape[2:], conv.window, conv.stride, conv.padding))
            pooling = pool.kernel, pool.stride, pool.padding, size
            name = rules.serving("conv2d_relu_max_pool2d", x, filters)
            y, switches = conv2d_relu_max_pool2d(x, filters, bias, conv.stride, conv.padding, *pooling, name)
        else:
            cap = self.cap if self.rectify else None
            y = conv.by_filters(x, filters, bias, conv.padding, cap if scale is None else None, rules)
            if scale is not None and shift is not None:
                y = torch.addcmul(shift, y, scale, out=y)
                y = capped(y, self.cap) if self.rectify else y
            if pool is not None:
                y, switches = pool.run([y], rules)
        if rules.method is None:
            return y, None
        passed = y if self.rectify and rules.method != "deconvnet" else None
        return y, Record(filters, None if scale is None else scale.view(-1), passed, switches)

    def record_of(self, x: Tensor, rules: Rules) -> Record:
        """What `run` records by the rules of "deconvnet" where there is no pool: nothing of the values of x."""
        filters, _, scale, _ = self._weights(x, rules)
        return Record(filters, None if scale is None else scale.view(-1), None, None)

    def _weights(
        self, x: Tensor, rules: Rules
    ) -> tuple[Tensor | PreparedFilters, Tensor | None, Tensor | None, Tensor | None]:
        """Filters and bias, and the scale and shift (1, channels, 1, 1) of what is left to do on the map."""
        conv = self.conv
        weight, bias = conv.weight(), None if conv.bias is None else conv.bias()
        if not self.batch_norms:

            def own() -> Weights:
                return conv.filters(weight.detach()), None if bias is None else bias.detach()

            return (*self._kept(weight, [bias], x, rules, own), None, None)
        for batch_norm in self.batch_norms:
            batch_norm.check()
        rows, columns = conv_map(x.shape[2:], conv.window, conv.stride, conv.padding)
        if self.pool is not None or weight.numel() <= len(x) * conv.channels[1] * rows * columns:

            def folded() -> Weights:
                scale, shift = self._scale_and_shift(bias)
                return conv.filters(weight.detach() * scale[:, None, None, None]), shift

            tensors = [bias, *(t for batch_norm in self.batch_norms for t in batch_norm.tensors)]
            return (*self._kept(weight, tensors, x, rules, folded), None, None)
        filters, _ = self._kept(weight, [], x, rules, lambda: (conv.filters(weight.detach()), None))
        scale, shift = self._scale_and_shift(bias)
        return filters, None, scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)

    def _scale_and_shift(self, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the batch norms do to the convolution's maps, its bias in the shift."""
        scale, shift = self.batch_norms[0].scale_and_shift()
        for batch_norm in self.batch_norms[1:]:
            factor, term = batch_norm.scale_and_shift()
            scale, shift = scale * factor, torch.addcmul(term, shift, factor)
        return scale, shift if bias is None else torch.addcmul(shift, bias.detach(), scale)

    def _kept(
        self,
        weight: Tensor,
        others: Sequence[Tensor | None],
        x: Tensor,
        rules: Rules,
        make: Callable[[], Weights],
    ) -> tuple[Tensor | PreparedFilters, Tensor | None]:
        """The filters and bias that `make` makes of these tensors; or the same kept from an earlier run, and None."""
        conv = self.conv
        if not conv.by_torch(rules):
            kind: object = (conv.before, conv.after, *(b.batch_norm.eps for b in self.batch_norms))
            kind = None if conv.plain and not self.batch_norms else kind
            there = [t for t in others if t is not None]
            found = kept(weight, there, lambda: PreparedFilters(*make(), None, patient=True), x, rules.backend, kind)
            if found is not None:
                return found, None
        return make()

    def reverse(
        self, g: Tensor, size: Pair, record: Record, rules: Rules, paddings: Sequence[Pair], own: bool = False
    ) -> Tensor:
        """The signal g of the layer's value, or of a part of it, sent to a map of `size`; `record` is of that part, and
        `paddings`, one a window, stand for the layer's own. With `own` it may write into g.
        """
        conv, pool, rectify = self.conv, self.pool, self.rectify and rules.method != "gradient"
        filters, scale, passed, switches = record
        plain = plain_filters(filters)
        if passed is not None:
            g, own = passed_on(g, passed, own, self.cap), True
        if pool is not None and conv.dense:
            pooling, name = (pool.kernel, pool.stride, paddings[1]), rules.serving(REVERSED, g, filters)
            return max_unpool2d_relu_conv_transpose2d(
                g, switches, filters, conv.stride, paddings[0], *pooling, size, rectify, name
            )
        if pool is not None:
            middle = conv_map(size, conv.window, conv.stride, paddings[0])
            g = pool.unpool(g, switches, paddings[1], middle, rules)  # type: ignore[arg-type]  # a pool records them
            own = True
        if scale is not None and g.numel() > plain.numel():
            filters = plain * scale.view(-1, 1, 1, 1)
        elif scale is not None:
            if rectify:
                g, own, rectify = rectified(g, own), True, False
            g = g.mul_(scale.view(-1, 1, 1)) if own else g * scale.view(-1, 1, 1)
        return conv.transposed(g, filters, paddings[0], size, rectify, rules)


def rectified(g: Tensor, own: bool, slope: float = 0.0) -> Tensor:
    """max(0, g) + slope * min(0, g), in the place of g if that is one's own."""
    if slope:
        return F.leaky_relu(g, slope, own)
    return g.relu_() if own else g.relu()


def passed_on(g: Tensor, y: Tensor, own: bool = False, cap: float = math.inf) -> Tensor:
    """g where y is more than 0 and less than `cap`, 0 elsewhere; in the place of g if that is one's own."""
    into = {"grad_input": g} if own else {}
    passed: Tensor
    if cap < math.inf:
        backward = torch.ops.aten.hardtanh_backward
        passed = (backward.grad_input if own else backward)(g, y, 0, cap, **into)
    else:
        backward = torch.ops.aten.threshold_backward
        passed = (backward.grad_input if own else backward)(g, y, 0, **into)
    return passed
