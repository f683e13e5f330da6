"""Small networks, one for each way to spell what real networks are made of, against the modified gradient."""

import pytest
import torch
from judged import verdicts
from oracle import METHODS, Oracle
from spellings import BLOCKS, CASES, Around
from torch import nn

from zfkernels.testing.weights import pictures, randomised


@pytest.mark.parametrize("name", CASES)
def test_projections_equal_the_modified_gradient(name):
    make, layers, forward = CASES[name]
    images = pictures(24)
    model = randomised(make(), images, forward=forward)
    settings = {"forward": forward} if forward else {}
    wrong = [verdict for verdict in verdicts(model, images, layers, **settings) if not verdict.right]
    assert not wrong


# The oracle itself


def test_the_oracle_knows_every_rectifier():
    """By its own words: the pixels that a rectifier between two 1x1 filters sends down, written out."""
    for name in ("F.relu in place", "clamp(0, 6)", "torch.maximum(x, 0)", "nn.Hardtanh(0, 1)", "F.leaky_relu", "SiLU"):
        block = BLOCKS[name]()
        x, w = torch.tensor([[[[2.0]], [[-1.0]], [[0.5]]]]).double(), torch.tensor([[0.5, -1, 0], [1, 1, -1]]).double()
        one, two = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 1, 1, bias=False)
        one.weight.data, two.weight.data = w[:, :, None, None], torch.tensor([[[[1.0]], [[-0.5]]]])
        if hasattr(block, "function"):
            block.one, block.two = one, two
        else:
            block[0], block[2] = one, two
        truth = Oracle(block.double(), x, ("two" if hasattr(block, "function") else "2",))
        (layer,) = truth.values
        before = (w @ x.flatten()).tolist()  # 2.0 and 0.5
        value = float(truth.values[layer])
        slope = 0.2 if name == "F.leaky_relu" else 0.0
        for method in METHODS:
            sent = torch.tensor([value, -0.5 * value]).double()
            passed = torch.tensor([0.0 if name == "nn.Hardtanh(0, 1)" and b >= 1 else 1.0 for b in before]).double()
            if name == "SiLU":
                s = torch.tensor(before).double().sigmoid()
                sent = sent * (s + torch.tensor(before).double() * s * (1 - s))
            else:
                rule = torch.where(sent > 0, sent, slope * sent)
                sent = {"deconvnet": rule, "gradient": sent * passed, "guided": rule * passed}[method]
            pixels = truth.project(layer, method).pixels.flatten()
            assert torch.allclose(pixels, w.T @ sent, rtol=1e-12), (name, method)


def test_the_oracle_reads_a_layer_before_others_change_it():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4)), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3)
    )
    images = pictures(9)
    model = randomised(model, images)
    truth = Oracle(model, images, ("1",))
    assert torch.equal(truth.values["1"], model[:2](images))
    assert (truth.values["1"] < 0).any()


def test_statistics_are_nothing_special():
    model = randomised(Around(BLOCKS["F.batch_norm"]()), pictures(24))
    norm = model.block.norm
    for tensor, plain in ((norm.running_mean, 0), (norm.running_var, 1), (norm.weight, 1), (norm.bias, 0)):
        assert (tensor - plain).abs().min() > 1e-4
