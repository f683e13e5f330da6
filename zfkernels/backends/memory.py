"""What the compiled kernels of the CPU and of CUDA are told of tensors: addresses and sizes."""

from torch import Tensor


def address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def pixels(x: Tensor) -> int:
    return x.shape[0] * x.shape[2] * x.shape[3]


def conv_sizes(shape, weight: Tensor, output_size, stride, padding) -> tuple[int, ...]:
    """csrc/problem.h, struct Conv, for x of this shape."""
    return *shape, weight.shape[0], *output_size, *weight.shape[2:], *stride, *padding, *weight.stride()


def pool_sizes(shape, output_size, kernel_size, stride, padding) -> tuple[int, ...]:
    """csrc/problem.h, struct Pool, for a map of this shape."""
    return *shape, *output_size, *kernel_size, *stride, *padding
