"""Stage 1 (paper, section 3.2): prototypes, similarities and typicality; below them, how these are run chunk by chunk.

Row i has the embedding E(x_i) by the pre-trained encoder, the class y_i in 0..M-1, the domain k_i in 0..K-1 and a weight w_i::

    c[k, m]  = mean of E(x_i), weighted by w_i, over the rows of domain k and class m       `PrototypeSums`
    own[i]   = cos(E(x_i), c[k_i, y_i])                                                     `similarities`
    cross[i] = mean of cos(E(x_i), c[j, y_i]) over the domains j != k_i that have y_i       `similarities`
    t[i]     = balance * own[i] + (1 - balance) * cross[i]                                  `typicality`

With P > 1 prototypes for a class and domain (an extension), k-means clusters their rows (`cluster_rows`), and c[k, m, p] is the
mean of cluster p; the cosine to c[k, m] is then the mean over p, weighted by the clusters' shares of the weight.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from sklearn.utils import gen_batches

from .._engine.cache import float_rows
from .._engine.inference import PretrainedEmbedder
from .._engine.pooling import embedding_width
from .._inputs.rows import Rows
from .._typing import Array, Floats, Ints, Record


class PrototypeSums:
    """Weighted sums of embeddings by domain, class and cluster, of which prototypes are made, block by block."""

    def __init__(self, n_domains: int, n_classes: int, n_prototypes: int, width: int) -> None:
        self.shape = (n_domains, n_classes, n_prototypes)
        self.weight = np.zeros(n_domains * n_classes * n_prototypes)
        self.total = np.zeros((len(self.weight), width))

    def add(self, embeddings: ArrayLike, y: Ints, domains: Ints, weight: Floats, cluster: Ints | int = 0) -> None:
        """Add rows; all arguments have one entry a row."""
        E = np.asarray(embeddings, dtype=np.float64)
        _, n_classes, n_prototypes = self.shape
        slot = (domains * n_classes + y) * n_prototypes + cluster
        self.weight += np.bincount(slot, weights=weight, minlength=len(self.weight))
        self.total += csr_array((weight, (slot, np.arange(len(E)))), shape=(len(self.weight), len(E))) @ E

    def prototypes(self) -> tuple[Floats, Floats]:
        """Prototypes, (K, M, P, width), NaN where there is none, and their shares of a class and domain's weight, (K, M, P)."""
        prototypes = self.total / np.where(self.weight > 0, self.weight, np.nan)[:, None]
        weight = self.weight.reshape(self.shape)
        mass = weight.sum(-1, keepdims=True)
        return prototypes.reshape(*self.shape, -1), weight / np.where(mass > 0, mass, 1.0)


def cluster_rows(embeddings: Array, y: Ints, domains: Ints, weight: Floats, n_prototypes: int, seed: int) -> Ints:
    """Cluster of every row among those of its class and domain."""
    from sklearn.cluster import KMeans

    cluster = np.zeros(len(y), dtype=np.int64)
    for k, m in np.unique(np.stack([domains, y]), axis=1).T:
        rows = np.flatnonzero((domains == k) & (y == m))
        E = embeddings[rows].astype(np.float64)
        kmeans = KMeans(min(n_prototypes, len(np.unique(E, axis=0))), n_init=4, random_state=seed)
        cluster[rows] = kmeans.fit(E, sample_weight=weight[rows]).labels_
    return cluster


def similarities(E: ArrayLike, y: Ints, domains: Ints, prototypes: Floats, shares: Floats) -> tuple[Floats, Floats]:
    """Cosine of every row to its class's prototype in its own domain, and the mean of those in the other domains.

    `prototypes` and `shares` are as `PrototypeSums.prototypes` returns them. A class of -1 is none of the M; a domain of -1 is
    none of the K, which are then all other ones. A similarity is NaN where the row's domain, or every other, lacks the class.
    """
    E, C = _unit(np.asarray(E, dtype=np.float64)), _unit(np.nan_to_num(prototypes))
    # the mean cosine to the prototypes of (k, m) is the product with their weighted mean direction
    directions = np.einsum("kmp,kmph->kmh", shares, C)
    exists = shares.sum(-1) > 0  # (K, M)
    own, cross = np.full((2, len(y)), np.nan)
    for m in np.unique(y[y >= 0]):
        rows = np.flatnonzero(y == m)
        cosine = E[rows] @ directions[:, m].T  # (rows, K)
        home = domains[rows, None] == np.arange(len(shares))
        own[rows] = _mean_of(cosine, home & exists[:, m])
        cross[rows] = _mean_of(cosine, ~home & exists[:, m])
    return own, cross


def _unit(vectors: Floats) -> Floats:
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1.0)


def _mean_of(values: Floats, chosen: NDArray[np.bool_]) -> Floats:
    """Mean of the chosen values of every row; NaN where none is chosen."""
    number = chosen.sum(1)
    return np.where(chosen, values, 0.0).sum(1) / np.where(number > 0, number, np.nan)


def typicality(own: ArrayLike, cross: ArrayLike, balance: float) -> Floats:
    """Typicality ``t = balance * own + (1 - balance) * cross``, shape (n_rows,), of the two `similarities`.

    Where one of them does not exist (NaN), the other is t: with one domain, or for a class that only one domain has,
    `balance` plays no part.

    Examples
    --------
    >>> typicality([0.8, 0.6], [0.4, float("nan")], balance=0.5)
    array([0.6, 0.6])
    """
    own, cross = np.asarray(own, dtype=np.float64), np.asarray(cross, dtype=np.float64)
    t = balance * own + (1 - balance) * cross
    return np.where(np.isnan(cross), own, np.where(np.isnan(own), cross, t))


@dataclass(frozen=True)
class Scored:
    """What stage 1 found: fitted attributes by name, embeddings of the rows that a label head is fitted on, and `history_`."""

    attributes: dict[str, Floats] = field(default_factory=dict)
    probe: NDArray[np.float32] | None = None
    history: list[Record] = field(default_factory=list)


def embed_for_probe(embedder: PretrainedEmbedder, rows: Rows, probe: Ints | None) -> Scored:
    """In place of stage 1: embeddings of the rows that a label head is fitted on, and no scores."""
    if probe is None:
        return Scored()
    chosen = np.flatnonzero(rows.sample_weight > 0)[probe]
    return Scored(probe=np.concatenate([E for _, E in embedder.chunks(rows.tokens, chosen, "linear probe")]))


def score_typicality(
    embedder: PretrainedEmbedder, rows: Rows, probe: Ints | None, *, balance: float, n_prototypes: int, seed: int
) -> Scored:
    """Stage 1: embed the rows, make prototypes of those of weight above 0, and score all."""
    start = time.perf_counter()
    used, unused = np.flatnonzero(rows.sample_weight > 0), np.flatnonzero(rows.sample_weight == 0)
    y, domains, weight = rows.labels[used], rows.domains[used], rows.sample_weight[used]
    width = embedding_width(embedder.encoder, rows.tokens.bi_encoded)
    sums = PrototypeSums(len(rows.domain_names), len(rows.classes), n_prototypes, width)
    found = np.empty((2, len(rows)))
    embeddings, blocks = float_rows(len(used), width), list(gen_batches(len(used), 8192))
    for part, E in embedder.chunks(rows.tokens, used, "typicality"):
        embeddings[part] = E
        if n_prototypes == 1:
            sums.add(E, y[part], domains[part], weight[part])
    if n_prototypes > 1:
        cluster = cluster_rows(embeddings, y, domains, weight, n_prototypes, seed)
        for part in blocks:
            sums.add(embeddings[part], y[part], domains[part], weight[part], cluster[part])
    prototypes, shares = sums.prototypes()
    for part in blocks:
        found[:, used[part]] = similarities(embeddings[part], y[part], domains[part], prototypes, shares)
    probed = None if probe is None else embeddings[probe]
    # rows of weight 0 come last and by themselves, so that they change no batch of the others
    for part, E in embedder.chunks(rows.tokens, unused, "typicality of rows of weight 0"):
        i = unused[part]
        found[:, i] = similarities(E, rows.labels[i], rows.domains[i], prototypes, shares)
    (own, cross), prototypes, shares = embedder.runtime.processes.first((found, prototypes, shares))
    attributes = {
        "prototypes_": prototypes[:, :, 0] if n_prototypes == 1 else prototypes,
        "prototype_shares_": shares,
        "own_similarity_": own,
        "cross_similarity_": cross,
        "typicality_": typicality(own, cross, balance),
    }
    return Scored(attributes, probed, [{"stage": "typicality", "seconds": time.perf_counter() - start}])
