import argparse
from pathlib import Path

from .. import progress
from .options import NETWORK, add_json, add_network, add_quiet, check_json, open_network, write_numbers

EXAMPLES = f"""examples:
  zfkernels correspond faces.json --weights run/zfnet.pt --layers pool5 fc7

PARTS.json lists pictures and the boxes of their parts, in the picture's own pixels:
  [{{"image": "dog1.jpg", "parts": {{"right eye": [top, left, bottom, right], "nose": [...]}}}}, ...]
{NETWORK}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("parts", type=Path, metavar="PARTS.json", help="pictures and the boxes of their parts (see below)")
    add_network(parser)
    add("--layers", nargs="+", metavar="LAYER", help="(default: the last map and the last hidden layer)")
    add("--seed", type=int, default=0, help="of the random boxes (%(default)s)")
    add_quiet(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from ..analyses.correspondence import correspondence, random_boxes, table
    from ..data.parts import read_parts

    check_json(args)
    opened = open_network(args)
    layers = opened.layers(args.layers or [opened.deconv.layers[-1], *opened.hidden[-1:]])
    paths, parts = read_parts(args.parts, opened.network.image_size)
    _, images = opened.read(paths)
    parts["random"] = random_boxes(parts, opened.network.image_size, args.seed)
    result = correspondence(opened.deconv, images, parts, layers, progress=progress.wanted(args.quiet))
    print(table(result))
    print(
        f"{len(paths)} pictures; 0: hiding the part changes every picture's features alike; below random: related",
        *opened.notes,
        sep="\n",
    )
    write_numbers(args, pictures=paths, seed=args.seed, layers=result)
