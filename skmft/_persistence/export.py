"""A fitted classifier for those who deploy: sentence-transformers, ONNX."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._engine.encoder import PROCESS_STATE, need, quiet
from .._engine.model import TextClassifier, reads_token_types
from .._engine.tokens import TOKENS
from .._method.adaptation import domain_model
from .._typing import Name
from .state import FittedState


def module_of(state: FittedState, domain: Name) -> TextClassifier:
    """The network that answers for a domain (None: the meta-learner), adapters merged, on the CPU."""
    tensors: Mapping[str, torch.Tensor] = {}
    if domain is not None:
        if domain not in state.adapted_weights:
            raise ValueError(
                f"domain={domain!r} has no adapted model (adapted: {list(state.adapted_weights)}); domain=None exports the "
                "meta-learner."
            )
        tensors = state.adapted_weights[domain]
    module = domain_model(state.meta_learner, tensors)
    if next(module.parameters()).device.type != "cpu":
        module = copy.deepcopy(module).cpu()
    return module.eval()


def tokenizer_of(state: FittedState) -> Any:
    """A copy of the estimator's tokenizer that does unasked what `skmft.encoding.tokenize` asks of it."""
    tokenizer = copy.deepcopy(state.tokenizer)
    tokenizer.model_max_length = state.settings["max_length"]
    if reads_token_types(state.meta_learner.encoder) and "token_type_ids" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # what save_pretrained writes
    return tokenizer


def to_sentence_transformer(state: FittedState, domain: Name = None) -> Any:
    """See `MetaFineTunedClassifier.to_sentence_transformer`."""
    library = need("sentence_transformers", "sentence-transformers", "to_sentence_transformer")
    modules = import_module("sentence_transformers.sentence_transformer.modules")
    module = module_of(state, domain)
    with tempfile.TemporaryDirectory() as folder:
        with quiet(), torch.random.fork_rng(devices=[]):  # a pooler, which nothing reads, is drawn at random
            module.encoder.save_pretrained(folder)
            tokenizer_of(state).save_pretrained(folder)
            transformer = modules.Transformer(folder, max_seq_length=state.settings["max_length"])
        pooling = modules.Pooling(module.encoder.config.hidden_size, pooling_mode=state.settings["pooling"])
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

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.module(**dict(zip(TOKENS, inputs))).logits


def to_onnx(state: FittedState, path: str | os.PathLike, domain: Name = None) -> list[str]:
    """See `MetaFineTunedClassifier.to_onnx`."""
    for package in ("onnx", "onnxscript"):
        need(package, "onnx", "to_onnx")
    module = module_of(state, domain)
    names = list(TOKENS[: 2 + (reads_token_types(module.encoder) or module.bi_encoded)])
    longest = state.settings["max_length"]
    if module.bi_encoded:
        module.text_length, longest = state.settings["max_length"], 2 * state.settings["max_length"]
    n = min(7, longest)
    ids = torch.full((2, n), int(state.tokenizer.pad_token_id))
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
            dynamic_shapes=((shape,) * len(names),),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        os.replace(partial, target)
    return names
