"""How the parts ended, what was not verified, and the rows as a table."""

import json
from pathlib import Path
from typing import NamedTuple

from .settings import MACHINE, SKIPPED, whole

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
    if code == 0:
        log.unlink()
        return Ended(name, "passed", seconds)
    if code == SKIPPED:
        log.unlink()
        return Ended(name, "skipped", seconds, last)
    if code is None:
        return Ended(name, "stopped", seconds, f"{why}; {log}")
    return Ended(name, "FAILED", seconds, f"exit code {code}: {last} ({log})", words, code)


def last_of(log: Path) -> str:
    """The end of a log, which is all that is left of a long one."""
    with log.open("rb+") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - KEPT))
        words = file.read()
        if size > KEPT:
            file.seek(0)
            file.write(words)
            file.truncate()
    return words.decode(errors="replace")


def said(ended: Ended) -> Ended:
    print(f"{ended.name:<15}{ended.how:<9}{ended.seconds:>5.0f} s  {ended.why}", flush=True)
    return ended


def conclude(out: Path, parts: list[str], ended: dict[str, Ended], backends: list[str]) -> int:
    """Prints rows, failures and what was not verified; writes run.json; the exit code."""
    machine = whole(out / MACHINE)
    missing = not_verified(out, machine, backends)
    bad = [f"{name}: {ended[name].how if name in ended else 'not reached'}" for name in parts if not fine(ended, name)]
    skipped = {name: one.why for name, one in ended.items() if one.how == "skipped"}
    print(table(out, parts))
    for name, why in skipped.items():
        print(f"not run: {name}: {why}")
    for text in missing:
        print(f"NOT VERIFIED: {text}")
    for text in bad:
        print(f"NOT PASSED: {text}")
    result = {"parts": {name: one._replace(log="")._asdict() for name, one in ended.items()}}
    result |= {"not_passed": bad, "not_verified": missing}
    (out / "run.json").write_text(json.dumps(result, indent=1) + "\n")
    print("everything that ran was verified and passed" if not bad and not missing else "NOT ALL IS WELL, see above")
    return 1 if bad or missing else 0


def fine(ended: dict[str, Ended], name: str) -> bool:
    return name in ended and ended[name].how in ("passed", "skipped")


def not_verified(out: Path, machine: dict | None, backends: list[str]) -> list[str]:
    """The ops and dtypes of these backends of which `out` has no passed check by the present sources."""
    found = []
    for backend in backends:
        words = machine["backends"].get(backend) if machine else {"reason": "the machine was not looked at"}
        if words is None or words["reason"] is not None:
            found.append(f"{backend}: it does not run here: {words['reason'] if words else 'unknown'}")
            continue
        passed = set()
        for file in sorted((out / f"verify-{backend}").glob("*.json")):
            content = whole(file) or {}
            if all(content.get(key) == machine[key] for key in ("csrc_sha256", "triton_sha256")):
                passed |= {(row["op"], row["dtype"]) for row in content["rows"] if not row["failure"]}
        left: dict[str, list[str]] = {}
        for op, dtype in words["checks"]:
            if (op, dtype) not in passed:
                left.setdefault(op, []).append(dtype)
        found += [f"{backend}: {op} ({', '.join(dtypes)})" for op, dtypes in left.items()]
    return found


def table(out: Path, parts: list[str]) -> str:
    """The rows that the parts of this run left."""
    lines = []
    for file in (out / f"{name}.json" for name in parts if name[-1].isdigit() or name == "torch-compile"):
        for row in (whole(file) or {}).get("rows", ()):
            cells = [f"{who} {us:.1f}" for who, us in row["us"].items()]
            cells += [f"{who} FAILED ({why})" for who, why in row["failures"].items()]
            cells += [f"floor {row['floor_us']:.1f}"] if "floor_us" in row else []
            lines.append(f"{file.stem:<14}{row['case']:<13} us: {', '.join(cells)}")
    return "\n".join(lines)
