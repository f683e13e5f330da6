"""The package in other environments: Python 3.10 to 3.13, the oldest and the newest torch and triton.

    python tests/survival/environments.py [NAME ...] [--list] [--keep] [--folder FOLDER] [--find-links FOLDER]

Of each environment of ENVIRONMENTS whose Python is found here (pyenv's, or on PATH): a virtual environment, the package
built and installed in it, and the tests of TESTS. Prints a row of the table of docs/support.md for each, and what is
missing for the others; exits with 1 if tests failed. torch's build for CUDA takes 6 GB of disk and minutes.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
TESTS = [
    "tests/test_window.py",
    "tests/backends/test_reference.py",
    "tests/backends/test_backends.py",
    "tests/deconvnet/test_boxes.py",
    "tests/ops/test_library.py",
    "tests/training/test_runs.py",
    "tests/survival/test_threads.py",
]
SELECTED = "not triton or primes or overlap or paper"  # Triton's interpreter takes a second a case


class Environment(NamedTuple):
    python: str
    torch: str = ""  # a requirement; empty: that of constraints.txt
    triton: str = ""


OLDEST = ("torch==2.10.*", "triton==3.6.*")
ENVIRONMENTS = {
    "3.10": Environment("3.10"),
    "3.11": Environment("3.11"),
    "3.12": Environment("3.12"),
    "3.13": Environment("3.13"),
    "oldest": Environment("3.10", *OLDEST),
    "oldest-3.13": Environment("3.13", *OLDEST),
    "newest": Environment("3.13", "torch", "triton"),
}


def interpreter(version: str) -> str | None:
    """The path of a Python of this version."""
    homes = sorted(Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob(f"{version}.*"))
    candidates = [*(str(home / "bin" / "python") for home in homes), shutil.which(f"python{version}")]
    return next((path for path in candidates if path and os.access(path, os.X_OK)), None)


def run(command: list, cwd: Path, **variables: str) -> str:
    """Its output; SystemExit with the end of it if it fails."""
    paths = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command, cwd=cwd, env=paths | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}:\n{done.stdout[-4000:]}")
    return done.stdout


def made(environment: Environment, python: str, folder: Path, links: list[str]) -> tuple[Path, Path]:
    """The Python of a new virtual environment with the package in it, and the copy of the tree that it was built in."""
    tree = folder / "tree"
    tracked = run(["git", "ls-files", "-z"], ROOT).split("\0")
    for name in filter(None, tracked):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, tree / name)
    run([python, "-m", "venv", folder / "venv"], folder)
    inside = folder / "venv" / "bin" / "python"
    pip = [inside, "-m", "pip", "install", "-q", *links]
    own = folder / "constraints.txt"
    wanted = [part for part in (environment.torch, environment.triton) if part]
    lines = (ROOT / "constraints.txt").read_text().splitlines(keepends=True)
    own.write_text("".join(line for line in lines if not (environment.torch and re.match("torch==", line))))
    run([*pip, "-c", own, *(wanted or ["torch"]), "setuptools", "pybind11"], tree)
    run([*pip, "-c", own, "--no-build-isolation", "-e", ".[test]", "pytest"], tree, ZFKERNELS_CUDA="0")
    return inside, tree


VERSIONS = """
import importlib.metadata, platform, torch
def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
print(platform.python_version(), torch.__version__, version("triton"), version("numpy"), sep=" | ")
"""


def tried(name: str, environment: Environment, folder: Path, links: list[str]) -> bool | None:
    """Whether its tests passed, None if it cannot be made here; prints its row."""
    python = interpreter(environment.python)
    if python is None:
        print(f"{name}: no Python {environment.python} here", flush=True)
        return None
    began = time.monotonic()
    folder.mkdir(parents=True)
    try:
        inside, tree = made(environment, python, folder, links)
        versions = run([inside, "-c", VERSIONS], tree).strip()
        tests = run([inside, "-m", "pytest", "-q", "-k", SELECTED, *TESTS], tree)
    except RuntimeError as error:
        print(f"{name}: failed after {time.monotonic() - began:.0f} s\n{error}", flush=True)
        return False
    print(f"| {name} | {versions} | {tests.strip().splitlines()[-1].strip('= ')} |", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)} (default: all)")
    parser.add_argument("--list", action="store_true", help="say which can be made here")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    parser.add_argument("--folder", type=Path, help="where they are made (default: a temporary folder)")
    parser.add_argument("--find-links", help="a folder of wheels that pip looks into, too")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(ENVIRONMENTS)
    if unknown:
        parser.error(f"there is no environment {', '.join(sorted(unknown))}; there are {', '.join(ENVIRONMENTS)}")
    names = arguments.names or list(ENVIRONMENTS)
    if arguments.list:
        for name in names:
            environment = ENVIRONMENTS[name]
            found = interpreter(environment.python) or "not found"
            print(f"{name:<12} Python {environment.python} ({found}) {environment.torch} {environment.triton}")
        return 0
    links = ["--find-links", arguments.find_links] if arguments.find_links else []
    folder = arguments.folder or Path(tempfile.mkdtemp())
    passed = True
    print("| name | Python | torch | triton | numpy | tests |\n|---|---|---|---|---|---|", flush=True)
    for name in names:
        passed &= tried(name, ENVIRONMENTS[name], folder / name, links) is not False
        if not arguments.keep:
            shutil.rmtree(folder / name, ignore_errors=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
