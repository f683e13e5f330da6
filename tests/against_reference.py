"""One call of a public function on one backend against the float64 reference, forward and backward.

Gradients are checked at the backend's own results: the reference is given the rectifier's mask and the switches that
the backend found, which are checked with the forward pass.
"""

import torch
from calls import Call
from conftest import assert_close

from zfkernels import backends
from zfkernels.backends import reference
from zfkernels.testing.cases import values
from zfkernels.testing.memory import placed


def check(backend: str, call: Call, dtype: torch.dtype, layout: str) -> None:
    """The results and the gradients, from tensors in memory of that layout."""
    device, plain = backends.module(backend).DEVICES[0], call.tensors(dtype)
    tensors = {name: placed(value.to(device), layout) for name, value in plain.items()}
    for name, value in tensors.items():
        value.requires_grad_(name != "switches")
    outputs = call.run(tensors, backend)

    # Half types: pooling compares rounded values, so the reference too must round before it.
    wide = dtype if len(outputs) > 1 else torch.float64
    expected = call.run({n: v if n == "switches" else v.to(wide) for n, v in plain.items()}, "reference")
    assert_close("result", outputs[0], expected[0], dtype, exact=moves_only(call, gradient=False))
    if len(outputs) > 1:
        assert outputs[1].dtype == torch.uint8
        assert outputs[1].stride() == outputs[0].stride()
        assert not outputs[1].requires_grad
        if call.op.startswith("max_pool2d") or call.fill in ("ties", "zeros"):
            assert torch.equal(outputs[1].cpu(), expected[1])
    if len(outputs) == 3:
        assert_close("result", outputs[2], expected[2], dtype)

    g = values(outputs[0].shape, call.fill if call.fill == "ties" else "normal", torch.Generator().manual_seed(1))
    g = g.to(dtype)
    own = placed(g.to(device), layout)
    wanted = {name: value for name, value in tensors.items() if name != "switches"}
    differentiable = outputs[::2]  # all except the switches, with the same gradient
    gradients = torch.autograd.grad(differentiable, list(wanted.values()), [own] * len(differentiable))
    expected = expected_gradients(call, plain, [output.detach().cpu() for output in outputs], g)
    for name, gradient in zip(wanted, gradients, strict=True):
        assert_close(name, gradient, expected[name], dtype, exact=moves_only(call, gradient=True))


def expected_gradients(call: Call, tensors: dict, outputs: tuple, g: torch.Tensor) -> dict:
    """The gradients of <g, op(tensors)> in float64, each formula written with the reference's primitives."""
    t = {name: value if name == "switches" else value.double() for name, value in tensors.items()}
    g, y = g.double(), outputs[0].double()
    if "weight" in t:
        stride, padding = call.conv_window
        kernel, grouped = t["weight"].shape[2:], call.grouped
    if "pool_kernel" in call.settings or "kernel_size" in call.settings:
        pool, size = call.pool_window, call.pooled_map
    rectify = call.settings.get("rectify", True)

    def conv(x):
        return reference.conv2d(x, t["weight"], None, stride, padding, False, *grouped)

    def masked(g, y):
        return torch.where(y <= 0, 0.0, g)

    def of_conv(g):
        gx = reference.conv_transpose2d(g, t["weight"], stride, padding, t["x"].shape[2:], False, *grouped)
        gw, gb = reference.conv2d_weight_grad(t["x"], g, kernel, stride, padding, True, *grouped)
        return {"x": gx, "weight": gw} | ({"bias": gb} if "bias" in t else {})

    if call.op == "conv2d_relu":
        cap = call.settings.get("cap")
        g = masked(g, y) if cap is None else torch.where(y >= cap, 0.0, masked(g, y))
        return of_conv(g) | ({"add": g} if "add" in t else {})
    if call.op == "conv2d_relu_max_pool2d":
        return of_conv(reference.max_unpool2d(masked(g, y), outputs[1], *pool, size))
    if call.op == "relu_conv_transpose2d":
        gy = masked(conv(g), t["y"]) if rectify else conv(g)
        y = t["y"].relu() if rectify else t["y"]
        return {"y": gy, "weight": reference.conv2d_weight_grad(g, y, kernel, stride, padding, False, *grouped)[0]}
    if call.op == "max_unpool2d_relu_conv_transpose2d":
        unpooled = reference.max_unpool2d(t["y"], t["switches"], *pool, size)
        gu = masked(conv(g), unpooled) if rectify else conv(g)
        unpooled = unpooled.relu() if rectify else unpooled
        gw = reference.conv2d_weight_grad(g, unpooled, kernel, stride, padding, False)[0]
        return {"y": reference.max_unpool2d_backward(gu, t["switches"], *pool), "weight": gw}
    if call.op == "max_pool2d_with_switches":
        return {"x": reference.max_unpool2d(g, outputs[1], *pool, size)}
    if call.op == "avg_pool2d":
        return {"x": reference.avg_pool2d_backward(g, *pool, size, call.settings["count_include_pad"])}
    if call.op == "max_pool2d_contrast_norm":
        through_norm = reference.contrast_norm_backward(g, y, *list(call.settings.values())[-5:])
        return {"x": reference.max_unpool2d(g + through_norm, outputs[1], *pool, size)}
    if call.op == "max_unpool2d_with_switches":
        return {"y": reference.max_unpool2d_backward(g, t["switches"], *pool)}
    return {"x": reference.contrast_norm_backward(g, t["x"], *call.settings.values())}


def moves_only(call: Call, gradient: bool) -> bool:
    """Does the op only move and compare data, so that its result must be exact? (Two values meeting add exactly.)"""
    if call.op == "max_pool2d_contrast_norm":
        return not gradient
    gathers = call.op == ("max_unpool2d_with_switches" if gradient else "max_pool2d_with_switches")
    return gathers or (call.fill in ("ties", "zeros") and "pool2d_with" in call.op)
