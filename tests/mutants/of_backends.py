"""Mutants of csrc/cuda, through the emulator, and of the Triton kernels, in Triton's interpreter."""

from mutant import Mutant

EMULATED = "tests/backends/test_backends.py -k 'test_against_reference and emulated and"
TRITON = "tests/backends/test_backends.py -k 'test_against_reference and triton and float32-permuted and"

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
]
