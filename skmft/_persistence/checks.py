"""Is a folder what `save` writes, before anything is built from it?"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import load_file

from .._method.lora import LORA_A, LORA_B
from .._typing import Json, Tensors
from .folder import PersistenceError, read_json, reading

_NEVER = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".safetensors", ".py", ".pyc", ".so"}
_NEVER_KEYS = {"auto_map", "transformers_weights", "quantization_config"}
_MOST_LAYERS = 1000


def check_encoder(folder: Path) -> None:
    """Compare the weights with what config.json asks for, before anything of that size is made."""
    from transformers import AutoConfig, AutoModel

    _check_names(folder)
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.exists():
            with reading(path):
                _refuse_keys(read_json(path))
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    with torch.device("meta"):
        empty = AutoModel.from_config(config, trust_remote_code=False)
    empty.pooler = None
    empty.load_state_dict(load_file(folder / "model.safetensors"), assign=True)


def _check_names(folder: Path) -> None:
    """No weights but those that `save` writes, and no code: transformers would look further."""
    for path in sorted(folder.iterdir()):
        odd = path.suffix in _NEVER or path.name.startswith("adapter_") or path.name.endswith(".index.json")
        if path.is_dir() or (odd and path.name != "model.safetensors"):
            raise PersistenceError(f"{path} is no file that save writes; remove it, or save again.")


def _refuse_keys(content: Json) -> None:
    """Refuse what has transformers run code, read other files, fetch kernels or make layers without end; at any depth."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if isinstance(content, dict):
        for key, value in content.items():
            if key in _NEVER_KEYS or str(key).endswith("_implementation"):
                raise ValueError(f"{key} names code or other files, which are never read")
            if "layers" in str(key) and isinstance(value, int) and value > _MOST_LAYERS:
                raise ValueError(f"{key} is {value}; expected at most {_MOST_LAYERS}")
            _refuse_keys(value)


def adapter_shapes(tensors: Tensors, module: torch.nn.Module) -> Tensors:
    """Tensors of the shapes that adapters in a domain's file must have: those of their layers, and one rank a pair."""
    expected = {}
    for name, layer in module.named_modules():
        down = tensors.get(name + LORA_A, torch.empty(0))
        if isinstance(layer, torch.nn.Linear) and name.startswith("encoder.") and down.numel():
            weight = layer.weight.to("meta")
            expected[name + LORA_A] = weight.new_empty(len(down), layer.in_features)
            expected[name + LORA_B] = weight.new_empty(layer.out_features, len(down))
    return expected


def same_shapes(path: Path, got: Tensors, allowed: Tensors, needed: Collection[str]) -> None:
    """Raise a PersistenceError where tensors do not fit those that are allowed, or one that is needed is missing."""
    kinds = {name: (tensor.shape, tensor.dtype) for name, tensor in allowed.items()}
    wrong = {name for name, tensor in got.items() if kinds.get(name) != (tensor.shape, tensor.dtype)}
    if (wrong := wrong | {*needed} - {*got}) or not got:
        told = sorted(wrong)[:3] or "it is empty"
        raise PersistenceError(f"{path} does not fit the rest of the folder: {told}; save again.")
