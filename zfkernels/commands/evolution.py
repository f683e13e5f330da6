from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import progress
from ..graph.methods import NORMS
from .options import (
    NETWORK,
    add_json,
    add_method,
    add_network,
    add_quiet,
    add_skip,
    check_out,
    find,
    is_page,
    network_of,
    opened,
    report,
    write_numbers,
)

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..deconvnet.deconvnet import Deconvnet

EXAMPLES = f"""examples:
  zfkernels evolution photos --weights run/epoch_*.pt
  zfkernels evolution photos --weights run/epoch_001.pt run/epoch_064.pt --layer conv3 --maps 4 8 15
  zfkernels evolution photos --weights run/epoch_*.pt --out evolution.pdf
{NETWORK}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="pictures, subfolders included; all are held in memory")
    add_network(parser, several=True)
    add("--layer", help="(default: the last convolution)")
    add("--maps", type=int, nargs="+", metavar="MAP", help="(default: the 6 strongest of the last checkpoint)")
    add("--norm", choices=NORMS, default="identity", help="(%(default)s)")
    add_method(parser)
    add_quiet(parser)
    add_skip(parser)
    text = "page to write; with the ending of a picture format, a figure (%(default)s)"
    add("--out", type=Path, default=Path("evolution.html"), help=text)
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from itertools import chain

    from ..analyses.activations import top_activations
    from ..analyses.evolution import checkpoints, evolution, figure, load_each, table, write_page

    check_out(args, page=True)
    files = checkpoints(args.weights)
    name, file = files.popitem()
    load = partial(network_of, args)
    last = opened(load(file))
    layer = last.layer(args.layer) if args.layer is not None else last.layers()[-1]
    paths = find(args, args.folder).paths
    pixels, images = last.read(paths)
    maps = args.maps
    if maps is None:
        strongest = top_activations(last.deconv, images.split(64), layer, k=1).values[:, 0]
        maps = strongest.argsort(descending=True, stable=True)[:6].tolist()
    networks: Iterable[tuple[str, nn.Module | Deconvnet, Tensor]] = chain(
        load_each(files, load, pixels), [(name, last.deconv, images)]
    )
    method = last.method(layer, args.method, images)
    shown = progress.wanted(args.quiet)
    result = evolution(networks, layer, maps, norm=args.norm, method=method, progress=shown)
    if is_page(args.out):
        names = [path.relative_to(args.folder).as_posix() for path in paths]
        write_page(args.out, result, pixels, names, method)
        print(table(result), *last.notes, f"page        {args.out.resolve()}", sep="\n")
    else:
        report(figure(result, pixels), args.out, table(result), *last.notes)
    moments = {
        name: [
            {"map": m.channel, "value": m.value, "picture": paths[m.image], "position": m.position, "box": m.box}
            for m in units
        ]
        for name, units in result.moments.items()
    }
    write_numbers(args, layer=layer, method=method, norm=args.norm, checkpoints=moments)
