"""Writes the tables of README.md and benchmarks/README.md from the records of runs.

python benchmarks/readme.py
"""

import json
from pathlib import Path

from zfkernels.bench import tables

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks/results"
OPS = RESULTS / "epyc-zen3-2-cores/bench.json"
MODELS = RESULTS / "xeon-avx512-2-cores/models.json"
NETS = RESULTS / "xeon-avx512-2-cores/nets.json"


def written() -> dict[Path, str]:
    """The two files with the tables of the records in them."""
    ops, models, nets = (json.loads(path.read_text()) for path in (OPS, MODELS, NETS))
    readme, benchmarks = (path.read_text() for path in (ROOT / "README.md", ROOT / "benchmarks/README.md"))
    source, compiled = (path.relative_to(ROOT).as_posix() for path in (OPS, MODELS))
    networks = tables.shown(models, ("models",))
    readme = tables.replaced(readme, "bench", tables.markdown(ops, source, tables.HEADLINES))
    readme = tables.replaced(readme, "models", tables.markdown(models, compiled, networks))
    source, compiled = (path.relative_to(ROOT / "benchmarks").as_posix() for path in (OPS, MODELS))
    whole = tables.markdown(ops, source, tables.shown(ops, ("op", "network")))
    benchmarks = tables.replaced(benchmarks, "bench", f"{whole}\n\n{tables.listed_summaries(ops)}")
    benchmarks = tables.replaced(benchmarks, "models", tables.listed_summaries(models))
    benchmarks = tables.replaced(benchmarks, "nets", tables.listed_summaries(nets))
    return {ROOT / "README.md": readme, ROOT / "benchmarks/README.md": benchmarks}


if __name__ == "__main__":
    for path, text in written().items():
        path.write_text(text)
