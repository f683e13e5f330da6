"""Filters packed once, as csrc/cpu reads them, for many calls: what `zfkernels.prepare` returns.

Packing a weight is done anew at each call, for nothing may go stale; at one image it is 15% of a 3x3 convolution. Who
knows that a weight stays keeps its packed filters here, and each use asks whether the tensors are still those that they
were made of: the same memory, the same version (torch counts every change made through the tensor or a view of it; what
is written through `.data` or a NumPy array it does not count), the same shape and dtype.
"""

from typing import Any

import torch
from torch import Tensor

from .. import _C
from ..window import Sides
from .memory import conv_sizes

MOST_SHAPES = 64  # calls of different shapes whose sizes are kept


class PreparedFilters:
    """y = scale * corr(x, weight) + bias as one object: give it to a convolution in the place of its weight.

    `filters` and `bias` are what is computed with, in the type that the kernels compute in. Packed filters are made at
    the first call that needs them: a convolution's kernel depends on its stride and on the size of its maps.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> None:
        sources = {"weight": weight, "bias": bias, "scale": scale}
        self.sources = {name: (value, state(name, value)) for name, value in sources.items() if value is not None}
        self.dtype, self.shape = weight.dtype, weight.shape
        with torch.no_grad():
            # A view with a pending negation holds the wrong sign in memory.
            filters = computed(weight.detach().resolve_neg())
            self.filters = filters if scale is None else filters * computed(scale.detach()).view(-1, 1, 1, 1)
            self.bias = None if bias is None else computed(bias.detach().resolve_neg()).contiguous()
        self._packed: dict[tuple[Any, ...], Tensor] = {}
        self._calls: dict[tuple[Any, ...], tuple[tuple[int, ...], int]] = {}

    def check(self) -> None:
        """RuntimeError unless the tensors are still those that this was made of."""
        for name, (value, made_of) in self.sources.items():
            now = state(name, value)
            if now != made_of:
                raise RuntimeError(
                    f"{name} has changed since zfkernels.prepare: {difference(made_of, now)}; the prepared filters are "
                    "of the old one. Call prepare again after each change, or give the weight itself"
                )

    def call(self, shape: tuple[int, ...], output_size: Sides, *window: Any) -> tuple[tuple[int, ...], int]:
        """The sizes of a convolution of x of this shape, and the address of the filters packed for its kernel."""
        self.check()
        key = shape, output_size, window, _C.isa(), _C.winograd()
        found = self._calls.get(key)
        if found is None:
            if len(self._calls) >= MOST_SHAPES:
                self._calls.clear()
            sizes = conv_sizes(shape, self.filters, output_size, *window)
            found = self._calls[key] = sizes, self._pack(sizes, *window).data_ptr()
        return found

    def _pack(
        self, sizes: tuple[int, ...], stride: Sides, padding: Sides, dilation: Sides = (1, 1), groups: int = 1
    ) -> Tensor:
        f64, threads = self.filters.dtype == torch.float64, torch.get_num_threads()
        kernel = _C.conv2d_kernels(_C.isa(), _C.winograd(), f64, sizes, 0, False)[0]
        key = kernel, stride, groups, _C.isa()
        if key not in self._packed:
            weight = self.filters.data_ptr()
            packed = self.filters.new_empty(_C.pack_filters(f64, sizes, weight, 0, threads))
            _C.pack_filters(f64, sizes, weight, packed.data_ptr(), threads)
            self._packed[key] = packed
        return self._packed[key]

    def __repr__(self) -> str:
        kernels = ", ".join(sorted({key[0] for key in self._packed})) or "nothing yet"
        return f"PreparedFilters(shape={tuple(self.shape)}, dtype={self.dtype}, packed for: {kernels})"


State = tuple[int, int, tuple[int, ...], tuple[int, ...], torch.dtype]


def state(name: str, value: Tensor) -> State:
    """What tells whether a tensor has changed."""
    if value.is_inference():
        raise RuntimeError(
            f"{name} must be a tensor whose changes torch counts, got one made under torch.inference_mode(); make it "
            "outside, or give the weight itself to the convolution"
        )
    return value.data_ptr(), value._version, tuple(value.shape), value.stride(), value.dtype


def difference(before: State, after: State) -> str:
    for what, a, b in zip(("address", "version", "shape", "strides", "dtype"), before, after, strict=True):
        if a != b:
            return f"its {what} was {a}, and is {b}"
    return "it is the same"


def computed(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
