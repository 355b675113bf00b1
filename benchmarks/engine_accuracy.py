"""What the fast engine costs in accuracy: the meta-learner as skmft trains it, and by a plain loop.

Both run stages 1 and 2 of the paper's recipe on the same rows of Amazon reviews. The plain loop is float32 throughout, with
transformers' own dropout and attention, batches of 32 rows in random order, and prediction in batches of 32 rows as they come.
Both are scored on the same rows: the frozen test rows and a further sample of those that no draw of the seed holds.
One JSON file a cell (rows a domain x seed); finished cells are skipped.

    python benchmarks/engine_accuracy.py           # runs what is missing, writes results/engine_accuracy.md
    python benchmarks/engine_accuracy.py --verify  # the engine's half of the cells again: the same accuracies?
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import os
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
import transformers
from scipy import stats
from tasks import CODE, HERE, draw, machine, paper, split

from skmft import MetaFineTunedClassifier
from skmft.corruption import CorruptionHead, MetaFineTuningLoss
from skmft.networks import DEFAULT_MODEL, TextClassifier, find_encoder, load_tokenizer, pool
from skmft.stages import META_EPOCHS
from skmft.training import auto_epochs
from skmft.typicality import class_domain_prototypes, normalized_weights, similarities, typicality

CELLS = HERE / "cells" / "engine_accuracy"
EXTRA_PER_DOMAIN = 600
SET = 8  # seeds that were planned at a time; where more were run, the table also has each set alone


def plain_predictions(train: pd.DataFrame, test: list[str], seed: int) -> np.ndarray:
    """Stages 1 and 2, and prediction, with none of the engine."""
    params: dict[str, Any] = paper().get_params()
    source = find_encoder(DEFAULT_MODEL)
    tokenizer = load_tokenizer(source, params["max_length"])
    encoder = transformers.AutoModel.from_pretrained(source.folder, dtype=torch.float32, attn_implementation="eager")
    encoder.pooler = None
    classes, y = np.unique(train["y"], return_inverse=True)
    names, d = np.unique(train["domain"], return_inverse=True)
    size, weight = params["batch_size"], params["corruption_weight"]

    def batch(texts: list[str]) -> Any:
        return tokenizer(texts, truncation=True, max_length=params["max_length"], padding=True, return_tensors="pt")

    X = train["text"].tolist()
    encoder.eval()
    with torch.no_grad():
        parts = [batch(X[i : i + size]) for i in range(0, len(X), size)]
        E = np.concatenate([pool(encoder(**b).last_hidden_state, b["attention_mask"], "mean").numpy() for b in parts])
    prototypes, shares = class_domain_prototypes(E, y, d, n_classes=len(classes), n_domains=len(names))
    t = normalized_weights(typicality(*similarities(E, y, d, prototypes, shares), params["typicality_balance"]))

    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = TextClassifier(encoder, len(classes))
    model.corruption_head = CorruptionHead(
        encoder.config.hidden_size, len(names), [encoder.config.num_hidden_layers - 1]
    )
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": params["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=params["learning_rate"],
    )
    epochs = auto_epochs(len(X), size, **META_EPOCHS)
    steps = epochs * math.ceil(len(X) / size)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, round(params["warmup_ratio"] * steps), steps)
    loss = MetaFineTuningLoss(weight)
    model.train()
    for _ in range(epochs):
        order, z = rng.permutation(len(X)), rng.permutation(d)
        for rows in np.array_split(order, range(size, len(X), size)):
            inputs = batch([X[i] for i in rows])
            columns = {"weight": t[rows], "domain": d[rows], "corrupted": z[rows]}
            tensors = {name: torch.from_numpy(np.asarray(values)) for name, values in columns.items()}
            terms = loss(model(**inputs, domain=tensors["domain"]), torch.from_numpy(y[rows]), tensors)
            optimizer.zero_grad()
            terms["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), params["max_grad_norm"])
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        logits = [model.label_logits(**batch(test[i : i + size])) for i in range(0, len(test), size)]
    return classes[torch.cat(logits).argmax(1).numpy()]


def rows(shots: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training rows, and those that both are scored on."""
    pool_, frozen = split("amazon")
    train, rest = draw(pool_, shots, seed)
    extra = rest.groupby("domain").sample(EXTRA_PER_DOMAIN, random_state=seed)
    return train, pd.concat([frozen, extra], ignore_index=True)


def engine(train: pd.DataFrame, seed: int) -> MetaFineTunedClassifier:
    return paper(adaptation=None, random_state=seed).fit(train["text"], train["y"], domains=train["domain"])


def verify(shots: int, seed: int) -> bool:
    """Whether today's engine has the accuracy of the cell, to the last digit; the plain loop is not run."""
    then = json.loads((CELLS / f"{shots}-{seed}.json").read_text())
    train, test = rows(shots, seed)
    now = float((engine(train, seed).predict(test["text"]) == test["y"]).mean())
    same = now == then["accuracy"]["fast"]
    word = "the same" if same else "DIFFERENT"
    print(f"{shots}-{seed}: {word}, {now} (code {CODE}; machine then {then['machine']})", flush=True)
    return same


def cell(shots: int, seed: int) -> dict[str, Any]:
    train, test = rows(shots, seed)
    start = time.perf_counter()
    fast = engine(train, seed)
    predicted = {"fast": fast.predict(test["text"])}
    middle = time.perf_counter()
    predicted["plain"] = plain_predictions(train, test["text"].tolist(), seed)
    return {
        "shots": shots,
        "seed": seed,
        "n_test": len(test),
        "accuracy": {name: float((p == test["y"]).mean()) for name, p in predicted.items()},
        "seconds": {"fast": middle - start, "plain": time.perf_counter() - middle},
        "precision": str(fast.net_.dtype),
        "machine": machine(),
        "code": CODE,
    }


def by_set(seeds: Iterable[int]) -> dict[int, list[int]]:
    return {i: list(some) for i, some in itertools.groupby(sorted(seeds), key=lambda seed: seed // SET)}


def groups(cells: list[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """The table's rows: of every number of shots each set of seeds, then all of them."""
    for shots in sorted({c["shots"] for c in cells}):
        own = {c["seed"]: c for c in cells if c["shots"] == shots}
        sets = list(by_set(own).values())
        for seeds in [*sets, *([sorted(own)] if len(sets) > 1 else [])]:
            yield shots, [own[seed] for seed in seeds]


def report(seeds: int) -> str:
    cells = [json.loads(p.read_text()) for p in sorted(CELLS.glob("*.json"))]
    cells = [c for c in cells if c["seed"] < seeds]
    machines = "; ".join(sorted({c["machine"] for c in cells}))
    lines = [
        "# What the fast engine costs in accuracy",
        "",
        f"`python benchmarks/engine_accuracy.py --seeds {seeds}`: meta-learner by the paper's recipe (all-MiniLM-L6-v2) on "
        "Amazon reviews, trained by skmft's engine (bfloat16 kernels, batches of similar length, no dropout inside "
        f"attention) and by a plain float32 loop; both scored on {cells[0]['n_test']} reviews a seed (800 frozen test rows and "
        "others that the seed's draw does not hold). Accuracy in percent; difference with its 95% t interval over seeds. "
        f"Machine: {machines}.",
        "",
        "| labelled a domain | seeds | engine | plain loop | difference | lower end |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for shots, some in groups(cells):
        fast, plain = (100 * np.array([c["accuracy"][k] for c in some]) for k in ("fast", "plain"))
        half = stats.t.ppf(0.975, len(some) - 1) * stats.sem(fast - plain) if len(some) > 1 else math.nan
        mean = (fast - plain).mean()
        spans = ", ".join(f"{min(seeds)} to {max(seeds)}" for seeds in by_set(c["seed"] for c in some).values())
        lines.append(
            f"| {shots} | {len(some)} ({spans}) | {fast.mean():.2f} | {plain.mean():.2f} | {mean:+.2f} ± {half:.2f} "
            f"| {mean - half:+.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", type=int, nargs="+", default=[50, 200])
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--only", type=int, nargs="+", help="run these seeds only (to share the work among processes)")
    parser.add_argument(
        "--verify", action="store_true", help="run the engine's half of finished cells again and compare"
    )
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    if args.verify:
        named = [tuple(map(int, path.stem.split("-"))) for path in sorted(CELLS.glob("*.json"))]
        same = [verify(*c) for c in named if c[0] in args.shots and (not args.only or c[1] in args.only)]
        sys.exit(0 if same and all(same) else 1)
    CELLS.mkdir(parents=True, exist_ok=True)
    for seed in args.only or range(args.seeds):
        for shots in args.shots:
            path = CELLS / f"{shots}-{seed}.json"
            if not path.exists():
                result = cell(shots, seed)
                partial = path.with_suffix(".partial")
                partial.write_text(json.dumps(result))
                os.replace(partial, path)
                print(path.name, result["accuracy"], result["seconds"], flush=True)
    text = report(args.seeds)
    (HERE / "results" / "engine_accuracy.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
