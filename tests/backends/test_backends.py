"""Every op on every backend that can run, against the float64 reference: forward and backward, in each dtype, from
contiguous, channels-last and permuted tensors, into poisoned memory (conftest.py).
"""

import math
import re

import pytest
import torch
from against_reference import check, expected_gradients
from calls import CALLS, Call
from conftest import error

import zfkernels as zf
from zfkernels import backends
from zfkernels.backends import reference
from zfkernels.testing.compare import BOUNDS, TF32_BOUND
from zfkernels.window import pool_map

BACKENDS = [name for name in zf.available_backends() if name != "reference"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Half types share the float32 kernels, and float64 their source: not every memory layout again for each.
COMBINATIONS = [
    (torch.float32, "contiguous"),
    (torch.float32, "channels_last"),
    (torch.float32, "permuted"),
    (torch.float64, "permuted"),
    (torch.bfloat16, "channels_last"),
    (torch.float16, "permuted"),
]
# In Triton's interpreter a case takes seconds: float32 on all except the largest, bfloat16 on a few of single ops.
INTERPRETED = [name for name in BACKENDS if getattr(backends.module(name), "INTERPRETED", False)]
INTERPRETED_COMBINATIONS = {torch.float32: "permuted", torch.bfloat16: "channels_last"}
LARGE = ("first_layer", "second_layer", "deep")
device = {name: backends.module(name).DEVICES[0] for name in BACKENDS}

pytestmark = pytest.mark.skipif(not BACKENDS, reason="no backend but the reference can run here")


def skip_unless_served(backend: str, dtype: torch.dtype, call: Call, layout: str | None = None) -> None:
    if dtype not in backends.module(backend).DTYPES:
        pytest.skip(f"{backend} does not serve {dtype}")
    if call.grouped != ((1, 1), 1) and not getattr(backends.module(backend), "GROUPS", True):
        pytest.skip(f"{backend} has neither groups nor dilation")
    if call.op == "avg_pool2d" and not getattr(backends.module(backend), "AVERAGES", True):
        pytest.skip(f"{backend} has no average pooling")
    if backend in ("triton", "cuda", "emulated") and call.fill == "broken":
        pytest.skip(f"{backend} multiplies the zeros around a map by the weights, and infinity times 0 is NaN")
    if backend in INTERPRETED:
        wanted = INTERPRETED_COMBINATIONS.get(dtype)
        small = not call.name.startswith(LARGE) or call.op == "conv2d_relu"
        if dtype == torch.bfloat16:
            small = call.name in ("primes", "overlap", "strong") and "pool_kernel" not in call.settings
        if not small or wanted is None or layout not in (None, wanted):
            pytest.skip(f"{backend} is interpreted, which is slow")


@pytest.mark.parametrize(("dtype", "layout"), COMBINATIONS, ids=lambda value: str(value).removeprefix("torch."))
@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_reference(backend, call, dtype, layout):
    skip_unless_served(backend, dtype, call, layout)
    check(backend, call, dtype, layout)


def large_calls() -> list[Call]:
    """Large enough that the work is shared out among threads."""
    image, stack, weight = (2, 3, 61, 67), (2, 37, 29, 31), (37, 3, 5, 5)
    pooled, layer_pooled = (2, 37, 14, 15), (2, 37, 15, 16)
    conv, size = {"stride": 2, "padding": 1}, {"output_size": (61, 67)}
    pool, ceil = {"kernel_size": 3, "stride": 2, "padding": 0}, {"ceil_mode": True}
    layer = conv | {"pool_kernel": 3, "pool_stride": 2, "pool_padding": 0}
    norm = {"size": 5, "alpha": 0.1, "beta": 0.75, "k": 2.0}
    forward = {"x": image, "weight": weight, "bias": (37,)}
    unpool = {"y": pooled, "switches": pooled}
    layer_back = {"y": layer_pooled, "switches": layer_pooled, "weight": weight}
    return [
        Call("conv2d_relu", "large", forward, conv),
        Call(
            "conv2d_relu",
            "large_depthwise",
            {"x": stack, "weight": (37, 1, 3, 3), "bias": (37,)},
            conv | {"groups": 37},
        ),
        Call(
            "conv2d_relu", "large_groups", {"x": stack, "weight": (74, 1, 3, 3), "bias": (74,)}, conv | {"groups": 37}
        ),
        Call("relu_conv_transpose2d", "large", {"y": (2, 37, 30, 33), "weight": weight}, conv | size),
        Call("max_pool2d_with_switches", "large", {"x": stack}, pool | ceil),
        Call("max_unpool2d_with_switches", "large", unpool, pool | {"output_size": (29, 31)}),
        Call("avg_pool2d", "large", {"x": stack}, pool | ceil),
        Call("avg_pool2d", "large_whole", {"x": stack}, {"kernel_size": (29, 31)}),
        Call("max_pool2d_contrast_norm", "large", {"x": stack}, pool | ceil | norm | {"center": False}),
        Call("contrast_norm", "large", {"x": stack}, norm | {"center": True}),
        Call("conv2d_relu_max_pool2d", "large", forward, layer | ceil),
        Call("max_unpool2d_relu_conv_transpose2d", "large", layer_back, layer | size),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("call", large_calls(), ids=lambda call: call.id)
@pytest.mark.parametrize("backend", BACKENDS)
def test_same_bits_on_every_run_and_for_any_number_of_threads(backend, call, dtype):
    skip_unless_served(backend, dtype, call)
    if backend in (*INTERPRETED, "emulated"):
        pytest.skip(f"{backend} runs programs in one order whatever the number of threads")
    results = []
    for threads in (1, 2, 2, 3):
        torch.set_num_threads(threads)
        tensors = {name: value.to(device[backend]) for name, value in call.tensors(dtype).items()}
        wanted = [value.requires_grad_() for name, value in tensors.items() if name != "switches"]
        outputs = call.run(tensors, backend)
        g = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1)).to(outputs[0])
        results.append([*outputs, *torch.autograd.grad(outputs[::2], wanted, [g] * len(outputs[::2]))])
    assert all(result.abs().sum() > 0 for result in results[0])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("call", [c for c in CALLS if c.op == "conv2d_relu_max_pool2d"], ids=lambda call: call.id)
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_fused_layer_equals_its_parts(backend, call, dtype):
    """Bit for bit where one convolution kernel serves both; else within the bound, and switches where none is near."""
    skip_unless_served(backend, dtype, call)
    tensors = {name: value.to(device.get(backend, "cpu")) for name, value in call.tensors(dtype).items()}
    y, switches = call.run(tensors, backend)
    stride, padding = call.conv_window
    unpooled = zf.conv2d_relu(**tensors, stride=stride, padding=padding, backend=backend)
    pool = [call.settings[name] for name in ("pool_kernel", "pool_stride", "pool_padding", "ceil_mode")]
    parts, parts_switches = zf.max_pool2d_with_switches(unpooled, *pool, backend=backend)
    assert torch.equal(y.isnan(), parts.isnan())
    assert torch.equal(y.nan_to_num(), parts.nan_to_num())
    assert torch.equal(switches, parts_switches)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize(
    "call", [c for c in CALLS if c.op == "max_unpool2d_relu_conv_transpose2d"], ids=lambda call: call.id
)
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_fused_reverse_equals_its_parts(backend, call, dtype):
    skip_unless_served(backend, dtype, call)
    t = {name: value.to(device.get(backend, "cpu")) for name, value in call.tensors(dtype).items()}
    (x,), pool = call.run(t, backend), call.pool_window
    unpooled = zf.max_unpool2d_with_switches(t["y"], t["switches"], *pool, output_size=call.pooled_map, backend=backend)
    stride, padding = call.conv_window
    rest = {name: call.settings[name] for name in ("output_size", "rectify") if name in call.settings}
    parts = zf.relu_conv_transpose2d(unpooled, t["weight"], stride, padding, **rest, backend=backend)
    assert x.shape == parts.shape
    assert error(x, parts) <= BOUNDS[dtype]


@pytest.mark.parametrize("backend", [b for b in BACKENDS if not getattr(backends.module(b), "GROUPS", True)])
def test_a_backend_without_groups_says_so(backend):
    x, weight = torch.zeros(1, 4, 5, 5, device=device[backend]), torch.zeros(4, 2, 3, 3, device=device[backend])
    for settings in ({"groups": 2}, {"groups": 2, "dilation": 2, "cap": 6.0}):
        with pytest.raises(RuntimeError, match=r"has no kernel for dilation .* and groups 2.*backend='cpu'"):
            zf.conv2d_relu(x, weight, **settings, backend=backend)
    with pytest.raises(RuntimeError, match="has no kernel for dilation"):
        zf.relu_conv_transpose2d(x, weight, groups=2, output_size=7, backend=backend)


@pytest.mark.parametrize("backend", [b for b in BACKENDS if not getattr(backends.module(b), "AVERAGES", True)])
def test_a_backend_without_averages_says_so(backend):
    x = torch.zeros(1, 4, 5, 5, device=device[backend])
    with pytest.raises(RuntimeError, match=r"has no kernel for average pooling; use torch.*backend='cpu'"):
        zf.avg_pool2d(x, 2, backend=backend)


@pytest.mark.parametrize("op", ["unpool", "layer"])
@pytest.mark.parametrize(
    ("switch", "window"),
    [
        (9, (0, 0)),
        (255, (0, 0)),
        (9, (1, 1)),
        (255, (1, 1)),
    ]  # outside the 3x3 window, one that is cut and one that is not
    + [(switch, (0, 0)) for switch in (0, 1, 2, 3, 6)]  # above and left of the map
    + [(switch, (2, 2)) for switch in (2, 5, 6, 7, 8)]  # below and right of it
    + [(0, (0, 1)), (6, (1, 0)), (8, (2, 1)), (8, (1, 2))],
)
@pytest.mark.parametrize("backend", [name for name in ("reference", "cpu") if name in zf.available_backends()])
def test_switch_out_of_range_raises(backend, switch, window, op):
    y = torch.ones(2, 3, 3, 3)
    switches = torch.full((2, 3, 3, 3), 4, dtype=torch.uint8)  # the middle pixel: right everywhere
    position = (1, 2, *window)
    weight = torch.ones(3, 2, 1, 1)

    def call():
        if op == "unpool":
            return zf.max_unpool2d_with_switches(y, switches, 3, 2, 1, output_size=5, backend=backend)
        return zf.max_unpool2d_relu_conv_transpose2d(y, switches, weight, 1, 0, 3, 2, 1, output_size=5, backend=backend)

    call()
    switches[position] = switch
    text = (
        f"switches: the value {switch} at {position} points outside its 3x3 window (stride (2, 2), padding (1, 1)) or "
        "outside the 5x5 map; expected the switches that max_pool2d_with_switches returned for a map of that size"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        call()


@pytest.mark.parametrize("pool", [((3, 3), (2, 2), (1, 1)), ((2, 3), (1, 2), (1, 1))], ids=["3x3", "2x3"])
@pytest.mark.parametrize("maps", [3, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in ("cuda", "triton", "emulated")])
def test_kernels_on_a_gpu_ignore_bad_switches(backend, dtype, maps, pool):
    """Nothing can be raised there. They count as no value: outside their window, the least and the largest such, and in
    the padding."""
    if backend in INTERPRETED and (dtype, maps) != (torch.float32, 16):
        pytest.skip(f"{backend} is interpreted, which is slow")
    ours, place, generator = backends.module(backend), device[backend], torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(place, dtype)

    x, whole, weight, g = drawn(2, 3, 17, 15), drawn(2, maps, 7, 6), drawn(maps, 3, 7, 7), drawn(2, maps, 7, 6)
    layer, size = ((2, 2), (1, 1)), pool_map((7, 6), *pool, False)
    y, switches = ours.max_pool2d(whole, *pool, size)
    bad = torch.rand(y.shape, generator=generator).to(place) < 0.3
    bad[:, :, :2, 0] = True
    wrong = torch.where(bad, pool[0][0] * pool[0][1], switches)
    wrong[:, ::2] = torch.where(bad, 255, switches)[:, ::2]
    wrong[:, :, 0, 0], wrong[:, :, 1, 0] = 0, 3  # above and left of the map, left of it
    ignored = torch.where(bad, 0, y)
    for call in (
        lambda y, s: (ours.max_unpool2d(y, s, *pool, (7, 6)),),
        lambda y, s: ours.conv2d_relu_max_pool2d_weight_grad(x, y, s, (7, 7), *layer, *pool, True),
        lambda y, s: (ours.max_unpool2d_relu_conv_transpose2d(y, s, weight, *layer, *pool, (17, 15), True),),
    ):
        for one, other in zip(call(y, wrong), call(ignored, switches), strict=True):
            assert torch.equal(one, other)
            assert one.abs().sum() > 0
    found, right = (ours.max_unpool2d_backward(g, s, *pool) for s in (wrong, switches))
    assert torch.equal(found, torch.where(bad, 0, right))


def from_second_element(x: torch.Tensor) -> torch.Tensor:
    """x in dense channels-last memory that begins one element, not 16 bytes, behind that of its allocation."""
    n, channels, height, width = x.shape
    memory = torch.zeros(x.numel() + 1, dtype=x.dtype, device=x.device)
    return memory[1:].view(n, height, width, channels).permute(0, 3, 1, 2).copy_(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in ("cuda", "emulated")])
@pytest.mark.parametrize(("which", "least"), [("all", 14), ("switches", 3)])
def test_maps_on_a_gpu_may_begin_at_any_element(backend, dtype, which, least, monkeypatch):
    """Those that are read and those that are written, of channels that 16 bytes divide; the switches alone, too."""
    ours, generator = backends.module(backend), torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        values = torch.randn(shape, generator=generator).to(device[backend], dtype)
        return values.contiguous(memory_format=torch.channels_last)

    x, weight, maps, image, first = (
        drawn(*s) for s in ((2, 16, 7, 6), (24, 16, 3, 3), (2, 24, 7, 6), (2, 3, 17, 15), (24, 3, 7, 7))
    )
    same, layer, pool = ((1, 1), (1, 1)), ((2, 2), (1, 1)), ((3, 3), (2, 2), (1, 1))
    size, norm = pool_map((7, 6), *pool, False), (5, 0.1, 0.75, 2.0, False)
    y, switches = ours.max_pool2d(maps, *pool, size)

    def results(at) -> list[torch.Tensor]:
        a, b, p, s, i = (at(value) for value in (x, maps, y, switches, image))
        found = [
            (ours.conv2d(a, weight, None, *same, True),),
            (ours.conv_transpose2d(b, weight, *same, (7, 6), False),),
            ours.conv2d_weight_grad(a, b, (3, 3), *same, True),
            ours.conv2d_weight_grad(a, maps, (3, 3), *same, True),
            ours.max_pool2d(b, *pool, size),
            (ours.max_unpool2d(p, s, *pool, (7, 6)),),
            (ours.max_unpool2d_backward(b, s, *pool),),
            (ours.contrast_norm(b, *norm), ours.contrast_norm_backward(b, a.repeat(1, 2, 1, 1)[:, :24], *norm)),
            ours.max_pool2d_contrast_norm(b, *pool, size, *norm),
            ours.conv2d_relu_max_pool2d(i, first, None, *layer, *pool, size),
            ours.conv2d_relu_max_pool2d_weight_grad(i, p, s, (7, 7), *layer, *pool, True),
            (ours.max_unpool2d_relu_conv_transpose2d(p, s, first, *layer, *pool, (17, 15), True),),
        ]
        return [value for values in found for value in values]

    def misplaced(value: torch.Tensor) -> torch.Tensor:
        return from_second_element(value) if which == "all" or value.dtype == torch.uint8 else value

    expected, empty = results(lambda value: value), ours.empty
    monkeypatch.setattr(ours, "empty", lambda *args, **named: misplaced(empty(*args, **named)))
    monkeypatch.setattr(ours, "pooled", lambda x, *s: (ours.empty(x, *s), ours.empty(x, *s, dtype=torch.uint8)))
    found = results(misplaced)
    assert sum(value.data_ptr() % 16 != 0 for value in found) >= least
    for one, other in zip(found, expected, strict=True):
        if one.dtype == torch.uint8:
            assert (one != other).float().mean() <= 0.01  # of a sum in another order, another may be the largest
        else:
            assert error(one, other.double()) <= BOUNDS[dtype]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in ("cuda", "emulated")])
@pytest.mark.parametrize("channels", [1, 4])
def test_tf32_operands_go_to_the_nearest_number_and_ties_away_from_zero(backend, channels):
    """The matrix units alone would cut off what is beyond 10 bits."""
    ours, place = backends.module(backend), device[backend]
    exact = [1 + 2.0**-11, 1 + 3 * 2.0**-12, 1 + 2.0**-12, -1 - 2.0**-11, 1 + 3 * 2.0**-11]
    right = [1 + 2.0**-10, 1 + 2.0**-10, 1.0, -1 - 2.0**-10, 1 + 2.0**-9]
    one, unit = torch.ones(1, channels, 1, 1, device=place), ((1, 1), (0, 0))
    found: list[list[float]] = []
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        for value in exact:
            other = torch.zeros_like(one)
            other[:, 0] = value
            found.append([
                ours.conv2d(other, one, None, *unit, False).item(),
                ours.conv2d(one, other, None, *unit, False).item(),
                ours.conv_transpose2d(one[:, :1], other, *unit, (1, 1), False)[0, 0].item(),
                ours.conv_transpose2d(other[:, :1], one, *unit, (1, 1), False)[0, 0].item(),
                ours.conv2d_weight_grad(other, one[:, :1], (1, 1), *unit, False)[0][0, 0].item(),
                ours.conv2d_weight_grad(one, other[:, :1], (1, 1), *unit, False)[0][0, 0].item(),
            ])  # fmt: skip
    assert found == [[value] * 6 for value in right]


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name in ("cuda", "emulated")])
def test_maps_on_a_gpu_may_have_more_elements_than_32_bits_count(backend, tmp_path):
    """Each image has: windows of 3x3 far apart in it, and what they see beside each other in a small map."""
    ours, far, channels = backends.module(backend), 8192, 8
    shape = (2, 2 * far + 3, 2 * far, channels)
    if backend == "emulated":  # a file without blocks but for what is written
        memory = torch.from_file(str(tmp_path / "map"), shared=True, size=math.prod(shape), dtype=torch.bfloat16)
    else:
        memory = torch.zeros(math.prod(shape), dtype=torch.bfloat16, device=device[backend])
    large, generator = memory.view(shape).permute(0, 3, 1, 2), torch.Generator().manual_seed(1)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(torch.bfloat16)

    small, weight, g = drawn(2, channels, 9, 6), drawn(5, channels, 3, 3), drawn(2, 5, 3, 2)
    rows, columns = (torch.cat([torch.arange(3) + far * i for i in range(count)]) for count in (3, 2))
    large[:, :, rows[:, None].to(large.device), columns.to(large.device)] = small.to(large.device)
    switches = reference.max_pool2d(small, (3, 3), (3, 3), (0, 0), (3, 2))[1]

    def results(module, x: torch.Tensor, step: int) -> list[torch.Tensor]:
        w, gradient, places = (value.to(x.device) for value in (weight, g, switches))
        layer, pool, norm = ((step, step), (0, 0)), ((3, 3), (step, step), (0, 0)), (5, 0.1, 0.75, 2.0, False)
        found = [
            (module.conv2d(x, w, None, *layer, False),),
            module.conv2d_weight_grad(x, gradient, (3, 3), *layer, True),
            module.max_pool2d(x, *pool, (3, 2)),
            (module.max_unpool2d_backward(x, places, *pool),),
            module.max_pool2d_contrast_norm(x, *pool, (3, 2), *norm),
        ]
        return [value.cpu() for values in found for value in values]

    expected = results(reference, small.double(), 3)
    for one, other in zip(results(ours, large, far), expected, strict=True):
        assert error(one, other) <= (0 if one.dtype == torch.uint8 else BOUNDS[torch.bfloat16])


@pytest.mark.parametrize("maps", [1, 40])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_lies_between_two_numbers_goes_to_the_even_one(backend, dtype, maps):
    """Inside the fused ops: a convolution's sum before it is pooled, an unpooled sum before it is filtered."""
    if dtype not in backends.module(backend).DTYPES:
        pytest.skip(f"{backend} does not serve {dtype}")
    if backend in INTERPRETED:
        pytest.skip("the interpreter cuts digits off")
    step = torch.finfo(dtype).eps
    below = torch.tensor([1, 1 + step, 1 + 2 * step, 1 + 3 * step], dtype=torch.float64)
    expected = torch.tensor([1, 1 + 2 * step, 1 + 2 * step, 1 + 4 * step], dtype=torch.float64)
    assert torch.equal((below + step / 2).to(dtype).double(), expected)
    eye = torch.eye(maps, dtype=dtype, device=device[backend])[:, :, None, None]
    x = below.to(dtype).expand(1, maps, 1, 4).to(device[backend])
    bias = torch.full((maps,), step / 2, dtype=dtype, device=device[backend])
    y, _ = zf.conv2d_relu_max_pool2d(x, eye, bias, 1, 0, 1, 1, 0, False, backend=backend)
    assert torch.equal(y.double().cpu(), expected.expand(1, maps, 1, 4))
    # Windows of 1x3, 2 apart: pixels 2 and 4 lie in two, and get a half step from the second
    g = torch.tensor([1 + step, step / 2, 1], dtype=dtype, device=device[backend]).expand(1, maps, 1, 3)
    switches = torch.tensor([2, 0, 1], dtype=torch.uint8, device=device[backend]).expand(1, maps, 1, 3)
    window = {"pool_kernel": (1, 3), "pool_stride": (1, 2), "pool_padding": 0, "output_size": (1, 7)}
    back = zf.max_unpool2d_relu_conv_transpose2d(g, switches, eye, 1, 0, **window, backend=backend)
    assert back[0, :, 0].double().cpu().tolist() == [[0, 0, 1 + 2 * step, 0, 0, 1, 0]] * maps


@pytest.mark.parametrize("call", [c for c in CALLS if "weight" in c.shapes and c.fill == "normal"], ids=lambda c: c.id)
@pytest.mark.parametrize("backend", [name for name in BACKENDS if getattr(backends.module(name), "TF32", False)])
def test_tf32_where_it_is_allowed(backend, call):
    """Within its own bound, forward and backward, and not the same bits as without it where there is much to round."""
    skip_unless_served(backend, torch.float32, call)
    plain = call.tensors(torch.float32)
    tensors = {name: value.to(device[backend]) for name, value in plain.items()}
    wanted = {n: v.requires_grad_() for n, v in tensors.items() if n != "switches"}
    ieee = call.run(tensors, backend)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
        outputs = call.run(tensors, backend)
        g = torch.randn(outputs[0].shape, generator=torch.Generator().manual_seed(1))
        gradients = torch.autograd.grad(outputs[0], list(wanted.values()), g.to(device[backend]))
    plain = call.tensors(torch.float32)
    assert error(outputs[0], call.run(plain, "reference")[0]) <= TF32_BOUND
    expected = expected_gradients(call, plain, [output.detach().cpu() for output in outputs], g)
    for name, gradient in zip(wanted, gradients, strict=True):
        assert error(gradient, expected[name]) <= TF32_BOUND, name
    if outputs[0].numel() > 500:
        assert not torch.equal(outputs[0], ieee[0])


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


@pytest.mark.parametrize("dim", range(4))
@pytest.mark.parametrize("call", [c for c in CALLS if "weight" in c.shapes and c.fill == "normal"], ids=lambda c: c.id)
@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
def test_weight_of_stride_zero(backend, call, dim):
    """A weight that is one slice said many times, as the gradient of a sum is, against its dense copy."""
    dtype = torch.float64 if torch.float64 in backends.module(backend).DTYPES else torch.float32
    if backend != "reference":
        skip_unless_served(backend, dtype, call)
    if backend in INTERPRETED and (dim or call.name not in ("primes", "rectangular")):
        pytest.skip(f"{backend} is interpreted, which is slow")
    tensors = {name: value.to(device.get(backend, "cpu")) for name, value in call.tensors(dtype).items()}
    weight = tensors["weight"]
    expanded = weight.narrow(dim, 0, 1).expand_as(weight)
    out, expected = (call.run({**tensors, "weight": w}, backend)[0] for w in (expanded, expanded.contiguous()))
    assert error(out, expected) <= BOUNDS[dtype]


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
    """Element by element: an estimate of s^-3/4 in float32 does not serve every s: it must not be used elsewhere."""
    generator = torch.Generator().manual_seed(channels)
    for size in [0.0, *torch.logspace(-18, 18, 200).tolist()]:
        x = size * (torch.rand(1, channels, 2, 2, generator=generator) + 0.5)
        y, d = zf.contrast_norm(x, 5, 1.0, 0.75, k, backend="cpu").double(), x.double()
        padded = torch.nn.functional.pad(d * d, (0, 0, 0, 0, 2, 2))
        expected = d * (k + sum(padded[:, j : j + channels] for j in range(5)) / 5) ** -0.75
        assert bool(((y - expected).abs() <= 5e-7 * expected).all()), size
    for size in (1e20, 3e38):  # whose squares are infinite
        assert torch.equal(zf.contrast_norm(x / x * size, 5, 1.0, 0.75, k, backend="cpu"), torch.zeros_like(x))
