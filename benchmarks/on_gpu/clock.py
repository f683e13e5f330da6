"""Times on a GPU, in which no time of the host is: the device spins while the host queues what is measured."""

import random
import time
from collections.abc import Callable

import torch

FLUSHED = 256 << 20  # bytes, several times any L2
LONGEST = 1 << 27  # cycles of a spin, some 70 ms: a call that still comes late synchronizes by itself
SPARE = 100e-6  # seconds that a spin lasts beyond twice the host's


def times(runs: dict[str, Callable], rounds: int, device: str) -> tuple[dict[str, list[float]], list[str]]:
    """Seconds of single calls, one a round for each contender, with a cold L2 cache; and who came late all the same.

    A call is late when the spin has ended before all of the call was queued: the device may then have waited for the
    host. Its spin is doubled and it is measured again.
    """
    if not runs:
        return {}, []
    flush = torch.empty(FLUSHED if device == "cuda" else 1, dtype=torch.uint8, device=device)
    rate = cycles_a_second()
    cycles = {who: int(rate * (2 * host_seconds(run) + SPARE)) for who, run in runs.items()}
    seconds: dict[str, list[float]] = {who: [] for who in runs}
    late: list[str] = []
    order, shuffle = list(runs), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for who in order:
            taken, in_time = one(runs[who], cycles[who], flush)
            while not in_time and who not in late and cycles[who] < LONGEST:
                cycles[who] *= 2
                taken, in_time = one(runs[who], cycles[who], flush)
            late += [] if in_time or who in late else [who]
            seconds[who].append(taken)
    return seconds, late


def one(run: Callable, cycles: int, flush: torch.Tensor) -> tuple[float, bool]:
    """The seconds of one call, and whether it was queued before the spin ended."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    flush.zero_()
    torch.cuda._sleep(cycles)
    start.record()
    run()
    end.record()
    in_time = not start.query()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3, in_time


def host_seconds(run: Callable) -> float:
    """What the host takes to queue a call, the longest of three after two that warm up."""
    taken = []
    for i in range(5):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        run()
        taken += [time.perf_counter() - begin] if i >= 2 else []
    torch.cuda.synchronize()
    return max(taken)


def cycles_a_second() -> float:
    """The rate at which a spin counts, by the device's own clock."""
    cycles, rates = 10_000_000, []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        torch.cuda._sleep(cycles)
        end.record()
        torch.cuda.synchronize()
        rates.append(cycles / max(start.elapsed_time(end) / 1e3, 1e-6))
    return max(rates)
