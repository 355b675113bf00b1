"""A domain that training has not seen: leave one out, learn on the others, adapt to it from a few of its rows.

    python benchmarks/new_domain.py --tasks amazon --seeds 0 1 2     # runs what is missing, in one thread
    python benchmarks/new_domain.py --report                        # writes results/new_domain.md

Every held-out domain of every task is a cell for each method and seed; finished cells are skipped. The methods learn from the
same rows of the other domains (--labelled each) and of the new one; those that adapt do so by the same stage 3, the others
(fine-tuning on the new rows alone, or together with those of the other domains) start anew for each number of rows. Scored on
the new domain's frozen test rows. Shots are nested: 8 are the first half of 16. Stage 3's defaults take small steps (4 of at
most 1e-5 for up to 32 rows), so that what a method gives at 0 shots decides most.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from typing import Any

import pandas as pd
from lib import engine, tasks
from lib.cells import Content, distinct, made_with, parser, start
from lib.methods import embed, logistic
from lib.report import accuracy, table, with_interval, write_report
from lib.statistics import ALL, Clusters, Column, Score, Scores, answers, bits, compare
from lib.tasks import DOMAINS, adapt, digest, draw, find_clusters, fit, inputs, source_of

SHOTS = (0, 4, 8, 16, 32)
DEFAULT_LABELLED = 64  # rows in each of the other domains
INNER_STEPS = 5  # of Reptile
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


def classifier(method: str, seed: int) -> Any:
    if method == "mft":
        params: dict[str, Any] = {}
    elif method == "reptile":
        from lib.recipes import Reptile

        params = {"typicality_weighting": False, "head_init": "random", "recipe": Reptile(INNER_STEPS)}
    else:
        params = MIX
    pairs = {"mft": "auto", "mix bi": "bi"}.get(method, "cross")
    return engine.MetaFineTunedClassifier(adaptation=None, pair_encoding=pairs, random_state=seed, **params)


def settings(method: str, seed: int) -> dict[str, Any]:
    """All that a cell was made with, so that cells of other defaults are told apart."""
    params = engine.settings_of(classifier("mix" if method == "reptile" else method, seed))
    if method == "embeddings":
        params = {name: params[name] for name in ("model", "max_length", "random_state", "auto")}
    own = {"inner_steps": INNER_STEPS} if method == "reptile" else {}
    return {**params, **own, "shots": list(SHOTS)}


def applies(method: str, task: str) -> bool:
    return not (method == "mix bi" and task == "amazon")  # it has no pairs


def run(task: str, labelled: int, new: str, method: str, seed: int) -> Content:
    pool, test = tasks.rows_of(source_of(task, seed))
    others, _ = draw(pool[pool["domain"] != new], labelled, seed)
    shots, _ = draw(pool[pool["domain"] == new], max(SHOTS), seed)
    test = test.sort_values("hash", ignore_index=True)
    test_hash = digest(test["hash"])
    test = test[test["domain"] == new]
    turn = shots.groupby("y").cumcount()  # classes in turn, so that every prefix is balanced
    shots = shots.loc[turn.sort_values(kind="stable").index]
    begin, correct = time.perf_counter(), {}
    base = None if method in ("alone", "joint", "embeddings") else fit(classifier(method, seed), others)
    for n in SHOTS:
        own = shots.iloc[:n]
        rows = own if method == "alone" else pd.concat([others, own])
        if method == "alone" and n == 0:
            continue
        if method == "embeddings":
            model = engine.DEFAULT_MODEL
            clf = logistic(embed(rows, model), rows["y"].to_numpy(), seed)
            predicted = clf.predict(embed(test, model))
        elif base is None:
            predicted = fit(classifier(method, seed), rows).predict(inputs(test), domains=new)
        else:
            clf = copy.copy(base).set_params(adaptation="full")  # stage 3 at its defaults
            adapt(clf, own)
            predicted = clf.predict(inputs(test), domains=new)
        correct[str(n)] = bits(predicted == test["y"].to_numpy())
    return {
        "source": source_of(task, seed),
        "settings": settings(method, seed),
        "correct": correct,
        "test_hash": test_hash,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def report(cells: list[Content]) -> list[str]:
    """Markdown of the seeds for which every held-out domain is there.

    Raises
    ------
    ValueError
        If a method's cells have different settings.
    """
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
        f"Machine: {distinct(cells, 'machine', '; ')}. Code (git's id of skmft/): {distinct(cells, 'code', ', ')}.",
    ]
    together, missing = find_clusters(cells), []
    every: Scores = {}
    for task, labelled in sorted({(c["task"], c["labelled"]) for c in cells}):
        scores: Scores = {Column(task, str(n)): defaultdict(dict) for n in SHOTS}
        own = [c for c in cells if (c["task"], c["labelled"]) == (task, labelled)]
        for method, seed in sorted({(c["method"], c["seed"]) for c in own}):
            by_domain = {c["new"]: c for c in own if (c["method"], c["seed"]) == (method, seed)}
            if len(by_domain) < DOMAINS[task]:
                found = ", ".join(sorted(by_domain))
                missing.append(f"{task}, {labelled}, {NAMES[method]}, seed {seed}: has {found} alone")
                continue
            for n in SHOTS:
                if all(str(n) in c["correct"] for c in by_domain.values()):
                    right = answers({d: c["correct"][str(n)] for d, c in by_domain.items()})
                    scores[Column(task, str(n))][method][seed] = Score(source_of(task, seed), right)
        every |= {c: m for c, m in scores.items() if "mft" in m and labelled == DEFAULT_LABELLED}
        differences = compare({c: m for c, m in scores.items() if "mft" in m}, "mft", together)
        names = [name for name in NAMES if any(name in methods for methods in scores.values())]
        lines += ["", f"## {task}, {labelled} labelled rows in each of the other {DOMAINS[task] - 1} domains", ""]
        body = []
        for name in names:
            values = [(column, methods.get(name, {})) for column, methods in scores.items()]
            body.append([NAMES[name], max(len(seeds) for _, seeds in values), *(accuracy(*value) for value in values)])
        for name in names:
            found = differences[differences["other"] == name] if len(differences) else differences
            if len(found):
                by_column = {row.column: row for row in found.itertuples()}
                seeds = max(row.seeds for row in by_column.values())
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
    return lines


def mean_over_tasks(scores: Scores, together: Clusters) -> list[str]:
    """Differences over the tasks that have both methods, each task counted once."""
    tasks = list(dict.fromkeys(column.task for column in scores))
    lines = [f"## The mean over tasks, {DEFAULT_LABELLED} labelled rows in each of the other domains", ""]
    body: dict[str, dict[str, str]] = defaultdict(dict)
    for n in map(str, SHOTS):
        of_n = {column: methods for column, methods in scores.items() if column.shots == n}
        found = compare(of_n, "mft", together)
        for row in found[found["column"] == ALL].itertuples() if len(found) else ():
            told = "" if row.columns == len(tasks) else f" ({row.columns:.0f} of {len(tasks)} tasks)"
            body[row.other][n] = with_interval(row, bold=False) + told
    rows = [
        [f"MFT less: {NAMES[name]}", *(body[name].get(str(n), "") for n in SHOTS)] for name in NAMES if name in body
    ]
    return lines + table(["shots of the new domain", *map(str, SHOTS)], rows)


def main(argv: list[str] | None = None) -> None:
    found = parser(__doc__, "new_domain", report=True)
    found.add_argument("--tasks", nargs="+", choices=list(DOMAINS), default=["amazon", "mnli", "hypernyms"])
    found.add_argument("--methods", nargs="+", choices=list(NAMES), default=list(NAMES))
    found.add_argument("--labelled", type=int, default=DEFAULT_LABELLED, help="rows in each of the other domains")
    found.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    found.add_argument("--threads", type=int, default=1, help="of torch; default 1, as of the committed cells")
    args = found.parse_args(argv)
    if args.report:
        return write_report("new_domain", args.cells, report)
    start(args.threads)
    for seed in args.seeds:
        for task in args.tasks:
            for new in sorted(tasks.rows_of(source_of(task, seed))[0]["domain"].unique()):
                for method in (m for m in args.methods if applies(m, task)):
                    args.cells.complete(
                        run,
                        {"task": task, "labelled": args.labelled, "new": new, "method": method, "seed": seed},
                        current=made_with(settings(method, seed)),
                        show=lambda cell: {n: round(b.count("1") / len(b), 3) for n, b in cell["correct"].items()},
                    )


if __name__ == "__main__":
    main()
