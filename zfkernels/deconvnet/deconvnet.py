"""Project one activation of a network back to pixels (Zeiler & Fergus, arXiv 1311.2901v3, section 2.1).

All activations of a layer but one are set to 0; then, layer for layer downwards, the norm is undone, the maxima go back
to the places that the switches of the forward pass name, the maps are rectified and filtered with the layer's own
filters, transposed. No biases, and no rectification at the pixels.

Two engines do it, with the same two methods, up(images, rules) and down(run, units, values, rules, pixels): cones.py
for what torch.fx can trace, forward.py for all else; serving.py says which serves a layer.
"""

from collections.abc import Mapping, Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor, nn

from ..graph import run as graph_run
from ..graph.graph import Graph
from ..graph.methods import METHODS, NORMS
from ..graph.rules import Rules
from ..graph.translate import is_leaf
from ..ops import checks
from ..window import pair
from .cones import Cones, passes
from .forward import Changed, Forward, Own, values
from .notes import empty, notes, without_switches
from .results import Joint, Projection
from .serving import Engine, Plan, Planner, Way, check_overrides, checked, uncapped
from .signals import OVERRIDES
from .units import (
    Units,
    at,
    check_finite,
    check_fits,
    integers,
    known_values,
    named_layers,
    named_units,
    on,
    one_image,
    strongest,
)

CHANGES = "model must do the same at each call with the same images, but what it calls has changed between two of them"


class Deconvnet:
    """The deconvnet of a model: of a ZFNet, or of any torch CNN.

    The model's own forward is the truth: whatever it does, with its hooks, parametrizations, control flow and outputs
    of any form, it runs as it stands, and the units are sent down by autograd, in which rectifiers, max-pooling and
    response norms follow `method` and `norm` (signals.py) and all else has its true derivative. Where torch.fx can see
    what lies below a layer, and all of that is understood and as it was, the layer's steps are run one by one with the
    kernels of this package, and units by their cones, which gives the same and costs less; `engine(layer)` says which
    of the two serves, and why. The model is traced when it is first needed, and again when its modules, hooks or
    settings change. Its weights are read anew at each use, so a deconvnet follows a model that is being trained. The
    model is left as it is; copy.deepcopy and pickle serve.

    Args:
        model: any torch.nn.Module from images (N, C, H, W).
        forward: (model, images) -> anything, where the model needs more than images or is not to be run whole, such as
            `lambda model, images: model(images, other)["out"]`.
        rules: module classes or functions -> "rectify", which gives them the method's rule for rectifiers with their
            own derivative, or "gradient", which gives them their true one: `{nn.SiLU: "rectify"}`.

    Attributes:
        layers: the names of the layers that make maps, in order: those of modules (a block's name is its output), sums,
            concatenations and other functions (the names that torch.fx gives them). A conv layer's name is its
            module's; its value is that after the batch norm and the ReLU that follow it (whose names are accepted for
            it, too), if nothing else reads it.
        distinct_layers: `layers`, but of several names of one value (a block's, its last part's, a sum's) only one.
        vector_layers: likewise those that make vectors.

    Raises:
        TypeError: it is no torch.nn.Module, is scripted or quantized.
        ValueError: its parameters are on the meta device; `rules` that are none.
    """

    def __init__(
        self, model: nn.Module, *, forward: Forward | None = None, rules: Mapping[object, str] | None = None
    ) -> None:
        if forward is not None and not callable(forward):
            raise TypeError(f"forward must be a function of the model and images, got {forward!r}")
        self.model, self.forward, self.rules = model, forward, check_overrides(rules, OVERRIDES)
        self._planner = Planner(checked(model), forward, self.rules)

    def __getstate__(self) -> dict[str, Any]:
        """What was traced belongs to this model, and not to a copy of it."""
        return {"model": self.model, "forward": self.forward, "rules": self.rules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model"], forward=state["forward"], rules=state["rules"])  # type: ignore[misc]

    @property
    def layers(self) -> tuple[str, ...]:
        return tuple(self._planner.names().layers)

    @property
    def distinct_layers(self) -> tuple[str, ...]:
        return self._planner.distinct()

    @property
    def vector_layers(self) -> tuple[str, ...]:
        return tuple(self._planner.names().vector_layers)

    def __repr__(self) -> str:
        return f"Deconvnet({type(self.model).__name__}: {', '.join(self.layers + self.vector_layers)})"

    def engine(self, layer: str) -> Engine:
        """What serves `layer`: ("traced", "") or ("own forward", why).

        A layer that could be traced is served by the model's own forward, too, for images of a size in which a step
        turns out to be something else, such as a reshape that is no flattening.
        """
        return self._planner.engine(layer)

    @overload
    def activations(self, images: Tensor, layer: str) -> Tensor: ...  # type: ignore[overload-overlap]  # also a Sequence

    @overload
    def activations(self, images: Tensor, layer: Sequence[str]) -> dict[str, Tensor]: ...

    @torch.no_grad()
    def activations(self, images: Tensor, layer: str | Sequence[str]) -> Tensor | dict[str, Tensor]:
        """The value of `layer`: images (N, C, H, W) -> (N, channels, height, width), for a vector layer (N, features).

        Of several layers a dict of their values, by one pass. Nothing above the layers is run. Dropout is passed over,
        whatever the model's mode.
        """
        found = self._values(images, named_layers(layer), lift=False)
        return found[layer] if isinstance(layer, str) else found

    @torch.no_grad()
    def strengths(self, images: Tensor, layer: Sequence[str]) -> dict[str, Tensor]:
        """As `activations` of several layers, but for one that ends in a ReLU6 what that would give without its cap.

        Most maps of such layers peak at the cap at many places, among which it does not tell the strongest.
        """
        return self._values(images, named_layers(layer), lift=True)

    def _values(self, images: Tensor, layers: list[str], lift: bool, again: bool = False) -> dict[str, Tensor]:
        if not layers:
            return {}
        plan, rules = self._planner.plan(images, layers, again), Rules(checks.backend(None, images))
        parts = graph_run.split(images, plan.shapes)
        try:
            with torch.autocast(images.device.type, enabled=False):
                kept = [self._kept(plan, part, rules, lift) for part in parts]
        except Changed:
            if again:
                raise RuntimeError(CHANGES) from None
            return self._values(images, layers, lift, again=True)
        return {layer: graph_run.joined([values[number] for values in kept]) for layer, number in plan.stops.items()}

    def _kept(self, plan: Plan, images: Tensor, rules: Rules, lift: bool) -> dict[int, Tensor]:
        """The values of the plan's layers, by number."""
        numbers = set(plan.stops.values())
        if plan.seen is not None:
            caps = plan.uncapped if lift else {}
            return values(self._planner.model, self.forward, images, numbers, rules, plan.seen, caps)
        plan = plan if lift else plan._replace(uncapped={})
        if len(numbers) == 1:
            (number,) = numbers
            return {number: self._engine(plan, number).up(images, rules).value}
        return graph_run.run(uncapped(plan), max(numbers), images, rules, numbers).kept

    def boxes(
        self, layer: str, positions: Tensor | Sequence[int] | Sequence[Sequence[int]], image_size: tuple[int, int]
    ) -> Tensor:
        """The receptive fields of the units at `positions` (N, 2) of `layer`, clipped to images of (height, width).

        (N, 4) int64: top, left, bottom, right; half-open. Where branches see different fields, the smallest box that
        holds them all. A vector layer's units see the whole image.
        """
        places = integers("positions", positions, 2)
        if places.size % 2:
            raise ValueError(f"positions must be (vertical, horizontal), or one such pair a unit, got {positions!r}")
        places, image_size = places.reshape(-1, 2), pair("image_size", image_size, 1)
        graph = self._graph_for(layer, image_size)
        return torch.from_numpy(graph_run.fields(graph, graph.stop(layer), places, image_size))

    def _graph_for(self, layer: str, image_size: tuple[int, ...]) -> Graph:
        """A graph that has `layer`, of images of this size if such have been seen."""
        if self.engine(layer).name == "traced" and self._planner.graph is not None:
            return self._planner.graph
        sizes = {tuple(kind[0][1:]): seen.graph for kind, seen in self._planner.seen.items()}
        return sizes.get(tuple(image_size)) or self._planner.names()

    def switchless(self, layer: str) -> bool:
        """Whether rectifiers, but no max-pooling, lie between `layer` and the pixels.

        A deconvnet projection hardly depends on the image there: no switches, no picture.
        """
        graph = self._graph_for(layer, ())
        return without_switches(graph, graph.stop(layer))

    def modules_below(self, layer: str) -> list[str]:
        """The names of the modules with weights that the value of `layer` is made with, the first used first."""
        graph = self._graph_for(layer, ())
        named = dict(self._planner.model.named_modules())
        used = dict.fromkeys(graph.node(number).module for number in graph.ancestors(graph.stop(layer)))
        return [owner for name in used for owner in _owners(name, named[name])]

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
        values: Sequence[float] | Tensor | None = None,
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
            values: what the units at `position` are, one a unit, where that is known, as from `top_activations`. They
                are taken as they are; by "deconvnet" the images then go up only to the last pool below the layer.

        Returns:
            A `Projection`. Without norms it equals the backward pass from the unit, with its value as the gradient, in
            which each ReLU's backward is replaced by a ReLU of the gradient. Where a ReLU6 makes the layer's value, the
            strongest place is that before its cap, and so is where the unit starts: most maps peak at the cap at many
            places, where its derivative is 0. The projection's `notes` tell which functions, being no rectifiers and
            not linear, kept their true derivatives; that no max-pooling lies below the layer, where a deconvnet
            projection hardly depends on the image (`image_dependence`); and which projections are all 0.

        Raises:
            ValueError, TypeError: an argument that does not fit, named; an activation that is not finite.
            RuntimeError: a batch norm in training mode; a model that does something else at each call.
            NotImplementedError: a layer that depends on the images through nothing that torch differentiates.
        """
        strength = None if strength is None else checks.number("strength", strength)
        for again in (False, True):
            plan, rules = self._planner.plan(images, [layer], again), self._rules(images, method, norm)
            units, look = named_units(plan.shape, layer, len(images), image_index, channel, position)
            known = None if values is None else known_values(values, units, look, images)
            check_fits("strength", strength, images)
            try:
                with torch.autocast(images.device.type, enabled=False):
                    return self._projected(images, layer, plan, units, look, rules, strength, known)
            except Changed:
                continue
        raise RuntimeError(CHANGES)

    def image_dependence(
        self,
        images: Tensor,
        layer: str,
        channel: int | Sequence[int] | Tensor,
        position: tuple[int, int] | Sequence[tuple[int, int]] | Tensor | None = None,
        norm: str = "identity",
        *,
        image_index: int | Sequence[int] | Tensor | None = None,
        method: str = "deconvnet",
    ) -> Tensor:
        """How much of each projection depends on the image, from 0 to 1: (N,).

        The same units, at the same places and with the same strength, are projected in the images turned upside down;
        the number is the sine of the angle between the two pictures: 0 where one is the other times a number, 1 where
        they have nothing in common (or one is empty). Arguments as of `project`.
        """
        settings: dict[str, Any] = {"image_index": image_index, "method": method, "strength": 1.0}
        there = self.project(images, layer, channel, position, norm, **settings)
        turned = self.project(images.flip(2), layer, channel, there.positions, norm, **settings)
        cosine = torch.nn.functional.cosine_similarity(there.pixels.flatten(1), turned.pixels.flatten(1))
        return (1 - cosine.square()).clamp(min=0).sqrt()

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
            ValueError: units that are named twice; and all that `project` raises.
        """
        images = one_image(image)
        alone = self.project(images, layer, channel, position, norm, method=method)
        plan, rules = self._planner.plan(images, [layer]), self._rules(images, method, norm)
        units, _ = named_units(plan.shape, layer, 1, None, channel, alone.positions)
        if len({(int(c), *map(int, place)) for _, c, place in zip(*units, strict=True)}) < len(alone.values):
            raise ValueError("channel and position must name each unit once")
        engine = self._engine(plan, plan.stops[layer])
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
        plan: Plan,
        units: Units,
        look: bool,
        rules: Rules,
        strength: float | None,
        known: Tensor | None = None,
    ) -> Projection:
        """The projections of the units, so many images and units at a time as fit into a pass."""
        engine, cap = self._engine(plan, plan.stops[layer]), plan.uncapped.get(plan.stops[layer])
        kind: dict[str, Any] = {"dtype": images.dtype, "device": images.device}
        count, device = len(units.images), images.device
        pixels = torch.empty((count, *images.shape[1:]), memory_format=torch.channels_last, **kind).zero_()
        values = torch.empty(count, **kind)
        needed, index = np.unique(units.images, return_inverse=True)
        most, up = graph_run.pass_elements(device), engine.up if known is None else engine.up_to_switches
        for part in passes(np.arange(len(needed)), graph_run.largest(plan.shapes), most):
            run = up(images if len(part) == len(images) else images[on(device, needed[part])], rules)
            here = np.flatnonzero((index >= part[0]) & (index <= part[-1]))
            for rows in passes(here, engine.unit_elements, most):
                chosen = units.take(rows)._replace(images=index[rows] - part[0])
                if look:
                    units.positions[rows] = chosen.positions[:] = strongest(run.value, chosen)
                own = at(run.value, chosen).detach() if known is None else known[on(device, rows)]
                own = own.clamp(max=cap) if cap else own
                check_finite(own, layer, chosen)
                values[on(device, rows)] = own
                sent = own if strength is None else torch.full_like(own, strength)
                engine.down(run, chosen, sent, rules, [pixels[row] for row in rows])
        stop, size = plan.stops[layer], images.shape[2:]
        boxes = torch.from_numpy(graph_run.fields(plan.graph, stop, units.positions, size)).to(device)
        told = notes(plan, layer, rules, self.rules) + empty(pixels, boxes, values, units, rules.method)
        projection = Projection(pixels, values, on(device, units.positions), boxes)
        projection.notes = told
        return projection

    def _engine(self, plan: Plan, stop: int) -> Way:
        """The way up to the value numbered `stop` and down."""
        if plan.seen is None:
            return Cones(uncapped(plan), stop, plan.shapes[: stop + 1])
        return Own(self._planner.model, self.forward, self.rules, plan.seen, stop, plan.uncapped)

    def _rules(self, images: Tensor, method: str, norm: str) -> Rules:
        if not isinstance(norm, str) or norm not in NORMS:
            raise ValueError(f"norm must be one of {', '.join(NORMS)}, got {norm!r}")
        if not isinstance(method, str) or method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        return Rules(checks.backend(None, images), method, norm)


def _owners(name: str, module: nn.Module) -> list[str]:
    """The modules with weights of their own that a call in this module reads."""
    inside = module.named_modules() if is_leaf(module) else [("", module), *_parametrizations(module)]
    named = [(".".join(filter(None, (name, path))), part) for path, part in inside]
    return [path for path, part in named if any(True for _ in part.parameters(recurse=False))]


def _parametrizations(module: nn.Module) -> list[tuple[str, nn.Module]]:
    kept = getattr(module, "parametrizations", {})
    return [(f"parametrizations.{key}", kept[key]) for key in kept]
