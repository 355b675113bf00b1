"""Training pools and frozen test sets of the benchmarks, and seeded few-shot draws from the pools."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd

from skmft.datasets import fetch_amazon_reviews, fetch_rated_snippets

HERE = Path(__file__).resolve().parent
TEST_PER_CELL = 100  # test rows of every class in every domain: 200 a domain


def text_hash(text: str) -> str:
    """First 16 hex digits of the text's sha256: its id in the committed lists of test rows."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load(task: str) -> pd.DataFrame:
    """Rows of a task without exact repeats: text, y, domain, group, hash."""
    if task == "amazon":
        data = fetch_amazon_reviews()
        group = np.arange(len(data.data))
    else:
        data = fetch_rated_snippets()
        group = data.groups
    frame = pd.DataFrame({"text": data.data, "y": data.target, "domain": data.domains, "group": group})
    frame = frame.drop_duplicates("text", ignore_index=True)
    return frame.assign(hash=[text_hash(t) for t in frame["text"]])


def split(task: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training pool and frozen test set; the first call ever on a task writes the list of test hashes."""
    frame = load(task)
    listed = HERE / f"{task}_test_hashes.txt"
    if not listed.exists():
        frame_by_hash = frame.sort_values("hash")  # as good as a random order, and the same everywhere
        test = frame_by_hash.groupby(["domain", "y"]).head(TEST_PER_CELL)
        listed.write_text("\n".join(sorted(test["hash"])) + "\n")
    hashes = set(listed.read_text().split())
    is_test = frame["hash"].isin(hashes)
    if is_test.sum() != len(hashes):
        raise ValueError(f"{listed.name}: {len(hashes) - is_test.sum()} test rows are not in the data")
    test = frame[is_test]
    pool = frame[~is_test & ~frame["group"].isin(set(test["group"]))]
    return pool.reset_index(drop=True), test.reset_index(drop=True)


def draw(pool: pd.DataFrame, per_domain: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Few-shot training rows, balanced over classes, and the rest of the pool."""
    rng = np.random.default_rng(seed)
    rows = np.concatenate(
        [rng.choice(cell.index, per_domain // 2, replace=False) for _, cell in pool.groupby(["domain", "y"])]
    )
    chosen = pool.loc[rng.permutation(rows)]
    rest = pool.drop(index=chosen.index)
    rest = rest[~rest["group"].isin(set(chosen["group"]))]
    return chosen.reset_index(drop=True), rest.reset_index(drop=True)


def machine() -> str:
    """Processor, cores and library versions, in a line."""
    import torch

    cpu = platform.processor() or platform.machine()
    try:
        listing = subprocess.run(["lscpu"], capture_output=True, text=True).stdout
        cpu = next(line.split(":")[1].strip() for line in listing.splitlines() if "Model name" in line)
    except (OSError, StopIteration):
        pass
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"
