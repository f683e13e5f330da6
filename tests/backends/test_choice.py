"""Which backend each op of a network goes to, on a device that several serve (pretended.py)."""

import pytest
import small
import torch
from conftest import error
from pretended import AMPERE, pretend

import zfkernels as zf
from zfkernels.nn import ConvReLU, ConvReLUMaxPool

WIDE = 5  # channels that no image has
TRITONS = {
    ("conv2d_relu_max_pool2d", "wide", "triton"),
    ("conv2d", "wide", "triton"),
    ("conv_transpose2d", "wide", "triton"),
    ("max_unpool2d_relu_conv_transpose2d", "wide", "triton"),
}
PROJECTED = TRITONS | {
    ("conv2d_relu_max_pool2d", "image", "cuda"),
    ("contrast_norm", "", "cuda"),
    ("max_unpool2d_relu_conv_transpose2d", "image", "cuda"),
}


def kinds(asked):
    """Each op that was asked for, of images, of maps ("wide") or without filters (""), and of whom."""
    found = {(op, "" if n == 0 else "wide" if n >= WIDE else "image", backend) for op, n, backend in asked}
    asked.clear()
    return found


def of_all(found, backend):
    return {(op, kind, backend) for op, kind, _ in found}


def images(dtype=torch.bfloat16):
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1)).to(dtype)


def project(model, dtype=torch.bfloat16):
    return zf.Deconvnet(model).project(images(dtype), "conv5", channel=[1, 2], position=(1, 1))


def test_a_projection_on_hopper(monkeypatch):
    """Wide layers in 16-bit types are Triton's, up and down; with the same results."""
    model = small.network().bfloat16()
    expected = project(model).pixels
    asked = pretend(monkeypatch)
    pixels = project(model).pixels
    assert kinds(asked) == PROJECTED
    assert error(pixels, expected.double()) < 1e-2


@pytest.mark.parametrize(
    ("capability", "dtype", "absent", "forced", "backend"),
    [
        (AMPERE, torch.bfloat16, (), None, "cuda"),
        ((9, 0), torch.float32, (), None, "cuda"),
        ((9, 0), torch.bfloat16, ("triton",), None, "cuda"),
        ((9, 0), torch.bfloat16, ("cuda",), None, "triton"),
        ((9, 0), torch.bfloat16, (), "triton", "triton"),
        ((9, 0), torch.bfloat16, (), "cuda", "cuda"),
    ],
)
def test_a_projection_with_one_backend(monkeypatch, capability, dtype, absent, forced, backend):
    """On another GPU, in float32, where one backend alone is there, and where one was asked for."""
    model = small.network().to(dtype)
    asked = pretend(monkeypatch, capability, absent)
    with zf.use_backend(forced):
        project(model, dtype)
    assert kinds(asked) == of_all(PROJECTED, backend)


def test_several_units_activations_and_occlusion(monkeypatch):
    model = small.network().bfloat16()
    asked = pretend(monkeypatch)
    zf.Deconvnet(model).activations(images(), ["conv2", "conv5"])
    assert kinds(asked) == {
        ("conv2d_relu_max_pool2d", "image", "cuda"),
        ("conv2d", "wide", "triton"),
        ("max_pool2d", "", "cuda"),
        ("contrast_norm", "", "cuda"),
    }
    zf.occlusion_map(model, images()[0], 0, patch=24, stride=24, fill=0)
    found = kinds(asked)
    assert {(kind, who) for op, kind, who in found if op.startswith("conv2d")} == {
        ("image", "cuda"),
        ("wide", "triton"),
    }


def test_a_network_and_its_gradients(monkeypatch):
    """A backward pass is of its forward's backend."""
    model = small.network().bfloat16()
    asked = pretend(monkeypatch)
    model(images()).float().sum().backward()
    found = kinds(asked)
    assert {kind for _, kind, _ in found} == {"image", "wide", ""}
    assert {who for op, kind, who in found if kind == "wide"} == {"triton"}
    assert {who for op, kind, who in found if kind == "image"} == {"cuda"}


def test_modules_choose_by_their_own_filters(monkeypatch):
    asked = pretend(monkeypatch)
    for channels, backend in ((3, "cuda"), (4, "cuda"), (5, "triton")):
        x = torch.randn(1, channels, 9, 9, dtype=torch.bfloat16)
        ConvReLU(channels, 8, 3, dtype=torch.bfloat16)(x)
        ConvReLUMaxPool(channels, 8, 3, pool_kernel=2, dtype=torch.bfloat16)(x)
        assert [(op, who) for op, _, who in asked] == [("conv2d", backend), ("conv2d_relu_max_pool2d", backend)]
        asked.clear()
    ConvReLU(5, 8, 3, backend="cuda", dtype=torch.bfloat16)(x)
    assert [who for *_, who in asked] == ["cuda"]
