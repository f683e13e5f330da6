import argparse
import time
from pathlib import Path

from .. import progress
from ..files import check_pages, check_writable
from .options import add_json, check_json, write_numbers

EXAMPLES = """examples:
  zfkernels demo
  zfkernels demo --out page --seed 3
  zfkernels demo --epochs 5 --quiet

There is no --device: the network is small and made to learn on any CPU in a minute. `zfkernels train --device` is
for larger ones.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("zfkernels-demo"), help="folder of the page (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, crops, mirroring and dropout (%(default)s)")
    parser.add_argument("--epochs", type=int, default=14, help="passes over the crops (%(default)s)")
    parser.add_argument("--crops", type=int, default=240, help="training crops a photograph (%(default)s)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars; print the results only")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from ..demo import demo
    from ..models.pretrained import EFFICIENTNET_LITE0

    for name in ("epochs", "crops"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    check_writable(args.out, folder=True)
    check_json(args)
    check_pages(args.out, "index.html")
    if (args.out / "state.pt").exists() or (args.out / "log.jsonl").exists():
        raise ValueError(f"--out {args.out} holds a training run, which the demo would replace; choose another folder")
    began = time.perf_counter()
    page, findings = demo.run(
        args.out,
        seed=args.seed,
        epochs=args.epochs,
        crops=args.crops,
        progress=progress.wanted(args.quiet),
        report=(lambda text: None) if args.quiet else print,
    )
    for name, value in findings.facts.items():
        print(f"{name:<28} {value}")
    if findings.real is None:
        print(f"{'a second part':<28} {EFFICIENTNET_LITE0.missing()}")
    else:
        print(f"{'second part':<28} {findings.real.source}")
        for line in (*(said for _, said in findings.real.occluded), findings.real.why_guided):
            print(f"{'':<28} {line}")
    print(f"{'whole run':<28} {time.perf_counter() - began:.0f} s")
    write_numbers(args, seed=args.seed, facts=findings.facts, history=findings.history)
    print(f"\nThe page: {page.resolve()}")
    weights = args.out / "zfnet.pt"
    print(f"Next:     zfkernels explore FOLDER --weights {weights}, your pictures live in the browser")
    print(f"          zfkernels project PICTURE --weights {weights}")
