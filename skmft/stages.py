"""The three stages in order: what each is given, and what it leaves.

`Run.params` is the estimator; nothing here changes it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils import check_random_state
from skorch.callbacks import Callback

from .adaptation import adapt_to_domain, can_adapt
from .batches import Redraw, TrainingRows
from .corruption import CorruptionHead, MetaFineTuningLoss, draw_corrupted_labels
from .encoding import CHUNK_ROWS, FloatRows, RowStore, Text, TokenizedTexts, tokenize, tokenize_once
from .inputs import balance_classes
from .lora import LoraSettings
from .networks import (
    Encoder,
    EncoderSource,
    TextClassifier,
    embedding_width,
    load_encoder,
    pooled_layers,
    tokenizer_fingerprint,
)
from .parts import ALONE, MicroBatches, Processes
from .probe import PROBE_ROWS, linear_probe
from .training import (
    FineTuningNet,
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
from .typicality import PrototypeSums, cluster_cells, normalized_weights, similarities, typicality

# The "auto" epochs: as many as make `min_steps` optimiser steps, but `min_epochs` at least.
META_EPOCHS = {"min_epochs": 2, "min_steps": 60}
ADAPTATION_EPOCHS = {"min_epochs": 2, "min_steps": 4}
# The "auto" learning rates of stage 3: the fewer the parameters that are trained, the larger.
ADAPTATION_LEARNING_RATES = {"full": 1e-5, "head": 1e-3, "lora": 3e-4}


@dataclass(frozen=True)
class Run:
    """Device, precision and seed of one call, and who takes part in it."""

    params: Any
    device: torch.device
    dtype: torch.dtype
    seed: int
    processes: Processes = ALONE
    micro_batches: MicroBatches = field(default_factory=MicroBatches)

    @classmethod
    def start(cls, params: Any, seed: int | None = None, training: bool = False) -> Run:
        """Begin a call; one that trains is made by all processes together, any other by each on its own."""
        processes = Processes.join(params.device) if training and params.distributed else ALONE
        device = resolve_device(params.device)
        if seed is None and params.random_state is None:  # numpy's global generator is not ours
            seed = int(np.random.SeedSequence().generate_state(1)[0] >> 1)
        elif seed is None:
            seed = int(check_random_state(params.random_state).randint(2**31 - 1))
        return cls(params, device, resolve_precision(params.precision, device), processes.first(seed), processes)

    @property
    def verbose(self) -> int:
        """The estimator's, in the first process; the others are silent."""
        return self.params.verbose if self.processes.rank == 0 else 0

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
        self, tokenizer: Any, source: EncoderSource, texts: Sequence[Text], token_types: bool, apart: bool
    ) -> TokenizedTexts:
        """Token ids of the texts, from the user's `memory` where they are there."""
        memory, max_length = self.params.memory, self.params.max_length
        if memory is None:
            return tokenize(tokenizer, texts, max_length, token_types, apart)
        about = (source.name, source.sha256, tokenizer_fingerprint(tokenizer), max_length, token_types, apart)
        return tokenize_once(RowStore(memory, "tokens", *about), tokenizer, texts, max_length, token_types, apart)

    def embed(self, encoder: Encoder, tokens: TokenizedTexts, description: str = "") -> NDArray[np.float32]:
        """Pooled last layer of every row, shape (n_rows, `embedding_width`)."""
        encoder = encoder.to(self.device).eval()
        return self.batches(
            lambda **batch: pooled_layers(encoder, [-1], self.params.pooling, tokens.apart, **batch)[0],
            tokens,
            embedding_width(encoder, tokens.apart),
            description if self.verbose else "",
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
            encoder.config.to_json_string(),
            self.params.max_length,
            self.params.pooling,
            tokens.apart,
            str(self.dtype),
            self.device.type,
        )
        keys = [hashlib.sha256(tokens.row(i).tobytes()).digest() for i in range(len(tokens))]
        rows = RowStore(self.params.memory, "embeddings", *about).get(
            keys, lambda missing: list(self.embed(encoder, tokens.subset(missing), description)), np.float32
        )
        return np.stack(rows)

    def embed_chunks(
        self,
        encoder: Encoder,
        source: EncoderSource,
        tokens: TokenizedTexts,
        rows: NDArray[np.int64],
        description: str = "",
    ) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """`embed_pretrained` of the given rows, chunk by chunk: which of `rows`, and their embeddings."""
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, min(start + CHUNK_ROWS, len(rows)))
            yield part, self.embed_pretrained(encoder, source, tokens.subset(rows[part]), description)

    def batches(
        self,
        forward: Callable[..., torch.Tensor],
        tokens: TokenizedTexts,
        width: int,
        description: str = "",
        columns: Mapping[str, NDArray[np.int64]] | None = None,
        max_tokens: int | None = None,
    ) -> NDArray[np.float32]:
        """`run_in_batches` on this call's device, in its precision; of `max_tokens` a batch where that is less than ours."""
        ours = self.params.batch_size * self.params.max_length
        return run_in_batches(
            forward,
            tokens,
            width=width,
            max_tokens=min(ours, max_tokens or ours),
            device=self.device,
            dtype=self.dtype,
            description=description,
            columns=columns,
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
            verbose=self.verbose,
            processes=self.processes,
            micro_batches=self.micro_batches,
        )

    def check_same(self, rows: Rows) -> None:
        """Refuse rows that differ between the processes that train together."""
        tokens = rows.tokens
        arrays = (tokens.ids, tokens.offsets, rows.labels, rows.domains, rows.sample_weight)
        self.processes.require_same(
            [hashlib.sha256(a.tobytes()).digest() for a in arrays] if self.processes.size > 1 else None,
            "distributed=True: the processes were given different rows; pass all rows, in the same order, in each of them "
            "(skmft shares every batch among the processes itself).",
        )

    def adaptation_settings(self) -> TrainingSettings:
        e = self.params
        rate = e.adaptation_learning_rate
        if rate == "auto":
            rate = ADAPTATION_LEARNING_RATES[e.adaptation]
        return self.settings(e.learning_rate if rate is None else rate)

    def lora(self) -> LoraSettings:
        e = self.params
        return LoraSettings(e.lora_rank, e.lora_alpha, e.lora_target_modules)

    def net(self, module: TextClassifier) -> FineTuningNet:
        """A net around weights that were trained before, as `meta_fine_tune` leaves it."""
        e = self.params
        criterion = partial(MetaFineTuningLoss, e.corruption_weight, e.contrastive_weight, e.contrastive_temperature)
        settings = self.settings(self.params.learning_rate)
        net = make_net(module, criterion, settings, epochs=1, seed=self.derive("meta")).initialize()
        net.module_.eval()
        return net


@dataclass(frozen=True)
class Rows:
    """Tokenized rows with labels and domains as numbers; and, for stage 2, embeddings of its `probe_rows`."""

    tokens: TokenizedTexts
    labels: NDArray[np.int64]
    domains: NDArray[np.int64]
    sample_weight: NDArray[np.float64]
    probe_embeddings: NDArray[np.float32] | None = None

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
) -> tuple[NDArray[np.float64], dict[str, Any], NDArray[np.float32] | None]:
    """Stage 1: t of every row, the fitted attributes that belong to it, and embeddings for a linear probe or None."""
    used, unused = np.flatnonzero(rows.sample_weight > 0), np.flatnonzero(rows.sample_weight == 0)
    few = probe_rows(run, len(used)) if run.params.head_init == "probe" else None
    if not run.params.typicality_weighting:
        if few is None:
            return np.ones(len(rows.labels)), {}, None
        chunks = [E for _, E in run.embed_chunks(encoder, source, rows.tokens, used[few], "linear probe")]
        return np.ones(len(rows.labels)), {}, np.concatenate(chunks)
    start = time.perf_counter()
    y, domains, weight = rows.labels[used], rows.domains[used], rows.sample_weight[used]
    n_prototypes, width = run.params.n_prototypes, embedding_width(encoder, rows.tokens.apart)
    sums = PrototypeSums(n_domains, n_classes, n_prototypes, width)
    own, cross = np.empty((2, len(rows.labels)))
    with FloatRows(len(used), width) as embeddings:
        for part, E in run.embed_chunks(encoder, source, rows.tokens, used, "typicality"):
            embeddings.write(part.start, E)
            if n_prototypes == 1:
                sums.add(E, y[part], domains[part], weight[part])
        if n_prototypes > 1:
            seed = run.derive("prototypes")
            cluster = cluster_cells(embeddings.take, y, domains, weight, n_prototypes=n_prototypes, random_state=seed)
            for part, E in embeddings.blocks():
                sums.add(E, y[part], domains[part], weight[part], cluster[part])
        prototypes, shares = sums.prototypes()
        for part, E in embeddings.blocks():
            own[used[part]], cross[used[part]] = similarities(E, y[part], domains[part], prototypes, shares)
        probed = None if few is None else embeddings.take(few)
    # rows of weight 0 come last and apart, so that they change no batch of the others
    for part, E in run.embed_chunks(encoder, source, rows.tokens, unused, "typicality of rows of weight 0"):
        i = unused[part]
        own[i], cross[i] = similarities(E, rows.labels[i], rows.domains[i], prototypes, shares)
    own, cross, prototypes, shares = run.processes.first((own, cross, prototypes, shares))
    t = typicality(own, cross, run.params.typicality_balance)
    history.append({"stage": "typicality", "seconds": time.perf_counter() - start})
    attributes = {
        "prototypes_": prototypes[:, :, 0] if run.params.n_prototypes == 1 else prototypes,
        "prototype_shares_": shares,
        "own_similarity_": own,
        "cross_similarity_": cross,
        "typicality_": t,
    }
    return t, attributes, probed


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
    start: dict[str, torch.Tensor] = {}  # with a probe as the label head, a classifier to go back toward
    with run.generators("label head"):
        module = TextClassifier(encoder, len(classes), run.params.pooling, rows.tokens.apart)
    if rows.probe_embeddings is not None:
        balance = balance_classes(run.params.class_weight, rows.labels, rows.sample_weight, classes)
        start_from_probe(run, module, rows, normalized_weights(t, rows.sample_weight, balance))
        if run.params.weight_interpolation < 1:
            start = {name: p.detach().to("cpu", copy=True) for name, p in module.named_parameters()}
    corruption_weight, contrastive_weight = 0.0, 0.0
    if len(names) > 1:
        corruption_weight, contrastive_weight = run.params.corruption_weight, run.params.contrastive_weight
    columns: dict[str, NDArray[np.int64]] = {}
    redraw: dict[str, Redraw] = {}
    if corruption_weight > 0:
        with run.generators("corruption head"):
            width = embedding_width(encoder, rows.tokens.apart)
            module.corruption_head = CorruptionHead(width, len(names), layers)
        redraw["corrupted"] = partial(
            draw_corrupted_labels,
            rows.domains,
            n_domains=len(names),
            method=run.params.corruption_labels,
        )
    if corruption_weight > 0 or contrastive_weight > 0:
        columns["domain"] = rows.domains
    criterion = partial(MetaFineTuningLoss, corruption_weight, contrastive_weight, run.params.contrastive_temperature)
    net = train_stage_2(run, module, rows, t, classes, criterion, history, columns, redraw, initial=start)
    with torch.no_grad():
        for name, trained in module.named_parameters():
            if name in start:
                trained.copy_(torch.lerp(start[name].to(trained.device), trained, run.params.weight_interpolation))
    return net


def start_from_probe(run: Run, module: TextClassifier, rows: Rows, weight: NDArray[np.float64]) -> None:
    """Set the label head to a linear probe of the encoder; see `skmft.probe`."""
    few = probe_rows(run, len(rows.labels))
    assert rows.probe_embeddings is not None
    head = linear_probe(rows.probe_embeddings, rows.labels[few], weight[few], module.label_head.out_features)
    with torch.no_grad():
        for own, found in zip((module.label_head.weight, module.label_head.bias), run.processes.first(head)):
            own.copy_(found)


def probe_rows(run: Run, n_rows: int) -> NDArray[np.int64]:
    """Which of the rows of weight above 0 a linear probe is fitted on: all, or `PROBE_ROWS` of them."""
    if n_rows <= PROBE_ROWS:
        return np.arange(n_rows)
    return np.sort(np.random.default_rng(run.derive("probe")).choice(n_rows, PROBE_ROWS, replace=False))


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
    initial: Mapping[str, torch.Tensor] | None = None,
) -> FineTuningNet:
    """Train a module on rows weighted by t, by the settings of stage 2.

    `columns`, `redraw`, `criterion` and `initial` are as in `TrainingRows` and `fine_tune`; `callbacks` come before the user's;
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
        initial=initial,
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
) -> Mapping[str, torch.Tensor]:
    """Stage 3 for one domain: the tensors that its model has in place of the meta-learner's."""
    entry = {"stage": "adaptation", "domain": name}
    balance = balance_classes(run.params.class_weight, rows.labels, rows.sample_weight, classes)
    if not can_adapt(rows.labels[rows.sample_weight * balance > 0]):
        history.append({**entry, "epochs": 0})
        if run.verbose:
            print(f"domain {name!r}: one class only, served by the meta-learner")
        return {}
    start = time.perf_counter()
    weight = normalized_weights(rows.sample_weight, balance)
    epochs = run.params.adaptation_epochs
    if epochs == "auto":
        epochs = auto_epochs(len(weight), run.params.batch_size, **ADAPTATION_EPOCHS)
    tensors, net = adapt_to_domain(
        module,
        TrainingRows(rows.tokens, rows.labels, weight),
        run.adaptation_settings(),
        method=run.params.adaptation,
        lora=run.lora(),
        epochs=epochs,
        seed=run.derive(f"adaptation {name}"),
    )
    history.extend({**entry, "epochs": epochs, **r} for r in epoch_records(net))
    if run.verbose:
        print(
            f"domain {name!r}: adapted on {len(weight)} rows in {epochs} epochs, "
            f"loss {history[-1]['label_loss']:.3f}, {time.perf_counter() - start:.1f} s"
        )
    return tensors
