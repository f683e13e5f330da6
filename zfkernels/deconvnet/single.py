"""A signal that is a single activation of each unit's image: what becomes of it step for step downwards.

Down to the first filters it stays one; there it becomes a filter, scaled.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Size, Tensor

from ..graph.layer import Layer, Record, passed_on
from ..graph.rules import Rules
from ..graph.steps import Add, Concat, Flatten, Linear, Norm, ReLU, Scale, norm_factors
from ..graph.windowed import Affine, Average, Pool, plain_filters
from .boxes import Box, cut
from .units import Units, alone, at, on


class Single(NamedTuple):
    """One activation a unit, of some value; all else is 0."""

    units: Units
    values: Tensor  # (N,)

    def take(self, rows: slice) -> "Single":
        return Single(self.units.take(rows), self.values[rows])


class Passage(NamedTuple):
    """A step on the way down: what it recorded, the shapes of what it takes and makes, and by which rules to go."""

    step: Any  # of the kind that LOWER names a function for
    record: Any  # what such a step records
    below: list[Size]
    above: Size
    rules: Rules


Signal = Single | Box


def lower(signal: Single, by: Passage) -> Sequence[Signal | None] | None:
    """The same one step lower, one signal for each value that the step takes; None if it is no single activation any
    more there, nor anything that can be read off the weights.
    """
    make = LOWER.get(type(by.step))
    return None if make is None else make(signal, by)


def as_box(signal: Signal, shape: Size) -> Box:
    """Itself, or boxes of one pixel, where all maps but one are 0; of a vector all of it."""
    if isinstance(signal, Box):
        return signal
    units, values = signal
    if len(shape) == 2:
        return Box(alone(values.new_empty(1, shape[1]), units, values), units.positions)
    origin = units._replace(positions=np.zeros_like(units.positions))
    return Box(alone(values.new_empty(1, shape[1], 1, 1), origin, values), units.positions)


def _layer(signal: Single, by: Passage) -> list[Signal] | None:
    (units, values), step, record = signal, by.step, by.record
    conv = step.conv
    if not conv.dense:
        return None
    values = _rectified(signal, step, record, by.rules)
    if step.pool is not None:
        units = _winner(step.pool, record.switches, units)
    channels = on(values.device, units.channels)
    if record.scale is not None:
        values = values * record.scale[channels]
    g = plain_filters(record.filters)[channels] * values[:, None, None, None]
    return [Box(g, units.positions * conv.stride - conv.padding)]


def _rectified(signal: Single, layer: Layer, record: Record, rules: Rules) -> Tensor:
    values = signal.values
    if record.passed is not None:
        values = passed_on(values, at(record.passed, signal.units), cap=layer.cap)
    return values.relu() if layer.rectify and rules.method != "gradient" else values


def _winner(pool: Pool, switches: Tensor, units: Units) -> Units:
    """The units of the map below that a pool chose."""
    chosen = at(switches, units).cpu().numpy().astype(np.int64)
    inside = np.stack(np.divmod(chosen, pool.kernel[1]), 1)
    return units._replace(positions=units.positions * pool.stride - pool.padding + inside)


def _pool(signal: Single, by: Passage) -> list[Signal]:
    return [signal._replace(units=_winner(by.step, by.record, signal.units))]


def _relu(signal: Single, by: Passage) -> list[Signal]:
    record = None if by.record is None else at(by.record, signal.units)
    return [signal._replace(values=by.step.reverse(signal.values, by.below, record, by.rules))]


def _affine(signal: Single, by: Passage) -> list[Signal]:
    scale, _ = by.step.scale_and_shift()
    return [signal._replace(values=signal.values * scale[on(scale.device, signal.units.channels)])]


def _scale(signal: Single, by: Passage) -> list[Signal]:
    return [signal._replace(values=signal.values * by.step.scale)]


def _norm(signal: Single, by: Passage) -> list[Signal] | None:
    if by.rules.norm == "gradient":
        return None
    if by.rules.norm == "identity":
        return [signal]
    units, values = signal
    inputs = cut(by.record, units.images, units.positions, (1, 1)).expand(len(values), -1, -1, -1)
    factors = norm_factors(inputs, *by.step.parameters)
    rows = torch.arange(len(values), device=values.device)
    return [Single(units, values * factors[rows, on(values.device, units.channels), 0, 0])]


def _concat(signal: Single, by: Passage) -> list[Signal | None] | None:
    ends = np.cumsum([shape[1] for shape in by.below])
    owners = np.searchsorted(ends, signal.units.channels, side="right")
    owner = int(owners[0])
    if (owners != owner).any():
        return None
    channels = signal.units.channels - (ends[owner] - by.below[owner][1])
    parts: list[Signal | None] = [None] * len(by.below)
    parts[owner] = signal._replace(units=signal.units._replace(channels=channels))
    return parts


def _flatten(signal: Single, by: Passage) -> list[Signal]:
    (below,), units = by.below, signal.units
    if len(below) != 4:
        return [signal]
    channels, *position = np.unravel_index(units.channels, below[1:])
    return [signal._replace(units=Units(units.images, channels, np.stack(position, 1)))]


def _linear(signal: Single, by: Passage) -> list[Signal]:
    units, values = signal
    return [Box(by.step.weight()[on(values.device, units.channels)] * values[:, None], units.positions)]


def _average(signal: Single, by: Passage) -> list[Signal] | None:
    return [signal] if by.below[0] == by.above else None


LOWER: dict[type, Callable[[Single, Passage], Sequence[Signal | None] | None]] = {
    Layer: _layer,
    Pool: _pool,
    ReLU: _relu,
    Affine: _affine,
    Scale: _scale,
    Norm: _norm,
    Add: lambda signal, by: [signal, signal],
    Concat: _concat,
    Flatten: _flatten,
    Linear: _linear,
    Average: _average,
}
