"""Concatenations of maps that nobody copies: the convolutions that make their parts write into the whole.

In a channels-last map the channels of a pixel are neighbours, and our kernels read and write pixels any distance apart.
So the parts of `torch.cat(maps, 1)` are slices of one map, and so is each concatenation whose parts are the first of a
longer one's (every layer of a dense block reads one). Parts that no kernel of ours makes are copied into their slices.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from .graph import argument, function
from .match import Conv
from .memory import Place, Slice, address
from .segments import Native

CATS = (torch.cat, torch.concat)


@dataclass
class Join:
    """A whole map: the nodes that are its parts, in order, and the concatenations that are its first channels."""

    register: int  # that holds it while a call needs it
    parts: list[fx.Node]
    cats: list[fx.Node] = field(default_factory=list)


def joins_of(steps: list[Conv | fx.Node], first_register: int) -> list[Join]:
    """The concatenations of maps along their channels, each node a part of at most one whole."""
    joins: list[Join] = []
    taken: set[fx.Node] = set()
    for node in (step for step in steps if not isinstance(step, Conv)):
        parts = parts_of(node)
        if parts is None:
            continue
        longer = next((j for j in joins if j.parts == parts[: len(j.parts)]), None)
        new = parts if longer is None else parts[len(longer.parts) :]
        if len(set(new)) < len(new) or taken & set(new):
            continue
        if longer is None:
            joins.append(longer := Join(first_register + len(joins), []))
        taken |= set(new)
        longer.parts += new
        longer.cats.append(node)
    return joins


def parts_of(node: fx.Node) -> list[fx.Node] | None:
    if (
        function(node) not in CATS
        or set(node.kwargs) - {"dim", "tensors"}
        or argument(node, 1, "dim", 0) not in (1, -3)
    ):
        return None
    parts = argument(node, 0, "tensors")
    if not isinstance(parts, (list, tuple)) or len(parts) < 2 or not all(isinstance(p, fx.Node) for p in parts):
        return None
    values = [p.meta.get("example_value") for p in (*parts, node)]
    whole = all(isinstance(v, Tensor) and v.ndim == 4 for v in values) and len({v.dtype for v in values}) == 1
    return list(parts) if whole and all(isinstance(v.shape[1], int) for v in values) else None


def channels(nodes: list[fx.Node]) -> int:
    return sum(node.meta["example_value"].shape[1] for node in nodes)


@dataclass
class Whole:
    """A join as a plan has it: its memory's form, and how many of its parts lie there by now."""

    place: Place
    filled: int = 0


class Joins:
    """A program's, and where a plan has them (`wholes`, by their registers)."""

    def __init__(self, steps: list[Conv | fx.Node], first_register: int) -> None:
        self.all = joins_of(steps, first_register)
        self.of_part = {part: join for join in self.all for part in join.parts}
        self.of_cat = {cat: join for join in self.all for cat in join.cats}
        self.last_cat = {join.cats[-1]: join.register for join in self.all}

    def slice(
        self, node: fx.Node, wholes: dict[int, Whole], shape: tuple[int, ...], dtype: torch.dtype
    ) -> Slice | None:
        """Where a node's result of this shape belongs, if it is a part."""
        join = self.of_part.get(node)
        if join is None:
            return None
        whole = whole_of(join, wholes, shape, dtype)
        begin = channels(join.parts[: join.parts.index(node)])
        return Slice(join.register, whole.place, begin, begin + shape[1]) if fits(whole, shape, dtype) else None

    def run(
        self, cat: fx.Node, wholes: dict[int, Whole], place: dict[fx.Node, int], r: list[Any]
    ) -> Callable[[list[Any]], None] | None:
        """A concatenation as a call, which copies what is not where it belongs; None where it is none of these."""
        join, parts = self.of_cat.get(cat), parts_of(cat)
        if join is None or parts is None:
            return None
        out = place[cat]
        values = [r[place[part]] for part in parts]
        whole = whole_of(join, wholes, values[0].shape, values[0].dtype)
        if any(type(v) is not Tensor or not fits(whole, v.shape, v.dtype) for v in values):
            return None
        held, copied, end = r[join.register], [], 0
        for i, (part, value) in enumerate(zip(parts, values, strict=True)):
            begin, end = end, end + value.shape[1]
            if i >= whole.filled and (held is None or address(value) != address(held)):
                copied.append((place[part], Slice(join.register, whole.place, begin, end)))
        whole.filled = len(parts)
        first, all_of = place[parts[0]], Slice(join.register, whole.place, 0, end)

        def run(r: list[Any]) -> None:
            r[out] = all_of.of(r, r[first])
            for i, where in copied:
                where.of(r, r[i]).copy_(r[i])

        kept: Any = run
        kept.native = None if copied else Native((), out, all_of, lambda *_: None)
        return run


def whole_of(join: Join, wholes: dict[int, Whole], shape: tuple[int, ...], dtype: torch.dtype) -> Whole:
    """The join's, made for a part of this shape if there is none yet."""
    if join.register not in wholes:
        n, _, height, width = shape
        count = channels(join.parts)
        row = width * count
        wholes[join.register] = Whole(Place((n, count, height, width), (height * row, 1, row, count), dtype))
    return wholes[join.register]


def fits(whole: Whole, shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    n, _, height, width = whole.place.shape
    return (shape[0], *shape[2:]) == (n, height, width) and dtype == whole.place.dtype
