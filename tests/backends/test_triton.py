"""What only the Triton backend has: where it can run, what it says where it cannot, and the compile gate.

Its results are tested with every other backend's, in test_backends.py, in Triton's interpreter where there is no GPU.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import zfkernels as zf
from zfkernels import backends

TESTS = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """Runs Python without TRITON_INTERPRET, unless `environment` sets it."""
    env = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    env["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), *filter(None, [env.get("PYTHONPATH")])])
    return subprocess.run([sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=900)


REASON = "from zfkernels import backends; print(backends.reason('triton')); print(backends.available_backends())"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_why_and_what_to_do():
    printed = python("-c", REASON).stdout
    assert "None" not in printed
    assert "'triton'" not in printed
    assert "without CUDA" in printed or "finds no GPU" in printed
    assert "set TRITON_INTERPRET=1 before Python starts" in printed


def test_without_triton_it_says_what_to_install():
    hide = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, *a: None if n == 'triton' else f(n, *a)"
    )
    printed = python("-c", f"{hide}; {REASON}").stdout
    assert "triton is not installed; run: pip install 'zfkernels[triton]'" in printed
    assert "'triton'" not in printed.splitlines()[1]


def test_interpreter_serves_the_cpu():
    printed = python("-c", REASON, TRITON_INTERPRET="1").stdout
    assert printed.splitlines()[0] == "None"
    assert "'triton'" in printed


@pytest.mark.skipif("triton" not in zf.available_backends(), reason="the backend cannot run here")
def test_float64_is_refused():
    x = torch.zeros(1, 1, 2, 2, dtype=torch.float64, device=backends.module("triton").DEVICES[0])
    with pytest.raises(RuntimeError, match=r"does not serve dtype torch\.float64, only float32, bfloat16, float16"):
        zf.contrast_norm(x, backend="triton")


@pytest.mark.skipif("triton" not in zf.available_backends(), reason="the backend cannot run here")
@pytest.mark.parametrize("switch", [4, 9, 255, 0, 1, 3])
def test_a_bad_switch_is_ignored(switch):
    """On a GPU nothing can be raised: 9 and 255 lie outside the window, 0, 1 and 3 in the padding of the first one."""
    device = backends.module("triton").DEVICES[0]
    y = torch.ones(1, 1, 3, 3, device=device)
    switches = torch.full(y.shape, 4, dtype=torch.uint8, device=device)
    switches[0, 0, 0, 0] = switch
    x = zf.max_unpool2d_with_switches(y, switches, 3, 2, 1, output_size=5, backend="triton")
    assert x.sum() == (9 if switch == 4 else 8)
    y.requires_grad_()
    x = zf.max_unpool2d_with_switches(y, switches, 3, 2, 1, output_size=5, backend="triton")
    (gy,) = torch.autograd.grad(x.sum(), y)
    assert gy[0, 0, 0, 0] == (1 if switch == 4 else 0)
    assert gy.sum() == (9 if switch == 4 else 8)


@pytest.mark.skipif("triton" not in zf.available_backends(), reason="the backend cannot run here")
@pytest.mark.parametrize(("channels", "size"), [(40, 21), (40, 40), (19, 64)])
@pytest.mark.parametrize("center", [False, True])
def test_wide_windows_of_contrast_norm(channels, size, center):
    """Windows too wide to be summed in registers."""
    device = backends.module("triton").DEVICES[0]
    x = torch.randn(2, channels, 2, 3).requires_grad_()
    ours = x.detach().to(device).requires_grad_()
    settings = {"size": size, "alpha": 1.0, "center": center}
    expected = zf.contrast_norm(x, **settings, backend="reference")
    y = zf.contrast_norm(ours, **settings, backend="triton")
    g = torch.randn(y.shape)
    (expected_gx,), (gx,) = torch.autograd.grad(expected, x, g), torch.autograd.grad(y, ours, g.to(device))
    assert (y.cpu() - expected).norm() <= 1e-5 * expected.norm()
    assert (gx.cpu() - expected_gx).norm() <= 1e-5 * expected_gx.norm()


@pytest.fixture(scope="module")
def refused() -> dict[str, list[str]]:
    done = python(str(Path(__file__).with_name("bad_kernels.py")))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("kind", ["spills", "registers", "matrix units", "memory", "memory of gfx942"])
def test_gate_refuses(refused, kind):
    assert len(refused[kind]) == 1, refused[kind]
    assert refused[kind][0].startswith(kind.partition(" of ")[0])


@pytest.mark.parametrize("kind", ["sound", "sound copy"])
def test_gate_passes_sound_kernels(refused, kind):
    assert refused[kind] == []


def test_offsets_past_two_to_the_31_are_64_bit():
    """In the compiled code of the pooling kernels, pointers are advanced by 64-bit offsets only."""
    script = """
import torch, re
from zfkernels.backends.triton import gate
texts = []
inspect = gate.inspect_nvidia
gate.inspect_nvidia = lambda kernel, built: (texts.append(kernel.asm["ttir"]), inspect(kernel, built))
target = gate.ARCHITECTURES["sm_80"].target
names = "pool1", "unpool1", "unpool backward1", "norm1", "norm1 backward", "norm1 centred"
for compilation in gate.launches(torch.bfloat16, target):
    if compilation.name in names:
        gate.build(compilation, "sm_80", torch.bfloat16)
for text in texts:
    print(*sorted(set(re.findall(r"tt\\.addptr .*?, (?:tensor<[0-9x]*)?(i\\d+)", text))))
"""
    done = python("-c", script)
    assert done.stdout.split("\n")[:-1] == ["i64"] * 6, done.stdout + done.stderr


def test_without_disassembler_the_gate_says_so():
    script = """
import sys
from zfkernels.backends.triton import gate
gate.tool = lambda name: None
sys.exit(gate.main(quick=True, file=None))
"""
    done = python("-c", script)
    assert done.returncode == 2
    assert "cuobjdump, nvdisasm not found" in done.stderr
