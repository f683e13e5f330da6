"""HTML pages from templates/*.html, which share base.html, style.css and script.js."""

from __future__ import annotations

import base64
import io
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from .style import ACCENT, INK, SOFT

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: object) -> str:
    """The page that templates/`template` describes. Text in `values` is escaped; a name that it lacks is an error."""
    return _environment().get_template(template).render(**values)


def data_uri(picture: np.ndarray, kind: str, **options: object) -> str:
    """A uint8 (H, W, 3) picture as a `data:` URI, written by Pillow as `kind` with its `options`."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("zfkernels.drawing")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals.update(ink=INK, soft=SOFT, accent=ACCENT)
    return environment
