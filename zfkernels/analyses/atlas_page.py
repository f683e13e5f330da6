"""The atlas as files: index.html, and a folder a layer of sheets and of pictures at full size.

A sheet holds the panels of some maps under their numbers and values, and can be looked at by itself. The page shows
pieces of the sheets, which a browser loads as they come into view. Where a tile of a sheet has fewer pixels than the
network's input, a picture of each map has them all, and is loaded when its card is opened.
"""

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageDraw

from ..drawing.page import address, encoded, render
from ..drawing.style import INK, SOFT, font
from ..drawing.tiles import stretched, zoom_to
from ..files import write_text, write_whole
from .atlas import Card, LayerCards, panel

TILE, LARGEST = 48, 72  # pixels that a sheet's tile aims at, and has at most
OURS = re.compile(r"sheet-\d+\.(png|jpg)|map-\d+\.jpg")  # what a layer's folder holds
SHEET, GAP, HEAD, LINE = (2400, 1600), 14, 34, 20  # a sheet's sides at most; between its panels; its title; a label
Item = TypeVar("Item")
Made = TypeVar("Made")
Words = dict[str, Any]  # what the page is told, as JSON


@dataclass(frozen=True)
class LayerSheets:
    """A layer as the page shows it."""

    name: str
    maps: int
    method: str
    sheets: list[Words]  # of each its address and size
    cards: list[Words]
    files: list[Path]


def in_turn(
    threads: ThreadPoolExecutor, make: Callable[[Item], Made], items: Iterable[Item], ahead: int = 48
) -> Iterator[Made]:
    """What `make` makes of each item, in order, at most `ahead` of them begun and not yet taken."""
    begun: deque[Future[Made]] = deque()
    for item in items:
        begun.append(threads.submit(make, item))
        if len(begun) >= ahead:
            yield begun.popleft().result()
    while begun:
        yield begun.popleft().result()


def write_layer(folder: Path, layer: LayerCards, names: Sequence[str]) -> LayerSheets:
    """Writes the layer's sheets and pictures below folder/LAYER. `names`: the images'; cat/3.png is of class cat."""
    place = _folder_of(folder, layer.name)
    written = LayerSheets(layer.name, layer.maps, layer.method, [], [], [])
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        drawn = in_turn(threads, partial(_drawn, place, layer, names), layer.cards)
        sheets: list[Future[Any]] = []
        while first := next(drawn, None):
            height, width = first[0].shape[:2]
            columns = max(1, (SHEET[0] - GAP) // (_cell(width) + GAP))
            rows = max(1, (SHEET[1] - HEAD) // (height + LINE + GAP))
            part = [first, *islice(drawn, columns * rows - 1)]
            sheets.append(threads.submit(_write_sheet, place, layer, len(sheets), part, columns))
        for number, sheet in enumerate(sheets):
            file, size, cards = sheet.result()
            written.files.append(file)
            written.sheets.append({"src": address(file, folder), "w": size[0], "h": size[1]})
            written.cards.extend(card | {"sheet": number} for card in cards)
    return written


def clear(folder: Path, layers: Sequence[LayerSheets]) -> list[Path]:
    """What an earlier atlas in the folder left: its sheets and pictures of these layers are removed.

    Returns the folders of other layers, which stay.
    """
    shown = {_folder_of(folder, layer.name): _names(layer) for layer in layers}
    for place, names in shown.items():
        for file in place.iterdir() if place.exists() else ():
            if OURS.fullmatch(file.name) and file.name not in names:
                file.unlink()
    others = [place for place in sorted(folder.iterdir()) if place.is_dir() and place not in shown]
    return [place for place in others if any(OURS.fullmatch(file.name) for file in place.iterdir())]


def _folder_of(folder: Path, layer: str) -> Path:
    return folder / layer.replace("/", "_")


def _names(layer: LayerSheets) -> set[str]:
    """Of the files in the layer's folder."""
    pictures = {Path(card["full"]["src"]).name for card in layer.cards if card["full"]}
    return pictures | {file.name for file in layer.files}


def _cell(width: int) -> int:
    """The width of a panel's cell, which has room for its label."""
    return max(width, 150)


def _drawn(place: Path, layer: LayerCards, names: Sequence[str], card: Card) -> tuple[np.ndarray, Words]:
    """The card's panel on the sheet, and the page's words; its picture at full size is written, if that is larger."""
    side = max(card.shape)
    words = _words(layer, card, names)
    if side <= LARGEST:
        return panel(card, zoom_to(side, TILE), 1), words
    large = panel(card)
    file = place / f"map-{card.channel:04d}.jpg"
    _write(file, large)
    words["full"] = {"src": address(file, place.parent), "w": large.shape[1], "h": large.shape[0]}
    height, width = (max(1, round(length * LARGEST / side)) for length in large.shape[:2])
    return stretched(large, height, width), words


def _write(file: Path, picture: np.ndarray) -> None:
    """PNG keeps the pixels of small tiles; JPEG takes a tenth of WebP's time, for a fifth more bytes."""
    options: dict[str, Any] = {"compress_level": 3} if file.suffix == ".png" else {"quality": 88}
    content = encoded(picture, "png" if file.suffix == ".png" else "jpeg", **options)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda beside: beside.write_bytes(content))


def _words(layer: LayerCards, card: Card, names: Sequence[str]) -> Words:
    """What the page says of a card."""
    values = [f"{value:.4g}" for value in card.values.tolist()]
    said = values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}"
    shown = [names[number] for number in card.numbers.tolist()]
    classes = Counter(name.partition("/")[0] for name in shown if "/" in name).most_common(1)
    mostly = f"{classes[0][1]} of {len(shown)} from {classes[0][0]}" if classes else ""
    seen = f"projections of its {len(values)} strongest activations, {said}, beside the patches that caused them"
    return {
        "map": card.channel,
        "values": said,
        "mostly": mostly,
        "limit": f"{card.limit:.3g}",
        "alt": f"{layer.name} map {card.channel}, {layer.method}: {seen}" + f"; {mostly}" * bool(mostly),
        "units": [
            f"{value}: {name}, rows {box[0]} to {box[2] - 1}, columns {box[1]} to {box[3] - 1}"
            for value, name, box in zip(values, shown, card.frames, strict=True)
        ],
        "full": None,
    }


def _write_sheet(
    place: Path, layer: LayerCards, number: int, part: list[tuple[np.ndarray, Words]], columns: int
) -> tuple[Path, tuple[int, int], list[Words]]:
    """The file, its (width, height), and the words of its cards with their places on it."""
    height, width = part[0][0].shape[:2]
    step, columns = (_cell(width) + GAP, height + LINE + GAP), min(columns, len(part))
    rows = -(-len(part) // columns)
    size = max(GAP + columns * step[0], 480), HEAD + rows * step[1]
    sheet = Image.new("RGB", size, "white")
    draw, words = ImageDraw.Draw(sheet), []
    first, last = (card["map"] for _, card in (part[0], part[-1]))
    title = f"{layer.name}, maps {first} to {last}: {layer.method} projections, and the patches that caused them"
    draw.text((GAP, 9), title, INK, font(14))
    small = font(12)
    for i, (pixels, card) in enumerate(part):
        x, y = GAP + i % columns * step[0], HEAD + i // columns * step[1]
        text = f"map {card['map']}"
        draw.text((x, y + 2), text, INK, small)
        draw.text((x + 8 + small.getlength(text), y + 2), card["values"], SOFT, small)
        sheet.paste(Image.fromarray(pixels), (x, y + LINE))
        words.append(card | {"x": x, "y": y + LINE, "w": pixels.shape[1], "h": pixels.shape[0]})
    file = place / f"sheet-{number + 1}.{'jpg' if part[0][1]['full'] else 'png'}"
    _write(file, np.asarray(sheet))
    return file, size, words


def write_page(path: Path, title: str, searched: int, layers: Sequence[LayerSheets]) -> None:
    """The page; a map's card opens its projections at full size."""
    data = [{"name": layer.name, "sheets": layer.sheets, "cards": layer.cards} for layer in layers]
    write_text(path, render("atlas.html", title=title, searched=searched, layers=layers, data=data))
