"""What a layer of the atlas takes: to project its units alone, and with its sheets and pictures drawn and written.

    python benchmarks/atlas.py                                     # a full ZFNet with random weights, conv1 and conv5
    python benchmarks/atlas.py --weights zfnet.pt --layers conv3
    python benchmarks/atlas.py --model torchvision.models:vgg16 --layers features.28 --json atlas.json

The pictures are tiles of scikit-image's photographs that do not overlap, in memory. The search comes first and is not
counted. Seconds, the least of `--repeats`.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from zfkernels.analyses.activations import top_activations
from zfkernels.analyses.atlas import atlas
from zfkernels.analyses.atlas_page import write_layer
from zfkernels.commands.options import Opened, add_network, network_of, opened
from zfkernels.data.photographs import Photographs
from zfkernels.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_network(parser)
    parser.add_argument("--layers", nargs="+", default=["conv1", "conv5"])
    parser.add_argument("--maps", type=int, help="of each layer (default: all)")
    parser.add_argument("--top", type=int, default=9)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    of = opened(network_of(args, args.weights, or_random=True))
    tiles, labels = Photographs(of.network.image_size[0]).tiles()
    print(f"{len(tiles)} pictures of {tiles.shape[2]} pixels a side, {torch.get_num_threads()} threads")
    rows = [
        measured(of, layer, tiles, [f"{n}/{i}.png" for i, n in enumerate(labels.tolist())], args)
        for layer in args.layers
    ]
    if args.json:
        write_json(args.json, {"pictures": len(tiles), "threads": torch.get_num_threads(), "rows": rows})


def measured(of: Opened, layer: str, tiles: torch.Tensor, names: list[str], args: argparse.Namespace) -> dict:
    """A layer's row, which is printed, too."""
    batches = (of.network.normalise(part) for part in tiles.split(32))
    tops = {layer: top_activations(of.deconv, batches, layer, args.top)}

    def cards():
        return next(
            atlas(of.deconv, tops, lambda numbers: (of.network.normalise(tiles[numbers]), tiles[numbers]), args.maps)
        )

    projecting = min(timed(lambda: list(cards().cards)) for _ in range(args.repeats))
    with tempfile.TemporaryDirectory() as folder:
        whole = min(timed(lambda: write_layer(Path(folder), cards(), names)) for _ in range(args.repeats))
        written = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        sheets = len(list(Path(folder).rglob("sheet-*")))
    maps = len(tops[layer].values[: args.maps])
    print(
        f"{layer:<16}{maps:5d} maps   projecting {projecting:6.2f} s   with its pictures {whole:6.2f} s   "
        f"{sheets} sheets, {written / 1e6:.1f} MB",
        flush=True,
    )
    return {"layer": layer, "maps": maps, "projecting": projecting, "whole": whole, "bytes": written}


def timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
