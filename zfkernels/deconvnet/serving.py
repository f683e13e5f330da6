"""Which engine serves a layer: the traced graph where it is certain to be the model, else the model's own forward."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import torch
from torch import Size, Tensor, nn

from ..graph.graph import Graph
from ..graph.marks import marks
from ..graph.rules import Rules, Shapes
from ..graph.steps import ReLU
from ..graph.trace import trace, unwrapped
from ..graph.watch import Seen
from ..models.modes import evaluation
from ..ops import checks
from .forward import Forward, see, sizes
from .units import Units

SIZES = (224, 64, 32, 28, 299, 384, 512)  # of the images tried where the model does not say what it takes
# What a seen pass depends on besides the model
Kind = tuple[Size, torch.dtype, torch.device, int]


class Engine(NamedTuple):
    """What serves a layer."""

    name: str  # "traced" (cones of what torch.fx saw) or "own forward" (autograd through the model as it is)
    why: str  # why it is not "traced"; "" if it is


class Plan(NamedTuple):
    """How some layers' values are made of some images."""

    graph: Graph
    stops: dict[str, int]  # the number of each layer's value
    shapes: Shapes  # of the graph's values, up to the last stop, for these images
    seen: Seen | None  # the pass that the graph was seen in, where the model's own forward serves
    why: str
    uncapped: dict[int, float | None]  # those of the stops that a ReLU6, or another capped rectifier, makes -> its cap

    @property
    def shape(self) -> Size:
        """Of the last stop's value."""
        shape = self.shapes[-1]
        assert shape is not None
        return shape


class Way(Protocol):
    """Up to a layer's value and down from its units: `Cones` and `Own`, each with runs of its own kind."""

    unit_elements: int

    def up(self, images: Tensor, rules: Rules) -> Any: ...

    def up_to_switches(self, images: Tensor, rules: Rules) -> Any: ...

    def down(self, run: Any, units: Units, values: Tensor, rules: Rules, pixels: Sequence[Tensor]) -> None: ...

    def down_together(self, run: Any, units: Units, values: Tensor, rules: Rules) -> Tensor: ...


@dataclass
class Planner:
    """Traces and watches a model when it is needed, and again when the model is no longer what it was."""

    model: nn.Module  # unwrapped
    forward: Forward | None
    overrides: Mapping[object, str]
    marks: list[tuple[object, ...]] | None = None
    graph: Graph | None = None
    why: str = ""
    seen: dict[Kind, Seen] = field(default_factory=dict)

    def refresh(self) -> None:
        """Trace the model, unless it is as it was."""
        if (now := marks(self.model)) == self.marks:
            return
        self.marks, self.graph, self.seen, self.why = now, None, {}, ""
        if self.forward is not None or self.overrides:
            self.why = f"{'forward=' if self.forward is not None else 'rules='} was given"
            return
        try:
            self.graph = trace(self.model)
        except NotImplementedError as error:
            self.why = str(error)

    def names(self) -> Graph:
        """A graph that has all layers."""
        self.refresh()
        if self.graph is not None and not any(node.doubt for node in self.graph.nodes):
            return self.graph
        if self.seen:
            return next(iter(self.seen.values())).graph
        graph = self._example()
        if graph is not None:
            return graph
        # No size that was tried suits it: the modules' names, until images come.
        return self.graph or Graph(layers={name: 0 for name, _ in self.model.named_modules() if name})

    def distinct(self) -> tuple[str, ...]:
        """The layers that make maps, of several names of one value the first module's, or the first."""
        modules = {name for name, _ in self.model.named_modules()}
        chosen: dict[object, str] = {}
        for name, value in self.names().layers.items():
            key = value or name  # 0: of a model that was not traced nothing is known but names
            if chosen.setdefault(key, name) not in modules and name in modules:
                chosen[key] = name
        return tuple(chosen.values())

    def _example(self) -> Graph | None:
        """The graph of a pass of black images of a size that the model takes."""
        first = next((m for m in self.model.modules() if isinstance(m, nn.Conv2d)), None)
        like = next(self.model.parameters(), torch.empty(0))
        known = getattr(self.model, "image_size", None) or getattr(self.model, "default_cfg", {}).get("input_size")
        tried = [*([tuple(known)[-2:]] if isinstance(known, (tuple, list)) else []), *((side, side) for side in SIZES)]
        for size in tried:
            images = like.new_zeros(2, 3 if first is None else first.in_channels, *size).detach()
            try:
                with evaluation(self.model):
                    return self.watch(images).graph
            except ValueError:
                continue
        return None

    def watch(self, images: Tensor, keep: bool = True) -> Seen:
        """What the model's own forward does with the first of these images (with all unless it is to be kept).

        The first two, for models that squeeze what they make of one.
        """
        kind = images.shape[1:], images.dtype, images.device, min(len(images), 2)
        if not keep or kind not in self.seen:
            sample = images[:2] if keep and len(images) else images
            sample = sample if len(sample) else images.new_zeros(1, *images.shape[1:])
            rules = Rules(checks.backend(None, images), "gradient")
            seen = see(self.model, self.forward, sample, rules, self.overrides)
            if not keep:
                return seen
            self.seen[kind] = seen
        return self.seen[kind]

    def plan(self, images: Tensor, layers: Sequence[str], again: bool = False) -> Plan:
        """`again`: the model did something else than when it was watched, so it is watched on all of these images.

        ValueError for images that do not suit, and for a name that is no layer's.
        """
        checks.tensor("images", images, ("N", "C", "H", "W"))
        checks.alike("images", images, "the model", next(self.model.parameters(), images))
        if images.is_meta:
            raise ValueError("images must hold values, got a tensor on the meta device")
        self.refresh()
        graph = self.graph
        why: str | None = self.why
        if graph is not None and all(graph.has(layer) for layer in layers):
            stops = {layer: graph.stop(layer) for layer in layers}
            why = graph.doubt(*stops.values())
            if why is None:
                try:
                    return _plan(graph, stops, graph.shapes(images.shape, *stops.values()), None, "")
                except NotImplementedError as error:
                    why = str(error)
        seen = self.watch(images, not again)
        if not all(seen.graph.has(layer) for layer in layers):  # these images may take another way
            seen = self.watch(images, keep=False)
        stops = {layer: seen.graph.stop(layer) for layer in layers}
        return _plan(seen.graph, stops, sizes(seen, len(images))[: max(stops.values()) + 1], seen, why or "")

    def engine(self, layer: str) -> Engine:
        self.refresh()
        if self.graph is not None and self.graph.has(layer):
            why = self.graph.doubt(self.graph.stop(layer))
        else:
            self.names().stop(layer)
            why = self.why or f"torch.fx sees no layer {layer!r}"
        return Engine("own forward", why) if why else Engine("traced", "")


def _plan(graph: Graph, stops: dict[str, int], shapes: Shapes, seen: Seen | None, why: str) -> Plan:
    steps = {n: graph.node(n).step for n in stops.values()}
    capped: dict[int, float | None] = {
        n: step.cap for n, step in steps.items() if isinstance(step, ReLU) and step.cap < float("inf")
    }
    return Plan(graph, stops, shapes, seen, why, capped)


def uncapped(plan: Plan) -> Graph:
    """The graph with the rectifiers that make capped layers' values without their caps."""
    if not plan.uncapped:
        return plan.graph
    key = ("uncapped", *sorted(plan.uncapped))
    if key not in plan.graph.known:
        nodes = list(plan.graph.nodes)
        for number in plan.uncapped:
            step = nodes[number - 1].step
            assert isinstance(step, ReLU)
            nodes[number - 1] = replace(nodes[number - 1], step=replace(step, cap=float("inf")))
        plan.graph.known[key] = replace(plan.graph, nodes=nodes, known={})
    found: Graph = plan.graph.known[key]
    return found


def checked(model: nn.Module) -> nn.Module:
    """The model to look into, refused where nothing can come down through it."""
    inner = unwrapped(model)
    for name, module in inner.named_modules():
        kind = f"{type(inner).__name__}{f' has {name!r}, which' if name else ''}"
        if isinstance(module, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
            raise TypeError(f"model must be a Python module: {kind} is scripted (torch.jit); pass what it was made of")
        if "quantized" in type(module).__module__:
            raise TypeError(f"model must have floating-point layers: {kind} is quantized; pass the model before that")
    meta = [name for name, value in inner.named_parameters() if value.is_meta]
    if meta:
        raise ValueError(
            f"model's parameters must hold values: {meta[0]!r} is on the meta device; call "
            "model.to_empty(device='cpu') and load its weights first"
        )
    return inner


def check_overrides(rules: Mapping[object, str] | None, allowed: Sequence[str]) -> Mapping[object, str]:
    rules = {} if rules is None else rules
    if not isinstance(rules, Mapping):
        raise TypeError(f"rules must be a dict from module classes or functions to {allowed}, got {rules!r}")
    for key, value in rules.items():
        if value not in allowed or not callable(key):
            raise ValueError(f"rules must map module classes or functions to one of {allowed}, got {key!r}: {value!r}")
    return dict(rules)
