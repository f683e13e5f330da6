"""What people do with other people's networks: projections, occlusion maps, strongest activations, each of whole
networks from torchvision and elsewhere, against autograd with other rules, plain batches, and Captum.

Weights are drawn, images are noise: what is timed does not depend on them, and noise has no ties.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import zfkernels

from ..analyses.activations import top_activations
from ..analyses.occlusion import occlusion_map
from ..testing.torchvision import torchvision
from ..testing.weights import pictures, randomised
from . import checks, modified
from .peers import LAST, Call, Case, Setting

SIDE = 224
UNITS = 9
FOLDER = 10  # images of which the UNITS strongest are projected
CHECKED = slice(None, None, 4)  # of nine units or 16 windows, those that are compared with float64
PATCH = 56  # covered windows, side by side
BOUND = 1e-3  # relative error of a right result, LEFT_OUT of a projection's pixels not compared
DEPTHS = ("early", "middle", "late")
CAPTUM = {"deconvnet": "Deconvolution", "gradient": "Saliency", "guided": "GuidedBackprop"}


class Net(NamedTuple):
    """A network's name in tables, the package it is from, its name there, an early, a middle and a late layer."""

    text: str
    package: str
    name: str
    layers: tuple[str, str, str]

    def missing(self) -> str:
        """Why it cannot be measured here, or nothing."""
        if find_spec(self.package) is not None:
            return ""
        return f"{self.text} needs {self.package}: pip install 'zfkernels[nets]'"

    def layer(self, depth: str) -> str:
        return self.layers[DEPTHS.index(depth)]


NETS = {
    "alexnet": Net("AlexNet", "torchvision", "alexnet", ("features.2", "features.5", "features.12")),
    "resnet18": Net("ResNet-18", "torchvision", "resnet18", ("layer1", "layer2", "layer4")),
    "resnet50": Net("ResNet-50", "torchvision", "resnet50", ("layer1", "layer2", "layer4")),
    "densenet121": Net(
        "DenseNet-121",
        "torchvision",
        "densenet121",
        ("features.transition1", "features.transition2", "features.denseblock4"),
    ),
    "mobilenetv2": Net("MobileNetV2", "torchvision", "mobilenet_v2", ("features.3", "features.6", "features.17")),
    "lite0": Net(
        "EfficientNet-Lite0",
        "efficientnet_lite_pytorch",
        "efficientnet-lite0",
        ("_blocks.2", "_blocks.4", "_blocks.15"),
    ),
    "vgg16": Net("VGG-16", "torchvision", "vgg16", ("features.9", "features.16", "features.30")),
}


def drawn(net: Net) -> nn.Module:
    """The network as its package makes it, with weights drawn by torch's generator."""
    if net.package == "torchvision":
        package = torchvision()
        assert package is not None
        model: nn.Module = package.models.get_model(net.name, weights=None)
    else:
        model = import_module(net.package).EfficientNet.from_name(net.name)
    return model


@lru_cache(maxsize=1)
def network(net: Net, device: str, dtype: torch.dtype) -> nn.Module:
    """The network, channels-last. It is shared: nothing may train it."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        made: Any = randomised(drawn(net), pictures(SIDE).float())
    network: nn.Module = made.to(device, dtype, memory_format=LAST)
    return network


def images_of(count: int, setting: Setting) -> Tensor:
    return pictures(SIDE, count, seed=1).to(setting.device, setting.dtype, memory_format=LAST)


def strongest(value: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The maps (or features) of the first image with the largest activations, and their places (count, 2)."""
    maps = value[0].flatten(1)
    channels = maps.amax(1).topk(count).indices
    place = maps[channels].argmax(1)
    return channels, torch.stack([place // value.shape[3], place % value.shape[3]], 1)


def case_of(setting: Setting, n: int, right: Call, check: checks.Check, items: int) -> Case:
    return Case(replace(setting, bound=BOUND), n, right, check=check, items=items)


def checked_projections(outs: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    return checks.small_projections((outs[0][CHECKED],), right)


def deconvnet(case: Case, model: nn.Module) -> Callable[[], zfkernels.Deconvnet]:
    """The deconvnet of the model, made now; a model that is refused is refused again when the case is run."""
    with zfkernels.use_backend(case.setting.backend):
        try:
            made = zfkernels.Deconvnet(model)
        except Exception as error:
            refusal = error

            def refused() -> zfkernels.Deconvnet:
                raise refusal

            return refused
    return lambda: made


# Projections


def project(net: Net, depth: str, count: int, method: str, n: int, setting: Setting) -> Case:
    """An image's `count` strongest units of a layer."""
    x, model, layer = images_of(1, setting), network(net, setting.device, setting.dtype), net.layer(depth)
    channels, positions = strongest(modified.value_of(model, layer, x), count)
    zeros = [0] * count

    def right() -> tuple[Tensor]:
        units = zeros[CHECKED], channels[CHECKED], positions[CHECKED]
        return (modified.project(in_float64(model), layer, x.double(), *units, method, False),)

    case = case_of(setting, n, right, checked_projections, count)
    made = deconvnet(case, model)
    case.add_ours(lambda: made().project(x, layer, channels, positions, method=method, image_index=zeros).pixels)
    ways = {"autograd": True} if count == 1 else {"autograd each": False}
    if count > 1 and depth == DEPTHS[0]:  # above, where torch's batching rules cost more than they save, it is slower
        ways["autograd batched"] = True
    for who, batched in ways.items():
        if setting.wants(who):
            call = partial(modified.project, model, layer, x, zeros, channels, positions, method, batched)
            case.run[who] = partial(alone, call)
    if count == 1:
        add_captum(case, model, layer, x, (int(channels[0]), *positions[0].tolist()), method)
    return case


def alone(call: Callable[[], Tensor]) -> tuple[Tensor]:
    return (call(),)


def in_float64(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model).double()


class Until(nn.Module):
    """A model whose output is the value of one of its layers."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model, self.layer = model, layer

    def forward(self, x: Tensor) -> Tensor:
        return modified.value_of(self.model, self.layer, x)


def add_captum(case: Case, model: nn.Module, layer: str, x: Tensor, unit: tuple[int, ...], method: str) -> None:
    """Captum's attribution of one unit, times its value. Its hooks want rectifiers that do not write in place."""
    if not asked(case, "captum"):
        return
    until = Until(copy.deepcopy(model), layer)
    for module in until.modules():
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            module.inplace = False
    place = (0, *unit)
    value = modified.value_of(model, layer, x)[place]
    attribution = getattr(import_module("captum.attr"), CAPTUM[method])(until)
    settings = {"abs": False} if method == "gradient" else {}

    def run() -> tuple[Tensor]:
        with torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that it sets hooks
            leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
            return (attribution.attribute(leaf, target=unit, **settings).detach() * value,)

    case.run["captum"] = run


def asked(case: Case, who: str) -> bool:
    """Is the peer wanted, and installed? If not installed, the case says so."""
    if not case.setting.wants(who):
        return False
    if find_spec("captum") is None:
        case.missing[who] = "not installed"
        return False
    return True


def folder(net: Net, n: int, setting: Setting) -> Case:
    """Of n images the nine that excite one map of the middle layer most, projected, guided."""
    x, model, layer = images_of(n, setting), network(net, setting.device, setting.dtype), net.layer("middle")
    channel = int(strongest(modified.value_of(model, layer, x[:1]), 1)[0])

    def torchs(model: nn.Module, x: Tensor, projected: slice = slice(None)) -> tuple[Tensor]:
        maps = modified.value_of(model, layer, x)[:, channel]
        chosen = maps.flatten(1).amax(1).topk(UNITS).indices
        place = maps[chosen].flatten(1).argmax(1)
        positions = torch.stack([place // maps.shape[2], place % maps.shape[2]], 1)
        chosen, positions = chosen[projected], positions[projected]
        index, channels = list(range(len(chosen))), [channel] * len(chosen)
        return (modified.project(model, layer, x[chosen], index, channels, positions, "guided"),)

    def right() -> tuple[Tensor]:
        return torchs(in_float64(model), x.double(), CHECKED)

    case = case_of(setting, n, right, checked_projections, UNITS)
    made = deconvnet(case, model)

    def ours() -> Tensor:
        top = top_activations(made(), [x], layer, UNITS)
        index, positions = top.images[channel], top.positions[channel]
        projection = made().project(x, layer, channel, positions, method="guided", image_index=index)
        return projection.pixels

    case.add_ours(ours)
    if setting.wants("autograd"):
        case.run["autograd"] = partial(torchs, model, x)
    return case


# Occlusion, strongest activations


def checked_values(outs: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    return checks.values((outs[0][CHECKED],), right)


def occlusion(net: Net, n: int, setting: Setting) -> Case:
    """How much of the most probable class's logit each of 16 windows takes away, of one image."""
    x, model = images_of(1, setting), network(net, setting.device, setting.dtype)
    target, cells = int(model(x)[0].argmax()), SIDE // PATCH

    def covered(x: Tensor) -> Tensor:
        windows = x.repeat(cells**2, 1, 1, 1)
        for i in range(cells**2):
            top, left = PATCH * (i // cells), PATCH * (i % cells)
            windows[i, :, top : top + PATCH, left : left + PATCH] = 0
        return windows

    def plain(model: nn.Module, x: Tensor, looked_at: slice = slice(None)) -> tuple[Tensor]:
        return (model(x)[0, target] - model(covered(x)[looked_at])[:, target],)

    def right() -> tuple[Tensor]:
        return plain(in_float64(model), x.double(), CHECKED)

    case = case_of(setting, n, right, checked_values, cells**2)

    def ours() -> Tensor:
        found = occlusion_map(model, x, target, patch=PATCH, stride=PATCH, fill=0.0)
        return (found.clear_logit - found.logit).flatten()

    case.add_ours(ours)
    if setting.wants("eager nhwc"):
        case.run["eager nhwc"] = partial(plain, model, x)
    if asked(case, "captum"):
        attribution = import_module("captum.attr").Occlusion(model)
        window = {"sliding_window_shapes": (3, PATCH, PATCH), "strides": (3, PATCH, PATCH)}

        def captums() -> tuple[Tensor]:
            maps = attribution.attribute(x, target=target, baselines=0, perturbations_per_eval=cells**2, **window)
            return (maps[0, 0, ::PATCH, ::PATCH].flatten(),)

        case.run["captum"] = captums
    return case


def top(net: Net, n: int, setting: Setting) -> Case:
    """The strongest activations of every map of the middle layer over n images."""
    x, model, layer = images_of(n, setting), network(net, setting.device, setting.dtype), net.layer("middle")

    def plain(model: nn.Module, x: Tensor) -> tuple[Tensor]:
        return (modified.value_of(model, layer, x).amax((2, 3)).topk(UNITS, 0).values.T,)

    case = case_of(setting, n, lambda: plain(in_float64(model), x.double()), checks.values, n)
    made = deconvnet(case, model)
    case.add_ours(lambda: top_activations(made(), [x], layer, UNITS).values)
    if setting.wants("eager nhwc"):
        case.run["eager nhwc"] = partial(plain, model, x)
    return case


def jobs() -> Sequence[tuple[str, Net, str, Callable[[int, Setting], Case], int]]:
    """Name, network, words, what builds the case, batch size."""
    found = []
    for key, net in NETS.items():
        for count, word in ((1, "one"), (UNITS, "nine")):
            for depth in DEPTHS:
                text = f"{net.text}: {word} of {net.layer(depth)} projected"
                found.append((f"{key}-{word}-{depth}", net, text, partial(project, net, depth, count, "deconvnet"), 1))
        build = partial(project, net, "middle", 1, "gradient")
        found.append((f"{key}-saliency", net, f"{net.text}: one of {net.layer('middle')} by its gradient", build, 1))
        text = f"{net.text}: the nine strongest of {FOLDER} images, guided"
        found.append((f"{key}-folder", net, text, partial(folder, net), FOLDER))
        found.append((f"{key}-occlusion", net, f"{net.text}: occlusion map of 16 windows", partial(occlusion, net), 1))
        text = f"{net.text}: strongest activations of {net.layer('middle')}"
        found.append((f"{key}-top", net, text, partial(top, net), FOLDER))
    return found
