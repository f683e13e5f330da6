"""Mutants of csrc/cuda, through the emulator, and of the Triton kernels, in Triton's interpreter."""

from mutant import Mutant

EMULATED = "tests/backends/test_backends.py -k 'test_against_reference and emulated and"
TRITON = "tests/backends/test_backends.py -k 'test_against_reference and triton and float32-permuted and"

ALL = tuple(
    f"csrc/cuda/{name}.cu"
    for name in ("conv", "conv_transpose", "conv_weight_grad", "contrast_norm", "fused", "fused_transpose", "max_pool")
)

BACKENDS = [
    # Pooling and its adjoint
    # Norm
    # The layer reversed in one kernel, and the gradient of weights
    # Triton
    Mutant(
        "triton-pool-keeps-the-last-maximum",
        "zfkernels/backends/triton/max_pool.py",
        "wins = (v >= best) | (v != v)",
        "wins = (v > best) | (v != v)",
        f"{TRITON} max_pool2d_with_switches and ties'",
    ),
    Mutant(
        "triton-pool-forgets-nan",
        "zfkernels/backends/triton/max_pool.py",
        "wins = (v >= best) | (v != v)",
        "wins = v >= best",
        f"{TRITON} max_pool2d_with_switches and special'",
    ),
    Mutant(
        "triton-switch-points-into-the-padding",
        "zfkernels/backends/triton/max_pool.py",
        "        switch = kh * KW + kw\n",
        "        switch = switch + 0 * kh * kw\n",
        f"{TRITON} max_pool2d_with_switches'",
    ),
    Mutant(
        "triton-unpooling-one-window-too-far",
        "zfkernels/backends/triton/max_pool.py",
        "mask = (i >= 0) & (i < OH) & (j >= 0) & (j < OW) & (kh < KH) & (kw < KW)",
        "mask = (i >= 0) & (i < OH) & (j >= 0) & (j < OW) & (kh < KH)",
        f"{TRITON} max_unpool2d_with_switches'",
    ),
    Mutant(
        "triton-unpooling-loses-a-cell",
        "zfkernels/backends/triton/max_pool.py",
        "cells = [-(-(size + p) // s) for",
        "cells = [(size + p) // s for",
        f"{TRITON} max_unpool2d_with_switches'",
    ),
    Mutant(
        "cuda-unpooling-loses-the-last-row",
        "csrc/cuda/max_pool.cu",
        "return queue(max_unpool2d_3x3s2_kernel<T, V>, (s.H + s.PH + 1) / 2, (s.W",
        "return queue(max_unpool2d_3x3s2_kernel<T, V>, (s.H + s.PH) / 2, (s.W",
        f"{EMULATED} unpool'",
    ),
    Mutant(
        "cuda-unpooling-loses-the-last-row-of-odd-maps",
        "csrc/cuda/max_pool.cu",
        "const int h = 2 * i - s.PH + pixel / 2, w = 2 * j - s.PW + pixel % 2;\n        if (h < 0 || h >= s.H",
        "const int h = 2 * i - s.PH + pixel / 2, w = 2 * j - s.PW + pixel % 2;\n        if (h < 0 || h >= s.H / 2 * 2",
        f"{EMULATED} unpool'",
    ),
    Mutant(
        "cuda-unpooling-one-window-too-far",
        "csrc/cuda/max_pool.cu",
        "if (oh < 0 || oh >= s.OH || ow < 0 || ow >= s.OW) continue;",
        "if (oh < 0 || oh >= s.OH || ow < 0 || ow > s.OW) continue;",
        f"{EMULATED} unpool'",
    ),
    Mutant(
        "cuda-unpooling-takes-another-window-s-tap",
        "csrc/cuda/max_pool.cu",
        "(a ? dh : 2) * 3 + (b ? dw : 2)",
        "(a ? dh : 2) * 3 + (b ? dw : 1)",
        f"{EMULATED} unpool'",
    ),
    Mutant(
        "cuda-unpooling-keeps-one-of-those-that-meet",
        "csrc/cuda/max_pool.cu",
        "if (switches[i] == static_cast<uint32_t>(tap)) sum[i] += y[i];",
        "if (switches[i] == static_cast<uint32_t>(tap)) sum[i] = y[i];",
        f"{EMULATED} unpool'",
    ),
    Mutant(
        "cuda-unpooling-s-gradient-off-the-map",
        "csrc/cuda/max_pool.cu",
        "w = left + tap % 3;\n        if (h < 0 || h >= s.H || w < 0 || w >= s.W) continue;",
        "w = left + tap % 3;\n        if (h < 0 || h >= s.H || w < 0 || w > s.W) continue;",
        "tests/backends/test_fences.py -k 'emulated and max_unpool2d_with_switches'",
    ),
    Mutant(
        "cuda-pooling-of-one-map-of-a-vector",
        "csrc/cuda/max_pool.cu",
        "c = (place - pixel * vectors) * V;",
        "c = (place - pixel * vectors) * (V > 1 ? 1 : V);",
        f"{EMULATED} pool2d'",
    ),
    Mutant(
        "cuda-norm-without-the-maps-beside",
        "csrc/cuda/contrast_norm.cu",
        "const auto after = c + V < C ? load(c + V) : Pack<T, V>::zero();",
        "const auto after = c + V < C && c < 0 ? load(c + V) : Pack<T, V>::zero();",
        f"{EMULATED} contrast_norm'",
    ),
    Mutant(
        "cuda-norm-counts-from-another-block",
        "csrc/cuda/contrast_norm.cu",
        "const int c = static_cast<int>(place % per_stack) * V;\n    const int64_t index = first + threadIdx.x;\n"
        "    if (index >= vectors) return;\n    const T* const stack = x + index * V - c;",
        "const int c = static_cast<int>((place * 0 + threadIdx.x) % per_stack) * V;\n"
        "    const int64_t index = first + threadIdx.x;\n"
        "    if (index >= vectors) return;\n    const T* const stack = x + index * V - c;",
        f"{EMULATED} contrast_norm'",
    ),
    Mutant(
        "cuda-reversed-layer-adds-taps-that-are-not",
        "csrc/cuda/fused_transpose.cu",
        "if (no_row >> (j * 2 + e % 2) & 1) sums[m][j][e] = 0.0f;",
        "(void)no_row;",
        f"{EMULATED} max_unpool2d_relu_conv_transpose2d'",
        ALL,
    ),
    Mutant(
        "cuda-reversed-layer-does-not-rectify",
        "csrc/cuda/fused_transpose.cu",
        "o.x = static_cast<T*>(x), o.rectify = rectify;",
        "o.x = static_cast<T*>(x), o.rectify = !rectify;",
        f"{EMULATED} max_unpool2d_relu_conv_transpose2d'",
        ALL,
    ),
    Mutant(
        "cuda-weight-s-gradient-of-the-next-row",
        "csrc/cuda/conv_weight_grad.cu",
        "if (i >= OH) i -= OH, ++image;",
        "if (i > OH) i -= OH, ++image;",
        f"{EMULATED} conv2d_relu-'",
        ("csrc/cuda/conv_weight_grad.cu", "csrc/cuda/conv_transpose.cu", "csrc/cuda/conv.cu"),
    ),
    Mutant(
        "cuda-correlation-of-more-than-64-outputs",
        "csrc/cuda/conv.cu",
        "const bool inside = n0 + row < p.K && k < total;",
        "const bool inside = n0 + row < p.K && k < total && row < 72;",
        f"{EMULATED} conv2d_relu-'",
        ("csrc/cuda/conv_weight_grad.cu", "csrc/cuda/conv_transpose.cu", "csrc/cuda/conv.cu"),
    ),
]
