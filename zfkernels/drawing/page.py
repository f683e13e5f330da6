"""HTML pages from templates/*.html, which share base.html, style.css and script.js."""

import base64
import io

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from .style import ACCENT, INK, SOFT

LOADER = PackageLoader("zfkernels.drawing")
ENVIRONMENT = Environment(
    trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined, loader=LOADER, autoescape=True
)
ENVIRONMENT.globals.update(ink=INK, soft=SOFT, accent=ACCENT)


def render(template: str, **values: object) -> str:
    """The page that templates/`template` describes. Text in `values` is escaped; a name that it lacks is an error."""
    return ENVIRONMENT.get_template(template).render(**values)


def data_uri(picture: np.ndarray, kind: str, **options: object) -> str:
    """A uint8 (H, W, 3) picture as a `data:` URI, written by Pillow as `kind` with its `options`."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
