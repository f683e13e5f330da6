"""`zfkernels invariance`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import NETWORK, add_network, load_network

EXAMPLES = (
    """examples:
  zfkernels invariance cat.jpg dog.jpg --weights run/zfnet.pt --class cat
  zfkernels invariance photos/cat photos/dog --weights run/zfnet.pt --layers conv1 conv5 fc7
"""
    + NETWORK
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels invariance`."""
    add = parser.add_argument
    add("pictures", type=Path, nargs="+", metavar="PICTURE", help="pictures, or folders of them")
    add_network(parser)
    add("--layers", nargs="+", metavar="LAYER", help="(default: the first convolution and the last hidden layer)")
    add("--class", dest="label", help="the true class of all pictures (default: the name of the picture's folder, "
        "where it is a class, or else what the clear picture is taken for)")  # fmt: skip
    add("--out", type=Path, default=Path("invariance.png"), help="picture to write (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Draws the curves of all three transforms and prints where each class is lost; 0."""
    from ..analyses.choices import chosen_layers, true_classes
    from ..analyses.invariance import TRANSFORMS, invariance_curves, invariance_figure, paper_parameters
    from ..data.loading import pictures_or_folders, read_all
    from ..deconvnet.deconvnet import Deconvnet

    network = load_network(args)
    deconv, size = Deconvnet(network.model), network.image_size
    layers = args.layers or [deconv.layers[0], (*deconv.layers, *deconv.vector_layers[:-1])[-1]]
    layers = chosen_layers(deconv, layers)
    paths = pictures_or_folders(args.pictures)
    images = network.normalise(read_all(paths, size))
    labels = true_classes(network, paths, images, args.label)
    curves = [
        invariance_curves(deconv, images, layers, transform, paper_parameters(transform, size[0]), labels=labels)
        for transform in TRANSFORMS
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    invariance_figure(curves, [path.stem for path in paths], args.out)
    for curve in curves:
        print(f"{curve.transform:<12}" + "  ".join(
            f"{layer}: distance up to {float((d / curve.norms[layer][:, None]).max()):.2f} of the norm"
            for layer, d in curve.distances.items()
        ) + f"  P(true class) from {float(curve.probability.min()):.2f} to {float(curve.probability.max()):.2f}")  # fmt: skip # noqa: E501
    print(f"picture     {args.out}")
    return 0
