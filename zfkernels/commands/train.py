from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import progress
from ..limits import check_memory
from ..progress import Shown
from ..training.recipe import EVALUATED, PAPER_EPOCHS, Plan, resized_side
from .options import add_skip, check_apart, check_out, check_workers, find, same_place, write_found

if TYPE_CHECKING:
    import torch

    from ..data.folders import Labelled
    from ..data.idx import IdxPictures
    from ..data.scan import Scan
    from ..training.run import Run, Trained

EXAMPLES = """examples:
  zfkernels train photos --out run
  zfkernels train photos --out run --resume --epochs 90
  zfkernels train photos --side 96 --channels 24 48 64 64 48 --fc 128 128 --he --scale 16 --epochs 20 --plot
  torchrun --nproc-per-node 4 -m zfkernels train photos --out run --workers 8
  zfkernels train /usr/share/datasets/fashion-mnist --side 64 --he --scale 64 --classes names.txt

FOLDER holds a folder of pictures for each class; or IDX files, as MNIST's and Fashion-MNIST's are
published (train-images-idx3-ubyte.gz and its labels; t10k-images-idx3-ubyte.gz and its labels to validate
on), from which a network for grey pictures is trained. The recipe is that of section 3 of the paper: shortest
side 256, centre 256 x 256, less the mean of each pixel; 10 sub-crops of 224; 128 pictures a step, rate
1e-2, momentum 0.9; every filter held to a root mean square of 0.1. --out gets zfnet.pt (for the other
commands), best.pt (of the lowest validation error), epoch_NNN.pt, state.pt (for --resume), log.jsonl and
pictures.log (what was found and left out). A run that is there is never replaced unasked.
"""

PRECISIONS = ("float32", "bfloat16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    plan = Plan()
    add = parser.add_argument
    text = "holds a folder of pictures for each class, or IDX files (.gz or not)"
    add("folder", type=Path, metavar="FOLDER", help=text)
    add("--validation", type=Path, metavar="FOLDER", help="likewise, to validate on (default: some of FOLDER)")
    add("--classes", type=Path, metavar="FILE", help="names for the classes of IDX files, one a line or a JSON list")
    text = "without --validation, the fraction of each class that is validated on (%(default)s)"
    add("--held-out", type=float, default=0.1, metavar="FRACTION", help=text)
    add("--out", type=Path, default=Path("zfkernels-train"), help="folder of the results (%(default)s)")
    again = parser.add_mutually_exclusive_group()
    text = "continue the run in --out after its last whole epoch, to the same bits"
    again.add_argument("--resume", action="store_true", help=text)
    again.add_argument("--overwrite", action="store_true", help="remove the run in --out and train anew")
    add("--epochs", type=int, default=plan.epochs, help="passes over the pictures (%(default)s)")
    add("--batch", type=int, default=plan.batch_size, help="pictures a step, of all processes together (%(default)s)")
    add("--rate", type=float, default=plan.learning_rate, help="learning rate at the start (%(default)s)")
    add("--momentum", type=float, default=plan.momentum, help="(%(default)s)")
    add("--weight-decay", type=float, default=plan.weight_decay, help="(%(default)s; the paper names none)")
    text = "epochs without a lower error before the rate falls to a tenth (%(default)s)"
    add("--patience", type=int, default=plan.patience, help=text)
    text = "the rate falls to a tenth after these fractions of the epochs instead"
    falls = parser.add_mutually_exclusive_group()
    falls.add_argument("--falls-at", type=float, nargs="+", default=(), metavar="FRACTION", help=text)
    text = "the rate goes down half a cosine, an epoch a step, instead"
    falls.add_argument("--cosine", action="store_true", help=text)
    text = "what is seen of a picture: one of ten sub-crops, or its centre, mirrored at random (%(default)s)"
    add("--crops", choices=tuple(EVALUATED), default=plan.crops, help=text)
    add("--no-clamp", action="store_true", help="do not hold the filters to a root mean square of 0.1")
    add("--seed", type=int, default=plan.seed, help="of weights, order, crops and dropout (%(default)s)")
    add_network_arguments(parser)
    text = "epochs whose network is kept as epoch_NNN.pt (default: those of Fig. 4)"
    add("--keep", type=int, nargs="*", default=PAPER_EPOCHS, metavar="EPOCH", help=text)
    add("--precision", choices=PRECISIONS, help="default: bfloat16 (mixed) on a GPU, float32 on a CPU")
    add("--device", help="cpu, cuda, cuda:1, ... (default: the GPU if there is one)")
    add("--workers", type=int, default=0, help="processes that read pictures (%(default)s: in the training process)")
    add_skip(parser)
    add("--plot", action="store_true", help="also draw training.png after each epoch (needs matplotlib)")
    add("--quiet", action="store_true", help="no progress bars")


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """What `zfnet_arguments` reads."""
    add = parser.add_argument
    add("--side", type=int, default=224, help="side of the network's input; pictures are resized to 8/7 of it (224)")
    add("--channels", type=int, nargs=5, metavar="MAPS", help="maps of the five convolutions (96 256 384 384 256)")
    add("--fc", type=int, nargs=2, metavar="FEATURES", help="features of the two hidden layers (4096 4096)")
    add("--dropout", type=float, metavar="PART", help="part of the hidden features that is dropped (0.5)")
    text = "start from He's weights, not the paper's, from which small networks hardly move"
    add("--he", action="store_true", help=text)
    add("--scale", type=float, default=1.0, help="divide pixels less their mean by this (%(default)s, as the paper)")


def zfnet_arguments(args: argparse.Namespace, classes: int, channels: int = 3) -> dict[str, Any]:
    """The keyword arguments of the ZFNet that the options describe; `channels`: the pictures', 1 if they are grey."""
    result: dict[str, Any] = {"num_classes": classes, "image_size": args.side}
    result |= {} if channels == 3 else {"in_channels": channels}
    result |= {name: tuple(getattr(args, name)) for name in ("channels", "fc") if getattr(args, name)}
    result |= {} if args.dropout is None else {"dropout": args.dropout}
    return result | ({"weight_std": None} if args.he else {})


def chosen_run(
    args: argparse.Namespace, plan: Plan, sets: Sequence[Labelled], device: torch.device, shown: Shown
) -> Run:
    """The plan, on the training and the validation set, with --side, --scale, --precision and --workers."""
    import torch

    from ..training.run import Run

    precision = getattr(torch, args.precision or ("bfloat16" if device.type == "cuda" else "float32"))
    side = (args.side, args.side)
    training, validation = sets
    return Run(plan, training, validation, side, args.scale, precision=precision, workers=args.workers, progress=shown)


@dataclass(frozen=True)
class Sets:
    """What is trained and validated on."""

    training: Labelled
    validation: Labelled
    classes: tuple[str, ...]
    found: tuple[Scan | IdxPictures, ...]  # in each folder


def picture_sets(args: argparse.Namespace, say: bool = True) -> Sets:
    """The pictures of FOLDER, --validation, --held-out, --seed and --side, all of which can be read."""
    from ..data.folders import PictureSet, class_folders, hold_out
    from ..data.idx import holds_idx

    if holds_idx(args.folder):
        return idx_sets(args, say)
    if getattr(args, "classes", None):
        raise ValueError(f"--classes names the classes of IDX files, and those of {args.folder} are its folders")
    found = [find(args, args.folder, classes=True, say=say)]
    training = class_folders(found[0])
    if args.validation is None:
        training, validation = hold_out(training, args.held_out, args.seed)
    else:
        found.append(find(args, args.validation, classes=True, say=say))
        validation = class_folders(found[1], training.classes)
    size = (resized_side(args.side),) * 2
    return Sets(PictureSet(training, size), PictureSet(validation, size), training.classes, tuple(found))


def idx_sets(args: argparse.Namespace, say: bool = True) -> Sets:
    """The same of IDX files: FOLDER's own second pair is validated on, if there is no --validation."""
    from ..data import idx
    from ..data.folders import drawn
    from ..models.load import read_classes

    first, second = idx.pairs(args.folder)
    if args.validation is not None:
        if not idx.holds_idx(args.validation):
            raise ValueError(f"--validation {args.validation} must hold IDX files, as {args.folder} does")
        second, _ = idx.pairs(args.validation)
    found = [idx.read_pair(pair) for pair in (first, second) if pair is not None]
    classes = idx.class_names(found)
    if file := getattr(args, "classes", None):
        classes = tuple(read_classes(file, len(classes)))
    for pictures in found if say else ():
        print(f"found       {pictures.line()}", flush=True)
    sets = [idx.resized(pictures, (resized_side(args.side),) * 2) for pictures in found]
    if len(sets) == 1:
        sets = [sets[0].pick(part) for part in drawn(sets[0].labels, classes, args.held_out, args.seed)]
    return Sets(sets[0], sets[1], classes, tuple(found))


def batch_of(batch: int, pictures: int) -> int:
    """`batch`, or where it exceeds the set a power of two, 4 or more, that makes 8 steps or more of an epoch."""
    if batch <= pictures:
        return batch
    return min(pictures, 1 << max(2, (pictures // 8).bit_length() - 1))


def batch_note(batch: int, given: int, pictures: int) -> str:
    """The line that says why it is not the batch that was given."""
    return (
        f"batch       {batch} pictures a step, because --batch {given} exceeds the set of {pictures}: "
        "an epoch would be one step"
    )


def chance_note(validation: Labelled, error: float, classes: int) -> str | None:
    """A line that says that the validation error is no lower than that of guessing, if that is so."""
    count = len(validation)
    share = max(Counter(validation.labels).values()) / count
    guessing = 1 - max(share, 1 / classes)
    if error < guessing - 2 * (guessing * (1 - guessing) / count) ** 0.5:
        return None
    return (
        f"{error:.1%} of the validation pictures are wrong, of guesses {guessing:.1%} would be: "
        "the network has learned nothing yet. More pictures or epochs, a smaller --batch, or --he --scale 16 "
        "(from the paper's weights small networks hardly move) may help"
    )


def check_training(args: argparse.Namespace) -> None:
    """ValueError for options that would fail only when the pictures have been read."""
    from ..training.processes import chosen_device

    check_out(args, folder=True)
    check_apart("--out", args.out, args.folder)
    if args.validation is not None:
        check_apart("--out", args.out, args.validation)
        if same_place(args.folder, args.validation):
            raise ValueError(
                f"--validation {args.validation} is FOLDER itself: a network that has seen the pictures would be "
                "measured by them; without --validation, --held-out keeps some of each class apart"
            )
    if any(epoch < 1 for epoch in getattr(args, "keep", ())):
        raise ValueError(f"--keep must be epochs from 1, got {' '.join(map(str, args.keep))}")
    if not 0 < args.scale < math.inf:
        raise ValueError(f"--scale must be above 0 and finite, got {args.scale}")
    if args.validation is None and not 0 < args.held_out < 1:
        raise ValueError(f"--held-out must lie between 0 and 1, got {args.held_out}")
    if not all(0 < fraction < 1 for fraction in getattr(args, "falls_at", ())):
        raise ValueError(f"--falls-at must lie between 0 and 1, got {' '.join(f'{f:g}' for f in args.falls_at)}")
    check_workers(args)
    check_memory_of(args, chosen_device(args.device))
    if getattr(args, "plot", False):
        import matplotlib  # noqa: F401


def check_memory_of(
    args: argparse.Namespace, device: torch.device, batch: int = 1, classes: int = 2, channels: int = 3
) -> None:
    """ValueError for a network that cannot be, or whose training memory cannot hold: weights, gradients and momentum,
    and of each picture of a step every map and its gradient."""
    from ..models.zfnet import TooLarge, ZFNet

    try:
        table = ZFNet(**zfnet_arguments(args, classes, channels), device="meta").table
    except TooLarge as error:
        raise ValueError("--side, --channels and --fc make a network that no memory holds; smaller ones do") from error
    numbers = sum(row.parameters for row in table)
    maps = batch * (channels * args.side**2 + sum(row.channels * row.size[0] * row.size[1] for row in table))
    need = 4 * (3 * numbers + 2 * maps) if device.type == "cpu" else 4 * numbers
    what = f"{numbers:,} parameters and the maps of {batch} picture{'s' * (batch > 1)} of {args.side} x {args.side}"
    check_memory(need, what, "a smaller --side, --batch, --fc or --channels takes less")


def run(args: argparse.Namespace) -> None:
    from ..models.zfnet import ZFNet
    from ..training import history
    from ..training.fit import fit
    from ..training.processes import launched, processes, seeded

    check_training(args)
    plan = Plan(
        epochs=args.epochs,
        batch_size=args.batch,
        learning_rate=args.rate,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        patience=args.patience,
        falls_at=tuple(args.falls_at),
        cosine=args.cosine,
        crops=args.crops,
        seed=args.seed,
        filter_rms=None if args.no_clamp else Plan.filter_rms,
    )
    if not (args.resume or args.overwrite):
        history.refuse_existing(args.out)
    if args.resume and not (args.out / "state.pt").exists():
        raise FileNotFoundError(f"there is nothing to resume: no {args.out / 'state.pt'}")
    with launched(args.device) as device, seeded(args.seed, device):
        rank, world = processes()
        say = rank == 0
        sets = picture_sets(args, say)
        count, classes = len(sets.training), sets.classes
        plan = replace(plan, batch_size=batch_of(args.batch, count))
        check_memory_of(args, device, -(-plan.batch_size // world), len(classes), sets.training.channels)
        arguments = zfnet_arguments(args, len(classes), sets.training.channels)
        model = ZFNet(**arguments).to(device)
        run = chosen_run(args, plan, (sets.training, sets.validation), device, progress.wanted(args.quiet))
        if say:
            print(f"pictures    {count} to train on, {len(sets.validation)} to validate on, {len(classes)} classes")
            if plan.batch_size != args.batch:
                print(batch_note(plan.batch_size, args.batch, count))
            print(f"network     {sum(p.numel() for p in model.parameters()):,} parameters, {args.side} x {args.side}")
            print(f"device      {device}, {world} process(es), {str(run.precision).removeprefix('torch.')}", flush=True)
        state = history.begin(args.out, plan, args.resume, model=model, run=run, classes=classes)
        if say:
            write_found(args.out / "pictures.log", *sets.found)
        if say and state is not None:
            say_resumed(state, run)
        done = 0 if state is None else len(state["history"])
        files = history.files(args.out, arguments, classes, args.keep, args.plot)
        epochs = fit(model, run, [partial(print_line, after=done), *files], state)
    if say:
        best = min(epochs, key=lambda epoch: epoch.error)
        print(f"lowest      {best.error:.2%} wrong, {best.error5:.2%} not in the top 5, epoch {best.epoch}")
        print(f"best        {args.out / 'best.pt'} (of epoch {best.epoch})")
        print(f"network     {args.out / 'zfnet.pt'} (of the last epoch)")
        if note := chance_note(sets.validation, epochs[-1].error, len(classes)):
            print(f"zfkernels train: warning: {note}", file=sys.stderr)


def say_resumed(state: dict[str, Any], run: Run) -> None:
    """Where a run is continued, and whether it is with the same pictures."""
    from ..training.history import pictures_digest

    done = len(state["history"])
    print(f"resumed     after epoch {done}" + ("" if done < run.plan.epochs else ", and --epochs asks for no more"))
    if state.get("pictures") not in (None, pictures_digest(run)):
        text = "the training pictures are not those of the epochs before; the run goes on, but not to the same bits"
        print(f"zfkernels train: warning: {text}", file=sys.stderr)


def print_line(trained: Trained, after: int = 0) -> None:
    """The line of the epoch that has ended, if it is one after epoch `after`."""
    epoch = trained.history[-1]
    if epoch.epoch <= after:
        return
    print(
        f"epoch {epoch.epoch:4d}  loss {epoch.loss:7.4f}  wrong {epoch.error:7.2%}  "
        f"top 5 {epoch.error5:7.2%}  rate {epoch.learning_rate:.0e}  {epoch.images_per_second:8.1f} images/s",
        flush=True,
    )
