"""Markdown of the reports."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from .cells import HERE, Cells, Content
from .statistics import FEWEST_UNITS, Column, Score, half_interval, units

RESULTS = HERE / "results"


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]]) -> list[str]:
    """Lines of a table. An empty cell is "", two blanks wide, or None, one blank wide."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return ["|" + "".join(" |" if cell is None else f" {cell} |" for cell in line) for line in lines]


def plus_minus(values: Sequence[float], drawn: Sequence[Any] | None = None, digits: int = 1, sign: str = "") -> str:
    """Mean ± half of its 95% t interval; without the half for one value, empty for none."""
    if not len(values):
        return ""
    half = half_interval(values, drawn)
    return f"{np.mean(values):{sign}.{digits}f}" + ("" if math.isnan(half) else f" ± {half:.{digits}f}")


def difference(values: Sequence[float], digits: int = 1) -> str:
    """The same of paired differences, with a sign."""
    return plus_minus(values, digits=digits, sign="+")


def with_interval(row: Any, bold: bool = True) -> str:
    """A row of `statistics.compare`: the difference and its interval, in bold where it is significant."""
    text = f"{row.difference:+.1f}" + (f" [{row.low:+.1f}, {row.high:+.1f}]" if math.isfinite(row.low) else "")
    return f"**{text}**" if bold and row.holm < 0.05 and row.units >= FEWEST_UNITS else text


def accuracy(column: Column, seeds: dict[int, Score]) -> str:
    """In percent, over seeds; empty for none."""
    return plus_minus([100 * s.accuracy for s in seeds.values()], units(column, seeds))


def write_page(name: str, lines: Iterable[str]) -> None:
    """Write results/<name>.md, and print it."""
    text = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.md").write_text(text)
    print(text)


def write_report(name: str, cells: Cells, report: Callable[[list[Content]], Iterable[str]]) -> None:
    """Write the page that `report` makes of a table; where it cannot, exit with the reason."""
    found = list(cells.read().values())
    if not found:
        raise SystemExit(f"{cells} has no cells; run the script without --report first")
    try:
        write_page(name, report(found))
    except ValueError as error:
        raise SystemExit(str(error)) from error
