"""A fit on real weights, a save, a load and a search, with whatever versions are installed: .ci/lowest.sh takes the lowest.

    python .ci/check_lowest.py

It uses the public names alone, and synthetic texts, so that it needs no network; then it prints the versions that ran.
"""

import re
import tempfile
import time
import tomllib
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import GridSearchCV

from skmft import MetaFineTunedClassifier
from skmft.datasets import make_multi_domain_texts

PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def fit_save_load(adaptation: str) -> float:
    """Seconds to fit and adapt, and to find the same probabilities in what was saved and loaded again."""
    start = time.perf_counter()
    X, y, domains = make_multi_domain_texts(48, n_domains=2, domain_shift=0.3, random_state=0)
    clf = MetaFineTunedClassifier(meta_epochs=4, adaptation=adaptation, corruption_weight=0.1, random_state=0)
    clf.fit(X[:32], y[:32], domains=domains[:32])
    assert clf.score(X[:32], y[:32], domains=domains[:32]) > 0.6, "the training rows were not learned"
    with tempfile.TemporaryDirectory() as folder:
        clf.save(Path(folder) / "model")
        loaded = MetaFineTunedClassifier.load(Path(folder) / "model")  # reads the domains' weights when asked for
        for told in (None, domains[32:]):
            probabilities = [model.predict_proba(X[32:], domains=told) for model in (loaded, clf)]
            np.testing.assert_array_equal(*probabilities)
            assert (loaded.predict(X[32:], domains=told) == clf.classes_[probabilities[1].argmax(axis=1)]).all()
    return time.perf_counter() - start


def search() -> float:
    """Seconds to search a weight, with domains as a column."""
    start = time.perf_counter()
    X, y, domains = make_multi_domain_texts(24, n_domains=2, domain_shift=0.3, random_state=0)
    frame = pd.DataFrame({"text": X, "domain": domains})
    clf = MetaFineTunedClassifier(meta_epochs=1, adaptation=None, domain_column="domain", random_state=0)
    found = GridSearchCV(clf, {"corruption_weight": [0, 0.1]}, cv=2, error_score="raise").fit(frame, y)
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()
    assert set(found.predict(frame)) <= set(y)
    return time.perf_counter() - start


if __name__ == "__main__":
    for adaptation in ("full", "lora"):
        print(f"fit, save, load with adaptation={adaptation!r}: {fit_save_load(adaptation):.0f} s")
    print(f"search: {search():.0f} s")
    required = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    print("with", ", ".join(f"{name} {version(name)}" for name in (re.split("[<>=!~]", r)[0] for r in required)))
