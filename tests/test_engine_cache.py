"""What is computed once and kept: results in a folder, rows of float32."""

import os
import tempfile
import warnings

import joblib
import numpy as np
import pytest

from skmft._engine.cache import float_rows, results_in


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


def test_a_full_disk_is_an_error(monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        float_rows(20000, 3, 100)


def double(x):
    CALLS.append(len(x))
    return 2 * x


CALLS = []


@pytest.mark.parametrize("form", [str, lambda path: path, lambda path: joblib.Memory(path, verbose=0)])
def test_a_result_is_computed_once_and_a_damaged_one_anew(tmp_path, form):
    CALLS.clear()
    for x in (np.arange(9.0), np.arange(9.0), np.arange(8.0)):
        np.testing.assert_array_equal(results_in(form(tmp_path)).cache(double)(x), 2 * x)
    assert CALLS == [9, 8]
    if form is str:  # every byte of the file in turn, where it is ours and compressed
        [file] = [f for f in tmp_path.rglob("output.pkl") if len(joblib.load(f)) == 9]
        whole = file.read_bytes()
        for i in range(len(whole)):
            file.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
            with warnings.catch_warnings(action="ignore"):  # joblib says that it computes anew
                np.testing.assert_array_equal(results_in(tmp_path).cache(double)(np.arange(9.0)), 2 * np.arange(9.0))


def test_without_a_location_nothing_is_kept():
    CALLS.clear()
    for memory in (None, joblib.Memory(None)):
        for _ in range(2):
            results_in(memory).cache(double)(np.arange(2.0))
    assert CALLS == [2] * 4
