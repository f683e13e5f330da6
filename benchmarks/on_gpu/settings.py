"""What a part is told, and the files that it leaves."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DONE = 76  # the exit code of a process that came to its end; 0 is also that of one that something ended on the way
SKIPPED = 77  # that of a part that cannot run here; its last line says why
MACHINE = "machine.json"


@dataclass
class Run:
    """One part's settings. `batch` is that of the large rows; `device` where tensors live; `row_seconds` what a row
    may take; `fault` what a rehearsal plants in which part ("hang:verify-cuda")."""

    out: Path
    part: str
    wanted: tuple[str, ...]
    jobs: str
    ops: tuple[str, ...]
    rounds: int
    argv: tuple[str, ...]
    rehearsed: bool = False
    fault: str = ""
    op: str = ""

    @property
    def device(self) -> str:
        return "cpu" if self.rehearsed else "cuda"

    @property
    def batch(self) -> int:
        return 2 if self.rehearsed else 128

    @property
    def row_seconds(self) -> float:
        return 6.0 if self.fault.startswith("hang") else 30.0

    def machine(self) -> dict:
        """What the part "machine" found."""
        return json.loads((self.out / MACHINE).read_text())

    def backends(self) -> list[str]:
        """Those of the wanted backends that can run here."""
        found = self.machine()["backends"]
        return [name for name in self.wanted if found[name]["reason"] is None]

    def command(self, *more: str) -> list[str]:
        """This script again, for another piece of the part."""
        return [sys.executable, str(ROOT / "benchmarks/gpu.py"), *self.argv, *more]


def whole(file: Path) -> dict | None:
    """A JSON file's content; None where there is none, or one that is cut off or no object."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def skip(why: str) -> int:
    """Ends a part that cannot run here."""
    print(why, flush=True)
    return SKIPPED


_head: dict = {}


def write(run: Run, name: str, rows: list[dict], **more: object) -> None:
    """Writes <name>.json, never half of it."""
    from zfkernels.files import write_json

    write_json(run.out / f"{name}.json", content_of(run, rows, **more))


def content_of(run: Run, rows: list[dict], **more: object) -> dict:
    """What a file holds: the rows, and the device, versions, commit, digests and date."""
    if not _head:
        _head.update(head(run))
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"date": date, "part": run.part} | _head | more | {"rows": rows}


def head(run: Run) -> dict:
    """What does not change while a process runs."""
    import torch

    from zfkernels.bench import record

    words = {"rounds": run.rounds, "rehearsed": run.rehearsed} | record.environment(",".join(run.wanted))
    words |= {"gpu": torch.cuda.get_device_name(), "torch_cuda": torch.version.cuda}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    if shutil.which(query[0]):
        words["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    return words


def line_buffered() -> None:
    """What a part prints is in its log when it is killed."""
    sys.stdout.reconfigure(line_buffering=True)
