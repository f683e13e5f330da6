"""The ops under autocast, as torch's own convolution behaves."""

import pytest
import torch
import torch.nn.functional as F
from conftest import error
from samples import on_each_backend, randn

import zfkernels as zf


@on_each_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(backend, dtype):
    x, weight, bias = (randn(*s, dtype=torch.float32) for s in ((1, 3, 6, 6), (4, 3, 3, 3), (4,)))
    with torch.autocast("cpu", dtype), zf.use_backend(backend):
        y = zf.conv2d_relu(x, weight, bias)
        expected = F.conv2d(x, weight, bias).relu()
        assert y.dtype == expected.dtype == dtype
        assert error(y, expected) <= 2e-2
        pooled, switches = zf.max_pool2d_with_switches(y, 2)
        assert pooled.dtype == dtype
        assert zf.max_pool2d_with_switches(x, 2)[0].dtype == torch.float32
        assert zf.avg_pool2d(y, 2).dtype == dtype
        assert zf.avg_pool2d(x, 2).dtype == torch.float32
        assert zf.contrast_norm(x).dtype == torch.float32
        assert zf.max_unpool2d_with_switches(pooled.float(), switches, 2, output_size=4).dtype == torch.float32
        assert zf.relu_conv_transpose2d(x, weight.transpose(0, 1), output_size=8).dtype == dtype
        layer, s = zf.conv2d_relu_max_pool2d(x, weight, bias, 1, 0, 2, 2, 0, False)
        assert layer.dtype == dtype
        z = zf.max_unpool2d_relu_conv_transpose2d(layer.float(), s, weight, 1, 0, 2, 2, 0, output_size=6)
        assert z.dtype == dtype
        gradients = torch.autograd.grad(z.float().sum() + y.float().sum(), (x, weight, bias))
    assert all(g.dtype == torch.float32 for g in gradients)


def test_autocast_leaves_float64_alone_as_torch_does():
    x, weight = randn(1, 3, 5, 5), randn(4, 3, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert F.conv2d(x, weight).dtype == torch.float64
        assert zf.conv2d_relu(x, weight).dtype == torch.float64
        with pytest.raises(TypeError, match="weight must have x's dtype"):
            zf.conv2d_relu(x, weight.float())
        with torch.autocast("cpu", enabled=False):
            assert zf.conv2d_relu(x.float(), weight.float()).dtype == torch.float32


def test_autocast_under_compile():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, w: zf.conv2d_relu(x, w), fullgraph=True, backend="aot_eager")
    x, weight = randn(1, 3, 5, 5, dtype=torch.float32), randn(4, 3, 3, 3, dtype=torch.float32)
    for enabled, dtype in ((False, torch.float32), (True, torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = compiled(x, weight)
            assert y.dtype == dtype
            assert torch.equal(y, zf.conv2d_relu(x, weight))
