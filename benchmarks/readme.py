"""Writes README.md's table of times from a run's record.

python benchmarks/readme.py [FILE.json]
"""

import json
import sys
from pathlib import Path

from zfkernels.bench import tables

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks/results/epyc-zen3-2-cores/bench.json"


def written(readme: str, record: Path) -> str:
    """The README's text with the table of the record in it."""
    return tables.replaced(readme, tables.markdown(json.loads(record.read_text()), record.relative_to(ROOT).as_posix()))


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text(), Path(sys.argv[1]).resolve() if sys.argv[1:] else RECORD))
