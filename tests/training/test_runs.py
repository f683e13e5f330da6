"""A run's folder: never replaced unasked, whole after any kill, and no file of it that says anything but one line."""

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from zfkernels import cli, files
from zfkernels.models import checkpoint
from zfkernels.training import history
from zfkernels.training.recipe import Plan

Image = pytest.importorskip("PIL.Image")
NETWORK = "--side 64 --channels 4 4 4 4 4 --fc 8 8 --he --scale 32 --batch 4 --held-out 0.3 --device cpu --quiet"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three classes of six pictures, told apart by a colour."""
    path = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    for label, name in enumerate(("red", "green", "blue")):
        (path / name).mkdir()
        for i in range(6):
            pixels = random.integers(0, 100, (80, 80, 3), dtype=np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(path / name / f"{i}.png")
    return path


def train(capsys, folder, out, more="--epochs 2 --keep 1 2"):
    """Exit code, stdout, stderr of `zfkernels train`."""
    code = cli.main(["train", str(folder), "--out", str(out), *NETWORK.split(), *more.split()])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    assert (
        cli.main(["train", str(folder), "--out", str(out), *NETWORK.split(), *["--epochs", "2", "--keep", "1", "2"]])
        == 0
    )
    return out


def copied(trained: Path, out: Path) -> Path:
    out.mkdir(parents=True)
    for file in trained.iterdir():
        (out / file.name).write_bytes(file.read_bytes())
    return out


def one_line(text: str) -> bool:
    return text.count("\n") == 1 and "Traceback" not in text


# Never replaced unasked


def contents(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.iterdir()}


@pytest.mark.parametrize("left", [None, "zfnet.pt", "state.pt", "epoch_001.pt", "best.pt", "log.jsonl"])
def test_a_run_that_is_there_is_refused_and_left_as_it_was(capsys, folder, trained, tmp_path, left):
    """Whole, or any one file of it."""
    out = copied(trained, tmp_path / "run")
    for file in out.iterdir() if left else ():
        if file.name != left:
            file.unlink()
    before = contents(out)
    code, text, errors = train(capsys, folder, out)
    assert (code, text) == (2, "")
    assert one_line(errors)
    assert "--resume" in errors
    assert "--overwrite" in errors
    assert contents(out) == before


def test_a_run_that_ended_before_its_first_epoch_is_no_run(capsys, folder, tmp_path):
    history.begin(tmp_path, Plan())
    assert train(capsys, folder, tmp_path, "--epochs 1")[0] == 0


def test_overwrite_leaves_nothing_of_the_run_before(capsys, folder, trained, tmp_path):
    out = copied(trained, tmp_path / "run")
    (out / "notes.txt").write_text("mine")
    before = files.load_tensors(out / "state.pt")["id"]
    assert train(capsys, folder, out, "--epochs 1 --keep --overwrite")[0] == 0
    assert {f.name for f in out.iterdir()} == {
        "state.pt",
        "zfnet.pt",
        "best.pt",
        "log.jsonl",
        "pictures.log",
        "notes.txt",
    }
    assert len(history.read_log(out / "log.jsonl")) == 1
    assert files.load_tensors(out / "state.pt")["id"] != before


def test_resume_and_overwrite_exclude_each_other(capsys, folder, trained):
    with pytest.raises(SystemExit) as stop:
        train(capsys, folder, trained, "--resume --overwrite")
    assert stop.value.code == 2


def test_the_demo_does_not_replace_a_run(capsys, trained):
    before = contents(trained)
    assert cli.main(["demo", "--out", str(trained), "--epochs", "1"]) == 2
    assert "holds a training run" in capsys.readouterr().err
    assert contents(trained) == before


def test_no_run_is_begun_over_networks_without_a_state(trained, tmp_path):
    """As the gallery and ablate begin theirs: to be continued where there is a state, and else in an empty folder."""
    (tmp_path / "zfnet.pt").write_bytes((trained / "zfnet.pt").read_bytes())
    with pytest.raises(FileExistsError, match="holds a run already"):
        history.begin(tmp_path, Plan(), overwrite=False)
    assert (tmp_path / "zfnet.pt").exists()
    (tmp_path / "zfnet.pt").unlink()
    assert history.begin(tmp_path, Plan(), overwrite=False) is None


HOLDS = """
import sys
from pathlib import Path
from zfkernels import files
files.hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_two_processes_do_not_train_in_one_folder(capsys, folder, trained, tmp_path):
    out = copied(trained, tmp_path / "run")
    before = contents(out)
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    other = [sys.executable, "-c", HOLDS, out]
    with subprocess.Popen(other, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=paths) as process:
        assert process.stdout.readline() == "held\n"
        code, _, errors = train(capsys, folder, out, "--epochs 3 --overwrite")
        assert code == 2
        assert "another process writes to" in errors
        assert contents(out) == before
    assert train(capsys, folder, out, "--epochs 3 --resume")[0] == 0


# Killed, and continued


def test_a_run_that_is_killed_at_any_write_is_continued_to_the_same_files(tmp_path):
    """kill -9, at every write in turn."""
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, Path(__file__).with_name("kills.py"), tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, env=paths)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 30


@pytest.mark.parametrize("lost", ["zfnet.pt", "epoch_002.pt", "log.jsonl", "best.pt"])
def test_a_finished_run_is_mended_by_resuming_it(capsys, folder, trained, tmp_path, lost):
    out = copied(trained, tmp_path / "run")
    best = min(history.read_log(trained / "log.jsonl"), key=lambda epoch: epoch.error).epoch
    if lost == "best.pt" and best != 2:
        pytest.skip("the best epoch is not the last")
    (out / lost).unlink()
    code, text, _ = train(capsys, folder, out, "--epochs 2 --keep 1 2 --resume")
    assert code == 0
    assert "after epoch 2, and --epochs asks for no more" in text
    assert (out / lost).exists()
    if lost.endswith(".pt"):
        expected = checkpoint.load(trained / lost).model.state_dict()
        for name, value in checkpoint.load(out / lost).model.state_dict().items():
            assert torch.equal(value, expected[name])


@pytest.mark.parametrize("how", ["--resume", "--overwrite"])
def test_what_a_kill_left_half_written_is_removed(capsys, folder, trained, tmp_path, how):
    out = copied(trained, tmp_path / "run")
    half = files.half_of(out / "epoch_007.pt")  # of an epoch that is not written again
    half.write_bytes(b"half")
    assert train(capsys, folder, out, f"--epochs 2 {how}")[0] == 0
    assert not half.exists()


def test_the_best_epoch_is_kept_beside_the_last(capsys, folder, tmp_path, monkeypatch):
    errors = iter([0.5, 0.25, 0.75, 0.25])
    monkeypatch.setattr("zfkernels.training.fit.evaluate", lambda *rest: (next(errors), 0.0))
    code, text, _ = train(capsys, folder, tmp_path, "--epochs 4 --keep 1 2 3 4")
    assert code == 0
    assert f"{tmp_path / 'best.pt'} (of epoch 2)" in text
    best, second = (files.load_tensors(tmp_path / name) for name in ("best.pt", "epoch_002.pt"))
    assert best["run"] == second["run"] == {"id": files.load_tensors(tmp_path / "state.pt")["id"], "epoch": 2}
    assert all(torch.equal(value, second["state_dict"][name]) for name, value in best["state_dict"].items())
    assert files.load_tensors(tmp_path / "zfnet.pt")["run"]["epoch"] == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--channels 5 4 4 4 4", "is of another network: 'conv1.weight' has shape (4, 3, 7, 7)"),
        ("--fc 8 9", "is of another network"),
        ("--side 70", "it was trained with side"),
        ("--scale 16", "it was trained with scale 32.0, got 16.0"),
        ("--rate 0.5", "was trained with learning_rate 0.01, got learning_rate 0.5"),
        ("--seed 3", "was trained with seed 0, got seed 3"),
    ],
)
def test_another_run_is_not_resumed(capsys, folder, trained, tmp_path, options, words):
    out = copied(trained, tmp_path / "run")
    before = contents(out)
    del before["pictures.log"]
    code, _, errors = train(capsys, folder, out, f"--epochs 3 --resume {options}")
    assert code == 2
    assert one_line(errors)
    assert words in errors
    assert {name: data for name, data in contents(out).items() if name != "pictures.log"} == before


def test_other_classes_are_not_resumed(capsys, folder, trained, tmp_path):
    others = tmp_path / "photos"
    for name in ("red", "green", "violet"):
        (others / name).mkdir(parents=True)
        for file in (folder / name.replace("violet", "blue")).iterdir():
            (others / name / file.name).write_bytes(file.read_bytes())
    code, _, errors = train(capsys, others, copied(trained, tmp_path / "run"), "--epochs 3 --resume")
    assert code == 2
    assert "blue is gone, violet is new" in errors
    assert one_line(errors)


def test_other_pictures_are_resumed_with_a_warning(capsys, folder, trained, tmp_path):
    others = tmp_path / "photos"
    for name in ("red", "green", "blue"):
        (others / name).mkdir(parents=True)
        for file in (folder / name).iterdir():
            (others / name / f"new{file.name}").write_bytes(file.read_bytes())
    out = copied(trained, tmp_path / "run")
    code, _, errors = train(capsys, others, out, "--epochs 3 --resume")
    assert code == 0
    assert "the training pictures are not those of the epochs before" in errors
    code, _, errors = train(capsys, folder, copied(trained, tmp_path / "again"), "--epochs 3 --resume")
    assert "not those" not in errors


def test_nothing_to_resume_is_found_before_any_picture_is_read(capsys, tmp_path):
    code, text, errors = train(capsys, tmp_path / "none", tmp_path / "run", "--resume")
    assert (code, text) == (2, "")
    assert "there is nothing to resume" in errors


# Damaged files


def damaged(data: bytes, kinds: int):
    """The first so many bytes, for many numbers; and with a flipped bit, at many places."""
    for i in range(kinds):
        yield f"cut at {len(data) * i // kinds}", data[: len(data) * i // kinds]
        flipped = bytearray(data)
        flipped[len(data) * i // kinds] ^= 16
        yield f"flipped at {len(data) * i // kinds}", bytes(flipped)


def test_every_cut_state_ends_in_one_line_that_names_the_file(capsys, folder, trained, tmp_path):
    out = copied(trained, tmp_path / "run")
    state = (out / "state.pt").read_bytes()
    expected = files.load_tensors(out / "state.pt")["model"]
    refused = 0
    for what, data in damaged(state, 52):
        (out / "state.pt").write_bytes(data)
        try:
            loaded = history.begin(out, Plan(epochs=2, batch_size=4), True)
        except ValueError as error:
            refused += 1
            said(error, out / "state.pt")
        else:
            assert what.startswith("flipped"), what  # between the parts of the archive
            assert all(torch.equal(value, expected[name]) for name, value in loaded["model"].items()), what
    assert refused > 80
    (out / "state.pt").write_bytes(state[:5000])
    code, _, errors = train(capsys, folder, out, "--epochs 3 --resume")
    assert (code, one_line(errors)) == (2, True)
    assert "state.pt is not a readable checkpoint" in errors


def test_every_damaged_checkpoint_is_refused_or_whole(trained, tmp_path):
    file = tmp_path / "zfnet.pt"
    whole, content = (trained / "zfnet.pt").read_bytes(), checkpoint.load(trained / "zfnet.pt").model.state_dict()
    old = tmp_path / "old.pt"
    torch.save(files.load_tensors(trained / "zfnet.pt"), old, _use_new_zipfile_serialization=False)
    for data in (whole, old.read_bytes()):
        for what, part in damaged(data, 104):
            file.write_bytes(part)
            try:
                loaded = checkpoint.load(file)
            except ValueError as error:
                said(error, file)
            else:
                assert what.startswith("flipped"), what
                if data is whole:  # torch's format of before 2020 has no checksums
                    assert all(torch.equal(v, content[name]) for name, v in loaded.model.state_dict().items()), what


def said(error: Exception, file: Path, *words: str) -> None:
    """The error is one line that names the file."""
    for word in (str(file), *words):
        assert word in str(error)
    assert "\n" not in str(error)


class Harm:
    def __reduce__(self):
        return os.system, ("touch HARM",)


def test_no_file_runs_code(capsys, folder, trained, tmp_path, monkeypatch):
    """In a state, a checkpoint, weights of a model, a state of a search."""
    monkeypatch.chdir(tmp_path)
    out = copied(trained, tmp_path / "run")
    state = files.load_tensors(out / "state.pt")
    torch.save(state | {"harm": Harm()}, out / "state.pt")
    code, _, errors = train(capsys, folder, out, "--epochs 3 --resume")
    assert (code, one_line(errors)) == (2, True)
    assert "could run code" in errors
    torch.save({"format": checkpoint.FORMAT, "harm": Harm()}, "harm.pt")
    for model in ("", "--model nets:alexnet"):
        assert cli.main(["filters", "--weights", "harm.pt", *model.split()]) == 2
        assert "could run code" in capsys.readouterr().err
    assert not Path("HARM").exists()


DAMAGED = "cannot be resumed: its momentum is damaged"


def test_a_run_without_momentum_is_resumed(capsys, folder, tmp_path):
    for more in ("--epochs 1", "--epochs 2 --resume"):
        assert train(capsys, folder, tmp_path / "run", f"{more} --momentum 0")[0] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": "other"}, "is no training state"),
        ({"plan": {"rate": 1}}, "is a damaged training state"),
        ({"history": [{"epoch": 1}]}, "is a damaged training state"),
        ({"optimiser": 3}, "is a damaged training state"),
        ({"model": {}}, "is of another network: it lacks 'conv1.weight' (and 15 more)"),
        ({"optimiser": {"state": {}, "param_groups": []}}, DAMAGED),
        ({"optimiser": {"state": [], "param_groups": 4}}, DAMAGED),
        (
            lambda state: state["optimiser"]["state"][3].update(momentum_buffer=torch.zeros(1)),
            DAMAGED,
        ),
        (
            lambda state: state["optimiser"]["state"][2]["momentum_buffer"].fill_(float("nan")),
            DAMAGED,
        ),
        (
            lambda state: state["optimiser"]["state"].update({99: {"momentum_buffer": torch.zeros(1)}}),
            DAMAGED,
        ),
        (lambda state: state["mean"].fill_(float("nan")), "its mean picture is damaged"),
        ({"mean": torch.zeros(3, 1, 1)}, "its mean picture is damaged, or of others than those of (3, "),
        (lambda state: state["model"]["conv2.weight"].fill_(float("inf")), "'conv2.weight' holds NaN or infinite"),
        (lambda state: state["model"].update({"conv2.bias": "x"}), "'conv2.bias' is a str, not a tensor"),
    ],
)
def test_foreign_states_are_named(capsys, folder, trained, tmp_path, change, words):
    out = copied(trained, tmp_path / "run")
    state = files.load_tensors(out / "state.pt")
    if callable(change):
        change(state)
    else:
        state |= change
    torch.save(state, out / "state.pt")
    code, _, errors = train(capsys, folder, out, "--epochs 3 --resume")
    assert (code, one_line(errors)) == (2, True)
    assert words in errors
    assert str(out / "state.pt") in errors


# A full disk


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    """At each of torch's writes in turn."""
    path, content = tmp_path / "a.pt", {f"{i}": torch.full((1000,), float(i)) for i in range(5)}
    files.save_tensors(path, {"before": torch.ones(1)})
    before = path.read_bytes()
    write = files._Sink.write
    for last in range(1000):
        left = last

        def full(sink, data):
            nonlocal left
            left -= 1
            if left < 0:

                class Full:
                    def write(self, data):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

                sink.file = Full()
            return write(sink, data)

        with monkeypatch.context() as patch:
            patch.setattr(files._Sink, "write", full)
            try:
                files.save_tensors(path, content)
            except OSError as error:
                said(error, path, "No space left")
            else:
                break
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
    assert last > 10
    assert torch.equal(files.load_tensors(path)["4"], content["4"])


LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from zfkernels import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def limited(limit: int, *arguments: object) -> subprocess.CompletedProcess:
    """The command in a process whose files may have so many bytes."""
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED.format(limit=limit), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=paths)


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="no limit on files")
def test_train_and_project_on_a_full_disk_end_in_one_line(folder, trained, tmp_path):
    out = tmp_path / "run"
    done = limited(5000, "train", folder, "--out", out, *NETWORK.split(), "--epochs", 1)
    assert done.returncode == 2, done.stderr
    assert one_line(done.stderr)
    assert f"{out / 'state.pt'} cannot be written" in done.stderr
    assert {file.name for file in out.iterdir()} == {"log.jsonl", "pictures.log"}
    picture, drawn = folder / "red" / "0.png", tmp_path / "p.png"
    done = limited(5000, "project", picture, "--weights", trained / "zfnet.pt", "--out", drawn)
    assert (done.returncode, one_line(done.stderr)) == (2, True)
    assert f"{drawn} cannot be written" in done.stderr
    assert not drawn.exists()


def test_a_full_file_system_leaves_no_half_file(folder, tmp_path):
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        done = limited(10**9, "train", folder, "--out", small / "run", *NETWORK.split(), "--epochs", 1)
        assert done.returncode == 2
        assert "No space left on device" in done.stderr
        assert one_line(done.stderr)
        for file in (small / "run").iterdir():
            assert file.suffix != ".pt" or files.load_tensors(file)
            assert not file.name.startswith(".")
    finally:
        subprocess.run(["umount", small], check=True)


def test_what_is_no_file_is_written_to_and_not_replaced(tmp_path):
    files.write_text(Path("/dev/null"), "nothing")
    assert not Path("/dev/null").is_file()
    (tmp_path / "real").write_text("a")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    files.write_text(tmp_path / "link", "b")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "b"


# Files of two runs


def test_evolution_refuses_files_of_two_runs(capsys, folder, trained, tmp_path):
    assert train(capsys, folder, tmp_path / "other", "--epochs 1 --keep 1 --seed 3")[0] == 0
    mixed = [trained / "epoch_002.pt", tmp_path / "other" / "epoch_001.pt"]
    code = cli.main(["evolution", str(folder), "--weights", *map(str, mixed), "--out", str(tmp_path / "e.png")])
    errors = capsys.readouterr().err
    assert (code, one_line(errors)) == (2, True)
    assert str(mixed[0]) in errors
    assert str(mixed[1]) in errors
    assert "two runs" in errors
    assert not (tmp_path / "e.png").exists()
    same = [trained / "epoch_001.pt", trained / "epoch_002.pt"]
    assert cli.main(["evolution", str(folder), "--weights", *map(str, same), "--out", str(tmp_path / "e.png")]) == 0


def test_a_state_is_no_network(capsys, folder, trained, tmp_path):
    for command in ("filters --weights", f"evolution {folder} --weights {trained}/zfnet.pt"):
        assert cli.main([*command.split(), str(trained / "state.pt"), "--out", str(tmp_path / "o.png")]) == 2
        errors = capsys.readouterr().err
        assert one_line(errors)
        assert "state.pt is no network but a zfkernels.training.1" in errors
        assert "give its zfnet.pt" in errors


def test_a_log_that_is_no_log_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(ValueError, match=r"log.jsonl, line 1, is no epoch"):
        history.read_log(tmp_path / "log.jsonl")
