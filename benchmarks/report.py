"""Tables and learning curves of the cells that `few_shot.py` has run.

Nothing is run here, and nothing is random: the same cells give the same report, to the last digit.

    python benchmarks/report.py            # writes results/few_shot.md and results/few_shot.png
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from few_shot import CELLS, HEADLINE, METHODS, NAMES, SETFIT_STEPS, SHOTS, applies, digest, selected
from scipy import stats
from tasks import HERE, clusters, split

from skmft.networks import DEFAULT_MODEL

OURS = ("adapted", "meta")
COMPARED = (*OURS, "paper_adapted")  # a section of differences each
ABLATIONS = ("tw", "dc", "paper", "paper_adapted", "exact", "exact_adapted")  # parts of ours, no baselines
GIVES = {
    "mft": ("meta", "adapted"),
    "paper": ("paper", "paper_adapted"),
    "exact": ("exact", "exact_adapted"),
    "embeddings": ("embeddings", "embeddings_single"),
}  # by one fit
TASKS = {"amazon": "reviews", "mnli": "inference", "hypernyms": "hypernyms"}
REPLICATES = 10_000
FEWEST_UNITS = 5  # seeds, or splits of terms, that a difference in bold rests on
ALL = "all"  # the mean over tasks of the mean over their columns in HEADLINE
COLOURS = {  # Okabe and Ito's, which the colour-blind can tell apart; line styles tell more
    "adapted": ("#000000", "-", "o"),
    "meta": ("#000000", "--", "o"),
    "mix": ("#0072B2", "-", "s"),
    "single": ("#D55E00", "-", "^"),
    "mtl": ("#009E73", "-", "D"),
    "adv": ("#CC79A7", "-", "v"),
    "mix_bi": ("#0072B2", ":", "*"),
    "paper_adapted": ("#56B4E9", "-", "o"),
    "paper": ("#56B4E9", "--", "o"),
    "tw": ("#56B4E9", ":", "s"),
    "dc": ("#56B4E9", ":", "v"),
    "exact": ("#009E73", "--", "."),
    "exact_adapted": ("#009E73", ":", "."),
    "trainer": ("#0072B2", "--", "x"),
    "setfit": ("#E69F00", "-", "P"),
    "setfit_equal": ("#E69F00", ":", "X"),
    "embeddings": ("#888888", "-", "."),
    "embeddings_single": ("#888888", "--", "."),
    "tfidf": ("#888888", ":", "x"),
}


@dataclass(frozen=True, order=True)
class Column:
    """A task with a number of labelled rows a domain."""

    task: str
    shots: str

    def __str__(self) -> str:
        return f"{TASKS[self.task]}, {self.shots}"


@dataclass
class Score:
    """One method's right and wrong answers in one cell."""

    source: str
    correct: dict[str, np.ndarray]  # by domain, in the order of the test rows' hashes
    seconds: float
    steps: int | None

    @property
    def accuracy(self) -> float:
        return float(np.mean([right.mean() for right in self.correct.values()]))


Scores = dict[Column, dict[str, dict[int, Score]]]  # by name in NAMES and seed


def read(folder: Path) -> tuple[Scores, list[dict[str, Any]]]:
    """All cells of a folder.

    Raises
    ------
    ValueError
        If methods were not given the same rows, or were scored on others, or a method's cells have different settings.
    """
    cells = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    scores: Scores = defaultdict(lambda: defaultdict(dict))
    seen: dict[tuple[Any, ...], str] = {}
    for cell in cells:
        settings = {k: v for k, v in cell["settings"].items() if k != "random_state"}
        for key, value in (
            (("training rows", cell["task"], cell["shots"], cell["seed"]), cell["train_hash"]),
            (("test rows", cell["source"]), cell["test_hash"]),
            (("settings", cell["method"]), json.dumps(settings, sort_keys=True)),
        ):
            if seen.setdefault(key, value) != value:
                raise ValueError(
                    f"the cells in {folder} differ in the {' '.join(map(str, key))}: one has {seen[key]}, another {value}; "
                    "run few_shot.py again, which replaces cells of other settings, or remove the old ones."
                )
        for name, result in cell["results"].items():
            correct = {d: np.array(list(bits)) == "1" for d, bits in result["correct"].items()}
            score = Score(cell["source"], correct, result["fit_seconds"], cell.get("steps"))
            scores[Column(cell["task"], str(cell["shots"]))][name][cell["seed"]] = score
    order = {(task, str(s)): (i, j) for i, task in enumerate(SHOTS) for j, s in enumerate(SHOTS[task])}
    columns = sorted(scores, key=lambda c: order[c.task, c.shots])
    return {c: {n: dict(sorted(scores[c][n].items())) for n in NAMES if n in scores[c]} for c in columns}, cells


# ---------------------------------------------------------------------- statistics


def half_interval(values: Sequence[float], units: Sequence[Any] | None = None) -> float:
    """Half of the 95% t interval of a mean; NaN for fewer than two values. Values of one unit count as their mean."""
    by_unit = pd.Series(values, dtype=float).groupby(list(range(len(values)) if units is None else units)).mean()
    if len(by_unit) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(by_unit) - 1) * by_unit.std() / math.sqrt(len(by_unit)))


def units(column: Column, scores: dict[int, Score]) -> list[Any]:
    """What is drawn anew with a seed: the training rows; of the hypernyms first a split of the terms, which seeds share."""
    return [score.source if column.task == "hypernyms" else seed for seed, score in scores.items()]


def _rng(*key: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32("/".join(key).encode()), 20201116])


Clusters = dict[str, dict[str, np.ndarray]]  # by source and domain, of the test rows in the order of their hashes


def resample_rows(
    scores: Scores, together: Clusters | None = None
) -> tuple[dict[tuple[Column, str, int], np.ndarray], dict[str, float]]:
    """Accuracy of every score under resampled test rows, each of shape (REPLICATES,): the mean over domains.

    The clusters of a domain's rows (each row is one, where none are given) are drawn with replacement, in a replicate the same
    ones for all methods, shots and seeds that are scored on them. Also the degrees of freedom of every source's rows: as many
    as there are clusters (of unequal ones, as many as equal ones would tell as much), less one a domain.
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


def find_clusters(cells: list[dict[str, Any]]) -> Clusters:
    """Of all test rows that these cells were scored on.

    Raises
    ------
    ValueError
        If the data at hand has other test rows.
    """
    found = {}
    for source, test_hash in sorted({(cell["source"], cell["test_hash"]) for cell in cells}):
        test = split(source)[1].sort_values("hash", ignore_index=True)
        if digest(test["hash"]) != test_hash:
            raise ValueError(f"the cells of {source!r} were scored on other test rows than those of the data at hand")
        by_domain = clusters(source, test).groupby(test["domain"])
        found[source] = {domain: pd.factorize(own)[0] for domain, own in by_domain}
    return found


def resample_seeds(column: Column, drawn: Sequence[Any], values: Sequence[float]) -> np.ndarray:
    """Mean over units drawn with replacement, shape (REPLICATES,), of a value a seed; `drawn` is the unit of every seed.

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
    """95% interval and two-sided p of the mean of differences that are drawn apart.

    The bootstrap gives variances; their sum's quantiles are those of Student's t, with the degrees of freedom of Welch and
    Satterthwaite. Quantiles of the replicates themselves are too narrow for few seeds, most of all in the tails. One seed
    does not tell how much another draw would change, so that its interval has no bounds.
    """
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


def headline(scores: Scores) -> list[Column]:
    """The columns that "all" is a mean of; all of them where none is in HEADLINE."""
    return [c for c in scores if f"{c.task}:{c.shots}" in HEADLINE] or list(scores)


def due(scores: Scores, name: str) -> list[Any]:
    """The columns that "all" would be a mean of, were all cells there that a method can have."""
    method = next((m for m, names in GIVES.items() if name in names), name)
    if not any(f"{c.task}:{c.shots}" in HEADLINE for c in scores):
        return [c for c in scores if applies(method, c.task)]
    return [c for c in HEADLINE if applies(method, c.split(":")[0])]


def compare(
    scores: Scores, ours: str, together: Clusters | None = None, over: Sequence[Column] | None = None
) -> pd.DataFrame:
    """`ours` less every other method, in points: a row for each task, shots and method, and for each method over all.

    "Over all" is the mean over tasks of the mean over their columns in `over`, by default the `headline` ones, where both have
    cells. Holm's adjustment is over all rows of this frame.
    """
    over = headline(scores) if over is None else over
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


# ---------------------------------------------------------------------- Markdown


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [list(head), *map(list, rows)]
    marks = ["---"] * len(lines[0])
    return ["| " + " | ".join(line) + " |" for line in (lines[0], marks, *lines[1:])]


def plus_minus(values: Sequence[float], drawn: Sequence[Any] | None = None) -> str:
    half = half_interval(values, drawn)
    return f"{np.mean(values):.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def with_interval(row: Any, bold: bool = True) -> str:
    text = f"{row.difference:+.1f}" + (f" [{row.low:+.1f}, {row.high:+.1f}]" if math.isfinite(row.low) else "")
    return f"**{text}**" if bold and row.holm < 0.05 and row.units >= FEWEST_UNITS else text


def accuracy(column: Column, seeds: dict[int, Score]) -> str:
    return plus_minus([100 * s.accuracy for s in seeds.values()], units(column, seeds))


def overview(scores: Scores) -> list[str]:
    names = [n for n in NAMES if any(n in methods for methods in scores.values())]
    lines = []
    for name in names:
        cells = [(column, methods.get(name, {})) for column, methods in scores.items()]
        lines.append([NAMES[name], *(accuracy(column, seeds) if seeds else "" for column, seeds in cells)])
    return table(["", *map(str, scores)], lines)


def by_domain(scores: Scores) -> list[str]:
    lines = []
    for column, methods in scores.items():
        domains = sorted(next(iter(next(iter(methods.values())).values())).correct)
        rows = []
        for name, seeds in methods.items():
            by = [[100 * s.correct[d].mean() for s in seeds.values()] for d in domains]
            drawn = units(column, seeds)
            steps = sorted({str(s.steps) for s in seeds.values() if s.steps is not None})
            seconds = f"{np.median([s.seconds for s in seeds.values()]):.0f}"
            means = [*(plus_minus(values, drawn) for values in by), accuracy(column, seeds)]
            rows.append([NAMES[name], *means, str(len(seeds)), " or ".join(steps), seconds])
        lines += ["", f"### {column} a domain", ""]
        lines += table(["", *domains, "mean", "seeds", "steps", "seconds"], rows)
    return lines


def best_baseline(frame: pd.DataFrame, column: Any) -> Any:
    """Its row of a frame that `compare` made, or None; over all columns only what has the most of them takes part."""
    own = frame[(frame["column"] == column) & ~frame["other"].isin([*OURS, *ABLATIONS])]
    if column == ALL:
        own = own[own["columns"] == own["columns"].max()]
    return own.loc[own["difference"].idxmin()] if len(own) else None


def harm(scores: Scores, together: Clusters) -> list[str]:
    """Whether the default can be told to lose no point: to the meta-learner, and to the baseline that came out best."""
    rows = []
    for task in dict.fromkeys(c.task for c in scores):
        own = {c: m for c, m in scores.items() if c.task == task and "adapted" in m}
        frame = compare(own, "adapted", together)
        for column in [*own, *([ALL] if len(set(own) & set(headline(own))) > 1 else [])]:
            found = frame[(frame["column"] == column) & (frame["other"] == "meta")]
            best = best_baseline(frame, column)
            pairs = [*(found.itertuples() if len(found) else ()), *([best] if best is not None else ())]
            if len(pairs) < 2:
                continue
            name = f"{TASKS[task]}, {ALL}" if column == ALL else str(column)
            cells = [with_interval(r, bold=False) for r in pairs]
            held = "yes" if min(r.low for r in pairs) > -1 else "no"
            if min(r.units for r in pairs) < FEWEST_UNITS:
                held = "too few seeds"
            rows.append([name, str(pairs[0].seeds), cells[0], f"{cells[1]} ({NAMES[best['other']]})", held])
    if not rows:
        return []
    lines = [
        "",
        "## Harm",
        "",
        f"Of {NAMES['adapted']}: less its meta-learner, and less the baseline that came out best of those "
        "that have cells (what lacks: see Missing).",
    ]
    return [
        *lines,
        "",
        *table(["", "seeds", "less meta-learner", "less best baseline", "both lower ends above -1"], rows),
    ]


def differences(scores: Scores, ours: str, together: Clusters) -> list[str]:
    frame = compare(scores, ours, together)
    if not len(frame):
        return []
    columns = [*scores, ALL]
    rows, long = [], []
    for other in [n for n in NAMES if n in set(frame["other"])]:
        own = {row.column: row for row in frame[frame["other"] == other].itertuples()}
        every, n_all = own.get(ALL), len(due(scores, other))
        cells = [with_interval(own[c]) if c in own else "" for c in columns]
        if every is not None and every.columns < n_all:
            cells[-1] += f" ({every.columns:.0f} of {n_all})"
        counts = f"{every.win} / {every.tie} / {every.loss}" if every is not None else ""
        rows.append([NAMES[other] + (" (a part of ours)" if other in ABLATIONS else ""), *cells, counts])
        for c in (c for c in columns if c in own):
            r = own[c]
            half = "" if math.isnan(r.t) else f"± {r.t:.1f}"
            long.append(
                [NAMES[other], str(c), str(r.seeds), f"{r.difference:+.2f}", half]
                + [
                    f"{r.low:+.2f} to {r.high:+.2f}" if math.isfinite(r.low) else "",
                    f"{r.p:.4f}",
                    f"{r.holm:.4f}",
                    f"{r.win} / {r.tie} / {r.loss}",
                ]
            )
    best = []
    for column in columns:
        r = best_baseline(frame, column)
        if r is not None:
            best.append([str(column), NAMES[r["other"]], with_interval(r)])
    lines = ["", f"## {NAMES[ours]}, less the others", ""]
    lines += table(["", *map(str, scores), "all", "win / tie / loss"], rows)
    lines += ["", "The baseline that came out best, chosen in hindsight:", ""]
    lines += table(["", "baseline", "difference"], best)
    lines += ["", "<details><summary>All figures</summary>", ""]
    head = [
        "less",
        "task, shots",
        "seeds",
        "points",
        "t over seeds",
        "95% interval",
        "p",
        "p, Holm",
        "win / tie / loss",
    ]
    return [*lines, *table(head, long), "", "</details>"]


def missing(scores: Scores, shots: dict[str, Sequence[str]], seeds: Sequence[int]) -> list[str]:
    """What a full grid of these shots and seeds has beyond the cells that are there."""
    lines = []
    for task, counts in shots.items():
        n_names = sum(len(GIVES.get(method, (method,))) for method in METHODS if applies(method, task))
        for count in counts:
            found = scores.get(Column(task, count), {})
            absent = defaultdict(list)
            for method in METHODS:
                if not applies(method, task):
                    continue
                for name in GIVES.get(method, (method,)):
                    lacking = [s for s in seeds if s not in found.get(name, {})]
                    if lacking:
                        absent[tuple(lacking)].append(name)
            for lacking, names in absent.items():
                who = "all methods" if len(names) == n_names else ", ".join(names)
                which = "all seeds" if len(lacking) == len(seeds) else f"seeds {', '.join(map(str, lacking))}"
                lines.append(f"- {TASKS[task]}, {count}: {who}; {which}")
    return lines


def report(
    scores: Scores, cells: list[dict[str, Any]], together: Clusters, args: argparse.Namespace, command: str
) -> str:
    seeds = sorted({cell["seed"] for cell in cells})
    machines = sorted({cell["machine"] for cell in cells})
    found = sorted({f"{k} {v}" for cell in cells for k, v in cell["versions"].items()})
    test = defaultdict(set)
    for column, methods in scores.items():
        for s in (s for by_seed in methods.values() for s in by_seed.values()):
            test[TASKS[column.task]].add((s.source, sum(map(len, s.correct.values()))))
    sizes = "; ".join(f"{t}: {' or '.join(map(str, sorted({n for _, n in v})))}" for t, v in test.items())
    codes = sorted({c["code"] for c in cells if c.get("code")})
    precisions: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for cell in cells:
        if "precision" in cell:
            precisions[str(Column(cell["task"], str(cell["shots"])))][cell["precision"]].add(cell["method"])
    told = "; ".join(
        f"{column}: "
        + " and ".join(k + (f" ({', '.join(sorted(v))})" if len(names) > 1 else "") for k, v in sorted(names.items()))
        for column, names in precisions.items()
    )
    epochs = {c["settings"].get("meta_epochs", "auto") for c in cells if c["method"] != "exact"} - {"auto"}
    option = "".join(f" --meta-epochs {number}" for number in sorted(epochs))
    models = sorted({c["settings"].get("model", "") for c in cells} - {""})
    option += f" --model {models[0]}" if len(models) == 1 and models[0] != DEFAULT_MODEL else ""
    lines = [
        "# Few shots",
        "",
        f"Made by `{command}` from {len(cells)} cells of `python benchmarks/few_shot.py{option}` (encoder "
        f"{' and '.join(models) or 'of the defaults'}); seeds "
        f"{', '.join(map(str, seeds))}, as many as each table says. In a cell all methods learn from the same rows: so many "
        "labelled rows in each domain, classes balanced (`full`: all there are). They are scored on the same frozen test rows "
        f"({sizes}); of the hypernyms, seed s has split s modulo 5 of the terms, so seeds from 5 on share their test rows "
        "with an earlier one; inference rows are drawn from 25,072 of "
        "MultiNLI's training pairs, about 6%. All that is fine-tuned takes the same number "
        "of optimiser steps a model, in batches of 32 rows (stage 3 comes on top; S takes them for every domain's model); "
        f"SetFit takes {SETFIT_STEPS} of 16 pairs of texts, its learning rate its own default (of the steps it is an "
        "epoch: 132 at 16 labelled reviews a domain, 2,064 at 64), where its name does not say otherwise. The Trainer has the "
        "learning rate, warm-up and "
        "weight decay of the others, which are not its defaults; so has what is called the paper's MFT, but for the rows that "
        "say otherwise (1e-5, 2 and 6 epochs). The two texts of a pair are one row of tokens to all that is fine-tuned, but to "
        "MFT (ours, up to 5,000 training rows) and where a name says otherwise. "
        "The defaults' extensions were chosen on other rows of the training pools (NOTES.md), but with the training draws of "
        "seeds 0 to 2 of reviews, 16, and 0 and 1 of inference, 256. Where all rows are labelled (`full`), seeds share "
        "the training rows, and intervals do not tell of other draws.",
        "",
        "Accuracy in percent, the mean over domains; ± is half of the 95% t interval over seeds. Differences are paired, in "
        f"points; [ ] is a 95% interval by {REPLICATES:,} bootstrap replicates that draw seeds (of hypernyms, splits of terms) "
        "and, the same for all methods, test rows anew: they give the variance, and Student's t the quantiles, by the degrees "
        "of freedom of Welch and Satterthwaite. Rows of inference that share a premise are drawn together, and rows of "
        "hypernyms that share their more general term (in about half of a split's it is one of five); as splits of hypernyms "
        "differ in test rows, too, the spread of these counts twice, and intervals are wider than need be. Without brackets: "
        "one seed (split), which tells of no other. **Bold**: p below 0.05 after Holm's adjustment over all comparisons of the "
        f"section, and at least {FEWEST_UNITS} seeds (splits); single intervals are not adjusted. The details also "
        "give the t interval over seeds alone. Wins, ties and losses count the domains of all seeds. `all`: the mean over "
        f"tasks, of each over its columns among {', '.join(HEADLINE)}; in brackets how many there are, where some lack.",
        "",
        f"Machines: {'; '.join(machines)}. Versions: {', '.join(found)}. The folder skmft/ that ran (git's id of the tree): "
        f"{', '.join(codes) or 'unknown'}. Precision of fine-tuning, but SetFit's, which is float32: "
        f"{told or 'unknown'}. "
        "Seconds are those of fitting, the median over seeds."
        + "".join(f" Note: {note}." for note in sorted({c["note"] for c in cells if "note" in c})),
        "",
        "![Learning curves](few_shot.png)" if args.figure else "",
        "",
        *overview(scores),
    ]
    lines += harm(scores, together)
    for ours in COMPARED:
        lines += differences(scores, ours, together)
    lines += ["", "## By domain", *by_domain(scores)]
    shots = {t: [str(s) for s in SHOTS[t] if selected(t, s, args.shots)] for t in SHOTS}
    lines += ["", "## Missing", "", f"Of the full grid of these shots and {len(seeds)} seeds:", ""]
    lines += missing(scores, shots, seeds) or ["nothing."]
    lines += [
        "",
        "SetFit takes no pairs of texts, so it is in the reviews alone; reviews are no pairs that could be encoded apart.",
    ]
    return "\n".join(lines) + "\n"


def draw_curves(scores: Scores, cells: list[dict[str, Any]], path: Path) -> None:
    """Accuracy against labelled rows a domain, a panel a task; the band is the 95% t interval of the adapted MFT."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    tasks = [t for t in SHOTS if any(c.task == t for c in scores)]
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.6 * len(tasks), 5.2), squeeze=False, layout="constrained")
    n_domains = {c["task"]: len(next(iter(c["results"].values()))["accuracy"]) for c in cells}
    n_full = {c["task"]: c["train_rows"] / n_domains[c["task"]] for c in cells if c["shots"] == "full"}
    handles = {}
    for ax, task in zip(axes[0], tasks):
        columns = [c for c in scores if c.task == task]
        where = {c: n_full[task] if c.shots == "full" else int(c.shots) for c in columns}
        for name, (colour, line, marker) in COLOURS.items():
            points = [
                (where[c], [100 * s.accuracy for s in scores[c][name].values()], units(c, scores[c][name]))
                for c in columns
                if name in scores[c]
            ]
            if not points:
                continue
            x, mean = [x for x, *_ in points], np.array([np.mean(v) for _, v, _ in points])
            ours = name in OURS
            style = {"linestyle": line, "marker": marker, "markersize": 5, "linewidth": 2.4 if ours else 1.3}
            [handles[name]] = ax.plot(x, mean, color=colour, zorder=3 if ours else 2, **style)
            half = np.array([half_interval(v, drawn) for _, v, drawn in points])
            if name == "adapted" and np.isfinite(half).all():
                ax.fill_between(x, mean - half, mean + half, color=colour, alpha=0.12, linewidth=0)
        ticks = sorted(set(where.values()))
        labels = {v: c.shots if c.shots != "full" else f"all\n({v:,.0f})" for c, v in where.items()}
        ax.set_xscale("log")
        ax.set_xticks(ticks, [labels[t] for t in ticks])
        ax.minorticks_off()
        ax.set(title=TASKS[task], xlabel="labelled rows a domain")
        ax.grid(alpha=0.3)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("accuracy, %, mean over domains")
    order = [n for n in COLOURS if n in handles]
    figure.legend(
        [handles[n] for n in order], [NAMES[n] for n in order], loc="outside lower center", ncols=3, fontsize=8
    )
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=Path, default=CELLS, help="folder of the cells' files")
    parser.add_argument("--shots", nargs="+", help="such as 16, mnli:256, headline; default all that have cells")
    parser.add_argument("--name", default="few_shot", help="of the files in benchmarks/results")
    parser.add_argument("--no-figure", dest="figure", action="store_false")
    args = parser.parse_args(argv)
    scores, cells = read(args.cells)
    if args.shots:
        scores = {c: m for c, m in scores.items() if selected(c.task, c.shots, args.shots)}
        cells = [c for c in cells if selected(c["task"], c["shots"], args.shots)]
    if not scores:
        print(f"{args.cells} has no cells; run few_shot.py first", file=sys.stderr)
        return 1
    given = sys.argv[1:] if argv is None else argv
    text = report(scores, cells, find_clusters(cells), args, " ".join(["python benchmarks/report.py", *given]))
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / f"{args.name}.md").write_text(text.replace("(few_shot.png)", f"({args.name}.png)"))
    if args.figure:
        draw_curves(scores, cells, HERE / "results" / f"{args.name}.png")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
