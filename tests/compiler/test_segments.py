"""Native calls as one, and convolutions as chains: to the bit what the same calls give one after another, wherever the
memory of a map is used again."""

import pytest
import torch
import torch.nn.functional as F
from compiled import NETWORKS, Through, compiled, conv, inputs_of, made
from torch import nn

from zfkernels.compiler import chains, program
from zfkernels.testing.weights import randomised

FIXED = {"options": {"tune": False}}  # oneDNN's sums are others


@pytest.fixture
def every_chain(monkeypatch):
    monkeypatch.setattr(chains, "LEAST_BYTES", 0)
    monkeypatch.setattr(chains, "LEAST_IMAGE", 0)


def outputs(model, inputs, plain, monkeypatch):
    """Three calls' results; `plain`: no segments and no chains."""
    if plain:
        monkeypatch.setattr(program, "chains_of", lambda calls: [])
        monkeypatch.setattr(program, "segmented", lambda calls, *_: calls)
    call, watched = compiled(model, **FIXED)
    with torch.no_grad():
        results = [call(*inputs) for _ in range(3)]
    monkeypatch.undo()
    return results, [plan for one in watched.programs for plan in one.made.plans.values()]


def flat(values):
    return torch.utils._pytree.tree_leaves(values)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_bits_as_one_by_one(name, monkeypatch):
    model, inputs = made(name), inputs_of(name, 3)
    expected, _ = outputs(model, inputs, True, monkeypatch)
    torch._dynamo.reset()
    monkeypatch.setattr(chains, "LEAST_BYTES", 0)
    monkeypatch.setattr(chains, "LEAST_IMAGE", 0)
    results, plans = outputs(model, inputs, False, monkeypatch)
    for result in results:
        for a, b in zip(flat(result), flat(expected[0]), strict=True):
            assert torch.equal(a, b)
    if name in ("residual", "mobile", "joined"):
        assert any(hasattr(run, "members") for plan in plans for run, _ in plan.calls)


def bottleneck(channels, wide, maps, stride):
    def layer(c, k, size, step, groups, act):
        return nn.Sequential(conv(c, k, size, step, groups=groups, bias=False), nn.BatchNorm2d(k), act)

    return nn.Sequential(
        layer(channels, wide, 1, 1, 1, nn.ReLU6()),
        layer(wide, wide, 3, stride, wide, nn.ReLU6()),
        layer(wide, maps, 1, 1, 1, nn.Identity()),
    )


def blocks():
    """Inverted residual blocks; the last one's map, wider than what it is made of, may lie where that was."""

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = self.one(x)
        x = x + self.two(x)
        return self.four(self.three(x)).mean((2, 3))

    layers = {"one": bottleneck(16, 32, 16, 1), "two": bottleneck(16, 32, 16, 1)}
    layers |= {"three": bottleneck(16, 32, 32, 2), "four": bottleneck(32, 48, 64, 1)}
    return Through(forward, stem=conv(3, 16), **layers)


def test_a_chain_does_not_write_over_what_it_still_reads(every_chain, monkeypatch):
    x = torch.randn(2, 3, 300, 40)  # more rows than a thread holds
    model = randomised(blocks(), x)
    expected, _ = outputs(model, (x,), True, monkeypatch)
    torch._dynamo.reset()
    monkeypatch.setattr(chains, "LEAST_BYTES", 0)
    monkeypatch.setattr(chains, "LEAST_IMAGE", 0)
    results, (plan,) = outputs(model, (x,), False, monkeypatch)
    members = [one for run, _ in plan.calls for one in getattr(run, "members", [])]
    chained = [one for one in members if hasattr(one, "members")]
    assert [len(one.members) for one in chained] == [3, 3, 3, 3]
    for result in results:
        assert torch.equal(result, expected[0])
    address = {id(place): range(at, at + place.bytes) for at, place in plan.layout.places}
    made = {one.native.out: address[id(one.native.to)] for one in members if one.native.to.slot >= 0}
    pairs = [(made.get(one.native.out), made.get(one.native.reads[0])) for one in chained]
    apart = [y.stop <= x.start or x.stop <= y.start for y, x in pairs if y and x]
    assert apart == [True] * 3


def test_what_others_read_is_no_chain(every_chain):
    """A map with a second reader, a sum before the depthwise layer, and a pointwise layer with a stride stay whole."""

    def forward(self, x):
        x = F.relu(self.stem(x))
        wide = self.wide(x)
        y = self.deep(wide) + self.other(wide)
        return self.strided(self.deep_too(F.relu(x + self.same(x)))), y

    layers = {"stem": conv(3, 16), "wide": conv(16, 32, 1), "deep": conv(32, 32, groups=32), "other": conv(32, 32, 1)}
    layers |= {"same": conv(16, 16, 1), "deep_too": conv(16, 16, groups=16), "strided": conv(16, 8, 1, 2)}
    x = torch.randn(1, 3, 40, 24)
    call, watched = compiled(randomised(Through(forward, **layers), x), **FIXED)
    with torch.no_grad():
        call(x)
    (plan,) = watched.programs[0].made.plans.values()
    members = [one for run, _ in plan.calls for one in getattr(run, "members", [run])]
    assert not [one for one in members if hasattr(one, "members")]
