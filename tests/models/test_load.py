"""Weights as people save them, networks as people build them, and what is said of those that do not fit."""

import argparse
import gzip
import json
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from zfkernels import ZFNet, cli, files
from zfkernels.commands import options
from zfkernels.models import checkpoint, load, states
from zfkernels.models.load import network

Image = pytest.importorskip("PIL.Image")
MODELS = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, gives="tensor", channels=3, image_size=None):
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(channels, 6, 5, 2), nn.BatchNorm2d(6), nn.Linear(6 * 9 * 9, 4)
        self.gives = gives
        if image_size is not None:
            self.image_size = image_size

    def forward(self, x):
        y = nn.functional.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        logits = self.fc(y.flatten(1))
        return {"tensor": logits, "dict": {"features": y, "logits": logits}, "tuple": (logits, y)}[self.gives]


def plain():
    return Net()


def dictionary():
    return Net("dict")


def pair():
    return Net("tuple")


def grey():
    return Net(channels=1)


def two():
    return Net(channels=2)


def sized():
    return Net(image_size=40)


def sized_in_two():
    return Net(image_size=[40, 40])


def needs():
    raise RuntimeError("first line\\\\nsecond line")


def ends():
    raise SystemExit(3)


def with_argument(size):
    return Net()


def scores():
    class Scores(Net):
        def forward(self, x):
            return {"n": 3}

    return Scores()
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    """The module of networks, in the folder that the test runs in."""
    (tmp_path / "user_models.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "user_models", raising=False)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("p.png")
    torch.manual_seed(0)
    return load.build("user_models:plain")


WAYS = {
    "as it is": lambda s: s,
    "DataParallel": lambda s: {f"module.{name}": value for name, value in s.items()},
    "torch.compile": lambda s: {f"_orig_mod.{name}": value for name, value in s.items()},
    "both": lambda s: {f"module._orig_mod.{name}": value for name, value in s.items()},
    "a compiled part": lambda s: {name.replace("norm.", "norm._orig_mod."): value for name, value in s.items()},
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {}}, "best": torch.tensor(0.3)},
    "model": lambda s: {"model": s, "epoch": 3},
    "model_state_dict": lambda s: {"model_state_dict": s},
    "prefixed in a wrapper": lambda s: {"state_dict": {f"module.{name}": value for name, value in s.items()}},
    "Lightning": lambda s: {
        "state_dict": {f"model.{name}": value for name, value in s.items()} | {"loss.weight": torch.ones(4)},
        "pytorch-lightning_version": "2",
    },
    "averaged": lambda s: {"n_averaged": torch.tensor(3)} | {f"module.{name}": value for name, value in s.items()},
    "of an old torch": lambda s: {name: v for name, v in s.items() if not name.endswith("num_batches_tracked")},
    "of another precision": lambda s: {n: v.bfloat16() if v.is_floating_point() else v for n, v in s.items()},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_usual_ways_of_saving_weights_load(models, way, zipped):
    torch.save(WAYS[way](models.state_dict()), "w.pt", _use_new_zipfile_serialization=zipped)
    loaded = network(*paths("w.pt"), "user_models:plain", 40).model
    for name, value in models.state_dict().items():
        expected = value.bfloat16().float() if way == "of another precision" and value.is_floating_point() else value
        assert torch.equal(loaded.state_dict()[name], expected), name


def paths(*names):
    from pathlib import Path

    return [Path(name) for name in names]


def test_they_do_of_a_zfnet_too(tmp_path):
    model = ZFNet(2)
    torch.save(WAYS["prefixed in a wrapper"](model.state_dict()), tmp_path / "w.pt")
    assert torch.equal(checkpoint.load(tmp_path / "w.pt").model.conv1.weight, model.conv1.weight)


def test_a_model_whose_own_names_begin_with_a_prefix_is_left_alone(tmp_path):
    module = nn.ModuleDict({"module": nn.Linear(2, 3), "model": nn.Linear(2, 3)})
    load.load_into(module, module.state_dict(), tmp_path, "x")
    other = nn.ModuleDict({"module": nn.Linear(2, 3)})
    load.load_into(other, {f"module.{name}": value for name, value in other.state_dict().items()}, tmp_path, "x")


class Danger:
    def __reduce__(self):
        return exec, ("open('HARM', 'w')",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (lambda s: {n: v for n, v in s.items() if "fc" not in n}, "it lacks 'fc.weight' (and 1 more)"),
        (lambda s: s | {"head.bias": torch.ones(3)}, "it holds 'head.bias', which the network has not"),
        (
            lambda s: {f"x.{n}": v for n, v in s.items()},
            "it lacks 'conv.weight' (and 7 more); it holds 'x.conv.weight'",
        ),
        (lambda s: s | {"fc.bias": torch.ones(5)}, "'fc.bias' has shape (5,), and (4,) in the network"),
        (lambda s: s | {"fc.bias": 3}, "'fc.bias' is a int, not a tensor"),
        (lambda s: list(s), "holds a list, not a state dict"),
        (lambda s: {1: 2}, "holds a dict whose keys are no names"),
        (lambda s: {}, "it lacks 'conv.weight'"),
        (lambda s: {"state_dict": s, "args": argparse.Namespace(a=1)}, "holds Python objects (argparse.Namespace)"),
        (lambda s: {"state_dict": s, "hook": Danger()}, "which could run code and are not loaded"),
        (lambda s: load.build("user_models:plain"), "holds Python objects (user_models.Net), which could run code"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_does_not_fit_is_named_in_one_line(models, capsys, content, words, zipped, tmp_path):
    torch.save(content(models.state_dict()), "w.pt", _use_new_zipfile_serialization=zipped)
    refused(capsys, words)
    assert not (tmp_path / "HARM").exists()


def refused(capsys, words):
    code = cli.main(
        ["project", "p.png", "--model", "user_models:plain", "--weights", "w.pt", "--size", "40", "--out", "o.png"]
    )
    errors = capsys.readouterr().err
    assert code == 2
    assert errors.count("\n") == 1, errors
    assert words in errors
    assert "w.pt" in errors


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is not a readable checkpoint: it is empty"),
        (b"no weights at all", "is not a checkpoint: torch.save did not write it"),
        (b"\x00" * 1000, "w.pt is not a"),
        (b"PK\x03\x04 and no more", "is not a readable checkpoint"),
        (pickle.dumps(Danger()), "w.pt"),
        (
            (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}' + bytes(10),
            "safetensors",
        ),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is no checkpoint but a pointer of Git LFS"),
        (b"\n<!DOCTYPE html><html>Not found", "is no checkpoint but a web page"),
        (gzip.compress(b"weights", mtime=0), "is no checkpoint but compressed: `gunzip` it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(20), "is no checkpoint but an HDF5 file"),
    ],
)
def test_files_of_something_else_are_named_in_one_line(models, capsys, data, words, tmp_path):
    (tmp_path / "w.pt").write_bytes(data)
    refused(capsys, words)
    assert not (tmp_path / "HARM").exists()


def test_a_length_that_reads_like_markup_is_not_something_else():
    """safetensors begin with the length of their header, whose first byte may be a "<"."""
    header = (60 + 256).to_bytes(8, "little") + b'{"conv1.weight":'
    assert header.startswith(b"<")
    assert files.kind_of(header) == ""


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_an_archive_of_numpy_is_named_with_what_reads_it(models, capsys, write):
    write("w.npz", weight=np.ones(3, np.float32))
    os.rename("w.npz", "w.pt")
    refused(capsys, "is a NumPy archive, which is not read here: torch.save(")
    state = {name: torch.from_numpy(value) for name, value in np.load("w.pt").items()}
    assert torch.equal(state["weight"], torch.ones(3))


def test_an_archive_that_would_grow_is_refused(models, capsys):
    """Torch stores, it does not compress: a small file could be made to fill the memory."""
    with zipfile.ZipFile("w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 10_000_000)
    refused(capsys, "it is a compressed archive")


def test_a_torchscript_archive_is_named(models, capsys):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save("w.pt")
    refused(capsys, "is a TorchScript archive, which holds code")


def test_a_checkpoint_that_asks_for_more_memory_than_it_holds_is_refused(tmp_path):
    arguments = {"num_classes": 10**9, "image_size": 48, "channels": (2,) * 5, "fc": (3, 3), "without": ("pool5",)}
    small = ZFNet(**arguments | {"num_classes": 2})
    state = small.state_dict() | {
        "fc8.weight": torch.ones(1, 1).expand(10**9, 3),
        "fc8.bias": torch.ones(1).expand(10**9),
    }
    mean, scale = torch.zeros(3, 1, 1), torch.ones(1, 1, 1)
    content = {"format": checkpoint.FORMAT, "state_dict": state, "mean": mean, "scale": scale, "arguments": arguments}
    torch.save(content | {"classes": ["a"]}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt is a damaged zfkernels checkpoint"):
        checkpoint.load(tmp_path / "w.pt")
    torch.save({f"x{i}": i for i in range(3)} | ZFNet(device="meta").state_dict() | state, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt "):
        checkpoint.load(tmp_path / "w.pt")


# Networks of one's own


def call(capsys, text):
    code = cli.main(text.split())
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("command", ["project p.png", "occlude p.png --patch 20 --stride 10", "filters"])
@pytest.mark.parametrize("model", ["dictionary", "pair", "grey", "sized", "sized_in_two"])
def test_networks_of_every_kind(capsys, models, command, model):
    size = "" if model.startswith("sized") else "--size 40"
    code, _, errors = call(capsys, f"{command} --model user_models:{model} {size} --out o.png")
    assert code == 0
    own = f"user_models:{model} gives its own; if they are random, what follows means nothing"
    assert errors == f"zfkernels: warning: no --weights were given: {own}\n"


def test_a_model_that_gives_a_dict_is_that_of_its_logits(models):
    torch.save(models.state_dict(), "w.pt")
    x = torch.randn(2, 3, 40, 40)
    expected = models.eval()(x)
    for name in ("plain", "dictionary", "pair"):
        found = network(*paths("w.pt"), f"user_models:{name}", 40)
        assert torch.equal(found.model(x), expected)
        assert type(found.model).__name__ == "Net"
        assert len(found.classes) == 4


def test_a_grey_network_sees_the_pictures_luma(models):
    grey = network(None, "user_models:grey", 40)
    pixels = torch.randint(0, 256, (2, 3, 40, 40)).to(torch.uint8)
    inputs = grey.normalise(pixels)
    assert inputs.shape == (2, 1, 40, 40)
    luma = (0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2]) / 255
    assert torch.allclose(inputs[:, 0], (luma - 0.449) / 0.226, atol=2e-3)


def test_a_zfnet_of_grey_pictures(capsys, models, tmp_path):
    arguments = {"num_classes": 2, "image_size": 48, "channels": (4,) * 5, "fc": (3, 3), "without": ("pool5",)}
    arguments |= {"in_channels": 1, "weight_std": None}
    saved = checkpoint.Network(
        ZFNet(**arguments), ["a", "b"], torch.full((1, 48, 48), 120.0), torch.full((1, 1, 1), 60.0), (48, 48), 1
    )
    checkpoint.save(tmp_path / "grey.pt", saved, arguments)
    for command in ("project p.png", "occlude p.png --patch 24 --stride 12 --fill 0 128 255", "filters"):
        code, _, errors = call(capsys, f"{command} --weights grey.pt --out o.png")
        assert (code, errors) == (0, "")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("two", "takes 2 channels; pictures have 3, or 1 if they are grey"),
        ("needs", "--model user_models:needs: RuntimeError: first line"),
        ("with_argument", "missing 1 required positional argument"),
        ("scores", "must give a tensor of logits, or a dict or tuple with one, got dict"),
        ("plain --size 43", "cannot take pictures of 43 x 43 (--size)"),
        ("plain --size 0", "--size must be at least 1"),
        ("nothing", "has no attribute 'nothing'"),
        ("ends", "--model user_models:ends: SystemExit: 3"),
    ],
)
def test_networks_that_do_not_work_are_named_in_one_line(capsys, models, model, words):
    size = "" if "--size" in model else "--size 40"
    code, text, errors = call(capsys, f"project p.png --model user_models:{model} {size} --out o.png")
    assert (code, text) == (2, "")
    assert words in errors
    assert errors.count("\n") == 1


# --mean, --std, --classes


def adjusted(models, **given):
    torch.save(models.state_dict(), "w.pt")
    parser = argparse.ArgumentParser()
    options.add_network(parser)
    args = parser.parse_args(["--weights", "w.pt", "--model", "user_models:plain", "--size", "40"])
    vars(args).update(given)
    return options.open_network(args).network


def test_mean_and_std_are_of_pixels_in_0_to_1(models):
    white = torch.full((3, 40, 40), 255, dtype=torch.uint8)
    found = adjusted(models, mean=[0.5, 0.25, 0.0], std=[0.5]).normalise(white)
    assert torch.allclose(found[:, 0, 0], torch.tensor([1.0, 1.5, 2.0]))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mean": [123.0, 116.0, 103.0]}, "divide those of 0..255 by 255"),
        ({"mean": [0.5, 0.5]}, "--mean takes one number or 3"),
        ({"std": [0.0]}, "--std must be from 1e-06 to 1"),
        ({"mean": [float("nan")]}, "--mean must be"),
    ],
)
def test_numbers_that_are_no_mean_are_refused(models, given, words):
    with pytest.raises(ValueError, match=words):
        adjusted(models, **given)


def test_classes_are_named_by_a_file(capsys, models, tmp_path):
    names = ["dachshund", "tabby cat", "\u00e9cureuil", "bird"]
    (tmp_path / "lines.txt").write_text("\n".join(names) + "\n", encoding="utf-8-sig")
    (tmp_path / "list.json").write_text(json.dumps(names))
    for file in ("lines.txt", "list.json"):
        assert adjusted(models, classes=paths(file)[0]).classes == names
    text = "occlude p.png --model user_models:plain --size 40 --patch 20 --stride 10 --out o.png --classes lines.txt"
    code, out, _ = call(capsys, f"{text} --target bird")
    assert code == 0
    assert "P(bird)" in out
    code, _, errors = call(capsys, f"{text} --target Brid")
    assert code == 2
    assert "did you mean 'bird'?" in errors
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"must name the network's 4 classes, and few\.txt holds 2 names"):
        adjusted(models, classes=paths("few.txt")[0])
    with pytest.raises(FileNotFoundError, match=r"there is no file none\.txt"):
        adjusted(models, classes=paths("none.txt")[0])


# Numbers that no network has

BROKEN = {
    "NaN": (lambda value: value * float("nan"), "holds NaN or infinite numbers, as after a training that diverged"),
    "infinite": (
        lambda value: value + float("inf"),
        "holds NaN or infinite numbers, as after a training that diverged",
    ),
    "meta": (lambda value: value.to("meta"), "is a meta tensor; save ordinary ones"),
    "sparse": (lambda value: value.to_sparse(), "is a sparse tensor; save ordinary ones"),
    "complex": (lambda value: value.to(torch.complex64), "holds numbers of torch.complex64, and the network's are"),
    "whole": (
        lambda value: value.to(torch.int32),
        "holds numbers of torch.int32, and the network's are floating-point",
    ),
    "quantised": (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "is a quantised tensor"),
}
TINY = {"num_classes": 2, "image_size": 48, "channels": (2,) * 5, "fc": (3, 3), "without": ("pool5",)}


def tiny():
    content = {"format": checkpoint.FORMAT, "arguments": TINY, "classes": ["a", "b"]}
    return content | {
        "mean": torch.ones(3, 1, 1),
        "scale": torch.ones(1, 1, 1),
        "state_dict": ZFNet(**TINY).state_dict(),
    }


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.parametrize("place", ["conv3.weight", "mean", "scale"])
@pytest.mark.filterwarnings("ignore")
def test_numbers_that_no_network_has_are_refused(tmp_path, kind, place):
    change, words = BROKEN[kind]
    content = tiny()
    torch.save(content, tmp_path / "w.pt")
    checkpoint.load(tmp_path / "w.pt")
    within = content["state_dict"] if "." in place else content
    within[place] = change(within[place])
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt.*{place}.*{words}"):
        checkpoint.load(tmp_path / "w.pt")
    assert "." in place or checkpoint.preprocessing(content, 3) is None


@pytest.mark.parametrize("kind", BROKEN)
@pytest.mark.filterwarnings("ignore")
def test_numbers_that_no_network_of_yours_has_are_refused(models, capsys, kind):
    change, words = BROKEN[kind]
    state = network(None, "user_models:plain", 40).model.state_dict()
    torch.save(state, "w.pt")
    network(Path("w.pt"), "user_models:plain", 40)
    torch.save(state | {"fc.weight": change(state["fc.weight"])}, "w.pt")
    refused(capsys, words)


def test_a_mask_of_infinities_is_no_weight():
    """Buffers may hold them."""
    module = nn.Linear(2, 2)
    module.register_buffer("mask", torch.full((2,), -float("inf")))
    assert states.misfit(module.state_dict(), module) is None


@pytest.mark.parametrize("classes", ["ab", ["a", 2], None])
def test_classes_are_a_list_of_names(tmp_path, classes):
    torch.save(tiny() | {"classes": classes}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt is a damaged zfkernels checkpoint.*classes must be 2 names, got"):
        checkpoint.load(tmp_path / "w.pt")
    assert checkpoint.preprocessing(tiny() | {"classes": classes}, 3) is None


def test_a_later_format_asks_for_a_later_version(tmp_path):
    torch.save({"format": "zfkernels.zfnet.2"}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt is of the format zfkernels\.zfnet\.2, which a later zfkernels wrote"):
        checkpoint.load(tmp_path / "w.pt")


def test_a_state_dict_of_another_network_says_how_to_name_it(tmp_path):
    for state in (nn.Linear(2, 2).state_dict(), {"fc8.weight": torch.ones(2, 4096)}):
        torch.save(state, tmp_path / "w.pt")
        with pytest.raises(ValueError, match=r"give --model MODULE:CALLABLE, too, say torchvision\.models:resnet18"):
            checkpoint.load(tmp_path / "w.pt")


def test_archives_and_arrays_of_others_are_named(models, capsys):
    with zipfile.ZipFile("w.pt", "w") as archive:
        archive.writestr("weights.txt", "1 2 3")
    refused(capsys, "is not a checkpoint but an archive that torch.save did not write; unzip it first")
    torch.save({"fc.weight": np.ones(3)}, "w.pt")
    refused(capsys, "holds arrays of NumPy, which are not loaded: save tensors in their place, of torch.from_numpy")
