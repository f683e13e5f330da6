"""Does a network relate the same part of different images? (Zeiler & Fergus, section 4.3 and Table 1)"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data.parts import Box
from ..deconvnet.deconvnet import Deconvnet
from ..progress import Shown, bar


@dataclass(frozen=True)
class Disagreement:
    """Delta of one part in one layer: low when hiding the part changes every image's features alike."""

    delta: float  # mean over the pairs i != j of the fraction of features whose sign of change differs
    deviation: float  # of the images' own means delta_i over j != i; sample deviation
    per_image: Tensor  # (N,) delta_i


Table = dict[str, dict[str, Disagreement]]  # layer -> part -> Delta: Table 1


def sign_disagreement(changes: Tensor) -> Disagreement:
    """Delta = sum_{i != j} H(sign eps_i, sign eps_j) / (N (N - 1) D) of changes eps (N, D); 0 has a sign of its own.

    The paper's Delta is the sum, "normalised"; the mean over pairs and features makes it a fraction from 0 to 1.
    """
    if changes.ndim != 2 or len(changes) < 2 or changes.shape[1] < 1:
        raise ValueError(f"changes must be (N, D) with N of at least 2, got shape {tuple(changes.shape)}")
    signs = changes.sign()
    per_image = torch.stack([(signs != row).double().mean(1).sum() / (len(signs) - 1) for row in signs])
    return Disagreement(float(per_image.mean()), float(per_image.std()), per_image)


@torch.no_grad()
def correspondence(
    model: nn.Module | Deconvnet,
    images: Tensor,
    parts: Mapping[str, Sequence[Box]],
    layers: Sequence[str],
    *,
    fill: float | Tensor = 0.0,
    progress: Shown = False,
) -> Table:
    """Table 1: for each layer and part, how alike the images' features change when the part is hidden.

    eps_i = x_i - x~_i, the features of image i minus those with the part covered by `fill`.

    Args:
        model: a ZFNet, any model that `Deconvnet` traces, or a Deconvnet; in evaluation mode.
        images: (N, C, H, W), N of at least 2.
        parts: for each part its box in every image: (top, left, bottom, right), half-open, in the input's pixels.
            Random boxes ("random") are the yardstick.
        layers: the paper's are the fifth (pool5) and the seventh.
        fill: 0 is the mean image where the mean was subtracted.
        progress: show a bar (needs tqdm).

    Raises:
        ValueError: a part without a box for each image, or an empty box or one that leaves the image.
    """
    deconv = model if isinstance(model, Deconvnet) else Deconvnet(model)
    clear = deconv.activations(images, layers)
    result: Table = {layer: {} for layer in layers}
    for name, boxes in bar(parts.items(), "correspondence", "part", progress):
        hidden = _hide(images, name, boxes, fill)
        for layer, features in deconv.activations(hidden, layers).items():
            result[layer][name] = sign_disagreement((clear[layer] - features).flatten(1))
    return result


def _hide(images: Tensor, part: str, boxes: Sequence[Box], fill: float | Tensor) -> Tensor:
    """The images, each covered in its box."""
    if len(boxes) != len(images):
        raise ValueError(f"part {part!r} must have a box for each of {len(images)} images, got {len(boxes)}")
    height, width = images.shape[2:]
    hidden = images.clone()
    cover = torch.as_tensor(fill, dtype=images.dtype, device=images.device).expand(images.shape[1:])
    for image, box in zip(hidden, boxes, strict=True):
        top, left, bottom, right = box
        if not (0 <= top < bottom <= height and 0 <= left < right <= width):
            raise ValueError(f"part {part!r} has the box {tuple(box)}, outside images of {(height, width)}")
        image[:, top:bottom, left:right] = cover[:, top:bottom, left:right]
    return hidden


def random_boxes(parts: Mapping[str, Sequence[Box]], size: tuple[int, int], seed: int = 0) -> list[Box]:
    """For each image a box at a random position, with the size of one of the image's parts drawn at random."""
    generator = torch.Generator().manual_seed(seed)

    def draw(count: int) -> int:
        return int(torch.randint(count, (), generator=generator))

    boxes = []
    for image_boxes in zip(*parts.values(), strict=True):
        top, left, bottom, right = image_boxes[draw(len(image_boxes))]
        height, width = bottom - top, right - left
        y, x = draw(size[0] - height + 1), draw(size[1] - width + 1)
        boxes.append((y, x, y + height, x + width))
    return boxes


def table(result: Table) -> str:
    """Table 1's rows and columns: mean +- deviation."""
    lines = [f"{'part hidden':<18}" + "".join(f"{layer:>18}" for layer in result)]
    for part in next(iter(result.values())):
        cells = (column[part] for column in result.values())
        lines.append(f"{part:<18}" + "".join(f"{f'{c.delta:.3f} ± {c.deviation:.3f}':>18}" for c in cells))
    return "\n".join(lines)
