"""A device that backends cuda and triton serve, on the CPU: copies of the cpu backend under their names, which note
what they are asked for."""

import importlib.util
import sys
from typing import NamedTuple

from zfkernels import backends
from zfkernels.backends import cpu

NAMES = ("cuda", "triton")
HOPPER, AMPERE = (9, 0), (8, 0)


class Asked(NamedTuple):
    op: str
    channels: int  # of the convolution's input; 0 of an op without filters
    backend: str


def pretend(monkeypatch, capability=HOPPER, absent=()) -> list[Asked]:
    """From now on the CPU is such a GPU, with the backends NAMES but `absent`; what they are asked for."""
    asked: list[Asked] = []
    running: list[str] = []
    for name in NAMES:
        spec = importlib.util.spec_from_file_location(f"zfkernels.backends.pretended_{name}", cpu.__file__)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        monkeypatch.setitem(backends.MODULES, name, spec.name)
        for op in OPS:
            setattr(module, op, noting(op, name, getattr(module, op), asked, running))
        if name in absent:
            module.unavailable = lambda: "it is not there"
    monkeypatch.setattr(backends.registry, "_loaded", {})
    monkeypatch.setitem(backends.BEST, "cpu", NAMES)
    monkeypatch.setattr(backends.registry, "capability", lambda index: capability)
    return asked


def noting(op, backend, function, asked, running):
    place = OPS[op]

    def call(*arguments):
        if not running:  # the backend's own calls of its functions do not count
            asked.append(Asked(op, 0 if place is None else arguments[place].shape[1], backend))
        running.append(op)
        try:
            return function(*arguments)
        finally:
            running.pop()

    return call


OPS = {  # the place of a tensor with as many channels as the convolution's input
    "conv2d": 1,
    "conv2d_add": 1,
    "conv_transpose2d": 1,
    "conv2d_weight_grad": 0,
    "conv2d_relu_max_pool2d": 1,
    "conv2d_relu_max_pool2d_weight_grad": 0,
    "max_unpool2d_relu_conv_transpose2d": 2,
    "max_pool2d": None,
    "max_unpool2d": None,
    "contrast_norm": None,
    "contrast_norm_backward": None,
}
