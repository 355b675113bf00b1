"""The paper's studies, by its recipe: corruption weight, layers with a corruption head, training on typical rows alone.

A. corruption weights; B. layers that have a corruption head; C. a share of every class and domain, the most typical rows of it
or, for comparison, rows drawn at random; D. the most and the least typical texts. All fits draw the same rows for the same
seed and are scored on the task's frozen test rows: this is a report, and chose no default. Finished cells are skipped.

    python benchmarks/studies.py --tasks hypernyms --shots 64      # runs what is missing, in one thread
    python benchmarks/studies.py --report                          # writes results/studies.md
"""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from lib import engine, tasks
from lib.cells import Content, distinct, made_with, parser, start
from lib.report import difference, plus_minus, table, write_report
from lib.tasks import draw, fit, inputs, source_of, text_columns

WEIGHTS = (0.0, 0.1, 0.5, 1.0)
LAYERS = {
    "the last": (-1,),
    "the middle": (2,),
    "middle and last": (2, 5),
    "every": (0, 1, 2, 3, 4, 5),
}  # of MiniLM's 6
SHARES = (0.2, 0.4, 0.6, 0.8)
REFERENCE = "paper"  # weight 0.1, last layer, all rows
SETTINGS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    **{f"weight {w:g}": {"corruption_weight": w} for w in WEIGHTS if w != 0.1},
    **{f"layers {name}": {"layers": layers} for name, layers in LAYERS.items() if name != "the last"},
    **{f"{which} {share:g}": {"share": share, "which": which} for share in SHARES for which in ("typical", "random")},
}
EXTREMES = 3  # rows of each class and domain shown as the most, and as the least typical


def most_typical(rows: pd.DataFrame, typicality: np.ndarray, share: float) -> pd.DataFrame:
    """The given share of each class of each domain, at least a row, by falling typicality."""
    rank = pd.Series(-typicality, rows.index).groupby([rows["domain"], rows["y"]]).rank(method="first")
    size = rows.groupby(["domain", "y"])["y"].transform("size")
    return rows[rank <= np.maximum(1, np.round(share * size))]


def classifier(setting: str, seed: int) -> Any:
    params = {k: v for k, v in SETTINGS[setting].items() if k == "corruption_weight"}
    if layers := SETTINGS[setting].get("layers"):
        params["recipe"] = engine.MetaFineTuning(corruption_layers=layers)
    return engine.paper(adaptation=None, random_state=seed, **params)


def run(task: str, shots: int, seed: int, setting: str) -> Content:
    pool, test = tasks.rows_of(source_of(task, seed))
    rows, _ = draw(pool, shots, seed)
    share, which = SETTINGS[setting].get("share"), SETTINGS[setting].get("which")
    clf = classifier(setting, seed)
    begin = time.perf_counter()
    if share is not None:
        if which == "typical":  # stage 1, and next to no training
            scored = engine.paper(adaptation=None, random_state=seed, meta_epochs=1, learning_rate=1e-12)
            score = fit(scored, rows).typicality_
        else:
            score = np.random.default_rng(seed).random(len(rows))
        rows = most_typical(rows, score, share)
    fit(clf, rows)
    seconds = time.perf_counter() - begin
    right = pd.Series(clf.predict(inputs(test)) == test["y"].to_numpy())
    cell = {
        "settings": engine.settings_of(clf),
        "accuracy": float(right.groupby(test["domain"].to_numpy()).mean().mean()),
        "n_train": len(rows),
        "n_test": len(test),
        "seconds": round(seconds, 1),
    }
    if setting == REFERENCE:
        texts = [" / ".join(row) for row in rows[text_columns(rows)].itertuples(index=False)]
        scored_rows = rows.assign(typicality=clf.typicality_, shown=texts).sort_values("typicality", ascending=False)
        by_class = scored_rows.groupby(["domain", "y"])
        kept = {"most": by_class.head(EXTREMES), "least": by_class.tail(EXTREMES)}
        cell["extremes"] = {k: v[["domain", "y", "typicality", "shown"]].values.tolist() for k, v in kept.items()}
    return cell


def report(cells: list[Content]) -> list[str]:
    frame = pd.DataFrame(cells)
    lines = [
        "# The paper's studies",
        "",
        "`python benchmarks/studies.py --tasks TASK --shots N`, then `--report`: meta-learner by the paper's recipe with the "
        "optimisation of our defaults (all-MiniLM-L6-v2, `corruption_weight=0.1` on the last layer, all rows, where nothing "
        "else is said), scored on the frozen test rows; accuracy in percent, mean over domains, ± half of a 95% t interval "
        "over seeds; differences from that recipe are paired by seed. Machine: "
        f"{distinct(cells, 'machine', '; ')}.",
    ]
    for (task, shots), some in frame.groupby(["task", "shots"]):
        by_seed = some.pivot(index="seed", columns="setting", values="accuracy") * 100
        if REFERENCE not in by_seed:
            lines += [
                "",
                f"## {task}, {shots} labelled a domain",
                "",
                "The paper's recipe, the reference, has not been run.",
            ]
            continue
        n_test = " or ".join(map(str, sorted(some["n_test"].unique())))
        lines += ["", f"## {task}, {shots} labelled a domain ({n_test} test rows)"]

        weights = [[f"{w:g}", *against_reference(by_seed, f"weight {w:g}")] for w in WEIGHTS]
        layers = [[name, *against_reference(by_seed, f"layers {name}")] for name in LAYERS]
        for title, head, body in (("weight", "`corruption_weight`", weights), ("layers", "corrupted layers", layers)):
            lines += ["", f"### Corruption: {title}", ""]
            lines += table([head, "seeds", "accuracy", "less the paper's recipe"], body)
        lines += [
            "",
            "### A share of the rows",
            "",
            "Of every class of every domain; typicality scored on all rows.",
            "",
        ]
        shares = []
        for share in SHARES:
            both = by_seed.reindex(columns=[f"typical {share:g}", f"random {share:g}"]).dropna()
            gain = both.iloc[:, 0] - both.iloc[:, 1]
            size = rows_and_steps(some, f"random {share:g}") if len(both) else ["", ""]
            accuracy = [plus_minus(both[name]) for name in both]
            shares.append([f"{share:.0%}", *size, len(both), *accuracy, difference(gain)])
        whole = by_seed[REFERENCE].dropna()
        shares.append(["100%", *rows_and_steps(some, REFERENCE), len(whole), plus_minus(whole), "", ""])
        head = ["share", "rows", "steps", "seeds", "the most typical", "at random", "typical less random"]
        lines += table(head, shares)
        first = some[(some["setting"] == REFERENCE) & some["extremes"].notna()].sort_values("seed")
        if len(first):
            lines += ["", f"### The most and the least typical training texts (seed {first['seed'].iloc[0]})", ""]
            body = [
                [which, domain, y, f"{value:.3f}", shorten(text)]
                for which, found in first["extremes"].iloc[0].items()
                for domain, y, value, text in sorted(found, key=lambda r: (r[0], str(r[1]), -r[2]))
            ]
            lines += table(["", "domain", "class", "typicality", "text"], body)
    return lines


def rows_and_steps(some: pd.DataFrame, setting: str) -> list[int]:
    """How many rows a setting learned from, and in how many optimiser steps."""
    n_rows = int(some.loc[some["setting"] == setting, "n_train"].max())
    return [n_rows, engine.budget(n_rows)]


def against_reference(by_seed: pd.DataFrame, setting: str) -> list[Any]:
    """Seeds, accuracy, and the difference from the reference, which is one of the weights and one of the layers."""
    name = setting if setting in SETTINGS else REFERENCE
    found = by_seed.get(name, pd.Series(dtype=float)).dropna()
    change = (found - by_seed[REFERENCE]).dropna()
    return [len(found), plus_minus(found), "" if name == REFERENCE else difference(change)]


def shorten(text: str, length: int = 100) -> str:
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " ..."


def main(argv: list[str] | None = None) -> None:
    found = parser(__doc__, "studies", report=True)
    found.add_argument("--tasks", nargs="+", choices=["amazon", "mnli", "hypernyms"], default=["amazon", "hypernyms"])
    found.add_argument("--shots", nargs="+", type=int, default=[64])
    found.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    found.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    found.add_argument("--threads", type=int, default=1)
    args = found.parse_args(argv)
    if args.report:
        return write_report("studies", args.cells, report)
    start(args.threads)
    for task, shots, seed, setting in product(args.tasks, args.shots, args.seeds, args.settings):
        args.cells.complete(
            run,
            {"task": task, "shots": shots, "seed": seed, "setting": setting},
            current=made_with(engine.settings_of(classifier(setting, seed))),
            show=lambda cell: f"{cell['accuracy']:.3f}, {cell['seconds']:.0f} s",
        )


if __name__ == "__main__":
    main()
