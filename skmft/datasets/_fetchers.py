"""The public data sets: two of the paper's tasks, a third of its kind in more domains, and snippets with ratings."""

import gzip
import html
import json
import re
import zipfile
from collections import Counter
from itertools import product
from pathlib import Path

from ._archives import SOURCES, Answer, Found, Home, Lacking, Names, load, read_tar

_AMAZON = {"books": "books", "dvd": "dvd", "electronics": "electronics", "kitchen": "kitchen_&_housewares"}
_REVIEW = re.compile(r"<review>(.*?)</review>", re.DOTALL)
_PARTS = re.compile(r"<title>(.*?)</title>.*?<review_text>(.*?)</review_text>", re.DOTALL)
_AMAZON_DESCR = """Multi-Domain Sentiment Dataset: 1,000 positive and 1,000 negative Amazon reviews in each of four domains;
title, line break, body. Some rows are exact repeats. Source: J. Blitzer, M. Dredze, F. Pereira, "Biographies, Bollywood,
Boom-boxes and Blenders", ACL 2007. Licence: for research use; cite the paper."""


def fetch_amazon_reviews(
    *, data_home: Home = None, subset: str = "all", domains: Names = None, return_X_y_domains: bool = False
) -> Answer:
    """Load the Amazon reviews of books, dvd, electronics and kitchen; the first call downloads 30 MB.

    Parameters
    ----------
    data_home : path, default=None
        Folder that holds ``amazon/domain_sentiment_data.tar.gz``, or gets it. By default, the environment variable
        SKMFT_DATA_HOME and then the user's cache (``~/.cache/skmft`` on Linux) are searched; the cache gets it.
    subset : {"all"}, default="all"
        The source has no split of its own.
    domains : list of str, default=None
        Some of ``["books", "dvd", "electronics", "kitchen"]``; all by default.
    return_X_y_domains : bool, default=False
        Return ``(data, target, domains)`` instead of a Bunch.

    Returns
    -------
    Bunch
        `data` (texts), `target` ("negative", "positive") and `domains`, object arrays of shape (n_rows,);
        `target_names`, `domain_names` and `DESCR`.

    Raises
    ------
    FileNotFoundError
        If there is no archive; it says where to get it and where to put it.
    ValueError
        If a subset or domain is not known, or the archive is damaged, incomplete, or not of the known sha256.

    Examples
    --------
    >>> from skmft.datasets import fetch_amazon_reviews
    >>> fetch_amazon_reviews(domains=["toys"])
    Traceback (most recent call last):
    ValueError: domains=['toys']; expected a list of names among ['books', 'dvd', 'electronics', 'kitchen'].
    """
    return load("amazon", {"all": _AMAZON}, _read_amazon, data_home, subset, domains, return_X_y_domains)


def _read_amazon(path: Path, subset: str, domains: Names) -> Found:
    files, rows = read_tar(path.read_bytes()), []
    for domain in domains or _AMAZON:
        for label in ("negative", "positive"):
            member = f"sorted_data_acl/{_AMAZON[domain]}/{label}.review"
            # Latin-1 never fails. The archive has lost its accents: 29 reviews hold U+FFFD, read as three characters.
            reviews = _REVIEW.findall(files[member].decode("latin-1"))
            whole = [parts[0] for review in reviews if len(parts := _PARTS.findall(review)) == 1]
            if not len(whole) == len(reviews) == 1000:
                found = f"{len(reviews)} reviews, {len(whole)} of them with one title and one text"
                raise ValueError(f"{member} has {found}, expected 1000 of both")
            rows += [("\n".join(html.unescape(part).strip() for part in parts), label, domain) for parts in whole]
    return "data target domains", rows, _AMAZON_DESCR


_FDU_SAMPLE = "fdu-mtl-sample.tar.gz"
_FDU_TRAIN = {  # rows of <domain>.task.train: those of MR and toys_games as counted, the rest as the paper gives them
    "MR": 1600, "apparel": 1600, "baby": 1500, "books": 1600, "camera_photo": 1597, "dvd": 1600, "electronics": 1598,
    "health_personal_care": 1600, "imdb": 1600, "kitchen_housewares": 1600, "magazines": 1570, "music": 1600,
    "software": 1515, "sports_outdoors": 1600, "toys_games": 1600, "video": 1600,
}  # fmt: skip
_FDU_SUFFIX = {"train": ".task.train", "test": ".task.test", "unlabeled": ".task.unlabel"}
_FDU_LABELS = {"0": "negative", "1": "positive"}
_FDU_DESCR = """FDU-MTL, {subset}: tokenised reviews of {domains}. {sample}The product reviews (all but imdb and MR) are
Blitzer et al.'s (ACL 2007), so do not test on one set what was trained on the other. Source: P. Liu, X. Qiu, X. Huang,
"Adversarial Multi-task Learning for Text Classification", ACL 2017. Licence: for research use; cite the paper."""


def fetch_fdu_mtl(
    *, data_home: Home = None, subset: str = "train", domains: Names = None, return_X_y_domains: bool = False
) -> Answer:
    """Load FDU-MTL reviews of up to 16 domains; the first call downloads the archive.

    Parameters
    ----------
    data_home, return_X_y_domains : as in `fetch_amazon_reviews`
        ``fdu_mtl/fudan-mtl-dataset.tar.gz``, or ``fdu_mtl/fdu-mtl-sample.tar.gz`` with the files of some domains.
    subset : {"train", "test", "unlabeled"}, default="train"
        Per domain, about 1,600 labelled rows, 400 for testing, or about 2,000 without labels, whose `target` is None.
    domains : list of str, default=None
        Some of ``["MR", "apparel", "baby", "books", "camera_photo", "dvd", "electronics", "health_personal_care",
        "imdb", "kitchen_housewares", "magazines", "music", "software", "sports_outdoors", "toys_games", "video"]``;
        by default all, or those in the sample.

    Returns
    -------
    Bunch
        As of `fetch_amazon_reviews`, whose errors it raises too.

    Examples
    --------
    >>> from skmft.datasets import fetch_fdu_mtl
    >>> fetch_fdu_mtl(subset="valid")
    Traceback (most recent call last):
    ValueError: subset='valid'; expected 'train' or 'test' or 'unlabeled'.
    """
    subsets = dict.fromkeys(_FDU_SUFFIX, _FDU_TRAIN)
    return load("fdu_mtl", subsets, _read_fdu, data_home, subset, domains, return_X_y_domains, _FDU_SAMPLE)


def _read_fdu(path: Path, subset: str, domains: Names) -> Found:
    files = {name.rsplit("/", 1)[-1]: raw for name, raw in read_tar(path.read_bytes()).items()}
    there = [domain for domain in _FDU_TRAIN if domain + _FDU_SUFFIX[subset] in files]
    is_sample = path.name == _FDU_SAMPLE
    wanted = domains or (is_sample and there) or list(_FDU_TRAIN)
    if lacking := sorted(set(wanted) - set(there)):
        url = SOURCES["fdu_mtl"].url
        raise Lacking(f"{path} lacks the domains {lacking} of {subset!r}; {url} has all: put that in {path.parent}.")
    rows = [row for domain in wanted for row in _parse_fdu(domain, subset, files[domain + _FDU_SUFFIX[subset]])]
    sample = f"This local copy is a sample with {len(there)} of the 16 domains. " if is_sample else ""
    return "data target domains", rows, _FDU_DESCR.format(subset=subset, domains=", ".join(wanted), sample=sample)


def _parse_fdu(domain: str, subset: str, raw: bytes) -> list[tuple]:
    """Every line's text, label and domain; some lines are UTF-8, others Windows' Latin-1."""
    file, labelled, rows = domain + _FDU_SUFFIX[subset], subset != "unlabeled", []
    if b"\0" in raw:
        raise ValueError(f"{file} has zero bytes, so it is neither UTF-8 nor Latin-1")
    for number, line in enumerate(raw.rstrip(b"\r\n").split(b"\n"), start=1):
        try:
            text = line.decode("utf-8-sig")
        except UnicodeDecodeError:
            text = line.decode("cp1252", errors="replace")
        first, tab, rest = text.partition("\t")
        label = _FDU_LABELS.get(first.strip()) if labelled and tab else None
        if labelled and label is None:
            raise ValueError(f"{file}, line {number} is {line[:40]!r}; expected 0 or 1, a tab, and a text")
        rows.append(((rest if labelled else text).strip(), label, domain))
    expected = {"train": _FDU_TRAIN[domain], "test": 400, "unlabeled": 475 if domain == "software" else 2000}[subset]
    if abs(len(rows) - expected) > (0 if domain in ("MR", "toys_games") else 0.02 * expected):
        raise ValueError(f"{file} has {len(rows)} rows, expected {expected}")
    counts = Counter(label for _, label, _ in rows)
    if labelled and min(counts[label] for label in _FDU_LABELS.values()) < 0.4 * len(rows):
        raise ValueError(f"{file} has labels {dict(counts)}, expected about as many of each")
    return rows


_MATCHED = ["fiction", "government", "slate", "telephone", "travel"]
_MISMATCHED = ["facetoface", "letters", "nineeleven", "oup", "verbatim"]
_GENRES = {"train": _MATCHED, "dev_matched": _MATCHED, "dev_mismatched": _MISMATCHED}
_MNLI_LABELS = ["contradiction", "entailment", "neutral"]
_MNLI_ROWS = {"train": 392702, "dev_matched": 9815, "dev_mismatched": 9832}  # with a label
_MNLI_DESCR = """MultiNLI 1.0, {subset}: {rows:,} pairs of {genres} genres. {sample}Pairs without a majority label are left
out. Rows of one premise (`groups`) belong on one side of a split; dev_matched and dev_mismatched are test sets.
Source: A. Williams, N. Nangia, S. R. Bowman, "A Broad-Coverage Challenge Corpus for Sentence Understanding through
Inference", NAACL 2018. Licence: mostly the OANC's, which allows free use; parts of the fiction section are CC BY 3.0,
CC BY-SA 3.0 or in the public domain in the USA; the paper lists them."""


def fetch_mnli_genres(
    *, data_home: Home = None, subset: str = "train", domains: Names = None, return_X_y_domains: bool = False
) -> Answer:
    """Load MultiNLI with its genres as domains; the first call downloads 227 MB.

    Parameters
    ----------
    data_home, return_X_y_domains : as in `fetch_amazon_reviews`
        In place of ``mnli_genres/multinli_1.0.zip`` there may be ``mnli_genres/<subset>.jsonl.gz`` with the keys genre,
        premise, hypothesis and label; train may then be a sample.
    subset : {"train", "dev_matched", "dev_mismatched"}, default="train"
        Training rows, test rows of the same five genres, or test rows of five others.
    domains : list of str, default=None
        Some of ``["fiction", "government", "slate", "telephone", "travel"]``, or for dev_mismatched of
        ``["facetoface", "letters", "nineeleven", "oup", "verbatim"]``; all by default.

    Returns
    -------
    Bunch
        As of `fetch_amazon_reviews`, whose errors it raises too; `data` (premise and hypothesis) has shape (n_rows, 2),
        `target` is "contradiction", "entailment" or "neutral", and `groups` is the premise.

    Examples
    --------
    >>> from skmft.datasets import fetch_mnli_genres
    >>> fetch_mnli_genres(subset="dev_matched", domains=["letters"])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: domains=['letters']; expected a list of names among ['fiction', 'government', 'slate', ...].
    """
    instead = f"{subset}.jsonl.gz"
    return load("mnli_genres", _GENRES, _read_mnli, data_home, subset, domains, return_X_y_domains, instead)


def _read_mnli(path: Path, subset: str, domains: Names) -> Found:
    is_archive = path.suffix == ".zip"
    keys = "sentence1 sentence2 gold_label genre" if is_archive else "premise hypothesis label genre"
    member = f"multinli_1.0/multinli_1.0_{subset}.jsonl"
    with zipfile.Path(path, member).open("rb") if is_archive else gzip.open(path) as file:
        rows = [tuple(row[key] for key in keys.split()) for row in map(json.loads, file)]
    rows = [row for row in rows if row[2] != "-"]  # no majority among the five annotators
    cells = set(product(_GENRES[subset], _MNLI_LABELS))
    if wrong := cells.symmetric_difference((genre, label) for _, _, label, genre in rows):
        raise ValueError(f"these (genre, label) have no rows, or should have none: {sorted(wrong, key=str)}")
    if not all(isinstance(text, str) for row in rows for text in row):
        raise ValueError("not all texts are strings")
    sample, n_rows = "", _MNLI_ROWS[subset]
    if len(rows) != n_rows:
        if len(rows) > n_rows or subset != "train" or is_archive:
            raise ValueError(f"{len(rows)} rows with a label, expected {n_rows}")
        sizes = ", ".join(f"{genre} {n:,}" for genre, n in sorted(Counter(row[3] for row in rows).items()))
        sample = f"This local copy is a sample of {len(rows) / n_rows:.0%} of the {n_rows:,} rows ({sizes}). "
    about = _MNLI_DESCR.format(subset=subset, rows=len(rows), genres=len(_GENRES[subset]), sample=sample)
    rows = [(row[:2], *row[2:], row[0]) for genre in domains or _GENRES[subset] for row in rows if row[3] == genre]
    return "data target domains groups", rows, about


_SNIPPETS = {"amazon": "amazonReviewSnippets", "movies": "movieReviewSnippets"}
_SNIPPETS |= {"nyt": "nytEditorialSnippets", "tweets": "tweets"}
_SNIPPETS_INNER = "vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz"
_SNIPPETS_DESCR = """Snippets of Amazon reviews, movie reviews, New York Times editorials and tweets, with the mean of 20
people's ratings from -4 (very negative) to 4 (very positive); those from -0.5 to 0.5 are left out. Snippets of one
document (`groups`) belong on one side of a split. Source: C. J. Hutto, E. Gilbert, "VADER: A Parsimonious Rule-based
Model for Sentiment Analysis of Social Media Text", ICWSM 2014, in vaderSentiment 0.5. Licence: MIT."""


def fetch_rated_snippets(
    *, data_home: Home = None, subset: str = "all", domains: Names = None, return_X_y_domains: bool = False
) -> Answer:
    """Load rated snippets of four domains; the first call downloads 2.4 MB with pip.

    Parameters
    ----------
    data_home, return_X_y_domains : as in `fetch_amazon_reviews`
        The archive is ``rated_snippets/vaderSentiment-0.5.zip``.
    subset : {"all"}, default="all"
        The source has no split of its own.
    domains : list of str, default=None
        Some of ``["amazon", "movies", "nyt", "tweets"]``; all by default.

    Returns
    -------
    Bunch
        As of `fetch_amazon_reviews`, whose errors it raises too; with `groups`, every snippet's document, and `ratings`.

    Examples
    --------
    >>> from skmft.datasets import fetch_rated_snippets
    >>> fetch_rated_snippets(domains=["books"])
    Traceback (most recent call last):
    ValueError: domains=['books']; expected a list of names among ['amazon', 'movies', 'nyt', 'tweets'].
    """
    return load("rated_snippets", {"all": _SNIPPETS}, _read_snippets, data_home, subset, domains, return_X_y_domains)


def _read_snippets(path: Path, subset: str, domains: Names) -> Found:
    files, rows = read_tar(zipfile.Path(path, _SNIPPETS_INNER).read_bytes()), []
    for domain in domains or _SNIPPETS:
        for line in files[f"hutto_ICWSM_2014/{_SNIPPETS[domain]}_GroundTruth.txt"].decode("utf-8").splitlines():
            number, rating, text = line.split("\t", 2)
            if abs(value := float(rating)) > 0.5:
                label = "positive" if value > 0 else "negative"
                rows.append((html.unescape(text).strip(), label, domain, f"{domain} {number.split('_')[0]}", value))
    return "data target domains groups ratings", rows, _SNIPPETS_DESCR
