"""Calls of the public functions on small awkward shapes, as plain data, and the tensors that they stand for.

The tests run them forward and backward on every backend; `zfkernels verify` calls the backends' functions (cases.py).
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import zfkernels
from zfkernels.backends import reference
from zfkernels.testing.cases import narrow, values
from zfkernels.testing.shapes import CONVOLUTIONS, LAYERS, NORMS, POOLED_NORMS, POOLINGS
from zfkernels.window import Pair, conv_map, pool_map

NORM = ("size", "alpha", "beta", "k", "center")
POOL = ("kernel_size", "stride", "padding", "ceil_mode")
LAYER_POOL = ("pool_kernel", "pool_stride", "pool_padding")


def pair(value: int | Pair) -> Pair:
    return value if isinstance(value, tuple) else (value, value)


class Call(NamedTuple):
    """A public function, its tensors by shape, its other arguments, and what the tensors hold (cases.values)."""

    op: str
    name: str
    shapes: dict[str, tuple[int, ...]]
    settings: dict[str, Any]
    fill: str = "normal"

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"

    @property
    def conv_window(self) -> tuple[Pair, Pair]:
        """The stride and padding of the convolution."""
        return pair(self.settings["stride"]), pair(self.settings["padding"])

    @property
    def pool_window(self) -> tuple[Pair, Pair, Pair]:
        """The kernel, stride and padding of the pooling."""
        names = LAYER_POOL if "pool_kernel" in self.settings else POOL[:3]
        kernel, stride, padding = (self.settings[name] for name in names)
        return pair(kernel), pair(stride or kernel), pair(padding)

    @property
    def pooled_map(self) -> Pair:
        """The (height, width) of the map that is pooled or unpooled onto."""
        size = self.shapes["x"][2:] if "x" in self.shapes else self.settings["output_size"]
        return conv_map(size, self.shapes["weight"][2:], *self.conv_window) if "pool_kernel" in self.settings else size

    def tensors(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The tensors, contiguous, in `dtype`; the same every time. Switches are those of pooling a random map."""
        generator = torch.Generator().manual_seed(20131112)
        result = {}
        for name, shape in self.shapes.items():
            if name == "switches":
                pooled = values((*shape[:2], *self.pooled_map), "normal", generator)
                result[name] = reference.max_pool2d(pooled, *self.pool_window, shape[2:])[1].contiguous()
            else:
                result[name] = values(shape, narrow(self.fill) if result else self.fill, generator).to(dtype)
        return result

    def run(self, tensors: dict[str, Tensor], backend: str) -> tuple[Tensor, ...]:
        outputs = getattr(zfkernels, self.op)(**tensors, **self.settings, backend=backend)
        return outputs if isinstance(outputs, tuple) else (outputs,)


def convolutions() -> Iterator[Call]:
    for name, x, filters, kernel, stride, padding, bias, fill in CONVOLUTIONS:
        weight, window = (filters, x[1], *kernel), {"stride": stride, "padding": padding}
        shapes = {"x": x, "weight": weight} | ({"bias": (filters,)} if bias else {})
        yield Call("conv2d_relu", name, shapes, window, fill)
        y = (x[0], filters, *conv_map(x[2:], kernel, pair(stride), pair(padding)))
        yield from transposed("relu_conv_transpose2d", name, {"y": y, "weight": weight}, window, x[2:], fill)


def transposed(op: str, name: str, shapes: dict, settings: dict, size: Pair, fill: str) -> Iterator[Call]:
    """The way back onto a map of `size`, with the rectifier and, once, without it."""
    yield Call(op, name, shapes, settings | {"output_size": size}, fill)
    if fill == "normal":
        yield Call(op, f"{name}_plain", shapes, settings | {"output_size": size, "rectify": False})


def poolings() -> Iterator[Call]:
    for name, x, kernel, stride, padding, ceil_mode, fill in POOLINGS:
        window = {"kernel_size": kernel, "stride": stride, "padding": padding}
        yield Call("max_pool2d_with_switches", name, {"x": x}, window | {"ceil_mode": ceil_mode}, fill)
        y = (*x[:2], *pool_map(x[2:], pair(kernel), pair(stride or kernel), pair(padding), ceil_mode))
        shapes = {"y": y, "switches": y}
        yield Call("max_unpool2d_with_switches", name, shapes, window | {"output_size": x[2:]}, fill)


def norms() -> Iterator[Call]:
    for name, x, *constants, fill in NORMS:
        yield Call("contrast_norm", name, {"x": x}, dict(zip(NORM, constants, strict=True)), fill)
    for name, x, pool, norm, fill in POOLED_NORMS:
        settings = dict(zip(POOL + NORM, pool + norm, strict=True))
        yield Call("max_pool2d_contrast_norm", name, {"x": x}, settings, fill)


def layers() -> Iterator[Call]:
    for name, x, filters, kernel, stride, padding, bias, *pool, ceil_mode, fill in LAYERS:
        weight = (filters, x[1], *kernel)
        settings = {"stride": stride, "padding": padding} | dict(zip(LAYER_POOL, pool, strict=True))
        shapes = {"x": x, "weight": weight} | ({"bias": (filters,)} if bias else {})
        forward = settings | {"ceil_mode": ceil_mode} | ({} if bias else {"bias": None})
        yield Call("conv2d_relu_max_pool2d", name, shapes, forward, fill)
        convolved = conv_map(x[2:], kernel, pair(stride), pair(padding))
        pool_kernel, pool_stride, pool_padding = pool
        window = pair(pool_kernel), pair(pool_stride or pool_kernel), pair(pool_padding)
        y = (x[0], filters, *pool_map(convolved, *window, ceil_mode))
        shapes = {"y": y, "switches": y, "weight": weight}
        yield from transposed("max_unpool2d_relu_conv_transpose2d", name, shapes, settings, x[2:], fill)


CALLS = [*convolutions(), *poolings(), *norms(), *layers()]
