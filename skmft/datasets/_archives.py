"""What the loaders share: where archives come from and lie, what loaders are asked, and the form of their answer."""

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pooch
from sklearn.utils import Bunch

_DAMAGED = (ValueError, TypeError, LookupError, EOFError, OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error)

Home = str | os.PathLike | None
Names = Sequence[str] | None
Answer: TypeAlias = Bunch | tuple[Any, Any, Any]
Found = tuple[str, list[tuple], str]  # names of the columns; rows; DESCR
Reader = Callable[[Path, str, Names], Found]  # of a path, a subset, and domains, None for all


class Lacking(ValueError):
    """A sound archive lacks what was asked for."""


class Source(NamedTuple):  # of a public archive
    url: str
    sha256: str | None
    exact: bool = True  # False: a local copy may be a part of the archive; only a download must have the sha256

    @property
    def file(self) -> str:
        return self.url.replace(" ", "/").rsplit("/", 1)[-1]


SOURCES = {  # by the folder, below a home of data sets, that holds the archive
    "amazon": Source(  # sha256: of a public copy of 30,586,147 bytes (Git LFS, marileize/sentiment-analysis)
        "https://www.cs.jhu.edu/~mdredze/datasets/sentiment/domain_sentiment_data.tar.gz",
        "e65d4dae3f223316a5db426b2c3f7f3667e9b165f03c024cb4875e11af4cd941",
        exact=False,
    ),
    "fdu_mtl": Source(  # no published checksum is known; the loader counts rows and labels
        "https://github.com/FrankWork/fudan_mtl_reviews/raw/master/data/fudan-mtl-dataset.tar.gz", None, exact=False
    ),
    "mnli_genres": Source(
        "https://cims.nyu.edu/~sbowman/multinli/multinli_1.0.zip",
        "049f507b9e36b1fcb756cfd5aeb3b7a0cfcb84bf023793652987f7e7e0957822",
    ),
    "rated_snippets": Source(  # a source release
        "the package index: pip download --no-deps --no-binary :all: vaderSentiment==0.5 brings vaderSentiment-0.5.zip",
        "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    ),
}


def _pip_download(url: str, output_file: str, fetcher: Any) -> None:
    """Have pip ask its index, perhaps a mirror. It is told the sha256, for it runs a source release's code to read its name."""
    [(name, sha256)] = fetcher.registry.items()
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"vaderSentiment==0.5 --hash=sha256:{sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        done = subprocess.run([*command, "--dest", folder, "--requirement", wanted], capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"pip says {done.stderr.strip()}")
        shutil.copyfile(Path(folder) / name, output_file)


def _download(url: str, output_file: str, fetcher: Any) -> None:
    """HTTP download by pooch, of the bytes on the server: requests would unpack an archive sent as "gzip-encoded"."""
    with ExitStack() as cleaning:

        def keep_packed(answer: Any, **kwargs: Any) -> None:
            cleaning.callback(answer.close)  # which pooch leaves to the garbage collector
            answer.raw.headers.pop("Content-Encoding", None)

        asked = {"headers": {"Accept-Encoding": "identity"}, "hooks": {"response": keep_packed}}
        pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 20, **asked)(url, output_file, fetcher)
    if None in fetcher.registry.values():  # no sha256 will tell
        try:
            read_tar(Path(output_file).read_bytes())
        except _DAMAGED as error:
            raise ValueError("not a whole gzipped tar archive, but perhaps a login page.") from error


def load(
    folder: str,
    subsets: Mapping[str, Collection[str]],
    read: Reader,
    data_home: Home,
    subset: str,
    domains: Names,
    return_X_y_domains: bool,
    instead: str = "",
) -> Answer:
    """What a loader answers: rows that `read` finds in the archive, or in the file that may stand `instead` of it."""
    if subset not in subsets:
        raise ValueError(f"subset={subset!r}; expected " + " or ".join(map(repr, subsets)) + ".")
    if domains is not None:
        if np.ndim(domains) != 1 or not len(domains) or not set(domains) <= set(subsets[subset]):
            raise ValueError(f"domains={domains!r}; expected a list of names among {list(subsets[subset])}.")
        domains = list(dict.fromkeys(map(str, domains)))
    path = _find_or_fetch(folder, data_home, instead)
    try:
        columns, rows, about = read(path, subset, domains)
    except Lacking:
        raise
    except _DAMAGED as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"{path} cannot be used ({why}); delete it and get it again.") from error
    arrays = {k: np.array(v, dtype=float if k == "ratings" else object) for k, v in zip(columns.split(), zip(*rows))}
    if return_X_y_domains:
        return arrays["data"], arrays["target"], arrays["domains"]
    target_names, domain_names = sorted(set(arrays["target"]) - {None}), sorted(set(arrays["domains"]))
    return Bunch(**arrays, target_names=target_names, domain_names=domain_names, DESCR=about)


def _find_or_fetch(folder: str, data_home: Home, instead: str) -> Path:
    """The local copy, which pooch, knowing one home only, would overwrite; else the archive, downloaded to the last home."""
    source, given = SOURCES[folder], os.environ.get("SKMFT_DATA_HOME")
    homes = [data_home] if data_home is not None else [*filter(None, [given]), pooch.os_cache("skmft")]
    folders = [Path(home).expanduser() / folder for home in homes]
    for path in (place / name for place in folders for name in (source.file, instead) if name):
        if path.exists():
            if path.name == source.file and source.exact and source.sha256 != (found := pooch.file_hash(str(path))):
                raise ValueError(f"{path} has sha256 {found}, expected {source.sha256}; delete it and get it again.")
            return path
    name, home = source.file, folders[-1]
    fetcher = pooch.create(home, "", registry={name: source.sha256}, urls={name: source.url}, retry_if_failed=2)
    try:
        return Path(fetcher.fetch(name, downloader=_download if "://" in source.url else _pip_download))
    except OSError as error:  # requests' errors are among them
        raise FileNotFoundError(
            f"no local copy of {name}, and no download ({error}). Get it from {source.url} and put it in {home}; data_home= "
            "or the environment variable SKMFT_DATA_HOME may name another home."
        ) from error
    except ValueError as error:
        by_hand = "" if source.exact else f" A copy that you trust can be put in {home} by hand."
        raise ValueError(f"{source.url}: {error} Nothing was kept.{by_hand}") from error


def read_tar(packed: bytes) -> dict[str, bytes]:
    """Files of a gzipped tar archive, unpacked to its end, where its checksum is: tarfile alone stops before that."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed)), mode="r:") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar if member.isfile()}  # type: ignore[union-attr]
