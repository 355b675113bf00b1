"""Forward passes over many texts: their order, their batches, and what happens where memory runs out.

What a user sees of the last is in test_engine_out_of_memory.py.
"""

import gc
import warnings

import numpy as np
import pytest
import torch
from conftest import make_texts, row_of

from skmft._engine.encoder import find_encoder, load_encoder, load_tokenizer
from skmft._engine.inference import PretrainedEmbedder, embed, run_in_batches
from skmft._engine.model import TextClassifier
from skmft._engine.runtime import Runtime, isolated_generators
from skmft._engine.tokens import TokenizedTexts, tokenize

CPU = torch.device("cpu")
FLOAT32, BFLOAT16 = (Runtime(CPU, dtype, seed=0) for dtype in (torch.float32, torch.bfloat16))


@pytest.fixture(scope="module")
def module(tiny):
    with isolated_generators(0, CPU):
        return TextClassifier(load_encoder(find_encoder(tiny)), 2).eval()


@pytest.fixture(scope="module")
def tokens(tiny):
    """Forty texts of 7 to 11 tokens."""
    return tokenize(load_tokenizer(find_encoder(tiny), 32), make_texts(40)[0], 32, True)


@pytest.fixture(autouse=True)
def quick_collections():
    """The garbage of a failed pass is looked for among what a test has made, not in all that was imported before it."""
    gc.freeze()
    yield
    gc.unfreeze()


class Device:
    """A forward pass that fails for more than `rows` rows; notes the shapes of batches."""

    def __init__(self, forward, rows, error=None):
        self.forward, self.rows = forward, rows
        self.error = error or torch.OutOfMemoryError("CUDA out of memory.")
        self.done, self.failed = [], []

    def __call__(self, **batch):
        shape = tuple(batch["input_ids"].shape)
        if shape[0] > self.rows:
            self.failed.append(shape)
            raise self.error
        self.done.append(shape)
        return self.forward(**batch)


def first_tokens(input_ids, **rest):
    """Of every row the first token that is not special, as the row's answer."""
    return input_ids[:, 1:2].float()


def test_bfloat16_agrees_with_float32(module, tokens):
    def run(runtime, max_tokens):
        return run_in_batches(module.label_logits, tokens, width=2, max_tokens=max_tokens, runtime=runtime)

    exact = run(FLOAT32, 96)
    np.testing.assert_allclose(run(FLOAT32, 30), exact, atol=1e-5)
    # hidden states of size 1 are rounded to 2^-9 of it, layer by layer; the head reads 32 of them in weights below 0.2
    np.testing.assert_allclose(run(BFLOAT16, 96), exact, atol=5e-2)
    assert not np.array_equal(run(BFLOAT16, 96), exact)


def test_rows_come_back_in_their_order(tokens):
    device = Device(first_tokens, 40)
    found = run_in_batches(device, tokens, width=1, max_tokens=64, runtime=FLOAT32)
    assert found[:, 0].tolist() == [row_of(tokens, i)[0, 1] for i in range(40)]
    assert all(rows * length <= 64 for rows, length in device.done)
    assert [length for _, length in device.done] == sorted((n for _, n in device.done), reverse=True)


def test_a_batch_on_a_cpu_holds_2048_tokens_at_most():
    ids = np.ones(100 * 64, dtype=np.int32)
    device = Device(lambda input_ids, **rest: input_ids[:, :1].float(), 100)
    texts = TokenizedTexts(ids, np.arange(101) * 64, None, 0)
    run_in_batches(device, texts, width=1, max_tokens=10**6, runtime=FLOAT32)
    assert device.done == [(32, 64)] * 3 + [(4, 64)]


def test_batches_go_from_longest_to_shortest():
    lengths = np.array([5, 9, 7, 9, 1, 40, 2])
    device = Device(lambda input_ids, **rest: input_ids[:, :1].float(), 7)
    texts = TokenizedTexts(np.repeat(np.arange(7), lengths), np.concatenate([[0], np.cumsum(lengths)]), None, 0)
    found = run_in_batches(device, texts, 1, 18, FLOAT32)
    assert found[:, 0].tolist() == list(range(7))
    assert device.done == [(1, 40), (2, 9), (2, 7), (2, 2)]  # 40 is a batch alone


def test_where_memory_runs_out_an_error_says_what_to_set(module, tokens):
    device = Device(module.label_logits, 3, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    expected = r"inference: out of memory with 8 x 11 tokens; set a smaller batch_size, .*CUDA out of memory\. Tried"
    with pytest.raises(torch.OutOfMemoryError, match=expected):
        run_in_batches(device, tokens, width=2, max_tokens=88, runtime=FLOAT32)


def test_other_errors_are_not_caught(module, tokens):
    device = Device(module.label_logits, 3, RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        run_in_batches(device, tokens, width=2, max_tokens=88, runtime=FLOAT32)
    assert len(device.failed) == 1


def test_no_warning_where_all_fits(tokens):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run_in_batches(Device(first_tokens, 40), tokens, width=1, max_tokens=400, runtime=FLOAT32)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_embeddings_are_computed_once_in_a_memory(tiny, tokens, tmp_path, monkeypatch, pooling):
    source = find_encoder(tiny)
    encoder = load_encoder(source)
    expected = embed(encoder, tokens, pooling, FLOAT32, 400)

    def embedded(memory, runtime=FLOAT32):
        embedder = PretrainedEmbedder(encoder, source, pooling, 400, runtime, memory)
        return np.concatenate([E for _, E in embedder.chunks(tokens, np.arange(40))])

    for memory in (None, tmp_path):
        np.testing.assert_allclose(embedded(memory), expected, atol=1e-5)
    asked = []
    monkeypatch.setattr(
        "skmft._engine.inference.embed", lambda e, rows, *rest: asked.append(len(rows)) or embed(e, rows, *rest)
    )
    np.testing.assert_allclose(embedded(tmp_path), expected, atol=1e-5)
    assert asked == []
    embedded(tmp_path, BFLOAT16)  # is another thing to know
    assert asked == [40]


def test_embeddings_come_in_chunks(tiny, tokens, monkeypatch):
    monkeypatch.setattr("skmft._engine.inference.CHUNK_ROWS", 8)
    source = find_encoder(tiny)
    encoder = load_encoder(source)
    rows = np.arange(39, -1, -2)
    chunks = list(PretrainedEmbedder(encoder, source, "mean", 400, FLOAT32).chunks(tokens, rows))
    assert [part for part, _ in chunks] == [slice(0, 8), slice(8, 16), slice(16, 20)]
    expected = embed(encoder, tokens, "mean", FLOAT32, 400)[rows]
    np.testing.assert_allclose(np.concatenate([E for _, E in chunks]), expected, atol=1e-5)
