"""`zfkernels correspond`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import NETWORK, add_network, load_network

EXAMPLES = (
    """examples:
  zfkernels correspond faces.json --weights run/zfnet.pt --layers pool5 fc7

PARTS.json lists pictures and the boxes of their parts, in the picture's own pixels:
  [{"image": "dog1.jpg", "parts": {"right eye": [top, left, bottom, right], "nose": [...]}}, ...]
"""
    + NETWORK
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels correspond`."""
    add = parser.add_argument
    add("parts", type=Path, metavar="PARTS.json", help="pictures and the boxes of their parts (see below)")
    add_network(parser)
    add("--layers", nargs="+", metavar="LAYER", help="(default: the last map and the last hidden layer)")
    add("--seed", type=int, default=0, help="of the random boxes (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Prints the table; 0."""
    from ..analyses.choices import chosen_layers
    from ..analyses.correspondence import correspondence, random_boxes, read_parts, table
    from ..data.loading import read_all
    from ..deconvnet.deconvnet import Deconvnet

    network = load_network(args)
    deconv, size = Deconvnet(network.model), network.image_size
    layers = chosen_layers(deconv, args.layers or [deconv.layers[-1], *deconv.vector_layers[:-1][-1:]])
    paths, parts = read_parts(args.parts, size)
    images = network.normalise(read_all(paths, size))
    parts["random"] = random_boxes(parts, size, args.seed)
    print(table(correspondence(deconv, images, parts, layers)))
    print(f"{len(paths)} pictures; 0: hiding the part changes every picture's features alike; below random: related")
    return 0
