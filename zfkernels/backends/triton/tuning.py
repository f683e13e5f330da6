"""Which tile, warps and stages a matrix kernel runs with: a rule that needs no measurement, and measured choices.

`choose` answers from the rule unless a choice was measured on this device for this problem. Measuring happens only when
asked for: by ZFKERNELS_TUNE=1, at a problem's first call and outside CUDA graph capture, or by `conv.tune`. A
configuration is admitted only if its result on random data agrees with torch's in float64 (Triton has miscompiled
single configurations of just such loops: pytorch issue 173068), and the fastest admitted one is kept in

    $ZFKERNELS_CACHE/triton-<device>-<triton's version>-<digest of this folder's sources>.json

(by default under ~/.cache/zfkernels), so that a later process makes the same choice and computes the same bits. Delete
the file to forget. `table` is what it holds.
"""

import functools
import hashlib
import json
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from .tensors import INTERPRETED, power_of_two

CACHE, TUNE = "ZFKERNELS_CACHE", "ZFKERNELS_TUNE"
BOUNDS = {"ieee": 1e-5, "tf32": 1e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}  # ||out - expected|| / ||expected||


class Target(NamedTuple):
    """What the rule must know of a device. `kind`: "cuda", "hip" or "interpreter"; `arch`: 90, "gfx942".

    `name` is the device's, under which its measured choices are kept; "" for one that is not here.
    """

    kind: str
    arch: int | str
    processors: int
    name: str = ""


class Config(NamedTuple):
    """A program computes an m x n tile, k terms of the sum at a time, with so many warps and loads so far ahead."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


class Problem(NamedTuple):
    """A product as the rule sees it: rows x columns x depth; the depth comes in runs of `run` contiguous terms.

    `precision` is "half" for 16-bit operands, else the input precision of a float32 product, "tf32" or "ieee".
    """

    op: str
    rows: int
    columns: int
    depth: int
    run: int
    precision: str

    @property
    def key(self) -> str:
        return f"{self.op} {self.rows}x{self.columns}x{self.depth} run {self.run} {self.precision}"


@functools.cache
def target(device: torch.device) -> Target:
    """The target that kernels for `device` are compiled for."""
    if INTERPRETED:
        return Target("interpreter", 0, 1)
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return Target("hip", properties.gcnArchName.split(":")[0], properties.multi_processor_count, properties.name)
    arch = 10 * properties.major + properties.minor
    return Target("cuda", arch, properties.multi_processor_count, properties.name)


def precision(dtype: torch.dtype, kind: str) -> str:
    """How a product of `dtype` is computed: "half", or for float32 what torch's setting for convolutions says.

    TF32 is torch's default for convolutions; torch.backends.cudnn.allow_tf32 = False asks for "ieee". (Not "tf32x3": on
    Hopper its splitting of the first operand is the register hazard that conv.py keeps away from.)
    """
    if dtype != torch.float32:
        return "half"
    tf32 = kind != "interpreter" and torch.backends.cudnn.conv.fp32_precision == "tf32"
    return "tf32" if tf32 else "ieee"


# The rule

# Tiles by size, each with its warps: 128x128 with 8 warps keeps 64 sums a thread and two programs on a multiprocessor;
# the smaller ones are for problems that would leave multiprocessors idle.
TILES = ((128, 128, 8), (128, 64, 4), (64, 64, 4), (64, 32, 4), (32, 32, 2))
FMA_TILES = ((64, 64, 8), (32, 32, 4))  # no matrix units: both operands of a step pass through registers


def rule(problem: Problem, target: Target) -> Config:
    """The configuration that needs no measurement; conv.py's header has the arithmetic.

    The largest tile, no larger than the product, that gives each multiprocessor at least one program (the weight
    gradient's sums are shared out among programs besides); steps of 64 terms (128 bytes of a 16-bit type) where the
    runs are multiples of it and 32 otherwise; as many stages as leave room for a second program in shared memory.
    """
    if target.kind == "interpreter":
        return Config(64, 32, 32, 4, 1)
    fma = problem.precision == "ieee" and target.kind == "cuda"
    # fused.py's products are of 64 rows; of 32 they would be another instruction's, and other bits perhaps.
    least = 64 if problem.op == "conv2d of an image" and not fma else 0
    shared_out = problem.op == "conv2d_weight_grad"
    tiles = [
        Config(m, n, depth_step(problem, fma), warps, 0)
        for m, n, warps in (FMA_TILES if fma else TILES)
        if n <= max(32, power_of_two(problem.columns)) and least <= m <= max(64, power_of_two(problem.rows))
    ]
    enough = (tile for tile in tiles if shared_out or programs(problem, tile) >= target.processors)
    config = next(enough, tiles[-1])
    config = config._replace(n=min(config.n, max(16, power_of_two(problem.columns))))
    if target.kind == "hip":  # 64 KiB of shared memory, waves of 64
        return config._replace(k=min(config.k, 32), warps=max(config.warps // 2, 1), stages=2)
    bytes_of_step = config.k * (2 if problem.precision == "half" else 4)
    # The weight gradient's registers leave room for one program only, whose loads must then run further ahead.
    stages = 3 if bytes_of_step == 128 and not shared_out else 4
    if problem.op == "conv_transpose2d" and problem.precision == "tf32" and config.warps == 2:
        config = config._replace(warps=4)  # with 2, triton 3.9's ptxas moves 8 bytes to memory for sm_80
    if problem.op == "conv_transpose2d to an image":  # two loops, whose buffers both hold registers for addresses
        stages = 3
    return config._replace(stages=2 if fma else stages)


def depth_step(problem: Problem, fma: bool) -> int:
    """The terms of the sum that one step takes."""
    if fma:
        return 16
    if problem.op == "conv2d_weight_grad":  # pixels, of which there is any number
        return 64 if problem.precision == "half" else 32
    if problem.precision == "half" and problem.run % 64 == 0:
        return 64
    return 32 if problem.run > 16 else 16


def programs(problem: Problem, config: Config) -> int:
    """How many tiles a problem has."""
    return -(-problem.rows // config.m) * -(-problem.columns // config.n)


def shares(tiles: int, most: int, slots: int, overhead: float = 0.0) -> int:
    """Into how many shares, 1 to `most`, to cut each of `tiles` tiles, for `slots` programs that run at a time.

    The fewest that leave least of the last round idle; each share adds `overhead` of a tile's work.
    """

    def use(count: int) -> float:
        rounds = -(-tiles * count // slots)
        return tiles * count / (max(rounds, 1) * slots) / (1 + overhead * count)

    return max(range(1, max(most, 1) + 1), key=lambda count: (use(count), -count))


def choose(problem: Problem, target: Target) -> Config:
    """The configuration that is being tried, else the one measured on this device, else the rule's."""
    if problem.key in _tried:
        return _tried[problem.key]
    found = _measured(target.name).get(problem.key) if target.name else None
    return rule(problem, target) if found is None else Config(*found["config"])


# Measuring

_tried: dict[str, Config] = {}


def asked() -> bool:
    """Whether ZFKERNELS_TUNE asks for measurements."""
    return os.environ.get(TUNE, "0") not in ("", "0")


def wanted(problem: Problem, target: Target) -> bool:
    """Whether this problem can be measured now, and was not yet."""
    if not target.name or problem.key in _tried:
        return False
    return problem.key not in _measured(target.name) and not torch.cuda.is_current_stream_capturing()


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
        busy = problem.op == "conv2d_weight_grad" or 2 * programs(problem, config) >= target.processors
        if config != first and busy and config.n <= max(16, power_of_two(problem.columns)):
            yield config


def measure(problem: Problem, target: Target, run: Callable[[], Tensor], expected: Tensor) -> dict[str, Any]:
    """Tries `candidates` on `run`, whose launches ask `choose`; keeps and returns the fastest whose result is right.

    `expected` is the result in float64. Raises RuntimeError when no candidate's result is right.
    """
    kept, refused, rule_time = None, [], None
    scale = expected.norm()
    try:
        for config in candidates(problem, target):
            _tried[problem.key] = config
            try:
                out = _poisoned(run)
            except (triton.TritonError, RuntimeError) as failure:  # too large, or more than the compiler can take
                refused.append({"config": config, "error": f"{type(failure).__name__}: {str(failure)[:200]}"})
                continue
            bound = BOUNDS[out.dtype if problem.precision == "half" else problem.precision]
            error = float((out.double() - expected).norm() / scale)
            if not error <= bound:  # also true for NaN
                refused.append({"config": config, "error": error})
                continue
            seconds = _seconds(run)
            rule_time = seconds if rule_time is None and config == rule(problem, target) else rule_time
            if kept is None or seconds < kept["seconds"]:
                kept = {"config": config, "seconds": seconds, "error": error}
    finally:
        _tried.pop(problem.key, None)
    if kept is None:
        raise RuntimeError(f"no configuration of {problem.key} computes the right result on {target.name}: {refused}")
    kept |= {"rule_seconds": rule_time, "refused": refused}
    _keep(target.name, problem.key, kept)
    return kept


def _poisoned(run: Callable[[], Tensor]) -> Tensor:
    """run() in memory filled with NaN, for what is not written could hold the right result of the run before."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return run()
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _seconds(run: Callable[[], Tensor]) -> float:
    """The median of ten runs after three."""
    times = []
    for _ in range(13):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
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
    """Problem -> its measured choice on the device of this name: config (m, n, k, warps, stages), seconds, the error
    that admitted it, the rule's seconds, and the configurations that computed a wrong result."""
    return dict(_measured(name))


@functools.cache
def _digest() -> str:
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]


@functools.cache
def _measured(name: str) -> dict[str, dict[str, Any]]:
    """The file's content; a file that cannot be read counts as none, for it only saves time."""
    try:
        return json.loads(path(name).read_text())
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
