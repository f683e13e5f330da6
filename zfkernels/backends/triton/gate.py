"""The compile gate: every launch on ZFNet's layers, compiled for four kinds of GPU without having one.

`zfkernels verify --compile-only` prints a line a kernel and fails on

    spills        values moved to local memory: stack, LDL or STL in the machine code
    registers     a wgmma whose first operand comes from registers: ptxas before 13.3 may overwrite it while the
                  product still reads it (triton issues 9433, 11781); the result is then wrong without an error
    matrix units  a product of matrices without their instructions
    memory        more shared memory than a program may have

The launches come from the functions that the backend itself launches by, on the layers of ZFNet's table, and, of what
only tuning tries, persistent programs. A line ends with the features of the newest GPUs that the kernel uses.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ...window import Pair
from . import tuning
from .contrast_norm import contrast_norm_backward_kernel, contrast_norm_kernel, norm_call
from .conv import conv2d_call, conv2d_problem
from .conv_transpose import conv_transpose2d_call, conv_transpose2d_problem
from .conv_weight_grad import conv2d_weight_grad_call, conv2d_weight_grad_problem, weight_grad_reduce_call
from .correlation import Conv, pad_image_call
from .fused import fuses, layer_call
from .launch import INTERPRETED, Call, Target
from .max_pool import Pool, max_pool2d_kernel, max_unpool2d_backward_kernel, pool_call, unpool_call

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.uint8: "*u8"}
FEATURES = {  # what of the newer GPUs a kernel uses, and the machine code that shows it
    "copies by descriptor (TMA)": r"\bUTMALDG\b",
    "asynchronous copies": r"\bLDGSTS\b",
    "specialised warps": r"\bUSETMAXREG\b",
}
REGISTER_OPERAND = re.compile(r"wgmma\.mma_async[^;]*\}, \{")


class Compilation(NamedTuple):
    """One launch as the gate builds it, from the same arguments as the launch itself.

    `arguments` holds every parameter of the kernel by name: a torch.dtype for a pointer to dense memory of that type
    (16-byte aligned), a Block for a descriptor, a number for a number. `matrix` says whether the kernel must use
    the matrix units.
    """

    name: str
    kernel: Any
    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    matrix: bool = False


class Block(NamedTuple):
    """A parameter that is a descriptor of a matrix's blocks."""

    dtype: torch.dtype
    rows: int
    columns: int


class Architecture(NamedTuple):
    """Where to compile for: what triton and what tuning.py call it, and the shared memory of a program in bytes."""

    gpu: GPUTarget
    target: Target
    shared: int


ARCHITECTURES = {
    "sm_80": Architecture(GPUTarget("cuda", 80, 32), Target("cuda", 80, 108), 163 << 10),
    "sm_90": Architecture(GPUTarget("cuda", 90, 32), Target("cuda", 90, 132), 227 << 10),
    "sm_100": Architecture(GPUTarget("cuda", 100, 32), Target("cuda", 100, 148), 227 << 10),
    "gfx942": Architecture(GPUTarget("hip", "gfx942", 64), Target("hip", "gfx942", 304), 64 << 10),
}
QUICK: dict[str, Any] = {
    "architectures": ("sm_90",),
    "dtypes": (torch.bfloat16,),
    "alike": True,
}  # what every run of the tests can afford
# Constants that follow from a layer's numbers of channels.
CHANNELS = ("C", "CW", "C_IN", "C_OUT", "PITCH", "FILTER", "TAP", "CHANNEL", "TAPS", "BLOCKS")


@dataclass
class Built:
    """The result of one compilation; `problems` is empty when it passes."""

    kernel: str
    architecture: str
    dtype: str
    seconds: float = 0.0
    registers: int = 0
    stack: int = 0
    spills: int = 0
    shared: int = 0
    matrix: dict[str, int] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def main(quick: bool, file: Path | None) -> int:
    """Prints the table, writes JSON to `file`; 0 when every kernel passed, 1 when one failed, 2 without the tools."""
    if INTERPRETED:
        # Under TRITON_INTERPRET the kernels are Python functions from the moment of their definition.
        command = [sys.executable, "-m", "zfkernels", "verify", "--compile-only"]
        command += (["--quick"] if quick else []) + (["--json", str(file)] if file else [])
        return subprocess.run(command, env={k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}).returncode
    if missing := [name for name in ("cuobjdump", "nvdisasm") if tool(name) is None]:
        print(
            f"zfkernels verify: {', '.join(missing)} not found in triton {triton.__version__}'s folder, PATH or "
            "CUDA_HOME; install the CUDA toolkit, or triton 3.6, which brings them",
            file=sys.stderr,
        )
        return 2
    built = []
    print(HEADING)
    for one in build_all(**(QUICK if quick else {})):
        built.append(one)
        print(line(one), flush=True)
    failed = [one for one in built if one.problems]
    print(f"{len(built)} kernels compiled by triton {triton.__version__}, {len(failed)} failed")
    if file:
        file.write_text(
            json.dumps({"triton": triton.__version__, "kernels": [asdict(b) for b in built]}, indent=1) + "\n"
        )
    return 1 if failed else 0


def build_all(
    architectures: Iterable[str] = tuple(ARCHITECTURES), dtypes: Iterable[torch.dtype] = DTYPES, alike: bool = False
) -> Iterator[Built]:
    """Compiles every launch once, however many layers it serves; with `alike`, also of those that differ in their
    numbers of channels alone one."""
    seen = set()
    for architecture in architectures:
        for dtype in dtypes:
            target = ARCHITECTURES[architecture].target
            persistent = (one for one in tried(dtype, target) if one.arguments.get("PERSISTENT"))
            for compilation in chain(launches(dtype, target), persistent):
                source = tile(compilation) if alike else signature(compilation)
                key = repr((architecture, compilation.kernel.__name__, source, sorted(compilation.options.items())))
                if key not in seen:
                    seen.add(key)
                    yield build(compilation, architecture, dtype)


def tile(compilation: Compilation) -> list[tuple[str, Any]]:
    """The constants that the kernel is compiled for, without the numbers of channels and what follows from them."""
    names = [p.name for p in compilation.kernel.params if p.is_constexpr and p.name not in CHANNELS]
    return [(name, compilation.arguments[name]) for name in names]


def zfnet() -> list[tuple[Any, Pair]]:
    """The rows of ZFNet's table up to the last pooling, each with the size of the maps that come in."""
    from ...models.zfnet import TABLE, ZFNet

    net = ZFNet(table=TABLE, device="meta")
    rows = [row for row in net.table if row.layer.kind != "fc"]
    return list(zip(rows, (net.image_size, *(row.size for row in rows[:-1])), strict=True))


def launches(dtype: torch.dtype, target: Target) -> Iterator[Compilation]:
    """Every launch that ZFNet's layers make on `target`, forward and backward."""
    layers = zfnet()
    for images in (1, 128):
        for row, size in layers:
            if row.layer.kind == "conv":
                yield from of_conv(f"{row.layer.name} N={images}", conv_of(row, size, images), dtype, target)
    for (row, size), (after, _) in pairwise(layers):
        if (row.layer.kind, after.layer.kind) == ("conv", "pool"):
            yield from of_fused(row.layer.name, conv_of(row, size, 128), pool_of(after), dtype, target)
    for row, size in layers:
        if row.layer.kind == "pool":
            yield from of_max_pool(row.layer.name, (128, row.channels, *size), pool_of(row), dtype)
    for row, size in layers:
        if row.layer.kind == "norm":
            yield from of_contrast_norm(row.layer.name, (128, row.channels, *size), dtype)


def tried(dtype: torch.dtype, target: Target) -> Iterator[Compilation]:
    """The launches that tuning tries on ZFNet's convolutions, 128 images at a time."""
    for row, size in zfnet():
        if row.layer.kind != "conv":
            continue
        conv = conv_of(row, size, 128)
        for problem in (
            conv2d_problem(conv.gathered(), dtype, target),
            conv_transpose2d_problem(conv, dtype, target),
            conv2d_weight_grad_problem(conv.gathered(), dtype, target),
        ):
            for config in tuning.candidates(problem, target):
                with tuning.trying(problem, config):
                    yield from of_conv(f"{row.layer.name} N=128 {config}", conv, dtype, target)


def conv_of(row: Any, size: Pair, images: int) -> Conv:
    kernel, stride, padding = ((n, n) for n in (row.layer.kernel, row.layer.stride, row.layer.padding))
    weight = (row.channels, row.in_channels, *kernel)
    return Conv.of((images, row.in_channels, *size), weight, row.size, stride, padding)


def pool_of(row: Any) -> Pool:
    kernel, stride, padding = ((n, n) for n in (row.layer.kernel, row.layer.stride, row.layer.padding))
    return Pool(kernel, stride, padding, row.size)


def compilation(name: str, call: Call, dtype: torch.dtype, tensors: str, **others: torch.dtype) -> Compilation:
    """What launching `call` on tensors of these names compiles; their type is `dtype`, or what `others` says.

    IEEE products of float32 have no matrix unit on NVIDIA's devices.
    """
    precision = call.arguments.get("PRECISION")
    matrix = precision is not None and (dtype != torch.float32 or precision == "tf32")
    types = dict.fromkeys(tensors.split(), dtype) | others
    return Compilation(name, call.kernel, types | call.arguments, call.options, matrix)


def of_conv(case: str, conv: Conv, dtype: torch.dtype, target: Target) -> Iterator[Compilation]:
    """The launches of conv2d, conv_transpose2d and conv2d_weight_grad."""
    gathered = conv.gathered()
    if conv.is_image():
        height, width = conv.size
        call = pad_image_call(conv, (conv.channels * height * width, height * width, width, 1))
        yield compilation(f"{case} pad_image", call, dtype, "x padded")
    call = conv2d_call(gathered, dtype, target, True, True)
    one = compilation(f"{case} conv2d", call, dtype, "x weight bias y")
    if call.arguments["PERSISTENT"]:
        block = Block(dtype, call.arguments["BN"], call.arguments["BK"])
        one = one._replace(arguments={**one.arguments, "weight": block})
    yield one
    yield compilation(f"{case} conv_transpose2d", conv_transpose2d_call(conv, dtype, target), dtype, "y weight x")
    sums = {"partial": torch.float32, "partial_bias": torch.float32}
    call, parts = conv2d_weight_grad_call(gathered, dtype, target, True)
    yield compilation(f"{case} conv2d_weight_grad", call, dtype, "x g", **sums)
    call = weight_grad_reduce_call(gathered, parts, conv.channels, True)
    yield compilation(f"{case} conv2d_weight_grad reduce", call, dtype, "gw gb", **sums)


def of_fused(name: str, conv: Conv, pool: Pool, dtype: torch.dtype, target: Target) -> Iterator[Compilation]:
    """The launch of conv2d_relu_max_pool2d, where `fuses` makes it one kernel."""
    if fuses(conv, dtype, pool, target):
        call = layer_call(conv.gathered(), target, True, pool)
        yield compilation(f"{name} conv2d_relu_max_pool2d", call, dtype, "x weight bias y", switches=torch.uint8)


def of_max_pool(name: str, shape: tuple[int, ...], pool: Pool, dtype: torch.dtype) -> Iterator[Compilation]:
    """The launches of max_pool2d, max_unpool2d and its backward."""
    number = name.removeprefix("pool")
    for label, call, maps in (
        ("pool", pool_call(max_pool2d_kernel, dtype, shape, pool), "x y"),
        ("unpool", unpool_call(dtype, shape, pool), "y x"),
        ("unpool backward", pool_call(max_unpool2d_backward_kernel, dtype, shape, pool), "g gy"),
    ):
        yield compilation(label + number, call, dtype, maps, switches=torch.uint8)


def of_contrast_norm(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Compilation]:
    """The launches of contrast_norm and its backward, plain and centred."""
    for label, center in ((name, False), (f"{name} centred", True)):
        settings = dtype, shape, 5, 1e-4, 0.75, 2.0, center
        yield compilation(label, norm_call(contrast_norm_kernel, *settings), dtype, "x y")
        yield compilation(f"{label} backward", norm_call(contrast_norm_backward_kernel, *settings), dtype, "g x gx")


def build(compilation: Compilation, architecture: str, dtype: torch.dtype) -> Built:
    """Compiles for `architecture` what launching `compilation` there would compile, and inspects it."""
    built = Built(compilation.name, architecture, str(dtype).removeprefix("torch."))
    types, constants, attributes = signature(compilation)
    source = ASTSource(compilation.kernel, signature=types, constexprs=constants, attrs=attributes)
    gpu, _, limit = ARCHITECTURES[architecture]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as cache, triton.knobs.cache.scope():
        triton.knobs.cache.dir = cache
        try:
            kernel = triton.compile(source, target=gpu, options=dict(compilation.options))
        except Exception as error:  # whatever the compiler raises, this kernel does not compile
            built.problems.append(f"does not compile: {type(error).__name__}: {str(error).strip()[-300:]}")
            return built
    built.seconds = time.perf_counter() - start
    built.shared = kernel.metadata.shared
    if compilation.arguments.get("PERSISTENT"):
        built.features.append("persistent")
    (inspect_amd if gpu.backend == "hip" else inspect_nvidia)(kernel, built)
    if built.stack or built.spills:
        built.problems.append(f"spills: {built.stack} bytes of stack, {built.spills} spilling instructions")
    if built.shared > limit:
        built.problems.append(f"memory: {built.shared} bytes of shared memory, {architecture} has {limit}")
    if REGISTER_OPERAND.search(kernel.asm.get("ptx", "")):
        built.problems.append("registers: a wgmma takes its first operand from registers")
    if compilation.matrix:
        expected = matrix_instruction(compilation, architecture)
        if not built.matrix.get(expected):
            built.problems.append(f"matrix units: no {expected} in a product of matrices")
    return built


def signature(
    compilation: Compilation,
) -> tuple[dict[str, str], dict[tuple[int, ...], Any], dict[tuple[int, ...], Any]]:
    """The types, constants and alignments that triton's launcher would specialise the kernel for."""
    types: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    for i, parameter in enumerate(compilation.kernel.params):
        value = compilation.arguments[parameter.name]
        specialised = not parameter.do_not_specialize
        if parameter.is_constexpr or (value == 1 and isinstance(value, int) and specialised):
            types[parameter.name], constants[(i,)] = "constexpr", value
        elif isinstance(value, Block):
            types[parameter.name] = f"tensordesc<{POINTERS[value.dtype][1:]}[{value.rows}, {value.columns}]>"
        elif isinstance(value, torch.dtype):
            types[parameter.name], attributes[(i,)] = POINTERS[value], [["tt.divisibility", 16]]
        elif isinstance(value, float):
            types[parameter.name] = "fp32"
        else:
            types[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
            if value % 16 == 0 and specialised:
                attributes[(i,)] = [["tt.divisibility", 16]]
    return types, constants, attributes


def matrix_instruction(compilation: Compilation, architecture: str) -> str:
    """The instruction of the matrix units that a product of this tile must use there."""
    # Hopper's and Blackwell's own take 64 rows or more of four warps together; smaller tiles run Ampere's.
    large = compilation.arguments["BM"] >= 64 and compilation.options["num_warps"] % 4 == 0
    return {"sm_80": "HMMA", "sm_90": "HGMMA" if large else "HMMA", "sm_100": "UTCMMA" if large else "HMMA"}.get(
        architecture, "MFMA"
    )


def inspect_nvidia(kernel: Any, built: Built) -> None:
    """Reads registers and stack from the binary, spills and matrix instructions from its disassembly."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = output(tool("cuobjdump") or "cuobjdump", "--dump-resource-usage", file.name)
        code = output(tool("nvdisasm") or "nvdisasm", "-c", file.name)
    built.registers = int(re.findall(r"\bREG:(\d+)", usage)[-1])
    built.stack = int(re.findall(r"\bSTACK:(\d+)", usage)[-1])
    built.spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    built.features += [name for name, pattern in FEATURES.items() if re.search(pattern, code)]
    built.matrix = counted({"HGMMA": r"\bHGMMA\b", "HMMA": r"\bHMMA\b", "UTCMMA": r"\bUTC\w*MMA\b"}, code)


def inspect_amd(kernel: Any, built: Built) -> None:
    """Reads the same from the assembly's metadata and text."""
    code = kernel.asm["amdgcn"]

    def stated(name: str) -> int:
        return int(re.findall(rf"\.{name}:\s+(\d+)", code)[-1])

    built.registers = stated("vgpr_count")
    built.stack = stated("private_segment_fixed_size")
    built.spills = stated("vgpr_spill_count") + stated("sgpr_spill_count")
    built.matrix = counted({"MFMA": r"\bv_mfma_"}, code)


def counted(patterns: dict[str, str], code: str) -> dict[str, int]:
    return {name: count for name, pattern in patterns.items() if (count := len(re.findall(pattern, code)))}


def tool(name: str) -> str | None:
    """The path of a CUDA binary tool: triton's own, else PATH's or the toolkit's."""
    home = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    candidates = (
        str(Path(triton.__file__).parent / "backends/nvidia/bin" / name),
        shutil.which(name) or "",
        str(Path(home, "bin", name)),
    )
    return next((path for path in candidates if os.access(path, os.X_OK)), None)


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


COLUMNS = "{:<44}{:<8}{:<10}{:>9}{:>7}{:>8}{:>8}{:>9}  "
HEADING = COLUMNS.format("kernel", "for", "dtype", "registers", "stack", "spills", "shared", "seconds")
HEADING += "matrix instructions, and what else of the newest GPUs it uses"


def line(b: Built) -> str:
    numbers = b.registers, b.stack, b.spills, b.shared, f"{b.seconds:.1f}"
    text = COLUMNS.format(b.kernel, b.architecture, b.dtype, *numbers) + (
        ", ".join(f"{n} {name}" for name, n in b.matrix.items()) or "-"
    )
    text += "".join(f", {feature}" for feature in b.features)
    return text + "".join(f"\n  FAILED {problem}" for problem in b.problems)
