"""How much of the answer each layer holds: linear classifiers on its features (Zeiler & Fergus, Table 7)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet

CLASSIFIERS = ("svm", "softmax")


@dataclass(frozen=True)
class Probe:
    """One cell of the table: the mean over the classes of the test accuracy, over several draws."""

    layer: str
    classifier: str
    per_class: int
    accuracy: float  # 0..1, mean over the draws
    deviation: float  # over the draws; 0 for one
    features: int


@torch.no_grad()
def features(model: nn.Module | Deconvnet, loader: Iterable, layers: Sequence[str], grid: int = 6) -> dict[str, Tensor]:
    """Each layer's features of every image: (N, D) float32.

    Maps larger than grid x grid are max-pooled to it (adaptively): the paper does not say how it handled the 290,400
    features of layer 1; pooled, each map keeps its strongest responses and their rough place. 0 takes maps as they are.
    """
    deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)
    kept: dict[str, list[Tensor]] = {layer: [] for layer in layers}
    for batch in loader:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        for layer, found in deconv.activations(images, layers).items():
            if found.ndim == 4 and grid and max(found.shape[2:]) > grid:
                found = F.adaptive_max_pool2d(found, [min(grid, side) for side in found.shape[2:]])
            kept[layer].append(found.flatten(1).float().cpu())
    return {layer: torch.cat(found) for layer, found in kept.items()}


def probe(
    known: dict[str, Tensor],
    labels: Tensor,
    per_class: int,
    *,
    classifiers: Sequence[str] = CLASSIFIERS,
    draws: int = 5,
    test_per_class: int = 50,
    seed: int = 0,
    regularisation: float = 10.0,
) -> list[Probe]:
    """Train on `per_class` images of each class, test on up to `test_per_class` others; a `Probe` a layer, classifier.

    The training images' mean is taken off the features, and one number a layer scales them to a mean squared norm of
    1. "svm" is scikit-learn's LinearSVC, "softmax" its LogisticRegression, both with
    C = `regularisation`. Draws and their order follow from `seed`, the same for every layer.

    Raises:
        ValueError: a class with too few images to leave one to test on.
        ModuleNotFoundError: no scikit-learn.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

    if unknown := set(classifiers) - set(CLASSIFIERS):
        raise ValueError(f"classifiers must be of {', '.join(CLASSIFIERS)}, got {', '.join(sorted(unknown))}")
    classes, counts = labels.unique(return_counts=True)
    if per_class < 1 or int(counts.min()) <= per_class:
        raise ValueError(
            f"per_class must be at least 1 and leave a picture of each class to test on, got {per_class}; the smallest "
            f"class has {int(counts.min())}"
        )
    random = np.random.default_rng(seed)
    splits = []
    for _ in range(draws):
        train, test = [], []
        for label in classes:
            members = random.permutation(torch.nonzero(labels == label)[:, 0].numpy())
            train += members[:per_class].tolist()
            test += members[per_class : per_class + test_per_class].tolist()
        splits.append((train, test))
    found = []
    for layer, values in known.items():
        for name in classifiers:
            accuracies = []
            for train, test in splits:
                mean = values[train].mean(0)
                scale = float((values[train] - mean).square().sum(1).mean().sqrt()) or 1.0
                inputs, targets = ((values - mean) / scale).numpy(), labels.numpy()
                made = (
                    LinearSVC(C=regularisation, random_state=0, max_iter=5000)
                    if name == "svm"
                    else LogisticRegression(C=regularisation, max_iter=2000)
                )
                right = made.fit(inputs[train], targets[train]).predict(inputs[test]) == targets[test]
                accuracies.append(np.mean([right[targets[test] == label].mean() for label in classes.numpy()]))
            found.append(
                Probe(layer, name, per_class, float(np.mean(accuracies)), float(np.std(accuracies)), values.shape[1])
            )
    return found


def table(probes: Sequence[Probe]) -> str:
    """Rows: layer and classifier; columns: training images a class; cells: accuracy in percent +- deviation."""
    sizes = sorted({p.per_class for p in probes})
    cells = {(p.layer, p.classifier, p.per_class): p for p in probes}
    lines = [f"{'accuracy (%)':<22}{'features':>9}" + "".join(f"{f'{n} a class':>16}" for n in sizes)]
    for layer, classifier in dict.fromkeys((p.layer, p.classifier) for p in probes):
        row = [cells[layer, classifier, n] for n in sizes]
        lines.append(
            f"{classifier + ' on ' + layer:<22}{row[0].features:>9}"
            + "".join(f"{f'{100 * p.accuracy:.1f} ± {100 * p.deviation:.1f}':>16}" for p in row)
        )
    return "\n".join(lines)
