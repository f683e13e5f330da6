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


@pytest.mark.skipif("triton" not in zf.available_backends(), reason="the backend cannot run here")
@pytest.mark.parametrize("offset", [0, 1])
def test_persistent_programs_compute_the_same_bits(offset):
    """One program makes all six tiles; filters are copied by a descriptor, also those past the last, from any start."""
    from zfkernels.backends.triton import conv, tuning
    from zfkernels.backends.triton.launch import INTERPRETED, target

    device = torch.device(backends.module("triton").DEVICES[0])
    torch.manual_seed(0)
    x = torch.randn(2, 64, 9, 10, device=device).bfloat16()
    memory = torch.randn(40 * 9 * 64 + offset, device=device).bfloat16()
    weight = memory[offset:].view(40, 3, 3, 64).permute(0, 3, 1, 2)
    bias = torch.randn(40, device=device).bfloat16()
    shapes = conv.Conv.of(x.shape, weight.shape, (9, 10), (1, 1), (1, 1))
    problem = conv.conv2d_problem(shapes, x.dtype, target(device))
    results = []
    for programs in (0, 1):
        config = tuning.Config(64, 32, 32, 4, 1 if INTERPRETED else 3, programs)
        with tuning.trying(problem, config):
            call = conv.conv2d_call(shapes, x.dtype, target(device)._replace(processors=1), True, True)
            assert (call.programs, call.arguments["tiles"]) == ((1, 6) if programs else (6, 6))
            results.append(conv.conv2d(x, weight, bias, (1, 1), (1, 1), True))
    assert torch.equal(*results)
    expected = torch.nn.functional.conv2d(x.cpu().double(), weight.cpu().double(), bias.cpu().double(), 1, 1).relu()
    assert (results[1].cpu() - expected).norm() <= 1e-2 * expected.norm()


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


def test_persistent_programs_copy_by_descriptors_on_hopper():
    """Tuning tries them on conv3 of ZFNet; the gate compiles what it tries and says what the machine code has."""
    script = """
import torch
from zfkernels.backends.triton import gate
target = gate.ARCHITECTURES["sm_90"].target
for one in gate.tried(torch.bfloat16, target):
    if one.arguments.get("PERSISTENT") and one.name.startswith("conv3"):
        built = gate.build(one, "sm_90", torch.bfloat16)
        print(built.problems, built.features, built.matrix.keys() == {"HGMMA"})
"""
    done = python("-c", script)
    features = "['persistent', 'copies by descriptor (TMA)', 'asynchronous copies']"
    lines = done.stdout.splitlines()
    assert lines == [f"[] {features} True"] * len(lines), done.stderr
    assert lines


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
