"""What a projection must be, found in another way than the product's: autograd's graph of the model's own forward.

The nodes of that graph that are rectifiers get hooks, which put the method's gradient in the place of the true one. How
a model spells its rectifiers, and whether it can be traced, does not matter here: what ran is what the graph holds.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn

METHODS = ("deconvnet", "gradient", "guided")


class Truth(NamedTuple):
    """The projections of one unit of each image: pixels (N, C, H, W), values (N,), channels (N,), positions (N, 2)."""

    pixels: Tensor
    values: Tensor
    channels: Tensor
    positions: Tensor


class Oracle:
    """One forward pass of `model` in evaluation mode, from which any unit of `layers` is projected.

    A layer is a module's name, and its value what the module gave when it was called last; of a tuple, its first.
    `forward(model, images)` runs the model where images are not its only argument.
    """

    def __init__(self, model: nn.Module, images: Tensor, layers: tuple[str, ...], forward=None) -> None:
        self.images, self.values, self.method = images.detach().clone().requires_grad_(), {}, "gradient"
        handles = [model.get_submodule(layer).register_forward_hook(self._keeper(layer)) for layer in layers]
        try:
            x = self.images + 0  # a model may write into its input
            forward(model, x) if forward else model(x)
        finally:
            for handle in handles:
                handle.remove()
        for node in reached(value.grad_fn for value in self.values.values()):
            slope = slope_of(node)
            if slope is not None:
                node.register_hook(self._rule(slope))

    def _keeper(self, layer: str):
        def keep(module: nn.Module, inputs: tuple, output: Tensor | tuple) -> None:
            first = output[0] if isinstance(output, (tuple, list)) else output
            self.values[layer] = first.clone()  # before what follows writes into it

        return keep

    def _rule(self, slope: float | Tensor):
        """A rectifier's gradient. grad_inputs hold m g, and m (max(0, g) + slope min(0, g)) is the rule of m g."""

        def replaced(grad_inputs: tuple, grad_outputs: tuple) -> tuple | None:
            if self.method == "gradient":
                return None
            g = grad_outputs[0] if self.method == "deconvnet" else grad_inputs[0]
            return g.clamp(min=0) + slope * g.clamp(max=0), *grad_inputs[1:]

        return replaced

    def units(self, layer: str) -> tuple[Tensor, Tensor]:
        """Of each image the strongest map, unless several places tie in it or a ReLU6 capped it; and its place."""
        value = self.values[layer].detach()
        if value.ndim == 2:
            return value.argmax(1), value.new_zeros(len(value), 2, dtype=torch.int64)
        width, maps = value.shape[3], value.flatten(2)
        two = torch.cat([maps, torch.full_like(maps[..., :1], -torch.inf)], 2).topk(2).values
        clear = (two[..., 0] - two[..., 1] > 1e-6 * two[..., 0].abs()) & (two[..., 0] != 6)
        channels = two[..., 0].masked_fill(~clear, -torch.inf).argmax(1)
        place = maps[torch.arange(len(maps)), channels].argmax(1)
        return channels, torch.stack([place // width, place % width], 1)

    def project(self, layer: str, method: str) -> Truth:
        channels, positions = self.units(layer)
        value = self.values[layer]
        index = (torch.arange(len(value)), channels, *positions.T)[: value.ndim]
        chosen = value[index]
        self.method = method
        (pixels,) = torch.autograd.grad(chosen, self.images, chosen.detach(), retain_graph=True)
        return Truth(pixels, chosen.detach(), channels, positions)


def reached(starts) -> list:
    """The nodes of autograd's graph that these depend on."""
    waiting, seen = [node for node in starts if node is not None], set()
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += [below for below, _ in node.next_functions if below is not None]
    return list(seen)


def slope_of(node) -> float | Tensor | None:
    """What a rectifier multiplies values below 0 by; None of what is no rectifier."""
    kind = type(node).__name__.rstrip("0123456789")  # in place or not, a call of the same op
    if kind in ("ReluBackward", "ThresholdBackward"):
        return 0.0
    if kind == "HardtanhBackward":
        return 0.0 if node._saved_min_val == 0 else None
    if kind in ("ClampBackward", "ClampMinBackward"):
        return 0.0 if nothing(node._saved_min) else None
    if kind == "MaximumBackward":
        return 0.0 if nothing(node._saved_other) else None
    if kind == "LeakyReluBackward":
        return node._saved_negative_slope
    if kind == "RreluWithNoiseBackward":
        return (node._saved_lower + node._saved_upper) / 2
    return node._saved_weight if kind == "PreluKernelBackward" else None


def nothing(bound: float | Tensor | None) -> bool:
    """Is it 0, everywhere?"""
    return bound is not None and not torch.as_tensor(bound).any()
