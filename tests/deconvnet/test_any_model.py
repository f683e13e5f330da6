"""Models that torch.fx cannot read, or that are not what their modules say: served by their own forward."""

import warnings

import nets
import pytest
import torch
import torch.nn.functional as F
from conftest import error
from torch import nn

import zfkernels as zf


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 3, padding=1)
        self.block = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))


class Gate(nn.Module):
    def forward(self, x, y):
        return x * y


class Gated(Branches):
    def __init__(self):
        super().__init__()
        self.gate = Gate()

    def forward(self, x):
        x = self.stem(x)
        return self.gate(x, self.block(x))


class ViewChanged(Branches):
    def forward(self, x):
        x = self.stem(x)
        F.relu_(x.flatten(1))
        return self.block[1](x)


class Squared(Branches):
    def forward(self, x):
        return self.stem(x) ** 2


class Inverse(Branches):
    def forward(self, x):
        return 1 / self.stem(x)


class Pooled(Branches):
    def forward(self, x):
        return self.stem(x).mean(1, keepdim=True)


class Stacked(Branches):
    def forward(self, x):
        x = self.stem(x)
        return torch.cat([x, x])


class Looking(Branches):
    def forward(self, x):
        return self.stem(x) if x.sum() > 0 else self.block(x)


class Computed(Branches):
    def forward(self, x):
        return F.conv2d(x, self.stem.weight * 2)


class Slice(Branches):
    def forward(self, x):
        return self.stem(x)[:, :2]


class Squeezing(Branches):
    def forward(self, x):
        return self.stem(x).flatten(2)


class Own(nn.Conv2d):
    def forward(self, x):
        return torch.sigmoid(super().forward(x))


class Normalised(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight / weight.norm(), bias)


def weight_made_by_a_hook():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated, and models hold it
        return nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 4, 3)))


def after_conv(*layers):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), *layers)


UNREADABLE = {
    "stochastic pool": after_conv(nn.FractionalMaxPool2d(2, 2)),
    "inner sigmoid": after_conv(nn.Sequential(nn.Identity(), nn.Sigmoid())),
    "SiLU": after_conv(nn.SiLU()),
    "batch statistics": after_conv(nn.BatchNorm2d(4, track_running_stats=False)),
    "instance norm": after_conv(nn.InstanceNorm2d(4)),
    "transposed conv": after_conv(nn.ConvTranspose2d(4, 4, 2)),
    "reflection": after_conv(nn.Conv2d(4, 4, 3, padding_mode="reflect")),
    "indices": after_conv(nn.MaxPool2d(2, return_indices=True)),
    "dilated pool": after_conv(nn.MaxPool2d(2, dilation=2)),
    "large window": after_conv(nn.MaxPool2d(17)),
    "softmax": after_conv(nn.Flatten(), nn.Softmax(1)),
    "unflatten": after_conv(nn.Unflatten(1, (2, 2)), nn.Flatten(1, 2)),
    "product": Gated(),
    "changed view": ViewChanged(),
    "square": Squared(),
    "computed filters": Computed(),
    "slice": Slice(),
    "inverse": Inverse(),
    "mean of maps": Pooled(),
    "joined images": Stacked(),
    "forward of its own": after_conv(Own(4, 4, 3)),
    "weight by hook": weight_made_by_a_hook(),
    "filters of its own": after_conv(Normalised(4, 4, 3)),
}


METHODS = ("deconvnet", "gradient", "guided")
RECTIFIERS = ("Relu", "Hardtanh", "LeakyRelu", "PreluKernel", "Threshold", "Clamp", "ClampMin", "Maximum")


def modified(value, images, channel, positions, method):
    """The projections by autograd's own graph: each rectifier's backward, however it was spelled, is replaced there."""
    seen, waiting = set(), [value.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        if node.name().rstrip("01").removesuffix("Backward") in RECTIFIERS and method != "gradient":
            node.register_hook(rule_of(node, method))
    rows = torch.arange(len(images))
    chosen = value[(rows, channel, *positions.T)[: value.ndim]]
    return torch.autograd.grad(chosen, images, chosen.detach())[0]


def rule_of(node, method):
    slope = getattr(node, "_saved_negative_slope", 0.0)
    if hasattr(node, "_saved_weight"):
        slope = node._saved_weight.detach()
        slope = slope.view(-1, 1, 1) if slope.numel() > 1 and slope.ndim == 1 else slope

    def replaced(down, up):
        signal = up[0] if method == "deconvnet" else down[0]
        return (torch.where(up[0] > 0, signal, slope * signal), *down[1:])

    return replaced


def equal_to_modified(deconv, forward, images, layer, channel, method):
    """The deconvnet's projections of the layer's strongest places, and `forward`'s value modified."""
    p = deconv.project(images, layer, channel, method=method)
    leaf = images.clone().requires_grad_()
    value = forward(leaf + 0)
    maps = value.detach()[: len(images), channel].reshape(len(images), -1)
    assert error(p.values, maps.max(1).values) < 1e-12
    assert torch.equal(
        p.positions[:, 0] * (value.shape[3] if value.ndim == 4 else 1) + p.positions[:, 1], maps.argmax(1)
    )
    expected = modified(value, leaf, channel, p.positions, method)
    assert float(expected.norm()) > 0
    assert error(p.pixels, expected) < 1e-9
    for picture, (top, left, bottom, right) in zip(p.pixels.clone(), p.boxes.tolist(), strict=True):
        picture[:, top:bottom, left:right] = 0
        assert not picture.any()
    assert error(deconv.activations(images, layer)[: len(images)], value[: len(images)]) < 1e-12


OF_PARAMETERS = ("computed filters", "filters of its own")  # expressions of weights alone can be traced


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", UNREADABLE)
def test_what_cannot_be_traced_runs_as_it_is(name, method):
    net = nets.alive(UNREADABLE[name])
    deconv, images = zf.Deconvnet(net), nets.images(2, 23, 19)
    layer = (deconv.layers + deconv.vector_layers)[-1]
    assert deconv.engine(layer).name == ("traced" if name in OF_PARAMETERS else "own forward")
    if name == "stochastic pool":
        assert deconv.project(images, layer, 0, method=method).pixels.any()
        return

    def forward(x):
        if name == "changed view":  # whose graph hides the rectifier
            return net.block[1](F.relu(net.stem(x)))
        value = net(x)
        return value[0] if isinstance(value, tuple) else value

    channel = int(
        deconv.activations(images, layer)[:2]
        .reshape(2, -1, deconv.activations(images, layer)[0, 0].numel())
        .amax(2)
        .amin(0)
        .argmax()
    )
    equal_to_modified(deconv, forward, images, layer, channel, method)


def test_control_flow_that_looks_at_values():
    """Each batch takes its own way, the same deconvnet for both."""
    net = nets.alive(Looking())
    deconv, images = zf.Deconvnet(net), nets.images(1, 23, 19)
    first = images if float(images.sum()) > 0 else -images
    for images, layer in ((first, "stem"), (-first, "block"), (first, "stem")):
        equal_to_modified(deconv, net, images, layer, 1, "guided")
    with pytest.raises(ValueError, match="layer must be one of stem, got 'block'"):
        deconv.project(first, "block", 1)
