"""What the explorer knows of a network over pictures, and the words and pictures of its page.

Everything here runs in the one thread of jobs.Worker, except `batches`.
"""

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..analyses.activations import TopActivations, merge, top_activations
from ..analyses.atlas import Card, cards
from ..analyses.choices import method_for
from ..analyses.filters import noise_note
from ..data.pictures import read_picture
from ..data.scan import Scan
from ..deconvnet.deconvnet import Deconvnet
from ..drawing.tiles import cut, frame, plain_picture
from ..graph.methods import METHODS
from ..models.checkpoint import Network, numbered
from . import pictures

T = TypeVar("T")
Words = dict[str, Any]  # for JSON
TOP = 9  # activations a map
PROFILE = 1024  # pictures whose strongest activation of every map is kept, for histograms and likeness
BINS = 24  # of a histogram
BATCH, PASS = 8, 0.1  # pictures a pass of the search, and the seconds it aims at: whoever asks waits for one
PIXELS = 512 * 2**20  # bytes of pictures that are held
ANSWERS = 2048  # pictures of the page that are held
FAR, MIDDLE = 2**16, 64  # a picture, and a place in a map of it, whose fields are not cut off


@dataclass(frozen=True)
class Layer:
    number: int
    name: str
    maps: int
    size: tuple[int, int]  # of a map; (1, 1) of a layer without
    field: tuple[int, int]  # what a unit sees, height and width
    stride: tuple[int, int]
    method: str  # how the wall is projected
    note: str = ""


@dataclass
class Explored:
    """A network, pictures, and what the search has found so far."""

    network: Network
    deconv: Deconvnet
    found: Scan
    layers: tuple[Layer, ...]
    title: str
    setup: tuple[str, ...]  # lines of Python that make `network`
    tops: dict[str, TopActivations] = field(default_factory=dict)
    peaks: dict[str, Tensor] = field(default_factory=dict)  # (maps, PROFILE): NaN where not searched
    searched: int = 0
    pace: float = PASS  # seconds that the search last took for a picture
    pixels: OrderedDict[int, Tensor] = field(default_factory=OrderedDict)  # number -> uint8 (3, H, W)
    answers: OrderedDict[tuple[Any, ...], Any] = field(default_factory=OrderedDict)

    @property
    def paths(self) -> Sequence[Path]:
        return self.found.paths

    def name(self, number: int) -> str:
        """A picture's name below the folder. What is no text in it stands as its bytes' numbers."""
        name = str(self.paths[number].relative_to(self.found.folder))
        return name.encode("utf-8", "backslashreplace").decode()

    def label(self, number: int) -> str:
        """A picture's class: the first folder below the folder, or ""."""
        return self.labels[number]

    @cached_property
    def labels(self) -> list[str]:
        parts = [path.relative_to(self.found.folder).parts for path in self.paths]
        return [part[0].encode("utf-8", "backslashreplace").decode() if len(part) > 1 else "" for part in parts]

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Pictures as uint8 (N, 3, H, W)."""
        size = self.network.image_size
        found = []
        for number in numbers:
            pixels = self.pixels.get(number)
            if pixels is None:
                pixels = read_picture(self.paths[number], size)
                self.pixels[number] = pixels
                if len(self.pixels) * pixels.numel() > PIXELS:
                    self.pixels.popitem(last=False)
            found.append(pixels)
        return torch.stack(found)

    def batches(self, first: int, seconds: float = PASS) -> Iterator[tuple[Tensor, Tensor]]:
        """What `take` takes, of the pictures from `first` on; the next are read while some are computed.

        As many at once as by the last took so many seconds, at most BATCH; one at first.
        """

        def chunk_from(first: int) -> range:
            count = max(1, int(min(BATCH, seconds / self.pace)))
            return range(first, min(first + count, len(self.paths)))

        with ThreadPoolExecutor(1) as ahead:
            chunk = chunk_from(first)
            reading = ahead.submit(self.read, chunk)
            while chunk:
                pixels, read = reading.result(), chunk
                chunk = chunk_from(read.stop)
                reading = ahead.submit(self.read, chunk) if chunk else reading
                yield self.network.normalise(pixels), torch.tensor(read)

    def take(self, inputs: Tensor, numbers: Tensor) -> None:
        """Search a batch."""
        began = time.perf_counter()
        names = [layer.name for layer in self.layers]
        best = top_activations(self.deconv, [(inputs, numbers)], names, len(numbers), numbered=True)
        for name, top in best.items():
            if name not in self.peaks:
                self.peaks[name] = torch.full((len(top.values), min(PROFILE, len(self.paths))), torch.nan)
            kept = top.images < self.peaks[name].shape[1]  # as many in each row
            shape = len(top.values), int(kept[0].sum())
            self.peaks[name].scatter_(1, top.images[kept].view(shape), top.values[kept].view(shape).float())
            self.tops[name] = merge([self.tops[name], top] if name in self.tops else [top], TOP)
        self.searched = max(self.searched, int(numbers.max()) + 1)
        self.pace = (time.perf_counter() - began) / len(numbers)

    def once(self, key: tuple[Any, ...], call: Callable[[], T]) -> T:
        """What `call` gives, kept until more pictures are searched."""
        key = (*key, self.searched)
        if key not in self.answers:
            self.answers[key] = call()
            if len(self.answers) > ANSWERS:
                self.answers.popitem(last=False)
        found: T = self.answers[key]
        return found


def explored(
    network: Network, deconv: Deconvnet, found: Scan, names: Sequence[str], title: str, setup: Sequence[str] = ()
) -> Explored:
    """A network before its search. `names`: of the layers that are shown."""
    start = Explored(network, deconv, found, (), title, tuple(setup))
    shapes = deconv.activations(network.normalise(start.read([0])), list(names))
    note = (noise_note(network.model) or "").removeprefix("note").strip()
    layers = []
    for number, name in enumerate(names):
        size = (shapes[name].shape[2], shapes[name].shape[3]) if shapes[name].ndim == 4 else (1, 1)
        reach, stride = _field(start, name, size)
        method = method_for(deconv, name)
        told = [note] if number == 0 and note else []
        told += ["no max-pooling below: projected with guided"] if method == "guided" else []
        layers.append(Layer(number, name, shapes[name].shape[1], size, reach, stride, method, "; ".join(told)))
    start.layers = tuple(layers)
    return start


def _field(state: Explored, name: str, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """What a unit sees, and the distance of what two neighbours see, at most the whole picture."""
    image = state.network.image_size
    if size == (1, 1):
        return image, image
    boxes = state.deconv.boxes(name, [(MIDDLE, MIDDLE), (MIDDLE + 1, MIDDLE + 1)], (FAR, FAR))
    (top, left, bottom, right), (lower, further, *_) = boxes.tolist()
    reach = min(bottom - top, image[0]), min(right - left, image[1])
    return reach, (lower - top, further - left)


def network_words(state: Explored) -> Words:
    """The whole: its layers and pictures."""
    return {
        "title": state.title,
        "size": state.network.image_size,
        "methods": METHODS,
        "classes": state.network.classes,
        "folders": sorted({*state.labels} - {""}),
        "pictures": len(state.paths),
        "searched": state.searched,
        "layers": [
            {
                "name": layer.name,
                "maps": layer.maps,
                "size": layer.size,
                "field": layer.field,
                "stride": layer.stride,
                "method": layer.method,
                "note": layer.note,
                "dead": dead(state, layer),
                "answers": answers(state, layer),
            }
            for layer in state.layers
        ],
    }


def answers(state: Explored, layer: Layer) -> bool:
    """Whether the layer's maps are the network's classes, which have names."""
    names, last = state.network.classes, layer.number == len(state.layers) - 1
    return last and layer.size == (1, 1) and layer.maps == len(names) and names != numbered(len(names))


def picture_words(state: Explored, number: int) -> Words | None:
    """What a picture is called; None if there is none of this number."""
    known = 0 <= number < len(state.paths)
    return {"name": state.name(number), "class": state.label(number)} if known else None


def dead(state: Explored, layer: Layer) -> int | None:
    """How many maps responded to no picture so far; None before any was searched."""
    top = state.tops.get(layer.name)
    return None if top is None else int((top.values[:, 0] <= 0).sum())


def layer_words(state: Explored, layer: Layer) -> Words:
    """A number a map: how strong, how pure, of which class, and its place among those that are alike."""
    top = state.tops.get(layer.name)
    if top is None:
        return {"maps": layer.maps, "searched": 0, "strength": [], "purity": [], "classes": [], "likeness": []}
    main = [_main_class(state, top, channel) for channel in range(layer.maps)]
    return {
        "maps": layer.maps,
        "searched": state.searched,
        "strength": [float(f"{value:.4g}") for value in top.values[:, 0].tolist()],
        "purity": [part for _, part in main],
        "classes": [name for name, _ in main],
        "likeness": likeness(state.peaks[layer.name]),
    }


def _main_class(state: Explored, top: TopActivations, channel: int) -> tuple[str, float]:
    """The class of most of a map's strongest pictures, and which part of them it has."""
    if float(top.values[channel, 0]) <= 0:
        return "", 0.0
    numbers = top.images[channel].tolist()
    ((name, count),) = Counter(state.label(number) for number in numbers).most_common(1)
    return (name, round(count / len(numbers), 3)) if name else ("", 0.0)


def likeness(peaks: Tensor) -> list[int]:
    """Each map's place in a chain from the strongest, the next always the map most like the one before.

    Alike are maps whose strongest activations over the pictures, less their mean, point the same way.
    """
    values = peaks.nan_to_num(0.0)
    profiles = torch.nn.functional.normalize(values - values.mean(1, keepdim=True))
    alike = profiles @ profiles.T
    place, at = [0] * len(values), int(values.amax(1).argmax())
    for step in range(len(values)):
        place[at] = step
        alike[:, at] = -torch.inf
        at = int(alike[at].argmax())
    return place


def card_of(state: Explored, layer: Layer, channel: int, method: str, k: int = TOP) -> Card | None:
    """A map's `k` strongest activations; None where no picture drives it, or none was searched yet."""
    top = state.tops.get(layer.name)
    if top is None:
        return None

    def read(numbers: list[int]) -> tuple[Tensor, Tensor]:
        pixels = state.read(numbers)
        return state.network.normalise(pixels), state.network.seen(pixels)

    few = TopActivations(top.values[:, :k], top.images[:, :k], top.positions[:, :k])
    found = cards(state.deconv, few, layer.name, read, [channel], side=layer.field, method=method, framed=frame)
    return next(found, None)


def views(state: Explored, layer: Layer, channel: int, method: str) -> bytes | None:
    """A map's projections below one another."""

    def make() -> bytes | None:
        card = card_of(state, layer, channel, method)
        return None if card is None else pictures.strip(card.projections)

    return state.once(("views", layer.number, channel, method), make)


def patches(state: Explored, layer: Layer, channel: int) -> bytes | None:
    """The parts of the pictures that caused them, likewise."""

    def make() -> bytes | None:
        pairs = unit_words(state, layer, channel)["pairs"]
        if not pairs:
            return None
        images = state.network.seen(state.read([pair["picture"] for pair in pairs]))
        parts = [plain_picture(cut(image, pair["frame"])) for image, pair in zip(images, pairs, strict=True)]
        return pictures.strip(parts)

    return state.once(("patches", layer.number, channel), make)


def unit_words(state: Explored, layer: Layer, channel: int) -> Words:
    """All that a unit's page says, its pictures apart: nothing is projected for it."""
    return state.once(("unit", layer.number, channel), lambda: _words_of(state, layer, channel))


def pair_of(state: Explored, layer: Layer, channel: int) -> np.ndarray | None:
    """What the wall shows of a map: its strongest projection, and the patch that caused it; uint8 (H, W, 3)."""
    card = card_of(state, layer, channel, layer.method, 1)
    return None if card is None else pictures.pair(card.projections[0], card.patches[0])


def tile_of(state: Explored, layer: Layer, channel: int) -> bytes | None:
    """The same as a file."""

    def make() -> bytes | None:
        pair = pair_of(state, layer, channel)
        return None if pair is None else pictures.webp(pair)

    return state.once(("tile", layer.number, channel), make)


def _words_of(state: Explored, layer: Layer, channel: int) -> Words:
    words: Words = {"layer": layer.name, "map": channel, "searched": state.searched, "pairs": [], "classes": []}
    words |= {"histogram": histogram(state, layer, channel), "python": [], "purity": 0.0}
    top = state.tops.get(layer.name)
    if top is None or float(top.values[channel, 0]) <= 0:
        return words
    numbers, positions, size = top.images[channel].tolist(), top.positions[channel].tolist(), state.network.image_size
    boxes = state.deconv.boxes(layer.name, positions, size).tolist()
    words["pairs"] = [
        {
            "value": float(f"{value:.4g}"),
            "picture": number,
            "name": state.name(number),
            "class": state.label(number),
            "position": position,
            "box": box,
            "frame": frame(box, layer.field, size),
        }
        for value, number, position, box in zip(top.values[channel].tolist(), numbers, positions, boxes, strict=True)
    ]
    words["classes"] = Counter(filter(None, map(state.label, numbers))).most_common()
    words["purity"] = _main_class(state, top, channel)[1]
    words["python"] = python(state, layer, channel, numbers[0], positions[0])
    return words


def histogram(state: Explored, layer: Layer, channel: int) -> Words:
    """How many pictures a map's strongest activation lies in each of BINS equal steps from the smallest to the largest.

    Pictures that do not drive it at all (0 or less after a rectifier) are counted apart.
    """
    peaks = state.peaks.get(layer.name)
    values = torch.empty(0) if peaks is None else peaks[channel][~peaks[channel].isnan()]
    driven = values[values > 0]
    if not len(driven):
        return {"total": len(values), "silent": len(values), "low": 0.0, "high": 0.0, "counts": []}
    low, high = float(driven.min()), float(driven.max())
    counts = torch.histc(driven, BINS, low, high if high > low else low + 1).int().tolist()
    return {
        "total": len(values),
        "silent": len(values) - len(driven),
        "low": float(f"{low:.4g}"),
        "high": float(f"{high:.4g}"),
        "counts": counts,
    }


def python(state: Explored, layer: Layer, channel: int, number: int, position: list[int]) -> list[str]:
    """The lines that make a unit's first projection; the last is the one that does."""
    path = str(state.paths[number])
    place = "" if layer.size == (1, 1) else f", {tuple(position)}"
    return [
        "import zfkernels as zf",
        *state.setup,
        "from zfkernels.data.pictures import read_picture",
        f"image = network.normalise(read_picture({path!r}, network.image_size))",
        f"zf.Deconvnet(network.model).project(image[None], {layer.name!r}, {channel}{place}, method={layer.method!r})",
    ]
