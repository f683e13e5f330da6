"""The product's projections of a model against the oracle's."""

import math
from typing import NamedTuple

import torch
from oracle import METHODS, Oracle, Truth
from torch import Tensor, nn

import zfkernels as zf
from zfkernels.deconvnet import Projection

BOUND = 1e-9


class Verdict(NamedTuple):
    """One layer and method: the worst relative error of pixels and values; inf for another unit, or where the pixels
    outside the box are not 0. Or why the product refused."""

    layer: str
    method: str
    error: float
    refusal: str = ""

    @property
    def right(self) -> bool:
        return not self.refusal and self.error <= BOUND


def verdicts(model: nn.Module, images: Tensor, layers: tuple[str, ...], **settings) -> list[Verdict]:
    """Each layer by each method, one unit of each image in reverse order; `settings` go to `Deconvnet`."""
    truth, found = Oracle(model, images, layers, settings.get("forward")), []
    deconv = None
    for layer in layers:
        for method in METHODS:
            right = truth.project(layer, method)
            assert float(right.pixels.flatten(1).norm(dim=1).min()) > 0, f"the oracle's unit of {layer} is dead"
            order = torch.arange(len(images)).flip(0)
            try:
                deconv = deconv or zf.Deconvnet(model, **settings)
                channels = right.channels[order]
                p = deconv.project(images, layer, channels, image_index=order, method=method, norm="gradient")
            except Exception as error:  # whatever it says, the layer is not served
                found.append(Verdict(layer, method, math.inf, f"{type(error).__name__}: {error}"))
            else:
                found.append(Verdict(layer, method, worst(p, Truth(*(part[order] for part in right)))))
    return found


def worst(p: Projection, right: Truth) -> float:
    """The larger relative error of pixels and values over the units; inf for another place, or a box that leaks."""
    if p.pixels.shape != right.pixels.shape or not torch.equal(p.positions.cpu(), right.positions):
        return math.inf
    for pixels, (top, left, bottom, right_edge) in zip(p.pixels, p.boxes.tolist(), strict=True):
        outside = torch.ones_like(pixels, dtype=torch.bool)
        outside[:, top:bottom, left:right_edge] = False
        if pixels[outside].any():
            return math.inf
    pixels = (p.pixels - right.pixels).flatten(1).norm(dim=1) / right.pixels.flatten(1).norm(dim=1)
    values = (p.values - right.values).abs() / right.values.abs()
    largest = float(torch.cat([pixels, values]).max())
    return largest if largest == largest else math.inf
