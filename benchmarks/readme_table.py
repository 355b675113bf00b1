"""The README's table of few shots: make a reduced form of it on this machine, or write it from the full grid's cells.

    python benchmarks/readme_table.py              # 4 of its 6 columns, 2 of its 5 seeds; can be stopped and gone on with
    python benchmarks/readme_table.py --all-rows   # all of its rows, also SetFit's, and on a processor without bfloat16
    python benchmarks/readme_table.py --write      # from the cells of `few_shot.py` into README.md

Its cells are those of `few_shot.py`, one thread each, as many at a time as there are cores; the frozen test rows are the same.
It is made to take less than 30 minutes on two cores: SetFit's rows are left out, and where the processor does not multiply
bfloat16, and the others would take over an hour, only those of TF-IDF, embeddings, Mix, and MFT are run.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import few_shot
import report
from joblib import cpu_count
from tasks import HERE

from skmft.training import has_native_bfloat16, resolve_device

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


def short_table(folder: Path, seeds: list[int], columns: list[tuple[str, ...]] | None = None) -> str:
    """Markdown; mean accuracy over seeds and half of its 95% t interval, both in percent.

    A method of which cells are missing has no figure, a column in which ours has none is left out; both are told below.

    Raises
    ------
    ValueError
        If there is no column.
    """
    scores, _ = report.read(folder)
    given = [report.Column(*column) for column in columns or COLUMNS]
    missing = {column: lacking(scores, column, seeds) for column in given}
    shown = [column for column in given if OURS not in missing[column]]
    if not shown:
        raise ValueError(f"{folder} lacks cells of {few_shot.NAMES[OURS]!r} in every column: {missing}")
    lines = []
    for name, method in ROWS.items():
        values = []
        for column in shown:
            if few_shot.applies(method, column.task) and name not in missing[column]:
                values.append(report.accuracy(column, {s: scores[column][name][s] for s in seeds}))
            else:
                values.append("")
        lines.append([few_shot.NAMES[name], *values])
    text = "\n".join(report.table(["labelled in each domain", *map(str, shown)], lines)) + "\n"
    told = [
        f"{column}, {', '.join(few_shot.NAMES[n].split(':')[0] for n in names)}"
        for column, names in missing.items()
        if names
    ]
    return text + (f"\nNot run yet on all of these seeds: {'; '.join(told)}.\n" if told else "")


def agreement(folder: Path) -> list[str]:
    """How the cells of a folder compare with those that are committed, a line each."""
    lines = []
    for path in sorted(folder.glob("*.json")):
        committed = few_shot.CELLS / path.name
        if not committed.exists():
            continue
        now, then = (json.loads(p.read_text()) for p in (path, committed))
        if (now["train_hash"], now["test_hash"]) != (then["train_hash"], then["test_hash"]):
            lines.append(f"{path.stem}: of other training or test rows")
            continue
        for name, result in now["results"].items():
            old, new = ("".join(r["correct"].values()) for r in (then["results"][name], result))
            differ = sum(a != b for a, b in zip(old, new, strict=True))
            points = 100 * (new.count("1") - old.count("1")) / len(new)
            lines.append(
                f"{path.stem}, {few_shot.NAMES[name]}: {differ} of {len(new)} answers differ, {points:+.1f} points"
            )
    return lines


def lacking(scores: report.Scores, column: report.Column, seeds: list[int]) -> list[str]:
    """Names of which a column lacks a cell."""
    found = scores.get(column, {})
    rows = [name for name in ROWS if few_shot.applies(ROWS[name], column.task)]
    return [name for name in rows if any(s not in found.get(name, {}) for s in seeds)]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="run nothing; write the table of all seeds into README.md")
    parser.add_argument("--all-rows", action="store_true", help="also SetFit's, and also without bfloat16")
    parser.add_argument("--seeds", nargs="+", type=int, default=FEWER, help="default 0 1")
    parser.add_argument("--cells", type=Path, help="folder of the cells' files, in place of cells/readme_table")
    args = parser.parse_args(argv)
    if args.write:
        if BEGIN not in README.read_text() or END not in README.read_text():
            parser.error(f"{README} lacks the lines {BEGIN.strip()!r} and {END!r}, between which the table belongs")
        before, _, rest = README.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        table = short_table(args.cells or few_shot.CELLS, SEEDS)
        README.write_text(f"{before}{BEGIN}{table}{END}{after}")
        print(table)
        return 0
    folder = args.cells or HERE / "cells" / "readme_table"
    if args.all_rows:
        rows = list(ROWS)
    elif has_native_bfloat16(resolve_device("auto")):
        rows = [name for name in ROWS if name not in IN_FLOAT32]
    else:
        rows = list(FEWER_ROWS)
    methods = dict.fromkeys(ROWS[name] for name in rows)
    cells = [few_shot.Cell(task, int(n), m, seed) for task, n in FEWER_COLUMNS for m in methods for seed in args.seeds]
    cells = [cell for cell in cells if few_shot.applies(cell.method, cell.task)]
    options = few_shot.arguments(["--threads", "1", "--jobs", str(cpu_count()), "--cells", str(folder)])
    if few_shot.run(cells, options):
        return 1
    print(short_table(folder, args.seeds, FEWER_COLUMNS))
    if lines := agreement(folder):
        print("Against the committed cells:", *lines, sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
