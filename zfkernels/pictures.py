"""Pictures in and out: a user's file to a network's input, and tensors to picture tiles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from PIL import Image as ImageModule

GREY = 128


def read_picture(path: str | Path, size: tuple[int, int]) -> torch.Tensor:
    """The file's picture as a uint8 (3, height, width) tensor of `size` (height, width).

    Any format Pillow reads. The camera's rotation (EXIF) is undone, transparent pixels are laid over mid-grey, 16-bit
    and floating-point greys are brought to 8 bits (floating-point by their own range), and of an animation the first
    frame is taken. The picture is resized, its proportions kept, until it just covers `size`; what sticks out on
    either side is cut off evenly.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that Pillow cannot read as a picture.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = _eight_bits(ImageOps.exif_transpose(opened))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} is not a picture that Pillow can read ({error})") from error
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (GREY, GREY, GREY, 255)), image)
    height, width = size
    fitted = ImageOps.fit(image.convert("RGB"), (width, height), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def _eight_bits(image: ImageModule.Image) -> ImageModule.Image:
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    if image.mode == "I":  # what Pillow makes of 16-bit PNGs before version 11, and of 32-bit files
        values = np.asarray(image).clip(0)
        return Image.fromarray((values // (257 if values.max() < 65536 else 16843009)).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        spread = float(values.max() - values.min()) or 1.0
        return Image.fromarray(((values - values.min()) * (255 / spread)).round().astype(np.uint8))
    return image


def signed_picture(values: torch.Tensor, limit: float) -> np.ndarray:
    """(3, H, W) values to uint8 (H, W, 3): 0 is mid-grey, +limit full and -limit none of a colour."""
    scaled = values.detach().float().cpu() * (127 / limit if limit > 0 else 0.0) + GREY
    return scaled.round().clamp(1, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def plain_picture(image: torch.Tensor) -> np.ndarray:
    """A uint8 (3, H, W) image to (H, W, 3)."""
    return image.permute(1, 2, 0).cpu().numpy()


def tile(pictures: list[np.ndarray], columns: int, zoom: int, gap: int = 2, background: int = 255) -> np.ndarray:
    """Equal (H, W, 3) pictures row by row in a grid, each pixel a zoom x zoom block, `gap` pixels between."""
    height, width = pictures[0].shape[0] * zoom, pictures[0].shape[1] * zoom
    rows = -(-len(pictures) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), background, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture.repeat(zoom, 0).repeat(zoom, 1)
    return sheet


def cut(image, box: tuple[int, int, int, int]):
    """The part of a (..., H, W) image inside a half-open box (top, left, bottom, right)."""
    top, left, bottom, right = box
    return image[..., top:bottom, left:right]


def frame(box: Sequence[int], size: int | Sequence[int], shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """`box` grown, inside an image of `shape`, to `size` = (height, width) or a square's side, or to the image's sides.

    The receptive fields of units near the border are cut there; framed alike, they can be shown in one grid.
    """
    wanted = (size, size) if isinstance(size, int) else size
    height, width = (min(want, side) for want, side in zip(wanted, shape, strict=True))
    top, left = min(box[0], shape[0] - height), min(box[1], shape[1] - width)
    return top, left, top + height, left + width
