"""The built package: its version, what the module links, and every instruction set that it carries and this CPU has."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from forked import forked
from setuptools import Distribution

import zfkernels
from zfkernels import _C, backends
from zfkernels.backends import cuda
from zfkernels.commands import info
from zfkernels.environment import compiled, environment

ROOT = Path(__file__).resolve().parents[2]
KNOWN_SETS = ["baseline", "avx2", "avx512"]

SMOKE = """
from zfkernels.environment import compiled
from zfkernels.testing import verify
rows = verify.run("cpu", cases=1)
print(compiled()["isa"], len(rows), [row for row in rows if row.failure])
"""


def test_version_is_the_metadatas():
    try:
        installed = importlib.metadata.version("zfkernels")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("not installed, run from the source tree")
    assert zfkernels.__version__ == installed


def test_module_links_neither_torch_nor_cuda():
    if not sys.platform.startswith("linux"):
        pytest.skip("reads an ELF file's dynamic section")
    needed = needed_libraries(Path(_C.__file__).read_bytes())
    assert needed
    assert [name for name in needed if re.match(r"lib(torch|c10|cudart|cuda|cublas|cudnn|gomp|omp|iomp)", name)] == []


def needed_libraries(elf: bytes) -> list[str]:
    """The DT_NEEDED entries of a 64-bit little-endian ELF file."""

    def number(at: int, size: int) -> int:
        return int.from_bytes(elf[at : at + size], "little")

    assert elf[:6] == b"\x7fELF\x02\x01"
    headers, size, count = number(32, 8), number(54, 2), number(56, 2)
    segments = [headers + size * i for i in range(count)]
    loads = [(number(s + 16, 8), number(s + 8, 8), number(s + 32, 8)) for s in segments if number(s, 4) == 1]
    (dynamic,) = (s for s in segments if number(s, 4) == 2)
    start, length = number(dynamic + 8, 8), number(dynamic + 32, 8)
    entries = [(number(at, 8), number(at + 8, 8)) for at in range(start, start + length, 16)]
    address = next(value for tag, value in entries if tag == 5)
    strings = next(address - begin + offset for begin, offset, bytes_ in loads if begin <= address < begin + bytes_)
    return [elf[strings + v : elf.index(b"\0", strings + v)].decode() for tag, v in entries if tag == 1]


def test_usable_instruction_sets_are_known_and_the_best_is_chosen():
    assert _C.isas()[0] == "baseline"
    assert [name for name in KNOWN_SETS if name in _C.isas()] == _C.isas()
    assert compiled()["isa"] == os.environ.get("ZFKERNELS_ISA", _C.isas()[-1])


def test_each_instruction_set_can_be_forced_and_is_right():
    for name, done in zip(_C.isas(), forked("ZFKERNELS_ISA", _C.isas(), SMOKE), strict=True):
        assert (done.code, done.text) == (0, f"{name} 60 []")


def test_unknown_instruction_set_is_refused_by_name():
    (done,) = forked("ZFKERNELS_ISA", ["sse9"], "from zfkernels.backends import cpu")
    assert done.code != 0
    assert re.search(r"ValueError: ZFKERNELS_ISA: .*'sse9'.*baseline", done.text)


def test_cuda_backend_says_why_it_cannot_run():
    reason = cuda.unavailable()
    if not _C.built_with_cuda:
        assert reason.startswith("built without CUDA: ")
        assert "pip install" in reason
    elif not cuda.devices():
        assert reason.startswith("no CUDA device: ")
    else:
        assert reason is None or "8.0 (Ampere)" in reason
        return
    with pytest.raises(RuntimeError, match=re.escape(reason)):
        backends.module("cuda")


@pytest.mark.skipif(not _C.built_with_cuda, reason="built without CUDA")
def test_cuda_runtime_is_linked_in():
    assert _C.cuda_runtime_version() >= 11000
    if _C.cuda_driver_version() == 0:
        with pytest.raises(RuntimeError, match=r"cudaGetDeviceCount: .*\(cuda\w+\)"):
            _C.cuda_device_count()


@pytest.mark.skipif(not cuda.devices(), reason="no CUDA device")
def test_device_code_runs():
    for index, device in enumerate(cuda.devices()):
        assert device["name"]
        _C.cuda_self_test(index)
    with pytest.raises(RuntimeError, match="cudaSetDevice"):
        _C.cuda_self_test(len(cuda.devices()))


def test_info_tells_what_runs():
    report = environment()
    text = info.text(report)
    assert report["zfkernels"] == zfkernels.__version__
    for name in backends.MODULES:
        assert re.search(rf"^  {name} +\S", text, re.MULTILINE)
    assert f"instruction set: {_C.isa()}" in text
    assert "CUDA devices:" in text


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ZFKERNELS_CUDA", "yes", "ZFKERNELS_CUDA must be 0 or 1, got 'yes'"),
        ("ZFKERNELS_CUDA", "1", "ZFKERNELS_CUDA=1 asks for the CUDA kernels, but nvcc was not found"),
    ],
)
def test_build_refuses(variable, value, message, monkeypatch):
    setup = build_script()
    monkeypatch.setenv(variable, value)
    monkeypatch.setattr(setup.os, "access", lambda *a: False)
    with pytest.raises(SystemExit, match=message):
        setup.find_nvcc()


def test_build_leaves_cuda_out_when_told(monkeypatch):
    setup = build_script()
    monkeypatch.setenv("ZFKERNELS_CUDA", "0")
    assert setup.find_nvcc() is None


def test_objects_are_reused_only_while_newer(tmp_path, monkeypatch):
    setup = build_script()
    monkeypatch.setattr(setup, "CSRC", tmp_path)
    source, header, target = tmp_path / "a.cpp", tmp_path / "cpu" / "a.h", tmp_path / "a.o"
    header.parent.mkdir()
    for age, path in ((30, source), (30, header), (20, target)):
        path.touch()
        os.utime(path, (1e9 - age, 1e9 - age))
    assert setup.is_fresh(target, str(source))
    os.utime(header, (1e9, 1e9))
    assert not setup.is_fresh(target, str(source))
    assert not setup.is_fresh(tmp_path / "missing.o", str(source))


def test_objects_are_kept_where_the_variable_says(tmp_path, monkeypatch):
    """Whatever folder the build itself has, which goes with a wheel's or an editable install's."""
    setup, seen = build_script(), []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZFKERNELS_CUDA", "0")
    monkeypatch.setenv("ZFKERNELS_OBJECTS", str(tmp_path / "kept"))
    extension = setup.Extension("zfkernels._C", ["a.cpp"])
    command = setup.BuildKernels(Distribution({"ext_modules": [extension]}))
    command.finalize_options()
    command.build_temp = str(tmp_path / "goes")
    command.compiler = SimpleNamespace(compiler_type="unix", link_shared_object=lambda *_, **__: None)
    monkeypatch.setattr(command, "_compile", lambda _, variant, *__: seen.append(command._object_folder(variant, [])))
    command.build_extension(extension)
    assert len(seen) > len(setup.KERNEL_SOURCES)
    assert {Path(folder).parent for folder in seen} == {tmp_path / "kept"}


PTXAS = """ptxas info    : Compiling entry function '_Z4goodi' for 'sm_80'
ptxas info    : Function properties for _Z4goodi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 24 registers, used 1 barriers
ptxas info    : Compiling entry function '_Z3badi' for 'sm_90a'
ptxas info    : Function properties for _Z3badi
    24 bytes stack frame, 20 bytes spill stores, 16 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
"""


def test_spilled_registers_are_reported_and_refused(capsys):
    setup = build_script()
    good, bad = setup.ptxas_resources(PTXAS)
    assert good[1:] == ("sm_80", 24, 0, 0)
    assert bad[1:] == ("sm_90a", 255, 24, 36)
    setup.report_resources([good])
    assert "1 kernels, 0 of them spill registers" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"bad.* spills 36 bytes on sm_90a"):
        setup.report_resources([good, bad])


def build_script():
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("zfkernels_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_source_distribution_is_complete(tmp_path):
    command = [sys.executable, "setup.py", "-q", "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with tarfile.open(tmp_path / f"zfkernels-{zfkernels.__version__}.tar.gz") as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert {"csrc/window.h", "csrc/cpu/kernels.h", "csrc/cuda/device.cu"} <= sources
    others = {"setup.py", "pyproject.toml", "constraints.txt", "LICENSE", "tests/conftest.py", ".ci/run", "mkdocs.yml"}
    others |= {"README.md", "CHANGELOG.md", "CITATION.cff", "SECURITY.md", "examples/own_network.ipynb"}
    assert (sources | others) - held == set()
    assert [name for name in held if name.endswith((".so", ".o", ".pyc"))] == []
