"""Do the same seeds still give the same models? Predictions of 200 rows by every kind of classifier, stored, then compared.

    git worktree add ../old COMMIT
    PYTHONPATH=../old python benchmarks/same_predictions.py --store old.npz
    python benchmarks/same_predictions.py --compare old.npz

Real weights and data (SKMFT_DATA_HOME), one thread. Exits with 1 where a bit differs.
"""

from __future__ import annotations

import argparse
import sys


def configurations():
    """Name -> a classifier that is not fitted, of names that do not change."""
    from skmft import MetaFineTunedClassifier
    from skmft.baselines import (
        DomainAdversarialClassifier,
        MixedDomainClassifier,
        MultiTaskClassifier,
        SingleDomainClassifier,
    )

    common = {"random_state": 0, "max_length": 48, "device": "cpu"}
    paper = {"learning_rate": 1e-4, "adaptation_learning_rate": 1e-4}
    out = {"defaults": MetaFineTunedClassifier(**common)}
    out["from_paper"] = MetaFineTunedClassifier.from_paper(**common)
    out["from_paper, 1e-4"] = MetaFineTunedClassifier.from_paper(**common, **paper)
    for adaptation in ("head", "lora", None):
        out[f"adaptation={adaptation}"] = MetaFineTunedClassifier(adaptation=adaptation, meta_epochs=4, **common)
    out["balanced, 2 prototypes"] = MetaFineTunedClassifier(
        class_weight="balanced", n_prototypes=2, meta_epochs=2, **common
    )
    for kind in (MixedDomainClassifier, SingleDomainClassifier, MultiTaskClassifier, DomainAdversarialClassifier):
        out[kind.__name__] = kind(epochs=4, **common)
    return out


def rows(kind: str):
    """Training rows and 200 test rows of a task: X, y, domains of each."""
    import numpy as np

    from skmft.datasets import fetch_amazon_reviews, fetch_mnli_genres

    fetch = {"texts": fetch_amazon_reviews, "pairs": fetch_mnli_genres}[kind]
    X, y, d = fetch(return_X_y_domains=True)
    chosen = np.random.default_rng(0).permutation(len(y))[:264]
    X, y, d = (np.asarray(a)[chosen] for a in (X, y, d))
    return (X[:64], y[:64], d[:64]), (X[64:], y[64:], d[64:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--store", metavar="FILE")
    where.add_argument("--compare", metavar="FILE")
    parser.add_argument("--kinds", nargs="+", choices=["texts", "pairs"], default=["texts", "pairs"])
    args = parser.parse_args()
    import numpy as np
    import torch

    torch.set_num_threads(1)
    old = np.load(args.compare) if args.compare else None
    found, different = {}, 0
    for kind in args.kinds:
        (X, y, d), (X_test, _, d_test) = rows(kind)
        for name, clf in configurations().items():
            clf.fit(X, y, domains=d)
            for which, domains in (("by domain", d_test), ("without domains", None)):
                key = f"{kind}, {name}, {which}"
                found[key] = clf.predict_proba(X_test, domains)
                if old is not None:
                    gap = float(np.abs(found[key] - old[key]).max())
                    different += gap > 0
                    print(f"{'the same' if gap == 0 else f'off by {gap:.2e}'}: {key}", flush=True)
    if args.store:
        np.savez(args.store, **found)
    else:
        print(f"{len(found) - different} of {len(found)} the same, bit for bit")
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
