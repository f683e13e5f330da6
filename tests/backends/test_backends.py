"""Every op on every backend that can run, against the float64 reference: forward and backward, in each dtype, from
contiguous, channels-last and strided tensors, into poisoned memory (conftest.py).

Gradients are checked at the backend's own results: the reference is given the rectifier's mask and the switches that
the backend found, for these are checked with the forward pass.
"""

import re

import cases
import pytest
import torch
from cases import CASES, Case
from conftest import BOUNDS, TF32_BOUND, assert_close, error

import zfkernels as zf
from zfkernels import backends
from zfkernels.backends import reference

BACKENDS = [name for name in zf.available_backends() if name != "reference"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Half types share the float32 kernels, and float64 their source: not every memory layout again for each.
COMBINATIONS = [
    (torch.float32, "contiguous"),
    (torch.float32, "channels_last"),
    (torch.float32, "strided"),
    (torch.float64, "strided"),
    (torch.bfloat16, "channels_last"),
    (torch.float16, "strided"),
]
# In Triton's interpreter a case takes seconds: float32 on all but the largest, bfloat16 on a few of single ops.
INTERPRETED = [name for name in BACKENDS if getattr(backends.module(name), "INTERPRETED", False)]
INTERPRETED_COMBINATIONS = {torch.float32: "strided", torch.bfloat16: "channels_last"}
LARGE = ("first_layer", "second_layer", "deep")
device = {name: backends.module(name).DEVICES[0] for name in BACKENDS}

pytestmark = pytest.mark.skipif(not BACKENDS, reason="no backend but the reference can run here")


def skip_unless_served(backend: str, dtype: torch.dtype, case: Case, layout: str | None = None) -> None:
    if dtype not in backends.module(backend).DTYPES:
        pytest.skip(f"{backend} does not serve {dtype}")
    if backend in INTERPRETED:
        wanted = INTERPRETED_COMBINATIONS.get(dtype)
        small = not case.name.startswith(LARGE) or case.op == "conv2d_relu"
        if dtype == torch.bfloat16:
            small = case.name in ("primes", "overlap", "strong") and "pool_kernel" not in case.settings
        if not small or wanted is None or layout not in (None, wanted):
            pytest.skip(f"{backend} is interpreted, which is slow")


def laid_out(x: torch.Tensor, layout: str) -> torch.Tensor:
    """The same values in other memory; "strided" is dense in no order, has an offset and permuted axes."""
    if layout == "contiguous" or x.ndim == 0:
        return x.clone(memory_format=torch.contiguous_format)
    if layout == "channels_last":
        return x.clone(memory_format=torch.channels_last) if x.ndim == 4 else x.clone()
    room = torch.full([2 * size + 1 for size in reversed(x.shape)], 77, dtype=x.dtype, device=x.device)
    view = room[(slice(1, None, 2),) * x.ndim].permute(*reversed(range(x.ndim)))
    view.copy_(x)
    return view


def run(case: Case, tensors: dict, backend: str):
    return getattr(zf, case.op)(**tensors, **case.settings, backend=backend)


def expected_gradients(case: Case, tensors: dict, outputs: tuple, g: torch.Tensor) -> dict:
    """The gradients of <g, op(tensors)> in float64, each formula written with the reference's primitives."""
    t = {name: value if name == "switches" else value.double() for name, value in tensors.items()}
    g, y = g.double(), outputs[0].double()
    if "weight" in t:
        stride, padding = cases.conv_window(case)
        kernel = t["weight"].shape[2:]
    if "pool_kernel" in case.settings or "kernel_size" in case.settings:
        pool, size = cases.pool_window(case), cases.pooled_map(case)
    rectify = case.settings.get("rectify", True)

    def conv(x):
        return reference.conv2d(x, t["weight"], None, stride, padding, False)

    def masked(g, y):
        return torch.where(y <= 0, 0.0, g)

    def of_conv(g):
        gx = reference.conv_transpose2d(g, t["weight"], stride, padding, t["x"].shape[2:], False)
        gw, gb = reference.conv2d_weight_grad(t["x"], g, kernel, stride, padding, True)
        return {"x": gx, "weight": gw} | ({"bias": gb} if "bias" in t else {})

    if case.op == "conv2d_relu":
        return of_conv(masked(g, y))
    if case.op == "conv2d_relu_max_pool2d":
        return of_conv(reference.max_unpool2d(masked(g, y), outputs[1], *pool, size))
    if case.op == "relu_conv_transpose2d":
        gy = masked(conv(g), t["y"]) if rectify else conv(g)
        y = t["y"].relu() if rectify else t["y"]
        return {"y": gy, "weight": reference.conv2d_weight_grad(g, y, kernel, stride, padding, False)[0]}
    if case.op == "max_unpool2d_relu_conv_transpose2d":
        unpooled = reference.max_unpool2d(t["y"], t["switches"], *pool, size)
        gu = masked(conv(g), unpooled) if rectify else conv(g)
        unpooled = unpooled.relu() if rectify else unpooled
        gw = reference.conv2d_weight_grad(g, unpooled, kernel, stride, padding, False)[0]
        return {"y": reference.max_unpool2d_backward(gu, t["switches"], *pool), "weight": gw}
    if case.op == "max_pool2d_with_switches":
        return {"x": reference.max_unpool2d(g, outputs[1], *pool, size)}
    if case.op == "max_pool2d_contrast_norm":
        through_norm = reference.contrast_norm_backward(g, y, *list(case.settings.values())[-5:])
        return {"x": reference.max_unpool2d(g + through_norm, outputs[1], *pool, size)}
    if case.op == "max_unpool2d_with_switches":
        return {"y": reference.max_unpool2d_backward(g, t["switches"], *pool)}
    return {"x": reference.contrast_norm_backward(g, t["x"], *case.settings.values())}


def moves_only(case: Case, gradient: bool) -> bool:
    """Does the op only move and compare data, so that its result must be exact? (Two values meeting add exactly.)"""
    if case.op == "max_pool2d_contrast_norm":
        return not gradient
    gathers = case.op == ("max_unpool2d_with_switches" if gradient else "max_pool2d_with_switches")
    return gathers or (case.fill in ("ties", "zero") and "pool2d_with" in case.op)


@pytest.mark.parametrize(("dtype", "layout"), COMBINATIONS, ids=lambda value: str(value).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_reference(backend, case, dtype, layout):
    skip_unless_served(backend, dtype, case, layout)
    plain = cases.tensors(case, dtype)
    tensors = {name: laid_out(value.to(device[backend]), layout) for name, value in plain.items()}
    for name, value in tensors.items():
        value.requires_grad_(name != "switches")
    outputs = run(case, tensors, backend)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)

    # Half types: pooling compares rounded values, so the reference too must round before it.
    wide = dtype if len(outputs) > 1 else torch.float64
    expected = run(case, {n: v if n == "switches" else v.to(wide) for n, v in plain.items()}, "reference")
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert_close("result", outputs[0], expected[0], dtype, exact=moves_only(case, gradient=False))
    if len(outputs) > 1:
        assert outputs[1].dtype == torch.uint8
        assert outputs[1].stride() == outputs[0].stride()
        assert not outputs[1].requires_grad
        if case.op.startswith("max_pool2d") or case.fill in ("ties", "zero"):
            assert torch.equal(outputs[1].cpu(), expected[1])
    if len(outputs) == 3:
        assert_close("result", outputs[2], expected[2], dtype)

    g = cases.values(outputs[0].shape, case.fill if case.fill == "ties" else "normal", torch.Generator().manual_seed(1))
    g = laid_out(g.to(dtype), layout)
    wanted = {name: value for name, value in tensors.items() if name != "switches"}
    differentiable = outputs[::2]  # all but the switches, with the same gradient
    gradients = torch.autograd.grad(
        differentiable, list(wanted.values()), [g.to(device[backend])] * len(differentiable)
    )
    expected = expected_gradients(case, plain, [output.detach().cpu() for output in outputs], g)
    for name, gradient in zip(wanted, gradients, strict=True):
        assert_close(name, gradient, expected[name], dtype, exact=moves_only(case, gradient=True))


def one_case_an_op() -> list[Case]:
    """Large enough that the work is shared out among threads."""
    image, map_, weight = (2, 3, 61, 67), (2, 37, 29, 31), (37, 3, 5, 5)
    pooled = (2, 37, 14, 15)
    conv = {"stride": 2, "padding": 1}
    pool = {"kernel_size": 3, "stride": 2, "padding": 0}
    layer = conv | {"pool_kernel": 3, "pool_stride": 2, "pool_padding": 0}
    parameters = {"weight": weight, "bias": (37,)}
    return [
        Case("conv2d_relu", "large", {"x": image} | parameters, conv),
        Case(
            "relu_conv_transpose2d", "large", {"y": (2, 37, 30, 33), "weight": weight}, conv | {"output_size": (61, 67)}
        ),
        Case("max_pool2d_with_switches", "large", {"x": map_}, pool | {"ceil_mode": True}),
        Case(
            "max_unpool2d_with_switches", "large", {"y": pooled, "switches": pooled}, pool | {"output_size": (29, 31)}
        ),
        Case(
            "max_pool2d_contrast_norm",
            "large",
            {"x": map_},
            pool | {"ceil_mode": True, "size": 5, "alpha": 0.1, "beta": 0.75, "k": 2.0, "center": False},
        ),
        Case("contrast_norm", "large", {"x": map_}, {"size": 5, "alpha": 0.1, "beta": 0.75, "k": 2.0, "center": True}),
        Case("conv2d_relu_max_pool2d", "large", {"x": image} | parameters, layer | {"ceil_mode": True}),
        Case(
            "max_unpool2d_relu_conv_transpose2d",
            "large",
            {"y": (2, 37, 15, 16), "switches": (2, 37, 15, 16), "weight": weight},
            layer | {"output_size": (61, 67)},
        ),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", one_case_an_op(), ids=lambda case: case.id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_on_every_run_and_for_any_number_of_threads(backend, case, dtype):
    skip_unless_served(backend, dtype, case)
    if backend in INTERPRETED:
        pytest.skip("the interpreter runs programs in one order whatever the number of threads")
    results = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        tensors = {name: value.to(device[backend]) for name, value in cases.tensors(case, dtype).items()}
        wanted = [value.requires_grad_() for name, value in tensors.items() if name != "switches"]
        outputs = run(case, tensors, backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        g = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1)).to(outputs[0])
        results.append([*outputs, *torch.autograd.grad(outputs[::2], wanted, [g] * len(outputs[::2]))])
    assert all(result.abs().sum() > 0 for result in results[0])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", [c for c in CASES if c.op == "conv2d_relu_max_pool2d"], ids=lambda case: case.id)
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_fused_layer_equals_its_parts(backend, case, dtype):
    """Bit for bit where one convolution kernel serves both; else within the bound, and switches where none is near."""
    skip_unless_served(backend, dtype, case)
    tensors = {name: value.to(device.get(backend, "cpu")) for name, value in cases.tensors(case, dtype).items()}
    y, switches = run(case, tensors, backend)
    stride, padding = cases.conv_window(case)
    unpooled = zf.conv2d_relu(**tensors, stride=stride, padding=padding, backend=backend)
    pool = [case.settings[name] for name in ("pool_kernel", "pool_stride", "pool_padding", "ceil_mode")]
    parts, parts_switches = zf.max_pool2d_with_switches(unpooled, *pool, backend=backend)
    assert torch.equal(y.isnan(), parts.isnan())
    assert torch.equal(y.nan_to_num(), parts.nan_to_num())
    assert torch.equal(switches, parts_switches)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.op == "max_unpool2d_relu_conv_transpose2d"], ids=lambda case: case.id
)
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_fused_reverse_equals_its_parts(backend, case, dtype):
    skip_unless_served(backend, dtype, case)
    t = {name: value.to(device.get(backend, "cpu")) for name, value in cases.tensors(case, dtype).items()}
    x = run(case, t, backend)
    pool = cases.pool_window(case)
    unpooled = zf.max_unpool2d_with_switches(
        t["y"], t["switches"], *pool, output_size=cases.pooled_map(case), backend=backend
    )
    stride, padding = cases.conv_window(case)
    rest = {name: case.settings[name] for name in ("output_size", "rectify") if name in case.settings}
    parts = zf.relu_conv_transpose2d(unpooled, t["weight"], stride, padding, **rest, backend=backend)
    assert x.shape == parts.shape
    assert error(x, parts) <= BOUNDS[dtype]


@pytest.mark.parametrize("op", ["unpool", "layer"])
@pytest.mark.parametrize("switch", [9, 255, 1, 3, 7, 5])
@pytest.mark.parametrize("backend", [name for name in ("reference", "cpu") if name in zf.available_backends()])
def test_switch_out_of_range_raises(backend, switch, op):
    """9 and 255 lie outside the 3x3 window, 1 and 3 above and left of the map in the first window, 7 and 5 below and
    right of it in the last."""
    y = torch.ones(2, 3, 3, 3)
    switches = torch.full((2, 3, 3, 3), 4, dtype=torch.uint8)  # the middle pixel: right everywhere
    place = (1, 2, 2, 2) if switch in (5, 7) else (1, 2, 0, 0)
    weight = torch.ones(3, 2, 1, 1)

    def call():
        if op == "unpool":
            return zf.max_unpool2d_with_switches(y, switches, 3, 2, 1, output_size=5, backend=backend)
        return zf.max_unpool2d_relu_conv_transpose2d(y, switches, weight, 1, 0, 3, 2, 1, output_size=5, backend=backend)

    call()
    switches[place] = switch
    text = (
        f"switches: the value {switch} at {place} points outside its 3x3 window (stride (2, 2), padding (1, 1)) or "
        "outside the 5x5 map; expected the switches that max_pool2d_with_switches returned for a map of that size"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


@pytest.mark.parametrize("case", [c for c in CASES if "weight" in c.shapes and c.fill == "normal"], ids=lambda c: c.id)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if getattr(backends.module(name), "TF32", False)])
def test_tf32_where_it_is_allowed(backend, case):
    """Within its own bound, forward and backward, and not the same bits as without it where there is much to round."""
    plain = cases.tensors(case, torch.float32)
    tensors = {name: value.to(device[backend]) for name, value in plain.items()}
    wanted = {n: v.requires_grad_() for n, v in tensors.items() if n != "switches"}
    ieee = run(case, tensors, backend)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        outputs = run(case, tensors, backend)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        g = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad(outputs[0], list(wanted.values()), g.to(device[backend]))
    plain = cases.tensors(case, torch.float32)
    exact = run(case, plain, "reference")
    assert error(outputs[0], exact[0] if isinstance(exact, tuple) else exact) <= TF32_BOUND
    expected = expected_gradients(case, plain, [output.detach().cpu() for output in outputs], g)
    for name, gradient in zip(wanted, gradients, strict=True):
        assert error(gradient, expected[name]) <= TF32_BOUND, name
    if outputs[0].numel() > 500:
        assert not torch.equal(outputs[0], ieee[0] if isinstance(ieee, tuple) else ieee)


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_expanded_cotangent_and_weight(backend):
    """The gradient of a sum has stride 0 everywhere; so may a weight have."""
    dtype = torch.float64 if torch.float64 in backends.module(backend).DTYPES else torch.float32
    x = torch.randn(2, 3, 9, 8, dtype=dtype, device=device.get(backend, "cpu"), requires_grad=True)
    weight = torch.randn(5, 1, 3, 3, dtype=dtype, device=x.device).expand(5, 3, 3, 3)
    y, _ = zf.conv2d_relu_max_pool2d(x, weight, None, 1, 1, 3, 2, 0, True, backend=backend)
    (gx,) = torch.autograd.grad(y.sum(), x)
    dense = x.detach().clone().requires_grad_()
    y = torch.nn.functional.conv2d(dense, weight.contiguous(), padding=1).relu()
    y = torch.nn.functional.max_pool2d(y, 3, 2, ceil_mode=True)
    (expected,) = torch.autograd.grad(y.sum(), dense)
    assert error(gx, expected) <= BOUNDS[dtype]


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 9, 40])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 7.77])
def test_a_centred_constant_stack_is_exactly_zero(backend, size, value):
    for dtype in backends.module(backend).DTYPES:
        x = torch.full((1, 17, 2, 2), value, dtype=dtype, device=device.get(backend, "cpu"))
        y = zf.contrast_norm(x, size, center=True, backend=backend)
        assert torch.equal(y, torch.zeros_like(y)), dtype


@pytest.mark.parametrize("channels", [5, 16, 37, 96])
@pytest.mark.parametrize("k", [1e-35, 2.0])
def test_norm_of_every_magnitude(channels, k):
    """Element by element: an estimate of s^-3/4 in float32 is not of use for every s, and must not be taken there."""
    generator = torch.Generator().manual_seed(channels)
    for size in [0.0, *torch.logspace(-18, 18, 200).tolist()]:
        x = size * (torch.rand(1, channels, 2, 2, generator=generator) + 0.5)
        y, d = zf.contrast_norm(x, 5, 1.0, 0.75, k, backend="cpu").double(), x.double()
        padded = torch.nn.functional.pad(d * d, (0, 0, 0, 0, 2, 2))
        expected = d * (k + sum(padded[:, j : j + channels] for j in range(5)) / 5) ** -0.75
        assert bool(((y - expected).abs() <= 5e-7 * expected).all()), size
    for size in (1e20, 3e38):  # whose squares are infinite
        assert torch.equal(zf.contrast_norm(x / x * size, 5, 1.0, 0.75, k, backend="cpu"), torch.zeros_like(x))
