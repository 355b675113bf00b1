"""How far to go from the start of a stage to its end: tried on training data.

Stage 2 goes from the probe to the meta-learner (`weight_interpolation`), stage 3 from the meta-learner to a domain's model. A
cell draws a few-shot training set from a task's training pool, trains, and scores the weights between the start and the end on
other rows of the pool; the frozen test rows take no part, and the seeds are none of `few_shot.py`'s. Finished cells are
skipped.

    python benchmarks/interpolation.py hypernyms:16 hypernyms:64 --seeds 10 11 12
    python benchmarks/interpolation.py hypernyms:16 hypernyms:64 --stage 3
    python benchmarks/interpolation.py --report         # writes results/interpolation.md
"""

from __future__ import annotations

from itertools import product
from typing import Any

import pandas as pd
from lib import engine
from lib.cells import Content, distinct, made_with, parser, start
from lib.report import difference, plus_minus, table, write_report
from lib.tasks import development_rows, fit, inputs

SHARES = {"amazon": (0.5, 0.75, 1.0), "mnli": (0, 0.25, 0.5, 0.75, 1.0), "hypernyms": (0, 0.25, 0.5, 0.75, 1.0)}
ADAPTATION_SHARES = (0, 0.25, 0.5, 0.75, 1.0)
VALIDATION = {"amazon": 200, "mnli": 200, "hypernyms": 300}  # rows a domain, at most


def classifier(stage: int, seed: int, **params: Any) -> Any:
    own = {"adaptation": None, "weight_interpolation": 1.0} if stage == 2 else {}
    return engine.MetaFineTunedClassifier(random_state=seed, **own, **params)


def between(task: str, train: pd.DataFrame, valid: pd.DataFrame, seed: int) -> dict[str, float]:
    """Accuracy of the meta-learner with its weights between the start and the end of stage 2."""
    import torch

    clf = fit(classifier(2, seed), train)
    module = clf.meta_learner_
    end = {name: p.detach().clone() for name, p in module.named_parameters()}
    start = dict(fit(classifier(2, seed, learning_rate=1e-15, meta_epochs=1), train).meta_learner_.named_parameters())
    accuracy = {}
    for share in SHARES[task]:
        with torch.no_grad():
            for name, p in module.named_parameters():
                p.copy_(torch.lerp(start[name], end[name], share))
        accuracy[str(share)] = float((clf.predict(inputs(valid)) == valid["y"].to_numpy()).mean())
    return accuracy


def between_domains(train: pd.DataFrame, valid: pd.DataFrame, seed: int) -> dict[str, float]:
    """Accuracy of the domains' models with their weights between the meta-learner and the end of stage 3."""
    import torch

    clf = fit(classifier(3, seed), train)
    start, ends = dict(clf.meta_learner_.named_parameters()), dict(clf.adapted_weights_)
    accuracy = {}
    for share in ADAPTATION_SHARES:
        clf.adapted_weights_ = {
            domain: {name: torch.lerp(start[name].detach(), tensor, share) for name, tensor in end.items()}
            for domain, end in ends.items()
        }
        predicted = clf.predict(inputs(valid), domains=valid["domain"].to_numpy())
        accuracy[str(share)] = float((predicted == valid["y"].to_numpy()).mean())
    return accuracy


def run(task: str, shots: int, stage: int, seed: int) -> Content:
    train, valid = development_rows(task, shots, seed, VALIDATION[task])
    accuracy = between(task, train, valid, seed) if stage == 2 else between_domains(train, valid, seed)
    return {
        "accuracy": accuracy,
        "n_train": len(train),
        "n_valid": len(valid),
        "settings": engine.settings_of(classifier(stage, seed)),
    }


def report(cells: list[Content]) -> list[str]:
    lines = [
        "# From the start of a stage to its end",
        "",
        "`python benchmarks/interpolation.py` with the tasks, stage and seeds below, then `--report`: all-MiniLM-L6-v2 at the "
        "defaults, with weights so far from the start (0) to the end (1) of the stage, on rows of the training pool that the "
        "seed's draw does not hold. Accuracy in percent, ± half of a 95% t interval over seeds; differences are paired by "
        f"seed. Machine: {distinct(cells, 'machine', '; ')}. Code (git's id of skmft/): {distinct(cells, 'code', ', ')}.",
    ]
    of_stage = {stage: [c for c in cells if c["stage"] == stage] for stage in (2, 3)}
    if of_stage[2]:
        lines += ["", "## Stage 2: from the probe to the meta-learner", "", *stage_table(of_stage[2], 1.0)]
    if of_stage[3]:
        lines += ["", "## Stage 3: from the meta-learner to each domain's model", "", *stage_table(of_stage[3], 0.0)]
    return lines


def stage_table(cells: list[Content], reference: float) -> list[str]:
    """Accuracy at every share, and less that at the `reference` share."""
    shares = sorted({float(share) for cell in cells for share in cell["accuracy"]})
    rows = []
    for task, shots in sorted({(c["task"], c["shots"]) for c in cells}):
        own = [c for c in cells if (c["task"], c["shots"]) == (task, shots)]
        found = [{float(k): 100 * v for k, v in c["accuracy"].items()} for c in own]
        values = pd.DataFrame(found).reindex(columns=shares)
        seeds = " ".join(map(str, sorted(c["seed"] for c in own)))
        what = f"{task}, {shots} labelled a domain ({own[0]['n_train']} rows, {own[0]['n_valid']} scored)"
        rows.append([what, seeds, *(plus_minus(values[s].dropna()) for s in shares)])
        changes = [(values[s] - values[reference]).dropna() if s != reference else [] for s in shares]
        rows.append(["less the end" if reference else "less the start", "", *map(difference, changes)])
    return table(["", "seeds", *(f"{s:g}" for s in shares)], rows)


def main(argv: list[str] | None = None) -> None:
    found = parser(__doc__, "interpolation", report=True)
    found.add_argument("columns", nargs="*", help="task:shots")
    found.add_argument("--seeds", nargs="+", type=int, default=[10, 11, 12, 13, 14])
    found.add_argument("--stage", type=int, choices=[2, 3], default=2)
    found.add_argument("--threads", type=int, default=1)
    args = found.parse_args(argv)
    if args.report:
        return write_report("interpolation", args.cells, report)
    start(args.threads)
    for column, seed in product(args.columns, args.seeds):
        task, _, shots = column.partition(":")
        args.cells.complete(
            run,
            {"task": task, "shots": int(shots), "stage": args.stage, "seed": seed},
            name=f"stage_{args.stage}-{task}-{shots}-{seed}",
            current=made_with(engine.settings_of(classifier(args.stage, seed))),
            show=lambda cell: {share: round(100 * a, 1) for share, a in cell["accuracy"].items()},
        )


if __name__ == "__main__":
    main()
