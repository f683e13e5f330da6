"""torch.compile(model, backend="zfkernels"): what networks give, in which memory, by which graph."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from compiled import NETWORKS, Through, check, compiled, conv, flat, images, inputs_of, made, residual
from torch import nn

from zfkernels import _C
from zfkernels.compiler import backend, choice, match
from zfkernels.compiler.program import Program
from zfkernels.testing.weights import randomised

ROOT = Path(__file__).parents[2]


BY_NAME = """
import os, sys, torch
if os.fork() == 0:
    import zfkernels, zfkernels.nn
    os._exit(any("zfkernels.comp" in name for name in sys.modules))
assert os.wait()[1] == 0, "importing the package imports the compiler"
model = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3), torch.nn.ReLU()).eval()
assert "zfkernels" not in sys.modules
fast, x = torch.compile(model, backend="zfkernels"), torch.randn(1, 3, 9, 9)
with torch.no_grad():
    torch.testing.assert_close(fast(x), model(x))
assert "zfkernels.compiler.program" in sys.modules
"""


def test_found_by_its_name_without_an_import(tmp_path):
    """Through the entry point of pyproject.toml, as an installed package states it."""
    text = (ROOT / "pyproject.toml").read_text()
    (entry,) = re.findall(r"entry-points.torch_dynamo_backends\]\n(.+)\n", text)
    stated = tmp_path / "stated-1.dist-info"
    stated.mkdir()
    (stated / "METADATA").write_text("Metadata-Version: 2.1\nName: stated\nVersion: 1\n")
    (stated / "entry_points.txt").write_text("[torch_dynamo_backends]\n" + entry.replace('"', "") + "\n")
    path = os.pathsep.join([str(tmp_path), str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", BY_NAME], check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})


@pytest.mark.parametrize("name", NETWORKS)
def test_values_for_any_batch_size_and_layout(name):
    model = made(name)
    call, watched = compiled(model)
    for n in (2, 1, 5, 2):
        check(model, call, *inputs_of(name, n))
    if name != "dense":  # whose view of a map only one layout allows
        inputs = inputs_of(name)
        check(model, call, *(x.contiguous(memory_format=torch.channels_last) for x in inputs))
        check(model, call, *(x.transpose(2, 3) for x in inputs))
    assert len(watched.programs) == watched.graphs > 0


def test_images_of_another_size():
    model = made("spaced")
    call, _ = compiled(model, dynamic=True)
    for side in (20, 33, 20, 7):
        check(model, call, images(3, side))


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_other_dtypes(dtype, bound):
    for name in ("residual", "mobile", "dense"):
        model = made(name, torch.float32).to(dtype)
        call, _ = compiled(model)
        check(model, call, *inputs_of(name, dtype=dtype), bound=bound)


def test_what_becomes_one_kernel():
    _, watched = run("residual")
    convs = [step for step in watched.programs[0].steps if isinstance(step, match.Conv)]
    assert len(convs) == 6  # the stem, two blocks' two, the second one's shortcut
    assert [c.pool for c in convs if c.pool] == [((3, 3), (2, 2), (1, 1), False)]
    assert sum(c.add is not None for c in convs) == 2
    assert sum(c.norm is not None for c in convs) == 5
    assert [step.target for step in watched.programs[0].steps if not isinstance(step, match.Conv)] == [
        F.adaptive_avg_pool2d,
        "flatten",
        torch._C._nn.linear,
    ]
    _, watched = run("padded")
    assert [getattr(step, "target", None) for step in watched.programs[0].steps].count(torch._C._nn.pad) == 3
    _, watched = run("mobile")
    convs = [step for step in watched.programs[0].steps if isinstance(step, match.Conv)]
    assert sorted(c.cap for c in convs if c.relu) == [4, 6, 6]
    assert sorted(c.groups for c in convs) == [1, 1, 1, 16, 32]


def run(name):
    call, watched = compiled(made(name))
    with torch.no_grad():
        call(*inputs_of(name))
    return call, watched


def test_averages_go_by_our_kernel(monkeypatch):
    calls, avg_pool2d = [], _C.avg_pool2d
    monkeypatch.setattr(_C, "avg_pool2d", lambda *a: calls.append(a) or avg_pool2d(*a))
    _, watched = run("averaged")
    assert len(calls) == 9
    (plan,) = watched.programs[0].made.plans.values()
    kept = [one for run_, _ in plan.calls for one in getattr(run_, "members", [run_])]
    assert sum("average_run" in one.__qualname__ for one in kept) == 9


def test_kernels_are_called_and_filters_packed_once(monkeypatch):
    from zfkernels.backends.prepared import PreparedFilters

    packed = []
    pack = PreparedFilters._pack
    monkeypatch.setattr(PreparedFilters, "_pack", lambda self, *a: packed.append(self) or pack(self, *a))
    call, watched = run("residual")
    assert len(packed) == len(set(packed)) == 6
    with torch.no_grad():
        for _ in range(3):
            call(images())
    assert len(packed) == 6
    assert len(watched.programs[0].made.plans) == 1


def test_gradients_and_training_are_torchs():
    model = residual().train()
    call, watched = compiled(model)
    twin = residual().train()
    twin.load_state_dict(model.state_dict())
    x = images(4)
    for _ in range(2):
        out, expected = call(x), twin(x)
        torch.testing.assert_close(out, expected)
        out.square().sum().backward(), expected.square().sum().backward()
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-4)
    for (name, a), b in zip(model.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    assert not watched.programs
    model.eval()  # and then it is measured
    check(model, call, x)
    assert watched.programs
    call(x).sum().backward()  # and asked for gradients in evaluation mode
    with torch.no_grad():  # and without, but with statistics of the batch
        model.train()
        torch.testing.assert_close(call(x), twin(x), rtol=1e-4, atol=1e-5)


def test_a_gradient_of_the_images():
    model = made("residual")
    call, _ = compiled(model)
    x = images().requires_grad_()
    (got,) = torch.autograd.grad(call(x).square().sum(), x)
    (expected,) = torch.autograd.grad(model(x).square().sum(), x)
    torch.testing.assert_close(got, expected)


def test_autocast_is_torchs():
    model = made("residual")
    call, watched = compiled(model)
    x = images()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(call(x), model(x))
    assert not watched.programs
    inside = Through(lambda self, x: within(self.net, x), net=model)
    call, watched = compiled(inside)
    with torch.no_grad():
        torch.testing.assert_close(call(x), inside(x))


def within(model, x):
    with torch.autocast("cpu", torch.bfloat16):
        return model(x)


def test_inference_mode():
    model = made("residual")
    call, watched = compiled(model)
    x = images()
    with torch.inference_mode():
        torch.testing.assert_close(call(x), model(x), rtol=1e-4, atol=1e-5)
        made_here = residual().eval()
        other, _ = compiled(made_here)
        for _ in range(2):
            torch.testing.assert_close(other(x), made_here(x), rtol=1e-4, atol=1e-5)
            made_here[0][0].weight.mul_(2)
    assert len(watched.programs) == 1


def test_writes_that_somebody_sees():
    """Into the input, into a part of a map, into a map of which a view is read."""

    def into_input(self, x):
        return self.first(F.relu_(x))

    def into_part(self, x):
        y = self.first(x)
        y[:, 0] = 7
        return y.relu()

    def under_view(self, x):
        y = self.first(x)
        part = y[:, 1:3]
        z = self.second(part)
        y.relu_()
        return part, z

    def whole_and_part(self, x):
        y = torch.cat([self.first(x), x], 1)
        part = y[:, 1:3]
        part += 1
        return y, part

    def earlier_reader(self, x):
        y = self.first(x)
        z = self.third(y)
        y.relu_()
        return z.relu(), y

    for forward in (into_input, into_part, under_view, whole_and_part, earlier_reader):
        layers = {"first": conv(3, 16), "second": conv(2, 16), "third": conv(16, 16)}
        model = randomised(Through(forward, **layers), images())
        call, _ = compiled(model)
        for _ in range(2):
            one, two = images(), None
            two = one.clone()
            outs, expected = flat(call(one)), flat(model(two))
            for a, b in zip(outs, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
            assert torch.equal(one, two)


@pytest.mark.parametrize("faster", ["ours", "onednn"])
@pytest.mark.parametrize("act", [nn.Identity(), nn.ReLU(), nn.ReLU6()], ids=["plain", "relu", "relu6"])
def test_non_finite_values_pass(monkeypatch, faster, act):
    monkeypatch.setattr(choice, "fastest", lambda *_: [2.0, 1.0 if faster == "onednn" else 3.0])
    model = nn.Sequential(conv(3, 16), nn.BatchNorm2d(16), act).eval()
    call, _ = compiled(model)
    x = images()
    x[0, 1, 5, 5], x[1, 0, 3, 3] = float("nan"), float("inf")
    with torch.no_grad():
        out, expected = call(x), model(x)
    assert torch.equal(out.isnan(), expected.isnan())
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_wrong_calls_raise_as_torchs():
    model = made("spaced")
    call, _ = compiled(model)
    with torch.no_grad(), pytest.raises(Exception, match="channels"):
        call(torch.randn(2, 5, 20, 20))


def test_modes_and_options():
    model, x = made("residual"), images()
    for options in ({"mode": "max-autotune"}, {"mode": "reduce-overhead"}, {"options": {"watch_values": False}}):
        call, watched = compiled(model, **options)
        check(model, call, x)
        assert isinstance(watched.programs[0], Program)
    for options, message in (
        ({"options": {"watch": True}}, "options may hold watch_values"),
        ({"options": {"watch_values": 1}}, "watch_values"),
    ):
        call, _ = compiled(model, **options)
        with torch.no_grad(), pytest.raises(Exception, match=message):
            call(x)
    with pytest.raises(ValueError, match=r"mode must be one of .*'max-autotune'.*, got 'fast'"):
        backend(None, (), mode="fast")


def test_exact_sums_when_asked():
    import zfkernels as zf

    model = randomised(nn.Sequential(conv(64, 64), nn.ReLU()), torch.randn(1, 64, 28, 28))
    x = torch.randn(1, 64, 28, 28)
    call, _ = compiled(model)
    with torch.no_grad():
        fast = call(x)
        with zf.use_exact(True):
            exact = call(x)
            assert torch.equal(exact, zf.conv2d_relu(x, model[0].weight, model[0].bias, 1, 1))
        assert not torch.equal(fast, exact)
        assert torch.equal(fast, call(x))


def test_a_dispatch_mode_sees_every_op():
    from torch.utils.flop_counter import FlopCounterMode

    model, x = made("residual"), images()
    call, watched = compiled(model)
    expected = check(model, call, x)
    program, given = watched.programs[0], []
    watched.programs[0].made.sources.same = lambda tensors: given.append(tensors) or True
    with torch.no_grad():
        call(x)
    inputs = [*given[0]]
    order = [n.name for n in program.gm.graph.nodes if n.op == "placeholder"]
    arguments = [x] * len(order)
    for place, tensor in zip(program.watched, inputs, strict=True):
        arguments[place] = tensor
    linear = model[3][2]
    for place in program.data:
        arguments[place] = {"weight_": linear.weight, "bias_": linear.bias}.get(
            order[place].rpartition("parameters_")[2], x
        )
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        (out,) = program(*arguments)
    assert counted.get_total_flops() > 0
    torch.testing.assert_close(out, expected[0], rtol=1e-4, atol=1e-5)


def test_our_own_network():
    from small import SMALL

    import zfkernels as zf

    model = zf.ZFNet(**SMALL).eval()
    call, _ = compiled(model)
    check(model, call, images(2, 48))


def test_maps_share_memory_when_nobody_reads_them_any_more():
    model = randomised(nn.Sequential(*[conv(16, 16), nn.ReLU()] * 6), torch.randn(1, 16, 24, 24))
    call, watched = compiled(model, options={"tune": False})
    x = torch.randn(1, 16, 24, 24)
    with torch.no_grad():
        call(x)
    (plan,) = watched.programs[0].made.plans.values()
    freed = [i for _, dead in plan.calls for i in dead]
    assert len(freed) == len(set(freed))
    assert sum(len(dead) for _, dead in plan.calls[1:]) >= 5
    places = plan.layout.places
    assert len(places) == 5  # not the result's
    assert {at for at, _ in places} == {0, places[0][1].bytes}


def test_parts_are_written_where_they_belong(monkeypatch):
    """Of a concatenation's parts only what no convolution makes is copied, once."""
    copied = []
    copy = torch.Tensor.copy_
    monkeypatch.setattr(torch.Tensor, "copy_", lambda to, value: copied.append(tuple(value.shape)) or copy(to, value))
    of_joined = [(2, 3), (2, 27), (2, 8), (2, 16), (2, 8)]  # images; a concatenation and a sum; two pooled maps
    for name, parts, copies in (("dense", [3], []), ("joined", [3, 3, 3, 2], of_joined)):
        model, inputs = made(name), inputs_of(name)
        call, watched = compiled(model, options={"tune": False})
        with torch.no_grad():
            call(*inputs)
            copied.clear()
            call(*inputs)
        (program,) = watched.programs
        assert [len(join.parts) for join in program.joins.all] == parts
        assert [shape[:2] for shape in copied] == copies


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_given_back_stays(name):
    """Later calls, one after another and two at a time, write into memory of their own."""
    model = made(name)
    call, _ = compiled(model, options={"tune": False})
    with torch.no_grad():
        inputs = [inputs_of(name) for _ in range(8)]
        outs = [flat(call(*x)) for x in inputs]
        kept = [[out.clone() for out in each] for each in outs]
        again = [flat(call(*x)) for x in reversed(inputs)][::-1]

        def one(x):
            with torch.no_grad():
                return flat(call(*x))

        with ThreadPoolExecutor(2) as pool:
            at_once = list(pool.map(one, inputs * 4))
    for i, each in enumerate(kept):
        for versions in zip(each, outs[i], again[i], *at_once[i::8], strict=True):
            assert all(torch.equal(versions[0], v) for v in versions[1:])


@pytest.mark.parametrize("faster", ["ours", "onednn"])
def test_either_kernel_is_right_and_the_faster_stays(monkeypatch, faster):
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    measured, made_by_onednn = [], []
    monkeypatch.setattr(
        choice, "fastest", lambda runs, r: measured.append(runs) or [2.0, 1.0 if faster == "onednn" else 3]
    )
    run = choice.onednn_run
    monkeypatch.setattr(choice, "onednn_run", lambda *a: made_by_onednn.append(a[0]) or run(*a))
    for name in ("residual", "mobile", "dense", "spaced"):
        model = made(name)
        call, watched = compiled(model)
        for n in (2, 3):
            check(model, call, *inputs_of(name, n))
        with torch.no_grad():
            model.get_parameter(next(iter(dict(model.named_parameters())))).mul_(1.1)
        check(model, call, *inputs_of(name, 3))
        assert bool(watched.programs[0].made.filters) == (faster == "ours") or name != "residual"
    assert measured
    assert len(made_by_onednn) > (len(measured) if faster == "onednn" else 0)
    call, _ = compiled(model, options={"tune": False})
    measured.clear()
    check(model, call, images())
    assert not measured


def test_a_spent_budget_goes_by_what_is_known(monkeypatch):
    monkeypatch.setattr(choice, "BUDGET", -1.0)
    monkeypatch.setattr(choice, "fastest", lambda *_: pytest.fail("the budget is spent"))
    model = made("residual")
    call, _ = compiled(model)
    check(model, call, images())
