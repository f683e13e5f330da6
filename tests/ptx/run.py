"""Runs the CUDA kernels' own PTX on the CPU: the kernels first, then some that are wrong on purpose.

    python tests/ptx/run.py [--mutations COUNT]

1. `zfkernels verify`'s cases, and wider ones (96, 128 and 200 filters, 16 and 24 channels), in every dtype.
2. Maps that begin at any element or have more than 2^31, and switches that point nowhere
   (tests/backends/test_backends.py). device.cu: a call sets the device only where it is another, and then sets it back.
3. Every source with one fault: an op must fail.

Where the emulator (tests/emulator) compiles the sources by g++, this runs what nvcc made of them, so what nvcc's own
choices could break breaks here; and copies are done at once here, so a missing wait breaks there. Needs nvcc and g++ on
Linux, and zfkernels installed or built in place. Objects are kept in build/ptx.
"""

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import build

WIDE_CONVS = (  # n, c_in, c_out, (h, w), kernel, stride, padding
    (1, 16, 96, (13, 11), (3, 3), (1, 1), (1, 1)),
    (1, 24, 128, (9, 10), (3, 3), (1, 1), (1, 1)),
    (1, 3, 80, (22, 24), (7, 7), (2, 2), (1, 1)),  # the first layer's kernels; some values are not finite
    (1, 3, 96, (23, 19), (7, 7), (2, 2), (1, 1)),  # pooled by 3x3 windows at stride 2
    (2, 16, 200, (9, 8), (5, 5), (2, 2), (1, 1)),
    (1, 128, 24, (9, 9), (3, 3), (1, 1), (1, 1)),  # transposed, the channels are the filters
    (1, 200, 16, (8, 9), (3, 3), (2, 2), (1, 1)),
    (1, 96, 24, (12, 13), (1, 1), (1, 1), (0, 0)),
)
WIDE_POOLS = ((1, 96, (13, 12), (3, 3), (2, 2), (0, 0), True), (1, 200, (7, 8), (3, 3), (2, 2), (1, 1), False))
WIDE_NORMS = (  # the second wants more shared memory than a block has for whole stacks, the third for one
    (1, 128, (3, 5), 5, 1e-4, 0.75, 2.0, False),
    (1, 8000, (1, 2), 5, 1e-4, 0.75, 2.0, True),
    (1, 26000, (1, 1), 4, 1e-4, 0.75, 2.0, True),
)

# A source, the text to change in it (which must occur once), what it becomes, the op that must fail, and its words.
MUTATIONS = [
    ("conv.cu", "r.to_h + a * r.hop_h", "r.to_h + a", "conv_transpose2d", "error"),
    (
        "conv.cu",
        "const int n0 = static_cast<int>(blockIdx.x % o.tiles_n) * BN;",
        "const int n0 = 0;",
        "conv2d",
        "error",
    ),
    ("conv_weight_grad.cu", "left -= kLoadRows;", "left -= kLoadRows + 1;", "conv2d_weight_grad", "error"),
    ("contrast_norm.cu", "y[i] = x.values[i + kReach]", "y[i] = x.values[i]", "contrast_norm", "error"),
    (
        "fused.cu",
        "const uint32_t rank = 255 - place;",
        "const uint32_t rank = place;",
        "conv2d_relu_max_pool2d",
        "error",
    ),
    (
        "fused_transpose.cu",
        "sums[0][j][e] = total(j + 2 * kRows, e);",
        "sums[0][j][e] = total(j + kRows, e);",
        "max_unpool2d_relu_conv_transpose2d",
        "error",
    ),
    (
        "fused_transpose.cu",
        "start -= (start + p.pool.PH) & 1;",
        "",
        "max_unpool2d_relu_conv_transpose2d",
        "error",
    ),
    ("max_pool.cu", "if (switches[i] == static_cast<uint32_t>(tap)) ", "", "max_unpool2d", "error"),
    ("conv_weight_grad.cu", "% 2, top = i * p.SH;", "% 2, top = i;", "conv2d_weight_grad", "error"),
    (
        "conv_weight_grad.cu",
        "for (int i = 1; i < kWarps; ++i)",
        "for (int i = 2; i < kWarps; ++i)",
        "conv2d_weight_grad",
        "error",
    ),
    (
        "max_pool.cu",
        "h = top + tap / 3, w = left + tap % 3",
        "h = top + tap % 3, w = left + tap / 3",
        "max_unpool2d_backward",
        "error",
    ),
    (
        "contrast_norm.cu",
        "value.store(shown + local * s.C + c);",
        "value.store(shown + c);",
        "max_pool2d_contrast_norm",
        "error",
    ),
    # What a device refuses, or answers with an error of its own.
    ("conv.cu", "if (p.C % kChunk<M> != 0) {", "if (false) {", "conv2d", "misaligned access to global memory"),
    ("conv.cu", " && c < p.channels", "", "conv2d", "error"),
    ("conv.cu", "(j == 0 || e + j < run_elements)", "true", "conv2d", "error"),
    ("max_pool.cu", "smaller(kThreads, round_up", "smaller(1024, round_up", "max_pool2d", "launch bounds of 256"),
    (
        "contrast_norm.cu",
        "kFloats = kMostShared / 4,",
        "kFloats = 40960,",
        "contrast_norm",
        "of shared memory, of which",
    ),
    ("fused.cu", "o.input_pitch * 2;", "o.input_pitch;", "conv2d_relu_max_pool2d", "accessed beyond its end"),
]

WORDS = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(build.ROOT / "tests/emulator")!r})
import backend
module, wide, ops = sys.argv[1:]
registered = backend.register(Path(module))
from zfkernels.testing import cases, verify
if wide == "wide":
    cases.FIXED_CONVS, cases.FIXED_POOLS, cases.FIXED_NORMS = {WIDE_CONVS!r}, {WIDE_POOLS!r}, {WIDE_NORMS!r}
report = lambda rows: print(verify.line(rows), flush=True)
rows = verify.run("emulated", cases=0 if wide == "wide" else 3, ops=ops.split(",") if ops else None, report=report)
failed = [row for row in rows if row.failure]
print(*(f"FAILED {{row.op}} {{row.dtype}}: {{row.failure}}" for row in failed), sep="\\n")
sys.exit(1 if failed else 0)
"""

DEVICES = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(build.ROOT / "tests/emulator")!r})
import backend
import torch
compiled = backend.register(Path(sys.argv[1]))._C
x, y, switches = torch.zeros(16), torch.zeros(4), torch.zeros(4, dtype=torch.uint8)
addresses = [t.data_ptr() for t in (x, y, switches)]
sizes = (1, 1, 4, 4, 2, 2, 2, 2, 2, 2, 0, 0)
def sets(device):
    before = compiled.devices_set()
    compiled.cuda_max_pool2d((device, 0, 0, False), sizes, *addresses)
    return compiled.devices_set() - before
counts = sets(0), sets(1), sets(0)
if counts != (0, 2, 0):
    sys.exit(f"a call for the current device, for another, and again set a device {{counts}} times, not (0, 2, 0)")
compiled.cuda_self_test(0)
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    text = "how many of the faults, others each day (default: all)"
    parser.add_argument("--mutations", type=int, default=len(MUTATIONS), metavar="COUNT", help=text)
    first, count = date.today().toordinal() * 2, parser.parse_args().mutations
    faults = [(first + i) % len(MUTATIONS) for i in range(min(count, len(MUTATIONS)))]
    started = time.monotonic()
    module = build.build()
    print(f"built in {time.monotonic() - started:.0f} s", flush=True)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = [pool.submit(python, WORDS, str(module), wide, "") for wide in ("", "wide")]
        devices = pool.submit(python, DEVICES, str(module))
        edges = pool.submit(on_the_edge, module)
        mutated = [pool.submit(mutation, number) for number in faults]
        for run, which in zip(runs, ("", ", of the wider cases"), strict=True):
            done = run.result()
            print(done.stdout + done.stderr, flush=True)
            if done.returncode != 0:
                pool.shutdown(wait=False, cancel_futures=True)
                raise SystemExit(f"failed{which}")
        if devices.result().returncode != 0:
            raise SystemExit(devices.result().stderr)
        if edges.result().returncode != 0:
            raise SystemExit(edges.result().stdout)
        for text in mutated:
            print(text.result(), flush=True)
    print(f"passed in {time.monotonic() - started:.0f} s")
    return 0


def python(words: str, *arguments: str) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(build.ROOT), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", words, *arguments], capture_output=True, text=True, env=variables)


def on_the_edge(module: Path) -> subprocess.CompletedProcess:
    """The tests of maps that begin anywhere and switches that point nowhere: a device refuses what a CPU does not. And
    of offsets that nvcc might count in 32 bits."""
    paths = os.pathsep.join([str(build.ROOT), os.environ.get("PYTHONPATH", "")])
    variables = os.environ | {"PYTHONPATH": paths, "ZFKERNELS_EMULATED": str(module), "OMP_NUM_THREADS": "1"}
    which = "emulated and (any_element or bad_switches or more_elements or tf32_operands)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/backends/test_backends.py", "-k"]
    return subprocess.run([*command, which], cwd=build.ROOT, env=variables, capture_output=True, text=True)


def mutation(number: int) -> str:
    """What caught the fault; SystemExit when nothing did."""
    file, before, after, op, words = MUTATIONS[number]
    source = (build.ROOT / "csrc/cuda" / file).read_text()
    if source.count(before) != 1:
        raise SystemExit(f"the text to change is not in {file} once: {before!r}")
    changed = build.OUT / f"mutated_{number}" / file
    changed.parent.mkdir(parents=True, exist_ok=True)
    changed.write_text(source.replace(before, after))
    module = build.build({file: changed}, f"mutated_{number}")
    said = ""
    for wide in ("", "wide"):
        run = python(WORDS, str(module), wide, op)
        if run.returncode != 0 and words in run.stdout:
            return f"mutation of {file}: caught by {op} ({words})"
        said += run.stdout + run.stderr
    raise SystemExit(f"{op} passed with {before!r} changed to {after!r} in {file}, or without {words!r}:\n{said}")


if __name__ == "__main__":
    sys.exit(main())
