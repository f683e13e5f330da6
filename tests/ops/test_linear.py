"""zfkernels.nn.Linear beside torch.nn.Linear: values and gradients, on the path of large weights and on torch's."""

import pytest
import torch
from conftest import error
from torch import nn

import zfkernels as zf
from zfkernels.ops import linear
from zfkernels.testing.compare import BOUNDS


@pytest.fixture(params=[0, linear.LARGE], ids=["large", "small"])
def least(request, monkeypatch):
    """From how many bytes on a weight is large."""
    monkeypatch.setattr(linear, "LARGE", request.param)
    return request.param


def twins(bias=True, dtype=torch.float32):
    ours, theirs = zf.nn.Linear(33, 20, bias, dtype=dtype), nn.Linear(33, 20, bias, dtype=dtype)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("n", [0, 1, 2, 3, 8, 64, 65])
def test_values_and_gradients(n, bias, least):
    ours, theirs = twins(bias)
    x, g = torch.randn(n, 33), torch.randn(n, 20)
    results = []
    for module in (ours, theirs.double()):
        like = next(module.parameters())
        leaf = x.detach().to(like).clone().requires_grad_()
        y = module(leaf)
        assert y.shape == (n, 20)
        assert y.is_contiguous()
        assert (type(y.grad_fn).__name__ == "_LinearBackward") == (module is ours and least == 0)
        y.backward(g.to(like))
        results.append((y, leaf.grad, *(p.grad for p in module.parameters())))
    for found, expected in zip(*results, strict=True):
        assert error(found, expected) <= BOUNDS[torch.float32]


def test_no_bit_of_an_image_depends_on_its_batch_or_on_the_threads(monkeypatch):
    monkeypatch.setattr(linear, "LARGE", 0)
    weight, bias, x = torch.randn(21, 67), torch.randn(21), torch.randn(7, 67)
    together = linear.linear(x, weight, bias)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        assert torch.equal(linear.linear(x, weight, bias), together)
        assert torch.equal(torch.cat([linear.linear(one[None], weight, bias) for one in x]), together)


def test_only_what_needs_a_gradient_gets_one(least):
    ours, _ = twins()
    ours.weight.requires_grad_(False)
    ours(torch.randn(3, 33)).sum().backward()
    assert ours.weight.grad is None
    assert torch.equal(ours.bias.grad, torch.full((20,), 3.0))


def test_gradients_accumulate_and_have_gradients(least):
    ours, theirs = twins()
    x = torch.randn(4, 33)
    for module in (ours, theirs):
        for _ in range(2):
            module(x).square().sum().backward()
    assert error(ours.weight.grad, theirs.weight.grad) <= BOUNDS[torch.float32]
    ours, theirs = (module.double() for module in twins())
    for module in (ours, theirs):
        module.zero_grad()
        (first,) = torch.autograd.grad(module(x.double()).square().sum(), module.weight, create_graph=True)
        first.square().sum().backward()
    assert error(ours.weight.grad, theirs.weight.grad) <= BOUNDS[torch.float64]
    ours, theirs = twins()
    for module in (ours, theirs):
        (first,) = torch.autograd.grad(module(x).square().sum(), module.weight, create_graph=True)
        first.square().sum().backward()
    assert error(ours.weight.grad, theirs.weight.grad) <= BOUNDS[torch.float32]


def test_whatever_is_not_a_plain_batch_is_torchs(least):
    ours, theirs = twins()
    for x in (torch.randn(33), torch.randn(2, 3, 33)):
        assert torch.equal(ours(x), theirs(x))
    x = torch.randn(5, 33)
    assert torch.equal(torch.func.vmap(ours)(x[None])[0], theirs(x))
    assert error(torch.func.grad(lambda x: ours(x).sum())(x), theirs.weight.sum(0).expand(5, -1)) <= 1e-6
    turned = torch.randn(33, 20).T  # not dense: copying it would cost more than it saves
    assert torch.equal(linear.linear(x, turned, None), nn.functional.linear(x, turned))
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x).dtype == torch.bfloat16
    with pytest.raises(RuntimeError):
        ours(torch.randn(5, 32))
    traced = torch.fx.symbolic_trace(nn.Sequential(ours))
    assert torch.equal(traced(x), theirs(x))
    assert ours.half()(x.half()).dtype == torch.float16


def test_a_dispatch_mode_sees_the_product(least):
    from torch.fx.experimental.proxy_tensor import make_fx
    from torch.utils._python_dispatch import TorchDispatchMode

    layer, x = zf.nn.Linear(33, 20), torch.randn(3, 33)
    expected, seen = torch.nn.functional.linear(x, layer.weight, layer.bias), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        out = layer(x)
        out.sum().backward()
    assert "aten.addmm.default" in seen
    assert "aten.sum.default" in seen
    assert error(out, expected) <= BOUNDS[torch.float32]
    graph = make_fx(lambda x: layer(x))(torch.ones(3, 33))
    assert error(graph(x), expected) <= BOUNDS[torch.float32]
    traced = torch.jit.trace(layer, torch.ones(3, 33))
    assert error(traced(x), expected) <= BOUNDS[torch.float32]


@pytest.mark.parametrize("which", ["x", "weight", "bias"])
def test_a_pending_negation_has_its_sign(least, which):
    values = {"x": torch.randn(3, 33), "weight": torch.randn(20, 33), "bias": torch.randn(20)}
    expected = torch.nn.functional.linear(
        **{"input": -values["x"] if which == "x" else values["x"]}
        | {name: -value if name == which else value for name, value in values.items() if name != "x"}
    )
    values[which] = torch._neg_view(values[which])
    assert values[which].is_neg()
    assert error(linear.linear(*values.values()), expected) <= BOUNDS[torch.float32]


def test_a_subclass_goes_torch_s_way(least):
    class Own(torch.Tensor):
        pass

    values = torch.randn(3, 33), torch.randn(20, 33), torch.randn(20)
    for i in range(3):
        own = [v.as_subclass(Own) if j == i else v for j, v in enumerate(values)]
        assert type(linear.linear(*own)) is Own
