"""What a public call costs above its backend function: checks, the choice of the backend, autograd's records.

    python benchmarks/overhead.py

The backend is one that returns zeros and computes nothing; its own time is subtracted. Microseconds a call, the fastest
of many bursts: without gradients, with gradients (the forward call), and the backward pass of that call, most of which
is the autograd engine's own.
"""

import time
from types import SimpleNamespace

import torch

import zfkernels as zf
from zfkernels import backends


def main() -> None:
    torch.set_num_threads(1)
    hollow = backends.registry._loaded["reference"] = hollowed(backends.module("cpu"))
    x, y = torch.randn(1, 8, 8, 8), torch.randn(1, 16, 3, 3)
    weight, bias, switches = torch.randn(16, 8, 3, 3), torch.randn(16), torch.zeros(1, 16, 3, 3, dtype=torch.uint8)
    cases = {
        "conv2d_relu": (lambda: zf.conv2d_relu(x, weight, bias), x),
        "max_pool2d_with_switches": (lambda: zf.max_pool2d_with_switches(x, 2)[0], x),
        "contrast_norm": (lambda: zf.contrast_norm(x), x),
        "max_unpool2d_with_switches": (lambda: zf.max_unpool2d_with_switches(y, switches, 2, output_size=(6, 6)), y),
        "relu_conv_transpose2d": (lambda: zf.relu_conv_transpose2d(y, weight, output_size=(5, 5)), y),
        "conv2d_relu_max_pool2d": (
            lambda: zf.conv2d_relu_max_pool2d(x, weight, bias, 1, 0, 2, 2, 0, False)[0],
            x,
        ),
        "max_unpool2d_relu_conv_transpose2d": (
            lambda: zf.max_unpool2d_relu_conv_transpose2d(y, switches, weight, 1, 0, 2, 2, 0, output_size=(8, 8)),
            y,
        ),
    }
    print(f"{'microseconds above the backend':<36}{'no gradient':>12}{'forward':>12}{'backward':>12}")
    with zf.use_backend("reference"):
        for name, (call, tensor) in cases.items():
            hollow.shapes.clear()
            call()  # fills in what the hollow backend returns
            with torch.no_grad():
                without = fastest(call) - hollow.cost(call)
            tensor.requires_grad_()
            forward = fastest(call) - hollow.cost(call)
            out = call()
            gradient = torch.ones_like(out)

            def backward(out=out, tensor=tensor, gradient=gradient):
                return torch.autograd.grad(out, tensor, gradient, retain_graph=True)

            backward()
            back = fastest(backward) - hollow.cost(backward)
            tensor.requires_grad_(False)
            print(f"{name:<36}{without:>12.1f}{forward:>12.1f}{back:>12.1f}")


def hollowed(module) -> SimpleNamespace:
    """The module with functions that return zeros of their first results' `shapes`, and what a call spends in them."""
    shapes: dict = {}
    calls: list = []

    def empty(name: str):
        results = shapes[name]
        gradients = tuple(torch.zeros_like(r) if r is not None else None for r in results)
        return gradients if len(gradients) > 1 else gradients[0]

    def hollow(name: str):
        def function(*args):
            calls.append(name)
            if name not in shapes:
                result = getattr(module, name)(*args)
                shapes[name] = result if isinstance(result, tuple) else (result,)
            return empty(name)

        return function

    def cost(call) -> float:
        calls.clear()
        call()
        used = list(calls)
        return fastest(lambda: [functions[name]() for name in used])

    functions = {
        name: hollow(name) for name in dir(module) if not name.startswith("_") and callable(getattr(module, name))
    }
    return SimpleNamespace(**functions, DEVICES=module.DEVICES, DTYPES=module.DTYPES, cost=cost, shapes=shapes)


def fastest(call, repeats: int = 200, bursts: int = 60) -> float:
    """Microseconds a call, in the fastest burst."""
    best = float("inf")
    for _ in range(bursts):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        best = min(best, time.perf_counter() - start)
    return best / repeats * 1e6


if __name__ == "__main__":
    main()
