"""Every op on the real layers, under pytest-benchmark: pytest benchmarks/bench_ops.py -k "conv3 and zfkernels"."""

import pytest
import torch

from zfkernels.bench import checks, jobs, measure
from zfkernels.bench.peers import Setting

CONTENDERS = ("zfkernels", "eager nchw", "eager nhwc", "onednn", "ort", "openvino")


@pytest.mark.parametrize("who", CONTENDERS)
@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("name", [name for name, job in jobs.JOBS.items() if job.group == "op"])
def test_op(benchmark, name: str, n: int, who: str) -> None:
    with torch.no_grad():
        case = jobs.make(name, n, Setting(threads=torch.get_num_threads(), peers=(who,)))
        if who not in case.run:
            pytest.skip(f"{who} is not installed, or has no such op")
        assert measure.errors(case)[who] <= checks.BOUND
        benchmark(case.run[who])
