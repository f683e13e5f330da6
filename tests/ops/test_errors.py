"""Wrong calls, as a new user makes them: each raises the right type, with a message that names the argument.

Nothing may run before the check, so every call uses a backend whose functions fail the test.
"""

import os
import subprocess
import sys

import pytest
import torch
from wrong_calls import WRONG, B, P, S, W, X, Y, average, conv, deconv, layer, norm, pool, pool_norm, reverse, unpool

import zfkernels as zf
from zfkernels import backends
from zfkernels.backends import reference


@pytest.fixture(params=["reference", "cpu"])
def nothing_runs(request, monkeypatch, triton_absent):
    """The default backend, every kernel of which fails the test."""
    if request.param not in zf.available_backends():
        pytest.skip(f"{request.param} cannot run here")
    module = backends.module(request.param)

    def ran(*_):
        pytest.fail("a kernel ran")

    for name in vars(reference):
        if name.startswith(("conv", "max_", "avg_", "contrast")):
            monkeypatch.setattr(module, name, ran)
    with zf.use_backend(request.param):
        yield


@pytest.mark.parametrize(("call", "arguments", "kind", "text"), [w[1:] for w in WRONG], ids=[w[0] for w in WRONG])
def test_wrong_call(nothing_runs, call, arguments, kind, text):
    with pytest.raises(Exception) as raised:  # noqa: PT011 (the next line is stricter)
        call(**arguments)
    assert type(raised.value) is kind
    assert text in str(raised.value)


def test_the_right_calls_run():
    """The calls that the table spoils are sound."""
    for call in (conv, pool, average, norm, pool_norm, unpool, deconv, layer, reverse):
        assert call(backend="reference") is not None


def test_missing_output_size():
    with pytest.raises(TypeError, match="output_size"):
        zf.relu_conv_transpose2d(Y, W)
    with pytest.raises(TypeError, match="output_size"):
        zf.max_unpool2d_with_switches(P, S, 2)


def test_backend_that_does_not_serve_a_device_or_dtype(nothing_runs, monkeypatch):
    name = backends.choose(None, "cpu")
    monkeypatch.setattr(backends.module(name), "DTYPES", (torch.float32,))
    with pytest.raises(RuntimeError, match=f"backend '{name}' does not serve dtype torch.float64, only float32"):
        conv(X.double(), W.double(), B.double())
    monkeypatch.setattr(backends.module(name), "DEVICES", ("cuda",))
    with pytest.raises(RuntimeError, match=f"backend '{name}' does not serve device 'cpu', only cuda"):
        conv()


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("cpu", r"can't allocate memory: a kernel tried to allocate \d{15,} bytes .* padding or dilation take less"),
        ("reference", r"can't allocate memory for conv2d on backend 'reference': Unable to allocate .* PiB"),
    ],
)
def test_memory_that_nobody_has_is_said_in_words(backend, words):
    """The result is small; what a kernel works in is larger than any address."""
    if backend not in zf.available_backends():
        pytest.skip(f"{backend} cannot run here")
    far = (1, 2**31 - 1)
    with pytest.raises(RuntimeError, match=words):
        conv(torch.ones(1, 4096, 8, 8), torch.ones(1, 4096, 3, 3), None, padding=far, dilation=far, backend=backend)


def test_device_that_no_backend_serves():
    with pytest.raises(RuntimeError, match="no backend can run on device 'mps'"):
        backends.choose(None, "mps")


def test_device_whose_backends_cannot_run(monkeypatch):
    monkeypatch.setattr(backends.registry, "reason", lambda name: f"{name} is broken")
    monkeypatch.setattr(backends.registry, "_loaded", {})
    with pytest.raises(RuntimeError, match="cuda: cuda is broken; triton: triton is broken"):
        backends.choose(None, "cuda")
    with pytest.raises(RuntimeError, match="backend 'cpu' cannot run here: cpu is broken"):
        conv()


def test_on_hopper_wide_layers_are_tritons(monkeypatch):
    """Where a layer's time is products, in 16-bit types, and both backends run; nowhere else."""
    monkeypatch.setattr(backends.registry, "reason", lambda name: None)
    chosen = {}
    for found in ((9, 0), (8, 0)):
        monkeypatch.setattr(backends.registry, "capability", lambda index, found=found: found)
        for op, channels, half in (
            ("conv2d", 96, True),
            ("conv2d", 3, True),
            ("conv2d", 96, False),
            ("max_unpool2d_relu_conv_transpose2d", 96, True),
            ("max_unpool2d_relu_conv_transpose2d", 3, True),
            ("max_pool2d_contrast_norm", 96, True),
        ):
            key = f"{op} {channels} {'half' if half else 'single'} sm_{found[0]}{found[1]}"
            chosen[key] = backends.choose(None, "cuda", backends.order("cuda", op, channels, half))
    assert [key for key, name in chosen.items() if name == "triton"] == [
        "conv2d 96 half sm_90",
        "max_unpool2d_relu_conv_transpose2d 96 half sm_90",
    ]
    monkeypatch.setattr(backends.registry, "capability", lambda index: (9, 0))
    monkeypatch.setattr(backends.registry, "_loaded", {})
    monkeypatch.setattr(backends.registry, "reason", lambda name: "absent" if name == "triton" else None)
    assert backends.choose(None, "cuda", backends.order("cuda", "conv2d", 96, True)) == "cuda"
    assert backends.choose("cuda", "cuda", ("triton", "cuda")) == "cuda"
    with zf.use_backend(None):
        backends.registry._chosen = "reference"
        assert backends.choose(None, "cuda", ("triton", "cuda")) == "reference"


def test_the_layers_ask_by_their_op_and_weight(monkeypatch):
    asked = []
    monkeypatch.setattr(zf.ops.checks, "backend", lambda name, value, *rest: asked.append(rest) or "cpu")
    conv()
    zf.relu_conv_transpose2d(Y, W, output_size=X.shape[2:])
    assert [(op, weight is W) for op, weight in asked] == [("conv2d", True), ("conv_transpose2d", True)]


def test_use_backend_refuses_at_once(triton_absent):
    with pytest.raises(ValueError, match="backend must be one of"):
        zf.use_backend("fastest")
    with pytest.raises(RuntimeError, match="backend 'triton' cannot run here"):
        zf.use_backend("triton")
    with pytest.raises(TypeError, match="backend must be a str or None, got int"):
        zf.use_backend(0)
    assert zf.contrast_norm(X).shape == X.shape


def test_environment_variable_with_an_unknown_name_is_named():
    code = "import torch, zfkernels as zf; zf.contrast_norm(torch.ones(1, 3, 2, 2))"
    environment = os.environ | {"ZFKERNELS_BACKEND": "fastest"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert "got 'fastest' (from the environment variable ZFKERNELS_BACKEND)" in done.stderr


def test_wrong_call_under_compile_says_the_same():
    def wrong(x):
        return zf.conv2d_relu(x, W[:, :2], None)

    with pytest.raises(Exception, match="weight must have x's 3 channels"):
        torch.compile(wrong, backend="eager", fullgraph=True)(X)


def test_second_derivative_of_contrast_norm():
    x = torch.randn(1, 4, 2, 2, dtype=torch.float64, requires_grad=True)
    (g,) = torch.autograd.grad(zf.contrast_norm(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="contrast_norm has no second derivative"):
        g.sum().backward()


def test_forward_mode_is_refused_not_taken_for_zero():
    with pytest.raises(NotImplementedError, match="conv2d has no forward-mode derivative"):
        torch.func.jvp(lambda x: zf.conv2d_relu(x, W), (X,), (X,))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, X)
        with pytest.raises(NotImplementedError, match="contrast_norm has no forward-mode derivative"):
            zf.contrast_norm(dual)
        assert zf.contrast_norm(X).shape == X.shape
