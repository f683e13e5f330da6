"""The randomisation check: its measures against other implementations, what it randomises, and what it must find."""

import copy
import json

import nets
import numpy as np
import pytest
import torch
from scipy import stats
from skimage import metrics
from torch import nn

import zfkernels as zf
from zfkernels import cli
from zfkernels.analyses import sanity
from zfkernels.analyses.sanity import sanity_check, ssim
from zfkernels.models import checkpoint


def test_ranks_and_similarity_equal_other_implementations():
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(3, 23, 31, generator=generator, dtype=torch.float64).round(decimals=1)  # with ties
    b = (a + torch.rand(a.shape, generator=generator, dtype=torch.float64)).round(decimals=1)
    rank = sanity._correlation(sanity._ranks(a.flatten()), sanity._ranks(b.flatten()))
    assert rank == pytest.approx(stats.spearmanr(a.flatten(), b.flatten()).statistic, rel=1e-12)
    one, other = sanity._unit(a), sanity._unit(b)
    _, full = metrics.structural_similarity(
        one.numpy(),
        other.numpy(),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=1.0,
        full=True,
    )
    assert ssim(one, other) == pytest.approx(np.mean(full[5:-5, 5:-5]), rel=1e-9)
    assert ssim(one, one) == pytest.approx(1.0)
    assert -1 <= ssim(one[:4, :6], other[:4, :6]) < 1


def test_layers_from_the_top_and_only_those_below_the_unit():
    net, image = nets.alive(nets.ResNet()), nets.images(1, 45, 38)[0]
    result = sanity_check(net, image, "layer1.0.conv2", repeats=1)
    assert [stage.module for stage in result.stages] == [
        "layer1.0.bn2",
        "layer1.0.conv2",
        "layer1.0.bn1",
        "layer1.0.conv1",
        "bn1",
        "conv1",
    ]
    names = [stage.module for stage in sanity_check(net, image, repeats=1).stages]
    assert names[0] == "fc"
    assert names[-1] == "conv1"
    owners = {name for name, m in net.named_modules() if list(m.parameters(recurse=False))}
    assert set(names) == owners


def test_the_model_is_left_alone_and_the_seed_decides():
    net, image = nets.alive(nets.Functional()), nets.images(1, 41, 35)[0]
    before = copy.deepcopy(net.state_dict())
    first, again, other = (sanity_check(net, image, "pool_2", repeats=2, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert first.stages == again.stages
    assert torch.equal(first.pictures, again.pictures)
    assert first.stages != other.stages
    assert sanity_check(net, image, "pool_2", repeats=1, seed=1).stages != first.stages, "each repeat has its own noise"


def test_weights_are_noise_of_the_same_size():
    net = nn.Conv2d(3, 64, 7)
    with torch.no_grad():
        net.weight.mul_(3).add_(0.2)
    before = copy.deepcopy(net)
    with torch.no_grad():
        sanity.randomise(net, torch.Generator().manual_seed(0))
    for name in ("weight", "bias"):
        old, new = getattr(before, name).detach(), getattr(net, name).detach()
        assert abs(float(new.std() / old.std()) - 1) < 0.3
        assert abs(float(np.corrcoef(old.flatten(), new.flatten())[0, 1])) < 0.3
    assert float(net.weight.detach().mean()) == pytest.approx(float(before.weight.detach().mean()), abs=0.05)


def test_the_stages_are_the_cascade():
    """Stage k is the projection of the same unit, at value 1, through a copy whose top k + 1 modules are noise."""
    net, image = nets.alive(nets.vgg11()), nets.images(1, 64, 64)[0]
    result = sanity_check(net, image, "features.6", repeats=1, seed=3)
    noisy, generator = copy.deepcopy(net), torch.Generator().manual_seed(3 * 1_000_003)
    for k, stage in enumerate(result.stages):
        with torch.no_grad():
            sanity.randomise(noisy.get_submodule(stage.module), generator)
        p = zf.Deconvnet(noisy).project(image[None], "features.6", result.channel, result.position)
        expected = p.pixels[0] / p.values[0]
        if p.values[0] > 0:
            torch.testing.assert_close(result.pictures[k], expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        result.original * float(zf.Deconvnet(net).activations(image[None], "features.6")[0, result.channel].max()),
        zf.Deconvnet(net).project(image[None], "features.6", result.channel).pixels[0],
    )


def test_an_edge_detector_is_found_out():
    """A picture that weights have no say in scores 1 at each stage, one that is all weights about 0."""

    class Edges(nn.Module):
        def __init__(self):
            super().__init__()
            self.edge = nn.Conv2d(1, 4, 3, bias=False)
            self.top = nn.Conv2d(4, 1, 1, bias=False)
            with torch.no_grad():
                self.edge.weight.fill_(0)
                self.edge.weight[:, 0, 1, 0] = torch.tensor([1.0, 1.0, 1.0, 1.0])
                self.edge.weight[:, 0, 1, 2] = -1.0
                self.top.weight.fill_(0.25)

        def forward(self, x):
            return self.top(torch.relu(self.edge(x)))

    image = torch.rand(1, 12, 12, generator=torch.Generator().manual_seed(1))
    result = sanity_check(Edges(), image, "top", repeats=2)
    # All of the top's weights are equal, so noise of their mean and deviation changes nothing.
    assert [stage.module for stage in result.stages] == ["top", "edge"]
    assert result.stages[0].rank == pytest.approx(1)
    assert result.stages[0].ssim == pytest.approx(1)
    assert result.stages[1].rank < 0.9
    learned = nets.alive(nets.vgg11())
    result = sanity_check(learned, nets.images(1, 64, 64)[0], "features.8", repeats=3)
    assert abs(result.stages[-1].rank) < 0.3


def test_stages_without_a_picture_are_counted():
    net, image = nets.alive(nets.vgg11()), nets.images(1, 64, 64)[0]
    stage = sanity.compared("x", image, [torch.zeros_like(image), image], (0, 0, 64, 64))
    assert (stage.empty, stage.rank) == (1, pytest.approx(1))
    assert np.isnan(sanity.compared("x", image, [torch.zeros_like(image)], (0, 0, 64, 64)).rank)
    assert sanity_check(net, image, "features.0", repeats=1, method="guided").method == "guided"


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"layer": "conv9"}, ValueError, "layer must be one of"),
        ({"repeats": 0}, ValueError, "repeats must be at least 1, got 0"),
        ({"repeats": 2**31 - 1}, ValueError, "repeats=2147483647 pictures for each of 2 modules need .* GB of memory"),
        ({"repeats": 2**63}, ValueError, "repeats must be at most 2147483647"),
        ({"progress": "line"}, ValueError, "progress must be True, False or \"lines\", got 'line'"),
        ({"method": "lime"}, ValueError, "method must be one of deconvnet, gradient, guided, got 'lime'"),
        ({"channel": 99}, ValueError, "channel must be from 0 to"),
        ({"image": torch.zeros(2, 3, 64, 64, dtype=torch.float64)}, ValueError, r"one image, .*got shape"),
    ],
)
def test_wrong_calls_name_the_argument(change, error, words):
    call = {"model": nets.alive(nets.vgg11()), "image": nets.images(1, 64, 64)[0], "layer": "features.3"} | change
    with pytest.raises(error, match=words):
        sanity_check(**call)


def test_the_command(tmp_path, capsys):
    from PIL import Image

    torch.manual_seed(0)
    arguments = {"num_classes": 2, "image_size": 64, "channels": (4, 6, 6, 6, 5), "fc": (8, 8), "weight_std": None}
    network = checkpoint.Network(
        zf.ZFNet(**arguments).eval(),
        ["a", "b"],
        torch.full((3, 64, 64), 100.0),
        torch.tensor(16.0).view(1, 1, 1),
        (64, 64),
    )
    checkpoint.save(tmp_path / "zfnet.pt", network, arguments)
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "p.png")
    call = [
        "sanity",
        tmp_path / "p.png",
        "--weights",
        tmp_path / "zfnet.pt",
        "--layer",
        "conv4",
        "--channel",
        2,
        "--method",
        "guided",
        "--repeats",
        2,
        "--out",
        tmp_path / "s.png",
        "--json",
        tmp_path / "s.json",
    ]
    assert cli.main([str(part) for part in call]) == 0
    image = (torch.from_numpy(pixels).permute(2, 0, 1).float() - 100) / 16
    expected = sanity_check(network.model, image, "conv4", 2, method="guided", repeats=2)
    found = json.loads((tmp_path / "s.json").read_text())
    assert [stage["module"] for stage in found["stages"]] == ["conv4", "conv3", "conv2", "conv1"]
    for stage, row in zip(expected.stages, found["stages"], strict=True):
        assert (row["rank"] is None) == (stage.rank != stage.rank)
        assert row["rank"] is None or row["rank"] == pytest.approx(stage.rank)
    printed = capsys.readouterr().out
    assert "conv4, map 2" in printed
    assert "randomised down to" in printed
    with Image.open(tmp_path / "s.png") as picture:
        assert picture.width > 600


def test_the_table_and_the_figure_have_a_stage_each():
    stages = [
        sanity.Stage("top", 0.5, -0.25, 1.0, 0),
        sanity.Stage("bottom", float("nan"), float("nan"), float("nan"), 3),
    ]
    pictures = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    result = sanity.Sanity("top", 4, (1, 2), "guided", (0, 0, 6, 6), stages, pictures[0], pictures)
    assert sanity.table(result, 3).splitlines() == [
        "unit        top, map 4, place (1, 2); guided",
        "randomised down to    rank  |rank|    SSIM",
        "top                   0.50   -0.25    1.00",
        "bottom                 nan     nan     nan  (3 of 3 empty)",
    ]
    drawn = sanity.figure(result, torch.zeros(3, 6, 6, dtype=torch.uint8))
    assert [axes.get_title().partition("\n")[0] for axes in drawn.axes] == [
        "what the unit sees",
        "trained",
        "top",
        "bottom",
    ]
    assert drawn.axes[2].get_title().endswith("rank 0.50  |rank| -0.25  SSIM 1.00")
