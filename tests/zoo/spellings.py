"""What real networks are spelled with, each in a small network of plain torch.

`BLOCKS` maps a name to a block of `Around`: a convolution and a ReLU below it, a plain convolution above. The layers
compared are the block, a module whose name means what it gives, and the convolution above it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

C = 8  # channels that a block gets


class Spelled(nn.Module):
    """`function(self, x)`, which may use the parts: modules, parameters, anything."""

    def __init__(self, function: Callable, **parts: object) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


class Around(nn.Module):
    def __init__(self, block: nn.Module, channels: int = C) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, C, 3, stride=2, padding=1), nn.ReLU())
        self.block = block
        self.top = nn.Conv2d(channels, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.top(self.block(self.stem(x))).mean((2, 3))


def conv(before: int = C, after: int = C, kernel: int = 3, **settings: object) -> nn.Conv2d:
    return nn.Conv2d(before, after, kernel, padding=kernel // 2, **settings)


class WeightStandardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.weight.mean((1, 2, 3), keepdim=True), self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (self.weight - mean) / (spread + 1e-5), self.bias, self.stride, self.padding)


class LayerNorm2d(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Swish(torch.autograd.Function):
    """As efficient implementations write it: a backward of its own."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return g * s * (1 + x * (1 - s))


def shuffled(x: Tensor, groups: int) -> Tensor:
    n, c, height, width = x.shape
    return x.view(n, groups, c // groups, height, width).transpose(1, 2).reshape(n, c, height, width)


def attention(m: Spelled, x: Tensor) -> Tensor:
    """One head over the places of the map."""
    n, c, height, width = x.shape
    q, k, v = m.qkv(x).flatten(2).chunk(3, 1)
    weights = (q.transpose(1, 2) @ k / c**0.5).softmax(-1)
    return x + m.out((v @ weights.transpose(1, 2)).reshape(n, c, height, width))


def tokens(m: Spelled, x: Tensor) -> Tensor:
    n, c, height, width = x.shape
    x = x.flatten(2).transpose(1, 2)
    y, _ = m.attention(m.norm(x), m.norm(x), m.norm(x), need_weights=False)
    return (x + y).transpose(1, 2).reshape(n, c, height, width)


def dropped(m: Spelled, x: Tensor) -> Tensor:
    y = m.conv(x)
    y.relu_()  # the result is not used, the value is
    return y + 0.1


def by_value(m: Spelled, x: Tensor) -> Tensor:
    return m.one(x) if x.mean() > 1e9 else m.two(x).relu()


def several(m: Spelled, x: Tensor) -> Tensor:
    pair, kept = m.pair(x)["maps"], []
    for part in pair:
        kept.append(part.relu())
    return torch.stack(kept).sum(0)


def listed(m: Spelled, x: Tensor) -> Tensor:
    for i, part in enumerate(m.parts):
        x = part(x) if i % 3 else part(x) + x
    return x


def joined(m: Spelled, x: Tensor) -> Tensor:
    for part in m.parts[:-1]:
        x = torch.cat((x, part(x).relu()), dim=1)
    return m.parts[-1](x)


def written(m: Spelled, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 4:] = m.two(x[:, :4]).relu()
    y[:, :4] += x[:, 4:]
    return m.one(y)


def squeezed(m: Spelled, x: Tensor) -> Tensor:
    gate = x.mean((2, 3), keepdim=True)
    return x * m.up(F.relu(m.down(gate))).sigmoid()


def hooked() -> nn.Module:
    layer = conv()
    layer.register_forward_hook(lambda module, inputs, output: output * output.new_tensor(0.5) + inputs[0])
    return layer


def pruned() -> nn.Module:
    layer = conv()
    prune.random_unstructured(layer, "weight", 0.5)
    return layer


def norm(channels: int = C) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def batch_norm(m: Spelled, x: Tensor) -> Tensor:
    n = m.norm
    return F.relu(F.batch_norm(m.conv(x), n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, n.eps))


def frozen(m: Spelled, x: Tensor) -> Tensor:
    scale = m.norm.weight * (m.norm.running_var + 1e-5).rsqrt()
    shift = m.norm.bias - m.norm.running_mean * scale
    return (m.conv(x) * scale[:, None, None] + shift.view(1, -1, 1, 1)).relu()


def rectified(function: Callable) -> Callable[[], nn.Module]:
    """A spelling of a rectifier between two convolutions."""
    return lambda: Spelled(lambda m, x: m.two(function(m.one(x))), one=conv(), two=conv())


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    # rectifiers
    "F.relu in place": rectified(lambda x: F.relu(x, inplace=True)),
    "F.relu(x, True)": rectified(lambda x: F.relu(x, True)),
    "a ReLU made in the forward": rectified(lambda x: nn.ReLU()(x)),
    "relu_ whose result is dropped": lambda: Spelled(dropped, conv=conv()),
    "clamp(min=0)": rectified(lambda x: x.clamp(min=0)),
    "clamp_min": rectified(lambda x: x.clamp_min(0)),
    "clamp(0, 6)": rectified(lambda x: torch.clamp(x, 0, 6)),
    "clip, by keywords": rectified(lambda x: torch.clip(input=x, min=0, max=None)),
    "clamp_ in place": rectified(lambda x: x.clamp_(min=0.0)),
    "torch.maximum(x, 0)": rectified(lambda x: torch.maximum(x, x.new_zeros(()))),
    "a threshold above 0": rectified(lambda x: F.threshold(x, 0.5, 0.0)),
    "F.threshold": rectified(lambda x: F.threshold(x, 0, 0)),
    "nn.Threshold": lambda: nn.Sequential(conv(), nn.Threshold(0.0, 0.0), conv()),
    "an op of aten": rectified(torch.ops.aten.relu.default),
    "F.relu6": rectified(F.relu6),
    "hardtanh(0, 6)": rectified(lambda x: F.hardtanh(x, 0, 6)),
    "hardtanh, by keywords and in place": rectified(lambda x: F.hardtanh(x, min_val=0.0, max_val=2.0, inplace=True)),
    "nn.Hardtanh(0, 1)": lambda: nn.Sequential(conv(), nn.Hardtanh(0.0, 1.0), conv()),
    "F.leaky_relu": rectified(lambda x: F.leaky_relu(x, 0.2)),
    "F.leaky_relu(x, 0.2, True)": rectified(lambda x: F.leaky_relu(x, 0.2, True)),
    "CReLU": lambda: Spelled(lambda m, x: m.one(torch.cat([x, -x], 1).relu()), one=conv(2 * C, C)),
    "nn.LeakyReLU in place": lambda: nn.Sequential(conv(), nn.LeakyReLU(0.1, inplace=True), conv()),
    "PReLU": lambda: nn.Sequential(conv(), nn.PReLU(), conv()),
    "PReLU, a slope a map": lambda: nn.Sequential(conv(), norm(), nn.PReLU(C), conv()),
    "F.prelu": lambda: Spelled(lambda m, x: m.two(F.prelu(m.one(x), m.p.weight)), one=conv(), two=conv(), p=nn.PReLU()),
    "RReLU in evaluation": lambda: nn.Sequential(conv(), nn.RReLU(0.1, 0.3), conv()),
    # what is no rectifier
    "SiLU": rectified(F.silu),
    "GELU": rectified(F.gelu),
    "GELU by tanh": lambda: nn.Sequential(conv(), nn.GELU("tanh"), conv()),
    "ELU": rectified(F.elu),
    "SELU": rectified(F.selu),
    "Mish": rectified(F.mish),
    "Hardswish": rectified(F.hardswish),
    "Hardsigmoid": rectified(F.hardsigmoid),
    "hardtanh(-1, 1)": rectified(F.hardtanh),
    "tanh": rectified(torch.tanh),
    "softplus": rectified(F.softplus),
    "x * sigmoid(x), a function of its own": rectified(Swish.apply),
    "abs": rectified(torch.abs),
    # normalisation
    "F.batch_norm": lambda: Spelled(batch_norm, conv=conv(bias=False), norm=norm()),
    "frozen batch norm by arithmetic": lambda: Spelled(frozen, conv=conv(), norm=norm()),
    "batch norm before": lambda: nn.Sequential(norm(), nn.ReLU(), conv(bias=False)),
    "GroupNorm": lambda: nn.Sequential(conv(), nn.GroupNorm(2, C), nn.ReLU(), conv()),
    "InstanceNorm": lambda: nn.Sequential(conv(), nn.InstanceNorm2d(C, affine=True), nn.ReLU(), conv()),
    "LayerNorm2d by permute": lambda: nn.Sequential(conv(), LayerNorm2d(C), nn.ReLU(), conv()),
    "weight standardisation": lambda: nn.Sequential(WeightStandardized(C, C, 3, padding=1), nn.ReLU(), conv()),
    "weight_norm, a parametrization": lambda: nn.Sequential(parametrizations.weight_norm(conv()), nn.ReLU(), conv()),
    "F.normalize": rectified(F.normalize),
    # branches, slices, joins
    "split": lambda: Spelled(lambda m, x: torch.cat([m.one(x.split(4, 1)[0]).relu(), x[:, 4:]], 1), one=conv(4, 4)),
    "chunk": lambda: Spelled(
        lambda m, x: m.one(x).chunk(2, 1)[1] + x.chunk(2, dim=1)[0].repeat(1, 2, 1, 1), one=conv(C, 16)
    ),
    "x[:, 0]": lambda: Spelled(lambda m, x: m.one(x[:, 0].unsqueeze(1)).relu() + x[:, :1], one=conv(1, C)),
    "x[:, ::2, 1:-1]": lambda: Spelled(lambda m, x: m.one(x[:, ::2, 1:-1, :]).relu(), one=conv(4, C)),
    "channel shuffle": lambda: Spelled(lambda m, x: m.one(shuffled(x, 2)).relu(), one=conv(groups=2)),
    "SE gate": lambda: Spelled(squeezed, down=conv(C, 2, 1), up=conv(2, C, 1)),
    "spatial gate": lambda: Spelled(lambda m, x: x * m.one(x.amax(1, keepdim=True)).sigmoid(), one=conv(1, 1, 7)),
    "product of branches": lambda: Spelled(lambda m, x: m.one(x).relu() * m.two(x), one=conv(), two=conv()),
    "maxout": lambda: Spelled(lambda m, x: torch.maximum(m.one(x), m.two(x)), one=conv(), two=conv()),
    "attention": lambda: Spelled(attention, qkv=conv(C, 3 * C, 1), out=conv(C, C, 1)),
    "MultiheadAttention": lambda: Spelled(
        tokens, norm=nn.LayerNorm(C), attention=nn.MultiheadAttention(C, 2, batch_first=True)
    ),
    "dict, tuple and loop inside": lambda: Spelled(
        several, pair=Spelled(lambda m, x: {"maps": (m.one(x), m.two(x))}, one=conv(), two=conv())
    ),
    "control flow on values": lambda: Spelled(by_value, one=conv(), two=conv()),
    "control flow on sizes": lambda: Spelled(lambda m, x: m.one(x).relu() if x.shape[2] > 3 else x, one=conv()),
    "a module twice": lambda: Spelled(lambda m, x: m.one(m.one(x).relu()), one=conv()),
    "sum in place": lambda: Spelled(lambda m, x: m.one(x).add_(x).relu_(), one=conv()),
    "a list of modules": lambda: Spelled(listed, parts=nn.ModuleList([conv(), conv(), nn.ReLU(), conv()])),
    "a chain of joins": lambda: Spelled(joined, parts=nn.ModuleList([conv(C, 4), conv(12, 4), conv(16, C)])),
    "a slice written into": lambda: Spelled(written, one=conv(), two=conv(4, 4)),
    "torch.where": rectified(lambda x: torch.where(x > 0.5, x, 0.2 * x)),
    "einsum": lambda: Spelled(lambda m, x: torch.einsum("nchw,cd->ndhw", x, m.one.weight).relu(), one=nn.Linear(C, C)),
    # windows
    "ZeroPad2d": lambda: nn.Sequential(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(C, C, 3, stride=2), nn.ReLU()),
    "ConstantPad2d": lambda: nn.Sequential(nn.ConstantPad2d((0, 2, 1, 3), 0.5), nn.Conv2d(C, C, 3), nn.ReLU()),
    "depthwise, zeros on one side": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 2, 1)), nn.Conv2d(C, C, 3, 2, groups=C), nn.ReLU6(), nn.Conv2d(C, C, 5, padding=2, groups=C)
    ),
    "grouped and dilated, zeros on one side": lambda: nn.Sequential(
        nn.ZeroPad2d((2, 0, 0, 4)), nn.Conv2d(C, C, 3, dilation=2, groups=2), nn.ReLU()
    ),
    "dilated, zeros not a dilation apart": lambda: nn.Sequential(
        nn.ZeroPad2d((3, 2, 2, 2)), nn.Conv2d(C, C, 3, dilation=2, groups=4), nn.ReLU()
    ),
    "zeros around zeros": lambda: nn.Sequential(
        nn.ZeroPad2d((0, 1, 2, 0)), nn.Conv2d(C, C, 3, padding=(1, 0)), nn.ReLU()
    ),
    "padded maps with two readers": lambda: Spelled(
        lambda m, x: (y := F.pad(x, (1, 0, 1, 0)), m.one(y) + m.two(y))[1].relu(), one=conv(), two=conv()
    ),
    "F.pad": rectified(lambda x: F.pad(x, (2, 0, 1, 0))),
    "reflected padding": lambda: nn.Sequential(conv(padding_mode="reflect"), nn.ReLU()),
    "circular padding": lambda: nn.Sequential(conv(padding_mode="circular"), nn.ReLU()),
    "replicated padding": lambda: nn.Sequential(nn.ReplicationPad2d(2), nn.Conv2d(C, C, 5), nn.ReLU()),
    "max-pooling, dilated": lambda: nn.Sequential(conv(), nn.MaxPool2d(3, 2, 1, dilation=2), nn.ReLU()),
    "max-pooling of padded maps": lambda: nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.MaxPool2d(3, 2), conv()),
    "adaptive max-pooling": lambda: nn.Sequential(conv(), nn.AdaptiveMaxPool2d(3)),
    "amax": lambda: Spelled(lambda m, x: m.one(x) + x.amax((2, 3), keepdim=True), one=conv()),
    "LPPool": lambda: nn.Sequential(conv(), nn.LPPool2d(2, 2), nn.ReLU()),
    "avg_pool2d(x, x.size(3))": lambda: Spelled(lambda m, x: m.one(F.avg_pool2d(x, x.size(3))) + x, one=conv(C, C, 1)),
    "interpolate, nearest": lambda: Spelled(lambda m, x: F.interpolate(m.one(x).relu(), scale_factor=2), one=conv()),
    "interpolate, bilinear": lambda: Spelled(
        lambda m, x: x + F.interpolate(m.one(x).relu(), x.shape[2:], mode="bilinear"), one=conv(stride=2)
    ),
    "nn.Upsample": lambda: nn.Sequential(conv(), nn.Upsample(scale_factor=2, mode="bicubic"), nn.ReLU()),
    "ConvTranspose2d": lambda: nn.Sequential(nn.ConvTranspose2d(C, C, 4, 2, 1), nn.ReLU()),
    "pixel shuffle": lambda: nn.Sequential(conv(C, 4 * C), nn.PixelShuffle(2), nn.ReLU()),
    "pixel unshuffle": lambda: nn.Sequential(nn.PixelUnshuffle(2), conv(4 * C, C), nn.ReLU()),
    "unfold and fold": rectified(lambda x: F.fold(F.unfold(x, 3, padding=1).relu(), x.shape[2:], 3, padding=1)),
    "roll": rectified(lambda x: x.roll((1, 2), (2, 3)).relu()),
    # what stands in a model that its code does not say
    "a hook": lambda: nn.Sequential(hooked(), nn.ReLU(), conv()),
    "pruning": lambda: nn.Sequential(pruned(), nn.ReLU(), conv()),
}


# Heads, outputs and inputs


class Headed(nn.Module):
    """`around(self, features)` after two convolutions; the head's last module is called "last"."""

    def __init__(self, around: Callable, last: nn.Module | None = None) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, C, 3, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(C, C, 3), nn.ReLU())
        self.fc, self.last, self.around = nn.Linear(C, 5), last or nn.Identity(), around

    def forward(self, x: Tensor) -> object:
        return self.around(self, self.features(x))


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, C, 3, padding=1), nn.Conv2d(1, C, 3, padding=1)
        self.top = nn.Sequential(nn.ReLU(), nn.Conv2d(C, 6, 3))

    def forward(self, depth: Tensor, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.top(self.first(x) * self.second(depth).sigmoid())}


class Case(NamedTuple):
    make: Callable[[], nn.Module]
    layers: tuple[str, ...]
    forward: Callable | None = None


def with_depth(model: nn.Module, images: Tensor) -> object:
    return model(images[:, :1].detach() ** 2, images)["out"]


HEADS: dict[str, Case] = {
    "softmax head": Case(
        lambda: Headed(lambda m, x: m.last(m.fc(x.mean((2, 3)))), nn.Softmax(1)), ("features", "fc", "last")
    ),
    "log_softmax of x[..., 0, 0]": Case(
        lambda: Headed(lambda m, x: m.last(m.fc(F.avg_pool2d(x, x.size(3))[..., 0, 0])), nn.LogSoftmax(dim=-1)),
        ("features", "fc", "last"),
    ),
    "sigmoid head": Case(
        lambda: Headed(lambda m, x: m.last(m.fc(F.adaptive_max_pool2d(x, 1).squeeze())), nn.Sigmoid()),
        ("features", "fc", "last"),
    ),
    "dict output": Case(lambda: Headed(lambda m, x: {"out": m.fc(x.mean([-2, -1])), "x": x}), ("features", "fc")),
    "tuple output": Case(lambda: Headed(lambda m, x: (m.fc(x.flatten(2).mean(-1)), [x])), ("features", "fc")),
    "two inputs": Case(TwoInputs, ("top",), with_depth),
}
CASES: dict[str, Case] = {
    **{name: Case(lambda make=make: Around(make()), ("block", "top")) for name, make in BLOCKS.items()},
    **HEADS,
}
