"""What each call of a model's own forward sends down: the rules of a projection, for autograd to follow.

    rectifiers (ReLU and ReLU6, LeakyReLU, PReLU, hardtanh from 0, threshold, clamp from 0, maximum with 0)
                        the method's rule; with g the signal, m the derivative and a the slope below 0,
                        "deconvnet" max(0, g) + a min(0, g), "gradient" m g, "guided" m (max(0, g) + a min(0, g))
    max-pooling         to the pixel that its switch names
    response norms      as `norm` says
    dropout             passed over
    all else            its true vector-Jacobian product

The value of each call is that which the model itself makes.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload

from ..graph.rules import Arguments, Function, Keywords, Rules
from ..graph.steps import norm_factors
from ..graph.translate import DROPOUTS, words
from ..graph.watch import key_of, name_of
from ..ops.checks import LARGEST_WINDOW
from ..ops.max_pool import max_pool2d
from ..window import pool_map

OVERRIDES = ("rectify", "gradient")
Sides = Sequence[int]
Norm = tuple[int, float, float, float, bool]  # size, alpha, beta, k, center


class Rectifier(NamedTuple):
    """One spelling of a rectifier, read: what it takes, its slope below 0, and how its value is made."""

    x: Tensor
    slope: float | Tensor
    value: Callable[[Tensor], Tensor]


class _Sent(torch.autograd.Function):
    """y = make(x), whose signal goes to x as it is, or rectified with `slope`, or times `factor`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, make: Callable[[Tensor], Tensor], slope: object, factor: Tensor | None) -> Tensor:
        ctx.slope, ctx.factor = slope, factor
        return make(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        g = g if ctx.slope is None else rectified(g, ctx.slope)
        return g if ctx.factor is None else g * ctx.factor, None, None, None


_send: Callable[[Tensor, Callable[[Tensor], Tensor], object, Tensor | None], Tensor] = _Sent.apply


def rectified(g: Tensor, slope: float | Tensor) -> Tensor:
    """max(0, g) + slope min(0, g)."""
    if isinstance(slope, Tensor):
        return torch.where(g > 0, g, g * slope)
    return F.leaky_relu(g, slope) if slope else g.relu()


class Signals:
    """Runs the calls of a forward pass (graph/watch.py) under these rules.

    `overrides`: module classes or functions -> "rectify", to take the method's rule with their own derivative, or
    "gradient", to take the true one. `uncapped`: the numbers of values whose rectifiers have no upper limit.
    """

    def __init__(self, rules: Rules, overrides: Mapping[object, str], uncapped: Collection[int] = ()) -> None:
        self.rules, self.overrides, self.uncapped = rules, overrides, uncapped
        self.number = 0  # of the value that the call under way makes
        self.rectified: set[int] = set()  # the numbers of rectifiers' values

    def __call__(self, function: Function, args: Arguments, kwargs: Keywords, module: nn.Module, number: int) -> object:
        self.number = number
        key = key_of(function)
        override = self.overrides.get(key) or self.overrides.get(type(module))
        if override == "gradient":
            return function(*args, **kwargs)
        if override == "rectify":
            return self._rectify(Rectifier(args[0], 0.0, lambda x: function(x, *args[1:], **kwargs)), None)
        if isinstance(function, OpOverload) and function.name() in ATEN:
            key = ATEN[function.name()]
        elif isinstance(function, OpOverload):
            handler = OPS.get(function.name())
            return function(*args, **kwargs) if handler is None else handler(self, function, *args, **kwargs)
        handler = CALLS.get(key)
        return function(*args, **kwargs) if handler is None else handler(self, function, args, kwargs)

    def _rectify(self, rectifier: Rectifier, in_place: Tensor | None) -> Tensor:
        """The rectifier's value with the method's backward, written into `in_place` if the model wants it there."""
        self.rectified.add(self.number)
        x, slope, value = rectifier if self.number not in self.uncapped else rectifier._replace(value=torch.relu)
        x = x if in_place is None else x.clone()
        y = _send(x, value, slope, None) if self.rules.method == "deconvnet" else value(x)
        if self.rules.method == "guided" and y.requires_grad:
            y.register_hook(lambda g: rectified(g, slope))
        return y if in_place is None else in_place.copy_(y)

    def norm(self, x: Tensor, make: Callable[[Tensor], Tensor], parameters: Norm) -> Tensor:
        """A response norm's value with the backward that the rules ask for."""
        if self.rules.method is None or self.rules.norm == "gradient":
            return make(x)
        factor = None if self.rules.norm == "identity" else norm_factors(x.detach(), *parameters)
        return _send(x, make, None, factor)


# The spellings of rectifiers: (arguments, keywords) -> Rectifier, or None where it is none


def _argument(args: Arguments, kwargs: Keywords, place: int, name: str, default: object = None) -> Any:
    return args[place] if len(args) > place else kwargs.get(name, default)


def _relu(args: Arguments, kwargs: Keywords) -> Rectifier:
    return Rectifier(_argument(args, kwargs, 0, "input"), 0.0, torch.relu)


def _relu6(args: Arguments, kwargs: Keywords) -> Rectifier:
    return Rectifier(_argument(args, kwargs, 0, "input"), 0.0, lambda x: F.hardtanh(x, 0.0, 6.0))


def _leaky(args: Arguments, kwargs: Keywords) -> Rectifier:
    slope = float(_argument(args, kwargs, 1, "negative_slope", 0.01))
    return Rectifier(_argument(args, kwargs, 0, "input"), slope, lambda x: F.leaky_relu(x, slope))


def _prelu(args: Arguments, kwargs: Keywords) -> Rectifier:
    x, weight = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "weight")
    slope = weight.detach() if weight.numel() == 1 or x.ndim < 2 else weight.detach().view(-1, *[1] * (x.ndim - 2))
    return Rectifier(x, slope, lambda x: torch.prelu(x, weight))


def _rrelu(args: Arguments, kwargs: Keywords) -> Rectifier | None:
    if _argument(args, kwargs, 3, "training", False):
        return None
    lower, upper = _argument(args, kwargs, 1, "lower", 1 / 8), _argument(args, kwargs, 2, "upper", 1 / 3)
    return _leaky((_argument(args, kwargs, 0, "input"), (lower + upper) / 2), {})


def _hardtanh(args: Arguments, kwargs: Keywords) -> Rectifier | None:
    low, high = _argument(args, kwargs, 1, "min_val", -1.0), _argument(args, kwargs, 2, "max_val", 1.0)
    if low != 0:
        return None
    return Rectifier(_argument(args, kwargs, 0, "input"), 0.0, lambda x: F.hardtanh(x, low, high))


def _threshold(args: Arguments, kwargs: Keywords) -> Rectifier:
    limit, value = _argument(args, kwargs, 1, "threshold"), _argument(args, kwargs, 2, "value")
    return Rectifier(_argument(args, kwargs, 0, "input"), 0.0, lambda x: F.threshold(x, limit, value))


def _clamp(args: Arguments, kwargs: Keywords) -> Rectifier | None:
    low, high = _argument(args, kwargs, 1, "min"), _argument(args, kwargs, 2, "max")
    if isinstance(low, Tensor) or low is None or low != 0 or isinstance(high, Tensor):
        return None
    return Rectifier(_argument(args, kwargs, 0, "input"), 0.0, lambda x: torch.clamp(x, low, high))


def _maximum(args: Arguments, kwargs: Keywords) -> Rectifier | None:
    x, other = _argument(args, kwargs, 0, "input"), _argument(args, kwargs, 1, "other")
    if not isinstance(other, Tensor) or other.requires_grad or bool(other.any()):
        return None
    return Rectifier(x, 0.0, lambda x: torch.maximum(x, other))


def _rectifier(read: Callable[[Arguments, Keywords], Rectifier | None], in_place: bool) -> Function:
    def run(signals: Signals, function: Function, args: Arguments, kwargs: Keywords) -> object:
        rectifier = read(args, kwargs)
        if rectifier is None:
            return function(*args, **kwargs)
        if signals.rules.method is None and signals.number not in signals.uncapped:
            return function(*args, **kwargs)
        written = in_place or kwargs.get("inplace") or (args[1:] and args[-1] is True)
        return signals._rectify(rectifier, rectifier.x if written else None)

    return run


# What else has a rule


def _max_pool(signals: Signals, function: Function, args: Arguments, kwargs: Keywords) -> object:
    """Ours where the ops serve it; else torch's, whose indices follow the same rule."""
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    given = dict(zip(names, args, strict=False)) | kwargs
    kernel, stride, padding, dilation = (
        value if isinstance(value, (tuple, list)) else (value, value)
        for value in (given["kernel_size"], given.get("stride"), given.get("padding", 0), given.get("dilation", 1))
    )
    x = given["input"]
    plain = x.ndim == 4 and tuple(dilation) == (1, 1) and not given.get("return_indices") and len(kernel) == 2
    if not plain or math.prod(kernel) > LARGEST_WINDOW or 0 in x.shape:
        return function(*args, **kwargs)
    window = tuple(kernel), tuple(kernel if stride[0] is None else stride), tuple(padding)
    size = pool_map(x.shape[2:], *window, bool(given.get("ceil_mode")))
    if min(size) < 1:
        return function(*args, **kwargs)
    return max_pool2d(x, *window, size, signals.rules.backend)[0]


def _response_norm(signals: Signals, function: Function, args: Arguments, kwargs: Keywords) -> Tensor:
    names = ("input", "size", "alpha", "beta", "k")
    given = {"alpha": 1e-4, "beta": 0.75, "k": 1.0} | dict(zip(names, args, strict=False)) | kwargs
    parameters = given["size"], given["alpha"], given["beta"], given["k"], False
    return signals.norm(given["input"], lambda x: function(x, *(given[name] for name in names[1:])), parameters)


def _batch_norm(signals: Signals, function: Function, args: Arguments, kwargs: Keywords) -> object:
    if _argument(args, kwargs, 5, "training", False) and _argument(args, kwargs, 1, "running_mean") is not None:
        raise RuntimeError(
            "model has a batch norm in training mode, in which it uses the mean and variance of each batch; call "
            "model.eval() first"
        )
    return function(*args, **kwargs)


def _dropout(signals: Signals, function: Function, args: Arguments, kwargs: Keywords) -> object:
    return _argument(args, kwargs, 0, "input")


CALLS: dict[Function | str, Function] = {
    key: handler
    for handler, keys in {
        _rectifier(_relu, False): (F.relu, torch.relu, "relu"),
        _rectifier(_relu, True): (F.relu_, torch.relu_, "relu_"),
        _rectifier(_relu6, False): (F.relu6,),
        _rectifier(_leaky, False): (F.leaky_relu, torch._C._nn.leaky_relu),
        _rectifier(_leaky, True): (F.leaky_relu_,),
        _rectifier(_prelu, False): (F.prelu, torch.prelu, "prelu"),
        _rectifier(_rrelu, False): (F.rrelu,),
        _rectifier(_hardtanh, False): (F.hardtanh,),
        _rectifier(_hardtanh, True): (F.hardtanh_,),
        _rectifier(_threshold, False): (F.threshold, torch.threshold),
        _rectifier(_threshold, True): (F.threshold_, torch.threshold_),  # type: ignore[attr-defined]  # torch's types lack one
        _rectifier(_clamp, False): (torch.clamp, torch.clip, torch.clamp_min, "clamp", "clip", "clamp_min"),
        _rectifier(_clamp, True): (torch.clamp_, torch.clip_, torch.clamp_min_, "clamp_", "clip_", "clamp_min_"),
        _rectifier(_maximum, False): (torch.maximum, torch.max, torch.fmax, "maximum", "max", "fmax"),
        _max_pool: (F.max_pool2d, torch.max_pool2d),
        _response_norm: (F.local_response_norm,),
        _batch_norm: (F.batch_norm, torch.batch_norm),
        _dropout: (*DROPOUTS, F.dropout3d, torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout),
    }.items()
    for key in keys
}

# The ops that exported models call: what they are called with is what these are
ATEN: dict[str, Function | str] = {
    **{f"aten::{name}": name for name in ("relu", "relu_", "prelu", "clamp", "clamp_", "clamp_min", "clamp_min_")},
    **{f"aten::{name}": name for name in ("maximum", "fmax")},
    **{f"aten::{f.__name__}": f for f in (F.leaky_relu, F.leaky_relu_, F.hardtanh, F.hardtanh_, F.max_pool2d)},
    "aten::relu6": F.relu6,
    "aten::threshold": torch.threshold,
    "aten::threshold_": torch.threshold_,
}


# The calls of torch.ops.zfkernels


def _conv_op(
    signals: Signals,
    op: Function,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sides,
    padding: Sides,
    relu: bool,
    *others: Any,
) -> Tensor:
    y = op(x, weight, bias, stride, padding, False, *others)
    return signals._rectify(Rectifier(y, 0.0, torch.relu), None) if relu else y


def _conv_add_op(
    signals: Signals,
    op: Function,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    add: Tensor | None,
    stride: Sides,
    padding: Sides,
    relu: bool,
    cap: float | None,
    *others: Any,
) -> Tensor:
    y = op(x, weight, bias, add, stride, padding, False, None, *others)
    value = torch.relu if cap is None else lambda y: F.hardtanh(y, 0.0, cap)
    return signals._rectify(Rectifier(y, 0.0, value), None) if relu else y


def _layer_op(
    signals: Signals,
    op: Function,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sides,
    padding: Sides,
    *pool: Any,
) -> tuple[Tensor, Tensor]:
    conv = torch.ops.zfkernels.conv2d.default
    y = _conv_op(signals, conv, x, weight, bias, stride, padding, True, (1, 1), 1, pool[-1])
    return max_pool2d(y, *map(tuple, pool[:-1]), pool[-1])


def _norm_op(signals: Signals, op: Function, x: Tensor, *parameters: Any) -> Tensor:
    return signals.norm(x, lambda x: op(x, *parameters), parameters[:-1])


def _pooled_norm_op(signals: Signals, op: Function, x: Tensor, *parameters: Any) -> tuple[Tensor, Tensor, Tensor]:
    *pool, size, alpha, beta, k, center, backend = parameters
    y, switches = max_pool2d(x, *map(tuple, pool), backend)
    norm = size, alpha, beta, k, center
    return y, switches, _norm_op(signals, torch.ops.zfkernels.contrast_norm.default, y, *norm, backend)


OPS: dict[str, Function] = {
    "zfkernels::conv2d": _conv_op,
    "zfkernels::conv2d_add": _conv_add_op,
    "zfkernels::conv2d_relu_max_pool2d": _layer_op,
    "zfkernels::contrast_norm": _norm_op,
    "zfkernels::max_pool2d_contrast_norm": _pooled_norm_op,
}

# Functions that are no rectifiers and not linear, by what calls are named: what the projection's notes tell of
NONLINEAR = words(
    "silu gelu elu elu_ selu celu mish softplus softsign sigmoid sigmoid_ logsigmoid tanh hardswish hardsigmoid "
    "softmax log_softmax exp log pow sqrt rsqrt square abs mul imul truediv itruediv maximum minimum layer_norm "
    "group_norm instance_norm multi_head_attention_forward scaled_dot_product_attention matmul __matmul__ bmm einsum "
    "normalize hardtanh clamp clip adaptive_max_pool2d amax max glu"
)


def is_nonlinear(call: str, kind: str, overrides: Mapping[object, str]) -> bool:
    """Whether a call of this name, in a module of this class, keeps its true derivative though it is not linear."""
    return call in NONLINEAR and not {call, kind}.intersection(map(name_of, overrides))
