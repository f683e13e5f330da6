"""What the convolution, its adjoint and its weight gradient share: products of matrices that are gathered, never built.

    conv.py               rows are output pixels, columns output channels; the sum runs over taps x input channels
    conv_transpose.py     rows are the input pixels of one residue class, columns input channels; the sum runs over the
                          class's taps x output channels
    conv_weight_grad.py   rows are output channels, columns taps x input channels; the sum runs over output pixels

Maps are channels-last, and a weight is read as [C_out][KH][KW][C_in]: a channels-last weight; any other is copied into
that order. Sums are float32. A float32 product is IEEE or TF32 as torch.backends.cudnn says.

16-byte asynchronous copies need a multiple of 8 channels (4 in float32); other counts are right but slow. Images, with
up to 4 channels, are padded to 4 together with the border's zeros, in one pass: the KW pixels of a tap row are then one
run of 4 KW contiguous numbers, and the sum has a step a tap row instead of a nearly empty one a tap.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...window import Pair, Sides, as_pair
from ..memory import dense
from .launch import INTERPRETED, Call, Target

IMAGE_CHANNELS = 4  # x with at most this many channels is padded to exactly this many

SIZES = ("images", "H", "W", "OH", "OW", "PH", "PW")  # one compiled kernel serves all of them


@triton.jit
def product(a, b, sums, PRECISION: tl.constexpr, INTERPRETED: tl.constexpr):
    """sums + a b."""
    if INTERPRETED:  # the interpreter multiplies the bit patterns of bfloat16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision=PRECISION, out_dtype=tl.float32)


@triton.jit
def pixels(first, images, height, width, BLOCK: tl.constexpr):
    """Pixels first ... first + BLOCK - 1 of a stack of maps: the image of the first (int64), the number of images from
    that one on, and for each pixel, in 32 bits, (images past the first pixel's, row, column)."""
    area = height * width
    image = first // area
    remaining = (images - image).to(tl.int32)
    position = (first - image * area).to(tl.int32) + tl.arange(0, BLOCK)
    ahead = position // area
    position = position - ahead * area
    row = position // width
    return image, remaining, ahead, row, position - row * width


@triton.jit(do_not_specialize=("images", "H", "W", "PH", "PW", "stride_n", "stride_c", "stride_h", "stride_w"))
def pad_image_kernel(
    x,
    padded,
    images,
    H,
    W,
    PH,
    PW,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    C: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """padded[n, h + PH, w + PW, c] = x[n,c,h,w]; 0 in the border and in channels c >= C.

    Program i: BLOCK pixels of the (images, H + 2 PH, W + 2 PW, CHANNELS) result. x has any strides.
    """
    height = H + 2 * PH
    width = W + 2 * PW
    first = tl.program_id(0).to(tl.int64) * BLOCK
    image, remaining, ahead, i, j = pixels(first, images, height, width, BLOCK)
    h = i - PH
    w = j - PW
    c = tl.arange(0, CHANNELS)
    n = image + ahead
    inside = (ahead < remaining) & (h >= 0) & (h < H) & (w >= 0) & (w < W)
    source = n * stride_n + h.to(tl.int64) * stride_h + w.to(tl.int64) * stride_w
    source = source[:, None] + c.to(tl.int64)[None, :] * stride_c
    value = tl.load(x + source, mask=inside[:, None] & (c < C)[None, :], other=0.0)
    offset = tl.arange(0, BLOCK)[:, None] * CHANNELS + c[None, :]
    tl.store(padded + first * CHANNELS + offset, value, mask=(ahead < remaining)[:, None])


class Conv(NamedTuple):
    """The shapes of a forward convolution, which the transposed one and the weight gradient share."""

    images: int
    size: Pair
    channels: int
    filters: int
    out: Pair
    kernel: Pair
    stride: Pair
    padding: Pair
    pitch: int  # numbers between two pixels of x
    run: int  # numbers between two taps of the weight

    @classmethod
    def of(cls, x_shape: Sides, weight_shape: Sides, out: Sides, stride: Sides, padding: Sides) -> "Conv":
        """The convolution of dense x by weight onto maps of size `out`; the shapes are those of conv2d's arguments."""
        images, channels, *size = x_shape
        filters, _, *kernel = weight_shape
        maps, taps, steps, pads = map(as_pair, (out, kernel, stride, padding))
        return cls(images, as_pair(size), channels, filters, maps, taps, steps, pads, channels, channels)

    @property
    def sizes(self) -> dict[str, int]:
        """The kernels' arguments that are not compiled in."""
        return dict(zip(SIZES, (self.images, *self.size, *self.out, *self.padding), strict=True))

    @property
    def constants(self) -> dict[str, int]:
        shape = (self.filters, *self.kernel, *self.stride)
        return dict(zip(("C_OUT", "KH", "KW", "SH", "SW"), shape, strict=True))

    @property
    def rows(self) -> int:
        """The number of output pixels."""
        return self.images * self.out[0] * self.out[1]

    @property
    def terms(self) -> int:
        """Taps x input channels."""
        return self.kernel[0] * self.kernel[1] * self.channels

    def is_image(self) -> bool:
        """Whether x goes through pad_image_kernel."""
        return self.channels <= IMAGE_CHANNELS

    def gathered(self) -> "Conv":
        """The convolution as the kernels gather x: of a padded image, a tap row is one tap of KW * IMAGE_CHANNELS
        channels; else this one."""
        if not self.is_image():
            return self
        height, width = (self.size[d] + 2 * self.padding[d] for d in (0, 1))
        return self._replace(
            size=(height, width),
            channels=self.kernel[1] * IMAGE_CHANNELS,
            kernel=(self.kernel[0], 1),
            padding=(0, 0),
            pitch=IMAGE_CHANNELS,
            run=-(-self.kernel[1] * IMAGE_CHANNELS // 32) * 32,  # whole steps of 16-byte copies
        )

    def samples(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Random x, weight and y of these shapes."""
        x = (self.images, self.channels, *self.size)
        weight = (self.filters, self.channels, *self.kernel)
        y = (self.images, self.filters, *self.out)
        first, second, third = (dense(torch.randn(shape, device=device, dtype=dtype)) for shape in (x, weight, y))
        return first, second, third


class Config(NamedTuple):
    """A program computes an m x n tile, k terms of the sum at a time, with so many warps and loads so far ahead.

    `programs`: 0, or so many persistent ones a multiprocessor, each of which makes one tile after the other.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    programs: int = 0

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k} {self.warps}w{self.stages}s" + (
            f"{self.programs}p" if self.programs else ""
        )


class Problem(NamedTuple):
    """A product as the rule sees it: rows x columns x depth; the depth comes in runs of `run` contiguous terms.

    `precision` is "half" for 16-bit operands, else the input precision of a float32 product, "tf32" or "ieee".
    """

    op: str
    rows: int
    columns: int
    depth: int
    run: int
    precision: str

    @property
    def key(self) -> str:
        return f"{self.op} {self.rows}x{self.columns}x{self.depth} run {self.run} {self.precision}"

    def programs(self, config: Config) -> int:
        """The number of tiles."""
        return -(-self.rows // config.m) * -(-self.columns // config.n)


def precision(dtype: torch.dtype, target: Target) -> str:
    """How a product of `dtype` is computed: "half", or for float32 what torch's setting for convolutions says.

    TF32 is torch's default for convolutions; torch.backends.cudnn.allow_tf32 = False asks for "ieee". (Not "tf32x3": on
    Hopper its splitting of the first operand is the register hazard that gate.py refuses.)
    """
    if dtype != torch.float32:
        return "half"
    tf32 = target.kind != "interpreter" and torch.backends.cudnn.conv.fp32_precision == "tf32"  # type: ignore[attr-defined]
    return "tf32" if tf32 else "ieee"


def product_call(kernel: Any, programs: int, arguments: dict[str, Any], precision: str, config: Config) -> Call:
    """The launch of a kernel that multiplies by `product`, tile by tile."""
    arguments = arguments | {"PRECISION": "tf32" if precision == "tf32" else "ieee", "INTERPRETED": INTERPRETED}
    arguments |= {"BM": config.m, "BN": config.n, "BK": config.k}
    return Call(kernel, programs, arguments, {"num_warps": config.warps, "num_stages": config.stages})


def interpreted_steps(number: int) -> int:
    """The compile-time argument STEPS: Triton 3.6's interpreter cannot count to a number that is known at run time
    (NumPy 2.4 refuses its conversion), so loops that do count to STEPS there; compiled kernels do not use it."""
    return number if INTERPRETED else 0


def pad_image_call(conv: Conv, strides: tuple[int, ...]) -> Call:
    """pad_image_kernel on x of these strides; `conv` is the convolution of x itself."""
    padded = conv.gathered()
    block = 256
    names = ("images", "H", "W", "PH", "PW", "stride_n", "stride_c", "stride_h", "stride_w")
    arguments = dict(zip(names, (conv.images, *conv.size, *conv.padding, *strides), strict=True))
    arguments |= {"C": conv.channels, "CHANNELS": IMAGE_CHANNELS, "BLOCK": block}
    programs = -(-conv.images * padded.size[0] * padded.size[1] // block)
    return Call(pad_image_kernel, programs, arguments, {"num_warps": 4, "num_stages": 1})


def gather(x: Tensor, conv: Conv) -> Tensor:
    """x as the kernels gather from it: dense channels-last, or a padded image."""
    if not conv.is_image():
        return dense(x)
    padded = x.new_empty((conv.images, *conv.gathered().size, IMAGE_CHANNELS))
    pad_image_call(conv, x.stride())(x=x, padded=padded)
    return padded
