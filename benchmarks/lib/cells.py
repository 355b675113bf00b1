"""Finished cells: one `.jsonl` file per table, one line per cell, kept as soon as the cell is finished."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import platform
import subprocess
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
Content = dict[str, Any]


class Cells:
    """The finished cells of one table.

    A line is JSON, with the cell's name under "cell". Of several lines of one name the last counts, so a cell that is run again
    replaces the old one. Lines are appended whole while the file is locked: several processes can share a table, and what a
    killed process left of a line is removed by the next that writes.

    Parameters
    ----------
    path : str or Path
        The file; ".jsonl" may be left out.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path if path.suffix == ".jsonl" else path.with_name(f"{path.name}.jsonl")

    def __str__(self) -> str:
        return str(self.path)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cells) and self.path.resolve() == other.path.resolve()

    def read(self) -> dict[str, Content]:
        """All cells, in the order of their names."""
        if not self.path.exists():
            return {}
        *lines, _ = self.path.read_bytes().split(b"\n")  # what follows the last line's end was left by a killed process
        cells = {}
        for number, line in enumerate(lines, 1):
            try:
                cell = json.loads(line)
                cells[cell["cell"]] = with_todays_names(cell)
            except (ValueError, KeyError) as error:
                raise ValueError(
                    f"{self.path}, line {number} is not a cell in JSON ({error}); remove the line, and run the script again"
                ) from error
        return dict(sorted(cells.items()))

    def add(self, name: str, content: Content) -> None:
        """Append a cell: all of its line is there, or nothing that counts."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if end := file.seek(0, os.SEEK_END):
                file.seek(end - 1)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)
            file.write(json.dumps({**content, "cell": name}).encode() + b"\n")

    def complete(
        self,
        make: Callable[..., Content],
        keys: Content,
        name: str | None = None,
        current: Callable[[Content], bool] = lambda cell: True,
        show: Callable[[Content], Any] = lambda cell: cell,
    ) -> Content:
        """The cell of these keys: the one that is there if it is `current`, else one made, stamped, kept and printed now.

        `make` is called with the keys, which the cell holds, too; its name is made of them.
        """
        name = name or "-".join(str(value).replace(" ", "_") for value in keys.values())
        cell = self.read().get(name)
        if cell is None or not current(cell):
            cell = {**keys, **make(**keys), **stamp()}
            self.add(name, cell)
            print(name, show(cell), flush=True)
        return cell


def with_todays_names(cell: Content) -> Content:
    """A cell whose settings are called as skmft's parameters are now, if it is older than they."""
    if "weight_decay" not in cell.get("settings", {}) or "batch_size" not in cell["settings"]:
        return cell  # of now, or another package's
    settings = dict(cell["settings"])

    def changed(defaults: Content) -> Content:
        """What parameters that are gone had instead of their defaults."""
        given = {name: settings.pop(name, default) for name, default in defaults.items()}
        return {name: value for name, value in given.items() if value != defaults[name]}

    settings["optimizer_params"] = changed({"weight_decay": 0.01, "warmup_ratio": 0.1, "max_grad_norm": 1.0}) or None
    settings["unknown_domain"] = settings["unknown_domain"].replace("meta", "ignore")
    if "meta_epochs" in settings:
        settings["lora_config"] = changed({"lora_rank": 8, "lora_alpha": 16, "lora_target_modules": None}) or None
    recipe = changed({"corruption_layers": [-1], "corruption_labels": "epoch", "contrastive_temperature": 0.1})
    given = [f"{name}={tuple(value) if isinstance(value, list) else value!r}" for name, value in recipe.items()]
    settings["recipe"] = f"MetaFineTuning({', '.join(given)})" if given else None
    changed({"adversarial_weight": 0.1, "adversarial_schedule": "ramp"})  # no cell has other values
    return {**cell, "settings": settings}


def made_with(settings: Content) -> Callable[[Content], bool]:
    """Whether a cell has these settings."""
    return lambda cell: cell["settings"] == settings


def plain(value: Any) -> Any:
    """The value as a file would give it back."""
    return json.loads(json.dumps(value, default=str))


# ---------------------------------------------------------------------- where a cell was made


def stamp() -> Content:
    return {"machine": machine(), "code": code()}


@cache
def code() -> str:
    """Git's id of the folder skmft/, followed by "+" if its files differ from that commit's; "unknown" without git.

    `git rev-parse --short=12 HEAD:skmft` gives the same id at the commit where a cell was made.
    """

    def git(*command: str) -> str:
        return subprocess.run(["git", *command], cwd=HERE.parent, capture_output=True, text=True, check=True).stdout

    try:
        return git("rev-parse", "--short=12", "HEAD:skmft").strip() + "+" * bool(git("status", "--porcelain", "skmft"))
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> str:
    """Processor, threads and torch's version, in a line."""
    import torch

    cpu = platform.processor() or platform.machine()
    try:
        listing = subprocess.run(["lscpu"], capture_output=True, text=True).stdout
        about = dict(map(str.strip, line.split(":", 1)) for line in listing.splitlines() if ":" in line)
        # one name may stand for processors of which one multiplies bfloat16 twice as fast as the other
        cpu = f"{about['Model name']} (family {about['CPU family']}, model {about['Model']})"
    except (OSError, KeyError):
        pass
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{cpu}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}"


def distinct(cells: Iterable[Content], key: str, separator: str) -> str:
    """The values that cells have under a key, each once: of "machine", of "code"."""
    return separator.join(sorted({cell[key] for cell in cells}))


# ---------------------------------------------------------------------- command lines


def parser(doc: str | None, table: str | None = None, report: bool = False) -> argparse.ArgumentParser:
    """An argument parser that shows the script's docstring, with --cells where there is a table, and --report."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if table:
        default = Cells(HERE / "cells" / table)
        found.add_argument("--cells", type=Cells, default=default, help="file of the cells, .jsonl")
    if report:
        found.add_argument("--report", action="store_true", help="run nothing; write the tables of the cells there are")
    return found


def start(threads: int | None = None) -> None:
    """Before cells are run in this process: less noise, and torch's threads."""
    import logging

    import torch
    import transformers

    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if threads:
        torch.set_num_threads(threads)
