"""Builds zf_emulated from csrc/cuda as nvcc compiles it: nvcc's own host code, its PTX translated to C++ (translate.py)
and run by machine.cpp, on runtime.cpp in place of the CUDA runtime.

    python tests/ptx/build.py [SOURCE.cu ...]

Prints the module's path. Sources named take the place of those of the same name in csrc/cuda. Objects are kept in
build/ptx; a kernel whose PTX has not changed, whatever file it is in, is not compiled again. Needs nvcc, and g++ on
Linux.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(ROOT)]

import translate  # noqa: E402

import setup as build_script  # noqa: E402

OUT = ROOT / "build/ptx"
ARCHITECTURE = "90a"  # ptxas makes the H200's machine code of this PTX
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fwrapv", "-fno-strict-aliasing", "-ffp-contract=off"]
FLAGS += ["-fno-math-errno", "-march=native"]
# -O0: a third of what -O1 takes to compile, and the cases take a fifth longer. -w: registers that are never read,
# comparisons that are always true.
TRANSLATED = [*FLAGS, "-O0", "-w"]


def build(changed: dict[str, Path] | None = None, name: str = "whole") -> Path:
    """The module, with the source `changed[file]` in place of csrc/cuda/<file>."""
    nvcc = build_script.find_nvcc()
    if nvcc is None:
        raise SystemExit("nvcc not found: install the CUDA toolkit")
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    sources = [(changed or {}).get(path.name, path) for path in sorted((ROOT / "csrc/cuda").glob("*.cu"))]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        compiled = list(pool.map(lambda source: by_nvcc(nvcc, source), sources))
        found = [kernel for _, ptx in compiled for kernel in translate.kernels(ptx.read_text())]
        header = precompiled()
        kernels = list(pool.map(lambda kernel: by_name(kernel, header), found))
        host = list(pool.map(lambda source: by_gxx(source, nvcc), hosts()))
    table = folder / "kernels.cpp"
    table.write_text(table_of(found, kernels))
    objects = [path for path, _ in compiled] + [path for _, path in kernels] + host
    module = folder / ("zf_emulated" + sysconfig.get_config_var("EXT_SUFFIX"))
    call(["g++", "-shared", *TRANSLATED, f"-I{HERE}", str(table), *map(str, objects), "-o", str(module)])
    return module


def by_nvcc(nvcc: str, source: Path) -> tuple[Path, Path]:
    """nvcc's object (host code; PTX in place of machine code) and the PTX, kept until a source or header changes."""
    headers = [*ROOT.glob("csrc/**/*.h"), *ROOT.glob("csrc/**/*.cuh")]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in [source, *sorted(headers)])).hexdigest()[:16]
    folder = OUT / "nvcc" / f"{source.stem}-{digest}"
    target, ptx = folder / f"{source.stem}.o", folder / f"{source.stem}.ptx"
    if not (target.exists() and ptx.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        code = f"-gencode=arch=compute_{ARCHITECTURE},code=compute_{ARCHITECTURE}"
        flags = [*build_script.NVCC_FLAGS, code, f"-I{ROOT / 'csrc'}", "--keep", "--keep-dir", str(folder)]
        call([nvcc, *flags, "-c", str(source), "-o", str(target)])
    return target, ptx


def precompiled() -> Path:
    """A folder of machine.h as g++ has read it, named by its text and the flags."""
    digest = hashlib.sha256((HERE / "machine.h").read_bytes() + repr(TRANSLATED).encode()).hexdigest()[:16]
    target = OUT / "header" / digest / "machine.h.gch"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix(f".{os.getpid()}.part")
        call(["g++", *TRANSLATED, "-x", "c++-header", str(HERE / "machine.h"), "-o", str(part)])
        part.replace(target)
    return target.parent


def by_name(kernel: translate.Kernel, header: Path) -> tuple[str, Path]:
    """(its function's name, its object), both named by its code, so that only what changed is compiled again."""
    digest = hashlib.sha256(kernel.code.encode() + header.name.encode()).hexdigest()[:16]
    name, target = f"kernel_{digest}", OUT / "kernels" / f"{digest}.o"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        source = target.with_suffix(".cpp")
        code = kernel.code.replace("NAME", name, 1)
        source.write_text(f'#include "machine.h"\nnamespace zf::ptx_machine {{\n{code}}}\n')
        part = target.with_suffix(f".{os.getpid()}.part.o")
        call(["g++", *TRANSLATED, f"-I{header}", f"-I{HERE}", "-c", str(source), "-o", str(part)])
        part.replace(target)
    return name, target


def hosts() -> list[Path]:
    return [HERE / "machine.cpp", HERE / "runtime.cpp", HERE / "module.cpp", ROOT / "csrc/cuda/bindings.cpp"]


def by_gxx(source: Path, nvcc: str) -> Path:
    target = OUT / "host" / f"{source.stem}.o"
    inputs = [source, *HERE.glob("*.h"), *ROOT.glob("csrc/**/*.h"), ROOT / "tests/emulator/fiber.h"]
    if not target.exists() or target.stat().st_mtime <= max(path.stat().st_mtime for path in inputs):
        target.parent.mkdir(parents=True, exist_ok=True)
        include = [ROOT / "csrc", HERE, ROOT / "tests/emulator", pybind11.get_include(), sysconfig.get_path("include")]
        include.append(Path(build_script.static_cudart(nvcc)).parents[1] / "include")
        call(["g++", *FLAGS, "-O2", *(f"-I{path}" for path in include), "-c", str(source), "-o", str(target)])
    return target


def table_of(found: list[translate.Kernel], named: list[tuple[str, Path]]) -> str:
    """The C++ of machine.h's table."""
    lines = ['#include "machine.h"', "namespace zf::ptx_machine {"]
    rows = []
    for i, (kernel, (name, _)) in enumerate(zip(found, named, strict=True)):
        layout = ", ".join(f"{{{offset}, {size}}}" for offset, size in kernel.parameters)
        lines += [f"void {name}(const char*);", f"const Parameter layout_{i}[] = {{{layout}}};"]
        rows.append(f'{{"{kernel.symbol}", {name}, {kernel.threads}, {len(kernel.parameters)}, layout_{i}}},')
    return "\n".join([*lines, "const Registered kernels[] = {", *rows, "{nullptr, nullptr, 0, 0, nullptr}};", "}\n"])


def call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path)
    given = parser.parse_args().sources
    print(build({path.name: path.resolve() for path in given}, "changed" if given else "whole"))
