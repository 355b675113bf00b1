"""Forward passes over many texts: longest first, in batches that fit, without gradients; embeddings kept where asked."""

from __future__ import annotations

import gc
import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from .cache import Memory, RowStore
from .encoder import Encoder, EncoderSource
from .model import embedding_width, pooled_layers
from .runtime import Runtime, autocast
from .tokens import TokenizedTexts, sorted_batches

CHUNK_ROWS = 32_768  # embedded, or looked up in the user's memory, at a time
_CPU_TOKENS = 2048  # a batch on a CPU; 16 rows of 128 tokens ran 10 to 20% faster than 32 (MiniLM, L2 of 1 MiB a core)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: CUDA's error, or the untyped ones of CPUs, other devices and CUDA's libraries."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    signs = ("out of memory", "DefaultCPUAllocator", "_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


@torch.inference_mode()
def run_in_batches(
    forward: Callable[..., torch.Tensor],
    texts: TokenizedTexts,
    *,
    width: int,
    max_tokens: int,
    runtime: Runtime,
    description: str = "",
    columns: Mapping[str, NDArray[np.int64]] | None = None,
) -> NDArray[np.float32]:
    """Run a forward pass over all texts. Where memory runs out, batches are halved, with a warning."""
    out = np.empty((len(texts), width), dtype=np.float32)
    device = runtime.device
    if device.type == "cpu":
        max_tokens = min(max_tokens, _CPU_TOKENS)
    bar = None
    if description and runtime.verbose:
        from tqdm.auto import tqdm

        bar = tqdm(desc=description, unit="text", total=len(texts))
    limit: int | None = None  # tokens that fit, once memory has run out
    lengths = texts.lengths
    with autocast(device, runtime.dtype):
        for rows in sorted_batches(lengths, max_tokens):
            start, longest = 0, max(1, int(lengths[rows[0]]))
            while start < len(rows):
                at_once = len(rows) if limit is None else max(1, limit // longest)
                part = rows[start : start + at_once]
                batch = {name: t.to(device) for name, t in texts.batch(part).items()}
                batch.update({name: torch.from_numpy(v[part]).to(device) for name, v in (columns or {}).items()})
                try:
                    out[part] = forward(**batch).float().cpu().numpy()
                    start += len(part)
                    continue
                except RuntimeError as error:
                    if not is_out_of_memory(error):
                        raise
                    if len(part) == 1:
                        raise torch.OutOfMemoryError(
                            f"{description or 'inference'}: out of memory with a single row of {longest} tokens; lower "
                            f"max_length, or take a smaller model. The device said: {error}"
                        ) from error
                # out here the error is gone, and with it the frames that hold tensors
                limit = (len(part) + 1) // 2 * longest
                del batch
                gc.collect()
                if torch.cuda.is_initialized():
                    torch.cuda.empty_cache()
            if bar is not None:
                bar.update(len(rows))
    if bar is not None:
        bar.close()
    if limit is not None:
        warnings.warn(
            f"{description or 'inference'}: memory ran out, so batches were halved until they held {limit} tokens. The results "
            "are the same, only later. A smaller batch_size or max_length avoids this.",
            UserWarning,
            stacklevel=2,
        )
    return out


def embed(
    encoder: Encoder, tokens: TokenizedTexts, pooling: str, runtime: Runtime, max_tokens: int, description: str = ""
) -> NDArray[np.float32]:
    """Pooled last layer of every row, shape (n_rows, `embedding_width`)."""
    encoder = encoder.to(runtime.device).eval()
    return run_in_batches(
        lambda **batch: pooled_layers(encoder, [-1], pooling, tokens.bi_encoded, **batch)[0],
        tokens,
        width=embedding_width(encoder, tokens.bi_encoded),
        max_tokens=max_tokens,
        runtime=runtime,
        description=description,
    )


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

    def embed(self, tokens: TokenizedTexts, description: str = "") -> NDArray[np.float32]:
        """Embeddings of all rows, shape (n_rows, `embedding_width`)."""

        def compute(rows: TokenizedTexts) -> NDArray[np.float32]:
            return embed(self.encoder, rows, self.pooling, self.runtime, self.max_tokens, description)

        if self.memory is None:
            return compute(tokens)
        about = (
            self.source.name,
            self.source.sha256,
            self.encoder.config.to_json_string(),
            self.max_length,
            self.pooling,
            tokens.bi_encoded,
            str(self.runtime.dtype),
            self.runtime.device.type,
        )
        keys = [hashlib.sha256(tokens.row(i).tobytes()).digest() for i in range(len(tokens))]
        store = RowStore(self.memory, "embeddings", *about)
        return np.stack(store.get(keys, lambda missing: list(compute(tokens.subset(missing))), np.float32))

    def chunks(
        self, tokens: TokenizedTexts, rows: NDArray[np.int64], description: str = ""
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Embeddings of some rows, chunk by chunk: which of `rows`, and their embeddings."""
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, min(start + CHUNK_ROWS, len(rows)))
            yield part, self.embed(tokens.subset(rows[part]), description)
