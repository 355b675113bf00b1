"""A domain that training has not seen: leave one out, learn on the others, adapt to it from a few of its rows.

    python benchmarks/new_domain.py --tasks amazon --seeds 0 1 2     # runs what is missing, a thread each
    python benchmarks/new_domain.py --report                        # writes results/new_domain.md

Every held-out domain of every task is a cell for each method and seed, one JSON file each; finished cells are skipped. The
methods learn from the same rows of the other domains (--labelled each) and of the new one; those that adapt do so by the same
stage 3, the others (fine-tuning on the new rows alone, or together with those of the other domains) start anew for each number
of rows. Scored on the new domain's frozen test rows. Shots are nested: 8 are the first half of 16. Stage 3's defaults take
small steps (4 of at most 1e-5 for up to 32 rows), so that what a method gives at 0 shots decides most.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from few_shot import AUTO, DOMAINS, HYPERNYM_SPLITS, choose_c, digest, embed, params_of, write
from report import ALL, Column, Score, accuracy, compare, find_clusters, table, with_interval
from sklearn.linear_model import LogisticRegression
from tasks import CODE, HERE, draw, inputs, machine, split

from skmft import MetaFineTunedClassifier
from skmft.batches import TrainingRows
from skmft.corruption import MetaFineTuningLoss
from skmft.networks import TextClassifier
from skmft.stages import meta_epochs
from skmft.training import fine_tune

CELLS = HERE / "cells" / "new_domain"
SHOTS = (0, 4, 8, 16, 32)
DEFAULT_LABELLED = 64  # rows in each of the other domains
INNER_STEPS = 5  # of Reptile: optimiser steps on one domain before the initialisation moves
MIX = {"typicality_weighting": False, "corruption_weight": 0.0, "contrastive_weight": 0.0, "head_init": "random"}
NAMES = {
    "mft": "MFT on the others, adapted",
    "mix": "Mix on the others, adapted",
    "mix bi": "the same, the texts of pairs encoded apart",
    "reptile": "Reptile on the others, adapted",
    "joint": "Mix on the others and the new rows together",
    "alone": "fine-tuning on the new rows alone",
    "embeddings": "un-tuned embeddings + logistic regression on the others and the new rows together",
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


def applies(method: str, task: str) -> bool:
    return not (method == "mix bi" and task == "amazon")  # it has no pairs


def source_of(task: str, seed: int) -> str:
    return f"hypernyms {seed % HYPERNYM_SPLITS}" if task == "hypernyms" else task


def settings(method: str, seed: int) -> dict[str, Any]:
    """All that a cell was made with, so that cells of other defaults can be told apart."""
    params = params_of(classifier(method, seed))
    if method == "embeddings":
        params = {name: params[name] for name in ("model", "max_length", "random_state")}
    own = {"inner_steps": INNER_STEPS} if method == "reptile" else {}
    return {**params, **own, "shots": list(SHOTS), "auto": json.loads(json.dumps(AUTO))}


def run(task: str, method: str, new: str, labelled: int, seed: int) -> dict[str, Any]:
    pool, test = split(source_of(task, seed))
    others, _ = draw(pool[pool["domain"] != new], labelled, seed)
    shots, _ = draw(pool[pool["domain"] == new], max(SHOTS), seed)
    test = test.sort_values("hash", ignore_index=True)
    test_hash = digest(test["hash"])
    test = test[test["domain"] == new]
    turn = shots.groupby("y").cumcount()  # classes in turn, so that every prefix is balanced
    shots = shots.loc[turn.sort_values(kind="stable").index]
    X, y = inputs(test), test["y"].to_numpy()
    start, correct = time.perf_counter(), {}
    base = None
    if method not in ("alone", "joint", "embeddings"):
        base = fit(classifier(method, seed), others, reptile if method == "reptile" else None)
    for n in SHOTS:
        own = shots.iloc[:n]
        if method == "alone" and n == 0:
            continue
        if method == "alone":
            clf = fit(classifier(method, seed), own)
        elif method == "embeddings":
            rows, model = pd.concat([others, own]), MetaFineTunedClassifier().model
            clf = choose_c(LogisticRegression(max_iter=2000), "C", embed(rows, model), rows["y"].to_numpy(), seed)
            correct[str(n)] = bits(clf.predict(embed(test, model)) == y)
            continue
        elif method == "joint":
            clf = fit(classifier(method, seed), pd.concat([others, own]))
        else:
            clf = adapted(base, own, new)
        correct[str(n)] = bits(np.asarray(clf.predict(X, domains=new)) == y)
    return {
        "task": task,
        "source": source_of(task, seed),
        "method": method,
        "new": new,
        "labelled": labelled,
        "seed": seed,
        "settings": settings(method, seed),
        "correct": correct,
        "test_hash": test_hash,
        "seconds": round(time.perf_counter() - start, 1),
        "machine": machine(),
        "code": CODE,
    }


def bits(right: np.ndarray) -> str:
    return "".join(map(str, right.astype(int)))


def is_finished(path: Path, method: str, seed: int) -> bool:
    return path.exists() and json.loads(path.read_text())["settings"] == settings(method, seed)


def report(cells: list[dict[str, Any]]) -> str:
    """Markdown of the seeds for which every held-out domain is there.

    Raises
    ------
    ValueError
        If there are no cells, or a method's cells have different settings.
    """
    if not cells:
        raise ValueError("there are no cells yet; run new_domain.py without --report first")
    made: dict[str, Any] = {}
    for cell in cells:
        own = {k: v for k, v in cell["settings"].items() if k != "random_state"}
        if made.setdefault(cell["method"], own) != own:
            raise ValueError(
                f"cells of {cell['method']!r} have different settings; run new_domain.py again, or remove the old"
            )
    lines = [
        "# A domain that training has not seen",
        "",
        "`python benchmarks/new_domain.py`, then `--report`: each domain held out in turn, all-MiniLM-L6-v2, stage 3 at its "
        "defaults, which takes small steps: look at the difference at 0 shots first. Scored on the held-out domain's frozen "
        "test rows. Accuracy in percent, mean over held-out domains and seeds, ± half of a 95% t interval over seeds (of "
        "hypernyms, over splits of the terms, which seeds share). Differences are paired, in points; [ ] is a 95% interval "
        "that takes seeds and test rows as drawn, as in [few_shot.md](few_shot.md). The two texts of a pair are one row "
        "of tokens to all that is fine-tuned, but to MFT and where a name says otherwise. "
        f"Machine: {'; '.join(sorted({c['machine'] for c in cells}))}. Code (git's id of skmft/): "
        f"{', '.join(sorted({c['code'] for c in cells}))}.",
    ]
    together, missing = find_clusters(cells), []
    every: dict[Column, dict[str, dict[int, Score]]] = {}
    for task, labelled in sorted({(c["task"], c["labelled"]) for c in cells}):
        scores: dict[Column, dict[str, dict[int, Score]]] = {Column(task, str(n)): defaultdict(dict) for n in SHOTS}
        own = [c for c in cells if (c["task"], c["labelled"]) == (task, labelled)]
        for method, seed in sorted({(c["method"], c["seed"]) for c in own}):
            by_domain = {c["new"]: c for c in own if (c["method"], c["seed"]) == (method, seed)}
            if len(by_domain) < DOMAINS[task]:
                missing.append(
                    f"{task}, {labelled}, {NAMES[method]}, seed {seed}: has {', '.join(sorted(by_domain))} alone"
                )
                continue
            for n in SHOTS:
                right = {d: np.array(list(c["correct"].get(str(n), ""))) == "1" for d, c in by_domain.items()}
                if all(map(len, right.values())):
                    scores[Column(task, str(n))][method][seed] = Score(source_of(task, seed), right, 0.0, None)
        every |= {c: m for c, m in scores.items() if "mft" in m and labelled == DEFAULT_LABELLED}
        differences = compare({c: m for c, m in scores.items() if "mft" in m}, "mft", together)
        names = [name for name in NAMES if any(name in methods for methods in scores.values())]
        lines += ["", f"## {task}, {labelled} labelled rows in each of the other {DOMAINS[task] - 1} domains", ""]
        body = []
        for name in names:
            values = [(column, methods.get(name, {})) for column, methods in scores.items()]
            n_seeds = str(max(len(seeds) for _, seeds in values))
            body.append([NAMES[name], n_seeds, *(accuracy(c, seeds) if seeds else "" for c, seeds in values)])
        for name in names:
            found = differences[differences["other"] == name] if len(differences) else differences
            if len(found):
                by_column = {row.column: row for row in found.itertuples()}
                seeds = str(max(row.seeds for row in by_column.values()))
                shown = [with_interval(r, bold=False) if (r := by_column.get(c)) else "" for c in scores]
                body.append([f"MFT less: {NAMES[name]}", seeds, *shown])
        lines += table(["shots of the new domain", "seeds", *map(str, SHOTS)], body)
    if len({column.task for column in every}) > 1:
        lines += ["", *mean_over_tasks(every, together)]
    if missing:
        lines += ["", "## Left out, as not all domains are there", "", *(f"- {what}" for what in missing)]
    ran = {(c["task"], c["method"]) for c in cells}
    absent = {task: [n for n in NAMES if applies(n, task) and (task, n) not in ran] for task in DOMAINS}
    if any(absent.values()):
        lines += ["", "## Not run", ""]
        lines += [f"- {task}: {'; '.join(NAMES[n] for n in names)}" for task, names in absent.items() if names]
    return "\n".join(lines) + "\n"


def mean_over_tasks(scores: dict[Column, dict[str, dict[int, Score]]], together: Any) -> list[str]:
    """Differences over the tasks that have both methods, each task counted once."""
    tasks = list(dict.fromkeys(column.task for column in scores))
    lines = [f"## The mean over tasks, {DEFAULT_LABELLED} labelled rows in each of the other domains", ""]
    body: dict[str, dict[str, str]] = defaultdict(dict)
    for n in map(str, SHOTS):
        of_n = {column: methods for column, methods in scores.items() if column.shots == n}
        found = compare(of_n, "mft", together, over=list(of_n))
        for row in found[found["column"] == ALL].itertuples() if len(found) else ():
            told = "" if row.columns == len(tasks) else f" ({row.columns:.0f} of {len(tasks)} tasks)"
            body[row.other][n] = with_interval(row, bold=False) + told
    rows = [
        [f"MFT less: {NAMES[name]}", *(body[name].get(str(n), "") for n in SHOTS)] for name in NAMES if name in body
    ]
    return lines + table(["shots of the new domain", *map(str, SHOTS)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(DOMAINS), default=["amazon", "mnli", "hypernyms"])
    parser.add_argument("--methods", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--labelled", type=int, default=DEFAULT_LABELLED, help="rows in each of the other domains")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1, help="of torch; default 1, as of the committed cells")
    parser.add_argument("--cells", type=Path, default=CELLS, help="folder of the cells' files")
    parser.add_argument("--report", action="store_true", help="only write the table of what is there")
    args = parser.parse_args()
    if args.report:
        text = report([json.loads(p.read_text()) for p in sorted(args.cells.glob("*.json"))])
        (HERE / "results" / "new_domain.md").write_text(text)
        print(text)
        return
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    for seed in args.seeds:
        for task in args.tasks:
            domains = sorted(split(source_of(task, seed))[0]["domain"].unique())
            for new in domains:
                for method in args.methods:
                    if not applies(method, task):
                        continue
                    path = args.cells / f"{task}-{args.labelled}-{new}-{method.replace(' ', '_')}-{seed}.json"
                    if not is_finished(path, method, seed):
                        cell = run(task, method, new, args.labelled, seed)
                        write(path, cell)
                        print(
                            path.stem,
                            {n: round(b.count("1") / len(b), 3) for n, b in cell["correct"].items()},
                            flush=True,
                        )


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
