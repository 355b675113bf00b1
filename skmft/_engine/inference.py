"""Forward passes over many texts: longest first, without gradients; embeddings kept where asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .cache import Memory, results_in
from .encoder import Encoder, EncoderSource
from .pooling import embedding_width, pooled_layers
from .runtime import Runtime, autocast
from .tokens import TokenizedTexts

Forward = Callable[..., torch.Tensor]
CHUNK_ROWS = 32_768  # embedded at a time
_CPU_TOKENS = 2048  # a batch on a CPU; 16 rows of 128 tokens ran 10 to 20% faster than 32 (MiniLM, L2 of 1 MiB a core)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: CUDA's error, or the untyped ones of CPUs, other devices and CUDA's libraries."""
    signs = ("out of memory", "DefaultCPUAllocator", "_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


@contextmanager
def telling_what_to_set(where: str, mend: str) -> Iterator[None]:
    """Where memory runs out, an error says which parameters to set."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise torch.OutOfMemoryError(f"{where}; {mend}. The device said: {error}") from error


@torch.inference_mode()
def run_in_batches(
    forward: Forward, texts: TokenizedTexts, width: int, max_tokens: int, runtime: Runtime, description: str = ""
) -> NDArray[np.float32]:
    """Run a forward pass over all texts, longest first."""
    out, device = np.empty((len(texts), width), dtype=np.float32), runtime.device
    lengths = np.maximum(texts.lengths, 1)
    order, done = np.argsort(-lengths, kind="stable"), 0
    if device.type == "cpu":
        max_tokens = min(max_tokens, _CPU_TOKENS)
    with runtime.bar(description, len(texts), "text") as bar, autocast(device, runtime.dtype):
        while done < len(texts):
            longest = int(lengths[order[done]])
            rows = order[done : done + max(1, max_tokens // longest)]
            where = f"{description or 'inference'}: out of memory with {len(rows)} x {longest} tokens"
            with telling_what_to_set(where, "set a smaller batch_size, or device='cpu'"):
                batch = {name: t.to(device) for name, t in texts.batch(rows).items()}
                out[rows] = forward(**batch).float().cpu().numpy()
            done += len(rows)
            if bar is not None:
                bar.update(len(rows))
    return out


def embed(
    encoder: Encoder, tokens: TokenizedTexts, pooling: str, runtime: Runtime, max_tokens: int, description: str = ""
) -> NDArray[np.float32]:
    """Pooled last layer of every row, shape (n_rows, `embedding_width`)."""
    encoder, bi_encoded = encoder.to(runtime.device).eval(), tokens.bi_encoded

    def forward(**batch: torch.Tensor) -> torch.Tensor:
        return pooled_layers(encoder, [-1], pooling, bi_encoded, batch)[0]

    return run_in_batches(forward, tokens, embedding_width(encoder, bi_encoded), max_tokens, runtime, description)


def _embed_kept(about: tuple, tokens: TokenizedTexts, embedder: PretrainedEmbedder, description: str) -> NDArray:
    """What a user's `memory` keeps, by `about` (what embeddings depend on besides the tokens) and the tokens."""
    how = embedder.pooling, embedder.runtime, embedder.max_tokens, description
    return embed(embedder.encoder, tokens, *how)


@dataclass(frozen=True)
class PretrainedEmbedder:
    """Embeds rows by the pre-trained encoder; the same rows only once in the life of the user's `memory`."""

    encoder: Encoder
    source: EncoderSource
    pooling: str
    max_tokens: int
    runtime: Runtime
    memory: Memory = None

    def chunks(
        self, tokens: TokenizedTexts, rows: NDArray[np.int64], description: str = ""
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Embeddings of some rows, chunk by chunk: which of `rows`, and their embeddings, (n, `embedding_width`)."""
        kept = results_in(self.memory).cache(_embed_kept, ignore=["embedder", "description"])
        model = self.source.name, self.source.sha256, self.encoder.config.to_json_string(), self.pooling
        about = (*model, str(self.runtime.dtype), self.runtime.device.type)
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, min(start + CHUNK_ROWS, len(rows)))
            yield part, kept(about, tokens.subset(rows[part]), self, description)
