"""The commands of the analyses on a folder of small photographs: what they print and write, and their mistakes."""

import json
import re
from pathlib import Path

import pytest
import torch
from small import SMALL, network, photographs

from zfkernels import cli
from zfkernels.models import checkpoint
from zfkernels.models.checkpoint import Network
from zfkernels.models.load import build

Image = pytest.importorskip("PIL.Image")


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


def test_the_atlas_page_shows_every_map_and_needs_nothing_of_elsewhere(capsys, world, tmp_path):
    text = f"atlas {world}/photos --weights {world}/zfnet.pt --layers conv1 conv4 --top 5 --out {tmp_path}/a --batch 7"
    code, out, errors = call(capsys, text)
    assert (code, errors) == (0, "")
    assert "conv1" in out
    page = (tmp_path / "a" / "index.html").read_text()
    assert not re.search(r"https?://|@import|url\(", page)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert [layer["name"] for layer in data] == ["conv1", "conv4"]
    assert page.count('<button type="button" data-layer') == sum(len(layer["cards"]) for layer in data) > 8
    for layer in data:
        for card in layer["cards"]:
            assert len(card["units"]) == 5
            assert re.match(r"[\d.e-]+: [abc]/\d\d\.png, rows \d+ to \d+, columns", card["units"][0])
            sheet = layer["sheets"][card["sheet"]]
            with Image.open(tmp_path / "a" / sheet["src"]) as picture:
                assert picture.size == (sheet["w"], sheet["h"])
                assert card["x"] + card["w"] <= picture.width
                assert card["y"] + card["h"] <= picture.height
    assert call(capsys, text)[1] == out  # and again, from the search it kept


def test_an_evolution_is_a_page_or_a_figure(capsys, world, tmp_path):
    text = f"evolution {world}/photos --weights {world}/epoch_001.pt {world}/epoch_010.pt --layer conv3 --maps 1 2"
    code, out, errors = call(capsys, f"{text} --out {tmp_path}/deeper/e.html")
    assert (code, errors) == (0, "")
    assert f"page        {tmp_path}/deeper/e.html" in out
    page = (tmp_path / "deeper" / "e.html").read_text()
    assert page.count("<img") == 4
    assert re.search(r'alt="conv3 map 2 at epoch 10, deconvnet: .*? of [abc]/', page)
    values = re.findall(r"map \d: ([\d.]+)", out)
    assert [value for value in values if f"{float(value):.3g}" not in page] == []
    assert call(capsys, f"{text} --out {tmp_path}/e.png")[0] == 0
    assert Image.open(tmp_path / "e.png").format == "PNG"


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("invariance {w}/photos/a --weights {w}/zfnet.pt --layers conv2 fc7 --out {t}/o.png", "rotation"),
        ("evolution {w}/photos --weights {w}/epoch_001.pt {w}/epoch_010.pt --layer conv3 --out {t}/o.png", "epoch 10"),
        ("filters --weights {w}/zfnet.pt --against {w}/epoch_001.pt --out {t}/o.png", "6 of 7x7"),
        (
            "neighbours {w}/photos/a/00.png {w}/photos --weights {w}/zfnet.pt --top 3 --out {t}/o.png",
            "0  {w}/photos/a/00",
        ),
        ("correspond {w}/parts.json --weights {w}/zfnet.pt", "nose"),
        ("probe {w}/photos --weights {w}/zfnet.pt --per-class 3 --draws 2 --layers conv5 fc7", "svm on fc7"),
        (
            "occlude {w}/photos/a/00.png --weights {w}/zfnet.pt --images {w}/photos --stride 9 --patch 16 "
            "--out {t}/o.png",
            "from other pictures",
        ),
        (
            "ablate {w}/photos --side 64 --channels 4 4 4 4 4 --fc 8 8 --he --scale 60 --epochs 1 --rows 0 1 "
            "--device cpu --out {t}/runs",
            "without 3, 4",
        ),
    ],
)
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
        (
            "invariance {w}/photos --model nowhere:net",
            "No module named 'nowhere'; it is looked for in the current folder",
        ),
        ("invariance {w}/photos --model torch.nn:linear", "has no attribute 'linear', did you mean 'Linear'?"),
        ("invariance {w}/photos --model torch.nn:Linear", "it is called without arguments: name a function of yours"),
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
    assert (tmp_path / "a" / "3" / "sheet-1.png").exists()
    assert not (tmp_path / "a" / "2").exists()  # a pool
    code, _, errors = call(capsys, f"atlas {world}/photos --model my_nets:small --size 43 --out a")
    assert code == 2
    assert "cannot take pictures of 43 x 43" in errors


# --json: the numbers that a command prints


def of_project(numbers, out):
    assert f"{numbers['value']:.4g}"[:5] in out
    assert numbers["layer"] == "conv5"
    assert len(numbers["box"]) == 4
    assert numbers["method"] == "deconvnet"


def of_occlude(numbers, out):
    rows, columns = len(numbers["probability"]), len(numbers["probability"][0])
    assert f"cells       {rows} x {columns}" in out
    assert f"= {numbers['clear_probability']:.4f}" in out
    assert len(numbers["boxes"][0][0]) == 4


def of_atlas(numbers, out):
    top = numbers["layers"]["conv5"]
    assert len(top["values"]) == len(top["images"]) == len(top["positions"]) == 5
    assert top["values"][0] == sorted(top["values"][0], reverse=True)
    assert len(numbers["pictures"]) == 18


def of_filters(numbers, out):
    (counted,) = numbers["networks"].values()
    assert len(counted["rms"]) == 6
    assert "weight" not in counted


def of_evolution(numbers, out):
    for name, moments in numbers["checkpoints"].items():
        assert all(f"map {m['map']}: {m['value']:.4g}" in out for m in moments), name
        assert all(Path(m["picture"]).is_file() for m in moments)


def of_invariance(numbers, out):
    assert [curve["transform"] for curve in numbers["curves"]] == ["translation", "scale", "rotation"]
    assert f"from {min(map(min, numbers['curves'][0]['probability'])):.2f}" in out
    assert numbers["classes"] == ["a"] * 6


def of_neighbours(numbers, out):
    for found in numbers["layers"].values():
        assert found["distances"] == sorted(found["distances"])
        assert found["distances"][0] == 0
        assert str(found["pictures"][1]) in out


def of_correspond(numbers, out):
    cell = numbers["layers"]["fc7"]["nose"]
    assert f"{cell['delta']:.3f} ± {cell['deviation']:.3f}" in out
    assert len(cell["per_image"]) == 4


def of_probe(numbers, out):
    assert all(f"{100 * cell['accuracy']:.1f}" in out for cell in numbers["cells"])


def of_ablate(numbers, out):
    assert [f"{row['parameters']:,}" in out for row in numbers["rows"]] == [True]


def of_sanity(numbers, out):
    assert all(stage["module"] in out for stage in numbers["stages"])


NUMBERS = {
    of_project: "project {w}/photos/a/00.png --out {t}/o.png",
    of_occlude: "occlude {w}/photos/a/00.png --stride 9 --patch 16 --out {t}/o.png",
    of_atlas: "atlas {w}/photos --layers conv5 --maps 2 --top 3 --out {t}/a",
    of_filters: "filters --out {t}/o.png",
    of_evolution: "evolution {w}/photos --layer conv3 --maps 1 2 --out {t}/o.png",
    of_invariance: "invariance {w}/photos/a --layers conv2 --out {t}/o.png",
    of_neighbours: "neighbours {w}/photos/a/00.png {w}/photos --layers conv1 --top 3 --out {t}/o.png",
    of_correspond: "correspond {w}/parts.json --layers fc7",
    of_probe: "probe {w}/photos --per-class 3 --draws 1 --layers fc7",
    of_ablate: "ablate {w}/photos --side 64 --channels 4 4 4 4 4 --fc 8 8 --he --scale 60 --epochs 1 --rows 1 "
    "--device cpu --out {t}/runs",
    of_sanity: "sanity {w}/photos/a/00.png --layer conv2 --repeats 1 --out {t}/o.png",
}


@pytest.mark.parametrize("check", NUMBERS, ids=lambda check: check.__name__)
def test_json_holds_the_numbers_that_are_printed(capsys, world, tmp_path, check):
    if check is of_probe:
        pytest.importorskip("sklearn")
    command = NUMBERS[check].format(w=world, t=tmp_path)
    name = command.split()[0]
    weights = "" if name == "ablate" else f" --weights {world}/zfnet.pt"
    code, out, errors = call(capsys, f"{command}{weights} --json {tmp_path}/deeper/numbers.json")
    assert (code, errors) == (0, "")
    assert f"numbers     {tmp_path}/deeper/numbers.json" in out
    numbers = json.loads((tmp_path / "deeper" / "numbers.json").read_text())
    assert numbers["command"] == name
    check(numbers, out)


def test_every_command_of_networks_takes_a_device_and_refuses_one_that_is_not_there(capsys, world):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for check, command in NUMBERS.items():
        if check is of_ablate:
            continue
        line = f"{command.format(w=world, t=world)} --weights {world}/zfnet.pt --device"
        assert "torch sees no CUDA device" in call(capsys, f"{line} cuda")[2], command
        assert "--device must be cpu, cuda or cuda:NUMBER" in call(capsys, f"{line} gpu")[2], command


def test_an_evolution_of_a_network_of_ones_own(capsys, world, tmp_path, monkeypatch):
    (tmp_path / "my_small.py").write_text(
        "import torch\nfrom torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(3, 4, 5, 2), nn.ReLU(), "
        "nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(125, 3))\n"
    )
    monkeypatch.chdir(tmp_path)
    net = build("my_small:net")
    for epoch in (1, 2):
        torch.nn.init.normal_(net[0].weight, std=epoch)
        torch.save(net.state_dict(), tmp_path / f"epoch_{epoch:03d}.pt")
    line = f"evolution {world}/photos --weights epoch_001.pt epoch_002.pt --model my_small:net --size 32 --layer 3"
    means = [
        re.findall(r"map \d: ([\d.]+)", call(capsys, f"{line} --maps 0 4 {more} --out o.png")[1])
        for more in ("", "--mean 0.1 --std 0.5")
    ]
    assert len(means[0]) == len(means[1]) == 4
    assert means[0] != means[1]
