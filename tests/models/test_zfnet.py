"""ZFNet's shapes, sizes and variants, what it computes, and how it behaves as a torch module."""

import copy

import nets
import pytest
import torch
from conftest import error
from torch import nn

import zfkernels as zf
from zfkernels import backends
from zfkernels.models.zfnet import TABLE, Layer, clamp_filters_


@pytest.fixture(scope="module")
def full():
    """The real one, without memory for its weights."""
    return zf.ZFNet(device="meta")


def small(**changes):
    arguments = {"num_classes": 5, "channels": (4, 6, 5, 5, 4), "fc": (7, 6), "image_size": 64} | changes
    return zf.ZFNet(**arguments)


def test_parameters(full):
    assert sum(parameter.numel() for parameter in full.parameters()) == 62_357_608
    assert sum(row.parameters for row in full.table) == 62_357_608


def test_sizes_and_receptive_fields(full):
    found = {row.layer.name: (row.channels, row.size[0], *(row.field[:2] if row.field else ())) for row in full.table}
    assert found == {
        "conv1": (96, 110, 7, 2),
        "pool1": (96, 55, 11, 4),
        "norm1": (96, 55, 11, 4),
        "conv2": (256, 26, 27, 8),
        "pool2": (256, 13, 43, 16),
        "norm2": (256, 13, 43, 16),
        "conv3": (384, 13, 75, 16),
        "conv4": (384, 13, 107, 16),
        "conv5": (256, 13, 139, 16),
        "pool5": (256, 6, 171, 32),
        "fc6": (4096, 1),
        "fc7": (4096, 1),
        "fc8": (1000, 1),
    }
    assert full.receptive_field("conv5") == (139, 16, -49)
    with pytest.raises(ValueError, match=r"layer must be one of conv1, .*pool5, got 'fc6'"):
        full.receptive_field("fc6")


def test_children_are_in_the_tables_order(full):
    assert [name for name, _ in full.named_children()] == [layer.name for layer in TABLE] + ["dropout"]
    assert full(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)


def test_maps_have_the_tables_sizes():
    model = small(image_size=(70, 91))
    deconv = zf.Deconvnet(model.double())
    images = nets.images(2, 70, 91)
    for row in model.table:
        value = deconv.activations(images, row.layer.name)
        assert value.shape == ((2, row.channels, *row.size) if row.field else (2, row.channels))


def test_computes_what_plain_torch_does():
    model = nets.alive(small())
    images = nets.images(3, 64, 64)
    assert error(model(images), nets.plain_zfnet(model, images)) < 1e-12
    assert error(model.features(images), nets.plain_zfnet(model, images, "pool5")) < 1e-12


def test_gradients_are_plain_torchs():
    model = nets.alive(small()).train()
    model.dropout.p = 0.0
    images = nets.images(3, 64, 64).requires_grad_()
    weights = [images, *model.parameters()]
    cotangent = torch.randn(3, 5, dtype=torch.float64)
    ours = torch.autograd.grad(model(images), weights, cotangent)
    expected = torch.autograd.grad(nets.plain_zfnet(model, images), weights, cotangent)
    for one, other in zip(ours, expected, strict=True):
        assert error(one, other) < 1e-11


@pytest.mark.parametrize("backend", [b for b in zf.available_backends() if torch.float64 in backends.module(b).DTYPES])
def test_every_backend(backend):
    model = nets.alive(small())
    images = nets.images(2, 64, 64)
    expected = nets.plain_zfnet(model, images)
    if backend not in ("reference", "cpu"):
        model, images = model.cuda(), images.cuda()
    with zf.use_backend(backend):
        logits = model(images)
        logits.sum().backward()
    assert error(logits, expected) < 1e-11
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("without", "parameters"),
    [
        ((), 62_357_608),
        (("conv3", "conv4"), 62_357_608 - 885_120 - 1_327_488 - 256 * 9 * (384 - 256)),
        (("fc7",), 62_357_608 - 16_781_312),
        (("fc6", "fc7"), 62_357_608 - 37_752_832 - 16_781_312 + (9216 - 4096) * 1000),
        (("conv3", "conv4", "fc6", "fc7"), 14_208 + 614_656 + 256 * 256 * 9 + 256 + 9_217_000),
        ("norm1", 62_357_608),
    ],
)
def test_layers_left_out(without, parameters):
    model = zf.ZFNet(without=without, device="meta")
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert not {name for name, _ in model.named_children()} & ({without} if isinstance(without, str) else set(without))
    assert model(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 1000)


def test_variants():
    model = zf.ZFNet(7, in_channels=1, image_size=(96, 80), channels=(8, 9, 10, 11, 12), fc=(13, 14), dropout=0.25)
    assert [(*p.shape,) for n, p in model.named_parameters() if n.endswith("weight")] == [
        (8, 1, 7, 7),
        (9, 8, 5, 5),
        (10, 9, 3, 3),
        (11, 10, 3, 3),
        (12, 11, 3, 3),
        (13, 12 * 2 * 1),
        (14, 13),
        (7, 14),
    ]
    assert model.dropout.p == 0.25
    assert model(torch.randn(2, 1, 96, 80)).shape == (2, 7)
    centred = small(center=True).norm1
    assert centred.center
    assert centred(torch.ones(1, 4, 3, 3)).abs().max() < 1e-6
    table = [Layer("conv1", "conv", 96, 11, 4, 2), *TABLE[1:]]
    assert zf.ZFNet(table=table, device="meta").table[0].size == (55, 55)
    assert small(dtype=torch.float64).fc8.weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
        ({"num_classes": 2.0}, TypeError, "num_classes must be an int, got 2.0"),
        ({"in_channels": True}, TypeError, "in_channels must be an int, got True"),
        ({"image_size": 40}, ValueError, r"image_size must leave pool5 at least one 3x3 window, got \(40, 40\)"),
        ({"image_size": (0, 3)}, ValueError, "image_size must be at least 1"),
        ({"channels": (1, 2, 3)}, ValueError, "channels must have 5 numbers, for conv1, .*conv5, got"),
        ({"channels": (1, 2, 3, 4, 0)}, ValueError, "channels must be at least 1, got 0"),
        ({"fc": (4096,)}, ValueError, "fc must have 2 numbers, for fc6, fc7, got"),
        ({"without": ("conv6",)}, ValueError, r"without must name layers of conv1, .*fc7, got \['conv6'\]"),
        ({"without": ("fc8",)}, ValueError, "without must name layers of"),
        ({"dropout": 1.5}, ValueError, "dropout must be from 0 to 1, got 1.5"),
        ({"table": [Layer("a", "blur"), TABLE[-1]]}, ValueError, "table must have layers of kind conv, pool"),
        ({"table": [TABLE[0], *TABLE]}, ValueError, "table must have a name of its own for each layer, got .*conv1"),
        (
            {"table": [TABLE[-2], TABLE[0], TABLE[-1]]},
            ValueError,
            "table must have its fc layers last, got conv1 above",
        ),
        (
            {"channels": (2**31 - 1,) * 5},
            ValueError,
            "in_channels, image_size, channels, fc and num_classes must leave conv2 a weight and a map that",
        ),
        ({"fc": (2**31 - 1, 2**31 - 1)}, ValueError, "fc and num_classes must leave fc7 a weight"),
        ({"image_size": 2**31 - 1}, ValueError, "image_size, .* must leave conv1 a weight and a map"),
        ({"table": TABLE[:-3]}, ValueError, "table must end with an fc layer, got"),
    ],
)
def test_wrong_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        zf.ZFNet(device="meta", **arguments)


def test_wrong_images():
    model = small()
    for images in (torch.zeros(3, 64, 64), torch.zeros(1, 3, 64, 65), torch.zeros(1, 1, 64, 64)):
        with pytest.raises(ValueError, match=r"images must have shape \(N, 3, 64, 64\), got \("):
            model(images)
    with pytest.raises(TypeError, match="dtype"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"images must be a torch.Tensor, got list"):
        model([torch.zeros(3, 64, 64)])


@pytest.mark.parametrize("layer", [["conv1"], None, "fc6"])
def test_what_has_no_receptive_field_is_named(layer):
    with pytest.raises(ValueError, match=r"layer must be one of conv1, .*, got"):
        small().receptive_field(layer)


def test_start():
    model = zf.ZFNet(50, channels=(32, 64, 64, 64, 64), fc=(256, 256))
    for row in model.table:
        if row.parameters:
            module = getattr(model, row.layer.name)
            assert module.bias.abs().max() == 0
            assert module.weight.std().item() == pytest.approx(1e-2, rel=0.1)
            assert abs(module.weight.mean().item()) < 1e-3
    he = small(weight_std=None, channels=(64, 64, 64, 64, 64))
    assert he.conv4.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.1)


def test_state_dict_round_trip(tmp_path):
    model, other = nets.alive(small()), nets.alive(small(), seed=1)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    images = nets.images(1, 64, 64)
    assert not torch.equal(model(images), other(images))
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(model(images), other(images))
    layers = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")
    assert set(model.state_dict()) == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    assert torch.equal(copy.deepcopy(model)(images), model(images))


def test_modes():
    model = nets.alive(small())
    images = nets.images(2, 64, 64)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_hooks_see_every_map():
    model = nets.alive(small())
    images = nets.images(1, 64, 64)
    expected, seen = model(images), {}
    names = [layer.name for layer in TABLE]
    for name in names:
        getattr(model, name).register_forward_hook(lambda _, __, value, name=name: seen.update({name: value}))
    assert error(model(images), expected) < 1e-12
    assert sorted(seen) == sorted(names)
    for name in names[:10]:
        assert error(seen[name], nets.plain_zfnet(model, images, name)) < 1e-12


@pytest.mark.parametrize("name", [layer.name for layer in TABLE])
def test_a_hook_before_a_layer_sees_the_map_below_and_may_change_it(name):
    """Before a pool too, whose convolution is otherwise one kernel with it."""
    model = nets.alive(small())
    images, seen = nets.images(1, 64, 64), []
    expected = model(images)
    hook = getattr(model, name).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert error(model(images), expected) < 1e-12
    assert len(seen) == 1
    hook.remove()
    getattr(model, name).register_forward_pre_hook(lambda _, inputs: inputs[0] * 0)
    assert error(model(images), expected) > 1e-3


def test_replaced_modules_are_used():
    model = nets.alive(small())
    images = nets.images(1, 64, 64)
    model.norm1 = nn.Identity()
    model.pool1 = nn.AvgPool2d(3, 2, ceil_mode=True)
    plain = torch.relu(nn.functional.conv2d(images, model.conv1.weight, model.conv1.bias, 2, 1))
    seen = []
    model.conv2.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    model(images)
    assert error(seen[0], nn.functional.avg_pool2d(plain, 3, 2, ceil_mode=True)) < 1e-12


def test_compiles():
    model = nets.alive(small())
    images = nets.images(2, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert error(compiled(images), model(images)) < 1e-13
    model.train()
    model.dropout.p = 0.0
    expected = torch.autograd.grad(model(images).sum(), model.conv1.weight)
    assert error(torch.autograd.grad(compiled(images).sum(), model.conv1.weight)[0], expected[0]) < 1e-12
    exported = torch.export.export(model.eval(), (images,))
    assert error(exported.module()(images), model(images)) < 1e-13


def test_learns():
    """Two classes, a bright and a dark half, with the paper's momentum and clamp."""
    model = zf.ZFNet(2, channels=(8, 12, 12, 12, 8), fc=(32, 32), image_size=64, weight_std=None, dropout=0.1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    labels = torch.arange(16) % 2
    images = 0.1 * torch.randn(16, 3, 64, 64)
    images[labels == 1, :, :32] += 1
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        clamp_filters_(model)
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]
    assert model.eval()(images).argmax(1).eq(labels).all()


def test_clamp_filters():
    model = small()
    with torch.no_grad():
        model.conv2.weight[0] = torch.randn_like(model.conv2.weight[0])
        model.conv2.weight[1] = 0.0
        model.fc6.weight.mul_(100)
    before = copy.deepcopy(model.state_dict())
    clamp_filters_(model)
    for name, value in model.state_dict().items():
        if name == "conv2.weight":
            assert torch.equal(value[1:], before[name][1:])
            assert value[0].square().mean().sqrt().item() == pytest.approx(0.1)
            assert torch.allclose(value[0] / value[0, 0, 0, 0], before[name][0] / before[name][0, 0, 0, 0])
        else:
            assert torch.equal(value, before[name])
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 2))
    nn.init.constant_(plain[0].weight, -3.0)
    clamp_filters_(plain, rms=0.5)
    assert torch.allclose(plain[0].weight, torch.tensor(-0.5))
    with pytest.raises(ValueError, match="rms must be above 0, got 0"):
        clamp_filters_(model, rms=0)
    with pytest.raises(TypeError, match="rms must be a number, got '1'"):
        clamp_filters_(model, rms="1")
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got NoneType"):
        clamp_filters_(None)


# zfkernels.nn


def test_modules_are_their_functions():
    x = nets.images(2, 17, 19)
    conv = zf.nn.ConvReLU(3, 5, (3, 2), stride=(2, 1), padding=1, dtype=torch.float64)
    torch.manual_seed(3)
    ours = zf.nn.ConvReLU(3, 5, (3, 2), dtype=torch.float64)
    torch.manual_seed(3)
    theirs = nn.Conv2d(3, 5, (3, 2), dtype=torch.float64)
    assert torch.equal(ours.weight, theirs.weight)
    assert torch.equal(ours.bias, theirs.bias)
    assert torch.equal(conv(x), zf.conv2d_relu(x, conv.weight, conv.bias, (2, 1), 1))
    without = zf.nn.ConvReLU(3, 5, 3, bias=False, dtype=torch.float64)
    assert without.bias is None
    assert torch.equal(without(x), zf.conv2d_relu(x, without.weight))
    depthwise = zf.nn.ConvReLU(3, 6, 3, padding=2, dilation=2, groups=3, dtype=torch.float64)
    assert (depthwise.in_channels, *depthwise.weight.shape) == (3, 6, 1, 3, 3)
    assert torch.equal(depthwise(x), zf.conv2d_relu(x, depthwise.weight, depthwise.bias, 1, 2, 2, 3))
    y, switches = zf.max_pool2d_with_switches(x, 3, 2, 1, True)
    assert torch.equal(zf.nn.MaxPoolSwitches(3, 2, 1, True)(x), y)
    assert torch.equal(zf.nn.MaxPoolSwitches(3, 2, 1, True, return_switches=True)(x)[1], switches)
    block = zf.nn.ConvReLUMaxPool(3, 4, 3, 1, 1, pool_kernel=2, return_switches=True, dtype=torch.float64)
    for one, other in zip(
        block(x), zf.conv2d_relu_max_pool2d(x, block.weight, block.bias, 1, 1, 2, 2, 0, False), strict=True
    ):
        assert torch.equal(one, other)
    norm = zf.nn.ContrastNorm(4, 0.2, 0.6, 1.5, center=True)
    assert torch.equal(norm(x), zf.contrast_norm(x, 4, 0.2, 0.6, 1.5, center=True))


def test_modules_show_their_arguments():
    assert repr(zf.nn.ConvReLU(3, 5, 3, 2, bias=False)) == (
        "ConvReLU(3, 5, kernel_size=(3, 3), stride=(2, 2), padding=(0, 0), bias=False)"
    )
    assert repr(zf.nn.MaxPoolSwitches(3, 2, ceil_mode=True)) == (
        "MaxPoolSwitches(kernel_size=(3, 3), stride=(2, 2), padding=(0, 0), ceil_mode=True)"
    )
    assert repr(zf.nn.ContrastNorm()) == "ContrastNorm(5, alpha=0.0001, beta=0.75, k=2.0, center=False)"
    assert "pool_kernel=(3, 3)" in repr(zf.nn.ConvReLUMaxPool(3, 5, 3, pool_kernel=3))


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: zf.nn.ConvReLU(0, 5, 3), ValueError, "in_channels must be at least 1, got 0"),
        (lambda: zf.nn.ConvReLU(3, 5.0, 3), TypeError, "out_channels must be an int, got 5.0"),
        (lambda: zf.nn.ConvReLU(3, 5, 0), ValueError, "kernel_size must be at least 1, got 0"),
        (lambda: zf.nn.ConvReLU(3, 5, 3, stride=0), ValueError, "stride must be at least 1, got 0"),
        (lambda: zf.nn.ConvReLU(3, 5, 3, padding=-1), ValueError, "padding must be at least 0, got -1"),
        (
            lambda: zf.nn.ConvReLU(3, 5, 2**31 - 1),
            ValueError,
            r"kernel_size must leave a weight that some memory can hold, got \(2147483647, 2147483647\)",
        ),
        (lambda: zf.nn.MaxPoolSwitches(2, return_switches=1), TypeError, "return_switches must be True or False, got"),
        (lambda: zf.nn.MaxPoolSwitches(2, ceil_mode=0), TypeError, "ceil_mode must be True or False, got 0"),
        (
            lambda: zf.nn.ConvReLUMaxPool(3, 5, 3, pool_kernel=2, return_switches=None),
            TypeError,
            "return_switches must be True or False, got None",
        ),
        (lambda: zf.nn.MaxPoolSwitches((2, 2, 2)), ValueError, "kernel_size must be an int or a pair"),
        (
            lambda: zf.nn.MaxPoolSwitches(20)(torch.zeros(1, 1, 40, 40)),
            ValueError,
            "kernel_size must cover at most 256",
        ),
        (lambda: zf.nn.ContrastNorm(0)(torch.zeros(1, 1, 4, 4)), ValueError, "size must be"),
        (lambda: zf.nn.ConvReLU(3, 5, 3, backend="gpu")(torch.zeros(1, 3, 4, 4)), ValueError, "backend must be one of"),
    ],
)
def test_modules_refuse(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
