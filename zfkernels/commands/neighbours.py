from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from .. import progress
from ..words import shortened
from .options import (
    NETWORK,
    add_json,
    add_network,
    add_quiet,
    add_skip,
    at_least,
    check_out,
    find,
    open_network,
    report,
    write_numbers,
)

if TYPE_CHECKING:
    from ..analyses.activations import Batches

METRICS = ("euclidean", "cosine")  # those of analyses.neighbours
LONGEST = 18  # letters of a name above a picture
EXAMPLES = f"""examples:
  zfkernels neighbours cat.jpg photos --weights run/zfnet.pt --layers conv1 fc7
{NETWORK}"""


MOST = 100  # neighbours


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("picture", type=Path, metavar="PICTURE", help="the query")
    add("folder", type=Path, metavar="FOLDER", help="the pictures to search, subfolders included")
    add_network(parser)
    add("--layers", nargs="+", metavar="LAYER", help="(default: the first and last convolution, the last hidden layer)")
    add("--top", type=int, default=8, metavar="K", help="neighbours (%(default)s)")
    add("--metric", choices=METRICS, default="euclidean", help="(%(default)s)")
    add_quiet(parser)
    add_skip(parser)
    add("--out", type=Path, default=Path("neighbours.png"), help="picture to write (%(default)s)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from ..analyses.neighbours import figure, neighbours, table

    check_out(args)
    at_least(args, 1, "top")
    if args.top > MOST:
        raise ValueError(f"--top must be at most {MOST}, which the picture can still show, got {args.top}")
    opened = open_network(args)
    maps = opened.layers()
    layers = opened.layers(args.layers or [maps[0], maps[-1], *opened.hidden[-1:]])
    query, inputs = opened.read([args.picture])
    paths = find(args, args.folder).paths
    shown = progress.wanted(args.quiet)

    def stream(layer: str) -> Batches:
        return progress.bar(opened.stream(paths), f"features of {layer}", "batch", shown)

    results = [
        neighbours(opened.deconv, inputs, stream(layer), layer, args.top, metric=args.metric)
        for layer in dict.fromkeys(layers)
    ]
    numbers = sorted({image for result in results for image in result.images[0].tolist()})
    pictures, _ = opened.read([paths[image] for image in numbers])
    names = ["\n" + shortened(f"{path.parent.name}/{path.stem}", LONGEST, keep_end=True) for path in paths]
    drawn = figure(results, query, dict(zip(numbers, pictures, strict=True)), names)
    report(drawn, args.out, table(results, paths), *opened.notes)
    found = {
        result.layer: {"distances": result.distances[0], "pictures": [paths[i] for i in result.images[0].tolist()]}
        for result in results
    }
    write_numbers(args, picture=args.picture, metric=args.metric, layers=found)
