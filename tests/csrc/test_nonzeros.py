"""The CPU's transposed convolution of the values that are not 0 (csrc/cpu/nonzeros.h), wherever it can serve: both of
its layouts of filters against float64, and the dense kernels where something is not finite."""

import pytest
import torch
import torch.nn.functional as F
from conftest import error

import zfkernels as zf
from zfkernels import _C
from zfkernels.backends import cpu
from zfkernels.testing.compare import BOUNDS

# n, channels of x, of y, (h, w) of x, kernel, stride, padding
SHAPES = [
    (1, 3, 96, (224, 224), 7, 2, 1),  # layer 1: panels are tap rows, two of them
    (2, 3, 24, (37, 41), 7, 2, 1),
    (1, 1, 5, (9, 9), 3, 1, 1),
    (2, 8, 4, (20, 30), (5, 11), (1, 3), 2),  # tap rows of 11 vectors
    (2, 5, 6, (13, 14), (6, 3), (2, 1), (2, 1)),
    (1, 7, 3, (16, 15), (4, 14), 1, (3, 0)),  # tap rows too long for a panel: the dense kernels
    (3, 33, 17, (14, 9), 3, 1, 1),  # channels that end inside a block, values that end inside a vector
    (2, 96, 40, (33, 33), 5, 2, 0),  # layer 2, without padding as a projection's boxes are
    (1, 16, 33, (17, 18), (3, 7), (1, 1), (0, 3)),
    (2, 64, 16, (9, 26), (1, 3), (3, 2), (0, 1)),  # rows of x that no window covers
    (3, 112, 18, (41, 37), 3, 1, 1),  # several groups of rows
    (1, 32, 24, (1, 1), 3, 1, 1),  # one pixel, all else padding
    (0, 4, 5, (8, 8), 3, 1, 1),
    (8, 384, 160, (5, 5), 3, 1, 0),  # from here on filters are read as they lie, where values are many
    (3, 112, 144, (11, 7), 3, 1, 1),
    (2, 48, 144, (31, 17), 5, 2, 2),
    (30, 64, 160, (4, 4), 1, 1, 0),  # many images in a unit of work
]


@pytest.fixture(autouse=True)
def always():
    before = _C.winograd()
    _C.set_winograd(cpu.NONZEROS)
    yield
    _C.set_winograd(before)


def problem(n, c_in, c_out, size, kernel, stride, padding, dtype=torch.float32):
    kernel, stride, padding = (v if isinstance(v, tuple) else (v, v) for v in (kernel, stride, padding))
    weight = torch.randn(c_out, c_in, *kernel, dtype=dtype)
    made = ((size[a] + 2 * padding[a] - kernel[a]) // stride[a] + 1 for a in (0, 1))
    y = torch.randn(n, c_out, *made, dtype=dtype)
    return y * (torch.rand_like(y) < 0.7), weight, stride, padding, size


def adjoint(y, weight, stride, padding, size):
    """In float64, from torch."""
    if not len(y):
        return y.new_zeros(0, weight.shape[1], *size)
    wide = torch.zeros(len(y), weight.shape[1], *size, dtype=torch.float64, requires_grad=True)
    F.conv2d(wide, weight.double(), None, stride, padding).backward(y.double())
    return wide.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64_whatever_the_threads_and_the_batch(shape, dtype):
    y, weight, stride, padding, size = problem(*shape, dtype)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        w = weight.contiguous(memory_format=memory_format)
        for rectify in (True, False):
            expected = adjoint(y.relu() if rectify else y, weight, stride, padding, size)
            results = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                results.append(cpu.conv_transpose2d(y, w, stride, padding, size, rectify))
            assert error(results[0], expected) <= BOUNDS[dtype]
            assert all(torch.equal(results[0], other) for other in results[1:])
            alone = [cpu.conv_transpose2d(one[None], w, stride, padding, size, rectify) for one in y]
            assert all(torch.equal(one[0], whole) for one, whole in zip(alone, results[0], strict=True))


@pytest.mark.parametrize("shape", [s for s in SHAPES if min(s[3]) > 8], ids=str)
def test_unpooled_maps(shape):
    *_, weight, stride, padding, size = problem(*shape)
    map_size = problem(*shape)[0].shape[2:]
    pool = (3, 2, 1) if min(map_size) >= 3 else (1, 1, 0)
    pooled, switches = zf.max_pool2d_with_switches(torch.randn(shape[0], shape[2], *map_size), *pool, backend="cpu")
    g = torch.randn_like(pooled)
    unpooled = zf.max_unpool2d_with_switches(g, switches, *pool, output_size=map_size, backend="cpu")
    for rectify in (True, False):
        found = zf.max_unpool2d_relu_conv_transpose2d(
            g, switches, weight, stride, padding, *pool, output_size=size, rectify=rectify, backend="cpu"
        )
        expected = adjoint(unpooled.relu() if rectify else unpooled, weight, stride, padding, size)
        assert error(found, expected) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[6], SHAPES[14]], ids=str)
def test_what_is_not_finite_is_what_the_dense_kernels_make_of_it(shape, value):
    """0 times an infinite weight is NaN, and an infinite value must not reach its neighbours through a panel's pads."""
    y, weight, stride, padding, size = problem(*shape)
    broken_weight, broken_y = weight.clone(), y.clone()
    broken_weight[1, 0, 1, 1] = value
    broken_y[0, 2, 3, 1] = value
    for values, filters in ((y, broken_weight), (broken_y, weight)):
        found = cpu.conv_transpose2d(values, filters, stride, padding, size, False)
        _C.set_winograd(cpu.ALWAYS)  # which bars it
        dense = cpu.conv_transpose2d(values, filters, stride, padding, size, False)
        _C.set_winograd(cpu.NONZEROS)
        assert not torch.isfinite(dense).all()
        assert torch.equal(found.isnan(), dense.isnan())
        assert error(found.nan_to_num(0, 1, -1), dense.nan_to_num(0, 1, -1)) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("place", range(40))
@pytest.mark.parametrize("few", [True, False], ids=["tap rows", "blocks"])
def test_what_is_not_finite_is_seen_wherever_it_is(place, few):
    """Among 40 values and 40 filters, the last of which end inside a vector: with filters of 0 there, too."""
    channels = 2 if few else 33
    y, weight = torch.ones(1, 40, 1, 1), torch.ones(40, channels, 3, 3)
    y[0, place] = float("inf")
    weight[place] = 0
    found = cpu.conv_transpose2d(y, weight, (1, 1), (1, 1), (1, 1), False)
    assert found.isnan().all()
    y[0, place] = 0
    for i, j in ((0, 0), (1, 1), (2, 2)):
        weight[place] = 1
        weight[place, channels - 1, i, j] = float("inf")
        found = cpu.conv_transpose2d(y, weight, (1, 1), (1, 1), (1, 1), False)
        assert found[0, -1].isnan().item() == ((i, j) == (1, 1))
        assert not found[0, :-1].isnan().any()


@pytest.mark.parametrize("count", [1, 2, 7, 15, 16, 17, 33])
@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[6], SHAPES[14]], ids=str)
def test_what_is_not_finite_stays_in_its_place_however_few_the_values(shape, count):
    """The last of few values, which fill no vector, is infinite: a panel's pads times it are NaN."""
    y, weight, stride, padding, size = problem(*shape)
    few = torch.zeros(y[0].permute(1, 2, 0).shape)
    few.view(-1)[100 : 100 + count] = 1
    few.view(-1)[100 + count - 1] = float("inf")
    y[0] = few.permute(2, 0, 1)
    y[1:] = 0
    found = cpu.conv_transpose2d(y, weight, stride, padding, size, False)
    assert not found.isnan().any()
    expected = adjoint(y.clamp(max=3e38), weight, stride, padding, size)
    assert torch.equal(found.isinf(), expected.abs() > 1e30)
    assert error(found.clamp(-1, 1), expected.clamp(-1, 1)) <= BOUNDS[torch.float32]


def test_zeros_cost_nothing_in_accuracy():
    """A map of zeros gives zeros, and a single value its filter, to the bit."""
    weight = torch.randn(40, 96, 5, 5)
    y = torch.zeros(1, 40, 15, 15)
    assert not cpu.conv_transpose2d(y, weight, (2, 2), (0, 0), (33, 33), True).any()
    y[0, 7, 4, 9] = 1
    found = cpu.conv_transpose2d(y, weight, (2, 2), (0, 0), (33, 33), True)
    assert torch.equal(found[0, :, 8:13, 18:23], weight[7])
    assert found.count_nonzero() == weight[7].count_nonzero()
