"""A folder of files that is written as a whole or not at all, and read only as its manifest says.

manifest.json has the format's version and every file's sha256. A new folder is written beside the old one and takes its place
by renaming; while it does, the old one is kept aside, and an interrupted save is mended by the next one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

import torch

from .._typing import Json, Params

FORMAT = 2
MANIFEST = "manifest.json"
_LONGEST_JSON = 1 << 28  # bytes
_OURS = {MANIFEST, "README.md", "estimator.json", "arrays.safetensors", "heads.safetensors", "encoder", "domains"}


class PersistenceError(ValueError):
    """A folder that cannot be loaded; the message names the file."""


def sha256_of(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, content: Json) -> None:
    """Write `content` as JSON in UTF-8."""
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=True) + "\n", encoding="utf-8")


def read_json(path: Path) -> Params:
    """Read a JSON object; whatever is wrong with it is an error that names the file."""
    if path.stat().st_size > _LONGEST_JSON:
        raise PersistenceError(f"{path} has {path.stat().st_size} bytes; expected at most {_LONGEST_JSON}.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PersistenceError(f"{path} is not valid JSON ({error}); save the estimator again.") from error
    if not isinstance(content, dict):
        raise PersistenceError(f"{path} holds a {type(content).__name__}; expected a JSON object.")
    return content


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever goes wrong inside is an error that names the file."""
    try:
        yield
    except (PersistenceError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:  # panics of the tokenizers library are no Exception
        reason = (str(error).strip().splitlines() or [""])[0]
        raise PersistenceError(f"{path} cannot be read ({type(error).__name__}: {reason}); save again.") from error


def read_tensors(path: Path, sha256: str) -> dict[str, torch.Tensor]:
    """Tensors of a file that `verified_files` saw: made of the very bytes that are hashed here, and not mapped to the file."""
    from safetensors.torch import load as from_bytes

    with reading(path):
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != sha256:
            raise PersistenceError(f"{path} has changed since the estimator was loaded; load it again.")
        return from_bytes(content)


def verified_files(folder: Path) -> tuple[int, dict[str, str]]:
    """The format, and name and sha256 of all files in the folder's manifest, each of them checked."""
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise PersistenceError(f"{manifest} is missing; expected a folder that save wrote.")
    content = read_json(manifest)
    version = content.get("format")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise PersistenceError(f"{manifest}: format is {version!r}; expected a number of 1 or more.")
    if version > FORMAT:
        raise PersistenceError(
            f"{manifest} has format {version}, but this version of skmft reads up to {FORMAT}; update skmft."
        )
    files = content.get("files")
    if not isinstance(files, dict):
        raise PersistenceError(f"{manifest}: files is a {type(files).__name__}; expected an object.")
    for name, digest in files.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or ":" in name or "\0" in name:
            raise PersistenceError(f"{manifest} lists {name!r}; expected names of files inside the folder.")
        path = folder.joinpath(*parts)
        if not path.is_file():
            raise PersistenceError(f"{path} is missing, but {MANIFEST} lists it; save again or fetch it again.")
        if not path.resolve().is_relative_to(folder.resolve()) and not _is_hub_snapshot(folder):
            raise PersistenceError(f"{path} lies outside of the folder; expected no links.")
        if not isinstance(digest, str) or (got := sha256_of(path)) != digest:
            got = got if isinstance(digest, str) else "no sha256 to compare with"
            raise PersistenceError(f"{path} has sha256 {got}, expected {digest!r}: cut short or altered.")
    listed = set(files)
    for part in ("encoder", "domains"):  # what libraries read on their own must be listed
        for path in sorted((folder / part).rglob("*")):
            name = path.relative_to(folder).as_posix()
            if not path.is_dir() and name not in listed:
                raise PersistenceError(f"{path} is not in {MANIFEST}; remove it.")
    return version, files


def _is_hub_snapshot(folder: Path) -> bool:
    """Whether the folder is in the hub's cache, whose files are links to blobs beside it."""
    return folder.parent.name == "snapshots"


def flush(path: Path) -> None:
    """Have the file or folder on the disk before what follows."""
    if os.name == "nt":  # folders cannot be opened there, nor files be flushed that are open for reading
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def mend(target: Path) -> None:
    """Finish or undo what an earlier save left that was cut off while the new folder took the old one's place."""
    old = kept_aside(target)
    if not os.path.lexists(old):
        return
    empty = target.is_dir() and not any(target.iterdir())
    if not (old / MANIFEST).is_file():
        if not old.is_dir() or any(old.iterdir()):
            raise FileExistsError(
                f"{old} is where save keeps the old folder while it puts the new one in its place, but it is no saved "
                f"estimator (it has no {MANIFEST}); move it elsewhere, or remove it if it is not needed."
            )
        old.rmdir()
    elif (target / MANIFEST).is_file():
        _take_over(old, target)
    elif empty or not target.exists():
        if empty:
            target.rmdir()
        os.rename(old, target)


def swap(new: Path, target: Path) -> None:
    """Put the new folder in the place of the old one; `load` finds the old one if this is cut off in between."""
    old, replaces = kept_aside(target), target.exists()
    if replaces:
        os.rename(target, old)
    try:
        os.rename(new, target)
    except BaseException:
        if replaces:
            os.rename(old, target)
        raise
    if replaces:
        _take_over(old, target)


def _take_over(old: Path, target: Path) -> None:
    """Move what somebody put beside our files, such as a .git folder, to the new folder; then remove the old one."""
    others = [entry for entry in old.iterdir() if entry.name not in _OURS]
    for entry in others:
        if os.path.lexists(target / entry.name):
            raise FileExistsError(
                f"{target / entry.name} is there, but so is {entry}, which a save that was cut off has not moved yet; "
                "keep one of them and remove the other."
            )
    for entry in others:
        os.rename(entry, target / entry.name)
    with suppress(OSError):
        for entry in list(old.iterdir()):
            if entry.is_symlink() or entry.is_file():
                if entry.name != MANIFEST:  # the last to go: it tells that this folder is ours
                    entry.unlink()
            else:
                shutil.rmtree(entry)
        shutil.rmtree(old)


def kept_aside(target: Path) -> Path:
    """Where the old folder is while the new one takes its place."""
    return target.with_name(f".{target.name}.old")
