"""Files that are whole or not there, and errors that name the file. What torch writes is read without running code."""

import contextlib
import dataclasses
import json
import math
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """`write` a file beside `path`, then move it to `path`: no reader, no crash and no full disk leaves half a file.

    The file beside is hidden and keeps the ending. What is no regular file (/dev/null, a pipe) is written to as it is.

    Raises:
        OSError: it cannot be written; one line that names `path`.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder, not a file to write")
        write(path)
        return
    beside = half_of(path)
    try:
        write(beside)
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the error that led here says more
            beside.unlink(missing_ok=True)
        if isinstance(error.__context__, KeyboardInterrupt):  # torch.save, stopped, ends its archive and fails at that
            raise error.__context__ from None
        if isinstance(error, OSError) and error.errno is not None:
            raise type(error)(f"{path} cannot be written: {error.strerror}; it is as it was before") from error
        raise


def half_of(path: Path) -> Path:
    """Where `write_whole` writes before it moves the file to `path`."""
    return path.with_name(f".{path.stem[:100]}.part{path.suffix}")


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not there. What of a file's name is no text stands in it as its bytes' numbers."""
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8", errors="backslashreplace"))


def write_json(path: Path, content: object, indent: int | None = 1) -> None:
    """A JSON file, whole or not there; its folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(content, indent=indent) + "\n")


def as_json(value: Any) -> Any:
    """What JSON can hold: tensors as lists, paths as text, records as objects, NaN and infinities as null."""
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    if dataclasses.is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


def check_writable(path: Path, option: str = "--out", folder: bool = False) -> None:
    """ValueError, before any work, if `path` cannot become a file, or a folder of files. Leaves nothing behind."""
    if folder and path.exists() and not path.is_dir():
        raise ValueError(f"{option} must be a folder, and {path} is a file")
    if not folder and path.is_dir():
        raise ValueError(f"{option} must be a file, and {path} is a folder")
    if not folder and path.exists() and not path.is_file():
        return  # /dev/null, a pipe
    place, links = path if folder else path.parent, []
    if not folder and path.is_symlink():
        place = Path(os.path.realpath(path)).parent
        links += [] if place.is_dir() else [path]
    while not place.exists():
        links += [place] if place.is_symlink() else []
        place = place.parent
    if links:
        text = f"{links[0]} is a link to {os.path.realpath(links[0])}, which is not there"
        raise ValueError(f"{option} {path} cannot be written: {text}")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(f"{option} {path} cannot be written: {place}: {error.strerror}") from error


def check_pages(folder: Path, *names: str, option: str = "--out") -> None:
    """ValueError, before any work, if the folder has pages of these names that are not of ours: they would be lost."""
    for page in (folder / name for name in names):
        if page.is_file() and b"zfkernels" not in page.read_bytes():
            article = "an" if page.name[0] in "aeiou" else "a"
            raise ValueError(f"{option} {folder} has {article} {page.name} of something else; choose another folder")


_held: dict[Path, int] = {}  # the folders that `hold` keeps, and their open files


def hold(folder: Path) -> None:
    """Keep the folder for this process, until it ends; ValueError if another process has it."""
    import fcntl

    folder = Path(os.path.realpath(folder))
    if folder in _held:
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise ValueError(
            f"another process writes to {folder} now; wait for its end, or choose another folder"
        ) from None
    except OSError:  # a file system without locks
        os.close(opened)
        return
    _held[folder] = opened


class _Sink:
    """A file for torch.save, which does not say why a write failed: the first error is kept, the rest dropped."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | KeyboardInterrupt | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self.file.write(data)
            except (OSError, KeyboardInterrupt) as error:
                self.error = error
        return len(data)

    def flush(self) -> None:
        pass


def save_tensors(path: Path, content: dict[str, Any]) -> None:
    """A file of torch.save, whole or not there."""
    import torch

    def write(beside: Path) -> None:
        with beside.open("wb") as file:
            sink = _Sink(file)
            torch.save(content, cast("BinaryIO", sink))
            if sink.error is not None:
                raise sink.error

    write_whole(path, write)


def reason(error: BaseException) -> str:
    """What an error says; of the system's, without its number and the file, which are told apart."""
    return error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__


KINDS = {  # how a file that is something else begins, and what it is
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself: `git lfs pull` fetches it",
    **dict.fromkeys((b"<!", b"<?", b"<html", b"<svg"), "a web page or XML: if it was downloaded, download it again"),
    b"\x1f\x8b": "compressed: `gunzip` it first",
    b"BZh": "compressed: `bunzip2` it first",
    b"\xfd7zXZ": "compressed: `unxz` it first",
    b"\x28\xb5\x2f\xfd": "compressed: `unzstd` it first",
    b"\x89HDF": "an HDF5 file, as Keras writes, which is not read here",
    b"\x93NUMPY": "one array of NumPy: a state dict has names",
}


def beginning(path: Path) -> bytes:
    """The file's first bytes, enough for KINDS."""
    with open(path, "rb") as file:
        return file.read(24)


def kind_of(head: bytes) -> str:
    """What a file that begins so is, if it is of KINDS; otherwise ""."""
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return next((kind for begins, kind in KINDS.items() if head.startswith(begins) or start.startswith(begins)), "")


def check_regular(path: Path) -> None:
    """ValueError for what may not be looked at, and for a pipe or a device, which may be waited on for ever.

    What is not there, or a folder, passes.
    """
    try:
        there = path.exists()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if there and not path.is_file() and not path.is_dir():
        raise ValueError(f"{path} cannot be read: it is a pipe or a device, no file; save it as a file first")


def load_tensors(path: Path) -> Any:
    """What torch.save wrote, on the CPU. Only tensors and plain containers are read: no file can run code.

    Raises:
        FileNotFoundError: no such file.
        ValueError: anything else that is wrong with it; one line that names the file and says what it is.
    """
    import torch

    check_regular(path)
    try:
        head = beginning(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    zipped = head.startswith(b"PK")
    if zipped:
        _check_zip(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file that was made to do harm may raise anything
        raise ValueError(f"{path} {_what_is_wrong(head, zipped, error)}") from error


FROM_NUMPY = "torch.save({k: torch.from_numpy(v) for k, v in numpy.load(FILE).items()}, 'weights.pt')"


def _check_zip(path: Path) -> None:
    """Every part there and as its checksum says: torch does not look, and a flipped bit would be a wrong weight."""
    try:
        with zipfile.ZipFile(path) as parts:
            if any("/code/" in name for name in parts.namelist()):
                return  # TorchScript, which torch names
            arrays = bool(parts.namelist()) and all(name.endswith(".npy") for name in parts.namelist())
            foreign = not any(name.endswith("data.pkl") for name in parts.namelist())
            compressed = any(part.compress_type != zipfile.ZIP_STORED for part in parts.infolist())
            damaged = None if compressed else parts.testzip()
    except Exception as error:
        raise ValueError(
            f"{path} is not a readable checkpoint: it is damaged or cut short; copy or download it again"
        ) from error
    if arrays:
        raise ValueError(f"{path} is a NumPy archive, which is not read here: {FROM_NUMPY} makes one that is")
    if foreign:
        raise ValueError(f"{path} is not a checkpoint but an archive that torch.save did not write; unzip it first")
    if compressed:
        raise ValueError(f"{path} is not a checkpoint: it is a compressed archive, which torch.save never writes")
    if damaged is not None:
        raise ValueError(
            f"{path} is not a readable checkpoint: {damaged!r} in it is not what was written (its checksum is another);"
            " copy or download it again"
        )


def _what_is_wrong(head: bytes, zipped: bool, error: Exception) -> str:
    """The rest of a sentence that begins with the file's name."""
    text = str(error)
    if "TorchScript" in text:
        return "is a TorchScript archive, which holds code and is not loaded: save model.state_dict() with torch.save"
    found = re.search(r"GLOBAL ([\w.]+)", text)
    if found and found[1].startswith("numpy."):
        return "holds arrays of NumPy, which are not loaded: save tensors in their place, of torch.from_numpy"
    if found:
        return (
            f"holds Python objects ({found[1]}), which could run code and are not loaded: save model.state_dict(), not "
            "the model"
        )
    if head[8:9] == b"{" and not zipped:
        return (
            "is a safetensors file, which is not read here: torch.save(safetensors.torch.load_file(FILE), 'weights.pt')"
            " makes one that is"
        )
    if kind := kind_of(head):
        return f"is no checkpoint but {kind}"
    if isinstance(error, pickle.UnpicklingError) and not zipped:
        return "is not a checkpoint: torch.save did not write it"
    if isinstance(error, MemoryError):
        return "asks for more memory than there is"
    return "is not a readable checkpoint: it is empty, damaged or cut short; copy or download it again"
