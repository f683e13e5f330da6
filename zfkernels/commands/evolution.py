"""`zfkernels evolution`."""

from __future__ import annotations

import argparse
from pathlib import Path

from .options import NORMS

EXAMPLES = """examples:
  zfkernels evolution photos --weights run/epoch_*.pt
  zfkernels evolution photos --weights run/epoch_001.pt run/epoch_064.pt --layer conv3 --maps 4 8 15
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels evolution`."""
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="pictures, subfolders included; all are held in memory")
    add("--weights", type=Path, nargs="+", required=True, metavar="FILE", help="checkpoints in order, epoch_*.pt")
    add("--layer", help="(default: the last convolution)")
    add("--maps", type=int, nargs="+", metavar="MAP", help="(default: the 6 strongest of the last checkpoint)")
    add("--norm", choices=NORMS, default="identity", help="(%(default)s)")
    add("--out", type=Path, default=Path("evolution.png"), help="picture to write (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Draws the figure; 0."""
    from ..analyses.activations import top_activations
    from ..analyses.choices import chosen_layers
    from ..analyses.evolution import Checkpoints, _Inputs, evolution, evolution_figure
    from ..data.folders import find_pictures
    from ..data.loading import read_all
    from ..deconvnet.deconvnet import Deconvnet

    networks = Checkpoints(args.weights)
    last = networks.network(list(networks)[-1])
    deconv = Deconvnet(last.model)
    layer = chosen_layers(deconv, [args.layer] if args.layer else None)[-1]
    pixels = read_all(find_pictures(args.folder), tuple(last.model.image_size))
    inputs = _Inputs(networks, pixels)
    maps = args.maps
    if maps is None:
        strongest = top_activations(deconv, inputs[list(networks)[-1]].split(64), layer, k=1).values[:, 0]
        maps = strongest.argsort(descending=True, stable=True)[:6].tolist()
    found = evolution(networks, inputs, layer, maps, norm=args.norm)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    evolution_figure(found, pixels, layer, maps, args.out)
    for name, moments in found.items():
        print(f"{name:<14}" + "  ".join(f"map {c}: {m.value:.4g}" for c, m in zip(maps, moments, strict=True)))
    print(f"picture     {args.out}")
    return 0
