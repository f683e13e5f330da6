"""What a benchmark's JSON says about where its numbers come from."""

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from .. import environment as machine
from ..environment import installed

Row = dict[str, Any]  # a line of what is measured, as plain values that JSON can hold; a whole record, too
ROOT = Path(__file__).resolve().parents[2]  # of a checkout; an installed package has no csrc/ and no commit


def environment(backend: str) -> Row:
    """Device, versions, commit and the digests of the kernel sources."""
    peers = {package: installed(package) for package in ("onnxruntime", "openvino")}
    return machine.environment() | peers | {"backend": backend, "commit": commit()} | digests()


def digests() -> dict[str, str | None]:
    """The digests of the C++ and CUDA sources, and of the Triton kernels."""
    return {"csrc_sha256": digest_of("csrc"), "triton_sha256": digest_of("zfkernels/backends/triton", "*.py")}


def digest_of(folder: str, pattern: str = "*") -> str | None:
    """SHA-256 over path and content of every such file under `folder`, in the order of their paths; None without it."""
    if not (ROOT / folder).is_dir():
        return None
    digest = hashlib.sha256()
    for path in sorted(p for p in (ROOT / folder).rglob(pattern) if p.is_file()):
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
