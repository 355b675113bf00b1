"""What tests/test_distributed.py runs in one process and, under torchrun, in two: fits, and what came out, to a file.

python distributed_script.py MODEL OUT
"""

import contextlib
import io
import pickle
import sys
import warnings

import numpy as np
import torch
from conftest import make_texts
from torch import distributed

from skmft import MetaFineTunedClassifier
from skmft.recipes import MetaFineTuning

warnings.simplefilter("error")


def weights(clf):
    tensors = {f"meta {n}": t.numpy().copy() for n, t in clf.meta_learner_.state_dict().items()}
    for domain, own in clf.adapted_weights_.items():
        tensors |= {f"{domain} {n}": t.numpy().copy() for n, t in own.items()}
    return tensors


def fit(model, n, **params):
    """Fit, adapt to a third domain, and predict."""
    X, y, d = make_texts(n, n_domains=2)
    quick = {"meta_epochs": 2, "adaptation_epochs": 2, "batch_size": 16, "precision": "float32", "random_state": 0}
    quick["contrastive_weight"] = 0  # whose partners are those in a process's own part of a batch
    clf = MetaFineTunedClassifier(model, device="cpu", distributed=True, **{**quick, **params})
    clf.fit(X, y, domains=d, sample_weight=np.linspace(0.1, 3, n))
    if clf.adaptation:
        clf.adapt(X[:7], y[:7], domain="music")
    return {
        "seed": clf.seed_,
        "history": [{k: v for k, v in entry.items() if k != "seconds"} for entry in clf.history_],
        "weights": weights(clf),
        "logits": clf.decision_function(X, domains=d),
        "predicted": clf.predict(X, domains=d),
        "rank": distributed.get_rank() if distributed.is_initialized() else 0,
        "world": distributed.get_world_size() if distributed.is_initialized() else 1,
    }


def raised(call):
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def main(model, out):
    results, states = {}, (torch.get_rng_state(), np.random.get_state()[1].copy())
    masks = fit(model, 24, meta_epochs=1, adaptation=None)
    results["with dropout"] = masks
    dropout, torch.nn.functional.dropout = torch.nn.functional.dropout, lambda x, *args, **kwargs: x
    for name, n, params in (
        ("weight 0", 45, {"corruption_weight": 0}),
        ("weight 0.1", 45, {"corruption_weight": 0.1}),
        (
            "batches of one row",
            9,
            {
                **{"batch_size": 1, "optimizer_params": {"max_grad_norm": 0.1}},
                "recipe": MetaFineTuning(corruption_labels="batch"),
            },
        ),
        ("head", 45, {"adaptation": "head"}),
        ("contrastive", 45, {"contrastive_weight": 0.5, "adaptation": None}),
    ):
        results[name] = fit(model, n, **params)
    rank = results["head"]["rank"]

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        results["seed of its own"] = fit(model, 24, meta_epochs=1, random_state=None, verbose=1)
    results["printed"] = printed.getvalue()

    results["other rows"] = raised(lambda: fit(model, 24 + rank))
    results["untouched"] = bool(
        torch.equal(states[0], torch.get_rng_state()) and np.array_equal(states[1], np.random.get_state()[1])
    )
    torch.nn.functional.dropout = dropout
    with open(f"{out}/{rank}", "wb") as file:
        pickle.dump(results, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
