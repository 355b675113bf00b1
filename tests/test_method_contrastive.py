"""What skmft has beside the paper: the contrastive loss over domains, and the head that starts as a linear probe."""

import numpy as np
import pytest
import reference
import torch
from conftest import make_texts
from sklearn.linear_model import LogisticRegression

from skmft import MetaFineTunedClassifier
from skmft.contrastive import contrastive_loss
from skmft.corruption import MetaFineTuningLoss
from skmft.probe import PROBE_ROWS, linear_probe


def make(model, **params):
    settings = {"meta_epochs": 3, "adaptation": None, "learning_rate": 3e-3, "batch_size": 16, "random_state": 0}
    settings |= {"contrastive_weight": 0.0, "head_init": "random"}
    return MetaFineTunedClassifier(model, precision="float32", **{**settings, **params})


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
    logits = torch.zeros(19, 3)
    batch = {"weight": torch.from_numpy(t), "domain": torch.from_numpy(k)}
    terms = MetaFineTuningLoss(0.0, 0.5, temperature)((logits, None, torch.from_numpy(E)), torch.from_numpy(y), batch)
    assert terms["loss"].item() == pytest.approx(terms["label_loss"].item() + 0.5 * ours, rel=1e-5)


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


def test_contrast_draws_classes_together_across_domains(tiny, data):
    X, y, d = data
    y, d = np.asarray(y), np.asarray(d)

    def separation(weight):
        E = make(tiny, contrastive_weight=weight, corruption_weight=0.0).fit(X, y, domains=d).transform(X)
        E = E / np.linalg.norm(E, axis=1, keepdims=True)
        other, same = d[:, None] != d, y[:, None] == y
        return (E @ E.T)[other & same].mean() - (E @ E.T)[other & ~same].mean()

    assert separation(1.0) > separation(0.0) + 0.05


def test_one_domain_has_no_contrast(tiny, data):
    X, y, _ = data
    with_, without = (make(tiny, contrastive_weight=w).fit(X, y, domains="books") for w in (0.5, 0.0))
    assert "contrastive_loss" not in with_.history_[-1]
    np.testing.assert_array_equal(with_.predict_proba(X), without.predict_proba(X))


@pytest.mark.parametrize("classes", [2, 3])
def test_probe_is_logistic_regression(classes):
    rng = np.random.default_rng(classes)
    y = np.arange(60) % classes
    E = (rng.normal(size=(60, 5)) + 2 * np.eye(5)[y]).astype(np.float32) * 7
    weight = rng.uniform(0.5, 1.5, 60)
    W, b = linear_probe(E, y, weight, classes)
    logits = torch.from_numpy(E) @ W.T + b
    scale = np.linalg.norm(E, axis=1).mean()
    expected = LogisticRegression(max_iter=1000).fit(E / scale, y, sample_weight=weight).predict_proba(E / scale)
    np.testing.assert_allclose(logits.softmax(1).numpy(), expected, atol=1e-4)


def test_probe_of_rows_that_lack_a_class():
    E = np.array([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1]], dtype=np.float32)
    W, b = linear_probe(E, np.array([0, 2, 0, 2]), np.ones(4), 4)
    assert ((torch.from_numpy(E) @ W.T + b).argmax(1) == torch.tensor([0, 2, 0, 2])).all()
    W, b = linear_probe(E, np.zeros(4, dtype=int), np.ones(4), 4)
    assert not W.any() and torch.isfinite(b).all()


@pytest.mark.parametrize("typicality_weighting", [True, False])
@pytest.mark.parametrize("pairs", [False, True])
def test_fit_starts_from_the_probe(tiny, typicality_weighting, pairs):
    """At a learning rate of next to nothing the meta-learner is the pre-trained encoder under a logistic regression."""
    X, y, d = make_texts(40)
    if pairs:
        X = [(x, x[::-1]) for x in X]
    clf = make(
        tiny,
        head_init="probe",
        learning_rate=1e-12,
        typicality_weighting=typicality_weighting,
        pair_encoding="bi",
        class_weight="balanced",
    ).fit(X, y, domains=d)
    E = clf._embed_pretrained(X)
    scale = np.linalg.norm(E, axis=1).mean()
    weight = np.clip(clf.typicality_, 0, None) if typicality_weighting else np.ones(len(y))
    counts = {label: list(y).count(label) for label in set(y)}
    weight = weight * [1 / counts[label] for label in y]
    expected = LogisticRegression(max_iter=1000).fit(E / scale, y, sample_weight=weight / weight.mean())
    np.testing.assert_allclose(clf.predict_proba(X), expected.predict_proba(E / scale), atol=2e-3)
    random = make(tiny, learning_rate=1e-12, pair_encoding="bi").fit(X, y, domains=d)
    assert np.abs(random.predict_proba(X) - clf.predict_proba(X)).max() > 0.05


def test_probe_of_many_rows_reads_some(tiny, data, monkeypatch):
    X, y, d = (list(v) * (PROBE_ROWS // len(data[0]) + 2) for v in data)
    seen = []
    monkeypatch.setattr("skmft.stages.linear_probe", lambda E, *rest: seen.append(len(E)) or linear_probe(E, *rest))
    for weighting in (True, False):
        params = {"head_init": "probe", "meta_epochs": 1, "max_length": 8, "typicality_weighting": weighting}
        make(tiny, **params).fit(X, y, domains=d)
    assert seen == [PROBE_ROWS] * 2


def test_weights_are_interpolated_from_the_probe_to_the_trained(tiny, data):
    X, y, d = data

    def tensors(**params):
        clf = make(tiny, head_init="probe", **params).fit(X, y, domains=d)
        return {n: p.detach() for n, p in clf.net_.module_.named_parameters() if not n.startswith("corruption_head")}

    start, end = tensors(learning_rate=1e-15, weight_interpolation=1.0), tensors(weight_interpolation=1.0)
    for share in (0.25, 0.75):
        for name, tensor in tensors(weight_interpolation=share).items():
            torch.testing.assert_close(tensor, (1 - share) * start[name] + share * end[name])
    assert max((end[n] - start[n]).abs().max() for n in start) > 1e-2
    random = [make(tiny, weight_interpolation=share).fit(X, y, domains=d).predict_proba(X) for share in (0.5, 1.0)]
    np.testing.assert_array_equal(*random)  # a random head is nothing to go back to


def test_probe_leaves_out_rows_of_weight_zero():
    E = np.array([[1.0, 0], [0, 1], [1, 0.1], [0.1, 1], [5, 5]], dtype=np.float32)
    y, weight = np.array([0, 1, 0, 1, 2]), np.array([1.0, 1, 1, 1, 0])
    W, b = linear_probe(E, y, weight, 3)
    assert ((torch.from_numpy(E[:4]) @ W.T + b).argmax(1) == torch.tensor([0, 1, 0, 1])).all()
    assert not W[2].any() and b[2] == b.min()


@pytest.mark.parametrize(
    "params",
    [
        {"contrastive_weight": -1},
        {"contrastive_temperature": 0},
        {"head_init": "zeros"},
        {"weight_interpolation": 0},
        {"weight_interpolation": 1.5},
    ],
    ids=str,
)
def test_bad_parameters_are_named(tiny, data, params):
    X, y, d = data
    with pytest.raises(ValueError, match=next(iter(params))):
        make(tiny, **params).fit(X, y, domains=d)


def test_the_paper_s_recipe_has_no_extension(tiny, data):
    X, y, d = data
    clf = MetaFineTunedClassifier.from_paper(model=tiny, batch_size=16, random_state=0).fit(X, y, domains=d)
    assert set(clf.history_[1]) >= {"label_loss", "corruption_loss"} and "contrastive_loss" not in clf.history_[1]
    assert [h["epochs"] for h in clf.history_[1:]] == [2] * 2 + [6] * 12
    assert clf.get_params()["batch_size"] == 16 and clf.learning_rate == 1e-5
    assert MetaFineTunedClassifier.from_paper(corruption_weight=0.3).corruption_weight == 0.3
    with pytest.raises(TypeError, match="alpha"):
        MetaFineTunedClassifier.from_paper(alpha=1)
