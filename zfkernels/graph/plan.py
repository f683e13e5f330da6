"""How a graph is run on whole maps: its steps in order, what stands on a convolution alone fused into it."""

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from typing import NamedTuple

from ..window import as_pair
from .graph import Graph, Node
from .layer import Layer
from .steps import Add, Concat, Copy, Opaque, ReLU, Step
from .windowed import Affine, Conv, Pad, Pool

MAKES_NEW = (Layer, Add, Affine)  # whose value shares no memory with another


class Planned(NamedTuple):
    """The step that makes the value of this number out of those."""

    number: int
    step: Step | Layer
    inputs: tuple[int, ...]
    last: tuple[int, ...] = ()  # the inputs that nothing reads afterwards


class Plan(NamedTuple):
    steps: list[Planned]
    same: dict[int, int]  # the number of a wanted value -> that of the same value in the plan


def plan(graph: Graph, wanted: Collection[int]) -> Plan:
    """The way to the values numbered `wanted`. It is made once: the model's weights are no part of it."""
    key = ("plan", *sorted(set(wanted)))
    if key not in graph.known:
        graph.known[key] = _plan(graph, set(wanted))
    found: Plan = graph.known[key]
    return found


def _plan(graph: Graph, wanted: set[int]) -> Plan:
    needed = [(number, graph.node(number)) for number in graph.ancestors(*wanted)]
    same = {0: 0}  # each value -> the one that it is
    for number, node in needed:
        same[number] = same[node.inputs[0]] if isinstance(node.step, Copy) else number
    kept = {same[number] for number in wanted}
    taken = {number: tuple(same[i] for i in node.inputs) for number, node in needed if same[number] == number}
    _nest([number for number, node in needed if isinstance(node.step, Concat)], taken)
    readers = Counter(i for inputs in taken.values() for i in inputs)
    made: dict[int, Planned] = {}
    for number, node in needed:
        if same[number] != number:
            continue
        assert not isinstance(node.step, Opaque)
        inputs = taken[number]
        alone = made.get(inputs[0]) if readers[inputs[0]] == 1 and inputs[0] not in kept else None
        on = None if alone is None or not isinstance(alone.step, Layer) else _fused(alone.step, node)
        if alone is not None and on is not None:
            del made[inputs[0]]
            made[number] = Planned(number, on, alone.inputs)
        elif (
            isinstance(node.step, Conv) and alone is not None and isinstance(alone.step, Pad) and alone.step.margin == 0
        ):
            del made[inputs[0]]
            made[number] = Planned(number, Layer(_padded(node.step, alone.step)), alone.inputs)
        elif isinstance(node.step, Conv):
            made[number] = Planned(number, Layer(node.step), inputs)
        elif isinstance(node.step, ReLU) and alone is not None and isinstance(alone.step, MAKES_NEW):
            made[number] = Planned(number, replace(node.step, in_place=True), inputs)
        elif isinstance(node.step, Add):
            own = [i for i in inputs if readers[i] == 1 and i not in kept and _makes_alone(made.get(i))]
            step = replace(node.step, into=inputs.index(own[0])) if own else node.step
            made[number] = Planned(number, step, inputs)
        else:
            made[number] = Planned(number, node.step, inputs)
    return Plan(_with_last(_with_exact(list(made.values())), kept), {number: same[number] for number in wanted})


def _makes_alone(planned: Planned | None) -> bool:
    """Whether its value is new memory that no record holds."""
    step = None if planned is None else planned.step
    return isinstance(step, MAKES_NEW) and not (isinstance(step, Layer) and step.rectify)


def _padded(conv: Conv, pad: Pad) -> Conv:
    """The convolution with the zeros that stand before it as its own."""
    before, after = (
        as_pair(own[a] + more[a] for a in (0, 1)) for own, more in ((conv.before, pad.before), (conv.after, pad.after))
    )
    return replace(conv, before=before, after=after)


def _nest(concats: list[int], taken: dict[int, tuple[int, ...]]) -> None:
    """Let a concatenation that begins with all that an earlier one joins take that one's value instead: on the way down
    the signals of a dense block's values are then summed together, not each for itself.
    """
    earlier: dict[tuple[int, ...], int] = {}
    for number in concats:
        inputs = taken[number]
        start = next((n for n in range(len(inputs) - 1, 1, -1) if inputs[:n] in earlier), None)
        earlier.setdefault(inputs, number)
        if start is not None:
            taken[number] = (earlier[inputs[:start]], *inputs[start:])


def _fused(layer: Layer, node: Node) -> Layer | None:
    """The layer with one more step on it, if one kernel does both."""
    step = node.step
    if layer.pool is not None:
        return None
    if isinstance(step, Affine) and not layer.rectify:
        return replace(layer, batch_norms=(*layer.batch_norms, step))
    if isinstance(step, ReLU) and step.slope == 0 and not layer.rectify:
        return replace(layer, rectify=True, cap=step.cap)
    if isinstance(step, Pool) and layer.cap == math.inf:
        return replace(layer, pool=step)
    return None


def _with_exact(steps: list[Planned]) -> list[Planned]:
    """The steps, with those layers marked that a max-pool's value is made of."""
    below: set[int] = set()
    result = []
    for planned in reversed(steps):
        step = planned.step
        if planned.number in below or isinstance(step, Pool) or (isinstance(step, Layer) and step.pool is not None):
            below.update(planned.inputs)
            planned = planned._replace(step=replace(step, exact=True)) if isinstance(step, Layer) else planned
        result.append(planned)
    return result[::-1]


def _with_last(steps: list[Planned], kept: set[int]) -> list[Planned]:
    """The steps, each with the inputs that may be dropped after it."""
    seen, result = set(kept), []
    for planned in reversed(steps):
        last = set(planned.inputs) - seen
        seen |= last
        result.append(planned._replace(last=tuple(last)))
    return result[::-1]
