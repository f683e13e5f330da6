import argparse
from pathlib import Path

from .. import progress
from ..demo.captions import CAPTIONS, HEAD
from ..files import check_writable, write_text
from ..graph.methods import METHODS
from .options import add_quiet, check_out

SECTIONS = tuple(CAPTIONS)
EXAMPLES = """examples:
  zfkernels gallery
  zfkernels gallery --only invariance occlusion --out figures
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_quiet(parser)
    text = "folder of README.md and its pictures (%(default)s)"
    add("--out", type=Path, default=Path("zfkernels-gallery"), help=text)
    text = "folder of the networks, trained once and kept (%(default)s)"
    add("--work", type=Path, default=Path("zfkernels-gallery-work"), help=text)
    add("--method", choices=METHODS, default="deconvnet", help="what rectifiers do in its projections (%(default)s)")
    text = "draw only these, and leave README.md as it is: " + ", ".join(SECTIONS)
    add("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=text)


def run(args: argparse.Namespace) -> None:
    from ..demo.gallery import SECTIONS, Stage

    check_out(args, folder=True)
    check_writable(args.work, "--work", folder=True)
    args.out.mkdir(parents=True, exist_ok=True)
    stage = Stage(args.out, args.work, args.method, progress=progress.wanted(args.quiet))
    parts = []
    for name, section in SECTIONS:
        if not args.only or name in args.only:
            print(f"{name} ...", flush=True)
            parts.append(section(stage))
    if not args.only:
        write_text(args.out / "README.md", HEAD + "\n".join(parts))
    total = sum(path.stat().st_size for path in args.out.iterdir() if path.is_file())
    print(f"gallery     {args.out / 'README.md'} ({total / 1e6:.2f} MB)")
