"""The comparison with the peers: a wrong result has no time, and the record says which kernels it is of."""

import json
import sys
from pathlib import Path

import pytest
import torch

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
