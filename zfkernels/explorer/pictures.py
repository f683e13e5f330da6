"""What the explorer's pictures look like: arrays as WebP, a unit's views as strips, uploads as pixels."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ..data.pictures import decoded
from ..drawing.tiles import cut, full_scale, plain_picture, signed_picture, tile

SIDE = 112  # pixels that a view is drawn with, or a whole multiple of its own near that
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # of uploads
MOST_BYTES, MOST_PIXELS = 20 * 2**20, 40_000_000  # of an upload


def webp(picture: np.ndarray) -> bytes:
    """A uint8 (H, W, 3) picture; small ones without loss, for their pixels are looked at one by one."""
    buffer, small = io.BytesIO(), max(picture.shape[:2]) <= 2 * SIDE
    Image.fromarray(picture).save(buffer, "webp", lossless=small, quality=40 if small else 86, method=2)
    return buffer.getvalue()


def view(picture: np.ndarray) -> np.ndarray:
    """The picture at about SIDE pixels: enlarged by whole pixels, or reduced."""
    longest = max(picture.shape[:2])
    if longest <= SIDE:
        zoom = max(1, SIDE // longest)
        return picture.repeat(zoom, 0).repeat(zoom, 1)
    size = tuple(max(1, round(side * SIDE / longest)) for side in picture.shape[1::-1])
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))


def strip(pictures: Sequence[np.ndarray]) -> bytes:
    """Pictures of one size below one another."""
    return webp(tile([view(picture) for picture in pictures], 1, 1, gap=0))


def pair(projection: np.ndarray, patch: np.ndarray) -> np.ndarray:
    """A projection and, to its right, the patch that caused it."""
    return np.concatenate([view(projection), view(patch)], 1)


def projections(pixels: Tensor, boxes: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Each on its own scale, cut to its box: for units that are not compared."""
    parts = [cut(picture, box).float().cpu() for picture, box in zip(pixels, boxes, strict=True)]
    return [signed_picture(part, full_scale([part])) for part in parts]


def whole(picture: Tensor) -> bytes:
    return webp(plain_picture(picture))


def uploaded(data: bytes, size: tuple[int, int]) -> Tensor:
    """An upload as `read_picture` gives it: uint8 (3, height, width).

    Raises:
        ValueError: no picture of FORMATS, or too large a one; said without what the upload contains.
    """
    kinds = ", ".join(FORMATS)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"the picture must have at most {MOST_PIXELS // 10**6} megapixels")
            opened.verify()
        picture = decoded(io.BytesIO(data), formats=FORMATS)
    except Exception as error:  # Pillow's plugins raise anything on a damaged file
        known = isinstance(error, ValueError) and "megapixels" in str(error)
        raise ValueError(str(error) if known else f"the upload must be a whole picture, one of {kinds}") from None
    fitted = ImageOps.fit(picture, size[::-1], method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
