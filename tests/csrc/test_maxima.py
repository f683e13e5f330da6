"""Pooling of which nobody asks the switches: the same maxima, to the bit, and not a byte more is written."""

import math

import numpy as np
import pytest
import torch

from zfkernels import _C, window
from zfkernels.backends.memory import conv_sizes, pool_sizes

LAST = torch.channels_last
NO_SWITCHES = 0
WINDOWS = [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((3, 3), (1, 2), (0, 1)), ((5, 2), (3, 1), (2, 0))]


def map_of(rng, shape, dtype):
    """Values of which many are equal and some are NaN."""
    x = torch.from_numpy(rng.integers(-3, 4, shape)).to(dtype)
    x[torch.from_numpy(rng.random(shape) < 0.02)] = math.nan
    return x.contiguous(memory_format=LAST)


def results(shape, dtype):
    return torch.full(shape, 7, dtype=dtype).contiguous(memory_format=LAST)


def same(a, b):
    kind = {torch.float32: torch.int32, torch.float64: torch.int64}[a.dtype]
    return torch.equal(a.view(kind), b.view(kind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
@pytest.mark.parametrize("channels", [1, 5, 16, 100])
def test_maxima_alone(channels, kernel, stride, padding, dtype):
    x = map_of(np.random.default_rng(channels), (2, channels, 11, 9), dtype)
    size = window.pool_map((11, 9), kernel, stride, padding, True)
    sizes = pool_sizes(x.shape, size, kernel, stride, padding)
    y, alone = results((2, channels, *size), dtype), results((2, channels, *size), dtype)
    switches = results(y.shape, torch.uint8)
    f64 = dtype == torch.float64
    _C.max_pool2d(f64, sizes, x.data_ptr(), y.data_ptr(), switches.data_ptr(), 1)
    _C.max_pool2d(f64, sizes, x.data_ptr(), alone.data_ptr(), NO_SWITCHES, 1)
    assert same(y, alone)
    assert 0 < y.isnan().sum() < y.numel()


@pytest.mark.parametrize(("kernel", "stride", "padding"), WINDOWS)
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("n", [1, 3])
def test_a_convolutions_maxima_alone(n, mode, kernel, stride, padding):
    rng = np.random.default_rng(n)
    x = torch.from_numpy(rng.standard_normal((n, 24, 26, 27))).float().contiguous(memory_format=LAST)
    weight, bias = torch.from_numpy(rng.standard_normal((40, 24, 3, 3))).float(), torch.zeros(40)
    size = window.pool_map((26, 27), kernel, stride, padding, False)
    sizes = conv_sizes(x.shape, weight, (26, 27), (1, 1), (1, 1))
    pool = pool_sizes((n, 40, 26, 27), size, kernel, stride, padding)
    y, alone = results((n, 40, *size), torch.float32), results((n, 40, *size), torch.float32)
    switches = results(y.shape, torch.uint8)
    before = _C.winograd()
    _C.set_winograd(mode)
    try:
        of = x.data_ptr(), weight.data_ptr(), 0, bias.data_ptr()
        _C.conv2d_relu_max_pool2d(False, sizes, pool, *of, y.data_ptr(), switches.data_ptr(), 0, 2)
        _C.conv2d_relu_max_pool2d(False, sizes, pool, *of, alone.data_ptr(), NO_SWITCHES, 0, 2)
    finally:
        _C.set_winograd(before)
    assert same(y, alone)
