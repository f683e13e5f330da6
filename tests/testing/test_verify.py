"""`zfkernels verify` is green on the backends as they are, and red on each way of breaking one."""

import json
import math

import pytest
import torch
from calls import CALLS

from zfkernels import cli
from zfkernels.backends import cpu
from zfkernels.testing import verify
from zfkernels.testing.cases import FILLS, FIXED_CONVS, GROUPED_CONVS, OPS, Draw, random_pool, values
from zfkernels.testing.compare import BOUNDS, relative_error, windows_of
from zfkernels.testing.memory import LAYOUTS, placed, poisoned_memory
from zfkernels.window import pool_map


def main(*arguments: str) -> int:
    return cli.main(["verify", *arguments])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_sound_backend_passes(backend):
    rows = verify.run(backend, cases=3)
    assert [row for row in rows if row.failure] == []
    assert {(row.op, row.dtype) for row in rows} == {(op, str(d)[6:]) for op in OPS for d in BOUNDS}
    assert all(row.cases > 10 and row.error <= row.bound for row in rows)


def with_nan(out):
    if out.numel():
        out[(-1,) * out.dim()] = math.nan
    return out


def last_row_unwritten(out):
    fresh = torch.empty_like(out)
    fresh[..., :-1, :] = out[..., :-1, :]
    return fresh


def last_maximum_wins(x, kernel, stride, padding, size):
    taps = windows_of(x, kernel, stride, padding, size)
    last = taps.shape[-1] - 1 - taps.flip(-1).argmax(-1)
    return taps.amax(-1), last.to(torch.uint8)


def one_write_wins(y, switches, kernel, stride, padding, size):
    """What torch's max_unpool2d does where two windows chose one pixel."""
    out = y.new_zeros(*y.shape[:2], *size)
    n, c, i, j = torch.meshgrid(*map(torch.arange, y.shape), indexing="ij")
    rows = i * stride[0] + switches.long() // kernel[1] - padding[0]
    columns = j * stride[1] + switches.long() % kernel[1] - padding[1]
    out[n, c, rows, columns] = y
    return out


def ignores_strides(x):
    return torch.as_strided(x, x.shape, torch.empty(x.shape).stride())


sound = {name: getattr(cpu, name) for name in OPS}

BROKEN = [
    ("conv2d", "swapped index", lambda x, w, *a: sound["conv2d"](x, w.flip(2), *a)),
    ("conv2d", "swapped channels", lambda x, w, *a: sound["conv2d"](x.flip(1), w, *a)),
    ("conv2d", "dropped bias", lambda x, w, b, *a: sound["conv2d"](x, w, None, *a)),
    ("conv2d", "dropped ReLU", lambda x, w, b, s, p, relu, *a: sound["conv2d"](x, w, b, s, p, False, *a)),
    ("conv2d", "NaN in one place", lambda *a: with_nan(sound["conv2d"](*a))),
    ("conv2d", "NaN rectified to 0", lambda *a: sound["conv2d"](*a).nan_to_num(0.0, math.inf, -math.inf)),
    ("conv2d", "unwritten row", lambda *a: last_row_unwritten(sound["conv2d"](*a))),
    ("conv2d", "wrong shape", lambda *a: sound["conv2d"](*a)[..., :-1]),
    ("conv2d", "strides ignored", lambda x, *a: sound["conv2d"](ignores_strides(x), *a)),
    ("conv2d", "an exception", lambda *a: 1 / 0),
    ("conv_transpose2d", "filters flipped", lambda y, w, *a: sound["conv_transpose2d"](y, w.flip(2, 3), *a)),
    ("conv_transpose2d", "not rectified", lambda *a: sound["conv_transpose2d"](*a[:5], False, *a[6:])),
    ("conv2d_add", "nothing added", lambda x, w, b, z, *a: sound["conv2d_add"](x, w, b, None, *a)),
    ("conv2d_add", "no cap", lambda *a: sound["conv2d_add"](*a[:7], None, *a[8:])),
    ("conv2d_add", "one group for another", lambda x, *a: sound["conv2d_add"](x.roll(1, 1), *a)),
    ("conv2d_weight_grad", "dropped image", lambda x, g, *a: sound["conv2d_weight_grad"](x[:1], g[:1], *a)),
    ("conv2d_weight_grad", "no bias gradient", lambda *a: (sound["conv2d_weight_grad"](*a)[0], None)),
    ("max_pool2d", "last maximum wins", last_maximum_wins),
    ("max_unpool2d", "collisions not summed", one_write_wins),
    ("max_unpool2d_backward", "shifted by one", lambda g, *a: sound["max_unpool2d_backward"](g.roll(1, -1), *a)),
    ("avg_pool2d", "padding always counted", lambda x, *a: sound["avg_pool2d"](x, *a[:-1], True)),
    ("avg_pool2d", "one pixel more", lambda x, *a: sound["avg_pool2d"](x, *a) * 8 / 9),
    ("avg_pool2d_backward", "not divided", lambda g, k, *a: sound["avg_pool2d_backward"](g, k, *a) * k[0] * k[1]),
    ("contrast_norm", "never centred", lambda *a: sound["contrast_norm"](*a[:-1], False)),
    (
        "contrast_norm",
        "alpha not divided",
        lambda x, size, alpha, *a: sound["contrast_norm"](x, size, alpha * size, *a),
    ),
    (
        "contrast_norm_backward",
        "dropped cross term",
        lambda g, x, size, alpha, *a: sound["contrast_norm_backward"](g, x, size, 0.0, *a),
    ),
    (
        "contrast_norm_backward",
        "window not mirrored",
        lambda g, x, *a: sound["contrast_norm_backward"](g.flip(1), x.flip(1), *a).flip(1),
    ),
    (
        "conv2d_relu_max_pool2d",
        "wrong switches",
        lambda *a: (sound["conv2d_relu_max_pool2d"](*a)[0], 0 * sound["conv2d_relu_max_pool2d"](*a)[1]),
    ),
    (
        "conv2d_relu_max_pool2d",
        "last of a window of zeros wins",
        lambda x, w, b, s, p, *pool: last_maximum_wins(sound["conv2d"](x, w, b, s, p, True), *pool),
    ),
    (
        "max_pool2d_contrast_norm",
        "not normalized",
        lambda *a: (*sound["max_pool2d_contrast_norm"](*a)[:2], sound["max_pool2d_contrast_norm"](*a)[0]),
    ),
    (
        "conv2d_relu_max_pool2d_weight_grad",
        "switches shifted by an image",
        lambda x, g, *a: sound["conv2d_relu_max_pool2d_weight_grad"](x, g.flip(0, 1), *a),
    ),
    (
        "max_unpool2d_relu_conv_transpose2d",
        "not rectified",
        lambda *a: sound["max_unpool2d_relu_conv_transpose2d"](*a[:-1], False),
    ),
]


@pytest.mark.parametrize(("op", "what", "broken"), BROKEN, ids=[f"{op}: {what}" for op, what, _ in BROKEN])
def test_broken_function_fails(monkeypatch, op, what, broken):
    monkeypatch.setattr(cpu, op, broken)
    rows = verify.run("cpu", cases=3, ops=[op])
    assert [row.dtype for row in rows if not row.failure] == []
    assert all("case" in row.failure and not row.error <= row.bound for row in rows)


def test_command_line_reports_failure(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cpu, "conv2d", lambda *a: sound["conv2d"](*a) * 1.01 + 0.01)
    path = tmp_path / "out.json"
    assert main("--backend", "cpu", "--ops", "conv2d,max_pool2d", "--cases", "2", "--json", str(path)) == 1
    printed = capsys.readouterr().out
    assert "FAILED conv2d on cpu in float32" in printed
    assert "FAILED max_pool2d" not in printed
    report = json.loads(path.read_text())
    assert {r["op"] for r in report["results"] if r["failure"]} == {"conv2d"}
    assert report["seed"] == 0
    assert report["isa"]
    assert report["torch"] == torch.__version__


def test_command_line_passes(capsys):
    assert main("--backend", "cpu", "--ops", "max_unpool2d", "--cases", "2", "--seed", "7") == 0
    assert "0 of 4 combinations" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--ops", "conv3d"), "--ops: no op 'conv3d', did you mean 'conv2d'?; the ops are conv2d,"),
        (("--backend", "triton"), "--backend 'triton' cannot run here: "),
        (("--backend", "opencl"), "--backend must be one of "),
        (("--cases", "-1"), "--cases must be at least 0 and at most 1000000, got -1"),
        (("--case", "conv2d backend=triton"), "--case: backend 'triton' cannot run here: "),
    ],
)
def test_command_line_refuses(argv, message, capsys, triton_absent):
    assert main(*argv) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"zfkernels verify: error: {message}")
    assert errors.count("\n") == 1


def test_seed_chooses_the_random_cases():
    def labels(seed):
        return [case.label for case in OPS["conv2d"].cases(seed, 5)]

    assert labels(1) == labels(1)
    assert len(labels(1)) == len(FIXED_CONVS) + len(GROUPED_CONVS) + 2 * 5
    for one, two in zip(labels(1), labels(2), strict=True):
        assert (one == two) == one.startswith("fixed")


@pytest.mark.parametrize(
    ("out", "right", "expected"),
    [
        ([1.0, 2.0], [1.0, 2.0], 0.0),
        ([3.0, 4.0], [3.0, 5.0], 1 / math.sqrt(34)),
        ([math.nan, 2.0], [1.0, 2.0], math.inf),
        ([1.0, 2.0], [math.nan, 2.0], math.inf),
        ([math.nan, 2.0], [math.nan, 2.0], 0.0),
        ([math.inf, 2.0], [-math.inf, 2.0], math.inf),
        ([math.nan, 2.0], [math.inf, 2.0], math.inf),
        ([1e-3, 0.0], [0.0, 0.0], 1e-3),
        ([1.0], [1.0, 1.0], math.inf),
        ([], [], 0.0),
    ],
)
def test_relative_error(out, right, expected):
    assert relative_error(torch.tensor(out), torch.tensor(right)) == pytest.approx(expected)


def test_a_backend_gets_the_memory_that_the_case_names(monkeypatch):
    """Also where its device is another: the tensors are placed there, and moved nowhere after."""
    strided = []

    def watched(x, *settings):
        strided.append(not x.is_contiguous() and not x.is_contiguous(memory_format=torch.channels_last))
        return sound["max_pool2d"](x, *settings)

    moves, to = [], torch.Tensor.to

    def noted(self, *arguments):
        if arguments == ("cpu",):  # to the backend's device
            moves.append(self.is_contiguous())
        return to(self, *arguments)

    monkeypatch.setattr(cpu, "max_pool2d", watched)
    monkeypatch.setattr(torch.Tensor, "to", noted)
    verify.run("cpu", cases=0, ops=["max_pool2d"])
    assert any(strided)
    assert moves
    assert all(moves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_layouts_hold_the_same_values(dtype):
    layouts = (*LAYOUTS, "permuted")
    x = (100 * torch.rand(2, 3, 4, 5)).to(dtype)
    copies = [placed(x, layout) for layout in layouts]
    assert len({copy.stride() for copy in copies}) == len(layouts)
    assert all(torch.equal(copy, x) and copy.data_ptr() != x.data_ptr() for copy in copies)
    vector = torch.rand(7)
    assert [placed(vector, layout).stride() for layout in layouts] == [(1,), (1,), (1,), (2,)]


def test_random_poolings_have_torchs_sizes():
    for index in range(50):
        n, c, size, kernel, stride, padding, ceil = random_pool(Draw(3, "pool", index, False))
        y = torch.nn.functional.max_pool2d(torch.zeros(n, c, *size), kernel, stride, padding, ceil_mode=ceil)
        assert pool_map(size, kernel, stride, padding, ceil) == tuple(y.shape[2:])


def test_fills_hold_what_they_say():
    filled = {fill: values((2, 9, 9, 8), fill, torch.Generator().manual_seed(1)) for fill in FILLS}
    assert filled["normal"].isfinite().all()
    assert not filled["zeros"].any()
    assert torch.equal(filled["ties"], filled["ties"].round())
    assert {"nan", "inf", "-inf"} <= {str(value) for value in filled["nonfinite"].flatten().tolist()}
    assert filled["nonfinite"].isfinite().double().mean() > 0.9


@pytest.mark.parametrize("call", [c for c in CALLS if c.fill == "nonfinite"], ids=lambda call: call.id)
def test_calls_with_nonfinite_tensors_leave_finite_results_to_compare(call):
    (first, *_) = call.tensors(torch.float64).values()
    assert not first.isfinite().all()
    result = call.run(call.tensors(torch.float64), "reference")[0]
    assert 0.1 < result.isfinite().double().mean() < 1


def test_poisoned_memory_holds_nan_and_ends():
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with poisoned_memory():
        assert torch.empty(3).isnan().all()
        assert (torch.empty(3, dtype=torch.uint8) == 255).all()
    assert before == (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
