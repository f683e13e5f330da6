"""Values of every magnitude, and strides far beyond the kernel."""

import time

import pytest
import torch
import torch.nn.functional as F
from conftest import error

from zfkernels import _C
from zfkernels.backends import cpu
from zfkernels.testing.compare import BOUNDS

FORCED = [cpu.WHERE_FASTER, cpu.ALWAYS, cpu.ALWAYS_ROWS]


@pytest.fixture(params=FORCED, ids=["fastest", "tiles", "rows"])
def mode(request):
    before = _C.winograd()
    _C.set_winograd(request.param)
    yield request.param
    _C.set_winograd(before)


# Of inputs (and gradients), of weights. The smallest normal float32 is 1.2e-38.
SCALES = [(1e-20, 1e-20), (1e-18, 1e-17), (1e-37, 1e2), (1e20, 1e-37), (1e-15, 1e-22), (1e18, 1e18), (1e37, 1e-30)]


@pytest.mark.parametrize("scales", SCALES, ids=str)
@pytest.mark.parametrize("shape", [(64, 64, 28, 3, 1), (3, 64, 48, 7, 2), (130, 33, 14, 5, 2)], ids=str)
def test_products_below_the_smallest_normal_number_lose_nothing(shape, scales, mode):
    c_in, c_out, size, kernel, stride = shape
    x = torch.randn(2, c_in, size, size) * scales[0]
    weight = torch.randn(c_out, c_in, kernel, kernel) * scales[1]
    window = (stride, stride), (1, 1)
    y = cpu.conv2d(x, weight, None, *window, False)
    assert error(y, F.conv2d(x.double(), weight.double(), None, *window)) <= BOUNDS[torch.float32]
    g = torch.randn_like(y) * scales[0]
    back = cpu.conv_transpose2d(g, weight, *window, (size, size), False)
    expected = torch.nn.grad.conv2d_input(x.shape, weight.double(), g.double(), *window)
    assert error(back, expected) <= BOUNDS[torch.float32]
    if 1e-40 < scales[0] * scales[0] < 1e35:
        gw, _ = cpu.conv2d_weight_grad(x, g, weight.shape[2:], *window, False)
        expected = torch.nn.grad.conv2d_weight(x.double(), weight.shape, g.double(), *window)
        assert error(gw, expected) <= BOUNDS[torch.float32]


def test_zeros_stay_with_winograd_s_kernel():
    """A map of zeros, and one tiny value among large ones, are no reason for direct sums."""
    x, weight = torch.randn(1, 64, 28, 28), torch.randn(64, 64, 3, 3)
    x[:, :, :, 10:] = 0
    x[0, 3, 2, 2] = 1e-39
    y = cpu.conv2d(x, weight, None, (1, 1), (1, 1), False)
    before = _C.winograd()
    _C.set_winograd(cpu.ALWAYS)
    forced = cpu.conv2d(x, weight, None, (1, 1), (1, 1), False)
    _C.set_winograd(cpu.NEVER)
    direct = cpu.conv2d(x, weight, None, (1, 1), (1, 1), False)
    _C.set_winograd(before)
    assert torch.equal(y, forced)
    assert not torch.equal(y, direct)


@pytest.mark.parametrize("channels", [20, 3, 40])
@pytest.mark.parametrize("groups", [1, "depthwise"])
@pytest.mark.parametrize("stride", [64, 4096, 2**14, 2**30])
def test_strides_far_beyond_the_kernel_cost_nothing(stride, groups, channels):
    groups = channels if groups == "depthwise" else groups
    for size, windows in (((3, 3), (1, 1)), ((5, 30), (1, 1)), ((4, stride + 3), (1, 2))):
        if size[1] > 5000:
            continue
        y, weight = torch.randn(2, channels, *windows), torch.randn(channels, channels // groups, 3, 3)
        start = time.process_time()
        x = cpu.conv_transpose2d(y, weight, (stride, stride), (0, 0), size, False, (1, 1), groups)
        assert time.process_time() - start < 1  # milliseconds; it was seconds, and minutes
        wide = torch.zeros(2, channels, *size, dtype=torch.float64, requires_grad=True)
        F.conv2d(wide, weight.double(), None, stride, 0, 1, groups).backward(y.double())
        assert error(x, wide.grad) <= BOUNDS[torch.float32]
        again = cpu.conv2d(x, weight, None, (stride, stride), (0, 0), False, (1, 1), groups)
        expected = F.conv2d(x.double(), weight.double(), None, stride, 0, 1, groups)
        assert error(again, expected) <= BOUNDS[torch.float32]
        gw, _ = cpu.conv2d_weight_grad(x, y, (3, 3), (stride, stride), (0, 0), False, (1, 1), groups)
        wide = weight.double().requires_grad_()
        F.conv2d(x.double(), wide, None, stride, 0, 1, groups).backward(y.double())
        assert error(gw, wide.grad) <= BOUNDS[torch.float32]
