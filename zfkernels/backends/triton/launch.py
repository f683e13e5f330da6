"""What the files of this backend share: where kernels run, tensors in their memory, and one launch as a value."""

import contextlib
import functools
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

# The kernels' programs run one after the other in NumPy, on tensors in host memory.
INTERPRETED: bool = triton.knobs.runtime.interpret


class Target(NamedTuple):
    """What a launch depends on in a device. `kind`: "cuda", "hip" or "interpreter"; `arch`: 90, "gfx942".

    `name` is the device's, under which its measured choices are kept; "" for a device that is not here.
    """

    kind: str
    arch: int | str
    processors: int
    name: str = ""


@functools.cache
def target(device: torch.device) -> Target:
    """The target that kernels for `device` are compiled for."""
    if INTERPRETED:
        return Target("interpreter", 0, 1)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Target("hip", properties.gcnArchName.split(":")[0], properties.multi_processor_count, properties.name)
    arch = 10 * properties.major + properties.minor
    return Target("cuda", arch, properties.multi_processor_count, properties.name)


class Call(NamedTuple):
    """A launch without its tensors: `programs` programs of `kernel`; options are num_warps and num_stages."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    options: dict[str, int]

    def __call__(self, **tensors: Tensor) -> None:
        """Runs the programs on the tensors' device; none for an empty batch."""
        if self.programs == 0:
            return
        device = next(iter(tensors.values())).device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.kernel[(self.programs,)](**tensors, **self.arguments, **self.options)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n >= 1."""
    return 1 << (n - 1).bit_length()
