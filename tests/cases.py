"""Small awkward cases of every op, as plain data, and the tensors that they stand for.

A case names a public function, its tensors by shape, and its other arguments. `fill` says what the tensors hold:

    normal    standard normal values
    ties      small integers: exact in every dtype, and full of equal values
    zero      zeros
    special   normal values with NaN, inf and -inf sprinkled over the first tensor
"""

from typing import NamedTuple

import torch

from zfkernels import window


class Case(NamedTuple):
    op: str
    name: str
    shapes: dict
    settings: dict
    fill: str = "normal"

    @property
    def id(self) -> str:
        return f"{self.op}-{self.name}"


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
    ("leftover", (1, 2, 10, 12), 3, (3, 3), (4, 5), 0, True, "normal"),
    ("ties", (2, 3, 7, 8), 6, (3, 2), (1, 2), 1, True, "ties"),
    ("zeros", (1, 2, 5, 5), 3, (3, 3), 1, 1, False, "zero"),
    ("special", (2, 3, 9, 8), 5, (3, 3), 2, 1, True, "special"),
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
    ("ties", (2, 6, 9, 7), 3, 2, 1, True, "ties"),
    ("zeros", (1, 2, 5, 5), 3, 2, 0, False, "zero"),
    ("special", (2, 9, 9, 8), 3, 2, 1, True, "special"),
]

# name, x (N, C, H, W), size, alpha, beta, k, center, fill
NORMS = [
    ("paper", (2, 16, 5, 7), 5, 1e-4, 0.75, 2.0, False, "normal"),
    ("strong", (2, 33, 3, 5), 5, 1.5, 0.75, 1.0, False, "normal"),
    ("even", (1, 11, 3, 2), 4, 0.5, 0.75, 2.0, False, "normal"),
    ("even_centered", (1, 11, 3, 2), 4, 0.5, 0.75, 2.0, True, "normal"),
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
    ("zeros", (1, 8, 3, 3), 5, 1.0, 0.75, 2.0, True, "zero"),
    ("special", (2, 21, 3, 4), 5, 1.0, 0.75, 2.0, False, "special"),
    ("special_centered", (2, 21, 3, 4), 4, 1.0, 0.75, 2.0, True, "special"),
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
    ("special", (2, 24, 7, 8), (3, 2, 1, True), (5, 1.0, 0.75, 2.0, False), "special"),
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
    ("zeros", (1, 2, 7, 7), 3, (3, 3), 1, 1, False, 3, 2, 0, True, "zero"),
    ("special", (2, 3, 12, 11), 5, (3, 3), 1, 1, True, 3, 2, 1, True, "special"),
]


def _pair(value) -> tuple[int, int]:
    return value if isinstance(value, tuple) else (value, value)


def _pooled(size, kernel, stride, padding, ceil_mode) -> tuple[int, int]:
    kernel = _pair(kernel)
    return window.pool_map(size, kernel, _pair(stride or kernel), _pair(padding), ceil_mode)


def _cases():
    for name, x, filters, kernel, stride, padding, bias, fill in CONVOLUTIONS:
        weight = (filters, x[1], *kernel)
        shapes = {"x": x, "weight": weight} | ({"bias": (filters,)} if bias else {})
        yield Case("conv2d_relu", name, shapes, {"stride": stride, "padding": padding}, fill)
        y = (x[0], filters, *window.conv_map(x[2:], kernel, _pair(stride), _pair(padding)))
        settings = {"stride": stride, "padding": padding, "output_size": x[2:]}
        yield Case("relu_conv_transpose2d", name, {"y": y, "weight": weight}, settings, fill)
        if fill == "normal":
            settings = settings | {"rectify": False}
            yield Case("relu_conv_transpose2d", f"{name}_plain", {"y": y, "weight": weight}, settings, fill)
    for name, x, kernel, stride, padding, ceil_mode, fill in POOLINGS:
        settings = {"kernel_size": kernel, "stride": stride, "padding": padding}
        yield Case("max_pool2d_with_switches", name, {"x": x}, settings | {"ceil_mode": ceil_mode}, fill)
        y = (*x[:2], *_pooled(x[2:], kernel, stride, padding, ceil_mode))
        settings = settings | {"output_size": x[2:]}
        yield Case("max_unpool2d_with_switches", name, {"y": y, "switches": y}, settings, fill)
    for name, x, size, alpha, beta, k, center, fill in NORMS:
        settings = {"size": size, "alpha": alpha, "beta": beta, "k": k, "center": center}
        yield Case("contrast_norm", name, {"x": x}, settings, fill)
    for name, x, pool, norm, fill in POOLED_NORMS:
        settings = dict(zip(("kernel_size", "stride", "padding", "ceil_mode"), pool, strict=True))
        settings |= dict(zip(("size", "alpha", "beta", "k", "center"), norm, strict=True))
        yield Case("max_pool2d_contrast_norm", name, {"x": x}, settings, fill)
    for name, x, filters, kernel, stride, padding, bias, *pool, ceil_mode, fill in LAYERS:
        weight = (filters, x[1], *kernel)
        shapes = {"x": x, "weight": weight} | ({"bias": (filters,)} if bias else {})
        settings = {"stride": stride, "padding": padding}
        settings |= dict(zip(("pool_kernel", "pool_stride", "pool_padding"), pool, strict=True))
        forward = settings | {"ceil_mode": ceil_mode} | ({} if bias else {"bias": None})
        yield Case("conv2d_relu_max_pool2d", name, shapes, forward, fill)
        map_size = window.conv_map(x[2:], kernel, _pair(stride), _pair(padding))
        y = (x[0], filters, *_pooled(map_size, *pool, ceil_mode))
        shapes = {"y": y, "switches": y, "weight": weight}
        settings = settings | {"output_size": x[2:]}
        yield Case("max_unpool2d_relu_conv_transpose2d", name, shapes, settings, fill)
        if fill == "normal":
            settings = settings | {"rectify": False}
            yield Case("max_unpool2d_relu_conv_transpose2d", f"{name}_plain", shapes, settings, fill)


CASES = list(_cases())


def pool_window(case: Case) -> tuple:
    """The kernel, stride and padding, as pairs, of the case's pooling."""
    prefix = "pool_" if "pool_kernel" in case.settings else ""
    kernel = _pair(case.settings["pool_kernel" if prefix else "kernel_size"])
    return kernel, _pair(case.settings[f"{prefix}stride"] or kernel), _pair(case.settings[f"{prefix}padding"])


def conv_window(case: Case) -> tuple:
    """The stride and padding, as pairs, of the case's convolution."""
    return _pair(case.settings["stride"]), _pair(case.settings["padding"])


def pooled_map(case: Case) -> tuple[int, int]:
    """The (height, width) of the map that the case pools or unpools onto."""
    if "pool_kernel" not in case.settings:
        return case.shapes["x"][2:] if "x" in case.shapes else case.settings["output_size"]
    size = case.shapes["x"][2:] if "x" in case.shapes else case.settings["output_size"]
    return window.conv_map(size, case.shapes["weight"][2:], *conv_window(case))


def values(shape, fill: str, generator: torch.Generator) -> torch.Tensor:
    if fill == "zero":
        return torch.zeros(shape, dtype=torch.float64)
    if fill == "ties":
        return torch.randint(-2, 3, shape, generator=generator).double()
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    if fill == "special":
        places = torch.randperm(x.numel(), generator=generator)[:6]
        x.view(-1)[places] = torch.tensor((torch.nan, torch.inf, -torch.inf) * 2, dtype=torch.float64)[: len(places)]
    return x


def random_switches(shape, size, kernel, stride, padding, generator: torch.Generator) -> torch.Tensor:
    """Switches drawn at random among the pixels of each window that lie on the map of `size`."""
    offsets = []
    for axis in (0, 1):
        start = torch.arange(shape[2 + axis]) * stride[axis] - padding[axis]
        first = (-start).clamp(min=0)
        last = (size[axis] - start).clamp(max=kernel[axis])
        draw = torch.rand(shape, generator=generator, dtype=torch.float64)
        span = (last - first).view(-1, 1) if axis == 0 else last - first
        offsets.append((first.view(-1, 1) if axis == 0 else first) + (draw * span).long())
    return (offsets[0] * kernel[1] + offsets[1]).to(torch.uint8)


def tensors(case: Case, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The case's tensors, contiguous, in `dtype`; the same on every call."""
    generator = torch.Generator().manual_seed(20131112)
    result = {}
    for name, shape in case.shapes.items():
        if name == "switches":
            result[name] = random_switches(shape, pooled_map(case), *pool_window(case), generator)
        else:
            fill = "normal" if case.fill == "special" and result else case.fill
            result[name] = values(shape, fill, generator).to(dtype)
    return result
