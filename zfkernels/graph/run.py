"""A traced graph run forward on whole maps, and its reverse: for models that branch, and for every rule of a ReLU.

Reversed, a sum gives both branches the same signal and a concatenation cuts it up; where branches part, what comes back
from each is summed. A unit's projection is cut to the union of its receptive fields over all paths, so that the
rounding of a dense computation puts nothing outside.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..window import covered
from .graph import Graph
from .steps import (
    Add,
    Average,
    AveragePool,
    Concat,
    Conv,
    Flatten,
    Linear,
    Mean,
    Pair,
    Pool,
    Step,
    _reverse_step,
    forward,
    shape_after,
)


class Run(NamedTuple):
    """A forward pass and what its reverse needs of it, all by a value's number."""

    stop: int
    shapes: list[torch.Size | None]
    recorded: dict[int, list[Tensor | None]]  # a step: a pool's switches, a norm's input, a ReLU's derivative
    value: Tensor
    kept: dict[int, Tensor]


def run(
    graph: Graph, shapes: list[torch.Size | None], images: Tensor, method: str | None, keep: Collection[int] = ()
) -> Run:
    """The value whose shape is the last, those to keep, and what is needed to reverse; with method None, nothing."""
    stop = len(shapes) - 1
    needed = graph.ancestors(stop, *keep)
    last_use = {number: reader for reader in needed for number in graph.nodes[reader - 1].inputs}
    values, recorded = {0: images}, {}
    for number in needed:
        node = graph.nodes[number - 1]
        x, recorded[number] = [values[i] for i in node.inputs], []
        for step in node.steps:
            x, record = forward(step, x, method)
            recorded[number].append(record)
            x = [x]
        values[number] = x[0]
        for i in node.inputs:
            if last_use[i] == number and i != stop and i not in keep:
                values.pop(i, None)
    return Run(stop, shapes, recorded, values[stop], {i: values[i] for i in keep})


def reverse(graph: Graph, done: Run, g: Tensor, of: np.ndarray, norm: str, method: str) -> Tensor:
    """From signals g (N, *value's shape), each of image of[i], down to the pixels (N, C, H, W)."""
    index = None if np.array_equal(of, np.arange(len(done.value))) else torch.from_numpy(of).to(g.device)
    signals = {done.stop: g}
    for number in reversed(graph.ancestors(done.stop)):
        node, g = graph.nodes[number - 1], signals.pop(number)
        shapes = [done.shapes[i] for i in node.inputs]
        for k in reversed(range(len(node.steps))):
            step, record = node.steps[k], done.recorded[number][k]
            if isinstance(step, (Add, Concat)):
                break
            below = _shape_below(done, node.inputs[0], node.steps[:k])
            record = record if record is None or index is None else record[index]
            g = _reverse_step(step, g, below, record, norm, method)
        parts = [g] * len(node.inputs)
        if node.steps and isinstance(node.steps[0], Concat):
            parts = g.split([shape[1] for shape in shapes], 1)
        for i, part in zip(node.inputs, parts, strict=True):
            signals[i] = signals[i] + part if i in signals else part
    return signals[0]


def _shape_below(done: Run, number: int, steps: tuple[Step, ...]) -> torch.Size:
    """The shape of what a node's step takes, after the node's steps before it."""
    shape = done.shapes[number]
    for step in steps:
        shape = shape_after(step, [shape], done.shapes)
    return shape


def fields(graph: Graph, stop: int, places: np.ndarray, image_size: Pair) -> np.ndarray:
    """The union over all paths of the receptive fields of the places (N, 2), as boxes (N, 4) clipped to the image."""
    whole = np.array([[-(2**40)] * 2 + [2**40] * 2])  # more than any map
    boxes = {stop: np.concatenate([places, places + 1], 1)}
    for number in reversed(graph.ancestors(stop)):
        node, box = graph.nodes[number - 1], boxes.pop(number)
        for step in reversed(node.steps):
            if isinstance(step, (Conv, Pool, AveragePool)):
                reach, padding = (step.reach, step.before) if isinstance(step, Conv) else (step.kernel, step.padding)
                first, last = covered(box[:, :2], box[:, 2:], np.array(reach), np.array(step.stride), np.array(padding))
                box = np.concatenate([first, last], 1).clip(whole[0, 0], whole[0, 3])
            elif isinstance(step, (Average, Mean, Flatten, Linear)):
                box = np.broadcast_to(whole, box.shape)
        for i in node.inputs:
            other = boxes.get(i, box)
            boxes[i] = np.concatenate([np.minimum(box[:, :2], other[:, :2]), np.maximum(box[:, 2:], other[:, 2:])], 1)
    return boxes[0].clip(0, (*image_size, *image_size))
