"""No kernel touches what lies beside its tensors: each of them, those that a backend allocates too, has a page that
nobody may touch where it ends, or where it begins. To read beyond a tensor what is then not used changes no result, but
ends the process here.
"""

import ctypes
import mmap
import os
import signal
import subprocess
import sys

import pytest
import torch
from calls import CALLS
from torch import Tensor
from torch.overrides import TorchFunctionMode

from zfkernels import backends

PAGE = mmap.PAGESIZE
NO_ACCESS = 0  # mprotect's PROT_NONE
MAKERS = {torch.empty, torch.empty_like, Tensor.new_empty, Tensor.new_empty_strided}
LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform.startswith("linux") else None
BACKENDS = [name for name in ("cpu", "emulated") if name in backends.MODULES and backends.reason(name) is None]
ISAS = backends.module("cpu")._C.isas() if "cpu" in BACKENDS else []
OPS = sorted({call.op for call in CALLS})
# A module of some of the CUDA sources has only some of the ops.
RUNS = [("cpu", isa, "") for isa in ISAS] + [("emulated", "", op) for op in OPS if "emulated" in BACKENDS]

pytestmark = pytest.mark.skipif(LIBC is None, reason="pages are fenced as Linux does it")


def fenced(x: Tensor, at_end: bool) -> Tensor:
    """A copy of x, of the same strides, that ends where a fence begins; or that begins where one ends."""
    if not x.numel():
        return x.clone()
    extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    size = extent * x.element_size()
    room = -(-size // PAGE) * PAGE
    memory = mmap.mmap(-1, room + 2 * PAGE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for fence in (address, address + PAGE + room):
        if LIBC.mprotect(ctypes.c_void_p(fence), ctypes.c_size_t(PAGE), NO_ACCESS):
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = PAGE + (room - size if at_end else 0)
    flat = torch.frombuffer(memory, dtype=x.dtype, count=extent, offset=offset)
    return flat.as_strided(x.shape, x.stride()).copy_(x)


class Fences(TorchFunctionMode):
    """Within it what is allocated lies between fences."""

    def __init__(self, at_end: bool) -> None:
        super().__init__()
        self.at_end = at_end

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return fenced(result, self.at_end) if func in MAKERS else result


def run_all(backend: str, isa: str, op: str, at_end: bool) -> None:
    """Every call (of this op), forward and backward, in each dtype; says each before it runs."""
    module = backends.module(backend)
    if isa:
        module._C.set_isa(isa)
    torch.set_num_threads(1)
    for dtype in module.DTYPES:
        for call in CALLS:
            grouped = call.grouped != ((1, 1), 1) and not getattr(module, "GROUPS", True)
            average = call.op == "avg_pool2d" and not getattr(module, "AVERAGES", True)
            if grouped or average or op not in ("", call.op):
                continue
            print(call.id, dtype, "end" if at_end else "begin", flush=True)
            tensors = {}
            for name, value in call.tensors(dtype).items():
                dense = value.contiguous(memory_format=torch.channels_last) if value.dim() == 4 else value
                tensors[name] = fenced(dense, at_end).requires_grad_(name != "switches")
            wanted = [value for name, value in tensors.items() if name != "switches"]
            with Fences(at_end):
                outputs = call.run(tensors, backend)[::2]
                g = [fenced(torch.ones_like(output), at_end) for output in outputs]
                torch.autograd.grad(outputs, wanted, g)


def child(code: str) -> subprocess.CompletedProcess:
    here = os.path.dirname(__file__)
    paths = os.pathsep.join([here, os.path.dirname(here), *(p for p in sys.path if p)])
    command = [sys.executable, "-c", f"import conftest, test_fences as t; {code}"]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(("backend", "isa", "op"), RUNS)
def test_nothing_beside_a_tensor_is_touched(backend, isa, op):
    done = child(f"[t.run_all({backend!r}, {isa!r}, {op!r}, at_end) for at_end in (True, False)]")
    last = done.stdout.strip().splitlines()[-1:]
    assert done.returncode == 0, f"{last}: {done.stderr[-2000:]}"
    assert len(done.stdout.splitlines()) > (1 if op else 600)


@pytest.mark.parametrize("at_end", [True, False], ids=["end", "begin"])
def test_a_fence_ends_the_process_that_touches_it(at_end):
    make = f"x = t.Fences({at_end}).__torch_function__(t.torch.empty_like, (), [t.torch.ones(5)])"
    read = "t.ctypes.string_at(x.data_ptr() + {}, 4)"
    done = child(f"{make}; {read.format(0)}; print('inside', flush=True); {read.format(20 if at_end else -4)}")
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "inside\n")


def test_the_copies_hold_the_values():
    for at_end in (True, False):
        x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
        assert torch.equal(fenced(x, at_end), x)
        assert fenced(x, at_end).stride() == x.stride()
