"""The one search: what of a folder is a picture, what is left out and why, and that all is said."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from zfkernels import ZFNet, cli
from zfkernels.data.folders import class_folders
from zfkernels.data.scan import MOST_TIMES, endings, scan
from zfkernels.models import checkpoint

Image = pytest.importorskip("PIL.Image")


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="JPEG" if path.suffix == ".jfif" else None)
    return path


@pytest.fixture
def photos(tmp_path):
    """Two classes, and everything else that lies about in folders of pictures."""
    folder = tmp_path / "photos"
    for i in range(6):
        picture(folder / "cat" / f"{i}.png", i)
        picture(folder / "dog" / "more" / f"{i}.JPG", i)
    picture(tmp_path / "elsewhere" / "bird.png")
    return folder


def names(found):
    return [str(path.relative_to(found.folder)) for path in found.paths]


def test_links_to_folders_and_files_are_followed(photos, tmp_path):
    (photos / "bird").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (photos / "cat" / "link.png").symlink_to(tmp_path / "elsewhere" / "bird.png")
    found = scan(photos)
    assert "bird/bird.png" in names(found)
    assert "cat/link.png" in names(found)
    assert class_folders(photos).classes == ("bird", "cat", "dog")
    assert list(found.paths) == sorted(found.paths)
    assert found.left_out == ()


def test_circles_of_links_are_left_out(photos):
    (photos / "cat" / "again").symlink_to(photos, target_is_directory=True)
    (photos / "dog" / "itself").symlink_to(photos / "dog", target_is_directory=True)
    (photos / "dog" / "cat").symlink_to(photos / "cat", target_is_directory=True)
    found = scan(photos)
    assert len(found.paths) == 18  # the cats once more, among the dogs
    assert {why for _, why in found.left_out} == {"links to a folder that they lie in"}


def test_folders_that_all_link_to_each_other_have_an_end(tmp_path):
    """Without one, ten of them have some ten million ways."""
    folders = [tmp_path / f"{i}" for i in range(10)]
    for i, folder in enumerate(folders):
        picture(folder / "p.png", i)
    for folder in folders:
        for other in folders:
            if other != folder:
                (folder / f"to{other.name}").symlink_to(other, target_is_directory=True)
    found = scan(tmp_path)
    assert {f"{i}/p.png" for i in range(10)} <= set(names(found))
    assert len(found.paths) <= 10 * (MOST_TIMES + 1)
    assert "links to a folder that was searched 16 times" in found.line()


def test_folders_may_lie_deeper_than_calls_may(photos):
    folders = [photos / "cat"]
    try:
        for _ in range(1100):
            folders.append(folders[-1] / "d")
            folders[-1].mkdir()
        os.rename(photos / "cat" / "0.png", folders[-1] / "0.png")
        assert len(scan(photos).paths) == 12
    finally:  # what removes the test's folder calls itself, too
        subprocess.run(["rm", "-r", folders[1]], check=True)


def test_a_folder_may_itself_be_a_link(photos, tmp_path):
    (tmp_path / "link").symlink_to(photos, target_is_directory=True)
    assert len(scan(tmp_path / "link").paths) == 12


def test_what_is_left_out_is_said(photos, tmp_path):
    picture(photos / ".ipynb_checkpoints" / "0.png")
    (photos / "cat" / "._0.png").write_bytes(b"Mac OS X")
    (photos / "cat" / "notes.txt").write_text("no picture")
    (photos / "dog" / "raw.heic").write_bytes(b"")
    (photos / "dog" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(photos / "dog" / "pipe.png")  # would be waited on for ever
    found = scan(photos)
    assert len(found.paths) == 12
    assert class_folders(found).classes == ("cat", "dog")
    line = found.line(("cat", "dog"))
    assert line.startswith(f"12 pictures of 2 classes in {photos}; left out 6: 2 hidden, ")
    for words in ("1 no pictures (.txt)", "1 no pictures (.heic)", "1 links to nothing", "1 no regular files"):
        assert words in line
    assert scan(photos / "cat").line().startswith("6 pictures in")


@pytest.mark.parametrize("name", ["p.jfif", "p.avif", "p.jpe", "p.apng", "p.tga", "p.WEBP", "p.pgm"])
def test_every_ending_that_pillow_reads(tmp_path, name):
    if (tmp_path / name).suffix.lower() not in endings():
        pytest.skip("this Pillow does not read it")
    for folder in ("a", "b"):
        picture(tmp_path / folder / name)
    assert class_folders(tmp_path).classes == ("a", "b")


def test_no_ending_of_files_that_pillow_only_writes_or_only_names():
    assert not endings() & {".pdf", ".h5", ".hdf", ".grib", ".bufr", ".wmf", ".mpg"}
    assert {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".jp2"} <= endings()


def test_folders_without_pictures_say_what_they_hold(tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / ".b.png").touch()
    with pytest.raises(ValueError, match=r"holds no pictures .*; left out 2: 1 .*hidden"):
        scan(tmp_path)
    with pytest.raises(FileNotFoundError, match="is no folder"):
        scan(tmp_path / "a.txt")


# In the commands

TRAIN = "--side 64 --channels 4 4 4 4 4 --fc 8 8 --he --scale 32 --batch 4 --epochs 1 --device cpu --quiet"


def train(capsys, photos, out, *more):
    code = cli.main(["train", str(photos), "--out", str(out), *TRAIN.split(), *more])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_command_says_what_it_found_and_logs_the_rest(capsys, photos, tmp_path):
    (photos / "empty" / "deep").mkdir(parents=True)
    (photos / "cat" / "notes.txt").write_text("no picture")
    code, text, _ = train(capsys, photos, tmp_path / "run")
    assert code == 0
    assert f"found       12 pictures of 2 classes in {photos}; left out 2: " in text
    assert "1 class folders without pictures" in text
    log = (tmp_path / "run" / "pictures.log").read_text()
    assert f"{photos / 'cat' / 'notes.txt'}: no pictures (.txt)" in log
    assert f"{photos / 'empty'}: class folders without pictures" in log


@pytest.mark.parametrize("workers", ["0", "2"])
def test_unreadable_pictures_are_found_before_any_work(capsys, photos, tmp_path, workers):
    for i in (1, 3):
        (photos / "cat" / f"{i}.png").write_bytes((photos / "cat" / f"{i}.png").read_bytes()[:300])
    code, text, errors = train(capsys, photos, tmp_path / "run", "--workers", workers)
    assert (code, text) == (2, "")
    assert errors.count("\n") == 1
    assert "2 of 12 pictures cannot be read" in errors
    for i in (1, 3):
        assert f"{photos / 'cat' / f'{i}.png'} is not a picture that Pillow can read" in errors
    assert "--skip-unreadable" in errors
    assert not (tmp_path / "run").exists()


def test_skipped_pictures_are_listed_at_the_end_and_in_the_log(capsys, photos, tmp_path):
    bad = photos / "cat" / "1.png"
    bad.write_text("no picture")
    code, text, _ = train(capsys, photos, tmp_path / "run", "--skip-unreadable")
    assert code == 0
    assert "11 pictures of 2 classes" in text
    assert "left out 1: 1 unreadable" in text
    assert text.splitlines()[-1].startswith(f"skipped     {bad} is not a picture")
    assert f"{bad}: unreadable" in (tmp_path / "run" / "pictures.log").read_text()


def test_names_that_are_no_text_are_read_and_written(photos, tmp_path):
    """As an old archive leaves them; on a pipe, as the output of a process is."""
    name = os.fsencode(photos / "cat") + b"/\xff\xfe.png"
    os.rename(photos / "cat" / "1.png", name)
    with open(os.fsencode(photos / "cat") + b"/bad\xff.png", "wb") as file:
        file.write(b"no picture")
    command = [sys.executable, "-m", "zfkernels", "train", photos, "--out", tmp_path / "run", *TRAIN.split()]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "--skip-unreadable"], capture_output=True, text=True, env=paths)
    assert done.returncode == 0, done.stderr
    assert "12 pictures of 2 classes" in done.stdout
    assert r"bad\udcff.png is not a picture" in done.stdout
    assert r"bad\udcff.png: unreadable" in (tmp_path / "run" / "pictures.log").read_text()
    text = (
        f"atlas {photos} --weights {tmp_path}/run/zfnet.pt --layers conv1 --maps 1 --skip-unreadable --out {tmp_path}/a"
    )
    assert cli.main(text.split()) == 0


def test_pictures_that_are_named_are_checked_like_those_of_folders(capsys, photos, tmp_path):
    """Each bad one is named at once, and may be skipped."""
    arguments = {"num_classes": 2, "image_size": 48, "channels": (4,) * 5, "fc": (3, 3), "without": ("pool5",)}
    saved = checkpoint.Network(ZFNet(**arguments), ["cat", "dog"], torch.zeros(3, 1, 1), torch.ones(1, 1, 1), (48, 48))
    checkpoint.save(tmp_path / "w.pt", saved, arguments)
    for name in ("bad1.png", "bad2.png"):
        (tmp_path / name).write_text("no picture")
    text = f"invariance {tmp_path}/bad1.png {photos}/cat/0.png {tmp_path}/bad2.png --weights {tmp_path}/w.pt"
    text += f" --layers conv1 --out {tmp_path}/o.png"
    assert cli.main(text.split()) == 2
    errors = capsys.readouterr().err
    assert "2 of 3 pictures cannot be read" in errors
    assert "bad1.png" in errors
    assert "bad2.png" in errors
    assert cli.main([*text.split(), "--skip-unreadable"]) == 0
    assert capsys.readouterr().out.count("skipped     ") == 2
    assert cli.main(text.replace("bad1.png", "none.png").split()) == 2
    assert "there is no picture or folder" in capsys.readouterr().err
    parts = [{"image": f"bad{i}.png", "parts": {"eye": [0, 0, 9, 9]}} for i in (1, 2)]
    (tmp_path / "parts.json").write_text(json.dumps(parts))
    assert cli.main(f"correspond {tmp_path}/parts.json --weights {tmp_path}/w.pt".split()) == 2
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert "bad1.png" in errors
    assert "bad2.png" in errors


def test_a_picture_that_breaks_while_workers_read_is_one_line(capsys, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("zfkernels.data.pictures.unreadable", lambda *rest: [])
    (photos / "cat" / "1.png").write_text("no picture")
    for workers in ("0", "1"):
        code, _, errors = train(capsys, photos, tmp_path / f"run{workers}", "--workers", workers)
        assert code == 2
        assert errors.count("\n") == 1
        assert f"{photos / 'cat' / '1.png'} is not a picture that Pillow can read" in errors
        assert "Traceback" not in errors
