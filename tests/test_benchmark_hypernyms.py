"""The term pairs of the benchmarks: drawn as described, from a table or WordNet's archive, and refused if damaged."""

import gzip
import hashlib
import json
import os
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import import_benchmarks

(hypernyms,) = import_benchmarks("lib.hypernyms")
HOME = os.environ.get("SKMFT_DATA_HOME")
REAL = bool(HOME) and (Path(HOME) / "taxonomy" / hypernyms.TABLE).exists()


def tree_rows():
    """Domains as trees: a root, 6 branches, 12 leaves of each; "shared leaf" is in all three."""
    rows = []
    for domain in hypernyms.ROOTS:
        for b in range(6):
            rows.append((domain, f"{domain} b{b}", domain, 1))
            for name in [f"{domain} b{b}l{i}" for i in range(12)] + ["shared leaf"] * (b == 0):
                rows += [(domain, name, f"{domain} b{b}", 1), (domain, name, domain, 2)]
    return rows


@pytest.fixture
def write_table(tmp_path, monkeypatch):
    """Writer of a table, whose counts become the known ones."""
    monkeypatch.setenv("SKMFT_DATA_HOME", str(tmp_path))
    (tmp_path / "taxonomy").mkdir()

    def write(rows, header="domain\thyponym\thypernym\tdistance", encoding="utf-8", counted=None):
        monkeypatch.setattr(hypernyms, "COUNTS", dict(Counter(row[0] for row in counted or rows)))
        text = "\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n"
        (tmp_path / "taxonomy" / hypernyms.TABLE).write_bytes(gzip.compress(text.encode(encoding)))

    return write


def check_pairs(train, test, table):
    """`table`: the (hyponym, hypernym) pairs of the source, regardless of domains and capitals."""
    terms = [{term.casefold() for pair in data.data for term in pair} for data in (train, test)]
    assert not terms[0] & terms[1]
    for data in (train, test):
        labels = Counter(zip(data.domains, data.target))
        for domain in hypernyms.ROOTS:
            assert labels[domain, "hypernym"] == labels[domain, "other"] > 0
        pairs = [(a.casefold(), b.casefold()) for a, b in data.data]
        assert len(set(pairs)) > 0.999 * len(pairs)
        rows = zip(pairs, data.kinds, data.target, data.distances, data.groups, strict=True)
        for (a, b), kind, label, distance, group in rows:
            assert (label == "hypernym") == (kind == "hypernym") == ((a, b) in table) == (distance > 0)
            assert a != b
            assert ((b, a) in table) == (kind == "reversed")
            assert group == (b if kind == "reversed" else a)


def test_pairs_of_a_small_table(write_table):
    write_table(tree_rows())
    table = {(a, b) for _, a, b, _ in tree_rows()}
    seen = []
    for seed in (0, 0, 1, 2):
        train, test = (hypernyms.fetch_hypernym_pairs(s, test_size=0.4, random_state=seed) for s in ("train", "test"))
        check_pairs(train, test, table)
        seen.append(train.data.tolist())
    assert seen[0] == seen[1] != seen[2]
    with pytest.raises(ValueError, match=r"leaves no test pairs of the domain animal.*Raise test_size"):
        hypernyms.fetch_hypernym_pairs("test", test_size=0.001)
    with pytest.raises(ValueError, match=r"leaves no train pairs of the domain animal.*Lower test_size"):
        hypernyms.fetch_hypernym_pairs(test_size=0.999)
    for seed in (np.random.RandomState(2), None):  # of the first, two calls would split the terms in two ways
        with pytest.raises(ValueError, match=r"expected an int, the same for train and test"):
            hypernyms.fetch_hypernym_pairs(random_state=seed)
    with pytest.raises(ValueError, match=r"subset='half'"):
        hypernyms.fetch_hypernym_pairs("half")


def test_co_hyponyms_share_a_parent(write_table):
    write_table(tree_rows())
    data = hypernyms.fetch_hypernym_pairs(test_size=0.1)
    parents = {}
    for _, a, b, distance in tree_rows():
        if distance == 1:
            parents.setdefault(a, set()).add(b)
    siblings = data.data[data.kinds == "co-hyponym"]
    assert len(siblings) >= 10
    assert all(parents[a] & parents[b] for a, b in siblings)
    kinds = Counter(data.kinds)
    assert kinds["reversed"] == kinds["co-hyponym"] <= kinds["random"] <= kinds["reversed"] + 3 * 3


def test_order_of_the_file_does_not_matter(write_table):
    rows = tree_rows()
    write_table(rows)
    data = hypernyms.fetch_hypernym_pairs()
    np.random.default_rng(0).shuffle(rows)
    write_table([tuple(row) for row in rows])
    np.testing.assert_array_equal(hypernyms.fetch_hypernym_pairs().data, data.data)


WORDNET = {  # "puppy" reaches animal by dog in 2 steps, and by young in 3; "Rex" is an instance
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
    monkeypatch.setenv("SKMFT_DATA_HOME", str(tmp_path))
    path = tmp_path / "taxonomy" / hypernyms.ARCHIVE
    path.parent.mkdir()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in WORDNET.items():
            archive.writestr(name, json.dumps(content))
    monkeypatch.setattr(hypernyms, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=r"has 9 pairs of the domain animal, expected about 29679"):
        hypernyms.fetch_hypernym_pairs()
    monkeypatch.setattr(hypernyms, "COUNTS", {"animal": 9, "plant": 1, "vehicle": 1})
    assert {(p.domain, p.term, p.candidate, p.distance) for p in hypernyms.read_wordnet(path)} == {
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
        hypernyms.fetch_hypernym_pairs()


def test_pairs_that_contradict_each_other_are_dropped():
    rows = [("animal", "a", "b", 3), ("plant", "A", "B", 1), ("animal", "c", "c", 1), ("animal", "d", "e", 1)]
    rows += [("animal", "e", "d", 1)]
    assert [pair[:5] for pair in hypernyms.unique(rows)] == [("plant", "A", "B", "hypernym", 1)]


def test_damaged_tables(write_table):
    rows = tree_rows()

    def refused(match, *args, **kwargs):
        write_table(*args, **kwargs)
        with pytest.raises(ValueError, match=match):
            hypernyms.fetch_hypernym_pairs()

    refused(r"has the columns \['domain', 'hyponym', 'hypernym'\], expected", rows, "domain\thyponym\thypernym")
    for bad in (("animal", "a", "b"), ("animal", "a", "b", "far"), ("mineral", "a", "b", 1), ("animal", "", "b", 1)):
        refused(r"oewn_hypernym_pairs.tsv.gz, line 5 is ", [*rows[:3], bad, *rows[3:]])
    refused(r"utf-8", [*rows, ("animal", "\xe9", "animal", 1)], encoding="latin-1")
    fewer = [row for row in rows if row[0] != "vehicle"]
    refused(r"domain counts \{'animal': \d+, 'plant': \d+\}, expected", fewer, counted=rows)


@pytest.mark.skipif(not REAL, reason=f"needs SKMFT_DATA_HOME with taxonomy/{hypernyms.TABLE}")
def test_real_hypernym_pairs():
    path = Path(HOME) / "taxonomy" / hypernyms.TABLE
    table = pd.read_csv(path, sep="\t", keep_default_na=False, quoting=3)
    pairs = {(a.casefold(), b.casefold()) for a, b in zip(table["hyponym"], table["hypernym"]) if a != b}
    train, test = (hypernyms.fetch_hypernym_pairs(subset) for subset in ("train", "test"))
    check_pairs(train, test, pairs)
    positive = Counter(zip(test.domains, test.target))
    assert [positive[domain, "hypernym"] for domain in hypernyms.ROOTS] == [1447, 913, 78]
