"""How far a result may be from the reference, and how far it is."""

import math
from typing import Any

import torch
from torch import Tensor

from ..backends import reference
from ..window import Sides

# Of the error relative in norm.
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}
TF32_BOUND = 1e-3  # of the ops that multiply, where a backend may round float32 operands to TF32


def relative_error(out: Tensor | None, right: Tensor | None) -> float:
    """||out - right|| / ||right|| over the finite values; inf if a shape or the place of a NaN or infinity differs."""
    if out is None or right is None:
        return 0.0 if out is right else math.inf
    if out.shape != right.shape:
        return math.inf
    out, right = out.double(), right.double()
    finite = right.isfinite()
    same = (out == right) | (out.isnan() & right.isnan())
    if not torch.equal(out.isfinite(), finite) or not bool(same[~finite].all()):
        return math.inf
    out, right = out[finite], right[finite]
    largest = float(right.abs().max()) if right.numel() else 0.0
    if largest == 0:
        return float(out.norm())
    return float((out / largest - right / largest).norm() / (right / largest).norm())  # squares of 1e200 are infinite


def values_error(
    out: tuple[Any, ...], right: tuple[Any, ...], args: tuple[Any, ...], dtype: torch.dtype, bound: float
) -> float:
    """The worst relative error of the outputs."""
    if len(out) != len(right):
        return math.inf
    return max(relative_error(o, r) for o, r in zip(out, right, strict=True))


def fused_error(
    out: tuple[Any, ...], right: tuple[Any, ...], args: tuple[Any, ...], dtype: torch.dtype, bound: float
) -> float:
    """values_error of the pooled map; inf for a switch that no summation order within the bound explains.

    A switch must be the reference's where its window's two largest values differ by more than the bound (times the
    map's largest value), where the ReLU zeroes the whole window, and where a value is not finite. Elsewhere it must
    point at a value that is within the bound of the largest.
    """
    if len(out) != 2 or out[1].dtype != torch.uint8 or out[1].shape != right[1].shape:
        return math.inf
    x, weight, bias, stride, padding, kernel, pool_stride, pool_padding, _ = args
    linear = reference.conv2d(x, weight, bias, stride, padding, False)
    taps = windows_of(linear, kernel, pool_stride, pool_padding, right[1].shape[2:])
    gap = bound * float(linear[linear.isfinite()].abs().max()) if linear.isfinite().any() else 0.0
    switches = out[1].long()
    if int(switches.max() if switches.numel() else 0) >= taps.shape[-1]:
        return math.inf
    rectified = taps.clamp(min=0).masked_fill(taps == -math.inf, -math.inf)  # taps off the map stay out of it
    largest = rectified.topk(min(2, taps.shape[-1]), -1).values
    unsettled = rectified.gather(-1, switches[..., None])[..., 0]
    clear = (largest[..., 0] - largest[..., -1] > gap) | (taps.amax(-1) < -gap) | (taps.shape[-1] == 1)
    clear |= ~(taps.isfinite() | (taps == -math.inf)).all(-1)
    settled = torch.where(clear, switches == right[1], unsettled >= largest[..., 0] - gap)
    return relative_error(out[0], right[0]) if bool(settled.all()) else math.inf


def windows_of(maps: Tensor, kernel: Sides, stride: Sides, padding: Sides, size: Sides) -> Tensor:
    """Every pooling window's values, shape (n, c, *size, KH*KW), -inf off the map."""
    extent = [(size[d] - 1) * stride[d] + kernel[d] - padding[d] - maps.shape[2 + d] for d in (0, 1)]
    canvas = torch.nn.functional.pad(
        maps, (padding[1], max(extent[1], 0), padding[0], max(extent[0], 0)), value=-math.inf
    )
    taps = canvas.unfold(2, kernel[0], stride[0]).unfold(3, kernel[1], stride[1])
    return taps[:, :, : size[0], : size[1]].flatten(-2)


def is_float(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def tuple_of(result: Tensor | tuple[Any, ...]) -> tuple[Any, ...]:
    return result if isinstance(result, tuple) else (result,)
