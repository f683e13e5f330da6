"""The command line: `zfkernels` and `python -m zfkernels`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

import zfkernels

from . import (
    ablation,
    atlas,
    backends,
    checkpoint,
    correspondence,
    demo,
    evolution,
    filters,
    gallery,
    info,
    invariance,
    neighbours,
    probes,
    sanity,
    sources,
    train,
    verify,
)
from .bench import command as bench
from .deconvnet import METHODS, NORMS
from .pictures import read_picture

RAW = ("probability", "logit", "label", "activity", "boxes")
OPTIONAL = {
    "PIL": "demo",
    "matplotlib": "demo",
    "skimage": "demo",
    "tqdm": "demo",
    "sklearn": "analysis",
}  # -> the extra that brings it
PACKAGES = {"PIL": "pillow", "skimage": "scikit-image", "sklearn": "scikit-learn"}

PICTURE = """
PICTURE is any file Pillow reads: the camera's rotation is undone, transparency laid over grey,
16-bit greys brought to 8 bits. It is resized, proportions kept, until it covers the network's
input; what sticks out on either side is cut off.

FILE is the zfnet.pt that `zfkernels demo` writes, or torch.save(model.state_dict()) of a full
ZFNet, whose pictures are normalised as torchvision's (ImageNet's mean and standard deviation).
Without --weights the network is a full ZFNet with random weights, which shows the machinery and
means nothing. MODULE:CALLABLE builds a network of yours instead, say torchvision.models:resnet18;
FILE is then its state dict.
"""
PROJECT = """examples:
  zfkernels project cat.jpg --weights zfkernels-demo/zfnet.pt
  zfkernels project cat.jpg --weights zfkernels-demo/zfnet.pt --layer conv3 --channel 7
  zfkernels project cat.jpg --layer conv2 --channel 0 --position 3 5 --norm gradient --out unit.png
  zfkernels project cat.jpg --model torchvision.models:resnet18 --weights resnet18.pth --method guided
"""
OCCLUDE = """examples:
  zfkernels occlude cat.jpg --weights zfkernels-demo/zfnet.pt
  zfkernels occlude cat.jpg --weights zfkernels-demo/zfnet.pt --target cat --patch 24 --stride 4
  zfkernels occlude cat.jpg --patch 40 20 --fill 0 0 0 --raw cells.npz
"""
DEMO = """examples:
  zfkernels demo
  zfkernels demo --out page --seed 3
  zfkernels demo --epochs 5 --quiet
"""
TRAIN = """examples:
  zfkernels train photos --out run
  zfkernels train photos --out run --resume --epochs 90
  zfkernels train photos --side 96 --channels 24 48 64 64 48 --fc 128 128 --he --scale 16 --epochs 20 --plot
  torchrun --nproc-per-node 4 -m zfkernels train photos --out run --workers 8

FOLDER holds a folder of pictures for each class. The recipe is that of section 3 of the paper: shortest
side 256, centre 256 x 256, less the mean of each pixel; 10 sub-crops of 224; 128 pictures a step, rate
1e-2, momentum 0.9; every filter held to a root mean square of 0.1. --out gets zfnet.pt (for the other
commands), epoch_NNN.pt, state.pt (for --resume) and log.jsonl.
"""
ATLAS = """examples:
  zfkernels atlas photos --weights run/zfnet.pt
  zfkernels atlas photos --weights run/zfnet.pt --layers conv3 conv5 --maps 40
  torchrun --nproc-per-node 4 -m zfkernels atlas photos --weights run/zfnet.pt

--out gets a PNG sheet a layer and index.html, one file that holds all its pictures. A search that was stopped
continues where it was.
"""
EVOLUTION = """examples:
  zfkernels evolution photos --weights run/epoch_*.pt
  zfkernels evolution photos --weights run/epoch_001.pt run/epoch_064.pt --layer conv3 --maps 4 8 15
"""
INVARIANCE = """examples:
  zfkernels invariance cat.jpg dog.jpg --weights run/zfnet.pt --class cat
  zfkernels invariance photos/cat photos/dog --weights run/zfnet.pt --layers conv1 conv5 fc7
"""
FILTERS = """examples:
  zfkernels filters --weights run/zfnet.pt --against free/zfnet.pt      # free: trained with --no-clamp
"""
CORRESPOND = """examples:
  zfkernels correspond faces.json --weights run/zfnet.pt --layers pool5 fc7

PARTS.json lists pictures and the boxes of their parts, in the picture's own pixels:
  [{"image": "dog1.jpg", "parts": {"right eye": [top, left, bottom, right], "nose": [...]}}, ...]
"""
PROBE = """examples:
  zfkernels probe photos --weights run/zfnet.pt --per-class 15 30
  zfkernels probe photos --weights run/zfnet.pt --layers conv5 fc7 --classifiers svm
"""
NEIGHBOURS = """examples:
  zfkernels neighbours cat.jpg photos --weights run/zfnet.pt --layers conv1 fc7
"""
GALLERY = """examples:
  zfkernels gallery
  zfkernels gallery --only invariance occlusion --out figures
"""
SANITY = """examples:
  zfkernels sanity cat.jpg --weights run/zfnet.pt
  zfkernels sanity cat.jpg --weights run/zfnet.pt --layer conv5 --method guided --json sanity.json

The unit's picture is made anew each time that one more layer's weights, from the top, are replaced by noise.
What does not change was not learned: an edge detector would draw it. (Adebayo et al. 2018)
"""
ABLATE = """examples:
  zfkernels ablate photos --side 96 --channels 24 48 64 64 48 --fc 128 128 --he --scale 16 --epochs 20
  zfkernels ablate photos --rows 0 1 4
"""
VERIFY = """examples:
  zfkernels verify
  zfkernels verify --compile-only --quick
"""
BENCH = """examples:
  zfkernels bench --quick
  zfkernels bench --jobs conv,project --n 1,8 --threads 2
  zfkernels bench --json run.json --plots plots
  zfkernels bench --show run.json
"""
INFO = """examples:
  zfkernels info
"""

ANALYSES = (
    ("atlas", "every map's strongest activations on your pictures, projected to pixels (Fig. 2)", atlas,
     ATLAS + sources.NETWORK),
    ("evolution", "what maps respond to as training goes on (Fig. 4)", evolution, EVOLUTION),
    ("invariance", "how features move when pictures are moved, scaled and turned (Fig. 5)", invariance,
     INVARIANCE + sources.NETWORK),
    ("filters", "first-layer filters, and how many are dead or of one frequency (Fig. 6)", filters,
     FILTERS + sources.NETWORK),
    ("correspond", "whether the network relates the same part of different pictures (Table 1)", correspondence,
     CORRESPOND + sources.NETWORK),
    ("ablate", "train the variants of the architecture and print their errors (Table 3)", ablation, ABLATE),
    ("probe", "linear classifiers on the features of each layer (Table 7)", probes, PROBE + sources.NETWORK),
    ("neighbours", "the pictures nearest to one in the features of any layer", neighbours,
     NEIGHBOURS + sources.NETWORK),
    ("sanity", "how much a projection changes when weights are replaced by noise, layer by layer", sanity,
     SANITY + sources.NETWORK),
    ("gallery", "every analysis once, on scikit-image's photographs, with captions", gallery, GALLERY),
)  # fmt: skip


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="zfkernels",
        description="The network of Zeiler & Fergus and its activations projected back to pixels.",
        epilog="examples:\n  zfkernels demo\n  zfkernels project cat.jpg --weights zfkernels-demo/zfnet.pt\n\n"
        "zfkernels COMMAND --help shows the options of a command, with examples.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"zfkernels {zfkernels.__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)

    def command(name, summary, run, epilog):
        made = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(run=run)
        return made

    demo.add_arguments(
        command("demo", "train a small ZFNet on photographs and write a page of what it learned", _demo, DEMO)
    )

    project = command("project", "project one activation of a network to the pixels of your picture", _project,
                      PROJECT + PICTURE)  # fmt: skip
    _add_picture(project)
    project.add_argument("--layer", help="layer of the unit (default: the last convolution)")
    project.add_argument("--channel", type=int, help="map of the unit (default: the layer's strongest on this picture)")
    project.add_argument(
        "--position", type=int, nargs=2, metavar=("ROW", "COLUMN"), help="its place in the map (default: the strongest)"
    )
    project.add_argument(
        "--norm",
        choices=NORMS,
        default="identity",
        help="how the contrast norms are undone (default: identity, i.e. skipped)",
    )
    project.add_argument(
        "--method",
        choices=METHODS,
        default="deconvnet",
        help="what rectifiers do: deconvnet (the paper's), the plain gradient, or both at once (default: %(default)s)",
    )
    project.add_argument("--out", type=Path, default=Path("projection.png"), help="picture to write (%(default)s)")

    occlude = command("occlude", "cover parts of your picture and see what the network's answer depends on", _occlude,
                      OCCLUDE + PICTURE)  # fmt: skip
    _add_picture(occlude)
    occlude.add_argument("--target", help="class, by name or number (default: what the clear picture is taken for)")
    occlude.add_argument("--patch", type=int, nargs="+", metavar="PIXELS",
                         help="side, or height and width, of the cover (default: a fifth of the input)")  # fmt: skip
    occlude.add_argument("--stride", type=int, nargs="+", metavar="PIXELS",
                         help="its step, one number or two (default: a quarter of the cover)")  # fmt: skip
    occlude.add_argument("--fill", nargs="+", metavar="LEVEL",
                         help="grey, or red green blue, 0 to 255; mean: the picture's mean colour; blur: the picture "
                         "blurred (default: the network's mean picture)")  # fmt: skip
    occlude.add_argument("--layer", help="layer whose strongest map is summed (default: the last convolution)")
    occlude.add_argument("--channel", type=int, help="sum this map instead")
    occlude.add_argument("--images", type=Path, metavar="FOLDER",
                         help="pictures whose strongest activations of the same map are projected beside")  # fmt: skip
    occlude.add_argument("--out", type=Path, default=Path("occlusion.png"), help="picture to write (%(default)s)")
    occlude.add_argument("--raw", type=Path, metavar="FILE.npz", help="also write the raw cells as NumPy arrays")

    train.add_arguments(
        command("train", "train a ZFNet on a folder of class folders by the paper's recipe", _analysis(train), TRAIN)
    )
    for name, summary, module, epilog in ANALYSES:
        module.add_arguments(command(name, summary, _analysis(module), epilog))
    verify.add_arguments(
        command("verify", "check every backend that runs here against the reference", verify.main, VERIFY)
    )
    bench.add_arguments(
        command("bench", "time every op and job beside PyTorch, ONNX Runtime and OpenVINO", bench.main, BENCH)
    )
    info.add_arguments(command("info", "versions, backends and why each can or cannot run, threads", info.main, INFO))
    return top


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, 1 for a failed verification, 2 for a mistake in the call."""
    args = parser().parse_args(arguments)
    try:
        return args.run(args)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in OPTIONAL:
            raise
        name = PACKAGES.get(package, package)
        extra = "bench" if args.command == "bench" else OPTIONAL[package]
        return _mistake(args, f"this needs {name}, which is not installed: pip install 'zfkernels[{extra}]'")
    except (ValueError, TypeError, OSError, FloatingPointError, NotImplementedError) as error:
        return _mistake(args, str(error))
    except KeyboardInterrupt:
        print(f"zfkernels {args.command}: stopped", file=sys.stderr)
        return 130


def _mistake(args: argparse.Namespace, text: str) -> int:
    print(f"zfkernels {args.command}: error: {text}", file=sys.stderr)
    return 2


def _add_picture(command: argparse.ArgumentParser) -> None:
    command.add_argument("picture", type=Path, metavar="PICTURE", help="a picture file")
    sources.add_network(command)


def _require_backend() -> None:
    try:
        backends.resolve(None, "cpu")
    except RuntimeError as error:
        raise ValueError(f"{error}; `zfkernels info` lists the backends, ZFKERNELS_BACKEND chooses one") from error


def _demo(args: argparse.Namespace) -> int:
    _require_backend()
    return demo.main(args)


def _analysis(module):
    def run(args: argparse.Namespace) -> int:
        _require_backend()
        return module.main(args)

    return run


def _load(args: argparse.Namespace):
    """The network and the picture: (network, uint8 (3, H, W), float (3, H, W) as the network takes it)."""
    _require_backend()
    if args.model is None and args.weights is None:
        print(
            "zfkernels: warning: random weights, because no --weights were given; what follows means nothing. "
            "`zfkernels demo` trains a network and writes zfkernels-demo/zfnet.pt",
            file=sys.stderr,
        )
        network = checkpoint.untrained()
    else:
        network = sources.network(args)
    picture = read_picture(args.picture, sources.input_size(args, network))
    return network, picture, sources.normalise(network, picture)


def _last_convolution(model: torch.nn.Module) -> str:
    kinds = (torch.nn.Conv2d, zfkernels.nn.ConvReLU)
    names = [name for name, module in model.named_modules() if isinstance(module, kinds)]
    if not names:
        raise ValueError(f"--layer must be given, for {type(model).__name__} has no convolution among its modules")
    return names[-1]


def _project(args: argparse.Namespace) -> int:
    from .report import projection_figure

    network, picture, image = _load(args)
    layer = args.layer or _last_convolution(network.model)
    deconv = zfkernels.Deconvnet(network.model)
    channel = args.channel
    if channel is None:
        channel = int(zfkernels.top_activations(deconv, [image[None]], layer, k=1).values[:, 0].argmax())
    position = tuple(args.position) if args.position else None
    projection = deconv.project(image[None], layer=layer, channel=channel, position=position,
                                norm=args.norm, method=args.method)  # fmt: skip
    row, column = projection.positions[0].tolist()
    value, (top, left, bottom, right) = float(projection.values[0]), projection.boxes[0].tolist()
    _make_folder(args.out)
    projection_figure(picture, projection, f"{layer}, map {channel}, place ({row}, {column})", args.out)
    height, width = picture.shape[1:]
    print(f"unit        {layer}, map {channel}, row {row}, column {column}")
    print(f"activation  {value:.6g}")
    print(f"sees        rows {top} to {bottom - 1}, columns {left} to {right - 1} of the {height} x {width} input")
    print(f"picture     {args.out}")
    if value == 0:
        print("zfkernels project: warning: the activation is 0, so its projection is empty", file=sys.stderr)
    return 0


def _occlude(args: argparse.Namespace) -> int:
    import numpy as np

    from .report import Occluded, occlusion_figure, project_map

    network, picture, image = _load(args)
    for name in ("patch", "stride"):
        if getattr(args, name) and len(getattr(args, name)) > 2:
            raise ValueError(f"--{name} takes one number or two (height width), got {len(getattr(args, name))}")
    fill: torch.Tensor | float | str = 0.0
    if args.fill in (["mean"], ["blur"]):
        fill = args.fill[0]
    elif args.fill:
        if len(args.fill) not in (1, 3):
            raise ValueError(f"--fill takes one level or three (red green blue), got {len(args.fill)}")
        try:
            levels = [float(level) for level in args.fill]
        except ValueError:
            raise ValueError(f"--fill takes levels from 0 to 255, mean or blur, got {' '.join(args.fill)}") from None
        level = torch.tensor(levels).view(-1, 1, 1).expand(picture.shape)
        fill = (level - network.mean) / network.scale
    result = zfkernels.occlusion_map(
        network.model,
        image,
        _target(args.target, network.classes),
        patch=_sides(args.patch),
        stride=_sides(args.stride),
        fill=fill,
        layer=args.layer or _last_convolution(network.model),
        channel=args.channel,
        progress=sys.stderr.isatty(),
    )
    _make_folder(args.out)
    projected = project_map(network, image, result.layer, result.channel, args.images)
    occlusion_figure(Occluded(args.picture.stem, picture, result, projected), network.classes, args.out)
    lowest = divmod(int(result.probability.argmin()), result.probability.shape[1])
    top, left, bottom, right = result.boxes[lowest].tolist()
    print(f"clear       {network.classes[result.clear_label]}; P({network.classes[result.target]}) = "
          f"{result.clear_probability:.4f}")  # fmt: skip
    print(f"lowest      P = {float(result.probability[lowest]):.4f} with rows {top} to {bottom - 1}, "
          f"columns {left} to {right - 1} covered")  # fmt: skip
    print(f"cells       {result.probability.shape[0]} x {result.probability.shape[1]}, raw")
    print(f"picture     {args.out}" + (", with the map's projections from other pictures" if args.images else ""))
    if args.raw:
        _make_folder(args.raw)
        with args.raw.open("wb") as file:
            np.savez(
                file,
                **{name: getattr(result, name).numpy() for name in RAW},
                classes=np.array(network.classes),
            )
        print(f"raw cells   {args.raw}")
    return 0


def _sides(values: list[int] | None) -> int | tuple[int, ...] | None:
    return None if not values else values[0] if len(values) == 1 else tuple(values)


def _target(wanted: str | None, classes: list[str]) -> int | None:
    if wanted is None or wanted in classes:
        return None if wanted is None else classes.index(wanted)
    if wanted.isdecimal() and int(wanted) < len(classes):
        return int(wanted)
    some = ", ".join(classes[:12]) + (", ..." if len(classes) > 12 else "")
    raise ValueError(f"--target must be a class or a number in 0..{len(classes) - 1}, got {wanted!r}; classes: {some}")


def _make_folder(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
