import argparse
from pathlib import Path

from .. import progress
from .options import (
    NETWORK,
    add_json,
    add_network,
    add_quiet,
    add_skip,
    check_out,
    check_pictures,
    find,
    open_network,
    report,
    write_numbers,
)

EXAMPLES = f"""examples:
  zfkernels invariance cat.jpg dog.jpg --weights run/zfnet.pt --class cat
  zfkernels invariance photos/cat photos/dog --weights run/zfnet.pt --layers conv1 conv5 fc7
{NETWORK}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("pictures", type=Path, nargs="+", metavar="PICTURE", help="pictures, or folders of them")
    add_network(parser)
    add("--layers", nargs="+", metavar="LAYER", help="(default: the first convolution and the last hidden layer)")
    text = (
        "the true class of all pictures (default: the name of the picture's folder, where it is a class, or else what "
        "the clear picture is taken for)"
    )
    add("--class", dest="label", help=text)
    add_quiet(parser)
    add_skip(parser)
    add("--out", type=Path, default=Path("invariance.png"), help="picture to write (%(default)s)")
    add_json(parser)


def pictures(args: argparse.Namespace) -> list[Path]:
    """The pictures that are named, and those in the folders that are."""
    for path in args.pictures:
        if not path.exists():
            raise FileNotFoundError(f"there is no picture or folder {path}")
    files = [path for path in args.pictures if not path.is_dir()]
    bad = {path for path, _ in check_pictures(args, files)}
    paths = [file for path in args.pictures for file in (find(args, path).paths if path.is_dir() else [path])]
    kept = [path for path in paths if path not in bad]
    if not kept:
        raise ValueError("none of the pictures can be read")
    return kept


def run(args: argparse.Namespace) -> None:
    from ..analyses.choices import true_classes
    from ..analyses.invariance import figure, invariance, table

    check_out(args)
    opened = open_network(args)
    deconv = opened.deconv
    layers = opened.layers(args.layers or [deconv.layers[0], (*deconv.layers, *opened.hidden)[-1]])
    paths = pictures(args)
    _, images = opened.read(paths)
    labels = true_classes(opened.network, paths, images, args.label)
    result = invariance(deconv, images, layers, labels=labels, progress=progress.wanted(args.quiet))
    classes = opened.network.classes
    names = [classes[label] for label in labels.tolist()]
    answered = 0 if args.label else sum(path.parent.name not in classes for path in paths)
    of = "true class" if answered == 0 else "class answered" if answered == len(paths) else "true or answered class"
    why = f"of {answered} of {len(paths)} pictures what the network answers, for their folders are none (--class)"
    notes = [*([f"classes     {why}"] if answered else []), *opened.notes]
    report(figure(result, [path.stem for path in paths], names, of), args.out, table(result, of), *notes)
    write_numbers(args, pictures=paths, classes=names, **vars(result))
