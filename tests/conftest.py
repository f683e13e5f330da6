"""What every test runs under, and the one way that results are compared with the reference."""

import importlib.util
import os
from pathlib import Path

import pytest
import torch

import zfkernels as zf
from zfkernels import backends

# Without a GPU the Triton kernels run in Triton's interpreter, which must be said before they are defined.
if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

# The path of a module that tests/emulator/build.py made: backend cuda is then tested on the CPU, as "emulated".
if os.environ.get("ZFKERNELS_EMULATED"):
    from emulator import backend

    backend.register(Path(os.environ["ZFKERNELS_EMULATED"]))

# Relative in norm, ||out - ref|| / ||ref||.
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
TF32_BOUND = 1e-3


@pytest.fixture(autouse=True)
def poisoned_memory():
    """torch.empty holds NaN (255 for switches), so that what a kernel does not write is seen."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])


@pytest.fixture(autouse=True)
def same_start():
    """The same random numbers, threads and default backend for each test, whatever ran before it."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    with zf.use_backend(None), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def triton_absent(monkeypatch):
    """Backend "triton" cannot run."""
    monkeypatch.setitem(backends.MODULES, "triton", "zfkernels.backends.absent")
    monkeypatch.delitem(backends.registry._loaded, "triton", raising=False)


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """||out - expected|| / ||expected||; inf when a non-finite value is missing, added or out of its place."""
    out, expected = out.detach().double().cpu(), expected.detach().double().cpu()
    finite = expected.isfinite()
    if not torch.equal(out.isfinite(), finite) or not torch.equal(
        out[~finite].nan_to_num(), expected[~finite].nan_to_num()
    ):
        return float("inf")
    if not torch.equal(out.isnan(), expected.isnan()):
        return float("inf")
    difference = (out[finite] - expected[finite]).norm().item()
    size = expected[finite].norm().item()
    return difference / size if size else (0.0 if difference == 0 else float("inf"))


def assert_close(name: str, out: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, exact: bool = False) -> None:
    """Shape and dtype first, then channels-last memory if it is a map, then the values, within the dtype's bound."""
    assert out.shape == expected.shape, name
    assert out.dtype == dtype, name
    if name not in ("weight", "bias") and out.numel():
        assert out.is_contiguous(memory_format=torch.channels_last), f"{name} must be channels-last"
    if name == "result":
        assert out.stride() == torch.empty(out.shape, memory_format=torch.channels_last).stride()
    if exact:
        assert torch.equal(out.isnan(), expected.isnan()), f"{name}: NaN out of place"
        assert torch.equal(out.nan_to_num(), expected.to(dtype).nan_to_num()), f"{name} must be exact"
    else:
        assert error(out, expected) <= BOUNDS[dtype], f"{name}: error {error(out, expected):.3g}"
