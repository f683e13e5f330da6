"""`zfkernels bench --jobs nets`: who computes what is right, on a small network in the place of the real ones."""

import dataclasses

import nets as plain
import pytest
import torch
from conftest import error

from zfkernels import cli, deconvnet
from zfkernels.bench import jobs, measure, modified, nets, peers
from zfkernels.bench.run import select
from zfkernels.testing.weights import pictures, randomised

SMALL = nets.Net("AlexNet, narrow", "torch", "alexnet", ("features.2", "features.5", "features.12"))
TERMS = peers.Setting(threads=1, peers=("eager", "autograd"))
KINDS = ("one-early", "one-late", "nine-early", "nine-middle", "saliency", "folder", "occlusion", "top")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Every job's network is a narrow AlexNet."""
    torch.use_deterministic_algorithms(False)
    model = randomised(plain.alexnet(width=12), pictures(224).float()).to(memory_format=torch.channels_last)
    monkeypatch.setattr(nets, "network", lambda net, device, dtype: model)
    monkeypatch.setattr(nets, "NETS", {"small": SMALL})
    for name, net, text, build, n in nets.jobs():
        monkeypatch.setitem(jobs.JOBS, name, jobs.Job(text, build, "nets", (n,), net.missing))
    return model


def made(kind: str, setting: peers.Setting = TERMS) -> peers.Case:
    with torch.no_grad():
        return jobs.make(f"small-{kind}", jobs.JOBS[f"small-{kind}"].sizes[0], setting)


@pytest.mark.parametrize("kind", KINDS)
def test_every_contender_is_right(kind):
    with torch.no_grad():
        case = made(kind)
        found = measure.errors(case)
    assert len(found) > 1
    assert max(found.values()) <= nets.BOUND == case.setting.bound, found


def test_captum_is_right_where_it_is_installed():
    pytest.importorskip("captum")
    with torch.no_grad():
        for kind in ("one-middle", "saliency", "occlusion"):
            found = measure.errors(made(kind, peers.Setting(threads=1, peers=("captum",))))
            assert set(found) == {"zfkernels", "captum"}
            assert max(found.values()) <= nets.BOUND, (kind, found)


@pytest.mark.parametrize("kind", ["one-late", "nine-middle", "folder"])
def test_a_wrong_projection_has_no_time(monkeypatch, kind):
    sound = deconvnet.Deconvnet.project

    def wrong(self, *args, **settings):
        p = sound(self, *args, **settings)
        return p._replace(pixels=p.pixels * 1.005)

    monkeypatch.setattr(deconvnet.Deconvnet, "project", wrong)
    with torch.no_grad():
        row = measure.measure(made(kind), measure.QUICK)
    assert row["errors"]["zfkernels"] > nets.BOUND
    assert row["ms"] == {}


@pytest.mark.parametrize("kind", ["occlusion", "top"])
def test_a_wrong_answer_has_no_time(monkeypatch, kind):
    covered, strongest = nets.occlusion_map, nets.top_activations

    def wrong_map(*args, **settings):
        found = covered(*args, **settings)
        return dataclasses.replace(found, logit=found.logit * 1.01)

    monkeypatch.setattr(nets, "occlusion_map", wrong_map)
    monkeypatch.setattr(nets, "top_activations", lambda *args: strongest(*args)._replace(values=torch.ones(72, 9)))
    with torch.no_grad():
        found = measure.errors(made(kind))
    assert found.pop("zfkernels") > nets.BOUND
    assert max(found.values()) <= nets.BOUND


def test_a_network_that_is_refused_has_no_time_and_says_why(monkeypatch):
    def refuse(model):
        raise NotImplementedError("no reverse of it")

    monkeypatch.setattr("zfkernels.Deconvnet", refuse, raising=False)
    with torch.no_grad():
        row = measure.measure(made("nine-early"), measure.QUICK)
    assert row["missing"]["zfkernels"] == "no reverse of it"
    assert row["ms"] == {}


def test_absent_packages_are_told_once(monkeypatch, capsys):
    absent = SMALL._replace(package="not_installed_anywhere")
    for kind in ("top", "saliency"):
        monkeypatch.setitem(jobs.JOBS, f"small-{kind}", jobs.JOBS[f"small-{kind}"]._replace(missing=absent.missing))
    monkeypatch.setattr(
        "zfkernels.bench.ceilings.measured", lambda *_: pytest.importorskip("test_benchmarks").small_ceilings()
    )
    assert cli.main(["bench", "--jobs", "small-top,small-saliency", "--threads", "1"]) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("left out")]
    assert told == ["left out: AlexNet, narrow needs not_installed_anywhere: pip install 'zfkernels[nets]'"]


def test_jobs_are_chosen_by_network_and_group():
    assert set(select("resnet50")) == {name for name in jobs.JOBS if name.startswith("resnet50-")}
    assert set(select("nets")) == {name for name, job in jobs.JOBS.items() if job.group == "nets"}
    assert not set(select("")) & set(select("nets"))
    assert select("vgg16-nine-late") == ["vgg16-nine-late"]


# The peer


@pytest.mark.parametrize("method", ["deconvnet", "gradient", "guided"])
@pytest.mark.parametrize("batched", [True, False])
def test_the_modified_autograd_is_the_modified_gradient(method, batched):
    model = randomised(torch.nn.Sequential(plain.MobileNet(), torch.nn.Identity()), pictures(40))
    images = pictures(40, 1)
    value = modified.value_of(model, "0.expand", images)
    channels, positions = nets.strongest(value, 4)
    pixels = modified.project(model, "0.expand", images, [0] * 4, channels, positions, method, batched)
    for i, (channel, place) in enumerate(zip(channels.tolist(), positions.tolist(), strict=True)):
        expected = plain.modified_gradient(
            lambda x: model[0].expand(model[0].stem(x)), images, channel, place, method=method
        )
        assert error(pixels[i], expected[0][0]) < 1e-12


def test_nothing_above_the_layer_is_run():
    above = torch.nn.Conv2d(4, 4, 3)
    above.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), above)
    assert modified.value_of(model, "0", torch.zeros(1, 3, 5, 5)).shape == (1, 4, 3, 3)
    model[0].unused = torch.nn.ReLU()
    with pytest.raises(ValueError, match=r"layer '0.unused' is not reached"):
        modified.value_of(model[:1], "0.unused", torch.zeros(1, 3, 5, 5))
