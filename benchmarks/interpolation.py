"""How far to go from the start of a stage to its end: tried on training data.

Stage 2 goes from the probe to the meta-learner (`weight_interpolation`), stage 3 from the meta-learner to a domain's model. A
cell draws a few-shot training set from a task's training pool, trains, and scores the weights between the start and the end on
other rows of the pool; the frozen test rows take no part, and the seeds are none of `few_shot.py`'s. One JSON file a cell;
finished cells are skipped.

    python benchmarks/interpolation.py hypernyms:16 hypernyms:64 --seeds 10 11 12
    python benchmarks/interpolation.py hypernyms:16 hypernyms:64 --stage 3
    python benchmarks/interpolation.py --report         # writes results/interpolation.md
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from few_shot import AUTO, HYPERNYM_SPLITS, params_of, write
from report import half_interval, plus_minus, table
from tasks import CODE, HERE, draw, inputs, machine, never_tested, without_terms_of

from skmft import MetaFineTunedClassifier

CELLS = HERE / "cells" / "interpolation"
SHARES = {"amazon": (0.5, 0.75, 1.0), "mnli": (0, 0.25, 0.5, 0.75, 1.0), "hypernyms": (0, 0.25, 0.5, 0.75, 1.0)}
ADAPTATION_SHARES = (0, 0.25, 0.5, 0.75, 1.0)
VALIDATION = {"amazon": 200, "mnli": 200, "hypernyms": 300}  # rows a domain, at most


def classifier(stage: int, seed: int, **params: Any) -> MetaFineTunedClassifier:
    own = {"adaptation": None, "weight_interpolation": 1.0} if stage == 2 else {}
    return MetaFineTunedClassifier(random_state=seed, **own, **params)


def settings(stage: int, seed: int) -> dict[str, Any]:
    """All that a cell was made with, so that cells of other defaults can be told apart."""
    return {**params_of(classifier(stage, seed)), "auto": json.loads(json.dumps(AUTO))}


def fit(train: pd.DataFrame, stage: int, seed: int, **params: Any) -> MetaFineTunedClassifier:
    return classifier(stage, seed, **params).fit(inputs(train), train["y"], domains=train["domain"].to_numpy())


def between(task: str, train: pd.DataFrame, valid: pd.DataFrame, seed: int) -> dict[str, float]:
    """Accuracy of the meta-learner with its weights between the start and the end of stage 2."""
    clf = fit(train, 2, seed)
    module = clf.net_.module_
    end = {name: p.detach().clone() for name, p in module.named_parameters()}
    start = dict(fit(train, 2, seed, learning_rate=1e-15, meta_epochs=1).net_.module_.named_parameters())
    accuracy = {}
    for share in SHARES[task]:
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(torch.lerp(start[name], end[name], share))
        accuracy[str(share)] = float((clf.predict(inputs(valid)) == valid["y"].to_numpy()).mean())
    return accuracy


def between_domains(train: pd.DataFrame, valid: pd.DataFrame, seed: int) -> dict[str, float]:
    """Accuracy of the domains' models with their weights between the meta-learner and the end of stage 3."""
    clf = fit(train, 3, seed)
    start, ends = dict(clf.net_.module_.named_parameters()), dict(clf.adapted_weights_)
    accuracy = {}
    for share in ADAPTATION_SHARES:
        clf.adapted_weights_ = {
            domain: {name: torch.lerp(start[name].detach(), tensor, share) for name, tensor in end.items()}
            for domain, end in ends.items()
        }
        predicted = clf.predict(inputs(valid), domains=valid["domain"].to_numpy())
        accuracy[str(share)] = float((predicted == valid["y"].to_numpy()).mean())
    return accuracy


def run(task: str, shots: int, stage: int, seed: int) -> dict[str, Any]:
    pool = never_tested(f"hypernyms {seed % HYPERNYM_SPLITS}" if task == "hypernyms" else task)
    train, rest = draw(pool, shots, seed)
    if task == "hypernyms":
        rest = without_terms_of(rest, train)
    valid = rest.sample(frac=1, random_state=seed).groupby("domain").head(VALIDATION[task])
    accuracy = between(task, train, valid, seed) if stage == 2 else between_domains(train, valid, seed)
    return {
        "task": task,
        "shots": shots,
        "stage": stage,
        "seed": seed,
        "accuracy": accuracy,
        "n_train": len(train),
        "n_valid": len(valid),
        "settings": settings(stage, seed),
        "machine": machine(),
        "code": CODE,
    }


def report(cells: list[dict[str, Any]]) -> str:
    lines = [
        "# From the start of a stage to its end",
        "",
        "`python benchmarks/interpolation.py` with the tasks, stage and seeds below, then `--report`: all-MiniLM-L6-v2 at the "
        "defaults, with weights so far from the start (0) to the end (1) of the stage, on rows of the training pool that the "
        "seed's draw does not hold. Accuracy in percent, ± half of a 95% t interval over seeds; differences paired by seed. "
        f"Machine: {'; '.join(sorted({c['machine'] for c in cells}))}. Code (git's id of skmft/): "
        f"{', '.join(sorted({c['code'] for c in cells}))}.",
    ]
    of_stage = {stage: [c for c in cells if c["stage"] == stage] for stage in (2, 3)}
    if of_stage[2]:
        lines += ["", "## Stage 2: from the probe to the meta-learner", "", *stage_table(of_stage[2], 1.0)]
    if of_stage[3]:
        lines += ["", "## Stage 3: from the meta-learner to each domain's model", "", *stage_table(of_stage[3], 0.0)]
    return "\n".join(lines) + "\n"


def stage_table(cells: list[dict[str, Any]], reference: float) -> list[str]:
    """Accuracy at every share, and less that at the `reference` share."""
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
        changes = [(values[s] - values[reference]).dropna() if s != reference else [] for s in shares]
        halves = [f" ± {half_interval(list(change)):.1f}" if len(change) > 1 else "" for change in changes]
        told = [f"{np.mean(change):+.1f}{half}" if len(change) else "" for change, half in zip(changes, halves)]
        rows.append(["less the end" if reference else "less the start", "", *told])
    return table(["", "seeds", *(f"{s:g}" for s in shares)], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("columns", nargs="*", help="task:shots")
    parser.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12, 13, 14])
    parser.add_argument("--stage", type=int, choices=[2, 3], default=2)
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
            path = args.cells / f"stage_{args.stage}-{task}-{shots}-{seed}.json"
            if not path.exists() or json.loads(path.read_text())["settings"] != settings(args.stage, seed):
                cell = run(task, int(shots), args.stage, seed)
                write(path, cell)
                print(path.stem, {share: round(100 * a, 1) for share, a in cell["accuracy"].items()}, flush=True)


if __name__ == "__main__":
    main()
