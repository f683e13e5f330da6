"""ZFNet, the network of Zeiler & Fergus (arXiv 1311.2901v3, Fig. 3), as a table of layers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

from ..nn import ContrastNorm, ConvReLU, Linear, MaxPoolSwitches
from ..ops.checks import number
from ..ops.fused import conv2d_relu_max_pool2d
from ..window import MOST_ELEMENTS, Field, conv_size, count, pair, pool_size, receptive_field


@dataclass(frozen=True)
class Layer:
    """One row of a network's table. `channels` counts the maps or features made (unused by pools and norms)."""

    name: str
    kind: str  # "conv" (with its ReLU), "pool", "norm" or "fc" (with ReLU and dropout, unless it is the last)
    channels: int = 0
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    ceil_mode: bool = False


TABLE = (
    Layer("conv1", "conv", 96, kernel=7, stride=2, padding=1),
    Layer("pool1", "pool", kernel=3, stride=2, ceil_mode=True),
    Layer("norm1", "norm"),
    Layer("conv2", "conv", 256, kernel=5, stride=2),
    Layer("pool2", "pool", kernel=3, stride=2, ceil_mode=True),
    Layer("norm2", "norm"),
    Layer("conv3", "conv", 384, kernel=3, padding=1),
    Layer("conv4", "conv", 384, kernel=3, padding=1),
    Layer("conv5", "conv", 256, kernel=3, padding=1),
    Layer("pool5", "pool", kernel=3, stride=2),
    Layer("fc6", "fc", 4096),
    Layer("fc7", "fc", 4096),
    Layer("fc8", "fc", 1000),
)


class TooLarge(ValueError):
    """A network whose weights or maps no memory can hold."""


class Row(NamedTuple):
    """A layer inside a network: what comes in, what goes out, what one of its units sees."""

    layer: Layer
    in_channels: int
    channels: int
    size: tuple[int, int]  # height and width of the map made; (1, 1) for fc
    field: Field | None  # the receptive field along either axis; None for fc, which sees everything
    parameters: int


class ZFNet(nn.Module):
    """images (N, in_channels, height, width) -> logits (N, num_classes).

    Conv, ReLU, pool, norm twice; three convs and a pool; two fc layers with ReLU and dropout; a last one. With the
    defaults: 3x224x224 in, maps of 110, 55, 26, 13, 13, 13, 13, 6, and 62,357,608 parameters. Children carry the
    table's names (`conv1`, `pool1`, `norm1`, ..., `fc8`). Weights are drawn from a normal distribution of standard
    deviation 1e-2 and biases are 0 (section 3). A conv and its pool run as one kernel, unless one of the two has hooks.

    Args:
        num_classes: the outputs of the last layer.
        in_channels, image_size: the images' channels and height and width (an int, or a pair).
        channels: maps of the table's conv layers, those left out included.
        fc: features of the table's fc layers, without the last.
        without: names of layers to leave out, as in Table 3: ("conv3", "conv4"), ("fc6",), ("fc6", "fc7"), ...
        dropout: the probability of dropping a feature after each fc layer but the last.
        center: whether the contrast norms subtract the window's mean.
        weight_std: the weights' standard deviation at the start; None for He's sqrt(2 / fan_in), which small networks
            learn faster from.
        table: another table of layers, e.g. one with `dataclasses.replace(TABLE[0], kernel=11, stride=4)`.
        device, dtype: as torch.nn's.

    Attributes:
        table: a `Row` for each layer: sizes, receptive fields, parameters.

    Raises:
        ValueError, TypeError: an argument that does not fit, or an image too small for one of the layers, named.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        *,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 224,
        channels: Sequence[int] | None = None,
        fc: Sequence[int] | None = None,
        without: Iterable[str] = (),
        dropout: float = 0.5,
        center: bool = False,
        weight_std: float | None = 1e-2,
        table: Sequence[Layer] = TABLE,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = count("in_channels", in_channels)
        self.image_size = pair("image_size", image_size, 1)
        self.num_classes = count("num_classes", num_classes)
        self.weight_std = None if weight_std is None else number("weight_std", weight_std)
        if weight_std is not None and weight_std < 0:
            raise ValueError(f"weight_std must not be negative, got {weight_std!r}")
        dropout = number("dropout", dropout)
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be from 0 to 1, got {dropout!r}")
        layers = _vary(table, self.num_classes, channels, fc, without)
        self.table = _measure(layers, self.in_channels, self.image_size)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        module: nn.Module
        for layer, made_from, made, *_ in self.table:
            if layer.kind == "conv":
                module = ConvReLU(made_from, made, layer.kernel, layer.stride, layer.padding, **factory)
            elif layer.kind == "pool":
                module = MaxPoolSwitches(layer.kernel, layer.stride, layer.padding, layer.ceil_mode)
            elif layer.kind == "norm":
                module = ContrastNorm(center=center)
            else:
                module = Linear(made_from, made, **factory)
            self.add_module(layer.name, module)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for row in self.table:
            if row.parameters:
                module: Any = self.get_submodule(row.layer.name)
                std = self.weight_std if self.weight_std is not None else (2 / module.weight[0].numel()) ** 0.5
                nn.init.normal_(module.weight, std=std)
                nn.init.zeros_(module.bias)

    def receptive_field(self, layer: str) -> Field:
        """Unit i of a conv, pool or norm layer sees pixels start + i*stride ... start + i*stride + size - 1."""
        fields = {row.layer.name: row.field for row in self.table if row.field is not None}
        if not isinstance(layer, str) or layer not in fields:
            raise ValueError(f"layer must be one of {', '.join(fields)}, got {layer!r}")
        return fields[layer]

    def features(self, images: Tensor) -> Tensor:
        """The last map, below the fc layers: images (N, C, H, W) -> (N, 256, 6, 6) with the defaults."""
        x, fused = images, None
        layers = [row.layer for row in self.table]
        for layer, above in zip(layers, [*layers[1:], None], strict=True):
            if layer is fused:
                continue
            if layer.kind == "fc":
                break
            module = getattr(self, layer.name)
            pool: Any = getattr(self, above.name) if above is not None else None
            if _fusible(module, pool) and not isinstance(x, fx.Proxy):
                weight, bias = module.filters(x)
                window = module.stride, module.padding, pool.kernel_size, pool.stride, pool.padding
                x, _ = conv2d_relu_max_pool2d(x, weight, bias, *window, pool.ceil_mode)
                fused = above
            else:
                x = module(x)
        return x

    def forward(self, images: Tensor) -> Tensor:
        expected = (self.in_channels, *self.image_size)
        traced = isinstance(images, fx.Proxy)
        if not traced and not isinstance(images, Tensor):
            raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
        if not traced and (images.ndim != 4 or tuple(images.shape[1:]) != expected):
            raise ValueError(f"images must have shape (N, {', '.join(map(str, expected))}), got {tuple(images.shape)}")
        x = self.features(images).flatten(1)
        for row in self.table:
            if row.layer.kind == "fc":
                x = getattr(self, row.layer.name)(x)
                if row is not self.table[-1]:
                    x = self.dropout(torch.relu(x))
        return x


def _fusible(module: nn.Module, above: nn.Module | None) -> bool:
    """Are the two a conv and its pool, with no hook that wants to see the map between?"""
    return (
        type(module) is ConvReLU
        and type(above) is MaxPoolSwitches
        and (module.dilation, module.groups) == ((1, 1), 1)
        and not any(
            hooked._forward_hooks or hooked._forward_pre_hooks or hooked._backward_hooks or hooked._backward_pre_hooks
            for hooked in (module, above)
        )
    )


def _vary(
    table: Sequence[Layer],
    num_classes: int,
    channels: Sequence[int] | None,
    fc: Sequence[int] | None,
    without: Iterable[str],
) -> tuple[Layer, ...]:
    """`table` with other channels and features, and without some layers."""
    names = [layer.name for layer in table]
    if len(set(names)) < len(names):
        raise ValueError(f"table must have a name of its own for each layer, got {', '.join(names)}")
    if not table or table[-1].kind != "fc":
        raise ValueError(f"table must end with an fc layer, got {', '.join(names)}")
    try:
        left_out = {without} if isinstance(without, str) else set(without)
    except TypeError:
        raise TypeError(f"without must name layers of {', '.join(names[:-1])}, got {without!r}") from None
    if not left_out <= set(names[:-1]):
        raise ValueError(f"without must name layers of {', '.join(names[:-1])}, got {sorted(map(str, left_out))}")
    table = (*table[:-1], replace(table[-1], channels=num_classes))
    for argument, kind, given in (("channels", "conv", channels), ("fc", "fc", fc)):
        if given is None:
            continue
        named = [layer.name for layer in table[:-1] if layer.kind == kind]
        if not isinstance(given, Sequence):
            raise TypeError(f"{argument} must be a list or tuple of ints, got {given!r}")
        if len(given) != len(named):
            raise ValueError(f"{argument} must have {len(named)} numbers, for {', '.join(named)}, got {given!r}")
        counts = {name: count(argument, number) for name, number in zip(named, given, strict=True)}
        table = tuple(replace(layer, channels=counts.get(layer.name, layer.channels)) for layer in table)
    return tuple(layer for layer in table if layer.name not in left_out)


def _measure(layers: Sequence[Layer], channels: int, size: tuple[int, int]) -> tuple[Row, ...]:
    image_size = size
    windows: list[tuple[int, int, int]] = []
    rows: list[Row] = []
    for layer in layers:
        before = channels
        if layer.kind == "fc":
            before, channels, size = channels * size[0] * size[1], layer.channels, (1, 1)
            rows.append(_row(layer, before, channels, size, None, before * channels + channels))
            continue
        if rows and rows[-1].field is None:
            raise ValueError(f"table must have its fc layers last, got {layer.name} above {rows[-1].layer.name}")
        parameters = 0
        if layer.kind == "conv":
            channels = layer.channels
            parameters = before * channels * layer.kernel**2 + channels
            down, across = (conv_size(side, layer.kernel, layer.stride, layer.padding) for side in size)
            size = down, across
        elif layer.kind == "pool":
            down, across = (
                pool_size(side, layer.kernel, layer.stride, layer.padding, layer.ceil_mode) for side in size
            )
            size = down, across
        elif layer.kind != "norm":
            raise ValueError(f"table must have layers of kind conv, pool, norm or fc, got {layer}")
        if min(size) < 1:
            raise ValueError(
                f"image_size must leave {layer.name} at least one {layer.kernel}x{layer.kernel} window, "
                f"got {image_size}"
            )
        windows.append((layer.kernel, layer.stride, layer.padding))
        rows.append(_row(layer, before, channels, size, receptive_field(windows), parameters))
    return tuple(rows)


def _row(layer: Layer, before: int, channels: int, size: tuple[int, int], field: Field | None, parameters: int) -> Row:
    if max(parameters, channels * size[0] * size[1]) > MOST_ELEMENTS:
        raise TooLarge(
            f"in_channels, image_size, channels, fc and num_classes must leave {layer.name} a weight and a map that "
            f"some memory can hold, got {parameters} parameters and a map of {(channels, *size)}"
        )
    return Row(layer, before, channels, size, field, parameters)


@torch.no_grad()
def clamp_filters_(model: nn.Module, rms: float = 0.1) -> None:
    """Rescale, in place, every convolution filter whose root mean square exceeds `rms` to `rms` (section 3.1).

    A filter is weight[o], over all its input channels; the filters of every Conv2d, ConvReLU or the like in `model`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if number("rms", rms) <= 0:
        raise ValueError(f"rms must be above 0, got {rms!r}")
    for module in model.modules():
        if isinstance(module, (ConvReLU, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
            filters = module.weight.flatten(1)
            size = torch.linalg.vector_norm(filters.float() if filters.element_size() < 4 else filters, dim=1)
            scale = (rms * filters.shape[1] ** 0.5 / size).clamp(max=1).to(filters.dtype)
            module.weight.mul_(scale.view(-1, *[1] * (module.weight.ndim - 1)))
