"""Which instances of the CUDA kernels no case ran: `zfkernels verify`'s cases on the emulated backend, then the kernels
among the symbols of its module that were never launched.

    python tests/emulator/instances.py MODULE [--cases N]

MODULE is what build.py made. Exits 1 where a case fails or an instance was not run. Needs nm.
"""

import argparse
import re
import subprocess
import sys
from pathlib import Path

import backend
import torch

from zfkernels.testing import coverage, verify
from zfkernels.testing.cases import Draw, conv_case
from zfkernels.testing.checks import failure

# "000000000004c8d0 t void zf::cuda::(anonymous namespace)::name_kernel<...>(...)", but nothing inside a kernel.
SYMBOL = re.compile(
    r"^([0-9a-f]+) [tTwW] (?:void )?zf::cuda::\(anonymous namespace\)::(\w+_kernel(?:<[^()]*>)?)\(.*\)$"
)

# TF32 is verify's alone; its fixed cases leave these (n, c_in, c_out, size, kernel, stride, padding), by the number of
# the draw: an odd one rectifies, and none of these is of values that are not finite.
TF32_CONVS = {
    number: (1, *channels, (7, 6), (3, 3), (1, 1), (1, 1))
    for number, channels in ((1, (5, 128)), (3, (128, 5)), (7, (128, 16)), (9, (96, 5)), (13, (96, 16)))
}


def instances(module: Path) -> dict[int, str]:
    """The kernels that are compiled into a module: address -> name with template arguments."""
    listed = subprocess.run(["nm", "-C", str(module)], capture_output=True, text=True, check=True).stdout
    found = (SYMBOL.match(line) for line in listed.splitlines() if "{lambda" not in line and "[clone" not in line)
    return {int(match[1], 16): match[2].replace("zf::cuda::", "") for match in found if match}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("module", type=Path)
    parser.add_argument("--cases", type=int, default=0, help="random cases an op, besides the fixed ones (default 0)")
    arguments = parser.parse_args()
    emulated = backend.register(arguments.module)
    rows = verify.run(backend.NAME, cases=arguments.cases)
    for op in ("conv2d", "conv_transpose2d"):
        wide = [conv_case(op, Draw(0, op, number, True), shape) for number, shape in TF32_CONVS.items()]
        rows.append(verify.check(op, backend.NAME, emulated, torch.float32, wide, tf32=True))
    failures = [f"{row.op} in {row.dtype}: {row.failure}" for row in rows if row.failure]
    for case in coverage.cases(backend.NAME):
        if reason := failure(case):
            failures.append(f"{reason}: {case.text()}")
    known = instances(arguments.module)
    ran = set(emulated._C.launched())
    if strange := ran - set(known):
        raise SystemExit(
            f"{len(strange)} launched kernels are not among the {len(known)} symbols of {arguments.module}"
        )
    missing = sorted(name for address, name in known.items() if address not in ran)
    for line in failures:
        print(f"FAILED {line}")
    for name in missing:
        print(f"NOT RUN {name}")
    print(f"{len(known)} instances of CUDA kernels, {len(missing)} that no case ran, {len(failures)} failures")
    return 1 if missing or failures or not known else 0


if __name__ == "__main__":
    sys.exit(main())
