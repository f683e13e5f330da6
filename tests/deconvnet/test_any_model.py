"""Models that torch.fx cannot read, or that are not what their modules say: served by their own forward."""

import copy
import pickle
import warnings

import nets
import pytest
import torch
import torch.nn.functional as F
from conftest import error
from torch import nn
from torch.nn.utils import prune

import zfkernels as zf
from zfkernels.graph.plan import plan
from zfkernels.graph.trace import trace


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


# What a model is beside what its modules say


def chain(*last):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 5, 3), nn.ReLU(), *last)


def drop(module, args, output=None):
    """A hook, or a pre-hook, that drops every other map."""
    kept = args[0] if output is None else output
    kept = kept * (torch.arange(kept.shape[1]) % 2 == 0).view(-1, *[1] * (kept.ndim - 2)) * 1.5
    return kept if output is not None else (kept,)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["0", "1", "2", "3", ""])
@pytest.mark.parametrize("pre", [False, True])
def test_hooks_are_followed(where, pre, method):
    net, images = nets.alive(chain(nn.AdaptiveMaxPool2d(3))), nets.images(2, 20, 17)
    deconv, module = zf.Deconvnet(net), net.get_submodule(where)
    before = deconv.activations(images, "3")
    assert deconv.engine("3").name == "traced"
    with module.register_forward_pre_hook(drop) if pre else module.register_forward_hook(drop):
        channel = int(net(images).flatten(2).amax(2).amin(0).argmax())
        assert deconv.engine("3").name == "own forward"
        assert "hooks" in deconv.engine("3").why
        if where:  # the model's own hook changes what comes after its last layer
            equal_to_modified(deconv, lambda x: net(x), images, "5", channel, method)
            assert error(deconv.activations(images, "3"), net[:5](images).detach()) < 1e-12
            first = net[:1] if pre and where == "1" else net[:2]  # something stands between it and its ReLU
            assert error(deconv.activations(images, "0"), first(images).detach()) < 1e-12
        elif pre:
            equal_to_modified(deconv, lambda x: net(x), images, "5", channel, method)
    assert deconv.engine("3").name == "traced"
    assert torch.equal(deconv.activations(images, "3"), before)
    assert not net[0]._forward_hooks
    assert not net[0]._forward_pre_hooks


def test_a_hook_above_the_layer_does_not_matter():
    net = nets.alive(chain())
    with net[4].register_forward_hook(drop):
        deconv = zf.Deconvnet(net)
        assert deconv.engine("0").name == "traced"
        assert deconv.engine("3").name == "own forward"


@pytest.mark.parametrize("method", METHODS)
def test_pruned_and_parametrized_weights(method):
    """After load_state_dict, before any forward: the weight that the hook will make, not the one that lies there."""
    net, images = nets.alive(chain()), nets.images(2, 20, 17)
    other = nets.alive(chain(), seed=1)
    for one in (net, other):
        prune.l1_unstructured(one[3], "weight", 0.5)
    net.load_state_dict(other.state_dict())
    equal_to_modified(zf.Deconvnet(net), other, images, "3", 1, method)
    prune.remove(net[3], "weight")
    assert zf.Deconvnet(net).engine("3").name == "traced"
    nn.utils.parametrizations.weight_norm(net[0])
    deconv = zf.Deconvnet(net)
    assert deconv.engine("3").name == "traced"
    equal_to_modified(deconv, net, images, "3", 1, method)
    assert deconv.modules_below("3") == ["0.parametrizations.weight", "3"] or "3" in deconv.modules_below("3")


def test_constants_around_maps_are_traced():
    net, images = nets.alive(nets.Padded()), nets.images(2, 43, 38)
    deconv = zf.Deconvnet(net)
    assert all(deconv.engine(layer).name == "traced" for layer in ("depthwise", "pool", "last", "fc"))
    graph = trace(net)
    steps = [type(planned.step).__name__ for planned in plan(graph, [graph.stop("fc")]).steps]
    assert steps.count("Pad") == 1  # that before the pool; the others are the filters' own
    for method in METHODS:
        equal_to_modified(deconv, net.pooled, images, "pool", 1, method)
        equal_to_modified(deconv, net, images, "fc", 2, method)
    net.stem[0].padding = (1, 0, 1, 0)
    equal_to_modified(deconv, net, images, "fc", 2, "deconvnet")


def test_what_changes_is_traced_again():
    net, images = nets.alive(chain(nn.Flatten(), nn.Linear(5 * 7 * 5, 3).double())), nets.images(2, 20, 17)
    deconv = zf.Deconvnet(net)
    deconv.project(images, "6", 1)
    net[6] = nets.alive(nn.Linear(5 * 7 * 5, 4), seed=3)
    equal_to_modified(deconv, net, images, "6", int(net(images).amin(0).argmax()), "deconvnet")
    net[3].stride, net[6] = (2, 2), nets.alive(nn.Linear(5 * 4 * 3, 4), seed=4)
    equal_to_modified(deconv, net, images, "6", int(net(images).amin(0).argmax()), "guided")
    net.insert(3, nn.Conv2d(4, 4, 1).double())
    equal_to_modified(deconv, lambda x: net[:6](x), images, "4", 1, "deconvnet")
    net[1].forward = lambda x: x.abs()
    assert deconv.engine("4").name == "own forward"
    equal_to_modified(deconv, lambda x: net[:6](x), images, "4", 1, "gradient")


def test_copies_stand_alone():
    net, images = nets.alive(chain()), nets.images(1, 20, 17)
    deconv = zf.Deconvnet(net)
    p = deconv.project(images, "3", 1)
    for made in (copy.deepcopy(deconv), pickle.loads(pickle.dumps(deconv))):
        with torch.no_grad():
            net[3].weight.mul_(2)
        assert torch.equal(made.project(images, "3", 1).pixels, p.pixels)
        assert made.model is not net
        with torch.no_grad():
            net[3].weight.div_(2)


def doubled(model, images):
    return model(2 * images)


def test_copies_keep_rules_and_a_forward():
    net, images = nets.alive(chain()), nets.images(1, 20, 17)
    plain = zf.Deconvnet(net).project(images, "3", 1).pixels
    for settings in ({"rules": {nn.ReLU: "gradient"}}, {"forward": doubled}):
        deconv = zf.Deconvnet(net, **settings)
        p = deconv.project(images, "3", 1).pixels
        assert not torch.equal(p, plain)
        for made in (copy.deepcopy(deconv), pickle.loads(pickle.dumps(deconv))):
            assert torch.equal(made.project(images, "3", 1).pixels, p)


def test_the_model_is_left_as_it_was():
    class Constants(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.register_buffer("mean", torch.rand(3, 1, 1))

        def forward(self, x):
            x = (x - self.mean) / torch.tensor(2.0)
            return self.conv(x).relu()

    net, images = nets.alive(Constants()), nets.images(2, 20, 17)
    before = {key: value for key, value in vars(net).items() if not key.startswith("__")}
    deconv = zf.Deconvnet(net)
    equal_to_modified(deconv, net, images, "conv", 1, "guided")
    assert vars(net).keys() == before.keys()
    assert all(not hooks for module in net.modules() for hooks in (module._forward_hooks, module._forward_pre_hooks))
    assert net.conv.weight.grad is None


@pytest.mark.parametrize("method", METHODS)
def test_a_forward_of_ones_own(method):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net, self.side = chain(), nn.Conv2d(1, 5, 1)

        def forward(self, x, other):
            x = self.net(x)
            return {"out": x + self.side(other).relu(), "deep": [x]}

    net, images = nets.alive(Two()), nets.images(2, 20, 17)
    other = nets.images(2, 7, 5, channels=1)
    own = lambda model, images: model(images, other[: len(images)])["out"]  # noqa: E731
    deconv = zf.Deconvnet(net, forward=own)
    assert deconv.engine("net.3") == ("own forward", "forward= was given")
    channel = int(net(images, other)["deep"][0].flatten(2).amax(2).amin(0).argmax())
    equal_to_modified(deconv, lambda x: own(net, x), images, "add", channel, method)
    equal_to_modified(deconv, lambda x: net(x, other)["deep"][0], images, "net", channel, method)
    with pytest.raises(ValueError, match=r"do not suit Two, .*forward=\.\.\."):
        zf.Deconvnet(net).project(images, "add", 1)
    with pytest.raises(TypeError, match="forward must be a function"):
        zf.Deconvnet(net, forward=3)


def test_rules_of_ones_own():
    """A SiLU that is rectified on the way down with its own derivative, and ReLUs that are not."""
    net, images = nets.alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 5, 3), nn.ReLU())), None
    images = nets.images(2, 14, 15)

    def by_hand(rectify, true):
        x = images.clone().requires_grad_()
        first = net[0](x)
        value = net[3](net[2](F.silu(first)))
        p = zf.Deconvnet(net, rules={nn.SiLU: "rectify"} if rectify else {nn.ReLU: "gradient"}).project(
            images, "2", 1, method="guided"
        )
        rows = torch.arange(2)
        chosen = value[(rows, 1, *p.positions.T)]
        (g,) = torch.autograd.grad(chosen, first, chosen.detach(), retain_graph=True)
        slope = torch.autograd.grad(F.silu(first).sum(), first, retain_graph=True)[0]
        g = (g / slope).relu() * slope if rectify else g
        return p, torch.autograd.grad(first, x, g)[0]

    for rectify in (True, False):
        p, expected = by_hand(rectify, not rectify)
        assert error(p.pixels, expected) < 1e-9
        assert bool(p.notes) == (not rectify)
    with pytest.raises(ValueError, match="rules must map"):
        zf.Deconvnet(net, rules={nn.SiLU: "relu"})


def test_notes():
    net, images = nets.alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 5, 3), nn.ReLU())), None
    images = nets.images(1, 14, 15)
    deconv = zf.Deconvnet(net)
    assert deconv.project(images, "2", 1, method="guided").notes == (
        "no rectifiers, and so with their true derivatives under every method: SiLU (1)",
    )
    mixed = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 5, 3), nn.SiLU(), nn.PReLU(), nn.Hardtanh(0, 4))
    deconv = zf.Deconvnet(
        nets.alive(mixed).double(),
        forward=lambda model, images: model(images).maximum(torch.zeros((), dtype=torch.float64)),
    )
    assert [note for note in deconv.project(images, "maximum", 1).notes if "derivative" in note] == [
        "no rectifiers, and so with their true derivatives under every method: SiLU (1)"
    ]
    plain = nets.alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU()))
    deconv = zf.Deconvnet(plain)
    assert deconv.switchless("2")
    assert not deconv.switchless("0")
    assert not zf.Deconvnet(chain()).switchless("3")
    (note,) = deconv.project(images, "2", 1).notes
    assert "no max-pooling lies between '2' and the pixels" in note
    assert deconv.project(images, "2", 1, method="guided").notes == ()
    assert float(deconv.image_dependence(images, "2", 1)) < 1e-6
    assert float(deconv.image_dependence(images, "2", 1, method="guided")) > 0.1
    with torch.no_grad():
        plain[2].bias.fill_(-1e3)
    (note,) = deconv.project(images, "2", [1, 3], method="guided").notes
    assert note == "the activation of channel 1 at (0, 0), channel 3 at (0, 0) is 0, and so is its projection"


def test_wrong_uses_are_refused_in_one_line():
    net = chain()
    cases = [
        (lambda: zf.Deconvnet(torch.jit.script(net)), TypeError, r"Sequential is scripted|is scripted \(torch.jit\)"),
        (
            lambda: zf.Deconvnet(nn.Sequential(net, torch.jit.script(nn.Conv2d(5, 5, 1)))),
            TypeError,
            "has '1', which is",
        ),
        (lambda: zf.Deconvnet(chain().to("meta")), ValueError, "'0.weight' is on the meta device; call model.to_empty"),
        (lambda: zf.Deconvnet("resnet18"), TypeError, "model must be a torch.nn.Module, got str"),
        (lambda: zf.Deconvnet(net).project(torch.zeros(1, 3, 20, 20, device="meta"), "3", 1), ValueError, "device"),
        (
            lambda: zf.Deconvnet(nn.Sequential(net, nn.BatchNorm2d(5))).project(torch.zeros(1, 3, 20, 20), "1", 1),
            RuntimeError,
            "training mode.*call model.eval",
        ),
        (
            lambda: zf.Deconvnet(nn.Sequential(net, nn.BatchNorm2d(5), nn.SiLU())).project(
                torch.zeros(1, 3, 20, 20), "2", 1
            ),
            RuntimeError,
            "training mode.*call model.eval",
        ),
    ]
    for call, kind, message in cases:
        with pytest.raises(kind, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


def test_a_quantized_model_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), {nn.Linear})
    with pytest.raises(TypeError, match=r"has '1', which is quantized; pass the model before that"):
        zf.Deconvnet(net)


def test_modules_below_a_layer_that_is_not_traced():
    net = nets.alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 5, 3), nn.SiLU(), nn.Conv2d(5, 5, 1)))
    assert zf.Deconvnet(net).engine("2").name == "own forward"
    assert zf.Deconvnet(net).modules_below("2") == ["0", "2"]
