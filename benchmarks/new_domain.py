"""A domain that training has not seen: leave one out, learn on the others, adapt to it from a few of its rows.

    python benchmarks/new_domain.py --tasks amazon --seeds 0 1 2     # runs what is missing
    python benchmarks/new_domain.py --report                        # writes results/new_domain.md

Every held-out domain of every task is a cell for each method and seed, one JSON file each; finished cells are skipped. The
methods learn from the same rows of the other domains (--labelled each) and of the new one; those that adapt do so by the same
stage 3, the others (fine-tuning on the new rows alone, or together with those of the other domains) start anew for each number
of rows. Scored on the new domain's frozen test rows. Shots are nested: 8 are the first half of 16.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from few_shot import params_of, write
from scipy import stats
from tasks import CODE, HERE, draw, inputs, machine, split

from skmft import MetaFineTunedClassifier
from skmft.batches import TrainingRows
from skmft.corruption import MetaFineTuningLoss
from skmft.networks import TextClassifier
from skmft.stages import meta_epochs
from skmft.training import fine_tune

CELLS = HERE / "cells" / "new_domain"
SHOTS = (0, 4, 8, 16, 32)
INNER_STEPS = 5  # of Reptile: optimiser steps on one domain before the initialisation moves
MIX = {"typicality_weighting": False, "corruption_weight": 0.0, "contrastive_weight": 0.0, "head_init": "random"}
NAMES = {
    "mft": "MFT on the others, adapted",
    "mix": "Mix on the others, adapted",
    "mix bi": "the same, pairs encoded apart",
    "reptile": "Reptile on the others, adapted",
    "joint": "Mix on the others and the new rows together",
    "alone": "fine-tuning on the new rows alone",
}


def reptile(run: Any, encoder: Any, rows: Any, t: Any, classes: Any, names: Any, layers: Any, history: Any) -> Any:
    """In place of stage 2: an initialisation that moves toward what a few steps on one domain make of it.

    A. Nichol, J. Achiam, J. Schulman, "On First-Order Meta-Learning Algorithms", 2018 (algorithm 1), with as many optimiser
    steps as stage 2 takes, or a few more; AdamW starts anew in every round, and the outer step size falls linearly to 0.
    """
    with run.generators("label head"):
        module = TextClassifier(encoder, len(classes), run.params.pooling, rows.tokens.apart)
    size, rng = run.params.batch_size, np.random.default_rng(run.derive("reptile"))
    steps = meta_epochs(run.params, len(rows.labels)) * math.ceil(len(rows.labels) / size)
    taken, rounds = 0, 0
    settings = replace(run.settings(run.params.learning_rate), warmup_ratio=0.0)
    while taken < steps:
        own = np.flatnonzero(rows.domains == rng.integers(len(names)))
        chosen = rng.choice(own, min(len(own), INNER_STEPS * size), replace=False)
        inner, per_epoch = copy.deepcopy(module), math.ceil(len(chosen) / size)
        epochs = max(1, round(INNER_STEPS / per_epoch))
        fine_tune(
            inner,
            TrainingRows(rows.tokens.subset(chosen), rows.labels[chosen], np.ones(len(chosen))),
            MetaFineTuningLoss,
            settings,
            epochs=epochs,
            seed=run.derive(f"reptile {rounds}"),
        )
        with torch.no_grad():
            for outer, found in zip(module.parameters(), inner.parameters()):
                outer.lerp_(found.to(outer.device), 1 - taken / steps)
        taken, rounds = taken + epochs * per_epoch, rounds + 1
    return run.net(module)


def classifier(method: str, seed: int) -> MetaFineTunedClassifier:
    params = {"mft": {}, "mix bi": {**MIX, "pair_encoding": "bi"}}.get(method, {**MIX, "pair_encoding": "cross"})
    return MetaFineTunedClassifier(random_state=seed, **{**params, "adaptation": None})


def adapted(clf: MetaFineTunedClassifier, own: pd.DataFrame, new: str) -> MetaFineTunedClassifier:
    clf = copy.copy(clf).set_params(adaptation="full")  # stage 3 at its defaults
    return clf.adapt(inputs(own), own["y"].to_numpy(), new) if len(own) else clf


def fit(clf: MetaFineTunedClassifier, rows: pd.DataFrame, stage_2: Callable[..., Any] | None = None) -> Any:
    X, y, d = inputs(rows), rows["y"].to_numpy(), rows["domain"].to_numpy()
    return clf._fit(X, y, d, None, stage_2) if stage_2 else clf.fit(X, y, domains=d)


def run(task: str, method: str, new: str, labelled: int, seed: int) -> dict[str, Any]:
    pool, test = split(f"hypernyms {seed % 5}" if task == "hypernyms" else task)
    others, _ = draw(pool[pool["domain"] != new], labelled, seed)
    shots, _ = draw(pool[pool["domain"] == new], max(SHOTS), seed)
    test = test[test["domain"] == new]
    turn = shots.groupby("y").cumcount()  # classes in turn, so that every prefix is balanced
    shots = shots.loc[turn.sort_values(kind="stable").index]
    X, y = inputs(test), test["y"].to_numpy()
    start, correct = time.perf_counter(), {}
    base = None
    if method not in ("alone", "joint"):
        base = fit(classifier(method, seed), others, reptile if method == "reptile" else None)
    for n in SHOTS:
        own = shots.iloc[:n]
        if method == "alone" and n == 0:
            continue
        if method == "alone":
            clf = fit(classifier(method, seed), own)
        elif method == "joint":
            clf = fit(classifier(method, seed), pd.concat([others, own]))
        else:
            clf = adapted(base, own, new)
        right = np.asarray(clf.predict(X, domains=new)) == y
        correct[str(n)] = "".join(map(str, right.astype(int)))
    return {
        "task": task,
        "method": method,
        "new": new,
        "labelled": labelled,
        "seed": seed,
        "settings": params_of(classifier(method, seed)),
        "correct": correct,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "code": CODE,
    }


def is_finished(path: Path, method: str, seed: int) -> bool:
    return path.exists() and json.loads(path.read_text())["settings"] == params_of(classifier(method, seed))


def report(cells: list[dict[str, Any]]) -> str:
    rows = [
        {
            **{k: c[k] for k in ("task", "method", "new", "labelled", "seed")},
            "shots": int(n),
            "accuracy": bits.count("1") / len(bits),
        }
        for c in cells
        for n, bits in c["correct"].items()
    ]
    table = pd.DataFrame(rows)
    lines = [
        "# A domain that training has not seen",
        "",
        "`python benchmarks/new_domain.py`, then `--report`: each domain held out in turn, all-MiniLM-L6-v2, stage 3 at its "
        "defaults, scored on the held-out domain's frozen test rows. Accuracy in percent, mean over held-out domains and "
        f"seeds; ± half of a 95% t interval over seeds. Machine: {'; '.join(sorted({c['machine'] for c in cells}))}.",
    ]
    for (task, labelled), some in table.groupby(["task", "labelled"]):
        domains = some["new"].nunique()
        lines += ["", f"## {task}, {labelled} labelled rows in each of the other {domains - 1} domains", ""]
        lines += ["| shots of the new domain | seeds | " + " | ".join(map(str, SHOTS)) + " |", "| --- " * 7 + "|"]
        by_seed = some.groupby(["method", "shots", "seed"])["accuracy"].agg(["mean", "size"])
        by_seed = 100 * by_seed.loc[by_seed["size"] == domains, "mean"]  # seeds for which every domain is there
        for method in [m for m in NAMES if m in by_seed.index.get_level_values("method")]:
            values = [by_seed[method].get(n, pd.Series(dtype=float)) for n in SHOTS]
            n_seeds = max(len(v) for v in values)
            lines.append(f"| {NAMES[method]} | {n_seeds} | " + " | ".join(map(interval, values)) + " |")
        for method in [m for m in NAMES if m != "mft" and m in by_seed.index.get_level_values("method")]:
            differences = [
                (
                    by_seed["mft"].get(n, pd.Series(dtype=float)) - by_seed[method].get(n, pd.Series(dtype=float))
                ).dropna()
                for n in SHOTS
            ]
            lines.append(f"| MFT less: {NAMES[method]} | | " + " | ".join(interval(v, "+") for v in differences) + " |")
    return "\n".join(lines) + "\n"


def interval(values: pd.Series, sign: str = "") -> str:
    if not len(values):
        return ""
    if len(values) == 1:
        return f"{values.mean():{sign}.1f}"
    return f"{values.mean():{sign}.1f} ± {stats.t.ppf(0.975, len(values) - 1) * stats.sem(values):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["amazon", "mnli", "hypernyms"])
    parser.add_argument("--methods", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--labelled", type=int, default=64, help="rows in each of the other domains")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--cells", type=Path, default=CELLS, help="folder of the cells' files")
    parser.add_argument("--report", action="store_true", help="only write the table of what is there")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    for seed in [] if args.report else args.seeds:
        for task in args.tasks:
            domains = sorted(split(f"hypernyms {seed % 5}" if task == "hypernyms" else task)[0]["domain"].unique())
            for new in domains:
                for method in args.methods:
                    if method == "mix bi" and task == "amazon":
                        continue  # it has no pairs
                    path = args.cells / f"{task}-{args.labelled}-{new}-{method.replace(' ', '_')}-{seed}.json"
                    if not is_finished(path, method, seed):
                        cell = run(task, method, new, args.labelled, seed)
                        write(path, cell)
                        print(
                            path.stem,
                            {n: round(b.count("1") / len(b), 3) for n, b in cell["correct"].items()},
                            flush=True,
                        )
    if args.report:
        text = report([json.loads(p.read_text()) for p in sorted(args.cells.glob("*.json"))])
        (HERE / "results" / "new_domain.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
