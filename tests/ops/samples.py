"""A call of every library op, and a function of all public ones."""

import pytest
import torch

import zfkernels as zf
from zfkernels import backends

# Not those in an interpreter: what is tested here is the way to a backend.
BACKENDS = [
    name
    for name in zf.available_backends()
    if "cpu" in backends.module(name).DEVICES and not getattr(backends.module(name), "INTERPRETED", False)
]
on_each_backend = pytest.mark.parametrize("backend", BACKENDS)


def randn(*shape, grad=True, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_(grad)


def switches_of(x, *pool, ceil_mode=False) -> torch.Tensor:
    return zf.max_pool2d_with_switches(x.detach(), *pool, ceil_mode, backend="reference")[1]


def library_calls(backend: str, n: int = 2, filters: int = 4, grad: bool = True) -> dict[str, tuple]:
    """Each library op's name and arguments."""
    x, weight, bias = randn(n, 3, 7, 6, grad=grad), randn(filters, 3, 3, 2, grad=grad), randn(filters, grad=grad)
    y = randn(n, filters, 4, 7, grad=grad)
    switches = switches_of(x, 3, 2, 1)
    pooled = randn(*switches.shape, grad=grad)
    layer, layer_switches = zf.conv2d_relu_max_pool2d(x, weight, bias, 1, 1, 3, 2, 0, True, backend="reference")
    layer = randn(*layer.shape, grad=grad)  # the pooled map itself lies on the rectifier's kink
    pool, layer_window = ((3, 3), (2, 2), (1, 1)), ((1, 1), (1, 1), (3, 3), (2, 2), (0, 0))
    norm = (4, 0.3, 0.75, 1.5, True, backend)
    return {
        "conv2d": (x, weight, bias, (2, 1), (1, 1), True, (1, 1), 1, backend),
        "conv2d_add": (x, weight, bias, y, (2, 1), (1, 1), True, 2.5, (1, 1), 1, backend),
        "conv_transpose2d": (y, weight, (2, 1), (1, 1), (7, 6), True, (1, 1), 1, backend),
        "conv2d_weight_grad": (x, y, (3, 2), (2, 1), (1, 1), True, (1, 1), 1, backend),
        "max_pool2d": (x, *pool, (4, 3), backend),
        "max_unpool2d": (pooled, switches, *pool, (7, 6), backend),
        "max_unpool2d_backward": (x, switches, *pool, backend),
        "avg_pool2d": (x, *pool, (4, 3), False, backend),
        "avg_pool2d_backward": (randn(n, 3, 4, 3, grad=grad), *pool, (7, 6), False, backend),
        "contrast_norm": (x, *norm),
        "contrast_norm_backward": (randn(n, 3, 7, 6, grad=False), x.detach(), *norm),
        "max_pool2d_contrast_norm": (x, *pool, (4, 3), *norm),
        "conv2d_relu_max_pool2d": (x, weight, bias, *layer_window, layer.shape[2:], backend),
        "conv2d_relu_max_pool2d_weight_grad": (x, layer, layer_switches, (3, 2), *layer_window, True, backend),
        "max_unpool2d_relu_conv_transpose2d": (layer, layer_switches, weight, *layer_window, (7, 6), True, backend),
    }


LIBRARY_OPS = [
    "conv2d",
    "conv2d_add",
    "conv_transpose2d",
    "conv2d_weight_grad",
    "max_pool2d",
    "max_unpool2d",
    "max_unpool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "contrast_norm",
    "contrast_norm_backward",
    "max_pool2d_contrast_norm",
    "conv2d_relu_max_pool2d",
    "conv2d_relu_max_pool2d_weight_grad",
    "max_unpool2d_relu_conv_transpose2d",
]


def network(x, weight, bias, narrow):
    """Every public op in one function of x and weights, differentiable in all of them."""
    y, switches = zf.conv2d_relu_max_pool2d(x, weight, bias, 1, 1, 3, 2, 0, True)
    y = zf.contrast_norm(y, 3, 0.5, center=True)
    z = zf.conv2d_relu(y, narrow, None, 1, 1)
    pooled, others = zf.max_pool2d_with_switches(z, 2)
    z = zf.max_unpool2d_with_switches(pooled, others, 2, output_size=z.shape[2:])
    z = z * zf.avg_pool2d(zf.avg_pool2d(z, 3, 1, 1), z.shape[2:])
    z = zf.relu_conv_transpose2d(z, narrow, 1, 1, output_size=y.shape[2:])
    x = zf.max_unpool2d_relu_conv_transpose2d(z, switches, weight, 1, 1, 3, 2, 0, output_size=x.shape[2:])
    return x.square().sum()


def network_arguments():
    return randn(2, 3, 9, 8), randn(4, 3, 3, 3), randn(4), randn(5, 4, 3, 3)


class Network(torch.nn.Module):
    def forward(self, *arguments):
        return network(*arguments)
