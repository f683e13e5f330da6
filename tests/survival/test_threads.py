"""Ops of several threads at once, of forked and spawned processes, and between changes of the number of threads."""

import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import pytest
import torch
from calls import CALLS
from small import inputs, network
from torch.utils.data import DataLoader, Dataset

import zfkernels as zf

THREADS = 8
# Beyond one block of every kernel, so that several threads share a call.
X = torch.randn(2, 40, 48, 44, generator=torch.Generator().manual_seed(1))
W = torch.randn(40, 40, 3, 3, generator=torch.Generator().manual_seed(2))


def results(call) -> list[torch.Tensor]:
    """Forward and, for float tensors, backward."""
    tensors = call.tensors(torch.float32)
    for tensor in tensors.values():
        tensor.requires_grad_(tensor.is_floating_point())
    outputs = call.run(tensors, "cpu")
    total = sum((output * 1.5).sum() for output in outputs if output.is_floating_point() and output.requires_grad)
    if isinstance(total, torch.Tensor):
        total.backward()
    gradients = [tensor.grad for tensor in tensors.values() if tensor.grad is not None]
    return [output.detach() for output in outputs] + gradients


def large() -> list[torch.Tensor]:
    """Ops of many blocks, each of whose results rests on the one before."""
    y = zf.conv2d_relu(X, W, padding=1)
    pooled, switches = zf.max_pool2d_with_switches(y, 3, 2)
    normed = zf.contrast_norm(pooled)
    up = zf.max_unpool2d_with_switches(normed, switches, 3, 2, output_size=X.shape[2:])
    back = zf.relu_conv_transpose2d(up, W, padding=1, output_size=X.shape[2:])
    return [y, pooled, switches, normed, up, back]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    """To the bit; NaN equals NaN."""
    pairs = zip(a, b, strict=True)
    return all(
        torch.equal(left.isnan(), right.isnan()) and torch.equal(left.nan_to_num(7), right.nan_to_num(7))
        for left, right in pairs
    )


@pytest.mark.parametrize("threads", [1, 2])
def test_eight_threads_of_ops_at_once(threads, long):
    """Every call of tests/calls.py (some of them, without --long) and large ones, all threads in another order."""
    torch.set_num_threads(threads)
    calls = [large, large, *((lambda call=call: results(call)) for call in islice(CALLS, None, None, 1 if long else 5))]
    expected = [call() for call in calls]

    def work(thread: int) -> list[int]:
        torch.set_num_threads(threads)
        order = torch.randperm(len(calls), generator=torch.Generator().manual_seed(thread)).tolist()
        return [i for i in order if not same(calls[i](), expected[i])]

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, range(THREADS))) == [[]] * THREADS


def test_eight_threads_of_projections_at_once():
    """Of one Deconvnet, and each of another backend's context, which is the thread's own."""
    model, images = network(), inputs(torch.randint(0, 255, (2, 3, 48, 48)))
    deconv = zf.Deconvnet(model)
    layers = [layer for layer in deconv.layers if layer.startswith("conv")]
    expected = {layer: deconv.project(images, layer, 1).pixels for layer in layers}

    def work(thread: int) -> list[str]:
        wrong = []
        for layer in layers[thread % len(layers) :] + layers[: thread % len(layers)]:
            with zf.use_exact(False):
                if not torch.equal(deconv.project(images, layer, 1).pixels, expected[layer]):
                    wrong.append(layer)
        return wrong

    with ThreadPoolExecutor(THREADS) as pool:
        assert list(pool.map(work, range(THREADS))) == [[]] * THREADS


def test_the_number_of_threads_changes_between_calls():
    torch.set_num_threads(1)
    expected = large()
    for threads in (3, 1, 2, 5, 1, 8, 2):
        torch.set_num_threads(threads)
        assert same(large(), expected), threads


def test_the_number_of_threads_changes_while_others_compute():
    torch.set_num_threads(1)
    expected = large()

    def work(thread: int) -> bool:
        right = True
        for i in range(6):
            torch.set_num_threads(1 + (thread + i) % 3)
            right &= same(large(), expected)
        return right

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


class Computed(Dataset):
    """Items that are results of ops, computed in the loader's processes."""

    def __init__(self, threads: int | None) -> None:
        self.threads = threads

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> list[torch.Tensor]:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        return large()


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_processes_of_a_loader_after_the_threads_were_used(start):
    torch.set_num_threads(2)
    expected = large()
    batches = DataLoader(
        Computed(None),
        batch_size=None,
        num_workers=2,
        multiprocessing_context=start,
        generator=torch.Generator(),
        timeout=60,
    )
    found = list(batches)
    assert len(found) == 6
    assert all(same(item, expected) for item in found)
    assert same(large(), expected)


FORKED = """
import os, signal, torch, test_threads
from test_threads import large, same
test_threads.X = test_threads.X.contiguous(memory_format=torch.channels_last)
torch.set_num_threads(2)
expected = large()
for threads in THREADS:
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        for _ in range(3):
            torch.set_num_threads(threads)
            found = large()
            torch.set_num_threads(1)  # torch's own ops would wait for the threads of the parent's OpenMP
            if not same(found, expected):
                os._exit(1)
        os._exit(0)
    print(os.waitpid(child, 0)[1])
    assert same(large(), expected)
"""


@pytest.mark.parametrize(("pool", "threads"), [("own", (1, 2, 4)), ("", (1, 2))], ids=["own", "openmp"])
def test_a_forked_process_after_the_threads_were_used(pool, threads):
    """As many threads as before the fork, more and fewer."""
    here = os.path.dirname(__file__)
    paths = os.pathsep.join([here, os.path.dirname(here), *(p for p in sys.path if p)])
    environment = os.environ | {"PYTHONPATH": paths, "ZFKERNELS_POOL": pool, "OMP_NUM_THREADS": "2"}
    code = FORKED.replace("THREADS", str(threads))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0\n" * len(threads), "it hangs" if "14\n" in done.stdout else done.stdout


def _in_a_pool(number: int) -> bool:
    torch.set_num_threads(1)
    return all(bool(value.isfinite().all()) for value in large() if value.is_floating_point())


def test_a_pool_of_forked_processes():
    torch.set_num_threads(2)
    large()
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map_async(_in_a_pool, range(4)).get(timeout=60) == [True] * 4
