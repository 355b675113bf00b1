"""Stage 1 as it runs: embed the training rows chunk by chunk, find prototypes, score every row (paper, section 3.2)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import gen_batches

from .._engine.cache import float_rows
from .._engine.inference import PretrainedEmbedder
from .._engine.pooling import embedding_width
from .._inputs.rows import Rows
from .typicality import PrototypeSums, cluster_cells, similarities, typicality


@dataclass(frozen=True)
class Scored:
    """What stage 1 found.

    Attributes
    ----------
    attributes : dict of str to ndarray
        The fitted attributes that belong to it, ``typicality_`` among them; empty where rows are not scored.
    probe : ndarray of float32, or None
        Embeddings of the rows that a label head is fitted on.
    history : list of dict
    """

    attributes: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    probe: NDArray[np.float32] | None = None
    history: list[dict[str, object]] = field(default_factory=list)


def embed_for_probe(embedder: PretrainedEmbedder, rows: Rows, probe: NDArray[np.int64] | None) -> Scored:
    """In place of stage 1: embeddings of the rows that a label head is fitted on, and no scores."""
    if probe is None:
        return Scored()
    used = np.flatnonzero(rows.sample_weight > 0)
    return Scored(probe=np.concatenate([E for _, E in embedder.chunks(rows.tokens, used[probe], "linear probe")]))


def score_typicality(
    embedder: PretrainedEmbedder,
    rows: Rows,
    probe: NDArray[np.int64] | None,
    *,
    balance: float,
    n_prototypes: int,
    seed: int,
) -> Scored:
    """Stage 1."""
    start = time.perf_counter()
    used, unused = np.flatnonzero(rows.sample_weight > 0), np.flatnonzero(rows.sample_weight == 0)
    y, domains, weight = rows.labels[used], rows.domains[used], rows.sample_weight[used]
    width = embedding_width(embedder.encoder, rows.tokens.bi_encoded)
    sums = PrototypeSums(len(rows.domain_names), len(rows.classes), n_prototypes, width)
    own, cross = np.empty((2, len(rows)))
    embeddings = float_rows(len(used), width)
    for part, E in embedder.chunks(rows.tokens, used, "typicality"):
        embeddings[part] = E
        if n_prototypes == 1:
            sums.add(E, y[part], domains[part], weight[part])
    blocks = list(gen_batches(len(used), 8192))
    if n_prototypes > 1:
        read = embeddings.__getitem__
        cluster = cluster_cells(read, y, domains, weight, n_prototypes=n_prototypes, random_state=seed)
        for part in blocks:
            sums.add(embeddings[part], y[part], domains[part], weight[part], cluster[part])
    prototypes, shares = sums.prototypes()
    for part in blocks:
        found = similarities(embeddings[part], y[part], domains[part], prototypes, shares)
        own[used[part]], cross[used[part]] = found
    probed = None if probe is None else embeddings[probe]
    # rows of weight 0 come last and by themselves, so that they change no batch of the others
    for part, E in embedder.chunks(rows.tokens, unused, "typicality of rows of weight 0"):
        i = unused[part]
        own[i], cross[i] = similarities(E, rows.labels[i], rows.domains[i], prototypes, shares)
    own, cross, prototypes, shares = embedder.runtime.processes.first((own, cross, prototypes, shares))
    attributes = {
        "prototypes_": prototypes[:, :, 0] if n_prototypes == 1 else prototypes,
        "prototype_shares_": shares,
        "own_similarity_": own,
        "cross_similarity_": cross,
        "typicality_": typicality(own, cross, balance),
    }
    return Scored(attributes, probed, [{"stage": "typicality", "seconds": time.perf_counter() - start}])
