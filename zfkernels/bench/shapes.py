"""The layers of ZFNet as the paper runs it (224 x 224 images) and of other networks, without the batch dimension."""

from typing import NamedTuple

from ..models.zfnet import ZFNet
from ..window import conv_size


class Conv(NamedTuple):
    """A convolution from (channels, size, size) to (filters, out, out)."""

    channels: int
    size: int
    filters: int
    kernel: int
    stride: int
    padding: int
    out: int
    dilation: int = 1
    groups: int = 1

    @property
    def depth(self) -> int:
        """The channels of a filter."""
        return self.channels // self.groups

    @property
    def flops(self) -> int:
        """Floating-point operations an image: a multiply and an add for each tap of each output."""
        return 2 * self.filters * self.depth * self.kernel**2 * self.out**2

    @property
    def extra(self) -> int:
        """torch's output_padding: the rows and columns at the far edges that no window covers."""
        return self.size - ((self.out - 1) * self.stride - 2 * self.padding + self.kernel)

    def bytes(self, n: int, itemsize: int) -> int:
        """What must be moved once: n inputs, n outputs and the filters, at `itemsize` bytes a value."""
        maps = self.channels * self.size**2 + self.filters * self.out**2
        return itemsize * (n * maps + self.filters * self.depth * self.kernel**2)


class Pool(NamedTuple):
    """A pooling from (channels, size, size) to (channels, out, out), no padding."""

    channels: int
    size: int
    kernel: int
    stride: int
    ceil_mode: bool
    out: int


class Norm(NamedTuple):
    """A cross-map normalization of (channels, size, size) and its constants."""

    channels: int
    size: int
    window: int
    alpha: float
    beta: float
    k: float


def square(
    channels: int,
    size: int,
    filters: int,
    kernel: int,
    stride: int = 1,
    padding: int = 0,
    dilation: int = 1,
    groups: int = 1,
) -> Conv:
    """The convolution with the size that its map comes to."""
    out = conv_size(size, kernel, stride, padding, dilation)
    return Conv(channels, size, filters, kernel, stride, padding, out, dilation, groups)


def zfnet_layers() -> tuple[dict[int, Conv], dict[int, Pool], dict[int, Norm]]:
    """ZFNet's convolutions, poolings and norms by their numbers, from its own table of layers."""
    model, size = ZFNet(device="meta"), 224
    convs, pools, norms = {}, {}, {}
    for row in model.table:
        layer, number, (out, _) = row.layer, int(row.layer.name[-1]), row.size
        if layer.kind == "conv":
            window = layer.kernel, layer.stride, layer.padding
            convs[number] = Conv(row.in_channels, size, row.channels, *window, out)
        elif layer.kind == "pool":
            pools[number] = Pool(row.channels, size, layer.kernel, layer.stride, layer.ceil_mode, out)
        elif layer.kind == "norm":
            norm = getattr(model, layer.name)
            norms[number] = Norm(row.channels, size, norm.size, norm.alpha, norm.beta, norm.k)
        size = out
    return convs, pools, norms


CONVS, POOLS, NORMS = zfnet_layers()

# Other people's layers: VGG-16, AlexNet (torchvision's), ResNet-50, and channels that are a multiple of nothing.
OTHERS = {
    "vgg-conv1_1": square(3, 224, 64, 3, 1, 1),
    "vgg-conv1_2": square(64, 224, 64, 3, 1, 1),
    "vgg-conv2_2": square(128, 112, 128, 3, 1, 1),
    "vgg-conv3_2": square(256, 56, 256, 3, 1, 1),
    "vgg-conv4_2": square(512, 28, 512, 3, 1, 1),
    "vgg-conv5_2": square(512, 14, 512, 3, 1, 1),
    "alexnet-conv1": square(3, 224, 64, 11, 4, 2),
    "alexnet-conv2": square(64, 27, 192, 5, 1, 2),
    "alexnet-conv3": square(192, 13, 384, 3, 1, 1),
    "resnet-conv1": square(3, 224, 64, 7, 2, 3),
    "resnet-1x1-widen": square(64, 56, 256, 1),
    "resnet-1x1-narrow": square(256, 56, 64, 1),
    "resnet-1x1-stride": square(256, 56, 512, 1, 2),
    "resnet-3x3": square(64, 56, 64, 3, 1, 1),
    "resnet-3x3-stride": square(128, 56, 128, 3, 2, 1),
    "resnet-3x3-deep": square(512, 7, 512, 3, 1, 1),
    "odd-17-33": square(17, 19, 33, 3, 1, 1),
    "odd-1-8": square(1, 28, 8, 5),
    "odd-130-70": square(130, 15, 70, 1),
}

# In groups and dilated: MobileNetV2's, EfficientNet's, ResNeXt-50's, a dilated ResNet-50's (DeepLab's).
GROUPED = {
    "depthwise-3x3": square(144, 56, 144, 3, 1, 1, 1, 144),
    "depthwise-3x3-stride": square(96, 112, 96, 3, 2, 1, 1, 96),
    "depthwise-3x3-deep": square(960, 7, 960, 3, 1, 1, 1, 960),
    "depthwise-5x5": square(240, 28, 240, 5, 1, 2, 1, 240),
    "resnext-3x3": square(256, 28, 256, 3, 1, 1, 1, 32),
    "dilated-3x3": square(256, 28, 256, 3, 1, 2, 2),
}

# Averages: GoogLeNet's, DenseNet-121's, and whole maps (ResNet-50's, EfficientNet's squeezes).
AVERAGES = {
    "average-3x3": Pool(192, 28, 3, 1, False, 26),
    "average-2x2": Pool(256, 56, 2, 2, False, 28),
    "average-map": Pool(2048, 7, 7, 7, False, 1),
    "average-large-map": Pool(96, 56, 56, 56, False, 1),
}

# One 3x3 convolution whose batch, channels (in and out) or pixels grow while the rest stays.
GROWTH_BASE = {"n": 4, "channels": 64, "pixels": 28}
GROWTH = {"n": (1, 2, 4, 8, 16, 32), "channels": (16, 32, 64, 128, 256), "pixels": (7, 14, 28, 56, 112)}
