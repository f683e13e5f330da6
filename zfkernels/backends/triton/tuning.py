"""Which tile, warps and stages a matrix kernel runs with: a rule that needs no measurement, and measured choices.

`choose` answers from the rule unless a choice was measured on this device for this problem. Measuring happens only when
asked for by ZFKERNELS_TUNE=1, at a problem's first call and outside CUDA graph capture. A configuration is admitted
only if its result on random data agrees with torch's in float64 (Triton has miscompiled single configurations of such
loops: pytorch issue 173068), and the fastest admitted one is kept in

    $ZFKERNELS_CACHE/triton-<device>-<triton's version>-<digest of this folder's sources>.json

(by default under ~/.cache/zfkernels), so that a later process makes the same choice and computes the same bits. Delete
the file to forget. `table` is what it holds.
"""

import contextlib
import functools
import hashlib
import json
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from .correlation import Config, Problem
from .launch import Target, power_of_two

CACHE, TUNE = "ZFKERNELS_CACHE", "ZFKERNELS_TUNE"

# The rule

# Tiles by size, each with its warps: 128x128 with 8 warps keeps 64 sums a thread and two programs on a multiprocessor;
# the smaller ones are for problems that would leave multiprocessors idle.
TILES = ((128, 128, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4), (32, 32, 2))
FMA_TILES = ((64, 64, 8), (32, 32, 4))  # no matrix units: both operands of a step pass through registers


def rule(problem: Problem, target: Target) -> Config:
    """The configuration that needs no measurement: a tile, and as many stages as leave room for a second program in
    shared memory."""
    if target.kind == "interpreter":
        return Config(64, 32, 32, 4, 1)
    fma = problem.precision == "ieee" and target.kind == "cuda"
    config = tile(problem, target, fma)
    if target.kind == "hip":  # 64 KiB of shared memory, waves of 64
        return config._replace(k=min(config.k, 32), warps=max(config.warps // 2, 1), stages=2)
    if fma:
        return config._replace(stages=2)
    bytes_of_step = config.k * (2 if problem.precision == "half" else 4)
    # The weight gradient's registers leave room for one program only, whose loads must then run further ahead.
    stages = 3 if bytes_of_step == 128 and problem.op != "conv2d_weight_grad" else 4
    if problem.op == "conv_transpose2d to an image":  # two loops, whose buffers both hold registers for addresses
        stages = 3
    if problem.op == "conv_transpose2d" and problem.precision == "tf32" and config.warps == 2:
        config = config._replace(warps=4)  # with 2, triton 3.9's ptxas moves 8 bytes to memory for sm_80
    return config._replace(stages=stages)


def tile(problem: Problem, target: Target, fma: bool) -> Config:
    """The largest tile, no larger than the product, that gives each multiprocessor at least one program (the weight
    gradient's sums are shared out among programs besides); the smallest where none does. Stages are left to `rule`."""
    k = depth_step(problem, fma)
    tiles = (Config(m, n, k, warps, 0) for m, n, warps in (FMA_TILES if fma else TILES))
    # fused.py's products are of 64 rows; 32 would be another instruction's, and perhaps other bits.
    least = 64 if problem.op == "conv2d of an image" and not fma else 0
    rows, columns = max(64, power_of_two(problem.rows)), max(32, power_of_two(problem.columns))
    fitting = [config for config in tiles if least <= config.m <= rows and config.n <= columns]
    shared_out = problem.op == "conv2d_weight_grad"
    enough = (config for config in fitting if shared_out or problem.programs(config) >= target.processors)
    config = next(enough, fitting[-1])
    return config._replace(n=min(config.n, max(16, power_of_two(problem.columns))))


def depth_step(problem: Problem, fma: bool) -> int:
    """The terms of the sum in one step: 128 bytes of a 16-bit type where the runs are multiples of that."""
    if fma:
        return 16
    if problem.op == "conv2d_weight_grad":  # the terms are pixels, any number of them
        return 64 if problem.precision == "half" else 32
    if problem.precision == "half" and problem.run % 64 == 0:
        return 64
    return 32 if problem.run > 16 else 16


def shares(tiles: int, most: int, slots: int, overhead: float = 0.0) -> int:
    """The number of shares, 1 to `most`, to cut each of `tiles` tiles into, for `slots` programs that run at a time.

    The fewest that leave the least of the last round idle; each share adds `overhead` of a tile's work.
    """

    def use(count: int) -> float:
        rounds = -(-tiles * count // slots)
        return tiles * count / (max(rounds, 1) * slots) / (1 + overhead * count)

    return max(range(1, max(most, 1) + 1), key=lambda count: (use(count), -count))


def choose(problem: Problem, target: Target) -> Config:
    """The configuration that is being tried, else the one measured on this device, else the rule's."""
    if problem.key in _tried:
        return _tried[problem.key]
    measured = _measured(target.name).get(problem.key) if target.name else None
    return rule(problem, target) if measured is None else Config(*measured["config"])


# Measuring

SPIN = 2_000_000  # cycles, a millisecond: the device waits so long before a measured call, until all of it is queued

_tried: dict[str, Config] = {}


@contextlib.contextmanager
def trying(problem: Problem, config: Config) -> Iterator[None]:
    """Within it `choose` answers `config` for the problem."""
    _tried[problem.key] = config
    try:
        yield
    finally:
        _tried.pop(problem.key, None)


def asked() -> bool:
    """Whether ZFKERNELS_TUNE asks for measurements."""
    return os.environ.get(TUNE, "0") not in ("", "0")


def tune(problem: Problem, target: Target, trial: Callable[[], tuple[Callable[[], Tensor], Tensor]]) -> None:
    """Measures the problem on `target`, the device at hand, if that is possible now and was not done yet.

    trial() gives a function that computes a random instance of the problem, and its result in float64.
    """
    if not target.name or problem.rows * problem.depth == 0 or problem.key in _tried:
        return
    if problem.key not in _measured(target.name) and not torch.cuda.is_current_stream_capturing():
        measure(problem, target, *trial())


def candidates(problem: Problem, target: Target) -> Iterator[Config]:
    """The rule's configuration, and those near it that could be faster."""
    first = rule(problem, target)
    yield first
    if problem.precision == "ieee":
        return
    for config in (
        *(first._replace(m=m, n=n, warps=warps) for m, n, warps in ((256, 128, 8), (128, 256, 8), (128, 64, 4))),
        first._replace(m=64, n=min(64, first.n), warps=4),
        first._replace(stages=first.stages + 1),
        first._replace(stages=first.stages - 1),
    ):
        busy = problem.op == "conv2d_weight_grad" or 2 * problem.programs(config) >= target.processors
        if config != first and busy and config.n <= max(16, power_of_two(problem.columns)):
            yield config
    yield from persistent(problem, target)


def persistent(problem: Problem, target: Target) -> Iterator[Config]:
    """Configurations of persistent programs, which copy filters by a descriptor: Hopper's and newer GPUs', for plain
    convolutions in 16-bit types whose steps are whole."""
    first = rule(problem, target)
    newest = target.kind == "cuda" and isinstance(target.arch, int) and target.arch >= 90
    if not newest or problem.op != "conv2d" or problem.precision != "half" or problem.run % first.k:
        return
    for m, n, stages, programs in ((128, 128, 3, 2), (128, 256, 3, 1), (256, 128, 3, 1)):
        config = first._replace(m=m, n=n, warps=8, stages=stages, programs=programs)
        if n <= max(16, power_of_two(problem.columns)) and problem.programs(config) > programs * target.processors:
            yield config


def measure(problem: Problem, target: Target, run: Callable[[], Tensor], expected: Tensor) -> None:
    """Tries `candidates` on `run`, whose launches ask `choose`; keeps the fastest whose result is right.

    `expected` is the result in float64. Raises RuntimeError when no candidate's result is right.
    """
    from ...testing.compare import BOUNDS, TF32_BOUND

    admitted: list[dict[str, Any]] = []
    refused: list[dict[str, Any]] = []
    for config in candidates(problem, target):
        with trying(problem, config):
            try:
                out = _poisoned(run)
            except (triton.TritonError, RuntimeError) as failure:  # too large, or more than the compiler can take
                refused.append({"config": config, "error": f"{type(failure).__name__}: {str(failure)[:200]}"})
                continue
            error = float((out.double() - expected).norm() / expected.norm())
            if error <= (TF32_BOUND if problem.precision == "tf32" else BOUNDS[out.dtype]):  # not so for NaN
                admitted.append({"config": config, "seconds": _seconds(run), "error": error})
            else:
                refused.append({"config": config, "error": error})
    if not admitted:
        raise RuntimeError(f"no configuration of {problem.key} computes the right result on {target.name}: {refused}")
    fastest = min(admitted, key=lambda entry: entry["seconds"])
    rule_seconds = next((entry["seconds"] for entry in admitted if entry["config"] == rule(problem, target)), None)
    _keep(target.name, problem.key, fastest | {"rule_seconds": rule_seconds, "refused": refused})


def _poisoned(run: Callable[[], Tensor]) -> Tensor:
    """run() in memory filled with NaN: what is not written could hold the right result of the run before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return run()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _seconds(run: Callable[[], Tensor]) -> float:
    """The median of ten runs after three, of the device's time alone."""
    times: list[float] = []
    for _ in range(13):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(SPIN)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times[3:])


# What was measured


def path(name: str) -> Path:
    """The file of the choices measured on the device of this name."""
    folder = Path(os.environ.get(CACHE) or Path.home() / ".cache" / "zfkernels")
    device = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")
    return folder / f"triton-{device}-{triton.__version__}-{_digest()}.json"


def table(name: str) -> dict[str, dict[str, Any]]:
    """Problem -> its measured choice on the device of this name: config (m, n, k, warps, stages, programs), seconds,
    the error that admitted it, the rule's seconds, and the configurations that computed a wrong result."""
    return dict(_measured(name))


@functools.cache
def _digest() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def _measured(name: str) -> dict[str, dict[str, Any]]:
    """The file's content; a file that cannot be read counts as none, since it only saves time."""
    try:
        found: dict[str, dict[str, Any]] = json.loads(path(name).read_text())
        return found
    except (OSError, ValueError):
        return {}


def _keep(name: str, key: str, entry: dict[str, Any]) -> None:
    """Adds the entry to the file, all at once, after what other processes have written there meanwhile."""
    _measured.cache_clear()
    content = _measured(name)
    content[key] = entry
    file = path(name)
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as whole:
        json.dump(content, whole, indent=1, sort_keys=True)
    os.replace(whole.name, file)
