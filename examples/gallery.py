"""The pictures of `skmft.inspection`, on rated snippets with 2 domains or with 16.

The sixteen domains are the four sources, each divided into four by the length of its texts.

    python examples/gallery.py --domains 2      # writes gallery_2_typicality.png and others; about a minute
    python examples/gallery.py --domains 16

The pictures in benchmarks/results were made with `--figures benchmarks/results/gallery`.
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from skmft import MetaFineTunedClassifier
from skmft.datasets import fetch_rated_snippets
from skmft.inspection import (
    DomainScoresDisplay,
    TrainingHistoryDisplay,
    TypicalityDisplay,
    explain_typicality,
)
from skmft.model_selection import FewShotSplit


def load(n_domains: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texts, labels and domains."""
    if n_domains == 2:
        return fetch_rated_snippets(domains=["amazon", "tweets"], return_X_y_domains=True)
    X, y, d = fetch_rated_snippets(return_X_y_domains=True)
    lengths = pd.Series([len(text) for text in X])
    quarter = lengths.groupby(d).rank(method="first", pct=True).mul(4).clip(upper=3.999).astype(int)
    names = np.array(["shortest", "short", "long", "longest"])
    return X, y, np.array([f"{domain}, {name}" for domain, name in zip(d, names[quarter])], dtype=object)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--domains", type=int, choices=[2, 16], default=2)
    parser.add_argument("--shots", type=int, default=16, help="training texts of every class in every domain")
    parser.add_argument("--figures", default="gallery", help="how the files' names begin")
    args = parser.parse_args()

    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    X, y, d = load(args.domains)
    [(train, test)] = FewShotSplit(args.shots, n_repeats=1, test_size=1600, random_state=0).split(X, y, domains=d)
    clf = MetaFineTunedClassifier(random_state=0).fit(X[train], y[train], domains=d[train])
    words = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(X[train], y[train])

    baselines = {"words, pooled": words.predict(X[test])}
    displays = {
        "typicality": TypicalityDisplay(clf.typicality_, y[train], d[train]).plot(),
        "scores": DomainScoresDisplay.from_estimator(clf, X[test], y[test], d[test], baselines=baselines),
        "history": TrainingHistoryDisplay(clf.history_).plot(),
    }
    for name, display in displays.items():
        display.figure_.savefig(f"{args.figures}_{args.domains}_{name}.png", dpi=80)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4 + args.domains / 5), layout="constrained")
    for ax, title in zip(axes, ("pre-trained", "meta-learner")):
        Z = PCA(2, random_state=0).fit_transform(clf.transform(X[test], pretrained=title == "pre-trained"))
        for i, domain in enumerate(clf.domains_):  # the classes by colour, the domains by marker
            for j, label in enumerate(clf.classes_):
                points = Z[(d[test] == domain) & (y[test] == label)]
                marker = "os^DvPX*<>ph8d1x"[i]
                ax.scatter(*points.T, s=14, alpha=0.7, color=f"C{j}", marker=marker, label=f"{domain}, {label}")
        ax.set(title=title, xticks=[], yticks=[])
    axes[1].legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize="x-small")
    figure.savefig(f"{args.figures}_{args.domains}_embeddings.png", dpi=80)
    table = explain_typicality(clf, X[train], y[train], d[train]).nsmallest(5, "typicality")
    print(f"The least typical of the {len(train)} training texts:")
    for row in table.itertuples():
        print(f"  {row.typicality:.3f}  {row.domain}, {row[3]}; nearest other class: {row.foreign_prototype}")
        print(f"         {row.text[:100]}")


if __name__ == "__main__":
    main()
