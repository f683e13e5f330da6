"""A picture file read as the pixels that a network takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..drawing.tiles import GREY

if TYPE_CHECKING:
    from PIL import Image as ImageModule


def read_picture(path: str | Path, size: tuple[int, int]) -> torch.Tensor:
    """The file's picture as a uint8 (3, height, width) tensor of `size` (height, width).

    Any format Pillow reads. The camera's rotation (EXIF) is undone, transparent pixels are laid over mid-grey, 16-bit
    and floating-point greys are brought to 8 bits (floating-point by their own range), and an animation gives its
    first frame. The picture is resized, its proportions kept, until it just covers `size`; what sticks out is cut off
    evenly on both sides.

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
    """Greys of more than 8 bits brought to 8; other pictures as they are."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint32) // 257).astype(np.uint8))
    if image.mode == "I":  # 16-bit PNGs in Pillow before version 11, and 32-bit files
        values = np.asarray(image).clip(0)
        return Image.fromarray((values // (257 if values.max() < 65536 else 16843009)).astype(np.uint8))
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        spread = float(values.max() - values.min()) or 1.0
        return Image.fromarray(((values - values.min()) * (255 / spread)).round().astype(np.uint8))
    return image
