"""zfkernels.prepare: the same bits as the weight itself, never stale, never in the place of a gradient."""

import pytest
import torch
from conftest import error
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import zfkernels as zf
from zfkernels.backends import cpu
from zfkernels.backends.exact import exact_in_thread

# x (N, C, H, W), filters, kernel, stride, padding, dilation, groups: by every kernel of a forward convolution
CONVOLUTIONS = {
    "direct": ((2, 20, 9, 8), 40, 3, 1, 1, 1, 1),
    "tiles": ((1, 64, 28, 28), 64, 3, 1, 1, 1, 1),
    "rows": ((2, 3, 60, 61), 64, 7, 2, 1, 1, 1),
    "pointwise": ((1, 70, 7, 7), 130, 1, 1, 0, 1, 1),
    "depthwise": ((2, 40, 9, 8), 40, 3, 2, 1, 1, 40),
    "groups": ((2, 40, 9, 8), 60, 3, 1, 1, 1, 4),
    "groups by tiles": ((1, 128, 28, 28), 128, 3, 1, 1, 1, 2),
    "dilated": ((1, 20, 12, 11), 40, 3, 1, 2, 2, 1),
    "no images": ((0, 20, 12, 11), 40, 3, 1, 1, 1, 1),
}


def problem(name, dtype=torch.float32):
    x, filters, kernel, *window = CONVOLUTIONS[name]
    weight = torch.randn(filters, x[1] // window[3], kernel, kernel, dtype=dtype)
    return torch.randn(x, dtype=dtype), weight, torch.randn(filters, dtype=dtype), window


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_same_bits_as_the_weight(name, dtype):
    x, weight, bias, window = problem(name, dtype)
    for layout in (torch.contiguous_format, torch.channels_last):
        weight = weight.contiguous(memory_format=layout)
        prepared = zf.prepare(weight, bias)
        for again in range(2):
            out = zf.conv2d_relu(x, prepared, None, *window)
            assert torch.equal(out, zf.conv2d_relu(x, weight, bias, *window)), again
        add = torch.randn_like(out)
        out = zf.conv2d_relu(x, prepared, None, *window, add=add, cap=1.5)
        assert torch.equal(out, zf.conv2d_relu(x, weight, bias, *window, add=add, cap=1.5))
        if window[2:] == [1, 1]:
            pool = (*window[:2], 3, 2, 1, True)
            outs, expected = (zf.conv2d_relu_max_pool2d(x, w, b, *pool) for w, b in ((prepared, None), (weight, bias)))
            assert all(torch.equal(a, b) for a, b in zip(outs, expected, strict=True))


# the same, x being what comes out: by every kernel of a transposed convolution
TRANSPOSED = CONVOLUTIONS | {
    "transposed direct": ((2, 40, 9, 8), 20, 3, 1, 1, 1, 1),
    "transposed tiles": ((2, 64, 28, 28), 64, 3, 1, 1, 1, 1),
    "scattered": ((2, 3, 21, 22), 20, 5, 2, 1, 1, 1),
    "plain filters": ((1, 64, 4, 5), 96, 3, 1, 0, 1, 1),
    "many images": ((9, 64, 4, 5), 96, 3, 1, 0, 1, 1),
}
MODES = {"fastest": cpu.WHERE_FASTER, "tiles": cpu.ALWAYS, "exact": cpu.NEVER, "nonzeros": cpu.NONZEROS}


def transposed_problem(name, dtype):
    x, filters, kernel, *window = TRANSPOSED[name]
    weight = torch.randn(filters, x[1] // window[3], kernel, kernel, dtype=dtype)
    stride, padding, dilation, groups = window
    with torch.no_grad():
        like = nn.functional.conv2d(torch.zeros(x, dtype=dtype), weight, None, stride, padding, dilation, groups)
    return torch.randn(like.shape, dtype=dtype), weight, window, x[2:]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda dtype: str(dtype)[6:])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_same_bits_as_the_weight_transposed(name, dtype, mode):
    y, weight, window, size = transposed_problem(name, dtype)
    before = cpu._C.winograd()
    cpu._C.set_winograd(MODES[mode])
    try:
        for layout in (torch.contiguous_format, torch.channels_last):
            weight = weight.contiguous(memory_format=layout)
            prepared = zf.prepare(weight, torch.randn(len(weight)).to(dtype))
            for threads, rectify in ((1, True), (2, False), (3, True), (1, True)):
                torch.set_num_threads(threads)
                call = [
                    zf.relu_conv_transpose2d(y, w, *window, output_size=size, rectify=rectify)
                    for w in (prepared, weight)
                ]
                assert torch.equal(*call), threads
            if window[2:] == [1, 1]:
                pool = min(2, *y.shape[2:])
                pooled, switches = zf.max_pool2d_with_switches(y, pool)
                calls = [
                    zf.max_unpool2d_relu_conv_transpose2d(
                        pooled, switches, w, *window[:2], pool, None, 0, output_size=size
                    )
                    for w in (prepared, weight, prepared)
                ]
                assert torch.equal(calls[0], calls[1])
                assert torch.equal(calls[2], calls[1])
    finally:
        cpu._C.set_winograd(before)


def test_transposed_filters_are_packed_once_a_kernel(monkeypatch):
    """And not at all where they are not finite: what is known of the weight does not hold there."""
    weight = torch.randn(96, 64, 3, 3)
    prepared, made = zf.prepare(weight), []
    pack = cpu._C.pack_transposed
    monkeypatch.setattr(cpu._C, "pack_transposed", lambda *a: made.append(a[-2]) or pack(*a))
    for size in (6, 7, 6, 7, 30, 30):
        y = torch.randn(1, 96, size - 2, size - 2)
        out = zf.relu_conv_transpose2d(y, prepared, output_size=size)
        assert torch.equal(out, zf.relu_conv_transpose2d(y, weight, output_size=size))
    kinds = {key[1] for key in prepared._packed}
    assert len([address for address in made if address]) == len(prepared._packed) == len(kinds)
    weight[3, 4, 1, 1] = torch.inf
    broken = zf.prepare(weight)
    for size in (6, 6, 30):
        y = torch.randn(1, 96, size - 2, size - 2)
        out, expected = (zf.relu_conv_transpose2d(y, w, output_size=size) for w in (broken, weight))
        assert torch.equal(out.nan_to_num(7), expected.nan_to_num(7))
        assert not expected.isfinite().all()


def test_scale_reaches_the_transposed_convolution():
    y, weight, scale = torch.randn(2, 40, 7, 6), torch.randn(40, 20, 3, 3), torch.rand(40) + 0.5
    prepared = zf.prepare(weight, torch.randn(40), scale=scale)
    out = zf.relu_conv_transpose2d(y, prepared, output_size=(9, 8))
    expected = zf.relu_conv_transpose2d(y.double(), (weight * scale.view(-1, 1, 1, 1)).double(), output_size=(9, 8))
    assert error(out, expected) <= 1e-5


@pytest.mark.parametrize("shape", [(2, 20, 9, 8), (1, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("which", ["x", "weight", "bias", "add"])
def test_views_with_a_pending_negation(which, shape):
    """Their memory has the wrong sign. (One of a single value counts as contiguous, and is copied by nothing.)"""
    values = {"x": torch.rand(shape), "weight": torch.rand(shape[1], shape[1], 1, 1), "bias": torch.rand(shape[1])}
    values["add"] = torch.rand(shape)

    def result(x, weight, bias, add):
        return zf.conv2d_relu(x, zf.prepare(weight, bias), None, add=add)

    expected = result(**values)
    values[which] = torch.complex(torch.zeros_like(values[which]), -values[which]).conj().imag
    assert values[which].is_neg()
    assert torch.equal(result(**values), expected)


def test_one_object_serves_every_stride_size_and_mode():
    weight = torch.randn(64, 64, 3, 3)
    prepared = zf.prepare(weight)
    for size, stride in ((28, 1), (28, 2), (5, 1), (28, 1), (30, 3)):
        x = torch.randn(1, 64, size, size)
        for exact in (False, True):
            with zf.use_exact(exact):
                out = zf.conv2d_relu(x, prepared, None, stride, 1)
                assert torch.equal(out, zf.conv2d_relu(x, weight, None, stride, 1))


def test_what_is_not_finite_is_computed_from_the_weight():
    x, weight, bias, window = problem("tiles")
    x[0, 3, 5, 5] = torch.inf
    prepared = zf.prepare(weight, bias)
    out, expected = zf.conv2d_relu(x, prepared, None, *window), zf.conv2d_relu(x, weight, bias, *window)
    assert torch.equal(out.nan_to_num(7), expected.nan_to_num(7))
    assert out.isfinite().any()


@pytest.mark.parametrize("name", ["tiles", "depthwise", "groups"])
def test_scale_is_a_batch_norm_s(name):
    x, weight, _, window = problem(name)
    norm = nn.BatchNorm2d(len(weight)).eval()
    for value in (norm.weight, norm.bias, norm.running_mean):
        value.data.normal_()
    norm.running_var.uniform_(0.5, 2)
    with torch.no_grad():
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        prepared = zf.prepare(weight, norm.bias - norm.running_mean * scale, scale=scale)
        out = zf.conv2d_relu(x, prepared, None, *window)
        norm, (stride, padding, dilation, groups) = norm.double(), window
        expected = nn.functional.conv2d(x.double(), weight.double(), None, stride, padding, dilation, groups)
        assert error(out, norm(expected).relu()) <= 1e-5


CHANGES = {
    "an optimizer's step": lambda layer: step(layer),
    "load_state_dict": lambda layer: layer.load_state_dict(nn.Conv2d(20, 40, 3).state_dict()),
    "in place": lambda layer: layer.weight.mul_(2),
    "a view in place": lambda layer: layer.weight[3:5].zero_(),
    "other memory": lambda layer: setattr(layer.weight, "data", torch.randn(40, 20, 3, 3)),
    "another dtype": lambda layer: layer.double(),
    "the bias": lambda layer: layer.bias.add_(1),
    "another layout": lambda layer: layer.to(memory_format=torch.channels_last),
}


def step(layer):
    layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), torch.ones_like(layer.bias)
    torch.optim.SGD(layer.parameters(), 0.1, foreach=True).step()


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_weight_is_refused(change):
    layer, x = nn.Conv2d(20, 40, 3), torch.randn(1, 20, 7, 7)
    with torch.no_grad():
        prepared = zf.prepare(layer.weight, layer.bias)
        y = zf.conv2d_relu(x, prepared)
        zf.relu_conv_transpose2d(y, prepared, output_size=7)
        CHANGES[change](layer)
        for call in (
            lambda: zf.conv2d_relu(x, prepared),
            lambda: zf.conv2d_relu_max_pool2d(x, prepared, None, 1, 0, 2, 2, 0, False),
            lambda: cpu.conv2d(x, prepared, None, (1, 1), (0, 0), False),
            lambda: zf.relu_conv_transpose2d(y, prepared, output_size=7),
            lambda: zf.max_unpool2d_relu_conv_transpose2d(
                y, torch.zeros(y.shape, dtype=torch.uint8), prepared, 1, 0, 1, 1, 0, output_size=7
            ),
            lambda: cpu.conv_transpose2d(y, prepared, (1, 1), (0, 0), (7, 7), True),
        ):
            with pytest.raises(RuntimeError, match=r"(weight|bias) has changed since zfkernels.prepare: its .* was"):
                call()
        if layer.weight.dtype == torch.float32:
            prepared = zf.prepare(layer.weight, layer.bias)
            assert torch.equal(zf.conv2d_relu(x, prepared), zf.conv2d_relu(x, layer.weight, layer.bias))


def test_it_is_not_used_where_a_gradient_is_wanted():
    weight, x = torch.randn(4, 3, 3, 3), torch.randn(1, 3, 7, 7)
    prepared, leaf = zf.prepare(weight), zf.prepare(weight.clone().requires_grad_())
    for filters, input_ in ((prepared, x.clone().requires_grad_()), (leaf, x)):
        with pytest.raises(RuntimeError, match=r"prepared filters have no gradient.*torch\.no_grad"):
            zf.conv2d_relu(input_, filters)
        with pytest.raises(RuntimeError, match=r"prepared filters have no gradient, and y, weight"):
            zf.relu_conv_transpose2d(input_[:, :1].expand(-1, 4, -1, -1), filters, output_size=9)
        with torch.no_grad():
            zf.conv2d_relu(input_, filters)
        with torch.inference_mode():
            zf.conv2d_relu(input_, filters)


def test_wrong_calls():
    weight, x = torch.randn(4, 3, 3, 3), torch.randn(1, 3, 7, 7)
    prepared = zf.prepare(weight)
    wrong = (
        (lambda: zf.conv2d_relu(x, prepared, torch.ones(4)), ValueError, "bias must be None beside prepared filters"),
        (lambda: zf.conv2d_relu(x.double(), prepared), TypeError, "x must have the prepared filters' dtype"),
        (lambda: zf.relu_conv_transpose2d(x.double(), prepared, output_size=9), TypeError, "y must have the prepared"),
        (lambda: zf.relu_conv_transpose2d(x, prepared, output_size=9), ValueError, "weight must have y's 3 channels"),
        (lambda: zf.conv2d_relu(x[:, :2], prepared), ValueError, "weight must have x's 2 channels"),
        (lambda: zf.conv2d_relu(x, prepared, backend="reference"), RuntimeError, "are the cpu backend's, got backend"),
        (lambda: zf.prepare([1.0]), TypeError, "weight must be a torch.Tensor, got list"),
        (lambda: zf.prepare(weight, torch.ones(3)), ValueError, r"bias must have shape \(4,\)"),
        (lambda: zf.prepare(weight, scale=torch.ones(4).double()), TypeError, "scale must have weight's dtype"),
        (lambda: zf.prepare(weight.to("meta")), ValueError, "weight must be on the CPU"),
    )
    for call, kind, text in wrong:
        with pytest.raises(kind, match=text):
            call()
    with torch.inference_mode():
        uncounted = torch.randn(4, 3, 3, 3)
        with pytest.raises(RuntimeError, match="weight must be a tensor whose changes torch counts"):
            zf.prepare(uncounted)


def test_what_traces_sees_a_weight():
    weight, x = torch.randn(4, 3, 3, 3), torch.randn(1, 3, 7, 7)
    prepared, seen = zf.prepare(weight), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    with Watch():
        out = zf.conv2d_relu(x, prepared)
    assert "zfkernels.conv2d.default" in seen
    assert torch.equal(out, zf.conv2d_relu(x, weight))


@pytest.mark.parametrize("prepare", [False, True])
def test_a_thread_s_exact_sums_reach_every_group(prepare):
    """Groups are shared out among threads, and the mode is the caller's."""
    x, weight, bias, window = problem("groups by tiles")
    torch.set_num_threads(2)
    filters = (zf.prepare(weight, bias), None) if prepare else (weight, bias)
    fastest = zf.conv2d_relu(x, *filters, *window)
    with zf.use_exact():
        expected = zf.conv2d_relu(x, weight, bias, *window)
        back = zf.relu_conv_transpose2d(expected, weight, *window, output_size=x.shape[2:])
    assert not torch.equal(fastest, expected)
    with exact_in_thread("cpu"):
        assert torch.equal(zf.conv2d_relu(x, *filters, *window), expected)
        assert torch.equal(zf.relu_conv_transpose2d(expected, weight, *window, output_size=x.shape[2:]), back)
