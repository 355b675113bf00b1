"""What improves the meta-learner: settings compared on training data, for NOTES.md. The frozen test rows take no part.

Every cell draws a few-shot training set from a task's training pool, runs stages 1 and 2, and scores other rows of the pool.
The same seeds draw the same rows for all settings. Finished cells are skipped.

    python benchmarks/hypotheses.py --tasks amazon --shots 16 --seeds 0 1 2 --settings mix contrast
    python benchmarks/hypotheses.py --report         # writes results/hypotheses.md
"""

from __future__ import annotations

import time
from itertools import product
from typing import Any

import pandas as pd
from lib import engine
from lib.cells import Content, distinct, parser, start
from lib.report import difference, table, write_report
from lib.tasks import development_rows, fit, inputs

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


def run(task: str, shots: int, seed: int, setting: str) -> Content:
    train, valid = development_rows(task, shots, seed, VALIDATION[task])
    params = dict(SETTINGS[setting])
    if has_factor(params):
        params["meta_epochs"] = round(params["meta_epochs"] * engine.epochs_of(len(train)))
    begin = time.perf_counter()
    clf = fit(engine.MetaFineTunedClassifier(adaptation=None, random_state=seed, **params), train)
    seconds = time.perf_counter() - begin
    right = pd.Series(clf.predict(inputs(valid)) == valid["y"].to_numpy())
    return {
        "params": params,
        "accuracy": float(right.mean()),
        "by_domain": right.groupby(valid["domain"].to_numpy()).mean().to_dict(),
        "n_train": len(train),
        "n_valid": len(valid),
        "seconds": seconds,
    }


def has_factor(params: dict[str, Any]) -> bool:
    """Whether meta_epochs is a multiple of those of "auto", which a cell holds as a number of epochs."""
    return isinstance(params.get("meta_epochs"), float)


def is_current(cell: Content) -> bool:
    """Whether a cell was made with what its setting is now."""
    made, wanted = dict(cell["params"]), dict(SETTINGS[cell["setting"]])
    if has_factor(wanted):
        made["meta_epochs"] = wanted["meta_epochs"]
    return made == wanted


def report(cells: list[Content]) -> list[str]:
    lines = [
        "# Hypotheses, tried on training data",
        "",
        "`python benchmarks/hypotheses.py` with the tasks, shots, seeds and settings below, then `--report`: meta-learner "
        "(all-MiniLM-L6-v2, no adaptation) on rows of the training pool that the seed's draw does not hold; the frozen test "
        "rows of all splits took no part, and no term of hypernyms is both in training and in validation rows. Accuracy in "
        "percent, and the difference from plain fine-tuning on the mix, paired by seed, ± half of a 95% t interval. What each "
        "setting is: `SETTINGS` in the script. What was made of it: "
        "[NOTES.md](../NOTES.md). Cells with the contrast of before 26 November 2026 are of its former loss (entry 4 there). "
        f"Machine: {distinct(cells, 'machine', '; ')}.",
    ]
    for (task, shots), some in pd.DataFrame(cells).groupby(["task", "shots"]):
        by_seed = some.pivot(index="seed", columns="setting", values="accuracy") * 100
        rows = f"{some['n_train'].iloc[0]} training rows, {some['n_valid'].min()} to {some['n_valid'].max()} validation rows"
        lines += ["", f"## {task}, {shots} labelled a domain ({rows})", ""]
        body = []
        for setting in [s for s in SETTINGS if s in by_seed]:
            own = by_seed[setting].dropna()
            change = (own - by_seed["mix"]).dropna() if "mix" in by_seed and setting != "mix" else []
            body.append([setting, len(own), f"{own.mean():.1f}", difference(change)])
        lines += table(["setting", "seeds", "accuracy", "less mix"], body)
    return lines


def main(argv: list[str] | None = None) -> None:
    found = parser(__doc__, "hypotheses", report=True)
    found.add_argument("--tasks", nargs="+", choices=list(VALIDATION), default=["amazon", "mnli", "hypernyms"])
    found.add_argument("--shots", nargs="+", type=int, default=[16])
    found.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    found.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    args = found.parse_args(argv)
    if args.report:
        return write_report("hypotheses", args.cells, report)
    start()
    for task, shots, seed, setting in product(args.tasks, args.shots, args.seeds, args.settings):
        args.cells.complete(
            run,
            {"task": task, "shots": shots, "seed": seed, "setting": setting},
            current=is_current,
            show=lambda cell: f"{cell['accuracy']:.4f} {cell['seconds']:.0f} s",
        )


if __name__ == "__main__":
    main()
