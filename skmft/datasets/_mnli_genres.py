"""MultiNLI by genre (Williams, Nangia, Bowman, NAACL 2018): the paper's inference task."""

import gzip
import json
import os
import zipfile
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sklearn.utils import Bunch

from ._bunch import make_bunch, select_domains
from ._files import find_or_fetch, reading

_MATCHED = ["fiction", "government", "slate", "telephone", "travel"]
_MISMATCHED = ["facetoface", "letters", "nineeleven", "oup", "verbatim"]
_GENRES = {"train": _MATCHED, "dev_matched": _MATCHED, "dev_mismatched": _MISMATCHED}
_LABELS = ["contradiction", "entailment", "neutral"]
_ROWS = {"train": 392702, "dev_matched": 9815, "dev_mismatched": 9832}  # with a label
_DESCR = """MultiNLI 1.0, {subset}: {rows:,} pairs of {genres} genres. Does the hypothesis follow from the premise
(entailment), contradict it (contradiction), or neither (neutral)? {sample}Pairs without a majority label are left out.
Rows of one premise (`groups`) belong on one side of a split. dev_matched and dev_mismatched are test sets: choose
nothing on them. Source: A. Williams, N. Nangia, S. R. Bowman, "A Broad-Coverage Challenge Corpus for Sentence
Understanding through Inference", NAACL 2018. Licence: mostly the OANC's, which allows free use; parts of the fiction
section are CC BY 3.0, CC BY-SA 3.0 or in the public domain in the USA; the paper lists them. Cite the paper."""


def fetch_mnli_genres(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "train",
    domains: Sequence[str] | None = None,
    return_X_y_domains: bool = False,
    as_frame: bool = False,
    download_if_missing: bool = True,
) -> Bunch | tuple[Any, Any, Any]:
    """Load MultiNLI with its genres as domains; the first call downloads 227 MB.

    Parameters
    ----------
    data_home : path, default=None
        Folder that holds ``mnli_genres/multinli_1.0.zip``, or gets it. In its place there may be
        ``mnli_genres/<subset>.jsonl.gz`` with the keys genre, premise, hypothesis and label; train may then be a sample,
        whose size `DESCR` gives. By default, the environment variable SKMFT_DATA_HOME and then the user's cache
        (``~/.cache/skmft`` on Linux) are searched; the cache gets it.
    subset : {"train", "dev_matched", "dev_mismatched"}, default="train"
        Training rows, test rows of the same five genres, or test rows of five others.
    domains : list of str, default=None
        Some of ``["fiction", "government", "slate", "telephone", "travel"]``, or for dev_mismatched of
        ``["facetoface", "letters", "nineeleven", "oup", "verbatim"]``; all by default.
    return_X_y_domains : bool, default=False
        Return ``(data, target, domains)`` instead of a Bunch.
    as_frame : bool, default=False
        Return pandas objects, and `frame` with all columns.
    download_if_missing : bool, default=True
        Whether to download the archive if there is no local copy.

    Returns
    -------
    Bunch
        `data` (premise and hypothesis), an object array of shape (n_rows, 2); `target` ("contradiction", "entailment",
        "neutral"), `domains` and `groups` (the premise), object arrays of shape (n_rows,); `frame` (DataFrame or None),
        `target_names`, `domain_names` and `DESCR`.

    Raises
    ------
    FileNotFoundError
        If there is no archive; the message says where to get it and where to put it.
    ValueError
        If the file is damaged or incomplete, or the archive does not have the known sha256.

    Examples
    --------
    >>> from skmft.datasets import fetch_mnli_genres
    >>> fetch_mnli_genres(subset="dev_matched", domains=["letters"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: domains=['letters']; expected a list of names among ['fiction', 'government', 'slate', ...].
    """
    wanted = select_domains(subset, domains, _GENRES)
    path = find_or_fetch("mnli_genres", data_home, download_if_missing, instead=[f"{subset}.jsonl.gz"])
    with reading(path):
        if path.suffix == ".zip":
            keys = ("sentence1", "sentence2", "gold_label", "genre")
            file: Any = zipfile.Path(path, f"multinli_1.0/multinli_1.0_{subset}.jsonl").open("rb")
        else:
            keys = ("premise", "hypothesis", "label", "genre")
            file = gzip.open(path)
        with file:
            rows = [[row[key] for key in keys] for row in map(json.loads, file)]
        rows = [row for row in rows if row[2] != "-"]  # no majority among the five annotators
        cells = {(genre, label) for genre in _GENRES[subset] for label in _LABELS}
        if wrong := cells.symmetric_difference((genre, label) for _, _, label, genre in rows):
            raise ValueError(f"these (genre, label) have no rows, or should have none: {sorted(wrong, key=str)}")
        if not all(isinstance(text, str) for row in rows for text in row):
            raise ValueError("not all texts are strings")
        may_be_sample = subset == "train" and path.suffix == ".gz"
        if len(rows) > _ROWS[subset] or (len(rows) < _ROWS[subset] and not may_be_sample):
            raise ValueError(f"{len(rows)} rows with a label, expected {_ROWS[subset]}")
    sample = ""
    if len(rows) != _ROWS[subset]:
        genres = Counter(genre for *_, genre in rows)
        sizes = ", ".join(f"{genre} {genres[genre]:,}" for genre in _MATCHED)
        share = f"{len(rows) / _ROWS[subset]:.0%} of the {_ROWS[subset]:,} rows"
        sample = f"This local copy is a sample of {share} ({sizes}). "
    about = _DESCR.format(subset=subset, rows=len(rows), genres=len(_GENRES[subset]), sample=sample)
    kept = [(*row, row[0]) for genre in wanted for row in rows if row[3] == genre]
    names = ["premise", "hypothesis", "target", "domains", "groups"]
    return make_bunch(kept, names, return_X_y_domains, as_frame, about)
