"""The kernels of csrc/cuda: hand-written CUDA C++ for float32, bfloat16 and float16 on NVIDIA GPUs from sm_80 up.

Half types are read and written as they are; sums are float32. float32 convolutions round their operands to TF32 where
torch.backends.cudnn allows it, as torch's own do. Inputs of any strides are taken; what is not dense channels-last
memory is copied into it first. Work is queued on the current stream of the tensors' device, and nothing waits for it.
"""

from collections.abc import Iterable
from typing import Any, NoReturn

import torch
from torch import Tensor

from .. import window
from ..window import Sides
from .memory import (
    Grads,
    Pooled,
    address,
    conv_sizes,
    dense,
    empty,
    finished,
    pixels,
    pool_sizes,
    pooled,
    refuse_averages,
    refuse_windows,
)

try:
    from .. import _C
except ImportError as error:
    _C, _missing = None, error  # type: ignore[assignment]

DEVICES = ("cuda",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ONE = (1, 1)
GROUPS = False  # no kernels for groups or dilation
AVERAGES = False  # nor for average pooling
MULTIPLIES_PADDING = True  # the zeros around a map: a weight that is not finite spoils more than it reaches
TF32 = True  # where allowed, float32 products are of operands rounded to TF32

_DTYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/cuda/kernels.h, enum DType


def unavailable() -> str | None:
    """Why this backend cannot run here, and what would change that; None when it can."""
    if (reason := device_problem()) is not None:
        return reason
    old = [d for d in devices() if d["capability"] < (8, 0)]
    if old:
        major, minor = old[0]["capability"]
        return f"{old[0]['name']} has compute capability {major}.{minor}; 8.0 (Ampere) or newer is needed"
    return None


def device_problem() -> str | None:
    """Why zfkernels._C cannot use a CUDA device: not built for it, no driver, no device; None when it can."""
    if _C is None:
        return f"the compiled module zfkernels._C cannot be imported ({_missing}); run: pip install -e ."
    if not _C.built_with_cuda:
        return (
            "built without CUDA: nvcc was not found (or ZFKERNELS_CUDA=0) when zfkernels was installed; "
            "install the CUDA toolkit and run: ZFKERNELS_CUDA=1 pip install --force-reinstall --no-deps ."
        )
    driver, runtime = _C.cuda_driver_version(), _C.cuda_runtime_version()
    if driver == 0:
        return "no CUDA device: no NVIDIA driver is loaded; install one, or use backend='cpu'"
    try:
        if _C.cuda_device_count() == 0:
            return "no CUDA device: the driver lists none (CUDA_VISIBLE_DEVICES hides them?)"
    except RuntimeError as error:
        built = f"the driver supports CUDA {version(driver)}, zfkernels was built with {version(runtime)}"
        return f"no CUDA device: {error}; {built}"
    return None


def devices() -> list[dict[str, Any]]:
    """The devices that can be used: name, capability (major, minor), memory in bytes of each."""
    return [] if device_problem() is not None else [_C.cuda_device(i) for i in range(_C.cuda_device_count())]


def version(number: int) -> str:
    """CUDA's 1000 * major + 10 * minor as "major.minor"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sides,
    padding: Sides,
    relu: bool,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    refuse_windows("cuda", dilation, groups)
    output_size = window.conv_map(x.shape[2:], weight.shape[2:], stride, padding)
    y = empty(x, x.shape[0], weight.shape[0], *output_size)
    xs, bs = _aligned(x), _contiguous(bias)
    sizes = conv_sizes(xs.shape, weight, output_size, stride, padding)
    _queue_with_workspace("conv2d", x, (sizes,), (xs, weight, bs, y), relu)
    return y


def conv2d_add(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    add: Tensor | None,
    stride: Sides,
    padding: Sides,
    relu: bool,
    cap: float | None,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    """The convolution, and the rest in a pass of torch's for each part of it."""
    y = conv2d(x, weight, bias, stride, padding, relu and add is None, dilation, groups)
    return finished(y, add, relu, cap)


def conv_transpose2d(
    y: Tensor,
    weight: Tensor,
    stride: Sides,
    padding: Sides,
    output_size: Sides,
    rectify: bool,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Tensor:
    refuse_windows("cuda", dilation, groups)
    x = empty(y, y.shape[0], weight.shape[1], *output_size)
    sizes = conv_sizes(x.shape, weight, y.shape[2:], stride, padding)
    _queue_with_workspace("conv_transpose2d", y, (sizes,), (_aligned(y), weight, x), rectify)
    return x


def conv2d_weight_grad(
    x: Tensor,
    g: Tensor,
    kernel_size: Sides,
    stride: Sides,
    padding: Sides,
    with_bias: bool,
    dilation: Sides = ONE,
    groups: int = 1,
) -> Grads:
    refuse_windows("cuda", dilation, groups)
    gw, gb = _weight_grads(x, g, kernel_size, with_bias)
    sizes = conv_sizes(x.shape, gw, g.shape[2:], stride, padding)
    _queue_with_workspace("conv2d_weight_grad", x, (sizes,), (_aligned(x), _aligned(g), gw, gb))
    return gw, gb


def max_pool2d(x: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides) -> Pooled:
    y, switches = pooled(x, *x.shape[:2], *output_size)
    sizes = pool_sizes(x.shape, output_size, kernel_size, stride, padding)
    _queue("max_pool2d", _call(x), (sizes,), (dense(x), y, switches))
    return y, switches


def max_unpool2d(
    y: Tensor, switches: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides
) -> Tensor:
    x = empty(y, *y.shape[:2], *output_size)
    sizes = pool_sizes(x.shape, y.shape[2:], kernel_size, stride, padding)
    _queue("max_unpool2d", _call(y), (sizes,), (dense(y), dense(switches), x))
    return x


def max_unpool2d_backward(g: Tensor, switches: Tensor, *pool: Any) -> Tensor:
    gy = empty(g, *switches.shape)
    sizes = pool_sizes(g.shape, switches.shape[2:], *pool)
    _queue("max_unpool2d_backward", _call(g), (sizes,), (dense(g), dense(switches), gy))
    return gy


def avg_pool2d(x: Tensor, *settings: Any) -> NoReturn:
    refuse_averages("cuda")


avg_pool2d_backward = avg_pool2d


def contrast_norm(x: Tensor, *norm: Any) -> Tensor:
    y = empty(x, *x.shape)
    _queue("contrast_norm", _call(x), ((pixels(x), x.shape[1], *norm),), (dense(x), y))
    return y


def contrast_norm_backward(g: Tensor, x: Tensor, *norm: Any) -> Tensor:
    gx = empty(x, *x.shape)
    _queue("contrast_norm_backward", _call(x), ((pixels(x), x.shape[1], *norm),), (dense(g), dense(x), gx))
    return gx


def max_pool2d_contrast_norm(
    x: Tensor, kernel_size: Sides, stride: Sides, padding: Sides, output_size: Sides, *norm: Any
) -> tuple[Tensor, Tensor, Tensor]:
    y, switches = pooled(x, *x.shape[:2], *output_size)
    normalized = empty(x, *x.shape[:2], *output_size)
    sizes = pool_sizes(x.shape, output_size, kernel_size, stride, padding), (pixels(y), x.shape[1], *norm)
    _queue("max_pool2d_contrast_norm", _call(x), sizes, (dense(x), y, switches, normalized))
    return y, switches, normalized


def conv2d_relu_max_pool2d(x: Tensor, weight: Tensor, bias: Tensor | None, *settings: Any) -> Pooled:
    stride, padding, *pool, output_size = settings
    n, k = x.shape[0], weight.shape[0]
    conv_size = window.conv_map(x.shape[2:], weight.shape[2:], stride, padding)
    y, switches = pooled(x, n, k, *output_size)
    sizes = conv_sizes(x.shape, weight, conv_size, stride, padding), pool_sizes((n, k, *conv_size), output_size, *pool)
    _queue_with_workspace("conv2d_relu_max_pool2d", x, sizes, (_aligned(x), weight, _contiguous(bias), y, switches))
    return y, switches


def conv2d_relu_max_pool2d_weight_grad(x: Tensor, g: Tensor, switches: Tensor, *settings: Any) -> Grads:
    kernel_size, stride, padding, *pool, with_bias = settings
    gw, gb = _weight_grads(x, g, kernel_size, with_bias)
    conv_size = window.conv_map(x.shape[2:], kernel_size, stride, padding)
    conv = conv_sizes(x.shape, gw, conv_size, stride, padding)
    sizes = conv, pool_sizes((*g.shape[:2], *conv_size), g.shape[2:], *pool)
    tensors = _aligned(x), dense(g), dense(switches), gw, gb
    _queue_with_workspace("conv2d_relu_max_pool2d_weight_grad", x, sizes, tensors)
    return gw, gb


def max_unpool2d_relu_conv_transpose2d(y: Tensor, switches: Tensor, weight: Tensor, *settings: Any) -> Tensor:
    stride, padding, *pool, output_size, rectify = settings
    conv_size = window.conv_map(output_size, weight.shape[2:], stride, padding)
    x = empty(y, y.shape[0], weight.shape[1], *output_size)
    conv = conv_sizes(x.shape, weight, conv_size, stride, padding)
    sizes = conv, pool_sizes((*y.shape[:2], *conv_size), y.shape[2:], *pool)
    _queue_with_workspace(
        "max_unpool2d_relu_conv_transpose2d", y, sizes, (dense(y), dense(switches), weight, x), rectify
    )
    return x


def _call(x: Tensor) -> tuple[int, int, int, bool]:
    """csrc/cuda/kernels.h, struct Call."""
    index = x.get_device()
    return index, _stream(index), _DTYPE[x.dtype], torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]


def _stream(index: int) -> int:
    """The handle of the current stream of device `index`."""
    stream: int = torch._C._cuda_getCurrentRawStream(index)
    return stream


def _aligned(x: Tensor) -> Tensor:
    """x in dense channels-last memory that begins at a multiple of 16 bytes, as maps that are filtered do."""
    x = dense(x)
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _weight_grads(x: Tensor, g: Tensor, kernel_size: Sides, with_bias: bool) -> Grads:
    """Where the gradients of the weight and, if wanted, of the bias go."""
    return x.new_empty((g.shape[1], x.shape[1], *kernel_size)), x.new_empty(g.shape[1]) if with_bias else None


def _queue(
    op: str, call: tuple[int, int, int, bool], sizes: tuple[object, ...], tensors: Iterable[Tensor | None], *rest: int
) -> None:
    """Queues the op's kernels on tensors that the caller keeps until they are queued."""
    getattr(_C, f"cuda_{op}")(call, *sizes, *map(address, tensors), *rest)


def _queue_with_workspace(
    op: str, x: Tensor, sizes: tuple[object, ...], tensors: Iterable[Tensor | None], *flags: bool
) -> None:
    """The same with as much workspace as the kernels ask for: torch gives it to nobody else before they are done."""
    call = _call(x)
    size = getattr(_C, f"cuda_{op}_workspace")(call, *sizes)
    workspace = torch.empty(size, dtype=torch.uint8, device=x.device) if size else None
    _queue(op, call, sizes, tensors, *flags, address(workspace))
