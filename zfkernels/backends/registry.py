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


def choose(name: str | None, device_type: str) -> str:
    """`name`, else the enclosing `use_backend`, else ZFKERNELS_BACKEND, else the best that can run on the device."""
    if name is not None:
        if not isinstance(name, str):
            raise TypeError(f"backend must be a str or None, got {type(name).__name__}")
        return name
    if _chosen is not None:
        return _chosen
    candidates = BEST.get(device_type, ())
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
