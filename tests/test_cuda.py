"""What only a CUDA device can show."""

import gc
import os
import subprocess
import sys

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_texts
from sklearn.model_selection import GridSearchCV

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("precision", "atol"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_cpu_and_cuda_agree_on_the_same_fitted_weights(make, data, precision, atol):
    X, y, d = data
    clf = make(precision=precision, device="cuda").fit(X, y, domains=d)
    assert next(clf.meta_learner_.parameters()).is_cuda
    cuda = clf.predict_proba(X, domains=d)
    cpu = clf.set_params(device="cpu").predict_proba(X, domains=d)
    np.testing.assert_allclose(cuda, cpu, atol=atol)


def test_auto_takes_the_gpu_in_bfloat16_and_leaves_its_generator_alone(make):
    X, y, d = make_texts(48)
    before = torch.cuda.get_rng_state()
    clf = make(precision="auto", device="auto").fit(X, y, domains=d)
    assert next(clf.meta_learner_.parameters()).is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert clf.score(X, y, domains=d) > 0.8


def test_finished_candidates_hold_no_gpu_memory(make, data):
    X, y, d = data
    make(device="cuda").fit(X, y, domains=d)  # what the device's libraries take once and keep
    gc.collect()
    before = torch.cuda.memory_allocated()
    frame = pd.DataFrame({"text": X, "domain": d})
    search = GridSearchCV(make(domain_column="domain", device="cuda"), {"corruption_weight": [0, 0.1, 1]}, cv=2)
    search.fit(frame, y)
    gc.collect()
    module = search.best_estimator_.meta_learner_
    own = sum(t.nbytes for t in (*module.parameters(), *module.buffers()))
    assert torch.cuda.memory_allocated() - before < 1.1 * own + 2**20


def test_pickle_moves_to_a_machine_without_gpu(make, data, tmp_path):
    X, y, d = data
    clf = make(precision="float32", device="cuda").fit(X, y, domains=d)
    joblib.dump(clf, tmp_path / "clf.joblib")
    code = (
        "import sys, joblib, torch; assert not torch.cuda.is_available(); clf = joblib.load(sys.argv[1]); "
        "clf.set_params(device='cpu'); print(clf.predict_proba(['a fine story'])[0, 0])"
    )
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, str(tmp_path / "clf.joblib")]
    answer = subprocess.run(command, env=hidden, capture_output=True, text=True, check=True).stdout
    np.testing.assert_allclose(float(answer), clf.predict_proba(["a fine story"])[0, 0], atol=1e-4)
