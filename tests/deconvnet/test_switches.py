"""The switches of float32 images with flat areas, where a window's values are equal and the first must win."""

import nets
import numpy as np
import pytest
import torch
from conftest import error
from PIL import Image

import zfkernels as zf
from zfkernels.backends.registry import module
from zfkernels.data.photographs import data_file
from zfkernels.graph import layer, windowed
from zfkernels.graph.rules import Rules
from zfkernels.graph.run import run as up
from zfkernels.graph.trace import trace

METHODS = ("deconvnet", "gradient", "guided")
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket", "camera", "coins", "page", "moon")


@pytest.fixture(scope="module")
def alexnet():
    """As wide as torchvision's, with torch's own weights, in float32."""
    torch.manual_seed(1)
    return nets.alexnet(width=64).features.eval().requires_grad_(False)


def photograph(name, side=224):
    """Its central square as ImageNet's networks are given it."""
    path = data_file(f"{name}.{'jpg' if name == 'rocket' else 'png'}")
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        least = min(picture.size)
        left, top = ((length - least) // 2 for length in picture.size)
        square = picture.crop((left, top, left + least, top + least)).resize((side, side), Image.Resampling.BILINEAR)
    return (torch.from_numpy(np.array(square)).permute(2, 0, 1)[None] / 255 - MEAN) / STD


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_gradients_of_photographs_are_autograds(alexnet, name):
    x, deconv = photograph(name), zf.Deconvnet(alexnet)
    images = x.clone().requires_grad_()
    y = alexnet(images)
    alive = y.detach()[0].amax((1, 2)).nonzero()[:, 0].tolist()[::40]
    assert alive
    p = deconv.project(x, "12", alive, image_index=[0] * len(alive), method="gradient")
    for i, channel in enumerate(alive):
        row, column = p.positions[i].tolist()
        value = y[0, channel, row, column]
        (gradient,) = torch.autograd.grad(value, images, value.detach(), retain_graph=True)
        assert error(p.pixels[i], gradient[0]) < 1e-3, channel


@pytest.mark.parametrize("method", METHODS)
def test_the_first_of_equals_wins(alexnet, method):
    """In an image of one colour all windows but those near the border hold equal values, whatever is set."""
    graph, x = trace(alexnet), torch.full((1, 3, 224, 224), 0.3)
    with zf.use_exact(False):
        run = up(graph, graph.stop("12"), x, Rules("cpu", method))
    switches = [record.switches for record in run.recorded.values() if record.switches is not None]
    assert [tuple(s.shape[1:]) for s in switches] == [(64, 27, 27), (192, 13, 13), (256, 6, 6)]
    for inner in (switches[0][:, :, 1:-1, 1:-1], switches[1][:, :, 3:-3, 3:-3]):
        assert (inner == 0).all()


def test_what_stands_above_the_pools_need_not_be_exact(alexnet, monkeypatch):
    """Only what a recorded switch depends on is summed directly: nothing in a forward pass, nor above the last pool."""
    seen = []
    compiled = module("cpu")._C

    def watched(name, function):
        def call(x, *others):
            seen.append((name, others[0].shape[0], compiled.exact_in_thread()))
            return function(x, *others)

        return call

    monkeypatch.setattr(layer, "conv2d_relu_max_pool2d", watched("pooled", layer.conv2d_relu_max_pool2d))
    monkeypatch.setattr(windowed, "conv2d", watched("plain", windowed.conv2d))
    deconv, x = zf.Deconvnet(alexnet), torch.full((1, 3, 100, 100), 0.3)
    deconv.project(x, "8", 0)
    assert seen == [("pooled", 64, True), ("pooled", 192, True), ("plain", 384, False), ("plain", 256, False)]
    seen.clear()
    deconv.project(x, "12", 0)
    assert [exact for *_, exact in seen[:5]] == [True] * 5
    seen.clear()
    deconv.activations(x, "8")
    assert [exact for *_, exact in seen] == [False] * 4
