"""The ops from Python: derivatives of every order, what they compute and keep, transforms, the choice of a backend."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import error
from samples import BACKENDS, LIBRARY_OPS, library_calls, on_each_backend, randn
from torch.autograd import gradcheck, gradgradcheck

import zfkernels as zf
from zfkernels import backends
from zfkernels.backends import reference
from zfkernels.ops.avg_pool import avg_pool2d_backward
from zfkernels.ops.conv import conv2d, conv2d_weight_grad, conv_transpose2d
from zfkernels.ops.fused import layer_weight_grad
from zfkernels.ops.max_pool import max_unpool2d_backward

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
        "conv2d_add": (
            lambda x, w, b, z: zf.conv2d_relu(x, w, b, **window, add=z, cap=2.5, **kw),
            (x, weight, bias, y),
        ),
        "depthwise": (
            lambda x, w, b: zf.conv2d_relu(x, w, b, 2, 1, 2, 6, **kw),
            (randn(1, 6, 7, 6), randn(6, 1, 3, 3), randn(6)),
        ),
        "grouped": (
            lambda x, w: conv2d(x, w, None, (2, 1), (1, 2), False, backend, (1, 2), 2),
            (randn(1, 6, 7, 6), randn(4, 3, 3, 3)),
        ),
        "grouped_transposed": (
            lambda y, w: zf.relu_conv_transpose2d(y, w, 2, 1, 2, 2, output_size=(7, 6), **kw),
            (randn(1, 4, 3, 2), randn(4, 3, 3, 3)),
        ),
        "conv2d_weight_grad": (lambda x, g: conv2d_weight_grad(x, g, (3, 2), *conv[:2], True, backend), (x, g)),
        "max_pool2d": (lambda x: zf.max_pool2d_with_switches(x, 3, 2, 1, **kw)[0], (x,)),
        "max_unpool2d": (lambda y: zf.max_unpool2d_with_switches(y, switches, 3, 2, 1, **size, **kw), (pooled,)),
        "avg_pool2d": (lambda x: zf.avg_pool2d(x, 3, 2, 1, True, False, **kw), (x,)),
        "avg_pool2d_of_maps": (lambda x: zf.avg_pool2d(x, x.shape[2:], **kw), (x,)),
        "avg_pool2d_backward": (
            lambda g: avg_pool2d_backward(g, (3, 3), (2, 2), (1, 1), (7, 6), True, backend),
            (randn(1, 2, 4, 3),),
        ),
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
        if name.startswith(("conv", "max_", "avg_", "contrast")):
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
    assert saved_bytes(lambda: zf.avg_pool2d(x, 2)) == 0
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
