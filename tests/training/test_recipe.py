"""The paper's recipe: crops, mean, evaluation, clamp, annealing, resumption, processes, precision; the command."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch

from zfkernels import ZFNet, cli, progress
from zfkernels.data.folders import Memory, PictureSet, class_folders, hold_out
from zfkernels.models import checkpoint
from zfkernels.models.zfnet import clamp_filters_
from zfkernels.training import history as histories
from zfkernels.training.crops import crop, stack_crops
from zfkernels.training.fit import evaluate, fit, mean_picture
from zfkernels.training.recipe import Plan, resized_side
from zfkernels.training.run import Run

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


def run(plan, model=None, out=None, resume=False, **options):
    model = model or network()
    whole = Run(plan, task(), task(18, seed=1), **{"side": (40, 40), "scale": 64.0} | options)
    if out is None:
        return model, fit(model, whole)
    state = histories.begin(out, plan, resume)
    return model, fit(model, whole, histories.files(out), state)


PLAN = Plan(epochs=4, batch_size=8, learning_rate=0.01)


def test_the_defaults_are_section_3():
    plan = Plan()
    assert (plan.epochs, plan.batch_size, plan.learning_rate, plan.momentum) == (70, 128, 1e-2, 0.9)
    assert (plan.filter_rms, plan.fall, resized_side(224)) == (0.1, 0.1, 256)


def test_ten_crops_are_the_corners_the_centre_and_their_mirrors():
    x = torch.arange(2 * 3 * 6 * 7).reshape(2, 3, 6, 7)
    found = stack_crops(x, range(10), (4, 4))
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


@pytest.mark.parametrize(("crops", "which", "count"), [("ten", range(10), 21), ("mirrored", (4,), 70)])
def test_evaluation_averages_the_probabilities_of_the_crops(crops, which, count):
    model, pictures = network().eval(), task(count, seed=3)  # more than one pass
    pictures = Memory(pictures.images, torch.randint(3, (count,), generator=torch.Generator().manual_seed(2)))
    mean = mean_picture(pictures)
    right, right5 = 0, 0
    for image, label, _ in pictures:
        views = torch.stack([crop(image - mean, each, (40, 40)) for each in which]) / 2
        p = model(views).softmax(1).mean(0)
        right += int(p.argmax()) == label
        right5 += label in p.topk(3).indices.tolist()
    model.train()
    run = Run(Plan(crops=crops), pictures, pictures, (40, 40), 2.0)
    error, error5 = evaluate(model, run, pictures, mean)
    assert model.training
    assert error == pytest.approx(1 - right / count)
    assert 0 < error < 1
    assert error5 == pytest.approx(1 - right5 / count) == 0


class OfOneCrop(torch.nn.Module):
    """Sure of class 0 in the crop that begins with a bright pixel, and a little for class 1 in the others."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        bright = x[:, 0, 0, 0] > 100
        return torch.where(bright[:, None], torch.tensor([20.0, 0.0]), torch.tensor([0.0, 1.0])) * self.weight


def test_one_sure_crop_does_not_outvote_nine():
    """Probabilities are averaged, of which no crop has more than 1; their logits would let it."""
    images = torch.zeros(1, 3, 46, 46, dtype=torch.uint8)
    images[..., 0, 0] = 255  # the top left crop's, and no other's
    pictures = Memory(images, torch.ones(1, dtype=torch.long))
    run = Run(Plan(), pictures, pictures, (40, 40), 1.0)
    assert evaluate(OfOneCrop(), run, pictures, torch.zeros(3, 46, 46))[0] == 0


class Undecided(torch.nn.Module):
    """The same of all classes."""

    def __init__(self, classes, value=0.0):
        super().__init__()
        self.weight, self.classes = torch.nn.Parameter(torch.tensor(value)), classes

    def forward(self, x):
        return self.weight.expand(len(x), self.classes)


@pytest.mark.parametrize(("label", "wrong", "wrong5"), [(0, 0, 0), (1, 1, 0), (4, 1, 0), (5, 1, 1), (7, 1, 1)])
def test_of_equal_probabilities_the_lower_class_goes_first_and_five_are_looked_at(label, wrong, wrong5):
    pictures = Memory(torch.zeros(3, 3, 46, 46, dtype=torch.uint8), torch.full((3,), label))
    run = Run(Plan(), pictures, pictures, (40, 40), 1.0)
    assert evaluate(Undecided(8), run, pictures, torch.zeros(3, 46, 46)) == (wrong, wrong5)


def test_it_learns_and_holds_the_filters_to_the_clamp():
    model, history = run(Plan(epochs=16, batch_size=6, learning_rate=0.015), network(dropout=0.1))
    assert history[-1].loss < 0.5 * history[0].loss
    assert history[-1].error < 0.2
    assert model.conv1.weight.square().mean((1, 2, 3)).sqrt().max() <= 0.1 + 1e-6
    free, _ = run(Plan(epochs=1, batch_size=6, filter_rms=None))
    assert free.conv1.weight.square().mean((1, 2, 3)).sqrt().max() > 0.1


def test_the_rate_falls_when_the_error_stops_falling():
    _, history = run(Plan(epochs=5, batch_size=36, learning_rate=1e-9, patience=1))
    assert [line.learning_rate for line in history] == pytest.approx([1e-9, 1e-9, 1e-9, 1e-10, 1e-10])


def test_four_epochs_are_two_and_two_resumed_to_the_bit(tmp_path):
    whole, history = run(PLAN)
    run(Plan(**PLAN.__dict__ | {"epochs": 2}), out=tmp_path)
    torch.manual_seed(99)  # what the resumed process did before must not matter
    torch.rand(7)
    resumed, again = run(PLAN, ZFNet(**SMALL), out=tmp_path, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    for a, b in zip(history, again, strict=True):
        assert all(
            getattr(a, key) == getattr(b, key) for key in ("epoch", "loss", "train_error", "error", "learning_rate")
        )
    assert [line.epoch for line in histories.read_log(tmp_path / "log.jsonl")] == [1, 2, 3, 4]


def test_a_resumed_run_keeps_its_rate_and_what_it_waited_for(tmp_path):
    """Errors that do not fall from the first epoch on: with patience 1 the rate falls after the third."""
    options = {"batch_size": 36, "learning_rate": 1e-9, "patience": 1}
    _, whole = run(Plan(epochs=6, **options))
    run(Plan(epochs=2, **options), out=tmp_path)
    run(Plan(epochs=4, **options), ZFNet(**SMALL), out=tmp_path, resume=True)
    _, resumed = run(Plan(epochs=6, **options), ZFNet(**SMALL), out=tmp_path, resume=True)
    rates = [line.learning_rate for line in whole]
    assert rates == pytest.approx([1e-9, 1e-9, 1e-9, 1e-10, 1e-10, 1e-11])
    assert [line.learning_rate for line in resumed] == rates


def test_the_rate_is_torchs_on_a_plateau():
    plan = Plan(learning_rate=0.3, patience=1, fall=0.2)
    errors = torch.randint(30, (60,), generator=torch.Generator().manual_seed(0)).div(30).tolist()
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=plan.learning_rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimiser, factor=plan.fall, patience=plan.patience, threshold=0.0, eps=0.0
    )
    for epoch, error in enumerate(errors):
        assert plan.rate(errors[:epoch]) == optimiser.param_groups[0]["lr"]
        schedule.step(error)
    assert plan.rate(errors) < 1e-3


def test_the_rate_falls_in_steps():
    plan = Plan(epochs=10, learning_rate=1.0, falls_at=(0.5, 0.8), fall=0.1)
    rates = [plan.rate([1.0] * epochs) for epochs in (0, 4, 5, 7, 8, 9)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_the_rate_goes_down_half_a_cosine():
    plan = Plan(epochs=6, learning_rate=2.0, cosine=True)
    rates = [plan.rate([0.5] * epochs) for epochs in range(6)]
    assert rates == pytest.approx([2, 1 + 3**0.5 / 2, 1.5, 1, 0.5, 1 - 3**0.5 / 2])
    parameter = torch.zeros(1, requires_grad=True)
    optimiser = torch.optim.SGD([parameter], lr=2.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 6)
    for rate in rates:
        assert rate == pytest.approx(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()


WRITTEN_OUT = Plan(epochs=2, batch_size=10, learning_rate=0.02, seed=3, crops="mirrored", draws="run", falls_at=(0.5,))


def test_mirrored_wholes_are_trained_as_written_out_here():
    """36 pictures in steps of 10: the last has 6, and its gradient is their mean."""
    pictures, mean = task(), torch.rand(3, 46, 46, generator=torch.Generator().manual_seed(1)) * 200
    torch.manual_seed(0)
    expected = ZFNet(**SMALL | {"image_size": 46})
    optimiser = torch.optim.SGD(expected.parameters(), lr=0.02, momentum=0.9)
    generator, labels, losses = torch.Generator().manual_seed(3), torch.tensor(pictures.labels), []
    for rate in (0.02, 0.02 * 0.1):
        optimiser.param_groups[0]["lr"] = rate
        total = 0.0
        for pick in torch.randperm(36, generator=generator).split(10):
            batch = (pictures.images[pick].float() - mean) / 64.0
            mirrored = torch.rand(len(batch), generator=generator) < 0.5
            batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
            loss = torch.nn.functional.cross_entropy(expected(batch), labels[pick])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            clamp_filters_(expected, 0.1)
            total += loss.item() * len(batch)
        losses.append(total / 36)
    with torch.no_grad():
        images = (pictures.images.float() - mean) / 64.0
        right = (expected.eval()(images).argmax(1) == labels).sum().item()
    torch.manual_seed(0)
    model = ZFNet(**SMALL | {"image_size": 46})
    history = fit(model, Run(WRITTEN_OUT, pictures, pictures, (46, 46), 64.0, mean))
    for name, value in expected.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    assert [line.loss for line in history] == losses
    assert history[-1].error == (36 - right) / 36


def test_one_stream_of_random_numbers_cannot_be_continued(tmp_path):
    options = {"side": (46, 46), "out": tmp_path}
    run(WRITTEN_OUT, ZFNet(**SMALL | {"image_size": 46}), **options)
    with pytest.raises(ValueError, match="cannot be continued"):
        run(WRITTEN_OUT, ZFNet(**SMALL | {"image_size": 46}), resume=True, **options)


def test_the_log_is_brought_back_to_the_state(tmp_path):
    """As a run leaves it that was stopped before, or after, the last line."""
    run(Plan(**PLAN.__dict__ | {"epochs": 2}), out=tmp_path)
    log = tmp_path / "log.jsonl"
    whole = log.read_text()
    for text in (whole.splitlines(keepends=True)[0], whole + whole.splitlines(keepends=True)[1]):
        log.write_text(text)
        assert histories.begin(tmp_path, PLAN)["history"][1]["epoch"] == 2
        assert log.read_text() == whole
    histories.begin(tmp_path, PLAN, resume=False)
    assert log.read_text() == ""


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
    assert mixed[0].loss == pytest.approx(full[0].loss, rel=2e-2)
    assert mixed[0].loss != full[0].loss
    assert model.conv1.weight.dtype == torch.float32


def test_a_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(FloatingPointError, match="the loss of epoch 1"):
        run(Plan(epochs=2, batch_size=8, learning_rate=1e30, filter_rms=None))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_stop_the_run(value):
    with pytest.raises(FloatingPointError, match="the loss of epoch 1 is"):
        run(Plan(epochs=1, batch_size=8, filter_rms=None), Undecided(3, value))


OTHER = {"batch_size": 9, "learning_rate": 0.5, "momentum": 0.5, "weight_decay": 0.1, "filter_rms": None, "patience": 9}
OTHER |= {"fall": 0.2, "seed": 1, "falls_at": (0.5,), "cosine": True, "crops": "mirrored", "draws": "run"}


def test_a_plan_that_differs_anywhere_is_not_resumed(tmp_path):
    run(Plan(**PLAN.__dict__ | {"epochs": 1}), out=tmp_path)
    assert OTHER.keys() == PLAN.__dict__.keys() - {"epochs"}
    for name, value in OTHER.items():
        with pytest.raises(ValueError, match=f"was trained with {name} .*, got {name} "):
            histories.begin(tmp_path, Plan(**PLAN.__dict__ | {name: value}), True)
    assert histories.begin(tmp_path, PLAN, True) is not None


def test_classes_in_another_order_are_not_resumed(tmp_path):
    whole = Run(Plan(**PLAN.__dict__ | {"epochs": 1}), task(), task(18, seed=1), (40, 40), 64.0)
    fit(network(), whole, histories.files(tmp_path, classes=("a", "b", "c")), histories.begin(tmp_path, whole.plan))
    with pytest.raises(ValueError, match="in another order"):
        histories.begin(tmp_path, PLAN, True, classes=("b", "a", "c"))
    assert histories.begin(tmp_path, PLAN, True, classes=("a", "b", "c")) is not None


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        ({"learning_rate": 0.5}, {"resume": True}, ValueError, "was trained with learning_rate 0.01, got"),
        ({}, {"side": (47, 47)}, ValueError, "do not fit into pictures"),
        ({"epochs": 0}, {}, ValueError, "epochs must be at least 1"),
        ({"momentum": 1.0}, {}, ValueError, "momentum must be from 0 to below 1, got 1.0"),
        ({"weight_decay": -1.0}, {}, ValueError, "weight_decay must be at least 0 and finite, got -1.0"),
        ({"learning_rate": 0.0}, {}, ValueError, "learning_rate must be above 0"),
        ({"crops": "nine"}, {}, ValueError, "crops must be one of ten, mirrored, got 'nine'"),
        ({"cosine": True, "falls_at": (0.5,)}, {}, ValueError, "falls_at must not be given with cosine, got .0.5,."),
        ({"draws": "run"}, {"resume": True}, ValueError, "was trained with draws epoch, got draws run"),
    ],
)
def test_mistakes_are_named(tmp_path, change, options, error, words):
    if "resume" in options:
        run(Plan(**PLAN.__dict__ | {"epochs": 1}), out=tmp_path)
        options = options | {"out": tmp_path}
    with pytest.raises(error, match=words):
        run(Plan(**PLAN.__dict__ | change), **options)


def test_a_bar_counts_in_units_and_passes_the_items_on(capsys):
    pytest.importorskip("tqdm")
    assert list(progress.bar("abc", "letters", " steps", shown=False)) == ["a", "b", "c"]
    assert capsys.readouterr().err == ""
    assert list(progress.bar("abc", "letters", " steps", shown=True, sizes=[4, 4, 2])) == ["a", "b", "c"]
    assert "10/10" in capsys.readouterr().err
    assert list(progress.bar("abc", "letters", " steps", shown=True)) == ["a", "b", "c"]
    assert "letters: 100%" in capsys.readouterr().err


def test_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        run(PLAN, out=tmp_path, resume=True)


WORKER = """
import sys, torch
sys.path.insert(0, {tests!r})
from test_recipe import SMALL, task
from zfkernels import ZFNet
from zfkernels.training.fit import fit
from zfkernels.training.run import Run
from zfkernels.training.processes import launched, processes
from zfkernels.training.recipe import Plan
torch.set_num_threads(1)
with launched("cpu"):
    torch.manual_seed(0)
    model = ZFNet(**SMALL)
    plan = Plan(epochs=2, batch_size=7)
    history = fit(model, Run(plan, task(), task(18, seed=1), (40, 40), 64.0))
    if processes()[0] == 0:
        lines = [(line.loss, line.error, line.processes) for line in history]
        torch.save({{"history": lines, "model": model.state_dict()}}, {out!r})
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
    for line, (loss, error, processes) in zip(history, two["history"], strict=True):
        assert loss == pytest.approx(line.loss, rel=1e-5)
        assert error == line.error
        assert (line.processes, processes) == (1, 2)
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
        class_folders(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no pictures"):
        class_folders(tmp_path)
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
    assert "error: --epochs must be at least 1, got 0" in capsys.readouterr().err
