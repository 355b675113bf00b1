"""The README's table of few shots: make a reduced form of it on this machine, or write it from the full grid's cells.

    python benchmarks/readme_table.py              # 4 of its 6 columns, 2 of its 5 seeds; can be stopped and resumed
    python benchmarks/readme_table.py --all-rows   # all of its rows, also SetFit's, and on a processor without bfloat16
    python benchmarks/readme_table.py --write      # from the cells of `few_shot.py` into README.md

Its cells are those of `few_shot.py`, one thread each, as many at a time as there are cores; the frozen test rows are the same.
It is made to take less than 30 minutes on two cores: SetFit's rows are left out, and where the processor does not multiply
bfloat16, and the others would take over an hour, only those of TF-IDF, embeddings, Mix, and MFT are run.
"""

from __future__ import annotations

import sys

import few_shot
import report
from lib import engine
from lib.cells import HERE, Cells, parser
from lib.methods import NAMES, applies
from lib.report import accuracy, table
from lib.statistics import Column, Scores

COLUMNS = [tuple(column.split(":")) for column in few_shot.HEADLINE]  # task, labelled rows a domain
FEWER_COLUMNS = [("amazon", "16"), ("mnli", "256"), ("hypernyms", "16"), ("hypernyms", "64")]  # those that are run here
ROWS = {  # name of what is scored, and the method that gives it
    "tfidf": "tfidf",
    "embeddings": "embeddings",
    "setfit": "setfit",
    "setfit_equal": "setfit_equal",
    "single": "single",
    "trainer": "trainer",
    "mix": "mix",
    "mix_bi": "mix_bi",
    "mtl": "mtl",
    "adv": "adv",
    "paper_adapted": "paper",
    "adapted": "mft",
}
IN_FLOAT32 = ("setfit", "setfit_equal")  # run with --all-rows alone: SetFit's cells are slow on every processor
FEWER_ROWS = ("tfidf", "embeddings", "mix", "adapted")  # run on a processor without bfloat16
OURS = "adapted"
SEEDS = [0, 1, 2, 3, 4]
FEWER = [0, 1]
README = HERE.parent / "README.md"
BEGIN, END = "<!-- few shots: python benchmarks/readme_table.py --write -->\n", "<!-- end of few shots -->"


def short_table(cells: Cells, seeds: list[int], columns: list[tuple[str, ...]] | None = None) -> str:
    """Markdown; mean accuracy over seeds and half of its 95% t interval, both in percent.

    A method of which cells are missing has no figure, a column in which ours has none is left out; both are told below.

    Raises
    ------
    ValueError
        If there is no column.
    """
    scores, _ = report.read(cells)
    given = [Column(*column) for column in columns or COLUMNS]
    missing = {column: lacking(scores, column, seeds) for column in given}
    shown = [column for column in given if OURS not in missing[column]]
    if not shown:
        raise ValueError(f"{cells} lacks cells of {NAMES[OURS]!r} in every column: {missing}")

    def value(name: str, column: Column) -> str:
        if name in missing[column] or not applies(ROWS[name], column.task):
            return ""
        return accuracy(column, {s: scores[column][name][s] for s in seeds})

    rows = [[NAMES[name], *(value(name, column) for column in shown)] for name in ROWS]
    text = "\n".join(table(["labelled in each domain", *shown], rows)) + "\n"
    told = [
        f"{column}, {', '.join(NAMES[n].split(':')[0] for n in names)}" for column, names in missing.items() if names
    ]
    return text + (f"\nNot run yet on all of these seeds: {'; '.join(told)}.\n" if told else "")


def agreement(cells: Cells) -> list[str]:
    """How cells compare with those that are committed, a line each."""
    lines, committed = [], few_shot.TABLE.read()
    for cell, now in cells.read().items():
        if cell not in committed:
            continue
        changes = few_shot.changes(committed[cell], now)
        if changes is None:
            lines.append(f"{cell}: of other training or test rows")
            continue
        for name, change in changes.items():
            count = f"{change.answers} of {change.n} answers differ, {change.points:+.1f} points"
            lines.append(f"{cell}, {NAMES[name]}: {count}")
    return lines


def lacking(scores: Scores, column: Column, seeds: list[int]) -> list[str]:
    """Names of which a column lacks a cell."""
    found = scores.get(column, {})
    rows = [name for name in ROWS if applies(ROWS[name], column.task)]
    return [name for name in rows if any(s not in found.get(name, {}) for s in seeds)]


def main(argv: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument(
        "--write", action="store_true", help="run nothing; write the table of all seeds into README.md"
    )
    options.add_argument("--all-rows", action="store_true", help="also SetFit's, and also without bfloat16")
    options.add_argument("--seeds", nargs="+", type=int, default=FEWER, help="default 0 1")
    options.add_argument("--cells", type=Cells, help="file of the cells, in place of cells/readme_table.jsonl")
    args = options.parse_args(argv)
    if args.write:
        if BEGIN not in README.read_text() or END not in README.read_text():
            options.error(f"{README} lacks the lines {BEGIN.strip()!r} and {END!r}, between which the table belongs")
        before, _, rest = README.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        text = short_table(args.cells or few_shot.TABLE, SEEDS)
        README.write_text(f"{before}{BEGIN}{text}{END}{after}")
        print(text)
        return 0
    import joblib

    cells = args.cells or Cells(HERE / "cells" / "readme_table")
    if args.all_rows:
        rows = list(ROWS)
    elif engine.precision() == "bfloat16":
        rows = [name for name in ROWS if name not in IN_FLOAT32]
    else:
        rows = list(FEWER_ROWS)
    methods = dict.fromkeys(ROWS[name] for name in rows)
    wanted = [
        few_shot.Cell(task, int(n), m, seed)
        for task, n in FEWER_COLUMNS
        for m in methods
        for seed in args.seeds
        if applies(m, task)
    ]
    jobs = str(joblib.cpu_count())
    if few_shot.run(wanted, few_shot.arguments(["--threads", "1", "--jobs", jobs, "--cells", str(cells)])):
        return 1
    print(short_table(cells, args.seeds, FEWER_COLUMNS))
    if lines := agreement(cells):
        print("Against the committed cells:", *lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
