"""From token vectors to one vector a row: pooling over real tokens, of single texts and of pairs encoded separately."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .._typing import Tensors
from .encoder import Encoder


def pool(hidden: torch.Tensor, attention_mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """Mean of real tokens' vectors, or ``"cls"``, the first one: (batch, tokens, hidden) to (batch, hidden), in float32."""
    if pooling == "cls":
        return hidden[:, 0].float()
    mask = attention_mask.unsqueeze(-1).to(torch.float32)
    return (hidden.float() * mask).sum(1) / mask.sum(1).clamp(min=1.0)


def pooled_layers(
    encoder: Encoder,
    layers: Sequence[int],
    pooling: str,
    bi_encoded: bool,
    batch: Tensors,
    text_length: int | None = None,
) -> list[torch.Tensor]:
    """Pooled outputs of an encoder's layers, each of shape (batch, `embedding_width`)."""
    inputs = split_texts(batch, text_length) if bi_encoded else batch
    depth = encoder.config.num_hidden_layers
    layers = [layer % depth for layer in layers]
    only_last = set(layers) == {depth - 1}
    output = encoder(**inputs, output_hidden_states=not only_last, return_dict=True)
    # hidden_states[0] is the embedding layer's output, and the last one lacks the norm that may follow the last layer
    states = [output.last_hidden_state if i == depth - 1 else output.hidden_states[i + 1] for i in layers]
    pooled = [pool(state, inputs["attention_mask"], pooling) for state in states]
    if not bi_encoded:
        return pooled
    n = batch["input_ids"].shape[0]  # which ONNX exports as a variable
    pairs = [(p[:n], p[n:]) for p in pooled]
    return [torch.cat([u, v, (u - v).abs()], dim=-1) for u, v in pairs]  # Reimers & Gurevych, EMNLP 2019


def split_texts(batch: Tensors, text_length: int | None = None) -> dict[str, torch.Tensor]:
    """Rows of two texts, one after the other, as rows of one text: all the first ones, then all the second ones."""
    input_ids, attention_mask, text = (batch[name] for name in ("input_ids", "attention_mask", "token_type_ids"))
    total, second = attention_mask.sum(1), (attention_mask * text).sum(1)
    lengths, starts = torch.cat([total - second, second]), torch.cat([torch.zeros_like(total), total - second])
    longest = int(lengths.max()) if text_length is None else text_length
    place = torch.arange(longest, device=input_ids.device)
    mask = (place < lengths.unsqueeze(1)).to(attention_mask.dtype)
    source = (starts.unsqueeze(1) + place) * mask  # padding is filled with the row's first token, and not read
    return {"input_ids": torch.cat([input_ids, input_ids]).gather(1, source), "attention_mask": mask}


def embedding_width(encoder: Encoder, bi_encoded: bool) -> int:
    """Numbers in the embedding of a row: `hidden`, or 3 times as many for pairs whose texts are encoded separately."""
    return encoder.config.hidden_size * (3 if bi_encoded else 1)
