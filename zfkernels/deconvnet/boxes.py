"""Parts of maps: boxes (N, C, height, width) of one size for N units, each with an origin of its own."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Size, Tensor

from ..window import Pair, Window, as_pair, conv_map
from .units import on

Sides = tuple[int, ...]  # height and width


class Box(NamedTuple):
    """N parts of maps, 0 outside of them; or N whole vectors."""

    maps: Tensor  # (N, C, height, width) or (N, features)
    origins: np.ndarray  # (N, 2) int64
    own: bool = True  # whether nothing else holds the memory of `maps`

    def take(self, rows: slice) -> "Box":
        return Box(self.maps[rows], self.origins[rows], self.own)


def widen(
    windows: tuple[Window, ...], size: Sides, origins: np.ndarray, above: Sides, below: Sides
) -> tuple[list[Pair], Sides, np.ndarray]:
    """Boxes of `size` in maps of size `above`, some windows lower, where the maps' size is `below`.

    The paddings with which to run the windows on the boxes, the lowest first, and the new boxes' size and origins:
    along an axis that they cover, those of the maps; else no padding, so that the new box is all that the windows see,
    the padding included.
    """
    sizes = [below]
    for window in windows[:-1]:
        sizes.append(conv_map(sizes[-1], *window))
    paddings: list[Pair] = []
    for (kernel, stride, padding), under in zip(reversed(windows), reversed(sizes), strict=True):
        whole = [size[a] == above[a] and not origins[:, a].any() for a in (0, 1)]
        paddings.insert(0, as_pair(padding[a] if whole[a] else 0 for a in (0, 1)))
        size = tuple(under[a] if whole[a] else (size[a] - 1) * stride[a] + kernel[a] for a in (0, 1))
        origins, above = (origins * stride - padding) * ~np.array(whole), under
    return paddings, size, origins


def fitted(box: Box, first: np.ndarray, last: np.ndarray, size: Sides) -> Box:
    """The same, within maps of `size`, in boxes as small as their units' fields first ... last - 1 (N, 2 each) allow.

    Outside of its field a box is made 0: rounding may put values there, which come down smaller and smaller, until they
    take the time that numbers take that are all but 0.
    """
    g, origins, _ = box
    if (origins == first).all() and (origins + g.shape[2:] == last).all():
        return box
    low, high = np.maximum(origins, first), np.minimum(origins + g.shape[2:], last)
    most = (high - low).max(0).clip(1)
    inside = low.clip(0, size - most)
    offsets = inside - origins
    if (offsets == offsets[0]).all() and offsets[0].min() >= 0 and (offsets[0] + most <= g.shape[2:]).all():
        (top, left), (height, width) = offsets[0].tolist(), most.tolist()
        whole = (height, width) == tuple(g.shape[2:])
        box = box if whole else box._replace(maps=g[:, :, top : top + height, left : left + width], origins=inside)
    else:
        box = Box(cut(g, np.arange(len(g)), offsets, tuple(most.tolist())), inside)
    return _emptied(box, low - inside, high - inside)


def _emptied(box: Box, low: np.ndarray, high: np.ndarray) -> Box:
    """The boxes with 0 outside of their pixels low ... high - 1 (N, 2 each)."""
    height, width = box.maps.shape[2:]
    if not low.any() and (high == (height, width)).all():
        return box
    slack = np.flatnonzero((low > 0).any(1) | (high < (height, width)).any(1))
    if not len(slack):
        return box
    g = box.maps if box.own else box.maps.clone()
    for i in slack.tolist():
        (top, left), (bottom, right) = low[i].tolist(), high[i].tolist()
        for rows, columns in (
            (slice(0, top), slice(None)),
            (slice(max(bottom, 0), None), slice(None)),
            (slice(None), slice(0, left)),
            (slice(None), slice(max(right, 0), None)),
        ):
            g[i, :, rows, columns] = 0
    return box._replace(maps=g, own=True)


def cut(maps: Tensor, images: np.ndarray, origins: np.ndarray, size: Sides) -> Tensor:
    """Boxes of this size, box i from maps[images[i]] at origins[i], 0 outside them: (N, C, height, width).

    One box may stand for all, if they are of one image and at one place.
    """
    count, channels, height, width = maps.shape
    low, high = origins.min(0), origins.max(0)
    leaves = low.min() < 0 or high[0] + size[0] > height or high[1] + size[1] > width
    if (low == high).all() and not leaves:
        boxes = maps[:, :, low[0] : low[0] + size[0], low[1] : low[1] + size[1]]
        return boxes if count == 1 or np.array_equal(images, np.arange(count)) else boxes[on(maps.device, images)]
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
        top, left = (-origins[i]).tolist()
        paste(boxes[i].zero_(), source, top, left, (0, 0, *boxes.shape[2:]))


def paste(
    pixels: Tensor, box: Tensor, top: int, left: int, within: tuple[int, int, int, int], factor: float = 1.0
) -> None:
    """Write `box` (C, height, width), times `factor`, into `pixels` (C, ...) at (top, left), where it lies `within`
    (top, left, bottom, right).
    """
    (first, last), (begin, end) = (
        (max(start, least), max(start, least, min(start + length, most)))
        for start, length, least, most in zip((top, left), box.shape[1:], within[:2], within[2:], strict=True)
    )
    inside = box[:, first - top : last - top, begin - left : end - left]
    pixels[:, first:last, begin:end] = inside if factor == 1 else inside * factor


def summed(a: Box, b: Box, limit: Sides | None) -> Box:
    """Two boxes a unit in the smallest rectangle that holds both; none leaves a map of size `limit`."""
    if a.maps.ndim == 2:
        return Box(a.maps + b.maps, a.origins)
    if a.maps.shape == b.maps.shape and np.array_equal(a.origins, b.origins):
        owner, other = (a, b) if a.own else (b, a)
        return Box(owner.maps.add_(other.maps) if owner.own else owner.maps + other.maps, a.origins)
    low = np.minimum(a.origins, b.origins)
    high = np.maximum(a.origins + a.maps.shape[2:], b.origins + b.maps.shape[2:])
    size = (high - low).max(0)
    if limit is not None:
        low = np.minimum(low, np.array(limit) - size)
    size = tuple(size.tolist())
    for box, other in ((a, b), (b, a)):
        if box.own and size == box.maps.shape[2:] and np.array_equal(box.origins, low):
            return _add(box, other)
    shape = (*a.maps.shape[:2], *size)
    g = torch.empty(shape, dtype=a.maps.dtype, device=a.maps.device, memory_format=torch.channels_last).zero_()
    return _add(_add(Box(g, low), a), b)


def _add(box: Box, other: Box) -> Box:
    """Add to a box what lies within it."""
    g, part = box.maps, other.maps
    offsets, (height, width) = other.origins - box.origins, part.shape[2:]
    if (offsets == offsets[0]).all():
        top, left = offsets[0].tolist()
        g[:, :, top : top + height, left : left + width] += part
        return box
    for i, (top, left) in enumerate(offsets.tolist()):
        g[i, :, top : top + height, left : left + width] += part[i]
    return box


def whole(box: Box, shape: Size) -> Tensor:
    """Boxes as whole maps (N, *shape[1:])."""
    if box.maps.ndim == 2 or box.maps.shape[2:] == shape[2:]:
        return box.maps
    g = box.maps
    maps = torch.empty((len(g), *shape[1:]), dtype=g.dtype, device=g.device, memory_format=torch.channels_last).zero_()
    return _add(Box(maps, np.zeros_like(box.origins)), box).maps
