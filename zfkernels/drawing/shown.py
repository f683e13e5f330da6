"""What a result does in a notebook and on disk: its figure as an HTML picture, or in a file.

Each result has a `plot()`, and takes `save` and `_repr_html_` from here.
"""

import base64
import io
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .style import ACCENT, SOFT, Figure, literally, new_figure, outline, plain_axes
from .style import save as save_figure
from .tiles import cut, frame, full_scale, plain_picture, signed_picture

MOST = 18  # projections in one figure


class Plotted(Protocol):
    def plot(self) -> Figure: ...


def save(self: Plotted, path: str | Path) -> None:
    """Write `plot()` to a file, whole or not at all; its ending says in which format."""
    save_figure(self.plot(), Path(path))


def repr_html(self: Plotted) -> str | None:
    """The figure with what `repr` says below it; None, so that repr alone is shown, without matplotlib or jinja2."""
    try:
        from .page import render

        figure = self.plot()
    except ModuleNotFoundError:
        return None
    to = io.BytesIO()
    literally(figure)
    figure.savefig(to, format="png")
    source = f"data:image/png;base64,{base64.b64encode(to.getvalue()).decode()}"
    return render("shown.html", source=source, said=repr(self))


def span(values: Tensor) -> str:
    """The least and the largest of some values."""
    if not values.numel():
        return "none"
    low, high = float(values.min()), float(values.max())
    return f"{low:.4g}" if low == high else f"{low:.4g} to {high:.4g}"


def sizes(values: Tensor) -> str:
    return " x ".join(map(str, values.shape))


def projections(pixels: Tensor, values: Tensor, boxes: Tensor, pictures: Tensor | None) -> Figure:
    """The first MOST projections, each on its own scale, what the unit sees of it; below each its picture, if given.

    `pictures`: uint8 (N, 3, H, W), one a projection.
    """
    count, shape = min(len(pixels), MOST), tuple(pixels.shape[2:])
    places = boxes[:count].tolist()
    side = [max((box[2 + a] - box[a] for box in places), default=1) for a in (0, 1)]
    columns = max(1, min(count, 6))
    each = 1 if pictures is None else 2
    rows = max(1, -(-count // columns))
    drawn = new_figure(1.9 * columns, 2.1 * rows * each)
    grid = drawn.subplots(rows * each, columns, squeeze=False)
    for axes in grid.ravel():
        axes.axis("off")
    for i, box in enumerate(places):
        shown, axes = frame(box, side, shape), grid[i // columns * each, i % columns]
        part = cut(pixels[i], shown)
        axes.imshow(signed_picture(part, full_scale([part])), interpolation="nearest")
        axes.set_title(f"activation {float(values[i]):.4g}", fontsize=8, color=SOFT)
        if pictures is not None:
            below = grid[i // columns * each + 1, i % columns]
            below.imshow(plain_picture(pictures[i]), interpolation="nearest")
            outline(below, box)
    return drawn


def joint(together: Tensor, alone: Tensor) -> Figure:
    """The projection of all units at once, the sum of each alone, and their difference, on one scale."""
    total = alone.sum(0)
    views = {"together": together, "sum of each alone": total, "difference": together - total}
    limit = full_scale([together, total])
    drawn = new_figure(7.5, 2.9)
    for axes, (name, view) in zip(drawn.subplots(1, 3), views.items(), strict=True):
        axes.imshow(signed_picture(view, limit), interpolation="nearest")
        axes.set_title(name, fontsize=9)
        axes.axis("off")
    return drawn


def ranked(values: Tensor) -> Figure:
    """Of (maps, k) activations, strongest first, each rank's median over the maps, the middle half and the range."""
    drawn = new_figure(4.6, 3.0)
    axes = drawn.subplots()
    ranks, shares = range(1, values.shape[1] + 1), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    low, lower, middle, upper, high = values.float().quantile(shares, 0).tolist()
    axes.fill_between(ranks, low, high, color=SOFT, alpha=0.2, linewidth=0, label="all maps")
    axes.fill_between(ranks, lower, upper, color=ACCENT, alpha=0.3, linewidth=0, label="the middle half")
    axes.plot(ranks, middle, color=ACCENT, marker="o", markersize=3, label="median")
    axes.set_xlabel("rank of the image", fontsize=8, color=SOFT)
    axes.set_ylabel("activation", fontsize=8, color=SOFT)
    axes.legend(fontsize=7, frameon=False)
    plain_axes(axes)
    return drawn
