"""What every step is given, and what it says of images and models that do not suit it."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from torch import Size, Tensor

from ..backends.prepared import PreparedFilters
from ..ops import checks
from ..window import Pair

Read = Callable[[], Tensor]  # gives a tensor of the model as it is now
Function = Callable[..., Any]  # of torch or of a model
Arguments = tuple[Any, ...]
Keywords = dict[str, Any]
Shapes = list[Size | None]  # of values, by number; None where a value has none or is not needed


class Rules(NamedTuple):
    """What serves a run, and how its reverse treats rectifiers and norms."""

    backend: str  # of everything but convolutions, see `serving`
    method: str | None = None  # one of METHODS; None: there will be no reverse, and nothing is recorded
    norm: str = "identity"  # one of NORMS

    def serving(self, op: str, x: Tensor, filters: Tensor | PreparedFilters) -> str:
        """The backend of a convolution of x, or of what is made of one, as a call of the op alone would choose it."""
        return checks.op_backend(self.backend, x, op, filters)


class Irreversible(Exception):
    """Why a step cannot be reversed."""


def irreversible(name: str, kind: str, why: object) -> NotImplementedError:
    return NotImplementedError(f"cannot reverse layer {name!r} ({kind}): {why}")


class Named(Protocol):
    @property
    def name(self) -> str: ...


def told(inputs: list[Size], shapes: Shapes) -> str:
    images = shapes[0]
    assert images is not None
    return f"images of shape {tuple(images)} reach it as {', '.join(str(tuple(shape)) for shape in inputs)}"


def check_count(step: Named, what: str, wanted: int, inputs: list[Size], shapes: Shapes) -> None:
    if inputs[0][1] != wanted:
        text = f"which takes {wanted} {what}: {told(inputs, shapes)}"
        raise ValueError(f"images do not suit layer {step.name!r}, {text}")


def check_size(step: Named, size: Pair, window: Pair, padding: Pair, inputs: list[Size], shapes: Shapes) -> None:
    if min(size) < 1:
        raise ValueError(
            f"images are too small for layer {step.name!r}: no {window[0]}x{window[1]} window fits (padding "
            f"{padding}); {told(inputs, shapes)}"
        )
