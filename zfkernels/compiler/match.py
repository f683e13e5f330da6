"""What one kernel computes: a convolution with the batch norm, residual sum, rectifier and pooling after it."""

import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from .graph import argument, function

Pair = tuple[int, int]

CONVS = (torch.conv2d, F.conv2d)
ADDS = (operator.add, torch.add)
RELUS = (F.relu, torch.relu)
POOLS = (F.max_pool2d, torch.max_pool2d)
PADS = (F.pad, torch._C._nn.pad)
LINEARS = (torch._C._nn.linear, F.linear)
SOURCES = ("placeholder", "get_attr")


@dataclass(frozen=True)
class Norm:
    """A batch norm in evaluation mode: the nodes of its statistics and, if it has them, weight and bias."""

    mean: fx.Node
    var: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    eps: float


@dataclass(frozen=True)
class Conv:
    """pool(min(cap, relu(norm(conv(x)) + add))), as far as there is each. A depthwise 1x1 convolution with the weight 1
    is a batch norm alone (weight None)."""

    node: fx.Node  # the last of those that it replaces, whose value it makes
    first: fx.Node
    x: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    after: Pair = (0, 0)  # rows and columns of zeros more (fewer, if negative) below and right than above and left
    norm: Norm | None = None
    add: fx.Node | None = None
    relu: bool = False
    cap: float = math.inf
    pool: tuple[Pair, Pair, Pair, bool] | None = None  # kernel, stride, padding, ceil_mode

    @property
    def sources(self) -> tuple[fx.Node, ...]:
        """The tensors that its filters are prepared from."""
        norm = () if self.norm is None else (self.norm.mean, self.norm.var, self.norm.weight, self.norm.bias)
        return tuple(node for node in (self.weight, self.bias, *norm) if node is not None)


def steps_of(graph: fx.Graph) -> list[Conv | fx.Node]:
    """The graph's work in order: nodes for torch, and what replaces several of them at the place of the last."""
    replaced: dict[fx.Node, Conv | None] = {}
    for node in graph.nodes:
        if node in replaced:
            continue
        found = conv_of(node) or norm_alone(node)
        if found is None:
            continue
        chain = [node]
        if (whole := without_pad(found)) is not None:
            replaced[found.x], found = None, whole
        while (grown := taken(found, chain[-1], replaced)) is not None:
            found = grown
            chain.append(found.node)
        if found.weight is None and not found.relu:
            continue
        replaced |= dict.fromkeys(chain)
        replaced[chain[-1]] = found
    steps = (replaced.get(node, node) for node in graph.nodes if node.op not in ("placeholder", "output"))
    return [step for step in steps if step is not None]


def conv_of(node: fx.Node) -> Conv | None:
    if function(node) not in CONVS:
        return None
    x, weight, bias = (argument(node, i, name) for i, name in enumerate(("input", "weight", "bias")))
    stride, dilation = (pair(argument(node, i, name, 1)) for i, name in ((3, "stride"), (5, "dilation")))
    padding, groups = argument(node, 4, "padding", 0), argument(node, 6, "groups", 1)
    if not is_source(weight) or not (bias is None or is_source(bias)) or stride is None or dilation is None:
        return None
    padding = pair(0 if padding == "valid" else padding)
    shape = weight.meta.get("example_value")
    if padding is None or not isinstance(groups, int) or shape is None or shape.ndim != 4:
        return None
    return Conv(node, node, x, weight, bias, stride, padding, dilation, groups)


def without_pad(conv: Conv) -> Conv | None:
    """The convolution with the zeros that a node before it pads its input with as its own."""
    node = conv.x
    if function(node) not in PADS or len(node.users) != 1 or conv.weight is None:
        return None
    sizes, mode, value = argument(node, 1, "pad"), argument(node, 2, "mode", "constant"), argument(node, 3, "value")
    if (
        mode != "constant"
        or isinstance(value, fx.Node)
        or value not in (None, 0)
        or not isinstance(sizes, (tuple, list))
    ):
        return None
    if len(sizes) != 4 or not all(isinstance(n, int) and n >= 0 for n in sizes):
        return None
    left, right, top, bottom = sizes
    padding = conv.padding[0] + top, conv.padding[1] + left
    after = bottom - top, right - left
    return Conv(**dict(vars(conv), x=argument(node, 0, "input"), padding=padding, after=after))


def norm_alone(node: fx.Node) -> Conv | None:
    norm, value = norm_of(node), node.meta.get("example_value")
    if norm is None or not isinstance(value, torch.Tensor) or value.ndim != 4:
        return None
    one = (1, 1)
    x = argument(node, 0, "input")
    return Conv(node, node, x, None, None, one, (0, 0), one, int(value.shape[1]), norm=norm)


def norm_of(node: fx.Node) -> Norm | None:
    if function(node) is not F.batch_norm or argument(node, 5, "training", False) is not False:
        return None
    mean, var = argument(node, 1, "running_mean"), argument(node, 2, "running_var")
    weight, bias = argument(node, 3, "weight"), argument(node, 4, "bias")
    if not (is_source(mean) and is_source(var)) or not all(n is None or is_source(n) for n in (weight, bias)):
        return None
    eps = argument(node, 7, "eps", 1e-5)
    if isinstance(eps, fx.Node):  # with dynamic=True; asking for its value makes it a condition of the graph
        eps = eps.meta.get("example_value")
    return Norm(mean, var, weight, bias, float(eps)) if isinstance(eps, (int, float, torch.SymFloat)) else None


def taken(conv: Conv, last: fx.Node, replaced: dict[fx.Node, Conv | None]) -> Conv | None:
    """The step with the one reader of its value in it too; None where that cannot be."""
    if len(last.users) != 1:
        return None
    node = next(iter(last.users))
    if node in replaced or node.op != "call_function":
        return None
    values = dict(vars(conv), node=node)
    if not conv.relu and conv.add is None and conv.norm is None and (norm := norm_of(node)) is not None:
        return Conv(**values | {"norm": norm})
    if not conv.relu and conv.add is None and conv.weight is not None and (other := added(node, last)) is not None:
        return Conv(**values | {"add": other})
    if not conv.relu and (cap := rectifies(node)) is not None:
        return Conv(**values | {"relu": True, "cap": cap})
    plain = conv.relu and conv.add is None and conv.cap == math.inf and conv.pool is None
    if plain and conv.weight is not None and conv.groups == 1 and conv.dilation == (1, 1):
        pool = pool_of(node)
        return None if pool is None else Conv(**values | {"pool": pool})
    return None


def added(node: fx.Node, one: fx.Node) -> fx.Node | None:
    """What is added to `one`, a map of the same shape; None where the node is no such sum."""
    nodes = [n for n in node.args if isinstance(n, fx.Node)]
    if node.target not in ADDS or node.kwargs or not len(node.args) == len(nodes) == 2:
        return None
    a, b = nodes
    other = b if a is one else a
    shapes: list[Any] = [n.meta.get("example_value") for n in (one, other)]
    if other is one or not all(isinstance(s, torch.Tensor) for s in shapes):
        return None
    same = shapes[0].dtype == shapes[1].dtype and list(map(str, shapes[0].shape)) == list(map(str, shapes[1].shape))
    return other if same else None


def rectifies(node: fx.Node) -> float | None:
    """The cap (infinity: none) of a rectifier; None where the node is none."""
    if node.target in RELUS:
        return math.inf
    if node.target is F.relu6:
        return 6.0
    limits: dict[object, tuple[str, str, float | None, float | None]]
    limits = {F.hardtanh: ("min_val", "max_val", -1.0, 1.0), torch.clamp: ("min", "max", None, None)}
    ends = limits.get(node.target)
    if ends is None:
        return None
    low, high = argument(node, 1, ends[0], ends[2]), argument(node, 2, ends[1], ends[3])
    if low != 0 or isinstance(low, fx.Node) or not (high is None or isinstance(high, (int, float))):
        return None
    return math.inf if high is None else float(high) if high >= 0 else None


def pool_of(node: fx.Node) -> tuple[Pair, Pair, Pair, bool] | None:
    if node.target not in POOLS or argument(node, 6, "return_indices", False) is not False:
        return None
    kernel, padding = pair(argument(node, 1, "kernel_size")), pair(argument(node, 3, "padding", 0))
    stride = argument(node, 2, "stride")
    stride = kernel if stride in (None, [], ()) else pair(stride)
    dilation, ceil_mode = pair(argument(node, 4, "dilation", 1)), argument(node, 5, "ceil_mode", False)
    if kernel is None or stride is None or padding is None:
        return None
    if dilation != (1, 1) or not isinstance(ceil_mode, bool):
        return None
    return kernel, stride, padding, ceil_mode


def is_source(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op in SOURCES


def pair(value: object) -> Pair | None:
    """A window's setting for both axes; None for what is no constant."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, (tuple, list)) and len(value) in (1, 2) and all(isinstance(v, int) for v in value):
        return value[0], value[-1]
    return None
