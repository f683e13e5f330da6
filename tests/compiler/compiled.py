"""Small networks as other people write them, and how a compiled one is compared with float64."""

import copy

import torch
import torch.nn.functional as F
from conftest import error
from torch import nn

from zfkernels.compiler import backend
from zfkernels.compiler.program import Program
from zfkernels.testing.weights import randomised

SIDE = 20


class Through(nn.Module):
    """A module of the layers given by name, whose forward is a function of it and its inputs."""

    def __init__(self, forward, **layers):
        super().__init__()
        self.way = forward
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, *inputs):
        return self.way(self, *inputs)


def conv(channels, maps, kernel=3, stride=1, **options):
    return nn.Conv2d(channels, maps, kernel, stride, kernel // 2, **options)


def block(channels, maps, stride=1):
    """A residual block as torchvision's, which writes in place."""

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += self.down(x)
        return self.relu(out)

    down = nn.Identity() if stride == 1 and channels == maps else nn.Sequential(conv(channels, maps, 1, stride))
    return Through(
        forward,
        conv1=conv(channels, maps, stride=stride, bias=False),
        conv2=conv(maps, maps, bias=False),
        bn1=nn.BatchNorm2d(maps),
        bn2=nn.BatchNorm2d(maps),
        relu=nn.ReLU(inplace=True),
        down=down,
    )


def residual():
    stem = nn.Sequential(
        nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(True), nn.MaxPool2d(3, 2, 1)
    )
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5))
    return nn.Sequential(stem, block(16, 16), block(16, 24, 2), head)


def mobile():
    def layer(channels, maps, kernel, stride, groups, act):
        return nn.Sequential(conv(channels, maps, kernel, stride, groups=groups, bias=False), nn.BatchNorm2d(maps), act)

    def forward(self, x):
        x = self.first(x)
        x = x + self.narrow(self.deep(self.wide(x)))
        return self.second(x).mean([2, 3])

    return Through(
        forward,
        first=layer(3, 16, 3, 2, 1, nn.ReLU6(True)),
        wide=layer(16, 32, 1, 1, 1, nn.ReLU6(True)),
        deep=layer(32, 32, 5, 1, 32, nn.Hardtanh(0, 4)),
        narrow=layer(32, 16, 1, 1, 1, nn.Identity()),
        second=layer(16, 48, 3, 2, 16, nn.SiLU(True)),
    )


def dense():
    def forward(self, x):
        features = [self.first(x)]
        for norm, layer in ((self.norm1, self.conv1), (self.norm2, self.conv2)):
            features.append(layer(F.relu(norm(torch.cat(features, 1)), inplace=True)))
        return self.head(torch.cat(features, 1).view(len(x), -1))

    return Through(
        forward,
        first=conv(3, 16),
        norm1=nn.BatchNorm2d(16),
        conv1=conv(16, 8),
        norm2=nn.BatchNorm2d(24, affine=False),
        conv2=conv(24, 8),
        head=nn.Linear(32 * SIDE * SIDE, 4),
    )


def joined():
    """Concatenations whose parts are convolutions, and of what is none of theirs: a map that two of them have, one that
    has another reader, a sum, a pooled map, images, a concatenation; and one that is given back."""

    def forward(self, x):
        a, b = F.relu(self.first(x)), self.second(x)
        one = torch.cat([a, b, x], 1)
        two = torch.concat((one, F.relu(self.third(one)), self.fourth(one) + b), dim=1)
        three = torch.cat([F.max_pool2d(F.relu(self.first(x)), 2), self.fifth(two), F.avg_pool2d(b, 2)], -3)
        four = torch.cat([self.last(three), self.last(three)], 1)
        return two, four.amax((2, 3)), torch.cat([a, a], 1)

    layers = {"first": conv(3, 16), "second": conv(3, 8, 1), "third": conv(27, 24, 5), "fourth": conv(27, 8)}
    layers |= {"fifth": conv(59, 16, stride=2), "last": conv(40, 16)}
    return Through(forward, **layers)


def excited():
    def forward(self, x):
        x = F.relu(self.first(x))
        return (x * torch.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))).clamp(0, 1.5).flatten(1)

    return Through(forward, first=conv(3, 16), gate=conv(16, 16, 1))


def shared():
    """One convolution twice, a map with two readers, one of them in place, and a sum of a map with itself."""

    def forward(self, x):
        x = self.first(x)
        y = self.twice(x) + self.twice(F.relu(x))
        x = F.relu_(x)
        y = y + y
        return (x + y).relu().chunk(2, 1)

    return Through(forward, first=conv(3, 16), twice=conv(16, 16))


def spaced():
    layers = [conv(3, 24, groups=3), nn.ReLU(), nn.Conv2d(24, 16, 3, padding=2, dilation=2), nn.BatchNorm2d(16)]
    layers += [nn.Conv2d(16, 16, 3, padding="same"), nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), nn.ReLU()]
    return nn.Sequential(*layers, nn.MaxPool2d(2, ceil_mode=True), nn.Conv2d(16, 8, (1, 3), padding="valid"))


def ghost():
    """A sum written into a part of a concatenation, of which nothing else is read."""

    def forward(self, x):
        x = self.first(x)
        out = torch.cat([x, self.cheap(x)], 1)[:, :24]
        out += self.second(x)
        return F.relu(out)

    return Through(forward, first=conv(3, 16), cheap=conv(16, 16, groups=16), second=conv(16, 24))


def padded():
    """Zeros that are padded before a convolution, alike on both sides and not; others, and a padded map read twice."""

    def forward(self, x):
        x = F.relu(self.first(F.pad(x, (1, 1, 2, 2))))
        x = self.second(F.pad(x, (0, 1, 0, 1)))
        x = self.deep(F.pad(x, (2, 0, 1, 0))) + self.wide(F.pad(x, (0, 1, 1, 0)))
        x = self.third(F.pad(x, [2, 2, 1, 1], value=0.5))
        y = F.pad(x, (1, 1, 1, 1))
        return self.third(y), y.mean((2, 3)), self.third(F.pad(x, (1, 1), mode="constant"))

    first, second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, 2)
    deep = nn.Conv2d(16, 16, (2, 3), groups=16)
    return Through(
        forward, first=first, second=second, deep=deep, wide=nn.Conv2d(16, 16, 2), third=nn.Conv2d(16, 16, 3)
    )


def viewed():
    """Parts of maps that are read, and given back, when the maps themselves are not any more."""

    def forward(self, x):
        x = F.relu(self.first(x))
        part, other = x[:, 4:12], x.chunk(2, 1)[0]
        for _ in range(3):
            x = F.relu(self.second(x))
        return x[:, :8] + part, other

    return Through(forward, first=conv(3, 16), second=conv(16, 16))


def averaged():
    """Averages: 9 of them by our kernel, on maps of 16 channels; others than those, and on 8, by torch."""

    def forward(self, x):
        x = F.relu(self.first(x))
        outs = [self.pool(x), F.avg_pool2d(x, 3, 2, 1, True, False), F.avg_pool2d(x, kernel_size=(2, 3), stride=[1, 2])]
        outs += [self.adaptive(x), F.adaptive_avg_pool2d(x, (5, 1)), x.mean((2, 3)), x.mean([-1, -2], keepdim=True)]
        outs += [torch.mean(x, dim=(3, 2)), torch.mean(x, [2, 3], True)]
        others = [F.adaptive_avg_pool2d(x, 7), F.adaptive_avg_pool2d(x, (None, 3)), x.mean(1), x.mean(), x.mean((1, 2))]
        others += [F.avg_pool2d(x, 2, divisor_override=3), x.mean((2, 3), dtype=torch.float64).to(x.dtype)]
        few = self.few(x)
        return outs, others, few.mean((2, 3)), F.avg_pool2d(few, 2)

    pools = {"pool": nn.AvgPool2d(3, 1, 1), "adaptive": nn.AdaptiveAvgPool2d(1)}
    return Through(forward, first=conv(3, 16), few=conv(16, 8), **pools)


def named():
    """Two inputs, and outputs by name, one of them a map."""

    def forward(self, x, y):
        maps = F.relu(self.first(torch.cat([x, y], 1)))
        return {"maps": maps, "each": (self.second(maps).amax((2, 3)), y)}

    return Through(forward, first=conv(6, 16), second=conv(16, 8))


def broken():
    """What dynamo cannot put into one graph."""

    def forward(self, x):
        x = F.relu(self.first(x))
        torch._dynamo.graph_break()
        return self.second(x * 2).relu_()

    return Through(forward, first=conv(3, 16), second=conv(16, 16))


NETWORKS = {f.__name__: f for f in (residual, mobile, dense, excited, shared, spaced, ghost, padded, viewed, joined)}
NETWORKS["averaged"] = averaged
NETWORKS |= {f.__name__: f for f in (named, broken)}


def images(n=2, side=SIDE, dtype=torch.float32):
    return torch.randn(n, 3, side, side, dtype=dtype)


def inputs_of(name, n=2, dtype=torch.float32):
    return tuple(images(n, dtype=dtype) for _ in range(2 if name == "named" else 1))


def made(name, dtype=torch.float32):
    inputs = inputs_of(name, dtype=dtype)
    return randomised(NETWORKS[name](), inputs[0], forward=lambda model, _: model(*inputs))


def flat(value):
    return torch.utils._pytree.tree_leaves(value)


class Watched:
    """The backend, which counts its programs: what was compiled and did not fall to torch."""

    def __init__(self):
        self.programs, self.graphs = [], 0

    def __call__(self, gm, inputs, **options):
        made = backend(gm, inputs, **options)
        self.graphs += 1
        self.programs += [made] if isinstance(made, Program) else []
        return made


def compiled(model, **options):
    torch._dynamo.reset()
    watched = Watched()
    return torch.compile(model, backend=watched, **options), watched


def formats(value):
    """The memory formats that a tensor is dense in."""
    formats = (torch.contiguous_format, *[torch.channels_last] * (value.ndim == 4))
    return {form for form in formats if value.is_contiguous(memory_format=form)}


def check(model, call, *inputs, bound=1e-5):
    """Values within the bound of the model's in float64, in the memory format that the model gives."""
    wide = copy.deepcopy(model).double()
    with torch.no_grad():
        outs, likes = flat(call(*inputs)), flat(model(*inputs))
        expected = flat(wide(*(x.double() for x in inputs)))
    assert len(outs) == len(expected)
    for out, like, right in zip(outs, likes, expected, strict=True):
        assert out.dtype == like.dtype
        assert out.shape == right.shape
        assert formats(out) >= formats(like)
        assert error(out, right) <= bound
    return outs
