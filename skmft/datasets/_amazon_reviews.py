"""Amazon reviews of four product domains (Blitzer, Dredze, Pereira, ACL 2007): the paper's review task."""

from __future__ import annotations

import html
import os
import re
import tarfile
from collections.abc import Sequence
from typing import Any

from sklearn.utils import Bunch

from ._cache import bunch, find_local, select_domains

_FOLDERS = {"books": "books", "dvd": "dvd", "electronics": "electronics", "kitchen": "kitchen_&_housewares"}
_ROWS_A_FILE = 1000
_REVIEW = re.compile(r"<title>(.*?)</title>.*?<review_text>(.*?)</review_text>", re.DOTALL)
_DESCR = """Multi-Domain Sentiment Dataset, labelled part: 1,000 positive and 1,000 negative Amazon reviews in each of
four domains. Source: J. Blitzer, M. Dredze, F. Pereira, "Biographies, Bollywood, Boom-boxes and Blenders: Domain
Adaptation for Sentiment Classification", ACL 2007. For research use; cite the paper. The text is the review's
title, a line break, and its body. Some rows repeat another."""


def fetch_amazon_reviews(
    *,
    data_home: str | os.PathLike | None = None,
    domains: Sequence[str] | None = None,
    return_X_y_domains: bool = False,
) -> Bunch | tuple[Any, Any, Any]:
    """Load the Amazon reviews of books, dvd, electronics and kitchen from a local copy of their archive.

    Parameters
    ----------
    data_home : path, default=None
        Folder that holds ``amazon/domain_sentiment_data.tar.gz``. By default the environment variable
        SKMFT_DATA_HOME, then ``~/.cache/skmft``.
    domains : list of str, default=None
        Some of ``["books", "dvd", "electronics", "kitchen"]``; all by default.
    return_X_y_domains : bool, default=False
        Return ``(data, target, domains)`` in place of a Bunch.

    Returns
    -------
    Bunch
        With `data` (texts), `target` ("negative", "positive"), `domains`, each an object array of shape (n_rows,),
        `target_names`, `domain_names` and `DESCR`.

    Raises
    ------
    FileNotFoundError
        If there is no archive; the message says where it can be had and where to put it.
    ValueError
        If the archive is not complete.

    Examples
    --------
    >>> from skmft.datasets import fetch_amazon_reviews
    >>> fetch_amazon_reviews(data_home="nowhere")
    Traceback (most recent call last):
    FileNotFoundError: no Amazon archive. Get domain_sentiment_data.tar.gz from the Multi-Domain Sentiment Dataset's \
page (www.cs.jhu.edu/~mdredze/datasets/sentiment) and put it in nowhere/amazon.
    """
    wanted = select_domains(domains, list(_FOLDERS))
    archive = find_local("amazon", ["domain_sentiment_data.tar.gz"], data_home)
    if archive is None:
        home = os.fspath(data_home) if data_home is not None else "~/.cache/skmft (or $SKMFT_DATA_HOME)"
        raise FileNotFoundError(
            "no Amazon archive. Get domain_sentiment_data.tar.gz from the Multi-Domain Sentiment Dataset's page "
            f"(www.cs.jhu.edu/~mdredze/datasets/sentiment) and put it in {home}/amazon."
        )
    rows: list[tuple[str, str, str]] = []
    try:
        with tarfile.open(archive) as tar:
            for domain in wanted:
                for label in ("negative", "positive"):
                    member = f"sorted_data_acl/{_FOLDERS[domain]}/{label}.review"
                    file = tar.extractfile(member)
                    raw = file.read().decode("latin-1") if file else ""
                    texts = ["\n".join(html.unescape(t).strip() for t in pair) for pair in _REVIEW.findall(raw)]
                    if len(texts) != _ROWS_A_FILE:
                        raise ValueError(
                            f"{archive}: {member} has {len(texts)} reviews, expected {_ROWS_A_FILE}; get the archive again."
                        )
                    rows += [(text, label, domain) for text in texts]
    except (tarfile.TarError, KeyError, EOFError, OSError) as error:
        raise ValueError(f"{archive} cannot be read ({error}); get the archive again.") from error
    bodies, labels, names = zip(*rows)
    return bunch(bodies, labels, names, return_X_y_domains, DESCR=_DESCR)
