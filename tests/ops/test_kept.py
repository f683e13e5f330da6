"""Filters that a model in evaluation keeps: the same bits, packed once, never of an old weight, gone with the model."""

import copy
import gc

import pytest
import torch
import torch.nn.functional as F
from conftest import error
from torch import nn

import zfkernels as zf
from zfkernels import _C
from zfkernels.ops.kept import KEPT
from zfkernels.ops.sources import Sources

SMALL = {"num_classes": 5, "image_size": 64, "channels": (16, 24, 40, 40, 24), "fc": (24, 20), "weight_std": None}


def net(**options):
    return zf.ZFNet(**SMALL | options).eval()


def normed():
    """A convolution of other paddings on either side, batch norms, one weight read with two paddings."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 48, 7, 2, 3, bias=False), nn.BatchNorm2d(48)
            self.deep, self.last = nn.Conv2d(48, 48, 3, padding=1), nn.BatchNorm2d(48)

        def forward(self, x):
            x = F.max_pool2d(F.relu(self.norm(self.first(F.pad(x, (0, 1, 0, 1))))), 3, 2)
            x = F.relu(self.last(self.deep(x)))
            return F.relu(F.conv2d(x, self.deep.weight, self.deep.bias, padding=0))

    model = Net().eval()
    for norm in (model.norm, model.last):
        for value in (norm.weight, norm.bias, norm.running_mean):
            value.data.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture
def packs(monkeypatch):
    """The filters that were packed to be kept, counted."""
    made = []
    for name, place in (("pack_filters", 3), ("pack_transposed", 5)):
        pack = getattr(_C, name)

        def counted(*arguments, pack=pack, place=place, name=name):
            if arguments[place]:
                made.append(name)
            return pack(*arguments)

        monkeypatch.setattr(_C, name, counted)
    return made


def step(model):
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(model.parameters(), 0.01, foreach=True).step()


def swap(model):
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1


CHANGES = {
    "an optimizer's step": step,
    "load_state_dict": lambda model: model.load_state_dict(
        {name: value * 1.5 if value.is_floating_point() else value for name, value in model.state_dict().items()}
    ),
    "data swapped": swap,
    "a filter in place": lambda model: first_weight(model)[3].zero_(),
    "all of it through data": lambda model: [p.data.mul_(1.5) for p in model.parameters()],
    "a filter through data": lambda model: first_weight(model).data[3].zero_(),
    "a bias through data": lambda model: bias_of(model).data[2:3].add_(1.0),
    "another parameter": lambda model: [
        setattr(m, "weight", nn.Parameter(m.weight * 2))
        for m in model.modules()
        if getattr(m, "weight", None) is not None
    ],
    "another layout": lambda model: model.to(memory_format=torch.channels_last),
    "the biases": lambda model: [m.bias.add_(0.1) for m in model.modules() if getattr(m, "bias", None) is not None],
    "buffers": lambda model: [b.add_(0.3) for b in model.buffers() if b.is_floating_point()],
    "another dtype": lambda model: model.double(),
}


def first_weight(model):
    return next(p for p in model.parameters() if p.ndim == 4)


def bias_of(model):
    return next(p for name, p in model.named_parameters() if name.endswith("bias"))


def calls_of(model):
    """What is asked of a model: its values, and projections of a traced one."""
    if isinstance(model, zf.ZFNet):
        return {"logits": model, "conv5": lambda x: zf.Deconvnet(model).project(x, "conv5", [1, 2]).pixels}
    deconv = zf.Deconvnet(model)
    return {"project": lambda x: deconv.project(x, "relu_2", [1, 2]).pixels}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [net, normed])
def test_every_change_of_a_weight_is_seen(make, change):
    model, x = make(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for call in calls_of(model).values():
            for _ in range(3):
                call(x)
        CHANGES[change](model)
        x = x.to(first_weight(model).dtype)
        fresh = calls_of(copy.deepcopy(model))
        for name, call in calls_of(model).items():
            expected = fresh[name](x)
            for _ in range(3):
                assert torch.equal(call(x), expected), name


def test_filters_are_packed_when_they_are_asked_for_again(packs):
    model, x = net(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        assert packs == []
        for _ in range(4):
            assert torch.equal(model(x), expected)
        assert packs == ["pack_filters"] * 4  # conv1's are too few
        deconv = zf.Deconvnet(model)
        expected, packs[:] = deconv.project(x, "conv5", 1).pixels, []
        for _ in range(4):
            assert torch.equal(deconv.project(x, "conv5", 1).pixels, expected)
        assert "pack_transposed" in packs
        count = len(packs)
        deconv.project(x, "conv5", 1)
        assert len(packs) == count
        step(model)
        model(x)
        assert len(packs) == count


def test_what_is_kept_goes_with_the_model():
    gc.collect()
    before = len(KEPT)
    model, x = net(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for _ in range(3):
            model(x)
            zf.Deconvnet(model).project(x, "conv5", 1)
        assert len(KEPT) == before + 4
        model.to(torch.bfloat16)(x.to(torch.bfloat16))
        assert len(KEPT) == before
        model.float()(x)
        assert len(KEPT) == before + 4
    copied = copy.deepcopy(model)
    del model
    gc.collect()
    assert len(KEPT) == before
    assert copied(x).requires_grad


def test_gradients_are_as_ever():
    model, x = net(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        for _ in range(3):
            logits = model(x)
    image = x.clone().requires_grad_()
    loss = model(image).square().sum()
    wide = copy.deepcopy(model).double()
    right = x.double().requires_grad_()
    with zf.use_backend("reference"):
        expected = wide(right).square().sum()
    assert error(loss, expected) <= 1e-5
    wanted = [right, *wide.parameters()]
    found = torch.autograd.grad(loss, [image, *model.parameters()])
    for g, e in zip(found, torch.autograd.grad(expected, wanted), strict=True):
        assert error(g, e) <= 1e-4
    with torch.inference_mode():
        assert torch.equal(model(x), logits)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert error(model(x).float(), logits) <= 0.1
    with torch.no_grad(), zf.use_backend("reference"):
        assert error(model(x), logits) <= 1e-5


def test_one_weight_with_two_paddings_keeps_neither_for_the_other():
    model, x = normed(), torch.randn(2, 3, 64, 64)
    deconv = zf.Deconvnet(model)
    wide = copy.deepcopy(model).double()
    expected = wide(x.double())
    with torch.no_grad():
        for _ in range(3):
            assert error(deconv.activations(x, "relu_2"), expected) <= 1e-5


@pytest.mark.parametrize("shape", [(96, 3, 7, 7), (64, 64, 1, 1), (256, 128, 3, 3), (40, 1, 3, 3), (7, 5), (300,)])
def test_no_whole_filter_and_no_single_bias_changes_unseen(shape):
    """Written through `.data`, which torch does not count."""
    weight = nn.Parameter(torch.randn(shape))
    sources = Sources(watch_values=True)
    sources.note([weight])
    assert sources.same([weight])
    for k in range(shape[0]):
        before = weight.data[k].clone()
        weight.data[k] = 0
        assert not sources.same([weight]), k
        weight.data[k] = before
        assert sources.same([weight])
    if len(shape) == 4 and shape[1] >= 64:
        unseen = 0
        for c in range(shape[1]):
            before = weight.data[:, c].clone()
            weight.data[:, c] = 0
            unseen += sources.same([weight])
            weight.data[:, c] = before
        assert unseen <= shape[1] / 4
