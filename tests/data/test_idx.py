"""IDX files: what is read, what is wrong with those that are not, and training on them."""

import gzip
import re
import runpy
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from zfkernels import cli
from zfkernels.data import idx
from zfkernels.data.folders import class_folders
from zfkernels.data.pictures import read_picture
from zfkernels.files import load_tensors
from zfkernels.models import checkpoint

Image = pytest.importorskip("PIL.Image")
EXAMPLE = Path(__file__).parents[2] / "examples/idx_to_folders.py"


def file_of(values, kind=8):
    """The bytes of an IDX file of uint8 values."""
    return bytes((0, 0, kind, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write(folder, name, count, classes=2, seed=0, zipped=True, **changed):
    """A pair: pictures whose class is how bright they are."""
    random = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.uint8) % classes
    images = random.integers(0, 90, (count, 20, 16), dtype=np.uint8) + (160 // classes * labels)[:, None, None]
    labels = changed.get("labels", labels)
    folder.mkdir(parents=True, exist_ok=True)
    for what, values in (("images-idx3", images.astype(np.uint8)), ("labels-idx1", labels)):
        content = file_of(values)
        end = ".gz" if zipped else ""
        (folder / f"{name}-{what}-ubyte{end}").write_bytes(gzip.compress(content) if zipped else content)
    return images, labels


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pair_is_read_as_it_was_written(tmp_path, zipped):
    images, labels = write(tmp_path, "train", 7, 3, zipped=zipped)
    write(tmp_path, "t10k", 4, zipped=zipped)
    training, validation = idx.pairs(tmp_path)
    assert (training.images.name, validation.labels.name) == tuple(
        name + ".gz" * zipped for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
    )
    found = idx.read_pair(training)
    assert np.array_equal(found.images.numpy(), images)
    assert found.labels.tolist() == labels.tolist()
    assert found.line() == f"7 pictures of 3 classes in {training.images}, 20 x 16, grey"
    assert idx.class_names([found, idx.read_pair(validation)]) == ("0", "1", "2")


def test_a_file_names_its_pair_alone(tmp_path):
    write(tmp_path, "train", 4)
    write(tmp_path, "t10k", 4)
    file = tmp_path / "t10k-images-idx3-ubyte.gz"
    assert idx.pairs(file) == (idx.Pair(file, tmp_path / "t10k-labels-idx1-ubyte.gz"), None)
    assert idx.holds_idx(file)
    assert idx.holds_idx(tmp_path)
    assert not idx.holds_idx(tmp_path / "t10k-labels-idx1-ubyte.gz")
    assert not idx.holds_idx(tmp_path.parent / "none")


@pytest.mark.parametrize("name", ["train-images.idx3-ubyte", "emnist-digits-train-images-idx3-ubyte"])
def test_other_spellings(tmp_path, name):
    write(tmp_path, "train", 4, zipped=False)
    for what in ("images-idx3", "labels-idx1"):
        to = name if what.startswith("images") else name.replace("images", "labels").replace("idx3", "idx1")
        (tmp_path / f"train-{what}-ubyte").rename(tmp_path / to)
    assert idx.pairs(tmp_path)[0].images == tmp_path / name


def test_pictures_are_resized_as_those_of_files_are(tmp_path):
    images, _ = write(tmp_path, "train", 3)
    memory = idx.resized(idx.read_pair(idx.pairs(tmp_path)[0]), (33, 40))
    assert (memory.size, memory.channels) == ((33, 40), 1)
    for picture, (pixels, _, _) in zip(images, memory, strict=False):
        Image.fromarray(picture).save(tmp_path / "picture.png")
        assert torch.equal(pixels.expand(3, -1, -1), read_picture(tmp_path / "picture.png", (33, 40)))


def damaged(tmp_path, content, zipped=True):
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' * zipped}"
    path.write_bytes(content)
    return path


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    good = file_of(np.zeros((2, 3, 4), np.uint8))
    for content, zipped, said in (
        (good, True, "cannot be read: it is damaged or cut short"),
        (gzip.compress(good, mtime=0)[:-12], True, "cannot be read: it is damaged or cut short"),
        (gzip.compress(good[:-1], mtime=0), True, "2 x 3 x 4 = 24 bytes after its sizes, and holds 23"),
        (good + b"x", False, "and holds more"),
        (good[:9], False, "ends before its sizes"),
        (b"", False, "must begin with 00 00 08 03, .* got nothing"),
        (file_of(np.zeros(3, np.uint8)), False, r"of \(count, height, width\) does, got 00 00 08 01"),
        (file_of(np.zeros((2, 3, 4), np.uint8), kind=13), False, "got 00 00 0d 03"),
        (bytes((0, 0, 8, 3)) + b"\xff" * 12, False, "and holds 0|cannot be read"),
    ):
        path = damaged(tmp_path, content, zipped)
        with pytest.raises(ValueError, match=said) as caught:
            idx.read_idx(path, 3)
        assert str(path) in str(caught.value)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        idx.read_idx(tmp_path / "none.gz", 1)


def test_pairs_that_do_not_fit_are_named(tmp_path):
    write(tmp_path, "train", 4, labels=np.zeros(3, np.uint8))
    with pytest.raises(ValueError, match=r"holds 4 pictures and .* 3 labels"):
        idx.read_pair(idx.pairs(tmp_path)[0])
    write(tmp_path, "train", 4, labels=np.zeros(4, np.uint8))
    with pytest.raises(ValueError, match="at least 2 classes, got 0 alone"):
        idx.class_names([idx.read_pair(idx.pairs(tmp_path)[0])])
    write(tmp_path, "train", 4)
    write(tmp_path, "t10k", 6, classes=3)
    with pytest.raises(ValueError, match=r"has a class 2, and the classes of .* end at 1"):
        idx.class_names([idx.read_pair(pair) for pair in idx.pairs(tmp_path)])
    write(tmp_path, "more", 4)
    with pytest.raises(ValueError, match="holds 3 sets of IDX files"):
        idx.pairs(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(ValueError, match="must have train-labels-idx1-ubyte beside it"):
        idx.pairs(tmp_path)
    write(tmp_path, "train", 0, labels=np.zeros(0, np.uint8))
    with pytest.raises(ValueError, match="holds no pictures: its sizes are 0 x 20 x 16"):
        idx.read_pair(idx.pairs(tmp_path / "train-images-idx3-ubyte.gz")[0])


# In the command

TRAIN = "--side 64 --channels 4 4 4 4 4 --fc 8 8 --he --scale 64 --batch 4 --epochs 1 --device cpu --quiet"


def train(capsys, folder, out, *more):
    code = cli.main(["train", str(folder), "--out", str(out), *TRAIN.split(), *more])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_command_trains_a_grey_network_with_names(capsys, tmp_path):
    write(tmp_path / "data", "train", 12)
    write(tmp_path / "data", "t10k", 6)
    (tmp_path / "names.txt").write_text("dark\nbright\n")
    code, text, _ = train(capsys, tmp_path / "data", tmp_path / "run", "--classes", str(tmp_path / "names.txt"))
    assert code == 0
    assert "found       12 pictures of 2 classes in" in text
    assert "12 to train on, 6 to validate on, 2 classes" in text
    assert "20 x 16, grey" in (tmp_path / "run" / "pictures.log").read_text()
    network = checkpoint.load(tmp_path / "run" / "zfnet.pt")
    assert (network.channels, network.classes) == (1, ["dark", "bright"])
    assert network.mean.shape == (1, 64, 64)
    Image.new("RGB", (70, 90), (40, 40, 40)).save(tmp_path / "dark.png")
    out = tmp_path / "p.png"
    command = f"project {tmp_path}/dark.png --weights {tmp_path}/run/zfnet.pt --layer conv2 --out {out}"
    assert cli.main(command.split()) == 0
    assert out.exists()


def test_the_rate_falls_at_fractions_of_the_epochs(capsys, tmp_path):
    """And whole crops and dropout are what the options say."""
    write(tmp_path / "data", "train", 12)
    more = ["--epochs", "4", "--falls-at", "0.5", "0.75", "--crops", "mirrored", "--dropout", "0.25"]
    code, text, _ = train(capsys, tmp_path / "data", tmp_path / "run", *more)
    assert code == 0
    assert checkpoint.load(tmp_path / "run" / "zfnet.pt").model.dropout.p == 0.25
    plan = load_tensors(tmp_path / "run" / "state.pt")["plan"]
    assert (plan["crops"], tuple(plan["falls_at"])) == ("mirrored", (0.5, 0.75))
    assert re.findall(r"rate (\S+)", text) == ["1e-02", "1e-02", "1e-03", "1e-04"]


def test_an_example_writes_pictures_of_each_class(capsys, tmp_path, monkeypatch):
    images, labels = write(tmp_path / "data", "train", 9, 3)
    images = images.astype(np.uint8)
    file = tmp_path / "data" / "train-images-idx3-ubyte.gz"
    monkeypatch.setattr(sys, "argv", ["idx_to_folders.py", str(file), str(tmp_path / "out"), "--each", "2"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert capsys.readouterr().out == f"6 pictures in {tmp_path / 'out'}\n"
    found = class_folders(tmp_path / "out")
    assert (found.classes, found.labels) == (("0", "1", "2"), (0, 0, 1, 1, 2, 2))
    for path, label in zip(found.paths, found.labels, strict=True):
        assert labels[int(path.stem)] == label
        assert np.array_equal(np.asarray(Image.open(path)), images[int(path.stem)])


def test_some_of_one_pair_are_validated_on(capsys, tmp_path):
    write(tmp_path / "data", "train", 12)
    code, text, _ = train(capsys, tmp_path / "data", tmp_path / "run", "--held-out", "0.34")
    assert code == 0
    assert "8 to train on, 4 to validate on" in text
    assert checkpoint.load(tmp_path / "run" / "zfnet.pt").classes == ["0", "1"]


def test_mistakes_are_one_line(capsys, tmp_path):
    write(tmp_path / "data", "train", 12)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (90, 90)).save(tmp_path / "photos" / name / "1.png")
    (tmp_path / "names.txt").write_text("only\n")
    names = ("--classes", str(tmp_path / "names.txt"))
    for folder, more, said in (
        ("data", ("--validation", str(tmp_path / "photos")), "must hold IDX files, as"),
        ("data", names, "must name the network's 2 classes"),
        ("photos", names, "names the classes of IDX files, and those of"),
        ("data", ("--falls-at", "0.5", "1.5"), "--falls-at must lie between 0 and 1, got 0.5 1.5"),
        ("data", ("--dropout", "1.5"), "dropout"),
    ):
        code, _, errors = train(capsys, tmp_path / folder, tmp_path / "run", *more)
        assert code == 2
        assert errors.count("\n") == 1
        assert said in errors
