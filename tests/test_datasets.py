import os
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest

from skmft.datasets import _rated_snippets, fetch_amazon_reviews, fetch_rated_snippets

HOME = os.environ.get("SKMFT_DATA_HOME")
HAS_AMAZON = bool(HOME) and (Path(HOME) / "amazon" / "domain_sentiment_data.tar.gz").exists()


def snippets():
    try:
        return fetch_rated_snippets()
    except FileNotFoundError as error:
        pytest.skip(f"needs the rated snippets: {error}")


def test_rated_snippets():
    data = snippets()
    assert data.domain_names == ["amazon", "movies", "nyt", "tweets"]
    assert set(data.target) == {"negative", "positive"}
    assert len(data.data) == len(data.target) == len(data.domains) == len(data.groups) == len(data.ratings)
    assert (np.abs(data.ratings) > 0.5).all()
    np.testing.assert_array_equal(data.target == "positive", data.ratings > 0)
    assert all(isinstance(t, str) and t == t.strip() for t in data.data)
    assert all(g.startswith(f"{d} ") for g, d in zip(data.groups, data.domains))
    X, y, d = fetch_rated_snippets(domains=["nyt"], return_X_y_domains=True)
    np.testing.assert_array_equal(X, data.data[data.domains == "nyt"])
    assert set(d) == {"nyt"} and len(y) == len(X)


def test_rated_snippets_of_another_content_are_refused(tmp_path):
    (tmp_path / "rated_snippets").mkdir()
    (tmp_path / "rated_snippets" / "vaderSentiment-0.5.zip").write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"vaderSentiment-0.5.zip has sha256 .*, expected 5d97c37.*delete it"):
        fetch_rated_snippets(data_home=tmp_path)


def test_a_failed_download_says_why_and_leaves_nothing(tmp_path, monkeypatch):
    def fail(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no route to the index")

    monkeypatch.setattr(_rated_snippets.subprocess, "run", fail)
    with pytest.raises(FileNotFoundError, match=r"fetching it with pip failed: ERROR: no route.*put it in"):
        fetch_rated_snippets(data_home=tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    with pytest.raises(FileNotFoundError, match="download_if_missing=False"):
        fetch_rated_snippets(data_home=tmp_path, download_if_missing=False)


@pytest.mark.skipif(not HAS_AMAZON, reason="needs SKMFT_DATA_HOME with amazon/domain_sentiment_data.tar.gz")
def test_amazon_reviews():
    data = fetch_amazon_reviews()
    cells, counts = np.unique([f"{d} {y}" for d, y in zip(data.domains, data.target)], return_counts=True)
    assert len(cells) == 8 and set(counts) == {1000}
    assert all(t.strip() and "<review_text>" not in t for t in data.data)
    assert set(fetch_amazon_reviews(domains=["dvd"]).domains) == {"dvd"}


def test_an_incomplete_amazon_archive_is_refused(tmp_path):
    (tmp_path / "amazon").mkdir()
    archive = tmp_path / "amazon" / "domain_sentiment_data.tar.gz"
    member = tmp_path / "negative.review"
    member.write_text("<title>a</title><review_text>b</review_text>")
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(member, "sorted_data_acl/books/negative.review")
    with pytest.raises(ValueError, match=r"books/negative.review has 1 reviews, expected 1000"):
        fetch_amazon_reviews(data_home=tmp_path)
    archive.write_bytes(archive.read_bytes()[:50])
    with pytest.raises(ValueError, match="cannot be read"):
        fetch_amazon_reviews(data_home=tmp_path)
