"""What a network loses when a part of the image is covered (Zeiler & Fergus, section 4.2 and Fig. 7)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from .ops.window import pair


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


@torch.no_grad()
def occlusion_map(
    model: torch.nn.Module,
    image: torch.Tensor,
    target: int | None = None,
    *,
    patch: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    fill: float | Sequence[float] | torch.Tensor | None = None,
    layer: str | None = None,
    channel: int | None = None,
    batch_size: int = 64,
    progress: bool = False,
) -> OcclusionMap:
    """Slide a covering window over `image` and record what `model` says at each position.

    Window (r, c) covers rows [r*stride, r*stride + patch) and columns likewise, height before width. There are
    ceil((size - patch) / stride) + 1 positions along each side: the last window reaches the image's edge and is cut
    there, so every pixel is covered at least once and no window lies outside.

    Args:
        model: any module from images (N, C, H, W) to logits (N, classes); run in evaluation mode and then put back.
        image: (C, H, W) or (1, C, H, W), as the model takes it (normalised), on the model's device.
        target: the class whose probability is recorded; the most probable one of the clear image when None.
        patch: the window, int or (height, width); a fifth of the image's shorter side when None.
        stride: its step, int or (height, width), at most `patch`; a quarter of the patch when None.
        fill: what covers the pixels: a number, one a channel, or a (C, H, W) image; the image's mean colour when None.
        layer: also sum one map of this submodule (a name of `model.named_modules()`, "conv5" of a ZFNet).
        channel: which map; when None the one that holds the layer's largest activation in the clear image.
        batch_size: images a forward pass.
        progress: show a progress bar (needs tqdm).

    Raises:
        ValueError: for a shape, size or name that does not fit, naming the argument.
        TypeError: for an image or fill of the wrong type.
    """
    image = _check_image(image)
    height, width = image.shape[1:]
    patch_h, patch_w = pair("patch", max(1, min(height, width) // 5) if patch is None else patch, 1)
    if patch_h > height or patch_w > width:
        raise ValueError(f"patch {(patch_h, patch_w)} is larger than the image {(height, width)}")
    stride_h, stride_w = pair("stride", (max(1, patch_h // 4), max(1, patch_w // 4)) if stride is None else stride, 1)
    if stride_h > patch_h or stride_w > patch_w:
        raise ValueError(
            f"stride {(stride_h, stride_w)} is larger than the patch {(patch_h, patch_w)}: pixels would stay uncovered"
        )
    if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive int, got {batch_size!r}")
    if layer is None and channel is not None:
        raise ValueError(f"channel {channel} needs a layer: pass layer= too")
    cover = _check_fill(fill, image)
    boxes = _windows(height, width, (patch_h, patch_w), (stride_h, stride_w))

    with _evaluation(model), _recording(model, layer) as maps:
        clear_logits = _logits(model, image[None])[0]
        classes = len(clear_logits)
        if target is None:
            target = int(clear_logits.argmax())
        elif isinstance(target, bool) or not isinstance(target, int) or not 0 <= target < classes:
            raise ValueError(f"target must be a class in 0..{classes - 1}, got {target!r}")
        clear_activity = None
        if layer is not None:
            clear_maps = _maps(maps, layer)[0]
            if channel is None:
                channel = int(clear_maps.amax(dim=(1, 2)).argmax())
            elif isinstance(channel, bool) or not isinstance(channel, int) or not 0 <= channel < len(clear_maps):
                raise ValueError(f"channel must be a map of {layer} in 0..{len(clear_maps) - 1}, got {channel!r}")
            clear_activity = float(clear_maps[channel].sum())

        logits, activity = [], []
        flat = boxes.reshape(-1, 4)
        starts = range(0, len(flat), batch_size)
        if progress:
            from tqdm import tqdm

            starts = tqdm(starts, desc="occlusion", unit="batch")
        for start in starts:
            windows = flat[start : start + batch_size].tolist()
            covered = image.expand(len(windows), -1, -1, -1).clone()
            for picture, (top, left, bottom, right) in zip(covered, windows, strict=True):
                picture[:, top:bottom, left:right] = cover[:, top:bottom, left:right]
            logits.append(_logits(model, covered))
            if layer is not None:
                activity.append(_maps(maps, layer)[:, channel].sum(dim=(1, 2)))

    grid = boxes.shape[:2]
    logits = torch.cat(logits).reshape(*grid, classes)
    return OcclusionMap(
        probability=logits.softmax(-1)[..., target],
        logit=logits[..., target].clone(),
        label=logits.argmax(-1),
        activity=torch.cat(activity).reshape(grid) if layer is not None else None,
        boxes=boxes,
        target=target,
        layer=layer,
        channel=channel,
        clear_probability=float(clear_logits.softmax(-1)[target]),
        clear_logit=float(clear_logits[target]),
        clear_label=int(clear_logits.argmax()),
        clear_activity=clear_activity,
    )


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


def _check_fill(fill: float | Sequence[float] | torch.Tensor | None, image: torch.Tensor) -> torch.Tensor:
    if fill is None:
        fill = image.mean(dim=(1, 2))
    try:
        cover = torch.as_tensor(fill, dtype=image.dtype, device=image.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"fill must be a number, one a channel, or a (C, H, W) image, got {fill!r}") from error
    channels = len(image)
    if cover.dim() == 1 and len(cover) == channels:
        cover = cover[:, None, None]
    if cover.dim() != 0 and tuple(cover.shape) not in ((channels, 1, 1), tuple(image.shape)):
        raise ValueError(
            f"fill must be a number, {channels} numbers or of shape {tuple(image.shape)}, "
            f"got shape {tuple(cover.shape)}"
        )
    return cover.expand(image.shape)


@contextmanager
def _evaluation(model: torch.nn.Module):
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _recording(model: torch.nn.Module, layer: str | None):
    """A list that holds the outputs of submodule `layer` of the last forward pass."""
    outputs: list = []
    if layer is None:
        yield outputs
        return
    modules = dict(model.named_modules())
    if not layer or layer not in modules:
        names = ", ".join(name for name in modules if name)
        raise ValueError(f"layer {layer!r} is no submodule of the model; choose one of: {names}")
    handle = modules[layer].register_forward_hook(lambda module, args, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def _maps(outputs: list, layer: str) -> torch.Tensor:
    if not outputs:
        raise ValueError(f"layer {layer!r} did not run in the forward pass; choose another")
    output = outputs[-1][0] if isinstance(outputs[-1], tuple) else outputs[-1]
    outputs.clear()
    if not isinstance(output, torch.Tensor) or output.dim() != 4:
        shape = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(f"layer {layer!r} must give maps (N, C, H, W), it gives {shape}")
    return output


def _logits(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    logits = model(images)
    if not isinstance(logits, torch.Tensor) or logits.dim() != 2 or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise ValueError(f"model must give logits ({len(images)}, classes), it gives {shape}")
    return logits
