"""A traced model: its values, the nodes that make them, its layers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Size

from ..words import nearest
from .rules import Shapes, irreversible, told
from .steps import Flatten, Linear, Mean, Opaque, Step
from .windowed import Affine, Conv


@dataclass(frozen=True)
class Node:
    """One step on the values numbered `inputs`."""

    name: str
    step: Step | Opaque
    inputs: tuple[int, ...]
    role: str  # "layer": it begins one; "part": it belongs to that of its input; "between": to none
    module: str = ""  # the innermost module that runs it
    doubt: str | None = None  # why it may not be what the model does


@dataclass
class Graph:
    """A model's values: number 0 is the images, number i + 1 what `nodes[i]` makes; each is made before it is used."""

    nodes: list[Node] = field(default_factory=list)
    layers: dict[str, int] = field(default_factory=dict)  # the number of each layer's value; those that make maps
    vector_layers: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    submodules: dict[str, int] = field(default_factory=dict)  # the value that each submodule gave last
    output: int | None = None  # the model's, if it is one value
    # What others worked out of it
    known: dict[tuple[object, ...], Any] = field(default_factory=dict, repr=False, compare=False)

    def stop(self, layer: object) -> int:
        """The number of the value of `layer`, a layer's name or an alias of it."""
        stops = self.layers | self.vector_layers
        name = self.aliases.get(layer, layer) if isinstance(layer, str) else None
        if name not in stops:
            near = nearest(str(layer), [*stops, *self.aliases])
            raise ValueError(f"layer must be one of {', '.join(stops)}, got {layer!r}{near}")
        return stops[name]

    def has(self, layer: object) -> bool:
        return isinstance(layer, str) and self.aliases.get(layer, layer) in self.layers | self.vector_layers

    def node(self, value: int) -> Node:
        """The node that makes a value."""
        return self.nodes[value - 1]

    def ancestors(self, *values: int) -> list[int]:
        """The numbers of the values that `values` are made of, themselves included and the images not, in order."""
        needed = set(values)
        for number in reversed(range(1, max(values) + 1)):
            if number in needed:
                needed.update(self.node(number).inputs)
        return sorted(needed - {0})

    def doubt(self, *values: int) -> str | None:
        """Why what `values` are made of may not be what the model does, or None."""
        return next((doubt for number in self.ancestors(*values) if (doubt := self.node(number).doubt)), None)

    def shapes(self, images: Size, *values: int) -> Shapes:
        """The shape of each value that `values` are made of, by number, up to the last of them.

        ValueError for images that do not suit a step, NotImplementedError where one cannot be reversed for them.
        """
        shapes: Shapes = [images] + [None] * max(values)
        for number in self.ancestors(*values):
            node, step = self.node(number), self.node(number).step
            assert not isinstance(step, Opaque)
            inputs = [shape for i in node.inputs if (shape := shapes[i]) is not None]
            if step.maps and len(inputs[0]) != 4:
                why = f"it works on maps, but {told(inputs, shapes)}"
                raise irreversible(step.name, type(step).__name__, why)
            shapes[number] = step.shape(inputs, shapes)
        return shapes


def name_layers(graph: Graph, passed: dict[str, int]) -> set[int]:
    """Give each layer's name the number of its value, that after the batch norm and the ReLU that alone follow it.

    Gives the numbers of the values that are vectors. `passed`: what changes nothing, by name -> the value that passes.
    """
    readers = [0] * (len(graph.nodes) + 1)
    for node in graph.nodes:
        for number in node.inputs:
            readers[number] += 1
    owner: dict[int, str] = {}  # a value -> the layer whose value it is, or was
    vectors: set[int] = set()
    for number, node in enumerate(graph.nodes, 1):
        before, role = node.inputs[0], node.role
        if before in vectors or isinstance(node.step, (Flatten, Linear, Mean)):
            vectors.add(number)
        stops = graph.vector_layers if number in vectors else graph.layers
        if isinstance(node.step, Affine) and before:
            role = "part" if isinstance(graph.node(before).step, (Conv, Linear)) else "layer"
        if role == "part" and before not in owner:
            continue
        if role == "part" and readers[before] == 1:
            owner[number] = owner[before]
            stops[owner[before]] = number
            graph.aliases[node.name] = owner[before]
        elif role != "between":
            owner[number] = node.name
            stops[node.name] = number
    graph.aliases |= {name: owner[number] for name, number in passed.items() if number in owner}
    return vectors


def name_modules(graph: Graph, results: dict[str, int], dimensions: Callable[[int], int]) -> None:
    """Make every module's name that is none yet the name of the value that it gave, and put all names in order.

    `results`: the value of each module, of a leaf the first; `dimensions` of a value: 4 for maps, 2 for vectors. What
    has others is no layer.
    """
    stops = graph.layers | graph.vector_layers
    for name, number in results.items():
        if number and name not in graph.aliases and stops.get(name, 0) < number:
            stops[name] = number
    ordered = sorted(stops.items(), key=lambda item: item[1])
    graph.layers = {name: number for name, number in ordered if dimensions(number) == 4}
    graph.vector_layers = {name: number for name, number in ordered if dimensions(number) == 2}
