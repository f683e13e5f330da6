"""Calls of kernels that follow one another, as one call: neither Python nor a fork of threads stands between them.

A kernel's call is data (`Native`): which registers it reads, where its result lies, and how it is put on a list of
`_C.Calls`. Registers that only the calls of a segment read never hold a tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .. import _C
from .memory import Layout, Place, Slice

Registers = list[Any]
Run = Callable[[Registers], None]
Call = tuple[Run, tuple[int, ...]]  # and the registers that nobody reads after it
Operand = tuple[int, int]  # a base's number and bytes from there
NONE: Operand = (-1, 0)


@dataclass(frozen=True)
class Link:
    """A convolution by direct sums or of each channel by itself, as a part of a chain (chains.py)."""

    f64: bool
    sizes: tuple[int, ...]
    weight: int
    packed: int
    bias: int
    relu: bool
    cap: float
    x_pitch: int
    y_pitch: int
    kernel: str

    @property
    def pointwise(self) -> bool:
        return self.kernel == "direct" and self.sizes[7:13] == (1, 1, 1, 1, 0, 0)

    @property
    def map_bytes(self) -> int:
        """Of its map of one image."""
        maps, height, width = self.sizes[4:7]
        return maps * height * width * (8 if self.f64 else 4)


@dataclass
class Native:
    """One kernel's call. put(calls, reads, result) gets operands."""

    reads: tuple[int, ...]
    out: int
    to: Place | Slice
    put: Callable[[_C.Calls, list[Operand], Operand], None]
    link: Link | None = None


@dataclass
class Segment:
    """Native calls in the making, and later their one call."""

    layout: Layout
    first_slot: int
    threads: int
    calls: _C.Calls = field(default_factory=_C.Calls)
    read: list[int] = field(default_factory=list)  # registers whose addresses each run looks up
    fresh: list[tuple[int, Place]] = field(default_factory=list)  # that it takes memory for
    known: dict[int, Operand] = field(default_factory=dict)
    shown: dict[int, tuple[int, Slice | None]] = field(default_factory=dict)  # who has the memory; its part
    dead: set[int] = field(default_factory=set)

    def add(self, native: Native, dead: tuple[int, ...]) -> None:
        reads = [self.operand(i) for i in native.reads]
        native.put(self.calls, reads, self.result(native.out, native.to))
        self.dead |= set(dead)

    def operand(self, register: int) -> Operand:
        if register < 0:
            return NONE
        if register not in self.known:
            self.known[register] = 1 + len(self.read), 0
            self.read.append(register)
        return self.known[register]

    def placed(self, place: Place) -> Operand:
        return 0, self.layout.places[place.slot - self.first_slot][0]

    def result(self, out: int, to: Place | Slice) -> Operand:
        register, place = (out, to) if isinstance(to, Place) else (to.register, to.place)
        if register not in self.known:
            if place.slot >= 0:
                self.known[register] = self.placed(place)
                self.shown[register] = place.slot, None
            else:
                self.fresh.append((register, place))
                self.operand(register)
        base, offset = self.known[register]
        if isinstance(to, Slice):
            offset += to.begin * place.dtype.itemsize
            self.known[out] = base, offset
            self.shown[out] = register if place.slot < 0 else place.slot, to
        return base, offset

    def done(self, members: list[Run]) -> Call:
        """The call, and the registers that nobody reads after it. It holds its members, for they hold the filters."""
        read, fresh, run_calls, threads = self.read, self.fresh, self.calls.run, self.threads
        shown = [(out, at, part) for out, (at, part) in self.shown.items() if out not in self.dead]
        slot, start = (self.first_slot, self.layout.places[0][0]) if self.layout.places else (-1, 0)

        def run(r: Registers) -> None:
            for register, place in fresh:
                if r[register] is None:
                    r[register] = place.fresh()
            block = r[slot].data_ptr() - start if slot >= 0 else 0
            run_calls([block, *[r[i].data_ptr() for i in read]], threads)
            for out, at, part in shown:
                value: Tensor = r[at]
                r[out] = value if part is None else value[:, part.begin : part.end]

        kept: Any = run
        kept.members = members
        return run, tuple(self.dead)


def segmented(calls: list[Call], layout: Layout, first_slot: int, threads: int) -> list[Call]:
    """The calls with each two or more native ones in a row as one."""
    result: list[Call] = []
    row: list[Call] = []

    def close() -> None:
        if len(row) < 2:
            result.extend(row)
        else:
            segment = Segment(layout, first_slot, threads)
            for run, dead in row:
                segment.add(run.native, dead)  # type: ignore[attr-defined]
            result.append(segment.done([run for run, _ in row]))
        row.clear()

    for call in calls:
        if getattr(call[0], "native", None) is None:
            close()
            result.append(call)
        else:
            row.append(call)
    close()
    return result
