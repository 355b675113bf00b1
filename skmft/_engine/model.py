"""The network: encoder, pooling, label head."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from .._typing import Tensors
from .encoder import Encoder
from .pooling import embedding_width, pooled_layers

Module = TypeVar("Module", bound=nn.Module)


def reads_token_types(encoder: Encoder) -> bool:
    """Whether the encoder tells the two texts of a pair apart by token types."""
    takes = "token_type_ids" in inspect.signature(encoder.forward).parameters
    return takes and (getattr(encoder.config, "type_vocab_size", 0) or 0) > 1


def layer_indices(layers: Sequence[int], depth: int, name: str = "corruption_layers") -> list[int]:
    """Layers counted from 0, negative ones from the end, as numbers in [0, depth)."""
    for layer in layers:
        if not -depth <= layer < depth:
            there = f"the model has {depth} layers, numbered 0 to {depth - 1} (or -{depth} to -1 from the end)"
            raise ValueError(f"{name}={tuple(layers)}: layer {layer} does not exist; {there}.")
    out = [int(layer) % depth for layer in layers]
    if len(set(out)) < len(out):
        raise ValueError(f"{name}={tuple(layers)} names a layer twice (depth {depth}): {out}.")
    return out


@dataclass(frozen=True)
class ModelOutput:
    """Of a batch: logits, (batch, n_classes); the pooled last layer, (batch, width); and those of `TextClassifier.layers`."""

    logits: torch.Tensor
    embedding: torch.Tensor
    layers: list[torch.Tensor]


class TextClassifier(nn.Module):
    """Encoder, pooling and label head; `bi_encoded`: rows are pairs, whose texts are encoded separately."""

    def __init__(self, encoder: Encoder, n_classes: int, pooling: str = "mean", bi_encoded: bool = False) -> None:
        super().__init__()
        self.encoder: Encoder = encoder
        self.pooling, self.bi_encoded = pooling, bi_encoded
        self.text_length: int | None = None  # set for an export; see `split_texts`
        self.dropout = nn.Dropout(0.1)
        self.label_head = nn.Linear(embedding_width(encoder, bi_encoded), n_classes, dtype=torch.float32)
        self.heads = nn.ModuleDict()  # a recipe's own, while it trains
        self.layers: list[int] = []  # whose pooled outputs `forward` returns as well

    def forward(self, **inputs: torch.Tensor) -> ModelOutput:
        """Label logits, the embedding, and the pooled outputs of `layers`."""
        layers = [-1, *self.layers]
        last, *chosen = pooled_layers(self.encoder, layers, self.pooling, self.bi_encoded, inputs, self.text_length)
        with torch.autocast(last.device.type, enabled=False):  # heads are small: keep all their digits
            return ModelOutput(self.label_head(self.dropout(last)), last, chosen)

    def embed(self, **inputs: torch.Tensor) -> torch.Tensor:
        """The embedding alone, shape (batch, `embedding_width`)."""
        return self(**inputs).embedding

    def label_logits(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Label logits alone, shape (batch, n_classes)."""
        return self(**inputs).logits


def with_tensors(module: Module, tensors: Tensors) -> Module:
    """A module like `module`, which is left alone, that shares its tensors, but for those given by name."""
    twin = _twin(module)
    device = next(module.parameters()).device
    for name, tensor in tensors.items():
        path, _, last = name.rpartition(".")
        owner = twin.get_submodule(path)
        if last in owner._buffers:
            owner._buffers[last] = tensor.to(device)
        else:
            owner._parameters[last] = nn.Parameter(tensor.to(device), requires_grad=False)
    return twin.eval()


def _twin(module: Module) -> Module:
    """Other module objects around the same tensors; ten times as fast as a deep copy, which counts for single rows."""
    twin = copy.copy(module)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    twin._modules = {name: child if child is None else _twin(child) for name, child in module._modules.items()}
    return twin
