"""The paper's studies, by its recipe: corruption weight, layers with a corruption head, training on typical rows alone.

A. corruption weights; B. layers that have a corruption head; C. a share of every class and domain, the most typical rows of it
or, for comparison, rows drawn at random; D. the most and the least typical texts. All fits draw the same rows for the same
seed and are scored on the task's frozen test rows: this is a report, and chose no default. One JSON file a cell; finished cells
are skipped.

    python benchmarks/studies.py --tasks hypernyms --shots 64      # runs what is missing, a thread
    python benchmarks/studies.py --report                          # writes results/studies.md
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from few_shot import AUTO, HYPERNYM_SPLITS, budget, params_of, write
from report import half_interval, plus_minus, table
from tasks import CODE, HERE, draw, inputs, machine, paper, split, text_columns

from skmft import MetaFineTunedClassifier

CELLS = HERE / "cells" / "studies"
WEIGHTS = (0.0, 0.1, 0.5, 1.0)
LAYERS = {
    "the last": (-1,),
    "the middle": (2,),
    "middle and last": (2, 5),
    "every": (0, 1, 2, 3, 4, 5),
}  # of MiniLM's 6
SHARES = (0.2, 0.4, 0.6, 0.8)
REFERENCE = "paper"  # weight 0.1, last layer, all rows
SETTINGS: dict[str, dict[str, Any]] = {
    REFERENCE: {},
    **{f"weight {w:g}": {"corruption_weight": w} for w in WEIGHTS if w != 0.1},
    **{f"layers {name}": {"corruption_layers": layers} for name, layers in LAYERS.items() if name != "the last"},
    **{f"{which} {share:g}": {"share": share, "which": which} for share in SHARES for which in ("typical", "random")},
}
EXTREMES = 3  # rows of each class and domain told as the most, and as the least typical


def most_typical(rows: pd.DataFrame, typicality: np.ndarray, share: float) -> pd.DataFrame:
    """The given share of each class of each domain, at least a row, by falling typicality."""
    rank = pd.Series(-typicality, rows.index).groupby([rows["domain"], rows["y"]]).rank(method="first")
    size = rows.groupby(["domain", "y"])["y"].transform("size")
    return rows[rank <= np.maximum(1, np.round(share * size))]


def classifier(setting: str, seed: int) -> MetaFineTunedClassifier:
    params = {k: v for k, v in SETTINGS[setting].items() if k not in ("share", "which")}
    return paper(adaptation=None, random_state=seed, **params)


def settings(setting: str, seed: int) -> dict[str, Any]:
    """All that a cell was made with, so that cells of other defaults can be told apart."""
    return {**params_of(classifier(setting, seed)), "auto": json.loads(json.dumps(AUTO))}


def run(task: str, shots: int, seed: int, setting: str) -> dict[str, Any]:
    pool, test = split(f"hypernyms {seed % HYPERNYM_SPLITS}" if task == "hypernyms" else task)
    rows, _ = draw(pool, shots, seed)
    share, which = SETTINGS[setting].get("share"), SETTINGS[setting].get("which")
    clf = classifier(setting, seed)
    start = time.perf_counter()
    if share is not None:
        if which == "typical":  # stage 1, and next to no training
            scored = paper(adaptation=None, random_state=seed, meta_epochs=1, learning_rate=1e-12)
            score = scored.fit(inputs(rows), rows["y"], domains=rows["domain"].to_numpy()).typicality_
        else:
            score = np.random.default_rng(seed).random(len(rows))
        rows = most_typical(rows, score, share)
    clf.fit(inputs(rows), rows["y"], domains=rows["domain"].to_numpy())
    seconds = time.perf_counter() - start
    right = pd.Series(clf.predict(inputs(test)) == test["y"].to_numpy())
    cell = {
        "task": task,
        "shots": shots,
        "seed": seed,
        "setting": setting,
        "settings": settings(setting, seed),
        "accuracy": float(right.groupby(test["domain"].to_numpy()).mean().mean()),
        "n_train": len(rows),
        "n_test": len(test),
        "seconds": round(seconds, 1),
        "machine": machine(),
        "code": CODE,
    }
    if setting == REFERENCE:
        texts = [" / ".join(row) for row in rows[text_columns(rows)].itertuples(index=False)]
        scored_rows = rows.assign(typicality=clf.typicality_, shown=texts).sort_values("typicality", ascending=False)
        by_class = scored_rows.groupby(["domain", "y"])
        kept = {"most": by_class.head(EXTREMES), "least": by_class.tail(EXTREMES)}
        cell["extremes"] = {k: v[["domain", "y", "typicality", "shown"]].values.tolist() for k, v in kept.items()}
    return cell


def report(cells: list[dict[str, Any]]) -> str:
    if not cells:
        raise ValueError("there are no cells yet; run studies.py without --report first")
    frame = pd.DataFrame(cells)
    lines = [
        "# The paper's studies",
        "",
        "`python benchmarks/studies.py --tasks TASK --shots N`, then `--report`: meta-learner by the paper's recipe with the "
        "optimisation of our defaults (all-MiniLM-L6-v2, `corruption_weight=0.1` on the last layer, all rows, where nothing "
        "else is said), scored on the frozen test rows; accuracy in percent, mean over domains, ± half of a 95% t interval "
        "over seeds; differences from that recipe are paired by seed. Machine: "
        f"{'; '.join(sorted(frame['machine'].unique()))}.",
    ]
    for (task, shots), some in frame.groupby(["task", "shots"]):
        by_seed = some.pivot(index="seed", columns="setting", values="accuracy") * 100
        if REFERENCE not in by_seed:
            lines += [
                "",
                f"## {task}, {shots} labelled a domain",
                "",
                "The paper's recipe, the reference, has not been run.",
            ]
            continue
        n_test = " or ".join(map(str, sorted(some["n_test"].unique())))
        lines += ["", f"## {task}, {shots} labelled a domain ({n_test} test rows)"]

        weights = [[f"{w:g}", *against_reference(by_seed, f"weight {w:g}")] for w in WEIGHTS]
        layers = [[name, *against_reference(by_seed, f"layers {name}")] for name in LAYERS]
        for title, head, body in (("weight", "`corruption_weight`", weights), ("layers", "corrupted layers", layers)):
            lines += ["", f"### Corruption: {title}", ""]
            lines += table([head, "seeds", "accuracy", "less the paper's recipe"], body)
        lines += [
            "",
            "### A share of the rows",
            "",
            "Of every class of every domain; typicality scored on all rows.",
            "",
        ]
        shares = []
        for share in SHARES:
            both = by_seed.reindex(columns=[f"typical {share:g}", f"random {share:g}"]).dropna()
            gain = both.iloc[:, 0] - both.iloc[:, 1]
            change = f"{gain.mean():+.1f} ± {half_interval(gain):.1f}" if len(gain) > 1 else ""
            accuracy = [plus_minus(both[name]) if len(both) else "" for name in both]
            rows = int(some.loc[some["setting"] == f"random {share:g}", "n_train"].max()) if len(both) else 0
            size = [str(rows), str(budget(rows))] if rows else ["", ""]
            shares.append([f"{share:.0%}", *size, str(len(both)), *accuracy, change])
        whole = by_seed[REFERENCE].dropna()
        rows = int(some.loc[some["setting"] == REFERENCE, "n_train"].max())
        shares.append(["100%", str(rows), str(budget(rows)), str(len(whole)), plus_minus(whole), "", ""])
        lines += table(
            ["share", "rows", "steps", "seeds", "the most typical", "at random", "typical less random"], shares
        )
        first = some[(some["setting"] == REFERENCE) & some["extremes"].notna()].sort_values("seed")
        if len(first):
            lines += ["", f"### The most and the least typical training texts (seed {first['seed'].iloc[0]})", ""]
            body = [
                [which, domain, str(y), f"{value:.3f}", shorten(text)]
                for which, found in first["extremes"].iloc[0].items()
                for domain, y, value, text in sorted(found, key=lambda r: (r[0], str(r[1]), -r[2]))
            ]
            lines += table(["", "domain", "class", "typicality", "text"], body)
    return "\n".join(lines) + "\n"


def against_reference(by_seed: pd.DataFrame, setting: str) -> list[str]:
    """Seeds, accuracy, and the difference from the reference, which is one of the weights and one of the layers."""
    name = setting if setting in SETTINGS else REFERENCE
    found = by_seed.get(name, pd.Series(dtype=float)).dropna()
    difference = (found - by_seed[REFERENCE]).dropna()
    change = f"{difference.mean():+.1f} ± {half_interval(difference):.1f}" if len(difference) > 1 else ""
    return [str(len(found)), plus_minus(found) if len(found) else "", "" if name == REFERENCE else change]


def shorten(text: str, length: int = 100) -> str:
    text = " ".join(text.split()).replace("|", "/")
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " ..."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=["amazon", "mnli", "hypernyms"], default=["amazon", "hypernyms"])
    parser.add_argument("--shots", nargs="+", type=int, default=[64])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cells", type=Path, default=CELLS, help="folder of the cells' files")
    parser.add_argument("--report", action="store_true", help="only write the tables of what is there")
    args = parser.parse_args()
    if args.report:
        text = report([json.loads(p.read_text()) for p in sorted(args.cells.glob("*.json"))])
        (HERE / "results" / "studies.md").write_text(text)
        print(text)
        return
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    grid = [(t, n, s, name) for t in args.tasks for n in args.shots for s in args.seeds for name in args.settings]
    for task, shots, seed, setting in grid:
        path = args.cells / f"{task}-{shots}-{seed}-{setting.replace(' ', '_')}.json"
        if not path.exists() or json.loads(path.read_text())["settings"] != settings(setting, seed):
            cell = run(task, shots, seed, setting)
            write(path, cell)
            print(path.stem, f"{cell['accuracy']:.3f}, {cell['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(str(error))
