"""The ops as modules, for use beside torch.nn's: ConvReLU, MaxPoolSwitches, ConvReLUMaxPool, ContrastNorm, Linear.

Arguments are those of the function each module calls, and checked there. Outputs are channels-last tensors.
"""

import math

import torch
from torch import Tensor, nn

from .backends.prepared import PreparedFilters
from .ops.checks import flag
from .ops.contrast_norm import contrast_norm
from .ops.conv import conv2d_relu
from .ops.fused import conv2d_relu_max_pool2d
from .ops.kept import of_module
from .ops.linear import linear
from .ops.max_pool import max_pool2d_with_switches
from .window import check_holdable, count, pair

Size = int | tuple[int, int]


class ConvReLU(nn.Module):
    """y = max(0, corr(x, weight) + bias): `zfkernels.conv2d_relu` with its filters.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, bias, device, dtype: as torch.nn.Conv2d's (padding
            with zeros).
        dilation, groups: as torch.nn.Conv2d's, by name.
        backend: as the function's.

    Shapes: (N, in_channels, H, W) -> (N, out_channels, (H + 2p - d (KH - 1) - 1) // s + 1, the same of W and KW).
    `weight` is (out_channels, in_channels / groups, KH, KW), `bias` (out_channels,) or None, initialised as
    torch.nn.Conv2d's.
    In evaluation mode, where no gradient is wanted, its filters are kept packed on the CPU (ops/kept.py).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        bias: bool = True,
        *,
        dilation: Size = 1,
        groups: int = 1,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        in_channels, out_channels = count("in_channels", in_channels), count("out_channels", out_channels)
        groups = count("groups", groups)
        for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
            if channels % groups:
                raise ValueError(f"{name} must be a multiple of groups={groups}, got {channels}")
        flag("bias", bias)
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.stride = pair("stride", stride, 1)
        self.padding = pair("padding", padding, 0)
        self.dilation = pair("dilation", dilation, 1)
        self.groups = groups
        self.backend = backend
        shape = out_channels, in_channels // groups, *self.kernel_size
        check_holdable("kernel_size", "a weight", shape, self.kernel_size)
        self.weight = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(out_channels, device=device, dtype=dtype)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    @property
    def in_channels(self) -> int:
        return self.weight.shape[1] * self.groups

    @property
    def out_channels(self) -> int:
        return self.weight.shape[0]

    def filters(self, x: Tensor) -> tuple[Tensor | PreparedFilters, Tensor | None]:
        """The weight and bias for a convolution of x; in evaluation mode the kept filters and None."""
        return of_module(self.weight, self.bias, self.training, self.backend, x)

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.filters(x)
        window = self.stride, self.padding, self.dilation
        return conv2d_relu(x, weight, bias, *window, groups=self.groups, backend=self.backend)

    def extra_repr(self) -> str:
        text = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}"
        text += f", padding={self.padding}"
        text += "" if self.dilation == (1, 1) else f", dilation={self.dilation}"
        text += "" if self.groups == 1 else f", groups={self.groups}"
        return text + ("" if self.bias is not None else ", bias=False")


class MaxPoolSwitches(nn.Module):
    """Max-pooling that can tell which pixel won: `zfkernels.max_pool2d_with_switches`.

    Args:
        kernel_size, stride, padding, ceil_mode, backend: as the function's.
        return_switches: return (y, switches) instead of y.
    """

    def __init__(
        self,
        kernel_size: Size,
        stride: Size | None = None,
        padding: Size = 0,
        ceil_mode: bool = False,
        *,
        return_switches: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.kernel_size = pair("kernel_size", kernel_size, 1)
        self.stride = self.kernel_size if stride is None else pair("stride", stride, 1)
        self.padding = pair("padding", padding, 0)
        flag("ceil_mode", ceil_mode)
        self.ceil_mode = ceil_mode
        flag("return_switches", return_switches)
        self.return_switches = return_switches
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        pool = self.kernel_size, self.stride, self.padding, self.ceil_mode
        y, switches = max_pool2d_with_switches(x, *pool, backend=self.backend)
        return (y, switches) if self.return_switches else y

    def extra_repr(self) -> str:
        text = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{text}, ceil_mode={self.ceil_mode}" + (", return_switches=True" if self.return_switches else "")


class ConvReLUMaxPool(ConvReLU):
    """A whole layer in one kernel, the map between never written: `zfkernels.conv2d_relu_max_pool2d`.

    Args:
        in_channels ... dtype: as ConvReLU's.
        pool_kernel, pool_stride, pool_padding, ceil_mode, backend: as the function's.
        return_switches: return (y, switches) instead of y.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        stride: Size = 1,
        padding: Size = 0,
        bias: bool = True,
        *,
        pool_kernel: Size,
        pool_stride: Size | None = None,
        pool_padding: Size = 0,
        ceil_mode: bool = False,
        return_switches: bool = False,
        backend: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, bias, backend=backend, device=device, dtype=dtype
        )
        self.pool_kernel = pair("pool_kernel", pool_kernel, 1)
        self.pool_stride = self.pool_kernel if pool_stride is None else pair("pool_stride", pool_stride, 1)
        self.pool_padding = pair("pool_padding", pool_padding, 0)
        flag("ceil_mode", ceil_mode)
        self.ceil_mode = ceil_mode
        flag("return_switches", return_switches)
        self.return_switches = return_switches

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:  # type: ignore[override]  # the switches beside y
        weight, bias = self.filters(x)
        window = self.stride, self.padding, self.pool_kernel, self.pool_stride, self.pool_padding
        y, switches = conv2d_relu_max_pool2d(x, weight, bias, *window, self.ceil_mode, backend=self.backend)
        return (y, switches) if self.return_switches else y

    def extra_repr(self) -> str:
        text = f"{super().extra_repr()}, pool_kernel={self.pool_kernel}, pool_stride={self.pool_stride}"
        text = f"{text}, pool_padding={self.pool_padding}, ceil_mode={self.ceil_mode}"
        return text + (", return_switches=True" if self.return_switches else "")


class ContrastNorm(nn.Module):
    """Cross-map contrast normalisation: `zfkernels.contrast_norm`. Arguments as the function's."""

    def __init__(
        self,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 2.0,
        *,
        center: bool = False,
        backend: str | None = None,
    ) -> None:
        super().__init__()
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k
        self.center = center
        self.backend = backend

    def forward(self, x: Tensor) -> Tensor:
        return contrast_norm(x, self.size, self.alpha, self.beta, self.k, center=self.center, backend=self.backend)

    def extra_repr(self) -> str:
        return f"{self.size}, alpha={self.alpha}, beta={self.beta}, k={self.k}, center={self.center}"


class Linear(nn.Linear):
    """torch.nn.Linear, whose large weights (8 MB and more, float32 on a CPU) cost what their memory does.

    Arguments, parameters, shapes and results are torch's: x (N, in_features) -> (N, out_features).
    """

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
