"""The explorer as static files that open from a disk.

A page from a disk may load neither modules nor answers of a server: the modules are put into one script, and what the
server would answer lies in scripts that hand it over. The wall's pictures are sprites of SPRITE maps, the strongest
first, so that what is seen first takes few files.
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..drawing.page import STYLE
from ..drawing.tiles import tile
from ..files import write_text, write_whole
from ..graph.methods import METHODS
from ..progress import Shown, bar
from . import live, pictures, state
from .server import PAGE, shell
from .state import Explored, Layer

MODULES = ("dom", "source", "layers", "tries", "wall", "unit", "picture", "main")  # each after what it imports
SPRITE = 24  # maps
Write = Callable[[str, bytes | None], None]  # the path below the folder, what to write there


def export(found: Explored, folder: Path, command: str, maps: int | None = None, shown: Shown = False) -> int:
    """Search the pictures, then write the page of them; returns its bytes.

    Args:
        folder: an empty or new one, or one of an earlier export.
        command: what starts the same with a server, for what needs one.
        maps: only each layer's strongest.

    Raises:
        ValueError: the folder holds something else.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / "explorer.js").exists():
        raise ValueError(f"--export must be a new folder, or one of an earlier export; {folder} holds other files")
    batches = range(0, len(found.paths), state.BATCH)
    searched = bar(found.batches(0, math.inf), "search", "batch", shown, sizes=[1] * len(batches))
    for inputs, numbers in searched:
        found.take(inputs, numbers)
    size = 0

    def write(path: str, content: bytes | None) -> None:
        nonlocal size
        if content is None:
            return
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        write_whole(place, lambda beside: beside.write_bytes(content))
        size += len(content)

    used: set[int] = set()
    for layer in found.layers:
        chosen = strongest(found, layer, maps)
        _write_layer(found, layer, chosen, write)
        for channel in bar(chosen, layer.name, "map", shown, leave=False):
            used |= _write_unit(found, layer, channel, write)
    for number in sorted(used):
        write(f"data/picture/{number}.webp", pictures.whole(found.network.seen(found.read([number])[0])))
    words = state.network_words(found) | {"run": "", "epochs": []}
    write("data/network.js", _given("network", words))
    write("explorer.js", bundle().encode())
    write("style.css", STYLE.read_bytes())
    write("explorer.css", (PAGE / "explorer.css").read_bytes())
    write_text(folder / "index.html", shell(command))
    return size + (folder / "index.html").stat().st_size


def strongest(found: Explored, layer: Layer, count: int | None) -> list[int]:
    """The maps that any picture drives, strongest first, at most `count`."""
    values = found.tops[layer.name].values[:, 0]
    order = values.argsort(descending=True, stable=True).tolist()
    return [channel for channel in order if float(values[channel]) > 0][:count]


def _write_layer(found: Explored, layer: Layer, chosen: Sequence[int], write: Write) -> None:
    sprites: dict[int, tuple[int, int, int]] = {}
    for number, first in enumerate(range(0, len(chosen), SPRITE)):
        part = chosen[first : first + SPRITE]
        tiles = [picture for channel in part if (picture := state.pair_of(found, layer, channel)) is not None]
        write(f"data/sprite/{layer.number}/{number}.webp", pictures.webp(tile(tiles, 1, 1, gap=0)))
        sprites |= {channel: (number, i, len(part)) for i, channel in enumerate(part)}
    noise = live.Live()
    chunks = [live.likenesses(found, noise, layer, first) for first in range(0, layer.maps, live.CHUNK)]
    words = state.layer_words(found, layer) | {"sprites": sprites, "random": [one for chunk in chunks for one in chunk]}
    write(f"data/layer/{layer.number}.js", _given(f"layer/{layer.number}", words))


def _write_unit(found: Explored, layer: Layer, channel: int, write: Write) -> set[int]:
    """Returns the numbers of the pictures that the unit's page shows."""
    name = f"unit/{layer.number}/{channel}"
    words = state.unit_words(found, layer, channel)
    write(f"data/{name}.js", _given(name, words))
    write(f"data/{name}/patches.webp", state.patches(found, layer, channel))
    for method in METHODS:
        write(f"data/{name}/{method}.webp", state.views(found, layer, channel, method))
    return {pair["picture"] for pair in words["pairs"]}


def _given(path: str, value: object) -> bytes:
    return f"zfkernels.give({json.dumps(path)}, {json.dumps(value)});\n".encode()


def bundle() -> str:
    """The page's modules as one script: their imports and exports are names of one block."""
    parts = []
    for name in MODULES:
        text = (PAGE / f"{name}.js").read_text(encoding="utf-8")
        text = re.sub(r"^import [^;]+;\n", "", text, flags=re.MULTILINE)
        parts.append(re.sub(r"^export ", "", text, flags=re.MULTILINE))
    return "\n".join(['"use strict";', "{", *parts, "}", ""])
