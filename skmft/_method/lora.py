"""Low-rank adapters (LoRA): beside an encoder's linear map x W', a domain's own (x A') B' of small rank.

E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022 (arXiv:2106.09685). peft makes the adapters
that are trained. What is kept of them are plain tensors, ``<layer>.lora_A`` (rank, in) and ``<layer>.lora_B`` (out, rank);
the factor alpha / rank is multiplied into B, so whoever uses them needs neither peft nor the settings of their training.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import nn

from .._engine.encoder import Encoder
from .._engine.model import TextClassifier, with_tensors

Tensors = Mapping[str, torch.Tensor]
LoraParams = Any  # None, a dict of what peft's LoraConfig takes, or a LoraConfig

LORA_A, LORA_B = ".lora_A", ".lora_B"
_INITS = ("gaussian", "orthogonal")  # of peft's, those that leave the encoder as it is
LORA_DEFAULTS = {"r": 8, "lora_alpha": 16, "target_modules": None}
# Query and value projections by the names that encoders give them; ModernBERT has one layer for query, key and value.
_QUERY_VALUE = {"query", "value", "query_proj", "value_proj", "q_proj", "v_proj", "q_lin", "v_lin", "q", "v", "Wqkv"}


def require_peft() -> Any:
    """The package peft."""
    try:
        return import_module("peft")
    except ImportError as error:
        raise ImportError("adaptation='lora' needs the package 'peft': pip install 'skmft[lora]'.") from error


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
        require_peft().inject_adapter_in_model(config, encoder)
        if odd := [name for name, layer in _trained(encoder) if not isinstance(layer.get_base_layer(), nn.Linear)]:
            raise ValueError(f"{odd[0]!r} is not linear")
    except (ValueError, re.error) as error:
        raise ValueError(
            f"lora_config={given!r}: {str(error).splitlines()[0]}; expected target_modules of None, 'all-linear', names of "
            f"linear layers such as {sorted({name.rpartition('.')[2] for name in linear})}, or a regular expression of full "
            f"names such as {linear[0]!r}."
        ) from error


def _config(given: LoraParams, encoder: Encoder) -> Any:
    """Peft's configuration, its target modules filled in."""
    peft = require_peft()
    if isinstance(given, peft.LoraConfig):
        config = copy.deepcopy(given)
    else:
        try:
            config = peft.LoraConfig(**{**LORA_DEFAULTS, **(given or {})})
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"lora_config={given!r}: {error}; expected None, a dict of what peft.LoraConfig takes, such as "
                f"{LORA_DEFAULTS}, or a LoraConfig."
            ) from error
    kept = peft.LoraConfig(
        r=config.r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        use_rslora=config.use_rslora,
        target_modules=config.target_modules,
        init_lora_weights=config.init_lora_weights,
    )
    if odd := sorted(n for n, v in vars(kept).items() if n not in ("target_modules",) and v != getattr(config, n)):
        raise ValueError(
            f"lora_config sets {odd}; a domain's adapters are kept as plain low-rank matrices, which r, lora_alpha, "
            "lora_dropout, use_rslora, init_lora_weights and target_modules describe. Leave the others out."
        )
    if isinstance(config.init_lora_weights, str) and config.init_lora_weights not in _INITS:
        raise ValueError(
            f"lora_config has init_lora_weights={config.init_lora_weights!r}; expected True, False or one of {_INITS}: others "
            "change the encoder's own weights, or read data first."
        )
    if config.target_modules is None:
        config.target_modules = default_targets(encoder)
    return config


def check_settings(encoder: Encoder, given: LoraParams) -> None:
    """Raise what `add_adapters` would raise, on a copy without weights."""
    tensors = (*encoder.parameters(), *encoder.buffers())
    empty: dict[int, Any] = {
        id(t): nn.Parameter(t.to("meta"), False) if isinstance(t, nn.Parameter) else t for t in tensors
    }
    add_adapters(copy.deepcopy(encoder, memo=empty), given)


def _trained(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Layers with peft's adapters, by name."""
    for name, layer in module.named_modules():
        if hasattr(layer, "lora_A") and hasattr(layer, "get_base_layer"):
            yield name, layer


def adapter_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """What is kept of the trained adapters in a module, on the CPU."""
    out = {}
    for name, layer in _trained(module):
        [key] = layer.lora_A
        out[name + LORA_A] = layer.lora_A[key].weight.detach().cpu().clone()
        out[name + LORA_B] = (layer.lora_B[key].weight.detach() * layer.scaling[key]).cpu()
    return out


def adapted_layers(tensors: Tensors) -> list[str]:
    """Names of the layers that a domain's tensors have adapters for."""
    return [name.removesuffix(LORA_A) for name in tensors if name.endswith(LORA_A)]


def merged(module: nn.Module, tensors: Tensors) -> dict[str, torch.Tensor]:
    """A domain's tensors in the names of `module`: every pair A, B becomes the weight W + B A of its layer."""
    out = {name: tensor for name, tensor in tensors.items() if not name.endswith((LORA_A, LORA_B))}
    for name in adapted_layers(tensors):
        theirs = module.get_parameter(f"{name}.weight").detach()
        weight = tensors.get(f"{name}.weight", theirs).to(
            theirs.device
        )  # a domain may have an encoder of its own below
        out[f"{name}.weight"] = weight + (tensors[name + LORA_B] @ tensors[name + LORA_A]).to(weight.device)
    return out


# ------------------------------------------------------------ rows of many domains in one batch


class NotByRowError(Exception):
    """A layer with adapters was given something that has no rows of its own, such as a table of relative positions."""


@dataclass
class _Batch:
    """The batch that is on its way through the network: which model answers each row, and which tokens it has."""

    model: Any = None
    shape: Any = None  # rows, tokens; where the texts of pairs are encoded separately, twice the rows, and None

    def holds(self, x: torch.Tensor) -> bool:
        """Whether x has the rows and tokens of this batch."""
        return x.ndim == 3 and x.shape[0] == self.shape[0] and self.shape[1] in (None, x.shape[1])


class RowwiseLinear(nn.Module):
    """A linear layer plus, for every row of the batch, the adapter of the row's model.

    Parameters
    ----------
    base : torch.nn.Module
    down : Tensor, shape (n_models, in, rank)
        The transposed A of every model; zero for a model that has none.
    up : Tensor, shape (n_models, rank, out)
        The transposed B.
    batch : _Batch
    """

    def __init__(self, base: nn.Module, down: torch.Tensor, up: torch.Tensor, batch: _Batch) -> None:
        super().__init__()
        self.base, self.down, self.up, self.batch = base, down, up, batch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.batch.holds(x):
            raise NotByRowError
        out = self.base(x)
        model = self.batch.model.repeat(len(x) // len(self.batch.model))
        down, up = (t[model].to(out.dtype) for t in (self.down, self.up))
        return torch.baddbmm(out, torch.bmm(x.to(out.dtype), down), up)


class RowwiseHead(nn.Module):
    """The label head of every row's own model; weight (n_models, n_classes, hidden), bias (n_models, n_classes)."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, batch: _Batch) -> None:
        super().__init__()
        self.weight, self.bias, self.batch = weight, bias, batch

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        own = self.batch.model
        return torch.baddbmm(self.bias[own].unsqueeze(2), self.weight[own], pooled.unsqueeze(2)).squeeze(2)


def rowwise_logits(module: TextClassifier, models: Sequence[Tensors]) -> Callable[..., torch.Tensor]:
    """Label logits of batches whose rows belong to several models that share one encoder.

    The function works on a twin of `module` that shares its tensors; `module` is left alone, so that others may use it
    meanwhile. One thread at a time may call the function.
    """
    twin: Any = with_tensors(module, {})
    head, batch = module.label_head, _Batch()
    device = head.weight.device
    for name in dict.fromkeys(layer for tensors in models for layer in adapted_layers(tensors)):
        base: Any = module.get_submodule(name)
        rank = max(len(t[name + LORA_A]) for t in models if name + LORA_A in t)
        down = torch.zeros(len(models), base.in_features, rank, device=device)
        up = torch.zeros(len(models), rank, base.out_features, device=device)
        for i, t in enumerate(models):
            if name + LORA_A in t:
                own = len(t[name + LORA_A])  # a smaller rank leaves zeros
                down[i, :, :own], up[i, :own] = t[name + LORA_A].T, t[name + LORA_B].T
        twin.set_submodule(name, RowwiseLinear(base, down, up, batch))
    weight, bias = (
        torch.stack([t.get(f"label_head.{n}", getattr(head, n)).to(device) for t in models]).detach()
        for n in ("weight", "bias")
    )
    twin.label_head = RowwiseHead(weight, bias, batch)

    def logits(model: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        shape = inputs["input_ids"].shape
        batch.model, batch.shape = model, (2 * shape[0], None) if module.bi_encoded else shape
        return twin.label_logits(**inputs)

    return logits
