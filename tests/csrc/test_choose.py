"""Which kernel csrc/cpu/choose.h chooses for the layers of ZFNet, VGG-16 and ResNet-50.

A changed cost or rule turns this red. Where the new choice is the faster one (`zfkernels bench` says so), write it down
here. The last rows lie at the borders between kernels, for the constants that the networks' layers hardly feel.
"""

import pytest

from zfkernels import _C
from zfkernels.backends import cpu

# name, (c_in, c_out, size, kernel, stride, padding), the choices on avx2, and on baseline where they differ: forward,
# weight gradient, transposed (an input gradient), transposed of rectified maps, and of maps unpooled by 2 x 2.
LAYERS = (
    ("zfnet conv1", (3, 96, 224, 7, 2, 1), "rows direct tiles tiles nonzeros"),
    ("zfnet conv2", (96, 256, 55, 5, 2, 0), "tiles tiles tiles tiles nonzeros"),
    ("zfnet conv3", (256, 384, 13, 3, 1, 1), "tiles tiles tiles tiles nonzeros"),
    ("zfnet conv4", (384, 384, 13, 3, 1, 1), "tiles tiles tiles tiles nonzeros"),
    ("zfnet conv5", (384, 256, 13, 3, 1, 1), "tiles tiles tiles tiles nonzeros"),
    ("vgg conv1_1", (3, 64, 224, 3, 1, 1), "rows direct scatter scatter nonzeros"),
    ("vgg conv1_2", (64, 64, 224, 3, 1, 1), "tiles tiles tiles tiles nonzeros"),
    ("vgg conv2_1", (64, 128, 112, 3, 1, 1), "tiles tiles tiles tiles nonzeros"),
    ("vgg conv2_2", (128, 128, 112, 3, 1, 1), "tiles tiles tiles tiles nonzeros"),
    ("vgg conv3_1", (128, 256, 56, 3, 1, 1), "tiles tiles tiles tiles nonzeros"),
    ("vgg conv3_2", (256, 256, 56, 3, 1, 1), "tiles tiles tiles tiles nonzeros"),
    ("vgg conv4_1", (256, 512, 28, 3, 1, 1), "tiles tiles tiles tiles tiles", "tiles tiles tiles tiles nonzeros_plain"),
    ("vgg conv4_2", (512, 512, 28, 3, 1, 1), "tiles tiles tiles tiles tiles", "tiles tiles tiles tiles nonzeros_plain"),
    ("vgg conv5", (512, 512, 14, 3, 1, 1), "tiles tiles tiles tiles nonzeros_plain"),
    ("resnet conv1", (3, 64, 224, 7, 2, 3), "rows direct tiles tiles nonzeros"),
    ("resnet conv2 1x1 first", (64, 64, 56, 1, 1, 0), "direct direct direct direct nonzeros"),
    ("resnet conv2 3x3", (64, 64, 56, 3, 1, 1), "tiles tiles tiles tiles nonzeros"),
    ("resnet conv2 1x1 out", (64, 256, 56, 1, 1, 0), "direct direct direct direct nonzeros"),
    ("resnet conv2 1x1 in", (256, 64, 56, 1, 1, 0), "direct direct direct direct nonzeros"),
    ("resnet conv3 1x1 first", (256, 128, 56, 1, 1, 0), "direct direct direct direct nonzeros"),
    ("resnet conv3 3x3 /2", (128, 128, 56, 3, 2, 1), "rows direct tiles tiles nonzeros"),
    ("resnet conv3 shortcut", (256, 512, 56, 1, 2, 0), "direct direct direct direct nonzeros_plain"),
    ("resnet conv3 1x1 in", (512, 128, 28, 1, 1, 0), "direct direct direct direct nonzeros"),
    ("resnet conv3 3x3", (128, 128, 28, 3, 1, 1), "tiles tiles tiles tiles nonzeros"),
    ("resnet conv3 1x1 out", (128, 512, 28, 1, 1, 0), "direct direct direct direct nonzeros_plain"),
    ("resnet conv4 3x3 /2", (256, 256, 28, 3, 2, 1), "direct direct direct nonzeros_plain nonzeros"),
    ("resnet conv4 3x3", (256, 256, 14, 3, 1, 1), "tiles tiles tiles tiles nonzeros"),
    ("resnet conv4 1x1 out", (256, 1024, 14, 1, 1, 0), "direct direct direct direct nonzeros_plain"),
    ("resnet conv5 3x3 /2", (512, 512, 14, 3, 2, 1), "direct direct direct nonzeros_plain nonzeros_plain"),
    ("resnet conv5 3x3", (512, 512, 7, 3, 1, 1), "tiles tiles tiles tiles nonzeros_plain"),
    ("resnet conv5 1x1 out", (512, 2048, 7, 1, 1, 0), "direct direct direct nonzeros_plain nonzeros_plain"),
    ("resnet conv5 1x1 in", (2048, 512, 7, 1, 1, 0), "direct direct direct nonzeros_plain nonzeros_plain"),
    ("border 1", (4, 512, 46, 3, 2, 1), "rows direct scatter nonzeros nonzeros"),
    (
        "border 2",
        (4, 48, 22, 5, 1, 2),
        "direct direct scatter scatter nonzeros",
        "direct direct scatter nonzeros nonzeros",
    ),
    (
        "border 3",
        (32, 64, 3, 1, 2, 0),
        "direct direct nonzeros_plain direct direct",
        "direct direct direct direct nonzeros",
    ),
    ("border 4", (16, 16, 24, 3, 1, 0), "direct direct tiles tiles nonzeros", "rows direct tiles tiles nonzeros"),
    ("border 5", (16, 32, 14, 4, 1, 0), "direct direct tiles nonzeros nonzeros", "rows direct tiles nonzeros nonzeros"),
    ("border 6", (256, 448, 14, 1, 1, 0), "direct direct direct direct nonzeros"),
)


def chosen(isa: str, mode: int, layer: tuple, f64: bool = False, n: int = 1) -> str:
    c_in, c_out, size, kernel, stride, padding = layer
    out = (size + 2 * padding - kernel) // stride + 1
    strides = c_in * kernel * kernel, kernel * kernel, kernel, 1
    sizes = n, c_in, size, size, c_out, out, out, kernel, kernel, stride, stride, padding, padding, *strides, 1, 1, 1
    most = c_out * out * out

    def transposed(most: int, rectify: bool) -> str:
        return _C.conv2d_kernels(isa, mode, f64, sizes, most, rectify)[1]

    forward, _, weight_grad = _C.conv2d_kernels(isa, mode, f64, sizes, most, False)
    sparse = transposed(most, False), transposed(most, True), transposed(most // 4, True)
    return " ".join((forward, weight_grad, *sparse))


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("isa", ["avx2", "baseline"])
@pytest.mark.parametrize("row", LAYERS, ids=lambda row: row[0])
def test_each_layer_gets_its_kernel(row, isa, n):
    if isa not in _C.isas():
        pytest.skip(f"this CPU has no {isa}, or it is not compiled in")
    _, layer, *expected = row
    assert chosen(isa, cpu.WHERE_FASTER, layer, n=n) == expected[-1 if isa == "baseline" else 0]


@pytest.mark.skipif("avx512" not in _C.isas(), reason="this CPU has no AVX-512, or it is not compiled in")
def test_wide_vectors_have_choices_of_their_own():
    """There transforms cost more beside products, and tiles of 14 pixels less."""
    chosen_there = {
        "direct": ((3, 32, 224, 3, 2, 1), (128, 128, 56, 3, 2, 1), (64, 128, 56, 3, 2, 1), (256, 256, 28, 3, 2, 1)),
        "rows": ((3, 64, 224, 7, 2, 3), (3, 64, 224, 11, 4, 2), (128, 32, 14, 3, 1, 1), (16, 64, 55, 3, 1, 1)),
        "tiles": ((64, 64, 56, 3, 1, 1), (128, 32, 28, 3, 1, 1), (512, 512, 7, 3, 1, 1), (96, 256, 55, 5, 2, 0)),
    }
    for kernel, layers in chosen_there.items():
        for layer in layers:
            assert chosen("avx512", cpu.WHERE_FASTER, layer).split()[0] == kernel, layer


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (cpu.NEVER, "direct direct direct direct nonzeros"),
        (cpu.ALWAYS, "tiles tiles tiles tiles tiles"),
        (cpu.ALWAYS_ROWS, "rows direct direct direct direct"),
        (cpu.NONZEROS, "direct direct nonzeros_plain nonzeros_plain nonzeros"),
    ],
)
def test_a_mode_forces_its_kernel(mode, expected):
    assert chosen("baseline", mode, (256, 384, 13, 3, 1, 1)) == expected


def kernels_of(groups: int, dilation: int, channels: int = 64, kernel: int = 3) -> tuple[str, str, str]:
    sizes = 1, channels, 14, 14, channels, 14, 14, kernel, kernel, 1, 1, dilation, dilation
    strides = channels // groups * kernel * kernel, kernel * kernel, kernel, 1
    whole = (*sizes, *strides, dilation, dilation, groups)
    return _C.conv2d_kernels("baseline", cpu.WHERE_FASTER, False, whole, channels * 14 * 14, False)


def test_groups_and_dilation():
    assert kernels_of(64, 1) == kernels_of(64, 2) == ("depthwise",) * 3
    assert kernels_of(3, 1, 3) == ("direct", "scatter", "direct")  # fewer channels than a vector has lanes
    assert kernels_of(1, 2, 256) == ("direct",) * 3
    assert kernels_of(2, 1, 512)[0] == "tiles"  # as a convolution of one group's size


def test_float64_is_summed_directly():
    for mode in (cpu.WHERE_FASTER, cpu.ALWAYS, cpu.ALWAYS_ROWS):
        assert chosen("baseline", mode, (256, 384, 13, 3, 1, 1), f64=True).split()[:3] == ["direct"] * 3


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(ValueError, match=r"'sse9'.*baseline"):
        chosen("sse9", cpu.WHERE_FASTER, (3, 8, 9, 3, 1, 1))
