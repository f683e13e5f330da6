"""What only the server can answer: your own picture, covered parts, noise in place of weights, other epochs."""

import base64
import copy
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..analyses.occlusion import answers
from ..analyses.sanity import compared, randomise
from ..deconvnet.deconvnet import Deconvnet
from ..drawing.tiles import GREY, frame
from ..models.checkpoint import Network
from ..models.modes import evaluated
from ..window import pair
from . import pictures
from .state import Explored, Layer, Words

UPLOADS, NETWORKS = 16, 3  # that are held
SHOWN = 9  # units that see a pixel, and classes
CHUNK = 16  # maps that are compared at once
NEAR = 9  # places of a map looked at around a pixel


@dataclass
class Live:
    """What the live answers need beside the state."""

    checkpoints: tuple[tuple[str, Callable[[], Network]], ...] = ()  # name -> what loads it, in order
    uploads: OrderedDict[int, Tensor] = field(default_factory=OrderedDict)  # number -> uint8 (3, H, W)
    loaded: OrderedDict[int, tuple[Network, Deconvnet]] = field(default_factory=OrderedDict)
    noise: tuple[int, Deconvnet, dict[str, Tensor], dict[str, Tensor]] | None = None
    count: int = 0


def upload(state: Explored, live: Live, data: bytes) -> int:
    """Keep an upload; its number, below 0."""
    pixels = pictures.uploaded(data, state.network.image_size)
    live.count += 1
    live.uploads[-live.count] = pixels
    if len(live.uploads) > UPLOADS:
        live.uploads.popitem(last=False)
    return -live.count


def pixels_of(state: Explored, live: Live, number: int) -> Tensor | None:
    """A picture of the folder, or an upload, as uint8 (3, H, W); None if there is none of this number."""
    if number < 0:
        return live.uploads.get(number)
    return state.read([number])[0] if number < len(state.paths) else None


def seen(state: Explored, pixels: Tensor, layer: Layer, row: int, column: int) -> list[Words]:
    """The strongest units that see a pixel, at the places whose fields are centred nearest to it.

    Strength counts as a part of the map's strongest over the pictures searched, so that maps of any size compare.
    """
    inputs = state.network.normalise(pixels[None])
    value = state.deconv.activations(inputs, layer.name)[0]
    value = value.reshape(len(value), *layer.size)
    places = np.indices(layer.size).reshape(2, -1).T
    boxes = state.deconv.boxes(layer.name, places, state.network.image_size).numpy()
    inside = (boxes[:, 0] <= row) & (row < boxes[:, 2]) & (boxes[:, 1] <= column) & (column < boxes[:, 3])
    centres = (boxes[:, :2] + boxes[:, 2:] - 1) / 2
    distance = np.where(inside, np.square(centres - (row, column)).sum(1), np.inf)
    near = [i for i in np.argsort(distance, kind="stable")[:NEAR].tolist() if np.isfinite(distance[i])]
    if not near:
        return []
    best, which = (found.cpu() for found in value.flatten(1)[:, near].max(1))
    top = state.tops.get(layer.name)
    share = best / top.values[:, 0].clamp_min(1e-12) if top is not None else best
    chosen = [i for i in share.argsort(descending=True, stable=True)[:SHOWN].tolist() if float(best[i]) > 0]
    if not chosen:
        return []
    position = places[[near[int(which[i])] for i in chosen]]
    indices = [0] * len(chosen)
    result = state.deconv.project(inputs, layer.name, chosen, position, image_index=indices, method=layer.method)
    views = pictures.projections(result.pixels, result.boxes.tolist())
    return [
        {
            "map": channel,
            "value": float(f"{float(best[channel]):.4g}"),
            "share": None if top is None else round(float(share[channel]), 3),
            "box": box,
            "picture": data_uri(pictures.webp(pictures.view(view))),
        }
        for channel, box, view in zip(chosen, result.boxes.tolist(), views, strict=True)
    ]


def data_uri(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def occluded(state: Explored, pixels: Tensor, row: int, column: int, side: int) -> list[Words]:
    """What the network says of a picture, and of the same with a grey square centred at a pixel."""
    covered = pixels.clone()
    top, left = max(0, row - side // 2), max(0, column - side // 2)
    covered[:, top : row - side // 2 + side, left : column - side // 2 + side] = GREY
    clear, hidden = answers(state.network.model, state.network.normalise(torch.stack([pixels, covered])))
    order = clear.argsort(descending=True, stable=True)[:SHOWN].tolist()
    classes = state.network.classes
    return [{"class": classes[i], "clear": float(clear[i]), "covered": float(hidden[i])} for i in order]


def noisy(state: Explored, live: Live, layer: Layer, channel: int, rank: int, part: float) -> Words | None:
    """A unit's projection with noise in place of a part of the weights below it, and how alike it is to the trained.

    At angle a = part * 90 degrees each tensor's weights are mean + cos(a) (weight - mean) + sin(a) (noise - mean), the
    noise being sanity.randomise's: its mean and spread stay. The same seed for all.
    """
    top = state.tops.get(layer.name)
    if top is None or rank >= top.values.shape[1] or float(top.values[channel, 0]) <= 0:
        return None
    number, position = int(top.images[channel, rank]), top.positions[channel, rank].tolist()
    inputs = state.network.normalise(state.read([number]))
    trained, mixed = (
        deconv.project(inputs, layer.name, channel, position, method=layer.method, strength=1.0)
        for deconv in (state.deconv, _mixed(state, live, layer, part))
    )
    box = tuple(trained.boxes[0].tolist())
    words: Words = {"part": part, "similarity": None, "ssim": None}
    if trained.pixels.any():
        stage = compared("", trained.pixels[0], [mixed.pixels[0]], box)
        words |= {"similarity": _number(stage.rank), "ssim": _number(stage.ssim)}
    view = pictures.view(pictures.projections(mixed.pixels, [box])[0])
    return words | {"picture": data_uri(pictures.webp(view))}


def likenesses(state: Explored, live: Live, layer: Layer, first: int) -> list[float | None]:
    """How alike the strongest projection of each of CHUNK maps from `first` on stays when all weights below are noise.

    Rank correlations as of `noisy`; None for maps that no picture drives, and where nothing is left to compare.
    """
    top = state.tops.get(layer.name)
    channels = range(first, min(first + CHUNK, layer.maps))
    driven = [] if top is None else [c for c in channels if float(top.values[c, 0]) > 0]
    found: dict[int, float | None] = {}
    if top is not None and driven:
        numbers, index = top.images[driven, 0].unique(return_inverse=True)
        inputs, positions = state.network.normalise(state.read(numbers.tolist())), top.positions[driven, 0]
        trained, mixed = (
            deconv.project(inputs, layer.name, driven, positions, image_index=index, method=layer.method, strength=1.0)
            for deconv in (state.deconv, _mixed(state, live, layer, 1.0))
        )
        pairs = zip(driven, trained.pixels, mixed.pixels, trained.boxes.tolist(), strict=True)
        for channel, one, other, (top_row, left, bottom, right) in pairs:
            box = (top_row, left, bottom, right)
            found[channel] = _number(compared("", one, [other], box).rank) if one.any() else None
    return [found.get(channel) for channel in channels]


def _number(value: float) -> float | None:
    return round(value, 3) if math.isfinite(value) else None


def _mixed(state: Explored, live: Live, layer: Layer, part: float) -> Deconvnet:
    """The network with that part of noise in every module below the layer."""
    if live.noise is None or live.noise[0] != layer.number:
        deconv = copy.deepcopy(state.deconv)
        names = deconv.modules_below(layer.name)
        modules = [(name, deconv.model.get_submodule(name)) for name in names]
        trained = _tensors(modules)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for _, module in reversed(modules):
                randomise(module, generator)
        live.noise = layer.number, deconv, trained, _tensors(modules)
    _, deconv, trained, noise = live.noise
    parameters, angle = dict(deconv.model.named_parameters()), part * math.pi / 2
    with torch.no_grad():
        for name, weight in trained.items():
            mean = weight.mean()
            mixed = mean + math.cos(angle) * (weight - mean) + math.sin(angle) * (noise[name] - mean)
            parameters[name].copy_(weight if part == 0 else mixed)
    return deconv


def _tensors(modules: list[tuple[str, nn.Module]]) -> dict[str, Tensor]:
    return {
        f"{name}.{key}" if name else key: parameter.detach().clone()
        for name, module in modules
        for key, parameter in module.named_parameters(recurse=False)
    }


def epoch(state: Explored, live: Live, layer: Layer, channel: int, number: int) -> bytes | None:
    """A map's strongest activation in each picture of its page, by another checkpoint: a strip of projections."""
    top = state.tops.get(layer.name)
    if top is None or float(top.values[channel, 0]) <= 0:
        return None
    if number not in live.loaded:
        network = live.checkpoints[number][1]()
        live.loaded[number] = network, Deconvnet(network.model)
        if len(live.loaded) > NETWORKS:
            live.loaded.popitem(last=False)
    network, deconv = live.loaded[number]
    pixels = state.read(top.images[channel].tolist())
    result = deconv.project(network.normalise(pixels), layer.name, channel, method=layer.method)
    frames = [frame(box, layer.field, state.network.image_size) for box in result.boxes.tolist()]
    return pictures.strip(pictures.projections(result.pixels, frames))


def below(state: Explored, layer: Layer, channel: int) -> Words:
    """The maps of the layer below that a unit's strongest activation comes from: sums of weight times input.

    With the bias they add up to what the unit is before its rectifier (and batch norm).
    """
    top = state.tops.get(layer.name)
    module = dict(state.network.model.named_modules()).get(layer.name)
    weight = getattr(module, "weight", None)
    plain = isinstance(weight, Tensor) and weight.ndim in (2, 4) and getattr(module, "groups", 1) == 1
    if top is None or float(top.values[channel, 0]) <= 0 or not isinstance(weight, Tensor) or not plain:
        return {"layer": None, "inputs": []}
    inputs = state.network.normalise(state.read([int(top.images[channel, 0])]))
    given = _input(state.network.model, layer.name, inputs)
    place = top.positions[channel, 0].tolist()
    window = _window(given, module, place) if weight.ndim == 4 else given[:, None]
    parts = (window * weight[channel].detach().view_as(window)).flatten(1).sum(1)
    source = _source(state, layer, inputs, given)
    order = parts.abs().argsort(descending=True, stable=True)[:SHOWN].tolist()
    found = [{"map": i, "sum": float(f"{float(parts[i]):.4g}")} for i in order]
    return {"layer": source.name if source else None, "inputs": found, "total": float(f"{float(parts.sum()):.4g}")}


def _input(model: nn.Module, name: str, inputs: Tensor) -> Tensor:
    """What the module of this name is given: (C, H, W) or (C,). What comes after it is not run."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, given: Any) -> None:
        kept.append(given[0].detach())
        raise _Reached

    hook = model.get_submodule(name).register_forward_pre_hook(keep)
    try:
        evaluated(model, inputs)
    except _Reached:
        pass
    finally:
        hook.remove()
    return kept[0][0]


class _Reached(Exception):
    """A module that was to be reached was."""


def _window(x: Tensor, module: Any, place: Sequence[int]) -> Tensor:
    """The part of a convolution's input (C, H, W) that the unit at `place` sees: (C, KH, KW)."""
    height, width = module.weight.shape[2:]
    (sy, sx), (dy, dx) = pair("stride", module.stride, 1), pair("dilation", getattr(module, "dilation", 1), 1)
    same = (dy * (height - 1) // 2, dx * (width - 1) // 2)
    py, px = {"same": same, "valid": (0, 0)}.get(module.padding) or pair("padding", module.padding, 0)
    x = torch.nn.functional.pad(x, (px, px + dx * width, py, py + dy * height))
    top, left = place[0] * sy, place[1] * sx
    return x[:, top : top + dy * height : dy, left : left + dx * width : dx]


def _source(state: Explored, layer: Layer, inputs: Tensor, x: Tensor) -> Layer | None:
    """The layer shown whose maps are given, (C, H, W), as they are or through pools and norms; (C,) are their means."""
    of_its_shape = [
        other
        for other in reversed(state.layers[: layer.number])
        if other.maps == len(x) and all(a >= b for a, b in zip(other.size, x.shape[1:], strict=False))
    ]
    values = state.deconv.activations(inputs, [other.name for other in of_its_shape])
    for other in of_its_shape:
        value = values[other.name][0]
        value = value.mean((1, 2)) if x.ndim < value.ndim else value
        if value.shape != x.shape or torch.allclose(value, x, rtol=1e-3, atol=1e-4 * float(x.abs().max())):
            return other
    return None
