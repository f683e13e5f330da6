"""What is checked of a case of the search, each check with the bounds of verify's fixed cases (compare.py).

forward    the results against the float64 reference's, rounded to the case's dtype
backward   the gradients of all tensors against the reference's formulas (gradients.py)
parts      a fused op against its parts on the same backend: equal on the cpu, elsewhere within the bound
again      a second run, to the bit
threads    one thread against `threads`, to the bit (cpu)
alone      the last image alone against itself in its batch, to the bit (cpu)
prepared   prepared filters against plain ones, to the bit; with a scale against the reference (cpu)
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import backends
from ..backends import reference
from ..backends.prepared import PreparedFilters
from ..ops import contrast_norm as norms
from ..ops import conv, fused, max_pool
from ..ops.fused import conv2d_relu_max_pool2d
from ..ops.linear import _linear
from ..ops.prepared import prepare
from . import gradients
from .cases import EXACT, OPS
from .compare import BOUNDS, is_float, relative_error, tuple_of, values_error
from .memory import poisoned_memory
from .spec import (
    DTYPES,
    EXTREMES,
    LAYERS,
    MODES,
    TENSORS,
    Spec,
    arguments,
    laid_out,
    materialized,
    values,
)


def as_linear_takes_it(value: Tensor | None) -> Any:
    """What ops.linear.linear hands on to our kernel; the rest is torch's."""
    return None if value is None else value.resolve_neg().contiguous()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "conv2d": conv._conv2d,
    "conv2d_add": conv._conv2d_add,
    "conv_transpose2d": conv._conv_transpose2d,
    "conv2d_weight_grad": conv._conv2d_weight_grad,
    "max_pool2d": max_pool.max_pool2d,
    "max_unpool2d": max_pool.max_unpool2d,
    "max_unpool2d_backward": max_pool.max_unpool2d_backward,
    "contrast_norm": norms.contrast_norm_op,
    "contrast_norm_backward": norms.contrast_norm_backward,
    "max_pool2d_contrast_norm": fused.pool_norm,
    "conv2d_relu_max_pool2d": fused.layer,
    "conv2d_relu_max_pool2d_weight_grad": fused.layer_weight_grad,
    "max_unpool2d_relu_conv_transpose2d": fused.layer_reversed,
    "linear": lambda x, weight, bias, backend: _linear(*map(as_linear_takes_it, (x, weight, bias))),
}


@contextmanager
def settings(spec: Spec) -> Iterator[None]:
    """The instruction set, kernels and threads that the case names, and poisoned memory."""
    compiled, threads = backends.module("cpu")._C, torch.get_num_threads()
    before = compiled.isa(), compiled.winograd()
    try:
        if spec.isa:
            compiled.set_isa(spec.isa)
        compiled.set_winograd(MODES.index(spec.mode))
        torch.set_num_threads(spec.threads)
        on_device = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
        with poisoned_memory(), np.errstate(all="ignore"), on_device:
            yield
    finally:
        compiled.set_isa(before[0])
        compiled.set_winograd(before[1])
        torch.set_num_threads(threads)


def failure(spec: Spec) -> str | None:
    """What is wrong with the case, in a few words; None where all is well. A crash of an op is a failure too."""
    with settings(spec):
        try:
            return CHECKS[spec.check](spec)
        except Exception as problem:
            return f"{type(problem).__name__}: {problem}"


def applies(check: str, spec: Spec) -> bool:
    """Is there such a check of this case?"""
    on_cpu = spec.backend == "cpu"
    plain = spec.finite and not any(fill in EXTREMES for _, fill, _ in spec.tensors)
    return {
        "forward": True,
        "backward": spec.op != "contrast_norm_backward",
        "parts": spec.op in LAYERS or spec.op == "max_pool2d_contrast_norm",
        "again": True,
        "threads": on_cpu,
        "alone": on_cpu and plain and spec.n > 1 and not spec.op.endswith("weight_grad"),
        "prepared": on_cpu and spec.op in PREPARED and (spec.flag or spec.op in LAYERS),
    }[check]


def computed(spec: Spec, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """The op's results on the case's backend."""
    outputs = tuple_of(FUNCTIONS[spec.op](*arguments(spec, tensors), spec.backend))
    # Instead of no bias gradient the op gives an empty tensor.
    return outputs[:1] if spec.op.endswith("weight_grad") and not spec.flag else outputs


def exact(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same in float64 on the CPU."""
    moved = (a.detach().cpu().resolve_neg() if isinstance(a, Tensor) else a for a in args)
    return tuple(a.double() if is_float(a) else a for a in moved)


def right(spec: Spec, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """The reference's results, as exact values of the case's dtype."""
    if spec.op == "linear":
        x, weight, bias = args
        results = (x @ weight.T if bias is None else x @ weight.T + bias,)
    else:
        results = tuple_of(getattr(reference, spec.op)(*args))
    return tuple(rounded(result, spec) for result in results if result is not None)


def rounded(result: Tensor, spec: Spec) -> Tensor:
    return result.to(DTYPES[spec.dtype]).double() if is_float(result) else result


def compared(spec: Spec, outputs: tuple[Any, ...], expected: tuple[Any, ...], args: tuple[Any, ...]) -> str | None:
    bound = 0.0 if spec.op in EXACT else BOUNDS[DTYPES[spec.dtype]]
    error = OPS[spec.op].error if spec.op in OPS else values_error
    here = tuple(output.detach().cpu() for output in outputs)
    worst = error(here, expected, args, DTYPES[spec.dtype], bound)
    return None if worst <= bound else f"error {worst:.3g}, bound {bound:.3g}"


def forward(spec: Spec) -> str | None:
    tensors = materialized(spec)
    outputs, args = computed(spec, tensors), exact(arguments(spec, tensors))
    for output in outputs:
        if output.dtype not in (DTYPES[spec.dtype], torch.uint8):
            return f"a result of dtype {output.dtype}"
        if output.dim() == 4 and not spec.op.endswith("weight_grad"):
            strides = torch.empty(output.shape, memory_format=torch.channels_last, device="meta").stride()
            if output.stride() != strides:
                return f"a result of strides {output.stride()}, not channels-last, {strides}"
    return compared(spec, outputs, right(spec, args), args)


def backward(spec: Spec) -> str | None:
    tensors = {n: t.requires_grad_(t.is_floating_point()) for n, t in materialized(spec).items() if n != "scale"}
    outputs, args = computed(spec, tensors), exact(arguments(spec, tensors))
    fill, layout = spec.of("grad") or ("normal", "contiguous")
    given: list[Tensor | None] = [None] * len(outputs)
    for index, output in enumerate(outputs):
        if output.is_floating_point():
            g = values(spec, f"grad{index}", tuple(output.shape), fill).to(output.dtype)
            given[index] = laid_out(g.to(output.device), layout)
    floats = [output for output in outputs if output.is_floating_point()]
    wanted = {name: tensor for name, tensor in tensors.items() if tensor.requires_grad}
    found = torch.autograd.grad(floats, list(wanted.values()), [g for g in given if g is not None])
    return _gradients_error(spec, args, outputs, given, dict(zip(wanted, found, strict=True)))


def _gradients_error(
    spec: Spec, args: tuple[Any, ...], outputs: tuple[Any, ...], given: list[Tensor | None], found: dict[str, Tensor]
) -> str | None:
    wide = [None if g is None else exact((g,))[0] for g in given]
    if spec.op.endswith("weight_grad") and not spec.flag:
        wide.append(None)  # the bias gradient's
    expected = gradients.expected(spec.op, args, exact(outputs), tuple(wide))
    bound = BOUNDS[DTYPES[spec.dtype]]
    for name, tensor in zip(TENSORS[spec.op], expected, strict=False):
        if name in found and tensor is not None:
            error = relative_error(found[name].detach().cpu(), rounded(tensor, spec))
            if not error <= bound:
                return f"the gradient of {name}: error {error:.3g}, bound {bound:.3g}"
    return None


def parts(spec: Spec) -> str | None:
    """The fused op's parts, called one by one."""
    tensors = materialized(spec)
    outputs = computed(spec, tensors)
    separate = composed(spec, arguments(spec, tensors))
    if spec.backend == "cpu" and spec.op != "max_unpool2d_relu_conv_transpose2d":
        worst = values_error(outputs, exact(separate), (), DTYPES[spec.dtype], 0.0)
        return None if worst == 0 else f"fused and separate differ by {worst:.3g}, and must be equal"
    failed = compared(spec, outputs, exact(separate), exact(arguments(spec, tensors)))
    return None if failed is None else f"fused and separate differ: {failed}"


def composed(spec: Spec, args: tuple[Any, ...]) -> tuple[Tensor, ...]:
    backend = spec.backend
    if spec.op == "max_pool2d_contrast_norm":
        y, switches = max_pool.max_pool2d(*args[:5], backend)
        return y, switches, norms.contrast_norm_op(y, *args[5:], backend)
    if spec.op == "conv2d_relu_max_pool2d":
        y = conv._conv2d(*args[:5], True, (1, 1), 1, backend)
        return max_pool.max_pool2d(y, *args[5:], backend)
    if spec.op == "conv2d_relu_max_pool2d_weight_grad":
        x, g, switches, kernel, stride, padding, *pool, with_bias = args
        g = max_pool.max_unpool2d(g, switches, *pool, spec.conv, backend)
        grads = conv._conv2d_weight_grad(x, g, kernel, stride, padding, with_bias, (1, 1), 1, backend)
        return grads if with_bias else grads[:1]
    y, switches, weight, stride, padding, *pool, size, rectify = args
    y = max_pool.max_unpool2d(y, switches, *pool, spec.conv, backend)
    return (conv._conv_transpose2d(y, weight, stride, padding, size, rectify, (1, 1), 1, backend),)


def same_bits(ours: tuple[Tensor, ...], others: tuple[Tensor, ...], what: str) -> str | None:
    """All NaN are one: which of two a sum keeps, with its sign, is the order in which the compiler names them."""
    for one, other in zip(ours, others, strict=True):
        if one.shape != other.shape:
            return f"{what}: shapes {tuple(one.shape)} and {tuple(other.shape)}"
        a, b = (bytes_of(t.detach()) for t in (one, other))
        if not torch.equal(a, b):
            return f"{what}: {int((a != b).sum())} bytes differ"
    return None


def bytes_of(value: Tensor) -> Tensor:
    if value.is_floating_point():
        value = value.masked_fill(value.isnan(), math.nan)
    return value.contiguous().flatten().view(torch.uint8)


def again(spec: Spec) -> str | None:
    tensors = materialized(spec)
    return same_bits(computed(spec, tensors), computed(spec, tensors), "a second run")


def threads(spec: Spec) -> str | None:
    tensors = materialized(spec)
    many = computed(spec, tensors)
    torch.set_num_threads(1)
    return same_bits(computed(spec, tensors), many, f"1 thread and {spec.threads}")


def alone(spec: Spec) -> str | None:
    tensors = materialized(spec)
    batched = ("x", "y", "g", "add", "switches")
    last = {name: tensor[-1:] if name in batched else tensor for name, tensor in tensors.items()}
    in_batch = tuple(output[-1:] for output in computed(spec, tensors))
    return same_bits(computed(spec, last), in_batch, "the last image alone and in its batch")


PREPARED = ("conv2d", "conv2d_add", "conv2d_relu_max_pool2d")


def prepared(spec: Spec) -> str | None:
    """Through the public functions, which alone take prepared filters."""
    tensors = materialized(spec)
    x, weight = tensors["x"], tensors["weight"]
    bias, add, scale = map(tensors.get, ("bias", "add", "scale"))
    window = spec.stride, spec.padding

    def call(weight: Tensor | PreparedFilters, bias: Tensor | None) -> tuple[Tensor, ...]:
        if spec.op in LAYERS:
            pool = *window, *spec.window, spec.ceil
            return conv2d_relu_max_pool2d(x, weight, bias, *pool, backend=spec.backend)
        cap = None if spec.cap == math.inf or spec.op == "conv2d" else spec.cap
        grouped = spec.dilation, spec.groups
        return (conv.conv2d_relu(x, weight, bias, *window, *grouped, add=add, cap=cap, backend=spec.backend),)

    filters = prepare(weight, bias, scale=scale)
    with torch.no_grad() if scale is not None else nullcontext():
        first, second = call(filters, None), call(filters, None)
    if failed := same_bits(first, second, "prepared filters' second use"):
        return failed
    if scale is None:
        return same_bits(first, call(weight, bias), "prepared and plain filters")
    args = exact(arguments(spec, tensors))
    args = args[0], args[1] * exact((scale,))[0][:, None, None, None], *args[2:]
    return compared(spec, first, right(spec, args), args)


CHECKS: dict[str, Callable[[Spec], str | None]] = {
    "forward": forward,
    "backward": backward,
    "parts": parts,
    "again": again,
    "threads": threads,
    "alone": alone,
    "prepared": prepared,
}
