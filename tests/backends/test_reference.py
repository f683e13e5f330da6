"""The float64 reference against torch in float64, finite differences, adjoint identities and cases worked by hand."""

import pytest
import torch
import torch.nn.functional as F
from calls import CALLS, Call
from conftest import assert_close, error

from zfkernels.backends.reference import (
    avg_pool2d,
    avg_pool2d_backward,
    contrast_norm,
    contrast_norm_backward,
    conv2d,
    conv2d_add,
    conv2d_relu_max_pool2d,
    conv2d_weight_grad,
    conv_transpose2d,
    max_pool2d,
    max_unpool2d,
    max_unpool2d_backward,
    max_unpool2d_relu_conv_transpose2d,
)
from zfkernels.testing.compare import BOUNDS

NAN, INF = torch.nan, torch.inf
BOUND = BOUNDS[torch.float64]


def calls_of(op: str, nonfinite: bool = True):
    selected = [call for call in CALLS if call.op == op and (nonfinite or call.fill not in ("nonfinite", "broken"))]
    return pytest.mark.parametrize("call", selected, ids=lambda call: call.name)


def double(call: Call) -> dict[str, torch.Tensor]:
    return call.tensors(torch.float64)


def column(*values) -> torch.Tensor:
    """One pixel's values across the maps: (1, C, 1, 1)."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def image(rows) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)[None, None]


# Against torch in float64


@calls_of("conv2d_relu")
@pytest.mark.parametrize("relu", [False, True])
def test_conv2d(call, relu):
    t, (stride, padding) = double(call), call.conv_window
    y = conv2d(t["x"], t["weight"], t.get("bias"), stride, padding, relu, *call.grouped)
    expected = F.conv2d(t["x"], t["weight"], t.get("bias"), stride, padding, *call.grouped)
    assert_close("result", y, expected.relu() if relu else expected, torch.float64)


@calls_of("conv2d_relu", nonfinite=False)  # torch's gradient multiplies the padding's zeros by inf
def test_conv2d_gradients(call):
    t, (stride, padding) = double(call), call.conv_window
    x, weight = t["x"].requires_grad_(), t["weight"].requires_grad_()
    bias = t.get("bias", torch.zeros(weight.shape[0], dtype=torch.float64)).requires_grad_()
    y = F.conv2d(x, weight, bias, stride, padding, *call.grouped)
    g = torch.randn_like(y)
    gx, gw, gb = torch.autograd.grad(y, (x, weight, bias), g)
    mine = conv_transpose2d(g, weight, stride, padding, x.shape[2:], False, *call.grouped)
    assert_close("x", mine, gx, torch.float64)
    mine, mine_bias = conv2d_weight_grad(x, g, weight.shape[2:], stride, padding, True, *call.grouped)
    assert_close("weight", mine, gw, torch.float64)
    assert_close("bias", mine_bias, gb, torch.float64)
    assert conv2d_weight_grad(x, g, weight.shape[2:], stride, padding, False, *call.grouped)[1] is None


@calls_of("conv2d_relu")
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("cap", [None, 0.7])
def test_conv2d_add(call, relu, cap):
    t, window = double(call), call.conv_window
    add = torch.randn_like(F.conv2d(t["x"], t["weight"], None, *window, *call.grouped))
    for z in (add, None):
        y = conv2d_add(t["x"], t["weight"], t.get("bias"), z, *window, relu, cap, *call.grouped)
        expected = F.conv2d(t["x"], t["weight"], t.get("bias"), *window, *call.grouped)
        expected = expected + z if z is not None else expected
        expected = expected.relu() if relu else expected
        assert_close("result", y, expected if cap is None else expected.clamp(max=cap), torch.float64)


@calls_of("relu_conv_transpose2d")
def test_conv_transpose2d(call):
    t, (stride, padding) = double(call), call.conv_window
    size, rectify = call.settings["output_size"], call.settings.get("rectify", True)
    x = conv_transpose2d(t["y"], t["weight"], stride, padding, size, rectify, *call.grouped)
    # torch wants the pixels beyond the last window as output_padding, and only fewer of them than the stride.
    dilation, groups = call.grouped
    y = t["y"].relu() if rectify else t["y"]
    whole = F.conv_transpose2d(y, t["weight"], None, stride, 0, 0, groups, dilation)
    whole = F.pad(whole, (0, max(size)) * 2)
    expected = whole[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    assert_close("result", x, expected, torch.float64)


def torch_pool(x, call):
    kernel, stride, padding = call.pool_window
    return F.max_pool2d(x, kernel, stride, padding, 1, call.settings["ceil_mode"], return_indices=True)


def flat_positions(switches, kernel, stride, padding, width):
    """The switches as torch's indices, into the flattened map of this width."""
    i, j = torch.meshgrid(*(torch.arange(n) for n in switches.shape[2:]), indexing="ij")
    s = switches.long()
    return (i * stride[0] - padding[0] + s // kernel[1]) * width + j * stride[1] - padding[1] + s % kernel[1]


@calls_of("max_pool2d_with_switches")
def test_max_pool2d(call):
    x = double(call)["x"]
    expected, indices = torch_pool(x, call)
    y, switches = max_pool2d(x, *call.pool_window, expected.shape[2:])
    assert_close("result", y, expected, torch.float64, exact=True)
    if call.fill not in ("nonfinite", "broken"):  # torch takes the last NaN of a window, we the first
        assert torch.equal(flat_positions(switches, *call.pool_window, x.shape[3]), indices)


@calls_of("avg_pool2d")
def test_avg_pool2d_and_its_gradient(call):
    x, (kernel, stride, padding) = double(call)["x"].requires_grad_(), call.pool_window
    settings = call.settings["ceil_mode"], call.settings["count_include_pad"]
    expected = F.avg_pool2d(x, kernel, stride, padding, *settings)
    y = avg_pool2d(x, *call.pool_window, expected.shape[2:], settings[1])
    assert_close("result", y, expected, torch.float64)
    g = torch.randn_like(expected)
    gx = avg_pool2d_backward(g, *call.pool_window, x.shape[2:], settings[1])
    assert_close("result", gx, torch.autograd.grad(expected, x, g)[0], torch.float64)
    back = avg_pool2d(gx, *call.pool_window, expected.shape[2:], settings[1])  # <A A^T g, g> = <A^T g, A^T g>
    assert float((back * g).sum()) == pytest.approx(float(gx.square().sum()))


@calls_of("max_unpool2d_with_switches")
def test_unpool_is_the_sum_at_the_switches(call):
    t, size = double(call), call.settings["output_size"]
    x = max_unpool2d(t["y"], t["switches"], *call.pool_window, size)
    positions = flat_positions(t["switches"], *call.pool_window, size[1])
    expected = torch.zeros(*x.shape[:2], size[0] * size[1], dtype=torch.float64)
    expected = expected.scatter_add(2, positions.flatten(2), t["y"].flatten(2)).view(x.shape)
    assert_close("result", x, expected, torch.float64)
    g = torch.randn_like(x)
    gathered = max_unpool2d_backward(g, t["switches"], *call.pool_window)
    expected = g.flatten(2).gather(2, positions.flatten(2)).view(positions.shape)
    assert_close("result", gathered, expected, torch.float64, exact=True)


@calls_of("max_pool2d_with_switches", nonfinite=False)  # torch takes the last NaN of a window, we the first
def test_unpool_is_the_pooling_s_gradient(call):
    x = double(call)["x"].requires_grad_()
    expected, _ = torch_pool(x, call)
    g = torch.randn_like(expected)
    _, switches = max_pool2d(x, *call.pool_window, expected.shape[2:])
    mine = max_unpool2d(g, switches, *call.pool_window, x.shape[2:])
    assert_close("result", mine, torch.autograd.grad(expected, x, g)[0], torch.float64)


def torch_norm(x, size, alpha, beta, k, center):
    """The formula with every window written out."""
    maps = range(x.shape[1])
    windows = [[j for j in maps if c - size // 2 <= j <= c - size // 2 + size - 1] for c in maps]
    d = x
    if center:
        d = torch.stack([x[:, c] - x[:, window].mean(1) for c, window in enumerate(windows)], 1)
    s = torch.stack([k + alpha / size * d[:, window].square().sum(1) for window in windows], 1)
    return d * s**-beta


@calls_of("contrast_norm")
def test_contrast_norm(call):
    x, settings = double(call)["x"], tuple(call.settings.values())
    y = contrast_norm(x, *settings)
    assert_close("result", y, torch_norm(x, *settings), torch.float64)
    if not call.settings["center"] and x.numel():
        assert_close("result", y, F.local_response_norm(x, *settings[:4]), torch.float64)


@calls_of("contrast_norm", nonfinite=False)  # torch's gradient of a power is another function of inf
def test_contrast_norm_gradient(call):
    x, settings = double(call)["x"].requires_grad_(), tuple(call.settings.values())
    g = torch.randn_like(x)
    expected = torch.autograd.grad(torch_norm(x, *settings), x, g)[0]
    assert_close("result", contrast_norm_backward(g, x, *settings), expected, torch.float64)


@calls_of("conv2d_relu_max_pool2d")
def test_layer(call):
    t, (stride, padding) = double(call), call.conv_window
    expected, indices = torch_pool(F.conv2d(t["x"], t["weight"], t.get("bias"), stride, padding).relu(), call)
    pool = call.pool_window
    y, switches = conv2d_relu_max_pool2d(t["x"], t["weight"], t.get("bias"), stride, padding, *pool, expected.shape[2:])
    assert_close("result", y, expected, torch.float64)
    if call.fill not in ("nonfinite", "broken"):
        assert torch.equal(flat_positions(switches, *pool, call.pooled_map[1]), indices)


@calls_of("max_unpool2d_relu_conv_transpose2d")
def test_layer_reversed(call):
    t, (stride, padding) = double(call), call.conv_window
    size, rectify = call.settings["output_size"], call.settings.get("rectify", True)
    pool, map_size = call.pool_window, call.pooled_map
    x = max_unpool2d_relu_conv_transpose2d(t["y"], t["switches"], t["weight"], stride, padding, *pool, size, rectify)
    unpooled = torch.zeros(*t["y"].shape[:2], map_size[0] * map_size[1], dtype=torch.float64)
    positions = flat_positions(t["switches"], *pool, map_size[1])
    unpooled = unpooled.scatter_add(2, positions.flatten(2), t["y"].flatten(2)).view(*t["y"].shape[:2], *map_size)
    whole = F.conv_transpose2d(unpooled.relu() if rectify else unpooled, t["weight"], None, stride)
    whole = F.pad(whole, (0, max(size)) * 2)
    expected = whole[:, :, padding[0] : padding[0] + size[0], padding[1] : padding[1] + size[1]]
    assert_close("result", x, expected, torch.float64)


# Finite differences and adjoint identities


@pytest.mark.parametrize("center", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 12])
def test_contrast_norm_gradient_by_differences(size, center):
    x, direction = torch.randn(2, 2, 7, 2, 3, dtype=torch.float64)
    g = torch.randn_like(x)
    settings = (size, 0.8, 0.75, 1.5, center)
    h = 1e-6
    up, down = (contrast_norm(x + step * direction, *settings) for step in (h, -h))
    slope = (g * (up - down)).sum() / (2 * h)
    assert abs(slope - (contrast_norm_backward(g, x, *settings) * direction).sum()) < 1e-7


def test_conv_gradients_by_differences():
    x, weight = torch.randn(2, 3, 7, 6, dtype=torch.float64), torch.randn(4, 3, 3, 2, dtype=torch.float64)
    dx, dw = torch.randn_like(x), torch.randn_like(weight)
    args = (None, (2, 1), (1, 0), False)
    y = conv2d(x, weight, *args)
    g = torch.randn_like(y)
    slope = (g * (conv2d(x + dx, weight, *args) - y)).sum()  # linear: any step is exact
    assert abs(slope - (conv_transpose2d(g, weight, (2, 1), (1, 0), (7, 6), False) * dx).sum()) < 1e-10
    slope = (g * (conv2d(x, weight + dw, *args) - y)).sum()
    assert abs(slope - (conv2d_weight_grad(x, g, (3, 2), (2, 1), (1, 0), False)[0] * dw).sum()) < 1e-10


@calls_of("relu_conv_transpose2d", nonfinite=False)  # inner products of NaN
def test_transposed_convolution_is_the_adjoint(call):
    t, (stride, padding) = double(call), call.conv_window
    size = call.settings["output_size"]
    x = torch.randn(t["y"].shape[0], t["weight"].shape[1] * call.grouped[1], *size, dtype=torch.float64)
    forward = (conv2d(x, t["weight"], None, stride, padding, False, *call.grouped) * t["y"]).sum()
    backward = (x * conv_transpose2d(t["y"], t["weight"], stride, padding, size, False, *call.grouped)).sum()
    gw, _ = conv2d_weight_grad(x, t["y"], t["weight"].shape[2:], stride, padding, False, *call.grouped)
    scale = x.norm() * t["y"].norm() * t["weight"].norm() + 1e-300
    assert abs(forward - backward) / scale < BOUND
    assert abs(forward - (gw * t["weight"]).sum()) / scale < BOUND


@calls_of("max_unpool2d_with_switches", nonfinite=False)  # inner products of NaN
def test_unpool_is_the_adjoint_of_the_gather(call):
    t, pool = double(call), call.pool_window
    g = torch.randn(*t["y"].shape[:2], *call.settings["output_size"], dtype=torch.float64)
    forward = (max_unpool2d(t["y"], t["switches"], *pool, g.shape[2:]) * g).sum()
    backward = (t["y"] * max_unpool2d_backward(g, t["switches"], *pool)).sum()
    assert abs(forward - backward) <= BOUND * (g.norm() * t["y"].norm())


# Worked by hand


def test_ties_go_to_the_first_in_row_major_order():
    y, switches = max_pool2d(image([[1, 2, 2], [2, 2, 0], [2, 2, 2]]), (3, 3), (3, 3), (0, 0), (1, 1))
    assert (y.item(), switches.item()) == (2, 1)
    y, switches = max_pool2d(image([[0, 0], [0, 0]]), (2, 2), (2, 2), (1, 1), (2, 2))
    assert y.flatten().tolist() == [0, 0, 0, 0]
    # the only pixel of each window: bottom right, bottom left, top right, top left
    assert switches.flatten().tolist() == [3, 2, 1, 0]


def test_windows_of_one_value():
    for value in (0.0, -0.0, -3.0, -INF, INF, NAN):
        y, switches = max_pool2d(torch.full((1, 1, 5, 5), value).double(), (3, 3), (2, 2), (0, 0), (2, 2))
        torch.testing.assert_close(y, torch.full((1, 1, 2, 2), value).double(), equal_nan=True, rtol=0, atol=0)
        assert switches.flatten().tolist() == [0, 0, 0, 0]


def test_padding_never_wins():
    y, switches = max_pool2d(image([[-INF, -5], [-INF, -INF]]), (2, 2), (2, 2), (1, 1), (2, 2))
    assert y.flatten().tolist() == [-INF, -5, -INF, -INF]
    assert switches.flatten().tolist() == [3, 2, 1, 0]


def test_the_first_nan_wins():
    y, switches = max_pool2d(image([[INF, 1], [NAN, NAN]]), (2, 2), (2, 2), (0, 0), (1, 1))
    assert y.isnan().item()
    assert switches.item() == 2


def test_overhanging_window_of_ceil_mode():
    x = image([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12], [16, 15, 14, 13]])
    y, switches = max_pool2d(x, (3, 3), (2, 2), (0, 0), (2, 2))
    assert y.flatten().tolist() == [11, 12, 16, 14]
    assert switches.flatten().tolist() == [
        8,
        7,
        3,
        3,
    ]  # the last two look at 2 rows, the second and fourth at 2 columns


def test_windows_that_choose_one_pixel_add_up():
    x = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    x[0, 0, 2, 2] = 7
    _, switches = max_pool2d(x, (3, 3), (2, 2), (0, 0), (2, 2))
    assert switches.flatten().tolist() == [8, 6, 2, 0]
    back = max_unpool2d(image([[1, 20], [300, 4000]]), switches, (3, 3), (2, 2), (0, 0), (5, 5))
    assert back[0, 0, 2, 2] == 4321
    assert back.sum() == 4321
    gathered = max_unpool2d_backward(back, switches, (3, 3), (2, 2), (0, 0))
    assert gathered.flatten().tolist() == [4321] * 4


def test_even_norm_window_leans_to_the_lower_maps():
    # size 4: W(c) = {c-2, ..., c+1}; alpha/size = 1, beta = 1, k = 1
    y = contrast_norm(column(0, 0, 2, 0, 0, 0), 4, 4.0, 1.0, 1.0, False)
    assert y.flatten().tolist() == [0, 0, 2 / 5, 0, 0, 0]
    y = contrast_norm(column(1, 1, 2, 1, 1, 1), 4, 4.0, 1.0, 1.0, False).flatten().tolist()
    assert y == pytest.approx([1 / 3, 1 / 7, 2 / 8, 1 / 8, 1 / 8, 1 / 4], abs=1e-15)


def test_even_norm_backward_mirrors_the_window():
    # y_c = x_c / (1 + sum over W(c) of x^2), W(c) = {c-1, c}, at x = 1: dy_1/dx_0 = -2/9, dy_0/dx_1 = 0.
    x = column(1, 1, 1)
    g = column(0, 1, 0)
    assert contrast_norm_backward(g, x, 2, 2.0, 1.0, 1.0, False).flatten().tolist() == pytest.approx(
        [-2 / 9, 1 / 3 - 2 / 9, 0], abs=1e-15
    )


def test_centred_norm():
    # size 3: the means over the maps that exist are 2.5, 3 and 4
    x = column(1, 4, 4)
    d = [1 - 2.5, 4 - 3, 4 - 4]
    expected = [d[0] / (1 + d[0] ** 2 + d[1] ** 2), d[1] / (1 + d[0] ** 2 + d[1] ** 2 + d[2] ** 2), 0]
    assert contrast_norm(x, 3, 3.0, 1.0, 1.0, True).flatten().tolist() == pytest.approx(expected, abs=1e-15)
    constant = torch.full((2, 9, 3, 2), 0.7, dtype=torch.float64)
    assert contrast_norm(constant, 5, 1.0, 0.75, 2.0, True).abs().max() < 1e-15


def test_norm_of_inf_and_nan():
    y = contrast_norm(column(1, 2, INF, 3, 4, 5, NAN, 6), 3, 3.0, 0.75, 1.0, False).flatten().tolist()
    assert y[1] == 0  # 2 * inf^-0.75
    assert y[3] == 0
    assert y[2] != y[2]  # inf * 0
    assert all(y[c] != y[c] for c in (5, 6, 7))
    assert y[0] == pytest.approx(6**-0.75)


def test_relu_keeps_nan_and_rectifies_inf():
    weight = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    y = conv2d(image([[NAN, INF, -INF, -1, 2]]), weight, None, (1, 1), (0, 0), True).flatten().tolist()
    assert y[0] != y[0]
    assert y[1:] == [INF, 0, 0, 2]
    x = conv_transpose2d(image([[NAN, INF, -INF, -1, 2]]), weight, (1, 1), (0, 0), (1, 5), True).flatten().tolist()
    assert x[0] != x[0]
    assert x[1:] == [INF, 0, 0, 2]


def test_convolution_by_hand():
    x = image([[1, 2, 3], [4, 5, 6]])
    weight = image([[1, 10], [100, 1000]])
    y = conv2d(x, weight, torch.tensor([0.5]).double(), (1, 1), (0, 0), False)
    assert y.flatten().tolist() == [1 + 20 + 400 + 5000 + 0.5, 2 + 30 + 500 + 6000 + 0.5]
    x = conv_transpose2d(image([[2, 3]]), weight, (1, 2), (0, 1), (2, 3), False)
    assert x.flatten().tolist() == [20, 3, 30, 2000, 300, 3000]
    gw, gb = conv2d_weight_grad(image([[1, 2, 3], [4, 5, 6]]), image([[1, 10]]), (2, 2), (1, 1), (0, 0), True)
    assert gw.flatten().tolist() == [21, 32, 54, 65]
    assert gb.tolist() == [11]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_results_are_rounded_once(dtype):
    """Sums whose partial sums the dtype cannot hold come out as the exact sum, rounded."""
    x = torch.tensor([1.0, 2**-12, 2**-12, -1.0], dtype=dtype).view(1, 4, 1, 1)
    y = conv2d(x, torch.ones(1, 4, 1, 1, dtype=dtype), None, (1, 1), (0, 0), False)
    assert (y.dtype, y.item()) == (dtype, 2**-11)


def test_layer_compares_rounded_values():
    """1 + 2^-9 is 1 in bfloat16: a tie, which the first of the two wins; float32 sees the difference."""
    weight = torch.ones(1, 2, 1, 1)
    x = torch.tensor([[1.0, 1.0], [0.0, 2**-9]]).view(1, 2, 1, 2)
    for dtype, winner in ((torch.float32, 1), (torch.bfloat16, 0)):
        y, switches = conv2d_relu_max_pool2d(
            x.to(dtype), weight.to(dtype), None, (1, 1), (0, 0), (1, 2), (1, 1), (0, 0), (1, 1)
        )
        assert switches.item() == winner
        assert y.item() == (1 + 2**-9 if dtype is torch.float32 else 1)


def test_error_measure_sees_non_finite_values():
    """The measure that every test here relies on."""
    a = torch.tensor([1.0, NAN, INF, -INF])
    assert error(a, a) == 0
    assert error(torch.tensor([1.1, NAN, INF, -INF]), a) == pytest.approx(0.1)
    for wrong in ([1.0, 1.0, INF, -INF], [1.0, NAN, -INF, -INF], [NAN, NAN, INF, -INF], [1.0, INF, NAN, -INF]):
        assert error(torch.tensor(wrong), a) == INF
    assert error(torch.ones(2), torch.zeros(2)) == INF
    assert error(torch.zeros(2), torch.zeros(2)) == 0
