"""Is a folder what `save` writes, before anything is built from it?"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .._method.lora import LORA_A, LORA_B
from .._typing import Json, Params
from .folder import PersistenceError, read_json, reading

_NEVER = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".safetensors", ".py", ".pyc", ".so"}
_CODE_KEYS = {"auto_map", "transformers_weights", "quantization_config"}


def typed(value: Json, kind: type, name: str) -> Any:
    """The value, if it is of this very type."""
    if type(value) is not kind:
        raise TypeError(f"{name} is {value!r}; expected a value of type {kind.__name__}")
    return value


def check_encoder(folder: Path) -> None:
    """Compare the weights with what config.json asks for, before anything of that size is made."""
    from transformers import AutoConfig, AutoModel

    _check_names(folder)
    config_path = folder / "config.json"
    raw = read_json(config_path)
    with reading(config_path):
        _refuse_keys(raw)
        for name in ("num_hidden_layers", "n_layers", "num_layers"):
            if name in raw and not 0 < typed(raw[name], int, name) <= 1000:
                raise ValueError(f"{name} is {raw[name]}")
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            empty = AutoModel.from_config(config, trust_remote_code=False)
    expected = {n: tuple(t.shape) for n, t in empty.state_dict().items() if not n.startswith("pooler.")}
    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with reading(path), safe_open(path, framework="pt") as file:
            found.update({n: tuple(file.get_slice(n).get_shape()) for n in file.keys()})
    if found != expected:
        odd = sorted({n for n in {*found, *expected} if found.get(n) != expected.get(n)})[0]
        raise PersistenceError(
            f"{folder} is not one model: {odd!r} has shape {found.get(odd)} in the weights and {expected.get(odd)} by "
            "config.json; save again."
        )


def _check_names(folder: Path) -> None:
    """No weights and code but the weights that `save` writes (beside a tokenizer's files): transformers would look further."""
    shards = []
    for path in sorted(folder.iterdir()):
        is_weights = bool(re.fullmatch(r"model(-\d{5}-of-\d{5})?\.safetensors", path.name))
        if is_weights:
            shards.append(path.name)
        elif path.is_dir() or path.suffix in _NEVER or path.name.startswith("adapter_"):
            raise PersistenceError(f"{path} is no file that save writes; remove it, or save again.")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or sorted(set(map(str, weight_map.values()))) != shards:
            raise PersistenceError(f"{index} does not name the files that are there, {shards}; save again.")
    elif shards != ["model.safetensors"]:
        raise PersistenceError(f"{folder} has the weights {shards}; expected model.safetensors, or {index.name} too.")
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.exists():
        content = read_json(tokenizer)
        with reading(tokenizer):
            _refuse_keys(content)


def _refuse_keys(content: Json) -> None:
    """Refuse what has transformers run code, read other files or fetch kernels; at any depth."""
    if isinstance(content, list):
        content = dict(enumerate(content))
    if isinstance(content, dict):
        for key, value in content.items():
            if key in _CODE_KEYS or str(key).endswith("_implementation"):
                raise ValueError(f"{key} names code or other files, which are never read")
            _refuse_keys(value)


def adapter_shapes(path: Path, tensors: Mapping[str, torch.Tensor], module: torch.nn.Module) -> Params:
    """Tensors of the shapes that the adapters in a domain's file must have: those of their layers, and one rank a pair."""
    layers = {n: m for n, m in module.named_modules() if isinstance(m, torch.nn.Linear) and n.startswith("encoder.")}
    expected = {}
    for name in {name.removesuffix(end) for name in tensors for end in (LORA_A, LORA_B) if name.endswith(end)}:
        if (
            name not in layers
            or not {name + LORA_A, name + LORA_B} <= set(tensors)
            or not tensors[name + LORA_A].numel()
        ):
            raise PersistenceError(f"{path} does not fit the meta-learner: the adapter of {name!r}; save again.")
        weight, rank = layers[name].weight, len(tensors[name + LORA_A])
        expected[name + LORA_A] = weight.new_empty((rank, weight.shape[1]), device="meta")
        expected[name + LORA_B] = weight.new_empty((weight.shape[0], rank), device="meta")
    return expected


def same_shapes(path: Path, got: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor], all_names: bool) -> None:
    """Raise a PersistenceError where tensors do not fit those of a model."""
    wrong = {n for n in got if n not in own or own[n].shape != got[n].shape or own[n].dtype != got[n].dtype}
    if all_names:
        wrong |= set(own) - set(got)
    if wrong or not got:
        raise PersistenceError(
            f"{path} does not fit the meta-learner: {sorted(wrong)[:3] or 'it is empty'}; save again."
        )
