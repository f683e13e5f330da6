import argparse
import sys
from pathlib import Path

from ..graph.methods import NORMS
from .options import PICTURE, add_json, add_method, add_picture, check_out, open_network, report, write_numbers

EXAMPLES = f"""examples:
  zfkernels project cat.jpg --weights zfkernels-demo/zfnet.pt
  zfkernels project cat.jpg --weights zfkernels-demo/zfnet.pt --layer conv3 --channel 7
  zfkernels project cat.jpg --layer conv2 --channel 0 --position 3 5 --norm gradient --out unit.png
  zfkernels project cat.jpg --model torchvision.models:resnet18 --weights resnet18.pth --method guided
{PICTURE}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_picture(parser)
    add = parser.add_argument
    add("--layer", help="layer of the unit (default: the last convolution)")
    add("--channel", type=int, help="map of the unit (default: the layer's strongest on this picture)")
    text = "its place in the map (default: the strongest)"
    add("--position", type=int, nargs=2, metavar=("ROW", "COLUMN"), help=text)
    text = "how the contrast norms are undone (default: identity, i.e. skipped)"
    add("--norm", choices=NORMS, default="identity", help=text)
    add_method(parser)
    add("--out", type=Path, default=Path("projection.png"), help="picture to write (%(default)s)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from ..analyses.choices import last_convolution
    from ..analyses.projection import figure, projection, table

    check_out(args)
    opened = open_network(args, or_random=True)
    pixels, images = opened.read([args.picture])
    layer = opened.layer(args.layer) if args.layer is not None else last_convolution(opened.network.model)
    method = opened.method(layer, args.method, images)
    unit = projection(
        opened.deconv,
        images[0],
        layer,
        args.channel,
        tuple(args.position) if args.position else None,
        norm=args.norm,
        method=method,
    )
    report(figure(unit, pixels[0]), args.out, table(unit), *opened.notes)
    numbers = {name: getattr(unit, name) for name in ("layer", "channel", "position", "value", "box", "notes")}
    write_numbers(args, picture=args.picture, method=method, norm=args.norm, **numbers)
    if unit.value == 0:
        print("zfkernels project: warning: the activation is 0, so its projection is empty", file=sys.stderr)
    elif not unit.pixels.any():
        print("zfkernels project: warning: the projection is all 0; choose another unit or method", file=sys.stderr)
