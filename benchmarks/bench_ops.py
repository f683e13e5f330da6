"""Every op on the real layers, under pytest-benchmark: pytest benchmarks/bench_ops.py -k "conv3 and zfkernels"."""

import compare
import peers
import pytest
import torch

CONTENDERS = ("zfkernels", "eager nchw", "eager nhwc", "ort", "openvino")


@pytest.mark.parametrize("who", CONTENDERS)
@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("name", peers.names())
def test_op(benchmark, name: str, n: int, who: str) -> None:
    with torch.no_grad():
        case = peers.make(name, n, threads=torch.get_num_threads())
        if who not in case.run:
            pytest.skip(f"{who} is not installed, or has no such op")
        assert compare.error(case, who) <= compare.BOUND
        benchmark(case.run[who])
