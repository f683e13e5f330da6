"""One activation of a network, projected to the pixels of the picture that caused it (Zeiler & Fergus, section 2.1)."""

from dataclasses import dataclass

from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet
from ..deconvnet.results import Projection
from ..drawing.style import INK, SOFT, Figure, new_figure, outline
from ..drawing.tiles import cut, full_scale, plain_picture, signed_picture
from .activations import top_activations


@dataclass(frozen=True)
class Unit:
    """One activation and its projection."""

    layer: str
    channel: int
    position: tuple[int, int]
    value: float
    box: tuple[int, int, int, int]  # the part of the input that the unit sees: top, left, bottom, right
    pixels: Tensor  # (C, H, W)
    image: int = 0  # number of the image that caused it
    notes: tuple[str, ...] = ()  # what to know of it


def unit(result: Projection, index: int, layer: str, channel: int, image: int = 0) -> Unit:
    """One of the projections that `Deconvnet.project` gives."""
    position, box = (tuple(of_all[index].tolist()) for of_all in (result.positions, result.boxes))
    value, pixels = float(result.values[index]), result.pixels[index]
    return Unit(layer, channel, position, value, box, pixels, image, result.notes)


def projection(
    model: nn.Module | Deconvnet,
    image: Tensor,
    layer: str,
    channel: int | None = None,
    position: tuple[int, int] | None = None,
    *,
    norm: str = "identity",
    method: str = "deconvnet",
) -> Unit:
    """One activation, projected.

    Args:
        model: a ZFNet, any model that `Deconvnet` traces, or a Deconvnet.
        image: (C, H, W), as the model takes it.
        channel: the map, or feature, of `layer`; the one with the strongest activation when None.
        position: the unit's, (row, column); the map's strongest when None.
        norm, method: as of `Deconvnet.project`.
    """
    deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)
    if channel is None:
        channel = int(top_activations(deconv, [image[None]], layer, k=1).values[:, 0].argmax())
    return unit(deconv.project(image[None], layer, channel, position, norm, method=method), 0, layer, channel)


def table(unit: Unit) -> str:
    """Which unit, its activation, and what it sees."""
    (row, column), (top, left, bottom, right) = unit.position, unit.box
    height, width = unit.pixels.shape[1:]
    lines = [
        f"unit        {unit.layer}, map {unit.channel}, row {row}, column {column}",
        f"activation  {unit.value:.6g}",
        f"sees        rows {top} to {bottom - 1}, columns {left} to {right - 1} of the {height} x {width} input",
        *(f"note        {note}" for note in unit.notes),
    ]
    return "\n".join(lines)


def figure(unit: Unit, picture: Tensor) -> Figure:
    """A uint8 (3, H, W) picture beside the projection of one activation; below, the part of both that the unit sees."""
    top, left, bottom, right = unit.box
    height, width = picture.shape[1:]
    limit = full_scale([cut(unit.pixels, unit.box)])
    views = (
        ("the network's input, and what the unit sees of it", plain_picture(picture)),
        (f"projection: mid-grey is 0, full scale \u00b1{limit:.2g}", signed_picture(unit.pixels, limit)),
    )
    sees_all = unit.box == (0, 0, height, width)
    drawn = new_figure(9.0, 5.2 if sees_all else 9.6)
    grid = drawn.subplots(1 if sees_all else 2, 2, squeeze=False)
    row, column = unit.position
    title = f"{unit.layer}, map {unit.channel}, place ({row}, {column}): activation {unit.value:.4g}"
    drawn.suptitle(title, fontsize=12, color=INK)
    for axes_of_view, (name, view) in zip(grid.T, views, strict=True):
        for axes in axes_of_view:
            axes.imshow(view, extent=(0, width, height, 0), interpolation="nearest")
            axes.tick_params(colors=SOFT, labelsize=8)
        whole, last = axes_of_view[0], axes_of_view[-1]
        whole.set_title(name, fontsize=10)
        last.set_xlabel("pixels of the network's input", fontsize=8, color=SOFT)
        if not sees_all:
            outline(whole, unit.box)
            last.set(xlim=(left, right), ylim=(bottom, top))
            last.set_title(f"the {bottom - top} x {right - left} pixels it sees", fontsize=10)
    return drawn
