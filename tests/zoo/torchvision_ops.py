"""torchvision where its compiled operators are of another torch than the one installed, or absent: its networks need
none of them, but its import registers shapes for two. Import this module before timm or whatever else imports it.
"""

import importlib.util
import sys

import torch


def imported() -> bool:
    """Imports torchvision, with declarations in the place of the operators that it misses; False without it."""
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            DECLARED.define(f"{name}(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor")
        importlib.import_module("torchvision")
    return True


DECLARED = torch.library.Library("torchvision", "FRAGMENT")
PRESENT = imported()
