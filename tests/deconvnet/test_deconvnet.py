"""Projections against the modified-gradient backward pass (nets.py), and what must hold of them besides."""

import copy

import nets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import error
from torch import nn

import zfkernels as zf
from zfkernels import backends
from zfkernels.deconvnet.boxes import Box
from zfkernels.deconvnet.cones import Cones
from zfkernels.deconvnet.single import Single
from zfkernels.deconvnet.units import Units, at, strongest
from zfkernels.graph import layer as graph_layer
from zfkernels.graph import run as graph_run
from zfkernels.graph import windowed
from zfkernels.graph.rules import Rules
from zfkernels.graph.steps import norm_factors
from zfkernels.graph.trace import trace

METHODS = ("deconvnet", "gradient", "guided")
NORMS = ("identity", "gradient", "rescale")
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same'")  # torch's, of an even filter


def sequential(until):
    """The value after the first `until` modules of a Sequential, or of a net's `features`."""
    return lambda net, x: getattr(net, "features", net)[:until](x)


# net, image size, {layer: its value in plain torch}
CHAINS = {
    "AlexNet": (
        nets.alexnet,
        (227, 224),
        {
            "features.12": sequential(13),
            "classifier.1": lambda net, x: F.relu(net.classifier[1](net.features(x).flatten(1))),
            "classifier.6": lambda net, x: net(x),
        },
    ),
    "AlexNet, small and odd": (
        nets.alexnet,
        (83, 97),
        {
            "features.0": sequential(2),
            "features.2": sequential(3),
            "features.3": sequential(5),
            "features.5": sequential(6),
            "features.10": sequential(12),
        },
    ),
    "VGG-11": (
        nets.vgg11,
        (64, 64),
        {"features.3": sequential(5), "features.8": sequential(10), "features.20": sequential(21)}
        | {"classifier.5": lambda net, x: net(x)},
    ),
    "VGG-11 with batch norms, odd": (
        lambda: nets.vgg11(batch_norm=True),
        (70, 61),
        {"features.0": sequential(3), "features.7": sequential(8), "features.28": sequential(29)},
    ),
    "functional": (
        nets.Functional,
        (41, 35),
        {
            layer: lambda net, x, layer=layer: net.features(x, until=layer)
            for layer in ("conv_a", "local_response_norm", "max_pool2d", "pool_1", "pool_2")
        }
        | {"fc": lambda net, x: net(x)},
    ),
    "odd": (
        nets.odd,
        (23, 29),
        {
            "0": sequential(1),
            "1": sequential(3),
            "3": sequential(5),
            "5": sequential(6),
            "6.0": sequential(7),
            "7": sequential(8),
            "8": sequential(10),
            "10": sequential(11),
            "12": sequential(15),
            "15": sequential(16),
        },
    ),
    "unrectified": (nets.unrectified, (37, 33), {"2": sequential(3), "5": sequential(6), "6": sequential(7)}),
    "flattened": (nets.flattened, (11, 9), {"3.1": sequential(5), "5": sequential(6)}),
}
CASES = [
    (name, layer, norm)
    for name, (_, _, layers) in CHAINS.items()
    for layer in layers
    for norm in (NORMS if name == "functional" else NORMS[:1])  # the others have no norm layers
]


@pytest.fixture(scope="module")
def built():
    """Each net once: (net, its deconvnet, two images)."""
    return {
        name: (net := nets.alive(make()), zf.Deconvnet(net), nets.images(2, *size))
        for name, (make, size, _) in CHAINS.items()
    }


@pytest.mark.parametrize(("name", "layer", "norm"), CASES)
def test_equals_the_modified_gradient(built, name, layer, norm):
    net, deconv, images = built[name]
    value_of = CHAINS[name][2][layer]
    shape = deconv.activations(images, layer).shape
    places = [None] if len(shape) == 2 else [None, (shape[2] - 1, shape[3] // 2)]
    for channel in range(0, shape[1], max(1, shape[1] // 3)):
        for place in places:
            p = deconv.project(images, layer, channel, place, norm)
            expected = nets.modified_gradient(lambda x: value_of(net, x), images, channel, place, norm=norm)
            assert_equal(p, *expected)


def assert_equal(p, pixels, values, positions):
    assert error(p.values, values) < 1e-11
    assert torch.equal(p.positions, positions)
    if pixels.norm() > 1e-9:
        assert error(p.pixels, pixels) < 1e-9
    else:
        assert p.pixels.norm() < 1e-8


@pytest.fixture(scope="module")
def zfnet():
    """A narrow ZFNet at the real one's sizes, with norms that matter."""
    model = nets.alive(zf.ZFNet(num_classes=9, channels=(8, 12, 10, 10, 8), fc=(16, 16)))
    for norm in (model.norm1, model.norm2):
        norm.alpha = 0.5
    return model


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    "layer",
    ["conv1", "pool1", "norm1", "conv2", "pool2", "norm2", "conv3", "conv4", "conv5", "pool5", "fc6", "fc7", "fc8"],
)
def test_zfnet_equals_the_modified_gradient(zfnet, layer, norm):
    images = nets.images(2, 224, 224)
    p = zf.Deconvnet(zfnet).project(images, layer, 3, norm=norm)
    pixels, values, positions = nets.modified_gradient(
        lambda x: nets.plain_zfnet(zfnet, x, layer), images, 3, norm=norm
    )
    assert error(p.values, values) < 1e-11
    assert torch.equal(p.positions, positions)
    assert error(p.pixels, pixels) < 1e-9


def test_the_real_zfnet():
    """Full size, float32, weights as at the start of a training but larger: one unit of conv5, on its cone."""
    model = zf.ZFNet(weight_std=None)
    deconv = zf.Deconvnet(model)
    assert deconv.layers == ("conv1", "pool1", "norm1", "conv2", "pool2", "norm2", "conv3", "conv4", "conv5", "pool5")
    assert deconv.vector_layers == ("fc6", "fc7", "fc8")
    images = nets.images(1, 224, 224).float()
    p = deconv.project(images, layer="conv5", channel=7)
    pixels, values, positions = nets.modified_gradient(lambda x: nets.plain_zfnet(model, x, "conv5"), images, 7)
    assert error(p.values, values) < 1e-5
    assert torch.equal(p.positions, positions)
    assert error(p.pixels, pixels) < 1e-3  # a near tie between two pixels of a window may fall the other way
    assert_outside_is_zero(p)


def assert_outside_is_zero(p):
    for pixels, (top, left, bottom, right) in zip(p.pixels, p.boxes.tolist(), strict=True):
        outside = torch.ones_like(pixels, dtype=torch.bool)
        outside[:, top:bottom, left:right] = False
        assert pixels[outside].abs().sum() == 0


@pytest.mark.parametrize("method", METHODS)
def test_rounding_puts_nothing_outside_the_receptive_field(method):
    """Units of one call whose boxes are of one size and moved into the map, by Winograd's kernels in float32."""
    layers, before = [], 3
    for maps in (64, "pool", 128, "pool", 256, 256, "pool", 512, 512):
        if maps == "pool":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(before, maps, 3, padding=1), nn.ReLU()]
            before = maps
    net = nn.Sequential(*layers)
    torch.manual_seed(0)
    for conv in net:
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight)
    deconv, images = zf.Deconvnet(net), nets.images(1, 112, 112).float()
    assert "13" in deconv.layers
    for places in ([(1, 2), (7, 4)], [(0, 0), (13, 13), (6, 5)], [(5, 1), (5, 12)]):
        channels = list(range(3, 3 + len(places)))
        p = deconv.project(images, "13", channels, places, image_index=[0] * len(places), method=method, strength=1)
        assert method != "deconvnet" or (p.pixels.flatten(1).norm(dim=1) > 0).all()
        assert_outside_is_zero(p)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", CHAINS)
def test_values_that_are_known_give_the_same_projections(built, name, norm, method):
    _net, deconv, images = built[name]
    for layer in (*deconv.layers, *deconv.vector_layers[-1:]):
        p = deconv.project(images, layer, [0, 1, 1, 2], norm=norm, image_index=[1, 0, 1, 1], method=method)
        known = {"image_index": [1, 0, 1, 1], "method": method, "values": p.values}
        again = deconv.project(images, layer, [0, 1, 1, 2], p.positions, norm, **known)
        assert torch.equal(again.pixels, p.pixels)
        assert torch.equal(again.values, p.values)
        assert again.notes == p.notes


def test_of_known_values_nothing_is_computed_above_the_last_pool(monkeypatch):
    """By deconvnet; the other methods need what rectifiers were given."""
    net = zf.ZFNet(10, image_size=96, channels=(4, 6, 6, 6, 5), fc=(8, 8)).eval()
    deconv, images, ran = zf.Deconvnet(net), torch.randn(2, 3, 96, 96), []
    run = graph_layer.Layer.run
    monkeypatch.setattr(graph_layer.Layer, "run", lambda self, *given: ran.append(self) or run(self, *given))
    for method, count in (("deconvnet", 2), ("guided", 5)):
        ran.clear()
        p = deconv.project(images, "conv5", 1, (1, 1), method=method, values=[2.0, 3.0])
        assert len(ran) == count
        assert p.values.tolist() == [2.0, 3.0]
    own = zf.Deconvnet(net, forward=lambda model, x: model(x))
    assert own.engine("conv5").name == "own forward"
    by_autograd = own.project(images, "conv5", 1, (1, 1), method="guided", values=[2.0, 3.0])
    torch.testing.assert_close(by_autograd.pixels, p.pixels)
    twice = deconv.project(images, "conv5", 1, (1, 1), values=torch.tensor([4.0, 6.0]))
    torch.testing.assert_close(twice.pixels, 2 * deconv.project(images, "conv5", 1, (1, 1), values=[2, 3]).pixels)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("name", CHAINS)
def test_nothing_outside_the_receptive_field(built, name, norm):
    _net, deconv, images = built[name]
    for layer in deconv.layers:
        shape = deconv.activations(images, layer).shape
        place = torch.stack([torch.randint(shape[2], (6,)), torch.randint(shape[3], (6,))], 1)
        p = deconv.project(images, layer, torch.randint(shape[1], (6,)), place, norm, image_index=[0, 1] * 3)
        assert_outside_is_zero(p)


@pytest.mark.parametrize("name", [name for name in CHAINS if name != "AlexNet"])
def test_boxes_are_the_receptive_fields(built, name):
    """The pixels that a unit's plain gradient reaches, when every rectifier and pool lets all of its window through.

    At the image's far edges a box may hold pixels that no window covers, for a pool without ceil_mode drops them.
    """
    net, deconv, images = built[name]
    net = copy.deepcopy(net)
    for module in net.modules():
        if hasattr(module, "weight"):
            nn.init.ones_(module.weight)
    for layer, value_of in CHAINS[name][2].items():
        if layer in deconv.vector_layers:
            assert deconv.boxes(layer, [(0, 0)], images.shape[2:]).tolist() == [[0, 0, *images.shape[2:]]]
            continue
        rows, columns = deconv.activations(images, layer).shape[2:]
        for place in ((0, 0), (rows // 2, columns // 2), (rows - 1, columns - 1)):
            x = torch.zeros_like(images[:1]).requires_grad_()
            with Averaging():
                value = value_of(net, x)[0, 0, place[0], place[1]]
            seen = torch.autograd.grad(value, x)[0][0, 0] != 0
            box = deconv.boxes(layer, [place], images.shape[2:])[0].tolist()
            if not seen.any():
                continue
            reached = [side.nonzero()[[0, -1], 0].tolist() for side in (seen.any(1), seen.any(0))]
            for axis, (first, last) in enumerate(reached):
                assert box[axis] == first
                assert box[2 + axis] == last + 1 or (box[2 + axis] == images.shape[2 + axis] > last)


class Averaging(torch.overrides.TorchFunctionMode):
    """ReLUs and response norms pass everything on, and a pool passes on the sum of its window."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if "relu" in getattr(function, "__name__", "") or function is F.local_response_norm:
            return args[0]
        if function in (F.max_pool2d, torch.max_pool2d):
            kernel, stride, padding, ceil = (
                args[i + 1] if len(args) > i + 1 else kwargs.get(key, default)
                for i, key, default in (
                    (0, "kernel_size", None),
                    (1, "stride", None),
                    (2, "padding", 0),
                    (9, "ceil_mode", False),
                )
            )
            return F.avg_pool2d(args[0], kernel, stride, padding, ceil)
        return function(*args, **kwargs)


def cones_of(model, images, layer):
    graph = trace(model)
    stop = graph.stop(layer)
    return Cones(graph, stop, graph.shapes(images.shape, stop))


def test_cone_equals_dense(built):
    """The same reverse steps, on boxes around the unit and on whole maps."""
    for name, (_, deconv, images) in built.items():
        for layer in (layer for layer in deconv.layers if "avgpool" not in layer):
            engine, rules = cones_of(deconv.model, images, layer), Rules("cpu", "deconvnet", "gradient")
            with torch.no_grad():
                run = engine.up(images, rules)
                whole = torch.zeros_like(run.value)
                p = deconv.project(images, layer, 1, norm="gradient")
                for i, (row, column) in enumerate(p.positions.tolist()):
                    whole[i, 1, row, column] = p.values[i]
                origins = p.positions.numpy() * 0
                dense = engine.reversed(run, Box(whole, origins), origins[:, 0] + [0, 1], rules).maps
            assert dense.shape == images.shape
            assert (p.pixels - dense).norm() <= 1e-12 * dense.norm(), (name, layer)


def test_work_stays_on_the_cone(zfnet, monkeypatch):
    """No op of the reverse pass gets or makes a map larger than the unit's cone."""
    sizes = []

    def watch(module, name):
        original = getattr(module, name)

        def watched(g, *args, **kwargs):
            x = original(g, *args, **kwargs)
            sizes.append((g.shape[2], x.shape[2]))
            return x

        monkeypatch.setattr(module, name, watched)

    watch(windowed, "conv_transpose2d")
    watch(graph_layer, "max_unpool2d_relu_conv_transpose2d")
    zf.Deconvnet(zfnet).project(nets.images(3, 224, 224), "conv5", 0, [(6, 6), (0, 0), (12, 5)])
    assert sizes == [(3, 5), (5, 7), (7, 33), (33, 139)]


def test_one_unit_of_the_first_layer_is_its_filter(zfnet):
    images = nets.images(1, 224, 224)
    for place in ((40, 41), (0, 0), (109, 7)):
        p = zf.Deconvnet(zfnet).project(images, "conv1", 5, place)
        expected = torch.zeros(1, 3, 226, 226, dtype=torch.float64)
        expected[0, :, 2 * place[0] : 2 * place[0] + 7, 2 * place[1] : 2 * place[1] + 7] = (
            p.values[0] * zfnet.conv1.weight[5].detach()
        )
        assert torch.equal(p.pixels, expected[:, :, 1:225, 1:225])
        assert error(p.values, nets.plain_zfnet(zfnet, images, "conv1")[:, 5, place[0], place[1]]) < 1e-12


@pytest.mark.parametrize("norm", NORMS)
def test_proportional_to_the_activation(zfnet, norm):
    images, rules = nets.images(1, 224, 224), Rules("cpu", "deconvnet", norm)
    engine = cones_of(zfnet, images, "pool5")
    with torch.no_grad():
        run = engine.up(images, rules)
        units = Units(np.zeros(1, int), np.array([2]), np.zeros((1, 2), int))
        units = units._replace(positions=strongest(run.value, units))
        value = at(run.value, units)
        once, thrice = (
            engine.reversed(run, Single(units, strength * value), units.images, rules).maps for strength in (1, 3)
        )
    assert once.norm() > 0
    assert error(thrice, 3 * once) < 1e-14


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_signals_of_any_size(scale):
    """float32 signals that grow, or fade, by 27 orders on the way down; neither is lost."""
    net = nets.alive(nn.Sequential(*[part for _ in range(3) for part in (nn.Conv2d(4, 4, 3), nn.ReLU())]))
    images = nets.images(1, 12, 11, channels=4) / scale**3
    with torch.no_grad():
        for conv in net[::2]:
            conv.weight.mul_(scale)
            conv.bias.zero_()
    p = zf.Deconvnet(net).project(images, "4", [0, 1, 2], image_index=[0] * 3, strength=1.0)
    small = zf.Deconvnet(net.float()).project(
        images.float(), "4", [0, 1, 2], p.positions, image_index=[0] * 3, strength=1.0
    )
    assert p.pixels.norm() > 0
    assert error(small.pixels, p.pixels) < 1e-5
    larger = zf.Deconvnet(net).project(images.float(), "4", 1, p.positions[1:2], strength=1e9)
    assert error(larger.pixels, 1e9 * p.pixels[1:2]) < 1e-5


def test_signals_near_the_largest_number():
    """Filters above 0, so that what overflows on the way down is infinite, and not NaN."""
    net = nets.alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())).float()
    with torch.no_grad():
        for conv in net[::2]:
            conv.weight.abs_()
    images = nets.images(1, 9, 8).float()
    p = zf.Deconvnet(net).project(images, "2", 1, strength=1.0)
    huge = zf.Deconvnet(net).project(images, "2", 1, p.positions[0], strength=1e30)
    assert p.pixels.norm() > 0
    assert error(huge.pixels.double(), 1e30 * p.pixels.double()) < 1e-5


def test_no_projection_is_lost_on_overlapping_windows():
    """With filters above 0, whatever two windows share must arrive: each positive unit has a projection."""
    model = nets.alive(zf.ZFNet(num_classes=3, channels=(6, 8, 6, 6, 8), fc=(8, 8)))
    with torch.no_grad():
        for row in model.table:
            if row.layer.kind == "conv":
                getattr(model, row.layer.name).weight.abs_()
    images = nets.images(1, 224, 224).abs()
    deconv = zf.Deconvnet(model)
    for layer in ("pool1", "pool2", "pool5"):
        alive = (deconv.activations(images, layer)[0] > 0).nonzero()
        alive = alive[:: max(1, len(alive) // 40)]
        p = deconv.project(images, layer, alive[:, 0], alive[:, 1:])
        assert len(p.values) >= 40
        assert (p.pixels.flatten(1).amax(1) > 0).all()


# Many units


@pytest.mark.parametrize("elements", [1, 20_000, graph_run.PASS_ELEMENTS_CPU])
@pytest.mark.parametrize("name", CHAINS)
def test_a_batch_equals_its_units(built, name, elements, monkeypatch):
    _, deconv, images = built[name]
    images = torch.cat([images, images.flip(2)])[[0, 3, 1]]
    vectors = [layer for layer in CHAINS[name][2] if layer in deconv.vector_layers][:1]
    for layer in (deconv.layers[-1], deconv.layers[len(deconv.layers) // 2], *vectors):
        index = torch.tensor([0, 2, 2, 0, 0, 2, 0, 2])
        shape = deconv.activations(images, layer).shape
        rows, columns = shape[2:] or (1, 1)
        channel = 5 * torch.arange(8) % shape[1]
        place = torch.stack([torch.arange(8) % rows, torch.arange(8, 0, -1) % columns], 1)
        alone = [
            deconv.project(images[i : i + 1], layer, c.item(), tuple(at.tolist()), "gradient")
            for i, c, at in zip(index, channel, place, strict=True)
        ]
        monkeypatch.setattr(graph_run, "PASS_ELEMENTS_CPU", elements)
        p = deconv.project(images, layer, channel, place, "gradient", image_index=index)
        pixels, values, positions, boxes = (torch.cat(parts) for parts in zip(*alone, strict=True))
        assert torch.equal(p.positions, positions)
        assert torch.equal(p.boxes, boxes)
        assert error(p.values, values) < 1e-13  # torch's Linear sums a batch in another order
        assert error(p.pixels, pixels) < 1e-13


def test_units_are_named_by_what_varies(zfnet):
    deconv = zf.Deconvnet(zfnet)
    images = nets.images(3, 120, 131)
    each = deconv.project(images, "conv3", 2)
    assert each.pixels.shape == images.shape
    of_one = deconv.project(images[:1], "conv3", [2, 5, 2, 1])
    assert of_one.pixels.shape == (4, 3, 120, 131)
    assert torch.equal(of_one.pixels[0], each.pixels[0])
    assert torch.equal(of_one.pixels[2], each.pixels[0])
    picked = deconv.project(images, "conv3", torch.tensor([2, 1]), image_index=[2, 0])
    assert torch.equal(picked.pixels[0], each.pixels[2])
    assert torch.equal(picked.values[1], of_one.values[3])
    places = deconv.project(images[:1], "conv3", 2, [(0, 0), (1, 2), tuple(each.positions[0].tolist())])
    assert torch.equal(places.pixels[2], each.pixels[0])
    assert places.positions.tolist()[:2] == [[0, 0], [1, 2]]
    none = deconv.project(images[:0], "conv3", 2)
    assert (none.pixels.shape, none.values.shape, none.positions.shape, none.boxes.shape) == (
        (0, 3, 120, 131),
        (0,),
        (0, 2),
        (0, 4),
    )
    assert deconv.project(images[:1], "conv3", []).pixels.shape == (0, 3, 120, 131)


def test_strongest_is_one_place_the_first():
    net = nets.alive(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    images = torch.zeros(1, 1, 9, 8, dtype=torch.float64)
    images[0, 0, 2:5, 1:4] = images[0, 0, 2:5, 5:8] = images[0, 0, 6:9, 1:4] = net[0].weight[0, 0].detach()
    p = zf.Deconvnet(net).project(images, "0", 0)
    assert p.positions.tolist() == [[2, 1]]
    assert p.boxes.tolist() == [[2, 1, 5, 4]]
    assert torch.equal(p.pixels[0, :, 2:5, 1:4], p.values[0] * net[0].weight[0].detach())
    assert (p.pixels != 0).sum() == 9


# The model


def test_follows_the_weights(zfnet):
    model = copy.deepcopy(zfnet)
    images = nets.images(1, 120, 120)
    deconv = zf.Deconvnet(model)

    def check():
        p = deconv.project(images, "pool2", 1)
        pixels, values, _ = nets.modified_gradient(lambda x: nets.plain_zfnet(model, x, "pool2"), images, 1)
        assert error(p.values, values) < 1e-11
        assert error(p.pixels, pixels) < 1e-9
        return p.values

    seen = [check()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nets.plain_zfnet(model, images, "pool2").sum().backward()
    optimizer.step()
    seen.append(check())
    model.conv1.weight.data.mul_(0.5)
    seen.append(check())
    model.load_state_dict(nets.alive(copy.deepcopy(zfnet), seed=1).state_dict())
    seen.append(check())
    model.load_state_dict(nets.alive(copy.deepcopy(zfnet), seed=2).state_dict(), assign=True)
    seen.append(check())
    assert len(set(seen)) == len(seen)


def test_modes(built):
    net, _, images = built["VGG-11 with batch norms, odd"]
    net = copy.deepcopy(net).train()
    with pytest.raises(RuntimeError, match=r"layer 'features\.1' \(BatchNorm2d\) is in training mode.*model\.eval\(\)"):
        zf.Deconvnet(net).project(images, "features.0", 0)
    net, deconv, images = built["functional"]
    before = deconv.project(images, "pool_2", 1)
    net.train()
    after = deconv.project(images, "pool_2", 1)
    traced_in_training = zf.Deconvnet(net).project(images, "pool_2", 1)
    net.eval()
    assert torch.equal(before.pixels, after.pixels)
    assert torch.equal(before.pixels, traced_in_training.pixels)


def test_leaves_no_trace(zfnet):
    """No gradients, no hooks, no change to the images or the model; autocast does not reach it."""
    model, images = copy.deepcopy(zfnet).float(), nets.images(1, 120, 120).float().requires_grad_()
    kept, state = images.detach().clone(), copy.deepcopy(model.state_dict())
    p = zf.Deconvnet(model).project(images, "conv3", 1)
    with torch.autocast("cpu", torch.bfloat16):
        lower = zf.Deconvnet(model).project(images, "conv3", 1)
    assert torch.equal(p.pixels, lower.pixels)
    assert not p.pixels.requires_grad
    assert not p.values.requires_grad
    assert images.grad is None
    assert torch.equal(images, kept)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_stops_at_the_layer(zfnet):
    """Images that the fc layers cannot take serve the layers below; and nothing above the layer is run."""
    model = copy.deepcopy(zfnet)
    for above in (model.conv4, model.fc6):
        with torch.no_grad():
            above.weight.fill_(float("nan"))
    images = nets.images(1, 120, 90)
    deconv = zf.Deconvnet(model)
    assert torch.isfinite(deconv.project(images, "conv3", 0).pixels).all()
    with pytest.raises(ValueError, match="'fc6', which takes 288 features"):
        deconv.project(images, "fc6", 0)


def test_names_and_aliases(built):
    _, deconv, images = built["AlexNet"]
    assert deconv.layers == (*(f"features.{i}" for i in (0, 2, 3, 5, 6, 8, 10, 12)), "features", "avgpool")
    assert deconv.vector_layers == (*(f"classifier.{i}" for i in (0, 1, 4, 6)), "classifier")
    assert torch.equal(deconv.project(images, "features.4", 3).pixels, deconv.project(images, "features.3", 3).pixels)
    _, deconv, _ = built["functional"]
    assert " ".join(deconv.layers) == (
        "conv_a pool local_response_norm conv_b max_pool2d local_response_norm_1 conv_c pool_1 conv_d pool_2"
    )
    _, deconv, images = built["odd"]
    assert deconv.layers == ("0", "1", "3", "5", "6.0", "6", "7", "8", "10")
    assert torch.equal(deconv.activations(images, "2"), deconv.activations(images, "1"))


@pytest.mark.parametrize("method", ["deconvnet", "guided", "gradient"])
def test_dilated_and_grouped_layers_of_ours(method):
    """As torch's modules with the same filters, a residual sum in the kernel included."""

    class Net(nn.Module):
        def __init__(self, ours):
            super().__init__()
            self.ours = ours
            make = zf.nn.ConvReLU if ours else nn.Conv2d
            self.a = make(3, 6, 3, padding=2, dilation=2, groups=3, dtype=torch.float64)
            self.b = make(6, 6, 3, padding=(1, 2), dilation=(1, 2), groups=2, dtype=torch.float64)
            self.pool = nn.MaxPool2d(2)
            self.c = make(6, 4, 3, stride=2, dtype=torch.float64)

        def forward(self, x):
            x = self.pool(self.a(x) if self.ours else F.relu(self.a(x)))
            if self.ours:
                b = self.b
                x = zf.conv2d_relu(x, b.weight, b.bias, b.stride, b.padding, b.dilation, b.groups, add=x)
                return self.c(x)
            return F.relu(self.c(F.relu(self.b(x) + x)))

    ours, theirs = nets.alive(Net(True)), Net(False)
    theirs.load_state_dict(ours.state_dict())
    images = nets.images(1, 18, 19)
    for layer in ("a", "c"):
        one, other = (zf.Deconvnet(net.eval()).project(images, layer, 2, method=method) for net in (ours, theirs))
        assert torch.allclose(one.pixels, other.pixels, rtol=1e-9, atol=1e-12)
        assert one.pixels.abs().sum() > 0


@pytest.mark.parametrize("norm", NORMS)
def test_zf_modules_and_functions(norm):
    """A net of zfkernels' own modules and functions, centred norms included."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = zf.nn.ConvReLUMaxPool(3, 6, 5, 2, 1, pool_kernel=3, pool_stride=2, ceil_mode=True)
            self.norm = zf.nn.ContrastNorm(4, 0.7, center=True)
            self.conv = zf.nn.ConvReLU(6, 5, 3, padding=1)
            self.pool = zf.nn.MaxPoolSwitches(2, return_switches=True)
            self.weight = nn.Parameter(torch.randn(4, 5, 2, 2))

        def forward(self, x):
            x = self.norm(self.block(x))
            x, _ = self.pool(self.conv(x))
            x, _ = zf.conv2d_relu_max_pool2d(x, self.weight, None, 1, 1, 2, 1, 0, False)
            return zf.contrast_norm(x, 3, 0.4)

    net = nets.alive(Net())
    nn.init.kaiming_normal_(net.weight)

    def plain(x):
        x = F.max_pool2d(F.relu(F.conv2d(x, net.block.weight, net.block.bias, 2, 1)), 3, 2, ceil_mode=True)
        windows = [x[:, max(0, c - 2) : c + 2].mean(1) for c in range(6)]
        x = Pass.apply(x, torch.stack(windows, 1)) if norm != "gradient" else x - torch.stack(windows, 1)
        x = F.local_response_norm(x, 4, 0.7, k=2.0)
        x = F.max_pool2d(F.relu(F.conv2d(x, net.conv.weight, net.conv.bias, padding=1)), 2)
        x = F.max_pool2d(F.relu(F.conv2d(x, net.weight, padding=1)), 2, 1)
        return F.local_response_norm(x, 3, 0.4, k=2.0)

    class Pass(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, mean):
            return x - mean

        @staticmethod
        def backward(ctx, g):
            return g, None

    images = nets.images(2, 45, 50)
    deconv = zf.Deconvnet(net)
    assert deconv.layers == ("block", "norm", "conv", "pool", "conv2d_relu_max_pool2d", "contrast_norm")
    for channel in range(4):
        p = deconv.project(images, "contrast_norm", channel, norm=norm)
        pixels, values, positions = nets.modified_gradient(plain, images, channel, norm=norm)
        assert error(p.values, values) < 1e-11
        assert torch.equal(p.positions, positions)
        assert error(p.pixels, pixels) < 1e-9


@pytest.mark.parametrize("backend", [b for b in zf.available_backends() if torch.float64 in backends.module(b).DTYPES])
def test_every_backend(backend):
    model = nets.alive(zf.ZFNet(3, channels=(4, 6, 5, 5, 4), fc=(5, 5), image_size=76))
    if backend not in ("reference", "cpu"):
        model.cuda()
    images = nets.images(2, 76, 76).to(model.fc8.weight.device)
    expected, *_ = nets.modified_gradient(lambda x: nets.plain_zfnet(model, x, "pool5"), images, 2)
    with zf.use_backend(backend):
        p = zf.Deconvnet(model).project(images, "pool5", 2)
    assert p.pixels.device == images.device
    assert error(p.pixels, expected) < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(zfnet, dtype):
    """Where no window's winner changes: a unit of conv1, in the images' dtype."""
    model = copy.deepcopy(zfnet).to(dtype)
    images = nets.images(1, 60, 60).to(dtype)
    p = zf.Deconvnet(model).project(images, "conv1", 1, (4, 5))
    expected = zf.Deconvnet(zfnet).project(images.double(), "conv1", 1, (4, 5))
    assert p.pixels.dtype == p.values.dtype == dtype
    assert error(p.pixels, expected.pixels) < {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}[dtype]


def test_norm_factors_of_large_half_activations():
    """Whose squares float16 cannot hold."""
    x = 300 + 20 * torch.randn(1, 6, 2, 2)
    factors = norm_factors(x.half(), 5, 0.5, 0.75, 2.0, False)
    assert factors.dtype == torch.float16
    assert error(factors, nets.response_factors(x.half().double(), 5, 0.5, 0.75, 2.0)) < 2e-3


class Renamed(nn.Conv2d):
    pass


def test_what_only_the_images_size_tells(built):
    net, deconv, _ = built["AlexNet"]
    small = nets.images(1, 160, 160)
    assert deconv.project(small, "features.12", 0).pixels.shape == small.shape
    p = deconv.project(small, "classifier.1", 0)  # its maps are 4x4, which the 6x6 bins of the average pool repeat
    assert_equal(
        p,
        *nets.modified_gradient(lambda x: F.relu(net.classifier[1](net.avgpool(net.features(x)).flatten(1))), small, 0),
    )


def test_weights_made_of_others_are_read():
    net = nets.alive(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()))
    nn.utils.parametrizations.weight_norm(net[0])
    deconv, images = zf.Deconvnet(net), nets.images(1, 9, 9)
    with torch.no_grad():
        net[0].parametrizations.weight.original0.mul_(2)
    assert_equal(deconv.project(images, "2", 1), *nets.modified_gradient(net, images, 1))


def test_subclasses_that_change_nothing():
    net = nets.alive(nn.Sequential(Renamed(3, 4, 3), nn.ReLU()))
    assert zf.Deconvnet(net).layers == ("0",)
    assert zf.Deconvnet(net[0]).layers == ("0",)
    assert zf.Deconvnet(torch.compile(net)).layers == ("0",)
    assert zf.Deconvnet(nn.DataParallel(net)).layers == ("0",)


# Wrong arguments


WRONG = {
    "layer": ({"layer": "conv9"}, ValueError, "layer must be one of conv1, pool1, .*fc8, got 'conv9'"),
    "layer type": ({"layer": 3}, ValueError, "layer must be one of conv1, .*got 3"),
    "channel": ({"channel": 10}, ValueError, "channel must be from 0 to 9 \\(layer 'conv3' has 10\\), got 10"),
    "negative channel": ({"channel": -1}, ValueError, "channel must be from 0 to 9 .*got -1"),
    "fractional channel": ({"channel": 1.5}, TypeError, "channel must be an int or a sequence or tensor of ints, got"),
    "channel True": ({"channel": True}, TypeError, "channel must be an int"),
    "channel None": ({"channel": None}, TypeError, "channel must be an int"),
    "channel without values": (
        {"channel": torch.zeros(1, dtype=torch.int64, device="meta")},
        TypeError,
        "channel must be a dense tensor that holds values, got a tensor on meta",
    ),
    "sparse values": (
        {"position": (0, 0), "values": torch.ones(2).to_sparse()},
        TypeError,
        "values must be a dense tensor of real numbers, got torch.float32, a torch.sparse_coo tensor on cpu",
    ),
    "complex values": (
        {"position": (0, 0), "values": torch.ones(2, dtype=torch.complex64)},
        TypeError,
        "values must be a dense tensor of real numbers, got torch.complex64",
    ),
    "sparse position": (
        {"position": torch.zeros(1, 2, dtype=torch.int64).to_sparse()},
        TypeError,
        "position must be a dense tensor that holds values, got a torch.sparse_coo tensor on cpu",
    ),
    "channel text": ({"channel": "3"}, TypeError, "channel must be an int"),
    "channel table": ({"channel": [[1, 2]]}, ValueError, "channel must have at most 1 dimension"),
    "three channels, two images": (
        {"channel": [1, 2, 3]},
        ValueError,
        "as many units each.*2 by images, 3 by channel",
    ),
    "position": ({"position": (3, 8)}, ValueError, r"position must be from 0 to 5 \(horizontally; .*4x6\), got 8"),
    "negative position": ({"position": (-1, 0)}, ValueError, r"position must be from 0 to 3 \(vertically; .*got -1"),
    "one number": ({"position": 4}, ValueError, r"position must be \(vertical, horizontal\)"),
    "three numbers": ({"position": (1, 2, 3)}, ValueError, r"position must be \(vertical, horizontal\)"),
    "fractional position": ({"position": (1.0, 2.0)}, TypeError, "position must be an int or a sequence"),
    "positions": ({"position": [(1, 1)] * 3}, ValueError, "as many units each.*3 by position"),
    "vector position": ({"layer": "fc6", "position": (1, 0)}, ValueError, r"position must be from 0 to 0 \(vertically"),
    "norm": ({"norm": "none"}, ValueError, "norm must be one of identity, gradient, rescale, got 'none'"),
    "image_index": ({"image_index": 2}, ValueError, "image_index must be from 0 to 1 \\(there are 2 images\\), got 2"),
    "image_index type": ({"image_index": 0.0}, TypeError, "image_index must be an int"),
    "values alone": ({"values": [1.0]}, ValueError, "position must be given with values"),
    "values": ({"position": (1, 2), "values": [1.0] * 3}, ValueError, r"values must have shape \(2,\).*got \(3,\)"),
    "values type": ({"position": (1, 2), "values": ["a"]}, TypeError, "values must be a number a unit, got"),
    "values NaN": ({"position": (1, 2), "values": [float("nan"), 1]}, ValueError, "not finite"),
    "images type": ({"images": [1, 2]}, TypeError, "images must be a torch.Tensor, got list"),
    "one image": ({"images": torch.zeros(3, 80, 80)}, ValueError, r"images must have 4 dimensions.*images\[None\]"),
    "bytes": ({"images": torch.zeros(1, 3, 80, 80, dtype=torch.uint8)}, TypeError, "images must have dtype float32"),
    "dtype": ({"images": torch.zeros(1, 3, 80, 80)}, TypeError, "images must have the model's dtype, torch.float64"),
    "grey": ({"images": nets.images(1, 80, 80, channels=1)}, ValueError, "'conv1', which takes 3 channels"),
    "small": ({"images": nets.images(1, 20, 200)}, ValueError, "images are too small for layer 'conv2'"),
    "NaN": (
        {"images": nets.images(1, 80, 120) * float("nan")},
        ValueError,
        "images or weights .*not finite.* is nan at",
    ),
    "infinity": ({"images": nets.images(1, 80, 120) / 0}, ValueError, "images or weights hold values .*not finite"),
}


def test_a_strength_beyond_the_images_dtype_is_named():
    deconv = zf.Deconvnet(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 3), torch.nn.ReLU()))
    with pytest.raises(ValueError, match=r"strength must be from -3.4.* to 3.4.*, for images of torch.float32, got"):
        deconv.project(torch.ones(1, 3, 8, 8), "0", 0, strength=1e308)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    model = nets.alive(zf.ZFNet(4, channels=(4, 6, 10, 6, 6), fc=(5, 5), image_size=(80, 120)))
    change, kind, message = WRONG[name]
    arguments = {"images": nets.images(2, 80, 120), "layer": "conv3", "channel": 1} | change
    with pytest.raises(kind, match=message):
        zf.Deconvnet(model).project(**arguments)


def test_model_must_be_a_module_with_layers():
    with pytest.raises(ValueError, match="layer must be one of 0, got '1'"):
        zf.Deconvnet(nn.Sequential(nn.Conv2d(3, 2, 3))).project(torch.zeros(1, 3, 9, 9), "1", 0)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got function"):
        zf.Deconvnet(lambda x: x)
