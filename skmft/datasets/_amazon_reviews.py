"""Amazon reviews of four product domains (Blitzer, Dredze, Pereira, ACL 2007): the paper's review task."""

import html
import os
import re
from collections.abc import Sequence
from typing import Any

from sklearn.utils import Bunch

from ._bunch import make_bunch, select_domains
from ._files import find_or_fetch, read_tar, reading

_FOLDERS = {"books": "books", "dvd": "dvd", "electronics": "electronics", "kitchen": "kitchen_&_housewares"}
_ROWS_PER_FILE = 1000
_REVIEW = re.compile(r"<review>(.*?)</review>", re.DOTALL)
_PARTS = re.compile(r"<title>(.*?)</title>.*?<review_text>(.*?)</review_text>", re.DOTALL)
_DESCR = """Multi-Domain Sentiment Dataset, labelled part: 1,000 positive and 1,000 negative Amazon reviews in each of
four domains. A text is a review's title, a line break, and its body. Some rows are exact repeats. Source: J. Blitzer,
M. Dredze, F. Pereira, "Biographies, Bollywood, Boom-boxes and Blenders: Domain Adaptation for Sentiment
Classification", ACL 2007. Licence: for research use; cite the paper."""


def fetch_amazon_reviews(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "all",
    domains: Sequence[str] | None = None,
    return_X_y_domains: bool = False,
    as_frame: bool = False,
    download_if_missing: bool = True,
) -> Bunch | tuple[Any, Any, Any]:
    """Load the Amazon reviews of books, dvd, electronics and kitchen; the first call downloads 30 MB.

    Parameters
    ----------
    data_home : path, default=None
        Folder that holds ``amazon/domain_sentiment_data.tar.gz``, or gets it. By default, the environment variable
        SKMFT_DATA_HOME and then the user's cache (``~/.cache/skmft`` on Linux) are searched; the cache gets it.
    subset : {"all"}, default="all"
        The source has no split of its own; `skmft.model_selection` draws one.
    domains : list of str, default=None
        Some of ``["books", "dvd", "electronics", "kitchen"]``; all by default.
    return_X_y_domains : bool, default=False
        Return ``(data, target, domains)`` instead of a Bunch.
    as_frame : bool, default=False
        Return pandas objects, and `frame` with all columns.
    download_if_missing : bool, default=True
        Whether to download the archive if there is no local copy.

    Returns
    -------
    Bunch
        `data` (texts), `target` ("negative", "positive") and `domains`, object arrays of shape (n_rows,); `frame`
        (DataFrame or None), `target_names`, `domain_names` and `DESCR`.

    Raises
    ------
    FileNotFoundError
        If there is no archive; the message says where to get it and where to put it.
    ValueError
        If the archive is damaged or incomplete, or a download does not have the known sha256.

    Examples
    --------
    >>> from skmft.datasets import fetch_amazon_reviews
    >>> fetch_amazon_reviews(domains=["toys"])
    Traceback (most recent call last):
    ValueError: domains=['toys']; expected a list of names among ['books', 'dvd', 'electronics', 'kitchen'].
    """
    wanted = select_domains(subset, domains, {"all": list(_FOLDERS)})
    archive = find_or_fetch("amazon", data_home, download_if_missing)
    members = {
        f"sorted_data_acl/{_FOLDERS[domain]}/{label}.review": (label, domain)
        for domain in wanted
        for label in ("negative", "positive")
    }
    rows = []
    with reading(archive):
        files = read_tar(archive.read_bytes(), members.__contains__)
        for member, (label, domain) in members.items():
            # Latin-1 never fails. The archive itself has lost its accents: 29 reviews hold U+FFFD in UTF-8, which is read
            # as three characters here, and in the benchmarks' frozen rows.
            reviews = _REVIEW.findall(files[member].decode("latin-1"))
            whole = [parts[0] for review in reviews if len(parts := _PARTS.findall(review)) == 1]
            if not len(whole) == len(reviews) == _ROWS_PER_FILE:
                found = f"{len(reviews)} reviews, {len(whole)} of them with one title and one text"
                raise ValueError(f"{member} has {found}, expected {_ROWS_PER_FILE} of both")
            rows += [("\n".join(html.unescape(part).strip() for part in parts), label, domain) for parts in whole]
    return make_bunch(rows, ["text", "target", "domains"], return_X_y_domains, as_frame, _DESCR)
