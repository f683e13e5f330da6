"""What every test runs under, and how results are compared with the reference."""

import importlib.util
import math
import os
import signal
from pathlib import Path

import pytest
import torch

# A run in a shell's background ignores Ctrl-C, and so would the commands that tests stop with it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Without a GPU the Triton kernels run in Triton's interpreter, which must be said before anything imports triton.
if not torch.cuda.is_available() and importlib.util.find_spec("triton") is not None:
    os.environ.setdefault("TRITON_INTERPRET", "1")

import zfkernels as zf
from zfkernels import backends
from zfkernels.testing.compare import BOUNDS, relative_error
from zfkernels.testing.memory import poisoned_memory

# The path of a module that tests/emulator/build.py made: backend cuda is then tested on the CPU, as "emulated".
if os.environ.get("ZFKERNELS_EMULATED"):
    from emulator import backend

    backend.register(Path(os.environ["ZFKERNELS_EMULATED"]))


def pytest_addoption(parser):
    parser.addoption("--zoo", action="store_true", help="every network of tests/zoo, not the quick ones alone")
    parser.addoption("--long", action="store_true", help="the longer form of the tests of tests/survival")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--zoo"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("zoo")])
        items[:] = [item for item in items if not item.get_closest_marker("zoo")]


@pytest.fixture(autouse=True)
def poisoned():
    """torch.empty holds NaN (255 for switches), so that what a kernel does not write is seen."""
    with poisoned_memory():
        yield


@pytest.fixture(autouse=True)
def same_start():
    """The same random numbers, threads and default backend for each test, whatever ran before it."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    with zf.use_backend(None), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.set_num_threads(threads)


@pytest.fixture
def long(request) -> bool:
    """Whether --long was given."""
    return request.config.getoption("--long")


@pytest.fixture
def triton_absent(monkeypatch):
    """Backend "triton" cannot run."""
    monkeypatch.setitem(backends.MODULES, "triton", "zfkernels.backends.absent")
    monkeypatch.delitem(backends.registry._loaded, "triton", raising=False)


def error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """testing.compare's relative error; inf also where zeros are expected and out is anything else."""
    result = relative_error(out.detach().cpu(), expected.detach().cpu())
    return math.inf if result and not expected.nan_to_num(0, 0, 0).any() else result


def assert_close(name: str, out: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, exact: bool = False) -> None:
    """Shape and dtype first, then channels-last memory if it is a map, then the values, within the dtype's bound."""
    assert out.shape == expected.shape, name
    assert out.dtype == dtype, name
    if name not in ("weight", "bias") and out.numel():
        assert out.is_contiguous(memory_format=torch.channels_last), f"{name} must be channels-last"
    if name == "result":
        assert out.stride() == torch.empty(out.shape, memory_format=torch.channels_last).stride()
    if exact:
        assert torch.equal(out.isnan(), expected.isnan()), f"{name}: NaN in another place"
        assert torch.equal(out.nan_to_num(), expected.to(dtype).nan_to_num()), f"{name} must be exact"
    else:
        assert error(out, expected) <= BOUNDS[dtype], f"{name}: error {error(out, expected):.3g}"
