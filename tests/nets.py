"""Networks in plain torch, and what a projection must be, computed in another way: autograd with other rules.

`Rules` is a mode in which plain torch calls get another backward: a ReLU's is a ReLU of the gradient, and a response
norm's one of the three that `project` offers. It sees modules, functions and methods, in-place or not, as torch runs
them, and knows nothing of chains, switches or boxes.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode


class RectifiedGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, in_place):
        if in_place:
            ctx.mark_dirty(x)
            return x.clamp_(min=0)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, g):
        return g.clamp(min=0), None


class ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y, scale):
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx, g):
        return g * ctx.scale, None, None


class Rules(TorchFunctionMode):
    PLAIN = (F.relu, torch.relu, torch.Tensor.relu)
    IN_PLACE = (F.relu_, torch.relu_, torch.Tensor.relu_)

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.PLAIN or function in self.IN_PLACE:
            in_place = function in self.IN_PLACE or kwargs.get("inplace", len(args) > 1 and args[1])
            return RectifiedGradient.apply(args[0] if args else kwargs["input"], in_place)
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


def modified_gradient(value_of, images, channel, position=None, norm="identity"):
    """The projections of one activation of each image, their values and places.

    `value_of(images)` gives the layer's value. `channel` and `position` hold for all images; position None is the
    strongest place, the first in row-major order.
    """
    images = images.detach().clone().requires_grad_()
    with Rules(norm):
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


def alive(model, seed=0):
    """`model` in float64 and evaluation mode, with weights and batch norms that leave much of each map above 0."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            nn.init.uniform_(module.weight, -1.5, 1.5, generator=generator)
            nn.init.uniform_(module.bias, -0.3, 0.3, generator=generator)
            nn.init.uniform_(module.running_mean, -0.3, 0.3, generator=generator)
            nn.init.uniform_(module.running_var, 0.3, 2.0, generator=generator)
        elif hasattr(module, "weight") and hasattr(module, "bias"):
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
