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
from few_shot import CELLS, METHODS, NAMES, SETFIT_STEPS, SHOTS, applies, digest
from scipy import stats
from tasks import HERE, clusters, split

OURS = ("adapted", "meta")
COMPARED = (*OURS, "paper_adapted")  # a section of differences each
ABLATIONS = ("mix_bi", "tw", "dc", "paper", "paper_adapted")  # parts of ours, no baselines
GIVES = {
    "mft": ("meta", "adapted"),
    "paper": ("paper", "paper_adapted"),
    "embeddings": ("embeddings", "embeddings_single"),
}  # by one fit
TASKS = {"amazon": "reviews", "mnli": "inference", "hypernyms": "hypernyms"}
REPLICATES = 10_000
FEWEST_SEEDS = 5  # that a difference in bold rests on
ALL = "all"  # the mean over tasks of the mean over their shots
COLOURS = {  # Okabe and Ito's, which the colour-blind can tell apart; line styles tell more
    "adapted": ("#000000", "-", "o"),
    "meta": ("#000000", "--", "o"),
    "mix": ("#0072B2", "-", "s"),
    "single": ("#D55E00", "-", "^"),
    "mtl": ("#009E73", "-", "D"),
    "adv": ("#CC79A7", "-", "v"),
    "mix_bi": ("#0072B2", ":", "s"),
    "paper_adapted": ("#56B4E9", "-", "o"),
    "paper": ("#56B4E9", "--", "o"),
    "tw": ("#56B4E9", ":", "s"),
    "dc": ("#56B4E9", ":", "v"),
    "trainer": ("#0072B2", "--", "x"),
    "setfit": ("#E69F00", "-", "P"),
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


def half_interval(values: Sequence[float]) -> float:
    """Half of the 95% t interval of a mean; NaN for fewer than two values."""
    if len(values) < 2:
        return math.nan
    return float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))


def _rng(*key: str) -> np.random.Generator:
    return np.random.default_rng([zlib.crc32("/".join(key).encode()), 20201116])


Clusters = dict[str, dict[str, np.ndarray]]  # by source and domain, of the test rows in the order of their hashes


def resample_rows(scores: Scores, together: Clusters | None = None) -> dict[tuple[Column, str, int], np.ndarray]:
    """Accuracy of every score under resampled test rows, each of shape (REPLICATES,): the mean over domains.

    The clusters of a domain's rows (each row is one, where none are given) are drawn with replacement, in a replicate the same
    ones for all methods, shots and seeds that are scored on them.
    """
    on: dict[str, list[tuple[tuple[Column, str, int], Score]]] = defaultdict(list)
    for column, methods in scores.items():
        for name, seeds in methods.items():
            for seed, score in seeds.items():
                on[score.source].append(((column, name, seed), score))
    out = {}
    for source, entries in sorted(on.items()):
        domains = sorted(entries[0][1].correct)
        total = np.zeros((REPLICATES, len(entries)))
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
        out.update({key: total[:, i] / len(domains) for i, (key, _) in enumerate(entries)})
    return out


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


def resample_seeds(column: Column, seeds: Sequence[int], values: np.ndarray) -> np.ndarray:
    """Mean over seeds drawn with replacement, shape (REPLICATES,), of values (REPLICATES, n_seeds).

    Columns of one task with the same seeds get the same draws, as a seed's rows and split are alike at all shots. What the
    draw of seeds changes is spread as a t interval is: a plain bootstrap of few is too narrow, since its variance lacks the
    factor n / (n - 1) and its quantiles are those of a normal distribution.
    """
    n = len(seeds)
    counts = _rng("seeds", column.task, *map(str, seeds)).multinomial(n, np.full(n, 1 / n), size=len(values))
    wider = stats.t.ppf(0.975, n - 1) / stats.norm.ppf(0.975) * math.sqrt(n / (n - 1)) if n > 1 else 1.0
    all_seeds = values.mean(axis=1)
    return all_seeds + wider * ((counts * values).sum(axis=1) / n - all_seeds)


def p_value(differences: np.ndarray) -> float:
    """Two-sided: how rarely the resampled difference has the other sign."""
    below, above = (differences <= 0).sum(), (differences >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1)))


def holm(p: Sequence[float]) -> np.ndarray:
    """p-values adjusted for as many comparisons (Holm, 1979), in their order."""
    p = np.asarray(p, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)).clip(max=1.0)
    return adjusted[np.argsort(order, kind="stable")]


def compare(scores: Scores, ours: str, together: Clusters | None = None) -> pd.DataFrame:
    """`ours` less every other method, in points: a row for each task, shots and method, and for each method over all.

    "Over all" is the mean over tasks of the mean over their shot counts, where both have cells. Holm's adjustment is over
    all rows of this frame.
    """
    resampled = resample_rows(scores, together)
    rows, drawn = [], defaultdict(lambda: defaultdict(list))
    for column, methods in scores.items():
        for other in methods:
            seeds = sorted(set(methods.get(ours, {})) & set(methods[other]))
            if other == ours or not seeds:
                continue
            per_seed = [100 * (methods[ours][s].accuracy - methods[other][s].accuracy) for s in seeds]
            values = np.stack([resampled[column, ours, s] - resampled[column, other, s] for s in seeds], axis=1)
            differences = 100 * resample_seeds(column, seeds, values)
            drawn[other][column.task].append((float(np.mean(per_seed)), differences))
            signs = [
                np.sign(methods[ours][s].correct[d].sum() - methods[other][s].correct[d].sum())
                for s in seeds
                for d in methods[ours][s].correct
            ]
            rows.append(
                {
                    "other": other,
                    "column": column,
                    "seeds": len(seeds),
                    "difference": np.mean(per_seed),
                    "t": half_interval(per_seed),
                    "differences": differences,
                    "win": signs.count(1),
                    "tie": signs.count(0),
                    "loss": signs.count(-1),
                }
            )
    for other, tasks in drawn.items():
        means = [np.mean([d for d, _ in columns]) for columns in tasks.values()]
        differences = np.mean([np.mean([r for _, r in columns], axis=0) for columns in tasks.values()], axis=0)
        own = [r for r in rows if r["other"] == other]
        counts = {k: sum(r[k] for r in own) for k in ("win", "tie", "loss")}
        rows.append(
            {
                "other": other,
                "column": ALL,
                "tasks": list(tasks),
                "seeds": min(r["seeds"] for r in own),
                "difference": np.mean(means),
                "t": math.nan,
                "differences": differences,
                **counts,
            }
        )
    frame = pd.DataFrame(rows)
    if len(frame):
        frame["low"], frame["high"] = zip(*(np.percentile(d, [2.5, 97.5]) for d in frame["differences"]))
        frame["p"] = [p_value(d) for d in frame["differences"]]
        frame["holm"] = holm(frame["p"])
        frame = frame.drop(columns="differences")
    return frame


# ---------------------------------------------------------------------- Markdown


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    lines = [list(head), *map(list, rows)]
    marks = ["---"] * len(lines[0])
    return ["| " + " | ".join(line) + " |" for line in (lines[0], marks, *lines[1:])]


def plus_minus(values: Sequence[float]) -> str:
    half = half_interval(values)
    return f"{np.mean(values):.1f}" + ("" if math.isnan(half) else f" ± {half:.1f}")


def with_interval(row: Any) -> str:
    text = f"{row.difference:+.1f} [{row.low:+.1f}, {row.high:+.1f}]"
    return f"**{text}**" if row.holm < 0.05 and row.seeds >= FEWEST_SEEDS else text


def overview(scores: Scores) -> list[str]:
    names = [n for n in NAMES if any(n in methods for methods in scores.values())]
    lines = []
    for name in names:
        cells = [methods.get(name, {}) for methods in scores.values()]
        lines.append([NAMES[name], *(plus_minus([100 * s.accuracy for s in c.values()]) if c else "" for c in cells)])
    return table(["", *map(str, scores)], lines)


def by_domain(scores: Scores) -> list[str]:
    lines = []
    for column, methods in scores.items():
        domains = sorted(next(iter(next(iter(methods.values())).values())).correct)
        rows = []
        for name, seeds in methods.items():
            by = [[100 * s.correct[d].mean() for s in seeds.values()] for d in domains]
            overall = plus_minus([100 * s.accuracy for s in seeds.values()])
            steps = sorted({str(s.steps) for s in seeds.values() if s.steps is not None})
            seconds = f"{np.median([s.seconds for s in seeds.values()]):.0f}"
            rows.append([NAMES[name], *map(plus_minus, by), overall, str(len(seeds)), " or ".join(steps), seconds])
        lines += ["", f"### {column} a domain", ""]
        lines += table(["", *domains, "mean", "seeds", "steps", "seconds"], rows)
    return lines


def differences(scores: Scores, ours: str, together: Clusters) -> list[str]:
    frame = compare(scores, ours, together)
    if not len(frame):
        return []
    columns = [*scores, ALL]
    rows, long = [], []
    for other in [n for n in NAMES if n in set(frame["other"])]:
        own = {row.column: row for row in frame[frame["other"] == other].itertuples()}
        every = own[ALL]
        left_out = (
            "" if len(every.tasks) == len({c.task for c in scores}) else f" ({', '.join(map(TASKS.get, every.tasks))})"
        )
        counts = f"{every.win} / {every.tie} / {every.loss}"
        cells = [with_interval(own[c]) if c in own else "" for c in columns]
        rows.append(
            [
                NAMES[other] + (" (a part of ours)" if other in ABLATIONS else ""),
                *cells[:-1],
                cells[-1] + left_out,
                counts,
            ]
        )
        for c in (c for c in columns if c in own):
            r = own[c]
            half = "" if math.isnan(r.t) else f"± {r.t:.1f}"
            long.append(
                [NAMES[other], str(c), str(r.seeds), f"{r.difference:+.2f}", half]
                + [f"{r.low:+.2f} to {r.high:+.2f}", f"{r.p:.4f}", f"{r.holm:.4f}", f"{r.win} / {r.tie} / {r.loss}"]
            )
    baselines = frame[(frame["column"] != ALL) & ~frame["other"].isin([*OURS, *ABLATIONS])]
    best = []
    for column in scores:
        own = baselines[baselines["column"] == column]
        if len(own):
            r = own.loc[own["difference"].idxmin()]
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
                who = "all methods" if len(names) >= len(NAMES) - 1 else ", ".join(names)
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
    precisions: dict[str, set[str]] = defaultdict(set)
    for cell in cells:
        if "precision" in cell:
            precisions[str(Column(cell["task"], str(cell["shots"])))].add(cell["precision"])
    told = "; ".join(f"{column}: {' and '.join(sorted(names))}" for column, names in precisions.items())
    lines = [
        "# Few shots",
        "",
        f"Made by `{command}` from {len(cells)} cells of `python benchmarks/few_shot.py` (encoder "
        f"{' and '.join(sorted({c['settings'].get('model', '') for c in cells} - {''})) or 'of the defaults'}); seeds "
        f"{', '.join(map(str, seeds))}, as many as each table says. In a cell all methods learn from the same rows: so many "
        "labelled rows in each domain, classes balanced (`full`: all there are). They are scored on the same frozen test rows "
        f"({sizes}); of the hypernyms, seed s has split s modulo 5 of the terms, so seeds from 5 on share their test rows "
        "with an earlier one; inference rows are drawn from 25,072 of "
        "MultiNLI's training pairs, about 6%. All that is fine-tuned takes the same number "
        "of optimiser steps a model, in batches of 32 rows (stage 3 comes on top; S takes them for every domain's model); "
        f"SetFit takes {SETFIT_STEPS} of 16 pairs of texts, its learning rate its own default (of the steps it is an "
        "epoch: 132 at 16 labelled reviews a domain, 2,064 at 64). The Trainer has the learning rate of the others, which is "
        "not its default.",
        "",
        "Accuracy in percent, the mean over domains; ± is half of the 95% t interval over seeds. Differences are paired, in "
        f"points; [ ] is a 95% interval by {REPLICATES:,} bootstrap replicates that draw seeds and, the same for all "
        "methods, test rows anew; what the draw of seeds changes is widened to a t distribution of as many seeds. Rows of "
        "inference that share a premise are drawn together, and rows of hypernyms that share their second term (in about half "
        "of a split's it is one of five). **Bold**: p below 0.05, by the same replicates, after Holm's "
        f"adjustment over all comparisons of the section, and at least {FEWEST_SEEDS} seeds. The details also give the t "
        "interval over seeds alone. Wins, ties and losses count the domains of all seeds. `all`: the mean over tasks, of each "
        "over its shots.",
        "",
        f"Machines: {'; '.join(machines)}. Versions: {', '.join(found)}. The folder skmft/ that ran (git's id of the tree): "
        f"{', '.join(codes) or 'unknown'}. Precision of fine-tuning, but SetFit's, which is float32: "
        f"{told or 'unknown'}. "
        "Seconds are those of fitting, the median over seeds.",
        "",
        "![Learning curves](few_shot.png)" if args.figure else "",
        "",
        *overview(scores),
    ]
    for ours in COMPARED:
        lines += differences(scores, ours, together)
    lines += ["", "## By domain", *by_domain(scores)]
    shots = {t: [str(s) for s in SHOTS[t] if not args.shots or str(s) in args.shots] for t in SHOTS}
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
                (where[c], [100 * s.accuracy for s in scores[c][name].values()]) for c in columns if name in scores[c]
            ]
            if not points:
                continue
            x, mean = [x for x, _ in points], np.array([np.mean(v) for _, v in points])
            ours = name in OURS
            style = {"linestyle": line, "marker": marker, "markersize": 5, "linewidth": 2.4 if ours else 1.3}
            [handles[name]] = ax.plot(x, mean, color=colour, zorder=3 if ours else 2, **style)
            half = np.array([half_interval(v) for _, v in points])
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
    parser.add_argument("--shots", nargs="+", help="default all that have cells")
    parser.add_argument("--name", default="few_shot", help="of the files in benchmarks/results")
    parser.add_argument("--no-figure", dest="figure", action="store_false")
    args = parser.parse_args(argv)
    scores, cells = read(args.cells)
    if args.shots:
        scores = {c: m for c, m in scores.items() if c.shots in args.shots}
        cells = [c for c in cells if str(c["shots"]) in args.shots]
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
