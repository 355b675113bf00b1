"""How the default learning_rate and the rules of "auto" epochs were chosen: repeated random sub-sampling validation.

Every cell draws a few-shot training set from a task's training pool (never from its frozen test rows), fits, and scores
other rows of the pool. Finished cells are skipped, so that a stop loses nothing.

    python benchmarks/choose_defaults.py meta          # learning rate x optimiser steps of stage 2
    python benchmarks/choose_defaults.py adaptation    # learning rate x epochs of stage 3, from one meta-learner
    python benchmarks/choose_defaults.py new_domain    # the same for a domain that stage 2 has not seen
    python benchmarks/choose_defaults.py lora          # the same two for adaptation="lora"
    python benchmarks/choose_defaults.py report        # writes results/choose_defaults.md
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from lib import engine, tasks
from lib.cells import Content, distinct, parser, start
from lib.report import table, write_report
from lib.tasks import draw, rows_of

BATCH = 32
VALIDATION_PER_DOMAIN = 200
META_GRID = {
    # task, rows a domain: seeds, steps
    ("snippets", 50): (3, (40, 80, 160)),
    ("amazon", 50): (2, (40, 80)),
    ("snippets", 16): (2, (40, 80, 160)),
}
META_RATES = (3e-5, 6e-5, 1.2e-4)
META_BETWEEN = [(1e-4, 60)]  # a second look between the best cells of the first grid
ADAPTATION_GRID = {
    # task, rows a domain: seeds
    ("snippets", 16): 4,
    ("snippets", 50): 4,
    ("amazon", 50): 3,
    ("snippets", 200): 2,
}
ADAPTATION_SETTINGS = [("full", r, e) for r, e in itertools.product((1e-5, 3e-5, 1e-4), (2, 6))] + [("head", 1e-3, 6)]
LORA_GRID = {("snippets", 50): 3, ("amazon", 50): 2}
LORA_RATES = (1e-4, 3e-4, 1e-3)
LORA_SETTINGS = [("full", 1e-5, 2), ("full", 1e-4, 6)] + [
    ("lora", r, e) for r, e in itertools.product(LORA_RATES, (2, 6))
]
SETTINGS = dict.fromkeys(("adaptation", "new"), ADAPTATION_SETTINGS) | dict.fromkeys(("lora", "loranew"), LORA_SETTINGS)


def rows(task: str, per_domain: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    train, rest = draw(rows_of(task)[0], per_domain, seed)
    return train, rest.groupby("domain").sample(VALIDATION_PER_DOMAIN, random_state=seed)


def fit(train: pd.DataFrame, seed: int, **params: Any) -> Any:
    return tasks.fit(engine.paper(adaptation=None, batch_size=BATCH, random_state=seed, **params), train)


def meta(kind: str, task: str, shots: int, seed: int, learning_rate: float, steps: int) -> Content:
    train, valid = rows(task, shots, seed)
    clf = fit(train, seed, learning_rate=learning_rate, meta_epochs=math.ceil(steps / math.ceil(len(train) / BATCH)))
    return {"accuracy": clf.score(valid["text"], valid["y"])}


def after_adapting(clf: Any, own: pd.DataFrame, valid: pd.DataFrame, settings: list) -> dict[str, float]:
    """Accuracy of the meta-learner, and of the models of the domains of `own` under each setting of stage 3."""
    results = {"meta": clf.score(valid["text"], valid["y"])}
    for method, rate, n_epochs in settings:
        clf.set_params(adaptation=method, adaptation_learning_rate=rate, adaptation_epochs=n_epochs)
        tasks.adapt(clf, own)
        score = clf.score(valid["text"], valid["y"], domains=valid["domain"])
        results[f"{method} {rate:g} x {n_epochs}"] = score
    return results


def adaptation(kind: str, task: str, shots: int, seed: int) -> Content:
    train, valid = rows(task, shots, seed)
    return {"results": after_adapting(fit(train, seed), train, valid, SETTINGS[kind])}


def new_domain(kind: str, task: str, shots: int, seed: int, domain: str) -> Content:
    train, valid = rows(task, 50, seed)
    own = train[train["domain"] == domain].groupby("y").head(shots // 2)
    clf = fit(train[train["domain"] != domain], seed)
    return {"results": after_adapting(clf, own, valid[valid["domain"] == domain], SETTINGS[kind])}


def wanted(what: str) -> Iterator[tuple[Callable[..., Content], Content]]:
    """What makes each cell, and its keys; the first of these is its kind."""
    if what == "meta":
        for (task, shots), (seeds, steps) in META_GRID.items():
            for seed, (rate, n) in itertools.product(
                range(seeds), [*itertools.product(META_RATES, steps), *META_BETWEEN]
            ):
                keys = {"kind": "meta", "task": task, "shots": shots, "seed": seed}
                yield meta, {**keys, "learning_rate": rate, "steps": n}
    if what in ("adaptation", "lora"):
        grid = LORA_GRID if what == "lora" else ADAPTATION_GRID
        for seed, ((task, shots), seeds) in itertools.product(range(max(grid.values())), grid.items()):
            if seed < seeds:
                yield adaptation, {"kind": what, "task": task, "shots": shots, "seed": seed}
    if what in ("new_domain", "lora"):
        kind, columns = ("loranew", [(0, 50)]) if what == "lora" else ("new", itertools.product(range(2), (8, 50)))
        for seed, shots in columns:
            for domain in sorted(rows("snippets", 50, seed)[0]["domain"].unique()):
                yield new_domain, {"kind": kind, "task": "snippets", "shots": shots, "seed": seed, "domain": domain}


def change_table(cells: list[Content], title: str) -> list[str]:
    if not cells:
        return []
    keys = sorted({(c["task"], c["shots"]) for c in cells})
    names = [f"{t}, {s} a domain ({sum((c['task'], c['shots']) == (t, s) for c in cells)} models)" for t, s in keys]
    rows = []
    for setting in cells[0]["results"]:
        columns = []
        for key in keys:
            own = [c["results"] for c in cells if (c["task"], c["shots"]) == key]
            change = 100 * np.array([r[setting] - (r["meta"] if setting != "meta" else 0) for r in own])
            error = change.std(ddof=1) / math.sqrt(len(change))
            columns.append(f"{change.mean():.1f}" if setting == "meta" else f"{change.mean():+.1f} ± {error:.1f}")
        rows.append([setting, *columns])
    return ["", f"## {title}", "", *table(["method, learning rate x epochs", *names], rows)]


def report(cells: list[Content]) -> list[str]:
    of_kind = {
        kind: [c for c in cells if c["kind"] == kind] for kind in ("meta", "adaptation", "new", "lora", "loranew")
    }
    if not of_kind["meta"]:
        raise ValueError("there are no cells of stage 2 yet; run choose_defaults.py meta first")
    meta = pd.DataFrame(of_kind["meta"])
    by_setting = meta.pivot_table(index=["learning_rate", "steps"], columns=["task", "shots"], values="accuracy") * 100
    counts = meta.groupby(["task", "shots"])["seed"].nunique()
    names = [f"{t}, {s} a domain ({counts[t, s]} seeds)" for t, s in by_setting.columns]
    rows = []
    for (rate, steps), row in by_setting.iterrows():
        values = ["" if math.isnan(v) else f"{v:.1f}" for v in row]
        rows.append([f"{rate:g}", steps, *values, "" if row.isna().any() else f"{row.mean():.1f}"])
    less = "less meta-learner, in points (mean, standard error)"
    return [
        "# How the defaults were chosen",
        "",
        "Made by `python benchmarks/choose_defaults.py` with `meta`, `adaptation`, `new_domain`, `lora`, then `report`; the "
        "paper's losses. Mean accuracy in percent on "
        f"{VALIDATION_PER_DOMAIN} validation rows per domain, drawn like the training rows from the training pools; the "
        f"frozen test rows took no part. Encoder all-MiniLM-L6-v2, batch {BATCH}. Machine: {distinct(cells, 'machine', '; ')}. "
        "What was made of it: [NOTES.md](../NOTES.md), entry 0.",
        "",
        "## Stage 2: learning rate and optimiser steps (meta-learner, no adaptation)",
        "",
        *table(["learning_rate", "steps", *names, "mean"], rows),
        *change_table(of_kind["adaptation"], f"Stage 3 on the domains of stage 2: adapted models {less}"),
        *change_table(of_kind["new"], f"Stage 3 on a domain held out of stage 2: adapted model {less}"),
        *change_table(of_kind["lora"], f'adaptation="lora" on the domains of stage 2: adapted models {less}'),
        *change_table(of_kind["loranew"], f'adaptation="lora" on a domain held out of stage 2: adapted model {less}'),
    ]


def main(argv: list[str] | None = None) -> None:
    options = parser(__doc__, "choose_defaults")
    options.add_argument("what", choices=["meta", "adaptation", "new_domain", "lora", "report"])
    args = options.parse_args(argv)
    if args.what == "report":
        return write_report("choose_defaults", args.cells, report)
    start()
    for make, keys in wanted(args.what):
        args.cells.complete(make, keys)


if __name__ == "__main__":
    main()
