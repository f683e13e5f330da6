"""Mutants that no run has seen killed yet: `python tests/mutants/run.py --untried`.

One that is killed moves to the list of its part; one that survives asks for a test first.
"""

from mutant import Mutant

CPU = "tests/backends/test_backends.py -k"
AGAINST = "test_against_reference and cpu"
EMULATED = "tests/backends/test_backends.py -k 'test_against_reference and emulated and"
GRAPHS = "tests/graph/test_graphs.py"
DECONVNET = "tests/deconvnet/test_deconvnet.py"

UNTRIED = [
    Mutant(
        "winograd-forgets-a-chunk-of-channels",
        "csrc/cpu/winograd.h",
        "for (int64_t i = 0; i < count * kWidth<T>; ++i) sums[i] += partial[i];",
        "for (int64_t i = 0; i < count * kWidth<T>; ++i) sums[i] = partial[i];",
        "tests/csrc/test_winograd.py",
    ),
    Mutant(
        "winograd-rows-take-another-stride",
        "csrc/cpu/winograd_rows.h",
        "map(n_, from_ * s_.SH - s_.PH + r, -s_.PW, cols, row_);",
        "map(n_, from_ * s_.SH - s_.PH + r, -s_.PH, cols, row_);",
        "tests/csrc/test_winograd.py",
    ),
    Mutant(
        "adjoint-leaves-gaps-unwritten",
        "csrc/cpu/conv_transpose.cpp",
        "const bool gaps = down < s.SH || across < s.SW;",
        "const bool gaps = down < s.SH;",
        "tests/csrc/test_winograd.py -k 'every_case and gaps_in_rows'",
    ),
    Mutant(
        "gradient-s-tile-a-row-short",
        "csrc/cpu/conv_weight_grad.cpp",
        "for (int64_t i = 0; i < smaller(kSide, s_.OH - top); ++i)",
        "for (int64_t i = 0; i < smaller(kSide, s_.OH - top - 1); ++i)",
        "tests/csrc/test_winograd.py",
    ),
    Mutant(
        "pool-counts-one-worker-too-few",
        "csrc/cpu/threads.cpp",
        "left_ = threads - 1;",
        "left_ = threads - 2;",
        "tests/survival/test_threads.py -k forked_process",
    ),
    Mutant(
        "forked-process-waits-for-its-parent-s-threads",
        "csrc/cpu/threads.cpp",
        "    forked = true;\n",
        "",
        "tests/survival/test_threads.py -k forked_process",
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
        "c = (place - pixel * vectors);",
        f"{EMULATED} pool2d'",
    ),
    Mutant(
        "cuda-norm-without-the-maps-beside",
        "csrc/cuda/contrast_norm.cu",
        "const auto after = c + V < C ? load(c + V) : Pack<T, V>::zero();",
        "const auto after = Pack<T, V>::zero();",
        f"{EMULATED} contrast_norm'",
    ),
    Mutant(
        "cuda-norm-counts-from-another-block",
        "csrc/cuda/contrast_norm.cu",
        "const int c = static_cast<int>(place % per_stack) * V;\n    const int64_t index = first + threadIdx.x;\n"
        "    if (index >= vectors) return;\n    const T* const stack = x + index * V - c;",
        "const int c = static_cast<int>(threadIdx.x % per_stack) * V;\n    const int64_t index = first + threadIdx.x;\n"
        "    if (index >= vectors) return;\n    const T* const stack = x + index * V - c;",
        f"{EMULATED} contrast_norm'",
    ),
    Mutant(
        "cuda-reversed-layer-adds-taps-that-are-not",
        "csrc/cuda/fused_transpose.cu",
        "if (no_row >> (j * 2 + e % 2) & 1) sums[m][j][e] = 0.0f;",
        "(void)no_row;",
        f"{EMULATED} max_unpool2d_relu_conv_transpose2d'",
    ),
    Mutant(
        "cuda-reversed-layer-does-not-rectify",
        "csrc/cuda/fused_transpose.cu",
        "o.x = static_cast<T*>(x), o.rectify = rectify;",
        "o.x = static_cast<T*>(x), o.rectify = !rectify;",
        f"{EMULATED} max_unpool2d_relu_conv_transpose2d'",
    ),
    Mutant(
        "cuda-weight-s-gradient-of-the-next-row",
        "csrc/cuda/conv_weight_grad.cu",
        "if (i >= OH) i -= OH, ++image;",
        "if (i > OH) i -= OH, ++image;",
        f"{EMULATED} conv2d_relu'",
    ),
    Mutant(
        "cuda-correlation-of-more-than-64-outputs",
        "csrc/cuda/conv.cu",
        "const bool inside = n0 + row < p.K && k < total;",
        "const bool inside = n0 + row < p.K && k < total && row < 72;",
        f"{EMULATED} conv2d_relu'",
    ),
]
