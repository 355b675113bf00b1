"""Where data sets come from and where they lie: a local copy if there is one, else a download through pooch."""

import gzip
import io
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pooch

_DAMAGED = (ValueError, TypeError, LookupError, EOFError, OSError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class Source(NamedTuple):
    """Where a public archive comes from, and its checksum."""

    url: str
    sha256: str | None
    exact: bool = True  # False: a local copy may be a part of the archive; only a download must have the sha256

    @property
    def file(self) -> str:
        """Name of the archive."""
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
    "rated_snippets": Source(  # a source release, which the loader has pip download
        "the package index: pip download --no-deps --no-binary :all: vaderSentiment==0.5 brings vaderSentiment-0.5.zip",
        "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
    ),
}


def find_or_fetch(
    folder: str,
    data_home: str | os.PathLike | None,
    download_if_missing: bool,
    *,
    instead: Sequence[str] = (),
    downloader: Callable[[str, str, Any], None] | None = None,
) -> Path:
    """The local copy of an archive, or of a file that may stand `instead` of it; else the archive, downloaded by pooch.

    Homes are `data_home` alone if given, else the environment variable SKMFT_DATA_HOME, then the user's cache. Downloads
    go to the last of them. Local copies are looked for here because pooch knows one home only, and would overwrite a
    copy with another hash.

    Raises
    ------
    FileNotFoundError
        If there is no local copy, and downloading is not allowed or fails; says where to get it and where to put it.
    ValueError
        If the archive does not have its sha256 or, where none is known, is not a gzipped tar archive.
    """
    source = SOURCES[folder]
    homes = [Path(data_home)] if data_home is not None else [pooch.os_cache("skmft")]
    if data_home is None and (given := os.environ.get("SKMFT_DATA_HOME")):
        homes.insert(0, Path(given))
    folders = [home.expanduser() / folder for home in homes]
    for path in (place / name for place in folders for name in (source.file, *instead)):
        if path.exists():
            if path.name == source.file and source.exact and source.sha256 != (found := pooch.file_hash(str(path))):
                raise ValueError(f"{path} has sha256 {found}, expected {source.sha256}; delete it and get it again.")
            return path
    known = {source.file: source.sha256}
    fetcher = pooch.create(folders[-1], "", registry=known, urls={source.file: source.url}, retry_if_failed=2)
    try:
        if not download_if_missing:
            raise OSError("download_if_missing=False")
        return Path(fetcher.fetch(source.file, downloader=downloader or partial(_download, source)))
    except OSError as error:  # requests' errors are among them
        raise FileNotFoundError(
            f"no local copy of {source.file}, and no download ({error}). Get it from {source.url} and put it in "
            f"{folders[-1]}; data_home= or the environment variable SKMFT_DATA_HOME may name another home."
        ) from error
    except ValueError as error:
        by_hand = "" if source.exact else f" A copy that you trust can be put in {folders[-1]} by hand."
        raise ValueError(f"{source.url}: {error} Nothing was kept.{by_hand}") from error


def _download(source: Source, url: str, output_file: str, fetcher: Any) -> None:
    """HTTP download by pooch, of the bytes on the server: requests would unpack an archive sent as "gzip-encoded"."""
    with ExitStack() as cleaning:

        def keep_packed(answer: Any, **kwargs: Any) -> None:
            cleaning.callback(answer.close)  # which pooch leaves to the garbage collector
            answer.raw.headers.pop("Content-Encoding", None)

        asked = {"headers": {"Accept-Encoding": "identity"}, "hooks": {"response": keep_packed}}
        pooch.HTTPDownloader(progressbar=True, chunk_size=1 << 20, **asked)(url, output_file, fetcher)
    if source.sha256 is None:
        try:
            read_tar(Path(output_file).read_bytes(), lambda name: False)
        except _DAMAGED as error:
            raise ValueError(f"not a gzipped tar archive, but perhaps a login page ({error}).") from error


def read_tar(packed: bytes, keep: Callable[[str], bool]) -> dict[str, bytes]:
    """Files of a gzipped tar archive, unpacked to its end, where its checksum is: tarfile alone stops before that."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed)), mode="r:") as tar:
        members = [member for member in tar.getmembers() if member.isfile() and keep(member.name)]
        return {member.name: tar.extractfile(member).read() for member in members}  # type: ignore[union-attr]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the many errors of damaged files, the loader's own among them, into one that names the file."""
    try:
        yield
    except _DAMAGED as error:
        raise ValueError(
            f"{path} cannot be used ({type(error).__name__}: {error}); delete it and get it again."
        ) from error
