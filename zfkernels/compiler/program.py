"""A graph as a flat list of calls, made anew for each set of input shapes, and again when a weight has changed."""

from dataclasses import dataclass, field

import torch
from torch import fx

from .. import _C
from ..backends.prepared import PreparedFilters
from ..ops.sources import Sources
from . import kernels
from .chains import chains_of, merged
from .choice import Choice, result_shape
from .joins import Joins, Whole
from .kernels import Places, Registers, Run
from .match import Conv, steps_of
from .memory import Block, Layout, Lifetimes
from .segments import Call, segmented
from .torch_calls import attribute, described, nodes_in, of_node, result_of

MOST_PLANS = 16  # sets of input shapes whose calls are kept


@dataclass
class Plan:
    """Calls, each with the registers that nobody reads after it, and where their maps lie."""

    calls: list[tuple[Run, tuple[int, ...]]]
    layout: Layout

    def run(self, r: Registers, blocks: list[Block]) -> None:
        """In one of the blocks, or in a new one where none is free or large enough."""
        try:
            block = blocks.pop()
        except IndexError:
            block = Block(self.layout.bytes)
        if block.size < self.layout.bytes:
            block = Block(self.layout.bytes)
        r += block.of(self.layout)
        for run, dead in self.calls:
            run(r)
            for i in dead:
                r[i] = None
        blocks.append(block)


@dataclass
class Made:
    """What was made of the weights as `sources` noted them. A call keeps to one of these: when weights change under it,
    another thread's call has the next."""

    sources: Sources
    filters: dict[int, PreparedFilters] = field(default_factory=dict)
    plans: dict[tuple[object, ...], Plan] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)


class Program:
    """What torch calls in the place of the graph. It may be called from several threads."""

    def __init__(self, gm: fx.GraphModule, watch_values: bool, tune: bool) -> None:
        self.gm = gm
        self.steps = steps_of(gm.graph)
        nodes = list(gm.graph.nodes)
        inputs = [node for node in nodes if node.op == "placeholder"]
        self.place = {node: i for i, node in enumerate([*inputs, *(n for n in nodes if n.op != "placeholder")])}
        convs = [step for step in self.steps if isinstance(step, Conv)]
        self.watched = sorted({self.place[node] for step in convs for node in step.sources})
        watched = set(self.watched)
        self.data = [i for i in range(len(inputs)) if i not in watched]
        self.constants = [(self.place[node], node.target) for node in nodes if node.op == "get_attr"]
        self.steps = [step for step in self.steps if isinstance(step, Conv) or step.op != "get_attr"]
        self.joins = Joins(self.steps, len(nodes))
        self.empty = [None] * (len(nodes) - len(inputs) + len(self.joins.all))
        dead = last_reads(self.steps, nodes[-1], self.place)
        wholes = [-1 if isinstance(step, Conv) else self.joins.last_cat.get(step, -1) for step in self.steps]
        self.dead = [(*own, *([whole] if whole >= 0 else [])) for own, whole in zip(dead, wholes, strict=True)]
        self.result = result_of(nodes[-1], self.place)
        self.choice = Choice(tune)
        self.made = Made(Sources(watch_values))

    def __call__(self, *args: object) -> object:
        if torch._C._len_torch_dispatch_stack():  # a mode must see every op
            return self.gm.forward(*args)
        r: Registers = [*args, *self.empty]
        for place, name in self.constants:
            r[place] = attribute(self.gm, name)
        sources, made = [r[i] for i in self.watched], self.made
        if not made.sources.same(sources):
            made = Made(Sources(made.sources.watch_values))
            made.sources.note(sources)
            self.made = made
        threads = torch.get_num_threads()
        key = threads, _C.isa(), _C.winograd(), *[described(r, i) for i in self.data]
        plan = made.plans.get(key)
        if plan is None:
            self.record(made, key, r, threads)
        else:
            plan.run(r, made.blocks)
        return self.result(r)

    def record(self, made: Made, key: tuple[object, ...], r: Registers, threads: int) -> None:
        """Runs the graph for the first time with inputs like these, and keeps its calls."""
        calls: list[Call] = []
        lifetimes = Lifetimes()
        wholes: dict[int, Whole] = {}
        known: set[int] = set()
        for number, (step, dead) in enumerate(zip(self.steps, self.dead, strict=True)):
            if isinstance(step, Conv):
                run = self.conv(step, r, made.filters, threads, wholes)
            else:
                run = self.joins.run(step, wholes, self.place, r) or of_node(step, self.place, r, threads)
            run(r)
            for register in wholes.keys() - known:
                if r[register] is not None:
                    known.add(register)
                    lifetimes.whole(number, wholes[register].place, register, r)
            out = self.place[step.node if isinstance(step, Conv) else step]
            lifetimes.step(number, getattr(run, "makes", ()), out, r)
            for i in dead:
                r[i] = None
            lifetimes.freed(number, dead)
            calls.append((run, dead))
        if len(made.plans) >= MOST_PLANS:
            made.plans, made.blocks = {}, []
        chains = chains_of(calls)
        for chain in chains:
            lifetimes.together(chain[0], chain[-1])
        layout = lifetimes.layout(len(r))
        made.plans[key] = Plan(segmented(merged(calls, chains), layout, len(r), threads), layout)

    def conv(
        self, step: Conv, r: Registers, filters: dict[int, PreparedFilters], threads: int, wholes: dict[int, Whole]
    ) -> Run:
        at = places(step, self.place)
        if not kernels.possible(step, at, r):
            return kernels.torch_run(step, at)
        plain = step.pool is None and step.add is None
        own = filters.get(at.out) or filters.setdefault(at.out, kernels.prepared(step, at, r))
        part = self.joins.slice(step.node, wholes, result_shape(step, at, r), r[at.x].dtype) if plain else None
        ours = kernels.conv_run(step, at, r, own, threads, part)
        run = self.choice.of(step, at, r, own, ours)
        if run is not ours:  # oneDNN's filters are its own; calls of ours for other shapes keep theirs
            filters.pop(at.out, None)
        return run


def places(step: Conv, place: dict[fx.Node, int]) -> Places:
    def at(node: fx.Node | None) -> int:
        return -1 if node is None else place[node]

    norm = step.norm
    nodes = (None,) * 4 if norm is None else (norm.mean, norm.var, norm.weight, norm.bias)
    mean, var, weight, bias = map(at, nodes)
    return Places(at(step.x), at(step.weight), at(step.bias), at(step.add), at(step.node), (mean, var, weight, bias))


def last_reads(steps: list[Conv | fx.Node], output: fx.Node, place: dict[fx.Node, int]) -> list[tuple[int, ...]]:
    """For each step the registers that no later step reads, nor the graph's result."""
    seen = set(map(place.__getitem__, nodes_in(output.args)))
    dead = []
    for step in reversed(steps):
        reads = [step.x, step.add, *step.sources] if isinstance(step, Conv) else nodes_in((step.args, step.kwargs))
        now = {place[node] for node in reads if node is not None}
        now.add(place[step.node if isinstance(step, Conv) else step])
        dead.append(tuple(sorted(now - seen)))
        seen |= now
    return dead[::-1]
