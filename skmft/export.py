"""A fitted classifier for those who deploy: sentence-transformers, ONNX, a stock transformers model."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .adaptation import domain_model
from .networks import PROCESS_STATE, TextClassifier, quiet, reads_token_types


def _need(package: str, extra: str, purpose: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(f"{purpose} needs the package {package!r}: pip install 'skmft[{extra}]'.") from error


def module_of(clf: Any, domain: Any) -> TextClassifier:
    """The network that answers for a domain (None: the meta-learner), adapters merged, on the CPU, without corruption head.

    Raises
    ------
    ValueError
        If the domain has no model of its own, or a parameter that the model depends on was set after fit.
    """
    from sklearn.utils.validation import check_is_fitted

    check_is_fitted(clf)
    clf._check_unchanged()
    tensors = {}
    if domain is not None:
        if domain not in clf.adapted_weights_:
            raise ValueError(
                f"domain={domain!r} has no adapted model (adapted: {list(clf.adapted_weights_)}); domain=None exports the "
                "meta-learner."
            )
        tensors = clf.adapted_weights_[domain]
    module: Any = domain_model(clf.net_.module_, tensors)
    if next(module.parameters()).device.type != "cpu":
        module = copy.deepcopy(module).cpu()
    module.corruption_head = None
    return module.eval()


def tokenizer_of(clf: Any) -> Any:
    """A copy of the estimator's tokenizer that does unasked what `skmft.encoding.tokenize` asks of it."""
    tokenizer = copy.deepcopy(clf.tokenizer_)
    tokenizer.model_max_length = clf.max_length
    if reads_token_types(clf.net_.module_.encoder) and "token_type_ids" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # what save_pretrained writes
    return tokenizer


def to_sentence_transformer(clf: Any, domain: Any = None) -> Any:
    """See `MetaFineTunedClassifier.to_sentence_transformer`."""
    library = _need("sentence_transformers", "sentence-transformers", "to_sentence_transformer")
    modules = import_module("sentence_transformers.sentence_transformer.modules")
    module = module_of(clf, domain)
    with tempfile.TemporaryDirectory() as folder:
        with quiet(), torch.random.fork_rng(devices=[]):  # a pooler, which nothing reads, is drawn at random
            module.encoder.save_pretrained(folder)
            tokenizer_of(clf).save_pretrained(folder)
            transformer = modules.Transformer(folder, max_seq_length=clf.max_length)
        pooling = modules.Pooling(module.encoder.config.hidden_size, pooling_mode=clf.pooling)
        return library.SentenceTransformer(modules=[transformer, pooling], device="cpu")


@contextmanager
def _silent_exporter() -> Iterator[None]:
    """Without the exporter's warnings about itself; filters and levels are as before afterwards."""
    logger = logging.getLogger("torch.onnx")
    with PROCESS_STATE:
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            logger.setLevel(level)


class _Logits(nn.Module):
    """Token ids to logits, for tracing."""

    def __init__(self, module: TextClassifier) -> None:
        super().__init__()
        self.module = module

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        return self.module(input_ids, attention_mask, token_type_ids)[0]


def to_onnx(clf: Any, path: str | os.PathLike, domain: Any = None) -> list[str]:
    """See `MetaFineTunedClassifier.to_onnx`."""
    for package in ("onnx", "onnxscript"):
        _need(package, "onnx", "to_onnx")
    module = module_of(clf, domain)
    names = ["input_ids", "attention_mask"] + ["token_type_ids"] * (reads_token_types(module.encoder) or module.apart)
    longest = clf.max_length
    if module.apart:
        module.text_length, longest = clf.max_length, 2 * clf.max_length
    n = min(7, longest)
    ids = torch.full((2, n), int(clf.tokenizer_.pad_token_id))
    ids[:, 0] = 1
    arguments = (ids, *(torch.ones_like(ids) for _ in names[1:]))
    arguments[1][1, max(1, n - 2) :] = 0
    shape: dict[int, Any] = {0: torch.export.Dim("batch")}
    if longest > 2:  # else rows are special tokens alone, all of one length
        shape[1] = torch.export.Dim("tokens", min=2, max=longest)
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.absolute().parent) as folder, _silent_exporter():
        partial = Path(folder) / target.name
        torch.onnx.export(
            _Logits(module),
            arguments,
            partial,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=(shape,) * len(names),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        os.replace(partial, target)
    return names


def to_transformers(clf: Any, domain: Any = None) -> tuple[Any, Any]:
    """See `MetaFineTunedClassifier.to_transformers`."""
    from transformers import AutoModelForSequenceClassification

    module = module_of(clf, domain)
    config = type(module.encoder.config).from_dict(module.encoder.config.to_dict())
    others = "use to_sentence_transformer for embeddings or to_onnx for logits"
    if module.apart:
        raise ValueError(
            f"pair_encoding='bi': stock classifiers of transformers read pairs as one row of tokens; {others}."
        )
    if clf.pooling != "cls":
        raise ValueError(f"pooling={clf.pooling!r}: stock classifiers of transformers read the first token; {others}.")
    if config.model_type not in ("bert", "roberta", "mpnet"):
        raise ValueError(
            f"model={clf.model!r} is of type {config.model_type!r}, whose stock classifier cannot hold a linear head on the "
            f"first token (bert, roberta and mpnet can); {others}."
        )
    classes = [str(c) for c in clf.classes_.tolist()]
    config.id2label, config.label2id = dict(enumerate(classes)), {c: i for i, c in enumerate(classes)}
    config.problem_type = "single_label_classification"
    with quiet(), torch.random.fork_rng(devices=[]):
        model: Any = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    model.base_model.load_state_dict(module.encoder.state_dict(), strict=False)
    if config.model_type == "bert":
        dense, out = model.bert.pooler.dense, model.classifier
    else:
        dense, out = model.classifier.dense, model.classifier.out_proj
    small = 2.0**-14  # tanh(small * x) / small is x less a part of (small * x)**2 / 3, at 12 of 2e-7
    with torch.no_grad():
        dense.weight.copy_(small * torch.eye(config.hidden_size))
        dense.bias.zero_()
        out.weight.copy_(module.label_head.weight / small)
        out.bias.copy_(module.label_head.bias)
    return model.eval(), tokenizer_of(clf)
