"""The gallery's two forms: README.md, and gallery.html, which is light or dark as its reader's screen is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..drawing.page import Picture, address, render
from ..files import write_text
from .captions import HEAD, Caption

SHOWN = 1.5  # pixels of a picture a pixel of the page, as figures are drawn with 144 an inch


@dataclass(frozen=True)
class Section:
    """A section whose pictures are drawn."""

    name: str
    caption: Caption
    body: str  # a table
    values: Mapping[str, object]  # what the caption leaves open

    @property
    def shows(self) -> str:
        return self.caption.shows.format(**self.values)

    @property
    def titles(self) -> list[str]:
        """Of its pictures."""
        return [self.caption.title, *(Path(file).stem.rpartition("_")[2] for file in self.caption.pictures[1:])]

    @property
    def alts(self) -> list[str]:
        """What is seen on its pictures."""
        said = self.caption.seen or ("{title}: the figure that the text below describes",)
        return [said[min(i, len(said) - 1)].format(title=title, **self.values) for i, title in enumerate(self.titles)]


def dark(path: Path) -> Path:
    """Where the picture for dark pages lies."""
    return path.with_stem(f"{path.stem}-dark")


def markdown(sections: Sequence[Section]) -> str:
    return HEAD + "\n".join(map(_markdown, sections))


def _markdown(section: Section) -> str:
    caption = section.caption
    pictures = "".join(f"![{alt}]({file})\n\n" for alt, file in zip(section.alts, caption.pictures, strict=False))
    text = f"```\n{section.body}\n```\n\n" if section.body else ""
    shows, lacks = f"**Shows.** {section.shows}", f"**Does not show.** {caption.does_not_show}"
    return f"\n## {caption.title}\n\n{pictures}{text}{shows}\n\n{lacks}\n"


def write_page(path: Path, sections: Sequence[Section]) -> None:
    """The page of the sections, whose pictures lie beside it."""
    pictures = {section.name: _pictures(path.parent, section) for section in sections}
    _, title, text = HEAD.split("\n", 2)[0].partition("# ")[1:] + ("",), "Gallery", HEAD.partition("\n")[2].strip()
    write_text(path, render("gallery.html", title=title, text=text, sections=sections, pictures=pictures))


def _pictures(folder: Path, section: Section) -> list[Picture]:
    shown = []
    for file, alt in zip(section.caption.pictures, section.alts, strict=False):
        with Image.open(folder / file) as picture:
            width, height = (round(side / SHOWN) for side in picture.size)
        other = dark(folder / file)
        shown.append(
            Picture(
                address(folder / file, folder), width, height, alt, address(other, folder) if other.exists() else ""
            )
        )
    return shown
