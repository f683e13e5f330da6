"""nodes, layers, chains."""

from dataclasses import dataclass, field, replace

import torch

from .steps import Affine, Average, Conv, Flatten, Linear, Mean, Norm, Pool, ReLU, Step, shape_after


def _stop(traced: "Chain | Graph", layer: object) -> int:
    stops = traced.layers | traced.vector_layers
    name = traced.aliases.get(layer, layer) if isinstance(layer, str) else None
    if name not in stops:
        raise ValueError(f"layer must be one of {', '.join(stops)}, got {layer!r}")
    return stops[name]


@dataclass
class Chain:
    """The steps in the order in which they run, and how many of them give each layer's value."""

    steps: list[Step] = field(default_factory=list)
    layers: dict[str, int] = field(default_factory=dict)  # those that make maps
    vector_layers: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def stop(self, layer: object) -> int:
        """How many steps give the value of `layer`, a layer's name or an alias of it."""
        return _stop(self, layer)

    def shapes(self, images: torch.Size, stop: int) -> list[torch.Size]:
        """The shape of the images and of the value after each of the first `stop` steps.

        ValueError for images that do not suit a step, NotImplementedError where one cannot be reversed for them.
        """
        shapes = [images]
        for step in self.steps[:stop]:
            shapes.append(shape_after(step, [shapes[-1]], shapes))
        return shapes


@dataclass(frozen=True)
class Node:
    """Steps that run one after another on the values numbered `inputs`."""

    name: str
    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    role: str  # "layer": it begins one; "part": it belongs to that of its input; "between": to none


@dataclass
class Graph:
    """A model's values: number 0 is the images, number i + 1 what `nodes[i]` makes; each is made before it is used."""

    nodes: list[Node] = field(default_factory=list)
    layers: dict[str, int] = field(default_factory=dict)  # the number of each layer's value; those that make maps
    vector_layers: dict[str, int] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    submodules: dict[str, int] = field(default_factory=dict)  # the value that each submodule gave last
    output: int | None = None  # the model's, if it is one value

    def stop(self, layer: object) -> int:
        """The number of the value of `layer`, a layer's name or an alias of it."""
        return _stop(self, layer)

    def ancestors(self, *values: int) -> list[int]:
        """The numbers of the values, the images but for, that `values` are made of, themselves included, in order."""
        needed = set(values)
        for number in reversed(range(1, max(values) + 1)):
            if number in needed:
                needed.update(self.nodes[number - 1].inputs)
        return sorted(needed - {0})

    def shapes(self, images: torch.Size, *values: int) -> list[torch.Size | None]:
        """The shape of each value that `values` are made of, by number, up to the last of them.

        ValueError for images that do not suit a step, NotImplementedError where one cannot be reversed for them.
        """
        shapes: list[torch.Size | None] = [images] + [None] * max(values)
        for number in self.ancestors(*values):
            node = self.nodes[number - 1]
            shape = [shapes[i] for i in node.inputs]
            for step in node.steps:
                shape = [shape_after(step, shape, shapes)]
            shapes[number] = shape[0]
        return shapes


def _name_layers(graph: Graph, passed: dict[str, int]) -> None:
    """Give each layer's name the number of its value, that after the batch norm and the ReLU that alone follow it."""
    readers = [0] * (len(graph.nodes) + 1)
    for node in graph.nodes:
        for number in node.inputs:
            readers[number] += 1
    owner: dict[int, str] = {}  # a value -> the layer whose value it is, or was
    vectors: set[int] = set()
    for number, node in enumerate(graph.nodes, 1):
        before, role = node.inputs[0], node.role
        if before in vectors or any(isinstance(step, (Flatten, Linear, Mean)) for step in node.steps):
            vectors.add(number)
        stops = graph.vector_layers if number in vectors else graph.layers
        if len(node.steps) == 1 and isinstance(node.steps[0], Affine) and before:
            below = graph.nodes[before - 1].steps
            role = "part" if below and isinstance(below[-1], (Conv, Linear)) else "layer"
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


def _chain(graph: Graph) -> Chain | None:
    """The same as a chain, batch norms folded into convolutions; None where it branches or has other steps."""
    steps: list[Step] = []
    ends = [0]  # how many steps give each value
    for number, node in enumerate(graph.nodes, 1):
        if node.inputs != (number - 1,) or not all(_in_chains(step) for step in node.steps):
            return None
        folded = isinstance(node.steps[0], Affine) and node.name in graph.aliases if node.steps else False
        if folded and isinstance(steps[-1], Conv):
            steps[-1] = replace(steps[-1], batch_norms=(*steps[-1].batch_norms, node.steps[0]))
        else:
            steps += [_by_steps(step, tuple(ends)) if isinstance(step, Flatten) else step for step in node.steps]
        ends.append(len(steps))
    layers, vector_layers = (
        {name: ends[number] for name, number in stops.items()} for stops in (graph.layers, graph.vector_layers)
    )
    return Chain(steps, layers, vector_layers, graph.aliases)


def _in_chains(step: Step) -> bool:
    if isinstance(step, ReLU):
        return step == ReLU(step.name)
    return isinstance(step, (Conv, Pool, Norm, Affine, Average, Flatten, Linear))


def _by_steps(step: Flatten, ends: tuple[int, ...]) -> Flatten:
    """The same, of shapes by a chain's step instead of by a graph's value."""
    return replace(step, reshaped=lambda before, shapes: step.reshaped(before, [shapes[end] for end in ends]))
