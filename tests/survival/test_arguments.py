"""Arguments that nobody foresaw: what a public function does not take is a TypeError, ValueError or RuntimeError that
names the argument; it never ends the process and never says anything else.
"""

import os
import re
import resource
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from ops.wrong_calls import LP, LS, B, P, S, W, X, Y
from small import network

import zfkernels as zf
from zfkernels.analyses.activations import TopActivations, merge
from zfkernels.models.zfnet import clamp_filters_

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

EXAMPLES, LONG_EXAMPLES = 120, 5000
POOL = {"kernel_size": 2, "stride": None, "padding": 0}
LAYER_POOL = {"pool_kernel": 2, "pool_stride": 2, "pool_padding": 0}
WINDOW = {"stride": 1, "padding": 0}
NORM = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0, "center": False}
IMAGES = torch.linspace(-1, 1, 2 * 3 * 48 * 48).reshape(2, 3, 48, 48)
MODEL = network()
TOP = TopActivations(torch.ones(3, 2), torch.tensor([[0, 1]] * 3), torch.zeros(3, 2, 2, dtype=torch.int64))


class Function(NamedTuple):
    call: Callable
    arguments: dict[str, Any]  # of a call that is right
    others: tuple[str, ...] = ()  # other names that a message may have for them


def method(name: str) -> Callable:
    return lambda **arguments: getattr(zf.Deconvnet(MODEL), name)(**arguments)


def within(context: Callable) -> Callable:
    """Makes the context, uses it, and leaves it."""

    def call(**arguments: object) -> None:
        with context(**arguments):
            pass

    return call


FUNCTIONS = {
    "conv2d_relu": Function(
        zf.conv2d_relu,
        {
            "x": X,
            "weight": W,
            "bias": B,
            **WINDOW,
            "dilation": 1,
            "groups": 1,
            "add": None,
            "cap": None,
            "backend": None,
        },
    ),
    "relu_conv_transpose2d": Function(
        zf.relu_conv_transpose2d,
        {"y": Y, "weight": W, **WINDOW, "dilation": 1, "groups": 1, "output_size": 8, "rectify": True, "backend": None},
    ),
    "max_pool2d_with_switches": Function(
        zf.max_pool2d_with_switches, {"x": X, **POOL, "ceil_mode": False, "backend": None}
    ),
    "max_unpool2d_with_switches": Function(
        zf.max_unpool2d_with_switches, {"y": P, "switches": S, **POOL, "output_size": 8, "backend": None}
    ),
    "avg_pool2d": Function(
        zf.avg_pool2d, {"x": X, **POOL, "ceil_mode": False, "count_include_pad": True, "backend": None}
    ),
    "contrast_norm": Function(zf.contrast_norm, {"x": X, **NORM, "backend": None}),
    "max_pool2d_contrast_norm": Function(
        zf.max_pool2d_contrast_norm, {"x": X, **POOL, "ceil_mode": False, **NORM, "backend": None}
    ),
    "conv2d_relu_max_pool2d": Function(
        zf.conv2d_relu_max_pool2d,
        {"x": X, "weight": W, "bias": B, **WINDOW, **LAYER_POOL, "ceil_mode": False, "backend": None},
    ),
    "max_unpool2d_relu_conv_transpose2d": Function(
        zf.max_unpool2d_relu_conv_transpose2d,
        {
            **{"y": LP, "switches": LS, "weight": W},
            **WINDOW,
            **LAYER_POOL,
            **{"output_size": 8, "rectify": True, "backend": None},
        },
    ),
    "prepare": Function(zf.prepare, {"weight": W, "bias": B, "scale": None}),
    "Deconvnet": Function(zf.Deconvnet, {"model": MODEL, "forward": None, "rules": None}),
    "use_backend": Function(within(zf.use_backend), {"name": None}, ("backend",)),
    "use_exact": Function(within(zf.use_exact), {"exact": True}),
    "project": Function(
        method("project"),
        {
            **{"images": IMAGES, "layer": "conv2", "channel": 1, "position": None, "norm": "identity"},
            **{"image_index": None, "method": "deconvnet", "strength": None, "values": None},
        },
    ),
    "image_dependence": Function(
        method("image_dependence"),
        {
            **{"images": IMAGES[:1], "layer": "conv2", "channel": 1, "position": None, "norm": "identity"},
            **{"image_index": None, "method": "deconvnet"},
        },
    ),
    "project with values": Function(
        method("project"),
        {"images": IMAGES, "layer": "conv2", "channel": 1, "position": [(0, 0), (1, 1)], "values": [1.0, 2.0]},
    ),
    "activations": Function(method("activations"), {"images": IMAGES, "layer": "conv2"}),
    "boxes": Function(method("boxes"), {"layer": "conv2", "positions": [(0, 0)], "image_size": (48, 48)}),
    "strengths": Function(method("strengths"), {"images": IMAGES, "layer": ["conv2"]}),
    "joint": Function(
        method("joint"),
        {
            **{"image": IMAGES[:1], "layer": "conv2", "channel": [0, 1], "position": None, "norm": "identity"},
            **{"method": "deconvnet"},
        },
        ("images",),
    ),
    "switchless": Function(method("switchless"), {"layer": "conv2"}),
    "engine": Function(method("engine"), {"layer": "conv2"}),
    "modules_below": Function(method("modules_below"), {"layer": "conv2"}),
    "occlusion_map": Function(
        zf.occlusion_map,
        {
            **{"model": MODEL, "image": IMAGES[0], "target": 1, "patch": 24, "stride": 24, "fill": None},
            **{"layer": "conv2", "channel": None, "batch_size": 8, "forward": None, "progress": False},
        },
        ("object",),  # which is called as a forward, and says so itself
    ),
    "top_activations": Function(
        zf.top_activations,
        {"model": MODEL, "loader": [IMAGES], "layer": "conv2", "k": 2, "numbered": False, "progress": False},
        ("images",),
    ),
    "merge": Function(merge, {"parts": [TOP, TOP], "k": 2}),
    "ZFNet.receptive_field": Function(MODEL.receptive_field, {"layer": "conv2"}),
    "ZFNet.forward": Function(MODEL.forward, {"images": IMAGES}),
    "clamp_filters_": Function(clamp_filters_, {"model": network(), "rms": 10.0}),
    "sanity_check": Function(
        zf.sanity_check,
        {
            **{"model": MODEL, "image": IMAGES[0], "layer": "conv1", "channel": 0, "position": None},
            **{"norm": "identity", "method": "deconvnet", "repeats": 1, "seed": 0},
            **{"progress": False},
        },
        ("images",),
    ),
    "nn.ConvReLU": Function(
        zf.nn.ConvReLU,
        {
            **{"in_channels": 2, "out_channels": 3, "kernel_size": 3, **WINDOW},
            **{"bias": True, "dilation": 1, "groups": 1, "backend": None},
        },
    ),
    "nn.MaxPoolSwitches": Function(
        zf.nn.MaxPoolSwitches, {**POOL, "ceil_mode": False, "return_switches": False, "backend": None}
    ),
    "nn.ContrastNorm": Function(zf.nn.ContrastNorm, {**NORM, "backend": None}),
    "nn.ConvReLUMaxPool": Function(
        zf.nn.ConvReLUMaxPool,
        {
            **{"in_channels": 2, "out_channels": 3, "kernel_size": 3},
            **{"stride": 1, "padding": 0, **LAYER_POOL, "ceil_mode": False, "bias": True, "backend": None},
        },
    ),
    "ZFNet": Function(
        zf.ZFNet,
        {
            **{"num_classes": 2, "in_channels": 3, "image_size": 64, "channels": (2,) * 5, "fc": (3, 3)},
            **{"without": (), "dropout": 0.5, "center": False, "weight_std": 0.01},
        },
    ),
}

# None so large that a call which takes it would fill the memory.
NUMBERS = st.sampled_from([-(2**63), -(2**31), -2, -1, 0, 1, 2, 3, 5, 2**31 - 1, 2**31, 2**32, 2**63, 10**30])
PLAIN = st.one_of(
    NUMBERS,
    st.none(),
    st.booleans(),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 0.5, 1e308, 1e-320, 2.0]),
    st.sampled_from([np.int64(2), np.float32(0.5), np.bool_(True), np.array([1, 2]), 1j, object, b"2", object()]),
    st.sampled_from(["", "same", "2", "conv2", "cpu", "reference", "mean", "\x00", "\ud800", "ä" * 5000]),
)
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
DTYPES += [torch.complex64, torch.float8_e4m3fn]


@st.composite
def tensors(draw: Callable) -> torch.Tensor:
    """Of any shape up to 5 dimensions, any dtype, some of them strided, on no device, sparse, or without a value."""
    shape = draw(st.lists(st.sampled_from([0, 1, 2, 3, 4, 8]), max_size=5))
    value = torch.zeros(shape, dtype=draw(st.sampled_from(DTYPES)))
    kind = draw(st.sampled_from(["plain", "plain", "meta", "sparse", "transposed", "expanded", "parameter", "nan"]))
    if kind == "meta":
        return value.to("meta")
    if kind == "sparse" and value.dtype is torch.float32 and value.dim():
        return value.to_sparse()
    if kind == "transposed":
        return value.T if value.dim() == 2 else value.transpose(0, -1) if value.dim() else value
    if kind == "expanded" and value.dim() and shape[0]:
        return value[:1].expand(3, *shape[1:])
    if kind == "parameter" and value.is_floating_point() and value.element_size() > 1:
        return torch.nn.Parameter(value)
    return value + float("nan") if kind == "nan" and value.dtype in (torch.float32, torch.float64) else value


ANY = st.one_of(
    PLAIN,
    tensors(),
    st.lists(PLAIN, max_size=3),
    st.tuples(NUMBERS, NUMBERS),
    st.tuples(PLAIN, PLAIN),
    st.just({}),
    st.just(range(2)),
)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """A size that is taken at its word is refused by the machine, whatever its rules for memory are."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (held + 8 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_any_argument(name, long, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an argument may be a file's name
    function = FUNCTIONS[name]
    assert run(function, {}) is None

    @hypothesis.settings(
        max_examples=LONG_EXAMPLES if long else EXAMPLES,
        deadline=None,
        derandomize=not long,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(st.dictionaries(st.sampled_from(sorted(function.arguments)), ANY, min_size=1, max_size=2))
    def check(changed: dict[str, Any]) -> None:
        problem = run(function, changed)
        assert problem is None, problem

    check()


def run(function: Function, changed: dict[str, Any]) -> str | None:
    """What is wrong with how the call ends."""
    try:
        function.call(**function.arguments | changed)
    except (TypeError, ValueError, RuntimeError) as error:
        text = str(error)
        if changed and "can't allocate memory" in text:
            return None  # the argument is right, and the machine too small
        names = [*changed, *function.others]
        named = any(re.search(rf"(?<![a-z_]){name}(?![a-z_])", text) for name in names)
        if not changed or not (named or text.startswith(tuple(f"{name} must" for name in function.arguments))):
            return f"{type(error).__name__} that names none of {names}: {error}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None
