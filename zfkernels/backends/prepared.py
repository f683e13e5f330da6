"""Filters packed once, as csrc/cpu reads them, for many calls: what `zfkernels.prepare` returns.

Packing a weight is done anew at each call, for nothing may go stale; at one image it is 15% of a 3x3 convolution. Who
knows that a weight stays keeps its packed filters here, and each use asks whether the tensors are still those that they
were made of: the same memory, the same version (torch counts every change made through the tensor or a view of it; what
is written through `.data` or a NumPy array it does not count), the same shape and dtype.
"""

from collections.abc import Callable
from functools import partial
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
    the first call that needs them, of `patient` ones at the second: a convolution's kernel depends on its stride and on
    the size of its maps.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, scale: Tensor | None, patient: bool = False) -> None:
        sources = {"weight": weight, "bias": bias, "scale": scale}
        self.sources = {name: (value, state(name, value)) for name, value in sources.items() if value is not None}
        self.dtype, self.shape = weight.dtype, weight.shape
        with torch.no_grad():
            # A view with a pending negation holds the wrong sign in memory.
            filters = computed(weight.detach().resolve_neg())
            self.filters = filters if scale is None else filters * computed(scale.detach()).view(-1, 1, 1, 1)
            self.bias = None if bias is None else computed(bias.detach().resolve_neg()).contiguous()
        self._packed: dict[tuple[Any, ...], Tensor] = {}
        self._asked: set[tuple[Any, ...]] | None = set() if patient else None
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
        return self._calls.get(key) or self._called(key, self._pack, shape, output_size, window)

    def transposed_call(
        self, most: int, rectify: bool, shape: tuple[int, ...], output_size: Sides, *window: Any
    ) -> tuple[tuple[int, ...], int]:
        """The same of a transposed convolution to x of this shape, of at most `most` values an image that are not 0."""
        self.check()
        key = most, rectify, shape, output_size, window, _C.isa(), _C.winograd(), torch.get_num_threads()
        pack = partial(self._pack_transposed, most, rectify)
        return self._calls.get(key) or self._called(key, pack, shape, output_size, window)

    def _called(
        self,
        key: tuple[Any, ...],
        pack: Callable[..., Tensor | None],
        shape: tuple[int, ...],
        output_size: Sides,
        window: tuple[Any, ...],
    ) -> tuple[tuple[int, ...], int]:
        """The sizes and the packed filters' address of a call of which that is not known yet."""
        sizes = conv_sizes(shape, self.filters, output_size, *window)
        packed = pack(sizes, *window)
        if packed is None:
            return sizes, 0
        if len(self._calls) >= MOST_SHAPES:
            self._calls.clear()
        self._calls[key] = sizes, packed.data_ptr() if packed.numel() else 0
        return self._calls[key]

    def _waits(self, key: tuple[Any, ...]) -> bool:
        """Whether nothing is to be packed for this key yet."""
        if self._asked is None or key in self._asked:
            return False
        self._asked.add(key)
        return True

    def _pack_transposed(
        self,
        most: int,
        rectify: bool,
        sizes: tuple[int, ...],
        stride: Sides,
        padding: Sides,
        dilation: Sides = (1, 1),
        groups: int = 1,
    ) -> Tensor | None:
        """Empty where there is nothing to keep; None: not yet."""
        f64, threads = self.filters.dtype == torch.float64, torch.get_num_threads()
        kernel = _C.conv2d_kernels(_C.isa(), _C.winograd(), f64, sizes, most, rectify)[1]
        pack = partial(_C.pack_transposed, f64, sizes, self.filters.data_ptr(), most, rectify)
        elements, layout = pack(0, threads)
        key = "transposed", kernel, stride, dilation, groups, layout, _C.isa()
        if key not in self._packed:
            if self._waits(key):
                return None
            packed = self.filters.new_empty(elements)
            good = elements and pack(packed.data_ptr(), threads)[0]
            self._packed[key] = packed if good else packed.new_empty(0)
        return self._packed[key]

    def _pack(
        self, sizes: tuple[int, ...], stride: Sides, padding: Sides, dilation: Sides = (1, 1), groups: int = 1
    ) -> Tensor | None:
        """None: not yet."""
        f64, threads = self.filters.dtype == torch.float64, torch.get_num_threads()
        kernel = _C.conv2d_kernels(_C.isa(), _C.winograd(), f64, sizes, 0, False)[0]
        key = kernel, stride, groups, _C.isa()
        if key not in self._packed:
            if self._waits(key):
                return None
            weight = self.filters.data_ptr()
            packed = self.filters.new_empty(_C.pack_filters(f64, sizes, weight, 0, threads))
            _C.pack_filters(f64, sizes, weight, packed.data_ptr(), threads)
            self._packed[key] = packed
        return self._packed[key]

    def __repr__(self) -> str:
        kernels = ", ".join(
            sorted({" ".join(part for part in key[:2] if isinstance(part, str)) for key in self._packed})
        )
        return f"PreparedFilters(shape={tuple(self.shape)}, dtype={self.dtype}, packed for: {kernels or 'nothing yet'})"


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
