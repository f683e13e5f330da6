import argparse
from pathlib import Path

from .. import progress
from ..graph.methods import METHODS, NORMS
from .options import (
    NETWORK,
    add_json,
    add_network,
    add_quiet,
    at_least,
    check_out,
    open_network,
    report,
    write_numbers,
)

EXAMPLES = f"""examples:
  zfkernels sanity cat.jpg --weights run/zfnet.pt
  zfkernels sanity cat.jpg --weights run/zfnet.pt --layer conv5 --method guided --json sanity.json

The unit's picture is made anew each time that one more layer's weights, from the top, are replaced by noise.
What does not change was not learned: an edge detector would draw it. (Adebayo et al. 2018)
{NETWORK}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("picture", type=Path, metavar="PICTURE", help="a picture file")
    add_network(parser)
    add("--layer", help="layer of the unit (default: the last, whose units are the classes)")
    add("--channel", type=int, help="its map or class (default: the strongest on this picture)")
    add("--position", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="its place (default: the strongest)")
    add("--norm", choices=NORMS, default="identity", help="how contrast norms are undone (%(default)s)")
    add("--method", choices=METHODS, default="deconvnet", help="what rectifiers do (%(default)s)")
    add("--repeats", type=int, default=3, help="independent randomisations (%(default)s)")
    add("--seed", type=int, default=0, help="of the noise (%(default)s)")
    add_quiet(parser)
    add("--out", type=Path, default=Path("sanity.png"), help="picture to write (%(default)s)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from ..analyses.sanity import figure, sanity_check, table

    check_out(args)
    at_least(args, 1, "repeats")
    opened = open_network(args)
    pixels, images = opened.read([args.picture])
    result = sanity_check(
        opened.network.model,
        images[0],
        opened.layer(args.layer) if args.layer is not None else None,
        args.channel,
        tuple(args.position) if args.position else None,
        norm=args.norm,
        method=args.method,
        repeats=args.repeats,
        seed=args.seed,
        progress=progress.wanted(args.quiet),
    )
    print(table(result, args.repeats))
    print("1: the picture is as before, whatever was learned there; 0: nothing of it is left")
    report(figure(result, pixels[0]), args.out, *opened.notes)
    unit = {name: getattr(result, name) for name in ("layer", "channel", "position", "method", "box", "stages")}
    write_numbers(args, picture=args.picture, repeats=args.repeats, seed=args.seed, **unit)
