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
import torch.nn.functional as F
from torch import Tensor, nn

from . import graphs
from .graphs import METHODS, norm_factors
from .ops import checks
from .ops.contrast_norm import contrast_norm, contrast_norm_backward
from .ops.conv import conv2d, conv2d_relu, relu_conv_transpose2d
from .ops.fused import conv2d_relu_max_pool2d, max_unpool2d_relu_conv_transpose2d
from .ops.max_pool import max_pool2d_with_switches, max_unpool2d_with_switches
from .tracing import Affine, Average, Chain, Conv, Flatten, Linear, Norm, Pair, Pool, ReLU, Step, averages, trace

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
                passes = [graphs.run(self._graph, shapes, some, None).value for some in images.split(most)]
        return _joined(passes)

    def _several(self, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
        stops = {layer: self._graph.stop(layer) for layer in layers}
        if len(stops) < 2:
            return {layer: self.activations(images, layer) for layer in stops}
        self._check(images)
        shapes = self._graph.shapes(images.shape, *stops.values())
        most = max(1, PASS_ELEMENTS // _largest(shapes))
        with torch.autocast(images.device.type, enabled=False):
            passes = [graphs.run(self._graph, shapes, some, None, stops.values()).kept for some in images.split(most)]
        return {layer: _joined([kept[stop] for kept in passes]) for layer, stop in stops.items()}

    def boxes(self, layer: str, positions: Tensor | Sequence, image_size: tuple[int, int]) -> Tensor:
        """The receptive fields of the units at `positions` (N, 2) of `layer`, clipped to images of (height, width).

        (N, 4) int64: top, left, bottom, right; half-open. Where branches see different fields, the smallest box that
        holds them all. A vector layer's units see the whole image.
        """
        places = _integers("positions", positions, 2).reshape(-1, 2)
        return torch.from_numpy(graphs.fields(self._graph, self._graph.stop(layer), places, image_size))

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
            done = graphs.run(self._graph, shapes, images, method)
            g = torch.zeros_like(done.value)
            for c, place, value in zip(channels, places, alone.values, strict=True):
                g[(0, c, *place)[: g.ndim]] = value
            dense = graphs.reverse(self._graph, done, g, np.zeros(1, np.int64), norm, method)[0]
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
            run = _run(steps, shapes, chosen) if chain else graphs.run(self._graph, shapes, chosen, method)
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
                dense = graphs.reverse(self._graph, run, g, of, norm, method)
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


def _set(g: Tensor, maps: np.ndarray, places: np.ndarray, values: Tensor) -> None:
    """One activation of each of g (N, channels, ...)."""
    where = (np.arange(len(g)), maps, *places.T)[: g.ndim]
    g[tuple(_on(g.device, part) for part in where)] = values


# What is asked for


def _integers(name: str, value: object, axes: int) -> np.ndarray:
    """`value` as an int64 array with at most `axes` dimensions."""
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{name} must be an int or a sequence or tensor of ints, got {value!r}") from error
    if tensor.numel() and (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool):
        raise TypeError(f"{name} must be an int or a sequence or tensor of ints, got {value!r}")
    if tensor.ndim > axes:
        raise ValueError(f"{name} must have at most {axes} dimension(s), got shape {tuple(tensor.shape)}")
    return tensor.to("cpu", torch.int64).numpy()


def _check_range(name: str, values: np.ndarray, count: int, text: str) -> None:
    wrong = values[(values < 0) | (values >= count)]
    if len(wrong):
        raise ValueError(f"{name} must be from 0 to {count - 1}, {text}, got {wrong[0]}")


def _units(
    shape: torch.Size, layer: str, image_index: object, channel: object, position: object, images: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Image, channel and (vertical, horizontal) place, or None, of each unit; `shape` is that of the layer's value."""
    index = np.arange(images) if image_index is None else _integers("image_index", image_index, 1).reshape(-1)
    channels = _integers("channel", channel, 1).reshape(-1)
    _check_range("image_index", index, images, f"there being {images} images")
    _check_range("channel", channels, shape[1], f"layer {layer!r} having {shape[1]}")
    named = {"image_index" if image_index is not None else "images": index, "channel": channels}
    if position is not None:
        places = _integers("position", position, 2)
        if places.ndim == 0 or (places.size and places.shape[-1] != 2):
            raise ValueError(f"position must be (vertical, horizontal), or one such pair a unit, got {position!r}")
        named["position"] = places = places.reshape(-1, 2)
        size = tuple(shape[2:]) or (1, 1)
        for axis, side in enumerate(("vertical", "horizontal")):
            _check_range(f"{side} position", places[:, axis], size[axis], f"layer {layer!r} being {size[0]}x{size[1]}")
    counts = {len(units) for units in named.values()} - {1} or {1}
    if len(counts) > 1:
        raise ValueError(
            "images (or image_index), channel and position must name as many units each, or one for all, got "
            + ", ".join(f"{len(units)} by {name}" for name, units in named.items())
        )
    (count,) = counts
    index, channels, *places = (units if len(units) == count else units.repeat(count, 0) for units in named.values())
    return index, channels, places[0] if places else None


def _strongest(value: Tensor, of: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Where map maps[i] of image of[i] is strongest, the first place in row-major order: (N, 2)."""
    flat = value[_on(value.device, of), _on(value.device, maps)].flatten(1).argmax(1).cpu().numpy()
    return np.stack([flat // value.shape[3], flat % value.shape[3]], 1)


def _at(value: Tensor, of: np.ndarray, maps: np.ndarray, places: np.ndarray) -> Tensor:
    where = (of, maps, places[:, 0], places[:, 1]) if value.ndim == 4 else (of, maps)
    return value[tuple(_on(value.device, part) for part in where)]


def _check_finite(values: Tensor, layer: str, maps: np.ndarray, places: np.ndarray) -> None:
    finite = torch.isfinite(values).tolist()
    if not all(finite):
        i = finite.index(False)
        raise ValueError(
            f"images or weights hold values that are not finite: channel {maps[i]} of layer {layer!r} is "
            f"{values[i].item()} at position {tuple(places[i].tolist())}"
        )


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


def _passes(numbers: np.ndarray, most: int) -> list[np.ndarray]:
    """`numbers` in runs of at most `most`, and at least 1."""
    most = max(1, most)
    return [numbers[i : i + most] for i in range(0, len(numbers), most)]


def _on(device: torch.device, array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(device)


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
