"""Window arithmetic against torch's sizes and the receptive fields of the paper's network."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from zfkernels import window
from zfkernels.models.zfnet import TABLE


@pytest.mark.parametrize("ceil_mode", [False, True])
def test_pool_size_is_torch_s(ceil_mode):
    for size, kernel, stride in itertools.product(range(1, 12), range(1, 6), range(1, 6)):
        x = torch.zeros(1, 1, size, size)
        for padding in range(kernel // 2 + 1):
            windows = window.pool_size(size, kernel, stride, padding, ceil_mode)
            if windows < 1:
                with pytest.raises(RuntimeError):
                    F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode)
            else:
                assert windows == F.max_pool2d(x, kernel, stride, padding, ceil_mode=ceil_mode).shape[2]


def test_conv_size_and_its_inverse():
    for size in range(1, 14):
        for kernel, stride, padding in ((1, 1, 0), (3, 1, 1), (3, 2, 0), (5, 3, 2), (2, 4, 1)):
            windows = window.conv_size(size, kernel, stride, padding)
            if windows < 1:
                continue
            x = torch.zeros(1, 1, size, size)
            assert windows == F.conv2d(x, torch.zeros(1, 1, kernel, kernel), None, stride, padding).shape[2]
            least = window.transposed_size(windows, kernel, stride, padding)
            assert least <= size < least + stride


def test_receptive_fields_of_the_paper_s_network():
    layers = [(row.kernel, row.stride, row.padding) for row in TABLE if row.kind in ("conv", "pool")]
    fields = [window.receptive_field(layers[: n + 1]) for n in range(len(layers))]
    assert [field.size for field in fields] == [7, 11, 27, 43, 75, 107, 139, 171]
    assert [field.stride for field in fields] == [2, 4, 8, 16, 16, 16, 16, 32]
    assert [field.start for field in fields] == [-1, -1, -1, -1, -17, -33, -49, -49]
    first, last = 2, 5
    for kernel, stride, padding in reversed(layers):
        first, last = window.covered(first, last, kernel, stride, padding)
    field = fields[-1]
    assert (first, last) == (field.start + 2 * field.stride, field.start + 4 * field.stride + field.size)
