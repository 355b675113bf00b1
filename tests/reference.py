"""The method once more: slow, in loops and double precision, from the equations alone.

Nothing of the library is imported here.
"""

from __future__ import annotations

import math


def mean(vectors, weights):
    total = float(sum(weights))
    return [sum(w * v[j] for v, w in zip(vectors, weights)) / total for j in range(len(vectors[0]))]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b))
    return dot / (math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(x * x for x in b)))


def prototypes(E, y, domains, weights=None, cluster=None):
    """{(domain, class): [(share, prototype), ...]}, for the pairs that exist."""
    weights = [1.0] * len(E) if weights is None else weights
    cluster = [0] * len(E) if cluster is None else cluster
    out = {}
    for pair in sorted({(k, m) for k, m, w in zip(domains, y, weights) if w > 0}):
        rows = [i for i in range(len(E)) if (domains[i], y[i]) == pair and weights[i] > 0]
        mass = sum(weights[i] for i in rows)
        out[pair] = []
        for p in sorted({cluster[i] for i in rows}):
            own = [i for i in rows if cluster[i] == p]
            share = sum(weights[i] for i in own) / mass
            out[pair].append((share, mean([E[i] for i in own], [weights[i] for i in own])))
    return out


def typicality(E, y, domains, found, a):
    """t of every row."""
    out = []
    for x, m, k in zip(E, y, domains):
        own = sum(share * cosine(x, c) for share, c in found[k, m])
        others = [j for j in sorted(set(domains)) if j != k and (j, m) in found]
        if others:
            cross = sum(sum(share * cosine(x, c) for share, c in found[j, m]) for j in others) / len(others)
            out.append(a * own + (1 - a) * cross)
        else:
            out.append(own)
    return out


def log_softmax(logits):
    top = max(logits)
    norm = top + math.log(sum(math.exp(v - top) for v in logits))
    return [v - norm for v in logits]


def label_loss(logits, y, t):
    return -sum(ti * log_softmax(row)[yi] for row, yi, ti in zip(logits, y, t)) / len(y)


def corruption_loss(logits_per_layer, z, t):
    return sum(label_loss(layer, z, t) for layer in logits_per_layer) / len(logits_per_layer)


def corrupted_counts(batches, n_domains, method):
    """Expected number of rows of true domain k with corrupted label z, [k][z], over one epoch.

    `batches` are lists of true domains. A permutation gives a row every label of its pool with the same chance: of the whole
    training set ("epoch"), of the row's batch ("batch"), or of one row of every domain ("uniform").
    """
    everything = [k for batch in batches for k in batch]
    counts = [[0.0] * n_domains for _ in range(n_domains)]
    for batch in batches:
        pool = {"epoch": everything, "batch": batch, "uniform": list(range(n_domains))}[method]
        for k in batch:
            for z in pool:
                counts[k][z] += 1 / len(pool)
    return counts


def contrastive_loss(E, y, domains, t, temperature):
    terms = []
    for i in range(len(E)):
        partners = [j for j in range(len(E)) if y[j] == y[i] and domains[j] != domains[i]]
        strangers = [j for j in range(len(E)) if y[j] != y[i]]
        if partners:
            scores = {j: cosine(E[i], E[j]) / temperature for j in partners + strangers}
            norm = math.log(sum(math.exp(s) for s in scores.values()))
            terms.append(-t[i] * sum(scores[j] - norm for j in partners) / len(partners))
    return sum(terms) / len(terms) if terms else 0.0
