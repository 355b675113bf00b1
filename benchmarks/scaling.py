"""How time and memory grow: with texts, domains and a search's candidates; and stage 1 over a million texts.

Every point runs in a fresh process, `--repeats` times, and is kept in cells/scaling.jsonl; finished ones are skipped.
All points run once before any runs again, so that a machine that is slower for some minutes does not bend a curve.
Texts are synthetic (4 to 16 common words), seeded, and made when they are read, so that no list of them counts as memory.

    python benchmarks/scaling.py                  # writes results/scaling.md and results/scaling.png
    python benchmarks/scaling.py --million        # adds stage 1 over 1,000,000 texts (or --million 100000, and says so)
    python benchmarks/scaling.py --quick          # small sizes, to try it; writes to a temporary folder
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lib import engine
from lib import report as lib_report
from lib.cells import HERE, Cells, Content, distinct, parser
from lib.report import table, write_page

WORDS = (
    "the of and a to in is it that was for on are with as his they be at one have this from or had by hot word but what some "
    "we can out other were all there when up use your how said an each she which do their time if will way about many then "
    "them write would like so these her long make thing see him two has look more day could go come did number sound no most "
    "people over know water than call first who may down side been now find any new work part take get place made live where "
    "after back little only round man year came show every good me give our under name very through just form sentence great"
).split()
STEPS = 20  # training steps of a point that trains on a part of an epoch
SERIES: dict[str, list[int]] = {
    "texts": [1000, 2000, 4000, 8000, 16000, 32000, 64000],
    "domains, full": [1, 2, 4, 8, 16, 32],
    "domains, head": [1, 2, 4, 8, 16, 32],
    "candidates": [1, 2, 4, 8, 16],
}
QUICK = {"texts": [1000, 2000], "domains, full": [1, 2], "domains, head": [1, 2], "candidates": [1, 2]}
ROWS_A_DOMAIN = 64
SEARCH_ROWS = 256
LARGEST = 4  # points of a series, of which the exponent of growth is taken
SMALL = 10_000  # texts that a million are compared with


class SyntheticTexts(Sequence):
    """`n` texts, each a function of its number and the seed alone."""

    block = 1024

    def __init__(self, n: int, seed: int = 0):
        self.n, self.seed = n, seed

    def __len__(self):
        return self.n

    def _make(self, number: int) -> list[str]:
        rng = np.random.default_rng([self.seed, number])
        lengths = rng.integers(4, 17, size=self.block)
        words = iter(rng.integers(len(WORDS), size=lengths.sum()).tolist())
        return [" ".join(WORDS[next(words)] for _ in range(k)) for k in lengths.tolist()]

    def __getitem__(self, key):
        if not isinstance(key, slice):
            return self[key : key + 1 or None][0]
        rows = range(*key.indices(self.n))
        made = {number: self._make(number) for number in sorted({i // self.block for i in rows})}
        return [made[i // self.block][i % self.block] for i in rows]


def labels(n: int, n_domains: int) -> tuple[np.ndarray, np.ndarray]:
    """Classes 0 and 1, domains 0 to K - 1, every pair of them alike."""
    return np.arange(n) % 2, np.arange(n) // 2 % n_domains


def memory(name: str) -> float:
    """VmRSS (now) or VmHWM (most so far) of this process, in MiB."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) / 1024


def reset_peak() -> None:
    """Make VmHWM count from now on."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")


def seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


class Stopped(Exception):
    """Raised where enough is measured."""


def fit_until(n: int, steps: int) -> dict[str, float]:
    """Seconds of a fit up to stage 2, and of its first steps; the resident memory at the end of stage 1."""
    from skorch.callbacks import Callback

    noted: dict[str, float] = {}

    class StopAfter(Callback):
        def on_train_begin(self, net: Any, **kwargs: Any) -> None:
            noted.update(start=time.perf_counter(), resident=memory("VmRSS"), peak=memory("VmHWM"))
            self.left_ = steps
            if not steps:
                raise Stopped

        def on_batch_end(self, net: Any, **kwargs: Any) -> None:
            self.left_ -= 1
            if not self.left_:
                noted["steps"] = time.perf_counter() - noted["start"]
                raise Stopped

    y, d = labels(n, 4)
    clf = engine.paper(random_state=0, callbacks=[StopAfter()])
    start = time.perf_counter()
    try:
        clf.fit(SyntheticTexts(n), y, domains=d)
    except Stopped:
        pass
    return {**noted, "stage1": noted["start"] - start}


def warm_up() -> tuple[float, float]:
    """Seconds of stage 1 of 64 texts, most of it loading, and the resident memory at its end: that of a loaded encoder."""
    fit_until(64, 0)  # loads what is loaded once
    runs = [fit_until(64, 0) for _ in range(3)]
    reset_peak()
    return statistics.median(r["stage1"] for r in runs), max(r["resident"] for r in runs)


def measure_texts(n: int) -> dict[str, Any]:
    constant, base = warm_up()
    noted = fit_until(n, STEPS)
    cell = {"stage 1 (s)": noted["stage1"] - constant, f"{STEPS} steps (s)": noted["steps"]}
    return {**cell, "stage 1, peak (MiB)": noted["peak"] - base}


def measure_domains(n_domains: int, adaptation: str) -> dict[str, Any]:
    n = ROWS_A_DOMAIN * n_domains
    y, d = labels(n, n_domains)
    X = SyntheticTexts(n)
    _, base = warm_up()
    clf = engine.paper(random_state=0, meta_epochs=1, adaptation=adaptation)
    taken = seconds(lambda: clf.fit(X, y, domains=d))
    fitted, peak = memory("VmRSS") - base, memory("VmHWM") - base
    rows = 32 * ROWS_A_DOMAIN  # as many for every K
    mixed = labels(rows, n_domains)[1]
    clf.predict(SyntheticTexts(64), domains=mixed[:64])
    predicting = seconds(lambda: clf.predict(SyntheticTexts(rows), domains=mixed))
    cell = {"fit (s)": taken, f"predict {rows} mixed rows (s)": predicting}
    return {**cell, "fitted (MiB)": fitted, "fit, peak (MiB)": peak}


def measure_candidates(candidates: int) -> dict[str, Any]:
    from sklearn.model_selection import GridSearchCV

    y, d = labels(SEARCH_ROWS, 4)
    frame = pd.DataFrame({"text": SyntheticTexts(SEARCH_ROWS)[:], "domain": d})
    _, base = warm_up()
    with tempfile.TemporaryDirectory() as folder:
        clf = engine.paper(random_state=0, meta_epochs=1, adaptation=None, domain_column="domain", memory=folder)
        grid = {"corruption_weight": np.linspace(0.01, 1, candidates).tolist()}
        search = GridSearchCV(clf, grid, cv=2, refit=False, error_score="raise")
        taken = seconds(lambda: search.fit(frame, y))
    return {"search (s)": taken, "search, peak (MiB)": memory("VmHWM") - base}


def measure_million(n: int) -> dict[str, Any]:
    constant, base = warm_up()
    small = [fit_until(SMALL, 0)["stage1"] - constant for _ in range(3)]
    reset_peak()
    noted = fit_until(n, 0)
    taken, peak = noted["stage1"] - constant, noted["peak"] - base
    small += [fit_until(SMALL, 0)["stage1"] - constant for _ in range(3)]  # machines drift: before and after
    return {
        "texts": n,
        "stage 1 (s)": taken,
        "peak (MiB)": peak,
        "base (MiB)": base,
        "microseconds a text": taken / n * 1e6,
        f"microseconds a text at {SMALL:,}": statistics.median(small) / SMALL * 1e6,
        f"seconds at {SMALL:,}": small,
        "ratio": (taken / n) / (statistics.median(small) / SMALL),
    }


def measure(series: str, x: int) -> dict[str, Any]:
    if series.startswith("domains"):
        return measure_domains(x, series.split(", ")[1])
    return {"texts": measure_texts, "candidates": measure_candidates, "million": measure_million}[series](x)


def in_fresh_process(series: str, x: int) -> Content:
    command = [sys.executable, __file__, "--point", series, str(x)]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {"values": json.loads(run.stdout.splitlines()[-1])}


def run_point(cells: Cells, series: str, x: int, repeat: int) -> Content:
    """One point: the finished cell, or a new one."""
    return cells.complete(
        in_fresh_process, {"series": series, "x": x}, name=f"{series.replace(', ', '_')}_{x}_{repeat}"
    )


def growth(runs: dict[int, list[float]]) -> tuple[float, float]:
    """Exponent of growth over the largest points, 1 for linear, and half of its 95% interval: a line through the logarithms."""
    from scipy import stats

    found = [(np.log(x), np.log(max(y, 1e-9))) for x in sorted(runs)[-LARGEST:] for y in runs[x]]
    fitted = stats.linregress(*zip(*found))
    half = fitted.stderr * stats.t.ppf(0.975, len(found) - 2) if len(found) > 2 else math.nan
    return float(fitted.slope), float(half)


def medians(runs: dict[int, list[dict[str, float]]]) -> dict[int, dict[str, float]]:
    return {x: {name: statistics.median(run[name] for run in some) for name in some[0]} for x, some in runs.items()}


def report(
    runs: dict[str, dict[int, list[dict[str, float]]]], big: dict[str, Any] | None, about: list[str]
) -> list[str]:
    lines = ["# Cost growth", "", *about]
    for series, by_x in runs.items():
        xs, middle, rows = list(by_x), medians(by_x), []
        for name in middle[xs[0]]:
            values = [middle[x][name] for x in xs]
            slope, intercept = np.polyfit(xs, values, 1)
            exponent, half = growth({x: [run[name] for run in some] for x, some in by_x.items()})
            shown = [f"{v:.2f}" if "(s)" in name else f"{v:.0f}" for v in values]
            rows.append([name, *shown, f"{slope:.3g}", f"{intercept:.3g}", f"{exponent:.2f} ± {half:.2f}"])
        one = {"texts": "a text", "candidates": "a candidate"}.get(series, "a domain")
        lines += ["", f"## {series}", "", *table([None, *(f"{x:,}" for x in xs), one, "at 0", "exponent"], rows)]
    if big is not None:
        n = big["texts"]
        extrapolated = "" if n >= 10**6 else f" A million would take {big['microseconds a text']:.0f} s (extrapolated)."
        lines += [
            "",
            f"## Stage 1 over {n:,} texts",
            "",
            f"{big['stage 1 (s)']:.0f} s, {big['microseconds a text']:.0f} microseconds a text against "
            f"{big[f'microseconds a text at {SMALL:,}']:.0f} at {SMALL:,} texts (median of 6 runs in the same process, "
            f"before and after): ratio {big['ratio']:.3f}. Peak resident memory {big['peak (MiB)']:.0f} MiB over the "
            f"{big['base (MiB)']:.0f} MiB of the process with the encoder loaded.{extrapolated}",
        ]
    return lines


def draw(points: dict[str, dict[int, dict[str, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(12, 6.5), layout="constrained")
    for column, kind in enumerate(("texts", "domains", "candidates")):
        for row, unit in enumerate(("(s)", "(MiB)")):
            axis = axes[row, column]
            for series in (s for s in points if s.startswith(kind)):
                by_x = points[series]
                for name in (n for n in next(iter(by_x.values())) if unit in n):
                    label = name.replace(unit, "").strip() + series.removeprefix(kind)
                    axis.plot(list(by_x), [v[name] for v in by_x.values()], marker="o", label=label)
            axis.set(xlabel=kind, ylabel="seconds" if row == 0 else "MiB over the loaded encoder")
            axis.margins(y=0.25)  # room for the legend
            axis.set_xlim(0)
            axis.set_ylim(0)
            axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--million", type=int, nargs="?", const=10**6, metavar="TEXTS")
    options.add_argument("--quick", action="store_true")
    options.add_argument("--point", nargs=2, metavar=("SERIES", "X"), help=argparse.SUPPRESS)
    args = options.parse_args()
    if args.point:
        print(json.dumps(measure(args.point[0], int(args.point[1]))))
        return
    cells, sizes = Cells(HERE / "cells" / "scaling"), SERIES
    if args.quick:
        lib_report.RESULTS = Path(tempfile.mkdtemp())
        cells, sizes, args.repeats, args.million = Cells(lib_report.RESULTS / "scaling"), QUICK, 1, 40_000
    points = [(repeat, series, x) for repeat in range(args.repeats) for series, xs in sizes.items() for x in xs]
    found = [run_point(cells, series, x, repeat) for repeat, series, x in points]
    runs: dict[str, dict[int, list[dict[str, float]]]] = {series: {x: [] for x in xs} for series, xs in sizes.items()}
    for (_, series, x), cell in zip(points, found):
        runs[series][x].append(cell["values"])
    big = None
    if args.million:
        found.append(run_point(cells, "million", args.million, 0))
        big = found[-1]["values"]
    command = f"python benchmarks/scaling.py --repeats {args.repeats}"
    command += f" --million {args.million}" if args.million else ""
    about = [
        f"`{command}`: all-MiniLM-L6-v2 by the paper's recipe, synthetic texts of 4 to 16 common words; every point in "
        f"a fresh process, median of {args.repeats} runs (all points once, then all again). Seconds of stage 1 contain "
        "reading and tokenizing the texts, but not the constant of a fit (of 64 texts: loading weights, mostly). Memory is "
        "resident memory over that of the same process at the end of stage 1 of 64 texts, the encoder loaded. "
        f"Texts: 4 domains. Domains: {ROWS_A_DOMAIN} rows each, one epoch of "
        f"stage 2, stage 3 at its defaults. Candidates: values of `corruption_weight`, {SEARCH_ROWS} rows, 2 folds, "
        "one epoch, `memory=`. "
        f"Machine: {distinct(found, 'machine', '; ')}.",
        "",
        "The last three columns: slope and intercept of the least-squares line through the medians, and the exponent of growth "
        "(1 is linear): the slope, with its 95% interval, of a line through the logarithms of all runs of the "
        f"{LARGEST} largest points.",
        "",
        "![Time and memory against texts, domains and candidates](scaling.png)",
    ]
    write_page("scaling", report(runs, big, about))
    draw({series: medians(by_x) for series, by_x in runs.items()}, lib_report.RESULTS / "scaling.png")
    print(lib_report.RESULTS / "scaling.md")


if __name__ == "__main__":
    main()
