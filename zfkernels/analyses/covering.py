"""The two ways to run a network on images with a part covered.

Of both, clear() gives the logits (classes,) of the clear image and the layer's maps (C, H, W) or None, and
covered(windows, cover, channel) the logits (N, classes) and one of the maps (N, H, W) or None.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..deconvnet.forward import Forward
from ..graph import run as graph_run
from ..graph.graph import Graph
from ..graph.marks import hooked
from ..graph.regions import Recomputed, Region, share
from ..graph.rules import Rules, Shapes
from ..graph.trace import trace, unwrapped
from ..graph.watch import watched
from ..ops import checks
from ..window import Pair
from ..words import nearest

MOST = 0.5  # of a forward pass's work, beyond which regions cost more than whole images


class Regions:
    """By what the windows reach; images are not copied."""

    def __init__(self, graph: Graph, image: Tensor, layer: str | None) -> None:
        self.image, self.layer, self.graph = image, layer, graph
        assert graph.output is not None
        self.logits = graph.output
        self.maps = self.logits if layer is None else graph.submodules[layer]
        wanted = [self.logits] if layer is None else [self.logits, self.maps]
        self.run = Recomputed(graph, image[None], wanted, Rules(checks.backend(None, image)))

    def clear(self) -> tuple[Tensor, Tensor | None]:
        logits = _check_logits(self.run.clear[self.logits], 1)[0]
        return logits, None if self.layer is None else _check_maps(self.run.clear[self.maps], self.layer)[0]

    def covered(self, windows: Tensor, cover: Tensor, channel: int | None) -> tuple[Tensor, Tensor | None]:
        places: np.ndarray = windows.numpy()
        size = np.array(self.image.shape[1:])
        box: np.ndarray = (places[:, 2:] - places[:, :2]).max(0)
        origins = np.minimum(places[:, :2], size - box)  # windows cut at the edge hold uncovered pixels, too
        pixels = self.image.new_empty(len(windows), len(self.image), *box.tolist())
        for part, (y, x), (top, left, bottom, right) in zip(pixels, origins.tolist(), windows.tolist(), strict=True):
            part.copy_(self.image[:, y : y + part.shape[1], x : x + part.shape[2]])
            part[:, top - y : bottom - y, left - x : right - x] = cover[:, top:bottom, left:right]
        values = self.run(Region(pixels, origins))
        logits = self.run.whole(self.logits, values[self.logits])
        if self.layer is None:
            return _check_logits(logits, len(windows)), None
        return _check_logits(logits, len(windows)), self.run.whole(self.maps, values[self.maps], channel)[:, 0]


Answer = Callable[[Tensor], tuple[Tensor, Tensor | None]]  # images -> logits, and the layer's maps


class Copies:
    """By whole covered images."""

    def __init__(self, image: Tensor, answer: Answer) -> None:
        self.image, self.answer = image, answer

    def clear(self) -> tuple[Tensor, Tensor | None]:
        logits, maps = self.answer(self.image[None])
        return logits[0], None if maps is None else maps[0]

    def covered(self, windows: Tensor, cover: Tensor, channel: int | None) -> tuple[Tensor, Tensor | None]:
        images = self.image.expand(len(windows), -1, -1, -1).clone()
        for image, (top, left, bottom, right) in zip(images, windows.tolist(), strict=True):
            image[:, top:bottom, left:right] = cover[:, top:bottom, left:right]
        logits, maps = self.answer(images)
        return logits, None if maps is None else maps[:, channel]


def by_model(model: nn.Module, layer: str | None, forward: Forward | None) -> Answer:
    """As the model runs them."""

    def run(images: Tensor) -> object:
        return model(images) if forward is None else forward(model, images)

    def answer(images: Tensor) -> tuple[Tensor, Tensor | None]:
        if layer is None:
            return _check_logits(run(images), len(images)), None
        outputs: list[Any] = []
        with model.get_submodule(layer).register_forward_hook(lambda module, args, output: outputs.append(output)):
            logits = _check_logits(run(images), len(images))
        if not outputs:
            raise ValueError(f"layer {layer!r} did not run in the forward pass; choose another")
        return logits, _check_maps(outputs[-1][0] if isinstance(outputs[-1], tuple) else outputs[-1], layer)

    return answer


def by_steps(graph: Graph, image: Tensor, wanted: list[int], shapes: Shapes) -> Answer:
    """By a traced model's steps, batch norms folded, rectifiers fused. `wanted`: of the logits, and of the maps."""
    rules = Rules(checks.backend(None, image))

    def answer(images: Tensor) -> tuple[Tensor, Tensor | None]:
        parts = graph_run.split(images, shapes)
        kept = [graph_run.run(graph, max(wanted), part, rules, wanted).kept for part in parts]
        logits, *maps = (graph_run.joined([values[number] for values in kept]) for number in wanted)
        return logits, maps[0] if maps else None

    return answer


def covering(
    model: nn.Module, image: Tensor, layer: str | None, patch: Pair, forward: Forward | None
) -> Regions | Copies:
    """The cheaper way for windows of this size; after a warning the model's own where nothing else can be told."""
    regions = None if forward is not None else _traced(model, image, layer, patch)
    return regions or Copies(image, by_model(model, layer, forward))


def _traced(model: nn.Module, image: Tensor, layer: str | None, patch: Pair) -> Regions | Copies | None:
    """By a traced graph, or not by one: where gates that are no steps make nearly all of a pass whole."""
    try:
        if names := hooked(unwrapped(model)):
            raise NotImplementedError(f"{min(names) or 'every module'} has hooks, which may change what it gives")
        graph = trace(model)
        if not graph.output:
            raise NotImplementedError(f"{type(model).__name__} gives something else than one tensor that it computes")
        if layer is not None and layer not in graph.submodules:
            raise NotImplementedError(f"{layer!r} gives no tensor of the traced model")
        wanted = [graph.output, *([] if layer is None else [graph.submodules[layer]])]
        shapes = _shapes(graph, image, wanted)
        if shapes is not None and share(graph, wanted, shapes, patch) > MOST:
            return Copies(image, by_steps(graph, image, wanted, shapes))
        if shapes is not None:
            return Regions(graph, image, layer)
        graph = trace(model, reshapes=True)
        regions = Regions(graph, image, layer)
        clear = [getattr(regions.run.clear.get(i), "shape", None) for i in range(len(graph.nodes) + 1)]
        return regions if share(graph, regions.run.wanted, clear, patch) <= MOST else None
    except (NotImplementedError, RuntimeError) as error:
        warnings.warn(f"each window will cost a whole forward pass, because: {error}", stacklevel=5)
        return None


def _shapes(graph: Graph, image: Tensor, wanted: list[int]) -> Shapes | None:
    """The shapes of the values, if the steps are certain to be the model and give logits and maps."""
    if graph.doubt(*wanted):
        return None
    try:
        shapes = graph.shapes(image[None].shape, *wanted)
    except (NotImplementedError, ValueError):
        return None
    wanted_shapes = [shapes[number] for number in wanted]
    return shapes if [len(shape) for shape in wanted_shapes if shape is not None] in ([2], [2, 4]) else None


def last_call(model: nn.Module, image: Tensor, forward: Forward | None) -> str:
    """What the model's output comes out of: "softmax", say."""
    seen, _ = watched(model, forward, image[None], lambda call, args, kwargs, *where: call(*args, **kwargs))
    return "" if seen.graph.output is None else seen.calls[seen.graph.output]


def check_layer(model: nn.Module, layer: str | None) -> None:
    names = [name for name, _ in model.named_modules() if name]
    if layer is not None and layer not in names:
        near = nearest(layer, names)
        raise ValueError(f"layer {layer!r} is no submodule of the model{near}; choose one of: {', '.join(names)}")


def _check_maps(output: object, layer: str) -> Tensor:
    if not isinstance(output, Tensor) or output.dim() != 4:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"layer {layer!r} must give maps (N, C, H, W), it gives {shape}")
    return output


def _check_logits(logits: object, count: int) -> Tensor:
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != count:
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model must give logits ({count}, classes), it gives {shape}; choose them with forward=")
    return logits
