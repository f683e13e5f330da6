import argparse
from pathlib import Path

from .options import NETWORK, add_json, add_network, check_out, network_of, report, warn_random, write_numbers

EXAMPLES = f"""examples:
  zfkernels filters --weights run/zfnet.pt --against free/zfnet.pt      # free: trained with --no-clamp
{NETWORK}"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_network(parser)
    parser.add_argument("--against", type=Path, nargs="+", default=[], metavar="FILE", help="weights to compare with")
    parser.add_argument("--out", type=Path, default=Path("filters.png"), help="picture to write (%(default)s)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from ..analyses.filters import DEAD, HIGH, LOW, figure, filters, first_filters, noise_note, table

    check_out(args)
    results, notes = {}, []
    for file in (args.weights, *args.against):
        network = network_of(args, file)
        if file is None:
            warn_random(args)
        elif note := noise_note(network.model):
            notes.append(f"{note} ({file})" if args.against else note)
        name = str(file.parent / file.stem if file else args.model)
        results[str(file) if name in results else name] = filters(first_filters(network.model).cpu())
    if any(result.weight.shape[1] not in (1, 3) for result in results.values()):
        raise ValueError("the first layer must have 3 channels, or 1 if pictures are grey, to be drawn")
    legend = (
        f"dead: below {DEAD} of the median's size; all low: 3/4 of the energy below {LOW} of the Nyquist frequency; "
        f"all high: above {HIGH}"
    )
    report(figure(results), args.out, table(results), legend, *notes)
    counted = {
        name: {key: value for key, value in vars(result).items() if key != "weight"} for name, result in results.items()
    }
    write_numbers(args, networks=counted)
