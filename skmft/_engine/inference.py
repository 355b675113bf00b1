"""Forward passes over many texts: longest first, in batches that fit, without gradients; embeddings kept where asked."""

from __future__ import annotations

import gc
import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .cache import Memory, RowStore
from .encoder import Encoder, EncoderSource
from .pooling import embedding_width, pooled_layers
from .runtime import Runtime, autocast
from .tokens import TokenizedTexts

Forward = Callable[..., torch.Tensor]
CHUNK_ROWS = 32_768  # embedded, or looked up in the user's memory, at a time
_CPU_TOKENS = 2048  # a batch on a CPU; 16 rows of 128 tokens ran 10 to 20% faster than 32 (MiniLM, L2 of 1 MiB a core)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed: CUDA's error, or the untyped ones of CPUs, other devices and CUDA's libraries."""
    signs = ("out of memory", "DefaultCPUAllocator", "_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


@torch.inference_mode()
def run_in_batches(
    forward: Forward, texts: TokenizedTexts, width: int, max_tokens: int, runtime: Runtime, description: str = ""
) -> NDArray[np.float32]:
    """Run a forward pass over all texts, longest first. Where memory runs out, batches are halved, with a warning."""
    out, device, what = np.empty((len(texts), width), dtype=np.float32), runtime.device, description or "inference"
    lengths = np.maximum(texts.lengths, 1)
    order, done, halved = np.argsort(-lengths, kind="stable"), 0, False
    if device.type == "cpu":
        max_tokens = min(max_tokens, _CPU_TOKENS)
    with runtime.bar(description, len(texts), "text") as bar, autocast(device, runtime.dtype):
        while done < len(texts):
            longest = int(lengths[order[done]])
            rows = order[done : done + max(1, max_tokens // longest)]
            try:
                batch = {name: t.to(device) for name, t in texts.batch(rows).items()}
                out[rows] = forward(**batch).float().cpu().numpy()
                done += len(rows)
                if bar is not None:
                    bar.update(len(rows))
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                if len(rows) == 1:
                    found = f"{what}: out of memory with a single row of {longest} tokens"
                    mend = f"lower max_length, or take a smaller model. The device said: {error}"
                    raise torch.OutOfMemoryError(f"{found}; {mend}") from error
            batch, max_tokens, halved = {}, (len(rows) + 1) // 2 * longest, True
            gc.collect()  # out here the error is gone, and with it the frames that hold tensors
            if torch.cuda.is_initialized():
                torch.cuda.empty_cache()
    if halved:
        found = f"{what}: memory ran out, so batches were halved until they held {max_tokens} tokens"
        mend = "The results are the same, only later. A smaller batch_size or max_length avoids this."
        warnings.warn(f"{found}. {mend}", UserWarning, stacklevel=2)
    return out


def embed(
    encoder: Encoder, tokens: TokenizedTexts, pooling: str, runtime: Runtime, max_tokens: int, description: str = ""
) -> NDArray[np.float32]:
    """Pooled last layer of every row, shape (n_rows, `embedding_width`)."""
    encoder, bi_encoded = encoder.to(runtime.device).eval(), tokens.bi_encoded

    def forward(**batch: torch.Tensor) -> torch.Tensor:
        return pooled_layers(encoder, [-1], pooling, bi_encoded, batch)[0]

    return run_in_batches(forward, tokens, embedding_width(encoder, bi_encoded), max_tokens, runtime, description)


@dataclass(frozen=True)
class PretrainedEmbedder:
    """Embeds rows by the pre-trained encoder, each text only once in the life of the user's `memory`."""

    encoder: Encoder
    source: EncoderSource
    pooling: str
    max_length: int
    max_tokens: int
    runtime: Runtime
    memory: Memory = None

    def chunks(
        self, tokens: TokenizedTexts, rows: NDArray[np.int64], description: str = ""
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Embeddings of some rows, chunk by chunk: which of `rows`, and their embeddings, (n, `embedding_width`)."""
        model = self.source.name, self.source.sha256, self.encoder.config.to_json_string()
        how = self.max_length, self.pooling, tokens.bi_encoded, str(self.runtime.dtype), self.runtime.device.type
        store = RowStore(self.memory, "embeddings", *model, *how)
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, min(start + CHUNK_ROWS, len(rows)))
            some = tokens.subset(rows[part])

            def compute(which: NDArray[np.int64], some: TokenizedTexts = some) -> NDArray[np.float32]:
                return embed(self.encoder, some.subset(which), self.pooling, self.runtime, self.max_tokens, description)

            keys = [hashlib.sha256(some.row(i).tobytes()).digest() for i in range(len(some))]
            yield part, np.stack(store.get(keys, compute, np.float32))
