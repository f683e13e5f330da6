"""Mutants of csrc/cpu."""

from mutant import Mutant

CPU = "tests/backends/test_backends.py -k"
AGAINST = "test_against_reference and cpu"

KERNELS = [
    # The switch check
    Mutant(
        "first-bad-switch-of-one-row",
        "csrc/cpu/switches.h",
        "for (int64_t r = begin; r < end; ++r)\n        for (int64_t ow = 0; ow < s.OW; ++ow) {",
        "for (int64_t r = begin; r < end; ++r)\n        for (int64_t ow = 1; ow < s.OW; ++ow) {",
        f"{CPU} 'test_switch_out_of_range and cpu'",
    ),
    Mutant(
        "switch-of-the-next-window",
        "csrc/cpu/switches.h",
        "largest < s.KH * s.KW",
        "largest <= s.KH * s.KW",
        f"{CPU} 'test_switch_out_of_range and cpu'",
    ),
    Mutant(
        "switch-off-the-map",
        "csrc/cpu/switches.h",
        "inside[h * s.KW + w] = 1;",
        "inside[h * s.KW + w] = inside[0] = 1;",
        f"{CPU} 'test_switch_out_of_range and cpu'",
    ),
    # Values that are not finite
    Mutant(
        "infinite-filter-of-a-run-not-seen",
        "csrc/cpu/nonzeros.h",
        "                    sum += from[j * s.wj + c * s.wc] * 0;\n",
        "",
        "tests/csrc/test_nonzeros.py -k not_finite",
    ),
    Mutant(
        "winograd-keeps-what-is-not-finite",
        "csrc/cpu/winograd.h",
        "return is_zero<T>(not_finite) && (all == 0 || all >= kLeast);",
        "return all == 0 || all >= kLeast;",
        "tests/csrc/test_winograd.py -k not_finite",
    ),
    Mutant(
        "winograd-keeps-what-is-tiny",
        "csrc/cpu/winograd.h",
        "return is_zero<T>(not_finite) && (all == 0 || all >= kLeast);",
        "return is_zero<T>(not_finite);",
        "tests/csrc/test_magnitudes.py",
    ),
    # Rounding
    Mutant(
        "bfloat16-ties-away-from-even",
        "csrc/cpu/rounding.h",
        "(bits + 0x7fff + ((bits >> 16) & 1))",
        "(bits + 0x8000)",
        f"{CPU} 'cpu and even_one and bfloat16'",
    ),
    Mutant(
        "float16-ties-away-from-even",
        "csrc/cpu/rounding.h",
        "(bits + 0xfff + ((bits >> 13) & 1))",
        "(bits + 0x1000)",
        f"{CPU} 'cpu and even_one and float16'",
    ),
    # Pooling
    Mutant(
        "last-of-equal-maxima",
        "csrc/cpu/max_pool_row.h",
        "const Mask<T> greater = x > best[v.at];",
        "const Mask<T> greater = x >= best[v.at];",
        f"{CPU} '{AGAINST} and max_pool2d_with_switches and ties'",
    ),
    Mutant(
        "nan-is-no-maximum-of-one-channel",
        "csrc/cpu/max_pool_row.h",
        "if (!(x <= best) && best == best)",
        "if (x > best)",
        f"{CPU} '{AGAINST} and max_pool2d_with_switches and special'",
    ),
    Mutant(
        "nan-not-seen-in-whole-windows",
        "csrc/cpu/max_pool_row.h",
        "        nans |= sum[v.at] != sum[v.at];\n",
        "",
        f"{CPU} '{AGAINST} and max_pool2d and special'",
    ),
    Mutant(
        "switch-of-a-cut-window",
        "csrc/cpu/max_pool_row.h",
        "int64_t winner = taps.h0 * taps.KW + taps.w0;",
        "int64_t winner = 0;",
        f"{CPU} '{AGAINST} and max_pool2d_with_switches'",
    ),
    Mutant(
        "unpooling-writes-one-of-those-that-meet",
        "csrc/cpu/unpool_row.h",
        "sum[v.at] += winner == tap ? load<Vec<T>>(y + at + v.at * kLanes) : Vec<T>{};",
        "sum[v.at] = winner == tap ? load<Vec<T>>(y + at + v.at * kLanes) : sum[v.at];",
        f"{CPU} '{AGAINST} and unpool'",
    ),
    Mutant(
        "unpooling-misses-the-last-window",
        "csrc/cpu/unpool_row.h",
        "while (over.ow1 + 1 < s.OW && (over.ow1 + 1) * s.SW <= w + s.PW) ++over.ow1;",
        "while (over.ow1 + 2 < s.OW && (over.ow1 + 1) * s.SW <= w + s.PW) ++over.ow1;",
        f"{CPU} '{AGAINST} and unpool'",
    ),
    Mutant(
        "unpooled-block-of-another-row",
        "csrc/cpu/unpool_row.h",
        "oh * kS + tap_row < kK - kS",
        "oh * kS + tap_row < kK - kS - 1",
        f"{CPU} '{AGAINST} and unpool and whole_vectors'",
    ),
    # Norm
    Mutant(
        "norm-of-two-maps-less",
        "csrc/cpu/contrast_norm.cpp",
        "in[c + 3] + in[c + 4];",
        "in[c + 3];",
        f"{CPU} '{AGAINST} and contrast_norm'",
    ),
    Mutant(
        "norm-s-gradient-without-its-mirrored-window",
        "csrc/cpu/contrast_norm.cpp",
        "const Window mirrored = Window(s).mirrored();",
        "const Window mirrored = Window(s);",
        f"{CPU} '{AGAINST} and contrast_norm'",
    ),
    Mutant(
        "norm-by-estimates-of-any-size",
        "csrc/cpu/contrast_norm.cpp",
        "good &= (value > T(1e-30)) & (value < T(1e30));",
        "good &= (value > T(0));",
        f"{CPU} test_norm_of_every_magnitude",
    ),
    Mutant(
        "mean-of-a-cut-window-by-its-full-size",
        "csrc/cpu/contrast_norm.cpp",
        "share[c] = 1 / static_cast<T>(smaller(s.C - 1, c + w.after) - larger(0, c - w.before) + 1);",
        "share[c] = 1 / static_cast<T>(w.after + w.before + 1);",
        f"{CPU} '{AGAINST} and contrast_norm and center'",
    ),
    # Fully-connected layers
    Mutant(
        "linear-without-the-last-features",
        "csrc/cpu/linear.cpp",
        "for (int64_t j = i; j < s.I; ++j)",
        "for (int64_t j = i + 1; j < s.I; ++j)",
        "tests/ops/test_linear.py",
    ),
    Mutant(
        "linear-of-the-image-before",
        "csrc/cpu/linear.cpp",
        "v[m.at] = load<Vec<T>>(image + m.at * s.I + i);",
        "v[m.at] = load<Vec<T>>(image + (m.at ? m.at - 1 : 0) * s.I + i);",
        "tests/ops/test_linear.py",
    ),
    # Convolutions
    Mutant(
        "adjoint-misses-a-class-of-columns",
        "csrc/cpu/conv_transpose.cpp",
        "before = (s.KW - 1) * s.DW / s.SW;",
        "before = (s.KW - 1) / s.SW;",
        f"{CPU} '{AGAINST} and relu_conv_transpose2d and dilated'",
    ),
    Mutant(
        "bias-s-gradient-of-the-first-band",
        "csrc/cpu/conv_weight_grad.cpp",
        "bias_sums[b * kWidth<T> + k] += partial[k];",
        "bias_sums[b * kWidth<T> + k] = partial[k];",
        f"{CPU} '{AGAINST} and conv2d_relu'",
    ),
    Mutant(
        "weight-s-gradient-ignores-dilation",
        "csrc/cpu/conv_weight_grad.cpp",
        "(rows.begin * s.SH + tap * s.DH) * Wp * width;",
        "(rows.begin * s.SH + tap) * Wp * width;",
        f"{CPU} '{AGAINST} and conv2d_relu and dilated'",
    ),
    # Threads
    Mutant(
        "share-loses-the-last-unit",
        "csrc/cpu/units.h",
        "return {count * part / parts, count * (part + 1) / parts};",
        "return {count * part / parts, count / parts * (part + 1)};",
        f"{CPU} 'cpu and any_number_of_threads and conv2d_relu'",
    ),
    Mutant(
        "tail-of-the-nonzeros-not-tested",
        "csrc/cpu/nonzeros.h",
        "        for (; i < count; ++i) seen_[0] += value[i] * 0;\n",
        "",
        "tests/csrc/test_nonzeros.py -k not_finite",
    ),
    Mutant(
        "band-keeps-rows-of-another-image",
        "csrc/cpu/conv_block.h",
        "if (n == image && from >= begin && from < end) {",
        "if (from >= begin && from < end) {",
        "tests/csrc/test_winograd.py",
    ),
    Mutant(
        "cut-window-read-whole-in-unpooling-s-gradient",
        "csrc/cpu/max_pool_row.h",
        "if (s.KH == 3 && s.KW == 3 && taps.whole(3))",
        "if (s.KH == 3 && s.KW == 3 && taps.h1 - taps.h0 == 3)",
        "tests/backends/test_fences.py -k baseline",
        isa="baseline",  # the loads of AVX-512 have masks
    ),
    Mutant(
        "winograd-tile-a-column-short",
        "csrc/cpu/winograd.h",
        "const int64_t height = smaller(kSide, g_.rows - top), width = smaller(kSide, g_.cols - left);",
        "const int64_t height = smaller(kSide, g_.rows - top), width = smaller(kSide - 1, g_.cols - left);",
        "tests/csrc/test_winograd.py",
    ),
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
]
