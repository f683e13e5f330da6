"""What is found before any work, what is written where, what is said of what cannot be: one line, and how to go on."""

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from small import SMALL, network

from zfkernels import cli, limits, progress
from zfkernels.analyses.filters import likeness, noise_note
from zfkernels.commands import train
from zfkernels.models import checkpoint
from zfkernels.models.checkpoint import Network

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """photos/a, b, c of six pictures each; zfnet.pt and learned.pt, whose first filters are smooth."""
    path = tmp_path_factory.mktemp("world")
    random = np.random.default_rng(0)
    for label, name in enumerate("abc"):
        (path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 100, (60, 60, 3), dtype=np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(path / "photos" / name / f"{i}.png")
    mean, scale = torch.full((3, 48, 48), 120.0), torch.full((1, 1, 1), 60.0)
    model = network()
    checkpoint.save(path / "zfnet.pt", Network(model, ["ant", "bee", "cow"], mean, scale, (48, 48)), SMALL)
    smooth = torch.nn.functional.interpolate(torch.randn(6, 3, 2, 2), size=(7, 7), mode="bilinear")
    with torch.no_grad():
        model.conv1.weight.copy_(smooth / 10)
    checkpoint.save(path / "learned.pt", Network(model, ["ant", "bee", "cow"], mean, scale, (48, 48)), SMALL)
    return path


def call(capsys, text):
    try:
        code = cli.main(text.split())
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys, text, *words):
    """It ends with 2 and one line on stderr, before anything was said on stdout."""
    code, out, errors = call(capsys, text)
    assert (code, out) == (2, "")
    assert errors.count("\n") == 1, errors
    for word in words:
        assert word in errors
    return errors


@pytest.mark.parametrize("name", [b"cl\xff\xfeass", b"a $\\frac{1$ b", b"$_$", b"new\nline"])
@pytest.mark.parametrize(
    "command",
    [
        "neighbours {p} {f} --weights {w} --layers conv1 --top 2",
        "invariance {p} --weights {w} --layers conv1",
        "occlude {p} --weights {w} --patch 24 --stride 24",
        "filters --weights {w} --against {o}",
    ],
)
def test_a_figure_shows_any_name_of_a_file_as_it_stands(capsys, world, tmp_path, command, name):
    """No text, or what matplotlib takes for a formula."""
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    picture, weights, other = folder / f"{folder.name}.png", folder / "w.pt", folder / "other.pt"
    shutil.copy(world / "photos" / "a" / "0.png", picture)
    for file in (weights, other):
        shutil.copy(world / "zfnet.pt", file)
    words = {"{p}": str(picture), "{f}": str(folder), "{w}": str(weights), "{o}": str(other)}
    arguments = [words.get(word, word) for word in f"{command} --out {tmp_path}/o.png".split()]
    assert cli.main(arguments) == 0, capsys.readouterr().err
    with Image.open(tmp_path / "o.png") as drawn:
        assert drawn.size[0] > 100


# What is written where

PROJECT = "project {w}/photos/a/0.png --weights {w}/zfnet.pt --layer conv2"


def test_a_figure_is_written_under_the_very_name(capsys, world, tmp_path):
    (tmp_path / "victim.png").write_bytes(b"precious")
    code, out, _ = call(capsys, PROJECT.format(w=world) + f" --out {tmp_path}/victim")
    assert code == 0
    assert out.splitlines()[-1] == f"picture     {tmp_path}/victim"
    assert (tmp_path / "victim.png").read_bytes() == b"precious"
    with Image.open(tmp_path / "victim") as picture:
        assert picture.format == "PNG"
    assert call(capsys, PROJECT.format(w=world) + f" --out {tmp_path}/p.jpg")[0] == 0
    with Image.open(tmp_path / "p.jpg") as picture:
        assert picture.format == "JPEG"


@pytest.mark.parametrize(
    "command",
    [
        PROJECT,
        "occlude {w}/photos/a/0.png --weights {w}/zfnet.pt",
        "filters --weights {w}/zfnet.pt",
        "invariance {w}/photos/a --weights {w}/zfnet.pt",
        "neighbours {w}/photos/a/0.png {w}/photos --weights {w}/zfnet.pt",
        "evolution {w}/photos --weights {w}/zfnet.pt",
        "sanity {w}/photos/a/0.png --weights {w}/zfnet.pt",
    ],
)
def test_outputs_are_looked_at_before_any_work(capsys, world, tmp_path, command, monkeypatch):
    """A folder, a file in place of a folder, an unknown format, a file that is read."""
    monkeypatch.setattr(checkpoint, "load", lambda path: pytest.fail("it worked before it looked"))
    command = command.format(w=world)
    (tmp_path / "file").write_text("mine")
    refused(capsys, f"{command} --out {tmp_path}", "--out must be a file, and", "is a folder")
    refused(capsys, f"{command} --out {tmp_path}/file/p.png", "cannot be written")
    refused(capsys, f"{command} --out {tmp_path}/p.xyz", "Format 'xyz' is not supported", "png")
    before = (world / "zfnet.pt").read_bytes()
    (tmp_path / "link.png").symlink_to(world / "zfnet.pt")
    refused(capsys, f"{command} --out {tmp_path}/link.png", "would overwrite a file that is read")
    assert (world / "zfnet.pt").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"file", "link.png"}


@pytest.mark.parametrize(
    "command",
    [
        "train {w}/photos --out {o}",
        "ablate {w}/photos --out {o}",
        "atlas {w}/photos --weights {w}/zfnet.pt --out {o}",
        "gallery --out {o}",
        "gallery --work {o} --out {t}/g",
        "demo --out {o}",
        "verify --json {o}/a.json",
        "bench --quick --json {o}/a.json",
        "sanity {w}/photos/a/0.png --weights {w}/zfnet.pt --json {o}/a.json --out {t}/s.png",
        "occlude {w}/photos/a/0.png --weights {w}/zfnet.pt --raw {o}/a.npz --out {t}/s.png",
    ],
)
@pytest.mark.parametrize("inside", ["", "/deeper"])
def test_folders_that_cannot_be_written_are_found_before_any_work(capsys, world, tmp_path, command, inside):
    (tmp_path / "file").write_text("mine")
    refused(capsys, command.format(w=world, t=tmp_path, o=f"{tmp_path}/file{inside}"), f"{tmp_path}/file")
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("command", "page"),
    [
        ("atlas {w}/photos --weights {w}/zfnet.pt --out {o}", "an index.html"),
        ("explore {w}/photos --weights {w}/zfnet.pt --export {o}", "an index.html"),
        ("demo --out {o}", "an index.html"),
        ("gallery --work {t}/work --out {o}", "a README.md"),
        ("gallery --work {t}/work --out {o}", "a gallery.html"),
    ],
)
def test_pages_of_something_else_are_not_replaced(capsys, world, tmp_path, command, page):
    folder = tmp_path / "site"
    folder.mkdir()
    name = page.split()[1]
    (folder / name).write_text("<p>mine")
    refused(capsys, command.format(w=world, t=tmp_path, o=folder), f"{folder} has {page} of something else")
    assert (folder / name).read_text() == "<p>mine"
    assert [path.name for path in tmp_path.rglob("*")] == ["site", name]


@pytest.mark.parametrize(
    ("command", "file"),
    [
        ("project {c}/a/0.png --weights {c}/net.pt --json {c}/net.pt", "net.pt"),
        ("project {c}/a/0.png --weights {c}/net.pt --json {c}/a/0.png", "a/0.png"),
        ("sanity {c}/a/0.png --weights {c}/net.pt --json {c}/net.pt", "net.pt"),
        ("filters --weights {c}/net.pt --json {c}/net.pt", "net.pt"),
        ("probe {c} --weights {c}/net.pt --json {c}/net.pt", "net.pt"),
        ("atlas {c} --weights {c}/net.pt --json {c}/net.pt", "net.pt"),
        ("ablate {c} --json {c}/a/0.png", "a/0.png"),
        ("occlude {c}/a/0.png --weights {c}/net.pt --raw {c}/net.pt", "net.pt"),
        ("occlude {c}/a/0.png --weights {c}/net.pt --images {c} --raw {c}/a/1.png", "a/1.png"),
        ("neighbours {c}/a/0.png {c} --weights {c}/net.pt --out {c}/a/1.png", "a/1.png"),
        ("invariance {c}/a --weights {c}/net.pt --out {c}/a/1.png", "a/1.png"),
        ("evolution {c} --weights {c}/net.pt --out {c}/a/1.png", "a/1.png"),
        ("correspond {c}/parts.json --weights {c}/net.pt --json {c}/parts.json", "parts.json"),
    ],
)
def test_no_output_replaces_what_is_read(capsys, world, tmp_path, command, file, monkeypatch):
    """Not --out, --json or --raw, by another name of it neither."""
    monkeypatch.chdir(tmp_path)
    copy = tmp_path / "c"
    shutil.copytree(world / "photos", copy)
    shutil.copy(world / "zfnet.pt", copy / "net.pt")
    (copy / "parts.json").write_text("[]")
    (tmp_path / "d").symlink_to(copy)
    before = (copy / file).read_bytes()
    for name in ("d", "c"):
        read, _, written = command.format(c=copy).rpartition(" ")
        refused(capsys, f"{read} {written.replace(str(copy), str(tmp_path / name))}", "would overwrite a file that is")
    assert (copy / file).read_bytes() == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--out {t}/a --json {t}/a", "--json {t}/a would overwrite what --out writes"),
        ("--out {t}/a --raw {t}/deeper/../a", "would overwrite what --out writes"),
        ("--out {t}/a --json {t}/b --raw {t}/b", "--raw {t}/b would overwrite what --json writes"),
    ],
)
def test_no_output_replaces_another(capsys, world, tmp_path, options, words):
    command = f"occlude {world}/photos/a/0.png --weights {world}/zfnet.pt "
    refused(capsys, command + options.format(t=tmp_path), words.format(t=tmp_path))
    command += "--patch 24 --stride 24 --out /dev/null --json /dev/null"
    assert call(capsys, command)[0] == 0


@pytest.mark.parametrize(
    "command",
    ["train {w}/photos --out {o}", "project {w}/photos/a/0.png --weights {w}/zfnet.pt --out {o}", "demo --out {o}/d"],
)
def test_links_that_lead_nowhere_are_found_before_any_work(capsys, world, tmp_path, command):
    (tmp_path / "link.png").symlink_to(tmp_path / "none" / "deeper")
    refused(capsys, command.format(w=world, o=tmp_path / "link.png"), "link.png is a link to", "which is not there")
    assert [file.name for file in tmp_path.iterdir()] == ["link.png"]


def test_a_link_that_leads_round_in_a_circle_is_replaced(capsys, world, tmp_path):
    (tmp_path / "link.png").symlink_to(tmp_path / "link.png")
    assert call(capsys, PROJECT.format(w=world) + f" --out {tmp_path}/link.png")[0] == 0
    assert (tmp_path / "link.png").stat().st_size > 0


# What cannot be, found before any work


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("train {w}/photos --device cuda:99", "--device cuda:99: "),
        ("train {w}/photos --device gpu", "--device must be cpu, cuda or cuda:NUMBER, got 'gpu'"),
        ("train {w}/photos --device meta", "--device must be cpu, cuda or cuda:NUMBER, got 'meta'"),
        ("ablate {w}/photos --device cuda:99", "--device cuda:99: "),
        ("train {w}/photos --held-out 1", "--held-out must lie between 0 and 1"),
        ("train {w}/photos --workers -1", "--workers must be at least 0 and at most"),
        ("train {w}/photos --workers 100000", "--workers must be at least 0 and at most"),
        ("atlas {w}/photos --weights {w}/zfnet.pt --workers 100000", "--workers must be at least 0 and at most"),
        ("atlas {w}/photos --weights {w}/zfnet.pt --out {w}/photos", "must lie outside of"),
        ("atlas {w}/photos --weights {w}/zfnet.pt --out {w}/photos/a/atlas", "must lie outside of"),
        ("train {w}/photos --out {w}/photos/run", "must lie outside of"),
        ("train {w}/photos --validation {t} --out {t}/run", "must lie outside of"),
        ("ablate {w}/photos --out {w}/photos/run", "must lie outside of"),
        (
            "train {w}/photos --validation {w}/photos/../photos",
            "is FOLDER itself: a network that has seen the pictures",
        ),
        ("train {w}/photos --keep 0 2", "error: --keep must be epochs from 1, got 0 2"),
        (
            "neighbours {w}/photos/a/0.png {w}/photos --weights {w}/zfnet.pt --out {w}/photos/n.png",
            "would find it; choose",
        ),
        ("evolution {w}/photos --weights {w}/zfnet.pt --out {w}/photos/a/n.png", "would find it; choose another place"),
        ("train {w}/photos --rate inf", "error: --rate must be above 0 and finite, got inf"),
        ("train {w}/photos --scale inf", "error: --scale must be above 0 and finite, got inf"),
        ("ablate {w}/photos --scale inf", "error: --scale must be above 0 and finite, got inf"),
        ("train {w}/photos --weight-decay inf", "error: --weight-decay must be at least 0 and finite, got inf"),
        ("train {w}/photos --side 20", "error: --side must leave conv"),
        ("train {w}/photos --fc 0 3", "error: --fc must be at least 1, got 0"),
        ("train {w}/photos --channels 1 1 1 1 0", "error: --channels must be at least 1, got 0"),
        ("train {w}/photos --epochs 0", "error: --epochs must be at least 1, got 0"),
        ("train {w}/photos --batch 0", "error: --batch must be at least 1, got 0"),
        ("train {w}/photos --rate 0", "error: --rate must be above 0 and finite, got 0.0"),
        ("train {w}/photos --momentum 1", "error: --momentum must be from 0 to below 1, got 1.0"),
        ("train {w}/photos --weight-decay -1", "error: --weight-decay must be at least 0 and finite, got -1.0"),
        ("train {w}/photos --patience -1", "error: --patience must be at least 0, got -1"),
        ("train {w}/photos --seed -1", "error: --seed must be from 0 to 9223372036854775807, got -1"),
        ("ablate {w}/photos --batch 0", "error: --batch must be at least 1, got 0"),
        ("ablate {w}/photos --side 20", "error: --side must leave conv"),
        ("bench --backend opencl", "error: --backend must be one of"),
        ("verify --backend opencl", "error: --backend must be one of"),
        ("verify --ops conv3d", "error: --ops: no op 'conv3d'"),
        ("verify --cases -1", "error: --cases must be at least 0 and at most 1000000, got -1"),
        ("verify --case conv3d", "error: --case: no op 'conv3d'"),
        ("verify --ops=", "error: --ops: no op ''"),
        ("verify --case=", "error: --case: no op ''"),
        ("project {w}/photos/a/0.png --weights {w}/zfnet.pt --layer=", "error: --layer"),
        ("sanity {w}/photos/a/0.png --weights {w}/zfnet.pt --layer=", "error: --layer"),
        ("occlude {w}/photos/a/0.png --weights {w}/zfnet.pt --layer=", "error: --layer"),
        ("train {w}/none", "there is no folder"),
        ("bench --show {t}/nope.json", "--show: there is no file"),
        ("bench --show {w}/zfnet.pt", "holds no record that `zfkernels bench --json` wrote"),
        ("atlas {w}/photos --weights {w}/zfnet.pt --top 0", "--top must be at least 1, got 0"),
        ("atlas {w}/photos --weights {w}/zfnet.pt --batch 0", "--batch must be at least 1, got 0"),
        ("neighbours {w}/photos/a/0.png {w}/photos --weights {w}/zfnet.pt --top 0", "--top must be at least 1"),
        ("evolution {w}/photos --weights {w}/zfnet.pt --layer Conv3", "error: --layer must be one of"),
        ("evolution {w}/photos --weights {w}/zfnet.pt --layer Conv3", "did you mean 'conv3'?"),
        (
            "project {w}/photos/a/0.png --weights {w}/zfnet.pt --size 64",
            "takes pictures of 48 x 48, which it says itself",
        ),
        ("explore {w}/photos --weights {w}/zfnet.pt --maps 3", "error: --maps is of --export"),
        # More than any machine has: each is refused by its option
        ("bench --n 2000000000 --jobs conv3", "error: --n 2000000000: the tensors of conv3 need"),
        ("bench --n 1,2000000000 --jobs norm1", "error: --n 2000000000: the tensors of norm1 need"),
        ("bench --n 2000000000 --jobs logits", "error: --n 2000000000: the tensors of logits need"),
        ("bench --n 9999999999999999999 --jobs norm1", "error: --n must be at most 2147483647, got '99999999"),
        ("bench --threads 99999999999", "error: --threads must be at most 2147483647, got 99999999999"),
        ("bench --threads 5000", "error: --threads must be at least 1 and at most"),
        ("verify --cases 1000001", "error: --cases must be at least 0 and at most 1000000, got 1000001"),
        ("project {w}/photos/a/0.png --model nets:gated --size 100000", "error: --size 100000: the pictures of nets:"),
        (
            "explore {w}/photos --model nets:gated --size 100000",
            "error: --size 100000: the pictures of nets",
        ),
        ("train {w}/photos --side 100000", "parameters and the maps of 1 picture of 100000 x 100000 need"),
        ("train {w}/photos --fc 1000000 1000000", "a smaller --side, --batch, --fc or --channels takes less"),
        ("train {w}/photos --channels 99999 9999 99999 9999 9", "a smaller --side, --batch, --fc or --channels takes"),
        ("train {w}/photos --channels 2147483647 2147483647 9 9 9", "make a network that no memory holds"),
        ("train {w}/photos --epochs 99999999999", "error: --epochs must be at most 2147483647, got 9999"),
        ("ablate {w}/photos --fc 1000000 1000000", "a smaller --side, --batch, --fc or --channels takes less"),
        ("demo --crops 2000000000 --out {t}/d", "error: --crops: 20000000000 pictures need"),
        (
            "neighbours {w}/photos/a/0.png {w}/photos --weights {w}/zfnet.pt --top 101",
            "--top must be at most 100, ",
        ),
        ("correspond {t}/none.json --weights {w}/zfnet.pt", "there is no file"),
        # Near names
        ("project {w}/photos/a/0.png --weights {w}/zfnet.pt --layer Conv3", "did you mean 'conv3'?"),
        ("sanity {w}/photos/a/0.png --weights {w}/zfnet.pt --layer cnov4", "did you mean 'conv4'?"),
        ("occlude {w}/photos/a/0.png --weights {w}/zfnet.pt --layer Conv3", "did you mean 'conv3'?"),
        ("occlude {w}/photos/a/0.png --weights {w}/zfnet.pt --patch 0", "error: --patch must be at least 1, got 0"),
        ("occlude {w}/photos/a/0.png --weights {w}/zfnet.pt --patch 99", "error: --patch (99, 99) is larger than"),
        ("occlude {w}/photos/a/0.png --weights {w}/zfnet.pt --stride 40", "error: --stride (40, 40) is larger than"),
        ("occlude {w}/photos/a/0.png --weights {w}/zfnet.pt --channel 99", "error: --channel must be"),
        ("project {w}/photos/a/0.png --weights {w}/zfnet.pt --channel 99", "error: --channel must be from 0 to"),
        ("project {w}/photos/a/0.png --weights {w}/zfnet.pt --position 0 99", "error: --position must be from 0 to"),
        ("sanity {w}/photos/a/0.png --weights {w}/zfnet.pt --channel 99", "error: --channel must be from 0 to"),
        ("occlude {w}/photos/a/0.png --weights {w}/zfnet.pt --target Cow", "did you mean 'cow'?"),
        ("occlude {w}/photos/a/0.png --weights {w}/zfnet.pt --target dog", "classes: ant, bee, cow"),
        ("atlas {w}/photos --weights {w}/zfnet.pt --layers conv1 fc77", "did you mean 'fc7'?"),
    ],
)
def test_what_cannot_be_is_found_before_any_work(capsys, world, tmp_path, command, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, command.format(w=world, t=tmp_path), words)
    assert not list(tmp_path.glob("**/*.pt"))


def test_a_class_has_a_near_name(capsys, world, tmp_path):
    text = f"invariance {world}/photos/a --weights {world}/zfnet.pt --out {tmp_path}/o.png --class"
    code, _, errors = call(capsys, f"{text} Bee")
    assert code == 2
    assert "did you mean 'bee'?" in errors
    assert "classes: ant, bee, cow" in errors


def test_an_impossible_per_class_is_found_before_the_features(capsys, world, monkeypatch):
    pytest.importorskip("sklearn")
    monkeypatch.setattr("zfkernels.analyses.probes.features", lambda *rest: pytest.fail("it worked before it looked"))
    code, _, errors = call(capsys, f"probe {world}/photos --weights {world}/zfnet.pt --per-class 3 6")
    assert code == 2
    text = "error: --per-class must be at least 1 and leave a picture of each class to test on, got 6; the smallest"
    assert text in errors


def test_a_map_that_is_not_there_is_named_by_the_option(capsys, world, tmp_path):
    """Whatever the name of the argument that it becomes."""
    text = f"evolution {world}/photos --weights {world}/zfnet.pt --out {tmp_path}/e.png --maps 999"
    code, _, errors = call(capsys, text)
    assert code == 2
    assert "error: --maps must be from 0 to" in errors


def test_pictures_that_memory_cannot_hold_are_refused():
    limits.check_memory(10**6, "3 pictures")
    with pytest.raises(ValueError, match=r"3 pictures need 1000000000.0 GB of memory, and there are"):
        limits.check_memory(10**18, "3 pictures")


def test_a_batch_that_memory_cannot_hold_is_refused_before_the_step(capsys, world, tmp_path, monkeypatch):
    """Of the pictures that there are, not of the number that was given."""
    train = f"{world}/photos --side 64 --channels 4 4 4 4 4 --fc 8 8 --device cpu --epochs 1 --batch 2147483647"
    look = f"{world}/photos --weights {world}/zfnet.pt --layers conv1 --maps 1 --top 1 --batch 2147483647"
    commands = f"train {train} --out {tmp_path}/t", f"ablate {train} --rows 0 --out {tmp_path}/b"
    commands += (f"atlas {look} --out {tmp_path}/a",)
    for command in commands:
        assert call(capsys, command)[0] == 0
    monkeypatch.setattr(limits, "memory_there", lambda: 400_000)
    for command in commands:
        code, _, errors = call(capsys, f"{command}-again")
        assert (code, errors.count("\n")) == (2, 1)
        assert re.search("(of 4 pictures of 64 x 64|18 pictures at a time) need 0.0 GB of memory", errors)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((10**6, 10**6), np.dtype("f8")),
        lambda: torch.empty(10**15),
        lambda: torch.empty(10**10, 10**10),
        lambda: torch.empty(1).expand(2**40, 2**40).numel(),
    ],
)
def test_too_little_memory_is_said_in_words(capsys, world, monkeypatch, error):
    """Wherever it is met."""

    def fail(*arguments):
        if isinstance(error, Exception):
            raise error
        error()

    monkeypatch.setattr(checkpoint, "load", fail)
    said = refused(capsys, PROJECT.format(w=world), "error: this takes more memory than there is (", "take less")
    assert "Error" not in said
    assert "alloc" not in said


def test_every_error_is_one_line(capsys, world, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr(checkpoint, "load", fail)
    refused(capsys, PROJECT.format(w=world), "RuntimeError: a bug of two lines (ZFKERNELS_TRACEBACK=1 shows where)")
    monkeypatch.setenv("ZFKERNELS_TRACEBACK", "1")
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(PROJECT.format(w=world).split())


def test_the_exit_codes_are_told(capsys):
    assert (
        "0 done; 1 a check failed (verify, bench); 2 a mistake in the call or its files; 130" in call(capsys, "-h")[1]
    )


def test_a_command_that_is_stopped_ends_with_130_and_says_how_to_go_on(world, tmp_path):
    options = "--side 64 --channels 4 4 4 4 4 --fc 8 8 --he --scale 32 --batch 4 --epochs 10000 --device cpu"
    command = [
        sys.executable,
        "-m",
        "zfkernels",
        "train",
        world / "photos",
        "--out",
        tmp_path / "run",
        *options.split(),
    ]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=paths) as process:
        while not (tmp_path / "run" / "epoch_002.pt").exists() and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors == "zfkernels train: stopped; --resume continues the run after its last whole epoch\n"
    assert (tmp_path / "run" / "state.pt").exists()


@pytest.mark.parametrize(
    "command",
    [
        "project {p} --weights {w}/zfnet.pt --out {o}",
        "invariance {w}/photos/a {p} --weights {w}/zfnet.pt --out {o}",
        "neighbours {p} {w}/photos --weights {w}/zfnet.pt --out {o}",
        "project {w}/photos/a/0.png --weights {p} --out {o}",
        "filters --weights {w}/zfnet.pt --against {p} --out {o}",
        "evolution {w}/photos --weights {w}/zfnet.pt {p} --out {o}",
        "filters --weights {w}/zfnet.pt --classes {p} --out {o}",
        "correspond {p} --weights {w}/zfnet.pt",
        "bench --show {p}",
    ],
)
def test_a_pipe_is_not_waited_on(capsys, world, tmp_path, command):
    pipe = tmp_path / "pipe.png"
    os.mkfifo(pipe)
    # Who waits, in whatever thread, is given an empty file, and says something else: a writer comes, and goes
    writers = []
    signal.signal(
        signal.SIGALRM,
        lambda *_: os.close(writers.pop()) if writers else writers.append(os.open(pipe, os.O_RDWR | os.O_NONBLOCK)),
    )
    signal.setitimer(signal.ITIMER_REAL, 5, 1)
    try:
        code, _, errors = call(capsys, command.format(w=world, p=pipe, o=tmp_path / "o.png"))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert (code, errors.count("\n")) == (2, 1)
    assert "pipe.png cannot be read: it is a pipe or a device" in errors


def test_two_files_of_one_stem_are_two_networks(capsys, world, tmp_path):
    for name in ("net.pt", "net.pth"):
        shutil.copy(world / "zfnet.pt", tmp_path / name)
    code, out, _ = call(
        capsys, f"filters --weights {tmp_path}/net.pt --against {tmp_path}/net.pth --out {tmp_path}/o.png"
    )
    assert code == 0
    assert out.count("6 of 7x7") == 2


@pytest.mark.parametrize(
    "text", ["", "[]", '{"rows": 5}', '{"rows": [{"ms": {}}]}', '{"rows": [{"ms": {"zfkernels": 1}}]}', "[" * 100_000]
)
def test_a_record_that_is_none_is_named(capsys, tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    refused(capsys, f"bench --show {tmp_path}/run.json", f"--show: {tmp_path}/run.json holds no record that `zfkernels")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"0": "ant"}', "one a line or a JSON list (it holds a JSON object)"),
        ('["ant", "bee", ["cow"]]', "and holds a list of lists"),
        ('["ant", "bee"', "one a line or a JSON list (Expecting"),
        ("[" * 100_000, "one a line or a JSON list (maximum recursion"),
        ("ant\nbee", "--classes must name the network's 3 classes, and"),
    ],
)
def test_names_of_classes_that_are_none_are_named(capsys, world, tmp_path, text, words):
    (tmp_path / "names").write_text(text)
    refused(capsys, f"filters --weights {world}/zfnet.pt --classes {tmp_path}/names --out {tmp_path}/o.png", words)


FORBIDDEN = {  # a command -> what is said of the file or folder "secret" in it
    "project {s} --weights {w}/zfnet.pt": "{s} is not a picture that Pillow can read (Permission denied)",
    "project {w}/photos/a/0.png --weights {s}": "{s} cannot be read: Permission denied",
    "project {d}/0.png --weights {w}/zfnet.pt": "{d}/0.png cannot be read: Permission denied",
    "filters --weights {w}/zfnet.pt --classes {s}": "one a line or a JSON list (Permission denied)",
    "correspond {s} --weights {w}/zfnet.pt": "(PermissionError: Permission denied)",
    "bench --show {s}": "(PermissionError: Permission denied)",
    "filters --weights {w}/zfnet.pt --out {d}/o.png": "{d}/o.png",
}
LESS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.geteuid() == 0 else []


@pytest.mark.skipif(bool(LESS) and shutil.which("setpriv") is None, reason="root may read everything")
def test_what_may_not_be_read_says_so(world, tmp_path):
    secret, folder = tmp_path / "secret", tmp_path / "folder"
    secret.write_bytes((world / "photos" / "a" / "0.png").read_bytes())
    folder.mkdir()
    for path in (secret, folder):
        path.chmod(0)
    script = (
        "import sys; from zfkernels import cli\nfor text in sys.argv[1:]: print(cli.main(text.split()), flush=True)"
    )
    commands = [command.format(w=world, s=secret, d=folder) for command in FORBIDDEN]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run([*LESS, sys.executable, "-c", script, *commands], capture_output=True, text=True, env=paths)
    folder.chmod(0o700)
    assert done.stdout.split() == ["2"] * len(FORBIDDEN), done.stderr
    said = done.stderr.splitlines()
    assert len(said) == len(FORBIDDEN)
    for line, words in zip(said, FORBIDDEN.values(), strict=True):
        assert words.format(s=secret, d=folder) in line
        assert "Errno" not in line


# A search of another kind


def test_another_atlas_in_the_folder_says_how_to_go_on(capsys, world, tmp_path):
    text = f"atlas {world}/photos --weights {world}/zfnet.pt --layers conv1 --maps 2 --out {tmp_path}/a"
    assert call(capsys, f"{text} --top 3")[0] == 0
    code, _, errors = call(capsys, f"{text} --top 4")
    assert code == 2
    assert errors.count("\n") == 1
    (file,) = (tmp_path / "a").glob("search-*.pt")
    assert str(file) in errors
    assert (
        "with other k: 3, not 4; delete it to search anew, or choose another file (of an atlas: another --out)"
        in errors
    )
    for data in (b"", file.read_bytes()[:900]):
        file.write_bytes(data)
        code, _, errors = call(capsys, f"{text} --top 3")
        assert (code, errors.count("\n")) == (2, 1)
        assert f"{file} is not a readable checkpoint" in errors
        assert "delete it to search anew" in errors
    file.unlink()
    assert call(capsys, f"{text} --top 4")[0] == 0
    assert "18 pictures" in (tmp_path / "a" / "pictures.log").read_text()


def test_pictures_seen_otherwise_are_searched_anew(capsys, world, tmp_path):
    """Another --mean, or another picture of the same name: what an earlier search kept is of no use."""
    pictures = tmp_path / "photos"
    pictures.mkdir()
    for i in range(3):
        (pictures / f"{i}.png").write_bytes((world / "photos" / "a" / f"{i}.png").read_bytes())
    text = f"atlas {pictures} --weights {world}/zfnet.pt --layers conv1 --maps 2 --top 2 --out {tmp_path}/a"
    assert call(capsys, text)[0] == 0
    assert call(capsys, f"{text} --mean 0.1")[0] == 0
    (pictures / "0.png").write_bytes((world / "photos" / "b" / "0.png").read_bytes())
    assert call(capsys, text)[0] == 0
    assert len(list((tmp_path / "a").glob("search-*.pt"))) == 3


def test_an_atlas_in_the_folder_of_another_leaves_no_sheet_that_its_page_does_not_show(capsys, world, tmp_path):
    """Of its own layers; a folder of another layer, and files of somebody else's, stay."""
    text = f"atlas {world}/photos --weights {world}/zfnet.pt --top 3 --out {tmp_path}/a --layers"
    assert call(capsys, f"{text} conv1 conv3")[0] == 0
    sheet = tmp_path / "a" / "conv1" / "sheet-1.png"
    for name in ("sheet-7.png", "sheet-2.jpg", "map-0003.jpg", "mine.png", "sheet-2.txt"):
        sheet.with_name(name).write_bytes(b"old")
    for search in (tmp_path / "a").glob("search-*.pt"):  # of both layers
        search.unlink()
    code, said, _ = call(capsys, f"{text} conv1 --maps 2")
    assert code == 0
    assert sorted(path.name for path in sheet.parent.iterdir()) == ["mine.png", "sheet-1.png", "sheet-2.txt"]
    assert f"note        {tmp_path}/a/conv3 is of an earlier atlas; this page does not show it" in said
    assert (tmp_path / "a" / "conv3" / "sheet-1.png").exists()


# Networks that have learned nothing


def test_filters_of_noise_are_told_from_learned_ones():
    for seed in range(20):
        torch.manual_seed(seed)
        assert likeness(torch.randn(24, 3, 7, 7)) < 0.1
        assert likeness(torch.randn(24, 3, 11, 11) * 10 ** torch.randn(24, 1, 1, 1)) < 0.1
    edges = torch.tensor([[-1.0, 0, 1]] * 3).expand(8, 3, 3, 3)
    blobs = torch.ones(4, 1, 5, 5)
    colours = torch.randn(8, 1, 7, 7).expand(-1, 3, -1, -1)  # noise in space, but grey
    for learned in (edges, blobs, colours):
        assert likeness(learned) > 0.3


@pytest.mark.parametrize(
    "command",
    [
        PROJECT,
        "occlude {w}/photos/a/0.png --weights {w}/zfnet.pt --patch 24 --stride 12",
        "atlas {w}/photos --weights {w}/zfnet.pt --layers conv1 --maps 1 --top 2",
        "filters --weights {w}/zfnet.pt",
        "evolution {w}/photos --weights {w}/zfnet.pt --layer conv2 --maps 1",
        "invariance {w}/photos/a/0.png --weights {w}/zfnet.pt --layers conv1",
        "neighbours {w}/photos/a/0.png {w}/photos --weights {w}/zfnet.pt --layers conv1",
        "sanity {w}/photos/a/0.png --weights {w}/zfnet.pt --layer conv1 --repeats 1",
    ],
)
def test_every_command_that_draws_a_network_of_noise_says_so(capsys, world, tmp_path, command):
    command = command.format(w=world) + f" --out {tmp_path}/o.png"
    code, out, errors = call(capsys, command)
    assert (code, errors) == (0, "")
    assert "filters are still noise" in out
    code, out, _ = call(capsys, command.replace("zfnet.pt", "learned.pt").replace("o.png", "learned.png"))
    assert code == 0
    assert "noise" not in out


def test_a_network_without_filters_has_no_note():
    assert noise_note(torch.nn.Linear(2, 2)) is None
    assert noise_note(torch.nn.Conv2d(1, 4, 1)) is None


OPTIONS = "--side 64 --channels 4 4 4 4 4 --fc 8 8 --epochs 1 --device cpu --quiet"


def test_a_batch_that_exceeds_the_set_is_made_smaller_and_said(capsys, world, tmp_path):
    code, out, errors = call(capsys, f"train {world}/photos --out {tmp_path}/a {OPTIONS}")
    assert code == 0
    assert "batch       4 pictures a step, because --batch 128 exceeds the set of 15" in out
    assert "validation pictures are wrong, of guesses 66.7% would be: the network has learned nothing yet" in errors
    assert "batch   " not in call(capsys, f"train {world}/photos --out {tmp_path}/b {OPTIONS} --batch 4")[1]
    assert [train.batch_of(128, n) for n in (88, 40, 15, 1, 128, 127, 1000)] == [8, 4, 4, 1, 128, 8, 128]
    code, out, _ = call(capsys, f"train {world}/photos --out {tmp_path}/a {OPTIONS} --epochs 2 --resume")
    assert code == 0
    assert "resumed     after epoch 1" in out


def test_a_network_that_learned_is_not_said_to_be_at_chance():
    class Set(list):
        labels = (0,) * 30 + (1,) * 30

    pictures = Set(range(60))
    assert train.chance_note(pictures, 0.3, 2) is None
    assert "of guesses 50.0% would be" in train.chance_note(pictures, 0.45, 2)
    Set.labels = (0,) * 54 + (1,) * 6  # always the larger class: 10% wrong
    assert train.chance_note(pictures, 0.0, 2) is None
    assert train.chance_note(pictures, 0.1, 2) is not None


# Progress where there is no terminal


def test_a_line_every_half_minute(capsys, monkeypatch):
    now = iter(range(0, 10_000, 11))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    assert list(progress.bar(range(8), "epoch 1", " images", "lines", sizes=[10] * 8)) == list(range(8))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "epoch 1: 30 of 80, 55 s left (images, after 33 s)",
        "epoch 1: 60 of 80, 22 s left (images, after 66 s)",
    ]
    assert list(progress.bar(iter("abcd"), "letters", "letter", "lines")) == list("abcd")
    assert capsys.readouterr().err == "letters: 3 (letter, after 33 s)\n"


def test_commands_show_bars_on_a_terminal_and_lines_elsewhere(monkeypatch):
    assert progress.wanted() == "lines"
    assert progress.wanted(quiet=True) is False
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    assert progress.wanted() is True
    assert progress.wanted(quiet=True) is False
