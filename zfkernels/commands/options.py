"""Options that commands share."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import progress
from ..drawing.style import Figure, check_format, save
from ..files import as_json, check_writable, write_json, write_text
from ..graph.methods import METHODS
from ..limits import check_memory, most_processes
from ..words import listed, nearest

if TYPE_CHECKING:
    from torch import Tensor

    from ..data.idx import IdxPictures
    from ..data.loading import Stream
    from ..data.scan import Scan
    from ..deconvnet.deconvnet import Deconvnet
    from ..models.checkpoint import Network

LAYERS = "every layer that makes maps, pools and norms apart"  # what Opened.layers gives if none is named
SIZE = 224  # of pictures that --model takes, if nothing else is said
PICTURE = """
PICTURE is any file Pillow reads: the camera's rotation is undone, transparency laid over grey,
16-bit, 32-bit and floating-point greys brought to 8 bits. It is resized, proportions kept, until
it covers the network's input; what sticks out on either side is cut off.

FILE is the zfnet.pt that `zfkernels demo` writes, or torch.save(model.state_dict()) of a full
ZFNet, whose pictures are normalised as torchvision's (ImageNet's mean and standard deviation).
Without --weights the network is a full ZFNet with random weights, which shows the machinery and
means nothing. MODULE:CALLABLE builds a network of yours instead, say torchvision.models:resnet18;
FILE is then its state dict, and --mean and --std say how its pictures are normalised, if not as
torchvision's. A network of one channel gets grey pictures.
"""
NETWORK = """FILE is a zfnet.pt of `zfkernels demo` or `zfkernels train`, or torch.save(model.state_dict()) of a full
ZFNet. MODULE:CALLABLE builds a network of yours instead, say torchvision.models:alexnet; FILE is then its
state dict. Its pictures are normalised as torchvision's (ImageNet's mean and standard deviation), unless
--mean and --std say otherwise. A network of one channel gets grey pictures.
"""


def add_picture(parser: argparse.ArgumentParser) -> None:
    """PICTURE, and the options of `add_network`."""
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="a picture file")
    add_network(parser)


def add_network(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """The options that `open_network` reads; with `several` weights, those that `network_of` does."""
    add = parser.add_argument
    if several:
        add("--weights", type=Path, nargs="+", required=True, metavar="FILE", help="checkpoints in order, epoch_*.pt")
    else:
        add("--weights", type=Path, metavar="FILE", help="the network's weights (see below)")
    add("--model", metavar="MODULE:CALLABLE", help="a network of yours (see below)")
    add("--size", type=int, help=f"side of the pictures --model takes ({SIZE}, or as it says itself)")
    text = "of pixels in 0..1, one number or one a channel (default: the network's own)"
    add("--mean", type=float, nargs="+", metavar="LEVEL", help=text)
    add("--std", type=float, nargs="+", metavar="LEVEL", help="likewise, what pixels less their mean are divided by")
    add("--classes", type=Path, metavar="FILE", help="the classes' names, one a line or a JSON list")
    add("--device", default="cpu", help="where the network runs: cpu, cuda, cuda:1, ... (%(default)s)")


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option that `write_numbers` reads."""
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the numbers")


def add_skip(parser: argparse.ArgumentParser) -> None:
    """The option that `find` reads."""
    text = "leave out pictures that cannot be read, and list them at the end (default: stop before any work)"
    parser.add_argument("--skip-unreadable", action="store_true", help=text)


def find(args: argparse.Namespace, folder: Path, classes: Sequence[str] | bool = False, say: bool = True) -> Scan:
    """The pictures of a folder, all of which can be read; prints how many there are and what was left out.

    Args:
        classes: whether it is a folder of class folders.
        say: print it; of several processes, the first does.

    Raises:
        FileNotFoundError, ValueError: as `scan.scan`; pictures that cannot be read, without --skip-unreadable.
    """
    from ..data.folders import empty_classes
    from ..data.scan import scan

    found = scan(folder)
    bad = check_pictures(args, found.paths, say)
    found = found.without(bad)
    if not found.paths:
        raise ValueError(f"{folder} holds no picture that can be read; the first of {len(bad)}: {bad[0][1]}")
    if classes:
        found = replace(found, left_out=(*found.left_out, *empty_classes(found)))
    if say:
        parts = [path.relative_to(folder).parts for path in found.paths] if classes else ()
        names = {part[0] for part in parts if len(part) > 1}
        print(f"found       {found.line(sorted(names))}", flush=True)
    return found


def check_pictures(args: argparse.Namespace, paths: Sequence[Path], say: bool = True) -> list[tuple[Path, str]]:
    """Those of the pictures that cannot be read, and why, which are listed when the command ends.

    Raises:
        ValueError: there are some, and no --skip-unreadable; all are counted, the first are named.
    """
    from ..data.pictures import unreadable

    bad = unreadable(paths, say and progress.wanted(getattr(args, "quiet", False)))
    skip = getattr(args, "skip_unreadable", None)
    if bad and not skip:
        more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
        raise ValueError(
            f"{len(bad)} of {len(paths)} pictures cannot be read: {'; '.join(why for _, why in bad[:3])}{more}; mend "
            "or remove them" + ("" if skip is None else ", or give --skip-unreadable")
        )
    if say:
        args.at_end = [*getattr(args, "at_end", ()), *(f"skipped     {why}" for _, why in bad)]
    return bad


def write_found(path: Path, *scans: Scan | IdxPictures) -> None:
    """The log of what was found: the line of each folder, and each file that was left out, with the reason."""
    lines = [line for scan in scans for line in (scan.line(), *(f"  {file}: {why}" for file, why in scan.left_out))]
    write_text(path, "\n".join(lines) + "\n")


def add_method(parser: argparse.ArgumentParser) -> None:
    """The option that `Opened.method` reads."""
    text = (
        "what rectifiers do: deconvnet (the paper's), the plain gradient, or both at once (default: deconvnet; guided "
        "for layers without max-pooling below them)"
    )
    parser.add_argument("--method", choices=METHODS, help=text)


@dataclass(frozen=True)
class Opened:
    """A network that a command looks into."""

    network: Network
    notes: tuple[str, ...] = ()  # what is to be said beside anything that is drawn of it

    @cached_property
    def deconv(self) -> Deconvnet:
        from ..deconvnet.deconvnet import Deconvnet

        return Deconvnet(self.network.model)

    @property
    def hidden(self) -> tuple[str, ...]:
        """The layers without maps, except the last, whose features are the classes."""
        return tuple(self.deconv.vector_layers[:-1])

    def layers(self, names: Sequence[str] | None = None) -> list[str]:
        """The layers named, which must exist; otherwise each that makes maps once, pools and norms apart (LAYERS)."""
        for name in names or ():
            self.layer(name, "--layers")
        kinds = {name: type(module).__name__ for name, module in self.network.model.named_modules()}
        once = self.deconv.distinct_layers
        return list(names or [name for name in once if not re.search("pool|norm", kinds.get(name, name).lower())])

    def layer(self, name: str, option: str = "--layer") -> str:
        """The layer of this name; ValueError, with what there is, if there is none."""
        known = (*self.deconv.layers, *self.deconv.vector_layers)
        if name not in known:
            of = "must be of" if option == "--layers" else "must be one of"
            raise ValueError(f"{option} {of} {listed(known)}, got {name!r}{nearest(name, known)}")
        return name

    def method(self, layer: str, wanted: str | None, images: Tensor) -> str:
        """The method to project units of `layer` with; why, if it is another than the paper's, is printed."""
        from ..analyses.choices import method_for

        method = method_for(self.deconv, layer, wanted)
        if self.deconv.switchless(layer):
            part = self.deconv.image_dependence(images[:1], layer, self._strongest(images[:1], layer))
            why = "as asked; but" if wanted else "because"
            said = (
                f"no max-pooling lies below {layer}: {float(part):.1%} of a deconvnet projection depends on the picture"
            )
            print(f"method      {method}, {why} {said}")
        return method

    def _strongest(self, images: Tensor, layer: str) -> int:
        from ..analyses.activations import top_activations

        return int(top_activations(self.deconv, [images], layer, k=1).values[:, 0].argmax())

    def read(self, paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
        """The pictures as uint8 (N, 3, H, W), and as the network takes them."""
        from concurrent.futures import ThreadPoolExecutor

        import torch

        from ..data.pictures import read_picture

        size = self.network.image_size
        check_memory(len(paths) * 3 * size[0] * size[1] * 9, f"{len(paths)} pictures")  # a byte, and floats twice
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            pixels = torch.stack(list(threads.map(read_picture, paths, [size] * len(paths))))
        return pixels, self.network.normalise(pixels)

    def stream(self, paths: Sequence[Path], *more: Any) -> Stream:
        """Batches of the pictures, as the network takes them, and of their numbers; see `data.loading.Stream`."""
        from ..data.loading import Stream

        return Stream(paths, self.network, *more)


def open_network(args: argparse.Namespace, or_random: bool = False) -> Opened:
    """The network that the options of `add_network` name.

    `or_random`: without --weights and --model it is the full ZFNet with random weights, after a warning.
    """
    network = network_of(args, args.weights, or_random)
    if args.weights is None and not network.source:
        warn_random(args)
    return opened(network)


def network_of(args: argparse.Namespace, weights: Path | None, or_random: bool = False) -> Network:
    """The network of these weights, as the other options of `add_network` say; `or_random` as of `open_network`."""
    from ..models import checkpoint, load
    from ..training.processes import chosen_device

    at_least(args, 1, "size")
    device = chosen_device(args.device)
    if or_random and args.model is None and weights is None:
        network = checkpoint.untrained()
    else:
        network = load.network(weights, args.model, args.size or SIZE)
    if args.size is not None and network.image_size != (args.size, args.size):
        height, width = network.image_size
        takes = f"{args.model or weights or 'the network'} takes pictures of {height} x {width}, which it says itself"
        raise ValueError(f"--size {args.size}: {takes}; leave --size out")
    network.model.to(device)
    return load.adjusted(network, args.mean, args.std, args.classes)


def warn_random(args: argparse.Namespace) -> None:
    """Says on stderr that the network's weights are random, or may be."""
    hint = "`zfkernels demo` trains a network and writes zfkernels-demo/zfnet.pt"
    text = f"random weights, because no --weights were given; what follows means nothing. {hint}"
    if args.model:
        text = f"no --weights were given: {args.model} gives its own; if they are random, what follows means nothing"
    print(f"zfkernels: warning: {text}", file=sys.stderr)


def called(args: argparse.Namespace, network: Network) -> str:
    """The network and its weights, as a page's title names them."""
    if network.source or args.weights is not None:
        return network.source or str(args.weights)
    return f"{args.model}, no --weights given" if args.model else "a ZFNet with random weights"


def opened(network: Network) -> Opened:
    """A network of a file, with a note if its first filters are still noise; or one that others have trained."""
    from ..analyses.filters import noise_note

    note = noise_note(network.model)
    source = f"network     {network.source}" if network.source else None
    return Opened(network, tuple(filter(None, (source, note))))


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bars, or lines where there is no terminal")


def at_least(args: argparse.Namespace, least: int, *names: str) -> None:
    """ValueError for an option below `least`; those that are not given pass."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} must be at least {least}, got {value}")


def check_workers(args: argparse.Namespace) -> None:
    """ValueError for a number of --workers that no machine of these cores has a use for: each is a process."""
    if not 0 <= args.workers <= most_processes():
        raise ValueError(f"--workers must be at least 0 and at most {most_processes()}, got {args.workers}")


def check_batch(args: argparse.Namespace, pictures: int, size: tuple[int, int]) -> None:
    """ValueError for a --batch of pictures that memory cannot hold: as bytes, as floats, and the first layer's maps."""
    count = min(args.batch, pictures)
    check_memory(count * 3 * size[0] * size[1] * 4 * 4, f"--batch {args.batch}: {count} pictures at a time")


def is_page(path: Path) -> bool:
    return path.suffix.lower() in (".html", ".htm")


def check_out(args: argparse.Namespace, folder: bool = False, page: bool = False) -> None:
    """ValueError, before any work, if --out cannot be written, is no format of figures, or is a file that is read.

    `page`: it may also be a page.
    """
    check_writable(args.out, folder=folder)
    if not folder and not (page and is_page(args.out)):
        check_format(args.out)
    check_json(args)


def check_json(args: argparse.Namespace) -> None:
    """ValueError, before any work, if --json (or --raw) cannot be written, or an output is read or written by another.

    A picture in a folder that is searched is read, too.
    """
    outputs = {name: path for name in ("out", "json", "raw") if (path := getattr(args, name, None)) is not None}
    for name, path in outputs.items():
        if name != "out":
            check_writable(path, f"--{name}")
        searched = _is_searched(args, path)
        if path.is_file() and (searched or any(same(path, read) for read in _paths(args))):
            raise ValueError(f"--{name} {path} would overwrite a file that is read; choose another name")
        if searched:
            text = "lies in a folder that is searched for pictures, where the next search would find it"
            raise ValueError(f"--{name} {path} {text}; choose another place")
    for first, second in combinations(outputs, 2):
        if same(outputs[first], outputs[second]):
            raise ValueError(f"--{second} {outputs[second]} would overwrite what --{first} writes; choose another name")


def check_apart(option: str, out: Path, folder: Path) -> None:
    """ValueError for an output folder of pictures in the folder that is searched: they would be found the next time."""
    if lies_in(out, folder):
        raise ValueError(f"{option} {out} must lie outside of {folder}, where it would be searched for pictures itself")


def same(path: Path, other: Path) -> bool:
    """Whether two names are of one regular file, there or to be."""
    if path.exists() and other.exists():
        return path.is_file() and path.samefile(other)
    return same_place(path, other)


def same_place(path: Path, other: Path) -> bool:
    """Whether links lead both to the same place, whatever is there."""
    return os.path.realpath(path) == os.path.realpath(other)


def lies_in(path: Path, folder: Path) -> bool:
    """Whether links lead both to the same place, or `path` to one below."""
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def _is_searched(args: argparse.Namespace, path: Path) -> bool:
    """Whether the file is a picture in one of the folders that the command searches."""
    from ..data.scan import endings

    named = [getattr(args, name, None) for name in ("folder", "images", "validation")]
    folders = [folder for folder in (*named, *getattr(args, "pictures", ())) if folder is not None and folder.is_dir()]
    return any(lies_in(path, folder) for folder in folders) and path.suffix.lower() in endings()


def write_numbers(args: argparse.Namespace, **numbers: object) -> None:
    """Write them, with the command's name, to the file of --json, if it is given; and say so."""
    if args.json:
        write_json(args.json, as_json({"command": args.command, **numbers}))
        print(f"numbers     {args.json}")


def _paths(args: argparse.Namespace) -> Iterator[Path]:
    """The files that the options name to be read."""
    for name in ("picture", "pictures", "parts", "weights", "against", "classes", "checkpoints"):
        value = getattr(args, name, None)
        yield from value if isinstance(value, (list, tuple)) else [value] if isinstance(value, Path) else []


def report(figure: Figure, path: Path, *lines: str, note: str = "") -> None:
    """Write the figure; then print the lines, and where the figure is."""
    save(figure, path)
    print(*lines, f"picture     {path}{note}", sep="\n")
