"""FDU-MTL: reviews of 16 domains (Liu, Qiu, Huang, ACL 2017)."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sklearn.utils import Bunch

from ._bunch import make_bunch, select_domains
from ._files import SOURCES, find_or_fetch, read_tar, reading

_SAMPLE = "fdu-mtl-sample.tar.gz"
_TRAIN = {  # rows of <domain>.task.train: the paper's training and development rows together
    "MR": 1600, "apparel": 1600, "baby": 1500, "books": 1600, "camera_photo": 1597, "dvd": 1600, "electronics": 1598,
    "health_personal_care": 1600, "imdb": 1600, "kitchen_housewares": 1600, "magazines": 1570, "music": 1600,
    "software": 1515, "sports_outdoors": 1600, "toys_games": 1600, "video": 1600,
}  # fmt: skip
_COUNTED = ("MR", "toys_games")  # in a copy of the files; the other numbers are the paper's, and get a margin
_MARGIN = 0.02
_SUFFIX = {"train": ".task.train", "test": ".task.test", "unlabeled": ".task.unlabel"}
_LABELS = {"0": "negative", "1": "positive"}
_DESCR = """FDU-MTL, {subset}: tokenised reviews of {domains}, "negative" or "positive": 14 Amazon product domains and
two of films (imdb, MR). {sample}The product reviews are Blitzer et al.'s (ACL 2007), so do not test on one set what was
trained on the other. Source: P. Liu, X. Qiu, X. Huang, "Adversarial Multi-task Learning for Text Classification", ACL
2017. Licence: for research use; cite the paper."""


def fetch_fdu_mtl(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "train",
    domains: Sequence[str] | None = None,
    return_X_y_domains: bool = False,
    as_frame: bool = False,
    download_if_missing: bool = True,
) -> Bunch | tuple[Any, Any, Any]:
    """Load FDU-MTL reviews of up to 16 domains; the first call downloads the archive.

    The authors' own page (nlp.fudan.edu.cn/data) is often down, so a public copy is used. Nobody has published its
    checksum. Instead, labels and rows are counted: exactly for MR and toys_games, within 2% of the paper for the others.

    Parameters
    ----------
    data_home : path, default=None
        Folder that holds ``fdu_mtl/fudan-mtl-dataset.tar.gz``, or gets it. In its place there may be a
        ``fdu_mtl/fdu-mtl-sample.tar.gz`` with the files of some domains. By default, the environment variable
        SKMFT_DATA_HOME and then the user's cache (``~/.cache/skmft`` on Linux) are searched; the cache gets it.
    subset : {"train", "test", "unlabeled"}, default="train"
        Per domain, about 1,600 labelled rows (1,400 for training and 200 for development in the paper), 400 for
        testing, or about 2,000 without labels.
    domains : list of str, default=None
        Some of ``["MR", "apparel", "baby", "books", "camera_photo", "dvd", "electronics", "health_personal_care",
        "imdb", "kitchen_housewares", "magazines", "music", "software", "sports_outdoors", "toys_games", "video"]``;
        by default all, or those in the sample.
    return_X_y_domains : bool, default=False
        Return ``(data, target, domains)`` instead of a Bunch.
    as_frame : bool, default=False
        Return pandas objects, and `frame` with all columns.
    download_if_missing : bool, default=True
        Whether to download the archive if there is no local copy.

    Returns
    -------
    Bunch
        `data` (texts), `target` ("negative", "positive"; None without labels) and `domains`, object arrays of shape
        (n_rows,); `frame` (DataFrame or None), `target_names`, `domain_names` and `DESCR`.

    Raises
    ------
    FileNotFoundError
        If there is no archive; the message says where to get it and where to put it.
    ValueError
        If the archive is damaged or incomplete, or the sample lacks a domain.

    Examples
    --------
    >>> from skmft.datasets import fetch_fdu_mtl
    >>> fetch_fdu_mtl(subset="valid")
    Traceback (most recent call last):
    ValueError: subset='valid'; expected 'train' or 'test' or 'unlabeled'.
    """
    wanted = select_domains(subset, domains, {name: list(_TRAIN) for name in _SUFFIX})
    suffix = _SUFFIX[subset]
    path = find_or_fetch("fdu_mtl", data_home, download_if_missing, instead=[_SAMPLE])
    with reading(path):
        members = read_tar(path.read_bytes(), lambda name: name.endswith(suffix))
    files = {name.rsplit("/", 1)[-1].removesuffix(suffix): raw for name, raw in members.items()}
    there = [domain for domain in _TRAIN if domain in files]
    if path.name == _SAMPLE and domains is None:
        wanted = there
    if not wanted or not set(wanted) <= set(there):
        raise ValueError(
            f"{path} lacks the domains {sorted(set(wanted) - set(there))} of {subset!r}; it has {there}. All are in "
            f"{SOURCES['fdu_mtl'].url}: put that in {path.parent}, or in the folder fdu_mtl of another data_home."
        )
    rows = []
    with reading(path):
        for domain in wanted:
            rows += [(*row, domain) for row in _parse(domain, subset, files[domain])]
    sample = f"This local copy is a sample with {len(there)} of the 16 domains. " if path.name == _SAMPLE else ""
    about = _DESCR.format(subset=subset, domains=", ".join(wanted), sample=sample)
    return make_bunch(rows, ["text", "target", "domains"], return_X_y_domains, as_frame, about)


def _parse(domain: str, subset: str, raw: bytes) -> list[tuple[str, str | None]]:
    """Text and label of every line; some lines are UTF-8, others Windows' Latin-1."""
    rows: list[tuple[str, str | None]] = []
    if b"\0" in raw:
        raise ValueError(f"{domain}{_SUFFIX[subset]} has zero bytes, so it is neither UTF-8 nor Latin-1")
    for line in raw.rstrip(b"\r\n").split(b"\n"):
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = line.decode("cp1252", errors="replace")
        label = None
        if subset != "unlabeled":
            first, tab, text = text.partition("\t")
            label = _LABELS.get(first.strip())
            if not tab or label is None:
                where = f"{domain}{_SUFFIX[subset]}, line {len(rows) + 1}"
                raise ValueError(f"{where} is {line[:40]!r}; expected 0 or 1, a tab, and a text")
        rows.append((text.strip(), label))
    expected = {"train": _TRAIN[domain], "test": 400, "unlabeled": 475 if domain == "software" else 2000}[subset]
    if abs(len(rows) - expected) > (0 if domain in _COUNTED else _MARGIN * expected):
        raise ValueError(f"{domain}{_SUFFIX[subset]} has {len(rows)} rows, expected {expected}")
    counts = Counter(label for _, label in rows)
    if subset != "unlabeled" and min(counts[label] for label in _LABELS.values()) < 0.4 * len(rows):
        raise ValueError(f"{domain}{_SUFFIX[subset]} has labels {dict(counts)}, expected about as many of each")
    return rows
