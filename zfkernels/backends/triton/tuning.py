"""Which tile, warps and stages a matrix kernel runs with: a rule that needs no measurement, and measured choices.

`choose` answers from the rule unless a choice was measured on this device for this problem. Measuring happens only when
asked for, by ZFKERNELS_TUNE=1 or `tune()`, never while a CUDA graph is captured and never in the interpreter. A
configuration is admitted only if its result agrees with the float64 product on the device (Triton has miscompiled single
configurations of just such loops: pytorch issue 173068), and the fastest admitted one is kept in

    $ZFKERNELS_CACHE/triton-<device>-<triton version>-<digest of this folder's sources>.json

(default folder ~/.cache/zfkernels), so that a later process makes the same choice and computes the same bits. Delete
the file to forget. `table()` is what the file holds.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
import triton

from .tensors import INTERPRETED, power_of_two

CACHE, TUNE = "ZFKERNELS_CACHE", "ZFKERNELS_TUNE"


class Target(NamedTuple):
    """What the rule must know of a device. `kind`: "cuda", "hip" or "interpreter"; `arch`: 90, "gfx942"."""

    kind: str
    arch: int | str
    processors: int


class Config(NamedTuple):
    """A program computes an m x n tile, k terms of the sum at a time, with so many warps and loads so far ahead."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


class Problem(NamedTuple):
    """A product as the rule sees it: rows x columns x depth; the depth comes in runs of `run` contiguous terms.

    `precision` is "half" for 16-bit operands, else the input precision of a float32 product, "tf32" or "ieee".
    """

    op: str
    rows: int
    columns: int
    depth: int
    run: int
    precision: str

    @property
    def key(self) -> str:
        return f"{self.op} {self.rows}x{self.columns}x{self.depth} run {self.run} {self.precision}"


@functools.cache
def target(device: torch.device) -> Target:
    """The target that kernels for `device` are compiled for."""
    if INTERPRETED:
        return Target("interpreter", 0, 1)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Target("hip", properties.gcnArchName.split(":")[0], properties.multi_processor_count)
    return Target("cuda", 10 * properties.major + properties.minor, properties.multi_processor_count)


def precision(dtype: torch.dtype, kind: str) -> str:
    """How a product of `dtype` is computed: "half", or for float32 what torch's setting for convolutions says.

    TF32 is torch's default for convolutions; torch.backends.cudnn.allow_tf32 = False asks for "ieee". (Not "tf32x3": on
    Hopper its splitting of the first operand is the register hazard that conv.py keeps away from.)
    """
    if dtype != torch.float32:
        return "half"
    tf32 = kind != "interpreter" and torch.backends.cudnn.conv.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


# The rule

# Tiles by size, each with its warps: 128x128 with 8 warps keeps 64 sums a thread and two programs on a multiprocessor;
# the smaller ones are for problems that would leave multiprocessors idle.
TILES = ((128, 128, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4), (32, 32, 2))
FMA_TILES = ((64, 64, 8), (32, 32, 4))  # no matrix units: both operands of a step pass through registers


def rule(problem: Problem, target: Target) -> Config:
    """The configuration that needs no measurement; conv.py's header has the arithmetic.

    The largest tile, no larger than the product, that gives each multiprocessor at least one program (the weight
    gradient's sums are shared out among programs besides); steps of 64 terms (128 bytes of a 16-bit type) where the
    runs are multiples of it and 32 otherwise; as many stages as leave room for a second program in shared memory.
    """
    if target.kind == "interpreter":
        return Config(64, 32, 32, 4, 1)
    fma = problem.precision == "ieee" and target.kind == "cuda"
    shared_out = problem.op == "conv2d_weight_grad"
    tiles = [
        Config(m, n, depth_step(problem, fma), warps, 0)
        for m, n, warps in (FMA_TILES if fma else TILES)
        if n <= max(32, power_of_two(problem.columns)) and m <= max(64, power_of_two(problem.rows))
    ]
    enough = (tile for tile in tiles if shared_out or programs(problem, tile) >= target.processors)
    config = next(enough, tiles[-1])
    config = config._replace(n=min(config.n, max(16, power_of_two(problem.columns))))
    if target.kind == "hip":  # 64 KiB of shared memory, waves of 64
        return config._replace(k=min(config.k, 32), warps=max(config.warps // 2, 1), stages=2)
    return config._replace(stages=2 if fma else 3 if config.k * (2 if problem.precision == "half" else 4) == 128 else 4)


def depth_step(problem: Problem, fma: bool) -> int:
    """The terms of the sum that one step takes."""
    if fma:
        return 16
    if problem.op == "conv2d_weight_grad":  # pixels, of which there is any number
        return 64 if problem.precision == "half" else 32
    if problem.precision == "half" and problem.run % 64 == 0:
        return 64
    return 32 if problem.run > 16 else 16


def programs(problem: Problem, config: Config) -> int:
    """How many tiles a problem has."""
    return -(-problem.rows // config.m) * -(-problem.columns // config.n)


def shares(tiles: int, most: int, slots: int, overhead: float = 0.0) -> int:
    """Into how many shares, 1 to `most`, to cut each of `tiles` tiles, for `slots` programs that run at a time.

    The fewest that leave least of the last round idle; each share adds `overhead` of a tile's work.
    """

    def use(count: int) -> float:
        rounds = -(-tiles * count // slots)
        return tiles * count / (max(rounds, 1) * slots) / (1 + overhead * count)

    return max(range(1, max(most, 1) + 1), key=lambda count: (use(count), -count))


def choose(problem: Problem, target: Target) -> Config:
    return rule(problem, target)
