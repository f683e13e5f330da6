from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .. import progress
from ..files import check_pages
from ..graph.methods import NORMS
from .options import (
    LAYERS,
    NETWORK,
    Opened,
    add_json,
    add_method,
    add_network,
    add_quiet,
    add_skip,
    at_least,
    called,
    check_apart,
    check_batch,
    check_out,
    check_workers,
    find,
    open_network,
    write_found,
    write_numbers,
)

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 1024  # pictures held in memory, once they are read


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="pictures, subfolders included")
    add_network(parser)
    add("--layers", nargs="+", metavar="LAYER", help=f"(default: {LAYERS})")
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
    from ..analyses.atlas import atlas, search
    from ..analyses.atlas_page import clear, write_layer, write_page
    from ..training.processes import launched, processes

    check_out(args, folder=True)
    check_pages(args.out, "index.html")
    check_apart("--out", args.out, args.folder)
    at_least(args, 1, "maps", "top", "batch")
    check_workers(args)
    opened = open_network(args)
    layers = opened.layers(args.layers)
    with launched("cpu"):
        rank, world = processes()
        found = find(args, args.folder, say=rank == 0)
        paths = found.paths
        check_batch(args, len(paths), opened.network.image_size)
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

    names, sheets = [path.relative_to(args.folder).as_posix() for path in paths], []
    read = partial(_read, opened, paths, OrderedDict())

    methods = {layer: opened.method(layer, args.method, read([0])[0]) for layer in tops}
    for layer in atlas(opened.deconv, tops, read, args.maps, args.norm, methods):
        sheets.append(write_layer(args.out, layer, names))
        files = sheets[-1].files
        first, many = files[0] if files else "no sheet", f" and {len(files) - 1} more" if files[1:] else ""
        print(f"{layer.name:<12}{len(sheets[-1].cards):5d} of {layer.maps} maps   {first}{many}", flush=True)
    page = args.out / "index.html"
    write_page(page, f"Atlas of {called(args, opened.network)}", len(paths), sheets)
    others = clear(args.out, sheets)
    print(
        *opened.notes,
        *(f"note        {place} is of an earlier atlas; this page does not show it" for place in others),
        f"page        {page.resolve()} (its pictures lie in the folders beside it)",
        sep="\n",
    )
    strongest = {layer: top._asdict() for layer, top in tops.items()}
    write_numbers(args, pictures=paths, methods=methods, layers=strongest)


def _read(
    opened: Opened, paths: Sequence[Path], kept: OrderedDict[int, Tensor], numbers: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Pictures as the network takes them, and as uint8; `kept`: those read before, for maps share many."""
    import torch

    missing = [number for number in numbers if number not in kept]
    if missing:
        for number, picture in zip(missing, opened.read([paths[number] for number in missing])[0], strict=True):
            kept[number] = picture.clone()  # or each would hold the memory of all
    pixels = torch.stack([kept[number] for number in numbers])
    for number in numbers:
        kept.move_to_end(number)
    while len(kept) > KEPT:
        kept.popitem(last=False)
    return opened.network.normalise(pixels), opened.network.seen(pixels)


EXAMPLES = f"""examples:
  zfkernels atlas photos --weights run/zfnet.pt
  zfkernels atlas photos --weights run/zfnet.pt --layers conv3 conv5 --maps 40
  torchrun --nproc-per-node 4 -m zfkernels atlas photos --weights run/zfnet.pt

--out gets index.html and, for each layer, a folder of its sheets, which are also the page's pictures, and of the maps
at full size. A search that was stopped continues where it was.
{NETWORK}"""
