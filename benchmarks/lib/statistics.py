"""Intervals and tests of the reports. Nothing is random: the same cells give the same figures, to the last digit."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from .tasks import SHOWN

REPLICATES = 10_000
FEWEST_UNITS = 5  # seeds, or splits of terms, that a difference in bold rests on
ALL = "all"  # the mean over tasks of the mean over their columns


@dataclass(frozen=True, order=True)
class Column:
    """A task with a number of labelled rows per domain."""

    task: str
    shots: str

    def __str__(self) -> str:
        return f"{SHOWN[self.task]}, {self.shots}"


@dataclass
class Score:
    """One method's right and wrong answers in one cell."""

    source: str
    correct: dict[str, np.ndarray]  # by domain, in the order of the test rows' hashes
    seconds: float = 0.0
    steps: int | None = None

    @property
    def accuracy(self) -> float:
        return float(np.mean([right.mean() for right in self.correct.values()]))


Scores = dict[Column, dict[str, dict[int, Score]]]  # by method's name and seed
Clusters = dict[str, dict[str, np.ndarray]]  # by source and domain, of the test rows in the order of their hashes


def bits(right: Any) -> str:
    """Right and wrong answers as a cell holds them."""
    return "".join(map(str, np.asarray(right).astype(int)))


def answers(correct: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The same, read from a cell: by domain."""
    return {domain: np.array(list(own)) == "1" for domain, own in correct.items()}


def half_interval(values: Sequence[float], units: Sequence[Any] | None = None) -> float:
    """Half of the 95% t interval of a mean; NaN for fewer than two values. Values of one unit count as their mean."""
    from scipy import stats

    by_unit = pd.Series(values, dtype=float).groupby(list(range(len(values)) if units is None else units)).mean()
    if len(by_unit) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(by_unit) - 1) * by_unit.std() / math.sqrt(len(by_unit)))


def units(column: Column, scores: dict[int, Score]) -> list[Any]:
    """What is drawn anew with a seed: the training rows; of the hypernyms first a split of the terms, which seeds share."""
    return [score.source if column.task == "hypernyms" else seed for seed, score in scores.items()]


def _rng(*key: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32("/".join(key).encode()), 20201116])


def resample_rows(
    scores: Scores, together: Clusters | None = None
) -> tuple[dict[tuple[Column, str, int], np.ndarray], dict[str, float]]:
    """Accuracy of every score under resampled test rows, each of shape (REPLICATES,): the mean over domains.

    The clusters of a domain's rows (each row is one, where none are given) are drawn with replacement, in a replicate the same
    ones for all methods, shots and seeds that are scored on them. Also the degrees of freedom of every source's rows: as many
    as there are clusters (of unequal ones, as many as equal ones would tell as much), less one per domain.
    """
    on: dict[str, list[tuple[tuple[Column, str, int], Score]]] = defaultdict(list)
    for column, methods in scores.items():
        for name, seeds in methods.items():
            for seed, score in seeds.items():
                on[score.source].append(((column, name, seed), score))
    out, freedom = {}, {}
    for source, entries in sorted(on.items()):
        domains = sorted(entries[0][1].correct)
        total, freedom[source] = np.zeros((REPLICATES, len(entries))), 0.0
        for domain in domains:
            right = np.stack([score.correct[domain] for _, score in entries], axis=1).astype(np.float64)
            own = together[source][domain] if together else np.arange(len(right))
            sizes = np.bincount(own)
            sums = np.zeros((len(sizes), len(entries)))
            np.add.at(sums, own, right)
            counts = _rng("rows", source, domain).multinomial(
                len(sizes), np.full(len(sizes), 1 / len(sizes)), size=REPLICATES
            )
            total += counts @ sums / (counts @ sizes)[:, None]
            freedom[source] += max(1.0, sizes.sum() ** 2 / (sizes**2).sum() - 1)
        out.update({key: total[:, i] / len(domains) for i, (key, _) in enumerate(entries)})
    return out, freedom


def resample_seeds(column: Column, drawn: Sequence[Any], values: Sequence[float]) -> np.ndarray:
    """Mean over units drawn with replacement, shape (REPLICATES,), of one value per seed; `drawn` is the unit of every seed.

    Columns of one task with the same units get the same draws, as a unit's rows are alike at all shots. The spread is widened
    by the factor n / (n - 1) of a sample's variance, which a bootstrap lacks.
    """
    names = list(dict.fromkeys(drawn))
    n = len(names)
    sums, sizes = np.zeros((2, n))
    for unit, value in zip(drawn, values):
        sums[names.index(unit)] += value
        sizes[names.index(unit)] += 1
    counts = _rng("seeds", column.task, *map(str, names)).multinomial(n, np.full(n, 1 / n), size=REPLICATES)
    mean = sums.sum() / sizes.sum()
    return mean + (math.sqrt(n / (n - 1)) if n > 1 else 0.0) * (counts @ sums / (counts @ sizes) - mean)


@dataclass
class Spread:
    """Replicates of a difference by drawing test rows and by drawing seeds; degrees of freedom of either's variance."""

    rows: np.ndarray
    seeds: np.ndarray
    row_freedom: float
    seed_freedom: float

    @classmethod
    def mean(cls, spreads: Sequence[Spread]) -> Spread:
        """Of the mean of differences that share their draws."""
        rows, seeds = (np.mean([getattr(s, name) for s in spreads], axis=0) for name in ("rows", "seeds"))
        return cls(rows, seeds, min(s.row_freedom for s in spreads), min(s.seed_freedom for s in spreads))


def interval(difference: float, spreads: Sequence[Spread]) -> tuple[float, float, float]:
    """95% interval and two-sided p of the mean of differences that are drawn independently.

    The bootstrap gives variances; their sum's quantiles are those of Student's t, with the degrees of freedom of Welch and
    Satterthwaite. Quantiles of the replicates themselves are too narrow for few seeds, most of all in the tails. One seed
    does not tell how much another draw would change, so that its interval has no bounds.
    """
    from scipy import stats

    if any(s.seed_freedom < 1 for s in spreads):
        return -math.inf, math.inf, 1.0
    parts = [(s.rows.var(), s.row_freedom) for s in spreads] + [(s.seeds.var(), s.seed_freedom) for s in spreads]
    parts = [(v / len(spreads) ** 2, freedom) for v, freedom in parts if v > 1e-12]
    variance = sum(v for v, _ in parts)
    if not parts:
        return difference, difference, float(abs(difference) < 1e-9)
    freedom = variance**2 / sum(v**2 / f for v, f in parts)
    error = math.sqrt(variance)
    half = stats.t.ppf(0.975, freedom) * error
    return difference - half, difference + half, float(2 * stats.t.sf(abs(difference) / error, freedom))


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values adjusted for as many comparisons (Holm, 1979), in their order."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return adjusted[np.argsort(order, kind="stable")]


def compare(
    scores: Scores, ours: str, together: Clusters | None = None, over: Sequence[Column] | None = None
) -> pd.DataFrame:
    """`ours` less every other method, in points: a row for each task, shots and method, and for each method over all.

    "Over all" is the mean over tasks of the mean over their columns in `over`, by default all of them, where both have cells.
    Holm's adjustment is over all rows of this frame.
    """
    over = list(scores) if over is None else over
    resampled, freedom = resample_rows(scores, together)
    rows, found = [], defaultdict(lambda: defaultdict(list))
    for column, methods in scores.items():
        for other in methods:
            own = {s: score for s, score in methods.get(ours, {}).items() if s in methods[other]}
            if other == ours or not own:
                continue
            theirs, drawn = methods[other], units(column, own)
            per_seed = [100 * (own[s].accuracy - theirs[s].accuracy) for s in own]
            spread = Spread(
                100 * np.mean([resampled[column, ours, s] - resampled[column, other, s] for s in own], axis=0),
                resample_seeds(column, drawn, per_seed),
                sum(freedom[source] for source in {score.source for score in own.values()}),
                len(set(drawn)) - 1,
            )
            signs = [np.sign(own[s].correct[d].sum() - theirs[s].correct[d].sum()) for s in own for d in own[s].correct]
            low, high, p = interval(float(np.mean(per_seed)), [spread])
            row = {"other": other, "column": column, "seeds": len(own), "units": len(set(drawn))}
            row |= {"difference": np.mean(per_seed)}
            row |= {"t": half_interval(per_seed, drawn), "low": low, "high": high, "p": p}
            row |= {"win": signs.count(1), "tie": signs.count(0), "loss": signs.count(-1)}
            rows.append(row)
            if column in over:
                found[other][column.task].append((row, spread))
    for other, tasks in found.items():
        difference = float(np.mean([np.mean([row["difference"] for row, _ in columns]) for columns in tasks.values()]))
        low, high, p = interval(difference, [Spread.mean([s for _, s in columns]) for columns in tasks.values()])
        own_rows = [row for columns in tasks.values() for row, _ in columns]
        row = {"other": other, "column": ALL, "columns": len(own_rows), "seeds": min(r["seeds"] for r in own_rows)}
        row["units"] = min(r["units"] for r in own_rows)
        row |= {"difference": difference, "t": math.nan, "low": low, "high": high, "p": p}
        rows.append(row | {k: sum(r[k] for r in own_rows) for k in ("win", "tie", "loss")})
    frame = pd.DataFrame(rows)
    if len(frame):
        frame["holm"] = holm(frame["p"])
    return frame


def domain_probe(embeddings: np.ndarray, domains: Sequence[Any]) -> float:
    """How well a linear probe (Alain and Bengio, 2016, arXiv:1610.01644) tells the domain: 0 is chance, 1 is always."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    predicted = cross_val_predict(probe, embeddings, domains, cv=folds)
    return float(balanced_accuracy_score(domains, predicted, adjusted=True))
