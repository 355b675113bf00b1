"""A search over a Dask cluster (two local worker processes): the same scores, and data sent once."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from dask.distributed import Client, LocalCluster, get_task_stream
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV

pytestmark = pytest.mark.slow  # the workers take a while to start
README = Path(__file__).resolve().parents[1] / "README.md"
GRID = {"corruption_weight": [0, 1]}
TASKS = 4  # candidates x folds


class CountedFrame(pd.DataFrame):
    """Counts how often it is pickled in this process; arrives as a plain DataFrame."""

    sent: list[int] = []

    def __reduce_ex__(self, protocol):
        self.sent.append(len(self))
        return pd.DataFrame, (self.to_dict("list"),)


class CountedTexts(Sequence):
    """A lazy X, small when pickled; counts it, and arrives as a list."""

    def __init__(self, rows):
        self.rows, self.sent = rows, []

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, key):
        return self.rows[key]

    def __reduce__(self):
        self.sent.append(len(self))
        return list, (self.rows,)

    def __dask_tokenize__(self):  # else Dask also pickles it to name it
        return "texts", len(self), id(self)


@pytest.fixture(scope="module")
def client():
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def one_thread():
    """This process as the workers are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def search(clf):
    return GridSearchCV(clf, GRID, cv=2, error_score="raise", refit=False)


def scores(fitted_search):
    return np.stack([fitted_search.cv_results_[f"split{i}_test_score"] for i in range(2)])


def test_same_scores_and_data_sent_once(make, data, client, one_thread):
    threads = client.run(torch.get_num_threads)
    assert len(threads) == 2 and set(threads.values()) == {torch.get_num_threads()} == {1}
    X, y, d = data
    frame = CountedFrame({"text": X, "domain": d})
    clf = make(domain_column="domain", meta_epochs=2, head_init="random")  # so that scores differ
    expected = scores(search(clf).fit(frame, y))
    assert len(np.unique(expected)) > 1
    CountedFrame.sent.clear()
    with parallel_config("dask", scatter=[frame]):
        spread = search(clf).fit(frame, y)
    assert len(CountedFrame.sent) == 1
    np.testing.assert_array_equal(scores(spread), expected)
    with get_task_stream(client) as stream, parallel_config("dask", scatter=[frame]):
        search(clf).fit(frame, y)
    assert len({task["worker"] for task in stream.data}) == 2  # both took part


@pytest.mark.filterwarnings("ignore:domains= was not given")
def test_a_lazy_X_has_to_be_named_to_be_sent_once(make, data, client, one_thread):
    X, y, _ = data
    clf = make(meta_epochs=1, adaptation=None)
    texts = CountedTexts(X)
    expected = scores(search(clf).fit(texts, y))
    with parallel_config("dask", scatter=[texts]):
        named = search(clf).fit(texts, y)
    assert len(texts.sent) == 1
    np.testing.assert_array_equal(scores(named), expected)
    texts.sent.clear()
    with parallel_config("dask"):
        search(clf).fit(texts, y)
    assert len(texts.sent) >= TASKS


def test_the_example_of_the_readme(make, data, client, monkeypatch):
    X, y, d = data
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    [block] = [b for b in blocks if "dask" in b]
    started = []

    def same_cluster(**size):  # starting another of the same size takes a minute
        started.append(size)
        return Client(client.scheduler.address)

    monkeypatch.setattr("dask.distributed.Client", same_cluster)
    grid = GridSearchCV(make(domain_column="domain", meta_epochs=1), GRID, cv=2, error_score="raise")
    exec(compile(block, str(README), "exec"), {"search": grid, "frame": pd.DataFrame({"text": X, "domain": d}), "y": y})
    assert started == [{"n_workers": 2, "threads_per_worker": 1}]
    assert len(grid.cv_results_["mean_test_score"]) == 2
    assert grid.best_estimator_.meta_learner_ is not None
