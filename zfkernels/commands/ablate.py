import argparse
from dataclasses import replace
from pathlib import Path

from .. import progress
from ..training.recipe import Plan
from . import train
from .options import add_json, add_quiet, add_skip, write_numbers

EXAMPLES = """examples:
  zfkernels ablate photos --side 96 --channels 24 48 64 64 48 --fc 128 128 --he --scale 16 --epochs 20
  zfkernels ablate photos --rows 0 1 4
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    plan = Plan()
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="holds a folder of pictures for each class, or IDX files")
    add("--validation", type=Path, metavar="FOLDER", help="likewise, to validate on (default: some of FOLDER)")
    add("--held-out", type=float, default=0.1, metavar="FRACTION", help="(%(default)s)")
    add("--rows", type=int, nargs="+", metavar="ROW", help="only these rows, counted from 0")
    add("--epochs", type=int, default=plan.epochs, help="passes over the pictures, for each row (%(default)s)")
    add("--batch", type=int, default=plan.batch_size, help="pictures a step (%(default)s)")
    add("--rate", type=float, default=plan.learning_rate, help="learning rate at the start (%(default)s)")
    add("--seed", type=int, default=0, help="(%(default)s)")
    train.add_network_arguments(parser)
    add("--precision", choices=train.PRECISIONS, help="default: bfloat16 on a GPU, float32 on a CPU")
    add("--device", help="(default: the GPU if there is one)")
    add("--workers", type=int, default=0, help="processes that read pictures (%(default)s)")
    add_quiet(parser)
    add_skip(parser)
    add("--out", type=Path, default=Path("zfkernels-ablation"), help="folder of the runs (%(default)s)")
    add_json(parser)


def run(args: argparse.Namespace) -> None:
    from ..analyses.ablation import HEAD, ablation, line, variants
    from ..training.processes import launched, processes

    rows = variants(args.channels, args.fc)
    if args.rows:
        if not all(0 <= row < len(rows) for row in args.rows):
            raise ValueError(f"--rows must be from 0 to {len(rows) - 1}, got {args.rows}")
        rows = [rows[row] for row in args.rows]
    plan = Plan(epochs=args.epochs, batch_size=args.batch, learning_rate=args.rate, seed=args.seed)
    train.check_training(args)
    with launched(args.device) as device:
        first = processes()[0] == 0
        sets = train.picture_sets(args, first)
        plan = replace(plan, batch_size=train.batch_of(args.batch, len(sets.training)))
        each = -(-plan.batch_size // processes()[1])
        train.check_memory_of(args, device, each, len(sets.classes), sets.training.channels)
        if first and plan.batch_size != args.batch:
            print(train.batch_note(plan.batch_size, args.batch, len(sets.training)))
        if first:
            print(HEAD, flush=True)
        run = train.chosen_run(args, plan, (sets.training, sets.validation), device, progress.wanted(args.quiet))
        report = (lambda result: print(line(result), flush=True)) if first else None
        arguments = train.zfnet_arguments(args, len(sets.classes), sets.training.channels)
        results = ablation(rows, run, arguments, device, args.out, report)
    if first:
        print("errors in percent, 10 crops averaged; train: of the training pictures with dropout off")
        write_numbers(args, classes=sets.classes, epochs=args.epochs, seed=args.seed, rows=results)
