"""Meta fine-tuning on four small domains, against what one would do otherwise.

A few labelled texts of each domain are drawn; four ways to use them are scored on the same test rows:

(a) the un-tuned encoder's embeddings and a logistic regression, for each domain;
(b) plain fine-tuning of the encoder on each domain alone, with as many optimiser steps as stage 2 of (c);
(c) the meta-learner: one model, meta fine-tuned on all domains;
(d) the meta-learner adapted to each domain.

    python examples/quickstart.py                       # rated snippets, downloaded (2.4 MB) and cached
    python examples/quickstart.py --data amazon         # Amazon reviews (30 MB, fetched once and cached)
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from skmft import MetaFineTunedClassifier
from skmft.baselines import SingleDomainClassifier
from skmft.datasets import fetch_amazon_reviews, fetch_rated_snippets


def draw(data: str, shots: int, test: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training and test rows, balanced over domains and classes; no document is on both sides, no text comes twice."""
    if data == "amazon":
        bunch = fetch_amazon_reviews()
        documents = np.arange(len(bunch.data))
    else:
        bunch = fetch_rated_snippets()
        documents = bunch.groups
    rows = pd.DataFrame({"text": bunch.data, "y": bunch.target, "domain": bunch.domains, "document": documents})
    rows = rows.drop_duplicates("text")
    rng = np.random.default_rng(seed)
    in_test = pd.Series(rng.permutation(rows["document"].unique()))
    sides = [rows["document"].isin(set(in_test[: len(in_test) // 2]))]
    sides.append(~sides[0])
    train, test_rows = (
        rows[side].groupby(["domain", "y"]).sample(n // 2, random_state=seed).sample(frac=1, random_state=seed)
        for side, n in zip(sides, (shots, test))
    )
    return train.reset_index(drop=True), test_rows.reset_index(drop=True)


def per_domain(test: pd.DataFrame, predicted: np.ndarray) -> pd.Series:
    """Accuracy in every domain."""
    return (test["y"] == predicted).groupby(test["domain"]).mean()


def plot(table: pd.DataFrame, clf: MetaFineTunedClassifier, train: pd.DataFrame, path: str) -> None:
    """Draw the accuracies, and the typicality of the training texts."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[3, 2], layout="constrained")
    colours = ["#999999", "#e69f00", "#56b4e9", "#0072b2"]
    table.plot.bar(ax=left, color=colours, width=0.8, rot=0)
    left.set(
        ylabel="accuracy on test rows (0.5: by chance)", xlabel="", ylim=(min(0.5, table.to_numpy().min() - 0.05), 1)
    )
    left.legend(loc="upper center", ncols=2, fontsize="small", frameon=False)
    names = sorted(train["domain"].unique())
    right.boxplot([clf.typicality_[train["domain"] == d] for d in names], tick_labels=names)
    right.set(ylabel="typicality of training texts")
    fig.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=["snippets", "amazon"], default="snippets")
    parser.add_argument("--shots", type=int, default=32, help="labelled texts a domain")
    parser.add_argument("--test", type=int, default=200, help="test rows a domain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", default="quickstart.png")
    args = parser.parse_args()
    if any(n < 2 or n % 2 for n in (args.shots, args.test)):
        parser.error(f"--shots {args.shots} --test {args.test}: expected even numbers from 2, as many of either class")

    train, test = draw(args.data, args.shots, args.test, args.seed)
    domains = sorted(train["domain"].unique())
    print(f"{len(train)} training and {len(test)} test texts of the domains {', '.join(domains)}\n")
    columns = {}

    clf = MetaFineTunedClassifier(random_state=args.seed, verbose=1)
    start = time.perf_counter()
    clf.fit(train["text"], train["y"], domains=train["domain"])
    print(f"meta fine-tuning and adaptation: {time.perf_counter() - start:.0f} s\n")
    single = SingleDomainClassifier(random_state=args.seed)  # as many steps a domain as the meta-learner takes
    single.fit(train["text"], train["y"], domains=train["domain"])
    raw = MetaFineTunedClassifier(meta_epochs=1, learning_rate=1e-12, typicality_weighting=False, adaptation=None)
    raw.fit(train["text"], train["y"], domains=train["domain"])  # so small a rate leaves the encoder as it was
    untuned = np.empty(len(test), dtype=object)
    for domain in domains:
        own, theirs = train[train["domain"] == domain], test["domain"] == domain
        regression = make_pipeline(Normalizer(), LogisticRegression(max_iter=1000))
        regression.fit(raw.transform(own["text"]), own["y"])
        untuned[theirs] = regression.predict(raw.transform(test["text"][theirs]))
    columns["(a) embeddings + logistic regression"] = per_domain(test, untuned)
    columns["(b) fine-tuned on the domain alone"] = per_domain(
        test, single.predict(test["text"], domains=test["domain"])
    )
    columns["(c) meta-learner"] = per_domain(test, clf.predict(test["text"]))
    columns["(d) adapted to each domain"] = per_domain(test, clf.predict(test["text"], domains=test["domain"]))

    table = pd.DataFrame(columns)
    table.loc["mean"] = table.mean()
    print(
        f"Accuracy on the same {args.test} test texts a domain ({args.shots} training texts a domain, seed {args.seed})"
    )
    print(table.T.to_string(float_format="{:.3f}".format), "\n")
    order = np.argsort(clf.typicality_)
    for name, rows in (("Most", order[::-1][:3]), ("Least", order[:3])):
        print(f"{name} typical training texts")
        for row in rows:
            text = " ".join(train["text"][row].split())
            text = text if len(text) <= 90 else text[:87] + "..."
            print(f"  {clf.typicality_[row]:.3f}  {train['domain'][row]}, {train['y'][row]}: {text}")
    plot(table, clf, train, args.figure)
    print(
        f"\nFigure: {args.figure}. One draw of {args.shots} texts a domain is one throw of the dice: try other seeds."
    )


if __name__ == "__main__":
    main()
