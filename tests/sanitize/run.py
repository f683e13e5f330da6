"""Builds the CPU kernels with the sanitizers, without Python around them, and runs driver.cpp on them.

    python tests/sanitize/run.py [--cases 150] [--seed 0] [--thread]

First it commits faults on purpose and sees each of them end the program; then the checks must pass without a report.
AddressSanitizer and UndefinedBehaviorSanitizer by default, ThreadSanitizer with --thread. Objects are kept in
build/sanitize and reused when newer than their sources. Needs g++ or clang++ (CXX) on Linux.
"""

import argparse
import importlib.util
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

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
    parser.add_argument("--cases", type=int, default=150, help="random cases for each instruction set and element type")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--thread", action="store_true", help="ThreadSanitizer instead of the other two")
    args = parser.parse_args()
    kind = "thread" if args.thread else "address"
    os.chdir(ROOT)
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
    """Compiles what setup.py compiles, for the sets that this CPU has, and the driver; returns the program's path."""
    spec = importlib.util.spec_from_file_location("zfkernels_setup", ROOT / "setup.py")
    setup = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(setup)
    out = Path("build", "sanitize", kind)
    common = ["-std=c++17", "-O1", "-g1", f"-fsanitize={KINDS[kind]}", "-fno-sanitize-recover=all", "-Icsrc"]
    common += ["-fno-omit-frame-pointer"]
    if kind == "address":  # what the other checks see too, at half of the time that compiling takes
        common += ["-fno-sanitize=null,alignment,object-size,vptr"]
    usable = processor_flags()
    sets = {name: gcc for name, (gcc, _) in setup.INSTRUCTION_SETS.items() if {f[2:] for f in gcc} <= usable}
    have = [f"-DZF_HAVE_{name.upper()}" for name in sets if name != "baseline"]
    jobs = [("plain", source, have) for source in setup.PLAIN_SOURCES if "bindings" not in source]
    jobs.append(("plain", "tests/sanitize/driver.cpp", []))
    for name, flags in sets.items():
        jobs += [(name, source, [f"-DZF_ISA={name}", *setup.KERNEL_FLAGS, *flags]) for source in setup.KERNEL_SOURCES]

    def compile_one(job: tuple[str, str, list[str]]) -> str:
        variant, source, flags = job
        target = out / variant / (Path(source).stem + ".o")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not setup.is_fresh(target, source):
            compiler = os.environ.get("CXX", "g++")
            subprocess.run([compiler, *common, *flags, "-c", source, "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, jobs))
    program = str(out / "driver")
    link = [os.environ.get("CXX", "g++"), f"-fsanitize={KINDS[kind]}", *objects, "-o", program, "-ldl", "-lpthread"]
    subprocess.run(link, check=True)
    return program


def processor_flags() -> set[str]:
    """What this CPU can do, in the words of /proc/cpuinfo, which are GCC's -m flags too; none beyond x86."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((set(line.split(":", 1)[1].split()) for line in lines if line.startswith("flags")), set())


if __name__ == "__main__":
    sys.exit(main())
