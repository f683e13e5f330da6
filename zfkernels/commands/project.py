"""`zfkernels project`."""

import argparse
import sys
from pathlib import Path

from ..graph.methods import METHODS, NORMS
from .options import PICTURE, Opened, add_picture, load_network_or_random, report

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
    """Draws the projection and prints what it is of; 0."""
    from ..analyses.choices import last_convolution
    from ..analyses.projection import figure, projection, table

    opened = Opened(load_network_or_random(args))
    pixels, images = opened.read([args.picture])
    unit = projection(
        opened.network.model,
        images[0],
        args.layer or last_convolution(opened.network.model),
        args.channel,
        tuple(args.position) if args.position else None,
        norm=args.norm,
        method=args.method,
    )
    report(figure(unit, pixels[0]), args.out, table(unit))
    if unit.value == 0:
        print("zfkernels project: warning: the activation is 0, so its projection is empty", file=sys.stderr)
    return 0
