"""Backend "emulated": zfkernels/backends/cuda.py as it is, on zf_emulated instead of zfkernels._C and on the CPU.

`register(path)` adds it to this process's table of backends, on a module built by build.py.
"""

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from zfkernels import backends
from zfkernels.backends import cuda

NAME = "emulated"


def register(path: Path) -> ModuleType:
    compiled = load("zf_emulated", path)
    backend = load(f"zfkernels.backends.{NAME}", Path(cuda.__file__))
    backend._C = compiled
    backend.DEVICES = ("cpu",)
    backend.unavailable = lambda: None
    backend._stream = lambda index: 0
    backends.MODULES[NAME] = backend.__name__
    return backend


def load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    flags = sys.getdlopenflags()
    sys.setdlopenflags(flags & ~os.RTLD_NOW | os.RTLD_LAZY)  # a module of some of the sources lacks functions
    try:
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    finally:
        sys.setdlopenflags(flags)
    return module
