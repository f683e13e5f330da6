"""How time is taken: right results first, then interleaved bursts, medians and spread, noisy rounds again.

In a round each contender runs one burst of calls, in a shuffled order, so that a slow second of the machine affects all
of them. A burst's time is the median of its calls. A ratio is the median over the rounds of (the peer's time / ours)
within one round; above 1 we are faster. A round in which a burst took NOISY times its contender's median is noisy and
is measured again, at most as often as there are rounds.
"""

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from . import jobs
from .ceilings import Ceilings
from .peers import Call, Case, Setting
from .record import Row

OURS = "zfkernels"
NOISY = 1.25
PAUSE = 0.02  # seconds before a burst, in which the threads of the last peer stop spinning on the cores
SLOW = 0.2  # seconds: a call this long is a burst of its own, without a call before it that does not count


class Pace(NamedTuple):
    """How long to measure: seconds a burst, seconds a case, the least and the most rounds."""

    burst: float
    case: float
    least: int
    most: int


FULL, QUICK = Pace(0.06, 10, 3, 9), Pace(0.02, 1.5, 3, 5)
LONG = Pace(0.02, 1.5, 3, 7)  # of jobs whose calls are long, which there are many of


def errors(case: Case) -> dict[str, float]:
    """Each contender's error; infinity for one that raises, and `case.missing` then says what."""
    right = case.right()
    result = {}
    for who, run in case.run.items():
        try:
            outs = tuple(torch.as_tensor(out) for out in run())
            result[who] = case.checks.get(who, case.check)(outs, right)
        except Exception as problem:  # one contender's crash is its own, not the others'
            result[who] = float("inf")
            case.missing[who] = (str(problem).strip() or type(problem).__name__).splitlines()[0][:120]
    return result


def burst(run: Callable[[], object], calls: int, synchronize: Callable[[], None]) -> float:
    """The median of the calls' seconds, after one that is not counted unless calls is 1."""
    times = []
    for _ in range(calls + (calls > 1)):
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[calls > 1 :])


def timed(
    runs: Mapping[str, Callable[[], object]], pace: Pace, synchronize: Callable[[], None] = lambda: None
) -> tuple[dict[str, list[float]], int, int]:
    """Seconds a call, for each contender and round; how many rounds were measured again, and how many stayed noisy."""
    once = {who: burst(run, 1, synchronize) for who, run in runs.items()}
    once = {who: burst(runs[who], 2, synchronize) if t < SLOW else t for who, t in once.items()}
    calls = {who: 1 if t > SLOW else max(2, min(200, int(pace.burst / max(t, 1e-7)))) for who, t in once.items()}
    length = sum(t * (calls[who] + 1) + PAUSE for who, t in once.items())
    count = max(pace.least, min(pace.most, int(pace.case / length)))
    order, shuffle = list(runs), random.Random(0).shuffle

    def one_round() -> dict[str, float]:
        shuffle(order)
        times = {}
        for who in order:
            time.sleep(PAUSE)
            times[who] = burst(runs[who], calls[who], synchronize)
        return times

    rounds = [one_round() for _ in range(count)]
    again = 0
    while (worst := noisiest(rounds)) is not None and again < count:
        rounds[worst] = one_round()
        again += 1
    left = sum(noise(rounds)[i] > NOISY for i in range(count))
    return {who: [r[who] for r in rounds] for who in runs}, again, left


def noise(rounds: list[dict[str, float]]) -> list[float]:
    """For each round, the largest ratio of a contender's time to its median over the rounds (1: none was slower)."""
    usual = {who: statistics.median(r[who] for r in rounds) for who in rounds[0]}
    return [max(t / usual[who] for who, t in r.items()) for r in rounds]


def noisiest(rounds: list[dict[str, float]]) -> int | None:
    ratios = noise(rounds)
    worst = max(range(len(ratios)), key=ratios.__getitem__)
    return worst if ratios[worst] > NOISY else None


def measure(case: Case, pace: Pace, ceilings: Ceilings | None = None) -> Row:
    """One row: the error of every contender, the times and ratios of those that are right."""
    error = errors(case)
    runs = {who: run for who, run in case.run.items() if error[who] <= case.setting.bound}
    row: Row = {"job": case.name, "n": case.n, "items": case.items or case.n, "flops": case.flops, "bytes": case.bytes}
    row |= {"errors": {who: e if e < float("inf") else str(e) for who, e in error.items()}, "missing": case.missing}
    row |= {"ms": {}, "spread": {}, "ratio": {}}
    if OURS not in runs:
        return row
    times, row["again"], row["noisy"] = timed(runs, pace, case.setting.synchronize)
    row["rounds"] = len(times[OURS])
    for who, t in times.items():
        quarter, middle, last = statistics.quantiles(t, n=4)
        row["ms"][who], row["spread"][who] = middle * 1e3, (last - quarter) / middle
    peers = [who for who in times if who != OURS]
    for who in peers:
        row["ratio"][who] = statistics.median(a / b for a, b in zip(times[who], times[OURS], strict=True))
    row["fastest"] = min(peers, key=row["ms"].__getitem__, default=None)
    if ceilings is not None and (case.flops or case.bytes):
        row["floor_ms"] = ceilings.floor(case.flops, case.bytes) * 1e3
    return row


def thread_scaling(setting: Setting, names: tuple[str, ...], n: int, pace: Pace) -> list[Row]:
    """Our time on one thread and on setting.threads, interleaved."""

    def on(threads: int, run: Call) -> Callable[[], None]:
        def call() -> None:
            torch.set_num_threads(threads)
            run()

        return call

    rows = []
    for name in names:
        alone = Setting(setting.backend, setting.threads, ())
        sizes = jobs.JOBS[name].sizes
        run = jobs.make(name, sizes[0] if sizes else n, alone).run[OURS]
        times, _, noisy = timed({str(t): on(t, run) for t in (1, setting.threads)}, pace, setting.synchronize)
        torch.set_num_threads(setting.threads)
        ms = {threads: statistics.median(t) * 1e3 for threads, t in times.items()}
        rows.append({"job": name, "n": n, "ms": ms, "speedup": ms["1"] / ms[str(setting.threads)], "noisy": noisy})
    return rows
