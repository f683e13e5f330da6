from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import progress
from ..files import write_whole
from ..progress import Shown
from ..words import listed, nearest
from .options import (
    PICTURE,
    Opened,
    add_json,
    add_method,
    add_picture,
    add_quiet,
    add_skip,
    check_out,
    find,
    open_network,
    report,
    write_numbers,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ..models.checkpoint import Network

RAW = ("probability", "logit", "label", "activity", "boxes")
EXAMPLES = f"""examples:
  zfkernels occlude cat.jpg --weights zfkernels-demo/zfnet.pt
  zfkernels occlude cat.jpg --weights zfkernels-demo/zfnet.pt --target cat --patch 24 --stride 4
  zfkernels occlude cat.jpg --patch 40 20 --fill 0 0 0 --raw cells.npz
{PICTURE}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_picture(parser)
    add = parser.add_argument
    add("--target", help="class, by name or number (default: what the clear picture is taken for)")
    text = "side, or height and width, of the cover (default: a fifth of the input)"
    add("--patch", type=int, nargs="+", metavar="PIXELS", help=text)
    text = "its step, one number or two (default: a quarter of the cover)"
    add("--stride", type=int, nargs="+", metavar="PIXELS", help=text)
    text = (
        "grey, or red green blue, 0 to 255; mean: the picture's mean colour; blur: the picture blurred (default: the "
        "network's mean picture)"
    )
    add("--fill", nargs="+", metavar="LEVEL", help=text)
    add("--layer", help="layer whose strongest map is summed (default: the last convolution)")
    add("--channel", type=int, help="sum this map instead")
    add_method(parser)
    text = "pictures whose strongest activations of the same map are projected beside"
    add("--images", type=Path, metavar="FOLDER", help=text)
    add_quiet(parser)
    add_skip(parser)
    add("--out", type=Path, default=Path("occlusion.png"), help="picture to write (%(default)s)")
    add_json(parser)
    add("--raw", type=Path, metavar="FILE.npz", help="also write the raw cells as NumPy arrays")


def run(args: argparse.Namespace) -> None:
    import numpy as np

    from ..analyses.choices import last_convolution
    from ..analyses.occlusion import Occluded, figure, occlusion_map, project_map, table

    check_out(args)
    opened = open_network(args, or_random=True)
    network = opened.network
    pixels, images = opened.read([args.picture])
    paths = find(args, args.images).paths if args.images else ()
    patch, stride = _sides("patch", args.patch), _sides("stride", args.stride)
    result = occlusion_map(
        network.model,
        images[0],
        _target(args.target, network.classes),
        patch=patch,
        stride=stride,
        fill=_fill(args.fill, network, pixels[0]),
        layer=last_convolution(network.model) if args.layer is None else args.layer,
        channel=args.channel,
        progress=progress.wanted(args.quiet),
    )
    layer, channel = result.layer, result.channel
    assert layer is not None
    assert channel is not None
    others: tuple[Tensor | None, Sequence[str]] = (
        _exciting(opened, images[0], layer, channel, paths, progress.wanted(args.quiet)) if paths else (None, ())
    )
    method = opened.method(layer, args.method, images)
    projected = project_map(opened.deconv, images[0], layer, channel, *others, method=method)
    drawn = figure(Occluded(args.picture.stem, pixels[0], result, projected), network.classes)
    note = ", with the map's projections from other pictures" if args.images else ""
    report(drawn, args.out, table(result, network.classes), *opened.notes, note=note)
    write_numbers(args, picture=args.picture, classes=network.classes, **vars(result))
    if args.raw:
        args.raw.parent.mkdir(parents=True, exist_ok=True)
        cells = {name: getattr(result, name).numpy() for name in RAW}
        write_whole(args.raw, lambda beside: _savez(beside, cells | {"classes": np.array(network.classes)}))
        print(f"raw cells   {args.raw}")


def _savez(path: Path, arrays: dict[str, Any]) -> None:
    """Arrays as NumPy's archive, under the very name."""
    import numpy as np

    with path.open("wb") as file:
        np.savez(file, **arrays)


def _sides(option: str, values: list[int] | None) -> int | tuple[int, int] | None:
    if not values:
        return None
    if len(values) > 2:
        raise ValueError(f"--{option} takes one number or two (height width), got {len(values)}")
    return values[0] if len(values) == 1 else (values[0], values[1])


def _fill(levels: list[str] | None, network: Network, picture: Tensor) -> Tensor | float | str:
    """What covers, as the network takes it; 0 is its mean picture."""
    import torch

    if not levels:
        return 0.0
    if levels in (["mean"], ["blur"]):
        return levels[0]
    if len(levels) not in (1, 3):
        raise ValueError(f"--fill takes one level or three (red green blue), got {len(levels)}")
    try:
        numbers = [float(level) for level in levels]
    except ValueError:
        raise ValueError(f"--fill takes levels from 0 to 255, mean or blur, got {' '.join(levels)}") from None
    if not all(0 <= number <= 255 for number in numbers):
        raise ValueError(f"--fill takes levels from 0 to 255, mean or blur, got {' '.join(levels)}")
    level = torch.tensor(numbers).view(-1, 1, 1).expand(picture.shape)
    return network.normalise(level)


def _exciting(
    opened: Opened, image: Tensor, layer: str, channel: int, paths: Sequence[Path], shown: Shown, count: int = 3
) -> tuple[Tensor, list[str]]:
    """The pictures that excite the map most, other than `image`: as the network takes them, and names."""
    from ..analyses.activations import top_activations

    top = top_activations(opened.deconv, opened.stream(paths), layer, count + 1, numbered=True, progress=shown)
    strongest = [paths[i] for i in top.images[channel].tolist()]
    _, images = opened.read(strongest)
    others = [i for i, other in enumerate(images) if not other.equal(image)][:count]
    return images[others], [strongest[i].stem for i in others]


def _target(wanted: str | None, classes: list[str]) -> int | None:
    if wanted is None or wanted in classes:
        return None if wanted is None else classes.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(classes):
        return int(wanted)
    near = nearest(wanted, classes)
    raise ValueError(
        f"--target must be a class or a number in 0..{len(classes) - 1}, got {wanted!r}{near}; "
        f"classes: {listed(classes)}"
    )
