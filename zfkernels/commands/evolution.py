from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ..graph.methods import NORMS
from .options import add_method, add_skip, check_out, find, opened, report

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..deconvnet.deconvnet import Deconvnet

EXAMPLES = """examples:
  zfkernels evolution photos --weights run/epoch_*.pt
  zfkernels evolution photos --weights run/epoch_001.pt run/epoch_064.pt --layer conv3 --maps 4 8 15
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="pictures, subfolders included; all are held in memory")
    add("--weights", type=Path, nargs="+", required=True, metavar="FILE", help="checkpoints in order, epoch_*.pt")
    add("--layer", help="(default: the last convolution)")
    add("--maps", type=int, nargs="+", metavar="MAP", help="(default: the 6 strongest of the last checkpoint)")
    add("--norm", choices=NORMS, default="identity", help="(%(default)s)")
    add_method(parser)
    add_skip(parser)
    add("--out", type=Path, default=Path("evolution.png"), help="picture to write (%(default)s)")


def run(args: argparse.Namespace) -> None:
    from itertools import chain

    from ..analyses.activations import top_activations
    from ..analyses.evolution import checkpoints, evolution, figure, load_each, table
    from ..models import checkpoint

    check_out(args)
    files = checkpoints(args.weights)
    name, file = files.popitem()
    last = opened(checkpoint.load(file))
    layer = last.layers([args.layer] if args.layer else None)[-1]
    pixels, images = last.read(find(args, args.folder).paths)
    maps = args.maps
    if maps is None:
        strongest = top_activations(last.deconv, images.split(64), layer, k=1).values[:, 0]
        maps = strongest.argsort(descending=True, stable=True)[:6].tolist()
    networks: Iterable[tuple[str, nn.Module | Deconvnet, Tensor]] = chain(
        load_each(files, pixels), [(name, last.deconv, images)]
    )
    method = last.method(layer, args.method, images)
    result = evolution(networks, layer, maps, norm=args.norm, method=method)
    report(figure(result, pixels), args.out, table(result), *last.notes)
