"""The paper's analyses: identities that hold for every network, naive recomputations, and small real data."""

import base64
import io
import json
import math
import re

import numpy as np
import pytest
import torch
from torch import nn

from zfkernels import Deconvnet, ZFNet, cli, top_activations
from zfkernels.analyses import ablation, atlas, correspondence, evolution, filters, invariance, neighbours, probes
from zfkernels.data.folders import Memory
from zfkernels.models import checkpoint
from zfkernels.models.checkpoint import Network
from zfkernels.models.load import build
from zfkernels.training.fit import Run
from zfkernels.training.recipe import Plan

Image = pytest.importorskip("PIL.Image")
SMALL = {"num_classes": 3, "image_size": 48, "channels": (6, 7, 8, 8, 5), "fc": (12, 10), "weight_std": None}
SMALL |= {"without": ("pool5",)}


def network(seed=0, **changes):
    torch.manual_seed(seed)
    return ZFNet(**SMALL | changes).eval()


def photographs(count=6, side=48):
    """Square views of scikit-image's photographs, uint8."""
    from zfkernels.data.photographs import CLASSES, Photographs

    made = Photographs(side, tuple(CLASSES)[:count])
    return torch.stack([made.view(i, (0, 0, *(min(p.shape[:2]),) * 2)) for i, p in enumerate(made.pixels)])


def inputs(pixels):
    return (pixels.float() - 120) / 60


def digits(count=360):
    """scikit-learn's handwritten digits, 8 x 8, thrice the size and in three channels."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.from_numpy(data.images[:count]).float()[:, None].expand(-1, 3, -1, -1)
    return nn.functional.interpolate(images, size=24, mode="bilinear") / 8 - 1, torch.from_numpy(data.target[:count])


# Invariance


@pytest.mark.parametrize("transform", invariance.TRANSFORMS)
def test_a_curve_starts_at_0_and_at_the_clear_probability(transform):
    model, x = network(), inputs(photographs(3))
    still = 1.0 if transform == "scale" else 0.0
    labels = torch.tensor([0, 1, 2])
    curve = invariance.invariance_curves(model, x, ["conv1", "fc7"], transform, [still, 1.5, 9.0], labels=labels)
    clear = model(x).softmax(1)[labels, labels].detach()
    assert torch.allclose(curve.probability[:, 0], clear, atol=1e-6)
    for layer in ("conv1", "fc7"):
        assert curve.distances[layer].shape == (3, 3)
        assert not curve.distances[layer][:, 0].any()
        assert (curve.distances[layer][:, 1:] > 0).all()
        features = Deconvnet(model).activations(x, layer).flatten(1)
        moved = Deconvnet(model).activations(invariance.transformed(x, transform, 9.0), layer).flatten(1)
        assert torch.allclose(curve.distances[layer][:, 2], (moved - features).norm(dim=1), rtol=1e-5)
        assert torch.allclose(curve.norms[layer], features.norm(dim=1))


def test_quarter_turns_whole_shifts_and_magnifications_are_exact():
    x = torch.randn(2, 3, 9, 9)
    for quarter in (1, 2, 3):
        found = invariance.transformed(x, "rotation", 90.0 * quarter)
        assert torch.allclose(found, torch.rot90(x, quarter, (2, 3)), atol=1e-5)
    assert torch.equal(invariance.transformed(x, "rotation", 360), x)
    down = invariance.transformed(x, "translation", 2, fill=7.0)
    assert torch.equal(down[:, :, 2:], x[:, :, :-2])
    assert (down[:, :, :2] == 7).all()
    up = invariance.transformed(x, "translation", -3)
    assert torch.equal(up[:, :, :-3], x[:, :, 3:])
    assert not up[:, :, -3:].any()
    assert not invariance.transformed(x, "translation", 50).any()
    half = invariance.transformed(x, "translation", 0.5)
    assert torch.allclose(half[:, :, 1:], (x[:, :, 1:] + x[:, :, :-1]) / 2, atol=1e-6)
    ramp = torch.arange(9.0).expand(1, 1, 9, 9) - 4
    assert torch.allclose(invariance.transformed(ramp, "scale", 2.0), ramp / 2, atol=1e-5)


def test_a_sum_over_the_image_does_not_feel_a_shift_inside_it():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(2 * 400, 1, bias=False))
    nn.init.ones_(model[2].weight)
    nn.init.constant_(model[0].weight, 0.5)
    x = torch.zeros(1, 1, 20, 20)
    x[:, :, 8:12, 8:12] = torch.rand(4, 4)
    curve = invariance.invariance_curves(model, x, ["0", "2"], "translation", [-4, 4])
    assert (curve.distances["2"] <= 1e-5 * curve.norms["2"]).all()
    assert (curve.distances["0"] > 0.5 * curve.norms["0"]).all()


def test_wrong_transforms_are_named():
    with pytest.raises(ValueError, match="transform must be one of translation, scale, rotation, got 'shear'"):
        invariance.transformed(torch.zeros(1, 1, 4, 4), "shear", 1)
    with pytest.raises(ValueError, match="magnification must be above 0"):
        invariance.transformed(torch.zeros(1, 1, 4, 4), "scale", 0)
    with pytest.raises(ValueError, match="labels must be 1"):
        invariance.invariance_curves(network(), torch.zeros(1, 3, 48, 48), [], "scale", [], labels=torch.zeros(2))


# Correspondence


def test_delta_against_its_formula():
    changes = torch.tensor([[1.0, -2.0, 0.0, 3.0], [2.0, 5.0, 0.0, 1.0], [0.0, -1.0, 1.0, -4.0]])
    signs = changes.sign().tolist()
    total = sum(
        sum(a != b for a, b in zip(signs[i], signs[j], strict=True)) for i in range(3) for j in range(3) if i != j
    )
    found = correspondence.sign_disagreement(changes)
    assert found.delta == pytest.approx(total / (3 * 2 * 4))
    assert found.per_image.tolist() == pytest.approx([4 / 8, 5 / 8, 7 / 8])
    assert found.deviation == pytest.approx(np.std([4 / 8, 5 / 8, 7 / 8], ddof=1))


def test_identical_images_correspond_wholly_and_opposite_changes_not_at_all():
    one = inputs(photographs(1))
    box = [(10, 8, 26, 30)] * 4
    found = correspondence.correspondence(network(), one.expand(4, -1, -1, -1), {"part": box}, ["conv5", "fc7"])
    assert found["conv5"]["part"].delta == found["fc7"]["part"].delta == 0
    x = torch.randn(1, 50)
    assert correspondence.sign_disagreement(torch.cat([x, -x])).delta == 1


def test_hiding_a_part_changes_the_features_that_the_table_counts():
    model, x = network(), inputs(photographs(4))
    parts = {"a": [(0, 0, 12, 14), (5, 6, 20, 20), (30, 30, 48, 48), (1, 2, 30, 9)]}
    parts["random"] = correspondence.random_boxes(parts, (48, 48), seed=3)
    sizes = [[(b - t, r - left) for t, left, b, r in boxes] for boxes in parts.values()]
    assert sizes[0] == sizes[1]
    assert parts["random"] == correspondence.random_boxes({"a": parts["a"]}, (48, 48), seed=3)
    found = correspondence.correspondence(model, x, parts, ["conv3"], fill=0.25)
    hidden = x.clone()
    for i, (t, left, b, r) in enumerate(parts["a"]):
        hidden[i, :, t:b, left:r] = 0.25
    deconv = Deconvnet(model)
    changes = (deconv.activations(x, "conv3") - deconv.activations(hidden, "conv3")).flatten(1)
    assert found["conv3"]["a"].delta == correspondence.sign_disagreement(changes).delta > 0
    text = correspondence.table(found)
    assert "part hidden" in text
    assert f"{found['conv3']['random'].delta:.3f} ±" in text
    with pytest.raises(ValueError, match="must have a box for each of 4 images, got 1"):
        correspondence.correspondence(model, x, {"a": parts["a"][:1]}, ["conv3"])
    with pytest.raises(ValueError, match="outside images"):
        correspondence.correspondence(model, x, {"a": [(0, 0, 49, 3)] * 4}, ["conv3"])


def test_boxes_follow_the_picture_into_the_input():
    assert correspondence.to_input((10, 20, 30, 60), (100, 100), (50, 50)) == (5, 10, 15, 30)
    assert correspondence.to_input((0, 50, 100, 150), (100, 200), (50, 50)) == (0, 0, 50, 50)
    assert correspondence.to_input((0, 0, 10, 10), (100, 200), (50, 50)) == (0, 0, 5, 1)  # cut away but for the edge


# Filters


def test_dead_flat_and_checkered_filters_are_counted():
    rows, columns = torch.meshgrid(torch.arange(7), torch.arange(7), indexing="ij")
    flat, checkered = torch.ones(7, 7), ((rows + columns) % 2 * 2 - 1).float()
    slanted = torch.cos(2 * math.pi * rows * 0.18)
    weight = torch.stack([flat, checkered, slanted, slanted.T, 1e-3 * flat])[:, None].expand(-1, 3, -1, -1).clone()
    found = filters.filter_statistics(weight)
    assert (found.dead, found.all_low, found.all_high) == (1, 1, 1)
    assert found.low[0] > 0.75 > 0.1 > found.high[0]
    assert found.high[1] > 0.75
    assert found.rms.tolist() == pytest.approx(weight.double().square().mean((1, 2, 3)).sqrt().tolist())
    assert found.largest == pytest.approx(float(found.rms.max() / found.rms.median()))
    assert "5 of 7x7     1" in filters.table({"net": weight})
    with pytest.raises(ValueError, match="must be"):
        filters.filter_statistics(weight[0])


# Neighbours


@pytest.mark.parametrize("metric", neighbours.METRICS)
def test_neighbours_against_a_naive_search(metric):
    model, x = network(), inputs(photographs(7))
    x[5] = x[1]
    found = neighbours.neighbours(model, x[:3], x.split(3), "conv4", k=5, metric=metric)
    features = Deconvnet(model).activations(x, "conv4").flatten(1).double().numpy()
    for q in range(3):
        a = features[q]
        distances = [
            np.linalg.norm(f - a) if metric == "euclidean" else 1 - f @ a / np.linalg.norm(f) / np.linalg.norm(a)
            for f in features
        ]
        expected = sorted(range(7), key=lambda i, d=distances: (round(d[i], 9), i))[:5]
        assert found.images[q].tolist() == expected
        assert found.distances[q].tolist() == pytest.approx([distances[i] for i in expected], abs=1e-9)
    assert found.images[1, :2].tolist() == [1, 5]
    assert found.distances[1, 1] <= 1e-12
    again = neighbours.neighbours(model, x[:3], [x], "conv4", k=5, metric=metric)
    assert torch.equal(found.images, again.images)
    with pytest.raises(ValueError, match="metric must be one of"):
        neighbours.neighbours(model, x, [x], "conv4", metric="other")


# Probes


def test_a_linear_probe_reads_digits_and_not_noise():
    x, labels = digits()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 12, 5, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(192, 40))
    known = probes.features(model, x.split(100), ["0", "2", "4"], grid=4)
    assert {name: tuple(found.shape) for name, found in known.items()} == {
        "0": (360, 192), "2": (360, 192), "4": (360, 40),
    }  # fmt: skip
    maps = Deconvnet(model).activations(x[:5], "2")
    assert torch.equal(known["2"][:5], nn.functional.adaptive_max_pool2d(maps, 4).flatten(1))
    found = {(p.layer, p.classifier): p for p in probes.probe(known, labels, 20, draws=2)}
    assert found["2", "svm"].accuracy > 0.85
    assert found["2", "softmax"].accuracy > 0.85
    few = probes.probe({"2": known["2"]}, labels, 3, classifiers=["svm"], draws=2)[0]
    assert 0.3 < few.accuracy < found["2", "svm"].accuracy
    noise = probes.probe({"noise": torch.randn(360, 30)}, labels, 20, classifiers=["svm"], draws=2)[0]
    assert noise.accuracy < 0.25
    text = probes.table([found["2", "svm"], few])
    assert "3 a class" in text
    assert f"{100 * few.accuracy:.1f}" in text
    with pytest.raises(ValueError, match="leave a picture of each class to test on, got 400"):
        probes.probe(known, labels, 400)
    with pytest.raises(ValueError, match="classifiers must be of svm, softmax, got tree"):
        probes.probe(known, labels, 4, classifiers=["tree"])


# Ablation


def test_the_variants_are_those_of_table_3():
    rows = ablation.variants()
    parameters = {}
    for row in rows:
        with torch.device("meta"):
            parameters[row.name] = sum(p.numel() for p in ZFNet(**row.changes).parameters())
    assert parameters["as in the paper"] == 62_357_608
    assert parameters["without 6, 7"] == 62_357_608 - (9216 + 4096) * 4096 - 2 * 4096 - 4096000 + 9216000
    assert parameters["without 7"] == 62_357_608 - 4096 * 4097
    wide = next(row for row in rows if row.name == "3, 4, 5 of 512, 1024, 512")
    assert wide.changes["channels"] == (96, 256, 512, 1024, 512)
    assert wide.paper == (18.8, 37.5, 16.0)
    assert [row.changes["fc"] for row in rows if row.name.startswith("6, 7 of")] == [(2048, 2048), (8192, 8192)]


def test_the_runner_trains_each_variant_alike_and_continues(tmp_path):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 2
    images = torch.randint(0, 100, (12, 3, 74, 74), generator=generator) + 155 * labels[:, None, None, None]
    data = Memory(images.to(torch.uint8), labels)
    rows = [v for v in ablation.variants((4,) * 5, (8, 8)) if v.name in ("as in the paper", "without 3, 4")]
    run = Run(Plan(epochs=2, batch_size=4), data, data, side=(64, 64), scale=64.0)
    arguments = {"num_classes": 2, "image_size": 64, "weight_std": None}
    seen = []
    found = ablation.ablation(rows, run, arguments, out=tmp_path, report=seen.append)
    assert seen == found
    assert found[0].parameters > found[1].parameters
    assert found[0].train_error == found[0].error  # the same pictures, both with dropout off
    assert ablation.ablation(rows, run, arguments, out=tmp_path) == found
    assert "33.1   38.4   16.5" in ablation.line(found[0])
    assert ablation.line(found[1]).startswith("without 3, 4")


# Evolution and the atlas


def test_evolution_shows_each_checkpoints_strongest_activation():
    networks, x = {"one": network(1), "two": network(2)}, inputs(photographs(6))
    found = evolution.evolution(networks, x, "conv4", [3, 0, 3])
    assert list(found) == ["one", "two"]
    for name, model in networks.items():
        maps = Deconvnet(model).activations(x, "conv4")
        for channel, moment in zip([3, 0, 3], found[name], strict=True):
            assert moment.value == pytest.approx(float(maps[:, channel].max()), rel=1e-5)
            assert float(maps[moment.image, channel][moment.position]) == pytest.approx(moment.value, rel=1e-5)
            alone = Deconvnet(model).project(x[moment.image][None], "conv4", channel, moment.position)
            assert torch.allclose(moment.pixels, alone.pixels[0], rtol=1e-4, atol=1e-6)
            assert moment.box == tuple(alone.boxes[0].tolist())
    with pytest.raises(ValueError, match="channels must be from 0 to 7"):
        evolution.evolution(networks, x, "conv4", [8])


@pytest.mark.parametrize("layer", ["conv1", "conv3", "conv5"])
def test_an_atlas_card_holds_the_projection_and_the_patch_of_each_unit(layer):
    model, pixels = network(), photographs(6)
    deconv = Deconvnet(model)
    top = top_activations(deconv, [inputs(pixels)], layer, k=4)
    read = lambda numbers: (inputs(pixels[numbers]), pixels[numbers])  # noqa: E731
    cards = list(atlas.cards(deconv, top, layer, read))
    assert [card.channel for card in cards] == torch.nonzero(top.values[:, 0] > 0)[:, 0].tolist()
    card = cards[1]
    for rank in range(4):
        image = int(top.images[card.channel, rank])
        alone = deconv.project(inputs(pixels[image])[None], layer, card.channel, top.positions[card.channel, rank])
        t, left, b, r = card.frames[rank]
        at, aleft, ab, ar = alone.boxes[0].tolist()
        assert t <= at < ab <= b
        assert left <= aleft < ar <= r
        part = alone.pixels[0, :, t:b, left:r]
        drawn = (card.projections[rank].astype(float) - 128) / 127 * card.limit
        inside = part.abs() <= card.limit * 0.99
        assert torch.allclose(
            torch.from_numpy(drawn).permute(2, 0, 1)[inside], part.double()[inside], atol=card.limit / 127
        )
        assert np.array_equal(card.patches[rank], pixels[image, :, t:b, left:r].permute(1, 2, 0).numpy())
    shape = {p.shape for p in card.projections + card.patches}
    assert len(shape) == 1
    assert atlas.panel(card).shape[0] == 2 * card.projections[0].shape[0] + 2


# The commands


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of class folders, a zfnet.pt and two epochs, and a file of parts."""
    path = tmp_path_factory.mktemp("world")
    pixels = photographs(6, 60)
    for i, image in enumerate(pixels):
        for j, view in enumerate((image, image.flip(2), image.flip(1))):
            place = path / "photos" / "abc"[i % 3] / f"{i}{j}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(view.permute(1, 2, 0).numpy()).save(place)
    mean, scale = torch.full((3, 48, 48), 120.0), torch.full((1, 1, 1), 60.0)
    for seed, name in enumerate(("zfnet", "epoch_001", "epoch_010")):
        checkpoint.save(path / f"{name}.pt", Network(network(seed), ["a", "b", "c"], mean, scale, (48, 48)), SMALL)
    listed = [
        {"image": f"photos/{'abc'[i % 3]}/{i}0.png", "parts": {"eye": [5, 5, 20, 20], "nose": [30, 20, 50, 45]}}
        for i in range(4)
    ]
    (path / "parts.json").write_text(json.dumps(listed))
    (path / "bad.json").write_text("[{}]")
    return path


def call(capsys, text):
    code = cli.main(text.split())
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_the_atlas_page_needs_nothing_beside_it_and_opens_every_map(capsys, world, tmp_path):
    text = f"atlas {world}/photos --weights {world}/zfnet.pt --layers conv1 conv4 --top 5 --out {tmp_path}/a --batch 7"
    code, out, errors = call(capsys, text)
    assert (code, errors) == (0, "")
    assert "conv1" in out
    page = (tmp_path / "a" / "index.html").read_text()
    assert not re.search(r"https?://|@import|url\(|src=\"(?!data:)", page)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert [layer["name"] for layer in data] == ["conv1", "conv4"]
    for layer in data:
        assert page.count("<button") == sum(len(one["cards"]) for one in data)
        for card in layer["cards"]:
            assert len(card["units"]) == 5
            picture = Image.open(io.BytesIO(base64.b64decode(card["src"].partition(",")[2])))
            assert picture.size == (card["w"], card["h"])
    for name in ("conv1", "conv4"):
        with Image.open(tmp_path / "a" / f"{name}.png") as sheet:
            assert sheet.width > 300
    assert call(capsys, text)[1] == out  # and again, from the search it kept


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("invariance {w}/photos/a --weights {w}/zfnet.pt --layers conv2 fc7 --out {t}/o.png", "rotation"),
        ("evolution {w}/photos --weights {w}/epoch_001.pt {w}/epoch_010.pt --layer conv3 --out {t}/o.png", "epoch 10"),
        ("filters --weights {w}/zfnet.pt --against {w}/epoch_001.pt --out {t}/o.png", "6 of 7x7"),
        ("neighbours {w}/photos/a/00.png {w}/photos --weights {w}/zfnet.pt --top 3 --out {t}/o.png",
         "0  {w}/photos/a/00"),
        ("correspond {w}/parts.json --weights {w}/zfnet.pt", "nose"),
        ("probe {w}/photos --weights {w}/zfnet.pt --per-class 3 --draws 2 --layers conv5 fc7", "svm on fc7"),
        ("occlude {w}/photos/a/00.png --weights {w}/zfnet.pt --images {w}/photos --stride 9 --patch 16 --out {t}/o.png",
         "from other pictures"),
        ("ablate {w}/photos --side 64 --channels 4 4 4 4 4 --fc 8 8 --he --scale 60 --epochs 1 --rows 0 1 --device cpu "
         "--out {t}/runs", "without 3, 4"),
    ],
)  # fmt: skip
def test_each_command_writes_and_says_what_it_found(capsys, world, tmp_path, command, words):
    if command.startswith("probe"):
        pytest.importorskip("sklearn")
    code, out, errors = call(capsys, command.format(w=world, t=tmp_path))
    assert (code, errors) == (0, "")
    assert words.format(w=world) in out
    if "o.png" in command:
        with Image.open(tmp_path / "o.png") as picture:
            assert min(picture.size) > 150


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("atlas {w}/photos", "--weights (or --model) is required"),
        ("atlas {w}/photos --weights {w}/none.pt", "there is no weights file"),
        ("atlas {w}/none --weights {w}/zfnet.pt", "there is no folder"),
        ("atlas {w}/photos --weights {w}/zfnet.pt --layers conv9", "--layers must be of conv1, pool1"),
        ("invariance {w}/photos --weights {w}/zfnet.pt --class dog", "--class must be a class or a number in 0..2"),
        ("invariance {w}/photos --model nowhere", "--model must be MODULE:CALLABLE"),
        ("invariance {w}/photos --model nowhere:net", "No module named 'nowhere'"),
        ("invariance {w}/photos --model torch.nn:Nothing", "has no attribute 'Nothing'"),
        ("filters --model builtins:dict", "must give a torch.nn.Module, got dict"),
        ("correspond {w}/bad.json --weights {w}/zfnet.pt", "bad.json must hold"),
        ("evolution {w}/photos --weights {w}/none.pt", "there is no weights file"),
        ("ablate {w}/photos --rows 9", "--rows must be from 0 to 8"),
        ("probe {w}/photos --weights {w}/zfnet.pt --layers fc7 --per-class 40", "leave a picture of each class"),
    ],
)
def test_mistakes_end_with_2_and_are_named(capsys, world, command, words):
    code, _, errors = call(capsys, command.format(w=world))
    assert code == 2
    assert words in errors
    assert "Traceback" not in errors


def test_a_network_of_ones_own_by_module_and_callable(capsys, world, tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\n\ndef small():\n    return nn.Sequential(nn.Conv2d(3, 4, 5, 2), nn.ReLU(), "
        "nn.MaxPool2d(3, 2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 6, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = build("my_nets:small")
    torch.save(model.state_dict(), "small.pt")
    code, out, errors = call(
        capsys, f"atlas {world}/photos --model my_nets:small --weights small.pt --size 40 --top 3 --out a"
    )
    assert (code, errors) == (0, "")
    assert "0" in out
    assert (tmp_path / "a" / "3.png").exists()
    assert not (tmp_path / "a" / "2.png").exists()  # a pool
    code, _, errors = call(capsys, f"atlas {world}/photos --model my_nets:small --size 43 --out a")
    assert code == 2
    assert "cannot take pictures of 43 x 43" in errors


def test_the_gallery_draws_each_section_with_its_caption(capsys, tmp_path, monkeypatch):
    from zfkernels.demo import gallery
    from zfkernels.demo import network as small

    monkeypatch.setattr(gallery, "EPOCHS", (1,))
    monkeypatch.setattr(small, "CROPS", 2)
    monkeypatch.setattr(gallery, "PLAN", Plan(epochs=1, batch_size=10))
    chosen = [one for one in gallery.SECTIONS if one[0] in ("training", "atlas", "evolution", "neighbours", "probes")]
    monkeypatch.setattr(gallery, "SECTIONS", tuple(chosen))
    pytest.importorskip("sklearn")
    code, out, errors = call(capsys, f"gallery --out {tmp_path}/out --work {tmp_path}/work")
    assert (code, errors) == (0, "")
    assert "README.md" in out
    text = (tmp_path / "out" / "README.md").read_text()
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
    assert len(pictures) == 5
    for name in pictures:
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.width > 250
    assert text.count("**Shows.**") == text.count("**Does not show.**") == 5
    assert "softmax on fc7" in text
