"""Amazon reviews of four product domains (Blitzer, Dredze, Pereira, ACL 2007): the paper's review task."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Sequence
from typing import Any

from sklearn.utils import Bunch

from ._cache import bunch, check_subset, find_or_fetch, open_tar, reading, select_domains

_URL = "https://www.cs.jhu.edu/~mdredze/datasets/sentiment/domain_sentiment_data.tar.gz"
_FOLDERS = {"books": "books", "dvd": "dvd", "electronics": "electronics", "kitchen": "kitchen_&_housewares"}
_ROWS_A_FILE = 1000
_REVIEW = re.compile(r"<review>(.*?)</review>", re.DOTALL)
_PARTS = re.compile(r"<title>(.*?)</title>.*?<review_text>(.*?)</review_text>", re.DOTALL)
_DESCR = """Multi-Domain Sentiment Dataset, labelled part: 1,000 positive and 1,000 negative Amazon reviews in each of
four domains. Source: J. Blitzer, M. Dredze, F. Pereira, "Biographies, Bollywood, Boom-boxes and Blenders: Domain
Adaptation for Sentiment Classification", ACL 2007. Licence: for research use; cite the paper. The text is the review's
title, a line break, and its body. Some rows repeat another."""


def fetch_amazon_reviews(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "all",
    domains: Sequence[str] | None = None,
    return_X_y_domains: bool = False,
    as_frame: bool = False,
    download_if_missing: bool = True,
) -> Bunch | tuple[Any, Any, Any]:
    """Load the Amazon reviews of books, dvd, electronics and kitchen; the first call fetches 30 MB.

    No checksum of the public archive is known to us. What is checked is that each of the eight files holds 1,000
    reviews; of a fetched file, also its length.

    Parameters
    ----------
    data_home : path, default=None
        Folder that holds ``amazon/domain_sentiment_data.tar.gz``. By default the file is looked for in the environment
        variable SKMFT_DATA_HOME and in ``~/.cache/skmft``, and kept in the latter.
    subset : {"all"}, default="all"
        The source has no split of its own; `skmft.model_selection` draws one.
    domains : list of str, default=None
        Some of ``["books", "dvd", "electronics", "kitchen"]``; all by default.
    return_X_y_domains : bool, default=False
        Return ``(data, target, domains)`` in place of a Bunch.
    as_frame : bool, default=False
        Give pandas objects; the Bunch then has `frame` with a column for each of text, target and domains.
    download_if_missing : bool, default=True
        Whether to fetch the file where there is no local copy.

    Returns
    -------
    Bunch
        With `data` (texts), `target` ("negative", "positive"), `domains`, each an object array of shape (n_rows,),
        `frame` (DataFrame or None), `target_names`, `domain_names` and `DESCR`.

    Raises
    ------
    FileNotFoundError
        If there is no archive; the message says where it can be had and where to put it.
    ValueError
        If the archive is damaged or not complete.

    Examples
    --------
    >>> from skmft.datasets import fetch_amazon_reviews
    >>> fetch_amazon_reviews(domains=["toys"])
    Traceback (most recent call last):
    ValueError: domains=['toys']; expected a list of names among ['books', 'dvd', 'electronics', 'kitchen'].
    """
    wanted = select_domains(domains, list(_FOLDERS))
    check_subset(subset, ["all"])
    archive = find_or_fetch("amazon", [_URL.rsplit("/", 1)[-1]], _URL, None, data_home, download_if_missing)
    rows: list[tuple[str, str, str]] = []
    with reading(archive), open_tar(archive) as tar:
        for domain in wanted:
            for label in ("negative", "positive"):
                member = f"sorted_data_acl/{_FOLDERS[domain]}/{label}.review"
                file = tar.extractfile(member)
                # never fails; of accents the copy at hand has only U+FFFD in UTF-8, in 29 reviews, which is read as three
                # characters, and so are the frozen rows of the benchmarks
                raw = file.read().decode("latin-1") if file else ""
                reviews = _REVIEW.findall(raw)
                whole = [pairs[0] for review in reviews if len(pairs := _PARTS.findall(review)) == 1]
                if not len(whole) == len(reviews) == _ROWS_A_FILE:
                    raise ValueError(
                        f"{archive}: {member} has {len(reviews)} reviews, of which {len(whole)} have a title and a text, "
                        f"expected {_ROWS_A_FILE} of both; get it again."
                    )
                rows += [("\n".join(html.unescape(t).strip() for t in pair), label, domain) for pair in whole]
    bodies, labels, names = zip(*rows)
    return bunch(
        {"text": bodies}, labels, names, return_X_y_domains=return_X_y_domains, as_frame=as_frame, DESCR=_DESCR
    )
