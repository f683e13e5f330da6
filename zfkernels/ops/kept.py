"""Prepared filters that stay with a model's weights from call to call, and go when these go.

`kept` looks at the weights at each call. Whatever changes them is seen, as sources.py says (which also says the one
change that is not), and their filters are made anew. They are packed when a kernel asks for the second time: who looks
once at a model after each training step never pays for it. What is kept is as large as the weights again for each
kernel that asked (prepared.py), and is dropped with the parameter, or when it moves to where it is of no use.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.weak import WeakTensorKeyDictionary

from .. import backends
from ..backends.prepared import PreparedFilters
from .define import PLAIN
from .sources import Sources

LEAST = 1 << 12  # elements of a weight: smaller ones are packed sooner than looked at
DTYPES = (torch.float32, torch.float64)  # half types are computed from copies


@dataclass
class Entry:
    kind: object
    sources: Sources
    filters: PreparedFilters


KEPT = WeakTensorKeyDictionary()  # a parameter -> what was made of it


def kept(
    weight: Tensor,
    others: Sequence[Tensor],
    make: Callable[[], PreparedFilters],
    x: Tensor,
    backend: str,
    kind: object = None,
) -> PreparedFilters | None:
    """What `make` makes, or made at an earlier call, of the weight and the others, for a call with x; None: take the
    weight itself.

    `kind` tells apart what may be made of the same tensors.
    """
    if torch.compiler.is_compiling() or type(weight) is not torch.nn.Parameter or weight.numel() < LEAST:
        return None
    sources = [weight, *others]
    if not serves(sources, x, backend):
        if weight.device.type != "cpu" or weight.dtype not in DTYPES:
            KEPT.pop(weight, None)  # it moved, and what is kept holds its old memory
        return None
    entry: Entry | None = KEPT.get(weight)
    if entry is None or entry.kind != kind or not entry.sources.same(sources):
        noted = Sources(watch_values=True)
        noted.note(sources)  # before: what changes while filters are made is seen at the next call
        with torch.inference_mode(False), torch.no_grad():
            entry = KEPT[weight] = Entry(kind, noted, make())
    return entry.filters


def serves(sources: Sequence[Tensor], x: Tensor, backend: str) -> bool:
    """Is it a call without gradients on the CPU, of plain tensors whose changes torch counts, and does nobody watch?"""
    if backend != "cpu" or type(x) not in PLAIN or x.dtype not in DTYPES or x.is_neg():
        return False
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return False
    if torch._C._get_tracing_state() is not None or torch._C._are_functorch_transforms_active():
        return False
    if torch.is_autocast_enabled("cpu") or forward_ad._current_level >= 0:
        return False
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *sources)):
        return False
    return all(
        type(t) in PLAIN and t.dtype == x.dtype and t.device.type == "cpu" and not (t.is_inference() or t.is_neg())
        for t in sources
    )


def of_module(
    weight: Tensor, bias: Tensor | None, training: bool, backend: str | None, x: Tensor
) -> tuple[Tensor | PreparedFilters, Tensor | None]:
    """A module's weight and bias, in evaluation mode its kept filters and None, for a convolution of x."""
    if training or not isinstance(x, Tensor) or x.device.type != "cpu":
        return weight, bias

    def make() -> PreparedFilters:
        return PreparedFilters(weight.detach(), None if bias is None else bias.detach(), None, patient=True)

    filters = kept(weight, [] if bias is None else [bias], make, x, backends.choose(backend, "cpu"))
    return (weight, bias) if filters is None else (filters, None)
