"""The gallery's two forms: README.md, and gallery.html, which is light or dark as its reader's screen is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..drawing.page import FIGURE, picture_of, render
from ..files import write_text
from .captions import HEAD, Caption


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
    def alts(self) -> list[str]:
        """What is seen on its pictures."""
        said = [text.format(**self.values) for text in self.caption.seen]
        return said or [f"{self.caption.title}: {file}" for file in self.caption.pictures]


def markdown(sections: Sequence[Section]) -> str:
    return HEAD + "\n".join(map(_markdown, sections))


def _markdown(section: Section) -> str:
    caption = section.caption
    pictures = "".join(f"![{alt}]({file})\n\n" for alt, file in zip(section.alts, caption.pictures, strict=True))
    text = f"```\n{section.body}\n```\n\n" if section.body else ""
    shows, lacks = f"**Shows.** {section.shows}", f"**Does not show.** {caption.does_not_show}"
    return f"\n## {caption.title}\n\n{pictures}{text}{shows}\n\n{lacks}\n"


def write_page(path: Path, sections: Sequence[Section]) -> None:
    """The page of the sections, whose pictures lie beside it."""
    folder = path.parent
    pictures = {
        section.name: [
            picture_of(folder / file, folder, alt, FIGURE)
            for file, alt in zip(section.caption.pictures, section.alts, strict=True)
        ]
        for section in sections
    }
    text = HEAD.partition("\n")[2].strip()
    write_text(path, render("gallery.html", text=text, sections=sections, pictures=pictures))
