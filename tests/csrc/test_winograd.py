"""Winograd's filtering on the CPU, along two axes (csrc/cpu/winograd.h, few_tiles.h) and along one (winograd_rows.h):
every number of taps and stride that it serves, whatever their size, against float64; the direct kernel when something
is not finite; the exact mode; and no memory of old weights."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from against_reference import check
from calls import CALLS
from conftest import error
from forked import forked

import zfkernels as zf
from zfkernels import _C
from zfkernels.backends import cpu
from zfkernels.backends.exact import exact_in_thread
from zfkernels.testing.compare import BOUNDS

# n, c_in, c_out, (h, w), kernel, stride, padding: 2 to 5 taps a phase
SHAPES = [
    (1, 256, 48, (13, 13), 3, 1, 1),  # conv3's map; two chunks of channels
    (3, 33, 17, (14, 9), 3, 1, 1),  # channels that end inside a vector
    (2, 130, 33, (12, 12), 3, 1, 0),  # more than a chunk, and no whole number of vectors
    (1, 96, 40, (23, 19), 5, 2, 0),  # conv2's form: four phases
    (2, 3, 24, (37, 41), 7, 2, 1),  # conv1's form: 12 channels of 4 x 4 taps
    (1, 3, 16, (31, 29), 11, 4, 2),  # 16 phases
    (9, 8, 16, (5, 6), 2, 1, 0),  # 2 taps; images that share a unit of work
    (2, 24, 20, (27, 27), 5, 1, 2),  # 5 taps
    (3, 160, 70, (7, 7), 3, 1, 1),  # two chunks; four tiles an image: few_tiles.h
    (4, 20, 33, (3, 5), 4, 1, 2),  # the same of 4 taps
    (5, 40, 36, (2, 5), 5, 1, 2),  # of 5, three tiles
    (7, 21, 40, (6, 4), 3, 2, 1),  # of 2, one tile of four phases
    (1, 7, 5, (16, 15), (4, 3), (1, 1), (3, 0)),  # more taps on one axis: not along two
    (2, 5, 6, (13, 14), (6, 3), (2, 1), (2, 1)),  # another stride on each axis
    (1, 6, 33, (17, 18), (3, 7), (1, 1), (0, 3)),  # too many taps in a row: the direct kernel
    (2, 3, 17, (9, 26), (1, 3), (3, 2), (0, 1)),  # one tap a column, and rows that are passed over
    (1, 4, 40, (1, 1), 3, 1, 1),  # one pixel
    (1, 2, 3, (3, 90), 3, 1, 1),  # a wide map: more tiles than a unit should have
    (0, 4, 5, (8, 8), 3, 1, 1),  # no images
    (3, 5, 18, (41, 37), 3, 1, 1),  # several batches of tiles for the weights' gradient
]


@pytest.fixture(autouse=True, params=[cpu.ALWAYS, cpu.ALWAYS_ROWS], ids=["tiles", "rows"])
def always(request):
    """Winograd's kernel of two axes, or of one, wherever it can, however small the map."""
    before = _C.winograd()
    _C.set_winograd(request.param)
    yield request.param
    _C.set_winograd(before)


def served(shape, mode):
    """Whether the forward convolution goes by Winograd's kernel."""
    *_, kernel, stride, _ = shape
    kernel, stride = (v if isinstance(v, tuple) else (v, v) for v in (kernel, stride))
    down, across = (-(-k // s) for k, s in zip(kernel, stride, strict=True))
    return 2 <= across <= 5 and (mode == cpu.ALWAYS_ROWS or down == across)


def problem(n, c_in, c_out, size, kernel, stride, padding):
    kernel, stride, padding = (v if isinstance(v, tuple) else (v, v) for v in (kernel, stride, padding))
    return torch.randn(n, c_in, *size), torch.randn(c_out, c_in, *kernel), torch.randn(c_out), stride, padding


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous_weight", "channels_last_weight"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_and_its_adjoint(shape, channels_last, always):
    x, weight, bias, stride, padding = problem(*shape)
    weight = weight.contiguous(memory_format=torch.channels_last) if channels_last else weight
    y = zf.conv2d_relu(x, weight, bias, stride, padding, backend="cpu")
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride, padding).relu()
    assert error(y, expected) <= BOUNDS[torch.float32]

    g = torch.randn_like(y)
    back = zf.relu_conv_transpose2d(g, weight, stride, padding, output_size=x.shape[2:], backend="cpu")
    if x.shape[0]:
        wide = torch.zeros_like(x, dtype=torch.float64, requires_grad=True)
        F.conv2d(wide, weight.double(), None, stride, padding).backward(g.double().relu())
        assert error(back, wide.grad) <= BOUNDS[torch.float32]
    gw, gb = cpu.conv2d_weight_grad(x, g, weight.shape[2:], stride, padding, True)
    wide = torch.zeros_like(weight, dtype=torch.float64, requires_grad=True)
    F.conv2d(x.double(), wide, None, stride, padding).backward(g.double())
    assert error(gw, wide.grad) <= BOUNDS[torch.float32]
    assert error(gb, g.double().sum((0, 2, 3))) <= BOUNDS[torch.float32]

    with zf.use_exact():
        direct = zf.conv2d_relu(x, weight, bias, stride, padding, backend="cpu")
        direct_gw, _ = cpu.conv2d_weight_grad(x, g, weight.shape[2:], stride, padding, True)
    assert torch.equal(y, direct) == (not served(shape, always) or x.shape[0] == 0), "not the kernel this test is of"
    by_tiles = always == cpu.ALWAYS and served(shape, always)
    assert torch.equal(gw, direct_gw) == (not by_tiles or x.shape[0] == 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("case", [c for c in CALLS if "weight" in c.shapes and c.fill != "ties"], ids=lambda c: c.id)
def test_every_case_of_the_backends(case, dtype):
    """Where numbers are small integers (ties) direct sums are exact and choose the first of equals; these are not."""
    check("cpu", case, dtype, "permuted")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fused_layers_equal_their_parts_bit_for_bit(shape):
    x, weight, bias, stride, padding = problem(*shape)
    y = zf.conv2d_relu(x, weight, bias, stride, padding, backend="cpu")
    if min(y.shape[2:]) < 2:
        return
    pool = (3, 2, 1, True) if min(y.shape[2:]) >= 3 else (2, 1, 0, False)
    pooled, switches = zf.conv2d_relu_max_pool2d(x, weight, bias, stride, padding, *pool, backend="cpu")
    parts, parts_switches = zf.max_pool2d_with_switches(y, *pool, backend="cpu")
    assert torch.equal(pooled, parts)
    assert torch.equal(switches, parts_switches)

    size = {"output_size": x.shape[2:]}
    back = zf.max_unpool2d_relu_conv_transpose2d(
        pooled, switches, weight, stride, padding, *pool[:3], **size, backend="cpu"
    )
    unpooled = zf.max_unpool2d_with_switches(pooled, switches, *pool[:3], output_size=y.shape[2:], backend="cpu")
    assert torch.equal(back, zf.relu_conv_transpose2d(unpooled, weight, stride, padding, **size, backend="cpu"))


@pytest.mark.parametrize("shape", SHAPES[:12], ids=str)
def test_neither_threads_nor_the_batch_change_a_bit(shape):
    x, weight, bias, stride, padding = problem(*shape)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        y = zf.conv2d_relu(x, weight, bias, stride, padding, backend="cpu")
        back = zf.relu_conv_transpose2d(y, weight, stride, padding, output_size=x.shape[2:], backend="cpu")
        alone = zf.conv2d_relu(x[-1:], weight, bias, stride, padding, backend="cpu")
        assert torch.equal(y[-1:], alone)
        results.append((y, back, *cpu.conv2d_weight_grad(x, y, weight.shape[2:], stride, padding, True)))
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3]], ids=str)
def test_what_is_not_finite_stays_in_its_place(shape, value):
    """A tile would spread it; and 3e38, finite itself, overflows in a transform: both go to the direct kernel."""
    x, weight, bias, stride, padding = problem(*shape)
    weight[:, 1] = weight[:, 1].sign() * 0.25
    g = zf.conv2d_relu(x, weight, bias, stride, padding, backend="cpu").clone()
    x[0, 1, 4, 5] = value
    g[0, 1, 3, 2] = value
    size = {"output_size": x.shape[2:]}
    pool = (3, 2, 0, False)
    calls = [
        lambda: zf.conv2d_relu(x, weight, bias, stride, padding, backend="cpu"),
        lambda: zf.relu_conv_transpose2d(g, weight, stride, padding, **size, backend="cpu"),
        lambda: zf.conv2d_relu_max_pool2d(x, weight, bias, stride, padding, *pool, backend="cpu")[0],
        lambda: cpu.conv2d_weight_grad(x, g.nan_to_num(0, 0, 0), weight.shape[2:], stride, padding, False)[0],
    ]
    for call in calls:
        result = call()
        with zf.use_exact():
            direct = call()
        assert error(result, direct) <= BOUNDS[torch.float32]


def test_the_error_that_the_documentation_states():
    """1e-6 to 3e-6, three times the direct kernel's, on the network's own sizes."""
    for c_in, c_out, size, kernel, stride in [(256, 96, 13, 3, 1), (384, 96, 13, 3, 1), (96, 96, 55, 5, 2)]:
        x, weight = torch.randn(1, c_in, size, size), torch.randn(c_out, c_in, kernel, kernel)
        expected = F.conv2d(x.double(), weight.double(), None, stride).relu()
        assert error(zf.conv2d_relu(x, weight, None, stride, backend="cpu"), expected) < 3e-6
        with zf.use_exact():
            assert error(zf.conv2d_relu(x, weight, None, stride, backend="cpu"), expected) < 1.2e-6


def test_weights_are_never_remembered():
    """By an optimizer's step, a load_state_dict, an edit in place, and one through .data, which no counter sees."""
    layer = zf.nn.ConvReLU(32, 32, 3, padding=1)
    x = torch.randn(1, 32, 13, 13)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    state = {name: value + 1 for name, value in layer.state_dict().items()}

    def step():
        layer(x).sum().backward()
        optimizer.step()

    with torch.no_grad():
        edits = [step, lambda: layer.load_state_dict(state), lambda: layer.weight.mul_(2)]
        edits.append(lambda: layer.weight.data.mul_(3))
        for edit in edits:
            before = layer(x)
            with torch.enable_grad():
                edit() if edit is step else None
            if edit is not step:
                edit()
            expected = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1).relu()
            assert error(layer(x), expected) <= BOUNDS[torch.float32]
            assert not torch.equal(layer(x), before)


def test_exact_mode_is_a_setter_a_context_and_a_variable():
    _C.set_winograd(cpu.WHERE_FASTER)
    with zf.use_exact():
        assert _C.winograd() == cpu.NEVER
        with zf.use_exact(False):
            assert _C.winograd() == cpu.WHERE_FASTER
        assert _C.winograd() == cpu.NEVER
    assert _C.winograd() == cpu.WHERE_FASTER
    zf.use_exact()
    assert _C.winograd() == cpu.NEVER
    with pytest.raises(TypeError, match="exact must be True or False, got 1"):
        zf.use_exact(1)

    program = "from zfkernels.backends import cpu; print(cpu._C.winograd())"
    *good, bad = forked("ZFKERNELS_EXACT", ["1", "0", "", "yes"], program)
    assert [done.text for done in good] == ["0", "1", "1"]
    assert "ZFKERNELS_EXACT must be 0 or 1, got 'yes'" in bad.text


def test_small_maps_stay_with_the_direct_kernel():
    """There the transforms cost more than they save; ZFNet's own layers do not."""
    _C.set_winograd(cpu.WHERE_FASTER)
    cases = (
        ((1, 3, 4, (5, 5), 3, 1, 1), True),
        ((1, 256, 384, (13, 13), 3, 1, 1), False),
        ((1, 3, 96, (99, 99), 7, 2, 1), False),
    )
    for shape, expected in cases:
        x, weight, bias, stride, padding = problem(*shape)
        y = zf.conv2d_relu(x, weight, bias, stride, padding, backend="cpu")
        with zf.use_exact():
            assert torch.equal(y, zf.conv2d_relu(x, weight, bias, stride, padding, backend="cpu")) == expected


def test_exact_sums_of_one_thread_alone():
    """What another thread computes meanwhile is as it would be."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 64, 30, 30), torch.randn(64, 64, 3, 3)

    def convolved():
        return zf.conv2d_relu(x, weight, None, 1, 1, backend="cpu")

    fast = convolved()
    with zf.use_exact():
        exact = convolved()
    assert not torch.equal(fast, exact)
    with ThreadPoolExecutor(1) as other, exact_in_thread("cpu"):
        assert torch.equal(convolved(), exact)
        assert torch.equal(other.submit(convolved).result(), fast)
        with exact_in_thread("cpu"):
            pass
        assert torch.equal(convolved(), exact)
    assert torch.equal(convolved(), fast)
