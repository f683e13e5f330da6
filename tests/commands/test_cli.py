"""The command line as a user meets it: what it prints and writes, and what it says to each mistake."""

import json
import os
import re
import shlex
import subprocess
import sys

import nets
import numpy as np
import pytest
import torch

import zfkernels
from zfkernels import ZFNet, cli
from zfkernels.data.pictures import read_picture
from zfkernels.models import checkpoint

Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A checkpoint as the demonstration writes it, of a small random network."""
    path = tmp_path_factory.mktemp("weights") / "zfnet.pt"
    arguments = {"num_classes": 3, "image_size": 64, "channels": (8,) * 5, "fc": (16, 16), "weight_std": None}
    torch.manual_seed(0)
    network = checkpoint.Network(
        ZFNet(**arguments),
        ["bird", "cat", "tree"],
        torch.full((3, 64, 64), 120.0),
        torch.full((1, 1, 1), 32.0),
        (64, 64),
    )
    checkpoint.save(path, network, arguments)
    return path


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def run(capsys, *arguments):
    """Exit code, stdout, stderr of `zfkernels ARGUMENTS`."""
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_version_and_help(capsys):
    assert run(capsys, "--version")[:2] == (0, f"zfkernels {zfkernels.__version__}\n")
    code, out, _ = run(capsys, "--help")
    assert code == 0
    for command in ("demo", "project", "occlude", "verify", "info"):
        assert command in out
        code, help_text, _ = run(capsys, command, "--help")
        assert code == 0
        assert "examples:" in help_text
        assert f"zfkernels {command}" in help_text


def test_python_m_zfkernels_is_the_same_program():
    done = subprocess.run([sys.executable, "-m", "zfkernels", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"zfkernels {zfkernels.__version__}\n")
    done = subprocess.run([sys.executable, "-m", "zfkernels", "project", "nowhere.png"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_project_writes_a_picture_and_prints_the_unit(capsys, tmp_path, weights, photo):
    out = tmp_path / "new" / "unit.png"
    code, text, errors = run(
        capsys,
        "project",
        photo,
        "--weights",
        weights,
        "--layer",
        "conv2",
        "--channel",
        3,
        "--position",
        2,
        4,
        "--norm",
        "gradient",
        "--out",
        out,
    )
    assert (code, errors) == (0, "")
    network = checkpoint.load(weights)
    image = (read_picture(photo, (64, 64)).float() - network.mean) / network.scale
    with zfkernels.use_exact():  # as a projection sums below a pool
        value = zfkernels.Deconvnet(network.model).activations(image[None], "conv2")[0, 3, 2, 4].item()
    assert "conv2, map 3, row 2, column 4" in text
    assert float(re.search(r"activation  (\S+)", text)[1]) == pytest.approx(value, rel=1e-5)
    with Image.open(out) as picture:
        assert min(picture.size) > 400


def test_project_takes_the_strongest_unit_of_the_last_convolution(capsys, tmp_path, weights, photo):
    code, text, _ = run(capsys, "project", photo, "--weights", weights, "--out", tmp_path / "p.png")
    network = checkpoint.load(weights)
    image = (read_picture(photo, (64, 64)).float() - network.mean) / network.scale
    maps = zfkernels.Deconvnet(network.model).activations(image[None], "conv5")[0]
    channel, row, column = np.unravel_index(int(maps.argmax()), maps.shape)
    assert code == 0
    assert f"conv5, map {channel}, row {row}, column {column}" in text


def test_occlude_writes_a_picture_and_the_raw_cells(capsys, tmp_path, weights, photo):
    out, raw = tmp_path / "o.png", tmp_path / "cells.npz"
    code, text, _ = run(
        capsys,
        "occlude",
        photo,
        "--weights",
        weights,
        "--target",
        "cat",
        "--patch",
        20,
        12,
        "--stride",
        10,
        "--fill",
        0,
        128,
        255,
        "--out",
        out,
        "--raw",
        raw,
    )
    assert code == 0
    network = checkpoint.load(weights)
    image = (read_picture(photo, (64, 64)).float() - network.mean) / network.scale
    fill = (torch.tensor([0.0, 128.0, 255.0]).view(3, 1, 1) - network.mean) / network.scale
    expected = zfkernels.occlusion_map(
        network.model, image, 1, patch=(20, 12), stride=10, fill=fill, layer="conv5", batch_size=64
    )
    with np.load(raw) as cells:
        assert np.array_equal(cells["probability"], expected.probability.numpy())
        assert np.array_equal(cells["label"], expected.label.numpy())
        assert np.array_equal(cells["boxes"], expected.boxes.numpy())
        assert cells["classes"].tolist() == ["bird", "cat", "tree"]
    assert f"P(cat) = {expected.clear_probability:.4f}" in text
    assert "cells       6 x 7" in text
    with Image.open(out) as picture:
        assert picture.width > 800


def test_a_number_names_a_class_too(capsys, tmp_path, weights, photo):
    code, text, _ = run(capsys, "occlude", photo, "--weights", weights, "--target", "2", "--out", tmp_path / "o.png")
    assert code == 0
    assert "P(tree)" in text


@pytest.mark.parametrize("method", ["deconvnet", "gradient", "guided"])
def test_project_and_occlude_take_any_network(capsys, tmp_path, photo, method):
    """A ResNet of the user's, by its name and state dict."""
    model = nets.alive(nets.ResNet()).float()
    torch.save(model.state_dict(), tmp_path / "resnet.pt")
    network = ["--model", "nets:ResNet", "--weights", tmp_path / "resnet.pt", "--size", 64]
    code, text, errors = run(
        capsys,
        "project",
        photo,
        *network,
        "--layer",
        "iadd_1",
        "--channel",
        2,
        "--method",
        method,
        "--out",
        tmp_path / "p.png",
    )
    assert (code, errors) == (0, "")
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (checkpoint.IMAGENET_MEAN, checkpoint.IMAGENET_STD))
    image = (read_picture(photo, (64, 64)).float() / 255 - mean) / std
    value = float(model.stages(image[None])["iadd_1"][0, 2].max())
    assert f"activation  {value:.4f}"[:-1] in text
    code, text, errors = run(
        capsys, "occlude", photo, *network, "--fill", "blur", "--patch", 16, "--stride", 16, "--out", tmp_path / "o.png"
    )
    assert (code, errors) == (0, "")
    assert "cells       4 x 4" in text


def test_a_network_that_cannot_be_traced_is_projected_as_it_is(capsys, tmp_path, photo):
    out = tmp_path / "p.png"
    code, text, _ = run(capsys, "project", photo, "--model", "nets:gated", "--size", 32, "--layer", "1", "--out", out)
    assert code == 0
    assert "Sigmoid (1)" in text
    assert out.exists()


def test_without_weights_it_says_that_the_network_is_random(capsys, tmp_path, photo):
    code, text, errors = run(capsys, "project", photo, "--layer", "conv1", "--out", tmp_path / "p.png")
    assert code == 0
    assert "random weights" in errors
    assert "zfkernels demo" in errors
    assert "224 x 224 input" in text


def test_a_plain_state_dict_of_the_full_network(tmp_path):
    torch.manual_seed(1)
    model = ZFNet(num_classes=2, dtype=torch.bfloat16)
    torch.save(model.state_dict(), tmp_path / "plain.pt")
    network = checkpoint.load(tmp_path / "plain.pt")
    assert network.classes == ["class 0", "class 1"]
    assert torch.equal(network.model.fc8.weight, model.fc8.weight.float())
    white = torch.full((3, 1, 1), 255.0)
    expected = (1 - torch.tensor(checkpoint.IMAGENET_MEAN)) / torch.tensor(checkpoint.IMAGENET_STD)
    assert torch.allclose(((white - network.mean) / network.scale).flatten(), expected)


# Pictures


def quadrants(height=40, width=60):
    """Red top left, green top right, blue bottom left, white bottom right."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 255
    pixels[: height // 2, width // 2 :, 1] = 255
    pixels[height // 2 :, : width // 2, 2] = 255
    pixels[height // 2 :, width // 2 :] = 255
    return Image.fromarray(pixels)


def corners(tensor):
    """The colours near the four corners."""
    height, width = tensor.shape[1:]
    return [tensor[:, r, c].tolist() for r in (2, height - 3) for c in (2, width - 3)]


RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255] * 3


@pytest.mark.parametrize("name", ["p.png", "p.bmp", "p.tiff", "p.webp", "p.ppm", "p.gif"])
def test_any_format_that_keeps_colours(tmp_path, name):
    quadrants().save(tmp_path / name, **({"lossless": True} if name == "p.webp" else {}))
    assert corners(read_picture(tmp_path / name, (40, 40))) == [RED, GREEN, BLUE, WHITE]


@pytest.mark.parametrize("size", [(40, 40), (20, 48), (48, 20)])
def test_the_centre_is_kept_in_proportion(tmp_path, size):
    quadrants(80, 200).save(tmp_path / "wide.png")
    tensor = read_picture(tmp_path / "wide.png", size)
    assert tensor.shape == (3, *size)
    assert tensor.dtype == torch.uint8
    assert corners(tensor) == [RED, GREEN, BLUE, WHITE]
    stripes = np.zeros((60, 300, 3), np.uint8)
    stripes[:, 120:180] = 255  # the centre square
    Image.fromarray(stripes).save(tmp_path / "stripes.png")
    assert (read_picture(tmp_path / "stripes.png", (30, 30))[:, :, 2:-2] == 255).all()


def test_the_cameras_rotation_is_undone(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the sensor was turned: rotate by 90 degrees clockwise to view
    quadrants(64, 64).save(tmp_path / "turned.jpg", exif=exif, quality=100, subsampling=0)
    seen = torch.tensor(corners(read_picture(tmp_path / "turned.jpg", (64, 64))))
    assert (seen - torch.tensor([BLUE, RED, WHITE, GREEN])).abs().max() < 12


def test_transparency_is_laid_over_grey(tmp_path):
    image = Image.new("RGBA", (30, 30), (255, 0, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 30, 15))
    image.save(tmp_path / "clear.png")
    tensor = read_picture(tmp_path / "clear.png", (30, 30))
    assert tensor[:, 2, 2].tolist() == RED
    assert tensor[:, 27, 2].tolist() == [128] * 3
    palette = Image.new("P", (30, 30), 0)
    palette.putpalette([0, 0, 255, 255, 0, 0])
    palette.paste(1, (0, 0, 30, 15))
    palette.save(tmp_path / "palette.png", transparency=0)
    tensor = read_picture(tmp_path / "palette.png", (30, 30))
    assert tensor[:, 2, 2].tolist() == RED
    assert tensor[:, 27, 2].tolist() == [128] * 3


def test_greys_of_every_depth(tmp_path):
    ramp = np.repeat(np.array([0, 64, 128, 255], np.uint8), 10)[None].repeat(40, 0)
    Image.fromarray(ramp).save(tmp_path / "8.png")
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "16.png")
    Image.fromarray(ramp.astype(np.float32) / 255 * 7 - 3).save(tmp_path / "float.tiff")
    Image.fromarray(ramp > 100).save(tmp_path / "1.png")
    expected = [[0] * 3, [255] * 3] * 2
    for name in ("8.png", "16.png", "float.tiff", "1.png"):
        tensor = read_picture(tmp_path / name, (40, 40))
        assert corners(tensor) == expected, name
        assert name == "1.png" or abs(int(tensor[0, 20, 15]) - 64) <= 1, name


def test_cmyk_and_an_animations_first_frame(tmp_path):
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
    assert (
        read_picture(tmp_path / "c.jpg", (20, 20)).float().mean((1, 2)) - torch.tensor([254.0, 0, 0])
    ).abs().max() < 9
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read_picture(tmp_path / "a.gif", (20, 20))[:, 5, 5].tolist() == RED


# Mistakes


@pytest.fixture(scope="module")
def bad(tmp_path_factory, weights):
    """A folder of files that are not what their names promise."""
    tmp_path = tmp_path_factory.mktemp("bad")
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.pt").write_text("no weights")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "cut.pt").write_bytes(weights.read_bytes()[:2000])
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    torch.save({"fc8.weight": torch.zeros(3, 4096), "conv9.bias": torch.zeros(1)}, tmp_path / "wrong.pt")
    content = torch.load(weights, weights_only=True)
    torch.save(content | {"arguments": {"size": 3}}, tmp_path / "arguments.pt")
    torch.save({k: v for k, v in content.items() if k != "mean"}, tmp_path / "mean.pt")
    torch.save(content | {"state_dict": {"fc8.bias": torch.zeros(3)}}, tmp_path / "partial.pt")
    torch.save(ZFNet(2, image_size=64, channels=(4,) * 5, fc=(4, 4)), tmp_path / "module.pt")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("project {bad}/none.png", "there is no picture"),
        ("project {bad}/text.png --weights {weights}", "is not a picture that Pillow can read"),
        ("project {bad}/empty.png --weights {weights}", "is not a picture that Pillow can read"),
        ("project {bad} --weights {weights}", "is not a picture that Pillow can read"),
        ("project {photo} --weights {bad}/none.pt", "there is no weights file"),
        ("project {photo} --weights {bad}", "Is a directory"),
        ("project {photo} --weights {bad}/text.pt", "text.pt is not a checkpoint: torch.save did not write it"),
        ("project {photo} --weights {bad}/empty.pt", "empty.pt is not a readable checkpoint"),
        ("project {photo} --weights {bad}/cut.pt", "cut.pt is not a readable checkpoint"),
        ("project {photo} --weights {bad}/module.pt", "save model.state_dict()"),
        ("project {photo} --weights {bad}/list.pt", "holds a list, not a state dict"),
        ("project {photo} --weights {bad}/other.pt", "holds no ZFNet (no fc8.weight); it holds: weight"),
        ("project {photo} --weights {bad}/wrong.pt", "does not fit a ZFNet"),
        ("project {photo} --weights {bad}/arguments.pt", "damaged zfkernels checkpoint"),
        ("project {photo} --weights {bad}/mean.pt", "damaged zfkernels checkpoint (KeyError('mean'))"),
        ("project {photo} --weights {bad}/partial.pt", "does not fit a ZFNet"),
        ("project {photo} --weights {weights} --layer conv9", "layer must be one of conv1, pool1, norm1"),
        ("project {photo} --weights {weights} --channel 8", "channel must be from 0 to 7"),
        ("project {photo} --weights {weights} --channel -1", "channel must be from 0 to 7"),
        ("project {photo} --weights {weights} --position 0 99", "position must be from 0 to"),
        ("project {photo} --weights {weights} --position 1", "expected 2 arguments"),
        ("project {photo} --weights {weights} --norm other", "invalid choice: 'other'"),
        ("project {photo} --weights {weights} --out {bad}/p.xyz", "Format 'xyz' is not supported"),
        ("project", "the following arguments are required: PICTURE"),
        ("occlude {photo} --weights {weights} --target dog", "--target must be a class or a number in 0..2, got 'dog'"),
        ("occlude {photo} --weights {weights} --target 3", "classes: bird, cat, tree"),
        ("occlude {photo} --weights {weights} --patch 65", "error: --patch (65, 65) is larger than the image (64, 64)"),
        ("occlude {photo} --weights {weights} --patch 0", "patch must be at least 1"),
        ("occlude {photo} --weights {weights} --patch 1 2 3", "--patch takes one number or two"),
        ("occlude {photo} --weights {weights} --patch 4 --stride 5", "is larger than the patch"),
        ("occlude {photo} --weights {weights} --fill 1 2", "--fill takes one level or three"),
        (
            "occlude {photo} --weights {weights} --fill grey",
            "--fill takes levels from 0 to 255, mean or blur, got grey",
        ),
        ("occlude {photo} --weights {weights} --layer conv9", "layer 'conv9' is no submodule"),
        ("occlude {photo} --weights {weights} --channel 99", "channel must be a map of conv5 in 0..7, got 99"),
        ("demo --epochs 0", "--epochs must be at least 1"),
        ("demo --crops -1", "--crops must be at least 1"),
        ("demo --out {bad}/text.png", "--out must be a folder"),
        ("", "the following arguments are required: COMMAND"),
        ("paint", "invalid choice: 'paint'"),
    ],
)
def test_a_mistake_ends_with_2_and_says_what_to_do(capsys, bad, weights, photo, arguments, words):
    code, out, errors = run(capsys, *arguments.format(bad=bad, weights=weights, photo=photo).split())
    assert code == 2
    assert out == ""
    assert words in errors
    assert len([line for line in errors.splitlines() if "warning: random weights" not in line]) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("info --jsn", "unrecognized arguments: --jsn, did you mean '--json'?; see zfkernels info --help"),
        ("--jsn info", "unrecognized arguments: --jsn; see zfkernels --help"),
        (
            "train photos --rat 3 --foo",
            "unrecognized arguments: --foo, did you mean '--fc'?; see zfkernels train --help",
        ),
        ("verify --caes 3", "did you mean '--cases'?; see zfkernels verify --help"),
        ("project p.png --wieghts=w.pt", "did you mean '--weights'?"),
        ("gallery --only trainning", "did you mean 'training'?; see zfkernels gallery --help"),
        ("completion fsh", "did you mean 'fish'?"),
        ("project p.png --method guidde", "did you mean 'guided'?"),
        ("verify --ops conv2", "no op 'conv2', did you mean 'conv2d'?"),
        ("bench --jobs modles", "no job 'modles', did you mean 'models'?; `zfkernels bench --list` prints the jobs; "),
        ("bench --jobs convv", "no job 'convv', did you mean 'conv"),
        ("project", "arguments are required: PICTURE; see zfkernels project --help"),
        ("project p.png --channel x", "argument --channel: invalid int value: 'x'; see zfkernels project --help"),
    ],
)
def test_a_mistake_of_the_options_is_one_line_with_the_near_name(capsys, arguments, words):
    code, out, errors = run(capsys, *arguments.split())
    assert (code, out, errors.count("\n")) == (2, "", 1)
    assert words in errors


@pytest.mark.parametrize(("module", "package"), [("PIL", "pillow"), ("matplotlib", "matplotlib")])
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    capsys, tmp_path, monkeypatch, weights, photo, module, package
):
    for name in [name for name in sys.modules if name.partition(".")[0] == module]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    code, _, errors = run(capsys, "project", photo, "--weights", weights, "--out", tmp_path / "p.png")
    assert code == 2
    assert f"needs {package}, which is not installed: pip install 'zfkernels[demo]'" in errors


def test_a_backend_that_cannot_run_is_a_mistake_of_the_call(
    capsys, weights, photo, tmp_path, monkeypatch, triton_absent
):
    monkeypatch.setattr(zfkernels.backends.registry, "_chosen", "triton")
    code, _, errors = run(capsys, "project", photo, "--weights", weights, "--out", tmp_path / "p.png")
    assert code == 2
    assert "backend 'triton' cannot run here" in errors
    assert "ZFKERNELS_BACKEND" in errors


FULL = "/dev/full"


@pytest.mark.skipif(not os.path.exists(FULL), reason="no device that is always full")
@pytest.mark.parametrize(
    ("arguments", "unbuffered"), [("info", ""), ("info --json", "1"), ("--help", ""), ("demo --help", "")]
)
def test_output_that_nobody_can_store_is_one_line(arguments, unbuffered):
    with open(FULL, "w") as full:
        command = [sys.executable, "-m", "zfkernels", *arguments.split()]
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    name = "" if arguments == "--help" else f" {arguments.split()[0]}"
    line = f"zfkernels{name}: error: what is printed cannot be written: No space left on device\n"
    assert (done.returncode, done.stderr) == (2, line)


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&- >&- 2>&-"])
def test_streams_that_the_shell_closed_are_done_without(tmp_path, weights, photo, closed):
    """A figure, after a bar or lines on stderr; no file gets the number of a closed stream."""
    options = (
        f"{shlex.quote(str(photo))} --patch 40 --weights {weights} --out {tmp_path}/o.png --json {tmp_path}/o.json"
    )
    done = subprocess.run(
        f"{sys.executable} -m zfkernels occlude {options} {closed}", shell=True, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert Image.open(tmp_path / "o.png").size > (0, 0)
    assert json.loads((tmp_path / "o.json").read_text())["command"] == "occlude"
    assert done.stdout == "" or closed == "2>&-"
