"""zfkernels: the system of Zeiler & Fergus, "Visualizing and Understanding Convolutional Networks", as kernels.

A public name is imported when it is first used, so that `import zfkernels` alone, as the command line does, imports no
torch.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the names of MODULES, for editors and type checkers
    from . import nn as nn
    from .analyses.activations import top_activations as top_activations
    from .analyses.occlusion import occlusion_map as occlusion_map
    from .analyses.sanity import sanity_check as sanity_check
    from .backends import available_backends as available_backends
    from .backends import use_backend as use_backend
    from .backends import use_exact as use_exact
    from .deconvnet import Deconvnet as Deconvnet
    from .models.zfnet import ZFNet as ZFNet
    from .ops.avg_pool import avg_pool2d as avg_pool2d
    from .ops.contrast_norm import contrast_norm as contrast_norm
    from .ops.conv import conv2d_relu as conv2d_relu
    from .ops.conv import relu_conv_transpose2d as relu_conv_transpose2d
    from .ops.fused import conv2d_relu_max_pool2d as conv2d_relu_max_pool2d
    from .ops.fused import max_pool2d_contrast_norm as max_pool2d_contrast_norm
    from .ops.fused import max_unpool2d_relu_conv_transpose2d as max_unpool2d_relu_conv_transpose2d
    from .ops.max_pool import max_pool2d_with_switches as max_pool2d_with_switches
    from .ops.max_pool import max_unpool2d_with_switches as max_unpool2d_with_switches
    from .ops.prepared import prepare as prepare

__version__ = "0.2.0"

MODULES = {  # public name -> the module that defines it
    "Deconvnet": "deconvnet",
    "ZFNet": "models.zfnet",
    "available_backends": "backends",
    "avg_pool2d": "ops.avg_pool",
    "contrast_norm": "ops.contrast_norm",
    "conv2d_relu": "ops.conv",
    "conv2d_relu_max_pool2d": "ops.fused",
    "max_pool2d_contrast_norm": "ops.fused",
    "max_pool2d_with_switches": "ops.max_pool",
    "max_unpool2d_relu_conv_transpose2d": "ops.fused",
    "max_unpool2d_with_switches": "ops.max_pool",
    "occlusion_map": "analyses.occlusion",
    "prepare": "ops.prepared",
    "relu_conv_transpose2d": "ops.conv",
    "sanity_check": "analyses.sanity",
    "top_activations": "analyses.activations",
    "use_backend": "backends",
    "use_exact": "backends",
}
__all__ = sorted(["nn", *MODULES])


def __getattr__(name: str) -> object:
    if name == "nn":
        return import_module(".nn", __name__)
    if name not in MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{MODULES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if "torch" in sys.modules:  # torch.ops.zfkernels and torch.export.load need the ops, and ask for no name of ours
    import_module(".nn", __name__)
