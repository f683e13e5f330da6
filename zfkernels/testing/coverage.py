"""Which instances of the kernels have run: `zfkernels verify --coverage`.

An instance is a kernel as it is compiled, in words: on the cpu the instruction set, the dtype, the entry of the table
and the kernel that choose.h chooses for it, with its taps; for a matrix kernel also how many outputs it makes, for the
last block or tile differs. `recording` notes what runs; `expected` lists what there is; `cases` are made to run it all.
Of the cuda backend the emulator counts the instances (tests/emulator/instances.py): the symbols of its module.
"""

import functools
import importlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .. import backends
from ..ops import linear
from .cases import OPS
from .spec import DTYPES, MODES, Spec, parse

OUTPUTS = ("up to 64 outputs", "up to 128 outputs", "more than 128 outputs")
TAPS = (2, 3, 4, 5)  # of Winograd's kernels
BETAS = (0.75, 0.5, 1.0, 1.3)  # roots serve the first three
# Entries of the table that choose among kernels: the place of theirs in conv2d_kernels' answer.
CHOOSING = {
    "conv2d": 0,
    "conv2d_relu_max_pool2d": 0,
    "conv_transpose2d": 1,
    "max_unpool2d_relu_conv_transpose2d": 1,
    "conv2d_weight_grad": 2,
}
PACKED = {"conv2d": 4, "conv2d_relu_max_pool2d": 5}  # the argument that is the packed filters' address
POOLS = ("max_pool2d", "max_unpool2d", "max_unpool2d_backward")


def outputs(count: int) -> str:
    return OUTPUTS[(count > 64) + (count > 128)]


def pool_kind(height: int, width: int) -> str:
    return f"{height}x{width}" if (height, width) in ((2, 2), (3, 3)) else "other windows"


def norm_kind(size: int, beta: float) -> str:
    return f"size {5 if size == 5 else 'other'}, beta {beta if beta in BETAS[:3] else 'other'}"


# What runs


def add(ran: set[str], name: str, instance: str) -> None:
    ran.add(f"{name}: {instance}")


@contextmanager
def recording(names: Iterable[str]) -> Iterator[set[str]]:
    """The set that holds every instance of these backends that ran inside so far, with the backend's name."""
    ran: set[str] = set()
    with ExitStack() as stack:
        for name in names:
            if name in RECORDERS:
                RECORDERS[name](stack, functools.partial(add, ran, name))
        yield ran


class Compiled:
    """The compiled module, whose calls are noted first."""

    def __init__(self, module: Any, note: Callable[[str, tuple[Any, ...]], None]) -> None:
        self._module, self._note = module, note

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        if name not in (*CHOOSING, *POOLS, "contrast_norm", "contrast_norm_backward", "linear"):
            return value

        def call(*arguments: Any) -> Any:
            self._note(name, arguments)
            return value(*arguments)

        return call


def record_cpu(stack: ExitStack, add: Callable[[str], None]) -> None:
    cpu = backends.module("cpu")
    compiled, dtype = cpu._C, ["float32"]

    def note(entry: str, arguments: tuple[Any, ...]) -> None:
        for instance in cpu_instances(compiled, entry, arguments):
            kind = "float32" if entry == "linear" else dtype[0]  # not one of the backend's functions
            add(f"{compiled.isa()} {kind} {instance}")

    def seen(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(x: Tensor, *arguments: Any) -> Any:
            dtype[0] = str(x.dtype).removeprefix("torch.")
            return function(x, *arguments)

        return call

    for module in (cpu, linear):
        stack.enter_context(patch.object(module, "_C", Compiled(compiled, note)))
    for op in OPS:
        stack.enter_context(patch.object(cpu, op, seen(getattr(cpu, op))))


def cpu_instances(compiled: Any, entry: str, arguments: tuple[Any, ...]) -> Iterator[str]:
    """The instances of a call of the compiled module; none for an empty batch."""
    f64, sizes = arguments[:2]
    if entry == "linear":
        yield "linear"
    elif entry.startswith("contrast_norm"):
        yield f"{entry} {norm_kind(arguments[3], arguments[5])}"
    elif entry in POOLS:
        yield f"{entry} {pool_kind(*sizes[6:8])}"
    elif sizes[0]:
        _, channels, _, _, filters, height, width, kh, kw, sh, sw = sizes[:11]
        groups, most, rectify = sizes[-1], height * width * filters // sizes[-1], False
        if entry == "conv_transpose2d":
            rectify = arguments[6]
        elif entry == "max_unpool2d_relu_conv_transpose2d":
            pooled, rectify = arguments[2][4:6], arguments[8]
            most = min(height * width, pooled[0] * pooled[1]) * filters
        chosen = compiled.conv2d_kernels(compiled.isa(), compiled.winograd(), f64, sizes, most, rectify)
        kernel, made = chosen[CHOOSING[entry]], (channels if CHOOSING[entry] == 1 else filters) // groups
        own = "prepared " if entry in PACKED and arguments[PACKED[entry]] else ""
        if kernel in ("tiles", "rows"):
            across = -(-kw // sw)
            yield f"{own}{entry} {kernel} of {across if kernel == 'rows' else max(across, -(-kh // sh))} taps"
        elif own:
            yield f"{own}{entry} {kernel}"
        if not own:
            yield f"{entry} {kernel}" + ("" if kernel in ("depthwise", "scatter") else f", {outputs(made)}")


def record_triton(stack: ExitStack, add: Callable[[str], None]) -> None:
    """Every launch of a kernel with programs to run."""
    call = importlib.import_module("zfkernels.backends.triton.launch").Call
    launch = call.__call__

    def noted(self: Any, **tensors: Tensor) -> None:
        if self.programs:
            dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
            name = self.kernel.__name__
            dtype = "" if name in UNTYPED else f"{dtype} "
            made = self.arguments["C" if name == "conv_transpose2d_kernel" else "C_OUT"] if name in MATRIX else 0
            add(f"{dtype}{name}" + (f", {outputs(made)}" if made else ""))
        launch(self, **tensors)

    stack.enter_context(patch.object(call, "__call__", noted))


RECORDERS = {"cpu": record_cpu, "triton": record_triton}

# Triton's kernels that make tiles of outputs, and those whose first tensor is of sums in float32.
MATRIX = ("conv2d_kernel", "conv_transpose2d_kernel", "conv2d_weight_grad_kernel", "conv2d_relu_max_pool2d_kernel")
UNTYPED = ("weight_grad_reduce_kernel",)
TRITON_FILES = ("contrast_norm", "conv", "conv_transpose", "conv_weight_grad", "correlation", "fused", "max_pool")


# What there is


def expected(name: str) -> set[str]:
    """The instances of a backend that can run here; none of one whose instances are not counted."""
    lists = {"cpu": cpu_expected, "triton": triton_expected}
    return {f"{name}: {instance}" for instance in lists[name]()} if name in lists else set()


def cpu_expected() -> Iterator[str]:
    for isa, dtype in product(backends.module("cpu")._C.isas(), DTYPES):
        winograd = () if dtype == "float64" else ("tiles", "rows")
        for entry, place in CHOOSING.items():
            fast = winograd if place == 0 else winograd[:1]
            wide = ["direct", *fast, *(("nonzeros", "nonzeros_plain") if place == 1 else ())]
            single = ["depthwise"] if "pool" not in entry else []
            single += ["scatter"] if place == 1 else []
            words = [f"{entry} {kernel}, {count}" for kernel, count in product(wide, OUTPUTS)]
            words += [f"{entry} {kernel}" for kernel in single]
            taps = [f"{entry} {kernel} of {count} taps" for kernel, count in product(fast, TAPS)]
            if place == 0:
                words += [f"prepared {word}" for word in (f"{entry} direct", *(f"{entry} {one}" for one in single))]
                words += [f"prepared {word}" for word in taps]
            yield from (f"{isa} {dtype} {word}" for word in (*words, *taps))
        kinds = ("2x2", "3x3", "other windows")
        yield from (f"{isa} {dtype} {entry} {kind}" for entry, kind in product(POOLS, kinds))
        for entry, size, beta in product(("contrast_norm", "contrast_norm_backward"), (5, 4), BETAS):
            yield f"{isa} {dtype} {entry} {norm_kind(size, beta)}"
        if dtype == "float32":
            yield f"{isa} {dtype} linear"


def triton_expected() -> Iterator[str]:
    """Every function of the backend's files that is launched, in each dtype."""
    module = backends.module("triton")
    kernels: dict[str, Any] = {}
    for file in TRITON_FILES:
        kernels |= vars(importlib.import_module(f"zfkernels.backends.triton.{file}"))
    names = [name for name, value in kernels.items() if name.endswith("_kernel") and hasattr(value, "fn")]
    for name, dtype in product(names, module.DTYPES):
        if name in UNTYPED:
            yield name
        elif not (name == "conv2d_relu_max_pool2d_kernel" and dtype == torch.float32):
            words = f"{str(dtype).removeprefix('torch.')} {name}"
            yield from (f"{words}, {count}" for count in OUTPUTS) if name in MATRIX else (words,)


# What runs it all

WIDE = (33, 97, 130)  # outputs: up to 64, up to 128, more
CONV, POOL = "n=2 size=7x9 padding=1x1", "pool=3x3 pool_stride=2x2"
# op, what the rest is made of: {t} taps, {k} filters or channels made.
BY_TAPS = (
    "conv2d c=5 k=7 flag=1 bias=normal",
    "conv2d_relu_max_pool2d c=5 k=7 bias=normal " + POOL,
    "conv_transpose2d c=40 k=5",
    "max_unpool2d_relu_conv_transpose2d c=40 k=5 " + POOL,
    "conv2d_weight_grad c=5 k=7 flag=1",
)
BY_OUTPUTS = (
    "conv2d c=5 k={k}",
    "conv2d_relu_max_pool2d c=5 k={k} bias=normal " + POOL,
    "conv_transpose2d c={k} k=5",
    "max_unpool2d_relu_conv_transpose2d c={k} k=5 " + POOL,
    "conv2d_weight_grad c=5 k={k}",
)


def cpu_templates() -> Iterator[str]:
    for words, taps, mode in product(BY_TAPS, TAPS, ("tiles", "rows")):
        kernel = f"kernel={taps}x{taps} mode={mode}"
        yield f"{words} {CONV} {kernel}"
        if words.startswith("conv2d ") or "relu_max" in words:
            yield f"{words.replace(' ', ' prepared ', 1)} {CONV} {kernel}"
    for words, count, mode in product(BY_OUTPUTS, WIDE, MODES):
        yield f"{words.format(k=count)} {CONV} kernel=3x3 mode={mode}"
    for op in ("conv_transpose2d", "max_unpool2d_relu_conv_transpose2d"):
        yield f"{op} c=1 k=5 {CONV} kernel=3x3 mode=rows"
        yield from (f"{op} c={c} k=70 {CONV} kernel=3x3 mode=nonzeros" for c in (32, 96, 160))
    yield f"conv2d prepared c=5 k=7 flag=1 bias=normal {CONV} kernel=3x3 mode=exact"
    yield f"conv2d_relu_max_pool2d prepared c=5 k=7 bias=normal {CONV} kernel=3x3 mode=exact {POOL}"
    depthwise = f"groups=37 {CONV} kernel=3x3"
    yield f"conv2d prepared flag=1 {depthwise}"
    yield from (f"{op} flag=1 {depthwise}" for op in ("conv2d", "conv_transpose2d", "conv2d_weight_grad"))
    for op, pool in product(POOLS, (POOL, "pool=2x2 pool_stride=2x2", "pool=2x3 pool_stride=1x2", "pool=5x5")):
        yield f"{op} n=2 c=37 size=9x8 {pool}"
    for op, norm, beta in product(("contrast_norm", "contrast_norm_backward"), (5, 4), BETAS):
        yield f"{op} n=2 c=37 size=3x4 norm={norm} beta={beta} alpha=0.1"
    yield "linear n=4 c=37 k=9 bias=normal"


def gpu_templates() -> Iterator[str]:
    """Shapes on either side of every choice of the triton and cuda backends: few channels, vectors of them or not,
    outputs to fill one tile or more."""
    for words, count, c in product(BY_OUTPUTS, (*WIDE, 96, 200), (3, 5, 16)):
        size = "size=7x6 padding=1x1 kernel=3x3"
        made = words.format(k=count) if "c={k}" in words else words.replace("c=5", f"c={c}").format(k=count)
        if "c={k}" not in words or c == 5:
            yield f"{made} n=1 flag=1 {size}"
    for words in BY_TAPS:
        narrow = words.replace("c=40", "c=3").replace("k=7", "k=16").replace("k=5", "k=16")
        yield f"{narrow.replace('c=5', 'c=3')} n=1 size=15x13 kernel=7x7 stride=2x2 padding=1x1"
        yield f"{narrow.replace('c=5', 'c=2')} n=1 size=8x9 kernel=2x3 stride=1x1"
    for count, k in product((*WIDE, 96), (4, 16)):  # rectified, and copied 8 and 16 bytes at a time
        yield f"conv_transpose2d c={count} k={k} n=1 flag=1 size=7x6 padding=1x1 kernel=3x3"
    for op, k in product(("max_unpool2d_relu_conv_transpose2d", "conv2d_relu_max_pool2d_weight_grad"), (7, 16)):
        yield f"{op} c=3 k={k} n=1 flag=1 size=15x13 kernel=7x7 stride=2x2 padding=1x1 {POOL}"
    layers = "conv2d_relu_max_pool2d", "conv2d_relu_max_pool2d_weight_grad", "max_unpool2d_relu_conv_transpose2d"
    for op in layers:  # rows longer than a block's, of whole 16 bytes
        yield f"{op} c=3 k=16 n=1 flag=1 size=9x136 kernel=7x7 stride=2x2 padding=1x1 {POOL}"
    # infinity in a pixel beside the one whose filter begins at half a word
    yield f"conv2d_relu_max_pool2d c=3 k=16 n=1 flag=1 x=inf size=23x19 kernel=7x7 stride=2x2 padding=1x1 {POOL}"
    for op, pool, c in product(POOLS, (POOL, "pool=2x3 pool_stride=1x2"), (7, 16)):
        yield f"{op} n=1 c={c} size=9x8 {pool}"
    for op, c, center in product(("contrast_norm", "contrast_norm_backward"), (7, 16), (0, 1)):
        yield f"{op} n=1 c={c} size=3x4 alpha=0.1 center={center}"
    for pool, c in product((POOL, "pool=2x3 pool_stride=1x2"), (7, 16)):
        yield f"max_pool2d_contrast_norm n=1 c={c} size=9x8 {pool} alpha=0.1"


def cases(name: str) -> Iterator[Spec]:
    """Cases that together run every instance of a backend, in each of its dtypes."""
    module = backends.module(name)
    if name == "reference":
        return
    for text in cpu_templates() if name == "cpu" else gpu_templates():
        spec = replace(parse(text), backend=name)
        dtypes = [dtype for dtype in DTYPES if DTYPES[dtype] in module.DTYPES]
        for dtype in dtypes[:1] if spec.op == "linear" else dtypes:
            for isa in module._C.isas() if name == "cpu" else ("",):
                yield replace(spec, dtype=dtype, isa=isa)
