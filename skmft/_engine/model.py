"""The network: encoder, pooling over real tokens, label head."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from .._typing import Params
from .encoder import Encoder

Module = TypeVar("Module", bound=nn.Module)


def reads_token_types(encoder: Encoder) -> bool:
    """Whether the encoder tells the two texts of a pair apart by token types."""
    takes = "token_type_ids" in inspect.signature(encoder.forward).parameters
    return takes and (getattr(encoder.config, "type_vocab_size", 0) or 0) > 1


def layer_indices(layers: Sequence[int], depth: int, name: str = "corruption_layers") -> list[int]:
    """Layers counted from 0, negative ones from the end, as numbers in [0, depth)."""
    out = []
    for layer in layers:
        if not -depth <= layer < depth:
            raise ValueError(
                f"{name}={tuple(layers)}: layer {layer} does not exist; the model has {depth} layers, "
                f"numbered 0 to {depth - 1} (or -{depth} to -1 from the end)."
            )
        out.append(int(layer) % depth)
    if len(set(out)) < len(out):
        raise ValueError(f"{name}={tuple(layers)} names a layer twice (depth {depth}): {out}.")
    return out


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Pool token vectors, shape (batch, tokens, hidden), to one vector a row, (batch, hidden), in float32.

    ``"mean"`` averages over real tokens, never padding; ``"cls"`` takes the first token.
    """
    if pooling == "cls":
        return hidden[:, 0].float()
    mask = attention_mask.unsqueeze(-1).to(torch.float32)
    return (hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def pooled_layers(
    encoder: Encoder,
    layers: Sequence[int],
    pooling: str,
    bi_encoded: bool,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    token_type_ids: torch.Tensor | None = None,
    *,
    text_length: int | None = None,
) -> list[torch.Tensor]:
    """Pooled outputs of an encoder's layers, each of shape (batch, `embedding_width`)."""
    inputs: Params = {"input_ids": input_ids, "attention_mask": attention_mask}
    if bi_encoded:
        assert token_type_ids is not None  # `tokenize` gives them
        inputs["input_ids"], inputs["attention_mask"] = split_texts(
            input_ids, attention_mask, token_type_ids, text_length
        )
    elif token_type_ids is not None:
        inputs["token_type_ids"] = token_type_ids
    depth = encoder.config.num_hidden_layers
    layers = [layer % depth for layer in layers]
    only_last = all(layer == depth - 1 for layer in layers)
    output = encoder(**inputs, output_hidden_states=not only_last, return_dict=True)
    last = output.last_hidden_state
    # hidden_states[0] is the embedding layer's output
    states = [last if i == depth - 1 else output.hidden_states[i + 1] for i in layers]
    pooled = [pool(state, inputs["attention_mask"], pooling) for state in states]
    n = input_ids.shape[0]
    return [pair_features(p[:n], p[n:]) for p in pooled] if bi_encoded else pooled


def split_texts(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, text: torch.Tensor, text_length: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of two texts, one after the other, as rows of one text: all the first ones, then all the second ones."""
    total, second = attention_mask.sum(1), (attention_mask * text).sum(1)
    lengths, starts = torch.cat([total - second, second]), torch.cat([torch.zeros_like(total), total - second])
    longest = int(lengths.max()) if text_length is None else text_length
    place = torch.arange(longest, device=input_ids.device)
    mask = (place < lengths.unsqueeze(1)).to(attention_mask.dtype)
    source = (starts.unsqueeze(1) + place) * mask  # padding is filled with the row's first token, and not read
    return torch.cat([input_ids, input_ids]).gather(1, source), mask


def pair_features(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """What is known of a pair from the embeddings of its texts: ``[u, v, |u - v|]`` (Reimers & Gurevych, EMNLP 2019)."""
    return torch.cat([u, v, (u - v).abs()], dim=-1)


def embedding_width(encoder: Encoder, bi_encoded: bool) -> int:
    """Numbers in the embedding of a row: `hidden`, or 3 times as many for pairs whose texts are encoded separately."""
    return encoder.config.hidden_size * (3 if bi_encoded else 1)


@dataclass(frozen=True)
class ModelOutput:
    """What a forward pass found of a batch: logits, shape (batch, n_classes); the pooled last layer, (batch, width); and the
    pooled outputs of the layers that the model was asked for, each of that shape.
    """

    logits: torch.Tensor
    embedding: torch.Tensor
    layers: list[torch.Tensor]


class TextClassifier(nn.Module):
    """Encoder, pooling and label head; and, while it is meta fine-tuned, what a recipe puts beside them.

    `bi_encoded`: rows are pairs, whose texts are encoded separately.
    """

    def __init__(self, encoder: Encoder, n_classes: int, pooling: str = "mean", bi_encoded: bool = False) -> None:
        super().__init__()
        self.encoder: Encoder = encoder
        self.pooling, self.bi_encoded = pooling, bi_encoded
        self.text_length: int | None = None  # set for an export; see `split_texts`
        self.dropout = nn.Dropout(0.1)
        self.label_head = nn.Linear(embedding_width(encoder, bi_encoded), n_classes, dtype=torch.float32)
        self.heads = nn.ModuleDict()  # a recipe's own, while it trains
        self.layers: list[int] = []  # whose pooled outputs `forward` returns as well

    def embed(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Pooled last layer, shape (batch, `embedding_width`)."""
        return self.pooled_layers([-1], input_ids, attention_mask, token_type_ids)[0]

    def pooled_layers(self, layers: Sequence[int], *inputs: torch.Tensor | None) -> list[torch.Tensor]:
        """Pooled outputs of the given layers, each of shape (batch, `embedding_width`)."""
        parts: Any = inputs
        return pooled_layers(self.encoder, layers, self.pooling, self.bi_encoded, *parts, text_length=self.text_length)

    def label_logits(self, **inputs: torch.Tensor) -> torch.Tensor:
        """Label logits alone, shape (batch, n_classes)."""
        return self._label_logits(self.embed(**inputs))

    def _label_logits(self, pooled: torch.Tensor) -> torch.Tensor:
        with torch.autocast(pooled.device.type, enabled=False):  # heads are small: keep all their digits
            return self.label_head(self.dropout(pooled))

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
    ) -> ModelOutput:
        """Label logits, the embedding, and the pooled outputs of `layers`."""
        last, *chosen = self.pooled_layers([-1, *self.layers], input_ids, attention_mask, token_type_ids)
        return ModelOutput(self._label_logits(last), last, chosen)


def with_tensors(module: Module, tensors: Mapping[str, torch.Tensor]) -> Module:
    """A module like `module` that shares its tensors, but for those given by name.

    Nothing is copied on the device where the tensors lie, and `module` is left alone, so many domains' models cost
    what differs between them.
    """
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
