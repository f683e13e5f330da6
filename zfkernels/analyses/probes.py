"""How much of the answer each layer holds: linear classifiers on its features (Zeiler & Fergus, Table 7)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet
from ..progress import Shown, bar
from .activations import Batches, check_loader, images_of

CLASSIFIERS = ("svm", "softmax")


@dataclass(frozen=True)
class Probe:
    """One cell of Table 7: the mean over the classes of the test accuracy, over several draws."""

    layer: str
    classifier: str
    per_class: int
    accuracy: float  # 0..1, mean over the draws
    deviation: float  # over the draws; 0 for one
    features: int


@torch.no_grad()
def features(model: nn.Module | Deconvnet, loader: Batches, layers: Sequence[str], grid: int = 6) -> dict[str, Tensor]:
    """Each layer's features of every image: (N, D) float32.

    Maps larger than grid x grid are max-pooled to it (adaptively): the paper does not say how it handled the 290,400
    features of layer 1; pooled, each map keeps its strongest responses and their rough position. 0 takes maps as they
    are.
    """
    deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)
    kept: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    check_loader(loader)
    for number, batch in enumerate(loader):
        images = images_of(batch, number)
        for layer, maps in deconv.activations(images, layers).items():
            if maps.ndim == 4 and grid and max(maps.shape[2:]) > grid:
                maps = F.adaptive_max_pool2d(maps, [min(grid, side) for side in maps.shape[2:]])
            kept[layer].append(maps.flatten(1).float().cpu())
    if layers and not kept[layers[0]]:
        raise ValueError("loader must give at least one image, got none")
    return {layer: torch.cat(batches) for layer, batches in kept.items()}


def probes(
    known: Mapping[str, Tensor],
    labels: Tensor,
    per_class: Sequence[int],
    *,
    classifiers: Sequence[str] = CLASSIFIERS,
    draws: int = 5,
    test_per_class: int = 50,
    seed: int = 0,
    regularisation: float = 10.0,
    progress: Shown = False,
) -> list[Probe]:
    """Train on so many images of each class, test on up to `test_per_class` others, with each layer's features.

    The training images' mean is subtracted from the features, and one number a layer scales them to a mean squared norm
    of 1. "svm" is scikit-learn's LinearSVC, "softmax" its LogisticRegression, both with C = `regularisation`. Draws and
    their order follow from `seed`, the same for every layer.

    Args:
        known: layer -> features (N, D), as `features` gives them.
        labels: (N,) int64.
        per_class: numbers of training images a class; each is a column of the table.
        progress: show a bar (needs tqdm).

    Raises:
        ValueError: a class with too few images to leave one to test on.
        ModuleNotFoundError: no scikit-learn.
    """
    if unknown := set(classifiers) - set(CLASSIFIERS):
        raise ValueError(f"classifiers must be of {', '.join(CLASSIFIERS)}, got {', '.join(sorted(unknown))}")
    check_counts(labels, per_class)
    splits = {}
    for count in per_class:
        random = np.random.default_rng(seed)
        splits[count] = [_split(labels, count, test_per_class, random) for _ in range(draws)]
    cells = []
    wanted = list(product(per_class, known, classifiers))
    for count, layer, name in bar(wanted, "classifiers", "cell", progress):
        values = known[layer]
        accuracies = [_accuracy(name, values, labels, *split, regularisation) for split in splits[count]]
        mean, deviation = float(np.mean(accuracies)), float(np.std(accuracies))
        cells.append(Probe(layer, name, count, mean, deviation, values.shape[1]))
    return cells


def check_counts(labels: Tensor, per_class: Sequence[int]) -> None:
    """ValueError if a class has too few images to train on so many and leave one to test on."""
    smallest = int(labels.unique(return_counts=True)[1].min())
    for count in per_class:
        if count < 1 or smallest <= count:
            raise ValueError(
                f"per_class must be at least 1 and leave a picture of each class to test on, got {count}; the smallest "
                f"class has {smallest}"
            )


def _split(labels: Tensor, train: int, test: int, random: np.random.Generator) -> tuple[list[int], list[int]]:
    """Numbers of `train` images of each class and of up to `test` others."""
    to_train, to_test = [], []
    for label in labels.unique():
        members = random.permutation(torch.nonzero(labels == label)[:, 0].numpy())
        to_train += members[:train].tolist()
        to_test += members[train : train + test].tolist()
    return to_train, to_test


def _accuracy(
    classifier: str, values: Tensor, labels: Tensor, train: list[int], test: list[int], regularisation: float
) -> float:
    """The mean over the classes of the fraction of test images classified correctly."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    mean = values[train].mean(0)
    scale = float((values[train] - mean).square().sum(1).mean().sqrt()) or 1.0
    inputs, targets = ((values - mean) / scale).numpy(), labels.numpy()
    if classifier == "svm":
        model = LinearSVC(C=regularisation, random_state=0, max_iter=5000)
    else:
        model = LogisticRegression(C=regularisation, max_iter=2000)
    right = model.fit(inputs[train], targets[train]).predict(inputs[test]) == targets[test]
    return float(np.mean([right[targets[test] == label].mean() for label in np.unique(targets)]))


def table(result: Sequence[Probe]) -> str:
    """Rows: layer and classifier; columns: training images a class; cells: accuracy in percent +- deviation."""
    sizes = sorted({p.per_class for p in result})
    cells = {(p.layer, p.classifier, p.per_class): p for p in result}
    lines = [f"{'accuracy (%)':<22}{'features':>9}" + "".join(f"{f'{n} a class':>16}" for n in sizes)]
    for layer, classifier in dict.fromkeys((p.layer, p.classifier) for p in result):
        row = [cells[layer, classifier, n] for n in sizes]
        lines.append(
            f"{classifier + ' on ' + layer:<22}{row[0].features:>9}"
            + "".join(f"{f'{100 * p.accuracy:.1f} ± {100 * p.deviation:.1f}':>16}" for p in row)
        )
    return "\n".join(lines)
