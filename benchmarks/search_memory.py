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
from typing import Any

import pandas as pd
from lib import engine, tasks
from lib.cells import machine, parser
from lib.report import table, write_page

GRID = {"corruption_weight": [0, 0.1, 1, 10], "typicality_balance": [0.0, 0.5, 1.0]}


def resident() -> float:
    """Resident memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Watched:
    """The domain scorer, which also notes the resident memory and stage 1's seconds after every fit."""

    def __init__(self) -> None:
        self.scorer = engine.make_domain_scorer()
        self.resident: list[float] = []
        self.stage1: list[float] = []

    def get_metadata_routing(self) -> Any:
        return self.scorer.get_metadata_routing()

    def __call__(self, estimator: Any, X: Any, y: Any, domains: Any = None) -> float:
        score = self.scorer(estimator, X, y, domains=domains)
        self.resident.append(resident())
        self.stage1.append(sum(h["seconds"] for h in estimator.history_ if h["stage"] == "typicality"))
        return score


def search(memory: str | None, train: pd.DataFrame) -> tuple[float, Watched]:
    from sklearn.model_selection import GridSearchCV

    watched = Watched()
    clf = engine.paper(meta_epochs=2, adaptation=None, random_state=0, memory=memory)
    folds = engine.DomainStratifiedKFold(3, shuffle=True, random_state=0)
    grid = GridSearchCV(clf, GRID, scoring=watched, cv=folds, refit=False, error_score="raise")
    start = time.perf_counter()
    grid.fit(train["text"].to_numpy(), train["y"], domains=train["domain"])
    return time.perf_counter() - start, watched


def main() -> None:
    parser(__doc__).parse_args()
    import sklearn

    train, _ = tasks.draw(tasks.split("amazon")[0], 24, 0)
    rows = []
    with sklearn.config_context(enable_metadata_routing=True), tempfile.TemporaryDirectory() as folder:
        search(None, train.head(64))  # warm up
        for name, memory in (
            ("without", None),
            ("with, empty at first", folder),
            ("with, filled by an earlier run", folder),
        ):
            seconds, watched = search(memory, train)
            first, last = watched.resident[2], watched.resident[-1]
            figures = [
                f"{seconds:.1f}",
                f"{sum(watched.stage1):.1f}",
                f"{first:.0f}",
                f"{last:.0f}",
                f"{last / first:.2f}",
            ]
            rows.append([name, *figures])
            print(*rows[-1], flush=True)
    head = [
        "",
        "seconds of the search",
        "seconds of stage 1, 36 fits",
        "RSS after candidate 1 (MiB)",
        "after candidate 12",
    ]
    write_page(
        "search_memory",
        [
            "# `memory=` in a search",
            "",
            f"`python benchmarks/search_memory.py`: 12 candidates x 3 folds, {len(train)} Amazon reviews, all-MiniLM-L6-v2, "
            f"two epochs, no adaptation, one run each in this order. Machine: {machine()}.",
            "",
            *table([*head, "ratio"], rows),
        ],
    )


if __name__ == "__main__":
    main()
