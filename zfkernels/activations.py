"""Which images, and which places in them, drive each map hardest (Zeiler & Fergus, section 4.1 and Fig. 2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .deconvnet import Deconvnet


class TopActivations(NamedTuple):
    """The k strongest activations of each map, strongest first, at most one an image."""

    values: Tensor  # (channels, k)
    images: Tensor  # (channels, k) int64: the image's number, counted from 0 through the loader
    positions: Tensor  # (channels, k, 2) int64: (vertical, horizontal) in the map


@torch.no_grad()
def top_activations(
    model: nn.Module | Deconvnet, loader: Iterable, layer: str, k: int = 9, *, progress: bool = False
) -> TopActivations:
    """The `k` strongest activations of every map of `layer` over the images of `loader`, in one pass over it.

    An image enters once a map, with its strongest place (the first in row-major order of several equal ones); images
    with equal activations rank in the loader's order. So the result does not depend on how the images are batched.
    Dropout is passed over and batch norms use their running statistics, whatever the model's mode.

    Args:
        model: a ZFNet, any model that `Deconvnet` traces, or a Deconvnet.
        loader: gives batches of images (N, C, H, W), or tuples or lists whose first item is one, as the model takes
            them; a DataLoader that does not shuffle, a list of tensors, a generator. Only one batch is held at a time.
        layer: a name in `Deconvnet(model).layers`, or in its `vector_layers`, whose features have the place (0, 0).
        k: how many. With fewer images than `k` in the loader, all of them rank: the results have that many columns.
        progress: show a progress bar (needs tqdm).

    Returns:
        values, images and positions, on the CPU, to be fed to `Deconvnet.project`:
        `project(images[top.images[7]], layer, 7, top.positions[7])` projects the strongest of map 7.

    Raises:
        ValueError: `k` below 1, an unknown layer, a loader without images.
        TypeError: a batch that holds no tensor.
    """
    if isinstance(k, bool) or not isinstance(k, int):
        raise TypeError(f"k must be an int, got {k!r}")
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)
    if progress:
        from tqdm import tqdm

        loader = tqdm(loader, desc=f"strongest of {layer}", unit="batch")

    seen, best = 0, None
    for batch in loader:
        images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(images, Tensor):
            raise TypeError(f"loader must give tensors or tuples that begin with one, got {type(images).__name__}")
        maps = deconv.activations(images, layer)
        if len(maps) == 0:
            continue
        width = maps.shape[3] if maps.ndim == 4 else 1
        values, places = (found.cpu().T for found in maps.reshape(*maps.shape[:2], -1).max(2))
        new = (
            values,
            torch.arange(seen, seen + len(images)).expand_as(values),
            torch.stack([places // width, places % width], -1),
        )
        seen += len(images)
        best = _strongest(new if best is None else [torch.cat(pair, 1) for pair in zip(best, new, strict=True)], k)
    if best is None:
        raise ValueError("loader must give at least one image, got none")
    return TopActivations(*best)


def _strongest(candidates: Iterable[Tensor], k: int) -> list[Tensor]:
    """The first k columns by falling value; a stable sort, and candidates come in the loader's order."""
    values, images, positions = candidates
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    return [values.gather(1, order), images.gather(1, order), positions.gather(1, order[..., None].expand(-1, -1, 2))]
