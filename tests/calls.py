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
from zfkernels.window import Pair, conv_map, pool_map

# Fills (cases.values): "normal" values; "ties", small integers, which are exact in every dtype and often equal;
# "nonfinite", normal values with some NaN and infinities; "zeros"; "broken", the first normal and the others nonfinite.
# name, x (N, C, H, W), filters, kernel, stride, padding, bias, fill
CONVOLUTIONS = [
    ("primes", (2, 3, 11, 7), 5, (3, 3), 1, 1, True, "normal"),
    ("one_channel", (1, 1, 5, 5), 1, (3, 3), 1, 0, False, "normal"),
    ("one_pixel", (3, 2, 1, 1), 4, (1, 1), 1, 0, True, "normal"),
    ("no_images", (0, 3, 5, 5), 2, (3, 3), 2, 1, True, "normal"),
    ("pointwise", (2, 17, 5, 3), 19, (1, 1), 1, 0, False, "normal"),
    ("stride_beyond_kernel", (1, 3, 11, 13), 4, (2, 2), (3, 4), 0, True, "normal"),
    ("rectangular", (2, 5, 9, 13), 7, (5, 2), (2, 3), (2, 0), True, "normal"),
    ("padding_beyond_kernel", (1, 2, 4, 3), 3, (2, 2), 1, (3, 4), True, "normal"),
    ("kernel_is_map", (2, 4, 6, 5), 8, (6, 5), 1, 0, True, "normal"),
    ("kernel_beyond_map", (1, 3, 2, 3), 2, (5, 4), (2, 1), (2, 1), False, "normal"),
    ("first_layer", (1, 3, 23, 22), 33, (7, 7), 2, 1, True, "normal"),
    ("second_layer", (2, 24, 11, 11), 37, (5, 5), 2, 0, True, "normal"),
    ("deep", (1, 37, 6, 7), 65, (3, 3), 1, 1, True, "normal"),
    ("deep_wide", (1, 20, 6, 7), 130, (3, 3), 1, 1, True, "normal"),  # a CUDA block has up to 128 filters
    ("gaps_in_rows", (1, 33, 5, 11), 17, (3, 2), (2, 3), 0, True, "normal"),  # columns that no filter reaches
    ("leftover", (1, 2, 10, 12), 3, (3, 3), (4, 5), 0, True, "normal"),
    ("ties", (2, 3, 7, 8), 6, (3, 2), (1, 2), 1, True, "ties"),
    ("zeros", (1, 2, 5, 5), 3, (3, 3), 1, 1, False, "zeros"),
    ("special", (2, 3, 9, 8), 5, (3, 3), 2, 1, True, "nonfinite"),
    ("special_weight", (2, 3, 9, 8), 40, (3, 3), 2, 1, True, "broken"),
    ("special_weight_deep", (1, 40, 9, 8), 37, (3, 3), 1, 1, True, "broken"),
    ("special_weight_wide", (2, 33, 9, 11), 36, (3, 2), (2, 3), (2, 0), True, "broken"),
]

# name, x (N, C, H, W), filters, kernel, stride, padding, dilation, groups, fill
GROUPED_CONVOLUTIONS = [
    ("depthwise", (2, 41, 9, 13), 41, (3, 3), 1, 1, 1, 41, "normal"),
    ("depthwise_stride", (1, 64, 12, 11), 64, (3, 3), 2, 1, 1, 64, "normal"),
    ("depthwise_5x5", (2, 33, 10, 7), 33, (5, 5), (1, 2), (2, 3), 1, 33, "normal"),
    ("depthwise_dilated", (1, 20, 15, 14), 20, (3, 2), (2, 3), 2, (2, 3), 20, "normal"),
    ("depthwise_gaps", (1, 32, 11, 13), 32, (1, 2), (3, 4), 0, 1, 32, "normal"),
    ("depthwise_few", (2, 3, 7, 8), 3, (3, 3), 1, 1, 1, 3, "normal"),
    ("depthwise_multiplied", (1, 20, 7, 8), 60, (3, 3), 1, 1, 1, 20, "normal"),
    ("depthwise_no_images", (0, 32, 7, 8), 32, (3, 3), 1, 1, 1, 32, "normal"),
    ("depthwise_special", (2, 36, 9, 8), 36, (3, 3), 2, 1, 1, 36, "nonfinite"),
    ("depthwise_special_weight", (2, 36, 9, 8), 36, (3, 3), 2, 1, 1, 36, "broken"),
    ("depthwise_special_weight_dilated", (1, 20, 9, 8), 20, (3, 3), (1, 3), 3, (2, 1), 20, "broken"),
    ("depthwise_padding_beyond", (1, 17, 3, 4), 17, (2, 3), (2, 1), (4, 5), (1, 2), 17, "normal"),
    ("groups", (2, 24, 9, 8), 36, (3, 3), 1, 1, 1, 3, "normal"),
    ("groups_pointwise", (1, 34, 6, 5), 66, (1, 1), 1, 0, 1, 2, "normal"),
    ("groups_stride", (2, 12, 11, 10), 64, (5, 3), 2, (2, 1), 1, 2, "normal"),
    ("groups_special", (1, 40, 8, 9), 40, (3, 3), (1, 2), 1, 1, 2, "nonfinite"),
    ("groups_special_weight", (1, 40, 8, 9), 40, (3, 3), (1, 2), 1, 1, 2, "broken"),
    ("groups_dilated", (1, 66, 13, 12), 8, (3, 3), 1, 2, 2, 2, "normal"),
    ("dilated", (2, 19, 13, 12), 21, (3, 3), 1, 2, 2, 1, "normal"),
    ("dilated_stride", (1, 37, 14, 15), 18, (3, 4), (4, 3), (3, 1), (2, 3), 1, "normal"),
    ("dilated_rows", (1, 3, 14, 15), 18, (3, 3), 1, 0, (3, 1), 1, "normal"),
    ("dilated_special", (1, 20, 9, 8), 18, (3, 3), 2, 2, 2, 1, "nonfinite"),
    ("dilated_special_weight", (1, 20, 9, 8), 18, (3, 3), (2, 1), 2, (2, 3), 1, "broken"),
]

# name, x (N, C, H, W), filters, kernel, padding, groups, bias, add, cap, fill: conv2d_relu with what follows it.
FINISHED_CONVOLUTIONS = [
    ("residual", (2, 19, 7, 9), 40, (3, 3), 1, 1, True, True, None, "normal"),
    ("residual_pointwise", (1, 33, 5, 7), 64, (1, 1), 0, 1, False, True, None, "normal"),
    ("residual_capped", (1, 9, 6, 5), 32, (3, 3), 1, 1, True, True, 1.5, "normal"),
    ("residual_groups", (1, 8, 6, 5), 32, (3, 3), 1, 2, True, True, None, "normal"),
    ("residual_special", (2, 20, 7, 9), 33, (3, 3), 1, 1, True, True, 1.0, "nonfinite"),
    ("residual_special_add", (1, 20, 7, 9), 33, (3, 3), 1, 1, True, True, 1.0, "broken"),
    ("capped", (2, 3, 8, 9), 33, (5, 5), 2, 1, True, False, 6.0, "normal"),
    ("capped_depthwise", (1, 37, 8, 9), 37, (3, 3), 1, 37, True, False, 1.0, "normal"),
    ("residual_depthwise", (1, 64, 8, 9), 64, (3, 3), 1, 64, True, True, 1.0, "normal"),
    ("residual_no_images", (0, 3, 5, 5), 2, (3, 3), 1, 1, True, True, None, "normal"),
]

# name, x (N, C, H, W), kernel, stride, padding, ceil_mode, fill
POOLINGS = [
    ("overlap", (2, 5, 11, 13), 3, 2, 0, False, "normal"),
    ("ceil_overhang", (2, 16, 12, 10), 3, 2, 0, True, "normal"),
    ("ceil_leftover", (1, 3, 5, 8), 2, 3, 0, True, "normal"),
    ("ceil_padding", (1, 4, 7, 6), (4, 3), (3, 2), (2, 1), True, "normal"),
    ("ceil_last_window_dropped", (1, 2, 3, 4), 2, 2, 1, True, "normal"),
    ("kernel_beyond_map_ceil", (2, 2, 1, 2), 3, 3, 0, True, "normal"),
    ("one_channel", (3, 1, 7, 5), 2, None, 0, False, "normal"),
    ("one_pixel", (2, 3, 1, 1), 1, 1, 0, False, "normal"),
    ("no_images", (0, 3, 5, 5), 3, 2, 1, True, "normal"),
    ("stride_one", (1, 3, 6, 5), 3, 1, 1, False, "normal"),
    ("stride_beyond_kernel", (1, 2, 11, 13), (2, 3), (4, 5), 0, False, "normal"),
    ("rectangular", (2, 7, 9, 13), (1, 5), (2, 3), (0, 2), False, "normal"),
    ("largest_window", (1, 2, 17, 19), 16, 1, 8, False, "normal"),
    ("deep", (1, 67, 6, 5), 3, 2, 1, False, "normal"),
    ("whole_vectors", (2, 32, 11, 9), 3, 2, 0, False, "normal"),  # the last window of a map is whole
    ("ties", (2, 6, 9, 7), 3, 2, 1, True, "ties"),
    ("zeros", (1, 2, 5, 5), 3, 2, 0, False, "zeros"),
    ("special", (2, 9, 9, 8), 3, 2, 1, True, "nonfinite"),
    ("ties_of_many_maps", (1, 37, 8, 9), 3, 2, 1, True, "ties"),
    ("special_of_many_maps", (1, 37, 8, 9), 3, 2, 1, False, "nonfinite"),
    ("ties_2x2", (1, 37, 6, 8), 2, None, 0, False, "ties"),
    ("special_2x2", (1, 37, 6, 8), 2, None, 0, False, "nonfinite"),
]

# name, x (N, C, H, W), kernel, stride, padding, ceil_mode, count_include_pad, fill
AVERAGES = [
    ("whole_maps", (2, 37, 7, 7), 7, None, 0, False, True, "normal"),
    ("whole_large_maps", (1, 19, 29, 31), (29, 31), None, 0, False, True, "normal"),
    ("whole_maps_of_one_channel", (3, 1, 5, 6), (5, 6), None, 0, False, True, "normal"),
    ("whole_maps_special", (2, 40, 6, 5), (6, 5), 1, 0, False, True, "nonfinite"),
    ("halved", (2, 48, 12, 10), 2, None, 0, False, True, "normal"),
    ("inception", (1, 35, 9, 8), 3, 1, 1, False, True, "normal"),
    ("inception_map_alone", (1, 35, 9, 8), 3, 1, 1, False, False, "normal"),
    ("ceil_overhang", (2, 16, 12, 10), 3, 2, 0, True, True, "normal"),
    ("ceil_padding", (1, 4, 7, 6), (4, 3), (3, 2), (2, 1), True, True, "normal"),
    ("ceil_padding_map_alone", (1, 20, 7, 6), (4, 3), (3, 2), (2, 1), True, False, "normal"),
    ("one_pixel", (2, 3, 1, 1), 1, 1, 0, False, True, "normal"),
    ("no_images", (0, 3, 5, 5), 3, 2, 1, True, True, "normal"),
    ("stride_beyond_kernel", (1, 18, 11, 13), (2, 3), (4, 5), 0, False, True, "normal"),
    ("large_window", (1, 2, 18, 21), (17, 20), 1, (8, 3), False, True, "normal"),
    ("zeros", (1, 2, 5, 5), 3, 2, 0, False, True, "zeros"),
    ("special", (2, 33, 9, 8), 3, 2, 1, True, False, "nonfinite"),
]

# name, x (N, C, H, W), size, alpha, beta, k, center, fill
NORMS = [
    ("paper", (2, 16, 5, 7), 5, 1e-4, 0.75, 2.0, False, "normal"),
    ("strong", (2, 33, 3, 5), 5, 1.5, 0.75, 1.0, False, "normal"),
    ("even", (1, 11, 3, 2), 4, 0.5, 0.75, 2.0, False, "normal"),
    ("even_centered", (1, 11, 3, 2), 4, 0.5, 0.75, 2.0, True, "normal"),
    ("blocks", (1, 24, 7, 9), 5, 0.5, 0.75, 2.0, False, "normal"),  # a block of threads begins inside a pixel's maps
    ("two", (1, 7, 2, 2), 2, 0.5, 0.5, 1.0, True, "normal"),
    ("size_one", (1, 3, 4, 5), 1, 1.0, 0.75, 1.0, False, "normal"),
    ("size_one_centered", (1, 3, 4, 5), 1, 1.0, 0.75, 1.0, True, "normal"),
    ("size_beyond_channels", (2, 3, 5, 3), 9, 0.3, 0.75, 2.0, False, "normal"),
    ("size_beyond_channels_even", (2, 3, 5, 3), 8, 0.3, 0.75, 2.0, True, "normal"),
    ("one_channel", (3, 1, 3, 5), 5, 1.0, 0.75, 1.0, False, "normal"),
    ("one_pixel", (1, 13, 1, 1), 5, 1.0, 0.6, 1.5, True, "normal"),
    ("no_images", (0, 5, 3, 3), 5, 1.0, 0.75, 1.0, False, "normal"),
    ("beta_above_one", (1, 19, 2, 3), 3, 0.7, 1.25, 1.0, True, "normal"),
    ("beta_negative", (1, 9, 2, 3), 3, 0.7, -0.5, 1.0, False, "normal"),
    ("alpha_zero", (1, 9, 2, 3), 3, 0.0, 0.75, 3.0, True, "normal"),
    ("ties", (2, 17, 3, 3), 5, 1.0, 0.75, 1.0, True, "ties"),
    ("zeros", (1, 8, 3, 3), 5, 1.0, 0.75, 2.0, True, "zeros"),
    ("special", (2, 21, 3, 4), 5, 1.0, 0.75, 2.0, False, "nonfinite"),
    ("special_centered", (2, 21, 3, 4), 4, 1.0, 0.75, 2.0, True, "nonfinite"),
]

# name, x (N, C, H, W), (pool kernel, stride, padding, ceil_mode), (size, alpha, beta, k, center), fill
POOLED_NORMS = [
    ("paper", (2, 16, 11, 12), (3, 2, 0, True), (5, 0.5, 0.75, 2.0, False), "normal"),
    ("many_pixels_a_block", (1, 8, 7, 29), (3, 2, 1, True), (5, 1.0, 0.75, 1.0, False), "normal"),
    ("wide", (1, 2064, 3, 4), (2, 1, 0, False), (5, 1.0, 0.75, 1.0, False), "normal"),
    ("rectangular", (2, 24, 9, 13), ((1, 5), (2, 3), (0, 2), False), (5, 0.5, 1.25, 1.0, False), "normal"),
    ("odd_channels", (2, 7, 5, 6), (3, 2, 0, True), (5, 1.0, 0.75, 1.0, False), "normal"),
    ("even_centered", (1, 16, 5, 5), (2, 2, 0, False), (4, 1.0, 0.75, 1.0, True), "normal"),
    ("no_images", (0, 8, 5, 5), (3, 2, 0, True), (5, 1.0, 0.75, 1.0, False), "normal"),
    ("ties", (2, 16, 7, 7), (3, 2, 0, True), (5, 1.0, 0.75, 1.0, False), "ties"),
    ("special", (2, 24, 7, 8), (3, 2, 1, True), (5, 1.0, 0.75, 2.0, False), "nonfinite"),
]

# name, x (N, C, H, W), filters, kernel, stride, padding, bias, pool kernel, stride, padding, ceil_mode, fill
LAYERS = [
    ("first_layer", (1, 3, 25, 22), 33, (7, 7), 2, 1, True, 3, 2, 0, True, "normal"),
    ("second_layer", (2, 24, 11, 13), 37, (5, 5), 2, 0, True, 3, 2, 0, True, "normal"),
    ("primes", (2, 3, 11, 7), 5, (3, 3), 1, 1, True, 2, 2, 0, False, "normal"),
    ("one_channel", (1, 1, 7, 5), 1, (3, 3), 1, 1, False, 3, 2, 1, True, "normal"),
    ("one_pixel", (3, 2, 1, 1), 4, (1, 1), 1, 0, True, 1, 1, 0, False, "normal"),
    ("no_images", (0, 3, 9, 9), 2, (3, 3), 2, 1, True, 3, 2, 0, True, "normal"),
    ("rectangular", (2, 5, 11, 13), 7, (5, 2), (2, 3), (2, 0), True, (2, 3), (1, 2), (1, 0), False, "normal"),
    ("pool_without_overlap", (1, 3, 8, 9), 17, (3, 3), 1, 1, False, 2, None, 0, False, "normal"),
    ("pool_stride_beyond_kernel", (1, 3, 13, 15), 4, (2, 2), 1, 0, True, 2, (3, 4), 0, True, "normal"),
    ("ties", (2, 3, 9, 8), 6, (3, 3), 1, 1, True, 3, 2, 0, True, "ties"),
    ("zeros", (1, 2, 7, 7), 3, (3, 3), 1, 1, False, 3, 2, 0, True, "zeros"),
    ("special", (2, 3, 12, 11), 5, (3, 3), 1, 1, True, 3, 2, 1, True, "nonfinite"),
    ("special_weight", (2, 20, 12, 11), 33, (3, 3), 1, 1, True, 3, 2, 1, True, "broken"),
]

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
    def grouped(self) -> tuple[Pair, int]:
        """The dilation and the groups of the convolution."""
        return pair(self.settings.get("dilation", 1)), self.settings.get("groups", 1)

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


def grouped_convolutions() -> Iterator[Call]:
    for name, x, filters, kernel, stride, padding, dilation, groups, fill in GROUPED_CONVOLUTIONS:
        weight, window = (filters, x[1] // groups, *kernel), {"stride": stride, "padding": padding}
        window |= {"dilation": dilation, "groups": groups}
        yield Call("conv2d_relu", name, {"x": x, "weight": weight, "bias": (filters,)}, window, fill)
        y = (x[0], filters, *conv_map(x[2:], kernel, pair(stride), pair(padding), pair(dilation)))
        yield from transposed("relu_conv_transpose2d", name, {"y": y, "weight": weight}, window, x[2:], fill)
    for name, x, filters, kernel, padding, groups, bias, add, cap, fill in FINISHED_CONVOLUTIONS:
        shapes = {"x": x, "weight": (filters, x[1] // groups, *kernel)} | ({"bias": (filters,)} if bias else {})
        shapes |= {"add": (x[0], filters, *conv_map(x[2:], kernel, (1, 1), pair(padding)))} if add else {}
        yield Call("conv2d_relu", name, shapes, {"stride": 1, "padding": padding, "groups": groups, "cap": cap}, fill)


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


def averages() -> Iterator[Call]:
    for name, x, *settings, fill in AVERAGES:
        names = (*POOL, "count_include_pad")
        yield Call("avg_pool2d", name, {"x": x}, dict(zip(names, settings, strict=True)), fill)


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


CALLS = [*convolutions(), *grouped_convolutions(), *poolings(), *averages(), *norms(), *layers()]
