"""Small wrong changes, each of which the tests must see: applies one to a copy, builds what it changes, runs its tests.

    python tests/mutants/run.py [NAME ...] [--sample N --seed S] [-n WORKERS]

Says of each mutant of mutants.py whether it was killed (a test failed, or hung) or SURVIVED. Exits with 1 if one
survived, does not apply, does not build, or breaks more than a test (then it says nothing about the tests).

A mutant of csrc/cpu compiles the sources that include its file, for the instruction set in use alone; one of csrc/cuda
the sources that it names, for the emulator. All else is taken from a build of the tree as it is, which is made first
where build/ has none.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mutant import Mutant
from mutants import MUTANTS

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", ".clang-format")
COPIED = ("zfkernels", "tests", "csrc", "benchmarks", *FILES)
EMULATED = Path("build/emulator/plain")
LONGEST = 420  # seconds of a mutant's tests, and of its build

BUILD = """
import os, sys
import setup
changed, only = set(sys.argv[1].split(",")), sys.argv[2]
def is_fresh(target, source):
    used = os.sep + "plain-" in os.sep + target or os.sep + only + "-" in os.sep + target
    return os.path.exists(target) and not (source in changed and used)
setup.is_fresh = is_fresh
sys.argv = ["setup.py", "-q", "build_ext", "--inplace"]
extension = setup.Extension("zfkernels._C", setup.PLAIN_SOURCES + setup.KERNEL_SOURCES, language="c++")
setup.setup(ext_modules=[extension], cmdclass={"build_ext": setup.BuildKernels})
"""


class Result(NamedTuple):
    mutant: Mutant
    word: str  # killed, SURVIVED, or what else is wrong
    seconds: float
    said: str = ""


def kind(mutant: Mutant) -> str:
    """What of csrc is built for it: "cpu", "cuda" or ""."""
    if not mutant.file.startswith("csrc"):
        return ""
    return "cuda" if mutant.file.startswith("csrc/cuda") else "cpu"


def copied(root: Path, to: Path, objects: str = "") -> Path:
    """The tree without what a mutant does not need; with the objects of "cpu" or "cuda" if asked."""
    for name in COPIED:
        source = root / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc", "results")
            shutil.copytree(source, to / name, ignore=ignored, dirs_exist_ok=True)
        elif source.exists():
            shutil.copy2(source, to / name)
    for folder in (root / "build").glob("temp.*") if objects == "cpu" else ():
        shutil.copytree(folder, to / "build" / folder.name, dirs_exist_ok=True)
    for name in ("bindings.cpp.o", "module.cpp.o") if objects == "cuda" else ():
        if (root / EMULATED / name).exists():
            (to / EMULATED).mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / EMULATED / name, to / EMULATED / name)
    return to


def including(file: str, root: Path = ROOT) -> list[str]:
    """The sources of csrc/cpu that include `file`, or are it, at any depth."""
    texts = {str(p.relative_to(root)): p.read_text() for p in (root / "csrc").rglob("*") if p.suffix in (".h", ".cpp")}
    found, more = {file}, True
    while more:
        names = {Path(name).name for name in found}
        new = {name for name, text in texts.items() if names & set(re.findall(r'#include "(?:.*/)?([^"/]+)"', text))}
        more = not new <= found
        found |= new
    return sorted(name for name in found if name.endswith(".cpp") and not name.startswith("csrc/cuda"))


def run(command: list, tree: Path, **variables: str) -> subprocess.CompletedProcess:
    """What it said and how it ended; subprocess.TimeoutExpired, and nothing of it left, if that took too long."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ZFKERNELS_")}
    environment |= {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1", **variables}
    output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=tree, env=environment, start_new_session=True, **output) as process:
        try:
            said, _ = process.communicate(timeout=LONGEST)
        except BaseException:  # its own processes, too, which hold the pipe that is read here
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, said)


def build(mutant: Mutant, tree: Path) -> tuple[subprocess.CompletedProcess | None, dict[str, str]]:
    """What the build said, None where there is nothing to build; and variables of the tests."""
    if kind(mutant) == "cuda":
        sources = mutant.sources or (mutant.file,)
        done = run([sys.executable, "tests/emulator/build.py", *sources], tree)
        module = next((tree / EMULATED).glob("*.so"), None)
        return done, {"ZFKERNELS_EMULATED": str(module)}
    if kind(mutant) == "cpu":
        ask = "import torch; from zfkernels import _C; print(_C.isa())"
        isa = mutant.isa or run([sys.executable, "-c", ask], tree).stdout.strip()
        changed = ",".join(including(mutant.file, tree))
        return run([sys.executable, "-c", BUILD, changed, isa], tree, ZFKERNELS_CUDA="0"), {}
    return None, {}


def tried(mutant: Mutant, base: Path, twice: bool) -> Result:
    """One mutant in a copy of its own; `twice`: the test that failed must pass without it."""
    began = time.monotonic()

    def result(word: str, said: str = "") -> Result:
        return Result(mutant, word, time.monotonic() - began, said)

    with tempfile.TemporaryDirectory() as folder:
        tree = copied(base, Path(folder) / "tree", kind(mutant))
        text = (tree / mutant.file).read_text()
        if text.count(mutant.old) != 1:
            return result("DOES NOT APPLY", f"its text occurs {text.count(mutant.old)} times in {mutant.file}")
        (tree / mutant.file).write_text(text.replace(mutant.old, mutant.new))
        try:
            built, variables = build(mutant, tree)
            if built is not None and built.returncode != 0:
                return result("DOES NOT BUILD", built.stdout[-3000:])
            tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *mutant.arguments()]
            done = run(tests, tree, **variables)
        except subprocess.TimeoutExpired:
            return result("killed", "it hung")
        tail = done.stdout[-3000:]
        if done.returncode == 0:
            return result("SURVIVED" if " passed" in tail else "NO TEST RAN", tail)
        if done.returncode == 1:
            failed = re.search(r"^(?:FAILED|ERROR) (\S+::.*?)(?: - |$)", done.stdout, re.MULTILINE)
            if failed is None:  # of no test, but of what it imports
                return result("BREAKS MORE THAN A TEST", tail)
            name = failed[1]
            if (
                twice
                and kind(mutant) != "cuda"
                and run([*tests[: -len(mutant.arguments())], name], base).returncode != 0
            ):
                return result("FAILS ANYWAY", name)
            return result("killed", name)
        crashed = done.returncode < 0
        return result(
            "killed" if crashed else "BREAKS MORE THAN A TEST", f"signal {-done.returncode}" if crashed else tail
        )


def prepared(mutants: list[Mutant], folder: Path) -> Path:
    """The tree that mutants are copied from: this one, or a copy in which the CPU's objects were built."""
    if not any(kind(mutant) == "cpu" for mutant in mutants):
        return ROOT
    base = copied(ROOT, copied(ROOT, folder / "base", "cuda"), "cpu")
    done = run([sys.executable, "setup.py", "-q", "build_ext", "--inplace"], base, ZFKERNELS_CUDA="0")
    if done.returncode != 0:
        raise SystemExit(f"the tree as it is does not build:\n{done.stdout[-3000:]}")
    return base


def chosen(arguments: argparse.Namespace) -> list[Mutant]:
    named = {mutant.name: mutant for mutant in MUTANTS}
    unknown = [name for name in arguments.names if name not in named]
    if unknown:
        raise SystemExit(f"there is no mutant {', '.join(unknown)}; --list names all")
    mutants = [named[name] for name in arguments.names] or MUTANTS
    if arguments.sample:
        mutants = random.Random(arguments.seed).sample(mutants, min(arguments.sample, len(mutants)))
    return mutants


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of mutants (default: all)")
    parser.add_argument("--sample", type=int, metavar="N", help="only N of them, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("-n", type=int, default=1, metavar="WORKERS", help="mutants at a time (%(default)s)")
    parser.add_argument("--twice", action="store_true", help="the test that fails must pass without the mutant")
    parser.add_argument("--list", action="store_true", help="print the names and what each changes")
    arguments = parser.parse_args()
    mutants = chosen(arguments)
    if arguments.list:
        for mutant in mutants:
            print(f"{mutant.name:<36} {mutant.file}")
        return 0
    began, wrong = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(arguments.n) as pool:
        base = prepared(mutants, Path(folder))
        for result in pool.map(lambda mutant: tried(mutant, base, arguments.twice), mutants):
            good = result.word == "killed"
            said = result.said if good else f"\n{result.said}"
            print(f"{result.word:<9} {result.mutant.name:<36} {result.seconds:4.0f} s  {said}", flush=True)
            wrong += [] if good else [result.mutant.name]
    seconds = time.monotonic() - began
    print(f"{len(mutants) - len(wrong)} of {len(mutants)} killed in {seconds:.0f} s", *wrong, sep="\n  ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
