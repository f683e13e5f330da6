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
    # Pooling
    # Norm
    # Fully-connected layers
    # Convolutions
    # Threads
]
