"""The ops through torch's library: opcheck, fake kernels, compilation, export, meta tensors."""

import pytest
import torch
from conftest import error
from samples import BACKENDS, LIBRARY_OPS, Network, library_calls, network, network_arguments, on_each_backend, randn
from torch.library import opcheck

import zfkernels as zf
from zfkernels.backends import reference

for _name in zf.__all__:  # an op is known to torch when its module is imported, and not before
    getattr(zf, _name)


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


def _reversed_layer(x):
    weight, bias = torch.ones(4, 3, 3, 3, dtype=x.dtype), torch.ones(4, dtype=x.dtype)
    y, switches = zf.conv2d_relu_max_pool2d(x, weight, bias, 1, 1, 3, 2, 0, True)
    window = weight, 1, 1, 3, 2, 0
    return zf.max_unpool2d_relu_conv_transpose2d(y, switches, *window, output_size=x.shape[2:])


TRACED = {
    "max_pool2d": lambda x: zf.max_pool2d_with_switches(x, 3, 2),
    "max_unpool2d": lambda x: zf.max_unpool2d_with_switches(
        *zf.max_pool2d_with_switches(x, 2), 2, output_size=x.shape[2:]
    ),
    "conv_transpose2d": lambda x: zf.relu_conv_transpose2d(
        x, torch.ones(3, 2, 1, 1, dtype=x.dtype), output_size=x.shape[-2:]
    ),
    "conv2d_relu_max_pool2d": lambda x: zf.conv2d_relu_max_pool2d(
        x, torch.ones(4, 3, 3, 3, dtype=x.dtype), None, 1, 1, 3, 2, 0, True
    ),
    "max_unpool2d_relu_conv_transpose2d": _reversed_layer,
    "max_pool2d_contrast_norm": lambda x: zf.max_pool2d_contrast_norm(x, 3, 2),
    "avg_pool2d": lambda x: zf.avg_pool2d(zf.avg_pool2d(x, 2), (x.shape[2] // 2, x.shape[3] // 2)),
    "contrast_norm": lambda x: zf.contrast_norm(x),
    "conv2d_add": lambda x: zf.conv2d_relu(x, torch.ones(3, 1, 3, 3, dtype=x.dtype), None, 1, 1, 1, 3, add=x, cap=2.0),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TRACED)
def test_jit_trace(name, tmp_path):
    """Recorded, saved, loaded and differentiated, on another batch."""
    torch.jit.save(torch.jit.trace(TRACED[name], (randn(1, 3, 8, 9, grad=False),)), str(tmp_path / "traced.pt"))
    traced = torch.jit.load(str(tmp_path / "traced.pt"))
    assert f"zfkernels::{name}" in str(traced.graph)
    x = randn(2, 3, 8, 9)
    outs, wanted = ((y if isinstance(y, tuple) else (y,)) for y in (traced(x), TRACED[name](x)))
    assert all(torch.equal(a, b) for a, b in zip(outs, wanted, strict=True))
    (gradient,), (expected,) = (torch.autograd.grad(y[0].square().sum(), x) for y in (outs, wanted))
    assert torch.equal(gradient, expected)


@pytest.mark.filterwarnings("ignore")
def test_jit_trace_of_a_network():
    settings = {"channels": (6, 7, 8, 8, 5), "fc": (12, 10), "without": ("pool5",), "weight_std": None}
    model = zf.ZFNet(num_classes=3, image_size=48, **settings).eval()
    traced = torch.jit.trace(model, torch.randn(1, 3, 48, 48))
    x = torch.randn(2, 3, 48, 48)
    assert torch.equal(traced(x), model(x))
