# What csrc/bindings.cpp defines and, in a module built with CUDA, csrc/cuda/bindings.cpp. Sizes are problem.h's structs
# as csrc/arguments.h takes them; an address of 0 is a null pointer.
from collections.abc import Sequence
from typing import Any

_Call = tuple[int, int, int, bool]
_Norm = tuple[int, int, int, float, float, float, bool]
_Sizes = Sequence[int]
_Operand = tuple[int, int]

built_with_cuda: bool

class Calls:
    """Kernel calls that run together. An operand is (base, bytes from it); with a negative base, a null pointer."""

    def __init__(self) -> None: ...
    def conv2d(
        self,
        f64: bool,
        sizes: _Sizes,
        x: _Operand,
        w: int,
        packed: int,
        bias: int,
        add: _Operand,
        y: _Operand,
        relu: bool,
        cap: float,
        x_pitch: int,
        y_pitch: int,
        /,
    ) -> None: ...
    def conv2d_chain(
        self,
        f64: bool,
        stages: Sequence[tuple[_Sizes, int, int, int, bool, float]],
        x: _Operand,
        add: _Operand,
        y: _Operand,
        x_pitch: int,
        y_pitch: int,
        /,
    ) -> None: ...
    def conv2d_relu_max_pool2d(
        self,
        f64: bool,
        sizes: _Sizes,
        pool: _Sizes,
        x: _Operand,
        w: int,
        packed: int,
        bias: int,
        y: _Operand,
        /,
    ) -> None: ...
    def max_pool2d(self, f64: bool, sizes: _Sizes, x: _Operand, y: _Operand, /) -> None: ...
    def avg_pool2d(self, f64: bool, sizes: _Sizes, x: _Operand, y: _Operand, padded: bool, /) -> None: ...
    def run(self, bases: Sequence[int], threads: int, /) -> None: ...

def conv2d(
    f64: bool,
    sizes: _Sizes,
    x: int,
    w: int,
    packed: int,
    bias: int,
    add: int,
    y: int,
    relu: bool,
    cap: float,
    threads: int,
    x_pitch: int,
    y_pitch: int,
    /,
) -> None: ...
def pack_filters(f64: bool, sizes: _Sizes, w: int, to: int, threads: int, /) -> int: ...
def conv_transpose2d(
    f64: bool, sizes: _Sizes, y: int, w: int, packed: int, x: int, rectify: bool, threads: int, /
) -> None: ...
def pack_transposed(
    f64: bool, sizes: _Sizes, w: int, most: int, rectify: bool, to: int, threads: int, /
) -> tuple[int, int]: ...
def conv2d_weight_grad(f64: bool, sizes: _Sizes, x: int, g: int, gw: int, gb: int, threads: int, /) -> None: ...
def max_pool2d(f64: bool, sizes: _Sizes, x: int, y: int, switches: int, threads: int, /) -> None: ...
def max_unpool2d(f64: bool, sizes: _Sizes, y: int, switches: int, x: int, threads: int, /) -> int: ...
def max_unpool2d_backward(f64: bool, sizes: _Sizes, g: int, switches: int, gy: int, threads: int, /) -> int: ...
def avg_pool2d(f64: bool, sizes: _Sizes, x: int, y: int, padded: bool, threads: int, /) -> None: ...
def avg_pool2d_backward(f64: bool, sizes: _Sizes, g: int, gx: int, padded: bool, threads: int, /) -> None: ...
def contrast_norm(
    f64: bool,
    pixels: int,
    channels: int,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    center: bool,
    x: int,
    y: int,
    threads: int,
    /,
) -> None: ...
def contrast_norm_backward(
    f64: bool,
    pixels: int,
    channels: int,
    size: int,
    alpha: float,
    beta: float,
    k: float,
    center: bool,
    g: int,
    x: int,
    gx: int,
    threads: int,
    /,
) -> None: ...
def conv2d_relu_max_pool2d(
    f64: bool,
    sizes: _Sizes,
    pool: _Sizes,
    x: int,
    w: int,
    packed: int,
    bias: int,
    y: int,
    switches: int,
    rounding: int,
    threads: int,
    /,
) -> None: ...
def max_unpool2d_relu_conv_transpose2d(
    f64: bool,
    sizes: _Sizes,
    pool: _Sizes,
    y: int,
    switches: int,
    w: int,
    packed: int,
    x: int,
    rectify: bool,
    rounding: int,
    threads: int,
    /,
) -> int: ...
def linear(
    f64: bool, images: int, inputs: int, outputs: int, x: int, w: int, bias: int, y: int, threads: int, /
) -> None: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def set_isa(name: str, /) -> None: ...
def winograd() -> int: ...
def set_winograd(mode: int, /) -> None: ...
def exact_in_thread() -> bool: ...
def set_exact_in_thread(exact: bool, /) -> None: ...
def conv2d_kernels(
    isa: str, mode: int, f64: bool, sizes: _Sizes, most: int, rectify: bool, /
) -> tuple[str, str, str]: ...
def pool() -> str: ...
def sampled(table: int, count: int, threads: int, /) -> int: ...
def prefer_huge_pages(memory: int, size: int, /) -> None: ...
def cuda_conv2d(
    call: _Call, sizes: _Sizes, x: int, w: int, bias: int, y: int, relu: bool, workspace: int, /
) -> None: ...
def cuda_conv2d_workspace(call: _Call, sizes: _Sizes, /) -> int: ...
def cuda_conv_transpose2d(
    call: _Call, sizes: _Sizes, y: int, w: int, x: int, rectify: bool, workspace: int, /
) -> None: ...
def cuda_conv_transpose2d_workspace(call: _Call, sizes: _Sizes, /) -> int: ...
def cuda_conv2d_weight_grad(
    call: _Call, sizes: _Sizes, x: int, g: int, gw: int, gb: int, workspace: int, /
) -> None: ...
def cuda_conv2d_weight_grad_workspace(call: _Call, sizes: _Sizes, /) -> int: ...
def cuda_max_pool2d(call: _Call, sizes: _Sizes, x: int, y: int, switches: int, /) -> None: ...
def cuda_max_unpool2d(call: _Call, sizes: _Sizes, y: int, switches: int, x: int, /) -> None: ...
def cuda_max_unpool2d_backward(call: _Call, sizes: _Sizes, g: int, switches: int, gy: int, /) -> None: ...
def cuda_contrast_norm(call: _Call, sizes: _Norm, x: int, y: int, /) -> None: ...
def cuda_contrast_norm_backward(call: _Call, sizes: _Norm, g: int, x: int, gx: int, /) -> None: ...
def cuda_max_pool2d_contrast_norm(
    call: _Call, pool: _Sizes, sizes: _Norm, x: int, y: int, switches: int, normalized: int, /
) -> None: ...
def cuda_conv2d_relu_max_pool2d(
    call: _Call, sizes: _Sizes, pool: _Sizes, x: int, w: int, bias: int, y: int, switches: int, workspace: int, /
) -> None: ...
def cuda_conv2d_relu_max_pool2d_workspace(call: _Call, sizes: _Sizes, pool: _Sizes, /) -> int: ...
def cuda_conv2d_relu_max_pool2d_weight_grad(
    call: _Call, sizes: _Sizes, pool: _Sizes, x: int, g: int, switches: int, gw: int, gb: int, workspace: int, /
) -> None: ...
def cuda_conv2d_relu_max_pool2d_weight_grad_workspace(call: _Call, sizes: _Sizes, pool: _Sizes, /) -> int: ...
def cuda_max_unpool2d_relu_conv_transpose2d(
    call: _Call,
    sizes: _Sizes,
    pool: _Sizes,
    y: int,
    switches: int,
    w: int,
    x: int,
    rectify: bool,
    workspace: int,
    /,
) -> None: ...
def cuda_max_unpool2d_relu_conv_transpose2d_workspace(call: _Call, sizes: _Sizes, pool: _Sizes, /) -> int: ...
def cuda_device_count() -> int: ...
def cuda_driver_version() -> int: ...
def cuda_runtime_version() -> int: ...
def cuda_self_test(index: int) -> None: ...
def cuda_device(index: int) -> dict[str, Any]: ...
