"""Stage 3: heads and low-rank adapters against peft's own model, and rows of many domains in one call."""

import builtins
import copy
import gc
import pickle
import random
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
import torch
from conftest import FAMILIES, RaisesAt, make_texts

from skmft._engine.encoder import find_encoder, load_encoder
from skmft._engine.model import TextClassifier
from skmft._engine.runtime import autocast
from skmft._method import adaptation
from skmft._method.adaptation import ADAPTATION_LEARNING_RATES, domain_logits, domain_model, has_own_encoder
from skmft._method.lora import adapted_layers, add_adapters, check_settings, default_targets

peft = pytest.importorskip("peft", reason="needs the extra skmft[lora]")
DOMAINS = ["books", "dvd", "kitchen", "music"]
BRIEF = {"meta_epochs": 1, "adaptation_epochs": 1}
FAR = {"adaptation": "lora", "adaptation_learning_rate": 2e-2, "adaptation_epochs": 4}  # adapters far from zero


@pytest.fixture(scope="module")
def data4():
    return make_texts(48, n_domains=4)


@pytest.fixture(scope="module")
def loras(tiny_models, data4):
    """Estimators of every family, adapted to four domains by low-rank adapters; tests only read them."""
    from skmft import MetaFineTunedClassifier

    made = {}

    def of(family):
        if family not in made:
            X, y, d = data4
            made[family] = MetaFineTunedClassifier(
                tiny_models[family],
                meta_epochs=2,
                learning_rate=3e-3,
                batch_size=16,
                device="cpu",
                precision="float32",
                random_state=0,
                **FAR,
            ).fit(X, y, domains=d)
        return made[family]

    return of


def by_peft(clf, texts, domain):
    """Logits of one domain by peft's own model, unmerged, row by row."""
    tensors = clf.adapted_weights_[domain]
    module = copy.deepcopy(clf.meta_learner_)
    names = [n.removeprefix("encoder.") for n in adapted_layers(tensors)]
    rank = len(tensors["encoder." + names[0] + ".lora_A"])
    config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=names)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft reads an old name of a property of transformers' models
        model = peft.get_peft_model(module.encoder, config)
    loaded = {f"base_model.model.{n.removeprefix('encoder.')}.weight": t for n, t in tensors.items() if "lora" in n}
    result = peft.set_peft_model_state_dict(model, loaded)
    assert not result.unexpected_keys
    assert not [n for n in result.missing_keys if "lora" in n]
    module.encoder = model.eval()
    module.label_head.load_state_dict({n: tensors[f"label_head.{n}"] for n in ("weight", "bias")})
    out = []
    with torch.no_grad():
        for text in texts:
            inputs = clf.tokenizer_(text, return_tensors="pt")
            hidden = model(inputs["input_ids"], inputs["attention_mask"]).last_hidden_state
            out.append(module.label_head(hidden.mean(1))[0])
    return torch.stack(out).numpy()


# ------------------------------------------------------------------ adapters


@pytest.mark.parametrize(
    "family", [f if f in ("bert", "deberta-v3") else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]
)
def test_mixed_rows_get_the_logits_of_pefts_model(loras, data4, family):
    X, _, d = data4
    clf = loras(family)
    given = np.where(np.arange(len(d)) % 5 == 0, None, d)  # every fifth row is the meta-learner's
    mixed = clf._logits(X, given)
    order = np.random.default_rng(0).permutation(len(X))
    shuffled = clf._logits([X[i] for i in order], given[order])
    np.testing.assert_allclose(shuffled, mixed[order], atol=1e-5)
    meta = clf._logits(X, None)
    for domain in DOMAINS:
        rows = np.flatnonzero(given == domain)
        texts = [X[i] for i in rows]
        np.testing.assert_allclose(mixed[rows], by_peft(clf, texts, domain), atol=1e-5)
        np.testing.assert_allclose(mixed[rows], clf._logits(texts, domain), atol=1e-5)
        np.testing.assert_allclose(clf._logits(texts[:1], domain), mixed[rows[:1]], atol=1e-5)
        assert np.abs(mixed[rows] - meta[rows]).max() > 0.05
    rest = given == None  # noqa: E711
    np.testing.assert_allclose(mixed[rest], meta[rest], atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [{"r": 3, "lora_alpha": 5.5}, {"use_rslora": True, "lora_dropout": 0.1, "init_lora_weights": False}],
    ids=str,
)
def test_what_was_trained_is_what_is_kept(make, data4, monkeypatch, config):
    """Logits of the trained net itself, peft's layers in it, with a scale other than 1."""
    trained, real = [], adaptation.fine_tune

    def noting(module, *args, **kwargs):
        records = real(module, *args, **kwargs)
        trained.append(module)
        return records

    monkeypatch.setattr(adaptation, "fine_tune", noting)
    X, y, d = data4
    clf = make(**{**FAR, "lora_config": config, "meta_epochs": 1}).fit(X, y, domains=d)
    tokens, _ = clf._tokenize(X)
    with torch.no_grad():
        for domain, module in zip(DOMAINS, trained, strict=True):
            assert any("lora_A" in n for n, _ in module.named_parameters())
            expected = module.label_logits(**tokens.batch(np.arange(len(X))))
            np.testing.assert_allclose(clf._logits(X, domain), expected, atol=1e-5)


def test_only_deltas_are_kept(loras, data4):
    clf = loras("bert")
    for tensors in clf.adapted_weights_.values():
        layers = [f"encoder.encoder.layer.{i}.attention.self.{n}" for i in range(3) for n in ("query", "value")]
        shapes = {f"{n}.lora_A": (8, 32) for n in layers} | {f"{n}.lora_B": (32, 8) for n in layers}
        shapes |= {"label_head.weight": (2, 32), "label_head.bias": (2,)}
        assert {n: tuple(t.shape) for n, t in tensors.items()} == shapes
        for t in tensors.values():
            assert type(t) is torch.Tensor
            assert t.device.type == "cpu"
            assert not t.requires_grad
        numbers = sum(t.nbytes for t in tensors.values())
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors.values()}
        assert sum(storages.values()) == numbers  # no view that keeps something larger alive
        for protocol in (2, pickle.HIGHEST_PROTOCOL):
            stored = pickle.dumps(tensors, protocol)
            assert len(stored) < numbers + 1_000 * len(tensors)
            again = pickle.loads(stored)
            assert list(again) == list(tensors) and all(torch.equal(again[n], t) for n, t in tensors.items())
    assert not [n for n, _ in clf.meta_learner_.named_modules() if "lora" in n]
    assert all(p.requires_grad for p in clf.meta_learner_.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_default_targets(tiny_models, family):
    encoder = load_encoder(find_encoder(tiny_models[family]))
    expected = {
        "distilbert": ["q_lin", "v_lin"],
        "deberta-v3": ["query_proj", "value_proj"],
        "mpnet": ["q", "v"],
        "modernbert": ["Wqkv"],
    }.get(family, ["query", "value"])
    assert default_targets(encoder) == expected
    for name in [n for n, _ in encoder.named_modules()]:
        if name.rpartition(".")[2] in expected:
            encoder.set_submodule(name, torch.nn.Identity())
    assert default_targets(encoder) == "all-linear"


@pytest.mark.parametrize("targets", ["all-linear", ["query", "output.dense"], r".*layer\.2.*value"])
def test_target_modules(make, data4, targets):
    X, y, d = data4
    clf = make(**FAR, meta_epochs=1, lora_config={"r": 2, "target_modules": targets}).fit(X, y, domains=d)
    layers = adapted_layers(clf.adapted_weights_["books"])
    assert len(layers) == {"a": 18, "query": 9, ".": 1}[targets[0]]
    rows = [x for x, k in zip(X, d) if k == "dvd"]
    np.testing.assert_allclose(clf._logits(X, d)[d == "dvd"], by_peft(clf, rows, "dvd"), atol=1e-5)


def test_a_config_of_peft_is_taken_and_left_as_it_is(make, data4):
    X, y, d = data4
    config = peft.LoraConfig(r=3, lora_alpha=5)
    before = copy.deepcopy(config)
    given = make(adaptation="lora", **BRIEF, lora_config=config).fit(X, y, domains=d)
    assert config == before
    named = make(adaptation="lora", **BRIEF, lora_config={"r": 3, "lora_alpha": 5}).fit(X, y, domains=d)
    np.testing.assert_array_equal(given.predict_proba(X, domains=d), named.predict_proba(X, domains=d))


def test_bad_settings_are_refused_before_anything_is_fitted(make, data4):
    X, y, d = data4
    clf = make(adaptation="lora", **BRIEF).fit(X, y, domains=d)
    before = clf.meta_learner_
    for config, message in (
        ({"target_modules": ["query", "nothing"]}, "no linear layer is named 'nothing'"),
        (
            {"target_modules": "nothing"},
            r"lora_config=.*'nothing'.*expected target_modules of None, 'all-linear', names",
        ),
        ({"target_modules": "("}, r"lora_config=\{'target_modules': '\('\}"),
        ({"target_modules": ".*word_embeddings"}, "word_embeddings' is not linear"),
        ({"target_modules": []}, "lora_config=.*expected"),
        ({"target_modules": [1]}, "lora_config=.*expected"),
        ({"r": 0}, "lora_config=.*expected"),
        ({"rank": 8}, "lora_config=.*'rank'.*expected None, a dict of what peft.LoraConfig takes"),
        (
            {"use_dora": True},
            r"lora_config sets \{'use_dora': True\}; a domain's adapters are kept as plain low-rank matrices",
        ),
        ({"init_lora_weights": "pissa"}, r"sets \{'init_lora_weights': 'pissa'\}.*among \(True, False, 'gaussian'"),
        (peft.LoraConfig(modules_to_save=["pooler"]), r"lora_config sets \{'modules_to_save': \['pooler'\]\}"),
    ):
        bad = copy.copy(clf).set_params(lora_config=config)
        with pytest.raises(ValueError, match=message):
            bad.fit(X, y, domains=d)
        with pytest.raises(ValueError, match=message):
            bad.adapt(X, y, "toys")
        assert bad.meta_learner_ is before
        assert bad.adapted_domains_.tolist() == DOMAINS


def test_checking_the_settings_leaves_the_encoder(tiny):
    encoder = load_encoder(find_encoder(tiny))
    before = copy.deepcopy(encoder.state_dict())
    check_settings(encoder, None)
    assert all(p.requires_grad and p.device.type == "cpu" for p in encoder.parameters())
    assert all(torch.equal(t, before[n]) for n, t in encoder.state_dict().items())


def test_without_peft(make, data4, monkeypatch):
    X, y, d = data4
    clf = make(adaptation="lora", **BRIEF).fit(X, y, domains=d)
    expected = clf.predict_proba(X, domains=d)
    monkeypatch.setattr("skmft._engine.encoder.import_module", lambda name: builtins.__import__(f"no_{name}"))
    for call in (lambda: clf.fit(X, y, domains=d), lambda: clf.adapt(X, y, "toys")):
        with pytest.raises(
            ImportError, match=r"adaptation='lora' needs the package 'peft': pip install 'skmft\[lora\]'"
        ):
            call()
    np.testing.assert_array_equal(clf.predict_proba(X, domains=d), expected)  # predicting needs no peft
    make(adaptation="head", **BRIEF).fit(X, y, domains=d)


def test_a_peft_that_cannot_be_imported_says_why(monkeypatch, tiny):
    def broken(name):
        raise ImportError("cannot import name 'thing' from 'transformers'")

    monkeypatch.setattr("skmft._engine.encoder.import_module", broken)
    with pytest.raises(ImportError, match=r"pip install 'skmft\[lora\]' \(cannot import name 'thing'"):
        check_settings(load_encoder(find_encoder(tiny)), None)


def test_the_seed_alone_decides(make, data4):
    X, y, d = data4
    torch.manual_seed(1)
    first = make(adaptation="lora", **BRIEF).fit(X, y, domains=d)
    torch.manual_seed(2)
    np.random.seed(3)
    random.seed(4)
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    second = make(adaptation="lora", **BRIEF).fit(X, y, domains=d)
    again = copy.copy(second).adapt([x for x, k in zip(X, d) if k == "dvd"], y[d == "dvd"], "dvd")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert all(np.array_equal(a, b) for a, b in zip(np.random.get_state(), states[1]))
    assert random.getstate() == states[2]
    for name, tensor in first.adapted_weights_["dvd"].items():
        assert torch.equal(tensor, second.adapted_weights_["dvd"][name])
        assert torch.equal(tensor, again.adapted_weights_["dvd"][name])
    other = make(adaptation="lora", **BRIEF, random_state=1).fit(X, y, domains=d)
    key = adapted_layers(other.adapted_weights_["dvd"])[0] + ".lora_A"
    assert not torch.equal(other.adapted_weights_["dvd"][key], first.adapted_weights_["dvd"][key])


def test_meta_learner_is_that_of_other_methods(make, data4):
    X, y, d = data4
    lora, none = (make(**{**BRIEF, "adaptation": a}).fit(X, y, domains=d) for a in ("lora", None))
    np.testing.assert_array_equal(lora.predict_proba(X), none.predict_proba(X))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, RuntimeError])
def test_failing_adapt_leaves_the_estimator(loras, data4, failure):
    X, y, _ = data4
    clf = copy.copy(loras("bert"))
    clf.callbacks = [RaisesAt(failure, 1)]
    before = pickle.dumps(vars(loras("bert")))
    with pytest.raises(failure):
        clf.adapt(X, y, "books")
    assert pickle.dumps({**vars(clf), "callbacks": None}) == before


def test_pickle_and_joblib(loras, data4, tmp_path):
    X, _, d = data4
    clf = loras("bert")
    joblib.dump(clf, tmp_path / "clf")
    for other in (pickle.loads(pickle.dumps(clf)), joblib.load(tmp_path / "clf")):
        np.testing.assert_array_equal(other._logits(X, d), clf._logits(X, d))


def test_head_adaptation_leaves_the_encoder(make, data4):
    X, y, d = data4
    clf = make(**BRIEF, adaptation="head").fit(X, y, domains=d)
    assert set(clf.adapted_weights_["books"]) == {"label_head.weight", "label_head.bias"}
    assert np.abs(clf.predict_proba(X, domains="books") - clf.predict_proba(X)).max() > 1e-6


def test_adaptation_learning_rate_of_none_is_learning_rate(make, data4):
    X, y, d = data4
    a, b, c = (
        make(**BRIEF, adaptation="head", adaptation_learning_rate=rate).fit(X, y, domains=d).predict_proba(X, domains=d)
        for rate in (None, 3e-3, 1e-4)
    )
    np.testing.assert_array_equal(a, b)
    assert np.abs(a - c).max() > 0


@pytest.mark.parametrize("method", ["full", "head", "lora"])
def test_auto_learning_rate(make, data4, method):
    X, y, d = data4
    clf = make(adaptation=method, adaptation_learning_rate="auto", optimizer_params={"warmup_ratio": 0}, **BRIEF)
    clf.fit(X[:16], y[:16], domains=d[:16])  # one step an epoch: the first is taken at the peak
    rates = [h["learning_rate"] for h in clf.history_ if h["stage"] == "adaptation" and h["epoch"] == 1]
    np.testing.assert_allclose(rates, ADAPTATION_LEARNING_RATES[method])


# ---------------------------------------------------------- rows of many domains


@pytest.fixture(scope="module")
def motley(loras, data4):
    """Domains adapted by every method, adapters of two ranks and of other layers; tests only read it."""
    X, y, _ = data4
    clf = copy.copy(loras("bert"))
    clf.set_params(adaptation_epochs=2)
    for i, (domain, params) in enumerate(
        {
            "full": {"adaptation": "full"},
            "head": {"adaptation": "head"},
            "rank 2": {"lora_config": {"r": 2, "lora_alpha": 7}},
            "others": {"lora_config": {"target_modules": ["key", "intermediate.dense"]}},
            "head too": {"adaptation": "head"},
            "full too": {"adaptation": "full"},
        }.items()
    ):
        other = np.where(y == "pos", "neg", "pos")
        flipped = np.where(np.arange(len(y)) % (i + 3) == 0, other, y)
        clf.set_params(**{"adaptation": "lora", **params}).adapt(X, flipped, domain)
    return clf


def motley_domains(clf, n):
    names = np.array([*clf.adapted_weights_, None, "never seen"], dtype=object)
    return names[np.random.default_rng(0).permutation(np.arange(n) % len(names))]


def test_domains_adapted_by_different_methods(motley, data4):
    X, _, _ = data4
    domains = motley_domains(motley, len(X))
    mixed = motley._logits(X, domains)
    alone = [motley._logits([x], [d])[0] for x, d in zip(X, domains)]
    np.testing.assert_allclose(mixed, alone, atol=1e-5)
    for domain in ("rank 2", "others"):
        rows = np.flatnonzero(domains == domain)
        np.testing.assert_allclose(mixed[rows], by_peft(motley, [X[i] for i in rows], domain), atol=1e-5)
    each = [motley._logits(X[:1], d)[0] for d in [*motley.adapted_weights_, None]]
    assert len(np.unique(np.round(each, 4), axis=0)) == len(each)


def test_rows_that_share_an_encoder_share_batches(motley, data4, monkeypatch):
    """One batch of the shared encoder for all rows but those of domains with encoders of their own, adapters included."""
    X, _, _ = data4
    calls = []
    real = TextClassifier.forward

    def counting(self, input_ids, **kwargs):
        calls.append(len(input_ids))
        return real(self, input_ids=input_ids, **kwargs)

    monkeypatch.setattr(TextClassifier, "forward", counting)
    domains = motley_domains(motley, len(X))
    motley.predict(X, domains=domains)
    shared = np.isin(domains.astype(str), ["head", "head too", "None", "never seen"])
    apart = [int((domains == d).sum()) for d in dict.fromkeys(domains[~shared])]
    assert sorted(calls) == sorted([int(shared.sum()), *apart])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_predict_from_many_threads(motley, data4, precision):
    X, _, _ = data4
    clf = copy.copy(motley).set_params(precision=precision)
    rng = np.random.default_rng(1)
    names = np.array([*clf.adapted_weights_, None], dtype=object)
    calls = [[0, X, rng.choice(names, len(X))] for _ in range(8)] + [[0, X, n] for n in names]
    calls = [(X, domains) for _, X, domains in calls] * 2
    before = {n: t.clone() for n, t in clf.meta_learner_.state_dict().items()}
    modules = [id(m) for m in clf.meta_learner_.modules()]
    expected = [clf._logits(*call) for call in calls]
    with ThreadPoolExecutor(8) as pool:
        for logits, single in zip(pool.map(lambda call: clf._logits(*call), calls), expected):
            np.testing.assert_array_equal(logits, single)
    assert [id(m) for m in clf.meta_learner_.modules()] == modules
    assert all(torch.equal(t, before[n]) for n, t in clf.meta_learner_.state_dict().items())
    hooks = [m for m in clf.meta_learner_.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooks


def test_one_encoder_at_a_time_under_full(motley, data4, monkeypatch):
    """While a domain with an encoder of its own answers, no other such domain's network is alive."""
    X, _, _ = data4
    alive = []
    most = []
    tokens_at_once = []

    def batches(forward, tokens, width, max_tokens, runtime):
        tokens_at_once.append(max_tokens)
        alive.append(weakref.ref(forward.__self__))
        gc.collect()
        most.append(sum(ref() is not None for ref in alive))
        return np.zeros((len(tokens), width), dtype=np.float32)

    own = ["full", "full too"] * 4
    tokens, _ = motley._tokenize(X[:8])
    monkeypatch.setattr(adaptation, "run_in_batches", batches)
    domain_logits(motley.meta_learner_, tokens, own, motley.adapted_weights_, motley._runtime(0), 4096)
    assert most == [1, 1]
    assert tokens_at_once == [2048, 2048]  # two encoders are on the device, so that there is less room


def test_models_share_the_tensors_that_they_do_not_change(motley):
    module = motley.meta_learner_
    storages = {p.untyped_storage().data_ptr() for p in module.parameters()}
    for domain, allowed in {
        "head": 2,
        "rank 2": 6 + 2,
        "full": sum(1 for _ in module.encoder.parameters()) + 2,
    }.items():
        twin = domain_model(module, motley.adapted_weights_[domain])
        new = [n for n, p in twin.named_parameters() if p.untyped_storage().data_ptr() not in storages]
        assert len(new) == allowed, domain
    assert {d: has_own_encoder(motley.adapted_weights_[d]) for d in ("full", "head", "rank 2")} == {
        "full": True,
        "head": False,
        "rank 2": True,
    }


def test_adapters_that_are_added_change_nothing_yet(tiny):
    encoder = load_encoder(find_encoder(tiny))
    inputs = {"input_ids": torch.arange(5, 15).reshape(2, 5), "attention_mask": torch.ones(2, 5, dtype=torch.long)}
    with torch.no_grad():
        before = encoder(**inputs).last_hidden_state
        add_adapters(encoder, {"r": 4, "lora_alpha": 8})
        torch.testing.assert_close(encoder(**inputs).last_hidden_state, before)
    trained = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert trained
    assert all(".lora_A." in n or ".lora_B." in n for n in trained)


def test_own_linear_layers_are_held_in_the_type_they_are_multiplied_in(motley, data4):
    """Half the memory, and the same answers as autocast gives, which would cast them for every batch."""
    tokens, _ = motley._tokenize(data4[0])
    batch = tokens.batch(np.arange(len(tokens)))
    tensors = motley.adapted_weights_["full"]
    wide = domain_model(motley.meta_learner_, tensors)
    narrow = domain_model(motley.meta_learner_, tensors, torch.bfloat16)
    types = {n: p.dtype for n, p in narrow.named_parameters()}
    linear = {f"{n}.weight" for n, m in narrow.named_modules() if isinstance(m, torch.nn.Linear) and "encoder" in n}
    assert linear and {n for n, dtype in types.items() if dtype == torch.bfloat16} == linear
    with torch.inference_mode(), autocast(torch.device("cpu"), torch.bfloat16):
        assert torch.equal(narrow.label_logits(**batch), wide.label_logits(**batch))
