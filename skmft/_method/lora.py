"""Low-rank adapters (LoRA): beside an encoder's linear map x W', a domain's own (x A') B' of small rank.

E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv:2106.09685). peft makes the adapters
that are trained. What is kept of them, ``<layer>.lora_A`` (rank, in) and ``<layer>.lora_B`` (out, rank), has the factor
alpha / rank multiplied into B, so that using it needs neither peft nor the settings of the training.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import torch
from torch import nn

from .._engine.encoder import Encoder, need
from .._typing import Tensors

LoraParams = Any  # None, a dict of what peft's LoraConfig takes, or a LoraConfig

LORA_A, LORA_B = ".lora_A", ".lora_B"
LORA_DEFAULTS = {"r": 8, "lora_alpha": 16, "target_modules": None}
_READ = {*LORA_DEFAULTS, "lora_dropout", "use_rslora", "init_lora_weights"}
_PEFT = ("lora", "adaptation='lora'")
_INITS = (True, False, "gaussian", "orthogonal")
# Query and value projections by the names that encoders give them; ModernBERT has one layer for query, key and value.
_QUERY_VALUE = {"query", "value", "query_proj", "value_proj", "q_proj", "v_proj", "q_lin", "v_lin", "q", "v", "Wqkv"}


def default_targets(encoder: Encoder) -> str | list[str]:
    """Names of the query and value projections; all linear layers where no name is known."""
    leaves = {name.rpartition(".")[2] for name, m in encoder.named_modules() if isinstance(m, nn.Linear)}
    return sorted(leaves & _QUERY_VALUE) or "all-linear"


def add_adapters(encoder: Encoder, given: LoraParams) -> None:
    """Put peft's adapters beside linear layers, in place: A drawn from torch's generator, B zero; only they are trained."""
    config = _config(given, encoder)
    targets = config.target_modules
    linear = [name for name, m in encoder.named_modules() if isinstance(m, nn.Linear)]
    missing = [t for t in targets if not any(f".{name}".endswith(f".{t}") for name in linear)]
    try:
        if missing and not isinstance(targets, str):
            raise ValueError(f"no linear layer is named {sorted(missing)[0]!r}")
        need("peft", *_PEFT).inject_adapter_in_model(config, encoder)
        if odd := [name for name, layer in _adapted(encoder) if not isinstance(layer.get_base_layer(), nn.Linear)]:
            raise ValueError(f"{odd[0]!r} is not linear")
    except (ValueError, re.error) as error:
        raise ValueError(
            f"lora_config={given!r}: {str(error).splitlines()[0]}; expected target_modules of None, 'all-linear', names of "
            f"linear layers such as {sorted({name.rpartition('.')[2] for name in linear})}, or a regular expression of full "
            f"names such as {linear[0]!r}."
        ) from error


def _config(given: LoraParams, encoder: Encoder) -> Any:
    """Peft's configuration, its target modules filled in."""
    peft = need("peft", *_PEFT)
    try:
        own = isinstance(given, peft.LoraConfig)
        config = copy.deepcopy(given) if own else peft.LoraConfig(**{**LORA_DEFAULTS, **(given or {})})
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"lora_config={given!r}: {error}; expected None, a dict of what peft.LoraConfig takes, such as {LORA_DEFAULTS}, "
            "or a LoraConfig."
        ) from error
    plain = vars(peft.LoraConfig())
    odd = {name: value for name, value in vars(config).items() if name not in _READ and value != plain.get(name)}
    if config.init_lora_weights not in _INITS:
        odd["init_lora_weights"] = config.init_lora_weights
    if odd:
        raise ValueError(
            f"lora_config sets {odd}; a domain's adapters are kept as plain low-rank matrices, which {sorted(_READ)} describe, "
            f"with init_lora_weights among {_INITS}, which leave the encoder as it is. Leave the others out."
        )
    if config.target_modules is None:
        config.target_modules = default_targets(encoder)
    return config


def check_settings(encoder: Encoder, given: LoraParams) -> None:
    """Raise what `add_adapters` would raise, on a copy without weights."""
    empty: dict[int, Any] = {id(t): nn.Parameter(t.to("meta"), False) for t in encoder.parameters()}
    add_adapters(copy.deepcopy(encoder, memo=empty), given)


def _adapted(module: nn.Module) -> list[tuple[str, Any]]:
    """Layers with peft's adapters, by name."""
    return [(name, m) for name, m in module.named_modules() if hasattr(m, "lora_A") and hasattr(m, "get_base_layer")]


def adapter_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """What is kept of the trained adapters in a module."""
    out = {}
    for name, layer in _adapted(module):
        [key] = layer.lora_A
        out[name + LORA_A] = layer.lora_A[key].weight.detach()
        out[name + LORA_B] = layer.lora_B[key].weight.detach() * layer.scaling[key]
    return out


def adapted_layers(tensors: Tensors) -> list[str]:
    """Names of the layers that have adapters."""
    return [name.removesuffix(LORA_A) for name in tensors if name.endswith(LORA_A)]


def merged(module: nn.Module, tensors: Tensors) -> dict[str, torch.Tensor]:
    """A domain's tensors in the names of `module`: every pair A, B becomes the weight W + B A of its layer."""
    out = {name: tensor for name, tensor in tensors.items() if not name.endswith((LORA_A, LORA_B))}
    for name in adapted_layers(tensors):
        theirs = module.get_parameter(f"{name}.weight").detach()
        weight = tensors.get(f"{name}.weight", theirs).to(theirs.device)  # a recipe may have given the domain its own
        out[f"{name}.weight"] = weight + (tensors[name + LORA_B] @ tensors[name + LORA_A]).to(weight.device)
    return out
