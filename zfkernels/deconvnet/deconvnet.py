"""Project one activation of a network back to pixels (Zeiler & Fergus, arXiv 1311.2901v3, section 2.1).

All activations of a layer but one are set to 0; then, layer for layer downwards, the norm is undone, the maxima go back
to the places that the switches of the forward pass name, the maps are rectified and filtered with the layer's own
filters, transposed. No biases, and no rectification at the pixels.

One unit depends on a cone that widens towards the image, and its projection touches nothing else. The units of a batch
are of one layer, so at each step below their cones are boxes (N, C, height, width) of one size, each with an origin of
its own; the switches, or whatever else was recorded, are cut out at the boxes, and a step is then the ordinary op on
small maps without padding. Boxes never leave their map: what a padded window put outside is cut off. A box that has
grown to the whole map is the dense computation.

That serves models that are chains of layers. Those that branch, and the other methods, are reversed on whole maps
(graphs.py).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import run as whole_maps
from ..graph.graph import Chain
from ..graph.run import fields, reverse
from ..graph.steps import METHODS, Average, averages
from ..graph.trace import trace
from ..ops import checks
from .cones import _largest_box, _paste, _reverse, _run
from .units import _at, _check_finite, _integers, _on, _set, _strongest, _units

NORMS = ("identity", "gradient", "rescale")
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

    A projection of a model that is a chain of layers costs its units' cones, that of one that branches whole maps.

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
        self._graph, self._chain = trace(model)
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
        chain, shapes = self._shapes(images, layer)
        most = max(1, PASS_ELEMENTS // _largest(shapes))
        with torch.autocast(images.device.type, enabled=False):
            if chain:
                steps = chain.steps[: len(shapes) - 1]
                passes = [_run(steps, shapes, some).value for some in images.split(most)]
            else:
                passes = [whole_maps.run(self._graph, shapes, some, None).value for some in images.split(most)]
        return _joined(passes)

    def _several(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        stops = {layer: self._graph.stop(layer) for layer in layers}
        if len(stops) < 2:
            return {layer: self.activations(images, layer) for layer in stops}
        self._check(images)
        shapes = self._graph.shapes(images.shape, *stops.values())
        most = max(1, PASS_ELEMENTS // _largest(shapes))
        with torch.autocast(images.device.type, enabled=False):
            passes = [
                whole_maps.run(self._graph, shapes, some, None, stops.values()).kept for some in images.split(most)
            ]
        return {layer: _joined([kept[stop] for kept in passes]) for layer, stop in stops.items()}

    def boxes(self, layer: str, positions: Tensor | Sequence, image_size: tuple[int, int]) -> Tensor:
        """The receptive fields of the units at `positions` (N, 2) of `layer`, clipped to images of (height, width).

        (N, 4) int64: top, left, bottom, right; half-open. Where branches see different fields, the smallest box that
        holds them all. A vector layer's units see the whole image.
        """
        places = _integers("positions", positions, 2).reshape(-1, 2)
        return torch.from_numpy(fields(self._graph, self._graph.stop(layer), places, image_size))

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

        Returns:
            A `Projection`. Without norms it equals the backward pass from the unit, with its value as the gradient, in
            which each ReLU's backward is replaced by a ReLU of the gradient. Batch norms run as in evaluation.

        Raises:
            ValueError, TypeError: an argument that does not fit, named; an activation that is not finite.
            RuntimeError: a batch norm in training mode.
            NotImplementedError: a layer on the way that cannot be reversed for images of this size.
        """
        return self._project(images, layer, channel, position, norm, image_index, method, None)

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
        alone = self._project(images, layer, channel, position, norm, None, method, None)
        shapes = self._graph.shapes(images.shape, self._graph.stop(layer))
        _, channels, _ = _units(shapes[-1], layer, None, channel, position, 1)
        channels = np.broadcast_to(channels, len(alone.values))
        places = alone.positions.cpu().numpy()
        if len({(int(c), *map(int, p)) for c, p in zip(channels, places, strict=True)}) < len(channels):
            raise ValueError("channel and position must name each unit once")
        with torch.autocast(images.device.type, enabled=False):
            done = whole_maps.run(self._graph, shapes, images, method)
            g = torch.zeros_like(done.value)
            for c, place, value in zip(channels, places, alone.values, strict=True):
                g[(0, c, *place)[: g.ndim]] = value
            dense = reverse(self._graph, done, g, np.zeros(1, np.int64), norm, method)[0]
        together = torch.zeros_like(dense)
        for top, left, bottom, right in alone.boxes.tolist():
            together[:, top:bottom, left:right] = dense[:, top:bottom, left:right]
        total = alone.pixels.sum(0)
        size = float(total.norm())
        difference = float((together - total).norm()) / size if size else 0.0
        return Joint(together, alone.pixels, alone.values, alone.positions, alone.boxes, difference)

    def _project(
        self,
        images: Tensor,
        layer: str,
        channel: object,
        position: object,
        norm: str,
        image_index: object,
        method: str,
        strength: float | None,
    ) -> Projection:
        """As `project`; with a `strength`, units are given that value in the place of their own on the way down."""
        self._graph.stop(layer)
        if norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        chain, shapes = self._shapes(images, layer)
        index, channels, places = _units(shapes[-1], layer, image_index, channel, position, len(images))
        if method != "deconvnet" and chain:
            chain, shapes = None, self._graph.shapes(images.shape, self._graph.stop(layer))
        with torch.autocast(images.device.type, enabled=False):
            return self._in_passes(images, layer, chain, shapes, index, channels, places, norm, method, strength)

    def _in_passes(
        self,
        images: Tensor,
        layer: str,
        chain: Chain | None,
        shapes: list[torch.Size | None],
        index: np.ndarray,
        channels: np.ndarray,
        places: np.ndarray | None,
        norm: str,
        method: str,
        strength: float | None,
    ) -> Projection:
        """The projections of the units that `_units` names, so many images and units at a time as fit into a pass."""
        look = places is None and len(shapes[-1]) == 4
        places = np.zeros((len(index), 2), np.int64) if places is None else places.copy()
        kind = {"dtype": images.dtype, "device": images.device}
        pixels = torch.empty((len(index), *images.shape[1:]), memory_format=torch.channels_last, **kind).zero_()
        values = torch.empty(len(index), **kind)
        steps = chain.steps[: len(shapes) - 1] if chain else []
        largest = _largest(shapes)
        needed, index = np.unique(index, return_inverse=True)
        for some in _passes(np.arange(len(needed)), PASS_ELEMENTS // largest):
            all_of_them = len(some) == len(images)
            chosen = images if all_of_them else images[_on(images.device, needed[some])]
            run = _run(steps, shapes, chosen) if chain else whole_maps.run(self._graph, shapes, chosen, method)
            here = np.flatnonzero((index >= some[0]) & (index <= some[-1]))
            for units in _passes(here, PASS_ELEMENTS // (_largest_box(steps, shapes) if chain else largest)):
                of, maps = index[units] - some[0], channels[units]
                if look:
                    places[units] = _strongest(run.value, of, maps)
                found = _at(run.value, of, maps, places[units])
                _check_finite(found, layer, maps, places[units])
                values[_on(images.device, units)] = found
                sent = found if strength is None else torch.full_like(found, strength)
                if chain:
                    boxes, origins = _reverse(run, sent, of, maps, places[units], norm)
                    for unit, box, origin in zip(units, boxes, origins.tolist(), strict=True):
                        _paste(pixels[unit], box, *origin)
                    continue
                g = run.value.new_zeros(len(units), *run.value.shape[1:])
                _set(g, maps, places[units], sent)
                dense = reverse(self._graph, run, g, of, norm, method)
                seen = self.boxes(layer, places[units], tuple(images.shape[2:])).tolist()
                for unit, whole, (top, left, bottom, right) in zip(units, dense, seen, strict=True):
                    pixels[unit, :, top:bottom, left:right] = whole[:, top:bottom, left:right]
        boxes = self.boxes(layer, places, tuple(images.shape[2:])).to(images.device)
        return Projection(pixels, values, _on(images.device, places), boxes)

    def _shapes(self, images: Tensor, layer: str) -> tuple[Chain | None, list[torch.Size | None]]:
        """Check `images`; the chain that serves them, or None, and the shapes of its steps' or the graph's values."""
        self._check(images)
        shapes = self._graph.shapes(images.shape, self._graph.stop(layer))
        for number in self._graph.ancestors(len(shapes) - 1):
            node = self._graph.nodes[number - 1]
            if any(isinstance(step, Average) and averages(step, shapes[node.inputs[0]]) for step in node.steps):
                return None, shapes
        if self._chain is None:
            return None, shapes
        return self._chain, self._chain.shapes(images.shape, self._chain.stop(layer))

    def _check(self, images: Tensor) -> None:
        checks.tensor("images", images, ("N", "C", "H", "W"))
        checks.alike("images", images, "the model", next(self.model.parameters(), images))


def _joined(passes: list[Tensor]) -> Tensor:
    """The batch whose parts the passes served; of one pass its own tensor, not a copy."""
    return passes[0] if len(passes) == 1 else torch.cat(passes)


def _largest(shapes: list[torch.Size | None]) -> int:
    return max(shape[1:].numel() for shape in shapes if shape is not None)


def _passes(numbers: np.ndarray, most: int) -> list[np.ndarray]:
    """`numbers` in runs of at most `most`, and at least 1."""
    most = max(1, most)
    return [numbers[i : i + most] for i in range(0, len(numbers), most)]
