"""Filters that are packed once and serve many convolutions."""

import torch
from torch import Tensor

from ..backends.prepared import PreparedFilters
from . import checks
from .define import PLAIN


def prepare(weight: Tensor, bias: Tensor | None = None, *, scale: Tensor | None = None) -> PreparedFilters:
    """Filters for many calls: y = scale * corr(x, weight) + bias, the weight packed once instead of at each call.

    Give the result in the place of `weight`, and no bias, to `conv2d_relu` or `conv2d_relu_max_pool2d` on the CPU, or
    in the place of the forward's weight to `relu_conv_transpose2d` or `max_unpool2d_relu_conv_transpose2d`, which take
    scale * weight and leave the bias alone. It is for inference: a call that would need a gradient raises, and so does
    every call after the weight, the bias or the scale has changed (another address, version, shape or dtype). torch
    counts what is written through a tensor and its views; what is written through `.data` or a NumPy array nobody
    counts: prepare again then. While something traces (torch.compile, a dispatch mode) the same numbers are given as a
    plain weight.

    Args:
        weight: (C_out, C_in / groups, KH, KW), float32, float64, bfloat16 or float16, on the CPU.
        bias: (C_out,) or None; of weight's dtype and device.
        scale: (C_out,) or None: a factor for each output, such as a batch norm's; folded into the filters.

    Returns:
        PreparedFilters, which hold the packed filters beside the weight: as large again, for each kernel (stride, size
        of map, forward or transposed) that asked for them. Winograd's filters are kept packed but not transformed: four
        times as large, they take longer to read from memory than to make.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, shape or device, named in the message.
        RuntimeError: a tensor whose changes torch does not count (made under torch.inference_mode).
    """
    checks.tensor("weight", weight, ("C_out", "C_in", "KH", "KW"))
    if weight.device.type != "cpu":
        raise ValueError(f"weight must be on the CPU, whose backend alone packs filters, got {weight.device}")
    for name, value in (("bias", bias), ("scale", scale)):
        if value is not None:
            checks.tensor(name, value, ("C_out",))
            checks.alike(name, value, "weight", weight)
            if value.shape[0] != weight.shape[0]:
                raise ValueError(
                    f"{name} must have shape ({weight.shape[0]},), one value a filter, got {tuple(value.shape)}"
                )
    return PreparedFilters(weight, bias, scale)


def opened(
    weight: PreparedFilters, bias: Tensor | None, x: Tensor, backend: str | None, of: str = "x"
) -> tuple[PreparedFilters | None, Tensor, Tensor | None]:
    """What a public function goes on with: the prepared filters, and a weight and bias to check; while something traces
    None, and a weight and bias to compute with. `of` is x's name there."""
    if bias is not None:
        raise ValueError("bias must be None beside prepared filters: give it to zfkernels.prepare")
    if not isinstance(x, Tensor) or x.dtype != weight.dtype:
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"{of} must have the prepared filters' dtype, {weight.dtype}, got {got}")
    sources = {name: value for name, (value, _) in weight.sources.items()}
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *sources.values())):
        raise RuntimeError(
            f"prepared filters have no gradient, and {of}, weight, bias or scale needs one; call under "
            "torch.no_grad(), or give the weight itself"
        )
    name = checks.backend(backend, x)
    if name != "cpu":
        raise RuntimeError(f"prepared filters are the cpu backend's, got backend {name!r}; give it the weight itself")
    weight.check()
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack()
    if traced or torch._C._get_tracing_state() is not None or type(x) not in PLAIN or x.is_neg():
        return None, weight.filters.to(x.dtype), None if weight.bias is None else weight.bias.to(x.dtype)
    return weight, sources["weight"], sources.get("bias")
