"""What people compile: whole networks of other packages, images to logits, by torch.compile with the backend zfkernels,
against torch eager in both layouts, its own compiler with frozen weights, ONNX Runtime and OpenVINO.

Weights are as the packages draw them; what is timed does not depend on them.
"""

import copy
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..compiler import backend
from . import networks
from .nets import NETS, SIDE, Net, drawn, in_float64
from .peers import LAST, Call, Case, Setting

NAMES = {
    **{key: NETS[key] for key in ("vgg16", "alexnet", "resnet18", "resnet50")},
    "squeezenet": Net("SqueezeNet 1.1", "torchvision", "squeezenet1_1", ("", "", "")),
    **{key: NETS[key] for key in ("densenet121", "mobilenetv2", "lite0")},
    "zfnet": Net("ZFNet", "zfkernels", "zfnet", ("", "", "")),
}


@lru_cache(maxsize=1)
def model_of(net: Net, dtype: torch.dtype) -> nn.Module:
    """The network in evaluation mode, of torch's own layers, as its package draws it. It is shared: nothing may train
    it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if net.package == "zfkernels":
            return networks.twin(networks.network("cpu", dtype), torch.contiguous_format)
        model = drawn(net)
    return model.to(dtype).eval().requires_grad_(False)


@dataclass(frozen=True)
class Exported:
    """A model as `Case.add_graph` takes one."""

    model: nn.Module
    x: Tensor

    def done(self) -> tuple[bytes, dict[str, np.ndarray]]:
        to: Any = io.BytesIO()  # torch's types name files alone
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that another exporter is newer
            torch.onnx.export(self.model, (self.x,), to, input_names=["x"], opset_version=17, dynamo=False)
        return to.getvalue(), {"x": self.x.numpy()}


def logits(net: Net, n: int, setting: Setting) -> Case:
    """n images to logits."""
    model, x = model_of(net, setting.dtype), torch.randn(n, 3, SIDE, SIDE)
    torch._dynamo.reset()  # networks share code, and torch.compile gives up on code seen too often
    case = Case(setting, n, lambda: (in_float64(model)(x.double()),))
    last: Any = copy.deepcopy(model)
    last, last_x = last.to(memory_format=LAST), x.contiguous(memory_format=LAST)

    def eager(memory_format: torch.memory_format) -> Call:
        m, images = (last, last_x) if memory_format == LAST else (model, x)
        return lambda: (m(images),)

    def frozen(**options: bool) -> Call:
        chosen: dict[str, str | int | bool | Callable[..., object]] = {"freezing": True, **options}
        call: Callable[[Tensor], Tensor] = torch.compile(last, dynamic=False, options=chosen)
        return lambda: (call(last_x),)

    case.add_eager(eager)
    case.add_compiled(frozen)
    case.add_compiled(partial(frozen, max_autotune=True), "compile autotuned")
    compiled = torch.compile(model, backend=backend, dynamic=False)
    case.add_ours(partial(compiled, x))
    return case.add_graph(Exported(model, x))


def jobs() -> list[tuple[str, Net, str, Callable[[int, Setting], Case]]]:
    """Name, network, words, what builds the case."""
    return [(f"model-{key}", net, f"{net.text} compiled", partial(logits, net)) for key, net in NAMES.items()]
