"""The images whose features lie nearest to an image's, in any layer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet

METRICS = ("euclidean", "cosine")


class Neighbours(NamedTuple):
    """The k nearest of each query, nearest first."""

    distances: Tensor  # (Q, k)
    images: Tensor  # (Q, k) int64: the image's number


@torch.no_grad()
def neighbours(
    model: nn.Module | Deconvnet,
    queries: Tensor,
    loader: Iterable,
    layer: str,
    k: int = 8,
    *,
    metric: str = "euclidean",
) -> Neighbours:
    """The `k` images of `loader` nearest to each query in the features of `layer`; of equal ones the earlier first.

    "euclidean": ||f(x) - f(q)||; "cosine": 1 - f(x).f(q) / (||f(x)|| ||f(q)||), 1 where one of the two is all zero.
    Summed in float64, so that an image is at distance 0 from itself. One batch is held at a time.

    Args:
        queries: (Q, C, H, W), as the model takes them.
        loader: batches (N, C, H, W), or tuples or lists that begin with one; counted from 0.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    if isinstance(k, bool) or not isinstance(k, int) or k < 1:
        raise ValueError(f"k must be an int of at least 1, got {k!r}")
    deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)

    def features(images: Tensor) -> Tensor:
        found = deconv.activations(images, layer).flatten(1).double()
        if metric == "cosine":
            found = found / found.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        return found

    def distances(have: Tensor) -> Tensor:
        # Of unit vectors 1 - f.g is ||f - g||^2 / 2: equal images are equally far in any batch, as of a product of
        # matrices they need not be.
        apart = torch.stack([(have - one).norm(dim=1) for one in wanted])
        if metric == "euclidean":
            return apart
        return torch.where(wanted.any(1)[:, None] & have.any(1), apart * apart / 2, 1.0)

    wanted, seen = features(queries), 0
    best = (wanted.new_empty(len(wanted), 0), torch.empty(len(wanted), 0, dtype=torch.int64))
    for batch in loader:
        images = batch[0] if isinstance(batch, (tuple, list)) else batch
        found = distances(features(images))
        numbers = torch.arange(seen, seen + len(images)).expand(len(wanted), -1)
        seen += len(images)
        both = torch.cat([best[0], found], 1), torch.cat([best[1], numbers], 1)
        order = both[0].argsort(dim=1, stable=True)[:, :k]
        best = both[0].gather(1, order), both[1].gather(1, order)
    if seen == 0:
        raise ValueError("loader must give at least one image, got none")
    return Neighbours(*best)


def neighbours_figure(
    found: dict[str, Neighbours], queries: Tensor, pictures: Tensor, path: Path, names: list[str] | None = None
) -> None:
    """For each layer and query a row: the query, then its neighbours with their distances. uint8 (N, 3, H, W) both."""
    from ..drawing.style import ACCENT, SOFT, new_figure
    from ..drawing.tiles import plain_picture

    rows = [(layer, q) for layer in found for q in range(len(queries))]
    k = max(one.images.shape[1] for one in found.values())
    figure = new_figure(1.15 * (k + 1) + 0.6, 1.4 * len(rows))
    grid = figure.subplots(len(rows), k + 1, squeeze=False)
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, (layer, q) in zip(grid, rows, strict=True):
        row[0].imshow(plain_picture(queries[q]), interpolation="nearest")
        row[0].set_ylabel(layer, fontsize=8)
        row[0].set_title("query", fontsize=8, color=ACCENT)
        pairs = zip(found[layer].distances[q].tolist(), found[layer].images[q].tolist(), strict=True)
        for axes, (distance, image) in zip(row[1:], pairs, strict=False):
            axes.imshow(plain_picture(pictures[image]), interpolation="nearest")
            axes.set_title(f"{distance:.3g}" + (f" {names[image]}" if names else ""), fontsize=7, color=SOFT)
    figure.savefig(path)
