"""torch.compile(model, backend="zfkernels") of tensors on a GPU, which is the CPU here (pretended.py): which layers
become calls of ours, and that what is given back is the same."""

import copy

import pytest
import torch
from conftest import error
from pretended import Asked, pretend
from torch import fx, nn

import zfkernels as zf
from zfkernels.compiler import backend, gpu

HALF = torch.bfloat16
LAYER, NORM = "conv2d_relu_max_pool2d", "contrast_norm"


@pytest.fixture
def asked(monkeypatch):
    return on_a_gpu(monkeypatch)


def on_a_gpu(monkeypatch, **what):
    monkeypatch.setattr(gpu, "DEVICES", ("cpu",))
    torch._dynamo.reset()
    return pretend(monkeypatch, **what)


def first(channels=3, kernel=7, maps=8, *between, pool=None):
    """The first layers of a network of images."""
    stem = [nn.Conv2d(channels, maps, kernel, 2, 1), *between, nn.ReLU(True)]
    return [*stem, pool or nn.MaxPool2d(3, 2, ceil_mode=True)]


def network(*layers, dtype=HALF):
    for norm in (layer for layer in layers if isinstance(layer, nn.BatchNorm2d)):
        for tensor in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
            tensor.uniform_(0.5, 1.5)
    return nn.Sequential(*layers).eval().to(dtype)


def images(channels=3, n=2, side=23, dtype=HALF):
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(3)).to(dtype)


def check(model, x, bound=2e-2):
    """Values, strides and dtype of a compiled network against its own in float64 (torch has no response norm of
    16-bit types on the CPU)."""
    with torch.no_grad():
        out = torch.compile(model, backend=backend)(x)
        expected = copy.deepcopy(model).double()(x.double())
    assert (out.dtype, out.shape, out.stride()) == (x.dtype, expected.shape, expected.stride())
    assert error(out, expected) < bound


def test_a_layer_on_images_and_a_response_norm_are_ours(asked):
    after = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = network(*first(), nn.LocalResponseNorm(5, 1e-2, 0.75, 2.0), *after, nn.Linear(8, 5))
    check(model, images())
    assert asked == [Asked(LAYER, 3, "cuda"), Asked(NORM, 0, "cuda")]


@pytest.mark.parametrize("channels_last", [False, True])
def test_maps_lie_as_torch_leaves_them(asked, channels_last):
    for layers in (first(), [nn.LocalResponseNorm(4)]):
        x = images()
        check(network(*layers), x.contiguous(memory_format=torch.channels_last) if channels_last else x)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("layers", "dtype", "ours"),
    [
        (first(), torch.float16, [LAYER]),
        (first(), torch.float32, []),
        (first(4, 5), HALF, [LAYER]),
        (first(5), HALF, []),
        (first(3, 11), HALF, []),  # 363 products of an output
        (first(3, 7, 8, nn.BatchNorm2d(8)), HALF, []),  # too small to pay for the folding
        (first()[:-1], HALF, []),  # no pooling
        (first(pool=nn.AvgPool2d(2)), HALF, []),
        ([nn.ZeroPad2d(1), *first()], HALF, [LAYER]),
        ([nn.ZeroPad2d((1, 2, 1, 2)), *first()], HALF, []),
        ([nn.LocalResponseNorm(3)], torch.float32, [NORM]),
        ([nn.LocalResponseNorm(3)], torch.float64, []),
        ([nn.MaxPool2d(2), nn.BatchNorm2d(3), nn.ReLU()], HALF, []),
    ],
)
def test_which_layers_are_ours(asked, layers, dtype, ours):
    model = network(*layers, dtype=dtype)
    channels = next((layer.in_channels for layer in layers if isinstance(layer, nn.Conv2d)), 3)
    check(model, images(channels, dtype=dtype))
    assert [op for op, *_ in asked] == ours


def test_a_batch_norm_is_folded_where_the_map_is_large(asked, monkeypatch):
    monkeypatch.setattr(gpu, "FOLDED", 2 * 8 * 10 * 10 * 2)
    model = network(*first(3, 7, 8, nn.BatchNorm2d(8)))
    check(model, images())
    assert [op for op, *_ in asked] == [LAYER]
    asked.clear()
    check(network(*first(3, 7, 8, nn.BatchNorm2d(8))), images(n=1))
    assert asked == []


def test_weights_that_change_are_seen(asked, monkeypatch):
    monkeypatch.setattr(gpu, "FOLDED", 0)
    model = network(*first(3, 7, 8, nn.BatchNorm2d(8)))
    call = torch.compile(model, backend=backend)
    with torch.no_grad():
        call(images())
        for tensor in (model[0].weight, model[1].running_var, model[1].bias):
            tensor.data.mul_(1.5)
            assert error(call(images()), model(images()).double()) < 2e-2


@pytest.mark.parametrize(
    ("absent", "forced", "backend_of"),
    [
        ((), None, "cuda"),
        (("cuda",), None, "triton"),
        (("cuda", "triton"), None, None),
        ((), "triton", "triton"),
        ((), "reference", None),
    ],
)
def test_by_which_backend(monkeypatch, absent, forced, backend_of):
    """Another that was asked for serves no GPU: the graph is torch's."""
    asked = on_a_gpu(monkeypatch, absent=absent)
    with zf.use_backend(forced):
        check(network(*first()), images())
    assert [who for *_, who in asked] == ([backend_of] if backend_of else [])


def test_a_graph_in_which_nothing_is_ours_stays_torch_s(asked):
    gm = fx.symbolic_trace(nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU()).eval())
    with torch.no_grad():
        assert backend(gm, [torch.randn(1, 8, 9, 9)]) == gm.forward
        assert backend(gm, [torch.randn(1, 8, 9, 9, device="meta")]) == gm.forward
    assert asked == []


def test_of_gradients_and_under_autocast_the_graph_is_torch_s(asked):
    model = network(*first())
    call = torch.compile(model, backend=backend)
    call(images()).float().sum().backward()
    assert model[0].weight.grad is not None
    with torch.no_grad(), torch.autocast("cpu", HALF):
        call(images())
    assert asked == []


def test_images_of_any_number_and_size(asked):
    model = network(*first())
    call = torch.compile(model, backend=backend, dynamic=True)
    with torch.no_grad():
        for n, side in ((2, 23), (3, 30), (1, 17)):
            x = images(n=n, side=side)
            assert error(call(x), model(x).double()) < 2e-2
    assert {op for op, *_ in asked} == {LAYER}
