"""A loss of one's own as a recipe: CORAL, for a domain that training has not seen.

CORAL (B. Sun, K. Saenko, "Deep CORAL", ECCV Workshops 2016) draws the means and covariances of the domains' embeddings
together. Its weight is searched by holding out each training domain in turn; the last domain takes no part in that.

    python examples/own_loss.py     # 2 minutes on two cores; with --synthetic it needs no data
"""

import argparse

import pandas as pd
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from skmft import MetaFineTunedClassifier
from skmft.datasets import fetch_rated_snippets, make_multi_domain_texts
from skmft.model_selection import FewShotSplit, LeaveOneDomainOut
from skmft.recipes import Recipe


class Coral(Recipe):
    """The label loss, and how far the first two moments of each domain are from their mean over domains."""

    def __init__(self, weight=1.0):
        self.weight = weight

    def columns(self, rows):
        return {"domain": rows.domains}

    def terms(self, model, output, batch):
        groups = [output.embedding[batch["domain"] == k] for k in batch["domain"].unique()]
        moments = torch.stack([torch.cat([z.mean(0, keepdim=True), z.T.cov(correction=0)]) for z in groups])
        distance = (moments - moments.mean(0)).square().sum((1, 2)).mean()
        return {**super().terms(model, output, batch), "coral": (self.weight, distance)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--synthetic", action="store_true", help="made-up texts in place of rated snippets")
    parser.add_argument("--model", default=MetaFineTunedClassifier().model)
    parser.add_argument("--shots", type=int, default=8, help="training texts of every class in every domain")
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0, 10.0])
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()

    made = {"n_samples": 1000, "n_domains": 4, "random_state": 0}
    X, y, d = make_multi_domain_texts(**made) if args.synthetic else fetch_rated_snippets(return_X_y_domains=True)
    [(train, test)] = FewShotSplit(args.shots, n_repeats=1, test_size=400, random_state=0).split(X, y, domains=d)
    train = train[d[train] != max(d)]
    default = MetaFineTunedClassifier(args.model, meta_epochs=args.epochs, adaptation=None, random_state=0)
    plain, coral = (clone(default).set_params(recipe=recipe) for recipe in (Recipe(), Coral()))
    folds = list(LeaveOneDomainOut().split(X[train], y[train], domains=d[train]))
    search = GridSearchCV(coral, {"recipe__weight": args.weights}, cv=folds)
    rows = {}
    for name, clf in {"default": default, "label loss alone": plain, "CORAL": search}.items():
        right = pd.Series(clf.fit(X[train], y[train], domains=d[train]).predict(X[test]) == y[test])
        rows[name] = right.groupby(d[test] == max(d)).mean()
    table = pd.DataFrame(rows, index=[False, True]).T.set_axis(["known domains", f"{max(d)} (new)"], axis=1)
    print(f"Accuracy on {len(test)} texts:\n\n{table.round(3)}\n")
    found = search.cv_results_["mean_test_score"].round(3).tolist()
    print(
        f"CORAL's weight: {search.best_params_['recipe__weight']:g}, of {dict(zip(args.weights, found))} on held-out domains."
    )


if __name__ == "__main__":
    main()
