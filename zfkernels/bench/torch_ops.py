"""The ops as a user of torch writes them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .shapes import Conv, Norm, Pool

aten = torch.ops.aten


def conv_backward(c: Conv, g: Tensor, x: Tensor, w: Tensor, mask: tuple[bool, bool, bool]) -> tuple[Tensor, ...]:
    stride, padding = [c.stride] * 2, [c.padding] * 2
    grads: tuple[Tensor, ...]
    grads = aten.convolution_backward(g, x, w, [c.filters], stride, padding, [1, 1], False, [0, 0], 1, mask)
    return grads


def pooled(p: Pool, x: Tensor) -> tuple[Tensor, Tensor]:
    return F.max_pool2d(x, p.kernel, p.stride, ceil_mode=p.ceil_mode, return_indices=True)


def in_whole(p: Pool, n: int, indices: Tensor) -> Tensor:
    """Indices that count through the whole tensor of n images, from those within a map."""
    return torch.arange(n * p.channels).view(n, p.channels, 1, 1) * p.size**2 + indices


def scattered(p: Pool, values: Tensor, indices: Tensor) -> Tensor:
    """The values summed at their indices: the right unpooling."""
    n, c = values.shape[:2]
    flat = values.new_zeros(n, c, p.size * p.size).scatter_add_(2, indices.flatten(2), values.flatten(2))
    return flat.view(n, c, p.size, p.size)


def unpooled(p: Pool, g: Tensor, indices: Tensor, like: Tensor) -> Tensor:
    """The same by the backward of torch's max-pooling, its fastest way; `like` has the result's shape and format."""
    kernel, stride = [p.kernel] * 2, [p.stride] * 2
    window = kernel, stride, [0, 0], [1, 1], p.ceil_mode
    maps: Tensor = aten.max_pool2d_with_indices_backward(g, like, *window, indices)
    return maps


def normalized(s: Norm, x: Tensor) -> Tensor:
    return F.local_response_norm(x, s.window, s.alpha, s.beta, s.k)
