"""The engine for a traced model: one unit depends on a cone that widens towards the image, and nothing else is touched.

The units of a batch are of one layer, so in each value below it their cones are boxes (N, C, height, width) of one
size, each with an origin of its own; what was recorded on the way up is cut out at the boxes, and a step is then the
ordinary op on small maps without padding. Where branches part, what comes back from each is summed in the smallest
rectangle that holds both. Boxes never leave their map: what a padded window put outside is cut off. A box that has
grown to the whole map is the dense computation.

Down to the first filters a unit stays a single activation (single.py).
"""

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch
from torch import Size, Tensor

from ..graph import run as graph_run
from ..graph.graph import Graph
from ..graph.layer import Layer, Record
from ..graph.plan import plan
from ..graph.rules import Rules, Shapes
from ..graph.run import Run
from ..graph.steps import Add, Concat, Flatten, Linear, Mean, Norm, ReLU, Scale, Step
from ..graph.windowed import Affine, Average, AveragePool, Pad, Pool
from ..window import Window
from .boxes import Box, cut, fitted, paste, summed, whole, widen
from .single import Passage, Signal, Single, as_box, lower
from .units import Units, together

# How many elements of one value the boxes of several units may have together, if each has more than SMALL_BOX; from
# there on fewer units are taken at once. Maps beyond the nearer caches halve the speed of a convolution; of small ones
# many share the packing of its filters.
BOX_ELEMENTS = 2**20
SMALL_BOX = 2**17

# What float32 signals are multiplied by on the way down, on which they are all homogeneous: at the far ends of a cone
# they fade below 1e-38, where a sum takes many times as long. A power of 2, so that nothing is rounded otherwise.
RAISED = 2.0**40

POINT = (Window((1, 1), (1, 1), (0, 0)),)


class Cones:
    """Up to the value numbered `stop` of a graph whose values have these shapes, and down to the pixels."""

    def __init__(self, graph: Graph, stop: int, shapes: Shapes) -> None:
        self.graph, self.stop = graph, stop
        self.shapes = cast("list[Size]", shapes)  # of those that are needed none is None
        self.reaches = known_reaches(graph, stop)
        self.unit_elements = largest_box(self.reaches, self.shapes)

    def up(self, images: Tensor, rules: Rules) -> Run:
        return graph_run.run(self.graph, self.stop, images, rules)

    def up_to_switches(self, images: Tensor, rules: Rules) -> Run:
        """A run that has all that `down` needs, and not the value, where what a unit is does not matter."""
        if rules.method != "deconvnet":
            return self.up(images, rules)
        return graph_run.run_for_reverse(self.graph, self.stop, images, cast("Shapes", self.shapes), rules)

    def down(self, run: Run, units: Units, values: Tensor, rules: Rules, pixels: Sequence[Tensor]) -> None:
        """Write the projections of the units, with these values in the place of their own, into `pixels`, one each.

        Only what lies in a unit's receptive field: its box may be larger, and rounding may put values there.
        """
        fields = graph_run.fields(self.graph, self.stop, units.positions, self.shapes[0][2:]).tolist()
        factor = RAISED if values.dtype == torch.float32 else 1.0
        signals: dict[int, Signal] = {run.last: Single(units, values * factor)}
        waiting = [(np.arange(len(pixels)), signals, len(run.steps), factor)]
        while waiting and len(pixels):
            rows, signals, remaining, factor = waiting.pop()
            part = units.take(rows)
            remaining = self._lower(run, signals, part.images, rules, remaining, BOX_ELEMENTS, part.positions)
            if remaining:
                for chosen in passes(np.arange(len(rows)), largest_of(signals), BOX_ELEMENTS)[::-1]:
                    taken = {i: signal.take(slice(chosen[0], chosen[-1] + 1)) for i, signal in signals.items()}
                    waiting.append((rows[chosen], taken, remaining, factor))
            elif 0 in signals:
                maps, origins, _ = as_box(signals[0], self.shapes[0])
                if factor > 1 and not torch.isfinite(maps.sum()):
                    again = Single(part, values[rows[0] : rows[-1] + 1])
                    waiting.append((rows, {run.last: again}, len(run.steps), 1.0))
                    continue
                for row, box, (top, left) in zip(rows.tolist(), maps, origins.tolist(), strict=True):
                    paste(pixels[row], box, top, left, fields[row], 1 / factor)

    def down_together(self, run: Run, units: Units, values: Tensor, rules: Rules) -> Tensor:
        """One projection (C, H, W) of all the units, which are of one image."""
        g = together(run.value, units, values)
        pixels = g.new_zeros(self.shapes[0][1:])
        box = self.reversed(run, Box(g, np.zeros((1, 2), np.int64)), np.zeros(1, np.int64), rules)
        if box is not None:
            top, left = box.origins[0].tolist()
            paste(pixels, box.maps[0], top, left, (0, 0, pixels.shape[1], pixels.shape[2]))
        return pixels

    def reversed(self, run: Run, signal: Signal, images: np.ndarray, rules: Rules) -> Box | None:
        """A signal of the last value, each row of image images[i], sent down to the pixels: boxes that may be partly
        outside, or None if nothing arrives.
        """
        signals = {run.last: signal}
        self._lower(run, signals, images, rules, len(run.steps), math.inf, None)
        return as_box(signals[0], self.shapes[0]) if 0 in signals else None

    def _lower(
        self,
        run: Run,
        signals: dict[int, Signal],
        images: np.ndarray,
        rules: Rules,
        remaining: int,
        most: float,
        positions: np.ndarray | None,
    ) -> int:
        """Send signals, by the numbers of their values, through the remaining steps from the last of these on, until
        several units make more than `most` elements of one value; how many steps are left then.

        The units are at `positions`; None for signals of whole maps.
        """
        while remaining:
            if len(images) > 1 and (box := largest_of(signals)) > SMALL_BOX and len(images) * box > most:
                return remaining
            remaining -= 1
            number, step, inputs, _ = run.steps[remaining]
            signal = signals.pop(number, None)
            if signal is None:
                continue
            by = Passage(step, run.recorded[number], [self.shapes[i] for i in inputs], self.shapes[number], rules)
            for i, part in zip(inputs, lowered(signal, by, images), strict=True):
                if part is not None:
                    part = self._fitted(i, part, step, positions)
                    signals[i] = self._joined(i, signals[i], part) if i in signals else part
        return 0

    def _fitted(self, number: int, signal: Signal, step: Step | Layer, positions: np.ndarray | None) -> Signal:
        """What a step sent to the value of this number, without what lies outside of it or of all units' fields."""
        if number == 0 or isinstance(signal, Single) or not step.windows:
            return signal
        size, whole = self.shapes[number][2:], np.zeros_like(signal.origins)
        if isinstance(step, Layer) and step.windows == POINT:
            return signal
        if positions is None:
            return fitted(signal, whole, whole + size, size)
        return fitted(signal, *graph_run.ranges(self.reaches[number], positions, size), size)

    def _joined(self, number: int, a: Signal, b: Signal) -> Box:
        shape = self.shapes[number]
        return summed(as_box(a, shape), as_box(b, shape), shape[2:] if number else None)


def largest_of(signals: dict[int, Signal]) -> int:
    """The elements of a unit's largest box among them."""
    return max((box.maps[0].numel() for box in signals.values() if isinstance(box, Box)), default=1)


def lowered(signal: Signal, by: Passage, images: np.ndarray) -> Sequence[Signal | None]:
    """A signal one step lower, one for each value that the step takes."""
    if isinstance(signal, Single):
        parts = lower(signal, by)
        if parts is not None:
            return parts
    return LOWER[type(by.step)](as_box(signal, by.above), by, images)


def _layer(box: Box, by: Passage, images: np.ndarray) -> list[Box]:
    (g, origins, own), layer = box, by.step
    (below,), above = by.below, by.above
    size = g.shape[2:]
    paddings, under, lower_origins = widen(layer.windows, size, origins, above[2:], below[2:])
    filters, scale, passed, switches = by.record
    passed = None if passed is None else cut(passed, images, origins, size)
    switches = None if switches is None else cut(switches, images, origins, size).expand(len(g), -1, -1, -1)
    g = layer.reverse(g, under, Record(filters, scale, passed, switches), by.rules, paddings, own)
    return [Box(g, lower_origins)]


def _pool(box: Box, by: Passage, images: np.ndarray) -> list[Box]:
    (g, origins, _), pool = box, by.step
    paddings, under, lower_origins = widen(pool.windows, g.shape[2:], origins, by.above[2:], by.below[0][2:])
    switches = cut(by.record, images, origins, g.shape[2:]).expand(len(g), -1, -1, -1)
    return [Box(pool.unpool(g, switches, paddings[0], under, by.rules), lower_origins)]


def _pad(box: Box, by: Passage, images: np.ndarray) -> list[Box]:
    return [box._replace(origins=box.origins - by.step.before)]


def _average_pool(box: Box, by: Passage, images: np.ndarray) -> list[Box]:
    (g, origins, _), pool = box, by.step
    maps = pool.spread(g, origins, by.below[0][2:], by.above[2:])
    return [Box(maps, origins * pool.stride - pool.padding)]


def _recorded(record: Tensor | None, images: np.ndarray, box: Box) -> Tensor | None:
    """What was recorded of the places of a box."""
    if record is None:
        return None
    if record.ndim == 2:
        return record if len(record) == 1 else record[images]
    return cut(record, images, box.origins, box.maps.shape[2:])


def _in_place(box: Box, by: Passage, images: np.ndarray) -> list[Box]:
    """A step that works place by place."""
    record = _recorded(by.record, images, box)
    return [Box(by.step.reverse(box.maps, by.below, record, by.rules, box.own), box.origins)]


def _norm(box: Box, by: Passage, images: np.ndarray) -> list[Box]:
    if by.rules.norm == "identity":
        return [box]
    record = cut(by.record, images, box.origins, box.maps.shape[2:]).expand(len(box.maps), -1, -1, -1)
    return [Box(by.step.reverse(box.maps, by.below, record, by.rules), box.origins)]


def _add(box: Box, by: Passage, images: np.ndarray) -> list[Box]:
    shared = box._replace(own=False)
    return [shared] * len(by.below)


def _concat(box: Box, by: Passage, images: np.ndarray) -> list[Box]:
    parts = box.maps.split([shape[1] for shape in by.below], 1)
    return [Box(part, box.origins, box.own) for part in parts]


def _whole(box: Box, by: Passage, images: np.ndarray) -> list[Box]:
    """A step that sees whole maps or vectors."""
    if isinstance(by.step, Average) and by.below[0] == by.above:
        return [box]
    g = by.step.reverse(whole(box, by.above), by.below, None, by.rules)
    return [Box(g, np.zeros_like(box.origins), own=False)]


LOWER: dict[type, Callable[[Box, Passage, np.ndarray], list[Box]]] = {
    Layer: _layer,
    Pool: _pool,
    Pad: _pad,
    AveragePool: _average_pool,
    **dict.fromkeys((ReLU, Affine, Scale), _in_place),
    Norm: _norm,
    Add: _add,
    Concat: _concat,
    **dict.fromkeys((Average, Mean, Flatten, Linear), _whole),
}


# How much a pass takes


def known_reaches(graph: Graph, stop: int) -> dict[int, list[graph_run.Reach]]:
    """What a unit sees of each value on the way down. It is computed once."""
    if ("reaches", stop) not in graph.known:
        way = plan(graph, (stop,))
        steps = [(number, getattr(step, "sees", step.windows), inputs) for number, step, inputs, _ in way.steps]
        graph.known["reaches", stop] = graph_run.reaches(steps, way.same[stop])
    found: dict[int, list[graph_run.Reach]] = graph.known["reaches", stop]
    return found


def largest_box(reaches: dict[int, list[graph_run.Reach]], shapes: list[Size]) -> int:
    """The elements of the largest box on the way down from one unit."""
    most = 1
    for number, reach in reaches.items():
        _, channels, *sides = shapes[number]
        for of_strides, side in zip(reach, sides, strict=False):
            channels *= min(side, max(high - low for low, high in of_strides.values()))
        most = max(most, channels)
    return most


def passes(numbers: np.ndarray, elements: int, most: int) -> list[np.ndarray]:
    """`numbers` in runs that make at most `most` elements, each making so many; at least 1 in each run."""
    count = max(1, most // elements)
    return [numbers[i : i + count] for i in range(0, len(numbers), count)]
