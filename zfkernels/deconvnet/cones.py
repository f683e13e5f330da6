"""The engine for a chain: one unit depends on a cone that widens towards the image, and nothing else is touched.

The units of a batch are of one layer, so at each step below it their cones are boxes (N, C, height, width) of one size,
each with an origin of its own; the switches, or whatever else was recorded, are cut out at the boxes, and a step is
then the ordinary op on small maps without padding. Boxes never leave their map: what a padded window put outside is cut
off. A box that has grown to the whole map is the dense computation.

Down to the first filters a unit stays a single activation, which becomes one filter, scaled.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Size, Tensor

from ..graph.graph import Chain
from ..graph.rules import Rules, Shapes
from ..graph.run import seen
from ..graph.steps import Affine, Flatten, Linear, Norm, ReLU, Step, fused, norm_factors
from ..graph.windowed import Layer, Pool
from ..window import Pair, Window, conv_map
from .units import Units, alone, at, on


class Run(NamedTuple):
    """A forward pass and what its reverse needs of it."""

    value: Tensor
    plan: list[Step | Layer]
    shapes: list[Size]  # before each step of the plan, and at the end; their N does not count
    recorded: list[Tensor | None]  # a pool's switches, a norm's input


class Cones:
    """Up to the value numbered `stop` of a graph whose values have these shapes, and down to the pixels."""

    def __init__(self, chain: Chain, stop: int, shapes: Shapes) -> None:
        self.steps = chain.steps[: chain.ends[stop]]
        self.unit_elements = _largest_box(self.steps, [shapes[i] for i in chain.inputs[: len(self.steps)]])

    def up(self, images: Tensor, rules: Rules) -> Run:
        plan, x, recorded, shapes = fused(self.steps), images, [], [images.shape]
        for step in plan:
            x, record = step.run([x], rules)
            recorded.append(record)
            shapes.append(x.shape)
        return Run(x, plan, shapes, recorded)

    def down(self, run: Run, units: Units, values: Tensor, rules: Rules, pixels: Sequence[Tensor]) -> None:
        """Write the projections of the units, with these values in the place of their own, into `pixels`, one each."""
        boxes, origins = reverse(run, units, values, rules)
        boxed = fields(self.steps, units.positions, tuple(pixels[0].shape[1:])) if len(pixels) else ()
        for out, box, (top, left), field in zip(pixels, boxes, origins.tolist(), boxed, strict=True):
            paste(out, box, top, left, field)


def fields(steps: Sequence[Step], positions: np.ndarray, image_size: Pair) -> np.ndarray:
    """The receptive fields of the units at positions (N, 2) above these steps: boxes (N, 4) in the image."""
    box = np.concatenate([positions, positions + 1], 1)
    for step in reversed(steps):
        box = seen(step.windows, box)
    return box.clip(0, (*image_size, *image_size))


def reverse(run: Run, units: Units, values: Tensor, rules: Rules) -> tuple[Tensor, np.ndarray]:
    """The projections of single activations: boxes (N, C, height, width) and their origins (N, 2), perhaps outside."""
    g, origins, remaining = _single(run, units, values, rules)
    return reverse_boxes(run, g, origins, units.images, remaining, rules)


def reverse_boxes(
    run: Run, g: Tensor, origins: np.ndarray, images: np.ndarray, remaining: int, rules: Rules
) -> tuple[Tensor, np.ndarray]:
    """Boxes (or vectors) g of the value after the first `remaining` steps, sent down to the pixels."""
    for k in reversed(range(remaining)):
        step, record, below, above = run.plan[k], run.recorded[k], run.shapes[k], run.shapes[k + 1]
        if record is not None:
            record = cut(record, images, origins, g.shape[2:])
        if not step.windows:
            g = step.reverse(g, [below], record, rules)
            continue
        paddings, size, origins = _widen(step.windows, g.shape[2:], origins, above[2:], below[2:])
        g = step.reverse(g, [Size((len(g), below[1], *size))], record, rules, paddings)
        g, origins = _clip(g, origins, below[2:], k)
    return g, origins


# Single activations


def _single(run: Run, units: Units, values: Tensor, rules: Rules) -> tuple[Tensor, np.ndarray, int]:
    """Down to the first filters: boxes or (N, features) vectors, the boxes' origins, how many steps remain."""
    for k in reversed(range(len(run.plan))):
        step, record, below = run.plan[k], run.recorded[k], run.shapes[k]
        if isinstance(step, Linear):
            return step.weight()[on(values.device, units.channels)] * values[:, None], units.positions, k
        if isinstance(step, Norm) and rules.norm == "gradient":
            return _box(run.shapes[k + 1], units, values), units.positions, k + 1
        if isinstance(step, Layer):
            units, values = _into_layer(step, record, units, values)
            g = step.filters[on(values.device, units.channels)] * values[:, None, None, None]
            corner = units.positions * step.conv.stride - step.conv.padding
            return *_clip(g, corner, below[2:], k), k
        units, values = SINGLE[type(step)](step, record, below, units, values, rules)
    return _box(run.shapes[0], units, values), units.positions, 0


def _into_layer(layer: Layer, switches: Tensor | None, units: Units, values: Tensor) -> tuple[Units, Tensor]:
    if layer.pool is not None:
        units = _winner(layer.pool, switches, units)
    return units, values.relu() if layer.rectify else values


def _winner(pool: Pool, switches: Tensor, units: Units) -> Units:
    """The units of the map below that a pool chose."""
    chosen = at(switches, units).cpu().numpy().astype(np.int64)
    inside = np.stack(np.divmod(chosen, pool.kernel[1]), 1)
    return units._replace(positions=units.positions * pool.stride - pool.padding + inside)


def _through_flatten(below: Size, units: Units) -> Units:
    if len(below) != 4:
        return units
    channels, *position = np.unravel_index(units.channels, below[1:])
    return Units(units.images, channels, np.stack(position, 1))


def _through_norm(record: Tensor | None, step: Norm, units: Units, values: Tensor) -> Tensor:
    if record is None:
        return values
    factors = norm_factors(cut(record, units.images, units.positions, (1, 1)), *step.parameters)
    rows = torch.arange(len(values), device=values.device)
    return values * factors[rows, on(values.device, units.channels), 0, 0]


# (step, record, shape below, units, values, rules) -> the units and values one step lower
SINGLE: dict[type, Callable[..., tuple[Units, Tensor]]] = {
    ReLU: lambda step, record, below, units, values, rules: (units, values.relu()),
    Affine: lambda step, record, below, units, values, rules: (
        units,
        values * step.scale_and_shift()[0][on(values.device, units.channels)],
    ),
    Norm: lambda step, record, below, units, values, rules: (units, _through_norm(record, step, units, values)),
    Pool: lambda step, record, below, units, values, rules: (_winner(step, record, units), values),
    Flatten: lambda step, record, below, units, values, rules: (_through_flatten(below, units), values),
}


def _box(shape: Size, units: Units, values: Tensor) -> Tensor:
    """Boxes of one pixel, where all maps but one are 0."""
    origin = units._replace(positions=np.zeros_like(units.positions))
    return alone(values.new_empty(1, shape[1], 1, 1), origin, values)


# Boxes


def _largest_box(steps: list[Step], below: list[Size]) -> int:
    """The elements of the largest box on the way down from one unit."""
    size, largest = (1, 1), 1
    for step, shape in zip(reversed(steps), reversed(below), strict=True):
        if step.windows:
            size = tuple(min((size[a] - 1) * step.stride[a] + step.window[a], shape[2 + a]) for a in (0, 1))
        elif isinstance(step, Flatten):
            size = shape[2:]
        if len(shape) == 4:
            largest = max(largest, shape[1] * size[0] * size[1])
    return largest


def _widen(
    windows: tuple[Window, ...], size: Pair, origins: np.ndarray, above: Pair, below: Pair
) -> tuple[list[Pair], Pair, np.ndarray]:
    """Boxes of `size` in maps of size `above`, some windows lower, where the maps' size is `below`.

    The paddings with which to run the windows on the boxes, the lowest first, and the new boxes' size and origins:
    along an axis that they cover, those of the maps; else no padding, so that the new box is all that the windows see,
    the padding included.
    """
    sizes = [below]
    for window in windows[:-1]:
        sizes.append(conv_map(sizes[-1], *window))
    paddings = []
    for (kernel, stride, padding), under in zip(reversed(windows), reversed(sizes), strict=True):
        whole = [size[a] == above[a] and not origins[:, a].any() for a in (0, 1)]
        paddings.insert(0, tuple(padding[a] if whole[a] else 0 for a in (0, 1)))
        size = tuple(under[a] if whole[a] else (size[a] - 1) * stride[a] + kernel[a] for a in (0, 1))
        origins, above = (origins * stride - padding) * ~np.array(whole), under
    return paddings, size, origins


def _clip(g: Tensor, origins: np.ndarray, size: Pair, remaining: int) -> tuple[Tensor, np.ndarray]:
    """Boxes of maps of `size` cut, or moved, so that none leaves its map; what is moved in is 0.

    With no steps remaining the boxes are as they came, for `paste` cuts them.
    """
    if remaining == 0:
        return g, origins
    (height, width), low, high = g.shape[2:], origins.min(0), origins.max(0)
    if low.min() >= 0 and high[0] + height <= size[0] and high[1] + width <= size[1]:
        return g, origins
    if (low == high).all():
        top, left = np.maximum(-low, 0)
        bottom, right = np.minimum(size - low, (height, width))
        if top < bottom and left < right:
            return g[:, :, top:bottom, left:right], origins.clip(0)
    box = np.minimum(g.shape[2:], size)
    inside = origins.clip(0, size - box)
    if tuple(box) != (height, width):
        return cut(g, np.arange(len(g)), inside - origins, tuple(box)), inside
    _fill_leaving(g, g, np.arange(len(g)), inside - origins)
    return g, inside


def cut(maps: Tensor, images: np.ndarray, origins: np.ndarray, size: Pair) -> Tensor:
    """Boxes of this size, box i from maps[images[i]] at origins[i], 0 outside them: (N, C, height, width)."""
    count, channels, height, width = maps.shape
    low, high = origins.min(0), origins.max(0)
    leaves = low.min() < 0 or high[0] + size[0] > height or high[1] + size[1] > width
    if (low == high).all() and not leaves:
        boxes = maps[:, :, low[0] : low[0] + size[0], low[1] : low[1] + size[1]]
        return boxes if np.array_equal(images, np.arange(count)) else boxes[on(maps.device, images)]
    pixels = maps.permute(0, 2, 3, 1).contiguous()
    inside = origins.clip(0, np.array((height, width)) - size)
    # A row of a box is a run of channels-last memory: the runs from all pixels on are the rows of one strided view.
    runs = pixels.as_strided((count * height * width - size[1] + 1, size[1] * channels), (channels, 1))
    first = ((images[:, None] * height + inside[:, :1] + np.arange(size[0])) * width + inside[:, 1:]).ravel()
    boxes = runs.index_select(0, on(maps.device, first)).view(len(images), *size, channels).permute(0, 3, 1, 2)
    _fill_leaving(boxes, maps, images, origins)
    return boxes


def _fill_leaving(boxes: Tensor, maps: Tensor, images: np.ndarray, origins: np.ndarray) -> None:
    """Write those of `cut`'s boxes that leave their maps; these may be the boxes themselves."""
    low, high = origins.min(1), (origins + boxes.shape[2:] - maps.shape[2:]).max(1)
    for i in np.flatnonzero((low < 0) | (high > 0)).tolist():
        source = maps[int(images[i])].clone()
        paste(boxes[i].zero_(), source, *(-origins[i]).tolist())


def paste(pixels: Tensor, box: Tensor, top: int, left: int, within: Sequence[int] | None = None) -> None:
    """Write `box` (C, height, width) into `pixels` (C, ...) at (top, left), without what lies outside.

    `within`: top, left, bottom, right of the only pixels to write. A box may be larger than its unit's field, and a
    Winograd kernel's rounding puts values there.
    """
    low, high = (within[:2], within[2:]) if within is not None else ((0, 0), pixels.shape[1:])
    (first, last), (begin, end) = (
        (max(start, least), max(start, least, min(start + length, most)))
        for start, length, least, most in zip((top, left), box.shape[1:], low, high, strict=True)
    )
    pixels[:, first:last, begin:end] = box[:, first - top : last - top, begin - left : end - left]
