import argparse
from pathlib import Path

from .. import progress
from .options import (
    LAYERS,
    NETWORK,
    add_json,
    add_network,
    add_quiet,
    add_skip,
    at_least,
    check_json,
    find,
    open_network,
    write_numbers,
)

CLASSIFIERS = ("svm", "softmax")  # those of analyses.probes
EXAMPLES = f"""examples:
  zfkernels probe photos --weights run/zfnet.pt --per-class 15 30
  zfkernels probe photos --weights run/zfnet.pt --layers conv5 fc7 --classifiers svm
{NETWORK}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="holds a folder of pictures for each class")
    add_network(parser)
    add("--layers", nargs="+", metavar="LAYER", help=f"(default: {LAYERS}, and hidden layers)")
    text = "training pictures of each class (%(default)s)"
    add("--per-class", type=int, nargs="+", default=[15, 30], metavar="COUNT", help=text)
    add("--draws", type=int, default=5, help="random choices of them (%(default)s)")
    add("--grid", type=int, default=6, help="pool larger maps to this side; 0: do not (%(default)s)")
    add("--classifiers", nargs="+", choices=CLASSIFIERS, default=CLASSIFIERS, help="(both)")
    add_quiet(parser)
    add_skip(parser)
    add("--seed", type=int, default=0, help="of the choices (%(default)s)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    import sklearn  # noqa: F401, before the long part
    import torch

    from ..analyses.probes import check_counts, features, probes, table
    from ..data.folders import class_folders

    check_json(args)
    at_least(args, 1, "draws")
    at_least(args, 0, "grid")
    opened = open_network(args)
    layers = opened.layers(args.layers or [*opened.layers(), *opened.hidden])
    pictures = class_folders(find(args, args.folder, classes=True))
    labels = torch.tensor(pictures.labels)
    check_counts(labels, args.per_class)
    shown = progress.wanted(args.quiet)
    stream = progress.bar(opened.stream(pictures.paths), "features", "batch", shown)
    known = features(opened.deconv, stream, layers, args.grid)
    chosen = {"classifiers": args.classifiers, "draws": args.draws, "seed": args.seed}
    result = probes(known, labels, args.per_class, **chosen, progress=shown)
    print(table(result))
    print(
        f"{len(pictures)} pictures, {len(pictures.classes)} classes, {args.draws} draws: mean ± deviation",
        *opened.notes,
        sep="\n",
    )
    write_numbers(
        args, pictures=len(pictures), classes=pictures.classes, draws=args.draws, seed=args.seed, cells=result
    )
