"""What is computed once and kept: rows of arrays in a file, rows of float32."""

import tempfile

import joblib
import numpy as np
import pytest

from skmft._engine.cache import RowStore, float_rows


@pytest.mark.parametrize(("most_bytes", "kind"), [(240_000, np.ndarray), (239_999, np.memmap)], ids=["memory", "file"])
def test_rows_of_float32_are_mapped_to_a_file_where_they_are_many(most_bytes, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    E = np.random.default_rng(0).standard_normal((20000, 3)).astype(np.float32)
    stored = float_rows(20000, 3, most_bytes)
    for start in range(0, 20000, 7000):
        stored[start : start + 7000] = E[start : start + 7000]
    assert type(stored) is kind and list(tmp_path.iterdir()) == []  # a file has no name
    np.testing.assert_array_equal(stored, E)
    assert type(stored[np.array([5, 19999])]) is np.ndarray


@pytest.mark.parametrize("form", [str, lambda path: path, lambda path: joblib.Memory(path, verbose=0)])
def test_a_row_is_computed_once(tmp_path, form):
    asked = []

    def compute(rows):
        asked.append(rows.tolist())
        return [np.arange(i, dtype=np.int32) for i in rows]

    keys = [b"zero", b"one", b"two", b"one"]
    first = RowStore(form(tmp_path), "numbers", 1).get(keys[:2], compute, np.int32)
    assert [a.tolist() for a in first] == [[], [0]]
    again = RowStore(form(tmp_path), "numbers", 1).get(keys, compute, np.int32)
    assert [a.tolist() for a in again] == [[], [0], [0, 1], [0]] and again[2].dtype == np.int32
    assert asked == [[0, 1], [2]]
    RowStore(form(tmp_path), "numbers", 2).get(keys[:1], compute, np.int32)  # of another namespace
    assert asked == [[0, 1], [2], [0]]


def test_many_rows(tmp_path):
    keys = [str(i).encode() for i in range(1300)]  # more than one question to the file
    for expected in (1300, 0):
        computed = []
        found = RowStore(tmp_path, "numbers").get(
            keys, lambda rows, seen=computed: seen.extend(rows) or [np.array([i]) for i in rows], np.int64
        )
        assert np.concatenate(found).tolist() == list(range(1300)) and len(computed) == expected


def test_without_a_location_nothing_is_kept():
    for memory in (None, joblib.Memory(None)):
        store = RowStore(memory, "numbers")
        assert store.path is None
        for _ in range(2):
            assert [a.tolist() for a in store.get([b"b"], lambda rows: [rows + 1], np.int64)] == [[1]]


def test_a_failure_keeps_nothing_and_blocks_nobody(tmp_path):
    store = RowStore(tmp_path, "numbers")
    with pytest.raises(ZeroDivisionError):
        store.get([b"a"], lambda rows: 1 / 0, np.int64)
    [array] = store.get([b"a"], lambda rows: [np.array([7])], np.int64)
    assert array.tolist() == [7]
