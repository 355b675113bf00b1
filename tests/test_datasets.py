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
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.naive_bayes import MultinomialNB

from skmft import datasets
from skmft.datasets._archives import SOURCES

FETCH = {
    "amazon": datasets.fetch_amazon_reviews,
    "fdu_mtl": datasets.fetch_fdu_mtl,
    "mnli_genres": datasets.fetch_mnli_genres,
    "rated_snippets": datasets.fetch_rated_snippets,
}
GENRES = ["fiction", "government", "slate", "telephone", "travel"]
LABELS = ["contradiction", "entailment", "neutral"]
HOME = os.environ.get("SKMFT_DATA_HOME")


def real(folder, name):
    there = bool(HOME) and (Path(HOME) / folder / name).exists()
    return pytest.mark.skipif(not there, reason=f"needs SKMFT_DATA_HOME with {folder}/{name}")


def know(monkeypatch, folder, path=None, url=None):
    """Have the data set come from `url`, with the sha256 of the file at `path`."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest() if path else None
    changes = {"sha256": digest} | ({"url": url} if url else {})
    monkeypatch.setitem(SOURCES, folder, SOURCES[folder]._replace(**changes))


def refused(folder, path, match, **asked):
    """The loader says what is wrong with the file, and names it."""
    with pytest.raises(ValueError, match=match) as info:
        FETCH[folder](data_home=path.parents[1], **asked)
    assert str(path) in str(info.value)


def files_below(folder):
    return [path.name for path in folder.rglob("*") if path.is_file()]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def make_tar(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def make_zip(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def amazon_files():
    """1,000 reviews per file; each begins with a byte that is not UTF-8, and has an entity."""
    review = "<review>\n<title>\nCaf\xe9 {0}\n</title>\n<rating>\n1.0\n</rating>\n"
    review += "<review_text>\nQ&amp;A {0} {1}\n</review_text>\n</review>\n"
    files = [(f, c) for f in ("books", "dvd", "electronics", "kitchen_&_housewares") for c in ("negative", "positive")]
    whole = {(f, c): "".join(review.format(i, f + c) for i in range(1000)) for f, c in files}
    return {f"sorted_data_acl/{f}/{c}.review": whole[f, c].encode("latin-1") for f, c in files}


def write_amazon(home, monkeypatch=None, files=None):
    return write(home / "amazon/domain_sentiment_data.tar.gz", make_tar(files or amazon_files()))


def write_snippets(home, monkeypatch):
    """Six rows per domain, of which the last is rated neutral; its sha256 becomes the known one."""
    ratings = [-3, -1.5, 0.6, 2, 0.51, 0.5]
    files = {}
    for name in ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets"):
        lines = [f"{i // 2}_{i}\t{rating}\tCaf\xe9 &amp; {name} {i}\n" for i, rating in enumerate(ratings)]
        files[f"hutto_ICWSM_2014/{name}_GroundTruth.txt"] = "".join(lines).encode()
    inner = {"vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz": make_tar(files)}
    path = write(home / "rated_snippets/vaderSentiment-0.5.zip", make_zip(inner))
    know(monkeypatch, "rated_snippets", path)
    return path


def mnli_rows(per_cell=2):
    return [
        {"genre": genre, "premise": f"Caf\xe9 {genre} {i}\u2028.", "hypothesis": f"{label} {i}", "label": label}
        for i in range(per_cell)
        for genre in GENRES
        for label in LABELS
    ]


def write_mnli(home, monkeypatch=None, rows=None, subset="train", encoding="utf-8"):
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in (rows or mnli_rows())]
    return write(home / f"mnli_genres/{subset}.jsonl.gz", gzip.compress("".join(lines).encode(encoding)))


def write_mnli_zip(home, monkeypatch, rows):
    """The public archive's layout, with a row that has no majority label; its sha256 becomes the known one."""
    keys = {"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"}
    public = [{keys.get(k, k): v for k, v in row.items()} | {"pairID": str(i)} for i, row in enumerate(rows)]
    public.insert(3, {**public[0], "gold_label": "-"})
    files = {"__MACOSX/._x": b"", "multinli_1.0/multinli_1.0_dev_matched.jsonl": "\n".join(map(json.dumps, public))}
    path = write(home / "mnli_genres/multinli_1.0.zip", make_zip(files))
    know(monkeypatch, "mnli_genres", path)
    return path


FDU_TRAIN = {"apparel": 1600, "baby": 1500, "books": 1600, "camera_photo": 1597, "dvd": 1600, "electronics": 1598}
FDU_TRAIN |= {"health_personal_care": 1600, "imdb": 1600, "kitchen_housewares": 1600, "magazines": 1570, "music": 1600}
FDU_TRAIN |= {"software": 1515, "sports_outdoors": 1600, "video": 1600, "MR": 1600, "toys_games": 1600}


def fdu_files(domains=("MR", "toys_games"), folder=""):
    files = {}
    for domain in domains:
        for part, number in (("train", FDU_TRAIN[domain]), ("test", 400)):
            lines = [b"%d\ttext , %d .\n" % (i % 2, i) for i in range(number)]
            files[f"{folder}{domain}.task.{part}"] = b"".join(lines)
        lines = [b"Text %d.\n" % i for i in range(475 if domain == "software" else 2000)]
        files[f"{folder}{domain}.task.unlabel"] = b"".join(lines)
    return files


def write_fdu(home, monkeypatch=None, files=None, name="fdu-mtl-sample.tar.gz"):
    return write(home / "fdu_mtl" / name, make_tar(files or fdu_files()))


WRITE = {"amazon": write_amazon, "fdu_mtl": write_fdu, "mnli_genres": write_mnli, "rated_snippets": write_snippets}


@pytest.mark.parametrize("folder", FETCH)
def test_forms_agree(folder, tmp_path, monkeypatch):
    path = WRITE[folder](tmp_path, monkeypatch)
    before = path.read_bytes()
    fetch = FETCH[folder]
    data = fetch(data_home=tmp_path)
    X, y, d = fetch(data_home=str(tmp_path), return_X_y_domains=True)
    for one, other in ((X, data.data), (y, data.target), (d, data.domains)):
        np.testing.assert_array_equal(one, other)
        assert one.dtype == object and len(one) == len(X)
    assert data.target_names == sorted(set(y)) and data.domain_names == sorted(set(d))
    assert "Licence: " in data.DESCR and "Source: " in data.DESCR
    one = data.domain_names[-1]
    np.testing.assert_array_equal(fetch(data_home=tmp_path, domains=[one]).data, X[d == one])
    assert path.read_bytes() == before and files_below(tmp_path) == [path.name]


@pytest.mark.parametrize("folder", FETCH)
def test_bad_arguments(folder, tmp_path):
    for domains in (["nowhere"], "animal", [], 5):
        with pytest.raises(ValueError, match=r"domains=.*; expected a list of names among \["):
            FETCH[folder](domains=domains, data_home=tmp_path)
    with pytest.raises(ValueError, match=r"subset='half'; expected '"):
        FETCH[folder](subset="half", data_home=tmp_path)


@pytest.mark.parametrize("folder", FETCH)
def test_missing_says_where_to_get_it_and_where_to_put_it(folder, tmp_path):
    home = write(tmp_path / "file", b"")  # no folder: nothing can be put there
    with pytest.raises(FileNotFoundError, match=r"no download \(") as info:
        FETCH[folder](data_home=home)
    for part in (SOURCES[folder].url, str(home / folder), "data_home=", "SKMFT_DATA_HOME"):
        assert part in str(info.value)


@pytest.mark.parametrize("folder", FETCH)
@pytest.mark.parametrize("damage", [0.0, 0.3, 0.9, "checksum"])
def test_damaged_files_are_refused(folder, damage, tmp_path, monkeypatch):
    path = WRITE[folder](tmp_path, monkeypatch)
    content = bytearray(path.read_bytes())
    if damage == "checksum":
        content[-6] ^= 1  # of gzip; what tar needs is all there
    else:
        del content[int(damage * len(content)) :]
    path.write_bytes(content)
    refused(folder, path, r"(cannot be used|has sha256).*delete it and get it again")


def test_homes_are_searched_in_order(tmp_path, monkeypatch):
    monkeypatch.setenv("SKMFT_DATA_HOME", str(tmp_path / "given"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_mnli(tmp_path / "given", rows=mnli_rows(2))
    write_mnli(tmp_path / "cache" / "skmft", rows=mnli_rows(3))
    assert len(datasets.fetch_mnli_genres().data) == 30
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SKMFT_DATA_HOME", "~/given")  # as from a file of variables, which no shell expands
    assert len(datasets.fetch_mnli_genres().data) == 30
    monkeypatch.delenv("SKMFT_DATA_HOME")
    assert len(datasets.fetch_mnli_genres().data) == 45


@pytest.fixture
def server(monkeypatch):
    """A server on this machine: `answers` has (status, headers, body) by path, and lists of them for one request each."""
    answers = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers[self.path]
            status, headers, body = answer.pop(0) if isinstance(answer, list) else answer
            self.send_response(status)
            for name, value in ({"Content-Length": len(body)} | headers).items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args):
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between pooch's tries
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        running.answers, running.url = answers, f"http://127.0.0.1:{running.server_port}"
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("folder", ["amazon", "fdu_mtl"])
def test_download_then_offline(folder, server, tmp_path, monkeypatch):
    """The second try succeeds, and keeps the archive packed although the server calls gzip an encoding."""
    name = SOURCES[folder].file
    files = amazon_files() if folder == "amazon" else fdu_files(FDU_TRAIN, "mtl/")
    path = write(tmp_path / name, make_tar(files))
    server.answers[f"/{name}"] = [(503, {}, b""), (200, {"Content-Encoding": "x-gzip"}, path.read_bytes())]
    know(monkeypatch, folder, path if folder == "amazon" else None, f"{server.url}/{name}")
    home = tmp_path / "home"
    data = FETCH[folder](data_home=home)
    assert files_below(home) == [name] and (home / folder / name).read_bytes() == path.read_bytes()
    assert server.answers[f"/{name}"] == []
    again = FETCH[folder](data_home=home)  # asks for nothing more
    np.testing.assert_array_equal(again.data, data.data)
    assert len(data.domain_names) == (4 if folder == "amazon" else 16) and "sample" not in data.DESCR


def half_an_archive():
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        member = tarfile.TarInfo("MR.task.train")
        member.size = 10000
        tar.addfile(member, io.BytesIO(np.random.default_rng(0).bytes(10000)))
    return packed.getvalue()[:5000]


PAGE = b"<html>please log in</html>"
FAILURES = {
    "not there": ("mnli_genres", (404, {}, b""), FileNotFoundError, r"no download \(.*404.*put it in"),
    "cut": ("mnli_genres", (200, {"Content-Length": 105}, b"12345"), FileNotFoundError, r"no download \(.*put it in"),
    "other content": ("mnli_genres", (200, {}, b"other"), ValueError, r"expected 049f507b.*Nothing was kept\.$"),
    "page, with a hash": ("amazon", (200, {}, PAGE), ValueError, r"expected e65d4dae.*can be put in .*amazon by hand"),
    "page": ("fdu_mtl", (200, {}, PAGE), ValueError, r"not a whole gzipped tar .*Nothing was kept.*fdu_mtl by hand"),
    "half": ("fdu_mtl", (200, {}, half_an_archive()), ValueError, r"not a whole gzipped tar .*Nothing was kept"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_failed_download_leaves_nothing(failure, server, tmp_path, monkeypatch):
    folder, answer, error, match = FAILURES[failure]
    server.answers["/file"] = answer
    monkeypatch.setitem(SOURCES, folder, SOURCES[folder]._replace(url=f"{server.url}/file"))
    with pytest.raises(error, match=match) as info:
        FETCH[folder](data_home=tmp_path)
    assert f"{server.url}/file" in str(info.value)
    assert files_below(tmp_path) == []


def test_amazon_text_is_decoded(tmp_path):
    write_amazon(tmp_path)
    data = datasets.fetch_amazon_reviews(data_home=tmp_path)
    assert data.data[0] == "Caf\xe9 0\nQ&A 0 booksnegative"
    cells = {(domain, label): 1000 for domain in data.domain_names for label in data.target_names}
    assert len(cells) == 8 and Counter(zip(data.domains, data.target)) == cells


def test_damaged_amazon_archives(tmp_path):
    name = "sorted_data_acl/books/negative.review"
    files = amazon_files()
    first, second, rest = files[name].split(b"</review>\n", 2)
    halves = first[: first.index(b"<rating>")] + b"</review>\n<review>\n" + first[first.index(b"<rating>") :]
    changed = {
        r"negative.review has 999 reviews, 999 of them with .*, expected 1000 of both": second + b"</review>\n" + rest,
        r"negative.review has 0 reviews": files[name].decode("latin-1").encode("utf-16"),
        r"has 1002 reviews, 1000 of them": b"</review>\n".join([halves, second, second, rest]),  # a title, then a body
    }
    for match, content in changed.items():
        refused("amazon", write_amazon(tmp_path, files={**files, name: content}), match)
    path = write_amazon(tmp_path, files={n: c for n, c in files.items() if "/dvd/" not in n})
    refused("amazon", path, r"dvd/negative.review")
    assert set(datasets.fetch_amazon_reviews(data_home=tmp_path, domains=["books"]).domains) == {"books"}


@real("amazon", "domain_sentiment_data.tar.gz")
def test_real_amazon_reviews():
    data = datasets.fetch_amazon_reviews()
    assert len(data.data) == 8000 and len(set(data.data)) == 7854  # the others are repeats
    assert all(text.strip() and "<review_text>" not in text for text in data.data)


def test_snippets_by_hand(tmp_path, monkeypatch):
    path = write_snippets(tmp_path, monkeypatch)
    data = datasets.fetch_rated_snippets(data_home=tmp_path, domains=["nyt"])  # without the neutral one
    assert data.data.tolist() == [f"Caf\xe9 & nytEditorialSnippets {i}" for i in range(5)]
    assert data.target.tolist() == ["negative"] * 2 + ["positive"] * 3
    assert data.groups.tolist() == ["nyt 0", "nyt 0", "nyt 1", "nyt 1", "nyt 2"]
    assert data.ratings.dtype == float and data.ratings.tolist() == [-3, -1.5, 0.6, 2, 0.51]
    path.write_bytes(path.read_bytes() + b" ")
    refused("rated_snippets", path, r"has sha256 .*, expected .*delete it")


def test_pip_is_told_the_hash_and_what_it_brings_is_kept(tmp_path, monkeypatch):
    whole = write_snippets(tmp_path, monkeypatch)

    def bring(command, **kwargs):
        requirements = Path(command[command.index("--requirement") + 1]).read_text()
        assert requirements == f"vaderSentiment==0.5 --hash=sha256:{SOURCES['rated_snippets'].sha256}\n"
        write(Path(command[command.index("--dest") + 1]) / whole.name, whole.read_bytes())
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", bring)
    assert len(datasets.fetch_rated_snippets(data_home=tmp_path / "home").data) == 20
    assert files_below(tmp_path / "home") == [whole.name]


@pytest.mark.parametrize("brings", [None, b"other"])
def test_pip_fails_or_finds_something_else(brings, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    if brings:
        write(tmp_path / "vaderSentiment-0.5.zip", brings)
    with pytest.raises(FileNotFoundError, match=r"(?s)no download \(pip says ERROR: .*put it in") as info:
        datasets.fetch_rated_snippets(data_home=tmp_path / "home")
    assert (SOURCES["rated_snippets"].sha256 in str(info.value)) == (brings is not None)
    assert files_below(tmp_path / "home") == []


def test_real_rated_snippets():
    try:
        data = datasets.fetch_rated_snippets()
    except FileNotFoundError as error:
        pytest.skip(f"needs the rated snippets: {error}")
    assert Counter(data.domains) == {"amazon": 2943, "movies": 10043, "nyt": 2788, "tweets": 3362}
    np.testing.assert_array_equal(data.target == "positive", data.ratings > 0)
    assert (np.abs(data.ratings) > 0.5).all()
    assert all(text == text.strip() for text in data.data)
    assert all(group.startswith(f"{domain} ") for group, domain in zip(data.groups, data.domains))


def test_mnli_archive_and_copy_agree(tmp_path, monkeypatch):
    rows = mnli_rows(655)[:9815]
    write_mnli(tmp_path / "a", rows=rows, subset="dev_matched")
    write_mnli_zip(tmp_path / "b", monkeypatch, rows)
    copy, public = (datasets.fetch_mnli_genres(data_home=tmp_path / home, subset="dev_matched") for home in "ab")
    for data in (copy, public):
        np.testing.assert_array_equal(data.data, public.data)
        np.testing.assert_array_equal(data.target, public.target)
        np.testing.assert_array_equal(data.groups, data.data[:, 0])
        assert "sample of" not in data.DESCR and "dev_matched: 9,815 pairs of 5 genres" in data.DESCR
    sorted_rows = sorted(rows, key=lambda row: row["genre"])  # rows come domain by domain
    assert public.data.tolist() == [[row["premise"], row["hypothesis"]] for row in sorted_rows]
    write_mnli(tmp_path / "c")
    assert (
        "a sample of 0% of the 392,702 rows (fiction 6, gov"
        in datasets.fetch_mnli_genres(data_home=tmp_path / "c").DESCR
    )


def test_damaged_mnli(tmp_path, monkeypatch):
    rows = mnli_rows()
    changed = {
        r"no rows.*\('slate', 'contradiction'\)": [row for row in rows if row["genre"] != "slate"],
        r"should have none: \[\('sport', 'contradiction'\)\]": [*rows, {**rows[0], "genre": "sport"}],
        r"KeyError: 'label'": [*rows, {k: v for k, v in rows[4].items() if k != "label"}],
        r"not all texts are strings": [*rows, {**rows[1], "premise": None}],
        r"TypeError": [*rows, ["not", "a", "row"]],
    }
    for match, other in changed.items():
        refused("mnli_genres", write_mnli(tmp_path, rows=other), match)
    path = write_mnli(tmp_path, rows=[{**rows[0], "premise": "Caf\xe9"}], encoding="latin-1")
    refused("mnli_genres", path, r"UnicodeDecodeError")
    path = write_mnli(tmp_path, subset="dev_matched")  # only of train may there be a sample
    refused("mnli_genres", path, r"30 rows with a label, expected 9815", subset="dev_matched")
    path = write_mnli_zip(tmp_path, monkeypatch, rows)
    path.write_bytes(path.read_bytes() + b" ")
    refused("mnli_genres", path, r"has sha256 .*, expected")


@real("mnli_genres", "train.jsonl.gz")
def test_real_mnli():
    train = datasets.fetch_mnli_genres()
    if len(train.data) == 25072:
        assert "sample of 6% of the 392,702 rows" in train.DESCR
    test = datasets.fetch_mnli_genres(subset="dev_matched")
    assert Counter(test.target) == {"contradiction": 3213, "entailment": 3479, "neutral": 3123}
    for data in (train, test):
        assert data.domain_names == GENRES and data.data.shape == (len(data.target), 2)


def test_fdu_subsets_and_encodings(tmp_path):
    write_fdu(tmp_path)
    sizes = {s: len(datasets.fetch_fdu_mtl(data_home=tmp_path, subset=s).data) for s in ("train", "test", "unlabeled")}
    assert sizes == {"train": 3200, "test": 800, "unlabeled": 4000}
    data = datasets.fetch_fdu_mtl(data_home=tmp_path, domains=["MR"])
    assert (data.data[1], data.target[1]) == ("text , 1 .", "positive")
    assert "sample with 2 of the 16 domains" in data.DESCR
    unlabelled = datasets.fetch_fdu_mtl(data_home=tmp_path, subset="unlabeled")
    assert set(unlabelled.target) == {None} and unlabelled.target_names == [] and unlabelled.data[0] == "Text 0."
    files = fdu_files()
    odd = b"1\tcaf\xe9 \x96 ok\r\n0\tcaf\xc3\xa9 \xe2\x80\x93\n1\t\xef\xbb\xbfbom\x81\n"  # as in the source
    files["MR.task.train"] = odd + files["MR.task.train"].split(b"\n", 3)[3]
    write_fdu(tmp_path, files=files)
    data = datasets.fetch_fdu_mtl(data_home=tmp_path)
    assert data.data[:2].tolist() == ["caf\xe9 \u2013 ok", "caf\xe9 \u2013"] and "bom" in data.data[2]
    assert data.target[:3].tolist() == ["positive", "negative", "positive"]


def test_damaged_fdu(tmp_path):
    files = fdu_files()
    name = "MR.task.train"
    good = files[name]
    changed = [(good.replace(b"0\ttext , 4 .", bad), r"train, line 5 is") for bad in (b"2\tx", b"none", b"\tx", b"")]
    changed += [
        (good.split(b"\n", 1)[1], r"MR.task.train has 1599 rows, expected 1600"),
        (good.replace(b"0\t", b"1\t"), r"has labels \{'positive': 1600\}, expected about as many"),
        (good.decode().encode("utf-16"), r"MR.task.train has zero bytes"),
    ]
    for content, match in changed:
        refused("fdu_mtl", write_fdu(tmp_path, files={**files, name: content}), match)
    lacking = write_fdu(tmp_path)
    with pytest.raises(ValueError, match=r"lacks the domains \['books'\] .* put that") as info:
        datasets.fetch_fdu_mtl(data_home=tmp_path, domains=["MR", "books"])
    assert str(lacking) in str(info.value) and "delete" not in str(info.value)
    public = write_fdu(tmp_path, name="fudan-mtl-dataset.tar.gz")  # which should have all
    with pytest.raises(ValueError, match=r"lacks the domains \['apparel', 'baby'"):
        datasets.fetch_fdu_mtl(data_home=tmp_path)
    assert public.exists()


@real("fdu_mtl", "fdu-mtl-sample.tar.gz")
def test_real_fdu():
    data = datasets.fetch_fdu_mtl()
    assert data.domain_names == ["MR", "toys_games"]
    counts = {("MR", "negative"): 822, ("MR", "positive"): 778, ("toys_games", "negative"): 806}
    assert Counter(zip(data.domains, data.target)) == {**counts, ("toys_games", "positive"): 794}
    assert any("clich\xe9s" in text for text in data.data)
    assert not any(ord(c) in range(0x80, 0xA0) for text in data.data for c in text)


@pytest.mark.parametrize("shift", [0.0, 0.3, 1.0])
def test_the_domain_shift_is_the_one_asked_for(shift):
    X, y, d = datasets.make_multi_domain_texts(3000, 3, 2, domain_shift=shift, random_state=0)
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
        X, y, d = datasets.make_multi_domain_texts(1800, 3, 2, domain_shift=shift, random_state=1)
        counts = CountVectorizer().fit_transform(X)
        here = d == "domain 0"
        accuracy.append(MultinomialNB().fit(counts[~here], y[~here]).score(counts[here], y[here]))
    assert accuracy[0] == 1 and 0.4 < accuracy[2] < 0.6 and accuracy[2] < accuracy[1] < 1


def test_synthetic_texts_are_seeded_and_checked():
    a, b, c = (datasets.make_multi_domain_texts(50, 4, 3, random_state=s) for s in (0, 0, 1))
    for one, other in zip(a, b):
        np.testing.assert_array_equal(one, other)
    assert (a[0] != c[0]).any()
    assert len(datasets.make_multi_domain_texts(1, 1, 2, n_words=1)[0][0].split()) == 3
    sizes = ({"n_samples": 0}, {"n_domains": 1.5}, {"n_classes": 1}, {"n_words": 0})
    for bad in sizes:
        with pytest.raises(ValueError, match=f"'{next(iter(bad))}' parameter .* must be an int in the range"):
            datasets.make_multi_domain_texts(**bad)
    for shift in (-0.1, 1.1, "much", float("nan")):
        with pytest.raises(ValueError, match=r"'domain_shift' parameter .* must be a float in the range \[0"):
            datasets.make_multi_domain_texts(domain_shift=shift)
