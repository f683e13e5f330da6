"""The kernels of csrc/cuda: hand-written CUDA C++ for float32, bfloat16 and float16 on NVIDIA GPUs from sm_80 up.

Half types are read and written as they are; sums are float32. float32 convolutions round their operands to TF32 where
torch.backends.cudnn allows it, as torch's own do. Inputs of any strides are taken; what is not dense channels-last
memory is copied into it first. Work is queued on the current stream of the tensors' device, and nothing waits for it.
"""

import torch
from torch import Tensor

from .. import window

try:
    from .. import _C
except ImportError as error:
    _C, _missing = None, error

DEVICES = ("cuda",)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
TF32 = True  # where allowed, float32 products are of operands rounded to TF32

_DTYPE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # csrc/cuda/kernels.h, enum DType


def unavailable() -> str | None:
    """Why this backend cannot run here, and what would change that; None when it can."""
    reason = device_problem()
    if reason is not None:
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


def devices() -> list[dict[str, object]]:
    """The devices that can be used: name, capability (major, minor), memory in bytes of each."""
    return [] if device_problem() is not None else [_C.cuda_device(i) for i in range(_C.cuda_device_count())]


def version(number: int) -> str:
    """CUDA's 1000 * major + 10 * minor as "major.minor"."""
    return f"{number // 1000}.{number % 1000 // 10}"


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, relu: bool) -> Tensor:
    output_size = window.conv_map(x.shape[2:], weight.shape[2:], stride, padding)
    y = _empty(x, x.shape[0], weight.shape[0], output_size)
    xs, bs = _dense(x), _contiguous(bias)
    call, sizes = _call(x), _conv_sizes(xs.shape, weight, output_size, stride, padding)
    workspace = _workspace(x, _C.cuda_conv2d_workspace(call, sizes))
    args = xs.data_ptr(), weight.data_ptr(), _address(bs), y.data_ptr()
    _C.cuda_conv2d(call, sizes, *args, relu, _address(workspace))
    return y


def conv_transpose2d(y: Tensor, weight: Tensor, stride, padding, output_size, rectify: bool) -> Tensor:
    x = _empty(y, y.shape[0], weight.shape[1], output_size)
    ys = _dense(y)
    call, sizes = _call(y), _conv_sizes(x.shape, weight, y.shape[2:], stride, padding)
    workspace = _workspace(y, _C.cuda_conv_transpose2d_workspace(call, sizes))
    args = ys.data_ptr(), weight.data_ptr(), x.data_ptr()
    _C.cuda_conv_transpose2d(call, sizes, *args, rectify, _address(workspace))
    return x


def conv2d_weight_grad(
    x: Tensor, g: Tensor, kernel_size, stride, padding, with_bias: bool
) -> tuple[Tensor, Tensor | None]:
    gw, gb = _weight_grads(x, g, kernel_size, with_bias)
    xs, gs = _dense(x), _dense(g)
    call, sizes = _call(x), _conv_sizes(xs.shape, gw, g.shape[2:], stride, padding)
    workspace = _workspace(x, _C.cuda_conv2d_weight_grad_workspace(call, sizes))
    args = xs.data_ptr(), gs.data_ptr(), gw.data_ptr(), _address(gb)
    _C.cuda_conv2d_weight_grad(call, sizes, *args, _address(workspace))
    return gw, gb


def max_pool2d(x: Tensor, kernel_size, stride, padding, output_size) -> tuple[Tensor, Tensor]:
    y, switches = _empty(x, *x.shape[:2], output_size), _empty(x, *x.shape[:2], output_size, torch.uint8)
    xs = _dense(x)
    sizes = _pool_sizes(xs.shape, output_size, kernel_size, stride, padding)
    _C.cuda_max_pool2d(_call(x), sizes, xs.data_ptr(), y.data_ptr(), switches.data_ptr())
    return y, switches


def max_unpool2d(y: Tensor, switches: Tensor, kernel_size, stride, padding, output_size) -> Tensor:
    x = _empty(y, *y.shape[:2], output_size)
    ys, s = _dense(y), _dense(switches)
    sizes = _pool_sizes(x.shape, y.shape[2:], kernel_size, stride, padding)
    _C.cuda_max_unpool2d(_call(y), sizes, ys.data_ptr(), s.data_ptr(), x.data_ptr())
    return x


def max_unpool2d_backward(g: Tensor, switches: Tensor, kernel_size, stride, padding) -> Tensor:
    gy = _empty(g, *switches.shape[:2], switches.shape[2:])
    gs, s = _dense(g), _dense(switches)
    sizes = _pool_sizes(gs.shape, switches.shape[2:], kernel_size, stride, padding)
    _C.cuda_max_unpool2d_backward(_call(g), sizes, gs.data_ptr(), s.data_ptr(), gy.data_ptr())
    return gy


def contrast_norm(x: Tensor, size: int, alpha: float, beta: float, k: float, center: bool) -> Tensor:
    y = _empty(x, *x.shape[:2], x.shape[2:])
    xs = _dense(x)
    _C.cuda_contrast_norm(_call(x), (_pixels(x), x.shape[1], size, alpha, beta, k, center), xs.data_ptr(), y.data_ptr())
    return y


def contrast_norm_backward(
    g: Tensor, x: Tensor, size: int, alpha: float, beta: float, k: float, center: bool
) -> Tensor:
    gx = _empty(x, *x.shape[:2], x.shape[2:])
    gs, xs = _dense(g), _dense(x)
    sizes = _pixels(x), x.shape[1], size, alpha, beta, k, center
    _C.cuda_contrast_norm_backward(_call(x), sizes, gs.data_ptr(), xs.data_ptr(), gx.data_ptr())
    return gx


def max_pool2d_contrast_norm(
    x: Tensor, kernel_size, stride, padding, output_size, size: int, alpha: float, beta: float, k: float, center: bool
) -> tuple[Tensor, Tensor, Tensor]:
    y, switches = _empty(x, *x.shape[:2], output_size), _empty(x, *x.shape[:2], output_size, torch.uint8)
    normalized = _empty(x, *x.shape[:2], output_size)
    xs = _dense(x)
    pool = _pool_sizes(xs.shape, output_size, kernel_size, stride, padding)
    norm = _pixels(y), x.shape[1], size, alpha, beta, k, center
    addresses = xs.data_ptr(), y.data_ptr(), switches.data_ptr(), normalized.data_ptr()
    _C.cuda_max_pool2d_contrast_norm(_call(x), pool, norm, *addresses)
    return y, switches, normalized


def conv2d_relu_max_pool2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, pool_kernel, pool_stride, pool_padding, output_size
) -> tuple[Tensor, Tensor]:
    n, k = x.shape[0], weight.shape[0]
    conv_size = window.conv_map(x.shape[2:], weight.shape[2:], stride, padding)
    y, switches = _empty(x, n, k, output_size), _empty(x, n, k, output_size, torch.uint8)
    xs, bs = _dense(x), _contiguous(bias)
    conv = _conv_sizes(xs.shape, weight, conv_size, stride, padding)
    pool = _pool_sizes((n, k, *conv_size), output_size, pool_kernel, pool_stride, pool_padding)
    call = _call(x)
    workspace = _workspace(x, _C.cuda_conv2d_relu_max_pool2d_workspace(call, conv, pool))
    args = xs.data_ptr(), weight.data_ptr(), _address(bs), y.data_ptr(), switches.data_ptr()
    _C.cuda_conv2d_relu_max_pool2d(call, conv, pool, *args, _address(workspace))
    return y, switches


def conv2d_relu_max_pool2d_weight_grad(
    x: Tensor,
    g: Tensor,
    switches: Tensor,
    kernel_size,
    stride,
    padding,
    pool_kernel,
    pool_stride,
    pool_padding,
    with_bias: bool,
) -> tuple[Tensor, Tensor | None]:
    gw, gb = _weight_grads(x, g, kernel_size, with_bias)
    conv_size = window.conv_map(x.shape[2:], kernel_size, stride, padding)
    xs, gs, s = _dense(x), _dense(g), _dense(switches)
    conv = _conv_sizes(xs.shape, gw, conv_size, stride, padding)
    pool = _pool_sizes((*g.shape[:2], *conv_size), g.shape[2:], pool_kernel, pool_stride, pool_padding)
    call = _call(x)
    workspace = _workspace(x, _C.cuda_conv2d_relu_max_pool2d_weight_grad_workspace(call, conv, pool))
    args = xs.data_ptr(), gs.data_ptr(), s.data_ptr(), gw.data_ptr(), _address(gb)
    _C.cuda_conv2d_relu_max_pool2d_weight_grad(call, conv, pool, *args, _address(workspace))
    return gw, gb


def max_unpool2d_relu_conv_transpose2d(
    y: Tensor,
    switches: Tensor,
    weight: Tensor,
    stride,
    padding,
    pool_kernel,
    pool_stride,
    pool_padding,
    output_size,
    rectify: bool,
) -> Tensor:
    n, k = y.shape[:2]
    conv_size = window.conv_map(output_size, weight.shape[2:], stride, padding)
    x = _empty(y, n, weight.shape[1], output_size)
    ys, s = _dense(y), _dense(switches)
    conv = _conv_sizes(x.shape, weight, conv_size, stride, padding)
    pool = _pool_sizes((n, k, *conv_size), y.shape[2:], pool_kernel, pool_stride, pool_padding)
    call = _call(y)
    workspace = _workspace(y, _C.cuda_max_unpool2d_relu_conv_transpose2d_workspace(call, conv, pool))
    args = ys.data_ptr(), s.data_ptr(), weight.data_ptr(), x.data_ptr()
    _C.cuda_max_unpool2d_relu_conv_transpose2d(call, conv, pool, *args, rectify, _address(workspace))
    return x


def _call(x: Tensor) -> tuple[int, int, int, bool]:
    """csrc/cuda/kernels.h, struct Call."""
    index = x.get_device()
    return index, _stream(index), _DTYPE[x.dtype], torch.backends.cudnn.conv.fp32_precision == "tf32"


def _stream(index: int) -> int:
    """The handle of the current stream of device `index`."""
    return torch._C._cuda_getCurrentRawStream(index)


def _empty(like: Tensor, n: int, channels: int, size, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(
        (n, channels, *size), dtype=dtype or like.dtype, device=like.device, memory_format=torch.channels_last
    )


def _dense(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _weight_grads(x: Tensor, g: Tensor, kernel_size, with_bias: bool) -> tuple[Tensor, Tensor | None]:
    """Where the gradients of the weight and, if wanted, of the bias go."""
    return x.new_empty((g.shape[1], x.shape[1], *kernel_size)), x.new_empty(g.shape[1]) if with_bias else None


def _workspace(x: Tensor, size: int) -> Tensor | None:
    """`size` bytes on x's device; torch gives them to nobody else before the kernels queued now are done."""
    return torch.empty(size, dtype=torch.uint8, device=x.device) if size else None


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def _conv_sizes(shape, weight: Tensor, output_size, stride, padding) -> tuple[int, ...]:
    """csrc/problem.h, struct Conv, for x of this shape."""
    return *shape, weight.shape[0], *output_size, *weight.shape[2:], *stride, *padding, *weight.stride()


def _pool_sizes(shape, output_size, kernel_size, stride, padding) -> tuple[int, ...]:
    """csrc/problem.h, struct Pool, for a map of this shape."""
    return *shape, *output_size, *kernel_size, *stride, *padding
