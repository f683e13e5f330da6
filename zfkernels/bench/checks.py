"""What a right result is. Each check takes the contender's outputs and the right ones in float64 and returns an error,
relative in norm, to compare with the case's bound; infinity for what rounding cannot explain."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..testing.compare import BOUNDS, relative_error, windows_of
from .shapes import Pool

BOUND = BOUNDS[torch.float32]  # a setting may have another
# A window whose two largest values are within rounding of each other has two right switches, and a projection or a
# gradient through it two right values. Of a projection, this share of the pixels, those that differ most, is not
# compared; the whole may differ by FORKED_BOUND.
LEFT_OUT = 0.05
FORKED_BOUND = 1e-2


def values(outs: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    """The worst relative error of the outputs that have a right one; others, such as a peer's indices, are not read."""
    return max(relative_error(out, r) for out, r in zip(outs, right, strict=False))


Check = Callable[[tuple[Tensor, ...], tuple[Tensor, ...]], float]


def apart_from(pixels: Tensor) -> Check:
    """The check that compares the first output everywhere except at `pixels`, a mask."""

    def check(outs: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
        if outs[0].shape != right[0].shape:
            return math.inf
        return relative_error(outs[0].masked_fill(pixels, 0), right[0].masked_fill(pixels, 0))

    return check


def pooled(p: Pool, bound: float) -> Check:
    """The check of (map, switches) against (map, the values that were pooled).

    With `bound` 0 all pooled the same numbers, and map and switches must be equal to the bit. Otherwise a convolution
    computed what was pooled: a switch must then name a value within `bound` times the map's largest of its window's
    largest, and the first pixel where the ReLU makes a whole window 0.
    """

    def check(outs: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
        error = values(outs[:1], right)
        if bound == 0 and error > 0:
            return math.inf
        return error if switches_hold(p, outs[1], right[1], bound, bound > 0) else math.inf

    return check


def switches_hold(p: Pool, chosen: Tensor, maps: Tensor, bound: float, rectified: bool) -> bool:
    """Does each switch (or a peer's index into the map) name one of its window's largest values?"""
    switches = chosen
    if switches.dtype != torch.uint8:
        switches = switches_of(p, switches % p.size**2)
    maps = maps.double()
    if switches.shape != (*maps.shape[:2], p.out, p.out) or int(switches.max()) >= p.kernel**2:
        return False
    gap = bound * float(maps.abs().max())
    for image, s in zip(maps, switches.long(), strict=True):
        taps = windows_of(image[None], (p.kernel,) * 2, (p.stride,) * 2, (0, 0), (p.out, p.out))[0]
        value, largest = taps.gather(-1, s[..., None])[..., 0], taps.amax(-1)
        if rectified:
            if chosen.dtype == torch.uint8 and bool(s[largest < -gap].any()):
                return False
            off_map = value == -math.inf
            value, largest = value.clamp(min=0).masked_fill(off_map, -math.inf), largest.clamp(min=0)
        if not bool((value >= largest - gap).all()):
            return False
    return True


def switches_of(p: Pool, indices: Tensor) -> Tensor:
    """Our switches (offset inside the window) from torch's indices (position in the map)."""
    rows = torch.arange(p.out, device=indices.device)[:, None] * p.stride
    columns = torch.arange(p.out, device=indices.device)[None, :] * p.stride
    offset = (indices // p.size - rows) * p.kernel + indices % p.size - columns
    return offset.to(torch.uint8).contiguous(memory_format=torch.channels_last)


def projections(outs: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    """The error of pixels (N, C, H, W) except LEFT_OUT of them; infinity if the whole's is above FORKED_BOUND."""
    out, wanted = outs[0][: len(right[0])].cpu().double(), right[0].cpu()
    if not relative_error(out, wanted) <= FORKED_BOUND:
        return math.inf
    difference = (out - wanted).flatten().abs()
    kept = difference.sort().values[: int(len(difference) * (1 - LEFT_OUT))]
    return float(kept.norm() / wanted.norm())


def small_projections(outs: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    """As `projections`, where most pixels are 0: the share that is not compared is of the others."""
    out, wanted = outs[0].cpu().double(), right[0].cpu()
    if out.shape != wanted.shape:
        return math.inf
    reached = (out != 0) | (wanted != 0)
    return projections((out[reached],), (wanted[reached],))


def training_step(outs: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    """The error of the loss; infinity if a gradient's is above FORKED_BOUND."""
    if len(outs) != len(right) or not values(outs[1:], right[1:]) <= FORKED_BOUND:
        return math.inf
    return values(outs[:1], right[:1])
