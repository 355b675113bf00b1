"""Rated snippets of four domains, from the source release of vaderSentiment 0.5 (Hutto and Gilbert, ICWSM 2014)."""

import html
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.utils import Bunch

from ._bunch import make_bunch, select_domains
from ._files import SOURCES, find_or_fetch, read_tar, reading

_INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_FILES = dict(amazon="amazonReviewSnippets", movies="movieReviewSnippets", nyt="nytEditorialSnippets", tweets="tweets")
_DESCR = """Snippets of Amazon reviews, movie reviews, New York Times editorials and tweets, each with the mean of 20
people's ratings from -4 (very negative) to 4 (very positive). Rows rated from -0.5 to 0.5 are left out; lower ones are
"negative", higher ones "positive". `groups` names the document of a snippet: snippets of one document belong on one side
of a split. Source: C. J. Hutto, E. Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text", ICWSM 2014, in release 0.5 of the package vaderSentiment. Licence: MIT."""


def fetch_rated_snippets(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "all",
    domains: Sequence[str] | None = None,
    return_X_y_domains: bool = False,
    as_frame: bool = False,
    download_if_missing: bool = True,
) -> Bunch | tuple[Any, Any, Any]:
    """Load rated snippets of four domains; the first call downloads 2.4 MB with pip.

    Parameters
    ----------
    data_home : path, default=None
        Folder that holds ``rated_snippets/vaderSentiment-0.5.zip``, or gets it. By default, the environment variable
        SKMFT_DATA_HOME and then the user's cache (``~/.cache/skmft`` on Linux) are searched; the cache gets it.
    subset : {"all"}, default="all"
        The source has no split of its own; keep `groups` together when you draw one.
    domains : list of str, default=None
        Some of ``["amazon", "movies", "nyt", "tweets"]``; all by default.
    return_X_y_domains : bool, default=False
        Return ``(data, target, domains)`` instead of a Bunch.
    as_frame : bool, default=False
        Return pandas objects, and `frame` with all columns.
    download_if_missing : bool, default=True
        Whether to download the archive if there is no local copy.

    Returns
    -------
    Bunch
        `data` (texts), `target` ("negative", "positive"), `domains` and `groups` (the snippet's document), object arrays
        of shape (n_rows,); `ratings`, floats of shape (n_rows,); `frame` (DataFrame or None), `target_names`,
        `domain_names` and `DESCR`.

    Raises
    ------
    FileNotFoundError
        If there is no archive; the message says where to get it and where to put it.
    ValueError
        If the archive does not have the known sha256.

    Examples
    --------
    >>> from skmft.datasets import fetch_rated_snippets
    >>> fetch_rated_snippets(domains=["books"])
    Traceback (most recent call last):
    ValueError: domains=['books']; expected a list of names among ['amazon', 'movies', 'nyt', 'tweets'].
    """
    wanted = select_domains(subset, domains, {"all": list(_FILES)})
    path = find_or_fetch("rated_snippets", data_home, download_if_missing, downloader=_pip_download)
    with reading(path), zipfile.ZipFile(path) as archive:
        files = read_tar(archive.read(_INNER), lambda name: name.endswith("_GroundTruth.txt"))
    rows = []
    for domain in wanted:
        for line in files[f"hutto_ICWSM_2014/{_FILES[domain]}_GroundTruth.txt"].decode("utf-8").splitlines():
            number, rating, text = line.split("\t", 2)
            if abs(value := float(rating)) > 0.5:
                label = "positive" if value > 0 else "negative"
                rows.append((html.unescape(text).strip(), label, domain, f"{domain} {number.split('_')[0]}", value))
    names = ["text", "target", "domains", "groups", "ratings"]
    return make_bunch(rows, names, return_X_y_domains, as_frame, _DESCR)


def _pip_download(url: str, output_file: str, fetcher: Any) -> None:
    """A downloader for pooch that asks the package index that pip is set up with, perhaps a mirror.

    pip is told the sha256, since it runs a source release's code to read its name.
    """
    source = SOURCES["rated_snippets"]
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(f"vaderSentiment==0.5 --hash=sha256:{source.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        done = subprocess.run([*command, "--dest", folder, "--requirement", wanted], capture_output=True, text=True)
        if done.returncode:
            raise OSError(f"pip says {done.stderr.strip()}")
        shutil.copyfile(Path(folder) / source.file, output_file)
