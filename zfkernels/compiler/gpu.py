"""A graph on a GPU: torch's own, but for the layers that our kernels are expected to be faster at.

Two kinds, each of which becomes one call. A layer on images (convolution, batch norm, ReLU and max-pooling) in a 16-bit
type never writes the convolution's map, by far the largest of a network: 84 us of products and 35 of memory where the
parts take 84 and 173 (docs/design/cuda.md, ZFNet's at N = 128 on one H200). A response norm reads and writes its map
once, where torch does for each of its six or seven ops. Wide convolutions, poolings and all else are left to cuDNN and
torch. All of that is arithmetic: no GPU has measured it yet.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .. import backends
from ..backends.registry import IMAGE_CHANNELS
from ..ops.contrast_norm import contrast_norm
from ..ops.fused import conv2d_relu_max_pool2d
from . import kernels
from .graph import Function, argument, function
from .match import Conv, steps_of
from .torch_calls import memory_format

DEVICES = ("cuda",)
HALVES = (torch.bfloat16, torch.float16)
WINS = {"image layer": HALVES, "response norm": (torch.float32, *HALVES)}  # kinds and dtypes, on any GPU
DEPTH = 160  # products of an output, to which a layer on images is one kernel
# Bytes of a convolution's map from which a layer saves more than folding its batch norm costs, some seven small kernels
# at each call (there is no telling whether a weight on a GPU has changed).
FOLDED = 64 << 20

Call = tuple[Callable[..., Tensor], tuple[Any, ...]]  # what replaces a node, and its arguments


def placed(gm: fx.GraphModule) -> Function:
    """The graph with our calls in the place of the layers that we win at; as it was where there is none."""
    found = False
    for step in steps_of(gm.graph):
        node, made = (step.node, layer_call(step)) if isinstance(step, Conv) else (step, norm_call(step))
        if made is None:
            continue
        with gm.graph.inserting_before(node):
            ours = gm.graph.call_function(*made)
        ours.meta = dict(node.meta)
        node.replace_all_uses_with(ours)
        end = step.x if isinstance(step, Conv) else argument(node, 0, "input")
        while node is not end:
            below = argument(node, 0, "input")
            gm.graph.erase_node(node)
            node = below
        found = True
    if found:
        gm.recompile()
    return gm.forward


def layer_call(step: Conv) -> Call | None:
    """A whole layer on images; None for what is none, or is left to torch."""
    x, weight, form = value(step.x), value(step.weight), memory_format(step.node)
    if step.pool is None or step.after != (0, 0) or x is None or weight is None or form is None:
        return None
    kernel, _, padding, _ = step.pool
    channels, depth = int(weight.shape[1]), weight[0].numel()
    if channels > IMAGE_CHANNELS or depth > DEPTH or not kernels.pools(kernel, padding, (1, 1)):
        return None
    sources = [value(node) for node in step.sources]
    if x.dtype not in WINS["image layer"] or any(s is None or s.dtype != x.dtype for s in sources):
        return None
    norm: tuple[object, ...] | None = None
    if (found := step.norm) is not None:
        if not isinstance(found.eps, float) or not large(step.first):
            return None
        norm = found.mean, found.var, found.weight, found.bias, found.eps
    backend = backend_of(x, "conv2d_relu_max_pool2d", channels)
    window = step.stride, step.padding, step.pool
    return None if backend is None else (image_layer, (step.x, step.weight, step.bias, norm, window, form, backend))


def norm_call(node: fx.Node) -> Call | None:
    """A response norm; None for what is none, or is left to torch."""
    if function(node) is not F.local_response_norm:
        return None
    names = ("input", "size", "alpha", "beta", "k")
    image, *settings = (argument(node, i, name, (None, None, 1e-4, 0.75, 1.0)[i]) for i, name in enumerate(names))
    x, form = value(image), memory_format(node)
    if x is None or form is None or x.dtype not in WINS["response norm"]:
        return None
    size, alpha, _, k = settings
    if not isinstance(size, int) or not all(isinstance(s, (int, float)) for s in settings) or alpha < 0 or k <= 0:
        return None
    backend = backend_of(x)
    return None if backend is None else (response_norm, (image, *settings, form, backend))


def value(node: object) -> Tensor | None:
    """What a node is known to be, if that is a map or filters."""
    found = node.meta.get("example_value") if isinstance(node, fx.Node) else None
    return found if isinstance(found, Tensor) else None


def large(conv: fx.Node) -> bool:
    """Is the convolution's map known to have FOLDED bytes?"""
    made = value(conv)
    return made is not None and all(isinstance(n, int) for n in made.shape) and made.nbytes >= FOLDED


def backend_of(x: Tensor, op: str = "", channels: int = 0) -> str | None:
    """Who serves the op on x's GPU; None where nobody can run, or another backend was asked for."""
    order = backends.order(x.device.type, op, channels, x.dtype.itemsize == 2, x.device.index)
    if all(backends.reason(name) is not None for name in order):
        return None
    name = backends.choose(None, x.device.type, order)
    return name if name in order else None


# The calls


def image_layer(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: tuple[Any, ...] | None,
    window: tuple[Any, Any, Any],
    form: torch.memory_format,
    backend: str,
) -> Tensor:
    stride, padding, pool = window
    if norm is not None:
        weight, bias = folded(weight, bias, *norm)
    y, _ = conv2d_relu_max_pool2d(x, weight, bias, stride, padding, *pool, backend=backend)
    return y.contiguous(memory_format=form)


def response_norm(
    x: Tensor, size: int, alpha: float, beta: float, k: float, form: torch.memory_format, backend: str
) -> Tensor:
    return contrast_norm(x, size, alpha, beta, k, backend=backend).contiguous(memory_format=form)


def folded(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Filters and bias with the batch norm in them, rounded once."""
    scale = torch.rsqrt(var.float() + eps)
    scale = scale if gamma is None else scale * gamma
    shift = -mean * scale if bias is None else (bias - mean.float()) * scale
    shift = shift if beta is None else shift + beta
    return (weight * scale.view(-1, 1, 1, 1)).to(weight.dtype), shift.to(weight.dtype)
