"""Project one activation of a network back to pixels (Zeiler & Fergus, arXiv 1311.2901v3, section 2.1).

All activations of a layer but one are set to 0; then, layer for layer downwards, the norm is undone, the maxima go back
to the places that the switches of the forward pass name, the maps are rectified and filtered with the layer's own
filters, transposed. No biases, and no rectification at the pixels.

cones.py does it, with two methods: up(images, rules) and down(run, units, values, rules, pixels).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import run as graph_run
from ..graph.methods import METHODS, NORMS
from ..graph.rules import Rules, Shapes
from ..graph.steps import parameters_of
from ..graph.trace import trace
from ..ops import checks
from .cones import Cones, largest, passes
from .units import Units, at, check_finite, integers, named_units, on, strongest

# The largest map, in elements, that one pass makes: more images or units are taken in several passes.
PASS_ELEMENTS = 2**24


class Projection(NamedTuple):
    """N projections."""

    pixels: Tensor  # (N, C, H, W), in the images' units; exactly 0 outside the box
    values: Tensor  # (N,) the activations projected
    positions: Tensor  # (N, 2) int64: where in the layer's map, (vertical, horizontal)
    boxes: Tensor  # (N, 4) int64: top, left, bottom, right of the receptive field; half-open, clipped to the image


class Joint(NamedTuple):
    """Several activations of an image projected at once, and each alone."""

    together: Tensor  # (C, H, W) one projection of all
    alone: Tensor  # (N, C, H, W) the projections of each; their sum is what one would expect of `together`
    values: Tensor  # (N,)
    positions: Tensor  # (N, 2) int64
    boxes: Tensor  # (N, 4) int64
    difference: float  # ||together - sum of alone|| / ||sum of alone||; 0 where nothing is rectified away


class Deconvnet:
    """The deconvnet of a model: of a ZFNet, or of any torch CNN of steps that it can reverse.

    These are Conv2d (any stride, dilation, groups, zero padding), ReLU, ReLU6, LeakyReLU, MaxPool2d, AvgPool2d,
    AdaptiveAvgPool2d, the mean over a map, LocalResponseNorm, BatchNorm (as in evaluation), Dropout (which it passes
    over), flattening to vectors, Linear, a number times or plus a value, sums of two values, concatenations of maps,
    and what zfkernels offers; as modules or function calls, in-place or not, a module used once or often. The model is
    traced with torch.fx once, here. Its weights are read anew at each use, so a deconvnet follows a model that is being
    trained.

    A projection costs one forward pass to the layer and its units' cones on the way down.

    Attributes:
        layers: the names of the layers that make maps, in order. A conv layer's name is its module's; its value is that
            after the batch norm and the ReLU that follow it (whose names are accepted for it, too), if nothing else
            reads it. Sums and concatenations are layers, too.
        vector_layers: likewise the Linear layers, above the flattening.

    Raises:
        NotImplementedError: the model has a layer that has no reverse here, named in the message with its place; or
            torch.fx cannot trace it.
        TypeError: it is no torch.nn.Module.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._graph = trace(model)
        self.layers = tuple(self._graph.layers)
        self.vector_layers = tuple(self._graph.vector_layers)

    def __repr__(self) -> str:
        return f"Deconvnet({type(self.model).__name__}: {', '.join(self.layers + self.vector_layers)})"

    @torch.no_grad()
    def activations(self, images: Tensor, layer: str | Sequence[str]) -> Tensor | dict[str, Tensor]:
        """The value of `layer`: images (N, C, H, W) -> (N, channels, height, width), for a vector layer (N, features).

        Of several layers a dict of their values, by one pass. Nothing above the layers is run. Dropout is passed over,
        whatever the model's mode.
        """
        if not isinstance(layer, str) and isinstance(layer, Sequence):
            return self._several(images, layer)
        shapes, rules = self._shapes(images, layer), Rules(checks.backend(None, images))
        engine = self._engine(layer, shapes)
        with torch.autocast(images.device.type, enabled=False):
            return _joined([engine.up(part, rules).value for part in self._split(images, shapes)])

    def _several(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        stops = {layer: self._graph.stop(layer) for layer in layers}
        if len(stops) < 2:
            return {layer: self.activations(images, layer) for layer in stops}
        shapes, rules = self._shapes(images, *stops), Rules(checks.backend(None, images))
        with torch.autocast(images.device.type, enabled=False):
            kept = [
                graph_run.run(self._graph, len(shapes) - 1, part, rules, stops.values()).kept
                for part in self._split(images, shapes)
            ]
        return {layer: _joined([values[number] for values in kept]) for layer, number in stops.items()}

    def boxes(self, layer: str, positions: Tensor | Sequence, image_size: tuple[int, int]) -> Tensor:
        """The receptive fields of the units at `positions` (N, 2) of `layer`, clipped to images of (height, width).

        (N, 4) int64: top, left, bottom, right; half-open. Where branches see different fields, the smallest box that
        holds them all. A vector layer's units see the whole image.
        """
        places = integers("positions", positions, 2).reshape(-1, 2)
        return torch.from_numpy(graph_run.fields(self._graph, self._graph.stop(layer), places, image_size))

    def modules_below(self, layer: str) -> list[str]:
        """The names of the modules with weights that the value of `layer` is made with, the first used first."""
        owners = {
            id(parameter): name
            for name, module in self.model.named_modules()
            for parameter in module.parameters(recurse=False)
        }
        numbers = self._graph.ancestors(self._graph.stop(layer))
        tensors = [tensor for number in numbers for tensor in parameters_of(self._graph.node(number).step)]
        return list(dict.fromkeys(owners[id(tensor)] for tensor in tensors if id(tensor) in owners))

    @torch.no_grad()
    def project(
        self,
        images: Tensor,
        layer: str,
        channel: int | Sequence[int] | Tensor,
        position: tuple[int, int] | Sequence[tuple[int, int]] | Tensor | None = None,
        norm: str = "identity",
        *,
        image_index: int | Sequence[int] | Tensor | None = None,
        method: str = "deconvnet",
        strength: float | None = None,
    ) -> Projection:
        """Project single activations of `layer` back to pixels.

        One projection an image, or any number: `image_index`, `channel` and `position` name image, map and place of
        each of N units, and those that name only one hold for all. Many units of a few images cost one forward pass of
        the images named: `project(images, "conv5", channel=[3, 3, 8], image_index=[0, 1, 1])`.

        Args:
            images: (M, C, H, W), of the model's dtype and on its device.
            layer: one of `layers` or `vector_layers`.
            channel: the map (of a vector layer: the feature), or one a unit.
            position: the place (vertical, horizontal) in the layer's map, or (N, 2) of them; None for the map's
                strongest activation, the first in row-major order if several are equal. A vector layer has one, (0, 0).
            norm: how a contrast norm is undone: "identity" passes over it (the paper gives no reverse for it),
                "gradient" is its true vector-Jacobian product at what was its input, "rescale" multiplies by what was
                its factor, denominator^(-beta).
            image_index: the image, or one a unit; None for one unit of each image in turn (or, of one image, as many
                units as `channel` or `position` name).
            method: what a ReLU does to the signal g that comes down, m being its derivative (0 or 1) at what was its
                input: "deconvnet" max(0, g), "gradient" m g (Simonyan et al. 2013, here times the unit's value),
                "guided" m max(0, g) (Springenberg et al. 2014). A ReLU6 is like a ReLU: nothing is capped on the way
                down, so that projections stay proportional to the activation; its derivative is 0 above 6, too. A
                LeakyReLU of slope a puts max(0, g) + a min(0, g) in the place of max(0, g).
            strength: the value that each unit is given on the way down, in the place of its own.

        Returns:
            A `Projection`. Without norms it equals the backward pass from the unit, with its value as the gradient, in
            which each ReLU's backward is replaced by a ReLU of the gradient. Batch norms run as in evaluation.

        Raises:
            ValueError, TypeError: an argument that does not fit, named; an activation that is not finite.
            RuntimeError: a batch norm in training mode.
            NotImplementedError: a layer on the way that cannot be reversed for images of this size.
        """
        shapes, rules = self._shapes(images, layer), self._rules(images, method, norm)
        units, look = named_units(shapes[-1], layer, len(images), image_index, channel, position)
        with torch.autocast(images.device.type, enabled=False):
            return self._projected(images, layer, shapes, units, look, rules, strength)

    @torch.no_grad()
    def joint(
        self,
        image: Tensor,
        layer: str,
        channel: int | Sequence[int] | Tensor,
        position: tuple[int, int] | Sequence[tuple[int, int]] | Tensor | None = None,
        norm: str = "identity",
        *,
        method: str = "deconvnet",
    ) -> Joint:
        """Project several activations of `layer` at once, and each alone.

        A projection shows a single activation, not the joint activity of a layer: a shortcoming that the paper admits.
        Between rectifiers all is linear, so `together` differs from the sum of `alone` by what the rectifiers on the
        way cut off of one unit and not of the sum, or the other way round; with "gradient" the two are equal.

        Args:
            image: (C, H, W) or (1, C, H, W).
            layer, channel, position, norm, method: as of `project`; as many different units as `channel` or `position`
                name.

        Raises:
            As `project`; ValueError too for units that are named twice.
        """
        images = image[None] if isinstance(image, Tensor) and image.ndim == 3 else image
        if isinstance(images, Tensor) and len(images) != 1:
            raise ValueError(f"image must be one image, got {len(images)}")
        alone = self.project(images, layer, channel, position, norm, method=method)
        shapes, rules = self._shapes(images, layer), self._rules(images, method, norm)
        units, _ = named_units(shapes[-1], layer, 1, None, channel, alone.positions)
        if len({(int(c), *map(int, place)) for _, c, place in zip(*units, strict=True)}) < len(alone.values):
            raise ValueError("channel and position must name each unit once")
        engine = self._engine(layer, shapes)
        with torch.autocast(images.device.type, enabled=False):
            dense = engine.down_together(engine.up(images, rules), units, alone.values, rules)
        together = torch.zeros_like(dense)
        for top, left, bottom, right in alone.boxes.tolist():
            together[:, top:bottom, left:right] = dense[:, top:bottom, left:right]
        total = alone.pixels.sum(0)
        size = float(total.norm())
        difference = float((together - total).norm()) / size if size else 0.0
        return Joint(together, alone.pixels, alone.values, alone.positions, alone.boxes, difference)

    def _projected(
        self,
        images: Tensor,
        layer: str,
        shapes: Shapes,
        units: Units,
        look: bool,
        rules: Rules,
        strength: float | None,
    ) -> Projection:
        """The projections of the units, so many images and units at a time as fit into a pass."""
        engine = self._engine(layer, shapes)
        kind = {"dtype": images.dtype, "device": images.device}
        count, device = len(units.images), images.device
        pixels = torch.empty((count, *images.shape[1:]), memory_format=torch.channels_last, **kind).zero_()
        values = torch.empty(count, **kind)
        needed, index = np.unique(units.images, return_inverse=True)
        for part in passes(np.arange(len(needed)), largest(shapes), PASS_ELEMENTS):
            run = engine.up(images if len(part) == len(images) else images[on(device, needed[part])], rules)
            here = np.flatnonzero((index >= part[0]) & (index <= part[-1]))
            for rows in passes(here, engine.unit_elements, PASS_ELEMENTS):
                chosen = units.take(rows)._replace(images=index[rows] - part[0])
                if look:
                    units.positions[rows] = chosen.positions[:] = strongest(run.value, chosen)
                own = at(run.value, chosen)
                check_finite(own, layer, chosen)
                values[on(device, rows)] = own
                sent = own if strength is None else torch.full_like(own, strength)
                engine.down(run, chosen, sent, rules, [pixels[row] for row in rows])
        boxes = self.boxes(layer, units.positions, tuple(images.shape[2:])).to(device)
        return Projection(pixels, values, on(device, units.positions), boxes)

    def _engine(self, layer: str, shapes: Shapes) -> Cones:
        """The way up to the layer and down, for images whose values have these shapes."""
        return Cones(self._graph, self._graph.stop(layer), shapes)

    def _shapes(self, images: Tensor, *layers: str) -> Shapes:
        """The shapes of the graph's values up to these layers, for images that suit them."""
        stops = [self._graph.stop(layer) for layer in layers]
        checks.tensor("images", images, ("N", "C", "H", "W"))
        checks.alike("images", images, "the model", next(self.model.parameters(), images))
        return self._graph.shapes(images.shape, *stops)

    def _rules(self, images: Tensor, method: str, norm: str) -> Rules:
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        return Rules(checks.backend(None, images), method, norm)

    def _split(self, images: Tensor, shapes: Shapes) -> Sequence[Tensor]:
        return images.split(max(1, PASS_ELEMENTS // largest(shapes)))


def _joined(parts: list[Tensor]) -> Tensor:
    """The batch whose parts the passes served; of one pass its own tensor, not a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)
