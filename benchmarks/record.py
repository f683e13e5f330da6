"""What a benchmark's JSON says about where its numbers come from."""

import hashlib
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from zfkernels import info

ROOT = Path(__file__).resolve().parent.parent


def environment(backend: str) -> dict:
    """Device, versions, commit and the digest of the kernel sources."""
    peers = {}
    for package in ("onnxruntime", "openvino"):
        try:
            peers[package] = version(package)
        except PackageNotFoundError:
            peers[package] = None
    return info.environment() | peers | {"backend": backend, "commit": commit()} | digests()


def digests() -> dict[str, str]:
    """Of the C++ and CUDA sources, and of the Triton kernels."""
    return {"csrc_sha256": digest_of("csrc"), "triton_sha256": digest_of("zfkernels/backends/triton", "*.py")}


def digest_of(folder: str, pattern: str = "*") -> str:
    """SHA-256 over the path and content of every such file under `folder`, in the order of their paths."""
    digest = hashlib.sha256()
    for path in sorted(p for p in (ROOT / folder).rglob(pattern) if p.is_file()):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def commit() -> str | None:
    """The checked-out commit, with "+" when tracked files differ from it; None outside a git checkout."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if head.returncode != 0:
        return None
    changed = subprocess.run([*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")
