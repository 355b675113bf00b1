"""Tables and learning curves of the cells that `few_shot.py` has run.

Nothing is run here, and nothing is random: the same cells give the same report, to the last digit.

    python benchmarks/report.py            # writes results/few_shot.md and results/few_shot.png
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from few_shot import HEADLINE, SHOTS, selected
from lib import engine
from lib import report as lib_report
from lib.cells import Cells, Content, distinct, parser
from lib.methods import GIVES, METHODS, NAMES, SETFIT_STEPS, applies
from lib.report import accuracy, plus_minus, table, with_interval, write_page
from lib.statistics import (
    ALL,
    FEWEST_UNITS,
    REPLICATES,
    Clusters,
    Column,
    Score,
    Scores,
    answers,
    compare,
    half_interval,
    units,
)
from lib.tasks import SHOWN, find_clusters

OURS = ("adapted", "meta")
COMPARED = (*OURS, "paper_adapted")  # a section of differences each
ABLATIONS = ("tw", "dc", "paper", "paper_adapted", "exact", "exact_adapted")  # parts of ours, no baselines
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


def read(table: Cells) -> tuple[Scores, list[Content]]:
    """All cells of a table, and what they say of each method.

    Raises
    ------
    ValueError
        If methods were not given the same rows, or were scored on others, or a method's cells have different settings.
    """
    cells = list(table.read().values())
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
                    f"the cells in {table} differ in the {' '.join(map(str, key))}: one has {seen[key]}, another {value}; "
                    "run few_shot.py again, which replaces cells of other settings, or remove the old ones."
                )
        for name, result in cell["results"].items():
            score = Score(cell["source"], answers(result["correct"]), result["fit_seconds"], cell.get("steps"))
            scores[Column(cell["task"], str(cell["shots"]))][name][cell["seed"]] = score
    order = {(task, str(s)): (i, j) for i, task in enumerate(SHOTS) for j, s in enumerate(SHOTS[task])}
    columns = sorted(scores, key=lambda c: order[c.task, c.shots])
    return {c: {n: dict(sorted(scores[c][n].items())) for n in NAMES if n in scores[c]} for c in columns}, cells


def headline(scores: Scores) -> list[Column]:
    """The columns that "all" is a mean of; all of them where none is in HEADLINE."""
    return [c for c in scores if f"{c.task}:{c.shots}" in HEADLINE] or list(scores)


def due(scores: Scores, name: str) -> list[Any]:
    """The columns that "all" would be a mean of, were all cells there that a method can have."""
    method = next(m for m, names in GIVES.items() if name in names)
    if not any(f"{c.task}:{c.shots}" in HEADLINE for c in scores):
        return [c for c in scores if applies(method, c.task)]
    return [c for c in HEADLINE if applies(method, c.split(":")[0])]


def overview(scores: Scores) -> list[str]:
    names = [n for n in NAMES if any(n in methods for methods in scores.values())]
    rows = [[NAMES[name], *(accuracy(c, methods.get(name, {})) for c, methods in scores.items())] for name in names]
    return table(["", *map(str, scores)], rows)


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
        frame = compare(own, "adapted", together, headline(own))
        for column in [*own, *([ALL] if len(set(own) & set(headline(own))) > 1 else [])]:
            found = frame[(frame["column"] == column) & (frame["other"] == "meta")]
            best = best_baseline(frame, column)
            pairs = [*(found.itertuples() if len(found) else ()), *([best] if best is not None else ())]
            if len(pairs) < 2:
                continue
            name = f"{SHOWN[task]}, {ALL}" if column == ALL else str(column)
            cells = [with_interval(r, bold=False) for r in pairs]
            held = "yes" if min(r.low for r in pairs) > -1 else "no"
            if min(r.units for r in pairs) < FEWEST_UNITS:
                held = "too few seeds"
            rows.append([name, str(pairs[0].seeds), cells[0], f"{cells[1]} ({NAMES[best['other']]})", held])
    if not rows:
        return []
    what = f"Of {NAMES['adapted']}: less its meta-learner, and less the baseline that came out best of those that have cells"
    head = ["", "seeds", "less meta-learner", "less best baseline", "both lower ends above -1"]
    return ["", "## Harm", "", f"{what} (what lacks: see Missing).", "", *table(head, rows)]


def differences(scores: Scores, ours: str, together: Clusters) -> list[str]:
    frame = compare(scores, ours, together, headline(scores))
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
            bounds = f"{r.low:+.2f} to {r.high:+.2f}" if math.isfinite(r.low) else ""
            counts = f"{r.win} / {r.tie} / {r.loss}"
            figures = [r.seeds, f"{r.difference:+.2f}", half, bounds, f"{r.p:.4f}", f"{r.holm:.4f}", counts]
            long.append([NAMES[other], c, *figures])
    found = [(column, best_baseline(frame, column)) for column in columns]
    best = [[column, NAMES[r["other"]], with_interval(r)] for column, r in found if r is not None]
    lines = ["", f"## {NAMES[ours]}, less the others", ""]
    lines += table(["", *map(str, scores), "all", "win / tie / loss"], rows)
    lines += ["", "The baseline that came out best, chosen in hindsight:", ""]
    lines += table(["", "baseline", "difference"], best)
    lines += ["", "<details><summary>All figures</summary>", ""]
    interval = ["points", "t over seeds", "95% interval", "p", "p, Holm"]
    head = ["less", "task, shots", "seeds", *interval, "win / tie / loss"]
    return [*lines, *table(head, long), "", "</details>"]


def missing(scores: Scores, shots: dict[str, Sequence[str]], seeds: Sequence[int]) -> list[str]:
    """What a full grid of these shots and seeds has beyond the cells that are there."""
    lines = []
    for task, counts in shots.items():
        given = [name for method in METHODS if applies(method, task) for name in GIVES[method]]
        for count in counts:
            found = scores.get(Column(task, count), {})
            absent = defaultdict(list)
            for name in given:
                if lacking := tuple(s for s in seeds if s not in found.get(name, {})):
                    absent[lacking].append(name)
            for lacking, names in absent.items():
                who = "all methods" if names == given else ", ".join(names)
                which = "all seeds" if len(lacking) == len(seeds) else f"seeds {', '.join(map(str, lacking))}"
                lines.append(f"- {SHOWN[task]}, {count}: {who}; {which}")
    return lines


def report(
    scores: Scores, cells: list[Content], together: Clusters, args: argparse.Namespace, command: str
) -> list[str]:
    seeds = sorted({cell["seed"] for cell in cells})
    found = sorted({f"{k} {v}" for cell in cells for k, v in cell["versions"].items()})
    test = defaultdict(set)
    for column, methods in scores.items():
        for s in (s for by_seed in methods.values() for s in by_seed.values()):
            test[SHOWN[column.task]].add((s.source, sum(map(len, s.correct.values()))))
    sizes = "; ".join(f"{t}: {' or '.join(map(str, sorted({n for _, n in v})))}" for t, v in test.items())
    codes = distinct((c for c in cells if c.get("code")), "code", ", ")
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
    option += f" --model {models[0]}" if len(models) == 1 and models[0] != engine.DEFAULT_MODEL else ""
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
        f"Machines: {distinct(cells, 'machine', '; ')}. Versions: {', '.join(found)}. "
        f"The folder skmft/ that ran (git's id of the tree): {codes or 'unknown'}. "
        f"Precision of fine-tuning, but SetFit's, which is float32: {told or 'unknown'}. "
        "Seconds are those of fitting, the median over seeds."
        + "".join(f" Note: {note}." for note in sorted({c["note"] for c in cells if "note" in c})),
        "",
        f"![Learning curves]({args.name}.png)" if args.figure else "",
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
    return lines


def draw_curves(scores: Scores, cells: list[Content], path: Path) -> None:
    """Accuracy against labelled rows per domain, one panel per task; the band is the 95% t interval of the adapted MFT."""
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
        ax.set(title=SHOWN[task], xlabel="labelled rows a domain")
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
    found = parser(__doc__, "few_shot")
    found.add_argument("--shots", nargs="+", help="such as 16, mnli:256, headline; default all that have cells")
    found.add_argument("--name", default="few_shot", help="of the files in benchmarks/results")
    found.add_argument("--no-figure", dest="figure", action="store_false")
    args = found.parse_args(argv)
    scores, cells = read(args.cells)
    if args.shots:
        scores = {c: m for c, m in scores.items() if selected(c.task, c.shots, args.shots)}
        cells = [c for c in cells if selected(c["task"], c["shots"], args.shots)]
    if not scores:
        print(f"{args.cells} has no cells; run few_shot.py first", file=sys.stderr)
        return 1
    command = " ".join(["python benchmarks/report.py", *(sys.argv[1:] if argv is None else argv)])
    write_page(args.name, report(scores, cells, find_clusters(cells), args, command))
    if args.figure:
        draw_curves(scores, cells, lib_report.RESULTS / f"{args.name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
