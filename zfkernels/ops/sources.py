"""The tensors that prepared filters were made of, and whether they are still what they were.

Every call looks at each of them: its address and its version, which torch counts up at every write through the tensor
or a view of it (an optimizer's step, load_state_dict, copy_ under no_grad, a batch norm's running statistics). `.data`
swapped for another tensor shows in the address, for the old memory is held and nothing else can lie there. Writes
through `.data` or a NumPy array nobody counts: for these words of each tensor are compared too, all of a small one (a
bias, a batch norm's) and one or more of each filter, at places that differ. So a whole tensor or filter that is scaled,
refilled or made 0 is seen; a write through `.data` or NumPy to a few single values of filters, none of them among those
words, is not.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .. import _C

PARTS = 128
VERSION: Callable[[Tensor], int] = torch.Tensor._version.__get__  # type: ignore[attr-defined]


class Sources:
    """Tensors as they were when `note` was called."""

    def __init__(self, watch_values: bool) -> None:
        self.watch_values = watch_values
        self.held: list[Tensor] = []
        self.counted = False  # not of tensors made under torch.inference_mode: with these nothing is ever the same
        self.addresses: list[int] = []
        self.versions: list[int] = []
        self.table = torch.empty(0, dtype=torch.int64)
        self.values = 0

    def same(self, tensors: Sequence[Tensor]) -> bool:
        return (
            self.counted
            and list(map(VERSION, tensors)) == self.versions
            and list(map(Tensor.data_ptr, tensors)) == self.addresses
            and (not self.watch_values or self.sampled() == self.values)
        )

    def sampled(self) -> int:
        return _C.sampled(self.table_at, len(self.table), torch.get_num_threads())

    def note(self, tensors: Sequence[Tensor]) -> None:
        self.held = [t.detach() for t in tensors]
        self.counted = not any(t.is_inference() for t in tensors)
        self.addresses = list(map(Tensor.data_ptr, tensors))
        self.versions = list(map(VERSION, tensors)) if self.counted else []
        rows = [(t.data_ptr(), extent(t), parts(t)) for t in tensors]
        self.table = torch.tensor(rows, dtype=torch.int64).reshape(-1, 3)
        self.table_at = self.table.data_ptr()
        self.values = self.sampled()


def parts(tensor: Tensor) -> int:
    """How many words of it are compared: as many in each filter, PARTS or more in all."""
    filters = max(1, tensor.shape[0]) if tensor.ndim else 1
    return filters * -(-PARTS // filters)


def extent(tensor: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    if tensor.numel() == 0:
        return 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()
