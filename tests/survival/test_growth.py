"""Ten thousand calls leave no more memory taken and no more files open than a thousand."""

import gc
import os
from collections.abc import Callable

import pytest
import torch
from calls import CALLS
from small import SMALL, inputs, network

import zfkernels as zf
from zfkernels.data.pictures import read_picture
from zfkernels.models import checkpoint

CALLED = 10_000
ALLOWED = 6 * 2**20  # bytes: a leak of 700 a call is seen
pytestmark = pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc")


def memory() -> int:
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def files() -> int:
    return len(os.listdir("/proc/self/fd"))


def assert_no_growth(call: Callable[[int], object], calls: int, allowed: int = ALLOWED) -> None:
    """After a tenth of the calls, which fill caches and pools."""
    for i in range(calls // 10):
        call(i)
    before, opened = memory(), files()
    for i in range(calls):
        call(i)
    assert files() <= opened
    assert memory() - before <= allowed, f"{(memory() - before) / calls:.0f} bytes a call"


@pytest.mark.parametrize("op", sorted({call.op for call in CALLS}))
def test_ops(op):
    """Forward and backward, on several shapes in turn."""
    calls = [call for call in CALLS if call.op == op and sum(map(len, call.shapes.values()))][:4]
    ready = [(call, call.tensors(torch.float32)) for call in calls]
    for _, tensors in ready:
        for tensor in tensors.values():
            tensor.requires_grad_(tensor.is_floating_point())

    def work(i: int) -> None:
        call, tensors = ready[i % len(ready)]
        output = call.run(tensors, "cpu")[0]
        if i % 4 == 0:
            output.sum().backward()

    assert_no_growth(work, CALLED)


def test_filters_that_change():
    """Filters that were transformed are forgotten with their tensor."""
    x = torch.randn(1, 16, 8, 8)

    def work(i: int) -> None:
        weight = torch.randn(32, 16, 3, 3)
        zf.conv2d_relu(x, zf.prepare(weight) if i % 2 else weight, padding=1)

    assert_no_growth(work, CALLED)


def test_errors():
    def work(i: int) -> None:
        for arguments in ((torch.ones(1, 2, 3), torch.ones(1, 1, 1, 1)), (torch.ones(1, 2, 3, 3), None)):
            with pytest.raises((TypeError, ValueError)):
                zf.conv2d_relu(*arguments)

    assert_no_growth(work, CALLED)


@pytest.mark.parametrize("kept", [True, False])
def test_projections(kept, long):
    """Of one Deconvnet; and of a new model and Deconvnet each time."""
    images = inputs(torch.randint(0, 255, (1, 3, 48, 48)))
    one = zf.Deconvnet(network())

    def work(i: int) -> None:
        deconv = one if kept else zf.Deconvnet(network(i))
        deconv.project(images, "conv3", i % 8)

    calls = 800 if kept else 300
    assert_no_growth(work, 10 * calls if long else calls, 2 * ALLOWED)


def test_occlusion(long):
    model, image = network(), torch.randn(3, 48, 48)
    assert_no_growth(
        lambda i: zf.occlusion_map(model, image, 0, patch=16, stride=16), 2000 if long else 150, 2 * ALLOWED
    )


def test_files_that_are_read_and_written(tmp_path, long):
    """Checkpoints and pictures, unreadable ones too."""
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (60, 50), (9, 99, 200)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:90])
    held = checkpoint.Network(network(), ["x", "y", "z"], torch.zeros(3, 48, 48), torch.ones(1, 1, 1), (48, 48))

    def work(i: int) -> None:
        read_picture(tmp_path / "a.png", (48, 48))
        with pytest.raises(ValueError, match=r"b\.png"):
            read_picture(tmp_path / "b.png", (48, 48))
        if i % 10 == 0:
            checkpoint.save(tmp_path / "zfnet.pt", held, SMALL)
            checkpoint.load(tmp_path / "zfnet.pt")

    assert_no_growth(work, CALLED if long else 1000)
