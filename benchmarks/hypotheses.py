"""What improves the meta-learner: settings compared on training data, for NOTES.md. The frozen test rows take no part.

Every cell draws a few-shot training set from a task's training pool, runs stages 1 and 2, and scores other rows of the pool.
The same seeds draw the same rows for all settings. One JSON file a cell; finished cells are skipped.

    python benchmarks/hypotheses.py --tasks amazon --shots 16 --seeds 0 1 2 --settings mix contrast
    python benchmarks/hypotheses.py --report         # writes results/hypotheses.md
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import time
from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats
from tasks import CODE, HERE, draw, inputs, machine, never_tested, without_terms_of

from skmft import MetaFineTunedClassifier
from skmft.stages import META_EPOCHS
from skmft.training import auto_epochs

CELLS = HERE / "cells" / "hypotheses"
VALIDATION = {"amazon": 200, "snippets": 200, "mnli": 300, "hypernyms": 400}  # rows a domain, at most
PLAIN: dict[str, Any] = {
    "typicality_weighting": False,
    "corruption_weight": 0.0,
    "contrastive_weight": 0.0,
    "head_init": "random",
    "pair_encoding": "cross",
}
BI = {**PLAIN, "pair_encoding": "bi"}
PROBE = {"head_init": "probe", "weight_interpolation": 1.0}
CONTRAST = {"contrastive_weight": 0.5}
MFT = {"typicality_weighting": True, "corruption_weight": 0.1}
FROZEN = {**PROBE, "learning_rate": 1e-12, "meta_epochs": 1}  # the probe, and next to no training
SETTINGS: dict[str, dict[str, Any]] = {
    "frozen": {**PLAIN, **FROZEN},
    "frozen, bi": {**BI, **FROZEN},
    "mix": PLAIN,  # plain fine-tuning of all domains together: what the others are compared with
    "paper": {**PLAIN, **MFT},
    "bi": BI,
    "probe": {**BI, **PROBE},
    "contrast": {**BI, **CONTRAST},
    "probe + contrast": {**BI, **PROBE, **CONTRAST},
    "weak contrast": {**BI, **PROBE, "contrastive_weight": 0.1},
    "strong contrast": {**BI, **PROBE, "contrastive_weight": 2.0},
    "cross + probe + contrast": {**PLAIN, **PROBE, **CONTRAST},
    "all": {**BI, **PROBE, **CONTRAST, **MFT},
    "all, typicality only": {**BI, **PROBE, **CONTRAST, "typicality_weighting": True},
    "all, corruption only": {**BI, **PROBE, **CONTRAST, "corruption_weight": 0.1},
    "all, 5e-5": {**BI, **PROBE, **CONTRAST, **MFT, "learning_rate": 5e-5},
    "all, twice the steps": {**BI, **PROBE, **CONTRAST, **MFT, "meta_epochs": 2.0},
    "default": {},
    "default, no contrast": {"contrastive_weight": 0.0},
    "default, strong contrast": {"contrastive_weight": 2.0},
    "default, 5e-5": {"learning_rate": 5e-5},
    "default, 2e-4": {"learning_rate": 2e-4},
    "default, twice the steps": {"meta_epochs": 2.0},
}


def run(task: str, shots: int, seed: int, setting: str) -> dict[str, Any]:
    pool = never_tested(f"hypernyms {seed % 5}" if task == "hypernyms" else task)
    train, rest = draw(pool, shots, seed)
    if task == "hypernyms":
        rest = without_terms_of(rest, train)
    valid = rest.sample(frac=1, random_state=seed).groupby("domain").head(VALIDATION[task])
    params = dict(SETTINGS[setting])
    if isinstance(params.get("meta_epochs"), float):  # times the epochs of "auto"
        params["meta_epochs"] = round(params["meta_epochs"] * auto_epochs(len(train), 32, **META_EPOCHS))
    start = time.perf_counter()
    clf = MetaFineTunedClassifier(adaptation=None, random_state=seed, **params)
    clf.fit(inputs(train), train["y"], domains=train["domain"].to_numpy())
    seconds = time.perf_counter() - start
    right = pd.Series(clf.predict(inputs(valid)) == valid["y"].to_numpy())
    return {
        "task": task,
        "shots": shots,
        "seed": seed,
        "setting": setting,
        "params": params,
        "accuracy": float(right.mean()),
        "by_domain": right.groupby(valid["domain"].to_numpy()).mean().to_dict(),
        "n_train": len(train),
        "n_valid": len(valid),
        "seconds": seconds,
        "machine": machine(),
        "code": CODE,
    }


def path_of(task: str, shots: int, seed: int, setting: str) -> Path:
    return CELLS / f"{task}-{shots}-{seed}-{setting.replace(' ', '_')}.json"


def is_finished(path: Path, setting: str) -> bool:
    """Whether there is a cell, made with what the setting is now."""
    if not path.exists():
        return False
    made, wanted = json.loads(path.read_text())["params"], dict(SETTINGS[setting])
    if isinstance(wanted.get("meta_epochs"), float):  # the cell has a number of epochs
        made, wanted = ({k: v for k, v in params.items() if k != "meta_epochs"} for params in (made, wanted))
    return made == wanted


def report() -> str:
    cells = pd.DataFrame([json.loads(p.read_text()) for p in sorted(CELLS.glob("*.json"))])
    if not len(cells):
        raise SystemExit("there are no cells yet; run hypotheses.py without --report first")
    lines = [
        "# Hypotheses, tried on training data",
        "",
        "`python benchmarks/hypotheses.py` with the tasks, shots, seeds and settings below, then `--report`: meta-learner "
        "(all-MiniLM-L6-v2, no adaptation) on rows of the training pool that the seed's draw does not hold; the frozen test "
        "rows of all splits took no part, and no term of hypernyms is both in training and in validation rows. Accuracy in "
        "percent, and the difference from plain fine-tuning on the mix, paired by seed, ± half of a 95% t interval. What each "
        "setting is: `SETTINGS` in the script. What was made of it: "
        "[NOTES.md](../NOTES.md). Cells with the contrast of before 26 November 2026 are of its former loss (entry 4 there). "
        f"Machine: {'; '.join(sorted(cells['machine'].unique()))}.",
    ]
    for (task, shots), some in cells.groupby(["task", "shots"]):
        table = some.pivot(index="seed", columns="setting", values="accuracy") * 100
        rows = f"{some['n_train'].iloc[0]} training rows, {some['n_valid'].min()} to {some['n_valid'].max()} validation rows"
        lines += ["", f"## {task}, {shots} labelled a domain ({rows})", ""]
        lines += ["| setting | seeds | accuracy | less mix |", "| --- " * 4 + "|"]
        for setting in [s for s in SETTINGS if s in table]:
            own = table[setting].dropna()
            difference = (own - table["mix"]).dropna() if "mix" in table else own[:0]
            change = ""
            if setting != "mix" and len(difference):
                change = f"{difference.mean():+.1f}" + (f" ± {half(difference):.1f}" if len(difference) > 1 else "")
            lines.append(f"| {setting} | {len(own)} | {own.mean():.1f} | {change} |")
    return "\n".join(lines) + "\n"


def half(values: pd.Series) -> float:
    return float(stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)) if len(values) > 1 else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(VALIDATION), default=["amazon", "mnli", "hypernyms"])
    parser.add_argument("--shots", nargs="+", type=int, default=[16])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--report", action="store_true", help="only write the table of what is there")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    CELLS.mkdir(parents=True, exist_ok=True)
    for task in [] if args.report else args.tasks:
        for shots in args.shots:
            for seed in args.seeds:
                for setting in args.settings:
                    path = path_of(task, shots, seed, setting)
                    if is_finished(path, setting):
                        continue
                    cell = run(task, shots, seed, setting)
                    partial = path.with_suffix(f".{os.getpid()}.part")
                    partial.write_text(json.dumps(cell))
                    os.replace(partial, path)
                    print(path.stem, round(cell["accuracy"], 4), f"{cell['seconds']:.0f} s", flush=True)
    if args.report:
        text = report()
        (HERE / "results" / "hypotheses.md").write_text(text)
        print(text)


if __name__ == "__main__":
    main()
