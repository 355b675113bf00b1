"""The network: layers, label head; and all families of encoders at work."""

import numpy as np
import pytest
import torch
from conftest import DEPTH, FAMILIES, make_texts

from skmft._engine.encoder import find_encoder, load_encoder
from skmft._engine.model import (
    TextClassifier,
    layer_indices,
    reads_token_types,
    with_tensors,
)
from skmft.recipes import MetaFineTuning


def test_layer_indices():
    assert layer_indices((1, -1), 6) == [1, 5]
    with pytest.raises(ValueError, match=r"layer 6 does not exist; the model has 6 layers, numbered 0 to 5"):
        layer_indices((6,), 6)
    with pytest.raises(ValueError, match="names a layer twice"):
        layer_indices((5, -1), 6)


@pytest.mark.parametrize("family", FAMILIES)
def test_token_types_only_where_the_model_has_them(tiny_models, family):
    encoder = load_encoder(find_encoder(tiny_models[family]))
    assert reads_token_types(encoder) == (family == "bert")


@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_layers_agree_with_the_hidden_states_that_hooks_see(tiny_models, family):
    encoder = load_encoder(find_encoder(tiny_models[family]))
    module = TextClassifier(encoder, 2).eval()
    ids, mask = torch.randint(5, 30, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    module.layers = list(range(DEPTH))
    chosen = module(input_ids=ids, attention_mask=mask).layers
    seen = []
    layers = next(m for m in encoder.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == DEPTH)
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    last = module.embed(input_ids=ids, attention_mask=mask)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(chosen[-1], last, atol=1e-6)
    for i in range(DEPTH - 1):  # the last layer may be followed by a norm
        assert torch.allclose(chosen[i], seen[i].mean(1), atol=1e-5)


QUICK = {  # the rest is slow, and tells little more
    ("bert", "mean", "cross"),
    ("roberta", "cls", None),
    ("distilbert", "mean", "bi"),
    ("deberta-v3", "cls", "cross"),
    ("mpnet", "mean", None),
    ("modernbert", "cls", "bi"),
}
ALL = [
    (family, pooling, pairs) for family in FAMILIES for pooling in ("mean", "cls") for pairs in (None, "cross", "bi")
]


@pytest.mark.parametrize(
    ("family", "pooling", "pairs"),
    [pytest.param(*case, marks=[] if case in QUICK else pytest.mark.slow, id="-".join(map(str, case))) for case in ALL],
)
def test_all_families_fit_and_predict(make, tiny_models, family, pooling, pairs):
    X, y, d = make_texts(24)
    if pairs:
        X = [(x, x[::-1]) for x in X]
    clf = make(
        model=tiny_models[family],
        pooling=pooling,
        pair_encoding=pairs or "auto",
        recipe=MetaFineTuning(corruption_layers=(1, -1)),
        meta_epochs=2,
        adaptation_epochs=1,
        max_length=32,
    ).fit(X, y, domains=d)
    proba = clf.predict_proba(X, domains=d)
    assert np.isfinite(proba).all()
    assert np.allclose(proba.sum(1), 1)
    assert clf.transform(X).shape == (24, 96 if pairs == "bi" else 32)
    assert clf.history_[1]["corruption_loss"] > 0
    assert set(clf.predict(X)) <= {"neg", "pos"}


def test_with_tensors_shares_all_but_the_given(tiny):
    module = TextClassifier(load_encoder(find_encoder(tiny)), 2)
    new = torch.randn_like(module.label_head.weight)
    twin = with_tensors(module, {"label_head.weight": new})
    own = dict(module.named_parameters())
    for name, parameter in twin.named_parameters():
        if name == "label_head.weight":
            assert torch.equal(parameter, new)
            assert not torch.equal(own[name], new)
        else:
            assert parameter.data_ptr() == own[name].data_ptr()


def test_with_tensors_leaves_the_module_alone(tiny):
    module = TextClassifier(load_encoder(find_encoder(tiny)), 2).train()
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    twin = with_tensors(module, {"label_head.bias": torch.tensor([5.0, 7.0])})
    assert not twin.training and module.training
    assert twin.label_head.bias.tolist() == [5.0, 7.0] and not twin.label_head.bias.requires_grad
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters())


def test_forward_gives_logits_embedding_and_the_layers_that_it_was_asked_for(tiny):
    module = TextClassifier(load_encoder(find_encoder(tiny)), 3).eval()
    ids, mask = torch.randint(5, 30, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    assert module(input_ids=ids, attention_mask=mask).layers == []
    module.layers = [0, 2]
    out = module(input_ids=ids, attention_mask=mask)
    assert out.logits.shape == (2, 3) and [layer.shape for layer in out.layers] == [(2, 32)] * 2
    torch.testing.assert_close(out.embedding, out.layers[1])
    torch.testing.assert_close(out.logits, module.label_logits(input_ids=ids, attention_mask=mask))
    torch.testing.assert_close(out.logits, module.label_head(out.embedding))
