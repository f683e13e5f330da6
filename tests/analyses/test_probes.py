"""Linear probes on handwritten digits and on noise."""

import pytest
import torch
from torch import nn

from zfkernels import Deconvnet
from zfkernels.analyses import probes


def digits(count=360):
    """scikit-learn's handwritten digits, 8 x 8, thrice the size and in three channels."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.from_numpy(data.images[:count]).float()[:, None].expand(-1, 3, -1, -1)
    return nn.functional.interpolate(images, size=24, mode="bilinear") / 8 - 1, torch.from_numpy(data.target[:count])


def test_a_linear_probe_reads_digits_and_not_noise():
    x, labels = digits()
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 12, 5, 2), nn.ReLU(), nn.MaxPool2d(3, 2), nn.Flatten(), nn.Linear(192, 40))
    known = probes.features(model, x.split(100), ["0", "2", "4"], grid=4)
    assert {name: tuple(found.shape) for name, found in known.items()} == {
        "0": (360, 192),
        "2": (360, 192),
        "4": (360, 40),
    }
    maps = Deconvnet(model).activations(x[:5], "2")
    assert torch.equal(known["2"][:5], nn.functional.adaptive_max_pool2d(maps, 4).flatten(1))
    found = {(p.layer, p.classifier): p for p in probes.probes(known, labels, [20], draws=2)}
    assert found["2", "svm"].accuracy > 0.85
    assert found["2", "softmax"].accuracy > 0.85
    few = probes.probes({"2": known["2"]}, labels, [3], classifiers=["svm"], draws=2)[0]
    assert 0.3 < few.accuracy < found["2", "svm"].accuracy
    noise = probes.probes({"noise": torch.randn(360, 30)}, labels, [20], classifiers=["svm"], draws=2)[0]
    assert noise.accuracy < 0.25
    text = probes.table(probes.probes({"2": known["2"]}, labels, [20, 3], classifiers=["svm"], draws=2))
    assert "3 a class" in text
    assert f"{100 * few.accuracy:.1f}" in text
    assert f"{100 * found['2', 'svm'].accuracy:.1f}" in text
    with pytest.raises(ValueError, match="leave a picture of each class to test on, got 400"):
        probes.probes(known, labels, [4, 400])
    with pytest.raises(ValueError, match="classifiers must be of svm, softmax, got tree"):
        probes.probes(known, labels, [4], classifiers=["tree"])


@pytest.mark.parametrize(
    ("loader", "error", "words"),
    [
        (torch.zeros(2, 3, 24, 24), TypeError, "loader must give batches of images, got a tensor of shape"),
        ([torch.zeros(3, 24, 24)], ValueError, "in batch 0 images must have 4 dimensions"),
        ([["a.png"]], TypeError, "loader must give tensors or tuples that begin with one, got str"),
        ([], ValueError, "loader must give at least one image, got none"),
    ],
)
def test_what_is_no_loader_is_named(loader, error, words):
    with pytest.raises(error, match=words):
        probes.features(nn.Sequential(nn.Conv2d(3, 2, 5), nn.ReLU()), loader, ["0"])


def test_draws_follow_from_the_seed():
    values, labels = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    pytest.importorskip("sklearn")
    first, again, other = (
        probes.probes({"noise": values}, labels, [5], classifiers=["svm"], draws=3, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_features_are_scaled_by_the_training_images_alone(monkeypatch):
    """Less their mean, to a mean squared norm of 1; what is tested on has no part in it."""
    svm, seen = pytest.importorskip("sklearn.svm"), []
    fit = svm.LinearSVC.fit
    monkeypatch.setattr(svm.LinearSVC, "fit", lambda self, x, y: seen.append(x) or fit(self, x, y))
    values, labels = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)) * 7 + 5, torch.arange(60) % 3
    probes.probes({"noise": values}, labels, [5], classifiers=["svm"], draws=2)
    assert len(seen) == 2
    for x in seen:
        assert x.shape == (15, 4)
        assert abs(x.mean(0)).max() < 1e-6
        assert (x**2).sum(1).mean() == pytest.approx(1, abs=1e-5)
