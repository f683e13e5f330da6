"""A GPU that is not there: torch.cuda's functions on the CPU, and the cpu backend under the names of the GPU's.

`install` changes this process and its forks. `plant` makes contrast_norm of every backend hang, crash, print without
end or be wrong.
"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from types import ModuleType, SimpleNamespace

HANGS = "rehearsal: hangs"
FAULTS = ("hang", "crash", "flood", "wrong")
WITHOUT_RESULTS = ("machine", "build", "compile-triton", "ceilings")  # parts in which nothing can be wrong


class Event:
    """A moment of the host's clock. A spin has never ended when it is asked for: query() is False."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: "Event") -> float:
        return max((other.at - self.at) * 1e3, 1e-4)

    def query(self) -> bool:
        return False


class Graph:
    def replay(self) -> None:
        time.sleep(1e-5)


def install() -> None:
    import torch
    import torch.nn.functional as F

    from zfkernels import backends

    def nothing(*_: object) -> contextlib.nullcontext:
        return contextlib.nullcontext()

    fakes = dict.fromkeys(("Stream", "stream", "graph", "synchronize", "_sleep", "empty_cache"), nothing)
    fakes |= {"Event": Event, "CUDAGraph": Graph, "get_device_name": lambda *_: "rehearsed"}
    fakes |= {"get_device_capability": lambda *_: (9, 0)}
    fakes |= {"get_device_properties": lambda *_: SimpleNamespace(multi_processor_count=132)}
    for name, fake in fakes.items():
        setattr(torch.cuda, name, fake)
    torch.compile = lambda function, **_: function
    torch.cudnn_convolution_relu = lambda x, w, b, stride, padding, *_: F.conv2d(x, w, b, stride, padding).relu_()
    for name in ("cuda", "triton"):
        module = copy_of_cpu(f"zfkernels.backends.rehearsed_{name}")
        backends.MODULES[name] = module.__name__
        backends.registry._loaded[name] = module


def copy_of_cpu(name: str) -> ModuleType:
    """A second module of the cpu backend's source."""
    from zfkernels.backends import cpu

    spec = importlib.util.spec_from_file_location(name, cpu.__file__)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def plant(kind: str, part: str) -> None:
    """The fault, in this process and its forks."""
    faults = {"hang": hang, "crash": os.abort, "flood": flood, "wrong": lambda: None}
    if part in WITHOUT_RESULTS:
        faults[kind]()
        return
    from zfkernels import backends

    for name in ("cpu", "cuda", "triton"):
        module = backends.module(name)

        def contrast_norm(*args: object, sound=module.contrast_norm):
            import torch

            faults[kind]()
            return sound(*args) * (1.01 + 0.1 * torch.rand(1).item())

        module.contrast_norm = contrast_norm


def flood() -> None:
    while True:
        print("a line of a part that prints without end" * 100)


def hang() -> None:
    """Never comes back, deaf to SIGTERM, and leaves such a process in a session of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(["sleep", "600"], start_new_session=True)
    print(HANGS, flush=True)
    time.sleep(600)
