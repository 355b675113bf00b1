"""How the default learning_rate and the rules of "auto" epochs were chosen: repeated random sub-sampling validation.

Every cell draws a few-shot training set from a task's training pool (never from its frozen test rows), fits, and scores
other rows of the pool. One JSON file a cell; finished cells are skipped, so that a stop loses nothing.

    python benchmarks/choose_defaults.py meta          # learning rate x optimiser steps of stage 2
    python benchmarks/choose_defaults.py adaptation    # learning rate x epochs of stage 3, from one meta-learner
    python benchmarks/choose_defaults.py new_domain    # the same for a domain that stage 2 has not seen
    python benchmarks/choose_defaults.py lora          # the same two for adaptation="lora"
    python benchmarks/choose_defaults.py report        # writes results/choose_defaults.md
"""

from __future__ import annotations

import itertools
import json
import math
import sys
import time

import numpy as np
import pandas as pd
from few_shot import write
from tasks import CODE, HERE, draw, machine, paper, split

CELLS = HERE / "cells" / "choose_defaults"
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


def rows(task: str, per_domain: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    pool, _ = split(task)
    train, rest = draw(pool, per_domain, seed)
    return train, rest.groupby("domain").sample(VALIDATION_PER_DOMAIN, random_state=seed)


def save(name: str, cell: dict) -> None:
    write(CELLS / f"{name}.json", {**cell, "machine": machine(), "code": CODE})
    print(name, cell, flush=True)


def run_meta() -> None:
    for (task, shots), (seeds, steps) in META_GRID.items():
        settings = [*itertools.product(META_RATES, steps), *META_BETWEEN]
        for seed, (rate, n_steps) in itertools.product(range(seeds), settings):
            name = f"meta-{task}-{shots}-{seed}-{rate}-{n_steps}"
            if (CELLS / f"{name}.json").exists():
                continue
            train, valid = rows(task, shots, seed)
            epochs = math.ceil(n_steps / math.ceil(len(train) / BATCH))
            start = time.perf_counter()
            clf = paper(learning_rate=rate, meta_epochs=epochs, adaptation=None, batch_size=BATCH, random_state=seed)
            clf.fit(train["text"], train["y"], domains=train["domain"])
            cell = {"task": task, "shots": shots, "seed": seed, "learning_rate": rate, "steps": n_steps}
            cell["accuracy"] = clf.score(valid["text"], valid["y"])
            save(name, {**cell, "seconds": time.perf_counter() - start})


def run_adaptation(
    kind: str = "adaptation", grid: dict = ADAPTATION_GRID, settings: list = ADAPTATION_SETTINGS
) -> None:
    for seed in range(max(grid.values())):
        for (task, shots), seeds in grid.items():
            name = f"{kind}-{task}-{shots}-{seed}"
            if seed >= seeds or (CELLS / f"{name}.json").exists():
                continue
            train, valid = rows(task, shots, seed)
            clf = paper(adaptation=None, batch_size=BATCH, random_state=seed)
            clf.fit(train["text"], train["y"], domains=train["domain"])
            results = {"meta": clf.score(valid["text"], valid["y"])}
            for method, rate, n_epochs in settings:
                clf.set_params(adaptation=method, adaptation_learning_rate=rate, adaptation_epochs=n_epochs)
                for domain, own in train.groupby("domain"):
                    clf.adapt(own["text"], own["y"], domain)
                score = clf.score(valid["text"], valid["y"], domains=valid["domain"])
                results[f"{method} {rate:g} x {n_epochs}"] = score
            save(name, {"task": task, "shots": shots, "seed": seed, "results": results})


def run_new_domain(
    kind: str = "new", settings: list = ADAPTATION_SETTINGS, seeds: int = 2, all_shots: tuple[int, ...] = (8, 50)
) -> None:
    task = "snippets"
    for seed, shots in itertools.product(range(seeds), all_shots):
        train, valid = rows(task, 50, seed)
        for held in sorted(train["domain"].unique()):
            name = f"{kind}-{task}-{shots}-{seed}-{held}"
            if (CELLS / f"{name}.json").exists():
                continue
            others, own = train[train["domain"] != held], train[train["domain"] == held]
            own = own.groupby("y").head(shots // 2)
            test = valid[valid["domain"] == held]
            clf = paper(adaptation=None, batch_size=BATCH, random_state=seed)
            clf.fit(others["text"], others["y"], domains=others["domain"])
            results = {"meta": clf.score(test["text"], test["y"])}
            for method, rate, n_epochs in settings:
                clf.set_params(adaptation=method, adaptation_learning_rate=rate, adaptation_epochs=n_epochs)
                clf.adapt(own["text"], own["y"], held)
                results[f"{method} {rate:g} x {n_epochs}"] = clf.score(test["text"], test["y"], domains=held)
            save(name, {"task": task, "shots": shots, "seed": seed, "domain": held, "results": results})


def run_lora() -> None:
    run_adaptation("lora", LORA_GRID, LORA_SETTINGS)
    run_new_domain("loranew", LORA_SETTINGS, seeds=1, all_shots=(50,))


def change_table(cells: list[dict], title: str) -> list[str]:
    if not cells:
        return []
    keys = sorted({(c["task"], c["shots"]) for c in cells})
    names = [f"{t}, {s} a domain ({sum((c['task'], c['shots']) == (t, s) for c in cells)} models)" for t, s in keys]
    lines = ["", f"## {title}", ""]
    lines += ["| method, learning rate x epochs | " + " | ".join(names) + " |", "| --- " * (len(names) + 1) + "|"]
    for setting in cells[0]["results"]:
        columns = []
        for key in keys:
            own = [c["results"] for c in cells if (c["task"], c["shots"]) == key]
            change = 100 * np.array([r[setting] - (r["meta"] if setting != "meta" else 0) for r in own])
            error = change.std(ddof=1) / math.sqrt(len(change))
            columns.append(f"{change.mean():.1f}" if setting == "meta" else f"{change.mean():+.1f} ± {error:.1f}")
        lines.append(f"| {setting} | " + " | ".join(columns) + " |")
    return lines


def report() -> None:
    cells = [json.loads(p.read_text()) | {"kind": p.name.split("-")[0]} for p in sorted(CELLS.glob("*.json"))]
    if not any(c["kind"] == "meta" for c in cells):
        sys.exit("there are no cells of stage 2 yet; run choose_defaults.py meta first")
    meta = pd.DataFrame([c for c in cells if c["kind"] == "meta"])
    machines = "; ".join(sorted({c["machine"] for c in cells}))
    lines = [
        "# How the defaults were chosen",
        "",
        "Made by `python benchmarks/choose_defaults.py` with `meta`, `adaptation`, `new_domain`, `lora`, then `report`; the "
        "paper's losses. Mean accuracy in percent on "
        f"{VALIDATION_PER_DOMAIN} validation rows a domain, drawn like the training rows from the training pools; the "
        f"frozen test rows took no part. Encoder all-MiniLM-L6-v2, batch {BATCH}. Machine: {machines}. What was made of it: "
        "[NOTES.md](../NOTES.md), entry 0.",
        "",
        "## Stage 2: learning rate and optimiser steps (meta-learner, no adaptation)",
        "",
    ]
    table = meta.pivot_table(index=["learning_rate", "steps"], columns=["task", "shots"], values="accuracy") * 100
    counts = meta.groupby(["task", "shots"])["seed"].nunique()
    names = [f"{t}, {s} a domain ({counts[t, s]} seeds)" for t, s in table.columns]
    lines += ["| learning_rate | steps | " + " | ".join(names) + " | mean |", "| --- " * (len(names) + 3) + "|"]
    for (rate, steps), row in table.iterrows():
        values = ["" if math.isnan(v) else f"{v:.1f}" for v in row]
        mean = "" if row.isna().any() else f"{row.mean():.1f}"
        lines.append(f"| {rate:g} | {steps} | " + " | ".join(values) + f" | {mean} |")
    lines += change_table(
        [c for c in cells if c["kind"] == "adaptation"],
        "Stage 3 on the domains of stage 2: adapted models less meta-learner, in points (mean, standard error)",
    )
    lines += change_table(
        [c for c in cells if c["kind"] == "new"],
        "Stage 3 on a domain held out of stage 2: adapted model less meta-learner, in points (mean, standard error)",
    )
    lines += change_table(
        [c for c in cells if c["kind"] == "lora"],
        'adaptation="lora" on the domains of stage 2: adapted models less meta-learner, in points (mean, standard error)',
    )
    lines += change_table(
        [c for c in cells if c["kind"] == "loranew"],
        'adaptation="lora" on a domain held out of stage 2: adapted model less meta-learner, in points (mean, standard error)',
    )
    (HERE / "results" / "choose_defaults.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    {
        "meta": run_meta,
        "adaptation": run_adaptation,
        "new_domain": run_new_domain,
        "lora": run_lora,
        "report": report,
    }[sys.argv[1]]()
