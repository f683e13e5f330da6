"""Moved, scaled and turned images: identities that hold for every network, and exact transforms."""

import pytest
import torch
from small import inputs, network, photographs
from torch import nn

from zfkernels import Deconvnet
from zfkernels.analyses import invariance


@pytest.mark.parametrize("transform", invariance.TRANSFORMS)
def test_a_curve_starts_at_0_and_at_the_clear_probability(transform):
    model, x = network(), inputs(photographs(3))
    still = 1.0 if transform == "scale" else 0.0
    labels = torch.tensor([0, 1, 2])
    result = invariance.invariance(model, x, ["conv1", "fc7"], {transform: [still, 1.5, 9.0]}, labels=labels)
    (curve,) = result.curves
    assert (curve.transform, curve.parameters) == (transform, [still, 1.5, 9.0])
    clear = model(x).softmax(1)[labels, labels].detach()
    assert torch.allclose(curve.probability[:, 0], clear, atol=1e-6)
    for layer in ("conv1", "fc7"):
        assert curve.distances[layer].shape == (3, 3)
        assert not curve.distances[layer][:, 0].any()
        assert (curve.distances[layer][:, 1:] > 0).all()
        features = Deconvnet(model).activations(x, layer).flatten(1)
        moved = Deconvnet(model).activations(invariance.transformed(x, transform, 9.0), layer).flatten(1)
        assert torch.allclose(curve.distances[layer][:, 2], (moved - features).norm(dim=1), rtol=1e-5)
        assert torch.allclose(result.norms[layer], features.norm(dim=1))


def test_quarter_turns_whole_shifts_and_magnifications_are_exact():
    x = torch.randn(2, 3, 9, 9)
    for quarter in (1, 2, 3):
        found = invariance.transformed(x, "rotation", 90.0 * quarter)
        assert torch.allclose(found, torch.rot90(x, quarter, (2, 3)), atol=1e-5)
    assert torch.equal(invariance.transformed(x, "rotation", 360), x)
    down = invariance.transformed(x, "translation", 2, fill=7.0)
    assert torch.equal(down[:, :, 2:], x[:, :, :-2])
    assert (down[:, :, :2] == 7).all()
    up = invariance.transformed(x, "translation", -3)
    assert torch.equal(up[:, :, :-3], x[:, :, 3:])
    assert not up[:, :, -3:].any()
    assert not invariance.transformed(x, "translation", 50).any()
    half = invariance.transformed(x, "translation", 0.5)
    assert torch.allclose(half[:, :, 1:], (x[:, :, 1:] + x[:, :, :-1]) / 2, atol=1e-6)
    ramp = torch.arange(9.0).expand(1, 1, 9, 9) - 4
    assert torch.allclose(invariance.transformed(ramp, "scale", 2.0), ramp / 2, atol=1e-5)


def test_a_sum_over_the_image_does_not_feel_a_shift_inside_it():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(2 * 400, 1, bias=False))
    nn.init.ones_(model[2].weight)
    nn.init.constant_(model[0].weight, 0.5)
    x = torch.zeros(1, 1, 20, 20)
    x[:, :, 8:12, 8:12] = torch.rand(4, 4)
    result = invariance.invariance(model, x, ["0", "2"], {"translation": [-4, 4]})
    (curve,) = result.curves
    assert curve.probability is None
    assert (curve.distances["2"] <= 1e-5 * result.norms["2"]).all()
    assert (curve.distances["0"] > 0.5 * result.norms["0"]).all()


def test_wrong_transforms_are_named():
    with pytest.raises(ValueError, match="transform must be one of translation, scale, rotation, got 'shear'"):
        invariance.transformed(torch.zeros(1, 1, 4, 4), "shear", 1)
    with pytest.raises(ValueError, match="magnification must be above 0"):
        invariance.transformed(torch.zeros(1, 1, 4, 4), "scale", 0)
    with pytest.raises(ValueError, match="labels must be 1"):
        invariance.invariance(network(), torch.zeros(1, 3, 48, 48), [], {"scale": []}, labels=torch.zeros(2))


def test_by_default_the_transforms_are_the_papers_and_the_table_names_the_extremes():
    model, x = network(), inputs(photographs(2))
    result = invariance.invariance(model, x, ["conv1"], labels=torch.tensor([0, 1]))
    assert {curve.transform: curve.parameters for curve in result.curves} == invariance.paper_parameters(48)
    assert [curve.parameters[0] for curve in result.curves] == [-13, 1, 0]
    assert [len(curve.parameters) for curve in result.curves] == [27, 17, 36]
    lines = invariance.table(result).splitlines()
    assert [line.split()[0] for line in lines] == list(invariance.TRANSFORMS)
    farthest = float((result.curves[2].distances["conv1"] / result.norms["conv1"][:, None]).max())
    assert f"conv1: distance up to {farthest:.2f} of the norm  P(true class) from" in lines[2]
    assert "P(class answered) from" in invariance.table(result, "class answered").splitlines()[2]
    last = invariance.figure(result, ["a", "b"], of="class answered").axes[-1]
    assert last.get_title() == "P(class answered)"
    unlabelled = invariance.invariance(model, x, ["conv1"], {"scale": [2]})
    assert "P(true class)" not in invariance.table(unlabelled)
    assert len(invariance.figure(unlabelled, ["a", "b"]).axes) == 1
    assert len(invariance.figure(result, ["a", "b"]).axes) == 6


def test_many_images_are_a_median_and_a_band_a_class():
    pytest.importorskip("matplotlib")
    torch.manual_seed(0)
    classes = ["cat"] * 9 + ["dog"] * 5
    curve = invariance.Curve("rotation", [0.0, 10.0], {"conv1": torch.rand(14, 2)}, torch.rand(14, 2))
    drawn = invariance.figure(
        invariance.Invariance({"conv1": torch.ones(14)}, [curve]), [str(i) for i in range(14)], classes
    )
    axes = drawn.axes[0]
    assert [line.get_label() for line in axes.lines] == ["cat (9)", "dog (5)"]
    assert len(axes.collections) == 2
    expected = curve.distances["conv1"][:9].median(0).values.tolist()
    assert axes.lines[0].get_ydata() == pytest.approx(expected)
    few = invariance.figure(invariance.Invariance({"conv1": torch.ones(14)}, [curve]), [str(i) for i in range(14)])
    assert [line.get_label() for line in few.axes[0].lines] == ["all (14)"]
