"""Awkward memory for arguments, and memory in which a value that a kernel did not write shows."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "channels_last", "strided")  # of verify's cases, in turn


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Within it torch fills the memory it allocates with NaN (integers: the largest), so an unwritten value shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def placed(x: Tensor, layout: str) -> Tensor:
    """A copy of x in memory of that layout: one of LAYOUTS, or "permuted".

    "strided" takes every other element of a wider tensor, along every axis; "permuted" does so with the axes in reverse
    order and an offset. Between the elements lie NaNs (77 in a tensor of integers). What has not four dimensions is
    contiguous, unless permuted.
    """
    filler = math.nan if x.is_floating_point() else 77
    if layout == "permuted":
        shape = [2 * size + 1 for size in reversed(x.shape)]
        wide = torch.full(shape, filler, dtype=x.dtype, device=x.device)
        view = wide[(slice(1, None, 2),) * x.dim()].permute(*reversed(range(x.dim())))
        return view.copy_(x)
    if x.dim() != 4 or layout == "contiguous":
        return x.clone(memory_format=torch.contiguous_format)
    if layout == "channels_last":
        return x.clone(memory_format=torch.channels_last)
    wide = torch.full([2 * size for size in x.shape], filler, dtype=x.dtype, device=x.device)
    return wide[::2, 1::2, ::2, 1::2].copy_(x)
