from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from .. import progress
from ..files import check_pages, check_writable
from .options import (
    LAYERS,
    NETWORK,
    SIZE,
    add_network,
    add_quiet,
    add_skip,
    at_least,
    called,
    check_apart,
    find,
    network_of,
    opened,
    warn_random,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..explorer.state import Explored
    from ..models.checkpoint import Network

PORT = 8311
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folder", type=Path, metavar="PICTURES", help="a folder of pictures; folders in it are their classes")
    add_network(parser)
    text = "epoch_*.pt of the network's training, in order: the page steps through them"
    add("--checkpoints", type=Path, nargs="+", metavar="FILE", help=text)
    add("--layers", nargs="+", metavar="LAYER", help=f"(default: {LAYERS}, and the classes)")
    add("--port", type=int, default=PORT, help="0 takes any that is free (%(default)s)")
    add("--host", default="127.0.0.1", help="another than this machine's own lets others in (%(default)s)")
    add("--no-browser", action="store_true", help="print the address, open nothing")
    add("--export", type=Path, metavar="FOLDER", help="write static files that open from a disk; serve nothing")
    add("--maps", type=int, metavar="COUNT", help="with --export: only each layer's COUNT strongest maps")
    add_skip(parser)
    add_quiet(parser)


def run(args: argparse.Namespace) -> None:
    import starlette  # noqa: F401, first of all, for what is said where the extra is not installed
    import uvicorn  # noqa: F401

    from ..explorer import server
    from ..explorer.live import Live
    from ..explorer.state import explored

    at_least(args, 0, "port")
    at_least(args, 1, "maps")
    if args.port > 65535:
        raise ValueError(f"--port must be at most 65535, got {args.port}")
    if args.export is not None:
        check_writable(args.export, "--export", folder=True)
        check_pages(args.export, "index.html", option="--export")
        check_apart("--export", args.export, args.folder)
    elif args.maps is not None:
        raise ValueError("--maps is of --export; a live page shows every map")
    checkpoints = _checkpoints(args)
    network = network_of(args, args.weights, or_random=True)
    shown = opened(network)
    if args.weights is None and not network.source:
        warn_random(args)
    layers = shown.layers(args.layers) if args.layers else [*shown.layers(), *shown.deconv.vector_layers[-1:]]
    found = find(args, args.folder)
    socket = None if args.export is not None else server.bound(args.host, args.port)
    state = explored(network, shown.deconv, found, layers, called(args, network), _setup(args))
    if socket is None:
        return _export(args, state)
    it = server.explorer(state, Live(checkpoints))
    if args.host not in LOOPBACK:
        text = f"--host {args.host}: whoever reaches this machine sees these pictures and can upload others"
        print(f"zfkernels: warning: {text}", file=sys.stderr)
    server.serve(it, socket, lambda address: _ready(address, not args.no_browser))


def _ready(address: str, browser: bool) -> None:
    import webbrowser

    print(address, flush=True)
    if browser:
        webbrowser.open(address)


def _export(args: argparse.Namespace, found: Explored) -> None:
    from ..explorer.export import export

    size = export(found, args.export, _command(args), args.maps, progress.wanted(args.quiet))
    print(f"page        {(args.export / 'index.html').resolve()} ({size / 1e6:.1f} MB, opens from a disk)")


def _command(args: argparse.Namespace) -> str:
    """The command that serves what is exported, with the options that were given."""
    import shlex

    words = ["zfkernels", "explore", args.folder]
    names = ("weights", "model", "mean", "std", "classes", "checkpoints", "layers", *(["size"] if args.model else []))
    for name in names:
        value = getattr(args, name)
        words += [] if value is None else [f"--{name}", *(value if isinstance(value, list) else [value])]
    return shlex.join(map(str, words))


def _checkpoints(args: argparse.Namespace) -> tuple[tuple[str, Callable[[], Network]], ...]:
    """(name, what loads it) of each; nothing is loaded yet."""
    from functools import partial

    from ..analyses.evolution import checkpoints

    files = checkpoints(args.checkpoints or ())
    return tuple((name, partial(network_of, args, file)) for name, file in files.items())


def _setup(args: argparse.Namespace) -> tuple[str, ...]:
    """The lines of Python that make `network`."""
    if args.weights is None and args.model is None:
        return ("from zfkernels.models import checkpoint", "network = checkpoint.untrained()")
    weights = None if args.weights is None else f"Path({str(args.weights)!r})"
    size = args.size or SIZE
    lines = ["from zfkernels.models import load", f"network = load.network({weights}, {args.model!r}, {size})"]
    if args.mean or args.std:
        lines.append(f"network = load.adjusted(network, {args.mean}, {args.std}, None)")
    return (*(["from pathlib import Path"] if weights else []), *lines)


EXAMPLES = f"""examples:
  zfkernels explore photos --weights run/zfnet.pt
  zfkernels explore photos --weights run/zfnet.pt --checkpoints run/epoch_*.pt
  zfkernels explore photos --model torchvision.models:resnet18 --weights resnet18.pt --port 0 --no-browser
  zfkernels explore photos --weights run/zfnet.pt --export site

The address is printed once it answers. The search over the pictures runs meanwhile; the page shows what it has found
so far, and can stop it. Ctrl-C ends.
{NETWORK}"""
