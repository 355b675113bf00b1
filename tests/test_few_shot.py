"""The few-shot benchmark: its cells, and the report that is made of them."""

import argparse
import dataclasses
import itertools
import multiprocessing
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from conftest import BENCHMARKS, import_benchmarks, make_texts
from scipy import stats


@pytest.fixture(scope="module")
def b():
    """The modules of the benchmark."""
    names = ["few_shot", "report", "readme_table", *(f"lib.{n}" for n in ("cells", "engine", "methods", "tasks"))]
    found = import_benchmarks(*names, "lib.statistics", "lib.report")
    return SimpleNamespace(
        **dict(zip([n.removeprefix("lib.") for n in names], found)), statistics=found[-2], markdown=found[-1]
    )


def make_rows(n, seed):
    X, y, d = make_texts(n, seed=seed, n_domains=4)
    group = [f"{seed} {i}" for i in range(n)]
    return pd.DataFrame(
        {"text": [f"{x} {g}" for x, g in zip(X, group)], "y": y, "domain": d, "group": group, "hash": group}
    )


@pytest.fixture
def quick(b, monkeypatch):
    """A method that takes no time and is right on half of the rows: "tfidf"."""

    def predict(data):
        return {"tfidf": (np.where(data.test.index % 2, data.test["y"], "wrong"), 0.0)}

    monkeypatch.setitem(b.methods.METHODS, "tfidf", predict)


@pytest.fixture
def bench(b, tiny, tmp_path, monkeypatch):
    """The benchmark on small data, by a tiny encoder in two epochs: called like its command line."""
    monkeypatch.setattr(b.tasks, "rows_of", lambda source: (make_rows(96, 0), make_rows(32, 1)))
    monkeypatch.setattr(b.few_shot, "start", lambda threads: None)
    cells = b.cells.Cells(tmp_path / "cells")

    def run(*args, methods=("mix",), shots=("8",), seeds=("0",), tasks=("amazon",), epochs="2"):
        options = {"tasks": tasks, "methods": methods, "shots": shots, "seeds": seeds}
        given = [part for name, values in options.items() for part in (f"--{name}", *values)]
        given += ["--meta-epochs", epochs] if epochs else []
        return b.few_shot.main([*given, "--model", tiny, "--cells", str(cells), *args]), cells.read()

    run.cells = cells
    return run


# ---------------------------------------------------------------------- a table of cells


def test_cells_are_kept_in_lines_and_the_last_of_a_name_counts(b, tmp_path):
    table = b.cells.Cells(tmp_path / "folder" / "table")
    assert table.read() == {} and table == b.cells.Cells(str(tmp_path / "folder" / "table.jsonl"))
    for name, value in (("b", 1), ("a", 0.1), ("b", None)):
        table.add(name, {"value": value, "text": "two\nlines, ü"})
    assert list(table.read()) == ["a", "b"]
    assert [c["value"] for c in table.read().values()] == [0.1, None]
    assert all(c["text"] == "two\nlines, ü" for c in table.read().values())
    assert len(table.path.read_text().splitlines()) == 3


def test_what_a_killed_run_left_of_a_line_is_lost_alone(b, tmp_path):
    table = b.cells.Cells(tmp_path / "table.jsonl")
    table.add("a", {"value": 1})
    whole = table.path.read_bytes()
    for cut in range(1, len(whole)):
        table.path.write_bytes(whole + whole[:-cut])
        assert list(table.read()) == ["a"]
        table.add("b", {"value": 2})
        assert {n: c["value"] for n, c in table.read().items()} == {"a": 1, "b": 2}
    table.path.write_bytes(whole + b"{}\n")
    with pytest.raises(ValueError, match=r"table.jsonl, line 2 is not a cell"):
        table.read()


def _add_many(path, name, cells):
    for i in range(100):
        cells.Cells(path).add(f"{name} {i}", {"value": "x" * 5000})


def test_processes_share_a_table(b, tmp_path):
    path = tmp_path / "table.jsonl"
    writers = [
        multiprocessing.get_context("fork").Process(target=_add_many, args=(path, name, b.cells)) for name in "abc"
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = b.cells.Cells(path).read()
    assert len(found) == 300 and all(c["value"] == "x" * 5000 for c in found.values())


def test_cells_are_completed_once_and_made_again_if_they_are_not_current(b, tmp_path, capsys):
    table, asked = b.cells.Cells(tmp_path / "table"), []

    def make(task, seed):
        asked.append((task, seed))
        return {"settings": {"rate": 1}}

    keys = {"task": "new domain", "seed": 3}
    for rate, calls in ((1, 1), (1, 1), (2, 2)):
        cell = table.complete(make, keys, current=b.cells.made_with({"rate": rate}))
        assert len(asked) == calls and cell["seed"] == 3 and cell["machine"] and cell["code"]
    assert list(table.read()) == ["new_domain-3"]
    table.complete(make, keys, name="other")
    assert set(table.read()) == {"new_domain-3", "other"}


def test_older_cells_are_read_with_todays_names(b):
    made = {"batch_size": 32, "weight_decay": 0.01, "warmup_ratio": 0.2, "max_grad_norm": 1.0, "unknown_domain": "meta"}
    assert b.cells.with_todays_names({"settings": made})["settings"] == {
        "batch_size": 32,
        "optimizer_params": {"warmup_ratio": 0.2},
        "unknown_domain": "ignore",
        "recipe": None,
    }
    ours = {**made, "warmup_ratio": 0.1, "meta_epochs": "auto", "lora_rank": 8, "lora_alpha": 16}
    ours |= {"lora_target_modules": None, "contrastive_temperature": 0.1, "corruption_labels": "epoch"}
    for layers, recipe in (([-1], None), ([2, 5], "MetaFineTuning(corruption_layers=(2, 5))")):
        assert b.cells.with_todays_names({"settings": {**ours, "corruption_layers": layers}})["settings"] == {
            "batch_size": 32,
            "unknown_domain": "ignore",
            "meta_epochs": "auto",
            "optimizer_params": None,
            "lora_config": None,
            "recipe": recipe,
        }


def test_committed_cells_are_of_todays_settings(b):
    """So that a run skips them; they are compared as a run compares them."""
    common = {"model": b.engine.DEFAULT_MODEL}
    for name, found in b.few_shot.TABLE.read().items():
        cell = b.few_shot.Cell(*(found[key] for key in ("task", "shots", "method", "seed")))
        assert cell.name == name and b.few_shot.is_current(cell, found, common)


def test_help_needs_neither_torch_nor_skmft():
    """So that it comes at once; a script that starts to run, or fails, shows it."""
    scripts = sorted(p.stem for p in BENCHMARKS.glob("*.py"))
    code = f"""
import importlib, sys
sys.path.insert(0, {str(BENCHMARKS)!r})
for name in {scripts}:
    sys.argv = [name, "--help"]
    try:
        importlib.import_module(name).main()
    except SystemExit as end:
        assert end.code == 0
print(sorted({{"torch", "skmft", "transformers", "sklearn", "scipy"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("usage: ") == len(scripts) and run.stdout.endswith("\n[]\n")


# ---------------------------------------------------------------------- cells


def test_plan(b, capsys):
    args = b.few_shot.arguments(["--shots", "16", "64", "256", "1000"])
    cells = b.few_shot.plan(args)
    n = len(b.few_shot.METHODS)  # SetFit, twice, is for reviews, mix_bi for pairs; inference has 64 shots, too
    assert len(cells) == len(set(cells)) == ((n - 1) * 2 + (n - 2) * 5) * 5
    assert {c.task for c in cells if c.method.startswith("setfit")} == {"amazon"}
    assert {c.task for c in cells if c.method == "mix_bi"} == {"mnli", "hypernyms"}
    assert {c.shots for c in cells if c.task == "mnli"} == {64, 256, 1000}
    assert {b.tasks.source_of("hypernyms", seed) for seed in range(7)} == {f"hypernyms {i}" for i in range(5)}
    for given, expected in (
        (["headline"], set(b.few_shot.HEADLINE)),
        (["mnli:256", "16"], {"mnli:256", "amazon:16", "hypernyms:16"}),
        (["full"], {"amazon:full", "hypernyms:full"}),
    ):
        asked = b.few_shot.plan(b.few_shot.arguments(["--shots", *given]))
        assert {f"{c.task}:{c.shots}" for c in asked} == expected
    for wrong in (["--shots", "7"], ["--model", "other"], ["--learning-rate", "1e-5"], ["--meta-epochs", "3"]):
        with pytest.raises(SystemExit):
            b.few_shot.arguments(wrong)
    assert "needs another file" in capsys.readouterr().err


@pytest.mark.slow
def test_cells_are_run_once_and_resumed(b, bench, capsys):
    methods = ("tfidf", "mix", "single", "mft")
    code, cells = bench(methods=methods)
    assert code == 0
    assert sorted(cells) == sorted(f"amazon-8-{m}-0" for m in methods)
    for cell in cells.values():
        for result in cell["results"].values():
            assert sorted(result["correct"]) == ["books", "dvd", "kitchen", "music"]
            for domain, right in result["correct"].items():
                assert len(right) == 8
                assert result["accuracy"][domain] == right.count("1") / 8
    assert len({c["train_hash"] for c in cells.values()}) == 1
    assert list(cells["amazon-8-mft-0"]["results"]) == ["meta", "adapted"]
    assert cells["amazon-8-mix-0"]["steps"] == cells["amazon-8-mix-0"]["budget"] == 2
    assert cells["amazon-8-single-0"]["steps"] == 4 * 2
    capsys.readouterr()
    _, again = bench(methods=methods)
    assert again == cells
    assert "4 cells are finished, 0 to do" in capsys.readouterr().out
    # what was left out is run; what was made with other settings is run again
    bench.cells.path.unlink()
    for name, cell in cells.items():
        if "-mft-" not in name:
            bench.cells.add(name, {**cell, "settings": {"learning_rate": 1} if "-mix-" in name else cell["settings"]})
    _, again = bench(methods=methods)
    assert "2 cells are finished, 2 to do" in capsys.readouterr().out
    for name, cell in cells.items():
        assert {n: r["correct"] for n, r in again[name]["results"].items()} == {
            n: r["correct"] for n, r in cell["results"].items()
        }


@pytest.mark.parametrize("method", ["trainer", "setfit_equal"])
def test_cells_of_another_budget_are_run_again(b, method):
    cell = b.few_shot.Cell("amazon", 16, method, 0)
    found = {"settings": b.methods.settings(method, 0, {"model": "x"}), "budget": 60, "train_rows": 64}
    assert b.few_shot.is_current(cell, found, {"model": "x"})
    assert not b.few_shot.is_current(cell, {**found, "budget": 80}, {"model": "x"})
    assert not b.few_shot.is_current(cell, None, {"model": "x"})


@pytest.mark.slow
@pytest.mark.parametrize(("method", "package"), [("trainer", "accelerate"), ("setfit_equal", "setfit")])
def test_other_packages_take_as_many_steps(bench, method, package):
    pytest.importorskip(package, reason=f"needs {package}, of the extra bench")
    for epochs, steps in ((None, 60), ("3", 3)):
        _, cells = bench(methods=(method,), epochs=epochs)
        cell = cells[f"amazon-8-{method}-0"]
        assert cell["steps"] == cell["budget"] == steps
    assert sum(map(len, cell["results"][method]["correct"].values())) == 32


def test_seeds_and_shots_draw_their_own_rows(bench, quick):
    _, cells = bench(methods=("tfidf",), shots=("8", "16", "full"), seeds=("0", "1"))
    hashes = {name: c["train_hash"] for name, c in cells.items()}
    assert len({h for n, h in hashes.items() if "full" not in n}) == 4
    assert hashes["amazon-full-tfidf-0"] == hashes["amazon-full-tfidf-1"]
    assert cells["amazon-full-tfidf-0"]["train_rows"] == 96
    assert len({c["test_hash"] for c in cells.values()}) == 1


def test_a_failure_leaves_the_other_cells(b, bench, monkeypatch, capsys):
    def broken(data):
        raise RuntimeError("no luck")

    monkeypatch.setitem(b.methods.METHODS, "tfidf", broken)
    code, cells = bench(methods=("tfidf", "mix"))
    assert code == 1
    assert list(cells) == ["amazon-8-mix-0"]
    assert "amazon-8-tfidf-0: RuntimeError: no luck" in capsys.readouterr().err


def test_a_plan_runs_nothing(bench, capsys):
    code, cells = bench("--plan", methods=("mix", "single"))
    assert code == 0 and not cells
    out = capsys.readouterr().out
    assert "0 cells are finished, 2 to do" in out and "single" in out


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SKMFT_DATA_HOME"), reason="needs SKMFT_DATA_HOME")
def test_cells_in_processes_are_those_of_one_process(b, tmp_path):
    found = {}
    for jobs in ("1", "2"):
        options = f"--tasks amazon --shots 16 --methods tfidf --seeds 0 1 --jobs {jobs} --cells".split()
        subprocess.run([sys.executable, BENCHMARKS / "few_shot.py", *options, tmp_path / jobs], check=True)
        cells = b.cells.Cells(tmp_path / jobs).read()
        found[jobs] = {n: (c["train_hash"], c["results"]["tfidf"]["correct"]) for n, c in cells.items()}
    assert len(found["1"]) == 2
    assert found["1"] == found["2"]


def with_correct(cell, name, domain, change):
    """The cell with other right answers of one result in one domain."""
    result = cell["results"][name]
    correct = {**result["correct"], domain: change(result["correct"][domain])}
    return {**cell, "results": {**cell["results"], name: {**result, "correct": correct}}}


def flip(right, n=1):
    return "".join("1" if x == "0" else "0" for x in right[:n]) + right[n:]


def test_verify_runs_a_cell_again(bench, quick, capsys):
    _, cells = bench(methods=("tfidf",))
    assert bench("--verify", "1", methods=("tfidf",))[0] == 0
    assert "the same, to the last row" in capsys.readouterr().out
    cell = with_correct(cells["amazon-8-tfidf-0"], "tfidf", "books", flip)
    for change, code, said in (
        ({}, 1, "DIFFERENT: 1 of 32 answers"),
        ({"machine": "another"}, 0, "agrees within its interval: 1 of 32 answers"),
        ({"train_hash": "other"}, 1, "of other training or test rows"),
    ):
        bench.cells.add("amazon-8-tfidf-0", {**cell, **change})
        assert bench("--verify", "1", methods=("tfidf",))[0] == code
        assert said in capsys.readouterr().out
    bench.cells.path.unlink()
    assert bench("--verify", "1")[0] == 1
    assert "has none of these cells" in capsys.readouterr().err


def test_cells_of_two_machines_are_compared(b, bench, quick, tmp_path, capsys):
    _, cells = bench(methods=("tfidf",))
    other = b.cells.Cells(tmp_path / "again")
    [(name, cell)] = cells.items()
    cell = {**cell, "machine": "another"}
    right = cell["results"]["tfidf"]["correct"]
    n, total = sum(map(len, right.values())), sum(x.count("1") for x in right.values())
    for flips in (1, len(right["books"])):  # of one domain's answers
        changed = with_correct(cell, "tfidf", "books", lambda x, flips=flips: flip(x, flips))
        other.add(name, changed)
        assert bench("--against", str(other), methods=("tfidf",))[0] == 0
        out = capsys.readouterr().out
        there = total - right["books"].count("1") + changed["results"]["tfidf"]["correct"]["books"].count("1")
        points, within = 100 * (total - there) / n, 196 * flips**0.5 / n
        assert f"{flips} of {n} answers, {points:+.2f} points, interval ± {within:.2f}" in out
        assert ("agrees within its interval" in out) == (abs(points) <= within)
        beyond = abs(points) > 196 * (there / n * (1 - there / n) / n) ** 0.5
        assert f"1 results: {int(abs(points) > within)} differ by more than the interval of their changed" in out
        assert f"{int(beyond)} by more than the 95% interval of their test rows" in out
    other.add(name, {**cell, "train_hash": "other"})
    assert bench("--against", str(other))[0] == 1
    assert "amazon-8-tfidf-0: of other training or test rows" in capsys.readouterr().out
    assert bench("--against", str(tmp_path / "none"))[0] == 1
    assert "have no cells of one name and of the same rows" in capsys.readouterr().err


def test_pair_features(b, monkeypatch):
    known = {("m", "a"): np.array([1.0, 2.0]), ("m", "b"): np.array([3.0, -1.0])}
    monkeypatch.setattr(b.methods, "_embedded", known)
    got = b.methods.embed(pd.DataFrame({"text": ["a", "b"], "text2": ["b", "b"]}), "m")
    np.testing.assert_array_equal(got, [[1, 2, 3, -1, 2, 3, 3, -2], [3, -1, 3, -1, 0, 0, 9, 1]])


# ---------------------------------------------------------------------- report


def make_cells(chance, shots=(16, 64), seeds=range(4), n=40, task="amazon"):
    """Cells whose methods are right with the given chance, on rows that are easy or hard for all."""
    cells, rng = {}, np.random.default_rng(0)
    hard = {d: rng.uniform(-0.3, 0.1, n) for d in ("a", "b")}
    for count, seed in itertools.product(shots, seeds):
        for method, names in chance.items():
            results = {}
            for name, p in names.items():
                right = {d: (rng.random(n) < p + hard[d]).astype(int) for d in hard}
                results[name] = {
                    "accuracy": {d: float(v.mean()) for d, v in right.items()},
                    "correct": {d: "".join(map(str, v)) for d, v in right.items()},
                    "fit_seconds": 1.0,
                }
            cell = {"task": task, "source": task, "shots": count, "method": method, "seed": seed, "results": results}
            cell |= {"budget": 60, "steps": 60, "train_rows": 2 * count}
            cell |= {"settings": {"model": "m", "random_state": seed}, "precision": "float32" if seed else "bfloat16"}
            cell |= {"train_hash": f"{count} {seed}", "test_hash": "t", "machine": "one", "versions": {"torch": "2"}}
            cells[f"{task}-{count}-{method}-{seed}"] = cell
    return cells


@pytest.fixture
def written(b, tmp_path):
    """Writer of a table of such cells."""

    def write(cells, name="cells"):
        table = b.cells.Cells(tmp_path / name)
        table.path.unlink(missing_ok=True)
        for cell, content in cells.items():
            table.add(cell, content)
        return table

    return write


CHANCE = {"mft": {"meta": 0.9, "adapted": 0.9}, "mix": {"mix": 0.9}, "single": {"single": 0.6}}


def test_holm_by_hand(b):
    np.testing.assert_allclose(b.statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(b.statistics.holm([0.5, 0.9]), [1.0, 1.0])


def test_t_interval_by_hand(b):
    assert b.statistics.half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / 3**0.5)
    assert np.isnan(b.statistics.half_interval([1.0]))


@pytest.mark.parametrize("size", [1, 4])
def test_bootstrap_is_the_plain_one(b, written, size):
    """Intervals agree with a loop that draws seeds and, shared by both methods and all seeds, rows or clusters of rows."""
    scores, _ = b.report.read(written(make_cells(CHANCE, shots=(16,))))
    column = b.statistics.Column("amazon", "16")
    members = [np.arange(0, 8), *np.arange(8, 40).reshape(-1, size)] if size > 1 else np.arange(40)[:, None]
    together = np.concatenate([np.full(len(m), i) for i, m in enumerate(members)])
    frame = b.statistics.compare(scores, "adapted", {"amazon": dict.fromkeys("ab", together)} if size > 1 else None)
    frame = frame[frame["column"] == column].set_index("other")
    for other in ("mix", "single"):
        got = frame.loc[other]
        ours, theirs = scores[column]["adapted"], scores[column][other]
        rng, by_rows, by_seeds = np.random.default_rng(5), [], []
        change = np.array([100 * (ours[s].accuracy - theirs[s].accuracy) for s in ours])
        for _ in range(2000):
            rows = {
                d: np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]) for d in "ab"
            }
            gaps = [
                ours[s].correct[d][rows[d]].mean() - theirs[s].correct[d][rows[d]].mean() for d in rows for s in ours
            ]
            by_rows.append(100 * np.mean(gaps))
            by_seeds.append(change[rng.integers(4, size=4)].mean())
        variances = np.var(by_rows), np.var(by_seeds) * 4 / 3
        sizes = np.array([len(m) for m in members])
        freedoms = 2 * (sizes.sum() ** 2 / (sizes**2).sum() - 1), 3
        freedom = sum(variances) ** 2 / sum(v**2 / f for v, f in zip(variances, freedoms))
        error = np.sqrt(sum(variances))
        half = stats.t.ppf(0.975, freedom) * error
        assert got["difference"] == pytest.approx(change.mean(), abs=1e-9)
        np.testing.assert_allclose([got["low"], got["high"]], change.mean() + np.array([-half, half]), rtol=0.05)
        p = 2 * stats.t.sf(abs(change.mean()) / error, freedom)
        assert got["p"] == pytest.approx(p, rel=0.6, abs=0.01)
        assert got[["win", "tie", "loss"]].sum() == 8
    frame = b.statistics.compare(scores, "adapted").sort_values("p", kind="stable")
    p, n = frame["p"].tolist(), len(frame)
    expected = [min(1, max((n - j) * p[j] for j in range(i + 1))) for i in range(n)]  # Holm, step by step
    np.testing.assert_allclose(frame["holm"], expected)
    frame = frame[frame["column"] == column].set_index("other")
    assert frame.loc["single", "holm"] < frame.loc["mix", "holm"]


def test_clusters_are_those_of_the_rows_that_were_scored(b, monkeypatch):
    test = pd.DataFrame({"text": list("abcd"), "text2": ["Tree", "fish", "tree", "tree"], "group": [7, 8, 7, 9]})
    test = test.assign(y="other", domain=["x", "x", "x", "z"], hash=["3", "2", "1", "0"])
    monkeypatch.setattr(b.tasks, "split", lambda source: (None, test))
    cells = [{"source": s, "test_hash": b.tasks.digest(test["hash"].sort_values())} for s in ("hypernyms 2", "mnli")]
    found = b.tasks.find_clusters(cells)
    assert {s: {d: v.tolist() for d, v in by.items()} for s, by in found.items()} == {
        "hypernyms 2": {"x": [0, 1, 0], "z": [0]},
        "mnli": {"x": [0, 1, 0], "z": [0]},
    }
    test["group"] = [b.tasks.text_hash("tree"), "x", "y", "z"]  # the first pair is a reversed one
    monkeypatch.setattr(b.tasks, "split", lambda source: (None, test.replace({"text2": {"Tree": "TREE"}})))
    assert b.tasks.find_clusters(cells)["hypernyms 2"]["x"].tolist() == [0, 1, 2]
    test["group"] = range(4)
    assert b.tasks.find_clusters(cells)["mnli"]["x"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="other test rows"):
        b.tasks.find_clusters([{"source": "mnli", "test_hash": "0"}])


@pytest.mark.parametrize("n", [3, 5, 8])
def test_intervals_over_few_seeds_cover(b, monkeypatch, n):
    """Of differences that vary over seeds alone, about 95% of the intervals hold the true mean; of a plain bootstrap fewer.

    And a p of less than 0.01 is found about once in a hundred times.
    """
    monkeypatch.setattr(b.statistics, "REPLICATES", 1000)
    rng = np.random.default_rng(0)
    covered = plain = small = 0
    trials = 1000
    for trial in range(trials):
        values = rng.normal(0, 1, n)
        drawn = b.statistics.resample_seeds(b.statistics.Column("amazon", "16"), [trial, *range(-n, -1)], values)
        low, high, p = b.statistics.interval(values.mean(), [b.statistics.Spread(np.zeros(1000), drawn, 100.0, n - 1)])
        covered += low <= 0 <= high
        small += p < 0.01
        low, high = np.percentile(values[rng.integers(n, size=(1000, n))].mean(axis=1), [2.5, 97.5])
        plain += low <= 0 <= high
    assert covered / trials == pytest.approx(0.95, abs=0.02)
    assert small / trials == pytest.approx(0.01, abs=0.007)
    assert plain / trials < 0.92


def test_interval_by_hand(b):
    """Welch's: of two parts with variances 1 and 4 and 4 and 9 degrees of freedom."""
    low, high, p = b.statistics.interval(3.0, [b.statistics.Spread(np.array([-1.0, 1.0]), np.array([-2.0, 2.0]), 4, 9)])
    freedom = 25 / (1 / 4 + 16 / 9)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(5)
    np.testing.assert_allclose([low, high, p], [3 - half, 3 + half, 2 * stats.t.sf(3 / np.sqrt(5), freedom)])
    two = [
        b.statistics.Spread(np.zeros(2), np.array([-1.0, 1.0]), 99, 4)
    ] * 2  # of two tasks: a variance of (1 + 1) / 4
    half = stats.t.ppf(0.975, 8) * np.sqrt(0.5)
    np.testing.assert_allclose(b.statistics.interval(0.0, two), [-half, half, 1.0])
    assert b.statistics.interval(0.0, [b.statistics.Spread(np.zeros(2), np.zeros(2), 1, 1)]) == (0.0, 0.0, 1.0)


def test_seeds_that_share_a_split_are_drawn_together(b):
    """Eight seeds of hypernyms, five splits: the seeds of one split tell of that split."""
    column, values = b.statistics.Column("hypernyms", "16"), [3.0, 1.0, 2.0, 4.0, 0.0, 3.0, 1.0, 2.0]
    scores = {s: b.statistics.Score(f"hypernyms {s % 5}", {"a": np.array([True])}, 0.0, None) for s in range(8)}
    drawn = b.statistics.units(column, scores)
    assert drawn == [f"hypernyms {s % 5}" for s in range(8)]
    assert b.statistics.units(b.statistics.Column("amazon", "16"), scores) == list(range(8))
    means = [3.0, 1.0, 2.0, 4.0, 0.0]  # the second seed of a split is as its first
    expected = stats.t.ppf(0.975, 4) * np.std(means, ddof=1) / np.sqrt(5)
    assert b.statistics.half_interval(values, drawn) == pytest.approx(expected)
    replicates = b.statistics.resample_seeds(column, drawn, values)
    names = list(dict.fromkeys(drawn))
    rng, by_hand = np.random.default_rng(0), []
    for _ in range(8000):
        chosen = [names[i] for i in rng.integers(5, size=5)]
        by_hand.append(np.mean([v for name in chosen for v, own in zip(values, drawn) if own == name]))
    assert replicates.std() == pytest.approx(np.sqrt(5 / 4) * np.std(by_hand), rel=0.03)


def test_equal_methods_do_not_differ(b, written):
    cells = make_cells(CHANCE)
    for name in [name for name in cells if "-mix-" in name]:
        cells[name]["results"]["mix"] = cells[name.replace("-mix-", "-mft-")]["results"]["meta"]
    frame = b.statistics.compare(b.report.read(written(cells))[0], "meta")
    same = frame[frame["other"] == "mix"]
    assert (same[["difference", "low", "high"]].to_numpy() == 0).all()
    assert (same["p"] == 1).all() and (same["win"] == 0).all() and (same["tie"] > 0).all()


def test_columns_of_one_task_share_the_seeds_that_are_drawn(b, written):
    """So two columns with the same answers tell as little as one of them."""
    scores, _ = b.report.read(written(make_cells(CHANCE, shots=(16,))))
    [(column, methods)] = scores.items()
    frame = b.statistics.compare({column: methods, b.statistics.Column(column.task, "64"): methods}, "meta")
    frame = frame[frame["other"] == "single"]
    assert len(frame) == 3
    for bound in ("low", "high"):
        np.testing.assert_allclose(frame[bound], frame[bound].iloc[0])


def test_over_all_is_the_mean_over_tasks_of_the_mean_over_shots(b, written):
    cells = make_cells(CHANCE) | make_cells(CHANCE, shots=(64, 256), task="mnli")
    scores, _ = b.report.read(written(cells))
    frame = b.statistics.compare(scores, "meta", over=b.report.headline(scores))
    own = frame[frame["other"] == "single"]
    by = {c: own.loc[own["column"] == c, "difference"].item() for c in scores}
    expected = np.mean(
        [np.mean([by[b.statistics.Column("amazon", n)] for n in ("16", "64")]), by[b.statistics.Column("mnli", "256")]]
    )
    assert own.loc[own["column"] == "all", "difference"].item() == pytest.approx(expected)


def test_report_is_deterministic_and_complete(b, written, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(b.markdown, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(b.statistics, "REPLICATES", 500)
    clusters = {"amazon": dict.fromkeys("ab", np.arange(40) // 2)}
    monkeypatch.setattr(b.report, "find_clusters", lambda cells: clusters)
    cells = make_cells(CHANCE)
    del cells["amazon-64-single-3"]
    table, made = written(cells), []
    for _ in range(2):
        assert b.report.main(["--cells", str(table)]) == 0
        made.append([(tmp_path / "results" / f"few_shot.{end}").read_bytes() for end in ("md", "png")])
    assert made[0] == made[1]
    text = made[0][0].decode()
    assert "seeds 0, 1, 2, 3" in text and "Machines: one." in text
    assert "python benchmarks/report.py --cells" in text
    names = "(mft, mix, single)"
    assert f"reviews, 16: bfloat16 {names} and float32 {names}; reviews, 64: bfloat16 {names} and" in text
    assert "(2 of 6)" in text  # of the columns that "all" is a mean of
    assert "reviews, 64: single; seeds 3" in text
    assert "inference, 64: all methods; all seeds" in text
    for name in ("adapted", "meta", "mix", "single"):
        assert b.methods.NAMES[name] in text
    assert "of `python benchmarks/few_shot.py --model m` (encoder m)" in text and "Note:" not in text
    for cell in cells.values():
        cell["settings"] |= {"meta_epochs": 66, "model": b.engine.DEFAULT_MODEL}
        cell["note"] = "slow"
    assert b.report.main(["--cells", str(written(cells)), "--name", "longer", "--no-figure"]) == 0
    text = (tmp_path / "results" / "longer.md").read_text()
    assert "of `python benchmarks/few_shot.py --meta-epochs 66` (encoder" in text and text.count("Note: slow.") == 1
    capsys.readouterr()
    assert b.report.main(["--cells", str(tmp_path / "nothing")]) == 1


def test_harm_by_hand(b, written):
    chance = {"mft": {"meta": 0.9, "adapted": 0.9}, "mix": {"mix": 0.5}, "tw": {"tw": 0.99}}
    scores, _ = b.report.read(written(make_cells(chance, shots=(16, 64), seeds=range(6))))
    lines = [line for line in b.report.harm(scores, None) if line.startswith("| reviews")]
    assert [line.split(" | ")[0] for line in lines] == ["| reviews, 16", "| reviews, 64", "| reviews, all"]
    frame = b.statistics.compare(scores, "adapted", over=b.report.headline(scores)).set_index(["column", "other"])
    for line, column in zip(lines, [*scores, "all"]):
        meta, mix = frame.loc[(column, "meta")], frame.loc[(column, "mix")]
        assert f"| {meta.difference:+.1f} [{meta.low:+.1f}, {meta.high:+.1f}] |" in line
        assert f"[{mix.low:+.1f}, {mix.high:+.1f}] (Mix: fine-tuning on the mix)" in line  # tw is a part of ours
        assert line.endswith("| yes |" if min(meta.low, mix.low) > -1 else "| no |")


def test_one_seed_gives_no_interval(b, written):
    scores, _ = b.report.read(written(make_cells(CHANCE, seeds=[0])))
    frame = b.statistics.compare(scores, "adapted")
    assert np.isneginf(frame["low"]).all() and np.isposinf(frame["high"]).all() and (frame["holm"] == 1).all()
    assert b.markdown.with_interval(next(frame.itertuples())) == f"{frame['difference'].iloc[0]:+.1f}"
    lines = [line for line in b.report.harm(scores, None) if line.startswith("| reviews")]
    assert len(lines) == 3 and all(line.endswith("| too few seeds |") for line in lines)
    assert "inf" not in "\n".join(lines + b.report.differences(scores, "adapted", None))
    # seeds of one split of the terms are one draw
    hypernyms = {b.statistics.Column("hypernyms", c.shots): m for c, m in scores.items()}
    for methods in hypernyms.values():
        for name, seeds in methods.items():
            methods[name] = {s: dataclasses.replace(seeds[0], source="hypernyms 0") for s in (0, 5, 10, 15, 20)}
    frame = b.statistics.compare(hypernyms, "adapted")
    assert (frame["seeds"] == 5).all() and (frame["units"] == 1).all() and np.isneginf(frame["low"]).all()


@pytest.mark.parametrize(
    ("key", "value"), [("train_hash", "other"), ("test_hash", "other"), ("settings", {"model": "n", "random_state": 0})]
)
def test_cells_that_cannot_be_compared_are_refused(b, written, key, value):
    cells = make_cells(CHANCE)
    cells["amazon-16-mix-0"][key] = value
    with pytest.raises(ValueError, match="differ in the"):
        b.report.read(written(cells))


# ---------------------------------------------------------------------- the README's table


@pytest.fixture
def readme(b, monkeypatch, tmp_path):
    """The script, on cells of its columns and rows, which are fewer here."""
    monkeypatch.setattr(b.readme_table, "README", tmp_path / "README.md")
    monkeypatch.setattr(b.readme_table, "COLUMNS", [("amazon", "16"), ("mnli", "256")])
    monkeypatch.setattr(b.readme_table, "FEWER_COLUMNS", list(b.readme_table.COLUMNS))
    monkeypatch.setattr(b.readme_table, "ROWS", {"mix": "mix", "adapted": "mft"})
    return b.readme_table


@pytest.fixture
def cells(readme):
    """The cells that it needs."""
    found = [make_cells(CHANCE, (int(count),), range(5), task=task) for task, count in readme.COLUMNS]
    return found[0] | found[1]


def test_readme_table_is_written_between_its_marks(b, readme, cells, written, tmp_path, capsys):
    path, table = tmp_path / "README.md", written(cells)
    path.write_text(f"before\n{readme.BEGIN}old\n{readme.END}\nafter\n")
    assert readme.main(["--write", "--cells", str(table)]) == 0
    before, head, _, mix, ours, end, after = path.read_text().splitlines()[0:1] + path.read_text().splitlines()[2:]
    assert (before, after) == ("before", "after") and end == readme.END
    assert head == "| labelled in each domain | reviews, 16 | inference, 256 |"
    scores, _ = b.report.read(table)
    for line, name in ((mix, "mix"), (ours, "adapted")):
        columns = [b.statistics.Column(*c) for c in readme.COLUMNS]
        values = [[100 * s.accuracy for s in scores[c][name].values()] for c in columns]
        assert line == f"| {b.methods.NAMES[name]} | " + " | ".join(map(b.markdown.plus_minus, values)) + " |"


def test_readme_table_is_that_of_the_committed_cells(b):
    """What stands in README.md is what --write would write."""
    _, _, rest = (BENCHMARKS.parent / "README.md").read_text().partition(b.readme_table.BEGIN)
    table, end, _ = rest.partition(b.readme_table.END)
    assert end and table == b.readme_table.short_table(b.few_shot.TABLE, b.readme_table.SEEDS)


def test_readme_without_marks_is_left_alone(readme, cells, written, tmp_path, capsys):
    (tmp_path / "README.md").write_text("no marks\n")
    with pytest.raises(SystemExit):
        readme.main(["--write", "--cells", str(written(cells))])
    assert "lacks the lines" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "no marks\n"


def test_readme_table_leaves_out_what_lacks_a_cell(readme, cells, written):
    del cells["mnli-256-mix-3"]
    head, _, mix, ours, empty, told = readme.short_table(written(cells), readme.SEEDS).splitlines()
    assert head == "| labelled in each domain | reviews, 16 | inference, 256 |" and not empty
    assert mix.endswith("|  |") and not ours.endswith("|  |")
    assert told == "Not run yet on all of these seeds: inference, 256, Mix."
    del cells["mnli-256-mft-3"]
    head, *_, told = readme.short_table(written(cells), readme.SEEDS).splitlines()
    assert head == "| labelled in each domain | reviews, 16 |" and told.endswith("inference, 256, Mix, MFT.")
    del cells["amazon-16-mft-0"]
    with pytest.raises(ValueError, match="lacks cells of 'MFT: adapted to each domain' in every column"):
        readme.short_table(written(cells), readme.SEEDS)


@pytest.mark.parametrize(
    ("native", "more", "methods"),
    [
        (True, [], ["mft", "mix"]),
        (False, [], ["mft"]),
        (True, ["--all-rows"], ["mft", "mix", "setfit"]),
        (False, ["--all-rows"], ["mft", "mix", "setfit"]),
    ],
)
def test_readme_table_leaves_out_slow_rows_and_compares(
    b, readme, cells, written, monkeypatch, capsys, native, more, methods
):
    asked = []
    monkeypatch.setattr(readme, "COLUMNS", [*readme.COLUMNS, ("hypernyms", "64")])  # as --write has, which is not run
    monkeypatch.setattr(b.engine, "precision", lambda: "bfloat16" if native else "float32")
    monkeypatch.setattr(readme, "ROWS", {**readme.ROWS, "setfit": "setfit"})
    monkeypatch.setattr(readme, "FEWER_ROWS", ("adapted",))
    monkeypatch.setattr(b.few_shot, "run", lambda cells, options: asked.extend(cells))
    table, name = written(cells), "amazon-16-mix-0"
    first, right = next(iter(cells[name]["results"]["mix"]["correct"].items()))
    committed = {**cells, name: with_correct(cells[name], "mix", first, flip)}
    committed["mnli-256-mix-1"] = {**cells["mnli-256-mix-1"], "train_hash": "other"}
    monkeypatch.setattr(b.few_shot, "TABLE", written(committed, "committed"))
    assert readme.main(["--cells", str(table), *more]) == 0
    assert sorted({c.method for c in asked}) == methods and {c.seed for c in asked} == {0, 1}
    out = capsys.readouterr().out
    n = sum(map(len, cells[name]["results"]["mix"]["correct"].values()))
    points = 100 / n * (1 if right[0] == "1" else -1)
    assert f"{name}, {b.methods.NAMES['mix']}: 1 of {n} answers differ, {points:+.1f}" in out
    assert "mnli-256-mix-1: of other training or test rows" in out
    assert "| labelled in each domain | reviews, 16 | inference, 256 |\n" in out and "hypernyms" not in out


def test_every_name_has_a_method_and_a_colour(b):
    given = [name for method in b.methods.METHODS for name in b.methods.GIVES[method]]
    assert sorted(given) == sorted(b.methods.NAMES) == sorted(b.report.COLOURS)
    assert isinstance(b.few_shot.arguments([]), argparse.Namespace)
