"""The search of `zfkernels verify --seconds` finds planted faults, shrinks them, and prints what reproduces them."""

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from clock import Clock

from zfkernels import cli
from zfkernels.backends import cpu
from zfkernels.testing import checks, coverage, gradients, search, spec
from zfkernels.testing.cases import OPS
from zfkernels.testing.compare import windows_of
from zfkernels.testing.spec import Spec, parse

sound = {name: getattr(cpu, name) for name in OPS}


@pytest.fixture(autouse=True)
def counted(monkeypatch):
    """A second is a hundred looks at the clock, on every machine."""
    monkeypatch.setattr(search, "time", Clock(step=0.01))


def main(*arguments: str) -> int:
    return cli.main(["verify", "--backend", "cpu", *arguments])


def spoilt(out: torch.Tensor) -> torch.Tensor:
    """With its last value wrong."""
    if out.numel():
        out[(-1,) * out.dim()] += 1
    return out


def odd_widths_at_stride_2(x, w, b, add, stride, *rest):
    out = sound["conv2d_add"](x, w, b, add, stride, *rest)
    return spoilt(out) if x.shape[3] % 2 and stride[1] == 2 else out


def nan_in_the_bias(x, w, b, *rest):
    return sound["conv2d_add"](x, w, b if b is None else b.nan_to_num(0.0, math.inf, -math.inf), *rest)


def infinity_in_add(x, w, b, add, *rest):
    return sound["conv2d_add"](x, w, b, add if add is None else add.nan_to_num(math.nan, 3e38, -3e38), *rest)


def two_threads(x, *rest):
    out = sound["contrast_norm"](x, *rest)
    return out * (1 + 2**-20) if torch.get_num_threads() > 1 else out


def wide_outputs(g, x, *rest):
    gw, gb = sound["conv2d_weight_grad"](g, x, *rest)
    return (spoilt(gw) if gw.shape[0] > 128 else gw), gb


def strides_ignored(x, *rest):
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return sound["max_pool2d"](x if dense else torch.as_strided(x, x.shape, torch.empty(x.shape).stride()), *rest)


def last_tie_wins(x, kernel, stride, padding, size):
    y, switches = sound["max_pool2d"](x, kernel, stride, padding, size)
    taps = windows_of(x, kernel, stride, padding, size)
    last = taps.shape[-1] - 1 - taps.flip(-1).argmax(-1)
    return y, last.to(torch.uint8) if kernel == (2, 2) else switches


def denormals_flushed(y, *rest):
    return sound["conv_transpose2d"](y.masked_fill(y.abs() < torch.finfo(y.dtype).tiny, 0), *rest)


def another_each_time(y, *rest):
    another_each_time.calls += 1
    return sound["max_unpool2d"](y, *rest) * (1 + another_each_time.calls % 2 * 2**-21)


another_each_time.calls = 0


def batch_matters(x, *rest):
    out = sound["max_pool2d_contrast_norm"](x, *rest)
    return (*out[:2], out[2] * (1 + 2**-20)) if len(x) > 2 else out


def prepared_without_bias(x, w, b, *rest):
    return sound["conv2d_add"](x, w, torch.zeros_like(w.bias) if getattr(w, "bias", None) is not None else b, *rest)


def switches_of_the_neighbour(x, *rest):
    y, switches = sound["conv2d_relu_max_pool2d"](x, *rest)
    return y, switches.roll(1, 3) if y.shape[3] > 4 else switches


# name, the function of the cpu backend, the wrong one, ops to search, which checks see it, the most that the case that
# is left may have of each size.
FAULTS = [
    ("odd widths at stride 2", "conv2d_add", odd_widths_at_stride_2, "conv2d", ("forward",), {}),
    ("NaN in the bias", "conv2d_add", nan_in_the_bias, "conv2d_add", ("forward",), {}),
    ("infinity in add", "conv2d_add", infinity_in_add, "conv2d_add", ("forward",), {}),
    ("two threads", "contrast_norm", two_threads, "contrast_norm", ("threads",), {}),
    ("outputs beyond 128", "conv2d_weight_grad", wide_outputs, "conv2d_weight_grad", ("forward",), {"k": 129}),
    ("strides ignored", "max_pool2d", strides_ignored, "max_pool2d", ("forward", "again"), {"c": 4, "size": (4, 4)}),
    ("last tie wins", "max_pool2d", last_tie_wins, "max_pool2d", ("forward",), {"pool": (2, 2), "size": (2, 2)}),
    ("denormals flushed", "conv_transpose2d", denormals_flushed, "conv_transpose2d", ("forward", "backward"), {}),
    ("another each time", "max_unpool2d", another_each_time, "max_unpool2d", ("again",), {}),
    ("batch matters", "max_pool2d_contrast_norm", batch_matters, "max_pool2d_contrast_norm", ("alone",), {"n": 3}),
    ("prepared without bias", "conv2d_add", prepared_without_bias, "conv2d", ("prepared",), {}),
    (
        "switches of the neighbour",
        "conv2d_relu_max_pool2d",
        switches_of_the_neighbour,
        "conv2d_relu_max_pool2d",
        ("forward",),
        {"size": (2, 6)},
    ),
]


def cost(case: Spec, most: dict) -> list[str]:
    """The sizes in which a case is larger than 2, or than `most` says."""
    sizes = {name: getattr(case, name) for name in ("n", "c", "k", "groups", "size", "kernel", "pool")}
    return [f"{name} {value}" for name, value in sizes.items() if above(value, most.get(name, 2))]


def above(value: int | tuple, most: int | tuple) -> bool:
    pairs = [(v if isinstance(v, tuple) else (v, v)) for v in (value, most)]
    return any(v > m for v, m in zip(*pairs, strict=True))


class Enough(Exception):
    """The fault is found."""


def found(op: str, seen: tuple[str, ...], seconds: float) -> Spec:
    """The first case of these checks that the search finds and shrinks."""
    cases = []

    def report(one):
        if one.case.check in seen:
            cases.append(one.case)
            raise Enough

    with pytest.raises(Enough):
        search.search(seconds, 1, ["cpu"], [op], report)
    return cases[0]


@pytest.mark.parametrize(
    ("function", "wrong", "op", "seen", "most"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS]
)
def test_a_planted_fault_is_found_shrunk_and_reproduced(monkeypatch, capsys, function, wrong, op, seen, most):
    monkeypatch.setattr(cpu, function, wrong)
    case = found(op, seen, 30)
    assert cost(case, most) == [], case.text()
    assert main("--case", case.text()) == 1
    assert capsys.readouterr().out.endswith(f": zfkernels verify --case '{case.text()}'\n")
    monkeypatch.setattr(cpu, function, sound[function])
    assert main("--case", case.text()) == 0
    assert capsys.readouterr().out == f"passed: {case.text()}\n"


@pytest.mark.parametrize("row", FAULTS[:2], ids=[row[0] for row in FAULTS[:2]])
def test_the_command_reports_a_planted_fault(monkeypatch, capsys, tmp_path, row):
    _, function, wrong, op, seen, _ = row
    monkeypatch.setattr(cpu, function, wrong)
    path = tmp_path / "out.json"
    assert main("--cases", "0", "--ops", op, "--seconds", "6", "--json", str(path)) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAILED") and "--case" in line]
    texts = [re.search(r"zfkernels verify --case '(.*)'$", line)[1] for line in lines]
    assert set(seen) & {parse(text).check for text in texts}
    report = json.loads(path.read_text())
    assert [one["case"] for one in report["failed_cases"]] == texts
    assert all(main("--case", one["met"]) == 1 for one in report["failed_cases"])
    assert report["searched"]["checks"] > 100


def test_the_kernels_pass_a_short_search(capsys):
    assert main("--cases", "0", "--seconds", "4", "--seed", "3", "--ops", "conv2d") == 0
    assert re.search(r"searched \d+ cases, \d\d+ checks in 4 s: 0 failures", capsys.readouterr().out)


def drawn(count: int, backend: str = "cpu") -> list[Spec]:
    return [search.drawn(search.random.Random(f"0/{index}"), backend) for index in range(count)]


def test_cases_are_the_same_after_a_journey_as_text():
    for case in drawn(300):
        for check in search.own_checks(case):
            assert parse(replace(case, check=check).text()) == replace(case, check=check)


def test_the_search_reaches_what_it_promises():
    cases = drawn(8000)
    assert {case.op for case in cases} == set(spec.TENSORS)
    assert {case.dtype for case in cases} == set(spec.DTYPES)
    assert {case.mode for case in cases} == set(spec.MODES)
    assert {case.isa for case in cases} == set(cpu._C.isas())
    named = {(name, fill) for case in cases for name, fill, _ in case.tensors}
    for name in ("x", "weight", "bias", "add", "y", "g", "grad", "scale"):
        for fill in (*spec.FILLS[1:], *spec.EXTREMES):
            assert (name, fill) in named, (name, fill)
    for name in ("x", "weight", "bias", "y", "g", "switches"):
        assert {(name, layout) for case in cases for n, _, layout in case.tensors if n == name} >= {
            (name, layout) for layout in spec.LAYOUTS[1:]
        }
    assert {0, 1, 2, 3} == {case.n for case in cases}
    assert any(case.k > 128 for case in cases)
    assert any(case.size == (1, 1) for case in cases)
    assert any(case.groups > 16 and case.c == case.k == 1 for case in cases)
    assert any(case.groups > 1 and case.c > 1 for case in cases)
    assert any(min(case.dilation) > 1 for case in cases)
    assert any(case.stride[0] > case.kernel[0] for case in cases)


@pytest.mark.parametrize("layout", spec.LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
def test_layouts_hold_the_values(layout, dtype):
    x = (100 * torch.rand(3, 4, 5, 2)).to(dtype)
    x = x[:1].expand(x.shape).clone() if layout == "expanded" else x
    copy = spec.laid_out(x, layout)
    assert torch.equal(copy, x)
    assert copy.is_neg() == (layout == "negative" and dtype == torch.float32)
    assert (copy.stride(0) == 0) == (layout == "expanded")
    if layout == "offset":
        assert copy.data_ptr() % 16 != 0


@pytest.mark.parametrize("fill", [*spec.FILLS, *spec.EXTREMES])
@pytest.mark.parametrize("dtype", spec.DTYPES)
def test_fills_hold_what_they_say(fill, dtype):
    case = Spec("conv2d", dtype=dtype, n=2, c=9, k=20, size=(9, 8))
    x = spec.values(case, "x", (2, 9, 9, 8), fill).to(spec.DTYPES[dtype])
    info, magnitude = torch.finfo(x.dtype), x.double().abs()
    expected = {
        "nan": int(x.isnan().sum()) == 1,
        "inf": int(x.isinf().sum()) == 1,
        "nonfinite": bool(x.isnan().any() and x.isinf().any()),
        "denormal": bool(((magnitude > 0) & (magnitude < info.tiny)).all()),
        "huge": bool(magnitude.max() * magnitude.numel() > info.max / 256) and bool(x.isfinite().all()),
        "zeros": not x.any() and not x.signbit().any(),
        "negative_zeros": not x.any() and bool(x.signbit().all()),
        "negative": bool((x < 0).all()),
        "positive": bool((x > 0).all()),
        "ties": torch.equal(x, x.round()),
        "sparse": 0.1 < (x != 0).double().mean() < 0.3,
        "normal": bool(x.isfinite().all()),
    }
    assert expected[fill]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("conv3d n=2", "no op 'conv3d'"),
        ("conv2d forward n=two", "n must be a whole number, got 'two'"),
        ("conv2d size=3", "size must be a pair as 3x4, got '3'"),
        ("conv2d y=nan", "'y=nan' is neither a tensor of conv2d nor one of"),
        ("conv2d x=nan/round", "x must be one of"),
        ("conv2d kernel=3x3 size=2x2", "the kernel must fit"),
        ("conv2d n=-1", "n must be at least 0"),
        ("max_pool2d pool=3x3 pool_padding=2x2", "at most half of it padding"),
        ("conv2d parts", "there is no check 'parts' of such a case"),
        ("conv2d sideways", "'sideways' is not one of forward, backward"),
        ("conv2d backend=opencl", "'opencl' is not one of"),
        ("conv2d isa=mmx", "instruction set 'mmx' cannot run here"),
    ],
)
def test_a_wrong_case_is_one_line(case, message, capsys):
    assert cli.main(["verify", "--case", case]) == 2
    error = capsys.readouterr().err
    assert error.startswith("zfkernels verify: error: --case: ")
    assert message in error
    assert error.count("\n") == 1


def test_a_case_s_memory_is_made_on_its_device(monkeypatch):
    """What moves to another device is dense: a copy to it would make a strided tensor dense, and say nothing."""
    moves, to = [], torch.Tensor.to

    def noted(self, *arguments):
        if arguments == ("cpu",):
            moves.append(self.is_contiguous())
        return to(self, *arguments)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    case = parse("conv2d n=2 c=3 k=4 size=5x5 kernel=3x3 x=normal/strided weight=normal/permuted bias=normal/offset")
    tensors = spec.materialized(case)
    assert not tensors["x"].is_contiguous()
    assert len(moves) == 3
    assert all(moves)


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_seconds_must_be_a_time(seconds, capsys):
    assert main("--seconds", seconds) == 2
    assert "--seconds must be a number of seconds" in capsys.readouterr().err


def test_gradients_are_those_of_torch():
    """The formulas that backward checks rest on, against autograd through torch's own functions in float64."""
    case = parse("conv2d_add backward dtype=float64 n=2 c=3 k=5 size=9x8 kernel=3x2 stride=2x1 flag=1 bias=normal")
    case = case.with_tensor("add", "normal")
    tensors = {name: value.requires_grad_() for name, value in spec.materialized(case).items()}
    x, weight, bias, add = tensors.values()
    y = torch.nn.functional.conv2d(x, weight, bias, (2, 1)).add(add).relu()
    g = torch.randn_like(y)
    ours = gradients.expected(case.op, spec.arguments(case, tensors), (y,), (g,))
    for one, other in zip(torch.autograd.grad(y, (x, weight, bias, add), g), ours, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


# Coverage


def test_every_instance_of_the_cpu_is_run(capsys):
    assert main("--cases", "0", "--coverage", "--ops", "max_unpool2d") == 1  # of the others no case ran
    printed = capsys.readouterr().out
    assert "NOT RUN cpu: baseline float32 conv2d direct, more than 128 outputs" in printed
    assert "NOT RUN cpu: baseline float32 max_unpool2d 2x2" not in printed
    assert main("--cases", "0", "--coverage") == 0
    assert re.search(r"\d{3,} kernel instances, 0 that no case ran", capsys.readouterr().out)


def test_what_is_recorded_is_what_there_is(monkeypatch):
    with coverage.recording(["cpu"]) as ran:
        assert ran == set()
        checks.failure(parse("conv2d n=1 c=5 k=130 size=7x9 kernel=3x3 isa=baseline mode=rows dtype=float16"))
    words = "cpu: baseline float16 conv2d rows"
    assert ran == {f"{words} of 3 taps", f"{words}, more than 128 outputs"}
    assert ran < coverage.expected("cpu")
    assert cpu._C is sys.modules["zfkernels._C"]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_an_interpreted_case_of_the_fused_layer():
    text = "conv2d_relu_max_pool2d forward backend=triton dtype=bfloat16 c=3 k=16 size=7x6 kernel=3x3 padding=1x1 "
    command = [sys.executable, "-m", "zfkernels", "verify", "--case", text + "pool=3x3 pool_stride=2x2 bias=normal"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path}, capture_output=True, text=True
    )
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, and the interpreter is not needed")
    assert done.returncode == 0, done.stdout + done.stderr
