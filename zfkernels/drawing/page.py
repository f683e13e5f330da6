"""HTML pages from templates/*.html, which share base.html and style.css, the explorer's look."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from .style import dark

FIGURE = 1.5  # 144 pixels an inch, of which a page has 96
STYLE = Path(__file__).parent / "templates" / "style.css"
LOADER = PackageLoader("zfkernels.drawing")
ENVIRONMENT = Environment(
    trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, loader=LOADER, autoescape=True
)


@dataclass(frozen=True)
class Picture:
    """A picture as a page shows it, with its size there, in pixels of the page, so that its place is known early."""

    source: str  # its address, of a page beside it
    width: int
    height: int
    alt: str  # what is seen on it
    dark: str = ""  # the address of another for pages that are dark


def render(template: str, **values: object) -> str:
    """The page that templates/`template` describes. Text in `values` is escaped; a name that it lacks is an error."""
    from .. import __version__

    return ENVIRONMENT.get_template(template).render(version=__version__, **values)


def address(path: Path, folder: Path) -> str:
    """The address of a file below the `folder` of a page, whatever its name."""
    return quote(path.relative_to(folder).as_posix())


def picture_of(file: Path, folder: Path, alt: str, scale: float = 1.0) -> Picture:
    """A picture file as the page in `folder` shows it, with its twin for dark pages, if it has one.

    `scale`: pixels of the file a pixel of the page; FIGURE for what matplotlib draws.
    """
    with Image.open(file) as picture:
        width, height = (round(side / scale) for side in picture.size)
    twin = dark(file)
    return Picture(address(file, folder), width, height, alt, address(twin, folder) if twin.exists() else "")


def encoded(picture: np.ndarray, kind: str, **options: object) -> bytes:
    """A uint8 (H, W, 3) picture, written by Pillow as `kind` with its `options`."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return buffer.getvalue()


def data_uri(picture: np.ndarray, kind: str, **options: object) -> str:
    """A picture as a `data:` URI, encoded as `encoded` does."""
    return f"data:image/{kind};base64,{base64.b64encode(encoded(picture, kind, **options)).decode()}"
