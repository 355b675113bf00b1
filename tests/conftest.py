"""Tiny, randomly initialised encoders of six families, and small data with a learnable signal."""

from __future__ import annotations

import copy
import os
import shutil
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from skorch.callbacks import Callback
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    DebertaV2Config,
    DebertaV2Model,
    DistilBertConfig,
    DistilBertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

from skmft import MetaFineTunedClassifier


def pytest_report_header():
    """Which products this processor ran: what passes with one kind of bfloat16 may fail with another."""
    cpu = torch.cpu
    kinds = {
        "AMX": "_is_amx_tile_supported",
        "AVX512-BF16": "_is_avx512_bf16_supported",
        "AVX512": "_is_avx512_supported",
        "AVX2": "_is_avx2_supported",
    }
    found = [kind for kind, check in kinds.items() if getattr(cpu, check, lambda: False)()]
    native = "native" if {"AMX", "AVX512-BF16"} & set(found) else "emulated"
    return f"processor: {', '.join(found) or 'no vector units known to torch'}; bfloat16 on the CPU: {native}"


if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, and threads would wait for each other
    torch.set_num_threads(1)
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

settings.register_profile("here", deadline=None, derandomize=True, database=None)
settings.load_profile("here")

WORDS = (
    "good great fine lovely bad awful poor dull book story author chapter pan knife oven lid the a this is was very "
    "but and it of plot handle pages steel read cook first last really not too"
).split()
DEPTH = 3
_SIZE = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": DEPTH, "intermediate_size": 64}
FAMILIES = {
    "bert": (BertModel, BertConfig, {**_SIZE, "max_position_embeddings": 128}),
    "roberta": (RobertaModel, RobertaConfig, {**_SIZE, "max_position_embeddings": 130, "type_vocab_size": 1}),
    "distilbert": (
        DistilBertModel,
        DistilBertConfig,
        {"dim": 32, "n_heads": 2, "n_layers": DEPTH, "hidden_dim": 64, "max_position_embeddings": 128},
    ),
    "deberta-v3": (
        DebertaV2Model,
        DebertaV2Config,
        {
            **_SIZE,
            "max_position_embeddings": 128,
            "type_vocab_size": 0,
            "relative_attention": True,
            "pos_att_type": ["p2c", "c2p"],
            "position_buckets": 16,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
        },
    ),
    "mpnet": (MPNetModel, MPNetConfig, {**_SIZE, "max_position_embeddings": 130}),
    "modernbert": (ModernBertModel, ModernBertConfig, {**_SIZE, "max_position_embeddings": 128}),
}


BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def import_benchmarks(*names):
    """Modules of the folder benchmarks/, which is no package."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return [import_module(name) for name in names]
    finally:
        sys.path.remove(str(BENCHMARKS))


def make_tokenizer(folder) -> None:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = {token: i for i, token in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=128,
    ).save_pretrained(folder)


def make_encoder(family: str, folder) -> str:
    model, config, size = FAMILIES[family]
    extra = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model(config(vocab_size=5 + len(WORDS), **size, **extra)).save_pretrained(folder)
    make_tokenizer(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    return {f: make_encoder(f, tmp_path_factory.mktemp(f)) for f in FAMILIES}


@pytest.fixture(scope="session")
def tiny(tiny_models):
    """Path of a tiny BERT."""
    return tiny_models["bert"]


def row_of(tokens, i):
    """Text i of tokenized ones: its ids, or ids and token types, shape (n,) or (2, n)."""
    piece = slice(tokens.offsets[i], tokens.offsets[i + 1])
    return tokens.ids[piece] if tokens.type_ids is None else np.stack([tokens.ids[piece], tokens.type_ids[piece]])


def make_texts(n: int, seed: int = 0, n_domains: int = 2):
    """Texts whose words tell the class, and whose nouns tell the domain."""
    rng = np.random.default_rng(seed)
    classes = {"pos": WORDS[:4], "neg": WORDS[4:8]}
    nouns = [WORDS[8:12], WORDS[12:16], WORDS[23:27], WORDS[27:31]]
    X, y, d = [], [], []
    for i in range(n):
        label, domain = ("pos", "neg")[i % 2], i // 2 % n_domains
        words = [*rng.choice(classes[label], 3), *rng.choice(nouns[domain], 2), *rng.choice(WORDS[16:23], i % 5)]
        X.append(" ".join(rng.permutation(words)))
        y.append(label)
        d.append(("books", "kitchen", "dvd", "music")[domain])
    return X, np.array(y), np.array(d)


def tensors(clf):
    """The meta-learner's trained tensors."""
    return dict(clf.meta_learner_.named_parameters())


def same(a, b):
    """Whether two estimators have the same meta-learner, bit for bit."""
    ours, theirs = tensors(a), tensors(b)
    return ours.keys() == theirs.keys() and all(torch.equal(p, theirs[n]) for n, p in ours.items())


class RaisesAt(Callback):
    """Raises at the start of an epoch; of every stage, or only where no recipe's heads are trained, as in stage 3."""

    def __init__(self, failure, epoch, adaptation_only=False):
        self.failure, self.epoch, self.adaptation_only = failure, epoch, adaptation_only

    def on_epoch_begin(self, net, **kwargs):
        if self.adaptation_only and len(net.module_.heads):
            return
        if len(net.history) >= self.epoch:
            raise self.failure("as asked")


@pytest.fixture(scope="session")
def data():
    """48 texts, labels and domains (two domains)."""
    return make_texts(48)


@pytest.fixture
def make(tiny):
    """Maker of quick estimators on the tiny BERT: few epochs, float32, on the CPU."""

    def maker(**params):
        quick = {
            "model": tiny,
            "meta_epochs": 4,
            "adaptation_epochs": 2,
            "learning_rate": 3e-3,
            "adaptation_learning_rate": None,
            "batch_size": 16,
            "device": "cpu",
            "precision": "float32",
            "random_state": 0,
        }
        return MetaFineTunedClassifier(**{**quick, **params})

    return maker


@pytest.fixture(scope="session")
def fitted(tiny, data):
    """A fitted estimator that tests only read."""
    X, y, d = data
    clf = MetaFineTunedClassifier(
        tiny,
        meta_epochs=4,
        adaptation_epochs=2,
        learning_rate=3e-3,
        adaptation_learning_rate=None,
        batch_size=16,
        device="cpu",
        precision="float32",
        random_state=0,
    )
    return clf.fit(X, y, domains=d)


@pytest.fixture(scope="session")
def later(fitted):
    """The fitted estimator, adapted to a third domain; tests only read it."""
    X, y, _ = make_texts(16, seed=3)
    return copy.copy(fitted).adapt(X, y, "music")


@pytest.fixture(scope="session")
def saved(later, tmp_path_factory):
    """Folder that `later` was saved to; tests only read it."""
    folder = tmp_path_factory.mktemp("saved") / "model"
    later.save(folder, notes="accuracy 1.00 on nothing")
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """A copy of the saved folder, alone in its folder."""
    return shutil.copytree(saved, tmp_path / "model")
