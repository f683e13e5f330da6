"""Kernels that the compile gate must refuse, one for each kind of failure, and sound ones.

As a script, in a process without TRITON_INTERPRET: prints, as JSON, the problems that the gate finds in each.
"""

import json

import torch
import triton
import triton.language as tl

from zfkernels.backends.triton import gate
from zfkernels.backends.triton.gate import Compilation


@triton.jit
def product(a, b, c, K, DOUBLE: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr):
    m, n, k = tl.arange(0, BM), tl.arange(0, BN), tl.arange(0, BK)
    sums = tl.zeros((BM, BN), tl.float32)
    for start in range(0, K, BK):
        left = tl.load(a + m[:, None] * K + (start + k)[None, :])
        if DOUBLE:
            left = (left * 2).to(a.dtype.element_ty)
        right = tl.load(b + (start + k)[:, None] * BN + n[None, :])
        sums = tl.dot(left, right, sums, input_precision="tf32")
    tl.store(c + m[:, None] * BN + n[None, :], sums)


@triton.jit
def product_without_matrix_units(a, b, c, K, BM: tl.constexpr, BN: tl.constexpr):
    m, n = tl.arange(0, BM), tl.arange(0, BN)
    sums = tl.zeros((BM, BN), tl.float32)
    for k in range(K):
        sums += tl.load(a + m * K + k)[:, None].to(tl.float32) * tl.load(b + k * BN + n)[None, :].to(tl.float32)
    tl.store(c + m[:, None] * BN + n[None, :], sums)


@triton.jit
def copy_less_mean(x, y, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    v = tl.load(x + i)
    tl.store(y + i, v - tl.sum(v) / BLOCK)


half, single = torch.bfloat16, torch.float32
MATRICES = {"a": half, "b": half, "c": single, "K": 4096}
TILE = MATRICES | {"DOUBLE": False, "BM": 128, "BN": 128, "BK": 64}
EIGHT = {"num_warps": 8, "num_stages": 3}
PLAIN = {"x": single, "y": single, "BLOCK": 32768}
KERNELS = {
    "sound": Compilation("sound", product, TILE, EIGHT, True),
    "sound copy": Compilation("sound copy", copy_less_mean, PLAIN | {"BLOCK": 1024}, {"num_warps": 4}),
    "spills": Compilation("spills", copy_less_mean, PLAIN, {"num_warps": 2}),
    "registers": Compilation("registers", product, TILE | {"DOUBLE": True}, EIGHT, True),
    "matrix units": Compilation(
        "matrix units", product_without_matrix_units, MATRICES | {"BM": 64, "BN": 64}, {"num_warps": 4}, True
    ),
    "memory": Compilation("memory", product, TILE, {"num_warps": 8, "num_stages": 9}, True),
}


if __name__ == "__main__":
    problems = {name: gate.build(kernel, "sm_90", half).problems for name, kernel in KERNELS.items()}
    problems["memory of gfx942"] = gate.build(KERNELS["memory"], "gfx942", half).problems
    print(json.dumps(problems))
