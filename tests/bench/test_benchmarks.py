"""`zfkernels bench`: a wrong result has no time, noise is retried, the README's table is that of the committed run."""

import importlib.util
import json
import math
import time
from pathlib import Path

import pytest
import torch
from clock import Clock

from zfkernels import cli
from zfkernels.backends import cpu
from zfkernels.bench import ceilings, checks, jobs, measure, memory, networks, peers, plots, record, shapes, tables
from zfkernels.bench.run import QUICK, SCALED, select

ROOT = Path(__file__).resolve().parents[2]
ARGUMENTS = ["bench", "--quick", "--jobs", "pool5", "--n", "1", "--peers", "eager", "--threads", "1"]
EAGER = peers.Setting(threads=1, peers=("eager",))


@pytest.fixture(autouse=True)
def plain_memory():
    """Without the fill of NaN: it costs time, and what is timed here writes all that is compared."""
    torch.use_deterministic_algorithms(False)


def small_ceilings(*_):
    return ceilings.Ceilings(1e11, {2**20: 4e10, 2**28: 1e10})


@pytest.fixture
def quickly(monkeypatch):
    monkeypatch.setattr(ceilings, "measured", small_ceilings)


def test_right_results_are_timed_and_recorded(quickly, tmp_path, capsys):
    path = tmp_path / "new" / "out.json"
    assert cli.main([*ARGUMENTS, "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    (row,) = found["rows"]
    assert row["errors"]["zfkernels"] == 0
    assert set(row["ms"]) == {"zfkernels", "eager nchw", "eager nhwc"}
    assert all(value > 0 for value in [*row["ms"].values(), *row["ratio"].values()])
    assert row["fastest"] == min(("eager nchw", "eager nhwc"), key=row["ms"].get)
    assert row["floor_ms"] == pytest.approx(row["bytes"] / 4e10 * 1e3)
    assert len(found["csrc_sha256"]) == 64
    assert found["isa"]
    assert str(ROOT) not in path.read_text()
    assert tables.line(row) in capsys.readouterr().out
    assert cli.main(["bench", "--show", str(path)]) == 0
    assert tables.line(row) in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["values", "NaN", "switches"])
def test_wrong_results_have_no_time(quickly, monkeypatch, capsys, broken):
    sound = cpu.max_pool2d

    def wrong(*args):
        y, switches = sound(*args)
        if broken == "switches":
            return y, switches.flip(1)
        return y * (1.001 if broken == "values" else float("nan")), switches

    monkeypatch.setattr(cpu, "max_pool2d", wrong)
    assert cli.main(ARGUMENTS) == 1
    assert "WRONG" in capsys.readouterr().out


def test_a_peer_that_is_wrong_or_raises_has_no_time_and_says_so():
    case = jobs.make("norm2", 1, EAGER)
    case.run["eager nchw"] = lambda: (torch.zeros(1, 256, 13, 13),)

    def raising():
        raise ValueError("out of something")

    case.run["eager nhwc"] = raising
    row = measure.measure(case, measure.QUICK)
    assert set(row["ms"]) == {"zfkernels"}
    assert row["fastest"] is None
    assert row["missing"]["eager nhwc"] == "out of something"
    assert "wrong" in tables.line(row | {"floor_ms": 1.0})


@pytest.mark.parametrize(
    "arguments",
    [
        ["--jobs", "conv9"],
        ["--n", "0"],
        ["--n", "x"],
        ["--threads", "0"],
        ["--peers", "cudnn"],
        ["--backend", "fortran"],
        ["--show", "nowhere.json"],
    ],
)
def test_what_there_is_not_is_refused(capsys, arguments):
    assert cli.main(["bench", *arguments]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_work_is_counted():
    """By hand, in the dtype of the run."""
    terms = peers.Setting(threads=1, peers=(), dtype=torch.bfloat16)

    def work(name: str, n: int, setting: peers.Setting) -> tuple[int, int]:
        case = jobs.make(name, n, setting)
        return case.flops, case.bytes

    conv1 = 2 * (2 * 224 * 224 * 3 + 96 * 147 + 2 * 110 * 110 * 96)
    assert work("conv1", 2, terms) == (2 * 2 * 110 * 110 * 96 * 147, conv1)
    assert work("pool1", 2, terms) == (0, 2 * 96 * (2 * 110 * 110 + 3 * 55 * 55))
    assert work("norm2", 1, EAGER) == (0, 2 * 4 * 256 * 169)
    for path in ("forward", "descent"):
        assert work(path, 1, terms)[0] == sum(work(f"conv{i}", 1, terms)[0] for i in range(1, 6))
    filters = 2 * sum(f * taps for f, taps in ((96, 147), (256, 2400), (384, 2304), (384, 3456), (256, 3456)))
    switches = 96 * 55 * 55 + 256 * 13 * 13 + 256 * 6 * 6
    assert work("descent", 1, terms)[1] == filters + switches + 2 * (256 * 6 * 6 + 3 * 224 * 224)


def test_a_job_in_another_dtype_has_its_bound():
    """float64 on the CPU, where all contenders are within rounding of it; and one error that only float32 allows."""
    terms = peers.Setting(threads=1, peers=("eager", "ort"), dtype=torch.float64, bound=1e-12)
    for name in ("fused5", "pool5", "unpool5", "normtrain2"):
        case = jobs.make(name, 1, terms)
        assert set(case.run) >= {"zfkernels"}
        assert "ort" not in case.run
        found = measure.errors(case)
        assert max(found.values()) <= 1e-12, found
    sound = case.run["zfkernels"]
    case.run["zfkernels"] = lambda: tuple(out * (1 + 1e-7) for out in sound())
    assert "zfkernels" not in measure.measure(case, measure.QUICK)["ms"]
    assert torch.get_default_dtype() == torch.float32


def test_the_help_and_the_list(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["bench", "--help"])
    assert stop.value.code == 0
    assert "zfkernels bench --quick" in capsys.readouterr().out
    assert cli.main(["bench", "--list"]) == 0
    assert all(job.text in capsys.readouterr().out for job in list(jobs.JOBS.values())[:1])


def test_jobs_are_chosen_by_name_op_and_group():
    assert select("conv, pool2") == ["conv1", "conv2", "conv3", "conv4", "conv5", "pool2"]
    assert select("network") == [name for name, job in jobs.JOBS.items() if job.group == "network"]
    assert select("", quick=True) == list(QUICK)
    assert set(QUICK) | set(SCALED) | set(memory.JOBS) <= set(jobs.JOBS)


FIFTH = ("conv5", "convt5", "wgrad5", "pool5", "unpool5", "poolgrad5", "unpoolgrad5", "fused5", "unfused5")


@pytest.mark.parametrize("name", [*FIFTH, "norm2", "normtrain2", "odd-17-33"])
def test_every_contender_of_an_op_is_right(name):
    """torch's own results, the other packages' where they are installed: our arithmetic of who computes what holds."""
    with torch.no_grad():
        case = jobs.make(name, 2, peers.Setting(threads=1, peers=("eager", "onednn", "ort", "openvino")))
        assert len(case.run) > 2
        found = measure.errors(case)
    assert {who: e for who, e in found.items() if not e <= checks.BOUND} == {}


@pytest.mark.parametrize("name", ["forward", "descent", "reverse", "project"])
def test_a_fault_in_one_layer_shows_in_the_networks(monkeypatch, name):
    with torch.no_grad():
        case = jobs.make(name, 1, peers.Setting(threads=1, peers=("eager nhwc",)))
        right = measure.errors(case)
        assert max(right.values()) <= checks.BOUND
        sound = cpu.conv2d if name == "forward" else cpu.conv_transpose2d
        monkeypatch.setattr(cpu, sound.__name__, lambda *args: sound(*args) * 1.001)
        assert measure.errors(case)["zfkernels"] > checks.BOUND


def test_training_steps_agree_with_float64(monkeypatch):
    case = jobs.make("smallstep", 4, EAGER)
    assert max(measure.errors(case).values()) <= checks.BOUND
    sound = cpu.conv2d_weight_grad
    monkeypatch.setattr(cpu, "conv2d_weight_grad", lambda *args: (sound(*args)[0] * 1.05, sound(*args)[1]))
    assert measure.errors(case)["zfkernels"] == math.inf


def test_twin_is_the_same_network():
    from zfkernels.models.zfnet import ZFNet

    model = ZFNet(5, image_size=64, channels=(8,) * 5, fc=(16, 16), weight_std=None).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(networks.twin(model)(x), model(x), atol=1e-5)


def test_switches_may_differ_only_at_near_ties():
    p = shapes.Pool(1, 4, 2, 2, False, 2)
    maps = torch.tensor([[1, 0, 2, 2 + 1e-7], [0, 0, 0, 0], [-1, -2, 0, 3], [-2, -3, 0, 0]], dtype=torch.float64)
    maps = maps.view(1, 1, 4, 4)
    exact = torch.tensor([[0, 1], [0, 1]], dtype=torch.uint8).view(1, 1, 2, 2)
    near, dead, wrong, outside = exact.clone(), exact.clone(), exact.clone(), exact.clone()
    near[0, 0, 0, 1] = 0  # within rounding of the largest
    dead[0, 0, 1, 0] = 1  # all negative: the first place, if what is pooled is rectified
    wrong[0, 0, 0, 0] = 1
    outside[0, 0, 0, 0] = 4
    assert checks.switches_hold(p, exact, maps, 0.0, False)
    assert not checks.switches_hold(p, near, maps, 0.0, False)
    assert checks.switches_hold(p, near, maps, checks.BOUND, True)
    for switches in (dead, wrong, outside):
        assert not checks.switches_hold(p, switches, maps, checks.BOUND, True)
    indices = torch.tensor([[0, 3], [8, 11]]).view(1, 1, 2, 2)
    assert torch.equal(checks.switches_of(p, indices), exact)
    assert checks.switches_hold(p, indices, maps, 0.0, False)


def test_noisy_rounds_are_measured_again(monkeypatch):
    calls, clock = {"steady": 0, "hiccup": 0}, Clock()
    monkeypatch.setattr(measure, "time", clock)

    def steady():
        calls["steady"] += 1
        clock.sleep(0.002)

    def hiccup():
        calls["hiccup"] += 1
        clock.sleep(0.03 if 15 <= calls["hiccup"] < 25 else 0.002)

    pace = measure.Pace(0.01, 10, 6, 6)
    times, again, left = measure.timed({"steady": steady, "hiccup": hiccup}, pace)
    assert again > 0
    assert left == 0
    assert max(times["hiccup"]) < 0.02
    assert len(times["steady"]) == len(times["hiccup"]) == 6
    assert measure.noise([{"a": 1.0}, {"a": 1.0}, {"a": 3.0}]) == [1, 1, 3]


def test_compiling_is_capped():
    case = jobs.make("norm2", 1, EAGER)
    case.setting = peers.Setting(threads=1, compile_seconds=1.0, compile_total=1.5)

    def slow():
        time.sleep(5)

    case.add_compiled(lambda: slow)
    assert case.missing["compile"] == "not compiled within 1 s"
    case.add_compiled(lambda: slow)
    assert "spent" in case.missing["compile"]

    def failing():
        raise ValueError("no such thing\nmore")

    case.setting.compile_total = 10
    case.add_compiled(lambda: failing)
    assert case.missing["compile"] == "ValueError: no such thing"


def test_floors_and_growth():
    top = small_ceilings()
    assert top.floor(2 * 10**9, 0) == pytest.approx(0.02)
    assert top.floor(0, 2**28) == pytest.approx(2**28 / 1e10)
    assert top.floor(0, 1000) == pytest.approx(1000 / 4e10)
    assert tables.exponent([(1, 3), (2, 12), (4, 48)]) == pytest.approx(2)
    assert tables.geometric_mean([1, 4]) == pytest.approx(2)


@pytest.mark.skipif(not memory.STATUS.exists(), reason="memory is read from /proc/self/status")
def test_memory_is_a_high_water_mark(monkeypatch):
    def blocks(n, setting):
        case = peers.Case(setting, n, tuple)
        case.run["zfkernels"] = lambda: (torch.ones(n << 18),)
        return case

    monkeypatch.setitem(jobs.JOBS, "blocks", jobs.Job("", blocks, "op"))
    found = memory.of_this_process("blocks", "zfkernels", 64, EAGER)
    assert 60 << 20 < found["peak"] - found["held"] < 160 << 20


def test_plots_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    found = json.loads(script("readme").OPS.read_text())
    (row,) = (row for row in found["rows"] if (row["job"], row["n"]) == ("conv1", 1))
    found["rows"] += [row | {"job": f"grow-pixels-{side}", "missing": {}} for side in (7, 14)]
    assert [path.name for path in plots.write(found, tmp_path)] == ["ratios.png", "roofline.png", "growth.png"]
    assert all((tmp_path / name).stat().st_size > 5000 for name in ("ratios.png", "roofline.png", "growth.png"))


def script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_are_those_of_the_committed_runs():
    for path, text in script("readme").written().items():
        assert text == path.read_text(), "run: python benchmarks/readme.py"
    assert tables.replaced("<!-- a: begin -->\nold\n<!-- a: end -->", "a", "new").split("\n")[1] == "new"
    with pytest.raises(ValueError, match="must have the lines"):
        tables.replaced("no markers", "bench", "table")


def test_the_record_names_its_kernels(monkeypatch, tmp_path):
    assert all(len(digest) == 64 for digest in record.digests().values())
    monkeypatch.setattr(record, "ROOT", tmp_path)
    assert (*record.digests().values(), record.commit()) == (None, None, None)


def test_shapes_are_zfnets():
    from zfkernels.bench import shapes
    from zfkernels.models.zfnet import ZFNet

    size, channels = 224, 3
    for number, conv in shapes.CONVS.items():
        assert (conv.channels, conv.size) == (channels, size)
        assert conv.out == (size + 2 * conv.padding - conv.kernel) // conv.stride + 1
        size, channels = conv.out, conv.filters
        if number in shapes.POOLS:
            pool = shapes.POOLS[number]
            assert (pool.channels, pool.size) == (channels, size)
            x = torch.zeros(1, 1, size, size)
            size = torch.nn.functional.max_pool2d(x, pool.kernel, pool.stride, ceil_mode=pool.ceil_mode).shape[-1]
            assert pool.out == size
        if number in shapes.NORMS:
            assert (shapes.NORMS[number].channels, shapes.NORMS[number].size) == (channels, size)
    with torch.device("meta"):
        weights = [p.shape for p in ZFNet().parameters() if p.dim() == 4]
    assert weights == [(c.filters, c.channels, c.kernel, c.kernel) for c in shapes.CONVS.values()]
