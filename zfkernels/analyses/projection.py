"""zfkernels.analyses.projection."""

from __future__ import annotations

from pathlib import Path

import torch

from ..deconvnet.deconvnet import Projection
from ..drawing.style import INK, SOFT, new_figure, outline
from ..drawing.tiles import cut, plain_picture, signed_picture


def projection_figure(picture: torch.Tensor, projection: Projection, title: str, path: Path) -> None:
    """A uint8 (3, H, W) picture beside the projection of one activation; below, what of both the unit sees."""
    top, left, bottom, right = projection.boxes[0].tolist()
    height, width = picture.shape[1:]
    pixels = projection.pixels[0]
    limit = float(cut(pixels, (top, left, bottom, right)).abs().flatten().quantile(0.995))
    views = (
        ("the network's input, and what the unit sees of it", plain_picture(picture)),
        (f"projection: mid-grey is 0, full scale \u00b1{limit:.2g}", signed_picture(pixels, limit)),
    )
    sees_all = (top, left, bottom, right) == (0, 0, height, width)
    figure = new_figure(9.0, 5.2 if sees_all else 9.6)
    grid = figure.subplots(1 if sees_all else 2, 2, squeeze=False)
    figure.suptitle(f"{title}: activation {float(projection.values[0]):.4g}", fontsize=12, color=INK)
    for column, (name, view) in zip(grid.T, views, strict=True):
        for axes in column:
            axes.imshow(view, extent=(0, width, height, 0), interpolation="nearest")
            axes.tick_params(colors=SOFT, labelsize=8)
        column[0].set_title(name, fontsize=10)
        column[-1].set_xlabel("pixels of the network's input", fontsize=8, color=SOFT)
        if not sees_all:
            outline(column[0], (top, left, bottom, right))
            column[1].set(xlim=(left, right), ylim=(bottom, top))
            column[1].set_title(f"the {bottom - top} x {right - left} pixels it sees", fontsize=10)
    figure.savefig(path)
