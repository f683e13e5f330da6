"""What a deconvnet gives back, which can show and save itself."""

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from ..drawing import shown
from ..drawing.style import Figure


class _Projected(NamedTuple):
    pixels: Tensor  # (N, C, H, W), in the images' units; exactly 0 outside the box
    values: Tensor  # (N,) the activations projected
    positions: Tensor  # (N, 2) int64: where in the layer's map, (vertical, horizontal)
    boxes: Tensor  # (N, 4) int64: top, left, bottom, right of the receptive field; half-open, clipped to the image


class Projection(_Projected):
    """N projections, the tuple (pixels, values, positions, boxes), and `notes`: sentences, what to know of them.

    pixels: (N, C, H, W), in the images' units; exactly 0 outside the box. values: (N,), the activations projected.
    positions: (N, 2) int64, where in the layer's map, (vertical, horizontal). boxes: (N, 4) int64, top, left, bottom,
    right of the receptive field; half-open, clipped to the image. notes: see `Deconvnet.project`.
    """

    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        told = f", {len(self.notes)} note{'s' * (len(self.notes) > 1)}" if self.notes else ""
        return f"Projection({shown.sizes(self.pixels)} pixels, values {shown.span(self.values)}{told})"

    def plot(self, pictures: Tensor | None = None) -> Figure:
        """A figure of the first 18: what each unit sees of its projection, on its own scale, the value above.

        `pictures`: uint8 (N, 3, H, W), one a projection, to be shown below, with the box. `save(path)` writes it, and a
        notebook shows it. Needs matplotlib.
        """
        return shown.projections(self.pixels, self.values, self.boxes, pictures)

    save = shown.save
    _repr_html_ = shown.repr_html


class Joint(NamedTuple):
    """Several activations of an image projected at once, and each alone."""

    together: Tensor  # (C, H, W) one projection of all
    alone: Tensor  # (N, C, H, W) the projections of each; their sum is what one would expect of `together`
    values: Tensor  # (N,)
    positions: Tensor  # (N, 2) int64
    boxes: Tensor  # (N, 4) int64
    difference: float  # ||together - sum of alone|| / ||sum of alone||; 0 where nothing is rectified away

    def __repr__(self) -> str:
        return f"Joint({len(self.alone)} units, {shown.sizes(self.together)} pixels, difference {self.difference:.4g})"

    def plot(self) -> Figure:
        """A figure of `together`, of the sum of `alone`, and of what parts them, on one scale. Needs matplotlib."""
        return shown.joint(self.together, self.alone)

    def save(self, path: str | Path) -> None:
        """Write `plot()` to a file, whole or not at all; its ending says in which format."""
        shown.save(self, path)

    def _repr_html_(self) -> str | None:
        return shown.repr_html(self)
