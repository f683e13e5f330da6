"""Builds zfkernels._C, the one compiled module: csrc/ through pybind11, without torch's headers and without a GPU.

The kernel sources are compiled once for each instruction set of the target (`INSTRUCTION_SETS`) and linked into the
same module; csrc/cpu/dispatch.cpp chooses among them at import. csrc/cuda is compiled when nvcc is found.

Environment variables:
    ZFKERNELS_CUDA=0|1      0 leaves csrc/cuda out, 1 makes a missing nvcc an error. Unset: built when nvcc is found.
    ZFKERNELS_CUDA_ARCHITECTURES=90a,100  the GPUs that csrc/cuda is compiled for, instead of CUDA_ARCHITECTURES.
    ZFKERNELS_CUDA_RESOURCES=1  print what each CUDA kernel takes of a multiprocessor; spilled registers are an error.
    ZFKERNELS_OBJECTS=folder  where objects are kept from build to build, also of wheels and editable installs, which
                            setuptools builds in a folder that it removes.
    ZFKERNELS_SANITIZE=1    AddressSanitizer and UndefinedBehaviorSanitizer; Python then needs LD_PRELOAD=libasan.so.
    CUDA_HOME, CC, CXX      as usual.

Linux with GCC or Clang is what is tested. The macOS and Windows branches below are written from the compilers'
documentation and have not been run.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

CSRC = Path("csrc")
PLAIN_SOURCES = ["csrc/bindings.cpp", "csrc/cpu/dispatch.cpp", "csrc/cpu/memory.cpp", "csrc/cpu/threads.cpp"]
KERNEL_SOURCES = [
    f"csrc/cpu/{name}.cpp"
    for name in (
        "conv",
        "conv_transpose",
        "conv_weight_grad",
        "max_pool",
        "avg_pool",
        "contrast_norm",
        "linear",
        "table",
    )
]

# Instruction set -> flags for GCC and Clang, flags for MSVC. Baseline is the architecture's own: SSE2 on x86-64, NEON
# on AArch64. Another defines ZF_HAVE_<NAME> for dispatch.cpp, which asks the CPU before it uses the set.
INSTRUCTION_SETS = {
    "baseline": ([], []),
    "avx2": (["-mavx2", "-mfma", "-mf16c"], ["/arch:AVX2"]),
    "avx512": (["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"], ["/arch:AVX512"]),
}

# Flags of the kernel sources beside those above, for GCC and Clang. No vector crosses a call, so it does not matter
# that the convention for passing one depends on the instruction set (-Wpsabi).
KERNEL_FLAGS = ["-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]

# Flags of csrc/cuda besides those of the architectures.
NVCC_FLAGS = ["-std=c++17", "-O3", *([] if os.name == "nt" else ["-Xcompiler", "-fPIC,-fvisibility=hidden"])]

# Machine code for Ampere (and, being binary compatible, Ada), Hopper with its "a" features, and Blackwell; the last
# architecture is kept as PTX too, for GPUs that come after it. An nvcc too old for one leaves it out.
# ZFKERNELS_CUDA_ARCHITECTURES names others.
CUDA_ARCHITECTURES = ["80", "90a", "100"]


def wanted(variable: str) -> bool | None:
    """The value of a 0/1 environment variable, None when it is unset or empty."""
    value = os.environ.get(variable, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{variable} must be 0 or 1, got {value!r}")
    return None if value == "" else value == "1"


def find_nvcc() -> str | None:
    """The path of nvcc: CUDA_HOME or CUDA_PATH, then PATH, then the usual place; None if absent or ZFKERNELS_CUDA=0."""
    if wanted("ZFKERNELS_CUDA") is False:
        return None
    name = "nvcc.exe" if os.name == "nt" else "nvcc"
    homes = [os.environ[v] for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    candidates = [str(Path(home, "bin", name)) for home in homes]
    candidates += [shutil.which(name) or "", str(Path("/usr/local/cuda/bin", name))]
    nvcc = next((c for c in candidates if c and os.access(c, os.X_OK)), None)
    if nvcc is None and wanted("ZFKERNELS_CUDA"):
        raise SystemExit(
            "ZFKERNELS_CUDA=1 asks for the CUDA kernels, but nvcc was not found in CUDA_HOME, CUDA_PATH, PATH or "
            "/usr/local/cuda/bin. Install the CUDA toolkit, point CUDA_HOME at it, or build without (ZFKERNELS_CUDA=0)."
        )
    return nvcc


def nvcc_plan(nvcc: str, *flags: str) -> str | None:
    """What nvcc would run for these flags (--dryrun), None where it refuses them."""
    done = subprocess.run([nvcc, "--dryrun", *flags, "-c", "any.cu"], capture_output=True, text=True)
    return done.stderr if done.returncode == 0 else None


def cuda_architectures() -> list[str]:
    """Those of ZFKERNELS_CUDA_ARCHITECTURES, else CUDA_ARCHITECTURES."""
    variable = os.environ.get("ZFKERNELS_CUDA_ARCHITECTURES", "")
    named = [name.strip() for name in variable.split(",") if name.strip()]
    if wrong := [name for name in named if not re.fullmatch(r"\d+[af]?", name)]:
        raise SystemExit(
            f"ZFKERNELS_CUDA_ARCHITECTURES must be architectures by commas, such as 80 or 90a,100, got {wrong[0]!r}"
        )
    return named or CUDA_ARCHITECTURES


def cuda_code_flags(nvcc: str) -> list[str]:
    """The -gencode flags for those of `cuda_architectures` that this nvcc knows; where they were named, all of them."""
    wanted = cuda_architectures()
    native = {a: f"-gencode=arch=compute_{a},code=sm_{a}" for a in wanted}
    known = [a for a, flag in native.items() if nvcc_plan(nvcc, flag) is not None]
    if wanted is not CUDA_ARCHITECTURES and known != wanted:
        unknown = next(a for a in wanted if a not in known)
        raise SystemExit(f"{nvcc} knows no sm_{unknown}, which ZFKERNELS_CUDA_ARCHITECTURES names, or does not run")
    # PTX of an "a" architecture runs on nothing newer, so the last one without it is kept.
    portable = [a for a in known if a.isdigit()][-1:]
    if not known:
        raise SystemExit(f"{nvcc} knows neither sm_80 nor sm_100, or does not run: zfkernels needs CUDA 11.0 or newer")
    return [native[a] for a in known] + [f"-gencode=arch=compute_{a},code=compute_{a}" for a in portable]


def static_cudart(nvcc: str) -> str:
    """The path of the static CUDA runtime, from nvcc's own search path (nvcc may be a script far from its toolkit)."""
    name = "cudart_static.lib" if os.name == "nt" else "libcudart_static.a"
    plan = nvcc_plan(nvcc) or ""
    folders = re.findall(r'"(?:-L|/LIBPATH:)([^"]+)"', plan)
    path = next((p for p in (Path(f, name) for f in folders) if p.exists()), None)
    if path is None:
        raise SystemExit(
            f"{nvcc} has no {name} in {folders}: install the CUDA runtime's development files, or ZFKERNELS_CUDA=0"
        )
    return str(path.resolve())


class Resources(NamedTuple):
    """What ptxas says of a kernel on an architecture; bytes are a thread's. (Shared memory is asked for at launch.)"""

    kernel: str
    architecture: str
    registers: int
    stack: int
    spilled: int


def ptxas_resources(log: str) -> list[Resources]:
    """The kernels of a log of `nvcc -Xptxas -v`."""
    entry = re.compile(
        r"Compiling entry function '(\S+)' for '(\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
        re.DOTALL,
    )
    return [
        Resources(readable(name), architecture, int(registers), int(stack), int(stores) + int(loads))
        for name, architecture, stack, stores, loads, registers in entry.findall(log)
    ]


def readable(symbol: str) -> str:
    """A kernel's name as in its source, where the compiler's tools can tell it."""
    if not shutil.which("c++filt"):
        return symbol
    name = subprocess.run(["c++filt", "-p", symbol], capture_output=True, text=True).stdout.strip()
    return re.sub(r"zf::cuda::|\(anonymous namespace\)::", "", name)


def report_resources(rows: list[Resources]) -> None:
    """Prints the table; SystemExit where a kernel spills."""
    print(f"{'registers':>9} {'stack':>6} {'spilled':>7}  architecture  kernel")
    for row in sorted(rows):
        print(f"{row.registers:>9} {row.stack:>6} {row.spilled:>7}  {row.architecture:<12}  {row.kernel}")
    spilling = [row for row in rows if row.spilled]
    print(f"{len(rows)} kernels, {len(spilling)} of them spill registers", flush=True)
    if spilling:
        raise SystemExit(f"{spilling[0].kernel} spills {spilling[0].spilled} bytes on {spilling[0].architecture}")


class BuildKernels(build_ext):
    """build_ext that compiles a source several times with different flags, in parallel, and keeps fresh objects."""

    def build_extension(self, ext: Extension) -> None:
        self.build_temp = os.environ.get("ZFKERNELS_OBJECTS") or self.build_temp
        msvc = self.compiler.compiler_type == "msvc"
        sanitize = bool(wanted("ZFKERNELS_SANITIZE"))
        nvcc = find_nvcc()
        x86_64 = self.plat_name.endswith(("x86_64", "amd64"))
        sets = {name: flags[msvc] for name, flags in INSTRUCTION_SETS.items() if x86_64 or name == "baseline"}

        if msvc:
            common = ["/std:c++17", "/O2", "/EHsc"]
            kernel = []
        else:
            common = ["-std=c++17", "-O3", "-g0", "-fvisibility=hidden"]
            kernel = KERNEL_FLAGS
            if sanitize:
                common += ["-O1", "-g", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"]

        have = [(f"ZF_HAVE_{name.upper()}", None) for name in sets if name != "baseline"]
        have += [("ZF_WITH_CUDA", None)] if nvcc else []
        # The linker takes an inline function of the standard library from the first object that defines it, so those
        # compiled for instructions that this CPU may lack come last.
        jobs = [(source, "plain", have, common) for source in PLAIN_SOURCES]
        for name, flags in sets.items():
            jobs += [(source, name, [("ZF_ISA", name)], common + kernel + flags) for source in KERNEL_SOURCES]
        if nvcc:
            jobs += [(str(source), "plain", have, common) for source in sorted(CSRC.glob("cuda/*.cpp"))]

        with ThreadPoolExecutor(1 if msvc else min(os.cpu_count() or 1, 16)) as pool:
            objects = [pool.submit(self._compile, *job) for job in jobs]
            if nvcc:
                objects += [pool.submit(self._compile_cuda, nvcc, str(s)) for s in sorted(CSRC.glob("cuda/*.cu"))]
            objects = [o.result() for o in objects]
        if nvcc and wanted("ZFKERNELS_CUDA_RESOURCES"):
            logs = [Path(o).with_suffix(".ptxas") for o in objects]
            report_resources([row for log in logs if log.exists() for row in ptxas_resources(log.read_text())])

        libraries = ["dl"] if sys.platform.startswith("linux") else []
        link_flags = ["-fsanitize=address,undefined"] if sanitize and not msvc else []
        if nvcc:
            # Static, and hidden: the module loads where there is no CUDA, and shares no symbol with torch's own copy.
            objects.append(static_cudart(nvcc))
            libraries += [] if msvc else ["rt", "pthread"]
            link_flags += ["-Wl,--exclude-libs,ALL"] if sys.platform.startswith("linux") else []
        self.compiler.force = True  # the linker's own freshness check misses an object that left the list
        target = self.get_ext_fullpath(ext.name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        self.compiler.link_shared_object(
            objects,
            target,
            libraries=libraries,
            extra_postargs=link_flags,
            export_symbols=self.get_export_symbols(ext),
            build_temp=self.build_temp,
            target_lang="c++",
        )

    def _compile(self, source: str, variant: str, macros: list, flags: list[str]) -> str:
        """Compiles one source for one variant, unless its object is newer than the source and every header."""
        compiler = getattr(self.compiler, "compiler_so_cxx", None) or getattr(self.compiler, "compiler_so", [])
        folder = self._object_folder(variant, [*compiler, *map(str, macros), *flags])
        (target,) = self.compiler.object_filenames([source], output_dir=folder)
        if not is_fresh(target, source):
            self.compiler.compile([source], folder, macros, [str(CSRC), pybind11.get_include()], extra_postargs=flags)
        return target

    def _compile_cuda(self, nvcc: str, source: str) -> str:
        flags = [*NVCC_FLAGS, *cuda_code_flags(nvcc), "-I", str(CSRC), "-Xptxas", "-v"]
        target = Path(self._object_folder("cuda", [nvcc, *flags]), source).with_suffix(".o")
        if not is_fresh(target, source):
            target.parent.mkdir(parents=True, exist_ok=True)
            command = [nvcc, *flags, "-c", source, "-o", str(target)]
            print(" ".join(command), flush=True)
            done = subprocess.run(command, capture_output=True, text=True)
            log = done.stdout + done.stderr
            if done.returncode != 0:
                target.unlink(missing_ok=True)
                print(log, flush=True)
                raise SystemExit(f"nvcc failed on {source}; ZFKERNELS_CUDA=0 builds zfkernels without the CUDA kernels")
            target.with_suffix(".ptxas").write_text(log)
        return str(target)

    def _object_folder(self, variant: str, command: list[str]) -> str:
        """A folder of objects for each distinct command line, so that a change of flags never reuses an object."""
        return os.path.join(self.build_temp, f"{variant}-{hashlib.sha256(repr(command).encode()).hexdigest()[:8]}")


def is_fresh(target: str | Path, source: str) -> bool:
    """Whether target exists and is newer than source and than every header under csrc/."""
    inputs = [source, *CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")]
    return os.path.exists(target) and os.path.getmtime(target) > max(map(os.path.getmtime, inputs))


if __name__ == "__main__":
    setup(
        ext_modules=[Extension("zfkernels._C", PLAIN_SOURCES + KERNEL_SOURCES, language="c++")],
        cmdclass={"build_ext": BuildKernels},
    )
