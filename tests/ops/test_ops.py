"""The specs of the ops: both ways in, every order of derivative, autocast, compilation, export, choice of backend."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import error
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

import zfkernels as zf
from zfkernels import backends, window
from zfkernels.backends import reference
from zfkernels.ops.conv import conv2d, conv2d_weight_grad, conv_transpose2d
from zfkernels.ops.fused import layer_weight_grad
from zfkernels.ops.max_pool import max_unpool2d_backward

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
        "conv2d": (x, weight, bias, (2, 1), (1, 1), True, backend),
        "conv_transpose2d": (y, weight, (2, 1), (1, 1), (7, 6), True, backend),
        "conv2d_weight_grad": (x, y, (3, 2), (2, 1), (1, 1), True, backend),
        "max_pool2d": (x, *pool, (4, 3), backend),
        "max_unpool2d": (pooled, switches, *pool, (7, 6), backend),
        "max_unpool2d_backward": (x, switches, *pool, backend),
        "contrast_norm": (x, *norm),
        "contrast_norm_backward": (randn(n, 3, 7, 6, grad=False), x.detach(), *norm),
        "max_pool2d_contrast_norm": (x, *pool, (4, 3), *norm),
        "conv2d_relu_max_pool2d": (x, weight, bias, *layer_window, layer.shape[2:], backend),
        "conv2d_relu_max_pool2d_weight_grad": (x, layer, layer_switches, (3, 2), *layer_window, True, backend),
        "max_unpool2d_relu_conv_transpose2d": (layer, layer_switches, weight, *layer_window, (7, 6), True, backend),
    }


LIBRARY_OPS = [
    "conv2d",
    "conv_transpose2d",
    "conv2d_weight_grad",
    "max_pool2d",
    "max_unpool2d",
    "max_unpool2d_backward",
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
    z = zf.relu_conv_transpose2d(z, narrow, 1, 1, output_size=y.shape[2:])
    x = zf.max_unpool2d_relu_conv_transpose2d(z, switches, weight, 1, 1, 3, 2, 0, output_size=x.shape[2:])
    return x.square().sum()


def network_arguments():
    return randn(2, 3, 9, 8), randn(4, 3, 3, 3), randn(4), randn(5, 4, 3, 3)


class Network(torch.nn.Module):
    def forward(self, *arguments):
        return network(*arguments)


# Window arithmetic


def test_pool_size_is_torch_s():
    for size in range(1, 12):
        x = torch.zeros(1, 1, size, size)
        for kernel in range(1, 6):
            for stride in range(1, 6):
                for padding in range(kernel // 2 + 1):
                    for ceil_mode in (False, True):
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
    layers = [(7, 2, 1), (3, 2, 0), (5, 2, 0), (3, 2, 0), (3, 1, 1), (3, 1, 1), (3, 1, 1), (3, 2, 0)]
    fields = [window.receptive_field(layers[: n + 1]) for n in range(len(layers))]
    assert [field.size for field in fields] == [7, 11, 27, 43, 75, 107, 139, 171]
    assert [field.stride for field in fields] == [2, 4, 8, 16, 16, 16, 16, 32]
    assert [field.start for field in fields] == [-1, -1, -1, -1, -17, -33, -49, -49]
    first, last = 2, 5
    for kernel, stride, padding in reversed(layers):
        first, last = window.covered(first, last, kernel, stride, padding)
    field = fields[-1]
    assert (first, last) == (field.start + 2 * field.stride, field.start + 4 * field.stride + field.size)


# The way through the library


@on_each_backend
@pytest.mark.parametrize("name", LIBRARY_OPS)
def test_opcheck(backend, name):
    opcheck(getattr(torch.ops.zfkernels, name).default, library_calls(backend)[name])


@pytest.mark.parametrize(("n", "filters"), [(0, 4), (1, 1)])
@pytest.mark.parametrize("name", LIBRARY_OPS)
@on_each_backend
def test_fake_kernels_report_the_real_strides(backend, name, n, filters):
    """opcheck's third test, at no images and at one filter, where strides are ambiguous."""
    arguments = library_calls(backend, n, filters, grad=False)[name]
    opcheck(getattr(torch.ops.zfkernels, name).default, arguments, test_utils="test_faketensor")
    meta = [value.to("meta") if isinstance(value, torch.Tensor) else value for value in arguments]
    real, fake = (getattr(torch.ops.zfkernels, name)(*values) for values in (arguments, meta))
    for r, f in zip(*((out if isinstance(out, tuple) else (out,)) for out in (real, fake)), strict=True):
        assert (f.shape, f.stride(), f.dtype) == (r.shape, r.stride(), r.dtype)


def test_library_has_each_op_once():
    assert sorted(LIBRARY_OPS) == sorted(
        name for name in dir(torch.ops.zfkernels) if not name.startswith("_") and name != "name"
    )


@on_each_backend
def test_both_ways_give_the_same_bits(backend):
    """A no-op dispatch mode sends the same call through the library."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    arguments = network_arguments()
    with zf.use_backend(backend):
        eager = network(*arguments)
        expected = torch.autograd.grad(eager, arguments)
        with Watch():
            library = network(*arguments)
            gradients = torch.autograd.grad(library, arguments)
    assert "zfkernels.conv2d_relu_max_pool2d.default" in seen
    assert torch.equal(eager, library)
    assert all(torch.equal(a, b) for a, b in zip(expected, gradients, strict=True))


SLOW = BACKENDS[-1]  # once is enough for the slow ones


@pytest.mark.parametrize(
    ("backend", "compiler", "dynamic"),
    [*((name, "aot_eager", False) for name in BACKENDS), (SLOW, "aot_eager", True), (SLOW, "inductor", False)],
)
def test_compile(backend, compiler, dynamic):
    torch._dynamo.reset()
    compiled = torch.compile(network, fullgraph=True, backend=compiler, dynamic=dynamic)
    arguments = network_arguments()
    with zf.use_backend(backend):
        out, expected = compiled(*arguments), network(*arguments)
        gradients, wanted = (torch.autograd.grad(y, arguments) for y in (out, expected))
    assert error(out, expected) <= 1e-12
    assert all(error(a, b) <= 1e-12 for a, b in zip(gradients, wanted, strict=True))


def test_compiled_function_follows_use_backend(monkeypatch):
    """dynamo guards on the choice: the same compiled function, another backend."""
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: zf.contrast_norm(x), fullgraph=True, backend="aot_eager")
    x = randn(1, 3, 2, 2, grad=False)
    assert error(compiled(x), zf.contrast_norm(x, backend="reference")) <= 1e-12
    monkeypatch.setattr(reference, "contrast_norm", lambda x, *_: torch.full_like(x, 7))
    with zf.use_backend("reference"):
        assert (compiled(x) == 7).all()
    with zf.use_backend("cpu" if "cpu" in BACKENDS else "reference"):
        assert (compiled(x) == 7).all() == ("cpu" not in BACKENDS)


@on_each_backend
@pytest.mark.parametrize("strict", [False, True])
def test_export(backend, strict):
    arguments = tuple(value.detach() for value in network_arguments())
    with zf.use_backend(backend):
        dynamic = ({0: torch.export.Dim("n", min=2, max=64)}, None, None, None)
        program = torch.export.export(Network(), arguments, strict=strict, dynamic_shapes=(dynamic,))
        arguments = (randn(5, 3, 9, 8, grad=False), *arguments[1:])
        assert error(program.module()(*arguments), network(*arguments)) <= 1e-12
    assert any("zfkernels.contrast_norm.default" in str(node.target) for node in program.graph.nodes)


def test_meta_tensors_have_shapes():
    x, weight = torch.empty(2, 3, 224, 224, device="meta"), torch.empty(96, 3, 7, 7, device="meta")
    y, switches = zf.conv2d_relu_max_pool2d(x, weight, None, 2, 1, 3, 2, 0, True)
    assert y.shape == switches.shape == (2, 96, 55, 55)
    assert y.is_meta
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.filterwarnings("ignore")
def test_jit_trace_records_the_op():
    weight = randn(4, 3, 3, 3, grad=False)
    traced = torch.jit.trace(lambda x: zf.conv2d_relu(x, weight), (randn(1, 3, 5, 5, grad=False),))
    x = randn(1, 3, 5, 5, grad=False)
    assert torch.equal(traced(x), zf.conv2d_relu(x, weight))


# Derivatives


@on_each_backend
def test_gradcheck(backend):
    with zf.use_backend(backend):
        for name, arguments in library_calls(backend).items():
            if name != "contrast_norm_backward":
                tensors = [value for value in arguments if isinstance(value, torch.Tensor)]
                rest = arguments[len(tensors) :]

                def call(*tensors, name=name, rest=rest):
                    out = getattr(torch.ops.zfkernels, name)(*tensors, *rest)
                    return out[::2] if "_pool2d" in name and name != "conv2d_relu_max_pool2d_weight_grad" else out

                assert gradcheck(call, tensors, fast_mode=True), name


def eager_calls(backend: str) -> dict:
    """Each op in eager mode, as a function of the tensors that have gradients, and these tensors."""
    a = library_calls(backend)
    x, weight, bias, *conv = a["conv2d"]
    y, g = a["conv_transpose2d"][0], a["conv2d_weight_grad"][1]
    pooled, switches = a["max_unpool2d"][:2]
    layer, layer_switches = a["max_unpool2d_relu_conv_transpose2d"][:2]
    window, size = {"stride": (2, 1), "padding": 1}, {"output_size": (7, 6)}
    kw = {"backend": backend}

    def reverse(rectify):
        def call(y, w):
            return zf.max_unpool2d_relu_conv_transpose2d(
                y, layer_switches, w, 1, 1, 3, 2, 0, rectify=rectify, **size, **kw
            )

        return call

    return {
        "conv2d_relu": (lambda x, w, b: zf.conv2d_relu(x, w, b, **window, **kw), (x, weight, bias)),
        "conv2d": (lambda x, w, b: conv2d(x, w, b, *conv[:2], False, backend), (x, weight, bias)),
        "relu_conv_transpose2d": (lambda y, w: zf.relu_conv_transpose2d(y, w, **window, **size, **kw), (y, weight)),
        "conv_transpose2d": (lambda y, w: conv_transpose2d(y, w, *conv[:2], (7, 6), False, backend), (y, weight)),
        "conv2d_weight_grad": (lambda x, g: conv2d_weight_grad(x, g, (3, 2), *conv[:2], True, backend), (x, g)),
        "max_pool2d": (lambda x: zf.max_pool2d_with_switches(x, 3, 2, 1, **kw)[0], (x,)),
        "max_unpool2d": (lambda y: zf.max_unpool2d_with_switches(y, switches, 3, 2, 1, **size, **kw), (pooled,)),
        "max_unpool2d_backward": (
            lambda g: max_unpool2d_backward(g, switches, (3, 3), (2, 2), (1, 1), backend),
            (x,),
        ),
        "layer": (lambda x, w, b: zf.conv2d_relu_max_pool2d(x, w, b, 1, 1, 3, 2, 0, True, **kw)[0], (x, weight, bias)),
        "layer_weight_grad": (
            lambda x, g: layer_weight_grad(
                x, g, layer_switches, (3, 2), *a["conv2d_relu_max_pool2d"][3:8], True, backend
            ),
            (x, layer),
        ),
        "layer_reversed": (reverse(True), (layer, weight)),
        "layer_reversed_plain": (reverse(False), (layer, weight)),
    }


@on_each_backend
@pytest.mark.parametrize("name", list(eager_calls("reference")))
def test_gradcheck_and_gradgradcheck(backend, name):
    call, tensors = eager_calls(backend)[name]
    assert gradcheck(call, tensors, fast_mode=True)
    assert gradgradcheck(call, tensors, fast_mode=True)


@on_each_backend
@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("size", [1, 4, 5, 9])
def test_gradcheck_contrast_norm(backend, center, size):
    x = randn(2, 5, 2, 3)
    assert gradcheck(
        lambda x: zf.contrast_norm(x, size, 0.9, 0.75, 1.1, center=center, backend=backend), (x,), fast_mode=True
    )


@on_each_backend
def test_pooling_and_norm_in_one_are_the_two(backend):
    x = randn(2, 6, 7, 8)
    y, switches = zf.max_pool2d_with_switches(x, 3, 2, ceil_mode=True, backend=backend)
    z = zf.contrast_norm(y, 4, 0.3, center=True, backend=backend)
    fused = zf.max_pool2d_contrast_norm(x, 3, 2, 0, True, 4, 0.3, center=True, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(fused, (y, switches, z), strict=True))
    weights = torch.randn_like(y), torch.randn_like(z)
    for chosen in ((True, True), (True, False), (False, True)):
        loss, fused_loss = (
            sum((w * v).sum() for w, v, c in zip(weights, values, chosen, strict=True) if c)
            for values in ((y, z), fused[::2])
        )
        (gx,), (fused_gx,) = (torch.autograd.grad(v, x, retain_graph=True) for v in (loss, fused_loss))
        assert error(fused_gx, gx) <= 1e-12


class Counted:
    """A stand-in for a backend function that records its calls."""

    def __init__(self, function, calls: list):
        self.function, self.calls = function, calls

    def __call__(self, *arguments):
        self.calls.append(self.function.__name__)
        return self.function(*arguments)


@pytest.fixture
def calls(monkeypatch) -> list:
    """The names of the reference's functions in the order in which ops call them."""
    recorded = []
    for name, function in list(vars(reference).items()):
        if name.startswith(("conv", "max_", "contrast")):
            monkeypatch.setattr(reference, name, Counted(function, recorded))
    with zf.use_backend("reference"):
        yield recorded


def test_a_gradient_that_is_not_needed_is_not_computed(calls):
    x, weight, bias = randn(1, 2, 6, 6), randn(3, 2, 3, 3), randn(3)
    expected = {
        (True, False, False): ["conv_transpose2d"],
        (False, True, False): ["conv2d_weight_grad"],
        (False, False, True): [],
        (False, True, True): ["conv2d_weight_grad"],
        (True, True, True): ["conv_transpose2d", "conv2d_weight_grad"],
    }
    for needed, wanted in expected.items():
        tensors = [t.detach().requires_grad_(n) for t, n in zip((x, weight, bias), needed, strict=True)]
        y = zf.conv2d_relu(*tensors)
        calls.clear()
        y.sum().backward()
        assert calls == wanted
        assert [t.grad is not None for t in tensors] == list(needed)


def test_gradients_of_the_fused_layer_use_the_fewest_passes(calls):
    x, weight = randn(1, 2, 7, 7), randn(3, 2, 3, 3)
    for needed in ((True, False), (False, True), (True, True)):
        tensors = [t.detach().requires_grad_(n) for t, n in zip((x, weight), needed, strict=True)]
        y, switches = zf.conv2d_relu_max_pool2d(*tensors, None, 1, 0, 2, 2, 0, False)
        calls.clear()
        y.sum().backward()
        if needed == (True, False):
            assert calls[0] == "max_unpool2d_relu_conv_transpose2d"
            assert "conv2d_weight_grad" not in calls
        else:
            first = ["max_unpool2d", "conv_transpose2d"] if needed[0] else ["conv2d_relu_max_pool2d_weight_grad"]
            assert calls[: len(first)] == first
            assert calls.count("conv2d_weight_grad") == 1
        assert not switches.requires_grad


def saved_bytes(call) -> int:
    sizes = {}

    def pack(tensor):
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = call()
    del out
    return sum(sizes.values())


def test_what_is_kept_for_the_backward_pass():
    x, weight = randn(2, 3, 32, 32), randn(8, 3, 3, 3)
    assert saved_bytes(lambda: zf.contrast_norm(x)) == x.numel() * 8
    assert saved_bytes(lambda: zf.max_pool2d_with_switches(x, 2)) == x.numel() // 4
    layer = saved_bytes(lambda: zf.conv2d_relu_max_pool2d(x, weight, None, 1, 1, 2, 2, 0, False))
    assert layer == (x.numel() + weight.numel()) * 8 + 2 * 8 * 16 * 16 * (8 + 1)  # pooled map and switches, no more
    reverse_switches = torch.zeros(2, 8, 16, 16, dtype=torch.uint8)
    y = randn(2, 8, 16, 16)
    kept = saved_bytes(
        lambda: zf.max_unpool2d_relu_conv_transpose2d(y, reverse_switches, weight, 1, 1, 2, 2, 0, output_size=32)
    )
    assert kept == (y.numel() + weight.numel()) * 8 + reverse_switches.numel()


def test_backward_uses_its_forward_s_backend(calls):
    x = randn(1, 4, 3, 3)
    with zf.use_backend("reference"):
        y = zf.contrast_norm(x)
    with zf.use_backend(BACKENDS[-1]):
        y.sum().backward()
    assert calls == ["contrast_norm", "contrast_norm_backward"]


def test_gradient_at_zero_is_zero_and_through_nan_passes():
    x = torch.tensor([0.0, -1.0, 2.0, torch.nan]).view(1, 1, 1, 4).requires_grad_()
    weight = torch.ones(1, 1, 1, 1)
    for call in (
        lambda: zf.conv2d_relu(x, weight),
        lambda: zf.relu_conv_transpose2d(x, weight, output_size=(1, 4)),
        lambda: zf.conv2d_relu_max_pool2d(x, weight, None, 1, 0, 1, 1, 0, False)[0],
    ):
        assert torch.autograd.grad(call().sum(), x)[0].flatten().tolist() == [0, 0, 1, 1]


@on_each_backend
def test_functional_transforms(backend):
    weight = randn(4, 3, 3, 3, grad=False)
    xs = randn(3, 2, 3, 6, 6, grad=False)

    def f(x):
        y, switches = zf.conv2d_relu_max_pool2d(x, weight, None, 1, 1, 3, 2, 0, True, backend=backend)
        return zf.max_unpool2d_relu_conv_transpose2d(
            y, switches, weight, 1, 1, 3, 2, 0, output_size=6, backend=backend
        ).square()

    x = xs[0].clone().requires_grad_()
    expected = torch.autograd.grad(f(x).sum(), x)[0]
    assert torch.equal(torch.func.grad(lambda x: f(x).sum())(xs[0]), expected)
    assert torch.equal(torch.func.vmap(f)(xs), torch.stack([f(x) for x in xs]))
    assert torch.equal(torch.func.vmap(f, in_dims=1)(xs), torch.stack([f(x) for x in xs.unbind(1)]))
    by_sample = torch.func.vmap(torch.func.grad(lambda x: f(x[None]).sum()))(xs[0])
    assert error(by_sample, expected) <= 1e-12


@on_each_backend
def test_no_grad_and_inference_mode(backend):
    x, weight = randn(1, 3, 5, 5), randn(2, 3, 3, 3)
    expected = zf.conv2d_relu(x, weight, backend=backend)
    assert expected.requires_grad
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            y = zf.conv2d_relu(x, weight, backend=backend)
        assert not y.requires_grad
        assert torch.equal(y, expected)


@on_each_backend
def test_view_with_a_pending_negation(backend):
    z = torch.randn(1, 3, 4, 4, dtype=torch.complex128).conj()
    assert z.imag.is_neg()
    expected = zf.contrast_norm(z.imag.clone().resolve_neg(), backend=backend)
    assert torch.equal(zf.contrast_norm(z.imag, backend=backend), expected)


@on_each_backend
def test_results_do_not_follow_the_default_device_or_dtype(backend):
    x = randn(1, 3, 4, 4, grad=False, dtype=torch.float32)
    weight = randn(2, 3, 1, 1, grad=False, dtype=torch.float32)
    with torch.device("meta"):
        y, switches = zf.conv2d_relu_max_pool2d(x, weight, None, 1, 0, 2, 2, 0, False, backend=backend)
        z = zf.max_unpool2d_relu_conv_transpose2d(y, switches, weight, 1, 0, 2, 2, 0, output_size=4, backend=backend)
        n = zf.contrast_norm(z, backend=backend)
    assert {t.device.type for t in (y, switches, z, n)} == {"cpu"}
    assert {t.dtype for t in (y, z, n)} == {torch.float32}


# Autocast


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


# The choice of a backend


def test_use_backend_is_setter_and_context_manager(calls):
    x = randn(1, 3, 2, 2, grad=False)
    other = "cpu" if "cpu" in BACKENDS else None
    with zf.use_backend(other):
        zf.contrast_norm(x)
        assert len(calls) == (other is None)
        with zf.use_backend("reference"):
            zf.contrast_norm(x)
        first = len(calls)
        zf.use_backend("reference")
        zf.contrast_norm(x)
        assert len(calls) == first + 1
        if other:
            zf.contrast_norm(x, backend=other)
            assert len(calls) == first + 1
    zf.contrast_norm(x)  # the fixture's choice is back
    assert len(calls) == first + 2


def test_use_backend_ends_with_its_block_on_an_error():
    before = backends.choose(None, "cpu")
    with pytest.raises(ZeroDivisionError), zf.use_backend("reference"):
        raise ZeroDivisionError
    assert backends.choose(None, "cpu") == before == "cpu"


def test_environment_variable():
    code = "import zfkernels as zf; from zfkernels import backends; print(backends.choose(None, 'cpu'))"
    for value, chosen in (("reference", "reference"), ("", "cpu")):
        environment = os.environ | {"ZFKERNELS_BACKEND": value}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == chosen


def test_public_names():
    assert set(zf.__all__) <= set(dir(zf))
    for name in zf.__all__:
        assert getattr(zf, name).__doc__, f"{name} has no docstring"


def test_backends_have_the_same_functions():
    """One row of the op x backend matrix is the other's."""

    def functions(module):
        return {name for name, value in vars(module).items() if callable(value) and value.__module__ == module.__name__}

    public = {name for name in functions(reference) if not name.startswith("_")}
    assert public == {"unavailable", *LIBRARY_OPS}
    for name in BACKENDS:
        assert {n for n in functions(backends.module(name)) if not n.startswith("_")} == public, name


@on_each_backend
def test_numpy_s_numbers_will_do(backend):
    x = randn(1, 3, 8, 8)
    y, _ = zf.max_pool2d_with_switches(x, np.int64(3), (np.int32(2), 2), np.uint8(1), backend=backend)
    assert torch.equal(y, zf.max_pool2d_with_switches(x, 3, 2, 1, backend=backend)[0])
    n = zf.contrast_norm(x, np.int64(5), np.float64(0.1), backend=backend)
    assert torch.equal(n, zf.contrast_norm(x, 5, 0.1, backend=backend))


# Overhead


def test_overhead_of_a_call(monkeypatch):
    """Checks, choice of the backend and autograd, above a backend that does nothing: some 5 to 20 microseconds.

    The bound is five times what an idle machine measures, for a test must not depend on what else the machine does;
    it still fails on a way of the wrong kind (a torch.library op takes some 100 microseconds).
    """
    x, weight, bias = (randn(*s, dtype=torch.float32) for s in ((1, 3, 8, 8), (4, 3, 3, 3), (4,)))
    y = torch.zeros(1, 4, 6, 6)
    monkeypatch.setattr(reference, "conv2d", lambda *_: y.view_as(y))

    def microseconds(call, repeats=100, rounds=50) -> float:
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            times.append(time.perf_counter() - start)
        return min(times) / repeats * 1e6

    with zf.use_backend("reference"):
        with_gradient = microseconds(lambda: zf.conv2d_relu(x, weight, bias))
        with torch.no_grad():
            without = microseconds(lambda: zf.conv2d_relu(x, weight, bias))
            bare = microseconds(lambda: reference.conv2d(x, weight, bias))
    assert without - bare < 50
    assert with_gradient - bare < 80
