from __future__ import annotations

import argparse
from collections.abc import Sequence
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
    at_least,
    check_out,
    find,
    open_network,
    write_found,
    write_numbers,
)

if TYPE_CHECKING:
    from torch import Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="pictures, subfolders included")
    add_network(parser)
    add("--layers", nargs="+", metavar="LAYER", help="(default: every convolution)")
    add("--maps", type=int, metavar="COUNT", help="only the first COUNT maps of each layer")
    add("--top", type=int, default=9, metavar="K", help="activations a map (%(default)s)")
    add("--norm", choices=NORMS, default="identity", help="(%(default)s)")
    add_method(parser)
    add("--batch", type=int, default=32, help="pictures a forward pass (%(default)s)")
    add("--workers", type=int, default=0, help="processes that read pictures (%(default)s)")
    add_quiet(parser)
    add_skip(parser)
    add("--out", type=Path, default=Path("zfkernels-atlas"), help="folder of the atlas (%(default)s)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from ..analyses.atlas import atlas, search, write_layer, write_page
    from ..training.processes import launched, processes

    check_out(args, folder=True)
    at_least(args, 1, "maps", "top", "batch")
    at_least(args, 0, "workers")
    opened = open_network(args)
    layers = opened.layers(args.layers)
    with launched("cpu"):
        rank, world = processes()
        found = find(args, args.folder, say=rank == 0)
        paths = found.paths
        args.out.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            write_found(args.out / "pictures.log", found)
        if len(paths) < world:
            raise ValueError(f"{args.folder} must hold at least {world} pictures, one a process, got {len(paths)}")
        batches = opened.stream(paths, args.batch, args.workers, (rank, world))
        shown = rank == 0 and progress.wanted(args.quiet)
        tops = search(opened.deconv, batches, layers, args.top, paths, args.out, shown, opened.network.preprocessing)
    if rank:
        return

    names, sheets = [path.name for path in paths], []

    def read(numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        pixels, inputs = opened.read([paths[i] for i in numbers])
        return inputs, pixels

    methods = {layer: opened.method(layer, args.method, read([0])[0]) for layer in tops}
    for layer in atlas(opened.deconv, tops, read, args.maps, args.norm, methods):
        sheets.append(write_layer(args.out, layer, names))
        print(f"{layer.name:<12}{len(sheets[-1].cards):5d} of {layer.maps} maps   {sheets[-1].png}", flush=True)
    page = args.out / "index.html"
    write_page(page, f"Atlas of {args.weights or args.model}", len(paths), sheets)
    print(
        *opened.notes,
        f"page        {page.resolve()} ({page.stat().st_size / 1e6:.1f} MB, all pictures inside)",
        sep="\n",
    )
    strongest = {layer: top._asdict() for layer, top in tops.items()}
    write_numbers(args, pictures=paths, methods=methods, layers=strongest)


EXAMPLES = f"""examples:
  zfkernels atlas photos --weights run/zfnet.pt
  zfkernels atlas photos --weights run/zfnet.pt --layers conv3 conv5 --maps 40
  torchrun --nproc-per-node 4 -m zfkernels atlas photos --weights run/zfnet.pt

--out gets a PNG sheet a layer and index.html, one file that holds all its pictures. A search that was stopped
continues where it was.
{NETWORK}"""
