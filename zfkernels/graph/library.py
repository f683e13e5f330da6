"""The calls of torch.ops.zfkernels as steps: what a function mode sees in the place of the public functions."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor

from ..ops.contrast_norm import contrast_norm
from .makers import NO_REVERSE, Part
from .rules import Irreversible
from .steps import ReLU
from .translate import function_part

Sizes = Sequence[int]


def _conv(
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    relu: bool,
    dilation: Sizes,
    groups: int,
    backend: str,
) -> Part:
    read = None if bias is None else lambda: bias
    window = tuple(stride), tuple(padding), tuple(dilation), groups
    part = function_part(F.conv2d, name, [lambda: weight, read, *window], {})
    return Part("layer", (*part.steps, ReLU(name))) if relu else part


def _pool(name: str, kernel_size: Sizes, stride: Sizes, padding: Sizes, output_size: Sizes, backend: str) -> Part:
    return function_part(F.max_pool2d, name, [tuple(kernel_size), tuple(stride), tuple(padding)], {})


def _layer(
    name: str,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sizes,
    padding: Sizes,
    kernel_size: Sizes,
    pool_stride: Sizes,
    pool_padding: Sizes,
    size: Sizes,
    backend: str,
) -> Part:
    conv = _conv(name, weight, bias, stride, padding, True, (1, 1), 1, backend)
    return Part("layer", conv.steps + _pool(name, kernel_size, pool_stride, pool_padding, size, backend).steps)


def _norm(name: str, size: int, alpha: float, beta: float, k: float, center: bool, backend: str) -> Part:
    return function_part(contrast_norm, name, [size, alpha, beta, k], {"center": center})


OPS: dict[str, Callable[..., Part]] = {
    "zfkernels::conv2d": _conv,
    "zfkernels::max_pool2d": _pool,
    "zfkernels::conv2d_relu_max_pool2d": _layer,
    "zfkernels::contrast_norm": _norm,
}
OP_NAMES = {"zfkernels::conv2d": "conv2d_relu", "zfkernels::max_pool2d": "max_pool2d_with_switches"}


def op_part(op: str, name: str, arguments: Sequence[object], keywords: dict[str, object]) -> Part:
    """The steps of a call of a library's op, its first tensor left out."""
    if op not in OPS:
        raise Irreversible(NO_REVERSE)
    return OPS[op](name, *arguments, **keywords)
