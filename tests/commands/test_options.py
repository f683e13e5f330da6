"""What the commands share: a network opened once, and a report of a figure."""

import argparse
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small import SMALL, network, photographs

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
