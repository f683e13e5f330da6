"""Where the maps of a graph lie: one block of memory for all that live only inside a call, kept from call to call.

Fresh memory for each map would be taken from the system and given back again at every call (a map of 32 MB and more
always is), which for small networks of large maps takes a third of the time. Lifetimes are seen when the graph runs for
the first time with inputs of some shapes: a map's memory is used until the last register that shares it was read.
What the graph gives back is no part of the block. One block serves all shapes of inputs, in turn.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from .. import _C

LINE = 256  # bytes; a map begins at a multiple
PAGE = 2 << 20
PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device)  # they hold no memory


@dataclass
class Place:
    """Memory of this form: `slot` is the register that holds it, or -1 where each call takes fresh memory."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    slot: int = -1

    def of(self, r: list[Any], like: Tensor) -> Tensor:
        if self.slot >= 0:
            place: Tensor = r[self.slot]
            return place
        return like.new_empty_strided(self.shape, self.strides, dtype=self.dtype)

    def fresh(self) -> Tensor:
        return torch.empty_strided(self.shape, self.strides, dtype=self.dtype)

    @property
    def bytes(self) -> int:
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        return -(-(last + 1) * self.dtype.itemsize // LINE) * LINE


@dataclass
class Slice:
    """The channels [begin, end) of the whole that is in `register`, or will be once `place` has given its memory."""

    register: int
    place: Place
    begin: int
    end: int

    def of(self, r: list[Any], like: Tensor) -> Tensor:
        whole: Tensor | None = r[self.register]
        if whole is None:
            whole = r[self.register] = self.place.of(r, like)
        return whole[:, self.begin : self.end]

    @property
    def pitch(self) -> int:
        """Elements from one pixel to the next."""
        return self.place.shape[1]


@dataclass
class Life:
    """A place, the step that fills it, the last that reads it, and the registers that share its memory now."""

    place: Place
    made: int
    last: int | None = None
    registers: set[int] = field(default_factory=set)


class Lifetimes:
    """Watches a graph's first run."""

    def __init__(self) -> None:
        self.lives: list[Life] = []
        self.owner: dict[int, Life] = {}  # by the address of memory in use

    def step(self, number: int, made: tuple[Place, ...], out: int, r: list[Any]) -> None:
        """Step `number` has filled register `out`; the first of `made`'s memory is that register's own."""
        values = tree_leaves(r[out])
        for place in made:
            life = Life(place, number)
            self.lives.append(life)
            self.owner[address(r[out])] = life
        if not all(isinstance(v, (Tensor, *PLAIN)) for v in values):  # who knows what it holds
            self.owner.clear()
        for value in values:
            if type(value) is Tensor and value.layout == torch.strided and (of := self.owner.get(address(value))):
                of.registers.add(out)

    def whole(self, number: int, place: Place, register: int, r: list[Any]) -> None:
        """Step `number` has taken memory for a map that later steps fill, and `register` holds."""
        life = Life(place, number, registers={register})
        self.lives.append(life)
        self.owner[address(r[register])] = life

    def freed(self, number: int, dead: tuple[int, ...]) -> None:
        """After step `number` nobody reads these registers."""
        for key, life in list(self.owner.items()):
            if life.registers & set(dead):
                life.registers -= set(dead)
                if not life.registers:
                    life.last = number
                    del self.owner[key]

    def together(self, first: int, last: int) -> None:
        """Steps `first` to `last` will be one: what any of them reads is read until the end."""
        for life in self.lives:
            if life.last is not None and first <= life.last < last:
                life.last = last

    def layout(self, first_slot: int) -> "Layout":
        """Gives the places that can share a block theirs in it: the largest first, each at the lowest free address."""
        lives = sorted((life for life in self.lives if life.last is not None), key=lambda life: -life.place.bytes)
        taken: list[tuple[int, Life]] = []
        for life in lives:
            rivals = [(at, o) for at, o in taken if o.made <= (life.last or 0) and life.made <= (o.last or 0)]
            at = 0
            for begin, other in sorted(rivals, key=lambda rival: rival[0]):
                if begin - at >= life.place.bytes:
                    break
                at = max(at, begin + other.place.bytes)
            taken.append((at, life))
        for slot, (_, life) in enumerate(taken):
            life.place.slot = first_slot + slot
        return Layout([(at, life.place) for at, life in taken])


@dataclass(eq=False)
class Layout:
    """Places and their addresses in a block, in the order of their registers."""

    places: list[tuple[int, Place]]

    @property
    def bytes(self) -> int:
        return max((at + place.bytes for at, place in self.places), default=0)


class Block:
    """Memory of `size` bytes, and the tensors that layouts have in it. One call at a time uses it."""

    @torch.inference_mode(False)
    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = torch.empty(size + PAGE, dtype=torch.uint8)
        _C.prefer_huge_pages(self.memory.data_ptr(), self.memory.nbytes)
        self.start = -self.memory.data_ptr() % (PAGE if size >= PAGE else LINE)
        self.tensors: dict[Layout, list[Tensor]] = {}

    @torch.inference_mode(False)
    def of(self, layout: Layout) -> list[Tensor]:
        found = self.tensors.get(layout)
        if found is None:
            storage = self.memory.untyped_storage()
            found = self.tensors[layout] = [tensor_at(storage, self.start + at, p) for at, p in layout.places]
        return found


def tensor_at(storage: torch.UntypedStorage, at: int, place: Place) -> Tensor:
    empty = torch.empty(0, dtype=place.dtype)
    return empty.set_(storage, at // place.dtype.itemsize, place.shape, place.strides)


def address(value: Tensor) -> int:
    return value.untyped_storage().data_ptr()
