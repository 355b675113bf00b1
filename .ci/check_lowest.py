"""Does skmft work with the versions that are installed? .ci/lowest.sh installs the lowest ones that it admits.

    python .ci/check_lowest.py

On real weights and synthetic texts, so that nothing is downloaded, it fits, saves, loads, searches (here and on Dask), exports
and trains in two processes; at the end it prints the versions that ran. It keeps to public names.
"""

import re
import subprocess
import sys
import tempfile
import time
import tomllib
from importlib.metadata import version
from itertools import chain
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
from dask.distributed import Client
from joblib import parallel_config
from sklearn.model_selection import GridSearchCV

from skmft import MetaFineTunedClassifier
from skmft.datasets import make_multi_domain_texts

X, y, domains = make_multi_domain_texts(48, n_domains=2, domain_shift=0.3, random_state=0)
LAUNCH = "-m torch.distributed.run --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=localhost:0".split()


def fit(**params) -> MetaFineTunedClassifier:
    clf = MetaFineTunedClassifier(corruption_weight=0.1, precision="float32", random_state=0, **params)
    return clf.fit(X[:32], y[:32], domains=domains[:32])


def fit_save_load(folder: Path, adaptation: str) -> None:
    clf = fit(meta_epochs=4, adaptation=adaptation)
    assert clf.score(X[:32], y[:32], domains=domains[:32]) > 0.6, "the training rows were not learned"
    clf.save(folder / "model")
    loaded = MetaFineTunedClassifier.load(folder / "model")
    for told in (None, domains[32:]):
        probabilities = [model.predict_proba(X[32:], domains=told) for model in (loaded, clf)]
        np.testing.assert_array_equal(*probabilities)
        assert (loaded.predict(X[32:], domains=told) == clf.classes_[probabilities[1].argmax(axis=1)]).all()


def search() -> None:
    frame = pd.DataFrame({"text": X[:24], "domain": domains[:24]})
    clf = MetaFineTunedClassifier(meta_epochs=1, adaptation=None, domain_column="domain", random_state=0)
    found = GridSearchCV(clf, {"corruption_weight": [0, 0.1]}, cv=2, error_score="raise").fit(frame, y[:24])
    assert np.isfinite(found.cv_results_["mean_test_score"]).all()
    assert set(found.predict(frame)) <= set(y)


def search_on_dask() -> None:
    with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None), parallel_config("dask"):
        search()


def export(folder: Path) -> None:
    clf = fit(meta_epochs=1, adaptation=None)
    np.testing.assert_allclose(clf.to_sentence_transformer().encode(list(X)), clf.transform(X), atol=1e-5)
    clf.to_onnx(folder / "model.onnx")
    inputs = onnxruntime.InferenceSession(folder / "model.onnx").get_inputs()
    assert {"input_ids", "attention_mask"} <= {each.name for each in inputs}


def two_processes() -> None:
    subprocess.run([sys.executable, *LAUNCH, __file__, "one of two"], check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        for what, *args in (
            (fit_save_load, Path(name) / "full", "full"),
            (fit_save_load, Path(name) / "lora", "lora"),
            (search,),
            (search_on_dask,),
            (export, Path(name)),
            (two_processes,),
        ):
            start = time.perf_counter()
            what(*args)
            print(
                f"{what.__name__}({', '.join(str(a) for a in args[1:])}): {time.perf_counter() - start:.0f} s",
                flush=True,
            )
    project = tomllib.loads((Path(__file__).resolve().parents[1] / "pyproject.toml").read_text())["project"]
    required = chain(project["dependencies"], *project["optional-dependencies"].values())
    names = sorted({re.split(r"[\[<>=]", line)[0] for line in required} - {"setfit", "skmft"})
    print("with", ", ".join(f"{name} {version(name)}" for name in names))


if __name__ == "__main__":
    if sys.argv[1:]:
        fit(meta_epochs=1, adaptation=None, distributed=True)
    else:
        main()
