"""A fitted classifier for those who deploy: sentence-transformers, ONNX."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .._engine.encoder import need, quiet
from .._engine.model import TextClassifier, reads_token_types
from .._engine.tokens import TOKENS
from .._method.adaptation import domain_model
from .._typing import Name
from .state import FittedState


def _network(state: FittedState, domain: Name) -> TextClassifier:
    """The network that answers for a domain (None: the meta-learner), adapters merged, on the CPU."""
    if domain is not None and domain not in state.adapted_weights:
        told = f"domain={domain!r} has no adapted model (adapted: {list(state.adapted_weights)})"
        raise ValueError(f"{told}; domain=None exports the meta-learner.")
    network = domain_model(state.meta_learner, {} if domain is None else state.adapted_weights[domain])
    return network if next(network.parameters()).device.type == "cpu" else copy.deepcopy(network).cpu()


def to_sentence_transformer(state: FittedState, domain: Name) -> Any:
    """See `MetaFineTunedClassifier.to_sentence_transformer`."""
    library = need("sentence_transformers", "sentence-transformers", "to_sentence_transformer")
    modules = import_module("sentence_transformers.sentence_transformer.modules")
    encoder, tokenizer = _network(state, domain).encoder, copy.deepcopy(state.tokenizer)
    tokenizer.model_max_length = state.settings["max_length"]  # it does unasked what `tokenize` asks of it
    if reads_token_types(encoder) and "token_type_ids" not in tokenizer.model_input_names:
        tokenizer.model_input_names = [*tokenizer.model_input_names, "token_type_ids"]
        tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names  # what save_pretrained writes
    with tempfile.TemporaryDirectory() as folder, quiet(), torch.random.fork_rng(devices=[]):
        encoder.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        transformer = modules.Transformer(folder, max_seq_length=tokenizer.model_max_length)  # draws a pooler, not used
    pooling = modules.Pooling(encoder.config.hidden_size, pooling_mode=state.settings["pooling"])
    return library.SentenceTransformer(modules=[transformer, pooling], device="cpu")


class _Logits(nn.Module):
    """Token ids to logits, for tracing."""

    def __init__(self, network: TextClassifier) -> None:
        super().__init__()
        self.network = network

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.network(**dict(zip(TOKENS, inputs))).logits


def to_onnx(state: FittedState, path: str | os.PathLike, domain: Name) -> list[str]:
    """See `MetaFineTunedClassifier.to_onnx`."""
    need("onnxscript", "onnx", "to_onnx")  # it needs onnx itself
    network, longest = _network(state, domain), state.settings["max_length"]
    names = list(TOKENS[: 2 + (reads_token_types(network.encoder) or network.bi_encoded)])
    if network.bi_encoded:
        network.text_length, longest = longest, 2 * longest
    n = min(7, longest)
    ids = torch.full((2, n), int(state.tokenizer.pad_token_id))
    ids[:, 0] = 1
    inputs = (ids, *(torch.ones_like(ids) for _ in names[1:]))
    inputs[1][1, max(1, n - 2) :] = 0
    shape: dict[int, object] = {0: torch.export.Dim("batch")}
    if longest > 2:  # else rows are special tokens alone, all of one length
        shape[1] = torch.export.Dim("tokens", min=2, max=longest)
    target = Path(path).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    with quiet("torch.onnx"), warnings.catch_warnings(action="ignore"):  # the exporter warns about itself
        torch.onnx.export(
            _Logits(network),
            inputs,
            target,
            input_names=names,
            output_names=["logits"],
            dynamic_shapes=((shape,) * len(names),),
            external_data=False,
            verbose=False,
        )
    return names
