"""Choose `corruption_weight` and `typicality_balance` by a search whose scores know the domains.

Folds are stratified by class and domain. Every candidate is scored by its mean accuracy over domains (each row answered by
its domain's model), and a linear probe shows how well the domain can still be recognised from the embeddings. With `memory=`
each text is tokenized, and embedded for stage 1, once in the whole search.

    python examples/grid_search_corruption_weight.py     # 9 minutes on two cores, in float32
"""

from __future__ import annotations

import argparse
import tempfile

import numpy as np
import pandas as pd
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skmft import MetaFineTunedClassifier
from skmft.datasets import fetch_rated_snippets
from skmft.metrics import domain_report, make_domain_scorer
from skmft.model_selection import DomainStratifiedKFold, FewShotSplit


def probe(estimator: MetaFineTunedClassifier, X: np.ndarray, y: np.ndarray) -> float:
    """How well the domain can be recognised from the embeddings of the validation rows: 0 is chance."""
    domains = [DOMAIN_OF[text] for text in X]
    linear = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    predicted = cross_val_predict(linear, estimator.transform(X), domains, cv=folds)
    return balanced_accuracy_score(domains, predicted, adjusted=True)


DOMAIN_OF: dict[str, str] = {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, default=16, help="training texts of every class in every domain")
    parser.add_argument("--weights", type=float, nargs="+", default=[0, 0.1, 1, 10])
    parser.add_argument("--balances", type=float, nargs="+", default=[0.5])
    parser.add_argument("--figure", default="corruption_weight.png")
    args = parser.parse_args()

    X, y, d = fetch_rated_snippets(return_X_y_domains=True)
    splitter = FewShotSplit(args.shots, n_repeats=1, test_size=800, random_state=0)
    [(train, test)] = splitter.split(X, y, domains=d)
    DOMAIN_OF.update(zip(X[train], d[train]))

    with sklearn.config_context(enable_metadata_routing=True), tempfile.TemporaryDirectory() as memory:
        search = GridSearchCV(
            MetaFineTunedClassifier(random_state=0, memory=memory),
            {"corruption_weight": args.weights, "typicality_balance": args.balances},
            scoring={"macro": make_domain_scorer(), "worst": make_domain_scorer(average="worst"), "probe": probe},
            refit="macro",
            cv=DomainStratifiedKFold(3, shuffle=True, random_state=0),
            error_score="raise",
        )
        search.fit(X[train], y[train], domains=d[train])
        predicted = search.best_estimator_.predict(X[test], domains=d[test])

    results = pd.DataFrame(search.cv_results_)
    columns = ["param_corruption_weight", "param_typicality_balance"]
    columns += [f"{s}_test_{m}" for m in ("macro", "worst", "probe") for s in ("mean", "std")]
    print(results[columns].to_string(index=False, float_format="{:.3f}".format))
    print(f"\nChosen: {search.best_params_}. On {len(test)} test texts, which took no part:\n")
    print(domain_report(y[test], predicted, d[test], digits=3))

    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    best = results.loc[results.groupby("param_corruption_weight")["mean_test_macro"].idxmax()]  # of several balances
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for ax, score, label in zip(
        axes, ("macro", "probe"), ("accuracy, mean over domains", "domain probe (0 is chance)")
    ):
        weights = best["param_corruption_weight"].map("{:g}".format)
        ax.errorbar(weights, best[f"mean_test_{score}"], best[f"std_test_{score}"], marker="o", capsize=3)
        ax.set(xlabel="corruption_weight", ylabel=label)
    figure.savefig(args.figure, dpi=120)
    print(f"\nFigure: {args.figure}")


if __name__ == "__main__":
    main()
