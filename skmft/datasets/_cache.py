"""Where data sets lie, how they are fetched and read, and the form they come back in: one answer for all of them."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import os
import secrets
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import Bunch

_TIMEOUT = 30.0  # seconds without an answer
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError)  # what damaged files raise


def find_local(folder: str, names: Sequence[str], data_home: str | os.PathLike | None) -> Path | None:
    """First file or folder ``<home>/<folder>/<name>`` that exists, over all homes, or None.

    Homes: `data_home` alone where it is given, else the environment variable SKMFT_DATA_HOME, then the user's cache.
    """
    for home in _homes(data_home):
        for name in names:
            if (found := home / folder / name).exists():
                return found
    return None


def cache_folder(folder: str, data_home: str | os.PathLike | None) -> Path:
    """Where a fetched data set is kept: below `data_home`, or below the user's cache."""
    return (_homes(data_home)[-1]) / folder


def _homes(data_home: str | os.PathLike | None) -> list[Path]:
    if data_home is not None:
        return [Path(data_home).expanduser()]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skmft"
    given = os.environ.get("SKMFT_DATA_HOME")
    return [*([Path(given).expanduser()] if given else []), cache]


def find_or_fetch(
    folder: str,
    names: Sequence[str],
    url: str,
    sha256: str | None,
    data_home: str | os.PathLike | None,
    download_if_missing: bool,
) -> Path:
    """The local copy under any of `names`; else the file of `url`, kept under the last name of the URL.

    Raises
    ------
    FileNotFoundError
        If there is no local copy, and fetching is not allowed or fails; says where to get it and where to put it.
    ValueError
        If what came does not have the sha256 or, where none is known, is no gzipped tar archive.
    """
    if path := find_local(folder, names, data_home):
        return path
    target = cache_folder(folder, data_home) / url.rsplit("/", 1)[-1]
    if not download_if_missing:
        raise missing(target, url, "download_if_missing=False")
    try:
        return download(url, target, sha256)
    except (OSError, http.client.HTTPException) as error:
        raise missing(target, url, f"fetching it failed: {error}") from error


def missing(target: Path, source: str, reason: str) -> FileNotFoundError:
    """The error for a data set that is not at hand."""
    return FileNotFoundError(
        f"no local copy of {target.name} ({reason}). Get it from {source} and put it in {target.parent}; "
        "data_home= or the environment variable SKMFT_DATA_HOME may name another home."
    )


def download(url: str, target: Path, sha256: str | None) -> Path:
    """Fetch a file whole, or leave nothing: it takes its name only when length and sha256 are right.

    Without a sha256 it has to be a gzipped tar archive, as all are that we know none of: a login page is none.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    digest, got = hashlib.sha256(), 0
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as answer, part.open("xb") as file:
            length = answer.headers.get("Content-Length")
            while chunk := answer.read(1 << 20):
                file.write(chunk)
                digest.update(chunk)
                got += len(chunk)
        if length is not None and got != int(length):
            raise OSError(f"{url} broke off after {got} of {length} bytes")
        if sha256 is not None and digest.hexdigest() != sha256:
            raise ValueError(f"{url} has sha256 {digest.hexdigest()}, expected {sha256}; nothing was kept.")
        if sha256 is None:
            try:
                with open_tar(part):
                    pass
            except _DAMAGED as error:
                raise ValueError(f"{url} gave no gzipped tar archive ({error}); nothing was kept.") from error
        return part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def check_sha256(path: Path, expected: str) -> None:
    """Refuse a file of another content."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected:
        raise ValueError(f"{path} has sha256 {digest}, expected {expected}; delete it and fetch it again.")


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A gzipped tar archive, decompressed to its end, where its checksum is: tarfile alone stops before that."""
    with gzip.open(path) as file:
        content = file.read()
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        yield tar


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the many errors of damaged files into one that names the file."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not {error.encoding} text ({error}); delete it and get it again.") from error
    except _DAMAGED as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it and get it again.") from error


def check_counts(path: Path, what: str, found: Mapping[Any, int], expected: Mapping[Any, int]) -> None:
    """Refuse a file whose counts are not the known ones."""
    if dict(found) != dict(expected):
        raise ValueError(f"{path}: {what} counts {dict(found)}, expected {dict(expected)}; get it again.")


def select_domains(domains: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The domains asked for, all by default.

    Raises
    ------
    ValueError
        If one is not known.
    """
    if domains is None:
        return list(known)
    if (
        not isinstance(domains, (list, tuple, np.ndarray, pd.Series, pd.Index))
        or not len(domains)
        or any(d not in known for d in domains)
    ):
        raise ValueError(f"domains={domains!r}; expected a list of names among {list(known)}.")
    return list(dict.fromkeys(map(str, domains)))


def check_subset(subset: str, known: Sequence[str]) -> None:
    """Refuse a subset that the data set does not have."""
    if subset not in known:
        raise ValueError(f"subset={subset!r}; expected " + " or ".join(repr(name) for name in known) + ".")


def bunch(
    texts: Mapping[str, Sequence[str]],
    target: Sequence[str | None],
    domains: Sequence[str],
    *,
    return_X_y_domains: bool,
    as_frame: bool,
    DESCR: str,
    **extras: Sequence[Any],
) -> Bunch | tuple[Any, Any, Any]:
    """The common answer of all loaders: one column of texts, or two of pairs, and a value of each extra for each row."""
    columns = {name: _objects(values) for name, values in texts.items()}
    more = {
        name: np.array(v) if len(v) and isinstance(v[0], (int, float)) else _objects(v) for name, v in extras.items()
    }
    data: Any = next(iter(columns.values())) if len(columns) == 1 else np.column_stack(list(columns.values()))
    labels, names, frame = _objects(target), _objects(domains), None
    if as_frame:
        frame = pd.DataFrame({**columns, "target": labels, "domains": names, **more})
        data = frame[list(columns)] if len(columns) > 1 else frame[next(iter(columns))]
        labels, names = frame["target"], frame["domains"]
        more = {name: frame[name] for name in more}
    if return_X_y_domains:
        return data, labels, names
    return Bunch(
        data=data,
        target=labels,
        domains=names,
        frame=frame,
        target_names=sorted({t for t in target if t is not None}),
        domain_names=sorted(set(domains)),
        DESCR=DESCR,
        **more,
    )


def _objects(values: Sequence[Any]) -> Any:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array
