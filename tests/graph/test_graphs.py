"""Models that branch, all methods, and several activations at once, against autograd with other rules (nets.py)."""

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import error
from torch import nn

import zfkernels as zf
from zfkernels.deconvnet.boxes import Box
from zfkernels.deconvnet.cones import Cones
from zfkernels.deconvnet.units import Units, alone, at
from zfkernels.graph import layer as graph_layer
from zfkernels.graph import regions, run
from zfkernels.graph import run as graphs
from zfkernels.graph.rules import Rules
from zfkernels.graph.trace import trace

METHODS = ("deconvnet", "gradient", "guided")
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of an even filter
SIZES = {
    "ResNet": (nets.ResNet, (45, 38)),
    "Inception": (nets.Inception, (41, 50)),
    "DenseNet": (nets.DenseNet, (27, 34)),
    "MobileNet": (nets.MobileNet, (33, 26)),
    "Pyramid": (nets.Pyramid, (49, 37)),
    "Changed": (nets.Changed, (9, 12)),
}


@pytest.fixture(scope="module")
def built():
    """Each net once: (net, its deconvnet, two images)."""
    made = {}
    for name, (make, size) in SIZES.items():
        net = nets.alive(make()).requires_grad_(False)
        made[name] = net, zf.Deconvnet(net), nets.images(2, *size)
    return made


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SIZES)
def test_equals_the_modified_gradient(built, name, method):
    net, deconv, images = built[name]
    stages = [layer for layer in net.stages(images) if layer != "logits"]
    alive = 0
    for layer in stages:
        assert layer in deconv.layers + deconv.vector_layers, (layer, deconv)
        assert error(deconv.activations(images, layer), net.stages(images)[layer].detach()) < 1e-12
        shape = deconv.activations(images, layer).shape
        places = [None] if len(shape) == 2 else [None, (shape[2] - 1, shape[3] // 2)]
        for channel in {0, shape[1] // 2, shape[1] - 1}:
            for place in places:
                p = deconv.project(images, layer, channel, place, method=method)
                pixels, values, positions = nets.modified_gradient(
                    lambda x, layer=layer: net.stages(x)[layer], images, channel, place, method=method
                )
                assert error(p.values, values) < 1e-11
                assert torch.equal(p.positions, positions)
                alive += pixels.norm() > 1e-9
                if method != "deconvnet":  # capped units start before the cap: test_the_cap_of_the_units_own_layer
                    below = (values < 6).double()[:, None, None, None]
                    p, pixels = p._replace(pixels=p.pixels * below), pixels * below
                # The second bound is for units that are all but dead, whose own value is rounding
                assert (p.pixels - pixels).norm() <= 1e-11 * pixels.norm() + 1e-13, (layer, channel, place)
    assert alive >= len(stages)


@pytest.mark.parametrize("elements", [1, run.PASS_ELEMENTS_CPU])
@pytest.mark.parametrize("name", SIZES)
def test_several_layers_are_served_by_one_pass(built, monkeypatch, name, elements):
    _, deconv, images = built[name]
    layers = [*deconv.layers[::2], *deconv.vector_layers]
    alone = {layer: deconv.activations(images, layer) for layer in layers}
    monkeypatch.setattr(run, "PASS_ELEMENTS_CPU", elements)
    runs = []
    monkeypatch.setattr(graphs, "run", lambda *args, run=run.run: runs.append(args) or run(*args))
    found = deconv.activations(images, layers)
    assert len(runs) == (2 if elements == 1 else 1)
    assert list(found) == layers
    assert all(error(found[layer], alone[layer]) < 1e-12 for layer in layers)
    assert deconv.activations(images, []) == {}
    with pytest.raises(ValueError, match="nonsense"):
        deconv.activations(images, [layers[0], "nonsense"])


@pytest.mark.parametrize("norm", ["identity", "gradient", "rescale"])
def test_norms_in_branches(built, norm):
    net, deconv, images = built["Inception"]
    p = deconv.project(images, "cat", 6, norm=norm)
    pixels, *_ = nets.modified_gradient(lambda x: net.stages(x)["cat"], images, 6, norm=norm)
    assert error(p.pixels, pixels) < 1e-11


@pytest.mark.parametrize("method", METHODS)
def test_methods_of_chains(method):
    """Norms and all."""
    net, images = nets.alive(nets.Functional()), nets.images(2, 41, 35)
    deconv = zf.Deconvnet(net)
    for layer in ("pool_1", "pool_2"):
        p = deconv.project(images, layer, 5, norm="gradient", method=method)
        pixels, values, _ = nets.modified_gradient(
            lambda x, layer=layer: net.features(x, until=layer), images, 5, norm="gradient", method=method
        )
        assert pixels.norm() > 0
        assert error(p.values, values) < 1e-11
        assert error(p.pixels, pixels) < 1e-11


def test_gradient_is_autograds(built):
    """Without any rules of ours: torch's own gradient, and the methods differ."""
    net, deconv, images = built["ResNet"]
    x = images.clone().requires_grad_()
    score = net(x)[:, 2]
    (gradient,) = torch.autograd.grad(score.sum(), x)
    found = {method: deconv.project(images, "fc", 2, method=method).pixels for method in METHODS}
    assert error(found["gradient"], gradient * score.detach()[:, None, None, None]) < 1e-11
    assert error(found["guided"], found["gradient"]) > 0.1
    assert error(found["deconvnet"], found["guided"]) > 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SIZES)
def test_cones_equal_whole_maps(built, name, method):
    """The same reverse steps, on boxes around units of all corners and on whole maps."""
    _, deconv, images = built[name]
    graph, rules = trace(deconv.model), Rules("cpu", method, "gradient")
    for layer in deconv.layers + deconv.vector_layers:
        stop = graph.stop(layer)
        engine = Cones(graph, stop, graph.shapes(images.shape, stop))
        done = engine.up(images, rules)
        units = units_of(done.value)
        pixels = torch.zeros(len(units.images), *images.shape[1:], dtype=images.dtype)
        engine.down(done, units, at(done.value, units), rules, pixels)
        whole = Box(alone(done.value, units, at(done.value, units)), 0 * units.positions)
        dense = engine.reversed(done, whole, units.images, rules)
        assert dense.maps.shape == pixels.shape
        assert (pixels - dense.maps).norm() <= 1e-12 * dense.maps.norm(), layer


def units_of(value):
    """Of each image those of two maps at the corners, on a side, and in the middle."""
    rows, columns = value.shape[2:] or (1, 1)
    places = [
        (0, 0),
        (0, columns - 1),
        (rows - 1, 0),
        (rows - 1, columns - 1),
        (rows // 2, 0),
        (rows // 2, columns // 2),
    ]
    named = [(i, c, *place) for i in range(len(value)) for c in (0, value.shape[1] - 1) for place in places]
    images, channels, *positions = np.array(named).T
    return Units(images, channels, np.stack(positions, 1))


def test_work_stays_on_the_cones(monkeypatch):
    """No convolution of the reverse pass makes a map larger than the unit's cone, whatever branches."""
    net, images = nets.alive(nets.ResNet()), nets.images(2, 160, 160)
    deconv, sizes = zf.Deconvnet(net), []
    original = graph_layer.Layer.reverse

    def watched(layer, g, size, *others):
        sizes.append((layer.conv.name, tuple(g.shape[2:]), size))
        return original(layer, g, size, *others)

    monkeypatch.setattr(graph_layer.Layer, "reverse", watched)
    for method in METHODS:
        sizes.clear()
        deconv.project(images, "iadd_1", 1, (20, 22), method=method)
        assert sizes == [
            ("layer1.1.conv1", (3, 3), (5, 5)),
            ("layer1.0.conv2", (5, 5), (7, 7)),
            ("layer1.0.conv1", (7, 7), (9, 9)),
            ("conv1", (9, 9), (43, 43)),
        ], method


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SIZES)
def test_nothing_outside_the_union_of_fields(built, name, method):
    _, deconv, images = built[name]
    for layer in deconv.layers:
        rows, columns = deconv.activations(images, layer).shape[2:]
        places = [(0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)]
        p = deconv.project(images.float().double(), layer, [0, 1, 2], places, method=method, image_index=[0, 1, 1])
        for pixels, (top, left, bottom, right) in zip(p.pixels, p.boxes.tolist(), strict=True):
            outside = pixels.clone()
            outside[:, top:bottom, left:right] = 0
            assert outside.abs().sum() == 0


@pytest.mark.parametrize("name", ["ResNet", "Inception", "DenseNet", "MobileNet"])
def test_boxes_are_the_union_of_fields(built, name):
    """What the image must not be changed at for a unit to stay as it is: nowhere inside, as each side matters."""
    _, deconv, images = built[name]
    generator = torch.Generator().manual_seed(3)
    for layer in deconv.layers[:8]:
        value = deconv.activations(images, layer)
        place = (value.shape[2] // 2, value.shape[3] // 2)
        top, left, bottom, right = deconv.boxes(layer, [place], images.shape[2:])[0].tolist()
        noise = torch.randn(images.shape, dtype=images.dtype, generator=generator)
        outside = noise.clone()
        outside[:, :, top:bottom, left:right] = 0
        at = (slice(None), slice(None), *place)
        assert torch.equal(deconv.activations(images + outside, layer)[at], value[at])
    layer = deconv.layers[0]
    top, left, bottom, right = deconv.boxes(layer, [(3, 4)], images.shape[2:])[0].tolist()
    for rows, columns in (
        (slice(top, top + 1), slice(left, right)),
        (slice(bottom - 1, bottom), slice(left, right)),
        (slice(top, bottom), slice(left, left + 1)),
        (slice(top, bottom), slice(right - 1, right)),
    ):
        changed = images.clone()
        changed[:, :, rows, columns] += 1
        before, after = (deconv.activations(x, layer)[:, :, 3, 4] for x in (images, changed))
        assert (before - after).abs().max() > 0


def test_proportional_to_the_activation(built):
    """P(a e) = a P(e) for a >= 0, ReLU6 and LeakyReLU included."""
    for name, layer in (("MobileNet", "head"), ("ResNet", "iadd_3"), ("DenseNet", "last")):
        _, deconv, images = built[name]
        for method in METHODS:
            once, thrice = (
                deconv.project(images, layer, 1, method=method, strength=strength).pixels for strength in (1.0, 3.0)
            )
            assert error(thrice, 3 * once) < 1e-13


def test_units_of_many_images_in_small_passes(built, monkeypatch):
    _, deconv, images = built["ResNet"]
    index, channel = [0, 1, 1, 0, 1], [3, 2, 0, 1, 4]
    alone = [deconv.project(images[i : i + 1], "iadd_1", c) for i, c in zip(index, channel, strict=True)]
    for elements in (1, 5000, 10**8):
        monkeypatch.setattr(run, "PASS_ELEMENTS_CPU", elements)
        p = deconv.project(images, "iadd_1", channel, image_index=index)
        assert error(p.pixels, torch.cat([one.pixels for one in alone])) < 1e-13
        assert torch.equal(p.positions, torch.cat([one.positions for one in alone]))


def test_layers_and_their_aliases(built):
    _, deconv, _ = built["ResNet"]
    assert deconv.layers[:6] == ("conv1", "maxpool", "layer1.0.conv1", "layer1.0.conv2", "iadd", "layer1.0")
    assert deconv.vector_layers == ("flatten", "fc") or deconv.vector_layers == ("fc",)
    aliases = trace(deconv.model).aliases
    assert aliases["bn1"] == aliases["relu"] == "conv1"
    assert aliases["layer1.0.bn2"] == "layer1.0.conv2"
    assert aliases["layer1.0.relu_1" if "layer1.0.relu_1" in aliases else "layer1_0_relu_1"] == "iadd"
    _, deconv, _ = built["DenseNet"]
    assert {"stem", "cat", "norms.0", "convs.0", "transition.0", "transition.1", "last"} <= set(deconv.layers)
    assert trace(deconv.model).aliases["drop"] == "convs.0"


def test_every_modules_name_is_a_layer(built):
    """A block's name is its output, and a model that is watched has the names of one that is traced."""
    net, deconv, images = built["ResNet"]
    for name, module in net.named_modules():
        if not name or not list(module.children()):
            continue
        kept = []
        with module.register_forward_hook(lambda module, args, output, kept=kept: kept.append(output)):
            net(images)
        assert error(deconv.activations(images, name), kept[-1]) < 1e-12, name
    assert "avgpool" in deconv.layers
    watched = zf.Deconvnet(net, forward=lambda model, images: model(images))
    assert watched.engine("layer1").name == "own forward"
    assert watched.layers == deconv.layers
    assert watched.vector_layers == deconv.vector_layers


@pytest.mark.parametrize("method", METHODS)
def test_branches_that_begin_at_the_images(method):
    """Their boxes leave the image by more or less, at every corner; some units are in one branch alone."""

    class Stems(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 7, 2, 3), nn.Conv2d(3, 4, (1, 5), 2, (0, 2))
            self.mean = nn.AvgPool2d(3, 2, 1)

        def forward(self, x):
            y = torch.cat([F.relu(self.a(x)), self.b(x), self.mean(x)], 1)
            return F.avg_pool2d(torch.relu(y), 2, 1)

    net, images = nets.alive(Stems()), nets.images(1, 21, 26)
    deconv = zf.Deconvnet(net)
    for layer, value_of in (("avg_pool2d", net), ("cat", None)):
        rows, columns = deconv.activations(images, layer).shape[2:]
        places = [(r, c) for r in (0, rows // 2, rows - 1) for c in (0, columns // 2, columns - 1)]
        named = [(channel, place) for channel in (0, 5, 9) for place in places]
        p = deconv.project(images, layer, [c for c, _ in named], [place for _, place in named], method=method)
        for pixels, (channel, place) in zip(p.pixels, named, strict=True):
            if value_of is None:
                one = deconv.project(images, layer, channel, place, method=method).pixels
            else:
                one, *_ = nets.modified_gradient(net, images, channel, place, method=method)
            assert error(pixels, one[0]) < 1e-12


def test_a_relu_whose_input_others_read_is_a_layer():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.relu = nn.ReLU()

        def forward(self, x):
            x = self.conv(x)
            return self.relu(x) + x

    net, images = nets.alive(Net()), nets.images(1, 9, 9)
    deconv = zf.Deconvnet(net)
    assert deconv.layers == ("conv", "relu", "add")
    assert error(deconv.activations(images, "conv"), net.conv(images).detach()) < 1e-12
    assert error(deconv.activations(images, "relu"), net.conv(images).detach().relu()) < 1e-12


def test_two_heads():
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 3)
            self.left, self.right = nn.Conv2d(4, 2, 3), nn.Conv2d(4, 3, 1)

        def forward(self, x):
            x = F.relu(self.stem(x))
            return self.left(x), self.right(x)

    net, images = nets.alive(Heads()), nets.images(1, 9, 9)
    deconv = zf.Deconvnet(net)
    p = deconv.project(images, "right", 2)
    assert error(p.pixels, nets.modified_gradient(lambda x: net(x)[1], images, 2)[0]) < 1e-12


def test_only_what_the_layer_is_made_of_is_run(built):
    net, images = nets.alive(nets.Inception()), nets.images(1, 41, 50)
    with torch.no_grad():
        net.one.weight.fill_(float("nan"))
        net.top.weight.fill_(float("nan"))
    assert torch.isfinite(zf.Deconvnet(net).project(images, "three", 0).pixels).all()


def test_training_mode_is_named(built):
    net = nets.alive(nets.ResNet()).train()
    with pytest.raises(RuntimeError, match=r"layer 'bn1' \(BatchNorm2d\) is in training mode"):
        zf.Deconvnet(net).project(nets.images(1, 45, 38), "iadd", 0)


@pytest.mark.parametrize(
    "pool",
    [
        nn.AvgPool2d(3, 2, 1),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d((2, 3), (3, 1), (1, 0), count_include_pad=False),
        nn.AvgPool2d(2, divisor_override=7),
        nn.AdaptiveAvgPool2d((3, 4)),
        nn.AdaptiveAvgPool2d((None, 1)),
        nn.AdaptiveAvgPool2d(20),
    ],
    ids=str,
)
def test_average_pools(pool):
    net = nets.alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Conv2d(4, 3, 1), nn.ReLU()))
    images = nets.images(2, 13, 18)
    for method in METHODS:
        p = zf.Deconvnet(net).project(images, "3", 1, method=method)
        pixels, *_ = nets.modified_gradient(net, images, 1, method=method)
        assert pixels.norm() > 0
        assert error(p.pixels, pixels) < 1e-12


def test_sums_of_other_shapes_run_as_they_are():
    class Broadcast(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            x = self.conv(x)
            return x + F.adaptive_avg_pool2d(x, 1)

    net, images = nets.alive(Broadcast()), nets.images(1, 9, 9)
    p = zf.Deconvnet(net).project(images, "add", 0)
    pixels, values, _ = nets.modified_gradient(net, images, 0)
    assert error(p.values, values) < 1e-12
    assert error(p.pixels, pixels) < 1e-12


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("forward", [None, lambda model, images: model(images)])
def test_the_cap_of_the_units_own_layer(method, forward):
    """Is lifted: the strongest place is told before it, and a signal comes down from there."""
    net = nets.alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 5, 3), nn.ReLU6()))
    with torch.no_grad():
        net[2].weight.mul_(9)
    lifted = nn.Sequential(*net[:3], nn.ReLU())
    deconv, images = zf.Deconvnet(net, forward=forward), 3 * nets.images(2, 12, 12)
    p = deconv.project(images, "2", 1, method=method)
    pixels, values, positions = nets.modified_gradient(lifted, images, 1, method=method)
    assert bool((values > 6).all())
    assert bool((p.values == 6).all())
    assert torch.equal(p.positions, positions)
    assert error(p.pixels, pixels * (6 / values)[:, None, None, None]) < 1e-12
    assert float(deconv.activations(images, "2").max()) == 6
    top = zf.top_activations(deconv, [images], "2", 1)
    assert torch.equal(top.positions[1, 0], positions[int(top.images[1, 0])])


def test_wrong_method_is_named(built):
    _, deconv, images = built["ResNet"]
    with pytest.raises(ValueError, match=r"method must be one of deconvnet, gradient, guided, got 'backprop'"):
        deconv.project(images, "iadd", 0, method="backprop")


@pytest.mark.parametrize("backend", ["reference", "cpu"])  # those that serve float64
def test_every_backend(built, backend):
    net, deconv, images = built["ResNet"]
    with zf.use_backend(backend):
        p = deconv.project(images[:1], "iadd", 2)
    assert error(p.pixels, nets.modified_gradient(lambda x: net.stages(x)["iadd"], images[:1], 2)[0]) < 1e-11


# Several activations at once


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["ResNet", "chain"])
def test_joint_equals_the_modified_gradient_of_the_sum(built, name, method):
    if name == "chain":
        net, images, layer = nets.alive(nets.Functional()), nets.images(1, 41, 35), "pool_1"
        deconv, value_of = zf.Deconvnet(net), lambda x: net.features(x, until="pool_1")
    else:
        net, deconv, images = built["ResNet"]
        images, layer, value_of = images[:1], "iadd_1", lambda x: net.stages(x)["iadd_1"]
    channels = [0, 1, 2, 4]
    value = value_of(images)
    places = [divmod(int(value[0, c].argmax()), value.shape[3]) for c in channels]
    joint = deconv.joint(images[0], layer, channels, places, method=method, norm="gradient")
    x = images.clone().requires_grad_()
    with nets.Rules("gradient", method):
        value = value_of(x + 0)
    chosen = torch.stack([value[0, c, r, w] for c, (r, w) in zip(channels, places, strict=True)])
    (expected,) = torch.autograd.grad(chosen, x, chosen.detach())
    assert chosen.detach().abs().sum() > 0
    assert error(joint.together, expected[0]) < 1e-11
    each = deconv.project(images, layer, channels, places, method=method, norm="gradient").pixels
    assert error(joint.alone, each) < 1e-13
    assert joint.difference == pytest.approx(error(joint.together, each.sum(0)), abs=1e-9)
    assert (joint.difference < 1e-11) == (method == "gradient")


def test_joint_of_one_unit_is_its_projection(built):
    _, deconv, images = built["ResNet"]
    joint = deconv.joint(images[:1], "fc", [1])
    assert joint.difference < 1e-12
    assert error(joint.together, deconv.project(images[:1], "fc", 1).pixels[0]) < 1e-12
    with pytest.raises(ValueError, match="must name each unit once"):
        deconv.joint(images[0], "iadd", [1, 1])
    with pytest.raises(ValueError, match=r"image must be one image, .*got shape"):
        deconv.joint(images, "iadd", [1])


# Tracing


def test_in_place_sums_are_not_lost():
    """torch.fx's own proxies would trace `x += y` as x + y and leave what else is called x as it was."""
    net = nets.alive(nets.Changed())
    images = nets.images(1, 9, 12)
    deconv = zf.Deconvnet(net)
    assert error(deconv.activations(images, "c"), net(images).detach()) < 1e-12


@pytest.mark.parametrize("name", SIZES)
def test_whole_graphs_give_the_models_output(built, name):
    net, _, images = built[name]
    graph = trace(net, reshapes=True)
    clear = regions.Recomputed(graph, images[:1], [graph.output], Rules("cpu")).clear
    assert error(clear[graph.output], net(images[:1]).detach()) < 1e-12
