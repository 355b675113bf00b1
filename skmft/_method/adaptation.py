"""Stage 3: how the meta-learner becomes a domain's own model (paper, section 3.4), and how domains' models answer."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from .._engine.batches import TrainingRows
from .._engine.inference import run_in_batches
from .._engine.model import TextClassifier, with_tensors
from .._engine.runtime import Runtime, isolated_generators
from .._engine.tokens import TokenizedTexts
from .._engine.training import TrainingSettings, auto_epochs, fine_tune
from .._inputs.rows import Rows
from .._typing import Name, Record, Tensors
from .label_loss import label_terms
from .lora import LoraParams, adapter_tensors, add_adapters, merged

# The "auto" epochs: as many as make `min_steps` optimiser steps, but `min_epochs` at least.
ADAPTATION_EPOCHS = {"min_epochs": 2, "min_steps": 4}
# The "auto" learning rates: the fewer the parameters that are trained, the larger.
ADAPTATION_LEARNING_RATES = {"full": 1e-5, "head": 1e-3, "lora": 3e-4}
_HEAD = "label_head."
_TOKENS = 2048  # a batch of a domain with an encoder of its own, at most: the meta-learner's is on the device beside it


@dataclass(frozen=True)
class AdaptationSettings:
    """How a domain is adapted to; names as in MetaFineTunedClassifier, less ``adaptation_``."""

    method: str
    epochs: int | str = "auto"
    learning_rate: float | str | None = "auto"
    lora_config: LoraParams = None


@dataclass(frozen=True)
class Adapted:
    """What stage 3 found for one domain.

    `tensors` are what its model has in place of the meta-learner's, and its adapters (see `skmft._method.lora`), on the CPU;
    None where its rows cannot train a model.
    """

    tensors: dict[str, torch.Tensor] | None
    history: list[Record]


def adapt_to_domain(
    meta_learner: TextClassifier,
    rows: Rows,
    name: Name,
    settings: AdaptationSettings,
    training: TrainingSettings,
    runtime: Runtime,
    own: Tensors | None = None,
) -> Adapted:
    """Fine-tune a copy of the meta-learner, with the recipe's `own` tensors, on one domain's rows, by plain cross entropy."""
    entry = {"stage": "adaptation", "domain": name}
    if not rows.can_train:
        if runtime.verbose:
            print(f"domain {name!r}: one class only, so the meta-learner answers for it")
        return Adapted(None, [{**entry, "epochs": 0}])
    start, seed, method = time.perf_counter(), runtime.derive(f"adaptation {name}"), settings.method
    auto, rate = auto_epochs(len(rows), training.batch_size, **ADAPTATION_EPOCHS), settings.learning_rate
    epochs = auto if isinstance(settings.epochs, str) else settings.epochs
    if rate is not None:
        training = replace(training, learning_rate=ADAPTATION_LEARNING_RATES[method] if isinstance(rate, str) else rate)
    module = copy.deepcopy(with_tensors(meta_learner, own or {}))
    module.requires_grad_(True)
    module.encoder.requires_grad_(method == "full")
    if method == "lora":
        with isolated_generators(seed, runtime.device):
            add_adapters(module.encoder, settings.lora_config)
    data = TrainingRows(rows.tokens, rows.labels, rows.weights)
    records = fine_tune(module, data, label_terms, training, runtime, epochs=epochs, seed=seed)
    trained = {n: p.detach() for n, p in module.named_parameters() if n.startswith(_HEAD) or method == "full"}
    tensors = {n: t.cpu().contiguous() for n, t in {**(own or {}), **adapter_tensors(module), **trained}.items()}
    if runtime.verbose:
        loss, seconds = records[-1]["label_loss"], time.perf_counter() - start
        print(f"domain {name!r}: adapted on {len(rows)} rows in {epochs} epochs, loss {loss:.3f}, {seconds:.1f} s")
    return Adapted(tensors, [{**entry, "epochs": epochs, **record} for record in records])


def domain_model(meta_learner: TextClassifier, tensors: Tensors, dtype: torch.dtype = torch.float32) -> TextClassifier:
    """The network of one domain, adapters merged, around the meta-learner's tensors where it has none of its own.

    Its own linear layers have weights of `dtype`, as autocast would cast them for every batch.
    """
    own = merged(meta_learner, tensors)
    for name, layer in meta_learner.encoder.named_modules(prefix="encoder"):
        if isinstance(layer, torch.nn.Linear) and (weight := f"{name}.weight") in own:
            own[weight] = own[weight].to(dtype)
    return with_tensors(meta_learner, own)


def has_own_encoder(tensors: Tensors) -> bool:
    """Whether a domain's model has more of its own than a label head."""
    return any(not name.startswith(_HEAD) for name in tensors)


def domain_logits(
    meta_learner: TextClassifier,
    tokens: TokenizedTexts,
    own: Sequence[Name],
    adapted: Mapping[Name, Tensors],
    runtime: Runtime,
    max_tokens: int,
) -> NDArray[np.float64]:
    """Label logits of every row by its domain's model; None in `own` is the meta-learner.

    Rows of the meta-learner and of domains with a label head alone go through the shared encoder together. The other models
    answer one after the other, so that one of them at a time is on the device.
    """
    number = {name: i for i, name in enumerate(dict.fromkeys(own))}
    which = np.array([number[name] for name in own])
    models: list[Tensors] = [{} if name is None else adapted[name] for name in number]
    n_classes, width = meta_learner.label_head.weight.shape
    logits = np.empty((len(tokens), n_classes))
    together = [i for i, tensors in enumerate(models) if not has_own_encoder(tensors)]
    if len(together) > 1:
        rows = np.flatnonzero(np.isin(which, together))
        embeddings = run_in_batches(meta_learner.embed, tokens.subset(rows), width, max_tokens, runtime)
        for i in together:
            mine = which[rows] == i
            with torch.inference_mode():
                head = domain_model(meta_learner, models[i]).label_head
                logits[rows[mine]] = head(torch.from_numpy(embeddings[mine]).to(runtime.device)).cpu().numpy()
    for i in range(len(models)):
        if i not in together or len(together) == 1:
            rows = np.flatnonzero(which == i)
            twin = domain_model(meta_learner, models[i], runtime.dtype) if models[i] else meta_learner
            most = max_tokens if i in together else min(max_tokens, _TOKENS)
            logits[rows] = run_in_batches(twin.label_logits, tokens.subset(rows), n_classes, most, runtime)
            del twin  # before the next one comes to the device
    return logits
