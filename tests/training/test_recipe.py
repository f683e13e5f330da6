"""The paper's recipe: crops, mean, evaluation, clamp, annealing, resumption, processes, precision; the command."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from zfkernels import ZFNet, cli
from zfkernels.data.folders import Memory, PictureSet, class_folders, find_pictures, hold_out
from zfkernels.models import checkpoint
from zfkernels.training.fit import evaluate, fit, mean_picture
from zfkernels.training.history import read_log
from zfkernels.training.recipe import Plan, crop, resized_side, ten_crops

Image = pytest.importorskip("PIL.Image")
SMALL = {"num_classes": 3, "image_size": 40, "channels": (16,) * 5, "fc": (32, 32), "weight_std": None}
SMALL |= {"without": ("pool5",)}


def task(count=36, side=46, seed=0):
    """Three classes told apart by a colour, with noise."""
    labels = torch.arange(count) % 3
    images = torch.randint(0, 120, (count, 3, side, side), generator=torch.Generator().manual_seed(seed))
    images[torch.arange(count), labels] += 135
    return Memory(images.to(torch.uint8), labels)


def network(**changes):
    torch.manual_seed(0)
    return ZFNet(**SMALL | changes)


def run(plan, model=None, **options):
    model = model or network()
    history = fit(model, task(), task(18, seed=1), plan, **{"side": 40, "scale": 64.0} | options)
    return model, history


PLAN = Plan(epochs=4, batch_size=8, learning_rate=0.01)


def test_the_defaults_are_section_3():
    plan = Plan()
    assert (plan.epochs, plan.batch_size, plan.learning_rate, plan.momentum) == (70, 128, 1e-2, 0.9)
    assert (plan.filter_rms, plan.fall, resized_side(224)) == (0.1, 0.1, 256)


def test_ten_crops_are_the_corners_the_centre_and_their_mirrors():
    x = torch.arange(2 * 3 * 6 * 7).reshape(2, 3, 6, 7)
    found = ten_crops(x, (4, 4))
    assert found.shape == (2, 10, 3, 4, 4)
    places = [(0, 0), (0, 3), (2, 0), (2, 3), (1, 1)]
    for i, (top, left) in enumerate(places):
        part = x[:, :, top : top + 4, left : left + 4]
        assert torch.equal(found[:, i], part)
        assert torch.equal(found[:, i + 5], part.flip(-1))
    with pytest.raises(ValueError, match="do not fit"):
        crop(x, 0, (8, 4))


def test_the_mean_is_of_each_pixel():
    pictures = task(7)
    assert torch.allclose(mean_picture(pictures), pictures.images.double().mean(0).float(), atol=1e-5)


def test_evaluation_averages_the_probabilities_of_the_crops():
    model, pictures = network().eval(), task(11, seed=3)
    pictures = Memory(pictures.images, torch.randint(3, (11,), generator=torch.Generator().manual_seed(2)))
    mean = mean_picture(pictures)
    right, right5 = 0, 0
    for image, label, _ in pictures:
        crops = torch.stack([crop(image - mean, which, (40, 40)) for which in range(10)]) / 2
        p = model(crops).softmax(1).mean(0)
        right += int(p.argmax()) == label
        right5 += label in p.topk(3).indices.tolist()
    model.train()
    found = evaluate(model, pictures, mean, (40, 40), scale=2.0, batch_size=4)
    assert model.training
    assert found["error"] == pytest.approx(1 - right / 11)
    assert 0 < found["error"] < 1
    assert found["error5"] == pytest.approx(1 - right5 / 11) == 0


def test_it_learns_and_holds_the_filters_to_the_clamp():
    model, history = run(Plan(epochs=16, batch_size=6, learning_rate=0.015), network(dropout=0.1))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["error"] < 0.2
    assert model.conv1.weight.square().mean((1, 2, 3)).sqrt().max() <= 0.1 + 1e-6
    free, _ = run(Plan(epochs=1, batch_size=6, filter_rms=None))
    assert free.conv1.weight.square().mean((1, 2, 3)).sqrt().max() > 0.1


def test_the_rate_falls_when_the_error_stops_falling():
    _, history = run(Plan(epochs=5, batch_size=36, learning_rate=1e-9, patience=1))
    assert [line["learning_rate"] for line in history] == pytest.approx([1e-9, 1e-9, 1e-9, 1e-10, 1e-10])


def test_four_epochs_are_two_and_two_resumed_to_the_bit(tmp_path):
    whole, history = run(PLAN)
    run(Plan(**PLAN.__dict__ | {"epochs": 2}), out=tmp_path)
    torch.manual_seed(99)  # what the resumed process did before must not matter
    torch.rand(7)
    resumed, again = run(PLAN, ZFNet(**SMALL), out=tmp_path, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for a, b in zip(history, again, strict=True):
        assert all(a[key] == b[key] for key in ("epoch", "loss", "train_error", "error", "learning_rate"))
    assert [line["epoch"] for line in read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]


def test_a_fit_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    model = network()
    torch.manual_seed(5)
    run(Plan(epochs=1, batch_size=36), model)
    assert torch.equal(torch.rand(3), expected)


def test_mixed_precision_follows_full_precision():
    _, full = run(Plan(epochs=1, batch_size=8))
    model, mixed = run(Plan(epochs=1, batch_size=8), precision=torch.bfloat16)
    assert mixed[0]["loss"] == pytest.approx(full[0]["loss"], rel=2e-2)
    assert mixed[0]["loss"] != full[0]["loss"]
    assert model.conv1.weight.dtype == torch.float32


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(FloatingPointError, match="the loss of epoch 1"):
        run(Plan(epochs=2, batch_size=8, learning_rate=1e30, filter_rms=None))


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        ({"learning_rate": 0.5}, {"resume": True}, ValueError, "was trained with learning_rate 0.01, got"),
        ({}, {"side": 47}, ValueError, "do not fit into pictures"),
        ({"epochs": 0}, {}, ValueError, "epochs must be at least 1"),
        ({"learning_rate": 0.0}, {}, ValueError, "learning_rate must be above 0"),
    ],
)
def test_mistakes_are_named(tmp_path, change, options, error, words):
    if "resume" in options:
        run(Plan(**PLAN.__dict__ | {"epochs": 1}), out=tmp_path)
        options = options | {"out": tmp_path}
    with pytest.raises(error, match=words):
        run(Plan(**PLAN.__dict__ | change), **options)


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run(PLAN, out=tmp_path, resume=True)


WORKER = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_recipe import SMALL, task
from zfkernels import ZFNet
from zfkernels.training.fit import fit
from zfkernels.training.processes import launched, processes
from zfkernels.training.recipe import Plan
torch.set_num_threads(1)
with launched("cpu"):
    torch.manual_seed(0)
    model = ZFNet(**SMALL)
    plan = Plan(epochs=2, batch_size=7)
    history = fit(model, task(), task(18, seed=1), plan, side=40, scale=64.0)
    if processes()[0] == 0:
        torch.save({{"history": history, "model": model.state_dict()}}, {out!r})
"""


def test_two_processes_take_the_steps_of_one(tmp_path):
    """Dropout and all. 36 pictures in steps of 7: the last has one picture, and the second process none of its own."""
    script, out = tmp_path / "worker.py", tmp_path / "two.pt"
    script.write_text(WORKER.format(tests=os.path.dirname(__file__), out=str(out)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    started = [
        subprocess.Popen([sys.executable, script], env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in (0, 1)
    ]
    assert [process.wait(300) for process in started] == [0, 0]
    two = torch.load(out, weights_only=True)
    one, history = run(Plan(epochs=2, batch_size=7))
    for a, b in zip(history, two["history"], strict=True):
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-5)
        assert b["error"] == a["error"]
        assert (a["processes"], b["processes"]) == (1, 2)
    for name, value in one.state_dict().items():
        assert torch.allclose(value, two["model"][name], rtol=1e-3, atol=1e-6), name


# Folders and the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of six pictures, of several sizes and formats."""
    path = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for label, name in enumerate(("blue", "red")):
        (path / name / "more").mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 100, (50 + 7 * i, 60, 3), dtype=np.uint8)
            pixels[..., 2 - 2 * label] += 150
            place = path / name / "more" if i == 5 else path / name
            Image.fromarray(pixels).save(place / f"{i}.{'png' if i % 2 else 'jpg'}")
    (path / "red" / "notes.txt").write_text("not a picture")
    return path


def test_class_folders_and_what_is_held_out(folder):
    pictures = class_folders(folder)
    assert pictures.classes == ("blue", "red")
    assert pictures.labels == (0,) * 6 + (1,) * 6
    kept, out = hold_out(pictures, 0.3, seed=1)
    assert sorted(kept.paths + out.paths) == list(pictures.paths)
    assert out.labels == (0, 0, 1, 1)
    assert hold_out(pictures, 0.3, seed=1)[1] == out
    image, label, index = PictureSet(pictures, (46, 46))[7]
    assert (image.shape, image.dtype, label, index) == ((3, 46, 46), torch.uint8, 1, 7)


def test_folders_that_do_not_fit_are_named(tmp_path, folder):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        find_pictures(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no pictures"):
        find_pictures(tmp_path)
    with pytest.raises(ValueError, match="lies in none"):
        class_folders(folder / "red")
    with pytest.raises(ValueError, match="has a class 'blue' that the training folder lacks"):
        class_folders(folder, ("red", "tree"))
    with pytest.raises(ValueError, match="fraction must lie between 0 and 1"):
        hold_out(class_folders(folder), 1.0)


def test_the_command_trains_keeps_plots_and_resumes(capsys, tmp_path, folder):
    options = (
        f"--side 64 --channels 4 4 4 4 4 --fc 8 8 --he --scale 32 --batch 4 --held-out 0.3 --keep 1 --out {tmp_path}"
    )
    assert cli.main(["train", str(folder), *options.split(), "--epochs", "1", "--plot", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "8 to train on, 4 to validate on, 2 classes" in text
    assert "images/s" in text
    with Image.open(tmp_path / "training.png") as picture:
        assert picture.width > 800
    first = checkpoint.load(tmp_path / "epoch_001.pt")
    assert first.classes == ["blue", "red"]
    assert cli.main(["train", str(folder), *options.split(), "--epochs", "2", "--resume", "--device", "cpu"]) == 0
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    last = checkpoint.load(tmp_path / "zfnet.pt")
    assert last.mean.shape == (3, 64, 64)
    assert not torch.equal(first.model.conv1.weight, last.model.conv1.weight)
    assert not (tmp_path / "epoch_002.pt").exists()
    assert cli.main(["train", str(folder), "--epochs", "0"]) == 2
    assert "epochs must be at least 1, got 0" in capsys.readouterr().err
