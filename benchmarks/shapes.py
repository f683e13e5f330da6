"""The layers of ZFNet as the paper runs it (224 x 224 images), without the batch dimension."""

from typing import NamedTuple


class Conv(NamedTuple):
    """A convolution from (channels, size, size) to (filters, out, out)."""

    channels: int
    size: int
    filters: int
    kernel: int
    stride: int
    padding: int
    out: int

    @property
    def flops(self) -> int:
        """Floating-point operations an image: a multiply and an add for each tap of each output."""
        return 2 * self.filters * self.channels * self.kernel**2 * self.out**2


class Pool(NamedTuple):
    """A max-pooling from (channels, size, size) to (channels, out, out), no padding."""

    channels: int
    size: int
    kernel: int
    stride: int
    ceil_mode: bool
    out: int


class Norm(NamedTuple):
    """A cross-map normalization of (channels, size, size), with the constants of the network."""

    channels: int
    size: int
    window: int = 5
    alpha: float = 1e-4
    beta: float = 0.75
    k: float = 2.0


CONVS = {
    1: Conv(3, 224, 96, 7, 2, 1, 110),
    2: Conv(96, 55, 256, 5, 2, 0, 26),
    3: Conv(256, 13, 384, 3, 1, 1, 13),
    4: Conv(384, 13, 384, 3, 1, 1, 13),
    5: Conv(384, 13, 256, 3, 1, 1, 13),
}
POOLS = {1: Pool(96, 110, 3, 2, True, 55), 2: Pool(256, 26, 3, 2, True, 13), 5: Pool(256, 13, 3, 2, False, 6)}
NORMS = {1: Norm(96, 55), 2: Norm(256, 13)}
