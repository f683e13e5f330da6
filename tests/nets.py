"""Networks in plain torch, and what a projection must be, computed in another way: autograd with other rules.

`Rules` is a mode in which plain torch calls get another backward: a ReLU's is a ReLU of the gradient (or one of the
other methods), and a response norm's one of the three that `project` offers. It sees modules, functions and methods,
in-place or not, as torch runs them, and knows nothing of graphs, chains, switches or boxes.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode


class RectifiedGradient(torch.autograd.Function):
    """max(0, x) + slope min(0, x), at most cap, whose backward is the same of the gradient, without a cap."""

    @staticmethod
    def forward(ctx, x, in_place, slope, cap, guided):
        ctx.slope, ctx.guided = slope, guided
        ctx.passed = torch.full_like(x, slope).masked_fill((x > 0) & (x < cap), 1.0).masked_fill(x >= cap, 0.0)
        y = torch.where(x > 0, x, slope * x).clamp(max=cap)
        if in_place:
            ctx.mark_dirty(x)
            return x.copy_(y)
        return y

    @staticmethod
    def backward(ctx, g):
        g = torch.where(g > 0, g, ctx.slope * g)
        return g * ctx.passed if ctx.guided else g, None, None, None, None


class ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, scale):
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.scale, None, None


class Rules(TorchFunctionMode):
    RELU = (F.relu, torch.relu, torch.Tensor.relu, F.relu_, torch.relu_, torch.Tensor.relu_)

    def __init__(self, norm, method="deconvnet"):
        super().__init__()
        self.norm, self.method = norm, method

    def rule(self, function, args, kwargs):
        """In-place, slope and cap of a call of a rectifier; None of another."""
        in_place = function.__name__.endswith("_") or kwargs.get("inplace", False)
        if function in self.RELU:
            return in_place or (len(args) > 1 and args[1]), 0.0, float("inf")
        if function in (F.leaky_relu, F.leaky_relu_, torch._C._nn.leaky_relu, torch._C._nn.leaky_relu_):
            return in_place, kwargs.get("negative_slope", args[1] if len(args) > 1 else 0.01), float("inf")
        if function in (F.relu6, F.hardtanh, F.hardtanh_):
            return in_place or args[-1] is True, 0.0, 6.0
        return None

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        rule = self.rule(function, args, kwargs) if self.method != "gradient" else None
        if rule:
            return RectifiedGradient.apply(args[0] if args else kwargs["input"], *rule, self.method == "guided")
        y = function(*args, **kwargs)
        if function is F.local_response_norm and self.norm != "gradient":
            factors = response_factors(*args, **kwargs) if self.norm == "rescale" else torch.ones_like(y)
            return ScaledGradient.apply(args[0], y.detach(), factors)
        return y


def response_factors(x, size, alpha=1e-4, beta=0.75, k=1.0):
    """What a response norm multiplies each value by."""
    x = x.detach()
    first = [c - size // 2 for c in range(x.shape[1])]
    sums = [x[:, max(0, start) : start + size].square().sum(1) for start in first]
    return (k + alpha / size * torch.stack(sums, 1)) ** -beta


def modified_gradient(value_of, images, channel, position=None, norm="identity", method="deconvnet"):
    """The projections of one activation of each image, their values and places.

    `value_of(images)` gives the layer's value. `channel` and `position` hold for all images; position None is the
    strongest place, the first in row-major order.
    """
    images = images.detach().clone().requires_grad_()
    with Rules(norm, method):
        value = value_of(images + 0)
    maps = value[:, channel].flatten(1) if value.ndim == 4 else value[:, channel, None]
    width = value.shape[3] if value.ndim == 4 else 1
    if position is None:
        places = [row.tolist().index(row.max().item()) for row in maps.detach()]
    else:
        places = [position[0] * width + position[1]] * len(images)
    chosen = maps[torch.arange(len(images)), places]
    (pixels,) = torch.autograd.grad(chosen, images, chosen.detach())
    return pixels, chosen.detach(), torch.tensor([divmod(place, width) for place in places])


class Torchvision(nn.Module):
    def __init__(self, features, pool, classifier):
        super().__init__()
        self.features, self.avgpool, self.classifier = features, pool, classifier

    def forward(self, x):
        x = self.features(x)
        x = self.avgpool(x)
        x = torch.flatten(x, 1)
        return self.classifier(x)


def alexnet(width=8, classes=7):
    """torchvision's AlexNet, narrower: overlapping pools, in-place ReLUs, adaptive pooling to 6x6."""
    features = nn.Sequential(
        nn.Conv2d(3, width, 11, stride=4, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(width, 3 * width, 5, padding=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(3 * width, 6 * width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6 * width, 4 * width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(4 * width, 4 * width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2),
    )
    classifier = nn.Sequential(
        nn.Dropout(),
        nn.Linear(4 * width * 36, 64),
        nn.ReLU(inplace=True),
        nn.Dropout(),
        nn.Linear(64, 64),
        nn.ReLU(inplace=True),
        nn.Linear(64, classes),
    )
    return Torchvision(features, nn.AdaptiveAvgPool2d((6, 6)), classifier)


def vgg11(width=4, classes=5, batch_norm=False):
    """torchvision's VGG-11, narrower, with batch norms or without."""
    layers, before = [], 3
    for maps in (1, "pool", 2, "pool", 4, 4, "pool", 8, 8, "pool", 8, 8, "pool"):
        if maps == "pool":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers.append(nn.Conv2d(before, maps * width, 3, padding=1))
            before = maps * width
            layers += [nn.BatchNorm2d(before)] * batch_norm + [nn.ReLU(inplace=True)]
    classifier = nn.Sequential(
        nn.Linear(before * 4, 32), nn.ReLU(True), nn.Dropout(), nn.Linear(32, 32), nn.ReLU(True), nn.Linear(32, classes)
    )
    return Torchvision(nn.Sequential(*layers), nn.AdaptiveAvgPool2d((2, 2)), classifier)


class Functional(nn.Module):
    """Every spelling of a ReLU, pools and norms as functions, one pool module used three times, odd sizes."""

    def __init__(self, classes=4):
        super().__init__()
        self.conv_a = nn.Conv2d(3, 6, (5, 3), stride=(2, 1), padding=(0, 2))
        self.conv_b = nn.Conv2d(6, 9, 3, padding=1)
        self.conv_c = nn.Conv2d(9, 8, 2, bias=False)
        self.conv_d = nn.Conv2d(8, 7, 3, padding=2)
        self.pool = nn.MaxPool2d(3, 2, padding=1, ceil_mode=True)
        self.drop = nn.Dropout2d(0.3)
        self.fc = nn.Linear(84, classes)

    def features(self, x, until=None):
        x = F.relu(self.conv_a(x))
        if until == "conv_a":
            return x
        x = self.pool(x)
        x = F.local_response_norm(x, 3, alpha=0.3, beta=0.6, k=1.5)
        if until == "local_response_norm":
            return x
        x = self.conv_b(x)
        F.relu_(x)
        x = F.max_pool2d(x, kernel_size=3, stride=2, ceil_mode=True)
        if until == "max_pool2d":
            return x
        x = self.drop(F.local_response_norm(x, 4, 0.2))
        x = self.conv_c(x).relu_()
        x = self.pool(x)
        if until == "pool_1":
            return x
        x = F.dropout(torch.relu(self.conv_d(x)), training=self.training)
        return self.pool(x)

    def forward(self, x, scale=False):
        if scale:
            x = x / 255
        n = x.size(0)
        x = self.features(x)
        x = x.view(n, x.shape[1] * x.shape[2] * x.shape[3])
        return self.fc(F.relu(x, inplace=True))


def odd(classes=3):
    """Groups, dilation, "same" padding of an even filter, pool before ReLU, batch norms everywhere, no ReLU last."""
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 6, 4, padding="same", bias=False),
        nn.BatchNorm2d(6),
        nn.MaxPool2d((3, 2), stride=(2, 1), padding=(1, 1)),
        nn.ReLU(),
        nn.BatchNorm2d(6),
        nn.Sequential(nn.Conv2d(6, 8, 3, dilation=2, groups=2, padding="valid"), nn.Identity(), nn.ReLU()),
        nn.BatchNorm2d(8),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(8, 4, (1, 3), padding=(1, 0), dilation=(1, 2)),
        nn.Flatten(),
        nn.Linear(216, classes),
        nn.BatchNorm1d(classes),
        nn.ReLU(),
        nn.Linear(classes, classes),
    )


def unrectified():
    """Not one ReLU: nothing may be rectified."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2),
        nn.MaxPool2d(3, 2),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.Conv2d(5, 6, 2),
        nn.BatchNorm2d(6),
        nn.MaxPool2d(2, 1),
        nn.Conv2d(6, 3, 3),
    )


def flattened():
    """Batch norm and ReLU above the flattening, and below any Linear."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Sequential(nn.Flatten(), nn.BatchNorm1d(80)),
        nn.ReLU(),
        nn.Linear(80, 6),
    )


class Residual(nn.Module):
    """ResNet's basic block: one ReLU module used twice and in place, `out += identity`."""

    def __init__(self, before, maps, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(before, maps, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(maps)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(maps, maps, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(maps)
        self.downsample = None
        if stride != 1 or before != maps:
            self.downsample = nn.Sequential(nn.Conv2d(before, maps, 1, stride, bias=False), nn.BatchNorm2d(maps))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """torchvision's ResNet, narrower and shallower."""

    def __init__(self, width=5, classes=4):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Residual(width, width), Residual(width, width))
        self.layer2 = nn.Sequential(Residual(width, 2 * width, 2), Residual(2 * width, 2 * width))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(2 * width, classes)

    def stages(self, x):
        """The value of each layer of interest."""
        values = {}
        x = values["conv1"] = self.relu(self.bn1(self.conv1(x)))
        x = values["maxpool"] = self.maxpool(x)
        block = self.layer1[0]
        values["layer1.0.conv1"] = block.relu(block.bn1(block.conv1(x)))
        values["layer1.0.conv2"] = block.bn2(block.conv2(values["layer1.0.conv1"]))
        x = values["iadd"] = self.layer1[0](x)
        x = values["iadd_1"] = self.layer1[1](x)
        values["layer2.0.downsample.0"] = self.layer2[0].downsample(x)
        x = values["iadd_3"] = self.layer2(x)
        values["fc"] = self.fc(torch.flatten(self.avgpool(x), 1))
        return values

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class Inception(nn.Module):
    """GoogLeNet's branches with functional ReLUs, an average pool among them, LRN below, the mean at the end."""

    def __init__(self, classes=3):
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 5, 2)
        self.one = nn.Conv2d(6, 4, 1)
        self.reduce = nn.Conv2d(6, 3, 1)
        self.three = nn.Conv2d(3, 5, 3, padding=1)
        self.five = nn.Sequential(nn.Conv2d(6, 3, 1), nn.ReLU(), nn.Conv2d(3, 4, (1, 5), padding=(0, 2)), nn.ReLU())
        self.pool = nn.Conv2d(6, 3, 1)
        self.top = nn.Conv2d(16, 6, 3, stride=2)
        self.fc = nn.Linear(6, classes)

    def stages(self, x):
        values = {}
        x = values["stem"] = F.relu(self.stem(x))
        x = values["local_response_norm"] = F.local_response_norm(x, 3, 0.5, k=1.2)
        values["three"] = F.relu(self.three(F.relu(self.reduce(x))))
        values["avg_pool2d"] = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        pooled = F.relu(self.pool(values["avg_pool2d"]), inplace=True)
        x = values["cat"] = torch.cat([F.relu(self.one(x)), values["three"], self.five(x), pooled], 1)
        x = values["max_pool2d"] = F.max_pool2d(x, 3, stride=2, ceil_mode=True)
        x = values["top"] = torch.relu(self.top(x))
        values["fc"] = self.fc(x.mean([2, 3]))
        return values

    def forward(self, x):
        return self.stages(x)["fc"]


class DenseNet(nn.Module):
    """DenseNet: batch norm and ReLU before each convolution, all earlier maps joined; transitions average."""

    def __init__(self, classes=3, growth=3):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 2, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4 + growth * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(4 + growth * i, growth, 3, 1, 1, bias=False) for i in range(3))
        self.drop = nn.Dropout(0.2)
        self.norm = nn.BatchNorm2d(4 + growth * 3)
        self.transition = nn.Sequential(nn.Conv2d(4 + growth * 3, 6, 1, bias=False), nn.AvgPool2d(2, 2, ceil_mode=True))
        self.last = nn.BatchNorm2d(6)
        self.classifier = nn.Linear(24, classes)

    def stages(self, x):
        values = {}
        maps = [self.stem(x)]
        values["stem"] = maps[0]
        for i, (norm, conv) in enumerate(zip(self.norms, self.convs, strict=True)):
            values[f"norms.{i}"] = F.relu(norm(torch.cat(maps, 1)), inplace=True)
            maps.append(self.drop(conv(values[f"norms.{i}"])))
            values[f"convs.{i}"] = maps[-1]
        x = values["transition.1"] = self.transition(F.relu(self.norm(torch.cat(maps, dim=1))))
        x = values["last"] = F.relu(self.last(x))
        values["classifier"] = self.classifier(F.adaptive_avg_pool2d(x, (2, 2)).flatten(1))
        return values

    def forward(self, x):
        return self.stages(x)["classifier"]


class Padded(nn.Module):
    """Constants around maps: zeros on some sides before filters of every kind, others before a pool."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(3, 6, 3, 2), nn.ReLU())
        self.depthwise = nn.Sequential(nn.ZeroPad2d((1, 2, 2, 1)), nn.Conv2d(6, 6, 5, 2, groups=6), nn.ReLU6())
        self.dilated = nn.Conv2d(6, 6, 3, padding=(0, 1), dilation=2, groups=2)
        self.pool = nn.Sequential(nn.ConstantPad2d((1, 0, 0, 2), 0.25), nn.MaxPool2d(3, 2))
        self.last, self.fc = nn.Conv2d(6, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, x):
        return self.fc(F.relu(self.last(self.pooled(x))).mean((2, 3)))

    def pooled(self, x):
        x = self.depthwise(self.stem(x))
        return self.pool(torch.relu(self.dilated(F.pad(x, (2, 0, 4, 2)))))


class MobileNet(nn.Module):
    """MobileNetV2's inverted residuals: depthwise and grouped convolutions, ReLU6, sums that are not rectified."""

    def __init__(self, classes=4):
        super().__init__()

        def unit(before, maps, kernel, stride=1, groups=1, **padding):
            conv = nn.Conv2d(before, maps, kernel, stride, kernel // 2, groups=groups, bias=False)
            return nn.Sequential(conv, nn.BatchNorm2d(maps), nn.ReLU6(inplace=True))

        self.stem = unit(3, 4, 3, 2)
        self.expand = nn.Sequential(unit(4, 12, 1), unit(12, 12, 3, groups=12))
        self.project = nn.Sequential(nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4))
        self.down = nn.Sequential(
            unit(4, 8, 1), unit(8, 8, 5, 2, groups=4), nn.Conv2d(8, 6, 1), nn.LeakyReLU(0.2, inplace=True)
        )
        self.head = nn.Conv2d(6, classes, 1)

    def stages(self, x):
        values = {}
        x = values["stem.0"] = self.stem(x)
        values["expand.1.0"] = self.expand(x)
        values["project.0"] = self.project(values["expand.1.0"])
        x = values["add"] = x + values["project.0"]
        x = values["down.2"] = self.down(0.5 * x - 0.1)
        x = F.leaky_relu(self.head(x))
        values["head"] = x
        values["logits"] = x.mean((2, 3))
        return values

    def forward(self, x):
        return self.stages(x)["logits"]


class Pyramid(nn.Module):
    """Branches that see the map in steps and reaches of their own, and values that several read at once."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU6(inplace=True))
        self.near = nn.Conv2d(6, 6, 3, padding=2, dilation=2)
        self.far = nn.Conv2d(6, 6, (3, 2), padding=(3, 1), dilation=(3, 2), groups=2)
        self.mean = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.join = nn.Sequential(nn.Conv2d(18, 6, 1), nn.BatchNorm2d(6), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1, ceil_mode=True)
        self.even = nn.Conv2d(6, 6, 2, padding="same", groups=3)
        self.rough = nn.AvgPool2d((2, 3), (2, 2), (0, 1), ceil_mode=True)
        self.top = nn.Sequential(
            nn.Conv2d(12, 5, 3), nn.LeakyReLU(0.1), nn.AdaptiveAvgPool2d((3, 2)), nn.Conv2d(5, 4, 1)
        )

    def stages(self, x):
        values = {}
        x = values["stem.0"] = self.stem(x)
        near = self.near(x)
        joined = torch.cat([F.relu(near), self.far(x), self.mean(x)], 1)
        y = values["join.0"] = self.join(joined)
        twice = y + near
        twice = values["add_1"] = twice + twice
        x = values["cat_1"] = torch.cat([self.pool(y), self.rough(self.even(twice))], 1)
        values["top.3"] = self.top(x)
        return values

    def forward(self, x):
        return self.stages(x)["top.3"]


class Changed(nn.Module):
    """Values that in-place calls change for those who read them later, and copies that they do not."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(n, 4, 3, padding=1) for n in (3, 4, 4))

    def stages(self, x):
        x = self.a(x)
        kept = x.clone()
        other = x
        F.relu_(x)
        scaled = x * 1.5
        kin = scaled
        scaled += self.b(other)
        y = kin + kept
        y *= 0.5
        return {"c": self.c(other + y)}

    def forward(self, x):
        return self.stages(x)["c"]


def gated():
    """A layer that has no reverse."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def alive(model, seed=0):
    """`model` in float64 and evaluation mode, with weights and batch norms that leave much of each map above 0."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, -1.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.3, 0.3, generator=generator)
            if module.running_mean is None:
                continue
            nn.init.uniform_(module.running_mean, -0.3, 0.3, generator=generator)
            nn.init.uniform_(module.running_var, 0.3, 2.0, generator=generator)
        elif isinstance(getattr(module, "weight", None), nn.Parameter) and hasattr(module, "bias"):
            nn.init.kaiming_normal_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.uniform_(module.bias, 0, 0.2, generator=generator)
    return model


def images(count, height, width, seed=0, channels=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, channels, height, width, dtype=torch.float64, generator=generator)


def plain_zfnet(model, x, until=None):
    """The value of layer `until` of a `zfkernels.ZFNet` in plain torch, or its logits."""
    for row in model.table:
        name, kind = row.layer.name, row.layer.kind
        module = getattr(model, name)
        if kind == "conv":
            x = F.relu(F.conv2d(x, module.weight, module.bias, module.stride, module.padding))
        elif kind == "pool":
            x = F.max_pool2d(x, module.kernel_size, module.stride, module.padding, ceil_mode=module.ceil_mode)
        elif kind == "norm":
            x = F.local_response_norm(x, module.size, module.alpha, module.beta, module.k)
        else:
            x = F.linear(x.flatten(1), module.weight, module.bias)
            if row is not model.table[-1]:
                x = F.relu(x)
        if name == until:
            break
    return x
