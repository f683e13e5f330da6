"""`zfkernels occlude`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .options import PICTURE, add_picture, load_network_or_random

RAW = ("probability", "logit", "label", "activity", "boxes")
EXAMPLES = (
    """examples:
  zfkernels occlude cat.jpg --weights zfkernels-demo/zfnet.pt
  zfkernels occlude cat.jpg --weights zfkernels-demo/zfnet.pt --target cat --patch 24 --stride 4
  zfkernels occlude cat.jpg --patch 40 20 --fill 0 0 0 --raw cells.npz
"""
    + PICTURE
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels occlude`."""
    add_picture(parser)
    parser.add_argument("--target", help="class, by name or number (default: what the clear picture is taken for)")
    parser.add_argument("--patch", type=int, nargs="+", metavar="PIXELS",
                         help="side, or height and width, of the cover (default: a fifth of the input)")  # fmt: skip
    parser.add_argument("--stride", type=int, nargs="+", metavar="PIXELS",
                         help="its step, one number or two (default: a quarter of the cover)")  # fmt: skip
    parser.add_argument("--fill", nargs="+", metavar="LEVEL",
                         help="grey, or red green blue, 0 to 255; mean: the picture's mean colour; blur: the picture "
                         "blurred (default: the network's mean picture)")  # fmt: skip
    parser.add_argument("--layer", help="layer whose strongest map is summed (default: the last convolution)")
    parser.add_argument("--channel", type=int, help="sum this map instead")
    parser.add_argument("--images", type=Path, metavar="FOLDER",
                         help="pictures whose strongest activations of the same map are projected beside")  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("occlusion.png"), help="picture to write (%(default)s)")
    parser.add_argument("--raw", type=Path, metavar="FILE.npz", help="also write the raw cells as NumPy arrays")


def run(args: argparse.Namespace) -> int:
    import numpy as np
    import torch

    from ..analyses.choices import last_convolution
    from ..analyses.occlusion import Occluded, occlusion_figure, occlusion_map, project_map
    from ..data.pictures import read_picture

    network = load_network_or_random(args)
    picture = read_picture(args.picture, network.image_size)
    image = network.normalise(picture)
    for name in ("patch", "stride"):
        if getattr(args, name) and len(getattr(args, name)) > 2:
            raise ValueError(f"--{name} takes one number or two (height width), got {len(getattr(args, name))}")
    fill: torch.Tensor | float | str = 0.0
    if args.fill in (["mean"], ["blur"]):
        fill = args.fill[0]
    elif args.fill:
        if len(args.fill) not in (1, 3):
            raise ValueError(f"--fill takes one level or three (red green blue), got {len(args.fill)}")
        try:
            levels = [float(level) for level in args.fill]
        except ValueError:
            raise ValueError(f"--fill takes levels from 0 to 255, mean or blur, got {' '.join(args.fill)}") from None
        level = torch.tensor(levels).view(-1, 1, 1).expand(picture.shape)
        fill = (level - network.mean) / network.scale
    result = occlusion_map(
        network.model,
        image,
        _target(args.target, network.classes),
        patch=_sides(args.patch),
        stride=_sides(args.stride),
        fill=fill,
        layer=args.layer or last_convolution(network.model),
        channel=args.channel,
        progress=sys.stderr.isatty(),
    )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    projected = project_map(network, image, result.layer, result.channel, args.images)
    occlusion_figure(Occluded(args.picture.stem, picture, result, projected), network.classes, args.out)
    lowest = divmod(int(result.probability.argmin()), result.probability.shape[1])
    top, left, bottom, right = result.boxes[lowest].tolist()
    print(f"clear       {network.classes[result.clear_label]}; P({network.classes[result.target]}) = "
          f"{result.clear_probability:.4f}")  # fmt: skip
    print(f"lowest      P = {float(result.probability[lowest]):.4f} with rows {top} to {bottom - 1}, "
          f"columns {left} to {right - 1} covered")  # fmt: skip
    print(f"cells       {result.probability.shape[0]} x {result.probability.shape[1]}, raw")
    print(f"picture     {args.out}" + (", with the map's projections from other pictures" if args.images else ""))
    if args.raw:
        args.raw.parent.mkdir(parents=True, exist_ok=True)
        with args.raw.open("wb") as file:
            np.savez(
                file,
                **{name: getattr(result, name).numpy() for name in RAW},
                classes=np.array(network.classes),
            )
        print(f"raw cells   {args.raw}")
    return 0


def _sides(values: list[int] | None) -> int | tuple[int, ...] | None:
    return None if not values else values[0] if len(values) == 1 else tuple(values)


def _target(wanted: str | None, classes: list[str]) -> int | None:
    if wanted is None or wanted in classes:
        return None if wanted is None else classes.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(classes):
        return int(wanted)
    some = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    raise ValueError(f"--target must be a class or a number in 0..{len(classes) - 1}, got {wanted!r}; classes: {some}")
