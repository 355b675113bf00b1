"""Stage 1: class-domain prototypes, cosine similarities to them, and typicality (paper, section 3.2).

Pure functions on arrays. Row ``i`` has the embedding ``E(x_i)``, the class ``y[i]`` in ``0..M-1`` and the domain
``domains[i]`` in ``0..K-1``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array

Array = NDArray[np.float64]


def class_domain_prototypes(
    embeddings: ArrayLike,
    y: ArrayLike,
    domains: ArrayLike,
    *,
    n_classes: int,
    n_domains: int,
    sample_weight: ArrayLike | None = None,
    n_prototypes: int = 1,
    random_state: int | None = None,
) -> tuple[Array, Array]:
    """Prototypes of every class in every domain: the (weighted) means of their embeddings.

    With ``n_prototypes > 1`` (an extension of ours) the rows of a class and domain are clustered by k-means and
    every cluster's mean is a prototype, with the cluster's share of the weight.

    Parameters
    ----------
    embeddings : array-like, shape (n_rows, width)
    y, domains : array-like of int, shape (n_rows,)
    n_classes, n_domains : int
        M and K.
    sample_weight : array-like, shape (n_rows,), default=None
        Non-negative; equal weights by default.
    n_prototypes : int, default=1
        P. A class and domain with fewer distinct rows than that gets as many prototypes as it has distinct rows.
    random_state : int, default=None
        Seed of k-means.

    Returns
    -------
    prototypes : ndarray, shape (K, M, P, width)
        NaN where there is none.
    shares : ndarray, shape (K, M, P)
        Share of the weight of (domain, class) that each prototype stands for; sums to 1 over P, or to 0 where
        the domain has no row of the class.

    Examples
    --------
    >>> prototypes, shares = class_domain_prototypes(
    ...     [[1.0, 0.0], [0.0, 1.0]], y=[0, 0], domains=[0, 0], n_classes=1, n_domains=1)
    >>> prototypes[0, 0]
    array([[0.5, 0.5]])
    """
    E = np.asarray(embeddings, dtype=np.float64)
    y, domains = np.asarray(y), np.asarray(domains)
    w = np.ones(len(E)) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    cluster = None
    if n_prototypes > 1:
        cluster = cluster_cells(E.__getitem__, y, domains, w, n_prototypes=n_prototypes, random_state=random_state)
    sums = PrototypeSums(n_domains, n_classes, n_prototypes, E.shape[1])
    sums.add(E, y, domains, w, cluster)
    return sums.prototypes()


class PrototypeSums:
    """Weighted sums of embeddings by domain, class and cluster, from which prototypes follow; added to block by block.

    Parameters
    ----------
    n_domains, n_classes, n_prototypes, width : int
        K, M, P and the width of the embeddings.
    """

    def __init__(self, n_domains: int, n_classes: int, n_prototypes: int, width: int) -> None:
        self.shape = (n_domains, n_classes, n_prototypes)
        self.weight = np.zeros(n_domains * n_classes * n_prototypes)
        self.total = np.zeros((len(self.weight), width))

    def add(
        self, embeddings: ArrayLike, y: ArrayLike, domains: ArrayLike, weight: Array, cluster: ArrayLike | None = None
    ) -> None:
        """Add rows; `weight` and `cluster` (0 by default) are of shape (n_rows,)."""
        E = np.asarray(embeddings, dtype=np.float64)
        _, n_classes, n_prototypes = self.shape
        slot = (np.asarray(domains) * n_classes + np.asarray(y)) * n_prototypes
        slot = slot if cluster is None else slot + np.asarray(cluster)
        self.weight += np.bincount(slot, weights=weight, minlength=len(self.weight))
        self.total += csr_array((weight, (slot, np.arange(len(E)))), shape=(len(self.weight), len(E))) @ E

    def prototypes(self) -> tuple[Array, Array]:
        """Prototypes and their shares, as `class_domain_prototypes` returns them."""
        prototypes = self.total / np.where(self.weight > 0, self.weight, np.nan)[:, None]
        weight = self.weight.reshape(self.shape)
        mass = weight.sum(-1, keepdims=True)
        shares = np.divide(weight, mass, out=np.zeros_like(weight), where=mass > 0)
        return prototypes.reshape(*self.shape, -1), shares


def cluster_cells(
    read: Callable[[NDArray[np.int64]], NDArray[np.floating]],
    y: NDArray[np.int64],
    domains: NDArray[np.int64],
    sample_weight: Array,
    *,
    n_prototypes: int,
    random_state: int | None,
) -> NDArray[np.int64]:
    """Cluster of every row among those of its class and domain, shape (n_rows,), by k-means; 0 for rows of weight 0.

    `read` gives the embeddings of rows, which are asked for one class and domain at a time.
    """
    cluster = np.zeros(len(y), dtype=np.int64)
    used = sample_weight > 0
    for k, m in np.unique(np.stack([domains[used], y[used]]), axis=1).T:
        rows = np.flatnonzero((domains == k) & (y == m) & used)
        cluster[rows] = _kmeans(read(rows).astype(np.float64), sample_weight[rows], n_prototypes, random_state)
    return cluster


def _kmeans(E: Array, w: Array, n_prototypes: int, random_state: int | None) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans

    n_clusters = min(n_prototypes, len(np.unique(E, axis=0)))
    kmeans = KMeans(n_clusters, n_init=4, random_state=random_state)
    return kmeans.fit(E, sample_weight=w).labels_


def similarities(
    embeddings: ArrayLike,
    y: ArrayLike,
    domains: ArrayLike,
    prototypes: ArrayLike,
    shares: ArrayLike,
) -> tuple[Array, Array]:
    """Cosine of every row to its class's prototype at home, and the mean of those abroad.

    ::

        own[i]   = cos(E(x_i), c[k, y_i])                                           k the row's domain
        cross[i] = mean of cos(E(x_i), c[j, y_i]) over domains j != k that have class y_i

    The cosine to a class-domain pair with several prototypes is the mean of the cosines, weighted by `shares`.

    Parameters
    ----------
    embeddings : array-like, shape (n_rows, width)
    y, domains : array-like of int, shape (n_rows,)
        A domain of -1 is none of the K: all of these are then foreign. A label of -1 is none of the M classes.
    prototypes : array-like, shape (K, M, P, width)
    shares : array-like, shape (K, M, P)

    Returns
    -------
    own : ndarray, shape (n_rows,)
        NaN where the row's domain has no prototype of the row's class.
    cross : ndarray, shape (n_rows,)
        NaN where no other domain has the class (so for K = 1).
    """
    E = _unit(np.asarray(embeddings, dtype=np.float64))
    y, domains = np.asarray(y), np.asarray(domains)
    C = _unit(np.nan_to_num(np.asarray(prototypes, dtype=np.float64)))
    S = np.asarray(shares, dtype=np.float64)
    # mean cosine to the prototypes of a pair = product with their weighted mean direction, (K, M, width)
    directions = np.einsum("kmp,kmph->kmh", S, C)
    exists = S.sum(-1) > 0  # (K, M)

    own, cross = np.full(len(E), np.nan), np.full(len(E), np.nan)
    for m in np.unique(y[y >= 0]):
        rows = np.flatnonzero(y == m)
        cosine = E[rows] @ directions[:, m].T  # (rows, K)
        home = domains[rows, None] == np.arange(len(S))
        there = exists[:, m] & ~home
        has_own = (home & exists[:, m]).any(1)
        own[rows[has_own]] = cosine[home & exists[:, m]]
        n = there.sum(1)
        cross[rows[n > 0]] = (np.where(there, cosine, 0.0).sum(1)[n > 0]) / n[n > 0]
    return own, cross


def _unit(vectors: Array) -> Array:
    norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / np.where(norm > 0, norm, 1.0)


def typicality(own: ArrayLike, cross: ArrayLike, balance: float = 0.5) -> Array:
    """Typicality ``t = balance * own + (1 - balance) * cross`` (paper, equation of section 3.2).

    Where one of the two similarities does not exist (NaN), the other is t: with one domain, or for a class that
    only one domain has, `balance` plays no part.

    Parameters
    ----------
    own, cross : array-like, shape (n_rows,)
        As `similarities` returns them.
    balance : float in [0, 1], default=0.5

    Returns
    -------
    ndarray, shape (n_rows,)

    Examples
    --------
    >>> typicality([0.8, 0.6], [0.4, float("nan")], balance=0.5)
    array([0.6, 0.6])
    """
    own, cross = np.asarray(own, dtype=np.float64), np.asarray(cross, dtype=np.float64)
    t = balance * own + (1 - balance) * cross
    return np.where(np.isnan(cross), own, np.where(np.isnan(own), cross, t))
