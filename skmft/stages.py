"""The three stages in order: what each is given, and what it leaves.

`Run.params` is the estimator; nothing here changes it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from skorch.callbacks import Callback

from .adaptation import adapt_to_domain, can_adapt
from .corruption import CorruptionHead, MetaFineTuningLoss, draw_corrupted_labels
from .encoding import RowStore, Text, TokenizedTexts, tokenize, tokenize_once
from .inputs import balance_classes
from .networks import Encoder, EncoderSource, TextClassifier, load_encoder, pool, tokenizer_fingerprint
from .training import (
    FineTuningNet,
    Redraw,
    TrainingRows,
    TrainingSettings,
    auto_epochs,
    epoch_records,
    fine_tune,
    isolated_generators,
    make_net,
    resolve_device,
    resolve_precision,
    run_in_batches,
)
from .typicality import class_domain_prototypes, normalized_weights, similarities, typicality

# The "auto" epochs: as many as make `min_steps` optimiser steps, but `min_epochs` at least.
META_EPOCHS = {"min_epochs": 2, "min_steps": 60}
ADAPTATION_EPOCHS = {"min_epochs": 2, "min_steps": 4}


@dataclass(frozen=True)
class Run:
    """Device, precision and seed of one call."""

    params: Any
    device: torch.device
    dtype: torch.dtype
    seed: int

    @classmethod
    def start(cls, params: Any, seed: int | None = None) -> Run:
        device = resolve_device(params.device)
        if seed is None and params.random_state is None:  # numpy's global generator is not ours
            seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
        elif seed is None:
            seed = int(check_random_state(params.random_state).randint(2**31 - 1))
        return cls(params, device, resolve_precision(params.precision, device), seed)

    def derive(self, purpose: str) -> int:
        """A seed of its own for every purpose, so that one stage's draws do not shift another's."""
        digest = hashlib.sha256(f"{self.seed} {purpose}".encode()).digest()
        return int.from_bytes(digest[:4], "little") >> 1

    def generators(self, purpose: str) -> AbstractContextManager[None]:
        return isolated_generators(self.derive(purpose), self.device)

    def load(self, source: EncoderSource) -> Encoder:
        with self.generators("encoder"):
            return load_encoder(source)

    def tokenize(
        self, tokenizer: Any, source: EncoderSource, texts: Sequence[Text], token_types: bool
    ) -> TokenizedTexts:
        """Token ids of the texts, from the user's `memory` where they are there."""
        memory, max_length = self.params.memory, self.params.max_length
        if memory is None:
            return tokenize(tokenizer, texts, max_length, token_types)
        about = (source.name, source.sha256, tokenizer_fingerprint(tokenizer), max_length, token_types)
        return tokenize_once(RowStore(memory, "tokens", *about), tokenizer, texts, max_length, token_types)

    def embed(self, encoder: Encoder, tokens: TokenizedTexts, description: str = "") -> NDArray[np.float32]:
        """Pooled last layer of every row, shape (n_rows, hidden)."""
        encoder = encoder.to(self.device).eval()
        return self.batches(
            lambda **batch: pool(encoder(**batch).last_hidden_state, batch["attention_mask"], self.params.pooling),
            tokens,
            encoder.config.hidden_size,
            description if self.params.verbose else "",
        )

    def embed_pretrained(
        self, encoder: Encoder, source: EncoderSource, tokens: TokenizedTexts, description: str = ""
    ) -> NDArray[np.float32]:
        """`embed` by the pre-trained encoder, from the user's `memory` where rows are there."""
        if self.params.memory is None:
            return self.embed(encoder, tokens, description)
        about = (
            source.name,
            source.sha256,
            self.params.max_length,
            self.params.pooling,
            str(self.dtype),
            self.device.type,
        )
        keys = [hashlib.sha256(tokens.row(i).tobytes()).digest() for i in range(len(tokens))]
        rows = RowStore(self.params.memory, "embeddings", *about).get(
            keys, lambda missing: list(self.embed(encoder, tokens.subset(missing), description)), np.float32
        )
        return np.stack(rows)

    def batches(
        self, forward: Callable[..., torch.Tensor], tokens: TokenizedTexts, width: int, description: str = ""
    ) -> NDArray[np.float32]:
        """`run_in_batches` on this call's device, in its precision."""
        return run_in_batches(
            forward,
            tokens,
            width=width,
            max_tokens=self.params.batch_size * self.params.max_length,
            device=self.device,
            dtype=self.dtype,
            description=description,
        )

    def settings(self, learning_rate: float) -> TrainingSettings:
        e = self.params
        return TrainingSettings(
            learning_rate=learning_rate,
            batch_size=e.batch_size,
            weight_decay=e.weight_decay,
            warmup_ratio=e.warmup_ratio,
            max_grad_norm=e.max_grad_norm,
            callbacks=e.callbacks,
            device=self.device,
            dtype=self.dtype,
            verbose=e.verbose,
        )

    def net(self, module: TextClassifier) -> FineTuningNet:
        """A net around weights that were trained before, as `meta_fine_tune` leaves it."""
        criterion = partial(MetaFineTuningLoss, self.params.corruption_weight)
        settings = self.settings(self.params.learning_rate)
        net = make_net(module, criterion, settings, epochs=1, seed=self.derive("meta")).initialize()
        net.module_.eval()
        return net


@dataclass(frozen=True)
class Rows:
    """Tokenized rows with labels and domains as numbers."""

    tokens: TokenizedTexts
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    sample_weight: NDArray[np.float64]

    def where(self, mask: NDArray[np.bool_]) -> Rows:
        rows = np.flatnonzero(mask)
        return Rows(self.tokens.subset(rows), self.labels[rows], self.domains[rows], self.sample_weight[rows])


def score_typicality(
    run: Run,
    encoder: Encoder,
    source: EncoderSource,
    rows: Rows,
    n_classes: int,
    n_domains: int,
    history: list[dict[str, Any]],
) -> tuple[NDArray[np.float64], dict[str, Any]]:
    """Stage 1: t of every row, and the fitted attributes that belong to it."""
    if not run.params.typicality_weighting:
        return np.ones(len(rows.labels)), {}
    start = time.perf_counter()
    used = rows.sample_weight > 0
    embeddings = np.zeros((len(used), encoder.config.hidden_size), dtype=np.float32)
    for part in (used, ~used):  # apart, so that rows of weight 0 change no batch of the others
        if part.any():
            embeddings[part] = run.embed_pretrained(encoder, source, rows.where(part).tokens, "typicality")
    prototypes, shares = class_domain_prototypes(
        embeddings[used],
        rows.labels[used],
        rows.domains[used],
        n_classes=n_classes,
        n_domains=n_domains,
        sample_weight=rows.sample_weight[used],
        n_prototypes=run.params.n_prototypes,
        random_state=run.derive("prototypes"),
    )
    own, cross = similarities(embeddings, rows.labels, rows.domains, prototypes, shares)
    t = typicality(own, cross, run.params.typicality_balance)
    history.append({"stage": "typicality", "seconds": time.perf_counter() - start})
    return t, {
        "prototypes_": prototypes[:, :, 0] if run.params.n_prototypes == 1 else prototypes,
        "prototype_shares_": shares,
        "own_similarity_": own,
        "cross_similarity_": cross,
        "typicality_": t,
    }


def meta_fine_tune(
    run: Run,
    encoder: Encoder,
    rows: Rows,
    t: NDArray[np.float64],
    classes: NDArray[Any],
    names: NDArray[Any],
    layers: list[int],
    history: list[dict[str, Any]],
) -> FineTuningNet:
    """Stage 2: the meta-learner."""
    with run.generators("label head"):
        module = TextClassifier(encoder, len(classes), run.params.pooling)
    corruption_weight = run.params.corruption_weight if len(names) > 1 else 0.0
    columns: dict[str, NDArray[np.int64]] = {}
    redraw: dict[str, Redraw] = {}
    if corruption_weight > 0:
        with run.generators("corruption head"):
            hidden = encoder.config.hidden_size
            module.corruption_head = CorruptionHead(hidden, len(names), layers)
        columns["domain"] = rows.domains
        redraw["corrupted"] = partial(
            draw_corrupted_labels,
            rows.domains,
            n_domains=len(names),
            method=run.params.corruption_labels,
        )
    criterion = partial(MetaFineTuningLoss, corruption_weight)
    return train_stage_2(run, module, rows, t, classes, criterion, history, columns, redraw)


def meta_epochs(params: Any, n_rows: int) -> int:
    """Epochs of stage 2 on so many rows."""
    if params.meta_epochs == "auto":
        return auto_epochs(n_rows, params.batch_size, **META_EPOCHS)
    return params.meta_epochs


def train_stage_2(
    run: Run,
    module: TextClassifier,
    rows: Rows,
    t: NDArray[np.float64],
    classes: NDArray[Any],
    criterion: Callable[[], Any],
    history: list[dict[str, Any]],
    columns: Mapping[str, NDArray[np.int64]] | None = None,
    redraw: Mapping[str, Redraw] | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    epochs: int | None = None,
    description: str = "meta fine-tuning",
) -> FineTuningNet:
    """Train a module on rows weighted by t, by the settings of stage 2.

    `columns`, `redraw` and `criterion` are as in `TrainingRows` and `fine_tune`; `callbacks` come before the user's;
    `epochs` are those of ``meta_epochs`` unless given.
    """
    balance = balance_classes(run.params.class_weight, rows.labels, rows.sample_weight, classes)
    weight = normalized_weights(t, rows.sample_weight, balance)
    epochs = epochs or meta_epochs(run.params, len(weight))
    settings = run.settings(run.params.learning_rate)
    net = fine_tune(
        module,
        TrainingRows(rows.tokens, rows.labels, weight, columns, redraw),
        criterion,
        replace(settings, callbacks=[*callbacks, *(settings.callbacks or [])]),
        epochs=epochs,
        seed=run.derive("meta"),
        description=description,
    )
    history.extend({"stage": "meta", "epochs": epochs, **r} for r in epoch_records(net))
    return net


def adapt_domain(
    run: Run,
    module: TextClassifier,
    rows: Rows,
    classes: NDArray[Any],
    name: Any,
    history: list[dict[str, Any]],
) -> dict[str, torch.Tensor]:
    """Stage 3 for one domain: the tensors that its model has in place of the meta-learner's."""
    entry = {"stage": "adaptation", "domain": name}
    if not can_adapt(rows.labels):
        history.append({**entry, "epochs": 0})
        if run.params.verbose:
            print(f"domain {name!r}: one class only, served by the meta-learner")
        return {}
    start = time.perf_counter()
    balance = balance_classes(run.params.class_weight, rows.labels, rows.sample_weight, classes)
    weight = normalized_weights(rows.sample_weight, balance)
    epochs = run.params.adaptation_epochs
    if epochs == "auto":
        epochs = auto_epochs(len(weight), run.params.batch_size, **ADAPTATION_EPOCHS)
    tensors, net = adapt_to_domain(
        module,
        TrainingRows(rows.tokens, rows.labels, weight),
        run.settings(run.params.adaptation_learning_rate or run.params.learning_rate),
        method=run.params.adaptation,
        epochs=epochs,
        seed=run.derive(f"adaptation {name}"),
    )
    history.extend({**entry, "epochs": epochs, **r} for r in epoch_records(net))
    if run.params.verbose:
        print(
            f"domain {name!r}: adapted on {len(weight)} rows in {epochs} epochs, "
            f"loss {history[-1]['label_loss']:.3f}, {time.perf_counter() - start:.1f} s"
        )
    return tensors
