"""How far to go from the start of stage 2 to its end (`weight_interpolation`): tried on training data.

A cell draws a few-shot training set from a task's training pool, runs stages 1 and 2, and scores the weights between the start
and the end on other rows of the pool; the frozen test rows take no part, and the seeds are none of `few_shot.py`'s. One JSON
file a cell; finished cells are skipped.

    python benchmarks/interpolation.py hypernyms:16 hypernyms:64 --seeds 10 11 12
    python benchmarks/interpolation.py --report         # writes results/interpolation.md
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from few_shot import AUTO, HYPERNYM_SPLITS, params_of, write
from report import half_interval, plus_minus, table
from tasks import CODE, HERE, draw, inputs, machine, never_tested, without_terms_of

from skmft import MetaFineTunedClassifier

CELLS = HERE / "cells" / "interpolation"
SHARES = {"amazon": (0.5, 0.75, 1.0), "mnli": (0, 0.25, 0.5, 0.75, 1.0), "hypernyms": (0, 0.25, 0.5, 0.75, 1.0)}
VALIDATION = {"amazon": 200, "mnli": 200, "hypernyms": 300}  # rows a domain, at most


def classifier(seed: int, **params: Any) -> MetaFineTunedClassifier:
    return MetaFineTunedClassifier(adaptation=None, weight_interpolation=1.0, random_state=seed, **params)


def settings(seed: int) -> dict[str, Any]:
    """All that a cell was made with, so that cells of other defaults can be told apart."""
    return {**params_of(classifier(seed)), "auto": json.loads(json.dumps(AUTO))}


def fit(train: pd.DataFrame, seed: int, **params: Any) -> MetaFineTunedClassifier:
    return classifier(seed, **params).fit(inputs(train), train["y"], domains=train["domain"].to_numpy())


def run(task: str, shots: int, seed: int) -> dict[str, Any]:
    pool = never_tested(f"hypernyms {seed % HYPERNYM_SPLITS}" if task == "hypernyms" else task)
    train, rest = draw(pool, shots, seed)
    if task == "hypernyms":
        rest = without_terms_of(rest, train)
    valid = rest.sample(frac=1, random_state=seed).groupby("domain").head(VALIDATION[task])
    clf = fit(train, seed)
    module = clf.net_.module_
    end = {name: p.detach().clone() for name, p in module.named_parameters()}
    start = dict(fit(train, seed, learning_rate=1e-15, meta_epochs=1).net_.module_.named_parameters())
    accuracy = {}
    for share in SHARES[task]:
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(torch.lerp(start[name], end[name], share))
        accuracy[str(share)] = float((clf.predict(inputs(valid)) == valid["y"].to_numpy()).mean())
    return {
        "task": task,
        "shots": shots,
        "seed": seed,
        "accuracy": accuracy,
        "n_train": len(train),
        "n_valid": len(valid),
        "settings": settings(seed),
        "machine": machine(),
        "code": CODE,
    }


def report(cells: list[dict[str, Any]]) -> str:
    lines = [
        "# From the start of stage 2 to its end",
        "",
        "`python benchmarks/interpolation.py` with the tasks and seeds below, then `--report`: meta-learner (all-MiniLM-L6-v2, "
        "the other defaults, no adaptation) with its weights so far from the start (0) to the end (1) of stage 2, on rows of "
        "the training pool that the seed's draw does not hold. Accuracy in percent, ± half of a 95% t interval over seeds; "
        f"differences are paired by seed. Machine: {'; '.join(sorted({c['machine'] for c in cells}))}. Code (git's id of "
        f"skmft/): {', '.join(sorted({c['code'] for c in cells}))}.",
        "",
    ]
    shares = sorted({float(share) for cell in cells for share in cell["accuracy"]})
    rows = []
    for task, shots in sorted({(c["task"], c["shots"]) for c in cells}):
        own = [c for c in cells if (c["task"], c["shots"]) == (task, shots)]
        values = pd.DataFrame([{float(k): 100 * v for k, v in c["accuracy"].items()} for c in own]).reindex(
            columns=shares
        )
        seeds = " ".join(str(c["seed"]) for c in sorted(own, key=lambda c: c["seed"]))
        what = f"{task}, {shots} labelled a domain ({own[0]['n_train']} rows, {own[0]['n_valid']} scored)"
        rows.append([what, seeds, *("" if values[s].isna().all() else plus_minus(values[s].tolist()) for s in shares)])
        changes = [(values[s] - values[1.0]).dropna() for s in shares[:-1]]
        halves = [f" ± {half_interval(change.tolist()):.1f}" if len(change) > 1 else "" for change in changes]
        told = [f"{change.mean():+.1f}{half}" if len(change) else "" for change, half in zip(changes, halves)]
        rows.append(["less the end", "", *told, ""])
    return "\n".join([*lines, *table(["", "seeds", *(f"{s:g}" for s in shares)], rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("columns", nargs="*", help="task:shots")
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12, 13, 14])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cells", type=Path, default=CELLS, help="folder of the cells' files")
    parser.add_argument("--report", action="store_true", help="only write the table of what is there")
    args = parser.parse_args()
    if args.report:
        cells = [json.loads(p.read_text()) for p in sorted(args.cells.glob("*.json"))]
        if not cells:
            raise SystemExit("there are no cells yet; run interpolation.py with tasks first")
        (HERE / "results" / "interpolation.md").write_text(report(cells))
        return
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    for column in args.columns:
        task, _, shots = column.partition(":")
        for seed in args.seeds:
            path = args.cells / f"{task}-{shots}-{seed}.json"
            if not path.exists() or json.loads(path.read_text())["settings"] != settings(seed):
                cell = run(task, int(shots), seed)
                write(path, cell)
                print(path.stem, {share: round(100 * a, 1) for share, a in cell["accuracy"].items()}, flush=True)


if __name__ == "__main__":
    main()
