"""Kernels in Triton, for NVIDIA GPUs of compute capability 8.0 and up.

With TRITON_INTERPRET=1 in the environment before the first import, the same kernels run in Triton's interpreter, in
NumPy and slowly, on tensors in host memory: for tests, without a GPU.
"""

import importlib.util
from typing import Any, NoReturn

import torch

from ..memory import refuse_averages

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GROUPS = False  # no kernels for groups or dilation
AVERAGES = False  # nor for average pooling
MULTIPLIES_PADDING = True  # the zeros around a map: a weight that is not finite spoils more than it reaches

INSTALLED, INTERPRETED = importlib.util.find_spec("triton") is not None, False
if INSTALLED:
    from .contrast_norm import contrast_norm, contrast_norm_backward
    from .conv import conv2d, conv2d_add
    from .conv_transpose import conv_transpose2d
    from .conv_weight_grad import conv2d_weight_grad
    from .fused import (
        conv2d_relu_max_pool2d,
        conv2d_relu_max_pool2d_weight_grad,
        max_pool2d_contrast_norm,
        max_unpool2d_relu_conv_transpose2d,
    )
    from .launch import INTERPRETED
    from .max_pool import max_pool2d, max_unpool2d, max_unpool2d_backward

DEVICES = ("cpu", "cuda") if INTERPRETED else ("cuda",)
# Where allowed, float32 products are of operands rounded to TF32; the interpreter does not round.
TF32 = not INTERPRETED
# What is computed as a composition, and why (docs/design/triton.md). `zfkernels info` prints it.
NOTES = (
    "conv2d_relu_max_pool2d is one kernel for image layers in 16-bit types on NVIDIA GPUs, else convolution then "
    "pooling: computing the pixels that windows share again would cost more than the map's round trip",
    "max_unpool2d_relu_conv_transpose2d unpools and rectifies in one kernel, then filters: gathered in the product's "
    "operand, values would lie in registers, where ptxas may reuse them too early (triton issues 9433, 11781)",
)


def avg_pool2d(x: torch.Tensor, *settings: Any) -> NoReturn:
    refuse_averages("triton")


avg_pool2d_backward = avg_pool2d


def unavailable() -> str | None:
    """Why this backend cannot run here, and what would change that; None when it can."""
    if not INSTALLED:
        return (
            "triton is not installed; run: pip install 'zfkernels[triton]' (torch's builds for CUDA bring it on Linux)"
        )
    if INTERPRETED:
        return None
    slowly = "or set TRITON_INTERPRET=1 before Python starts, to run the kernels slowly on the CPU"
    if torch.version.cuda is None and torch.version.hip is None:
        return f"torch {torch.__version__} is built without CUDA; install a build with it, {slowly}"
    if not torch.cuda.is_available():
        return f"torch finds no GPU: no driver, or CUDA_VISIBLE_DEVICES hides it; {slowly}"
    if torch.version.cuda is not None and torch.cuda.get_device_capability() < (8, 0):
        major, minor = torch.cuda.get_device_capability()
        name = torch.cuda.get_device_name()
        return f"{name} has compute capability {major}.{minor}, and the kernels need 8.0 or more; {slowly}"
    return None


def measured() -> dict[str, dict[str, Any]]:
    """The configurations that were measured on this machine's GPUs and are in use: device -> problem -> choice."""
    if not INSTALLED or INTERPRETED or not torch.cuda.is_available():
        return {}
    from . import tuning

    names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
    return {name: tuning.table(name) for name in sorted(names)}
