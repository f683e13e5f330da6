"""What the commands share: a network opened once, and a report of a figure."""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import SMALL, network, photographs
from torch import nn

from zfkernels import Deconvnet
from zfkernels.commands import options
from zfkernels.models import checkpoint
from zfkernels.models.checkpoint import Network

Image = pytest.importorskip("PIL.Image")


@pytest.fixture
def opened(tmp_path):
    mean, scale = torch.full((3, 48, 48), 120.0), torch.full((1, 1, 1), 60.0)
    checkpoint.save(tmp_path / "zfnet.pt", Network(network(), ["a", "b", "c"], mean, scale, (48, 48)), SMALL)
    parser = argparse.ArgumentParser()
    options.add_network(parser)
    return options.open_network(parser.parse_args(["--weights", str(tmp_path / "zfnet.pt")]))


def test_layers_are_those_named_or_every_convolution(opened):
    assert opened.layers() == ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert opened.layers(["fc7", "pool1"]) == ["fc7", "pool1"]
    assert opened.hidden == ("fc6", "fc7")
    assert opened.deconv is opened.deconv
    with pytest.raises(ValueError, match="--layers must be of conv1, pool1"):
        opened.layers(["conv9"])


def test_of_several_names_of_one_value_one_is_shown(opened):
    """A block, its last part and the sum in it are one layer, by the name of a module; a lone sum is one by its own."""

    class Block(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.first, self.second = nn.Conv2d(channels, channels, 3, padding=1), nn.Conv2d(channels, channels, 1)

        def forward(self, x):
            return torch.relu(x + self.second(torch.relu(self.first(x))))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
            self.stage = nn.Sequential(Block(4), Block(4))
            self.pool, self.say = nn.MaxPool2d(2), nn.Linear(4, 2)

        def forward(self, x):
            x = self.stage(self.stem(x))
            return self.say(self.pool(x + x.sigmoid()).mean((2, 3)))

    model = Net().eval()
    found = options.Opened(replace(opened.network, model=model)).layers()
    assert found == [
        "stem.0",
        *(f"stage.{block}{part}" for block in (0, 1) for part in (".first", ".second", "")),
        "sigmoid",
        "add_2",
    ]
    values = Deconvnet(model).activations(torch.randn(1, 3, 12, 12), found)
    for one, other in itertools.combinations(values.values(), 2):
        assert one.shape != other.shape or not torch.equal(one, other)


def test_pictures_are_read_as_pixels_and_as_the_network_takes_them(opened, tmp_path):
    source = photographs(3)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, source, strict=True):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(path)
    pixels, inputs = opened.read(paths)
    assert torch.equal(pixels, source)
    assert torch.equal(inputs, (source.float() - 120) / 60)
    ((streamed, numbers),) = opened.stream(paths)
    assert torch.equal(streamed, inputs)
    assert numbers.tolist() == [0, 1, 2]


def test_a_report_writes_the_figure_before_it_prints(capsys, tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure(figsize=(2, 1))
    options.report(figure, tmp_path / "new" / "f.png", "one", "two", note=", and more")
    assert capsys.readouterr().out == f"one\ntwo\npicture     {tmp_path / 'new' / 'f.png'}, and more\n"
    with Image.open(tmp_path / "new" / "f.png") as picture:
        assert picture.size == (200, 100)
    with pytest.raises(ValueError, match="xyz"):
        options.report(figure, tmp_path / "f.xyz", "one")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("weights", "model", "source", "called"),
    [
        ("run/zfnet.pt", None, "", "run/zfnet.pt"),
        ("r18.pt", "torchvision.models:resnet18", "", "r18.pt"),
        (None, "torchvision.models:resnet18", "", "torchvision.models:resnet18, no --weights given"),
        (None, "a:b", "Lite0, trained on ImageNet", "Lite0, trained on ImageNet"),
        (None, None, "", "a ZFNet with random weights"),
    ],
)
def test_a_page_says_which_network_and_whose_weights(weights, model, source, called):
    args = argparse.Namespace(weights=weights and Path(weights), model=model)
    assert options.called(args, SimpleNamespace(source=source)) == called
