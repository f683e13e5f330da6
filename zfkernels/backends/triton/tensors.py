"""What the files of this backend share: tensors in the kernels' memory, launching, and what the compile gate builds."""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

# The kernels' programs run one after the other in NumPy, on tensors in host memory.
INTERPRETED: bool = triton.knobs.runtime.interpret


class Compilation(NamedTuple):
    """One launch as the compile gate builds it, from the same arguments as the launch itself.

    `arguments` holds every parameter of the kernel by name: a torch.dtype for a pointer to dense memory of that type
    (16-byte aligned), a number for a number. `options` are the launch's: num_warps, num_stages. `matrix` says whether
    the kernel must use the matrix units, in types that they take.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    matrix: bool = False


def dense(x: Tensor) -> Tensor:
    """x in dense channels-last memory: itself, or a copy."""
    return x.contiguous(memory_format=torch.channels_last)


def empty(like: Tensor, n: int, channels: int, height: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised channels-last tensor on `like`'s device."""
    size = (n, channels, height, width)
    return torch.empty(size, dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last)


def launch(kernel, programs: int, tensors: dict[str, Tensor], arguments: dict[str, Any], **options: int) -> None:
    """Runs `programs` programs on the tensors' device, none for an empty batch."""
    if programs == 0:
        return
    device = next(iter(tensors.values())).device
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        kernel[(programs,)](**tensors, **arguments, **options)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n >= 1."""
    return 1 << (n - 1).bit_length()
