"""Which of two ways computes a convolution: our kernel, or the one of oneDNN that torch has, with its filters packed
once too and the same sum in it.

Neither is faster everywhere. On filters of 3x3 and more of stride 1 ours are up to twice as fast (Winograd) unless maps
are small; at 1x1, strided and depthwise convolutions the processor decides, by a tenth to a third either way. There
both are run when a graph first meets inputs of some shapes, once for all its convolutions of the same sizes, and the
faster is kept. It costs a graph at most BUDGET seconds in all: later choices are those of another batch size, or ours.
"""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from .. import _C
from ..backends.prepared import PreparedFilters
from . import kernels
from .kernels import LAST, Places, Registers, Run
from .match import Conv

BUDGET = 3.0  # seconds for a graph
PIXELS = 128  # of a result, from which Winograd's kernels are ours without a measurement
MARGIN = 0.9  # of our time that oneDNN's may take to be taken
LONG = 0.02  # seconds: calls as long as this are timed once
TIMES = 4


@dataclass
class Choice:
    """What a graph has measured so far."""

    wanted: bool
    spent: float = 0.0
    # By a convolution's sizes, without and with the batch's
    onednn: dict[tuple[object, ...], bool] = field(default_factory=dict)

    def of(self, step: Conv, at: Places, r: Registers, filters: PreparedFilters, ours: Run) -> Run:
        """The faster of our call and oneDNN's."""
        if not self.wanted or not possible(step, at, r) or surely_ours(step, at, r, filters):
            return ours
        n, *image = r[at.x].shape
        sizes = (*image, *r[at.weight].shape, kernels.step_window(step), step.add is None, step.pool)
        of_batch = (n, *sizes)
        known = self.onednn.get(of_batch, self.onednn.get(sizes, False) if self.spent > BUDGET else None)
        if known is not None:
            return onednn_run(step, at, r, filters) if known else ours
        start = time.perf_counter()
        other = onednn_run(step, at, r, filters)
        with at_hand(ours, r):
            best = fastest((ours, other), r)
        known = self.onednn[sizes] = self.onednn[of_batch] = best[1] < MARGIN * best[0]
        self.spent += time.perf_counter() - start
        return other if known else ours


@contextmanager
def at_hand(run: Run, r: Registers) -> Iterator[None]:
    """Our call with the memory of its result at hand, as a plan has it; at the first call of a graph there is none yet,
    and fresh memory may take longer than the convolution."""
    places = getattr(run, "makes", ())
    for place in places:
        place.slot = len(r)
        r.append(torch.empty_strided(place.shape, place.strides, dtype=place.dtype))
    try:
        yield
    finally:
        for place in places:
            place.slot = -1
            r.pop()


def fastest(runs: tuple[Run, ...], r: Registers) -> list[float]:
    """The least seconds that each takes, after a call that does not count, in turns."""
    best = [math.inf] * len(runs)
    for turn in range(1 + TIMES):
        for i, run in enumerate(runs):
            start = time.perf_counter()
            run(r)
            best[i] = min(best[i], time.perf_counter() - start) if turn else math.inf
        if turn and max(best) > LONG:
            break
    return best


def possible(step: Conv, at: Places, r: Registers) -> bool:
    """Has oneDNN the step, in float32, and are direct sums not asked for?"""
    x = r[at.x]
    fused = (
        step.weight is not None
        and step.after == (0, 0)
        and (step.add is None or r[at.add].shape == result_shape(step, at, r))
    )
    return fused and x.dtype == torch.float32 and _C.winograd() != 0 and torch.backends.mkldnn.is_available()


def surely_ours(step: Conv, at: Places, r: Registers, filters: PreparedFilters) -> bool:
    n, _, height, width = result_shape(step, at, r)
    if step.stride != (1, 1) or n * height * width < PIXELS:
        return False
    sizes, _ = filters.call(tuple(r[at.x].shape), (height, width), *kernels.step_window(step))
    return _C.conv2d_kernels(_C.isa(), _C.winograd(), False, sizes, 0, False)[0] in ("tiles", "rows")


def result_shape(step: Conv, at: Places, r: Registers) -> tuple[int, ...]:
    x, weight = r[at.x], r[at.weight] if at.weight >= 0 else r[at.norm[0]].view(-1, 1, 1, 1)
    return (x.shape[0], weight.shape[0], *kernels.map_size(step, x, weight))


def onednn_run(step: Conv, at: Places, r: Registers, filters: PreparedFilters) -> Run:
    """The step by the calls that torch's own compiler makes for it; but the rectifier is torch's, in place, for
    oneDNN's makes a NaN 0."""
    window = [list(step.padding), list(step.stride), list(step.dilation), step.groups]
    packed = torch.ops.mkldnn._reorder_convolution_weight(filters.filters, *window, list(r[at.x].shape))
    bias = filters.bias
    plain, summed = torch.ops.mkldnn._convolution_pointwise.default, torch.ops.mkldnn._convolution_pointwise.binary

    def run(r: Registers) -> None:
        x = r[at.x].contiguous(memory_format=LAST)
        if step.add is None:
            y = plain(x, packed, bias, *window, "none", [], "")
        else:
            add = r[at.add].contiguous(memory_format=LAST)
            y = summed(x, add, packed, bias, *window, "add", 1.0, None, [], "")
        r[at.out] = kernels.rectified(step, y)

    return run
