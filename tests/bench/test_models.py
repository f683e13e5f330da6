"""`zfkernels bench --jobs models`: every contender on a small network in the place of the real ones."""

import nets as plain
import pytest
import torch

from zfkernels.bench import jobs, measure, models, nets, peers
from zfkernels.bench.run import select
from zfkernels.compiler import program

SMALL = nets.Net("AlexNet, narrow", "torch", "alexnet", ("", "", ""))


@pytest.fixture
def case(monkeypatch):
    model = plain.alexnet(width=12).eval().requires_grad_(False)
    monkeypatch.setattr(models, "model_of", lambda net, dtype: model)

    def made(*names):
        with torch.no_grad():
            return models.logits(SMALL, 2, peers.Setting(threads=1, peers=names))

    return made


def test_every_contender_is_right(case):
    made = case("eager", "ort", "openvino")
    with torch.no_grad():
        found = measure.errors(made)
    assert {"zfkernels", "eager nchw", "eager nhwc"} <= set(found)
    assert max(found.values()) <= made.setting.bound == 1e-5, found
    assert set(made.missing.values()) <= {"not installed"}


def test_a_wrong_answer_has_no_time(case, monkeypatch):
    monkeypatch.setattr(program.Program, "__call__", lambda self, *args: (torch.ones(2, 5),))
    with torch.no_grad():
        row = measure.measure(case("eager nchw"), measure.QUICK)
    assert row["ms"] == {}


def test_jobs_by_name_and_group():
    group = [name for name, job in jobs.JOBS.items() if job.group == "models"]
    assert select("models") == group
    assert len(group) == 9
    assert not set(select("")) & set(group)
    assert select("model-resnet18") == ["model-resnet18"]


@pytest.mark.parametrize("key", ["resnet18", "zfnet"])
def test_the_real_networks_are_built(key):
    net = models.NAMES[key]
    if net.missing():
        pytest.skip(net.missing())
    model = models.model_of(net, torch.float32)
    assert not model.training
    with torch.no_grad():
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)
