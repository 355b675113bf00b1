"""The benchmarks' training pools, frozen test rows and few-shot draws."""

import os
from pathlib import Path

import pandas as pd
import pytest
from conftest import import_benchmarks
from sklearn.utils import Bunch

from skmft import datasets
from skmft.datasets import make_multi_domain_texts

HOME = os.environ.get("SKMFT_DATA_HOME")
FILES = {
    "amazon": "amazon/domain_sentiment_data.tar.gz",
    "mnli": "mnli_genres/train.jsonl.gz",
    "hypernyms": "taxonomy/oewn_hypernym_pairs.tsv.gz",
    **{f"hypernyms {seed}": "taxonomy/oewn_hypernym_pairs.tsv.gz" for seed in (1, 2, 3, 4)},
}


@pytest.fixture(scope="module")
def tasks():
    return import_benchmarks("lib.tasks")[0]


def make_pool(n_classes=3):
    X, y, d = make_multi_domain_texts(600, 4, n_classes, random_state=0)
    return pd.DataFrame({"text": X, "y": y, "domain": d, "group": [i // 2 for i in range(600)]})


def test_draw_is_balanced_seeded_and_keeps_groups_apart(tasks):
    pool = make_pool()
    before = pool.copy()
    for shots in (3, 8, 16, 64):
        drawn, rest = tasks.draw(pool, shots, 0)
        assert drawn.groupby("domain").size().tolist() == [shots] * 4
        cells = drawn.groupby(["domain", "y"]).size()
        assert cells.max() - cells.min() <= (shots % 3 > 0)
        assert drawn["y"].value_counts().max() - drawn["y"].value_counts().min() <= 1
        assert not set(drawn["group"]) & set(rest["group"])
        pd.testing.assert_frame_equal(tasks.draw(pool, shots, 0)[0], drawn)
        assert not tasks.draw(pool, shots, 1)[0].equals(drawn)
    everything, rest = tasks.draw(pool, None, 0)
    assert sorted(everything["text"]) == sorted(pool["text"]) and len(rest) == 0
    pd.testing.assert_frame_equal(pool, before)
    with pytest.raises(ValueError, match=r"domain 0, class 0: 100 rows asked for, the pool has 50"):
        tasks.draw(pool, 300, 0)


def test_unknown_tasks_are_refused(tasks):
    for task in ("books", "mnli 1", "hypernyms x"):
        with pytest.raises(ValueError, match="expected one of"):
            tasks.load(task)


@pytest.fixture
def small(tasks, tmp_path, monkeypatch):
    """Snippets of two domains, in documents of two sentences and with an exact repeat; no list of test rows yet."""
    pool = make_pool(2).rename(columns={"domain": "domains", "y": "target", "group": "groups"})
    pool = pd.concat([pool, pool[:1]])
    columns = {n: pool[n].to_numpy() for n in ("target", "domains", "groups")}
    monkeypatch.setattr(datasets, "fetch_rated_snippets", lambda: Bunch(data=pool["text"].to_numpy(), **columns))
    monkeypatch.setattr(tasks, "HERE", tmp_path)
    monkeypatch.setitem(tasks.TEST_PER_CELL, "snippets", 10)
    return pool


def test_test_rows_are_frozen_once(tasks, small, tmp_path):
    listed = tmp_path / "snippets_test_hashes.txt"
    with pytest.raises(FileNotFoundError, match=r"snippets_test_hashes.txt is not there.*freeze=True"):
        tasks.split("snippets")
    assert not listed.exists()
    pool, test = tasks.split("snippets", freeze=True)
    assert set(test.groupby(["domain", "y"]).size()) == {10} and len(test) == 80
    assert sorted(test["hash"]) == listed.read_text().split()
    assert not set(pool["text"]) & set(test["text"])
    assert not set(pool["group"]) & set(test["group"])  # the other sentence of a test row's document is on no side
    assert len(pool) + len(test) < small["text"].nunique()
    before = listed.read_text()
    for frozen in (False, True):
        again = tasks.split("snippets", freeze=frozen)
        pd.testing.assert_frame_equal(again[0], pool)
        pd.testing.assert_frame_equal(again[1], test)
    assert listed.read_text() == before
    listed.write_text(before + "0123456789abcdef\n")
    with pytest.raises(ValueError, match="1 of its 81 test rows are not in the data"):
        tasks.split("snippets")


@pytest.mark.parametrize(
    "task", [pytest.param(t, marks=pytest.mark.slow if t.startswith("hypernyms") else ()) for t in FILES]
)
def test_real_splits(tasks, task):
    if not HOME or not (Path(HOME) / FILES[task]).exists():
        pytest.skip(f"needs SKMFT_DATA_HOME with {FILES[task]}")
    pool, test = tasks.split(task)  # fails where the data lack a row of the frozen list
    texts = tasks.text_columns(pool)
    assert list(pool.columns) == list(test.columns) == [*texts, "y", "domain", "group", "part", "hash"]
    assert not set(pool["group"]) & set(test["group"])
    assert not set(pool["hash"]) & set(test["hash"])
    for frame in (pool, test):
        assert not frame.duplicated(texts).any()
    cells = test.groupby(["domain", "y"]).size().unstack()
    assert (cells.nunique(axis=1) == 1).all()
    if task == "mnli":
        assert set(cells.to_numpy().ravel()) == {133}
        assert not set(pool["text"]) & set(test["text"])
    if task.startswith("hypernyms"):
        sides = [{t.casefold() for column in texts for t in frame[column]} for frame in (pool, test)]
        assert not sides[0] & sides[1]
    lists = tasks.HERE.glob(f"{task.split()[0]}*_test_hashes.txt")
    tested = {h for path in lists for h in path.read_text().split()}
    untested = tasks.never_tested(task)
    assert not set(untested["hash"]) & tested
    either = {tasks.text_hash("\t".join(pair)) for row in untested[texts].to_numpy() for pair in (row, row[::-1])}
    assert not either & tested
    assert len(untested) == len(pool) or task.startswith("hypernyms")
    if task.startswith("hypernyms"):
        drawn, rest = tasks.draw(pool, 16, 5)
        left = tasks.without_terms_of(rest, drawn)
        sides = [{t.casefold() for column in texts for t in frame[column]} for frame in (left, drawn)]
        assert len(left) > 1000 and not sides[0] & sides[1]
    drawn, _ = tasks.draw(pool, 64, 5)
    assert drawn.groupby("domain").size().unique().tolist() == [64]
    X = tasks.inputs(drawn)
    assert len(X) == len(drawn) and (X.ndim == 1 or list(X) == texts)
