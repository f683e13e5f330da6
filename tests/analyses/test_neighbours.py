"""Nearest neighbours against a naive search."""

import numpy as np
import pytest
import torch
from small import inputs, network, photographs

from zfkernels import Deconvnet
from zfkernels.analyses import neighbours


@pytest.mark.parametrize("metric", neighbours.METRICS)
def test_neighbours_against_a_naive_search(metric):
    model, x = network(), inputs(photographs(7))
    x[5] = x[1]
    found = neighbours.neighbours(model, x[:3], x.split(3), "conv4", k=5, metric=metric)
    features = Deconvnet(model).activations(x, "conv4").flatten(1).double().numpy()
    for q in range(3):
        a = features[q]
        distances = [
            np.linalg.norm(f - a) if metric == "euclidean" else 1 - f @ a / np.linalg.norm(f) / np.linalg.norm(a)
            for f in features
        ]
        expected = sorted(range(7), key=lambda i, d=distances: (round(d[i], 9), i))[:5]
        assert found.images[q].tolist() == expected
        assert found.distances[q].tolist() == pytest.approx([distances[i] for i in expected], abs=1e-9)
    assert found.images[1, :2].tolist() == [1, 5]
    assert found.distances[1, 1] <= 1e-12
    again = neighbours.neighbours(model, x[:3], [x], "conv4", k=5, metric=metric)
    assert torch.equal(found.images, again.images)
    with pytest.raises(ValueError, match="metric must be one of"):
        neighbours.neighbours(model, x, [x], "conv4", metric="other")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 2.0}, TypeError, "k must be an int, got 2.0"),
        ({"loader": torch.zeros(2, 3, 48, 48)}, TypeError, "loader must give batches of images, got a tensor of shape"),
        ({"loader": [torch.zeros(3, 48, 48)]}, ValueError, "in batch 0 images must have 4 dimensions"),
        ({"loader": []}, ValueError, "loader must give at least one image, got none"),
        ({"loader": [torch.zeros(0, 3, 48, 48)]}, ValueError, "loader must give at least one image, got none"),
    ],
)
def test_wrong_calls_name_the_argument(change, error, words):
    call = {"model": network(), "queries": torch.zeros(1, 3, 48, 48), "loader": [torch.zeros(2, 3, 48, 48)]}
    with pytest.raises(error, match=words):
        neighbours.neighbours(**call | {"layer": "conv1"} | change)


def test_the_table_and_the_figure_name_each_neighbour():
    model, pixels = network(), photographs(5)
    x = inputs(pixels)
    results = [neighbours.neighbours(model, x[:1], [x], layer, k=3) for layer in ("conv1", "fc7")]
    numbers = results[1].images[0].tolist()
    lines = neighbours.table(results, [f"picture {i}" for i in range(5)]).splitlines()
    assert [line.split()[0] for line in lines] == ["conv1"] * 3 + ["fc7"] * 3
    assert [line.partition("picture ")[2] for line in lines[3:]] == [str(number) for number in numbers]
    pictures = {i: pixels[i] for result in results for i in result.images[0].tolist()}  # only those that are shown
    drawn = neighbours.figure(results, pixels[:1], pictures, "vwxyz")
    titles = [axes.get_title() for axes in drawn.axes[4:]]
    assert [title.split()[-1] for title in titles] == ["\u2192", *("vwxyz"[number] for number in numbers)]
