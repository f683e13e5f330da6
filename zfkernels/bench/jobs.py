"""What is measured: ops on the real layers, whole networks, other people's layers and networks, growth. All in JOBS.

`make(name, n, setting)` builds one `Case`. zfkernels' ops are called at the level of the backend's functions, its
networks through the public API.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch

import zfkernels

from . import models, nets, networks, ops, stacks
from .peers import Case, Setting
from .shapes import AVERAGES, CONVS, GROUPED, GROWTH, GROWTH_BASE, NORMS, OTHERS, POOLS, square

# Plain convolutions, which the compiler leaves to torch or oneDNN: the time for compiling goes to the other groups.
WITHOUT_COMPILER = ("others", "growth")


class Job(NamedTuple):
    """A line of the table: its words, what builds its case at a batch size, its group, its batch sizes if not all; why
    it cannot be run here, if so."""

    text: str
    build: Callable[[int, Setting], Case]
    group: str  # "op", "network", "others", "growth", "models" or "nets"
    sizes: tuple[int, ...] | None = None
    missing: Callable[[], str] = str


def make(name: str, n: int, setting: Setting) -> Case:
    """The case of that name at batch size n on the setting's device, with the peers installed and asked for.

    The same job, size, device and dtype give the same numbers, whatever the backend.
    """
    torch.manual_seed(0)
    if JOBS[name].group in WITHOUT_COMPILER:
        setting = replace(setting, peers=tuple(peer for peer in setting.peers if peer != "compile"))
    before = torch.get_default_dtype()
    torch.set_default_dtype(setting.dtype)
    try:
        with torch.device(setting.device), zfkernels.use_backend(setting.backend):
            case = JOBS[name].build(n, setting)
    finally:
        torch.set_default_dtype(before)
    case.name = name
    return case


def grown(axis: str, value: int) -> Job:
    """A 3x3 convolution whose batch, channels or pixels are `value`."""
    n, channels, size = (value if name == axis else base for name, base in GROWTH_BASE.items())
    layer = square(channels, size, channels, 3, 1, 1)
    return Job(f"3x3 convolution, {axis} {value}", partial(ops.conv, layer), "growth", (n,))


LAYERS = {i: (CONVS[i], p) for i, p in POOLS.items()}
OPS: dict[
    str, tuple[str, Callable[..., Case], Mapping[int, object]]
] = {  # op: its words, what builds its case, the layers
    "conv": ("conv{} + bias + ReLU", ops.conv, CONVS),
    "convt": ("conv{}'s input gradient", ops.convt, CONVS),
    "wgrad": ("conv{}'s weight gradient", ops.wgrad, CONVS),
    "pool": ("pool{} with switches", ops.pool, POOLS),
    "unpool": ("unpooling {}", ops.unpool, POOLS),
    "poolgrad": ("pool{}'s backward", ops.poolgrad, POOLS),
    "unpoolgrad": ("unpooling {}'s backward", ops.unpoolgrad, POOLS),
    "norm": ("contrast norm {}", ops.norm, NORMS),
    "normtrain": ("contrast norm {} and backward", ops.normtrain, NORMS),
    "fused": ("conv{} + ReLU + pool with switches", ops.fused, LAYERS),
    "unfused": ("unpool + ReLU + transposed conv{}", ops.unfused, LAYERS),
}
JOBS: dict[str, Job] = {
    **{
        f"{op}{i}": Job(text.format(i), partial(build, layer), "op")
        for op, (text, build, layers) in OPS.items()
        for i, layer in layers.items()
    },
    "forward": Job("images to pool5 with switches", stacks.forward, "network"),
    "descent": Job("pool5 to pixels by switches, dense", stacks.descent, "network"),
    "logits": Job("images to logits", networks.logits, "network"),
    "project": Job("images to one conv5 projection each", networks.project, "network"),
    "reverse": Job("the projections alone", networks.reverse, "network"),
    "atlas": Job("top 9 of 64 conv5 maps projected", networks.atlas, "network", (64,)),
    "smallstep": Job("training step, the demo's ZFNet", networks.small_step, "network", (32,)),
    "step": Job("training step, ZFNet", networks.step, "network"),
    **{name: Job(name, partial(ops.conv, c), "others") for name, c in OTHERS.items()},
    **{name: Job(name, partial(ops.conv, c), "others") for name, c in GROUPED.items()},
    **{name: Job(name, partial(ops.average, p), "others") for name, p in AVERAGES.items()},
    **{
        f"{name}-back": Job(f"{name}'s backward", partial(ops.averagegrad, p), "others") for name, p in AVERAGES.items()
    },
    **{f"grow-{axis}-{value}": grown(axis, value) for axis, values in GROWTH.items() for value in values},
    **{name: Job(text, build, "models", None, net.missing) for name, net, text, build in models.jobs()},
    **{name: Job(text, build, "nets", (n,), net.missing) for name, net, text, build, n in nets.jobs()},
}
