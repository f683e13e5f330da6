"""A picture file read as the pixels that a network takes. The one reader of all commands.

Whatever the file, the picture looks as it would in a file of 8 bits a colour:

- Whole numbers of more bits are taken to use the smallest depth of 8, 10, 12, 14, 16, 24 and 32 bits (31 where they
  have a sign) that holds the largest of them: 12-bit data in a 16-bit file is not dark.
- Floating-point numbers are taken to lie in 0 to 1, 255 or 65535, if none is negative and the largest lies in the upper
  half of one of these; otherwise they, like whole numbers of which one is negative, are brought to 0..255 by their own
  range. Infinite and NaN pixels do not count for the range: they become white (inf) or black.
- Transparent pixels are laid over mid-grey, of every kind of transparency: an alpha channel, a palette's, or the one
  colour that a file names.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

import numpy as np
import torch

from ..drawing.tiles import GREY
from ..files import beginning, check_regular, kind_of, reason
from ..progress import Shown, bar

if TYPE_CHECKING:
    from PIL import Image as ImageModule

DEPTHS = (8, 10, 12, 14, 16, 24)
FLOAT_TOPS = (1.0, 255.0, 65535.0)
ORIENTATION = 0x0112  # of EXIF


def read_picture(path: str | Path, size: tuple[int, int]) -> torch.Tensor:
    """The file's picture as a uint8 (3, height, width) tensor of `size` (height, width).

    Any format Pillow reads. The camera's rotation (EXIF) is undone, transparent pixels are laid over mid-grey, other
    depths are brought to 8 bits as the module says, and an animation gives its first frame. The picture is resized, its
    proportions kept, until it just covers `size`; what sticks out is cut off evenly on both sides.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that Pillow cannot read as a picture.
    """
    from PIL import Image, ImageOps

    height, width = size
    fitted = ImageOps.fit(decoded(path), (width, height), method=Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)


def decoded(
    path: str | Path | BinaryIO, quick: bool = False, formats: tuple[str, ...] | None = None
) -> ImageModule.Image:
    """The file's picture, upright and in RGB; `quick`: all of it read, but a JPEG at a fraction of its size.

    `formats`: those that are tried, in Pillow's names; all if None.

    Raises:
        FileNotFoundError, ValueError: as `read_picture`.
    """
    from PIL import Image, ImageOps

    if isinstance(path, (str, Path)):
        check_regular(Path(path))
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # twice that size is an error
    try:
        with Image.open(path, formats=formats) as opened:
            if quick:
                opened.draft("RGB", (64, 64))
            rawmode, unsigned = _rawmode(opened), _is_unsigned(opened)
            opened.load()
            upright = ImageOps.exif_transpose(_brightened(opened, rawmode, path))
            return _opaque(_eight_bits(upright, unsigned), rawmode)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no picture {path}") from None
    except Exception as error:  # Pillow's plugins raise anything on a damaged file
        said = reason(error).replace(repr(str(path)), "it").splitlines()[0]
        kind = ""
        if isinstance(path, (str, Path)) and getattr(error, "errno", None) is None:  # it could be opened
            kind = kind_of(beginning(Path(path)))
        raise ValueError(f"{path} is not a picture that Pillow can read ({kind or said})") from error


def unreadable(paths: Sequence[Path], progress: Shown = False) -> list[tuple[Path, str]]:
    """Those of the pictures that cannot be read, and why: each is decoded, several at a time."""

    def problem(path: Path) -> str:
        try:
            decoded(path, quick=True)
        except (OSError, ValueError) as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(os.cpu_count()) as threads:
        problems = list(
            bar(threads.map(problem, paths), "checking pictures", "picture", progress, sizes=[1] * len(paths))
        )
    return [(path, why) for path, why in zip(paths, problems, strict=True) if why]


def _rawmode(opened: ImageModule.Image) -> str:
    """How the file stores its pixels, in Pillow's words; "" where it does not say."""
    tile = getattr(opened, "tile", None)
    arguments = tile[0][3] if tile else ""
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _brightened(opened: ImageModule.Image, rawmode: str, path: str | Path | BinaryIO) -> ImageModule.Image:
    """A picture of 16 bits a colour that uses fewer, by the module's rule; any other as it is.

    Of 16 bits Pillow keeps the upper 8. Read once more with its bytes swapped, the file gives the lower 8.
    """
    from PIL import Image

    stored = re.fullmatch("(RGBA?|RGBX);16([BLN])", rawmode)
    if stored is None or max(high for _, high in _extrema(opened)[:3]) >= 2 ** (14 - 8):
        return opened
    order = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}[stored[2]]
    with Image.open(path) as again:
        tiles = []
        for codec, extents, offset, arguments in again.tile:
            rest = arguments[1:] if isinstance(arguments, tuple) else ()
            swapped = f"{stored[1]};16{order}"
            tiles.append((codec, extents, offset, (swapped, *rest) if isinstance(arguments, tuple) else swapped))
        again.tile = [type(tile)(*new) for tile, new in zip(again.tile, tiles, strict=True)]
        again.load()
        values = np.asarray(opened).astype(np.uint16) * 256 + np.asarray(again)
    colours = Image.fromarray(_bytes(values[..., :3]))
    if opened.mode == "RGBA":
        colours.putalpha(opened.getchannel("A"))
    transparent = opened.info.get("transparency")
    if isinstance(transparent, tuple):
        seen = (values[..., :3] != transparent).any(2)
        colours.putalpha(Image.fromarray(seen.astype(np.uint8) * 255))
    colours.getexif()[ORIENTATION] = opened.getexif().get(ORIENTATION, 1)
    return colours


def _extrema(opened: ImageModule.Image) -> tuple[tuple[int, int], ...]:
    """The least and the largest value of each colour, where there are several."""
    return cast("tuple[tuple[int, int], ...]", opened.getextrema())


def _is_unsigned(opened: ImageModule.Image) -> bool:
    """Whether it is a TIFF of whole numbers without a sign, which Pillow gives as if they had one."""
    tags = getattr(opened, "tag_v2", {})
    return opened.mode == "I" and opened.format == "TIFF" and tuple(tags.get(339, (1,))) == (1,)


def _eight_bits(image: ImageModule.Image, unsigned: bool) -> ImageModule.Image:
    """Greys of more than 8 bits brought to 8; other pictures as they are."""
    from PIL import Image

    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    grey = Image.fromarray(_bytes(values.view(np.uint32) if unsigned else values))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _bytes(values: np.ndarray) -> np.ndarray:
    """uint8 of any numbers, by the module's rule."""
    values = values.astype(np.float64) if values.dtype.kind == "f" else values
    finite = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    if finite.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = _range(float(finite.min()), float(finite.max()), values.dtype)
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) * (255 / (high - low))
    rounded: np.ndarray = scaled.round().clip(0, 255).astype(np.uint8)
    return rounded


def _range(lowest: float, highest: float, dtype: np.dtype) -> tuple[float, float]:
    """The numbers that are black and white."""
    if lowest >= 0 and dtype.kind == "f":
        for top in FLOAT_TOPS:
            if top / 2 < highest <= top:
                return 0.0, top
    elif lowest >= 0:
        depths = (*DEPTHS, 31 if dtype.kind == "i" else 32)
        return 0.0, float(next(2**depth - 1 for depth in depths if highest <= 2**depth - 1))
    return lowest, highest if highest > lowest else lowest + 1


def _opaque(image: ImageModule.Image, rawmode: str) -> ImageModule.Image:
    """In RGB, transparent pixels over mid-grey."""
    from PIL import Image, ImageCms

    transparent = image.info.get("transparency")
    if rawmode.startswith("RGB;16") and isinstance(transparent, tuple):  # of the 16 bits Pillow keeps the upper 8
        image.info["transparency"] = tuple(level >> 8 for level in transparent)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or transparent is not None:
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (GREY, GREY, GREY, 255)), image)
    if image.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None  # it is where an image is changed in place
        image = converted
    return image.convert("RGB")
