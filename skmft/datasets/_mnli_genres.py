"""MultiNLI by genre (Williams, Nangia, Bowman, NAACL 2018): the paper's inference task."""

from __future__ import annotations

import gzip
import io
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sklearn.utils import Bunch

from ._cache import (
    bunch,
    check_counts,
    check_sha256,
    check_subset,
    find_or_fetch,
    reading,
    select_domains,
)

_URL = "https://cims.nyu.edu/~sbowman/multinli/multinli_1.0.zip"
_SHA256 = "049f507b9e36b1fcb756cfd5aeb3b7a0cfcb84bf023793652987f7e7e0957822"
_ZIP_KEYS = ("sentence1", "sentence2", "gold_label")
_MATCHED = ["fiction", "government", "slate", "telephone", "travel"]
_MISMATCHED = ["facetoface", "letters", "nineeleven", "oup", "verbatim"]
_LABELS = ["contradiction", "entailment", "neutral"]
_COUNTS = {  # labelled rows of the public archive: contradiction, entailment, neutral
    "train": (130903, 130899, 130900),
    "dev_matched": (3213, 3479, 3123),
    "dev_mismatched": (3240, 3463, 3129),
}
_DESCR = """MultiNLI 1.0, {subset}: {rows:,} pairs of {genres} genres; does the hypothesis follow from the premise
(entailment), contradict it (contradiction), or neither (neutral)? {sample}Pairs without a majority label are left out.
Rows of one premise (`groups`) belong on one side of a split. The sets dev_matched and dev_mismatched are for testing:
choose nothing on them. Source: A. Williams, N. Nangia, S. R. Bowman, "A Broad-Coverage Challenge Corpus for Sentence
Understanding through Inference", NAACL 2018. Licence: most of it the OANC's, which allows free use; parts of the
fiction section are CC BY 3.0, CC BY-SA 3.0 or in the public domain in the USA; the paper lists them. Cite the paper."""


def fetch_mnli_genres(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "train",
    domains: Sequence[str] | None = None,
    return_X_y_domains: bool = False,
    as_frame: bool = False,
    download_if_missing: bool = True,
) -> Bunch | tuple[Any, Any, Any]:
    """Load MultiNLI, its genres as domains; the first call fetches 227 MB.

    The archive's sha256 and its counts of labels are checked. In place of the archive, a home may hold
    ``mnli_genres/<subset>.jsonl.gz`` with the keys genre, premise, hypothesis and label; its dev_matched has to be whole,
    its train may be a sample, and `DESCR` then says of what size.

    Parameters
    ----------
    data_home : path, default=None
        Folder that holds ``mnli_genres/multinli_1.0.zip`` or the files above. By default they are looked for in the
        environment variable SKMFT_DATA_HOME and in ``~/.cache/skmft``; a fetched archive is kept in the latter.
    subset : {"train", "dev_matched", "dev_mismatched"}, default="train"
        Training rows, test rows of the same five genres, or test rows of five others.
    domains : list of str, default=None
        Some of ``["fiction", "government", "slate", "telephone", "travel"]``, or for dev_mismatched of
        ``["facetoface", "letters", "nineeleven", "oup", "verbatim"]``; all by default.
    return_X_y_domains : bool, default=False
        Return ``(data, target, domains)`` in place of a Bunch.
    as_frame : bool, default=False
        Give pandas objects; the Bunch then has `frame` with a column for each of premise, hypothesis, target, domains
        and groups.
    download_if_missing : bool, default=True
        Whether to fetch the archive where there is no local copy.

    Returns
    -------
    Bunch
        With `data` (premise and hypothesis), an object array of shape (n_rows, 2); `target` ("contradiction",
        "entailment", "neutral"), `domains` and `groups` (the premise), object arrays of shape (n_rows,); `frame`
        (DataFrame or None), `target_names`, `domain_names` and `DESCR`.

    Raises
    ------
    FileNotFoundError
        If there is no local copy and it may not, or cannot, be fetched.
    ValueError
        If a file is damaged, of another content, or lacks a genre.

    Examples
    --------
    >>> from skmft.datasets import fetch_mnli_genres
    >>> fetch_mnli_genres(subset="dev_matched", domains=["letters"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: domains=['letters']; expected a list of names among ['fiction', 'government', 'slate', ...].
    """
    check_subset(subset, list(_COUNTS))
    genres = _MISMATCHED if subset == "dev_mismatched" else _MATCHED
    wanted = select_domains(domains, genres)
    names = [_URL.rsplit("/", 1)[-1], f"{subset}.jsonl.gz"]
    path = find_or_fetch("mnli_genres", names, _URL, _SHA256, data_home, download_if_missing)
    public = path.suffix == ".zip"
    if public:
        check_sha256(path, _SHA256)
    with reading(path), _open(path, subset) as file:
        rows = list(_rows(path, file, _ZIP_KEYS if public else ("premise", "hypothesis", "label")))
    cells = Counter((genre, label) for genre, _, _, label in rows)
    if lacking := [cell for cell in ((g, y) for g in genres for y in _LABELS) if cell not in cells]:
        raise ValueError(f"{path} lacks rows of (genre, label) {lacking}; get it again.")
    if unknown := [cell for cell in cells if cell[0] not in genres or cell[1] not in _LABELS]:
        raise ValueError(f"{path} has rows of (genre, label) {unknown}; expected {genres} x {_LABELS}.")
    whole = dict(zip(_LABELS, _COUNTS[subset]))
    sample = ""
    if not public and subset == "train" and len(rows) < sum(whole.values()):
        of_genre = Counter(genre for genre, _, _, _ in rows)
        sizes = ", ".join(f"{genre} {of_genre[genre]:,}" for genre in genres)
        share = len(rows) / sum(whole.values())
        sample = f"This local copy is a sample of {share:.0%} of the {sum(whole.values()):,} rows ({sizes}). "
    else:
        check_counts(path, "label", Counter(label for _, _, _, label in rows), whole)
    kept = [row for genre in wanted for row in rows if row[0] == genre]
    of, premises, hypotheses, labels = zip(*kept)
    return bunch(
        {"premise": premises, "hypothesis": hypotheses},
        labels,
        of,
        return_X_y_domains=return_X_y_domains,
        as_frame=as_frame,
        DESCR=_DESCR.format(subset=subset, rows=len(rows), genres=len(genres), sample=sample),
        groups=premises,
    )


@contextmanager
def _open(path: Path, subset: str) -> Iterator[BinaryIO]:
    if path.suffix == ".gz":
        with gzip.open(path) as plain:
            yield plain  # type: ignore[misc]
    else:
        with zipfile.ZipFile(path) as archive, archive.open(f"multinli_1.0/multinli_1.0_{subset}.jsonl") as member:
            yield member  # type: ignore[misc]


def _rows(path: Path, file: BinaryIO, keys: tuple[str, str, str]) -> Iterator[tuple[str, str, str, str]]:
    """Genre, premise, hypothesis and label of every row with a label."""
    for number, line in enumerate(io.TextIOWrapper(file, encoding="utf-8"), start=1):
        try:
            row = json.loads(line)
            values = (row["genre"], *(row[key] for key in keys))
            if not all(isinstance(value, str) for value in values):
                raise TypeError("not all values are text")
        except UnicodeDecodeError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}, line {number}: {error!r}; expected JSON with the keys genre, {', '.join(keys)}; get it again."
            ) from error
        if values[3] != "-":  # no majority among the five annotators
            yield values
