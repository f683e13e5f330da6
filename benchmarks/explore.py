"""What somebody who looks at the explorer waits for: the time of each kind of answer when it is first asked for.

    python benchmarks/explore.py photos --weights zfkernels-demo/zfnet.pt
    python benchmarks/explore.py photos --model torchvision.models:resnet50 --layers layer1.2.conv2 layer3.5.conv2
    python benchmarks/explore.py photos --weights zfnet.pt --json benchmarks/results/<device>/explore.json

The options are those of `zfkernels explore`. All pictures are searched first (that time is said too), then the
strongest units of the first, middle and last layers are asked for as the page does: a page is a unit's words with its
nine patches, a method is one column of its projections. Milliseconds, medians over `--units` units; the largest in
brackets. The aims are 150 ms for the demo's network and 1 s for ResNet-50.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from zfkernels.commands.options import add_network, network_of, opened
from zfkernels.data.scan import scan
from zfkernels.explorer import live, pictures, state
from zfkernels.files import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    add_network(parser)
    parser.add_argument("--layers", nargs="+")
    parser.add_argument("--pictures", type=int, default=64, help="at most (%(default)s)")
    parser.add_argument("--units", type=int, default=5, help="a layer (%(default)s)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    of = opened(network_of(args, args.weights, or_random=True))
    names = of.layers(args.layers) if args.layers else [*of.layers(), *of.deconv.vector_layers[-1:]]
    found = scan(args.folder)
    found = found.without([(path, "") for path in found.paths[args.pictures :]])
    made, start = timed(lambda: state.explored(of.network, of.deconv, found, names, "benchmark"))
    _, searching = timed(lambda: [made.take(*batch) for batch in made.batches(0)])
    print(f"start {start:.0f} ms, search {searching / len(found.paths):.1f} ms a picture, {len(names)} layers")
    rows = [
        row
        for layer in (made.layers if args.layers else _some(made.layers))
        for row in measured(made, layer, args.units)
    ]
    for row in rows:
        print(f"{row['layer']:<24}{row['answer']:<12}{row['median']:8.1f} ms  ({row['largest']:.1f})")
    if args.json:
        write_json(args.json, {"search": searching / len(found.paths), "rows": rows})


def _some(layers: tuple[state.Layer, ...]) -> list[state.Layer]:
    return [layers[i] for i in sorted({0, len(layers) // 2, len(layers) - 1})]


def timed(call: Callable[[], object]) -> tuple[object, float]:
    """What the call gives, and its milliseconds."""
    began = time.perf_counter()
    value = call()
    return value, 1000 * (time.perf_counter() - began)


def measured(made: state.Explored, layer: state.Layer, units: int) -> list[dict]:
    """The times of each kind of answer for the layer's strongest units."""
    strengths = made.tops[layer.name].values[:, 0]
    channels = [c for c in strengths.argsort(descending=True).tolist()[:units] if float(strengths[c]) > 0]
    pixels, (height, width), noise = made.read([0])[0], made.network.image_size, live.Live()
    answers = {
        "page": lambda c: (state.unit_words(made, layer, c), state.patches(made, layer, c)),
        "method": lambda c: state.views(made, layer, c, layer.method),
        "tile": lambda c: state.tile_of(made, layer, c),
        "pixel": lambda c: live.seen(made, pixels, layer, (7 * c + 9) % height, width // 2),
        "square": lambda c: live.occluded(made, pixels, (7 * c + 9) % height, width // 2, height // 4),
        "noise": lambda c: live.noisy(made, noise, layer, c, 0, 0.5),
        "below": lambda c: live.below(made, layer, c),
        "picture": lambda c: pictures.whole(pixels),
    }
    rows = []
    for name, answer in answers.items():
        times = [timed(partial(answer, channel))[1] for channel in channels]
        if times:
            rows.append({"layer": layer.name, "answer": name, "median": median(times), "largest": max(times)})
    return rows


if __name__ == "__main__":
    main()
