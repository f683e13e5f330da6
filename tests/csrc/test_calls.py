"""_C.Calls: kernel calls that run together, and convolutions whose maps between them are never whole; to the bit what
the calls give one by one."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from zfkernels import _C, window
from zfkernels.backends.memory import conv_sizes

LAST = torch.channels_last
INFINITY = math.inf


@pytest.fixture(autouse=True)
def direct_sums():
    """Chains are of direct sums: a band's rows would be other tiles of Winograd's."""
    mode = _C.winograd()
    _C.set_winograd(0)
    yield
    _C.set_winograd(mode)


class Layer:
    """A convolution's sizes, filters and epilogue, drawn by `rng` for maps of (n, channels, height, width)."""

    def __init__(self, rng, shape, maps, kernel, stride, padding, groups=1):
        n, channels, *size = shape
        self.size = window.conv_map(size, kernel, stride, padding, (1, 1))
        draw = lambda *dims: torch.from_numpy(rng.standard_normal(dims))  # noqa: E731
        self.weight, self.bias = draw(maps, channels // groups, *kernel).float(), draw(maps).float()
        self.sizes = conv_sizes(shape, self.weight, self.size, stride, padding, (1, 1), groups)
        self.shape = (n, maps, *self.size)
        self.relu, self.cap = bool(rng.integers(2)), float(rng.choice([INFINITY, 1.5]))
        packed = torch.empty(_C.pack_filters(False, self.sizes, self.weight.data_ptr(), 0, 1))
        _C.pack_filters(False, self.sizes, self.weight.data_ptr(), packed.data_ptr(), 1)
        self.packed = packed if rng.integers(2) else None

    @property
    def stage(self):
        packed = 0 if self.packed is None else self.packed.data_ptr()
        return self.sizes, self.weight.data_ptr(), packed, self.bias.data_ptr(), self.relu, self.cap

    def alone(self, x, add, y, threads):
        sizes, w, packed, bias, relu, cap = self.stage
        pitches = x.shape[1], y.shape[1]
        at = x.data_ptr(), w, packed, bias, 0 if add is None else add.data_ptr(), y.data_ptr()
        _C.conv2d(False, sizes, *at, relu, cap, threads, *pitches)


def empty(shape):
    return torch.full(shape, math.nan).contiguous(memory_format=LAST)


def drawn(seed):
    """Layers in a row as a network has them around a depthwise one, and a map for the first."""
    rng = np.random.default_rng(seed)
    shape = int(rng.integers(1, 4)), int(rng.integers(1, 40)), int(rng.integers(5, 40)), int(rng.integers(5, 24))
    x = torch.from_numpy(rng.standard_normal(shape)).float().contiguous(memory_format=LAST)
    maps, k = int(rng.integers(16, 50)), int(rng.choice([1, 3]))
    layers = [Layer(rng, shape, maps, (k, k), (int(rng.integers(1, 3)),) * 2, (int(rng.integers(0, k // 2 + 1)),) * 2)]
    k, stride = int(rng.choice([3, 5])), int(rng.integers(1, 4))
    layers.append(Layer(rng, layers[0].shape, maps, (k, k), (stride, stride), (k // 2, k // 2), maps))
    layers.append(Layer(rng, layers[1].shape, int(rng.integers(1, 70)), (1, 1), (1, 1), (0, 0)))
    first, last = [(0, 3), (0, 2), (1, 3)][seed % 3]
    for layer in layers[:first]:
        y = empty(layer.shape)
        layer.alone(x, None, y, 1)
        x = y
    return x, layers[first:last]


def one_by_one(x, add, layers, threads=1):
    for layer in layers:
        y = empty(layer.shape)
        layer.alone(x, add if layer is layers[-1] else None, y, threads)
        x = y
    return x


@pytest.mark.parametrize("seed", range(60))
def test_a_chain_gives_the_bits_of_its_layers(seed):
    """In several images, at strides, edges and any number of threads; into a slice of a wider map too."""
    x, layers = drawn(seed)
    add = torch.randn(layers[-1].shape).contiguous(memory_format=LAST) if seed % 2 else None
    expected = one_by_one(x, add, layers)
    n, maps, height, width = layers[-1].shape
    for threads in (1, 2, 5):
        wider = 0 if add is not None else 3
        whole = empty((n, maps + wider, height, width))
        calls = _C.Calls()
        part = (1, (wider - 1) * 4) if wider else (1, 0)
        calls.conv2d_chain(
            False, [layer.stage for layer in layers], (0, 0), (2, 0) if add is not None else (-1, 0), part,
            x.shape[1], maps + wider,
        )  # fmt: skip
        calls.run([x.data_ptr(), whole.data_ptr(), 0 if add is None else add.data_ptr()], threads)
        begin = max(wider - 1, 0)
        assert torch.equal(whole[:, begin : begin + maps], expected)
        assert whole[:, :begin].isnan().all()
        assert whole[:, begin + maps :].isnan().all()


def test_a_long_map_goes_down_in_bands():
    """More rows than a thread holds: what two bands share is kept, not made again from what lies there."""
    rng = np.random.default_rng(0)
    shape = (2, 16, 300, 40)
    x = torch.from_numpy(rng.standard_normal(shape)).float().contiguous(memory_format=LAST)
    wide = Layer(rng, shape, 96, (1, 1), (1, 1), (0, 0))
    for stride in (1, 2, 3):
        deep = Layer(rng, wide.shape, 96, (3, 3), (stride, stride), (1, 1), 96)
        narrow = Layer(rng, deep.shape, 24, (1, 1), (1, 1), (0, 0))
        layers = [wide, deep, narrow]
        calls, y = _C.Calls(), empty(narrow.shape)
        calls.conv2d_chain(False, [layer.stage for layer in layers], (0, 0), (-1, 0), (1, 0), 16, 24)
        calls.run([x.data_ptr(), y.data_ptr()], 2)
        assert torch.equal(y, one_by_one(x, None, layers))


def listed(layers, x):
    """The layers as calls on memory of their own."""
    maps = [x, *(empty(layer.shape) for layer in layers)]
    calls = _C.Calls()
    for i, layer in enumerate(layers):
        sizes, w, packed, bias, relu, cap = layer.stage
        pitches = maps[i].shape[1], layer.shape[1]
        calls.conv2d(False, sizes, (i, 0), w, packed, bias, (-1, 0), (i + 1, 0), relu, cap, *pitches)
    return calls, maps


def test_many_calls_by_any_team_give_the_same_bits():
    x, layers = drawn(3)
    expected = one_by_one(x, None, layers)
    calls, maps = listed(layers, x)
    for threads in (1, 2, 3, 8):
        for _ in range(20):
            maps[-1].fill_(math.nan)
            calls.run([one.data_ptr() for one in maps], threads)
            assert torch.equal(maps[-1], expected)


def test_teams_of_several_callers_at_once():
    x, layers = drawn(6)
    expected = one_by_one(x, None, layers)

    def many(_):
        calls, maps = listed(layers, x)
        for _ in range(50):
            calls.run([one.data_ptr() for one in maps], 2)
        return maps[-1]

    with ThreadPoolExecutor(4) as pool:
        for result in pool.map(many, range(4)):
            assert torch.equal(result, expected)
