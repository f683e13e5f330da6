"""The table of backends and the choice of one.

A backend is a module of plain functions with the same names in every backend, plus `unavailable()`, `DEVICES` and
`DTYPES`. It is imported when it is first asked for. A backend that is asked for and cannot run raises an error with the
reason and what to install. There is no silent fallback to another backend.
"""

import importlib
import os
from types import ModuleType

MODULES = {name: f"zfkernels.backends.{name}" for name in ("reference", "cpu", "triton", "cuda")}
# Which backends serve a device, the fastest first. A meta tensor runs nothing, so any backend will do.
BEST = {"cpu": ("cpu",), "cuda": ("cuda", "triton"), "meta": ("reference",)}
# Who is first instead, in 16-bit types, by the op, the kind of layer and the GPU's compute capability. None of this is
# measured yet. Hopper's matrix units reach their rate by wgmma alone, which Triton emits and csrc/cuda's mma.sync is
# not: of layers whose time is products, Triton's are first. csrc/cuda stays first where it fuses what Triton cannot:
# layers on images and what is no convolution.
FASTER = {
    (op, "wide", (9, 0)): ("triton", "cuda")
    for op in ("conv2d", "conv2d_relu_max_pool2d", "conv_transpose2d", "max_unpool2d_relu_conv_transpose2d")
}
IMAGE_CHANNELS = 4  # a layer with more channels than an image is "wide"
VARIABLE = "ZFKERNELS_BACKEND"

_chosen: str | None = os.environ.get(VARIABLE) or None
_loaded: dict[str, ModuleType] = {}


def reason(name: str) -> str | None:
    """Why backend `name` cannot run here and what to install; None when it can."""
    try:
        why: str | None = importlib.import_module(MODULES[name]).unavailable()
        return why
    except ImportError as error:
        return f"its module cannot be imported ({error}); build zfkernels again with: pip install --force-reinstall ."


def available_backends() -> tuple[str, ...]:
    """The names of the backends that can run here: "reference", "cpu", "triton", "cuda" or fewer."""
    return tuple(name for name in MODULES if reason(name) is None)


def module(name: str) -> ModuleType:
    """The module of backend `name`; raises ValueError for an unknown name, RuntimeError for one that cannot run."""
    if name not in _loaded:
        if name not in MODULES:
            source = f" (from the environment variable {VARIABLE})" if name == os.environ.get(VARIABLE) else ""
            raise ValueError(f"backend must be one of {', '.join(MODULES)}, got {name!r}{source}")
        why = reason(name)
        if why is not None:
            raise RuntimeError(f"backend {name!r} cannot run here: {why}")
        _loaded[name] = importlib.import_module(MODULES[name])
    return _loaded[name]


# torch.compile may take the module as a constant: a backend's module does not change within a process; which one is
# used may. This is all that torch.compiler.assume_constant_result does, but that imports torch._dynamo: 2 seconds.
module._dynamo_marked_constant = True  # type: ignore[attr-defined]


def order(
    device_type: str, op: str = "", channels: int = 0, half: bool = False, index: int | None = 0
) -> tuple[str, ...]:
    """The backends that serve the device, the fastest first, for a convolution from `channels` channels; `half`: in a
    16-bit type. Without an op, for the device as a whole."""
    found = BEST.get(device_type, ())
    if half and len(found) > 1 and any(op == known for known, *_ in FASTER):
        kind = "wide" if channels > IMAGE_CHANNELS else "image"
        return FASTER.get((op, kind, capability(index or 0)), found)
    return found


def capability(index: int) -> tuple[int, int]:
    """The compute capability of CUDA device `index`, (0, 0) of what has none."""
    import torch

    return torch.cuda.get_device_capability(index) if torch.version.cuda is not None else (0, 0)


capability._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose(name: str | None, device_type: str, candidates: tuple[str, ...] | None = None) -> str:
    """`name`, else the enclosing `use_backend`, else ZFKERNELS_BACKEND, else the first of `candidates` (by default the
    device's, see `order`) that can run."""
    if name is not None:
        if not isinstance(name, str):
            raise TypeError(f"backend must be a str or None, got {type(name).__name__}")
        return name
    if _chosen is not None:
        return _chosen
    candidates = order(device_type) if candidates is None else candidates
    for candidate in candidates:
        if candidate in _loaded or len(candidates) == 1 or reason(candidate) is None:
            return candidate
    reasons = "; ".join(f"{candidate}: {reason(candidate)}" for candidate in candidates) or "none is made for it"
    raise RuntimeError(f"no backend can run on device {device_type!r} ({reasons}); move the tensors to the CPU")


class use_backend:
    """Make backend `name` the default, from now on or, as a context manager, until the block's end.

    `use_backend(None)` goes back to the automatic choice. A function's own `backend=` argument still wins. The choice
    is one for the whole process; a backward pass uses its forward's backend. Raises ValueError for an unknown name and
    RuntimeError, with what to install, for a backend that cannot run here.
    """

    def __init__(self, name: str | None) -> None:
        global _chosen
        if name is not None:
            module(choose(name, ""))
        self._previous, _chosen = _chosen, name

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(self, *error: object) -> None:
        global _chosen
        _chosen = self._previous
