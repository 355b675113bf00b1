"""Few-shot learning curves on the paper's three tasks: one cell per method, number of labelled rows and seed.

Within a cell's task, shots and seed, all methods learn from the same rows and are scored on the same frozen test rows. All
methods that fine-tune take the same number of optimiser steps a model: those of stage 2 at the defaults, batches of 32 rows
(stage 3 comes on top; of "single", every domain's model takes them; "setfit" takes 132, and "exact" 2 epochs). The cheapest
cells come first; finished cells are skipped, so that a run can be stopped at any time and resumed later. `report.py` makes
tables and curves of the cells.

    python benchmarks/few_shot.py --plan                     # what is to do and about how long it takes
    python benchmarks/few_shot.py                            # all of it
    python benchmarks/few_shot.py --shots headline           # two columns of each task, those of the report's means
    python benchmarks/few_shot.py --shots 16 mnli:256        # 16 labelled rows of the tasks that have it, 256 of inference
    python benchmarks/few_shot.py --threads 1 --jobs 2       # two cells at a time, one thread each
    python benchmarks/few_shot.py --verify 3                 # runs 3 finished cells again and compares
    python benchmarks/few_shot.py --against benchmarks/cells/few_shot_again   # compares two machines' cells
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
import pandas as pd
from lib import engine, tasks
from lib.cells import HERE, Cells, Content, code, machine, parser, start
from lib.methods import METHODS, SETFIT_STEPS, Data, Ours, applies, settings
from lib.statistics import bits
from lib.tasks import DOMAINS, digest, draw, source_of

TABLE = Cells(HERE / "cells" / "few_shot")
FEW = (8, 16, 32, 64, 128, "full")
SHOTS = {"amazon": FEW, "mnli": (64, 256, 1000, 4000), "hypernyms": FEW}  # labelled rows per domain
HEADLINE = ("amazon:16", "amazon:64", "mnli:256", "mnli:1000", "hypernyms:16", "hypernyms:64")  # what means are over
ROWS_A_SECOND = {
    "amazon": 28.0,
    "mnli": 70.0,
    "hypernyms": 200.0,
}  # of training on one core (AMD EPYC), plain fine-tuning
STEP = {"paper": 1.4, "mft": 1.4, "trainer": 2.0, "setfit": 3.0, "setfit_equal": 3.0}  # a step's time against that


@dataclass(frozen=True)
class Cell:
    """One training set and one method."""

    task: str
    shots: int | str
    method: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.shots}-{self.method}-{self.seed}"


def plan(args: argparse.Namespace) -> list[Cell]:
    """The cells asked for."""
    return [
        Cell(task, shots, method, seed)
        for task in args.tasks
        for shots in SHOTS[task]
        for method in args.methods
        for seed in args.seeds
        if selected(task, shots, args.shots) and applies(method, task)
    ]


def selected(task: str, shots: int | str, given: list[str] | None) -> bool:
    """Whether `--shots` asks for this column: for all, by its number, by task and number, or among the headline's."""
    name = f"{task}:{shots}"
    return not given or str(shots) in given or name in given or ("headline" in given and name in HEADLINE)


def estimate(cell: Cell, measured: dict[tuple[str, str, str], list[float]], epochs: int | None = None) -> float:
    """CPU seconds that a cell will take: those of finished ones, else by the rows that pass through the encoder."""
    seen = measured.get((cell.task, str(cell.shots), cell.method))
    if seen:
        return float(np.median(seen))
    sizes = {"amazon": 1760, "mnli": 5000, "hypernyms": 21000}
    n_rows = DOMAINS[cell.task] * (sizes[cell.task] if cell.shots == "full" else int(cell.shots))
    if cell.method in ("tfidf", "embeddings"):
        return 5 + n_rows / ROWS_A_SECOND[cell.task] * (cell.method == "embeddings")
    steps = engine.budget(n_rows, epochs=epochs) * (DOMAINS[cell.task] if cell.method == "single" else 1)
    if cell.method == "setfit":
        steps = SETFIT_STEPS
    return 20 + STEP.get(cell.method, 1.0) * 32 * steps / ROWS_A_SECOND[cell.task]


def is_current(cell: Cell, found: Content | None, common: dict[str, Any]) -> bool:
    """Whether a cell is there, made with the settings of now and as many steps."""
    if found is None:
        return False
    if cell.method in ("trainer", "setfit_equal") and found["budget"] != engine.budget(
        found["train_rows"], epochs=common.get("meta_epochs")
    ):
        return False
    return settings(cell.method, cell.seed, common) in ({}, found["settings"])


# ---------------------------------------------------------------------- running


def run_cell(cell: Cell, common: dict[str, Any], pool: pd.DataFrame, test: pd.DataFrame) -> Content:
    """What the table holds of a cell. The bits of `correct` are in the order of the test rows' hashes."""
    train, _ = draw(pool, None if cell.shots == "full" else int(cell.shots), cell.seed)
    test = test.sort_values("hash", ignore_index=True)
    data = Data(train, test, cell.seed, common, {"settings": settings(cell.method, cell.seed, common)})
    ours = isinstance(METHODS[cell.method], Ours)
    if ours or cell.method == "trainer":
        data.about["precision"] = engine.precision()
    wall, cpu = time.perf_counter(), time.process_time()
    results = {}
    for name, (predicted, seconds) in METHODS[cell.method](data).items():
        right = pd.Series(np.asarray(predicted) == test["y"].to_numpy())
        by_domain = dict(list(right.groupby(test["domain"])))
        results[name] = {
            "accuracy": {d: float(own.mean()) for d, own in by_domain.items()},
            "correct": {d: bits(own) for d, own in by_domain.items()},
            "fit_seconds": round(seconds, 2),
        }
    return {
        "task": cell.task,
        "source": source_of(cell.task, cell.seed),
        "shots": cell.shots,
        "method": cell.method,
        "seed": cell.seed,
        "results": results,
        "budget": data.steps,
        **data.about,
        "train_rows": len(train),
        "train_hash": digest(train["hash"].sort_values()),
        "test_hash": digest(test["hash"]),
        "cell_seconds": round(time.perf_counter() - wall, 2),
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "machine": machine(),
        "code": code() if ours else None,  # the others run nothing of skmft's engine
        "versions": versions(cell.method),
    }


def versions(method: str) -> dict[str, str]:
    """Of the packages that matter to a method."""
    setfit = ["sentence-transformers", "setfit"]
    more = {"embeddings": setfit[:1], "trainer": ["accelerate"], "setfit": setfit, "setfit_equal": setfit}
    found = {}
    for name in ["skmft", "torch", "transformers", "scikit-learn", *more.get(method, [])]:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def attempt(cell: Cell, common: dict[str, Any], threads: int | None) -> tuple[Cell, Content | None, str]:
    """A cell with what the table will hold, or with what went wrong. In whatever process this is."""
    start(threads)
    try:
        return cell, run_cell(cell, common, *tasks.rows_of(source_of(cell.task, cell.seed))), ""
    except Exception as error:  # the other cells still count
        return cell, None, f"{cell.name}: {type(error).__name__}: {error}"


def run_cells(todo: list[Cell], common: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """Run cells, keep each as soon as it is finished, and return what failed."""
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    failed: list[str] = []
    parallel = Parallel(n_jobs=args.jobs, return_as="generator_unordered", pre_dispatch="n_jobs")
    runs = parallel(delayed(attempt)(cell, common, args.threads) for cell in todo)
    for cell, content, error in tqdm(runs, total=len(todo), unit="cell"):
        if content is None:
            failed.append(error)
            tqdm.write(error)
            continue
        args.cells.add(cell.name, content)
        scores = [f"{n} {np.mean(list(r['accuracy'].values())):.3f}" for n, r in content["results"].items()]
        tqdm.write(f"{cell.name}: {', '.join(scores)}, {content['cell_seconds']:.0f} s")
    return failed


def show_plan(cells: list[Cell], seconds: dict[Cell, float], n_finished: int) -> None:
    table = pd.DataFrame([{**vars(c), "hours": seconds[c] / 3600} for c in cells])
    print(f"{n_finished} cells are finished, {len(cells)} to do, about {sum(seconds.values()) / 3600:.1f} CPU hours")
    if cells:
        sums = table.groupby(["task", "method"])["hours"].sum().unstack("task", fill_value=0)
        print(sums.assign(all=sums.sum(axis=1)).sort_values("all").to_string(float_format="{:.2f}".format))


# ---------------------------------------------------------------------- comparing two runs


class Change:
    """What became of one result.

    Attributes
    ----------
    n, answers : int
        Test rows, and how many of them are answered otherwise.
    points : float
        Change of the accuracy.
    within, of_rows : float
        Half of the 95% interval of that change, by the changed answers, as in McNemar's test; and half of that of the accuracy
        itself, by its number of test rows.
    """

    def __init__(self, then: Content, now: Content) -> None:
        old, new = (np.array(list("".join(result["correct"].values())), int) for result in (then, now))
        self.n, self.answers = len(new), int((old != new).sum())
        self.points = 100 * float((new - old).mean())
        self.within = 196 * math.sqrt(self.answers) / self.n
        self.of_rows = 196 * math.sqrt(old.mean() * (1 - old.mean()) / self.n)


def changes(then: Content, now: Content) -> dict[str, Change] | None:
    """By name, how two runs of a cell compare; None if they had other rows."""
    if any(then[key] != now[key] for key in ("train_hash", "test_hash")):
        return None
    return {name: Change(then["results"][name], result) for name, result in now["results"].items()}


def describe(found: dict[str, Change], elsewhere: bool) -> tuple[str, int]:
    """What to say of two runs of a cell, and how many of its names differ: in any answer, or in accuracy on another machine."""
    said, differ = [], 0
    for name, change in found.items():
        if not change.answers:
            said.append(f"{name} the same, to the last row")
            continue
        agrees = elsewhere and abs(change.points) <= change.within
        differ += not agrees
        word = f"{'agrees within its interval' if agrees else 'DIFFERENT'}: {change.answers} of {change.n} answers"
        said.append(f"{name} {word}, {change.points:+.2f} points, interval ± {change.within:.2f}")
    return "; ".join(said), differ


def verify(args: argparse.Namespace, cells: list[Cell], common: dict[str, Any]) -> int:
    """Run cells again, drawn at random; how many differ."""
    drawn = np.random.default_rng().choice(len(cells), min(args.verify, len(cells)), replace=False)
    kept, differ = args.cells.read(), 0
    for cell in (cells[i] for i in drawn):
        then = kept[cell.name]
        _, now, error = attempt(cell, common, args.threads)
        if now is None:
            raise RuntimeError(error)
        elsewhere = then["machine"] != now["machine"]
        found = changes(then, now)
        said, count = ("of other training or test rows", 1) if found is None else describe(found, elsewhere)
        differ += count
        print(f"{cell.name}: {said}" + (f" (then on {then['machine']}, now on {now['machine']})" if elsewhere else ""))
    return differ


def against(table: Cells, other: Cells) -> int:
    """Compare the cells of one name in two tables, and print it; 1 if there are none to compare.

    Counted by two intervals: by the changed answers, which another training run changes together, so that more than 5% are
    outside; and that of the accuracy itself, by its number of test rows.
    """
    differ, compared = 0, []
    there = other.read()
    for name, now in table.read().items():
        if name not in there:
            continue
        found = changes(there[name], now)
        if found is None:
            print(f"{name}: of other training or test rows")
            continue
        said, count = describe(found, there[name]["machine"] != now["machine"])
        differ += count
        compared += found.values()
        print(f"{name}: {said}")
    if not compared:
        print(f"{table} and {other} have no cells of one name and of the same rows", file=sys.stderr)
        return 1
    points = [change.points for change in compared]
    beyond = sum(abs(change.points) > change.of_rows for change in compared)
    print(
        f"{len(points)} results: {differ} differ by more than the interval of their changed answers, {beyond} by more than the "
        f"95% interval of their test rows; the mean difference is {np.mean(points):+.2f} points (standard deviation "
        f"{np.std(points):.2f})"
    )
    return 0


# ---------------------------------------------------------------------- command line


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    found = parser(__doc__, "few_shot")
    found.add_argument("--tasks", nargs="+", choices=list(SHOTS), default=list(SHOTS))
    found.add_argument("--shots", nargs="+", help="such as 16, mnli:256, headline; default all")
    found.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    found.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), help="default 0 1 2 3 4")
    found.add_argument("--threads", type=int, help="threads of torch; default all cores")
    found.add_argument("--jobs", type=int, default=1, help="cells at a time, each in a process; give --threads too")
    found.add_argument("--model", help="another encoder than the default; needs --cells of its own")
    found.add_argument("--learning-rate", type=float, help="of everything that is fine-tuned (but SetFit)")
    found.add_argument("--meta-epochs", type=int, help="of the same; default as many as make 60 steps, but 2 at least")
    found.add_argument("--plan", action="store_true", help="only say what is to do")
    found.add_argument("--verify", type=int, metavar="N", help="run N finished cells again and compare")
    found.add_argument("--against", type=Cells, help="only compare --cells with those of another machine in this file")
    args = found.parse_args(argv)
    known = {str(s) for task in args.tasks for s in SHOTS[task]}
    exact = {f"{task}:{s}" for task in args.tasks for s in SHOTS[task]}
    if args.shots and not set(args.shots) <= known | exact | {"headline"}:
        shown = " ".join(sorted(known, key=lambda s: (len(s), s)))
        found.error(f"--shots {' '.join(args.shots)}: the tasks have {shown}")
    if (args.model or args.learning_rate or args.meta_epochs) and args.cells == TABLE:
        found.error("another --model, --learning-rate or --meta-epochs needs another file of --cells")
    return args


def run(wanted: list[Cell], args: argparse.Namespace) -> int:
    """What the command line does, with these cells."""
    common: dict[str, Any] = {"model": args.model or engine.DEFAULT_MODEL}
    common |= {name: given for name in ("learning_rate", "meta_epochs") if (given := getattr(args, name))}
    kept = args.cells.read()
    finished = [cell for cell in wanted if is_current(cell, kept.get(cell.name), common)]
    if args.verify:
        if not finished:
            print(f"{args.cells} has none of these cells with the settings of now", file=sys.stderr)
            return 1
        return min(1, verify(args, finished, common))
    measured: dict[tuple[str, str, str], list[float]] = {}
    for c in kept.values():
        measured.setdefault((c["task"], str(c["shots"]), c["method"]), []).append(c["cpu_seconds"])
    todo = [cell for cell in wanted if cell not in set(finished)]
    seconds = {cell: estimate(cell, measured, args.meta_epochs) for cell in todo}
    todo.sort(key=lambda cell: (seconds[cell], cell.seed, cell.name))
    show_plan(todo, seconds, len(finished))
    if args.plan:
        return 0
    failed = run_cells(todo, common, args)
    if failed:
        print(f"{len(failed)} cells failed", *failed, sep="\n", file=sys.stderr)
    return min(1, len(failed))


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    return against(args.cells, args.against) if args.against else run(plan(args), args)


if __name__ == "__main__":
    import few_shot  # other processes find functions by the module's name, and this one is called __main__

    sys.exit(few_shot.main())
