"""How features move when an image is moved, scaled or turned (Zeiler & Fergus, section 4.1 and Fig. 5)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet
from ..drawing.style import SOFT, Axes, Figure, new_figure, plain_axes
from ..models.modes import evaluated
from ..progress import Shown, bar

MOST_LINES = 12  # images, or classes, that a legend names
TRANSFORMS = ("translation", "scale", "rotation")
UNITS = {"translation": "shift down (pixels)", "scale": "magnification", "rotation": "turn (degrees)"}


@dataclass(frozen=True)
class Curve:
    """Answers to each image under one transform: a row an image, a column a parameter."""

    transform: str
    parameters: list[float]
    distances: dict[str, Tensor]  # layer -> (N, P): L2 distance of its features from those of the image as it is
    probability: Tensor | None  # (N, P) of the true class; None if no labels were given


@dataclass(frozen=True)
class Invariance:
    norms: dict[str, Tensor]  # layer -> (N,): L2 norm of the features of the image as it is, to compare layers by
    curves: list[Curve]  # one a transform


def transformed(images: Tensor, transform: str, parameter: float, fill: float = 0.0) -> Tensor:
    """Images (N, C, H, W) moved, scaled or turned about their centre; pixels from outside are `fill`.

    "translation" shifts down by `parameter` pixels (whole ones exactly), "scale" magnifies by it, "rotation" turns
    counter-clockwise by that many degrees; both sample bilinearly. Parameters that change nothing (0, 1, a whole turn)
    give the images to the bit.

    Raises:
        ValueError: an unknown transform, or a magnification that is not above 0.
    """
    if transform not in TRANSFORMS:
        raise ValueError(f"transform must be one of {', '.join(TRANSFORMS)}, got {transform!r}")
    if transform == "scale" and not parameter > 0:
        raise ValueError(f"a magnification must be above 0, got {parameter}")
    if parameter == (1 if transform == "scale" else 0) or (transform == "rotation" and parameter % 360 == 0):
        return images.clone()
    height, width = images.shape[2:]
    if transform == "translation" and float(parameter).is_integer():
        shift = max(-height, min(height, int(parameter)))
        moved = torch.full_like(images, fill)
        moved[:, :, max(0, shift) : height + min(0, shift)] = images[:, :, max(0, -shift) : height - max(0, shift)]
        return moved
    # Where each pixel of the result comes from, in pixels from the centre, and then in grid_sample's -1..1.
    down, right = torch.meshgrid(
        torch.arange(height, dtype=torch.float64) - (height - 1) / 2,
        torch.arange(width, dtype=torch.float64) - (width - 1) / 2,
        indexing="ij",
    )
    if transform == "translation":
        down = down - parameter
    elif transform == "scale":
        down, right = down / parameter, right / parameter
    else:
        turn = torch.deg2rad(torch.tensor(float(parameter), dtype=torch.float64))
        down, right = down * turn.cos() + right * turn.sin(), right * turn.cos() - down * turn.sin()
    grid = torch.stack([right * 2 / width, down * 2 / height], -1).to(images).expand(len(images), -1, -1, -1)
    return F.grid_sample(images - fill, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + fill


def paper_parameters(height: int) -> dict[str, list[float]]:
    """Fig. 5's ranges: shifts by up to 60 of 224 pixels up and down, magnified 1 to 1.8 times, one whole turn."""
    reach = round(height * 60 / 224)
    step = max(1, reach // 12)
    return {
        "translation": [float(shift) for shift in range(-(reach // step) * step, reach + 1, step)],
        "scale": [1 + 0.05 * i for i in range(17)],
        "rotation": [10.0 * i for i in range(36)],
    }


@torch.no_grad()
def invariance(
    model: nn.Module | Deconvnet,
    images: Tensor,
    layers: Sequence[str],
    transforms: Mapping[str, Sequence[float]] | None = None,
    *,
    labels: Tensor | None = None,
    fill: float = 0.0,
    progress: Shown = False,
) -> Invariance:
    """||f(T(x)) - f(x)|| of each layer's features f, and P(true class of T(x)), for each image x and transform T.

    Args:
        model: a ZFNet, any model that `Deconvnet` traces, or a Deconvnet; in evaluation mode.
        images: (N, C, H, W), as the model takes them.
        layers: names in `Deconvnet(model).layers` or `vector_layers`; the paper's are the first and the seventh.
        transforms: transform -> parameters, see `transformed`; the paper's when None.
        labels: (N,) int64, the true classes.
        fill: the pixels from outside the image; 0 is the mean image where the mean was subtracted.
        progress: show a progress bar (needs tqdm).

    Returns:
        distances and probabilities on the CPU.
    """
    deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)
    if labels is not None and labels.shape != images.shape[:1]:
        raise ValueError(f"labels must be {len(images)}, one an image, got shape {tuple(labels.shape)}")
    clear = deconv.activations(images, layers)
    truth = None if labels is None else labels.to(images.device)[:, None]
    curves = []
    for transform, parameters in (paper_parameters(images.shape[2]) if transforms is None else transforms).items():
        distances: dict[str, list[Tensor]] = {layer: [] for layer in layers}
        probability = []
        for parameter in bar(parameters, transform, "step", progress):
            moved = transformed(images, transform, parameter, fill)
            for layer, features in deconv.activations(moved, layers).items():
                distances[layer].append((features - clear[layer]).flatten(1).norm(dim=1).cpu())
            if truth is not None:
                logits = evaluated(deconv.model, moved)
                probability.append(logits.softmax(1).gather(1, truth)[:, 0].cpu())
        columns = {layer: torch.stack(column, 1) for layer, column in distances.items()}
        curves.append(Curve(transform, list(parameters), columns, torch.stack(probability, 1) if probability else None))
    return Invariance({layer: features.flatten(1).norm(dim=1).cpu() for layer, features in clear.items()}, curves)


def table(result: Invariance, of: str = "true class") -> str:
    """A line a transform: how far each layer's features move at most, and the range of P(`of`)."""
    lines = []
    for curve in result.curves:
        cells = [
            f"{layer}: distance up to {float((distance / result.norms[layer][:, None]).max()):.2f} of the norm"
            for layer, distance in curve.distances.items()
        ]
        if curve.probability is not None:
            low, high = float(curve.probability.min()), float(curve.probability.max())
            cells.append(f"P({of}) from {low:.2f} to {high:.2f}")
        lines.append(f"{curve.transform:<12}" + "  ".join(cells))
    return "\n".join(lines)


def figure(
    result: Invariance, names: Sequence[str], classes: Sequence[str] | None = None, of: str = "true class"
) -> Figure:
    """A row a transform: for each layer the distance over the features' own norm, and P(`of`).

    A line an image; of more than 12 images the median of each class, and as a band the middle half of it.

    Args:
        names, classes: of the images; without classes they are all of one.
        of: what the labels are.
    """
    groups = list(classes or ["all"] * len(names)) if len(names) > MOST_LINES else None
    first, rows = result.curves[0], len(result.curves)
    columns = len(result.norms) + (first.probability is not None)
    drawn = new_figure(3.4 * columns + 1.2, 2.5 * rows)
    grid = drawn.subplots(rows, columns, squeeze=False)
    for row, curve in zip(grid, result.curves, strict=True):
        for axes, (layer, distance) in zip(row, curve.distances.items(), strict=False):
            relative = distance / result.norms[layer].clamp_min(1e-30)[:, None]
            _lines(axes, curve, relative, names, groups, f"{layer}: distance / norm")
            axes.set_ylim(0, None)
        if curve.probability is not None:
            _lines(row[-1], curve, curve.probability, names, groups, f"P({of})")
            row[-1].set_ylim(-0.02, 1.02)
    if groups is None or len(set(groups)) <= MOST_LINES:
        grid[0][-1].legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return drawn


def _lines(
    axes: Axes, curve: Curve, values: Tensor, names: Sequence[str], groups: Sequence[str] | None, title: str
) -> None:
    """Over the transform's parameters a line an image; of groups each one's median, and its middle half as a band."""
    if groups is None:
        for name, line in zip(names, values.tolist(), strict=True):
            axes.plot(curve.parameters, line, linewidth=1.2, label=name)
    for group in dict.fromkeys(groups or ()):
        own = values[[i for i, name in enumerate(groups or ()) if name == group]].float()
        lower, middle, upper = own.quantile(torch.tensor([0.25, 0.5, 0.75]), 0).tolist()
        (drawn,) = axes.plot(curve.parameters, middle, linewidth=1.4, label=f"{group} ({len(own)})")
        axes.fill_between(curve.parameters, lower, upper, color=drawn.get_color(), alpha=0.15, linewidth=0)
    axes.set_title(title, fontsize=9)
    plain_axes(axes)
    axes.set_xlabel(UNITS[curve.transform], fontsize=8, color=SOFT)
