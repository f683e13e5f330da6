"""Builds zf_emulated: csrc/cuda/*.cu compiled by g++ against emulator.h, a module with the functions of zfkernels._C.

    python tests/emulator/build.py [--sanitize] [SOURCE.cu ...]

Objects are kept in build/emulator and reused when newer than their sources. With sources named, only these are taken
from csrc/cuda, and a call of what they leave undefined fails. Needs g++ or clang++ (CXX) on Linux.
"""

import argparse
import os
import shlex
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parent.parent.parent
HERE = Path(__file__).resolve().parent
COMMON = ["-std=c++17", "-g1", "-fPIC", "-march=native", "-fno-math-errno", "-Wall", "-Wextra", "-Werror"]
COMMON += ["-Wno-unknown-pragmas", "-fno-strict-aliasing", "-fvisibility=hidden"]
PLAIN = ["-O1"]
# GCC gives equal functions one address, by which instances.py tells them apart. (clang does not, and has no option.)
ONE_ADDRESS_EACH = "-fno-ipa-icf"
# Of UndefinedBehaviorSanitizer's checks those of what index arithmetic does wrong: all of them take twice the time.
CHECKS = "address,alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero,float-cast-overflow"
SANITIZED = ["-O1", f"-fsanitize={CHECKS}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]


def build(
    sanitize: bool = False,
    sources: list[Path] | None = None,
    out: Path = ROOT / "build/emulator",
    name: str = "zf_emulated",
) -> Path:
    """Compiles and links; returns the path of the module."""
    kernels = sources or sorted(p for p in (ROOT / "csrc/cuda").glob("*.cu") if p.stem != "device")
    sources = [*kernels, ROOT / "csrc/cuda/bindings.cpp", HERE / "module.cpp"]
    out = out / ("sanitized" if sanitize else "plain")
    out.mkdir(parents=True, exist_ok=True)
    flags = COMMON + (SANITIZED if sanitize else PLAIN)
    if "clang" not in compiler()[0]:
        flags = [*flags, ONE_ADDRESS_EACH]
    include = [ROOT / "csrc", HERE, pybind11.get_include(), sysconfig.get_path("include")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda s: compile_one(s, out, flags, include), sources))
    module = out / (name + sysconfig.get_config_var("EXT_SUFFIX"))
    run([*compiler(), "-shared", *flags, *map(str, objects), "-o", str(module)])
    return module


def compile_one(source: Path, out: Path, flags: list[str], include: list) -> Path:
    target = out / (source.name + ".o")
    headers = [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cuh"), *HERE.glob("*.h")]
    newest = max(p.stat().st_mtime for p in [source, *headers, Path(__file__)])
    if not target.exists() or target.stat().st_mtime <= newest:
        run([*compiler(), *flags, *(f"-I{p}" for p in include), "-x", "c++", "-c", str(source), "-o", str(target)])
    return target


def compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX", "g++"))


def run(command: list[str]) -> None:
    print(shlex.join(command), flush=True)
    if subprocess.run(command).returncode != 0:
        raise SystemExit("the command above failed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path)
    parser.add_argument("--sanitize", action="store_true", help="AddressSanitizer and UndefinedBehaviorSanitizer")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build/emulator", help="folder of the objects and the module"
    )
    arguments = parser.parse_args()
    print(build(arguments.sanitize, [p.resolve() for p in arguments.sources], arguments.out.resolve()))
    sys.exit(0)
