"""A folder of files that is written as a whole or not at all, and read only as its manifest says.

manifest.json has the format's version and every file's sha256. A new folder is written beside the old one and takes its place
by renaming; meanwhile the old one is kept aside, and the next save mends what was cut off.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors.torch import load as tensors_of

from .._typing import Json, Params

FORMAT = 2
MANIFEST = "manifest.json"
_OURS = {MANIFEST, "README.md", "estimator.json", "arrays.safetensors", "heads.safetensors", "encoder", "domains"}


class PersistenceError(ValueError):
    """A folder that cannot be loaded; the message names the file."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, content: Json) -> None:
    """Write `content` as JSON in UTF-8; NumPy's numbers as Python's."""
    text = json.dumps(content, indent=1, ensure_ascii=False, default=lambda number: number.item())
    path.write_text(text + "\n", encoding="utf-8")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is an error that names the file."""
    try:
        yield
    except (PersistenceError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # panics of the tokenizers library are no Exception
        reason = " ".join(str(error).split())[:300]
        raise PersistenceError(f"{path} cannot be read ({type(error).__name__}: {reason}); save again.") from error


def read_json(path: Path, check: Callable[[Params], Params] | None = None) -> Params:
    """Read a JSON object; `check` gets every object in it, at any depth."""
    with reading(path):
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=check)
        if not isinstance(content, dict):
            raise TypeError(f"it holds a {type(content).__name__}; expected a JSON object")
        return content


def read_tensors(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    """Tensors of a file that `verified_files` saw: made of the very bytes that are hashed here, and not mapped to the file."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise PersistenceError(f"{path} has changed since the estimator was loaded; load it again.")
    return tensors_of(content)


def verified_files(folder: Path) -> tuple[int, dict[str, str]]:
    """The format, and name and sha256 of all files in the manifest of a resolved folder, each of them checked."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise PersistenceError(f"{manifest} is missing; expected a folder that save wrote.")
    content = read_json(manifest)
    version, files = content.get("format"), content.get("files")
    if type(version) is not int or not 1 <= version <= FORMAT or not isinstance(files, dict):
        told = f"format is {version!r}, and files is a {type(files).__name__}"
        raise PersistenceError(f"{manifest}: {told}; expected 1 to {FORMAT} (update skmft for more), and an object.")
    in_hub_cache = folder.parent.name == "snapshots"  # where files are links to blobs beside the folder
    for name, digest in files.items():
        if not re.fullmatch(r"(encoder/|domains/)?\w[\w.-]*", name):
            raise PersistenceError(f"{manifest} lists {name!r}; expected names of files inside the folder.")
        path = folder / name
        if not path.is_file():
            raise PersistenceError(f"{path} is missing, but {MANIFEST} lists it; save again or fetch it again.")
        if not path.resolve().is_relative_to(folder) and not in_hub_cache:
            raise PersistenceError(f"{path} lies outside of the folder; expected no links.")
        if (found := sha256_of(path)) != digest:
            raise PersistenceError(f"{path} has sha256 {found}, expected {digest!r}: cut short or altered.")
    ours = [folder / name for name in sorted(_OURS - {MANIFEST, "README.md"})]
    for path in (path for part in ours for path in (part, *part.rglob("*"))):
        if path.is_file() and path.relative_to(folder).as_posix() not in files:
            raise PersistenceError(f"{path} is not in {MANIFEST}; remove it, or save again.")
    return version, files


def swap(new: Path, target: Path) -> None:
    """Put the new folder in the place of the old one; `load` always finds one of them."""
    for path in (new, *new.rglob("*")):
        if os.name != "nt" and not path.is_symlink():  # folders cannot be opened there
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
    with suppress(FileNotFoundError):
        os.rename(target, kept_aside(target))
    try:
        os.rename(new, target)
    finally:
        mend(target)


def mend(target: Path) -> None:
    """Finish or undo what a save left, which may have been cut off: of the old folder and the new one, the new one stays."""
    old = kept_aside(target)
    for path in (target, old):
        is_empty = path.is_dir() and not any(path.iterdir())
        if os.path.lexists(path) and not is_empty and not (path / MANIFEST).is_file():
            told = f"{path} exists and is no saved estimator (it has no {MANIFEST})"
            raise FileExistsError(f"{told}; move it elsewhere, or save under another name.")
    if old.exists():
        with suppress(OSError):
            target.rmdir()  # where it is empty
        if not target.exists():
            os.rename(old, target)
            return
        for entry in old.iterdir():
            if entry.name not in _OURS:  # somebody else's, such as a .git folder
                taken = os.path.lexists(target / entry.name)
                os.rename(entry, target / (f"{entry.name}.old" if taken else entry.name))
        prefix = f".{target.name}."
        with tempfile.TemporaryDirectory(".old", prefix, target.parent, ignore_cleanup_errors=True) as trash:
            os.rename(old, Path(trash) / "old")  # at once: half a folder might not be known as ours


def kept_aside(target: Path) -> Path:
    """Where the old folder is while the new one takes its place."""
    return target.with_name(f".{target.name}.old")
