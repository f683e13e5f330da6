"""a chain, on cones."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.steps import Affine, Conv, Flatten, Linear, Norm, Pair, Pool, ReLU, Step, norm_factors
from ..ops import checks
from ..ops.contrast_norm import contrast_norm, contrast_norm_backward
from ..ops.conv import conv2d, conv2d_relu, relu_conv_transpose2d
from ..ops.fused import conv2d_relu_max_pool2d, max_unpool2d_relu_conv_transpose2d
from ..ops.max_pool import max_pool2d_with_switches, max_unpool2d_with_switches
from .units import _at, _on


def _largest_box(steps: list[Step], shapes: list[torch.Size]) -> int:
    """The elements of the largest box on the way down from one unit."""
    size, largest = (1, 1), 1
    for step, shape in zip(reversed(steps), reversed(shapes[:-1]), strict=True):
        if isinstance(step, (Conv, Pool)):
            window = step.window if isinstance(step, Conv) else step.kernel
            size = tuple(min((size[a] - 1) * step.stride[a] + window[a], shape[2 + a]) for a in (0, 1))
        elif isinstance(step, Flatten):
            size = shape[2:]
        if len(shape) == 4:
            largest = max(largest, shape[1] * size[0] * size[1])
    return largest


def _paste(pixels: Tensor, box: Tensor, top: int, left: int) -> None:
    """Write `box` (C, height, width) into `pixels` (C, ...) at (top, left), but for what lies outside."""
    (first, last), (begin, end) = (
        (max(start, 0), max(start, 0, min(start + length, side)))
        for start, length, side in zip((top, left), box.shape[1:], pixels.shape[1:], strict=True)
    )
    pixels[:, first:last, begin:end] = box[:, first - top : last - top, begin - left : end - left]


# Up


class Run(NamedTuple):
    """A forward pass and what its reverse needs of it; lists and dicts go by a step's number."""

    steps: list[Step]
    shapes: list[torch.Size]  # before each step, and at the end; their N does not count
    filters: dict[int, Tensor]  # of the convs
    recorded: dict[int, Tensor]  # a pool's switches, a norm's input
    value: Tensor


def _run(steps: list[Step], shapes: list[torch.Size], images: Tensor) -> Run:
    x, filters, recorded, k = images, {}, {}, 0
    while k < len(steps):
        step = steps[k]
        if isinstance(step, Conv):
            filters[k], bias = step.filters()
            convolution = x, filters[k], bias, step.stride, step.padding
            if _are(steps[k + 1 : k + 3], ReLU, Pool):
                pool = steps[k + 2]
                x, recorded[k + 2] = conv2d_relu_max_pool2d(
                    *convolution, pool.kernel, pool.stride, pool.padding, pool.ceil_mode
                )
                k += 2
            elif _are(steps[k + 1 : k + 2], ReLU):
                x = conv2d_relu(*convolution)
                k += 1
            else:
                x = conv2d(*convolution, False, checks.backend(None, x))
        elif isinstance(step, Pool):
            x, recorded[k] = max_pool2d_with_switches(x, step.kernel, step.stride, step.padding, step.ceil_mode)
        elif isinstance(step, Norm):
            recorded[k] = x
            *parameters, center = step.parameters
            x = contrast_norm(x, *parameters, center=center)
        elif isinstance(step, ReLU):
            x = x.relu()
        elif isinstance(step, Affine):
            scale, shift = (part.view(-1, *[1] * (x.ndim - 2)) for part in step.scale_and_shift())
            x = x * scale + shift
        elif isinstance(step, Flatten):
            x = x.flatten(1)
        elif isinstance(step, Linear):
            x = F.linear(x, step.weight(), None if step.bias is None else step.bias())
        k += 1
    return Run(steps, shapes, filters, recorded, x)


def _are(steps: list[Step], *kinds: type) -> bool:
    return [type(step) for step in steps] == list(kinds)


# Down


def _reverse(
    run: Run, values: Tensor, of: np.ndarray, maps: np.ndarray, places: np.ndarray, norm: str
) -> tuple[Tensor, np.ndarray]:
    """The projections of single activations: boxes (N, C, height, width) and their origins (N, 2), perhaps outside."""
    g, origins, k = _reverse_unit(run, values, of, maps, places, norm)
    if g.ndim == 2:
        g, k = _reverse_vectors(run, g, k)
    return _reverse_boxes(run, g, origins, of, k, norm)


def _reverse_unit(
    run: Run, values: Tensor, of: np.ndarray, maps: np.ndarray, places: np.ndarray, norm: str
) -> tuple[Tensor, np.ndarray, int]:
    """Down to the first filters, a unit stays a single activation; there it becomes one filter, scaled.

    The boxes or (N, features) vectors below that step, the boxes' origins and how many steps remain.
    """
    device = values.device
    units = torch.arange(len(of), device=device)
    for k in reversed(range(len(run.steps))):
        step = run.steps[k]
        if isinstance(step, Conv):
            g = run.filters[k][_on(device, maps)] * values[:, None, None, None]
            g, origins = _clip(g, places * step.stride - step.padding, run.shapes[k][2:], k)
            return g, origins, k
        if isinstance(step, Linear):
            return step.weight()[_on(device, maps)] * values[:, None], places, k
        if isinstance(step, Norm) and norm == "gradient":
            return _alone(run.shapes[k + 1], units, _on(device, maps), values), places, k + 1
        if isinstance(step, ReLU):
            values = values.relu()
        elif isinstance(step, Affine):
            values = values * step.scale_and_shift()[0][_on(device, maps)]
        elif isinstance(step, Norm) and norm == "rescale":
            factors = norm_factors(_cut(run.recorded[k], of, places, (1, 1)), *step.parameters)
            values = values * factors[units, _on(device, maps), 0, 0]
        elif isinstance(step, Pool):
            switches = _at(run.recorded[k], of, maps, places).cpu().numpy().astype(np.int64)
            inside = np.stack(np.divmod(switches, step.kernel[1]), 1)
            places = places * step.stride - step.padding + inside
        elif isinstance(step, Flatten) and len(run.shapes[k]) == 4:
            maps, *places = np.unravel_index(maps, run.shapes[k][1:])
            places = np.stack(places, 1)
    return _alone(run.shapes[0], units, _on(device, maps), values), places, 0


def _alone(shape: torch.Size, units: Tensor, maps: Tensor, values: Tensor) -> Tensor:
    """Boxes of one pixel, where all maps but one are 0."""
    g = values.new_zeros(len(units), shape[1], 1, 1)
    g[units, maps, 0, 0] = values
    return g


def _reverse_vectors(run: Run, g: Tensor, k: int) -> tuple[Tensor, int]:
    """Down to the flattening: whole maps, and how many steps remain."""
    while True:
        k -= 1
        step = run.steps[k]
        if isinstance(step, ReLU):
            g = g.relu()
        elif isinstance(step, Affine):
            g = g * step.scale_and_shift()[0]
        elif isinstance(step, Linear):
            g = g @ step.weight()
        elif isinstance(step, Flatten) and len(run.shapes[k]) == 4:
            return g.reshape(-1, *run.shapes[k][1:]), k


def _reverse_boxes(
    run: Run, g: Tensor, origins: np.ndarray, of: np.ndarray, k: int, norm: str
) -> tuple[Tensor, np.ndarray]:
    """Down to the image."""
    while k > 0:
        k -= 1
        step, above = run.steps[k], run.shapes[k + 1][2:]
        pool = step if isinstance(step, Pool) else None
        below = k - 1 if pool else k
        rectify = below >= 0 and isinstance(run.steps[below], ReLU)
        if rectify:
            below -= 1
        if below >= 0 and isinstance(run.steps[below], Conv):
            g, origins = _reverse_layer(run, g, origins, of, k, pool, rectify, below)
            k = below
        elif pool:
            switches = _cut(run.recorded[k], of, origins, g.shape[2:])
            padding, size, origins = _widen(g.shape[2:], origins, pool.kernel, pool, above, run.shapes[k][2:])
            g = max_unpool2d_with_switches(g, switches, pool.kernel, pool.stride, padding, output_size=size)
            g, origins = _clip(g, origins, run.shapes[k][2:], k)
        elif rectify:
            g = g.relu()
        elif isinstance(step, Affine):
            g = g * step.scale_and_shift()[0][:, None, None]
        elif isinstance(step, Norm) and norm != "identity":
            x = _cut(run.recorded[k], of, origins, g.shape[2:])
            if norm == "gradient":
                g = contrast_norm_backward(g, x, *step.parameters, checks.backend(None, g))
            else:
                g = g * norm_factors(x, *step.parameters)
    return g, origins


def _reverse_layer(
    run: Run, g: Tensor, origins: np.ndarray, of: np.ndarray, k: int, pool: Pool | None, rectify: bool, below: int
) -> tuple[Tensor, np.ndarray]:
    """Steps k down to `below`: a pool or none, a ReLU or none, and a conv."""
    conv, filters, input_size = run.steps[below], run.filters[below], run.shapes[below][2:]
    size, map_size = g.shape[2:], run.shapes[below + 1][2:]
    if pool:
        switches = _cut(run.recorded[k], of, origins, size)
        pool_padding, size, origins = _widen(size, origins, pool.kernel, pool, run.shapes[k + 1][2:], map_size)
    padding, size, origins = _widen(size, origins, conv.window, conv, map_size, input_size)
    if pool:
        g = max_unpool2d_relu_conv_transpose2d(
            g,
            switches,
            filters,
            conv.stride,
            padding,
            pool.kernel,
            pool.stride,
            pool_padding,
            output_size=size,
            rectify=rectify,
        )
    else:
        g = relu_conv_transpose2d(g, filters, conv.stride, padding, output_size=size, rectify=rectify)
    return _clip(g, origins, input_size, below)


def _widen(
    size: Pair, origins: np.ndarray, window: Pair, step: Conv | Pool, above: Pair, below: Pair
) -> tuple[Pair, Pair, np.ndarray]:
    """Boxes of `size` in maps of size `above`, one step lower, where the maps' size is `below`.

    The padding with which to run the step on the boxes, and the new boxes' size and origins: along an axis that they
    cover, those of the maps; else no padding, so that the new box is all that the windows see, the padding included.
    """
    whole = [size[a] == above[a] and not origins[:, a].any() for a in (0, 1)]
    padding = tuple(step.padding[a] if whole[a] else 0 for a in (0, 1))
    size = tuple(below[a] if whole[a] else (size[a] - 1) * step.stride[a] + window[a] for a in (0, 1))
    return padding, size, (origins * step.stride - step.padding) * ~np.array(whole)


def _clip(g: Tensor, origins: np.ndarray, size: Pair, remaining: int) -> tuple[Tensor, np.ndarray]:
    """Boxes of maps of `size` cut, or moved, so that none leaves its map; what is moved in is 0.

    With no steps remaining the boxes are as they came, for `_paste` cuts them.
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
        return _cut(g, np.arange(len(g)), inside - origins, tuple(box)), inside
    _fill_leaving(g, g, np.arange(len(g)), inside - origins)
    return g, inside


def _cut(maps: Tensor, of: np.ndarray, origins: np.ndarray, size: Pair) -> Tensor:
    """Boxes of this size, box i from maps[of[i]] at origins[i], 0 outside them: (N, C, height, width)."""
    count, channels, height, width = maps.shape
    low, high = origins.min(0), origins.max(0)
    leaves = low.min() < 0 or high[0] + size[0] > height or high[1] + size[1] > width
    if (low == high).all() and not leaves:
        boxes = maps[:, :, low[0] : low[0] + size[0], low[1] : low[1] + size[1]]
        return boxes if np.array_equal(of, np.arange(count)) else boxes[_on(maps.device, of)]
    pixels = maps.permute(0, 2, 3, 1).contiguous()
    inside = origins.clip(0, np.array((height, width)) - size)
    # A row of a box is a run of channels-last memory: the runs from all pixels on are the rows of one strided view.
    runs = pixels.as_strided((count * height * width - size[1] + 1, size[1] * channels), (channels, 1))
    first = ((of[:, None] * height + inside[:, :1] + np.arange(size[0])) * width + inside[:, 1:]).ravel()
    boxes = runs.index_select(0, _on(maps.device, first)).view(len(of), *size, channels)
    boxes = boxes.permute(0, 3, 1, 2)
    _fill_leaving(boxes, maps, of, origins)
    return boxes


def _fill_leaving(boxes: Tensor, maps: Tensor, of: np.ndarray, origins: np.ndarray) -> None:
    """Write those of `_cut`'s boxes that leave their maps; these may be the boxes themselves."""
    low, high = origins.min(1), (origins + boxes.shape[2:] - maps.shape[2:]).max(1)
    for i in np.flatnonzero((low < 0) | (high > 0)).tolist():
        source = maps[int(of[i])].clone()
        _paste(boxes[i].zero_(), source, *(-origins[i]).tolist())
