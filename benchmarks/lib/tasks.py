"""Training pools and frozen test sets of the benchmarks, and seeded few-shot draws from the pools.

Tasks: "amazon" and "snippets" (texts), "mnli" and "hypernyms" (pairs; "hypernyms 1", "hypernyms 2", ... deal the terms to
train and test by another seed, as few pairs of vehicles are left in each).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from .cells import HERE, Content

TEST_PER_CELL = {"amazon": 100, "snippets": 100, "mnli": 133, "hypernyms": 150}  # of each class in each domain, at most
SHOWN = {"amazon": "reviews", "mnli": "inference", "hypernyms": "hypernyms"}  # the tasks of most benchmarks, in reports
DOMAINS = {"amazon": 4, "mnli": 5, "hypernyms": 3}
HYPERNYM_SPLITS = 5  # few pairs of vehicles are left in one split of the terms, so seeds take turns among these


def source_of(task: str, seed: int) -> str:
    """The split of a task that a seed has."""
    return f"hypernyms {seed % HYPERNYM_SPLITS}" if task == "hypernyms" else task


def text_hash(text: str) -> str:
    """First 16 hex digits of the text's sha256: its id in the committed lists of test rows."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(task: str) -> pd.DataFrame:
    """Rows of a task without exact repeats: text (and text2), y, domain, group, hash, and the source's part.

    `part` is "test" for rows that the source keeps for testing, "train" for its others, "any" without a split of its own.
    """
    from lib import hypernyms
    from skmft import datasets

    name, split_seed = _parse(task)
    if name == "amazon":
        data = datasets.fetch_amazon_reviews()
        frame = _frame(data, group=np.arange(len(data.data)), part="any")
    elif name == "snippets":
        data = datasets.fetch_rated_snippets()
        frame = _frame(data, group=data.groups, part="any")
    else:
        parts = []
        for part in ("test", "train"):  # of a row in both, the test row stays
            if name == "mnli":
                data = datasets.fetch_mnli_genres(subset="train" if part == "train" else "dev_matched")
            else:
                data = hypernyms.fetch_hypernym_pairs(subset=part, random_state=split_seed)
            parts.append(_frame(data, group=[text_hash(g) for g in data.groups], part=part))
        frame = pd.concat(parts, ignore_index=True)
    texts = text_columns(frame)
    frame = frame.drop_duplicates(texts, ignore_index=True)
    return frame.assign(hash=[text_hash("\t".join(row)) for row in frame[texts].itertuples(index=False)])


def _parse(task: str) -> tuple[str, int]:
    name, _, seed = task.partition(" ")
    if name not in TEST_PER_CELL or (seed and (name != "hypernyms" or not seed.isdigit())):
        raise ValueError(f"task {task!r}; expected one of {list(TEST_PER_CELL)}, or 'hypernyms <split seed>'")
    return name, int(seed or 0)


def _frame(data: Any, group: Sequence[Any], part: str) -> pd.DataFrame:
    texts = {"text": data.data} if data.data.ndim == 1 else {"text": data.data[:, 0], "text2": data.data[:, 1]}
    return pd.DataFrame({**texts, "y": data.target, "domain": data.domains, "group": group, "part": part})


def text_columns(frame: pd.DataFrame) -> list[str]:
    """The columns that hold text: ["text"], or for pairs ["text", "text2"]."""
    return [column for column in ("text", "text2") if column in frame]


def inputs(frame: pd.DataFrame) -> pd.Series | pd.DataFrame:
    """X of a frame's rows, as the classifiers take it: a column of texts, or two of pairs."""
    return frame[text_columns(frame)] if "text2" in frame else frame["text"]


def fit(clf: Any, rows: pd.DataFrame) -> Any:
    """Fit a classifier on a frame's rows."""
    return clf.fit(inputs(rows), rows["y"].to_numpy(), domains=rows["domain"].to_numpy())


def adapt(clf: Any, rows: pd.DataFrame) -> None:
    """Adapt a fitted classifier to every domain of a frame's rows."""
    for domain, own in rows.groupby("domain"):
        clf.adapt(inputs(own), own["y"].to_numpy(), domain)


def split(task: str, freeze: bool = False) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training pool and frozen test set, or with `freeze` a task's first, whose hashes are written to be committed.

    Nothing of a test row is in the pool: no document, no premise and, of term pairs, no term.
    """
    frame = load(task)
    name, split_seed = _parse(task)
    listed = HERE / f"{name}{f'_{split_seed}' if split_seed else ''}_test_hashes.txt"
    candidates = frame[frame["part"] != "train"]
    if not listed.exists() and not freeze:
        raise FileNotFoundError(
            f"{listed} is not there, the list of the test rows of {task!r}; restore it, or call split with freeze=True, "
            "and commit it, where the task never had one."
        )
    if not listed.exists():
        frame_by_hash = candidates.sort_values("hash")  # as good as a random order, and the same everywhere
        cells = frame_by_hash.groupby(["domain", "y"])
        size = cells.size().groupby("domain").min().clip(upper=TEST_PER_CELL[name])  # the rarer class sets both
        test = frame_by_hash[cells.cumcount() < frame_by_hash["domain"].map(size)]
        listed.write_text("\n".join(sorted(test["hash"])) + "\n")
    hashes = set(listed.read_text().split())
    is_test = frame["hash"].isin(hashes) & (frame["part"] != "train")
    if is_test.sum() != len(hashes):
        raise ValueError(
            f"{listed.name}: {len(hashes) - is_test.sum()} of its {len(hashes)} test rows are not in the data, which is of "
            "another edition than the list was made from; get that one, or move the list away and call split with freeze=True "
            "for a new one, whose figures cannot be compared."
        )
    test = frame[is_test]
    held = frame[is_test | (frame["part"] == "test")]
    pool = frame[~frame.index.isin(held.index) & ~frame["group"].isin(set(held["group"]))]
    return pool.reset_index(drop=True), test.reset_index(drop=True)


def never_tested(task: str) -> pd.DataFrame:
    """The pool without the rows that are in a frozen test set of another split of the same task: to try settings on.

    A pair of terms is left out in either order.
    """
    pool, _ = split(task)
    listed = {h for p in HERE.glob(f"{_parse(task)[0]}*_test_hashes.txt") for h in p.read_text().split()}
    known = pool["hash"].isin(listed)
    if "text2" in pool:
        known |= (pool["text2"] + "\t" + pool["text"]).map(text_hash).isin(listed)
    return pool[~known].reset_index(drop=True)


def development_rows(task: str, shots: int, seed: int, per_domain: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training rows, and others of the pool to score settings on; no row is a test row of any split.

    Of hypernyms no term is in both, as it is between the pool and the test rows.
    """
    train, rest = draw(never_tested(source_of(task, seed)), shots, seed)
    if task == "hypernyms":
        rest = without_terms_of(rest, train)
    return train, rest.sample(frac=1, random_state=seed).groupby("domain").head(per_domain)


def without_terms_of(rows: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Pairs of which neither term is in the others' pairs, as between the pool and the test rows of hypernyms."""
    terms = set(others["text"].str.casefold()) | set(others["text2"].str.casefold())
    return rows[~rows["text"].str.casefold().isin(terms) & ~rows["text2"].str.casefold().isin(terms)]


def clusters(task: str, rows: pd.DataFrame) -> pd.Series:
    """What makes rows alike, so that they are resampled together: of term pairs the more general term, else the group."""
    if _parse(task)[0] != "hypernyms":
        return rows["group"]
    reversed_pair = rows["text2"].str.casefold().map(text_hash) == rows["group"]  # a group is the more special term
    return rows["text2"].where(~reversed_pair, rows["text"]).str.casefold()


def digest(hashes: pd.Series) -> str:
    """One hash for many: what tells whether two cells had the same rows."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


def find_clusters(cells: Iterable[Content]) -> dict[str, dict[str, np.ndarray]]:
    """By source and domain the clusters of all test rows that these cells were scored on, in the order of their hashes.

    Raises
    ------
    ValueError
        If the data at hand has other test rows.
    """
    found = {}
    for source, test_hash in sorted({(cell["source"], cell["test_hash"]) for cell in cells}):
        test = split(source)[1].sort_values("hash", ignore_index=True)
        if digest(test["hash"]) != test_hash:
            raise ValueError(f"the cells of {source!r} were scored on other test rows than those of the data at hand")
        by_domain = clusters(source, test).groupby(test["domain"])
        found[source] = {domain: pd.factorize(own)[0] for domain, own in by_domain}
    return found


@cache
def rows_of(source: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`split`, once a process."""
    return split(source)


def draw(pool: pd.DataFrame, per_domain: int | None, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Few-shot training rows, and the rows of the pool that share no group with them.

    Every domain gets `per_domain` rows, or all of them where it is None. Its classes get equally many; what cannot be
    divided goes to one class after another, beginning with another class in each domain.
    """
    rng = np.random.default_rng(seed)
    if per_domain is None:
        rows = pool.index.to_numpy()
    else:
        domains, classes = sorted(pool["domain"].unique()), sorted(pool["y"].unique())
        drawn = []
        for (domain, y), cell in pool.groupby(["domain", "y"]):
            turn = (classes.index(y) - domains.index(domain)) % len(classes)
            number = per_domain // len(classes) + (turn < per_domain % len(classes))
            if number > len(cell):
                raise ValueError(f"{domain}, {y}: {number} rows asked for, the pool has {len(cell)}")
            drawn.append(rng.choice(cell.index, number, replace=False))
        rows = np.concatenate(drawn)
    chosen = pool.loc[rng.permutation(rows)]
    rest = pool.drop(index=chosen.index)
    rest = rest[~rest["group"].isin(set(chosen["group"]))]
    return chosen.reset_index(drop=True), rest.reset_index(drop=True)
