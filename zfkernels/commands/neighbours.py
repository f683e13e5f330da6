"""`zfkernels neighbours`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import NETWORK, add_network, load_network

METRICS = ("euclidean", "cosine")  # those of analyses.neighbours
EXAMPLES = (
    """examples:
  zfkernels neighbours cat.jpg photos --weights run/zfnet.pt --layers conv1 fc7
"""
    + NETWORK
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels neighbours`."""
    add = parser.add_argument
    add("picture", type=Path, metavar="PICTURE", help="the query")
    add("folder", type=Path, metavar="FOLDER", help="the pictures to search, subfolders included")
    add_network(parser)
    add("--layers", nargs="+", metavar="LAYER", help="(default: the first and last convolution, the last hidden layer)")
    add("--top", type=int, default=8, metavar="K", help="neighbours (%(default)s)")
    add("--metric", choices=METRICS, default="euclidean", help="(%(default)s)")
    add("--out", type=Path, default=Path("neighbours.png"), help="picture to write (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Draws and prints the neighbours; 0."""
    import torch

    from ..analyses.choices import chosen_layers
    from ..analyses.neighbours import Neighbours, neighbours, neighbours_figure
    from ..data.folders import find_pictures
    from ..data.loading import read_all, stream
    from ..deconvnet.deconvnet import Deconvnet

    network = load_network(args)
    deconv, size = Deconvnet(network.model), network.image_size
    maps = chosen_layers(deconv, None)
    layers = chosen_layers(deconv, args.layers or [maps[0], maps[-1], *deconv.vector_layers[:-1][-1:]])
    paths = find_pictures(args.folder)
    query = read_all([args.picture], size)
    found = {
        layer: neighbours(
            deconv, network.normalise(query), stream(paths, size, network.normalise), layer, args.top,
            metric=args.metric,
        )
        for layer in layers
    }  # fmt: skip
    shown = sorted({i for one in found.values() for i in one.images.flatten().tolist()})
    places = {image: place for place, image in enumerate(shown)}
    drawn = {
        layer: Neighbours(one.distances, torch.tensor([[places[i] for i in one.images[0].tolist()]]))
        for layer, one in found.items()
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    neighbours_figure(drawn, query, read_all([paths[i] for i in shown], size), args.out)
    for layer, one in found.items():
        for distance, image in zip(one.distances[0].tolist(), one.images[0].tolist(), strict=True):
            print(f"{layer:<10}{distance:12.5g}  {paths[image]}")
    print(f"picture     {args.out}")
    return 0
