"""Convolutions in a row whose maps between them need not be whole: [any,] depthwise [, pointwise].

The maps around a depthwise convolution are the widest of a network, and it does little with each value: what takes the
time is that they go out to memory and come back. csrc/cpu/chain.h makes them some rows at a time, which stay in the
cache.
"""

from typing import Any

from .. import _C
from .memory import Place
from .segments import Call, Native, Operand, Registers

MOST = 3
LEAST_BYTES = 1 << 19  # of the maps between two convolutions: smaller ones stay in the cache whole,
LEAST_IMAGE = 1 << 17  # and smaller ones of an image leave too few pixels for a block of filters


def chains_of(calls: list[Call]) -> list[range]:
    """The calls of a plan that can be one, in order."""
    chains, at = [], 0
    while at < len(calls):
        end = end_of_chain(calls, at)
        if end > at + 1:
            chains.append(range(at, end))
        at = end
    return chains


def end_of_chain(calls: list[Call], begin: int) -> int:
    end, native = begin + 1, native_of(calls[begin])
    if native is None or native.link is None:
        return end
    images, size = native.link.sizes[0], native.link.map_bytes
    if size < LEAST_IMAGE or images * size < LEAST_BYTES:
        return end
    deep = native.link.kernel == "depthwise"  # one was met
    while end < min(begin + MOST, len(calls)) and follows(calls[end], native):
        native = native_of(calls[end])
        assert native is not None
        assert native.link is not None
        if not (native.link.pointwise if deep else native.link.kernel == "depthwise"):
            break
        end += 1
        if deep:
            break
        deep = True
    return end


def follows(call: Call, before: Native) -> bool:
    """Does the call alone read what the one before makes, as a map that need not be whole?"""
    native = native_of(call)
    if native is None or native.link is None or not isinstance(before.to, Place) or before.reads[1] >= 0:
        return False
    return native.reads[0] == before.out != native.reads[1] and before.out in call[1]


def native_of(call: Call) -> Native | None:
    native: Native | None = getattr(call[0], "native", None)
    return native


def merged(calls: list[Call], chains: list[range]) -> list[Call]:
    """The calls with each chain as one."""
    result, at = [], 0
    for chain in chains:
        result += [*calls[at : chain.start], as_one([calls[i] for i in chain])]
        at = chain.stop
    return result + calls[at:]


def as_one(calls: list[Call]) -> Call:
    natives = [native for call in calls if (native := native_of(call)) is not None]
    links = [native.link for native in natives if native.link is not None]
    first, last = links[0], links[-1]
    stages = [(link.sizes, link.weight, link.packed, link.bias, link.relu, link.cap) for link in links]

    def put(to: _C.Calls, reads: list[Operand], y: Operand) -> None:
        to.conv2d_chain(first.f64, stages, reads[0], reads[1], y, first.x_pitch, last.y_pitch)

    def run(r: Registers) -> None:
        for one, _ in calls:
            one(r)

    kept: Any = run
    kept.native = Native((natives[0].reads[0], natives[-1].reads[1]), natives[-1].out, natives[-1].to, put)
    kept.members = [one for one, _ in calls]
    return run, tuple({i for _, dead in calls for i in dead})
