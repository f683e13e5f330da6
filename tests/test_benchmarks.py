"""The comparison with the peers: a wrong result has no time, and the record says which kernels it is of."""

import json
import sys
from pathlib import Path

import pytest
import torch

import zfkernels as zf
from zfkernels import backends
from zfkernels.backends import cpu

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def compare(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.delitem(sys.modules, "compare", raising=False)
    import compare

    before = torch.get_num_threads()
    yield compare
    torch.set_num_threads(before)


ARGUMENTS = ["--quick", "--ops", "pool5", "--n", "1", "--peers", "eager", "--threads", "1"]


def test_right_results_are_timed_and_recorded(compare, tmp_path, capsys):
    path = tmp_path / "out.json"
    assert compare.main([*ARGUMENTS, "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    (row,) = record["rows"]
    assert row["errors"]["zfkernels"] == 0
    assert set(row["ms"]) == {"zfkernels", "eager nchw", "eager nhwc"}
    assert all(value > 0 for value in [*row["ms"].values(), *row["ratio"].values()])
    assert len(record["csrc_sha256"]) == 64
    assert record["isa"]
    assert str(ROOT) not in path.read_text()
    printed = capsys.readouterr().out
    assert compare.main(["--show", str(path)]) == 0
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("broken", ["values", "NaN", "switches"])
def test_wrong_results_have_no_time(compare, monkeypatch, capsys, broken):
    sound = cpu.max_pool2d

    def wrong(*args):
        y, switches = sound(*args)
        if broken == "switches":
            return y, switches.flip(1)
        return y * (1.001 if broken == "values" else float("nan")), switches

    monkeypatch.setattr(cpu, "max_pool2d", wrong)
    assert compare.main(ARGUMENTS) == 1
    assert "WRONG" in capsys.readouterr().out


def test_unknown_case_is_refused(compare):
    with pytest.raises(SystemExit, match="--ops: no case 'conv9'; the cases are conv1,"):
        compare.chosen("conv9", ["conv1", "pool1"])
    assert compare.chosen("conv, pool2", ["conv1", "conv2", "convt1", "pool1", "pool2"]) == ["conv1", "conv2", "pool2"]


@pytest.fixture
def gpu(compare):
    import gpu

    return gpu


GPU = ["--device", "cpu", "--ops", "pool5,norm2", "--n", "1", "--rounds", "2", "--dtypes", "tf32"]
HERE = [
    name for name in ("cpu", "triton") if name in zf.available_backends() and "cpu" in backends.module(name).DEVICES
]


def test_gpu_benchmark_writes_each_section(gpu, tmp_path, capsys):
    """The whole command but for its GPU: sections in processes of their own, ceilings, errors, times, floors."""
    names = ["determinism", "ceilings", "tf32-1"]
    arguments = [*GPU, "--out", str(tmp_path), "--backends", ",".join(HERE), "--sections", ",".join(names)]
    assert gpu.main(arguments) == 0, "".join(log.read_text() for log in tmp_path.glob("*.log"))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{name}.json" for name in names)
    record = json.loads((tmp_path / "tf32-1.json").read_text())
    assert len(record["triton_sha256"]) == len(record["csrc_sha256"]) == 64
    assert [row["case"] for row in record["rows"]] == ["pool5", "norm2"]
    for row in record["rows"]:
        assert set(row["us"]) == set(row["of_floor"]) == {*HERE, "eager nhwc"}
        assert not row["failures"]
        assert row["floor_us"] > 0
    assert "norm2" in capsys.readouterr().out
    assert json.loads((tmp_path / "determinism.json").read_text())["rows"] == [
        {"checked": 2 * len(HERE), "different": []}
    ]


def test_gpu_benchmark_gives_a_wrong_result_no_time(gpu, tmp_path, monkeypatch):
    sound = cpu.contrast_norm
    monkeypatch.setattr(cpu, "contrast_norm", lambda *args: sound(*args) * 1.01)
    arguments = [*GPU, "--out", str(tmp_path), "--backends", "cpu"]
    assert gpu.main([*arguments, "--section", "tf32-1"]) == 1
    pool, norm = json.loads((tmp_path / "tf32-1.json").read_text())["rows"]
    assert "cpu" in pool["us"]
    assert "cpu" not in norm["us"]
    assert norm["failures"]["cpu"].startswith("error 0.01")
    monkeypatch.setattr(cpu, "contrast_norm", lambda *args: sound(*args) + torch.rand(1))
    assert gpu.main([*arguments, "--section", "determinism"]) == 1


def test_gpu_benchmark_stops_a_section_in_time(gpu, tmp_path):
    args = gpu.arguments([*GPU, "--out", str(tmp_path), "--backends", "cpu"])
    assert gpu.run_section(args, "tf32-1", 1) == "stopped: no time was left"
    args.ops, args.n = "forward", "64"
    assert gpu.run_section(args, "tf32-64", 6) == "stopped after 6 s"


def test_gpu_benchmark_counts_work(gpu):
    """By hand, for the layers whose figures are quoted."""
    flops, traffic = gpu.work("conv1", 128, 2)
    assert flops == 2 * 128 * 110 * 110 * 96 * 147
    assert traffic == 2 * (128 * 224 * 224 * 3 + 96 * 147 + 128 * 110 * 110 * 96)
    assert gpu.work("pool1", 128, 2) == (0, 128 * 96 * (2 * 110 * 110 + 3 * 55 * 55))
    assert gpu.work("norm2", 1, 4)[1] == 2 * 4 * 256 * 169
    parts = ["fused1", "norm1", "fused2", "norm2", "conv3", "conv4", "fused5"]
    assert gpu.work("forward", 2, 2)[1] == sum(gpu.work(part, 2, 2)[1] for part in parts)


def test_shapes_are_zfnets(compare):
    import shapes

    from zfkernels import ZFNet

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
