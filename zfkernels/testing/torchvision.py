"""torchvision's networks where its compiled operators are absent or of another torch than the one installed.

The networks need none of those operators, but torchvision's import registers shapes for two of them.
"""

import sys
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

DECLARED = torch.library.Library("torchvision", "FRAGMENT")


@lru_cache(maxsize=1)
def torchvision() -> ModuleType | None:
    """The package, with declarations in the place of the operators that it misses; None where it is not installed.

    To be called before what imports torchvision itself, such as timm.
    """
    if find_spec("torchvision") is None:
        return None
    try:
        return import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            DECLARED.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        return import_module("torchvision")
