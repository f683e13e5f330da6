"""zfkernels.testing.memory."""

import math

import torch
from torch import Tensor

LAYOUTS = ("contiguous", "channels_last", "strided")


class poisoned_memory:
    """Within it torch fills the memory it allocates with NaN (integers: the largest), so an unwritten value shows."""

    def __enter__(self) -> None:
        self._before = (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.use_deterministic_algorithms(True, warn_only=True)

    def __exit__(self, *error: object) -> None:
        torch.use_deterministic_algorithms(self._before[0], warn_only=self._before[1])


def placed(x: Tensor, layout: str) -> Tensor:
    """The same values in memory of that layout; "strided" is a view of every other element of a tensor of NaNs."""
    if x.dim() != 4 or layout == "contiguous":
        return x.contiguous()
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    wide = torch.full([2 * s for s in x.shape], math.nan, dtype=x.dtype)
    wide[::2, 1::2, ::2, 1::2] = x
    return wide[::2, 1::2, ::2, 1::2]
