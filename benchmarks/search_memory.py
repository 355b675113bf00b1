"""What `memory=` saves in a search, and whether a search's candidates leave memory behind.

A search over 12 candidates (4 corruption weights x 3 balances) and 3 folds, with and without `memory=`, on Amazon reviews
with 24 labelled a domain; two epochs and no adaptation, so that stage 1 is a visible part of each fit.

    python benchmarks/search_memory.py      # writes results/search_memory.md
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import sklearn
from sklearn.model_selection import GridSearchCV
from tasks import HERE, draw, machine, paper, split

from skmft.metrics import make_domain_scorer
from skmft.model_selection import DomainStratifiedKFold

GRID = {"corruption_weight": [0, 0.1, 1, 10], "typicality_balance": [0.0, 0.5, 1.0]}
SCORER = make_domain_scorer()


def resident() -> float:
    """Resident memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Watched:
    """The domain scorer, which also notes the resident memory and stage 1's seconds after every fit."""

    def __init__(self):
        self.resident, self.stage1 = [], []

    def get_metadata_routing(self):
        return SCORER.get_metadata_routing()

    def __call__(self, estimator, X, y, domains=None):
        score = SCORER(estimator, X, y, domains=domains)
        self.resident.append(resident())
        self.stage1.append(sum(h["seconds"] for h in estimator.history_ if h["stage"] == "typicality"))
        return score


def search(memory, train):
    watched = Watched()
    clf = paper(meta_epochs=2, adaptation=None, random_state=0, memory=memory)
    folds = DomainStratifiedKFold(3, shuffle=True, random_state=0)
    grid = GridSearchCV(clf, GRID, scoring=watched, cv=folds, refit=False, error_score="raise")
    start = time.perf_counter()
    grid.fit(train["text"].to_numpy(), train["y"], domains=train["domain"])
    return time.perf_counter() - start, watched, grid.cv_results_["mean_test_score"]


def main() -> None:
    train, _ = draw(split("amazon")[0], 24, 0)
    lines = [
        "# `memory=` in a search",
        "",
        f"`python benchmarks/search_memory.py`: 12 candidates x 3 folds, {len(train)} Amazon reviews, all-MiniLM-L6-v2, two "
        f"epochs, no adaptation, one run each in this order. Machine: {machine()}.",
        "",
        "| | seconds of the search | seconds of stage 1, 36 fits | RSS after candidate 1 (MiB) | after candidate 12 | ratio |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    with sklearn.config_context(enable_metadata_routing=True), tempfile.TemporaryDirectory() as folder:
        search(None, train.head(64))  # warm up
        for name, memory in (
            ("without", None),
            ("with, empty at first", folder),
            ("with, filled by an earlier run", folder),
        ):
            seconds, watched, _ = search(memory, train)
            first, last = watched.resident[2], watched.resident[-1]
            lines.append(
                f"| {name} | {seconds:.1f} | {sum(watched.stage1):.1f} | {first:.0f} | {last:.0f} | {last / first:.2f} |"
            )
            print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    (HERE / "results" / "search_memory.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
