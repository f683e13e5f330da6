"""What a benchmark's JSON says about where its numbers come from."""

import hashlib
import subprocess
from pathlib import Path

from .. import info

ROOT = Path(__file__).resolve().parents[2]  # of a checkout; an installed package has no csrc/ and no commit


def environment(backend: str) -> dict:
    """Device, versions, commit and the digest of the kernel sources."""
    peers = {package: info.installed(package) for package in ("onnxruntime", "openvino")}
    return info.environment() | peers | {"backend": backend, "commit": commit(), "csrc_sha256": csrc_digest()}


def csrc_digest() -> str | None:
    """SHA-256 over the path and content of every file under csrc/, in the order of their paths; None without csrc/."""
    if not (ROOT / "csrc").is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file()):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def commit() -> str | None:
    """The checked-out commit, with "+" when tracked files differ from it; None outside a git checkout."""
    if not (ROOT / ".git").exists():
        return None
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode != 0:
        return None
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
