"""The checks that the public functions share: each raises before any kernel runs, naming the argument, the value
given and what was expected.

Types and dtypes raise TypeError, shapes, values and devices ValueError, a backend that cannot do it RuntimeError.
"""

import sys
from collections.abc import Collection
from numbers import Real
from typing import Any, overload

import torch
from torch import Tensor

from .. import backends, window
from ..backends.prepared import PreparedFilters

FLOATS = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16))
LARGEST_FLOAT = sys.float_info.max
LARGEST_WINDOW = 256  # a switch is one byte


def dense(name: str, value: object, dtypes: Collection[torch.dtype], expected: str) -> None:
    """`value` must be a dense tensor of one of the dtypes, which `expected` names."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must have dtype {expected}, got {value.dtype}")
    if value.layout is not torch.strided or value.is_nested:
        layout = "nested" if value.is_nested else value.layout
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {layout}")


def tensor(name: str, value: Any, axes: tuple[str, ...]) -> None:
    """`value` must be a dense floating-point tensor with these dimensions, none of which but N may be empty."""
    dense(name, value, FLOATS, "float32, float64, bfloat16 or float16")
    shape = value.shape
    if len(shape) != len(axes):
        hint = f"; add a batch dimension with {name}[None]" if axes[0] == "N" and len(shape) == 3 else ""
        raise ValueError(f"{name} must have {len(axes)} dimensions ({', '.join(axes)}), got shape {tuple(shape)}{hint}")
    if 0 in (shape[1:] if axes[0] == "N" else shape):
        raise ValueError(f"{name} must not have an empty dimension other than N, got shape {tuple(shape)}")


def alike(name: str, value: Tensor, first_name: str, first: Tensor) -> None:
    """`value` must have `first`'s dtype and device."""
    if value.dtype != first.dtype:
        raise TypeError(f"{name} must have {first_name}'s dtype, {first.dtype}, got {value.dtype}")
    if value.device != first.device:
        raise ValueError(f"{name} must be on {first_name}'s device, {first.device}, got {value.device}")


def flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def number(name: str, value: object) -> float:
    """`value` as a finite float."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not isinstance(value, (int, float)):
        value = float(value)
    if not -LARGEST_FLOAT <= value <= LARGEST_FLOAT:
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def pool_window(
    kernel_size: int | window.Sides,
    stride: int | window.Sides | None,
    padding: int | window.Sides,
    names: tuple[str, str, str],
) -> tuple[window.Pair, window.Pair, window.Pair]:
    """A pooling's kernel, stride (default: the kernel) and padding as pairs; at most 256 pixels, half of it padding."""
    kernel, stride, padding = window_of(kernel_size, stride, padding, names)
    if kernel[0] * kernel[1] > LARGEST_WINDOW:
        raise ValueError(
            f"{names[0]} must cover at most {LARGEST_WINDOW} pixels, for a switch is one byte; got {kernel}"
        )
    return kernel, stride, padding


def window_of(
    kernel_size: int | window.Sides,
    stride: int | window.Sides | None,
    padding: int | window.Sides,
    names: tuple[str, str, str],
) -> tuple[window.Pair, window.Pair, window.Pair]:
    """The same of any size."""
    kernel = window.pair(names[0], kernel_size, 1)
    stride = kernel if stride is None else window.pair(names[1], stride, 1)
    padding = window.pair(names[2], padding, 0)
    if padding[0] > kernel[0] // 2 or padding[1] > kernel[1] // 2:
        raise ValueError(f"{names[2]} must be at most half of {names[0]}, {kernel}, got {padding}")
    return kernel, stride, padding


def switches(value: Any, y: Tensor) -> None:
    dense("switches", value, (torch.uint8,), "uint8, as max_pool2d_with_switches returns them")
    if value.shape != y.shape:
        raise ValueError(f"switches must have y's shape, {tuple(y.shape)}, got {tuple(value.shape)}")
    if value.device != y.device:
        raise ValueError(f"switches must be on y's device, {y.device}, got {value.device}")


def backend(name: str | None, value: Tensor, op: str = "", weight: Tensor | PreparedFilters | None = None) -> str:
    """The name of the backend to use, which serves `value`'s device and dtype: for the op, the fastest."""
    device = value.device.type
    candidates: tuple[str, ...] | None = None
    if name is None and weight is not None and several_serve(device):
        candidates = backends.order(device, op, weight.shape[1], value.dtype.itemsize == 2, value.device.index)
    name = backends.choose(name, device, candidates)
    chosen = backends.module(name)
    if device not in chosen.DEVICES and device != "meta":
        raise RuntimeError(
            f"backend {name!r} does not serve device {device!r}, only {', '.join(chosen.DEVICES)}; "
            "move the tensors or choose another backend"
        )
    if value.dtype not in chosen.DTYPES:
        served = ", ".join(str(dtype).removeprefix("torch.") for dtype in chosen.DTYPES)
        raise RuntimeError(f"backend {name!r} does not serve dtype {value.dtype}, only {served}")
    return name


def op_backend(name: str, value: Tensor, op: str, weight: Tensor | PreparedFilters) -> str:
    """Who computes this op in a run that `backend` chose `name` for as a whole: the fastest at it, unless a backend
    was asked for."""
    return backend(None, value, op, weight) if several_serve(value.device.type) else name


def several_serve(device_type: str) -> bool:
    return len(backends.BEST.get(device_type, ())) > 1


@overload
def autocast(x: Tensor, weight: Tensor, /) -> tuple[Tensor, Tensor]: ...


@overload
def autocast(x: Tensor, weight: Tensor, bias: Tensor | None, /) -> tuple[Tensor, Tensor, Tensor | None]: ...


@overload
def autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, /
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]: ...


def autocast(*values: Tensor | None) -> tuple[Tensor | None, ...]:
    """`values` as torch's own convolution takes them under autocast: in the autocast dtype, but float64 stays."""
    if not torch._C._is_any_autocast_enabled() or not isinstance(values[0], Tensor):
        return values
    kind = values[0].device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return values
    dtype = torch.get_autocast_dtype(kind)
    return tuple(
        value.to(dtype) if isinstance(value, Tensor) and value.dtype in FLOATS - {torch.float64} else value
        for value in values
    )
