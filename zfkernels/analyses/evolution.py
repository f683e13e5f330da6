"""What a map responds to as training goes on (Zeiler & Fergus, section 4.1 and Fig. 4)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..deconvnet.deconvnet import Deconvnet
from ..drawing.tiles import cut, frame, plain_picture, signed_picture
from ..models import checkpoint
from .activations import top_activations


@dataclass(frozen=True)
class Moment:
    """One map in one checkpoint: its strongest activation over the images, projected."""

    value: float
    image: int
    position: tuple[int, int]
    box: tuple[int, int, int, int]
    pixels: Tensor  # (C, H, W)


def evolution(
    networks: Mapping[str, nn.Module],
    images: Tensor | Mapping[str, Tensor],
    layer: str,
    channels: Sequence[int],
    *,
    norm: str = "identity",
    batch: int = 64,
) -> dict[str, list[Moment]]:
    """For each checkpoint the strongest activation of each map over all images, projected to pixels.

    As in the paper it is one (image, place) a map; a jump in what is shown is a change of that image.

    Args:
        networks: name -> model, in the order of training; only one is used at a time, so a mapping that loads on
            access holds one in memory.
        images: (N, C, H, W), as the models take them; or name -> images, where their means differ.
        channels: the maps of `layer`.
    """
    found: dict[str, list[Moment]] = {}
    for name in networks:
        deconv = Deconvnet(networks[name])
        inputs = images if isinstance(images, Tensor) else images[name]
        top = top_activations(deconv, inputs.split(batch), layer, k=1)
        maps = torch.tensor(list(channels))
        if len(maps) == 0 or int(maps.min()) < 0 or int(maps.max()) >= len(top.values):
            raise ValueError(f"channels must be from 0 to {len(top.values) - 1}, got {list(channels)}")
        chosen, index = top.images[maps, 0].unique(return_inverse=True)
        result = deconv.project(inputs[chosen], layer, maps, top.positions[maps, 0], norm, image_index=index)
        found[name] = [
            Moment(
                value=float(result.values[i]),
                image=int(top.images[channel, 0]),
                position=tuple(top.positions[channel, 0].tolist()),
                box=tuple(result.boxes[i].tolist()),
                pixels=result.pixels[i],
            )
            for i, channel in enumerate(maps.tolist())
        ]
    return found


def evolution_figure(
    found: Mapping[str, list[Moment]], pictures: Tensor, layer: str, channels: Sequence[int], path: Path
) -> None:
    """A row a map, a column a checkpoint: the projection, each on a scale of its own, and beneath it its patch.

    `pictures`: the images as uint8 (N, 3, H, W).
    """
    from ..drawing.style import SOFT, new_figure

    names, shape = list(found), tuple(pictures.shape[2:])
    figure = new_figure(1.25 * len(names) + 0.7, 2.6 * len(channels))
    grid = figure.subplots(2 * len(channels), len(names), squeeze=False)
    sides = [(m.box[2] - m.box[0], m.box[3] - m.box[1]) for moments in found.values() for m in moments]
    side = np.max(sides, 0).tolist()
    for column, name in enumerate(names):
        moments = found[name]
        for row, (moment, channel) in enumerate(zip(moments, channels, strict=True)):
            box = frame(moment.box, side, shape)
            part = cut(moment.pixels, box)
            limit = float(part.abs().flatten().quantile(0.995))
            upper, lower = grid[2 * row, column], grid[2 * row + 1, column]
            upper.imshow(signed_picture(part, limit), interpolation="nearest")
            lower.imshow(plain_picture(cut(pictures[moment.image], box)), interpolation="nearest")
            upper.set_title(
                (f"{name}\n" if row == 0 else "") + f"{moment.value:.3g}", fontsize=8, color=SOFT, linespacing=1.5
            )
            for axes in (upper, lower):
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set_visible(False)
            if column == 0:
                upper.set_ylabel(f"map {channel}", fontsize=8)
                lower.set_ylabel("patch", fontsize=8, color=SOFT)
    figure.suptitle(f"{layer}: strongest activation over {len(pictures)} images (value above), projected", fontsize=10)
    figure.savefig(path)


class Checkpoints(Mapping):
    """Files -> networks, each loaded when asked for; the name is the file's number, or its stem."""

    def __init__(self, paths: Iterable[Path]) -> None:
        def name(path: Path) -> str:
            number = re.fullmatch(r"epoch_0*(\d+)", path.stem)
            return f"epoch {number[1]}" if number else path.stem

        self.paths = {name(path): path for path in paths}
        missing = [path for path in self.paths.values() if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"there is no weights file {missing[0]}")

    def __iter__(self):
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def network(self, name: str) -> checkpoint.Network:
        return checkpoint.load(self.paths[name])

    def __getitem__(self, name: str) -> nn.Module:
        return self.network(name).model


class _Inputs(Mapping):
    """The same pictures as each checkpoint takes them."""

    def __init__(self, networks: Checkpoints, pixels: Tensor) -> None:
        self.networks, self.pixels = networks, pixels

    def __iter__(self):
        return iter(self.networks)

    def __len__(self) -> int:
        return len(self.networks)

    def __getitem__(self, name: str) -> Tensor:
        return self.networks.network(name).normalise(self.pixels)
