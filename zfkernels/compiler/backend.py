"""The backend that torch.compile finds under the name "zfkernels" (pyproject.toml, torch_dynamo_backends)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from . import gpu, graph
from .program import Program

MODES = (None, "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
OPTIONS = {"watch_values": True, "tune": True}


def backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[object],
    *,
    mode: str | None = None,
    options: dict[str, bool] | None = None,
) -> graph.Function:
    """torch.compile(model, backend="zfkernels"): for inference, with no gradients and no autocast, above all on a CPU.

    Batch norms are folded into the convolutions before them; a convolution, its bias, batch norm, residual sum, ReLU or
    ReLU6 and max-pooling are one kernel, whose packed filters the compiled graph owns. Maps are channels-last inside;
    what is given back lies as torch would have left it. Other ops are torch's, called one after another: nothing is
    generated or compiled, so that ResNet-50 is ready in seconds.

    Maps that live inside a call alone lie in one block of memory, which is kept for the next call with inputs of the
    same shapes (memory.py); the parts of a concatenation are written where they belong in it (joins.py).

    A weight that changes is seen at the next call, however it was changed (ops/sources.py says by what, and the one
    change that is not seen), and its filters are prepared again.

    On a GPU a graph stays torch's but for the layers that our kernels are expected to be faster at, each of which
    becomes one call (gpu.py).

    A graph runs as it is, by torch: where a tensor needs a gradient and gradients are enabled, under autocast, on other
    devices, and where it writes into tensors that somebody else may read.

    Args:
        mode: any of torch.compile's; all mean the same here.
        options: {"watch_values": False}: addresses and versions alone tell that a weight has changed, not its values.
            {"tune": False}: every convolution that our kernels have is theirs, and the same call gives the same bits in
            every process; otherwise oneDNN's take those that it is measured to be faster at (choice.py).

    Raises:
        ValueError: an unknown mode or option.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, MODES[1:]))}, got {mode!r}")
    settings = dict(options or {})
    for name, value in settings.items():
        if name not in OPTIONS or not isinstance(value, bool):
            raise ValueError(f"options may hold {', '.join(OPTIONS)}, True or False; got {name!r}: {value!r}")
    device = served(gm, example_inputs)
    if device is None or not graph.functional(gm.graph):
        return gm.forward
    if device in gpu.DEVICES:
        return gpu.placed(gm)
    program = Program(gm, **(OPTIONS | settings))
    filters: list[Any] = [example_inputs[i] for i in program.watched if i < len(example_inputs)]
    ours = program.watched and not any(t.is_inference() for t in filters)  # the changes of these nobody counts
    return program if ours else gm.forward


def served(gm: fx.GraphModule, example_inputs: Sequence[object]) -> str | None:
    """The kind of device, if it is inference on tensors of one that we serve, whose sizes are known before it runs."""
    tensors = [value for value in example_inputs if isinstance(value, Tensor)]
    tensors += [*gm.parameters(), *gm.buffers()]
    if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
        return None
    devices = {t.device.type for t in tensors} or {"cpu"}
    if len(devices) > 1 or not devices <= {"cpu", *gpu.DEVICES}:
        return None
    (device,) = devices
    if torch.is_autocast_enabled(device) or any(t.layout != torch.strided for t in tensors):
        return None
    if any(type(t) not in (Tensor, torch.nn.Parameter) for t in tensors):
        return None
    values = (node.meta.get("example_value") for node in gm.graph.nodes)
    return None if any(free_unbacked_symbols(v) for v in values if v is not None) else device
