"""The ink, axes and fonts of every figure."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
    from matplotlib.figure import SubFigure as SubFigure
    from PIL.ImageFont import FreeTypeFont
else:  # both are optional, and slow to import
    Axes = Figure = SubFigure = FreeTypeFont = Any

INK, SOFT, ACCENT = "#1c1e21", "#6a7079", "#b3401f"


class Inks(NamedTuple):
    """What Pillow draws a sheet with."""

    paper: str
    ink: str
    soft: str
    accent: str


LIGHT = Inks("#ffffff", INK, SOFT, ACCENT)
NIGHT = Inks("#1e2024", "#e8e6e2", "#a5abb4", "#f0906f")  # of panes on dark pages, as templates/style.css has them
ON_DARK = {INK: NIGHT.ink, "#000000": NIGHT.ink, SOFT: NIGHT.soft, ACCENT: NIGHT.accent, "#1f6fb3": "#6fb1ec"}


def plain_axes(axes: Axes) -> None:
    """Only the left and the lower axis, with small grey numbers."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(which="both", colors=SOFT, labelsize=8)


def outline(axes: Axes, box: Sequence[int]) -> None:
    """A half-open box (top, left, bottom, right) as a frame that can be seen on light and on dark."""
    from matplotlib.patches import Rectangle

    top, left, bottom, right = box
    for colour, line in (("w", 2.5), (ACCENT, 1.2)):
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=line))


def new_figure(width: float, height: float) -> Figure:
    """A figure of that many inches that writes PNG files, whatever backend matplotlib is set to."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure to a file, whole or not at all, whose folder is made where it is missing.

    The ending says in which format; without one it is PNG, under the very name.

    Raises:
        ValueError: an ending that is no format; the formats are named.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    literally(figure)
    kind = path.suffix[1:].lower() or "png"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # names of files in letters that the font lacks: boxes say so
        write_whole(path, lambda beside: figure.savefig(beside, format=kind))


def literally(figure: Figure) -> None:
    """Every text of the figure as it stands: names of files may have dollars, and bytes that are no text."""
    from matplotlib.text import Text

    texts: list[Any] = figure.findobj(Text)
    for text in texts:
        text.set_parse_math(False)
        text.set_text(text.get_text().encode("utf-8", "backslashreplace").decode())


def darken(figure: Figure) -> None:
    """Turn the figure, in place, into one for dark pages: its paper, and the inks that this module names."""
    from matplotlib.colors import to_hex

    figure.patch.set_facecolor(NIGHT.paper)
    for axes in figure.axes:
        if to_hex(axes.get_facecolor()) == "#ffffff":
            axes.set_facecolor(NIGHT.paper)
        axes.tick_params(which="both", colors=ON_DARK[SOFT])
        for spine in axes.spines.values():
            spine.set_edgecolor(ON_DARK[SOFT])
    coloured: list[Any] = figure.findobj(lambda artist: hasattr(artist, "get_color") and hasattr(artist, "set_color"))
    for artist in coloured:
        colour = artist.get_color()
        if isinstance(colour, str) and to_hex(colour) in ON_DARK:
            artist.set_color(ON_DARK[to_hex(colour)])


def dark(path: Path) -> Path:
    """Where the same picture for dark pages lies."""
    return path.with_stem(f"{path.stem}-dark")


def save_twins(figure: Figure, path: Path) -> None:
    """Write the figure, and beside it the same for dark pages, which it then is."""
    save(figure, path)
    darken(figure)
    save(figure, dark(path))


def check_format(path: Path) -> None:
    """ValueError if the ending of `path` is no format of figures. None at all is PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    known = sorted(FigureCanvasAgg.get_supported_filetypes())
    if path.suffix and path.suffix[1:].lower() not in known:
        raise ValueError(f"Format {path.suffix[1:]!r} is not supported (supported formats: {', '.join(known)}): {path}")


def font(size: int) -> FreeTypeFont:
    """Matplotlib's own font, for text that Pillow draws."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)
