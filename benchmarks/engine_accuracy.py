"""What the fast engine costs in accuracy: the meta-learner as skmft trains it, and by a plain loop.

Both run stages 1 and 2 of the paper's recipe on the same rows of Amazon reviews. The plain loop is float32 throughout, with
transformers' own dropout and attention, batches of 32 rows in random order, and prediction in batches of 32 rows as they come.
Both are scored on the same rows: the frozen test rows and a further sample of those that no draw of the seed holds.
One cell per number of rows and seed; finished cells are skipped.

    python benchmarks/engine_accuracy.py           # runs what is missing, writes results/engine_accuracy.md
    python benchmarks/engine_accuracy.py --verify  # the engine's half of the cells again: the same accuracies?
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pandas as pd
from lib import engine
from lib.cells import Content, code, distinct, parser, start
from lib.report import difference, table, write_page
from lib.statistics import half_interval
from lib.tasks import draw, fit, rows_of

EXTRA_PER_DOMAIN = 600
SET = 8  # seeds that were planned at a time; where more were run, the table also has each set alone


def plain_predictions(train: pd.DataFrame, test: list[str], seed: int) -> np.ndarray:
    """Stages 1 and 2, and prediction, with none of the engine."""
    import torch
    import transformers

    params, optimisation = engine.paper().get_params(), engine.optimiser()
    source = engine.find_encoder(engine.DEFAULT_MODEL)
    tokenizer = engine.load_tokenizer(source, params["max_length"])
    encoder = transformers.AutoModel.from_pretrained(source.folder, dtype=torch.float32, attn_implementation="eager")
    encoder.pooler = None
    classes, y = np.unique(train["y"], return_inverse=True)
    names, d = np.unique(train["domain"], return_inverse=True)
    size = params["batch_size"]

    def batch(texts: list[str]) -> Any:
        return tokenizer(texts, truncation=True, max_length=params["max_length"], padding=True, return_tensors="pt")

    X = train["text"].tolist()
    encoder.eval()
    with torch.no_grad():
        parts = [batch(X[i : i + size]) for i in range(0, len(X), size)]
        E = np.concatenate(
            [engine.pool(encoder(**b).last_hidden_state, b["attention_mask"], "mean").numpy() for b in parts]
        )
    sums = engine.PrototypeSums(len(names), len(classes), 1, E.shape[1])
    sums.add(E, y, d, np.ones(len(y)))
    own, cross = engine.similarities(E, y, d, *sums.prototypes())
    t = engine.normalized_weights(engine.typicality(own, cross, params["typicality_balance"]))

    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model = engine.TextClassifier(encoder, len(classes))
    width, depth = encoder.config.hidden_size, encoder.config.num_hidden_layers
    model.layers, model.heads["corruption"] = [depth - 1], engine.CorruptionHead(width, len(names), 1)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": optimisation["weight_decay"]}, {"params": others, "weight_decay": 0.0}],
        lr=optimisation["learning_rate"],
    )
    epochs = engine.epochs_of(len(X), size)
    steps = epochs * math.ceil(len(X) / size)
    schedule = transformers.get_linear_schedule_with_warmup(
        optimizer, round(optimisation["warmup_steps"] * steps), steps
    )
    recipe = engine.MetaFineTuning(params["corruption_weight"], 0.0)
    model.train()
    for _ in range(epochs):
        order, z = rng.permutation(len(X)), rng.permutation(d)
        for rows in np.array_split(order, range(size, len(X), size)):
            inputs = batch([X[i] for i in rows])
            columns = {"y": y[rows], "weight": t[rows], "domain": d[rows], "corrupted": z[rows]}
            tensors = {name: torch.from_numpy(np.asarray(values)) for name, values in columns.items()}
            terms = recipe.terms(model, model(**inputs), tensors)
            corruption_weight, corruption_loss = terms["corruption_loss"]
            optimizer.zero_grad()
            (terms["label_loss"] + corruption_weight * corruption_loss).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), optimisation["max_grad_norm"])
            optimizer.step()
            schedule.step()
    model.eval()
    with torch.no_grad():
        logits = [model.label_logits(**batch(test[i : i + size])) for i in range(0, len(test), size)]
    return classes[torch.cat(logits).argmax(1).numpy()]


def rows(shots: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Training rows, and those that both are scored on."""
    pool, frozen = rows_of("amazon")
    train, rest = draw(pool, shots, seed)
    extra = rest.groupby("domain").sample(EXTRA_PER_DOMAIN, random_state=seed)
    return train, pd.concat([frozen, extra], ignore_index=True)


def by_engine(train: pd.DataFrame, seed: int) -> Any:
    return fit(engine.paper(adaptation=None, random_state=seed), train)


def verify(name: str, then: Content) -> bool:
    """Whether today's engine has the accuracy of the cell, to the last digit; the plain loop is not run."""
    train, test = rows(then["shots"], then["seed"])
    now = float((by_engine(train, then["seed"]).predict(test["text"]) == test["y"]).mean())
    same = now == then["accuracy"]["fast"]
    word = "the same" if same else "DIFFERENT"
    print(f"{name}: {word}, {now} (code {code()}; machine then {then['machine']})", flush=True)
    return same


def run(shots: int, seed: int) -> Content:
    train, test = rows(shots, seed)
    begin = time.perf_counter()
    fast = by_engine(train, seed)
    predicted = {"fast": fast.predict(test["text"])}
    middle = time.perf_counter()
    predicted["plain"] = plain_predictions(train, test["text"].tolist(), seed)
    return {
        "n_test": len(test),
        "accuracy": {name: float((p == test["y"]).mean()) for name, p in predicted.items()},
        "seconds": {"fast": middle - begin, "plain": time.perf_counter() - middle},
        "precision": f"torch.{engine.precision()}",
    }


def by_set(seeds: Iterable[int]) -> dict[int, list[int]]:
    return {i: list(some) for i, some in itertools.groupby(sorted(seeds), key=lambda seed: seed // SET)}


def groups(cells: list[Content]) -> Iterator[tuple[int, list[Content]]]:
    """The table's rows: of every number of shots each set of seeds, then all of them."""
    for shots in sorted({c["shots"] for c in cells}):
        own = {c["seed"]: c for c in cells if c["shots"] == shots}
        sets = list(by_set(own).values())
        for seeds in [*sets, *([sorted(own)] if len(sets) > 1 else [])]:
            yield shots, [own[seed] for seed in seeds]


def report(cells: list[Content], seeds: int) -> list[str]:
    body = []
    for shots, some in groups(cells):
        fast, plain = (100 * np.array([c["accuracy"][k] for c in some]) for k in ("fast", "plain"))
        low = (fast - plain).mean() - half_interval(fast - plain)
        spans = ", ".join(f"{min(seeds)} to {max(seeds)}" for seeds in by_set(c["seed"] for c in some).values())
        figures = [f"{fast.mean():.2f}", f"{plain.mean():.2f}", difference(fast - plain, digits=2), f"{low:+.2f}"]
        body.append([shots, f"{len(some)} ({spans})", *figures])
    return [
        "# What the fast engine costs in accuracy",
        "",
        f"`python benchmarks/engine_accuracy.py --seeds {seeds}`: meta-learner by the paper's recipe (all-MiniLM-L6-v2) on "
        "Amazon reviews, trained by skmft's engine (bfloat16 kernels, batches of similar length, no dropout inside "
        f"attention) and by a plain float32 loop; both scored on {cells[0]['n_test']} reviews a seed (800 frozen test rows and "
        "others that the seed's draw does not hold). Accuracy in percent; difference with its 95% t interval over seeds. "
        f"Machine: {distinct(cells, 'machine', '; ')}.",
        "",
        *table(["labelled a domain", "seeds", "engine", "plain loop", "difference", "lower end"], body),
    ]


def main() -> None:
    options = parser(__doc__, "engine_accuracy")
    options.add_argument("--shots", type=int, nargs="+", default=[50, 200])
    options.add_argument("--seeds", type=int, default=8)
    options.add_argument("--only", type=int, nargs="+", help="run these seeds only (to share the work among processes)")
    options.add_argument(
        "--verify", action="store_true", help="run the engine's half of finished cells again, and compare"
    )
    args = options.parse_args()
    start()
    if args.verify:
        some = {n: c for n, c in args.cells.read().items() if c["shots"] in args.shots}
        same = [verify(n, c) for n, c in some.items() if not args.only or c["seed"] in args.only]
        sys.exit(0 if same and all(same) else 1)
    for seed, shots in itertools.product(args.only or range(args.seeds), args.shots):
        args.cells.complete(run, {"shots": shots, "seed": seed})
    cells = [c for c in args.cells.read().values() if c["seed"] < args.seeds]
    write_page("engine_accuracy", report(cells, args.seeds))


if __name__ == "__main__":
    main()
