"""A loss of one's own as a recipe: CORAL, for a domain that training has not seen.

CORAL (B. Sun, K. Saenko, "Deep CORAL", ECCV Workshops 2016) draws the means and covariances of the domains' embeddings
together. Its weight is searched by holding out each training domain in turn; the last domain takes no part in that. With so
few rows the search is noisy, and CORAL need not win: on one draw of rated snippets it did not.

    python examples/own_loss.py     # with --synthetic it needs no data
"""

import argparse

import pandas as pd
import torch
from sklearn.model_selection import GridSearchCV

from skmft import MetaFineTunedClassifier
from skmft.datasets import fetch_rated_snippets, make_multi_domain_texts
from skmft.model_selection import FewShotSplit, LeaveOneDomainOut
from skmft.recipes import Recipe


class Coral(Recipe):
    """The label loss, and how far every domain's mean and covariance are from those of the average domain."""

    def __init__(self, weight=1.0):
        self.weight = weight

    def columns(self, rows):
        return {"domain": rows.domains}

    def terms(self, model, output, batch):
        groups = [output.embedding[batch["domain"] == k] for k in batch["domain"].unique()]
        moments = (torch.stack([z.mean(0) for z in groups]), torch.stack([z.T.cov(correction=0) for z in groups]))
        distance = sum((m - m.mean(0)).square().mean() for m in moments)
        return {**super().terms(model, output, batch), "coral": (self.weight, distance)}


def main() -> None:
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--synthetic", action="store_true", help="made-up texts in place of rated snippets")
    parser.add_argument("--model", default=MetaFineTunedClassifier().model)
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0, 10.0, 100.0])
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    X, y, d = make_multi_domain_texts(999) if args.synthetic else fetch_rated_snippets(return_X_y_domains=True)
    [(train, test)] = FewShotSplit(8, n_repeats=1, test_size=400, random_state=0).split(X, y, domains=d)
    new, train = d[test] == max(d), train[d[train] != max(d)]
    folds = list(LeaveOneDomainOut().split(X[train], y[train], domains=d[train]))
    table = pd.DataFrame(index=["known domains", f"{max(d)} (new)"])
    for name, recipe in {"default": None, "label loss alone": Recipe(), "CORAL": Coral()}.items():
        settings = {"meta_epochs": args.epochs, "adaptation": None, "random_state": 0}
        clf = MetaFineTunedClassifier(args.model, recipe=recipe, **settings)
        clf = search = GridSearchCV(clf, {"recipe__weight": args.weights}, cv=folds) if name == "CORAL" else clf
        right = clf.fit(X[train], y[train], domains=d[train]).predict(X[test]) == y[test]
        table[name] = [right[~new].mean(), right[new].mean()]
    scores = dict(zip(args.weights, search.cv_results_["mean_test_score"].round(3).tolist()))
    print(f"Accuracy on {len(test)} texts:\n\n{table.T.round(3)}\n\nCORAL by weight, on held-out domains: {scores}")


if __name__ == "__main__":
    main()
