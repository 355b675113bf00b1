"""Rated snippets of four domains, from the source release of vaderSentiment 0.5 (Hutto and Gilbert, ICWSM 2014)."""

from __future__ import annotations

import html
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.utils import Bunch

from ._cache import (
    bunch,
    cache_folder,
    check_sha256,
    check_subset,
    download,
    find_local,
    missing,
    reading,
    select_domains,
)

_RELEASE = "vaderSentiment-0.5.zip"
_SOURCE = "the Python package index (the source release 0.5 of vaderSentiment)"
_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
_TIMEOUT = 600  # seconds for pip
_INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = {  # domain -> (file, rows)
    "amazon": ("amazonReviewSnippets", 3708),
    "movies": ("movieReviewSnippets", 10605),
    "nyt": ("nytEditorialSnippets", 5190),
    "tweets": ("tweets", 4200),
}
_DESCR = """Snippets of Amazon reviews, movie reviews, New York Times editorials and tweets, each with the mean of 20
people's ratings from -4 (very negative) to 4 (very positive). Rows rated from -0.5 to 0.5 are left out; lower ones are
"negative", higher ones "positive". Licence: MIT. Source: the release 0.5 of the package vaderSentiment;
C. J. Hutto, E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text", ICWSM
2014. `groups` names the document of a snippet: snippets of one document belong on one side of a split."""


def fetch_rated_snippets(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "all",
    domains: Sequence[str] | None = None,
    return_X_y_domains: bool = False,
    as_frame: bool = False,
    download_if_missing: bool = True,
) -> Bunch | tuple[Any, Any, Any]:
    """Load rated snippets of four domains; the first call fetches 2.4 MB with pip.

    Parameters
    ----------
    data_home : path, default=None
        Folder for ``rated_snippets/vaderSentiment-0.5.zip``. By default the file is looked for in the environment
        variable SKMFT_DATA_HOME and in ``~/.cache/skmft``, and kept in the latter.
    subset : {"all"}, default="all"
        The source has no split of its own; keep `groups` together when you draw one.
    domains : list of str, default=None
        Some of ``["amazon", "movies", "nyt", "tweets"]``; all by default.
    return_X_y_domains : bool, default=False
        Return ``(data, target, domains)`` in place of a Bunch.
    as_frame : bool, default=False
        Give pandas objects; the Bunch then has `frame` with a column for each of text, target, domains, groups and
        ratings.
    download_if_missing : bool, default=True
        Whether to fetch the file where there is no local copy.

    Returns
    -------
    Bunch
        With `data` (texts), `target` ("negative", "positive"), `domains` and `groups` (the snippet's document), each an
        object array of shape (n_rows,); `ratings`, float, shape (n_rows,); `frame` (DataFrame or None),
        `target_names`, `domain_names` and `DESCR`.

    Raises
    ------
    FileNotFoundError
        If there is no local copy and it may not, or cannot, be fetched.
    ValueError
        If the file does not have the known sha256, or what pip fetched has another.

    Examples
    --------
    >>> from skmft.datasets import fetch_rated_snippets
    >>> fetch_rated_snippets(domains=["books"])
    Traceback (most recent call last):
    ValueError: domains=['books']; expected a list of names among ['amazon', 'movies', 'nyt', 'tweets'].
    """
    wanted = select_domains(domains, list(_FILES))
    check_subset(subset, ["all"])
    path = find_local("rated_snippets", [_RELEASE], data_home)
    if path is None:
        target = cache_folder("rated_snippets", data_home) / _RELEASE
        if not download_if_missing:
            raise missing(target, _SOURCE, "download_if_missing=False")
        path = _download(target)
    check_sha256(path, _SHA256)
    rows: list[tuple[str, str, str, str, float]] = []
    with reading(path):
        inner = zipfile.ZipFile(path).read(_INNER)
        with tarfile.open(fileobj=io.BytesIO(inner)) as tar:
            for domain in wanted:
                name, expected = _FILES[domain]
                file = tar.extractfile(f"hutto_ICWSM_2014/{name}_GroundTruth.txt")
                lines = file.read().decode("utf-8").splitlines() if file else []
                if len(lines) != expected:
                    raise ValueError(f"{path}: {name} has {len(lines)} rows, expected {expected}.")
                for line in lines:
                    number, rating, text = line.split("\t", 2)
                    value = float(rating)
                    if abs(value) > 0.5:
                        label = "positive" if value > 0 else "negative"
                        group = f"{domain} {number.split('_')[0]}"
                        rows.append((html.unescape(text).strip(), label, domain, group, value))
    texts, labels, names, groups, ratings = zip(*rows)
    return bunch(
        {"text": texts},
        labels,
        names,
        return_X_y_domains=return_X_y_domains,
        as_frame=as_frame,
        DESCR=_DESCR,
        groups=groups,
        ratings=ratings,
    )


def _download(target: Path) -> Path:
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        # with the hash, since pip runs a source release's code to read its name
        wanted = Path(temporary) / "requirements.txt"
        wanted.write_text(f"vaderSentiment==0.5 --hash=sha256:{_SHA256}\n")
        command += ["--dest", temporary, "--requirement", str(wanted)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT)
        except subprocess.TimeoutExpired as error:
            raise missing(target, _SOURCE, f"fetching it with pip took over {_TIMEOUT} s") from error
        got = Path(temporary) / _RELEASE
        if done.returncode or not got.exists():
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise missing(target, _SOURCE, f"fetching it with pip failed: {reason}")
        check_sha256(got, _SHA256)
        try:
            return download(got.as_uri(), target, _SHA256)
        except OSError as error:
            raise missing(target, _SOURCE, f"it could not be kept: {error}") from error
