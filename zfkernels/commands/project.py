"""`zfkernels project`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .options import METHODS, NORMS, PICTURE, add_picture, load_network_or_random

EXAMPLES = (
    """examples:
  zfkernels project cat.jpg --weights zfkernels-demo/zfnet.pt
  zfkernels project cat.jpg --weights zfkernels-demo/zfnet.pt --layer conv3 --channel 7
  zfkernels project cat.jpg --layer conv2 --channel 0 --position 3 5 --norm gradient --out unit.png
  zfkernels project cat.jpg --model torchvision.models:resnet18 --weights resnet18.pth --method guided
"""
    + PICTURE
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels project`."""
    add_picture(parser)
    parser.add_argument("--layer", help="layer of the unit (default: the last convolution)")
    parser.add_argument("--channel", type=int, help="map of the unit (default: the layer's strongest on this picture)")
    parser.add_argument(
        "--position", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="its place in the map (default: the strongest)"
    )
    parser.add_argument(
        "--norm",
        choices=NORMS,
        default="identity",
        help="how the contrast norms are undone (default: identity, i.e. skipped)",
    )
    parser.add_argument(
        "--method",
        choices=METHODS,
        default="deconvnet",
        help="what rectifiers do: deconvnet (the paper's), the plain gradient, or both at once (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("projection.png"), help="picture to write (%(default)s)")


def run(args: argparse.Namespace) -> int:
    from ..analyses.activations import top_activations
    from ..analyses.choices import last_convolution
    from ..analyses.projection import projection_figure
    from ..data.pictures import read_picture
    from ..deconvnet.deconvnet import Deconvnet

    network = load_network_or_random(args)
    picture = read_picture(args.picture, network.image_size)
    image = network.normalise(picture)
    layer = args.layer or last_convolution(network.model)
    deconv = Deconvnet(network.model)
    channel = args.channel
    if channel is None:
        channel = int(top_activations(deconv, [image[None]], layer, k=1).values[:, 0].argmax())
    position = tuple(args.position) if args.position else None
    projection = deconv.project(image[None], layer=layer, channel=channel, position=position,
                                norm=args.norm, method=args.method)  # fmt: skip
    row, column = projection.positions[0].tolist()
    value, (top, left, bottom, right) = float(projection.values[0]), projection.boxes[0].tolist()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    projection_figure(picture, projection, f"{layer}, map {channel}, place ({row}, {column})", args.out)
    height, width = picture.shape[1:]
    print(f"unit        {layer}, map {channel}, row {row}, column {column}")
    print(f"activation  {value:.6g}")
    print(f"sees        rows {top} to {bottom - 1}, columns {left} to {right - 1} of the {height} x {width} input")
    print(f"picture     {args.out}")
    if value == 0:
        print("zfkernels project: warning: the activation is 0, so its projection is empty", file=sys.stderr)
    return 0
