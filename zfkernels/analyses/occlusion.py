"""What a network loses when a part of the image is covered (Zeiler & Fergus, section 4.2 and Fig. 7).

A window changes what is near it. So the clear image is run once, and for each window only what the window can reach in
each layer (covering.py). A model that torch.fx cannot trace is run on whole covered images.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from ..deconvnet.deconvnet import Deconvnet
from ..drawing import shown
from ..drawing.style import SOFT, Axes, Figure, SubFigure, new_figure, outline
from ..drawing.tiles import cut, full_scale, plain_picture, signed_picture
from ..models.modes import evaluation
from ..progress import Shown, bar
from ..window import Pair, count, pair
from ..words import shortened
from .choices import method_for
from .covering import check_layer, covering, last_call

WIDEST = 26  # letters of a name above a panel, for panels stand close


@dataclass(frozen=True)
class OcclusionMap:
    """Raw cells, one a window position; nothing is averaged, interpolated or smoothed.

    Cell (r, c) is the network's answer to the image with the pixels [top:bottom, left:right] = boxes[r, c] covered.
    """

    probability: torch.Tensor  # (rows, cols) softmax probability of the target
    logit: torch.Tensor  # (rows, cols) the target's output before the softmax
    label: torch.Tensor  # (rows, cols) int64, the most probable class
    activity: torch.Tensor | None  # (rows, cols) sum over one map of `layer`; None when no layer was asked for
    boxes: torch.Tensor  # (rows, cols, 4) int64: top, left, bottom, right; half-open, clipped to the image
    target: int
    layer: str | None
    channel: int | None  # the map that `activity` sums
    clear_probability: float  # the same four numbers for the image with nothing covered
    clear_logit: float
    clear_label: int
    clear_activity: float | None

    def __repr__(self) -> str:
        rows, columns = self.probability.shape
        return (
            f"OcclusionMap({rows} x {columns} cells, P(class {self.target}) {shown.span(self.probability)}, "
            f"{self.clear_probability:.4g} when clear)"
        )

    def plot(self, picture: torch.Tensor | None = None, classes: Sequence[str] | None = None) -> Figure:
        """A figure of the probability, of the most probable class and, with a layer, of the map's sum.

        picture: uint8 (3, H, W), shown beside. classes: their names. Needs matplotlib.
        """
        names = list(classes or map(str, range(1 + max(self.target, int(self.label.max())))))
        size = self.boxes.flatten(0, 1)[:, 2:].amax(0).tolist()
        image = torch.full((3, *size), 255, dtype=torch.uint8) if picture is None else picture
        return figure(Occluded("" if picture is None else "the picture", image, self), names)

    save = shown.save
    _repr_html_ = shown.repr_html


@torch.no_grad()
def occlusion_map(
    model: torch.nn.Module,
    image: torch.Tensor,
    target: int | None = None,
    *,
    forward: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor] | None = None,
    patch: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    fill: float | Sequence[float] | torch.Tensor | str | None = None,
    layer: str | None = None,
    channel: int | None = None,
    batch_size: int = 64,
    progress: Shown = False,
) -> OcclusionMap:
    """Slide a covering window over `image` and record what `model` says at each position.

    Window (r, c) covers rows [r*stride, r*stride + patch) and columns likewise, height before width. There are
    ceil((size - patch) / stride) + 1 positions along each side: the last window reaches the image's edge and is cut
    there, so every pixel is covered at least once and no window lies outside.

    Args:
        model: any module from images (N, C, H, W) to logits (N, classes); run in evaluation mode and then put back. The
            probabilities are their softmax; of a single logit its sigmoid; of a model that ends in a softmax or a
            sigmoid its own output.
        image: (C, H, W) or (1, C, H, W), as the model takes it (normalised), on the model's device.
        target: the class whose probability is recorded; the most probable one of the clear image when None.
        forward: (model, images) -> logits, where the model needs more than images or gives more than logits.
        patch: the window, int or (height, width); a fifth of the image's shorter side when None.
        stride: its step, int or (height, width), at most `patch`; a quarter of the patch when None.
        fill: what covers the pixels: a number, one a channel, or a (C, H, W) image; "mean" (or None), the image's mean
            colour; "blur", the image under a Gaussian whose standard deviation is half the patch's longer side.
        layer: also sum one map of this submodule (a name of `model.named_modules()`, "conv5" of a ZFNet).
        channel: which map; when None the one that holds the layer's largest activation in the clear image.
        batch_size: windows a pass.
        progress: show a progress bar (needs tqdm); "lines": a line every half minute on stderr.

    A pass costs what the windows can reach: with a patch of 28 of 224 pixels about a third of a ZFNet. Whole covered
    images are run where that is nearly all (gates that see the whole image, say), with `forward`, and, after a warning,
    where what a window reaches cannot be told: a model that torch.fx cannot trace, or that has hooks.

    Returns:
        OcclusionMap, on the CPU.

    Raises:
        ValueError: for a shape, size or name that does not fit, naming the argument.
        TypeError: for an image or fill of the wrong type.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if forward is not None and not callable(forward):
        raise TypeError(f"forward must be a function of the model and images, got {forward!r}")
    image = _check_image(image)
    patch, stride = _check_windows(patch, stride, (image.shape[1], image.shape[2]))
    batch_size = count("batch_size", batch_size)
    if layer is None and channel is not None:
        raise ValueError(f"channel {channel} needs a layer: pass layer= too")
    cover = _check_fill(fill, image, patch)
    boxes = _windows(image.shape[1], image.shape[2], patch, stride)
    with evaluation(model):
        check_layer(model, layer)
        network = covering(model, image, layer, patch, forward)
        clear_logits, clear_maps = network.clear()
        like_probabilities = float(clear_logits.min()) >= 0 and float(clear_logits.max()) <= 1
        last = last_call(model, image, forward) if like_probabilities else ""
        target = _one_of("target", target, clear_logits, "a class")
        if clear_maps is not None:
            channel = _one_of("channel", channel, clear_maps.amax(dim=(1, 2)), f"a map of {layer}")
        answers: list[torch.Tensor] = []
        activity: list[torch.Tensor] = []
        for windows in bar(boxes.reshape(-1, 4).split(batch_size), "occlusion", "batch", progress):
            found, maps = network.covered(windows, cover, channel)
            answers.append(found)
            activity += [] if maps is None else [maps.sum(dim=(1, 2))]

    grid = boxes.shape[:2]
    logits = torch.cat(answers).cpu().reshape(*grid, len(clear_logits))
    clear = _probabilities(clear_logits, last)
    return OcclusionMap(
        probability=_probabilities(logits, last)[..., target],
        logit=logits[..., target].clone(),
        label=_labels(logits, last),
        activity=torch.cat(activity).cpu().reshape(grid) if activity else None,
        boxes=boxes,
        target=target,
        layer=layer,
        channel=channel,
        clear_probability=float(clear[target]),
        clear_logit=float(clear_logits[target]),
        clear_label=int(_labels(clear_logits, last)),
        clear_activity=None if clear_maps is None else float(clear_maps[channel].sum()),
    )


@torch.no_grad()
def answers(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """What a model says of images (N, C, H, W), as probabilities (N, classes); see `occlusion_map`."""
    with evaluation(model):
        outputs = model(images)
        if not isinstance(outputs, torch.Tensor) or outputs.ndim != 2:
            raise ValueError(f"model must give (N, classes), got {getattr(outputs, 'shape', type(outputs).__name__)}")
        like_probabilities = float(outputs.min()) >= 0 and float(outputs.max()) <= 1
        return _probabilities(outputs, last_call(model, images[0], None) if like_probabilities else "")


def _probabilities(logits: torch.Tensor, last: str) -> torch.Tensor:
    if last in ("softmax", "sigmoid"):
        return logits
    return logits.sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)


def _labels(logits: torch.Tensor, last: str) -> torch.Tensor:
    """The most probable class; of a single output 1 where it is more probable than not."""
    if logits.shape[-1] == 1:
        return (_probabilities(logits, last)[..., 0] > 0.5).long()
    return logits.argmax(-1)


def _one_of(name: str, wanted: int | None, strengths: torch.Tensor, kind: str) -> int:
    """`wanted` as an index of `strengths`, which of them is largest for None."""
    if wanted is None:
        return int(strengths.argmax())
    try:
        number = -1 if isinstance(wanted, bool) else operator.index(wanted)
    except (TypeError, RuntimeError):  # a tensor may hold no value
        number = -1
    if not 0 <= number < len(strengths):
        raise ValueError(f"{name} must be {kind} in 0..{len(strengths) - 1}, got {wanted!r}")
    return number


def _check_windows(patch: object, stride: object, size: Pair) -> tuple[Pair, Pair]:
    """The patch and the stride, (height, width) each, for an image of this size."""
    patch = pair("patch", max(1, min(size) // 5) if patch is None else patch, 1)
    if patch[0] > size[0] or patch[1] > size[1]:
        raise ValueError(f"patch {patch} is larger than the image {size}")
    stride = pair("stride", tuple(max(1, side // 4) for side in patch) if stride is None else stride, 1)
    if stride[0] > patch[0] or stride[1] > patch[1]:
        raise ValueError(f"stride {stride} is larger than the patch {patch}: pixels would stay uncovered")
    return patch, stride


def _windows(height: int, width: int, patch: tuple[int, int], stride: tuple[int, int]) -> torch.Tensor:
    def spans(size: int, length: int, step: int) -> list[tuple[int, int]]:
        count = -(-(size - length) // step) + 1
        return [(i * step, min(i * step + length, size)) for i in range(count)]

    rows, columns = spans(height, patch[0], stride[0]), spans(width, patch[1], stride[1])
    return torch.tensor([[(top, left, bottom, right) for left, right in columns] for top, bottom in rows])


def _check_image(image: torch.Tensor) -> torch.Tensor:
    if not isinstance(image, torch.Tensor):
        raise TypeError(f"image must be a torch.Tensor, got {type(image).__name__}")
    if not image.is_floating_point():
        raise TypeError(f"image must be of a floating dtype, normalised as the model takes it, got {image.dtype}")
    if image.dim() == 4 and len(image) == 1:
        image = image[0]
    if image.dim() != 3 or 0 in image.shape:
        raise ValueError(f"image must be one image of shape (C, H, W) or (1, C, H, W), got {tuple(image.shape)}")
    return image


def _check_fill(
    fill: float | Sequence[float] | torch.Tensor | str | None, image: torch.Tensor, patch: tuple[int, int]
) -> torch.Tensor:
    if isinstance(fill, str) and fill == "blur":
        return _blurred(image, max(patch) / 2)
    if fill is None or (isinstance(fill, str) and fill == "mean"):
        fill = image.mean(dim=(1, 2))
    try:
        cover = torch.as_tensor(fill, dtype=image.dtype, device=image.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"fill must be a number, one a channel, a (C, H, W) image, 'mean' or 'blur', got {fill!r}"
        ) from error
    channels = len(image)
    if cover.dim() == 1 and len(cover) == channels:
        cover = cover[:, None, None]
    if cover.dim() != 0 and tuple(cover.shape) not in ((channels, 1, 1), tuple(image.shape)):
        raise ValueError(
            f"fill must be a number, {channels} numbers or of shape {tuple(image.shape)}, "
            f"got shape {tuple(cover.shape)}"
        )
    if not bool(torch.isfinite(cover).all()):
        raise ValueError(f"fill must be finite, got {fill!r}")
    return cover.expand(image.shape)


def _blurred(image: torch.Tensor, deviation: float) -> torch.Tensor:
    """The image under a Gaussian of this standard deviation in pixels, weights beyond the edges left out."""
    blurred = image if image.element_size() > 2 else image.float()
    for axis in (1, 2):
        places = torch.arange(image.shape[axis], dtype=blurred.dtype, device=image.device)
        weights = torch.exp(-((places[:, None] - places) ** 2) / (2 * deviation**2))
        weights = weights / weights.sum(1, keepdim=True)
        blurred = torch.tensordot(weights, blurred, dims=([1], [axis])).movedim(0, axis)
    return blurred.to(image.dtype)


Projected = tuple[str, torch.Tensor, tuple[int, int, int, int]]  # title, projection (C, H, W), box


@dataclass(frozen=True)
class Occluded:
    """One image with its occlusion map."""

    name: str
    image: torch.Tensor  # uint8 (3, H, W)
    result: OcclusionMap
    projected: list[Projected] = field(default_factory=list)  # the map that `result` sums: here first, then elsewhere


def project_map(
    model: torch.nn.Module | Deconvnet,
    image: torch.Tensor,
    layer: str,
    channel: int,
    others: torch.Tensor | None = None,
    names: Sequence[str] = (),
    method: str | None = None,
) -> list[Projected]:
    """The map's strongest activation projected in `image` (C, H, W), and in `others` (N, C, H, W) of these names."""
    deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)
    images = image[None] if others is None else torch.cat([image[None], others])
    result = deconv.project(images, layer, channel, method=method_for(deconv, layer, method))
    titles = ["this picture", *names]
    return list(zip(titles, result.pixels, map(tuple, result.boxes.tolist()), strict=True))


def table(result: OcclusionMap, classes: Sequence[str]) -> str:
    """The clear answer, the window that lowers it most, and how many there are."""
    lowest = divmod(int(result.probability.argmin()), result.probability.shape[1])
    top, left, bottom, right = result.boxes[lowest].tolist()
    return (
        f"clear       {classes[result.clear_label]}; P({classes[result.target]}) = {result.clear_probability:.4f}\n"
        f"lowest      P = {float(result.probability[lowest]):.4f} with rows {top} to {bottom - 1}, "
        f"columns {left} to {right - 1} covered\n"
        f"cells       {result.probability.shape[0]} x {result.probability.shape[1]}, raw"
    )


def figure(occluded: Occluded, classes: Sequence[str]) -> Figure:
    """The paper's Fig. 7: the image, the map's activity, the target's probability and the most probable class."""
    result = occluded.result
    drawn = new_figure(11.2, 2.9 if not occluded.projected else 5.4)
    upper: Figure | SubFigure = drawn
    if occluded.projected:
        upper, lower = drawn.subfigures(2, 1, squeeze=False).ravel()
        _projected_row(lower, occluded)
    picture, activity, probability, label = upper.subplots(1, 4)
    height, width = occluded.image.shape[1:]
    picture.imshow(plain_picture(occluded.image), extent=(0, width, height, 0), interpolation="nearest")
    worst = divmod(int(result.probability.argmin()), result.probability.shape[1])
    outline(picture, result.boxes[worst].tolist())
    picture.set_title(f"(a) {shortened(occluded.name, WIDEST)}", fontsize=9)
    picture.set_xlabel("pixels of the network's input", fontsize=8, color=SOFT)

    if result.activity is None or result.clear_activity is None:
        activity.set_axis_off()
    else:
        _cells(activity, occluded, result.activity.numpy(), "viridis", result.clear_activity)
        activity.set_title(
            f"(b) sum of activity of\n{shortened(f'{result.layer}, map {result.channel}', WIDEST)}", fontsize=9
        )

    _cells(probability, occluded, result.probability.numpy(), "magma", result.clear_probability)
    title = f"(c) P({shortened(classes[result.target], WIDEST)}),\n{result.clear_probability:.3g} when clear (line)"
    probability.set_title(title, fontsize=9)
    _most_probable(label, occluded, classes)
    label.set_title("(d) most probable class", fontsize=9)
    for axes in (picture, activity, probability, label):
        axes.set(xlim=(0, width), ylim=(height, 0), xticks=[0, width // 2, width], yticks=[0, height // 2, height])
        axes.tick_params(colors=SOFT, labelsize=7)
        axes.set_facecolor("#e8e8e8")
    return drawn


def _extent(occluded: Occluded) -> tuple[float, float, float, float]:
    """The cells' left, right, bottom and top, in the image's pixels.

    A cell is drawn around its window's centre; the windows at the far edges are cut, and drawn as if they were not.
    """
    boxes, (height, width) = occluded.result.boxes, occluded.image.shape[1:]
    rows, columns = boxes.shape[:2]
    stride_h = int(boxes[1, 0, 0]) if rows > 1 else height
    stride_w = int(boxes[0, 1, 1]) if columns > 1 else width
    patch_h, patch_w = int(boxes[0, 0, 2]), int(boxes[0, 0, 3])
    left, top = (patch_w - stride_w) / 2, (patch_h - stride_h) / 2
    return left, left + columns * stride_w, top + rows * stride_h, top


def _cells(axes: Axes, occluded: Occluded, values: np.ndarray, colours: str, clear: float) -> None:
    """Draws a number a cell, with a bar of its colours from the least to the largest, and on it a line at `clear`."""
    low, high = min(float(values.min()), clear), max(float(values.max()), clear)
    drawn = axes.imshow(values, cmap=colours, extent=_extent(occluded), vmin=low, vmax=high, interpolation="nearest")
    scale = axes.figure.colorbar(drawn, cax=axes.inset_axes((1.05, 0, 0.06, 1)))  # as high as the cells
    scale.ax.tick_params(colors=SOFT, labelsize=7)
    scale.outline.set_visible(False)
    scale.set_ticks([low, (low + high) / 2, high])
    scale.set_ticklabels([f"{level:.3g}" for level in (low, (low + high) / 2, high)])
    scale.ax.axhline(clear, color="w", linewidth=1.5)


def _most_probable(axes: Axes, occluded: Occluded, classes: Sequence[str]) -> None:
    """A colour a class, with the names of the 6 most frequent."""
    from matplotlib import colormaps
    from matplotlib.patches import Patch

    label, palette = occluded.result.label, colormaps["tab20"]
    frequent = sorted(set(label.ravel().tolist()), key=lambda c: -int((label == c).sum()))
    colours = np.array([palette(c % 20)[:3] for c in range(len(classes))])
    if len(classes) > 20:  # of so many, those that are seen must differ
        colours[frequent] = [palette(rank % 20)[:3] for rank in range(len(frequent))]
    axes.imshow(colours[label.numpy()], extent=_extent(occluded), interpolation="nearest")
    handles = [Patch(color=colours[c], label=shortened(classes[c], 24)) for c in frequent[:6]]
    axes.legend(
        handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False, handlelength=1
    )


def _projected_row(canvas: Figure | SubFigure, occluded: Occluded) -> None:
    """Panel (e), the paper's (c): the map's strongest activation projected, in this image and in others."""
    of = f"{occluded.result.layer}, map {occluded.result.channel}"
    columns, projected = canvas.subplots(1, max(4, len(occluded.projected))), occluded.projected
    heading, lone = f"(e) {of}: its strongest activation, projected", len(projected) == 1
    if not lone:
        canvas.suptitle(f"{heading}, in", fontsize=9)
    for axes, (title, pixels, box) in zip(columns, projected, strict=False):
        top, left, bottom, right = box
        part = cut(pixels, box)
        limit = full_scale([part])
        axes.imshow(signed_picture(part, limit), extent=(left, right, bottom, top), interpolation="nearest")
        told = f"{shortened(title, 18)}, full colour \u00b1{limit:.2g}"
        if lone:
            axes.set_title(f"{heading},\nin {told}", fontsize=9, loc="left")
        else:
            axes.set_title(told, fontsize=8)
        axes.tick_params(colors=SOFT, labelsize=7)
    for axes in columns[len(projected) :]:
        axes.set_axis_off()
