"""benchmarks/gpu.py without a GPU: every part runs, and a part that hangs, dies or is wrong costs that part alone."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "benchmarks/gpu.py"
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are found in /proc")


class Rehearsal:
    """A run of the script, its folder, and what it left running (all of it carries a mark in its environment)."""

    def __init__(self, out: Path, *arguments: str) -> None:
        self.out, self.mark = out, uuid.uuid4().hex
        variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        variables |= {"PYTHONPATH": str(ROOT), "ZFKERNELS_REHEARSAL": self.mark, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=variables, stdout=pipe, stderr=subprocess.STDOUT, text=True)

    def done(self) -> "Rehearsal":
        self.text, _ = self.process.communicate(timeout=300)
        self.code = self.process.returncode
        assert self.running() == []
        self.run = json.loads((self.out / "run.json").read_text())
        return self

    def running(self) -> list[int]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/environ"):
            try:
                marked = self.mark.encode() in entry.read_bytes()
            except OSError:
                continue
            found += [int(entry.parent.name)] if marked else []
        return found

    def how(self) -> dict[str, str]:
        return {name: part["how"] for name, part in self.run["parts"].items()}

    def rows(self, name: str) -> list[dict]:
        return json.loads((self.out / f"{name}.json").read_text())["rows"]


def rehearsed(out: Path, fault: str, *parts: str) -> Rehearsal:
    return Rehearsal(out, "--rehearse", fault, "--part", ",".join(parts)).done()


def test_every_part_is_rehearsed(tmp_path):
    run = Rehearsal(tmp_path, "--rehearse").done()
    assert run.code == 0, run.text
    assert set(run.how().values()) <= {"passed", "skipped"}
    skipped = {name for name, how in run.how().items() if how == "skipped"}
    assert skipped <= {"compile-triton"}  # no triton
    assert len(run.how()) == 18
    for name in ("bf16-128", "bf16-1", "tf32-128", "tf32-1", "bf16-16"):
        rows = run.rows(name)
        assert [row["case"] for row in rows] == ["pool5", "norm1"]
        assert all({"cuda", "triton"} <= set(row["us"]) and row["floor_us"] > 0 for row in rows)
    assert run.rows("determinism")[-1] == {"checked": 8, "different": []}
    assert {file.stem for file in (tmp_path / "verify-cuda").iterdir()} == {"max_pool2d", "contrast_norm"}
    assert run.run["not_verified"] == run.run["not_passed"] == []


def test_a_part_that_hangs_is_killed_with_all_its_processes(tmp_path):
    run = rehearsed(tmp_path, "hang", "verify-cuda", "ceilings", "bf16-128")
    assert run.code == 1
    assert run.how() | {"machine": "passed"} == {
        "machine": "passed",
        "verify-cuda": "stopped",
        "ceilings": "passed",
        "bf16-128": "passed",
    }
    assert "NOT PASSED: verify-cuda: stopped" in run.text
    assert "NOT VERIFIED: cuda: contrast_norm (float64, float32, bfloat16, float16)" in run.text
    assert "cuda: max_pool2d" not in run.text
    assert (tmp_path / "verify-cuda/max_pool2d.json").exists()
    assert not (tmp_path / "verify-cuda/contrast_norm.json").exists()
    assert "NOT VERIFIED: triton: max_pool2d" in run.text  # timed, and its own part was not run
    assert len(run.rows("bf16-128")) == 2


def test_a_part_that_crashes_costs_an_op(tmp_path):
    run = rehearsed(tmp_path, "crash", "verify-cuda", "ceilings")
    assert run.code == 1
    assert run.how() == {"machine": "passed", "verify-cuda": "FAILED", "ceilings": "passed"}
    assert "NOT PASSED: verify-cuda: FAILED" in run.text
    assert "contrast_norm: died, exit code -6" in (tmp_path / "verify-cuda.log").read_text()
    assert run.run["not_verified"] == ["cuda: contrast_norm (float64, float32, bfloat16, float16)"]


def test_a_part_that_prints_without_end_is_killed(tmp_path):
    run = rehearsed(tmp_path, "flood:determinism", "determinism", "ceilings")
    assert run.code == 1
    assert run.how() == {"machine": "passed", "determinism": "stopped", "ceilings": "passed"}
    assert "it printed more than 64 MiB" in run.run["parts"]["determinism"]["why"]
    assert 0 < (tmp_path / "determinism.log").stat().st_size <= 1 << 20


def test_a_file_that_is_cut_off_costs_what_it_held(tmp_path):
    (tmp_path / "verify-cuda").mkdir()
    for name in ("ceilings", "verify-cuda/max_pool2d", "run"):
        (tmp_path / f"{name}.json").write_text('{"rows": [{"copy": 1e')
    run = rehearsed(tmp_path, "none", "bf16-128")
    assert run.code == 1
    assert run.how() == {"machine": "passed", "bf16-128": "passed"}
    assert "cuda: max_pool2d (float64, float32, bfloat16, float16)" in run.run["not_verified"]
    assert [row["us"].keys() >= {"cuda", "triton"} for row in run.rows("bf16-128")] == [True, True]


def test_a_wrong_result_is_not_verified(tmp_path):
    run = rehearsed(tmp_path, "wrong", "verify-cuda", "ceilings")
    assert run.code == 1
    assert run.how() == {"machine": "passed", "verify-cuda": "FAILED", "ceilings": "passed"}
    assert run.run["not_verified"] == ["cuda: contrast_norm (float64, float32, bfloat16, float16)"]
    (row,) = {row["op"] for row in json.loads((tmp_path / "verify-cuda/contrast_norm.json").read_text())["rows"]}
    assert row == "contrast_norm"


@pytest.mark.parametrize(
    ("fault", "why"), [("hang", "took over 6 s"), ("crash", "exit code -6"), ("wrong", "error 0.")]
)
def test_a_failing_row_costs_that_row(tmp_path, fault, why):
    """norm1 is not the last: a row behind it is made all the same."""
    out = Rehearsal(tmp_path, "--rehearse", f"{fault}:bf16-128", "--part", "bf16-128", "--jobs", "norm1,norm2,pool5")
    run = out.done()
    assert run.code == 1
    assert "NOT PASSED: bf16-128: FAILED" in run.text
    rows = run.rows("bf16-128")
    assert [row["case"] for row in rows] == ["pool5", "norm1", "norm2"]
    assert not rows[0]["failures"]
    for row in rows[1:]:
        assert why in row["failures"]["cuda" if fault == "wrong" else "row"]
        assert "cuda" not in row["us"]


@pytest.mark.parametrize("part", ["memcheck", "tune", "determinism"])
def test_wrong_results_show_in_the_other_parts(tmp_path, part):
    run = rehearsed(tmp_path, f"wrong:{part}", part)
    assert run.code == 1
    assert f"NOT PASSED: {part}: FAILED" in run.text


def test_stopping_the_script_ends_everything(tmp_path):
    """Ctrl-C, and another before it has ended."""
    run = Rehearsal(tmp_path, "--rehearse", "hang", "--part", "verify-cuda")
    until = time.monotonic() + 120
    while not (tmp_path / "verify-cuda/max_pool2d.json").exists() and time.monotonic() < until:
        time.sleep(0.2)
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.02)
    run.process.send_signal(signal.SIGTERM)
    run.done()
    assert run.code == 1
    assert "stopped by SIGINT" in run.text
    assert "NOT PASSED: verify-cuda: stopped" in run.text
    assert "Traceback" not in run.text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--part", "everything"],
        ["--jobs", "conv9"],
        ["--ops", "conv9"],
        ["--backends", "fortran"],
        ["--rehearse", "wrong:build"],
        ["--rehearse", "sleep"],
        ["--minutes", "0"],
        ["--minutes", "nan"],
        ["--rounds", "1"],
    ],
)
def test_what_there_is_not_is_refused(tmp_path, arguments):
    rehearse = [] if "--rehearse" in arguments else ["--rehearse"]
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "no"), *rehearse, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert arguments[1] in done.stderr
    assert arguments[0] in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def on_gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def script():
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    gpu = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(gpu)
    return gpu


def test_time_left_over_goes_to_the_next_part(on_gpu, monkeypatch):
    gpu = script()
    parts = list(gpu.PARTS)
    shares = {name: part.share for name, part in gpu.PARTS.items() if name != gpu.BESIDE}
    assert sum(shares.values()) <= 9 * 60
    args = gpu.arguments(["--out", "x"])
    all_left = gpu.limit_of(args, "machine", parts, 540.0)
    assert all_left == shares["machine"] + shares["build"] + 540 - sum(shares.values())
    assert gpu.limit_of(args, "verify-cuda", parts, sum(shares.values())) > shares["verify-cuda"]
    assert gpu.limit_of(args, "torch-compile", parts, 3.0) == 3.0
    assert gpu.limit_of(args, "build", parts, 540.0) > 2 * shares["build"]  # without it, nothing else runs


def test_the_host_is_checked_whatever_it_has(on_gpu, monkeypatch, tmp_path):
    gpu = script()
    monkeypatch.delenv("ZFKERNELS_ISA", raising=False)
    found = []
    for isas in (["baseline", "avx2", "avx512"], ["baseline", "avx2"]):
        (tmp_path / "machine.json").write_text(json.dumps({"isas": isas}))
        found.append(gpu.variables_of(tmp_path, "verify-cpu"))
    assert found == [{"ZFKERNELS_ISA": "avx512"}, {}]
    monkeypatch.setenv("ZFKERNELS_ISA", "baseline")
    assert gpu.variables_of(tmp_path, "bench-cpu") == {"ZFKERNELS_ISA": "baseline"}
    assert gpu.variables_of(tmp_path, "tune") == {"ZFKERNELS_TUNE": "1"}


def test_the_spin_outlasts_the_host(on_gpu, monkeypatch):
    """A device that is late for two spins is asked again with longer ones; one that always is, is named."""
    import torch
    from on_gpu import clock, rehearsal

    spins, answers = [], iter([True, True, False])

    class Event(rehearsal.Event):
        def query(self) -> bool:
            return next(answers, False)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", spins.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(clock, "cycles_a_second", lambda: 1e6)
    seconds, late = clock.times({"ours": lambda: None}, 2, "cpu")
    assert late == []
    assert len(seconds["ours"]) == 2
    assert spins[1] == 2 * spins[0]
    assert spins[2] == 4 * spins[0] == spins[3]
    monkeypatch.setattr(Event, "query", lambda self: True)
    assert clock.times({"ours": lambda: None}, 2, "cpu")[1] == ["ours"]


def test_what_forks_uses_no_device(on_gpu, monkeypatch, tmp_path):
    """A fork of a process that has used CUDA cannot: a row that dies is written without asking the device anything."""
    import torch
    from on_gpu import rows, settings

    forking, asked = os.getpid(), []

    def name() -> str:
        asked.extend([os.getpid()] if os.getpid() == forking else [])
        return "a GPU"

    monkeypatch.setattr(torch.cuda, "get_device_name", name)
    (tmp_path / "machine.json").write_text(json.dumps({"backends": {"cuda": {"reason": None}}}))
    run = settings.Run(tmp_path, "bf16-1", ("cuda",), "", (), 2, (), rehearsed=True)

    def make(case: str) -> dict:
        if case != "last":
            os._exit(3)
        return {"case": case, "failures": {}, "us": {}}

    assert rows.each_row(run, "bf16-1", ["first", "second", "last"], make) == 1
    found = json.loads((tmp_path / "bf16-1.json").read_text())["rows"]
    assert [row["failures"].get("row") for row in found] == ["exit code 3", "exit code 3", None]
    assert asked == []


def rows_run(monkeypatch, out: Path):
    """A run of rows whose device answers, and cuda runs."""
    import torch
    from on_gpu import settings

    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    (out / "machine.json").write_text(json.dumps({"backends": {"cuda": {"reason": None}}}))
    return settings.Run(out, "bf16-1", ("cuda",), "", (), 2, (), rehearsed=True)


def good_row(case: str) -> dict:
    return {"case": case, "failures": {}, "us": {"cuda": 1.5}}


def half_a_file(out: Path) -> None:
    (out / "bf16-1.json").write_text('{"rows": [{"ca')
    os._exit(0)


def no_file(out: Path) -> None:
    (out / "bf16-1.json").unlink()
    os._exit(0)


def deaf(out: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


ENDINGS = {
    "exits": (lambda out: os._exit(0), "exit code 0"),
    "leaves": (lambda out: sys.exit(0), "exit code 0"),
    "returns NaN": (lambda out: good_row("second") | {"us": {"cuda": float("nan")}}, "not of numbers"),
    "returns nothing": (lambda out: None, "not of numbers"),
    "writes half a file": (half_a_file, "exit code 0"),
    "removes the file": (no_file, "exit code 0"),
    "is deaf and hangs": (deaf, "took over 1 s"),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_whatever_a_row_does_costs_that_row_alone(on_gpu, monkeypatch, tmp_path, ending):
    """It ends, what was on disk before stays, and the rows behind it are made."""
    from on_gpu import rows, settings

    run, (end, why) = rows_run(monkeypatch, tmp_path), ENDINGS[ending]
    monkeypatch.setattr(settings.Run, "row_seconds", 1.0)

    def make(case: str) -> dict:
        return end(tmp_path) if case == "second" else good_row(case)

    assert rows.each_row(run, "bf16-1", ["first", "second", "third"], make) == 1
    first, second, third = json.loads((tmp_path / "bf16-1.json").read_text())["rows"]
    assert why in second["failures"]["row"]
    assert [first, third] == [good_row("first"), good_row("third")]


@pytest.mark.parametrize("room", [True, False])
def test_rows_outlast_a_full_disk(on_gpu, monkeypatch, tmp_path, capfd, room):
    """What could not be written is, when there is room again; where there never is, the part fails."""
    from on_gpu import rows

    run, write = rows_run(monkeypatch, tmp_path), rows.write_json
    (full := tmp_path / "full").touch()

    def make(case: str) -> dict:
        if case == "third" and room:
            full.unlink()
        return good_row(case)

    def written(path: Path, content: dict) -> None:
        if full.exists():
            raise OSError(28, "No space left on device")
        write(path, content)

    monkeypatch.setattr(rows, "write_json", written)
    names = ["first", "second", "third"]
    assert rows.each_row(run, "bf16-1", names, make) == (0 if room else 1)
    assert "No space left on device" in (said := capfd.readouterr().out)
    assert room or "bf16-1.json could not be written" in said
    assert not room or json.loads((tmp_path / "bf16-1.json").read_text())["rows"] == [good_row(name) for name in names]


def test_an_end_on_the_way_is_none(on_gpu, tmp_path):
    """Of a part and of a fork that somebody ended with the exit code 0: only its own end is one."""
    from on_gpu import processes, reports, settings

    tasks = {"whole": lambda: 0, "wrong": lambda: 1, "ended": lambda: os._exit(0)}
    assert processes.each_in_a_fork(tasks, 1) == {"whole": 0, "wrong": 1, "ended": processes.EARLY}
    found = {}
    for code in (0, settings.DONE, settings.SKIPPED, 1, -9, None):
        (log := tmp_path / "log").write_text("words\nthe last\n")
        found[code] = reports.how("tune", code, 1.0, log, "").how
    assert found == {0: "FAILED", 76: "passed", 77: "skipped", 1: "FAILED", -9: "FAILED", None: "stopped"}
    assert reports.how("tune", 1, 1.0, tmp_path / "no log", "").how == "FAILED"
    assert reports.how("tune", settings.DONE, 1.0, tmp_path / "no log", "").how == "passed"


def test_what_a_part_leaves_cut_off_is_named(on_gpu, tmp_path):
    from on_gpu import reports

    (tmp_path / "verify-cuda").mkdir()
    (tmp_path / "before.json").write_text('{"rows": [')
    os.utime(tmp_path / "before.json", (1.0, 1.0))
    since = time.time() - 1
    (tmp_path / "verify-cuda/contrast_norm.json").write_text('{"rows": [{"op": "contr')
    (tmp_path / "ceilings.json").write_text('{"rows": []}')
    assert reports.cut_off(tmp_path, since) == ["verify-cuda/contrast_norm.json"]
    machine = {
        "backends": {"cuda": {"reason": None, "checks": [["conv2d", "float32"]]}},
        "csrc_sha256": "",
        "triton_sha256": "",
    }
    for rows in ('["conv2d"]', '[{"op": "conv2d"}]', "3"):
        file = tmp_path / "verify-cuda/conv2d.json"
        file.write_text(f'{{"csrc_sha256": "", "triton_sha256": "", "rows": {rows}}}')
        assert reports.not_verified(tmp_path, machine, ["cuda"]) == ["cuda: conv2d (float32)"]


def test_a_folder_that_is_taken_away_costs_the_part(on_gpu, tmp_path, capsys):
    gpu, out = script(), tmp_path / "out"
    args = gpu.arguments(["--out", str(out)])
    assert gpu.run_part(args, [], "ceilings", 60.0, ()).how == "FAILED"
    assert "No such file" in capsys.readouterr().out


def test_a_script_that_is_killed_leaves_nothing(on_gpu, tmp_path):
    """Who starts a part, and is killed, can end nothing: the part ends itself."""
    ends = "import time; from on_gpu import processes; processes.end_with_parent(); print('runs', flush=True)"
    part = [sys.executable, "-c", f"{ends}; time.sleep(600)"]
    starts = f"import subprocess; part = subprocess.Popen({part!r}); print(part.pid, flush=True); part.wait()"
    variables = os.environ | {"PYTHONPATH": str(ROOT / "benchmarks")}
    process = subprocess.Popen([sys.executable, "-c", starts], stdout=subprocess.PIPE, text=True, env=variables)
    child, until = int(process.stdout.readline()), time.monotonic() + 20
    assert process.stdout.readline() == "runs\n"
    process.kill()
    process.wait()
    while Path(f"/proc/{child}/stat").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < until, "the part runs on"
        time.sleep(0.05)
    process.stdout.close()


@pytest.mark.parametrize(("leaves", "code"), [(True, 0), (False, 1)])
def test_what_the_sanitizer_runs_says_that_it_is_done(on_gpu, monkeypatch, tmp_path, leaves, code):
    """By its file: the sanitizer takes an exit code that is not 0 for an error."""
    from on_gpu import checking, settings

    machine = {"backends": {"cuda": {"reason": None, "checks": [["conv2d", "float32"]]}}}
    (tmp_path / "machine.json").write_text(json.dumps(machine))

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess:
        if leaves:
            (tmp_path / "memcheck").mkdir()
            (tmp_path / "memcheck/conv2d.json").touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(checking.subprocess, "run", run)
    monkeypatch.setattr(checking, "write", lambda *_: None)
    part = settings.Run(tmp_path, "memcheck", ("cuda",), "", (), 2, (), rehearsed=True)
    assert checking.sanitizer(part, "memcheck") == code


def test_without_the_sanitizer_its_part_fails(on_gpu, monkeypatch, tmp_path, capsys):
    from on_gpu import checking, settings

    machine = {"backends": {"cuda": {"reason": None, "checks": [["conv2d", "float32"]]}}}
    (tmp_path / "machine.json").write_text(json.dumps(machine))
    monkeypatch.setattr(checking.shutil, "which", lambda name: None)
    monkeypatch.setattr(checking.os, "access", lambda *_: False)
    run = settings.Run(tmp_path, "memcheck", ("cuda",), "", (), 2, ())
    assert checking.sanitizer(run, "memcheck") == 1
    assert "compute-sanitizer is not installed" in capsys.readouterr().out


def test_a_row_that_raises_costs_that_row_alone(on_gpu, monkeypatch, tmp_path):
    """Also one after which the GPU serves its process no longer: the next begins in another."""
    from on_gpu import rows

    run = rows_run(monkeypatch, tmp_path)

    def make(case: str) -> dict:
        if case == "second":
            raise RuntimeError("CUDA error: out of memory")
        return {"case": case, "failures": {}, "us": {}, "process": os.getpid()}

    assert rows.each_row(run, "bf16-1", ["first", "second", "third", "last"], make) == 1
    first, second, third, last = json.loads((tmp_path / "bf16-1.json").read_text())["rows"]
    assert second == {"case": "second", "failures": {"row": "RuntimeError: CUDA error: out of memory"}, "us": {}}
    assert [row["failures"] for row in (first, third, last)] == [{}, {}, {}]
    assert first["process"] != third["process"] == last["process"]


def test_without_nvcc_all_but_cuda_is_built(on_gpu, monkeypatch, tmp_path):
    from on_gpu import building, settings

    called = []

    def run(command, cwd, env):
        called.append((command[1:], env["ZFKERNELS_CUDA"]))
        return subprocess.CompletedProcess(command, len(called) - 1)

    (tmp_path / "setup.py").touch()
    monkeypatch.setattr(building, "ROOT", tmp_path)
    monkeypatch.setattr(building, "no_gpu", lambda: "")
    monkeypatch.setattr(building.shutil, "which", lambda name: None)
    monkeypatch.setattr(building.os, "access", lambda *_: False)
    monkeypatch.setattr(building.subprocess, "run", run)
    part = settings.Run(tmp_path, "build", ("cuda", "triton"), "", (), 2, ())
    assert building.build(part) == settings.SKIPPED
    assert building.build(part) == 1
    assert called == [(["setup.py", "build_ext", "--inplace"], "0")] * 2


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_what_tuning_tries_is_compiled_ahead():
    """With the arguments of its own launches: another constant would be another kernel."""
    script = """
import sys
sys.path.insert(0, "benchmarks")
import torch
from on_gpu import building
from zfkernels.backends.triton import conv, gate, tuning
machine = {"capability": [9, 0], "processors": 132}
target = gate.Target("cuda", 90, 132)
found = [one for one, _ in building.launches(machine)]
for row, size in gate.zfnet():
    if row.layer.name == "conv3":
        layer = gate.conv_of(row, size, 128)
        problem = conv.conv2d_problem(layer, torch.bfloat16, target)
        for config in tuning.candidates(problem, target):
            with tuning.trying(problem, config):
                call = conv.conv2d_call(layer, torch.bfloat16, target, True, True)
            same = [o for o in found if o.kernel is call.kernel and o.options == call.options
                    and call.arguments.items() <= o.arguments.items() and torch.bfloat16 in o.arguments.values()]
            print(tuple(config), len(same))
    """
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=variables, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert len(lines) >= 4, done.stderr
    assert all(line.endswith(" 1") for line in lines), done.stdout


def test_a_group_ends_where_nobody_can_list_processes(on_gpu, monkeypatch, tmp_path):
    """What a part leaves in its own group is killed with it, also where there is no /proc to find the rest in."""
    from on_gpu import processes

    log = tmp_path / "log"
    process = processes.start(["sh", "-c", "sleep 600 & echo $!; wait"], log, {})
    until = time.monotonic() + 20
    while not log.read_text().endswith("\n") and time.monotonic() < until:
        time.sleep(0.05)
    child = Path(f"/proc/{int(log.read_text())}/stat")
    monkeypatch.setattr(processes, "below", lambda *_: [])
    assert processes.end(process) == []
    assert process.wait(20) == -signal.SIGKILL
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] not in "ZX":
        assert time.monotonic() < until + 20, "the part's own child runs on"
        time.sleep(0.05)


def test_references_are_made_without_the_search_for_algorithms(on_gpu, monkeypatch):
    import torch
    from on_gpu import rows

    from zfkernels.bench.peers import Case, Setting

    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    seen = []
    case = rows.quiet(Case(Setting(peers=()), 1, lambda: seen.append(torch.backends.cudnn.benchmark) or ()))
    case.right()
    assert seen == [False]
    assert torch.backends.cudnn.benchmark is True
