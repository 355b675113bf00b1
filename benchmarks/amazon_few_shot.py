"""Amazon reviews (the paper's four domains) with 50 labelled reviews a domain: the paper's MFT against the usual ways.

Every method sees the same draw of training rows and is scored on the same frozen test rows (``amazon_test_hashes.txt``).
One JSON file a cell (seed x method); finished cells are skipped, so that a stop loses nothing.

    python benchmarks/amazon_few_shot.py           # runs what is missing, writes results/amazon_few_shot.md
"""

from __future__ import annotations

import argparse
import json
import math
import time

import numpy as np
import pandas as pd
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from tasks import HERE, draw, machine, paper, split

from skmft.stages import META_EPOCHS
from skmft.training import auto_epochs

CELLS = HERE / "cells" / "amazon_few_shot"
NAMES = {
    "embeddings": "un-tuned embeddings + logistic regression, a domain alone",
    "single": "fine-tuning, a domain alone",
    "pooled": "fine-tuning, all domains pooled",
    "meta": "the paper's MFT: meta-learner",
    "adapted": "the paper's MFT: adapted to each domain",
}
PLAIN = {"typicality_weighting": False, "corruption_weight": 0.0, "adaptation": None}

Predictions = dict[str, tuple[np.ndarray, float]]  # of a method: predicted labels, seconds of fitting


def embeddings(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> Predictions:
    start = time.perf_counter()
    raw = paper(meta_epochs=1, learning_rate=1e-12, random_state=seed, **PLAIN)
    raw.fit(train["text"], train["y"], domains=train["domain"])  # so small a rate leaves the encoder as it was
    fitted = {
        domain: make_pipeline(Normalizer(), LogisticRegression(max_iter=1000)).fit(raw.transform(own["text"]), own["y"])
        for domain, own in train.groupby("domain")
    }
    seconds = time.perf_counter() - start
    predicted = np.empty(len(test), dtype=object)
    for domain, own in test.groupby("domain"):
        predicted[own.index] = fitted[domain].predict(raw.transform(own["text"]))
    return {"embeddings": (predicted, seconds)}


def single(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> Predictions:
    batch = paper().batch_size
    steps = auto_epochs(len(train), batch, **META_EPOCHS) * math.ceil(
        len(train) / batch
    )  # those of stage 2 on all rows
    seconds, predicted = 0.0, np.empty(len(test), dtype=object)
    for domain, own in train.groupby("domain"):
        epochs = math.ceil(steps / math.ceil(len(own) / batch))
        start = time.perf_counter()
        clf = paper(meta_epochs=epochs, random_state=seed, **PLAIN)
        clf.fit(own["text"], own["y"], domains=domain)
        seconds += time.perf_counter() - start
        theirs = test[test["domain"] == domain]
        predicted[theirs.index] = clf.predict(theirs["text"])
    return {"single": (predicted, seconds)}


def pooled(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> Predictions:
    start = time.perf_counter()
    clf = paper(random_state=seed, **PLAIN).fit(train["text"], train["y"], domains=train["domain"])
    return {"pooled": (clf.predict(test["text"]), time.perf_counter() - start)}


def mft(train: pd.DataFrame, test: pd.DataFrame, seed: int) -> Predictions:
    start = time.perf_counter()
    clf = paper(random_state=seed).fit(train["text"], train["y"], domains=train["domain"])
    seconds = time.perf_counter() - start
    adapting = sum(h.get("seconds", 0.0) for h in clf.history_ if h["stage"] == "adaptation")
    return {
        "meta": (clf.predict(test["text"]), seconds - adapting),
        "adapted": (clf.predict(test["text"], domains=test["domain"]), seconds),
    }


def table(shots: int, seeds: int, n_test: int) -> str:
    cells = [json.loads(p.read_text()) for p in sorted(CELLS.glob(f"{shots}-*.json"))]
    cells = [c for c in cells if c["seed"] < seeds]
    results = {name: pd.DataFrame([c["accuracy"][name] for c in cells if name in c["accuracy"]]) for name in NAMES}
    seconds = {name: [c["seconds"][name] for c in cells if name in c["seconds"]] for name in NAMES}
    machines = sorted({c["machine"] for c in cells})
    domains = list(results["meta"].columns)
    lines = [
        "# Amazon reviews, few shots",
        "",
        f"`python benchmarks/amazon_few_shot.py`: {shots} labelled reviews a domain (title and text, balanced classes), "
        f"seeds 0 to {seeds - 1} (each its own draw), the paper's losses under the optimisation of our defaults "
        f"(all-MiniLM-L6-v2), scored on the same {n_test} frozen test reviews. All fine-tuning takes the "
        "same number of optimiser steps a model (stage 3's come on top). "
        "Accuracy in percent; ± is half of a 95% t interval of the mean over seeds. Seconds are those of fitting: "
        f"the fastest seed, all domains together. Machine: {'; '.join(machines)}.",
        "",
        "| method | " + " | ".join(domains) + " | mean | seconds |",
        "| --- " * (len(domains) + 3) + "|",
    ]

    def interval(values: pd.Series) -> str:
        half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
        return f"{half:.1f}"

    for name, scores in results.items():
        mean = 100 * scores.mean(axis=1)
        entries = [f"{v:.1f}" for v in 100 * scores.mean()]
        lines.append(
            f"| {NAMES[name]} | {' | '.join(entries)} | {mean.mean():.1f} ± {interval(mean)} "
            f"| {min(seconds[name]):.0f} |"
        )
    lines += ["", "Differences in points, paired by seed:", ""]
    for one, other in (("meta", "single"), ("meta", "pooled"), ("adapted", "meta")):
        change = 100 * (results[one].mean(axis=1) - results[other].mean(axis=1))
        per_seed = ", ".join(f"{v:+.1f}" for v in change)
        lines.append(f"- {NAMES[one]} less {NAMES[other]}: {change.mean():+.1f} ± {interval(change)} ({per_seed})")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, default=50, help="training rows a domain")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    pool, test = split("amazon")
    CELLS.mkdir(parents=True, exist_ok=True)
    for seed in range(args.seeds):
        for method in (mft, single, pooled, embeddings):
            cell = CELLS / f"{args.shots}-{seed}-{method.__name__}.json"
            if cell.exists():
                continue
            train, _ = draw(pool, args.shots, seed)
            result = {"seed": seed, "machine": machine(), "accuracy": {}, "seconds": {}}
            for name, (predicted, seconds) in method(train, test, seed).items():
                right = pd.Series(predicted == test["y"].to_numpy(), index=test.index)
                result["accuracy"][name] = right.groupby(test["domain"]).mean().to_dict()
                result["seconds"][name] = seconds
                print(f"seed {seed}, {NAMES[name]}: {right.mean():.3f}, {seconds:.0f} s", flush=True)
            cell.write_text(json.dumps(result))
    text = table(args.shots, args.seeds, len(test))
    (HERE / "results").mkdir(exist_ok=True)
    (HERE / "results" / "amazon_few_shot.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
