import argparse
from pathlib import Path

from .. import progress
from ..demo.captions import CAPTIONS
from ..files import check_pages, check_writable, write_text
from ..graph.methods import METHODS
from .options import add_json, add_quiet, check_out, write_numbers

SECTIONS = tuple(CAPTIONS)
EXAMPLES = """examples:
  zfkernels gallery
  zfkernels gallery --only invariance occlusion --out figures

There is no --device: its networks are small and made to learn on any CPU. Each analysis is also a command, which
takes --device and pictures of yours.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add_quiet(parser)
    text = "folder of gallery.html, README.md and their pictures (%(default)s)"
    add("--out", type=Path, default=Path("zfkernels-gallery"), help=text)
    text = "folder of the networks, trained once and kept (%(default)s)"
    add("--work", type=Path, default=Path("zfkernels-gallery-work"), help=text)
    add("--method", choices=METHODS, default="deconvnet", help="what rectifiers do in its projections (%(default)s)")
    add_json(parser)
    text = "draw only these, and leave the pages as they are: " + ", ".join(SECTIONS)
    add("--only", nargs="+", choices=SECTIONS, metavar="SECTION", help=text)


def run(args: argparse.Namespace) -> None:
    from ..demo.gallery import SECTIONS, Stage
    from ..demo.gallery_page import markdown, write_page

    check_out(args, folder=True)
    if not args.only:
        check_pages(args.out, "README.md", "gallery.html")
    check_writable(args.work, "--work", folder=True)
    args.out.mkdir(parents=True, exist_ok=True)
    stage = Stage(args.out, args.work, args.method, progress=progress.wanted(args.quiet))
    parts = []
    for name, section in SECTIONS:
        if not args.only or name in args.only:
            print(f"{name} ...", flush=True)
            parts.append(section(stage))
    drawn = [part for part in parts if part is not None]
    if not args.only:
        write_text(args.out / "README.md", markdown(drawn))
        write_page(args.out / "gallery.html", drawn)
    sections = [{"name": part.name, "pictures": part.caption.pictures, "values": part.values} for part in drawn]
    write_numbers(args, method=args.method, sections=sections)
    total = sum(path.stat().st_size for path in args.out.iterdir() if path.is_file())
    print(f"gallery     {args.out / 'gallery.html'}, {args.out / 'README.md'} ({total / 1e6:.2f} MB)")
