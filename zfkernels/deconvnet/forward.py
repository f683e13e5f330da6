"""The engine for any model: its own forward, and autograd back down from the units under the rules of signals.py.

Nothing is assumed of the model but that torch can differentiate it. It runs up to the layer, once, and is stopped
there; units are then sent down many at a time.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Size, Tensor, nn

from ..graph.rules import Rules, Shapes
from ..graph.run import fields
from ..graph.watch import Seen, watched
from .signals import Signals
from .units import Units, alone, together

Forward = Callable[[nn.Module, Tensor], object]


class Run(NamedTuple):
    """A forward pass that autograd has recorded."""

    value: Tensor
    images: Tensor


def see(
    model: nn.Module, forward: Forward | None, images: Tensor, rules: Rules, overrides: Mapping[object, str]
) -> Seen:
    """A whole pass of `images`, watched as `Own` runs it: the layers' names, shapes and receptive fields.

    ValueError where the model cannot run them.
    """
    with torch.enable_grad():
        seen, _ = _pass(model, forward, images.detach().clone().requires_grad_(), rules, overrides)
    return seen


def _pass(
    model: nn.Module,
    forward: Forward | None,
    images: Tensor,
    rules: Rules,
    overrides: Mapping[object, str],
    wanted: Collection[int] = (),
    uncapped: Collection[int] = (),
) -> tuple[Seen, object]:
    signals = Signals(rules, overrides, uncapped)
    try:
        # What the model changes in place is no leaf of autograd's.
        seen, output = watched(model, forward, images.clone(), signals, wanted)
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
        if isinstance(error, torch.OutOfMemoryError) or "training mode" in str(error):
            raise
        said = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"images of shape {tuple(images.shape)} do not suit {type(model).__name__}, whose forward says: {said} "
            f"({type(error).__name__}); a forward that needs more than images is given by Deconvnet(model, forward=...)"
        ) from error
    seen.rectified = frozenset(signals.rectified)
    return seen, output


def values(
    model: nn.Module,
    forward: Forward | None,
    images: Tensor,
    numbers: Collection[int],
    rules: Rules,
    expected: Seen,
    uncapped: Collection[int] = (),
) -> dict[int, Tensor]:
    """The values of these numbers (of `expected`) that the model makes of `images`, by one pass."""
    seen, _ = _pass(model, forward, images, rules, {}, numbers, uncapped)
    _check_same(seen, expected, numbers)
    return seen.kept


class Own:
    """Up to the value numbered `stop` of what was `seen`, and down to the pixels."""

    def __init__(
        self,
        model: nn.Module,
        forward: Forward | None,
        overrides: Mapping[object, str],
        seen: Seen,
        stop: int,
        uncapped: Collection[int] = (),
    ) -> None:
        self.model, self.forward, self.overrides, self.seen, self.stop = model, forward, overrides, seen, stop
        self.uncapped = uncapped
        self.unit_elements = max(shape[1:].numel() for shape in seen.shapes[: stop + 1])

    def up_to_switches(self, images: Tensor, rules: Rules) -> Run:
        return self.up(images, rules)

    def up(self, images: Tensor, rules: Rules) -> Run:
        if rules.method is None:
            found = values(self.model, self.forward, images, [self.stop], rules, self.seen, self.uncapped)
            return Run(found[self.stop], images)
        with torch.enable_grad():
            leaf = images.detach().clone().requires_grad_()
            seen, _ = _pass(self.model, self.forward, leaf, rules, self.overrides, [self.stop], self.uncapped)
        _check_same(seen, self.seen, [self.stop])
        return Run(seen.kept[self.stop], leaf)

    def down(self, run: Run, units: Units, values: Tensor, rules: Rules, pixels: Sequence[Tensor]) -> None:
        """Write the projections of the units, with these values in the place of their own, into `pixels`, one each.

        A unit of each image goes down at once, and several such rounds side by side.
        """
        boxes = fields(self.seen.graph, self.stop, units.positions, run.images.shape[2:])
        turn = np.zeros(len(units.images), np.int64)
        for image in np.unique(units.images):
            here = np.flatnonzero(units.images == image)
            turn[here] = np.arange(len(here))
        single = alone(run.value.detach(), units, values)
        g = single.new_zeros(int(turn.max()) + 1, *run.value.shape)
        g[torch.from_numpy(turn), torch.from_numpy(units.images)] = single
        signals = _sent_down(run, g)
        for row, (top, left, bottom, right) in enumerate(boxes.tolist()):
            whole = signals[turn[row], units.images[row]]
            pixels[row][:, top:bottom, left:right] = whole[:, top:bottom, left:right]

    def down_together(self, run: Run, units: Units, values: Tensor, rules: Rules) -> Tensor:
        """One projection (C, H, W) of all the units, which are of one image."""
        return _sent_down(run, together(run.value.detach(), units, values)[None])[0, 0]


def _sent_down(run: Run, g: Tensor) -> Tensor:
    """Signals (rounds, *value's shape) at the pixels: (rounds, M, C, H, W)."""
    if not run.value.requires_grad:
        raise NotImplementedError("the layer depends on the images through nothing that torch differentiates")
    settings = {"retain_graph": True, "allow_unused": True}
    if len(g) > 1:
        try:
            (found,) = torch.autograd.grad(run.value, run.images, g, is_grads_batched=True, **settings)
            return g.new_zeros(len(g), *run.images.shape) if found is None else found
        except (RuntimeError, NotImplementedError, ValueError):  # a backward that cannot be batched
            pass
    each = [torch.autograd.grad(run.value, run.images, signal, **settings)[0] for signal in g]
    return torch.stack([torch.zeros_like(run.images) if one is None else one for one in each])


def _check_same(seen: Seen, expected: Seen, numbers: Collection[int]) -> None:
    last = max(numbers) + 1
    if seen.calls[:last] != expected.calls[:last] or not set(numbers) <= set(seen.kept):
        raise Changed


class Changed(Exception):
    """The model called something else than before, as it may where what it does depends on the images' values."""


def sizes(seen: Seen, count: int) -> Shapes:
    """The shapes of the values for so many images."""
    return [Size((count, *shape[1:])) for shape in seen.shapes]
