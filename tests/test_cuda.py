"""What only a CUDA device can show."""

import numpy as np
import pytest
import torch
from conftest import make_texts

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize(("precision", "atol"), [("float32", 1e-4), ("bfloat16", 2e-2)])
def test_cpu_and_cuda_agree_on_the_same_fitted_weights(make, data, precision, atol):
    X, y, d = data
    clf = make(precision=precision, device="cuda").fit(X, y, domains=d)
    assert next(clf.net_.module_.parameters()).is_cuda
    cuda = clf.predict_proba(X, domains=d)
    cpu = clf.set_params(device="cpu").predict_proba(X, domains=d)
    np.testing.assert_allclose(cuda, cpu, atol=atol)


def test_auto_takes_the_gpu_in_bfloat16_and_leaves_its_generator_alone(make):
    X, y, d = make_texts(48)
    before = torch.cuda.get_rng_state()
    clf = make(precision="auto").fit(X, y, domains=d)
    assert clf.net_.device.startswith("cuda")
    assert clf.net_.dtype == torch.bfloat16
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert clf.score(X, y, domains=d) > 0.8
