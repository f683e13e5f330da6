"""The checks of convolutions' arguments; checks.py has those that all public functions share."""

from torch import Tensor

from .. import window
from ..window import Sides
from . import checks

# Up to here no map that is there makes one of more bytes than torch can count.
PLAIN_PADDING, PLAIN_STRIDE = 2**15, 2**8


def grouping(
    dilation: int | Sides, groups: int, channels: int, filters: int, names: tuple[str, str]
) -> tuple[window.Pair, int]:
    """dilation as a pair, and groups, which must divide the channels of both of the maps that `names` tells."""
    dilation = window.pair("dilation", dilation, 1)
    groups = window.count("groups", groups)
    if channels % groups or filters % groups:
        raise ValueError(
            f"groups must divide {names[0]}'s {channels} channels and {names[1]}'s {filters}, got {groups}"
        )
    return dilation, groups


def check_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | Sides,
    padding: int | Sides,
    dilation: int | Sides = 1,
    groups: int = 1,
) -> tuple[window.Pair, window.Pair, window.Pair, window.Pair]:
    """Check a convolution's arguments; stride, padding, the result's size and dilation as pairs."""
    checks.tensor("x", x, ("N", "C_in", "H", "W"))
    checks.tensor("weight", weight, ("C_out", "C_in", "KH", "KW"))
    checks.alike("weight", weight, "x", x)
    _, channels, *input_size = x.shape
    filters, depth, *kernel_size = weight.shape
    dilation, groups = grouping(dilation, groups, channels, filters, ("x", "weight"))
    if depth * groups != channels:
        own = "" if groups == 1 else f" in {groups} groups"
        raise ValueError(
            f"weight must have x's {channels} channels{own} as its second dimension (C_out, C_in, KH, KW), "
            f"got shape {tuple(weight.shape)} for x of shape {tuple(x.shape)}"
        )
    if bias is not None:
        checks.tensor("bias", bias, ("C_out",))
        checks.alike("bias", bias, "x", x)
        if bias.shape[0] != filters:
            raise ValueError(f"bias must have shape ({filters},), one value a filter, got {tuple(bias.shape)}")
    stride, padding = window.pair("stride", stride, 1), window.pair("padding", padding, 0)
    if max(padding) > PLAIN_PADDING:
        padded = tuple(side + 2 * more for side, more in zip(input_size, padding, strict=True))
        window.check_holdable("padding", "a map", (x.shape[0], max(channels, filters), *padded), padding)
    size = window.conv_map(input_size, kernel_size, stride, padding, dilation)
    if size[0] < 1 or size[1] < 1:
        apart = "" if dilation == (1, 1) else f" of dilation {dilation}"
        raise ValueError(
            f"weight's window {tuple(kernel_size)}{apart} must fit into x's height and width {tuple(input_size)} with "
            f"padding {padding}"
        )
    return stride, padding, size, dilation


def check_transposed(
    y: Tensor,
    weight: Tensor,
    stride: int | Sides,
    padding: int | Sides,
    output_size: int | Sides,
    dilation: int | Sides = 1,
    groups: int = 1,
) -> tuple[window.Pair, ...]:
    """Check a transposed convolution's weight and window; stride, padding, output_size, the map's size and dilation as
    pairs."""
    checks.tensor("weight", weight, ("C_out", "C_in", "KH", "KW"))
    checks.alike("weight", weight, "y", y)
    if weight.shape[0] != y.shape[1]:
        raise ValueError(
            f"weight must have y's {y.shape[1]} channels as its first dimension (C_out, C_in, KH, KW: the forward "
            f"convolution's shape), got shape {tuple(weight.shape)} for y of shape {tuple(y.shape)}"
        )
    dilation, _ = grouping(dilation, groups, y.shape[1], weight.shape[0], ("y", "weight"))
    stride, padding = window.pair("stride", stride, 1), window.pair("padding", padding, 0)
    output_size = window.pair("output_size", output_size, 1)
    check_output_size(y, max(weight.shape[0], weight.shape[1] * groups), output_size, *stride, *dilation)
    size = window.conv_map(output_size, weight.shape[2:], stride, padding, dilation)
    return stride, padding, output_size, size, dilation


def check_output_size(y: Tensor, channels: int, output_size: window.Pair, *steps: int) -> None:
    """ValueError where torch cannot count the bytes of a map of that size for each image of y; `steps`: the strides and
    dilations, without large ones of which no such size belongs to y."""
    if max(steps) > PLAIN_STRIDE:
        window.check_holdable("output_size", "a map", (y.shape[0], channels, *output_size), output_size)


def check_addend(add: Tensor | None, cap: float | None, shape: tuple[int, ...], x: Tensor) -> float | None:
    """Check what is added to a convolution's result of this shape, and the cap; the cap as a float."""
    if add is not None:
        checks.tensor("add", add, ("N", "C_out", "OH", "OW"))
        checks.alike("add", add, "x", x)
        if tuple(add.shape) != shape:
            raise ValueError(f"add must have the result's shape, {shape}, got {tuple(add.shape)}")
    if cap is None:
        return None
    cap = checks.number("cap", cap)
    if cap <= 0:
        raise ValueError(f"cap must be above 0, got {cap!r}")
    return cap
