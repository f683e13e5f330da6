"""Builds the CPU kernels with the sanitizers, without Python around them, and runs driver.cpp on them.

    python tests/sanitize/run.py [--cases 40] [--seed 0] [--thread]
    python tests/sanitize/run.py --cross aarch64 [--cases 25]

First it commits faults on purpose and checks that each of them ends the program; then the checks must pass without a
report. AddressSanitizer and UndefinedBehaviorSanitizer by default, ThreadSanitizer with --thread. --cross compiles the
baseline kernels for another processor, without a sanitizer, and runs them under an emulator: Debian's
g++-aarch64-linux-gnu and qemu-user for aarch64. Objects are kept in build/sanitize and reused when newer than their
sources. Needs g++ or clang++ (CXX) on Linux.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent.parent
KINDS = {"address": "address,undefined", "thread": "thread"}
# Fault -> what the report that ends the program says.
FAULTS = {
    "address": {
        "read": "AddressSanitizer: heap-buffer-overflow",
        "read-guard": "AddressSanitizer: SEGV",
        "write": "AddressSanitizer: heap-buffer-overflow",
        "scratch": "AddressSanitizer: SEGV",
        "overflow": "runtime error: signed integer overflow",
    },
    "thread": {"race": "ThreadSanitizer: data race"},
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=40, help="random cases for each instruction set and element type")
    parser.add_argument("--seed", type=int, default=0)
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--thread", action="store_true", help="ThreadSanitizer instead of the other two")
    kinds.add_argument("--cross", choices=["aarch64"], help="no sanitizer: for this processor, under an emulator")
    args = parser.parse_args()
    os.chdir(ROOT)
    if args.cross:
        program = build_for(args.cross)
        return subprocess.run([f"qemu-{args.cross}", program, str(args.seed), str(args.cases)]).returncode
    kind = "thread" if args.thread else "address"
    driver = build(kind)
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=1", "TSAN_OPTIONS": "halt_on_error=1"}
    for fault, report in FAULTS[kind].items():
        done = subprocess.run([driver, "inject", fault], capture_output=True, text=True, env=environment)
        if done.returncode == 0 or report not in done.stderr:
            print(f"the injected fault {fault!r} was not caught (exit code {done.returncode}):\n{done.stderr}")
            return 1
        print(f"injected {fault}: caught")
    return subprocess.run([driver, str(args.seed), str(args.cases)], env=environment).returncode


def build(kind: str) -> str:
    """Builds the driver with sanitizers, for the instruction sets that this CPU has; returns the program's path."""
    setup = build_script()
    sanitize = [f"-fsanitize={KINDS[kind]}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    if kind == "address":  # the other checks see these too; without them compiling takes half as long
        sanitize += ["-fno-sanitize=null,alignment,object-size,pointer-overflow,vptr"]
    usable = processor_flags()
    sets = {name: gcc for name, (gcc, _) in setup.INSTRUCTION_SETS.items() if {f[2:] for f in gcc} <= usable}
    return compile_and_link(setup, kind, os.environ.get("CXX", "g++"), ["-O1", "-g1", *sanitize], sets)


def build_for(processor: str) -> str:
    """Builds the driver for another processor, which has the baseline instruction set alone."""
    compiler = f"{processor}-linux-gnu-g++"
    return compile_and_link(build_script(), processor, compiler, ["-O2", "-static"], {"baseline": []})


def build_script() -> ModuleType:
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("zfkernels_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compile_and_link(setup: ModuleType, name: str, compiler: str, flags: list[str], sets: dict[str, list[str]]) -> str:
    """The sources that setup.py lists, once for each instruction set, and the driver; returns the program's path."""
    out = Path("build", "sanitize", name)
    have = [f"-DZF_HAVE_{isa.upper()}" for isa in sets if isa != "baseline"]
    jobs = [("plain", source, have) for source in setup.PLAIN_SOURCES if "bindings" not in source]
    jobs.append(("plain", "tests/sanitize/driver.cpp", []))
    for isa, own in sets.items():
        jobs += [(isa, source, [f"-DZF_ISA={isa}", *setup.KERNEL_FLAGS, *own]) for source in setup.KERNEL_SOURCES]

    def compile_one(job: tuple[str, str, list[str]]) -> str:
        variant, source, own = job
        target = out / variant / (Path(source).stem + ".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not setup.is_fresh(target, source):
            command = [compiler, "-std=c++17", "-Icsrc", *flags, *own, "-c", source, "-o", str(target)]
            subprocess.run(command, check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    program = str(out / "driver")
    subprocess.run([compiler, *flags, *objects, "-o", program, "-ldl", "-lpthread"], check=True)
    return program


def processor_flags() -> set[str]:
    """What this CPU can do, in the words of /proc/cpuinfo, which are GCC's -m flags too; nothing except on x86."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


if __name__ == "__main__":
    sys.exit(main())
