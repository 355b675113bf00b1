"""FDU-MTL: reviews of 16 domains (Liu, Qiu, Huang, ACL 2017)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sklearn.utils import Bunch

from ._cache import bunch, cache_folder, check_subset, find_or_fetch, open_tar, reading, select_domains

_URL = "https://github.com/FrankWork/fudan_mtl_reviews/raw/master/data/fudan-mtl-dataset.tar.gz"
_SAMPLE = "fdu-mtl-sample.tar.gz"
_TRAIN = {  # rows of <domain>.task.train: the paper's training and development rows together
    "MR": 1600, "apparel": 1600, "baby": 1500, "books": 1600, "camera_photo": 1597, "dvd": 1600, "electronics": 1598,
    "health_personal_care": 1600, "imdb": 1600, "kitchen_housewares": 1600, "magazines": 1570, "music": 1600,
    "software": 1515, "sports_outdoors": 1600, "toys_games": 1600, "video": 1600,
}  # fmt: skip
_VERIFIED = ("MR", "toys_games")  # counted in a copy; the other numbers are the paper's, and get a margin
_MARGIN = 0.02
_LABELS = {"0": "negative", "1": "positive"}
_DESCR = """FDU-MTL, {subset}: tokenised reviews of {domains}, "negative" or "positive": 14 Amazon product domains and
two of films (imdb, MR). {sample}Source: P. Liu, X. Qiu, X. Huang, "Adversarial Multi-task Learning for Text
Classification", ACL 2017. Licence: for research use; cite the paper. The product reviews are Blitzer et al.'s (ACL
2007), so do not test on these what was trained on those."""


def fetch_fdu_mtl(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "train",
    domains: Sequence[str] | None = None,
    return_X_y_domains: bool = False,
    as_frame: bool = False,
    download_if_missing: bool = True,
) -> Bunch | tuple[Any, Any, Any]:
    """Load FDU-MTL reviews of up to 16 domains; the first call fetches the archive.

    The authors' own page (nlp.fudan.edu.cn/data) is often out of reach, so a public copy is fetched. No checksum is
    known to us. What is checked is the number of rows, exactly for MR and toys_games, whose files we have counted, and
    within 2% of the paper's table for the other 14 domains, and that each label has at least 40% of the rows.

    Parameters
    ----------
    data_home : path, default=None
        Folder that holds ``fdu_mtl/fudan-mtl-dataset.tar.gz``, or ``fdu_mtl/fdu-mtl-sample.tar.gz`` with the same files
        for some of the domains. By default they are looked for in the environment variable SKMFT_DATA_HOME and in
        ``~/.cache/skmft``; a fetched archive is kept in the latter.
    subset : {"train", "test", "unlabeled"}, default="train"
        About 1,600 labelled rows a domain (the paper's 1,400 for training and 200 for development), 400 for testing, or
        about 2,000 without labels.
    domains : list of str, default=None
        Some of ``["MR", "apparel", "baby", "books", "camera_photo", "dvd", "electronics", "health_personal_care",
        "imdb", "kitchen_housewares", "magazines", "music", "software", "sports_outdoors", "toys_games", "video"]``;
        by default all, or those that the sample has.
    return_X_y_domains : bool, default=False
        Return ``(data, target, domains)`` in place of a Bunch.
    as_frame : bool, default=False
        Give pandas objects; the Bunch then has `frame` with a column for each of text, target and domains.
    download_if_missing : bool, default=True
        Whether to fetch the archive where there is no local copy.

    Returns
    -------
    Bunch
        With `data` (texts), `target` ("negative", "positive"; None without labels), `domains`, each an object array of
        shape (n_rows,), `frame` (DataFrame or None), `target_names`, `domain_names` and `DESCR`.

    Raises
    ------
    FileNotFoundError
        If there is no local copy and it may not, or cannot, be fetched.
    ValueError
        If the archive is damaged, not complete, or lacks a domain.

    Examples
    --------
    >>> from skmft.datasets import fetch_fdu_mtl
    >>> fetch_fdu_mtl(subset="valid")
    Traceback (most recent call last):
    ValueError: subset='valid'; expected 'train' or 'test' or 'unlabeled'.
    """
    check_subset(subset, ["train", "test", "unlabeled"])
    wanted = select_domains(domains, list(_TRAIN))
    names = [_URL.rsplit("/", 1)[-1], _SAMPLE]
    path = find_or_fetch("fdu_mtl", names, _URL, None, data_home, download_if_missing)
    if path.name == _SAMPLE and domains is not None and (lacks := _lacking(path, wanted, subset)):
        try:
            path = find_or_fetch("fdu_mtl", names[:1], _URL, None, data_home, download_if_missing)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"the sample {path} lacks the domains {lacks}, and there is {error}") from error
    texts: list[str] = []
    target: list[str | None] = []
    where: list[str] = []
    with reading(path), open_tar(path) as tar:
        members = {Path(member.name).name: member for member in tar.getmembers() if member.isfile()}
        there = [d for d in _TRAIN if f"{d}.task.{_suffix(subset)}" in members]
        if path.name == _SAMPLE and domains is None:
            wanted = there
        if not wanted or not set(wanted) <= set(there):
            raise ValueError(
                f"{path} lacks the domains {sorted(set(wanted) - set(there))}; it has {there}. All are in {_URL}, to be put in "
                f"{cache_folder('fdu_mtl', data_home)}."
            )
        for domain in wanted:
            member = members[f"{domain}.task.{_suffix(subset)}"]
            file = tar.extractfile(member)
            raw = file.read() if file else b""
            found, labels = _parse(f"{path}, {member.name}", raw, subset != "unlabeled")
            _check_size(f"{path}, {member.name}", domain, subset, labels)
            texts += found
            target += labels
            where += [domain] * len(found)
    sample = f"This local copy is a sample with {len(there)} of the 16 domains. " if path.name == _SAMPLE else ""
    about = _DESCR.format(subset=subset, domains=", ".join(wanted), sample=sample)
    return bunch({"text": texts}, target, where, return_X_y_domains=return_X_y_domains, as_frame=as_frame, DESCR=about)


def _lacking(path: Path, wanted: Sequence[str], subset: str) -> list[str]:
    """Domains that an archive does not have."""
    with reading(path), open_tar(path) as tar:
        names = {Path(member.name).name for member in tar.getmembers()}
    return sorted(d for d in wanted if f"{d}.task.{_suffix(subset)}" not in names)


def _suffix(subset: str) -> str:
    return "unlabel" if subset == "unlabeled" else subset


def _parse(name: str, raw: bytes, labelled: bool) -> tuple[list[str], list[str | None]]:
    """Texts and labels of one file: a row a line, UTF-8 on some lines and Windows' Latin-1 on others."""
    texts: list[str] = []
    labels: list[str | None] = []
    lines = raw.split(b"\n")
    for number, line in enumerate(lines[:-1] if not lines[-1].strip() else lines, start=1):
        if b"\0" in line:
            raise ValueError(f"{name}, line {number} has zero bytes: not UTF-8 or Latin-1 text; get it again.")
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = line.decode("cp1252", errors="replace")
        label = None
        if labelled:
            first, tab, text = text.partition("\t")
            if not tab or first.strip() not in _LABELS:
                raise ValueError(f"{name}, line {number} is {line[:40]!r}; expected 0 or 1, a tab, and a text.")
            label = _LABELS[first.strip()]
        texts.append(text.strip())
        labels.append(label)
    return texts, labels


def _check_size(name: str, domain: str, subset: str, labels: Sequence[str | None]) -> None:
    unlabelled = 475 if domain == "software" else 2000
    expected = {"train": _TRAIN[domain], "test": 400, "unlabeled": unlabelled}[subset]
    margin = 0 if domain in _VERIFIED else _MARGIN * expected
    if abs(len(labels) - expected) > margin:
        raise ValueError(f"{name} has {len(labels)} rows, expected {expected}; get it again.")
    counts = Counter(labels)
    if subset != "unlabeled" and min(counts[label] for label in _LABELS.values()) < 0.4 * len(labels):
        raise ValueError(f"{name} has labels {dict(counts)}, expected about as many of each; get it again.")
