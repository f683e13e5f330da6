"""How the parts ended, what was not verified, and the rows as a table."""

import contextlib
import json
from pathlib import Path
from typing import NamedTuple

from .settings import DONE, MACHINE, SKIPPED, whole

KEPT = 1 << 20  # bytes of a log, its last


class Ended(NamedTuple):
    """How a part ended: passed, skipped (it cannot run here), stopped (out of time) or FAILED; after how long, why."""

    name: str
    how: str
    seconds: float
    why: str = ""
    log: str = ""
    code: int | None = None


def how(name: str, code: int | None, seconds: float, log: Path, why: str = "") -> Ended:
    """From the exit code, None for a part that was killed, and why. The log of one that passed goes."""
    words = last_of(log).strip()
    last = words.splitlines()[-1][:300] if words else ""
    if code in (DONE, SKIPPED):
        with contextlib.suppress(OSError):
            log.unlink()
        return Ended(name, "passed", seconds) if code == DONE else Ended(name, "skipped", seconds, last)
    if code is None:
        return Ended(name, "stopped", seconds, f"{why}; {log}")
    why = f"exit code {code}" if code else "it ended before its end, with exit code 0"
    return Ended(name, "FAILED", seconds, f"{why}: {last} ({log})", words, code)


def last_of(log: Path) -> str:
    """The end of a log, which is all that is left of a long one; "" where somebody has removed it."""
    words = b""
    with contextlib.suppress(OSError), log.open("rb+") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - KEPT))
        words = file.read(KEPT)
        if size > KEPT:
            file.seek(0)
            file.write(words)
            file.truncate()
    return words.decode(errors="replace")


def cut_off(out: Path, since: float) -> list[str]:
    """The JSON files written since then, in seconds of the clock, that are cut off."""
    files = [file for file in sorted(out.rglob("*.json")) if not file.name.startswith(".")]
    return [str(file.relative_to(out)) for file in files if changed(file) >= since and whole(file) is None]


def changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:  # it has been removed meanwhile
        return 0.0


def said(ended: Ended) -> Ended:
    print(f"{ended.name:<15}{ended.how:<9}{ended.seconds:>5.0f} s  {ended.why}", flush=True)
    return ended


def conclude(out: Path, parts: list[str], ended: dict[str, Ended], backends: list[str]) -> int:
    """Writes run.json; prints rows, failures and what was not verified; the exit code."""
    machine = whole(out / MACHINE)
    missing = not_verified(out, machine, backends)
    bad = [f"{name}: {ended[name].how if name in ended else 'not reached'}" for name in parts if not fine(ended, name)]
    skipped = {name: one.why for name, one in ended.items() if one.how == "skipped"}
    result = {"parts": {name: one._replace(log="")._asdict() for name, one in ended.items()}}
    result |= {"not_passed": bad, "not_verified": missing}
    try:
        (out / "run.json").write_text(json.dumps(result, indent=1) + "\n")
    except OSError as error:
        bad.append(f"run.json cannot be written: {error}")
    print(table(out, parts))
    for name, why in skipped.items():
        print(f"not run: {name}: {why}")
    for text in missing:
        print(f"NOT VERIFIED: {text}")
    for text in bad:
        print(f"NOT PASSED: {text}")
    print("everything that ran was verified and passed" if not bad and not missing else "NOT ALL IS WELL, see above")
    return 1 if bad or missing else 0


def fine(ended: dict[str, Ended], name: str) -> bool:
    return name in ended and ended[name].how in ("passed", "skipped")


def not_verified(out: Path, machine: dict | None, backends: list[str]) -> list[str]:
    """The ops and dtypes of these backends of which `out` has no passed check by the present sources."""
    found = []
    for backend in backends:
        words = machine.get("backends", {}).get(backend) if machine else {"reason": "the machine was not looked at"}
        if words is None or words["reason"] is not None:
            found.append(f"{backend}: it does not run here: {words['reason'] if words else 'unknown'}")
            continue
        passed = set()
        for file in sorted((out / f"verify-{backend}").glob("*.json")):
            content = whole(file) or {}
            if all(content.get(key) == machine[key] for key in ("csrc_sha256", "triton_sha256")):
                passed |= {
                    (row.get("op"), row.get("dtype")) for row in rows_of(content) if row.get("failure", "") is None
                }
        left: dict[str, list[str]] = {}
        for op, dtype in words["checks"]:
            if (op, dtype) not in passed:
                left.setdefault(op, []).append(dtype)
        found += [f"{backend}: {op} ({', '.join(dtypes)})" for op, dtypes in left.items()]
    return found


def rows_of(content: dict) -> list[dict]:
    """The rows of a file, as far as they are some."""
    rows = content.get("rows")
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def table(out: Path, parts: list[str]) -> str:
    """The rows that the parts of this run left."""
    lines = []
    for file in (out / f"{name}.json" for name in parts if name[-1].isdigit() or name == "torch-compile"):
        for row in rows_of(whole(file) or {}):
            cells = [f"{who} {us:.1f}" for who, us in row.get("us", {}).items()]
            cells += [f"{who} FAILED ({why})" for who, why in row.get("failures", {}).items()]
            cells += [f"floor {row['floor_us']:.1f}"] if "floor_us" in row else []
            lines.append(f"{file.stem:<14}{row.get('case', '?'):<13} us: {', '.join(cells)}")
    return "\n".join(lines)
