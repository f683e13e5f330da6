"""What this machine does at best, measured through torch: the floors that times are compared with."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch


@dataclass
class Ceilings:
    """FLOP/s of a large float32 matrix product; bytes/s, read and written, of copying, by the bytes that it touches."""

    flops: float
    copies: dict[int, float]

    def floor(self, flops: int, bytes_: int) -> float:
        """The least seconds of a call: of its arithmetic done directly or of its memory traffic, whichever is longer.

        A convolution by Winograd's filtering, or of nonzeros alone, does less arithmetic and can be faster.
        """
        nearest = min(self.copies, key=lambda size: abs(size.bit_length() - int(bytes_).bit_length()))
        return max(flops / self.flops, bytes_ / self.copies[nearest])


def measured(device: str, synchronize: Callable[[], None], quick: bool) -> Ceilings:
    """The ceilings, on the threads that torch uses."""
    side = 8192 if device == "cuda" else 1536
    a, b = torch.randn(2, side, side, device=device)
    out = torch.empty_like(a)
    product = best(lambda: torch.mm(a, b, out=out), 8 if quick else 20, synchronize)
    copies = {}
    for megabytes in (0.25, 1, 4, 16, 64, 256):
        x = torch.randn(int(megabytes * 2**17), device=device)
        y = torch.empty_like(x)
        seconds = best(partial(y.copy_, x), 20 if quick else 40, synchronize)
        copies[2 * x.nbytes] = 2 * x.nbytes / seconds
    return Ceilings(2 * side**3 / product, copies)


def best(call: Callable[[], object], repeats: int, synchronize: Callable[[], None]) -> float:
    """Seconds of a call, in the fastest of the bursts."""
    call()
    synchronize()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(3):
            call()
        synchronize()
        times.append((time.perf_counter() - start) / 3)
    return min(times)
