"""The contrastive loss over domains, against the reference and by what it does to embeddings."""

from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch

from skmft._engine.model import ModelOutput
from skmft._method.contrastive import contrastive_loss
from skmft.recipes import MetaFineTuning


@pytest.mark.parametrize("n_domains", [1, 2, 5])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_contrastive_loss_agrees_with_reference(n_domains, temperature):
    rng = np.random.default_rng(n_domains)
    E = rng.normal(size=(19, 6)).astype(np.float32)
    y, k = rng.integers(3, size=19), rng.integers(n_domains, size=19)
    t = rng.uniform(0, 2, 19).astype(np.float32)
    ours = contrastive_loss(*map(torch.from_numpy, (E, y, k, t)), temperature).item()
    theirs = reference.contrastive_loss(E.tolist(), y, k, t.tolist(), temperature)
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
    assert (ours == 0) == (n_domains == 1)
    batch = {"y": torch.from_numpy(y), "weight": torch.from_numpy(t), "domain": torch.from_numpy(k)}
    output = ModelOutput(torch.zeros(19, 3), torch.from_numpy(E), [])
    terms = MetaFineTuning(0.0, 0.5, contrastive_temperature=temperature).terms(
        SimpleNamespace(heads={}), output, batch
    )
    weight, value = terms["contrastive_loss"]
    assert weight == 0.5 and value.item() == pytest.approx(ours)
    assert terms.keys() == {"label_loss", "contrastive_loss"}


@pytest.mark.parametrize("first", [0.0, 1.0])
@pytest.mark.parametrize(("y", "k"), [([0, 0, 1, 1], [0, 1, 0, 1]), ([0, 0, 0, 1], [0, 0, 0, 0]), ([0] * 4, [1] * 4)])
def test_contrastive_loss_has_finite_gradients_for_equal_and_zero_rows(first, y, k):
    E = torch.tensor([[first, 0, 0]] * 4, requires_grad=True)
    contrastive_loss(E, torch.tensor(y), torch.tensor(k), torch.ones(4)).backward()
    assert torch.isfinite(E.grad).all()


def test_contrast_leaves_rows_of_one_class_and_domain_to_themselves():
    """Whether the second row is like the first or like the fourth, of another class, says nothing about the first."""
    y, k = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 1, 1])
    only_first = torch.tensor([1.0, 0.0, 0.0, 0.0])
    E = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.1, 0.0], [0.7, 0.7, 0.0], [0.0, 0.0, 1.0]])
    near, far = (contrastive_loss(torch.cat([E[:1], E[i : i + 1], E[2:]]), y, k, only_first) for i in (1, 3))
    assert near.item() == pytest.approx(far.item()) and near > 0
    opposite = torch.tensor(
        [[1.0, 0], [1, 0], [1, 0], [-1, 0]]
    )  # the least there is: the third row shares between partners
    assert contrastive_loss(opposite, y, k, torch.ones(4)).item() == pytest.approx(np.log(2) / 3, rel=1e-5)


def test_contrast_draws_classes_together_across_domains(make, data):
    X, y, d = data
    params = {"corruption_weight": 0.0, "adaptation": None, "meta_epochs": 3, "head_init": "random"}

    def separation(weight):
        E = make(contrastive_weight=weight, **params).fit(X, y, domains=d).transform(X)
        E = E / np.linalg.norm(E, axis=1, keepdims=True)
        other, same = d[:, None] != d, y[:, None] == y
        return (E @ E.T)[other & same].mean() - (E @ E.T)[other & ~same].mean()

    assert separation(1.0) > separation(0.0) + 0.05


def test_one_domain_has_no_contrast(make, data):
    X, y, _ = data
    params = {"adaptation": None, "meta_epochs": 1}
    with_, without = (make(contrastive_weight=w, **params).fit(X, y, domains="books") for w in (0.5, 0.0))
    assert "contrastive_loss" not in with_.history_[-1]
    np.testing.assert_array_equal(with_.predict_proba(X), without.predict_proba(X))


@pytest.mark.parametrize("temperature", [0, -1, None])
def test_temperature_is_checked(make, data, temperature):
    X, y, d = data
    with pytest.raises(ValueError, match="'contrastive_temperature' parameter of MetaFineTuning"):
        make(recipe=MetaFineTuning(contrastive_temperature=temperature)).fit(X, y, domains=d)


def test_bfloat16_embeddings_are_compared_in_float32():
    E = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    y, k, t = torch.arange(6) % 2, torch.arange(6) % 3, torch.ones(6)
    loss = contrastive_loss(E, y, k, t)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, contrastive_loss(E.float(), y, k, t))
