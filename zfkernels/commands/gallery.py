"""`zfkernels gallery`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..demo.gallery import HEAD, SECTIONS, Stage

EXAMPLES = """examples:
  zfkernels gallery
  zfkernels gallery --only invariance occlusion --out figures
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `zfkernels gallery`."""
    add = parser.add_argument
    add(
        "--out", type=Path, default=Path("zfkernels-gallery"), help="folder of README.md and its pictures (%(default)s)"
    )
    add("--work", type=Path, default=Path("zfkernels-gallery-work"),
        help="folder of the networks, trained once and kept (%(default)s)")  # fmt: skip
    add("--only", nargs="+", choices=[name for name, _ in SECTIONS], metavar="SECTION",
        help="draw only these, and leave README.md as it is: " + ", ".join(name for name, _ in SECTIONS))  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Trains what is not there yet, draws, writes; 0."""
    args.out.mkdir(parents=True, exist_ok=True)
    stage = Stage(args.out, args.work, progress=sys.stderr.isatty())
    parts = []
    for name, section in SECTIONS:
        if not args.only or name in args.only:
            print(f"{name} ...", flush=True)
            parts.append(section(stage))
    if not args.only:
        (args.out / "README.md").write_text(HEAD + "\n".join(parts), encoding="utf-8")
    total = sum(path.stat().st_size for path in args.out.iterdir() if path.is_file())
    print(f"gallery     {args.out / 'README.md'} ({total / 1e6:.2f} MB)")
    return 0
