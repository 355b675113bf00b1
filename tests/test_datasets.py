"""Every loader on small files in its source's layout, whole and damaged, and on the real ones where they are at hand."""

import gzip
import hashlib
import http.server
import io
import json
import os
import subprocess
import tarfile
import threading
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB
from skmft.inputs import read_texts

from skmft.datasets import (
    _amazon_reviews,
    _cache,
    _fdu_mtl,
    _hypernym_pairs,
    _mnli_genres,
    _rated_snippets,
    fetch_amazon_reviews,
    fetch_fdu_mtl,
    fetch_hypernym_pairs,
    fetch_mnli_genres,
    fetch_rated_snippets,
    make_multi_domain_texts,
)

FETCH = {
    "amazon": fetch_amazon_reviews,
    "rated_snippets": fetch_rated_snippets,
    "mnli_genres": fetch_mnli_genres,
    "taxonomy": fetch_hypernym_pairs,
    "fdu_mtl": fetch_fdu_mtl,
}
MODULE = {
    "amazon": _amazon_reviews,
    "rated_snippets": _rated_snippets,
    "mnli_genres": _mnli_genres,
    "taxonomy": _hypernym_pairs,
    "fdu_mtl": _fdu_mtl,
}
GENRES = _mnli_genres._MATCHED
LABELS = _mnli_genres._LABELS
HOME = os.environ.get("SKMFT_DATA_HOME")


def real(folder, name):
    there = bool(HOME) and (Path(HOME) / folder / name).exists()
    return pytest.mark.skipif(not there, reason=f"needs SKMFT_DATA_HOME with {folder}/{name}")


# small files in the layout of each source


def write_tar(path, files):
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_zip(path, files):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_gz(path, content):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(content))
    return path


def amazon_files():
    """1,000 reviews a file; each begins with a byte that is not UTF-8, and an entity."""
    review = "<review>\n<title>\nCaf\xe9 {0}\n</title>\n<rating>\n1.0\n</rating>\n"
    review += "<review_text>\nQ&amp;A {0} {1}\n</review_text>\n</review>\n"
    return {
        f"sorted_data_acl/{folder}/{label}.review": "".join(
            review.format(i, folder + label) for i in range(1000)
        ).encode("latin-1")
        for folder in _amazon_reviews._FOLDERS.values()
        for label in ("negative", "positive")
    }


def write_amazon(home, files=None):
    return write_tar(home / "amazon" / "domain_sentiment_data.tar.gz", amazon_files() if files is None else files)


SNIPPETS = {
    "amazonReviewSnippets": "amazon",
    "movieReviewSnippets": "movies",
    "nytEditorialSnippets": "nyt",
    "tweets": "tweets",
}


def write_snippets(home, monkeypatch, without=None):
    """Six rows a domain, of which the last is rated neutral; the known sizes and sha256 are set to this file's."""
    ratings = [-3, -1.5, 0.6, 2, 0.51, 0.5]
    rows = {n: "".join(f"{i // 2}_{i}\t{r}\tCaf\xe9 &amp; {n} {i}\n" for i, r in enumerate(ratings)) for n in SNIPPETS}
    inner = {f"hutto_ICWSM_2014/{n}_GroundTruth.txt": r.encode() for n, r in rows.items() if n != without}
    tar = write_tar(home / "inner.tar.gz", inner)
    path = home / "rated_snippets" / "vaderSentiment-0.5.zip"
    write_zip(path, {_rated_snippets._INNER: tar.read_bytes()})
    monkeypatch.setattr(_rated_snippets, "_FILES", {d: (n, 6) for n, d in SNIPPETS.items()})
    monkeypatch.setattr(_rated_snippets, "_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def mnli_rows(a_cell=2):
    return [
        {"genre": g, "premise": f"Caf\xe9 {g} {i}\u2028.", "hypothesis": f"{y} {i}", "label": y}
        for i in range(a_cell)
        for g in GENRES
        for y in LABELS
    ]


def write_mnli(home, rows=None, subset="train", encoding="utf-8"):
    lines = [json.dumps(row, ensure_ascii=False) for row in (mnli_rows() if rows is None else rows)]
    return write_gz(home / "mnli_genres" / f"{subset}.jsonl.gz", ("\n".join(lines) + "\n").encode(encoding))


def write_mnli_zip(home, monkeypatch, rows=None):
    """The public archive's layout; rows without a majority label in between."""
    rows = mnli_rows() if rows is None else rows
    keys = {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}
    public = [{keys.get(k, k): v for k, v in row.items()} | {"pairID": str(i)} for i, row in enumerate(rows)]
    public.insert(3, {**public[0], "gold_label": "-"})
    files = {
        f"multinli_1.0/multinli_1.0_{s}.jsonl": "".join(json.dumps(r) + "\n" for r in public)
        for s in ("train", "dev_matched")
    }
    path = write_zip(home / "mnli_genres" / "multinli_1.0.zip", {"__MACOSX/._x": b"", **files})
    of_label = Counter(row["label"] for row in rows)
    counts = tuple(of_label[y] for y in LABELS)
    monkeypatch.setattr(_mnli_genres, "_COUNTS", {"train": counts, "dev_matched": counts})
    monkeypatch.setattr(_mnli_genres, "_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def tree_rows():
    """Domains as trees: a root, 6 branches, 12 leaves of each; "Shared leaf" is in all three."""
    rows = []
    for domain in ("animal", "plant", "vehicle"):
        for b in range(6):
            rows.append((domain, f"{domain} b{b}", domain, 1))
            for name in [f"{domain} b{b}l{i}" for i in range(12)] + ["shared leaf"] * (b == 0):
                rows += [(domain, name, f"{domain} b{b}", 1), (domain, name, domain, 2)]
    return rows


def write_table(home, monkeypatch, rows=None, header="domain\thyponym\thypernym\tdistance", encoding="utf-8"):
    rows = tree_rows() if rows is None else rows
    text = "\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n"
    counts = dict(Counter(row[0] for row in rows))
    monkeypatch.setattr(_hypernym_pairs, "_COUNTS", counts)
    return write_gz(home / "taxonomy" / "oewn_hypernym_pairs.tsv.gz", text.encode(encoding))


def fdu_lines(number, labelled=True):
    return b"".join(b"%d\ttext , %d .\n" % (i % 2, i) if labelled else b"Text %d.\n" % i for i in range(number))


def fdu_files(domains=("MR", "toys_games"), folder=""):
    files = {}
    for domain in domains:
        files[f"{folder}{domain}.task.train"] = fdu_lines(_fdu_mtl._TRAIN[domain])
        files[f"{folder}{domain}.task.test"] = fdu_lines(400)
        files[f"{folder}{domain}.task.unlabel"] = fdu_lines(475 if domain == "software" else 2000, labelled=False)
    return files


def write_fdu(home, files=None, name="fdu-mtl-sample.tar.gz"):
    return write_tar(home / "fdu_mtl" / name, fdu_files() if files is None else files)


def write(folder, home, monkeypatch):
    """The data set in `folder`, whole and small."""
    return {
        "amazon": lambda: write_amazon(home),
        "rated_snippets": lambda: write_snippets(home, monkeypatch),
        "mnli_genres": lambda: write_mnli(home),
        "taxonomy": lambda: write_table(home, monkeypatch),
        "fdu_mtl": lambda: write_fdu(home),
    }[folder]()


# what all of them promise


@pytest.mark.parametrize("folder", FETCH)
def test_forms_agree(folder, tmp_path, monkeypatch):
    path = write(folder, tmp_path, monkeypatch)
    before = path.read_bytes()
    fetch = FETCH[folder]
    data = fetch(data_home=tmp_path)
    X, y, d = fetch(data_home=str(tmp_path), return_X_y_domains=True, download_if_missing=False)
    for one, other in ((X, data.data), (y, data.target), (d, data.domains)):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == object and len(one) == len(X)
    assert data.target_names == sorted(set(y)) and data.domain_names == sorted(set(d)) and data.frame is None
    assert "Licence: " in data.DESCR and "Source: " in data.DESCR
    framed = fetch(data_home=tmp_path, as_frame=True)
    n_texts = 1 if X.ndim == 1 else 2
    assert list(framed.frame.columns[n_texts : n_texts + 2]) == ["target", "domains"]
    np.testing.assert_array_equal(framed.data.to_numpy(dtype=object), X)
    np.testing.assert_array_equal(framed.frame.iloc[:, :n_texts].to_numpy(dtype=object).reshape(X.shape), X)
    for name in framed.frame.columns[n_texts:]:
        np.testing.assert_array_equal(framed[name].to_numpy(), framed.frame[name].to_numpy())
        np.testing.assert_array_equal(framed[name].to_numpy(dtype=object), data[name].astype(object))
    Xf, yf, df = fetch(data_home=tmp_path, as_frame=True, return_X_y_domains=True)
    pd.testing.assert_series_equal(yf, framed.target)
    pd.testing.assert_series_equal(df, framed.domains)
    assert read_texts(Xf)[0] == read_texts(X)[0]  # the classifier takes both, and reads the same
    one = data.domain_names[-1]
    some = fetch(data_home=tmp_path, domains=[one])
    np.testing.assert_array_equal(some.data, X[d == one])
    assert path.read_bytes() == before
    assert [p for p in tmp_path.rglob("*") if ".part" in p.name] == []


@pytest.mark.parametrize("folder", FETCH)
def test_bad_arguments(folder, tmp_path):
    fetch = FETCH[folder]
    for domains in (["nowhere"], "animal", [], 5):
        with pytest.raises(ValueError, match=r"domains=.*; expected a list of names among \["):
            fetch(domains=domains, data_home=tmp_path)
    with pytest.raises(ValueError, match=r"subset='half'; expected '"):
        fetch(subset="half", data_home=tmp_path)


@pytest.mark.parametrize("folder", FETCH)
def test_missing_says_where_to_get_it_and_where_to_put_it(folder, tmp_path):
    source = "Python package index" if folder == "rated_snippets" else MODULE[folder]._URL
    with pytest.raises(FileNotFoundError) as info:
        FETCH[folder](data_home=tmp_path, download_if_missing=False)
    for part in (source, str(tmp_path / folder), "SKMFT_DATA_HOME", "download_if_missing=False"):
        assert part in str(info.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("folder", FETCH)
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_cut_files_are_refused(folder, keep, tmp_path, monkeypatch):
    path = write(folder, tmp_path, monkeypatch)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(ValueError, match=r"cannot be read|has sha256|lacks rows|has the columns") as info:
        FETCH[folder](data_home=tmp_path)
    assert str(path) in str(info.value)


@pytest.mark.parametrize("folder", ["amazon", "fdu_mtl"])
def test_archives_without_a_known_sha256_are_read_to_their_checksum(folder, tmp_path, monkeypatch):
    path = write(folder, tmp_path, monkeypatch)
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # of gzip's checksum: what tar needs is all there
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read .*CRC.*delete it and get it again"):
        FETCH[folder](data_home=tmp_path)


def test_homes_are_searched_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("SKMFT_DATA_HOME", str(tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for home, rows in (("given", 2), ("cache/skmft", 3)):
        (tmp_path / home).mkdir(parents=True)
        write_mnli(tmp_path / home, mnli_rows(rows))
    assert len(fetch_mnli_genres().data) == 30
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SKMFT_DATA_HOME", "~/given")  # as from a file of variables, which no shell expands
    assert len(fetch_mnli_genres().data) == 30
    monkeypatch.delenv("SKMFT_DATA_HOME")
    assert len(fetch_mnli_genres().data) == 45


# downloads


class Handler(http.server.BaseHTTPRequestHandler):
    content = b""

    def do_GET(self):
        if self.path == "/gone":
            return self.send_error(404)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content) + (100 if self.path.startswith("/cut") else 0)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def files_below(folder):
    return [p.name for p in folder.rglob("*") if p.is_file()]


def test_download_then_offline(server, tmp_path, monkeypatch):
    Handler.content = write_amazon(tmp_path).read_bytes()
    home = tmp_path / "home"
    monkeypatch.setattr(_amazon_reviews, "_URL", f"{server}/domain_sentiment_data.tar.gz")
    data = fetch_amazon_reviews(data_home=home)
    assert files_below(home) == ["domain_sentiment_data.tar.gz"]
    monkeypatch.setattr(_cache, "download", None)  # is not called again
    np.testing.assert_array_equal(fetch_amazon_reviews(data_home=home).data, data.data)


@pytest.mark.parametrize("page, reason", [("/gone", "404"), ("/cut.zip", r"broke off after 5 of 105 bytes")])
def test_a_failed_download_leaves_nothing(page, reason, server, tmp_path, monkeypatch):
    Handler.content = b"12345"
    monkeypatch.setattr(_mnli_genres, "_URL", server + page)
    with pytest.raises(FileNotFoundError, match=rf"fetching it failed: .*{reason}.* put it in"):
        fetch_mnli_genres(data_home=tmp_path)
    assert files_below(tmp_path) == []


def test_a_download_of_another_content_leaves_nothing(server, tmp_path, monkeypatch):
    Handler.content = b"another"
    monkeypatch.setattr(_hypernym_pairs, "_URL", f"{server}/x.zip")
    with pytest.raises(ValueError, match=r"x.zip has sha256 [0-9a-f]{64}, expected 7d749f6e.*; nothing was kept"):
        fetch_hypernym_pairs(data_home=tmp_path)
    assert files_below(tmp_path) == []


@pytest.mark.parametrize("folder", ["amazon", "fdu_mtl"])
def test_a_page_in_place_of_an_archive_is_not_kept(folder, server, tmp_path, monkeypatch):
    Handler.content = b"<html>please log in</html>"
    monkeypatch.setattr(MODULE[folder], "_URL", f"{server}/x.tar.gz")
    with pytest.raises(ValueError, match=r"x.tar.gz gave no gzipped tar archive .*; nothing was kept"):
        FETCH[folder](data_home=tmp_path)
    assert files_below(tmp_path) == []


def test_an_interrupted_download_leaves_nothing_and_keeps_what_was_there(tmp_path, monkeypatch):
    class Interrupted(io.BytesIO):
        headers = {}

        def read(self, size=-1):
            if self.tell():
                raise KeyboardInterrupt
            return super().read(3)

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(_cache.urllib.request, "urlopen", lambda url, timeout: Interrupted(b"abcdef"))
    with pytest.raises(KeyboardInterrupt):
        _cache.download("http://nowhere/x", tmp_path / "x", None)
    assert files_below(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"


def test_file_urls(tmp_path, monkeypatch):
    files = fdu_files(_fdu_mtl._TRAIN, "mtl-dataset/")
    path = write_fdu(tmp_path, files, "fudan-mtl-dataset.tar.gz")
    monkeypatch.setattr(_fdu_mtl, "_URL", path.as_uri())
    data = fetch_fdu_mtl(data_home=tmp_path / "home", subset="test")
    assert len(data.domain_names) == 16 and len(data.data) == 6400 and "sample" not in data.DESCR
    monkeypatch.setattr(_fdu_mtl, "_URL", (tmp_path / "not there.tar.gz").as_uri())
    with pytest.raises(FileNotFoundError, match="fetching it failed"):
        fetch_fdu_mtl(data_home=tmp_path / "other")


# Amazon reviews


def test_amazon_text_is_decoded(tmp_path):
    write_amazon(tmp_path)
    data = fetch_amazon_reviews(data_home=tmp_path)
    assert data.data[0] == "Caf\xe9 0\nQ&A 0 booksnegative"
    assert Counter(zip(data.domains, data.target)) == {
        (d, y): 1000 for d in data.domain_names for y in data.target_names
    }


def test_damaged_amazon_archives(tmp_path):
    name = "sorted_data_acl/books/negative.review"
    files = amazon_files()
    write_amazon(tmp_path, {**files, name: files[name][: files[name].rindex(b"<review>")]})
    with pytest.raises(
        ValueError, match=r"books/negative.review has 999 reviews, of which 999 .*, expected 1000 of both"
    ):
        fetch_amazon_reviews(data_home=tmp_path)
    write_amazon(tmp_path, {**files, name: files[name].decode("latin-1").encode("utf-16")})
    with pytest.raises(ValueError, match=r"books/negative.review has 0 reviews"):
        fetch_amazon_reviews(data_home=tmp_path)
    first, second, rest = files[name].split(b"</review>\n", 2)
    halves = first[: first.index(b"<rating>")] + b"</review>\n<review>\n" + first[first.index(b"<rating>") :]
    one_more = b"</review>\n".join([halves, second, second, rest])  # a title apart from its body, and 1,000 of each
    write_amazon(tmp_path, {**files, name: one_more})
    with pytest.raises(ValueError, match=r"books/negative.review has 1002 reviews, of which 1000 have"):
        fetch_amazon_reviews(data_home=tmp_path)
    write_amazon(tmp_path, {n: c for n, c in files.items() if "/dvd/" not in n})
    with pytest.raises(ValueError, match=r"tar.gz cannot be read .*dvd/negative.review"):
        fetch_amazon_reviews(data_home=tmp_path)
    assert set(fetch_amazon_reviews(data_home=tmp_path, domains=["books"]).domains) == {"books"}


@real("amazon", "domain_sentiment_data.tar.gz")
def test_real_amazon_reviews():
    data = fetch_amazon_reviews()
    cells, counts = np.unique([f"{d} {y}" for d, y in zip(data.domains, data.target)], return_counts=True)
    assert len(cells) == 8 and set(counts) == {1000}
    assert all(t.strip() and "<review_text>" not in t for t in data.data)
    assert len(set(data.data)) == 7854  # the others repeat one


# rated snippets


def snippets():
    try:
        return fetch_rated_snippets()
    except FileNotFoundError as error:
        pytest.skip(f"needs the rated snippets: {error}")


def test_real_rated_snippets():
    data = snippets()
    assert data.domain_names == ["amazon", "movies", "nyt", "tweets"]
    assert set(data.target) == {"negative", "positive"}
    assert len(data.data) == len(data.target) == len(data.domains) == len(data.groups) == len(data.ratings)
    assert (np.abs(data.ratings) > 0.5).all()
    np.testing.assert_array_equal(data.target == "positive", data.ratings > 0)
    assert all(isinstance(t, str) and t == t.strip() for t in data.data)
    assert all(g.startswith(f"{d} ") for g, d in zip(data.groups, data.domains))


def test_snippets_by_hand(tmp_path, monkeypatch):
    write_snippets(tmp_path, monkeypatch)
    data = fetch_rated_snippets(data_home=tmp_path, domains=["nyt"])
    assert data.data.tolist() == [
        f"Caf\xe9 & nytEditorialSnippets {i}" for i in range(5)
    ]  # the neutral one is left out
    assert data.target.tolist() == ["negative"] * 2 + ["positive"] * 3
    assert data.groups.tolist() == ["nyt 0", "nyt 0", "nyt 1", "nyt 1", "nyt 2"]
    assert data.ratings.tolist() == [-3, -1.5, 0.6, 2, 0.51]


def test_damaged_snippets(tmp_path, monkeypatch):
    path = write_snippets(tmp_path, monkeypatch, without="tweets")
    with pytest.raises(ValueError, match=r"zip cannot be read .*tweets_GroundTruth"):
        fetch_rated_snippets(data_home=tmp_path)
    path.write_bytes(b"cut short")
    with pytest.raises(ValueError, match=r"vaderSentiment-0.5.zip has sha256 .*, expected .*delete it"):
        fetch_rated_snippets(data_home=tmp_path)


def test_pip_fails_or_brings_something_else(tmp_path, monkeypatch):
    def fail(command, **kwargs):
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no route to the index")

    def other(command, **kwargs):
        (Path(command[command.index("--dest") + 1]) / "vaderSentiment-0.5.zip").write_bytes(b"other")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(_rated_snippets.subprocess, "run", fail)
    with pytest.raises(FileNotFoundError, match=r"fetching it with pip failed: ERROR: no route.*put it in"):
        fetch_rated_snippets(data_home=tmp_path)
    monkeypatch.setattr(_rated_snippets.subprocess, "run", other)
    with pytest.raises(ValueError, match=r"has sha256 .* expected 5d97c37"):
        fetch_rated_snippets(data_home=tmp_path)

    def hang(command, timeout, **kwargs):
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(_rated_snippets.subprocess, "run", hang)
    with pytest.raises(FileNotFoundError, match=r"took over 600 s.*put it in"):
        fetch_rated_snippets(data_home=tmp_path)
    assert files_below(tmp_path) == []


def test_pip_is_told_the_hash_and_what_it_brings_is_kept(tmp_path, monkeypatch):
    whole = write_snippets(tmp_path, monkeypatch)

    def bring(command, **kwargs):
        requirements = Path(command[command.index("--requirement") + 1]).read_text()
        assert requirements == f"vaderSentiment==0.5 --hash=sha256:{_rated_snippets._SHA256}\n"
        (Path(command[command.index("--dest") + 1]) / whole.name).write_bytes(whole.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(_rated_snippets.subprocess, "run", bring)
    assert len(fetch_rated_snippets(data_home=tmp_path / "home").data) == 20
    assert files_below(tmp_path / "home") == [whole.name]
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match=r"it could not be kept: .*data_home= or"):
        fetch_rated_snippets(data_home=tmp_path / "file")


# MultiNLI


def test_mnli_archive_and_sample_agree(tmp_path, monkeypatch):
    for home in ("a", "b"):
        (tmp_path / home).mkdir()
    write_mnli(tmp_path / "a")
    sample = fetch_mnli_genres(data_home=tmp_path / "a")
    assert "a sample of 0% of the 392,702 rows (fiction 6, government 6" in sample.DESCR
    write_mnli_zip(tmp_path / "b", monkeypatch)
    for subset in ("train", "dev_matched"):
        public = fetch_mnli_genres(data_home=tmp_path / "b", subset=subset)
        np.testing.assert_array_equal(public.data, sample.data)
        np.testing.assert_array_equal(public.target, sample.target)
        np.testing.assert_array_equal(public.groups, sample.data[:, 0])
        assert "sample of" not in public.DESCR and f"{subset}: 30 pairs" in public.DESCR


def test_damaged_mnli(tmp_path, monkeypatch):
    rows = mnli_rows()

    def refused(match, **kwargs):
        with pytest.raises(ValueError, match=match):
            fetch_mnli_genres(data_home=tmp_path, **kwargs)

    write_mnli(
        tmp_path, encoding="latin-1", rows=[{k: v.replace("\u2028", "") for k, v in row.items()} for row in rows]
    )
    refused("train.jsonl.gz is not utf-8 text")
    write_mnli(tmp_path, rows=[row for row in rows if row["genre"] != "slate"])
    refused(r"lacks rows of \(genre, label\) \[\('slate', 'contradiction'\)")
    write_mnli(tmp_path, rows=[*rows, {**rows[0], "genre": "sport"}])
    refused(r"has rows of \(genre, label\) \[\('sport', 'contradiction'\)\]")
    write_mnli(tmp_path, rows=[*rows[:4], {k: v for k, v in rows[4].items() if k != "label"}, *rows[5:]])
    refused(r"line 5: KeyError\('label'\); expected JSON with the keys genre, premise, hypothesis, label")
    write_mnli(tmp_path, rows=[rows[0], {**rows[1], "premise": None}])
    refused(r"line 2: TypeError")
    write_gz(tmp_path / "mnli_genres" / "train.jsonl.gz", b'{"genre": "fict')
    refused(r"line 1: JSONDecodeError")
    write_mnli(tmp_path, subset="dev_matched")  # of the test sets only the whole is taken
    refused(r"dev_matched.jsonl.gz: label counts .*10.*, expected .*3213", subset="dev_matched")
    path = write_mnli_zip(tmp_path, monkeypatch)
    monkeypatch.setattr(_mnli_genres, "_COUNTS", {"train": (10, 10, 11)})
    refused(r"multinli_1.0.zip: label counts")
    path.write_bytes(path.read_bytes() + b" ")
    refused(r"multinli_1.0.zip has sha256 .*, expected")


@real("mnli_genres", "train.jsonl.gz")
def test_real_mnli():
    train = fetch_mnli_genres()
    if len(train.data) == 25072:
        assert "sample of 6% of the 392,702 rows" in train.DESCR
    test = fetch_mnli_genres(subset="dev_matched")
    assert Counter(test.target) == {"contradiction": 3213, "entailment": 3479, "neutral": 3123}
    for data in (train, test):
        assert data.domain_names == GENRES and data.data.shape == (len(data.target), 2)


# hypernym pairs


def terms_of(data):
    return {term.casefold() for pair in data.data for term in pair}


def check_pairs(train, test, table):
    """`table`: the (hyponym, hypernym) pairs of the source, without regard to domains or capitals."""
    assert not terms_of(train) & terms_of(test)
    for data in (train, test):
        labels = Counter(zip(data.domains, data.target))
        for domain in data.domain_names:
            assert labels[domain, "hypernym"] == labels[domain, "other"] > 0
        pairs = [(a.casefold(), b.casefold()) for a, b in data.data]
        assert len(set(pairs)) > 0.999 * len(pairs)
        for (a, b), kind, label, distance, group in zip(
            pairs, data.kinds, data.target, data.distances, data.groups, strict=True
        ):
            assert (label == "hypernym") == (kind == "hypernym") == ((a, b) in table) == (distance > 0)
            assert a != b
            assert ((b, a) in table) == (kind == "reversed")
            assert group == (b if kind == "reversed" else a)


def test_pairs_of_a_small_table(tmp_path, monkeypatch):
    write_table(tmp_path, monkeypatch)
    table = {(a, b) for _, a, b, _ in tree_rows()}
    for seed in range(3):
        train, test = (
            fetch_hypernym_pairs(data_home=tmp_path, subset=s, test_size=0.4, random_state=seed)
            for s in ("train", "test")
        )
        check_pairs(train, test, table)
        again = fetch_hypernym_pairs(data_home=tmp_path, test_size=0.4, random_state=seed)
        np.testing.assert_array_equal(again.data, train.data)
    other = fetch_hypernym_pairs(data_home=tmp_path, test_size=0.4, random_state=7)
    assert len(other.data) != len(train.data) or (other.data != train.data).any()
    for seed in (np.random.RandomState(2), None, -1):  # of the first, two calls would split the terms in two ways
        with pytest.raises(ValueError, match=r"expected an int from 0 to 2\*\*32 - 1, the same for train and"):
            fetch_hypernym_pairs(data_home=tmp_path, random_state=seed)
    with pytest.raises(ValueError, match=r"leaves no test pairs of the domains \['animal'.*Raise test_size"):
        fetch_hypernym_pairs(data_home=tmp_path, subset="test", test_size=0.001)
    with pytest.raises(ValueError, match=r"leaves no train pairs of the domains \['vehicle'\].*Lower test_size"):
        fetch_hypernym_pairs(data_home=tmp_path, domains=["vehicle"], test_size=0.999)
    for size in (0, 1, -0.1, "half"):
        with pytest.raises(ValueError, match=r"test_size=.*expected a share"):
            fetch_hypernym_pairs(data_home=tmp_path, test_size=size)


def test_co_hyponyms_share_a_parent(tmp_path, monkeypatch):
    write_table(tmp_path, monkeypatch)
    data = fetch_hypernym_pairs(data_home=tmp_path, test_size=0.1)
    parents = {}
    for _, a, b, distance in tree_rows():
        if distance == 1:
            parents.setdefault(a, set()).add(b)
    siblings = data.data[data.kinds == "co-hyponym"]
    assert len(siblings) >= 10
    assert all(parents[a] & parents[b] for a, b in siblings)
    kinds = Counter(data.kinds)
    assert kinds["reversed"] == kinds["co-hyponym"] <= kinds["random"] <= kinds["reversed"] + 3 * 3


def test_order_of_the_file_does_not_matter(tmp_path, monkeypatch):
    rows = tree_rows()
    write_table(tmp_path, monkeypatch)
    data = fetch_hypernym_pairs(data_home=tmp_path)
    np.random.default_rng(0).shuffle(rows)
    write_table(tmp_path, monkeypatch, [tuple(row) for row in rows])
    np.testing.assert_array_equal(fetch_hypernym_pairs(data_home=tmp_path).data, data.data)


WORDNET = {  # "puppy" reaches animal by dog in 2 steps and by way of pet in 2; "pup" only through young
    "noun.Tops.json": {"00015568-n": {"members": ["animal", "beast"]}, "00017402-n": {"members": ["plant"]}},
    "noun.animal.json": {
        "1-n": {"members": ["dog", "Canis"], "hypernym": ["00015568-n", "4-n"]},
        "2-n": {"members": ["puppy"], "hypernym": ["1-n", "3-n"]},
        "3-n": {"members": ["young"], "hypernym": ["9-n", "4-n"]},
        "4-n": {"members": ["pet"], "hypernym": ["00015568-n"]},
        "5-n": {"members": ["Rex"], "instance_hypernym": ["1-n"]},
    },
    "noun.plant.json": {"6-n": {"members": ["rose", "Rosa"], "hypernym": ["00017402-n"]}},
    "noun.artifact.json": {
        "04531608-n": {"members": ["vehicle"], "hypernym": ["9-n"]},
        "7-n": {"members": ["sled"], "hypernym": ["04531608-n"]},
        "9-n": {"members": ["thing"]},
    },
    "verb.motion.json": {"8-v": {"members": ["dog"], "hypernym": ["00015568-n"]}},
    "entries-d.json": {"dog": {}},
}


def test_wordnet_archive(tmp_path, monkeypatch):
    path = tmp_path / "taxonomy" / "english-wordnet-2025-json.zip"
    write_zip(path, {name: json.dumps(content) for name, content in WORDNET.items()})
    monkeypatch.setattr(_hypernym_pairs, "_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=r"has 9 pairs of the domain animal, expected about 29679"):
        fetch_hypernym_pairs(data_home=tmp_path)
    monkeypatch.setattr(_hypernym_pairs, "_COUNTS", {"animal": 9, "plant": 1, "vehicle": 1})
    pairs = {(p.domain, p.term, p.candidate, p.distance) for p in _hypernym_pairs._read_wordnet(path)}
    assert pairs == {
        ("animal", "dog", "animal", 1),
        ("animal", "dog", "pet", 1),
        ("animal", "puppy", "dog", 1),
        ("animal", "puppy", "young", 1),
        ("animal", "puppy", "pet", 2),
        ("animal", "puppy", "animal", 2),
        ("animal", "young", "pet", 1),
        ("animal", "young", "animal", 2),
        ("animal", "pet", "animal", 1),
        ("plant", "rose", "plant", 1),
        ("vehicle", "sled", "vehicle", 1),
    }
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"english-wordnet-2025-json.zip has sha256"):
        fetch_hypernym_pairs(data_home=tmp_path)


def test_pairs_that_contradict_each_other_are_dropped():
    rows = [("animal", "a", "b", 3), ("plant", "A", "B", 1), ("animal", "c", "c", 1), ("animal", "d", "e", 1)]
    rows += [("animal", "e", "d", 1)]
    assert [p[:5] for p in _hypernym_pairs._unique(rows)] == [("plant", "A", "B", "hypernym", 1)]


def test_damaged_tables(tmp_path, monkeypatch):
    rows = tree_rows()

    def refused(match):
        with pytest.raises(ValueError, match=match):
            fetch_hypernym_pairs(data_home=tmp_path)

    write_table(tmp_path, monkeypatch, header="domain\thyponym\thypernym")
    refused(r"has the columns \['domain', 'hyponym', 'hypernym'\], expected")
    for bad in (("animal", "a", "b"), ("animal", "a", "b", "far"), ("mineral", "a", "b", 1), ("animal", "", "b", 1)):
        write_table(tmp_path, monkeypatch, [*rows[:3], bad, *rows[3:]])
        refused(r"oewn_hypernym_pairs.tsv.gz, line 5 is ")
    write_table(tmp_path, monkeypatch, [*rows, ("animal", "\xe9", "animal", 1)], encoding="latin-1")
    refused("tsv.gz is not utf-8 text")
    counts = dict(Counter(row[0] for row in rows))
    write_table(tmp_path, monkeypatch, [row for row in rows if row[0] != "vehicle"])
    monkeypatch.setattr(_hypernym_pairs, "_COUNTS", counts)
    refused(r"domain counts \{'animal': \d+, 'plant': \d+\}, expected")


@real("taxonomy", "oewn_hypernym_pairs.tsv.gz")
def test_real_hypernym_pairs():
    table = pd.read_csv(
        Path(HOME) / "taxonomy" / "oewn_hypernym_pairs.tsv.gz", sep="\t", keep_default_na=False, quoting=3
    )
    pairs = {(a.casefold(), b.casefold()) for a, b in zip(table["hyponym"], table["hypernym"]) if a != b}
    train, test = (fetch_hypernym_pairs(subset=s) for s in ("train", "test"))
    check_pairs(train, test, pairs)
    positive = Counter(zip(test.domains, test.target))
    assert [positive[d, "hypernym"] for d in test.domain_names] == [1447, 913, 78]


# FDU-MTL


def test_fdu_subsets(tmp_path):
    write_fdu(tmp_path)
    sizes = {s: len(fetch_fdu_mtl(data_home=tmp_path, subset=s).data) for s in ("train", "test", "unlabeled")}
    assert sizes == {"train": 3200, "test": 800, "unlabeled": 4000}
    data = fetch_fdu_mtl(data_home=tmp_path, domains=["MR"])
    assert (data.data[1], data.target[1]) == ("text , 1 .", "positive")
    assert "sample with 2 of the 16 domains" in data.DESCR
    unlabelled = fetch_fdu_mtl(data_home=tmp_path, subset="unlabeled", as_frame=True)
    assert unlabelled.target.isna().all() and unlabelled.target_names == [] and unlabelled.data[0] == "Text 0."


def test_fdu_encodings(tmp_path):
    odd = b"1\tcaf\xe9 \x96 ok\r\n0\tcaf\xc3\xa9 \xe2\x80\x93\x85\n1\t\xef\xbb\xbfbom\x81\n"
    texts, labels = _fdu_mtl._parse("x", odd, True)
    assert texts[:1] == ["caf\xe9 \u2013 ok"] and labels == ["positive", "negative", "positive"]
    assert _fdu_mtl._parse("x", b"0\tcaf\xc3\xa9 \xe2\x80\x93", True)[0] == ["caf\xe9 \u2013"]
    assert len(texts) == 3 and "bom" in texts[2]


def test_damaged_fdu(tmp_path):
    files = fdu_files()

    def refused(match, changed, name="fdu-mtl-sample.tar.gz", **kwargs):
        path = write_fdu(tmp_path, {**files, **changed}, name)
        with pytest.raises(ValueError, match=match):
            fetch_fdu_mtl(data_home=tmp_path, **kwargs)
        path.unlink()

    name = "MR.task.train"
    for bad in (b"2\ttext", b"no label", b"\ttext", b""):
        content = files[name].replace(b"0\ttext , 4 .", bad)
        refused(r"MR.task.train, line 5 is .*; expected 0 or 1, a tab, and a text", {name: content})
    refused(r"MR.task.train has 1599 rows, expected 1600", {name: files[name].split(b"\n", 1)[1]})
    refused(r"has labels \{'positive': 1600\}, expected about as many", {name: files[name].replace(b"0\t", b"1\t")})
    refused(r"line 1 has zero bytes", {name: files[name].decode().encode("utf-16")})
    refused(r"lacks the domains \['apparel', 'baby'", {}, "fudan-mtl-dataset.tar.gz")  # the public archive has all


def test_fdu_sample_and_whole(tmp_path, monkeypatch):
    """What a sample lacks is read from the whole archive, wherever that is, or said to be in neither."""
    for folder in ("given", "skmft"):
        (tmp_path / folder).mkdir()
    write_fdu(tmp_path / "given")
    monkeypatch.setenv("SKMFT_DATA_HOME", str(tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    asked = {"domains": ["books"], "download_if_missing": False}
    lacks = r"sample .* lacks the domains \['books'\], and there is no local copy of fudan"
    with pytest.raises(FileNotFoundError, match=lacks):
        fetch_fdu_mtl(**asked)
    write_fdu(tmp_path / "skmft", fdu_files(["books"]), "fudan-mtl-dataset.tar.gz")
    assert set(fetch_fdu_mtl(**asked).domains) == {"books"}
    assert set(fetch_fdu_mtl(domains=["MR"], download_if_missing=False).domains) == {"MR"}


@real("fdu_mtl", "fdu-mtl-sample.tar.gz")
def test_real_fdu():
    data = fetch_fdu_mtl()
    assert data.domain_names == ["MR", "toys_games"]
    counts = {("MR", "negative"): 822, ("MR", "positive"): 778, ("toys_games", "negative"): 806}
    assert Counter(zip(data.domains, data.target)) == {**counts, ("toys_games", "positive"): 794}
    assert any("clich\xe9s" in text for text in data.data)
    assert not any(ord(c) in range(0x80, 0xA0) for text in data.data for c in text)


# synthetic texts


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_the_domain_shift_is_the_one_asked_for(shift):
    X, y, d = make_multi_domain_texts(3000, 3, 2, domain_shift=shift, random_state=0)
    cells = {}
    for text, label, domain in zip(X, y, d):
        for word in text.split():
            cells.setdefault(word, set()).add((label, domain))
    words = [word for text in X for word in text.split()]
    own = sum(len(cells[w]) == 1 for w in words)  # seen in one class of one domain
    shared = sum(len({c for c, _ in cells[w]}) == 1 and len(cells[w]) == 3 for w in words)
    assert own + shared == 3000 * 4
    assert abs(own / (own + shared) - shift) < 4 * np.sqrt(shift * (1 - shift) / 12000) + 1e-12
    assert Counter(zip(y, d)) == {(c, k): 500 for c in set(y) for k in set(d)}


def test_other_domains_teach_what_is_shared():
    accuracy = []
    for shift in (0.0, 0.5, 1.0):
        X, y, d = make_multi_domain_texts(1800, 3, 2, domain_shift=shift, random_state=1)
        counts = CountVectorizer().fit_transform(X)
        here = d == "domain 0"
        accuracy.append(MultinomialNB().fit(counts[~here], y[~here]).score(counts[here], y[here]))
    assert accuracy[0] == 1 and 0.4 < accuracy[2] < 0.6 and accuracy[2] < accuracy[1] < 1


def test_synthetic_texts_are_seeded_and_checked():
    a, b, c = (make_multi_domain_texts(50, 4, 3, random_state=s) for s in (0, 0, 1))
    for one, other in zip(a, b):
        np.testing.assert_array_equal(one, other)
    assert (a[0] != c[0]).any()
    assert len(make_multi_domain_texts(1, 1, 2, n_class_words=1, n_domain_words=0, n_filler_words=0)[0][0]) == 4
    for bad in (
        {"n_samples": 0},
        {"n_domains": 1.5},
        {"n_classes": 1},
        {"n_filler_words": -1},
        {"n_class_words": True},
    ):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}=.*expected an int of"):
            make_multi_domain_texts(**bad)
    for shift in (-0.1, 1.1, "much", float("nan")):
        with pytest.raises(ValueError, match=r"domain_shift=.*expected a share from 0 to 1"):
            make_multi_domain_texts(domain_shift=shift)
