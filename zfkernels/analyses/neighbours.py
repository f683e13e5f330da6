"""The images whose features lie nearest to an image's, in any layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet
from ..drawing.style import ACCENT, SOFT, Figure, new_figure
from ..drawing.tiles import plain_picture
from ..window import count
from .activations import Batches, check_loader, images_of

METRICS = ("euclidean", "cosine")


@dataclass(frozen=True)
class Neighbours:
    """The k nearest of each query in the features of a layer, nearest first."""

    layer: str
    distances: Tensor  # (Q, k)
    images: Tensor  # (Q, k) int64: the image's number


@torch.no_grad()
def neighbours(
    model: nn.Module | Deconvnet,
    queries: Tensor,
    loader: Batches,
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

    Returns:
        distances and numbers on the CPU.
    """
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    k = count("k", k)
    check_loader(loader)
    deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)

    def features(images: Tensor) -> Tensor:
        values = deconv.activations(images, layer).flatten(1).double()
        if metric == "cosine":
            values = values / values.norm(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
        return values

    wanted, seen = features(queries), 0
    distances, numbers = torch.empty(len(wanted), 0, dtype=wanted.dtype), torch.empty(len(wanted), 0, dtype=torch.int64)
    for number, batch in enumerate(loader):
        images = images_of(batch, number)
        if not len(images):
            continue
        distances = torch.cat([distances, _distances(wanted, features(images), metric).cpu()], 1)
        numbers = torch.cat([numbers, torch.arange(seen, seen + len(images)).expand(len(wanted), -1)], 1)
        seen += len(images)
        nearest = distances.argsort(dim=1, stable=True)[:, :k]
        distances, numbers = distances.gather(1, nearest), numbers.gather(1, nearest)
    if seen == 0:
        raise ValueError("loader must give at least one image, got none")
    return Neighbours(layer, distances, numbers)


def _distances(wanted: Tensor, features: Tensor, metric: str) -> Tensor:
    """Of each query (Q, D) from each image (N, D): (Q, N).

    Of unit vectors 1 - f.g is ||f - g||^2 / 2, which gives equal images equal distances in any batch; a product of
    matrices need not.
    """
    apart = torch.stack([(features - row).norm(dim=1) for row in wanted])
    if metric == "euclidean":
        return apart
    return torch.where(wanted.any(1)[:, None] & features.any(1), apart * apart / 2, 1.0)


def figure(
    results: Sequence[Neighbours],
    queries: Tensor,
    pictures: Mapping[int, Tensor] | Tensor,
    names: Sequence[str] | None = None,
) -> Figure:
    """For each layer and query a row: the query, then its neighbours with their distances.

    Args:
        queries: uint8 (Q, 3, H, W).
        pictures: an image's number -> its picture, uint8 (3, H, W).
        names: of the images, to be shown beside the distances.
    """
    rows = [(result, q) for result in results for q in range(len(queries))]
    k = max(result.images.shape[1] for result in results)
    drawn = new_figure(1.15 * (k + 1) + 0.6, 1.4 * len(rows))
    grid = drawn.subplots(len(rows), k + 1, squeeze=False)
    for axes in grid.ravel():
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
    for row, (result, q) in zip(grid, rows, strict=True):
        row[0].imshow(plain_picture(queries[q]), interpolation="nearest")
        row[0].set_ylabel(result.layer, fontsize=8)
        row[0].set_title("query\ndistance \u2192", fontsize=8, color=ACCENT)
        pairs = zip(result.distances[q].tolist(), result.images[q].tolist(), strict=True)
        for axes, (distance, image) in zip(row[1:], pairs, strict=False):
            axes.imshow(plain_picture(pictures[image]), interpolation="nearest")
            axes.set_title(f"{distance:.4g}" + (f" {names[image]}" if names else ""), fontsize=7, color=SOFT)
    return drawn


def table(results: Sequence[Neighbours], names: Sequence[object]) -> str:
    """For each layer the first query's neighbours, a line each: the distance and the image's name."""
    return "\n".join(
        f"{result.layer:<10}{distance:12.5g}  {names[image]}"
        for result in results
        for distance, image in zip(result.distances[0].tolist(), result.images[0].tolist(), strict=True)
    )
