"""The few-shot benchmark: its cells, and the report that is made of them."""

import argparse
import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import BENCHMARKS, import_benchmarks, make_texts
from scipy import stats


@pytest.fixture(scope="module")
def modules():
    return import_benchmarks("few_shot", "report")


def make_rows(n, seed):
    X, y, d = make_texts(n, seed=seed, n_domains=4)
    group = [f"{seed} {i}" for i in range(n)]
    return pd.DataFrame(
        {"text": [f"{x} {g}" for x, g in zip(X, group)], "y": y, "domain": d, "group": group, "hash": group}
    )


@pytest.fixture
def bench(modules, tiny, tmp_path, monkeypatch):
    """The benchmark on small data, by a tiny encoder: called like its command line."""
    few_shot, _ = modules
    monkeypatch.setattr(few_shot, "rows_of", lambda source: (make_rows(96, 0), make_rows(32, 1)))
    monkeypatch.setattr(few_shot.logging, "disable", lambda level: None)
    monkeypatch.setattr("transformers.logging.disable_progress_bar", lambda: None)
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    cells = tmp_path / "cells"

    def run(*args, methods=("mix",), shots=("8",), seeds=("0",), tasks=("amazon",)):
        options = {"tasks": tasks, "methods": methods, "shots": shots, "seeds": seeds}
        given = [part for name, values in options.items() for part in (f"--{name}", *values)]
        code = few_shot.main([*given, "--model", tiny, "--cells", str(cells), *args])
        return code, {p.stem: json.loads(p.read_text()) for p in sorted(cells.glob("*"))}

    run.cells = cells
    return run


# ---------------------------------------------------------------------- cells


def test_plan(modules, capsys):
    few_shot, _ = modules
    args = few_shot.arguments(["--shots", "16", "64", "256", "1000"])
    cells = few_shot.plan(args)
    n = len(few_shot.METHODS)  # SetFit, twice, is for reviews, mix_bi for pairs; inference has 64 shots, too
    assert len(cells) == len(set(cells)) == ((n - 1) * 2 + (n - 2) * 5) * 5
    assert {c.task for c in cells if c.method.startswith("setfit")} == {"amazon"}
    assert {c.task for c in cells if c.method == "mix_bi"} == {"mnli", "hypernyms"}
    assert {c.shots for c in cells if c.task == "mnli"} == {64, 256, 1000}
    assert {c.source for c in cells if c.task == "hypernyms"} == {f"hypernyms {i}" for i in range(5)}
    for given, expected in (
        (["headline"], set(few_shot.HEADLINE)),
        (["mnli:256", "16"], {"mnli:256", "amazon:16", "hypernyms:16"}),
        (["full"], {"amazon:full", "hypernyms:full"}),
    ):
        assert {f"{c.task}:{c.shots}" for c in few_shot.plan(few_shot.arguments(["--shots", *given]))} == expected
    for wrong in (["--shots", "7"], ["--model", "other"], ["--learning-rate", "1e-5"], ["--meta-epochs", "3"]):
        with pytest.raises(SystemExit):
            few_shot.arguments(wrong)
    assert "needs another folder" in capsys.readouterr().err


def test_cells_are_written_once_and_resumed(bench, capsys):
    methods = ("tfidf", "mix", "single", "mft")
    code, cells = bench(methods=methods)
    assert code == 0
    assert sorted(cells) == sorted(f"amazon-8-{m}-0" for m in methods)
    for cell in cells.values():
        for result in cell["results"].values():
            assert sorted(result["correct"]) == ["books", "dvd", "kitchen", "music"]
            for domain, bits in result["correct"].items():
                assert len(bits) == 8
                assert result["accuracy"][domain] == bits.count("1") / 8
    assert len({c["train_hash"] for c in cells.values()}) == 1
    assert list(cells["amazon-8-mft-0"]["results"]) == ["meta", "adapted"]
    assert cells["amazon-8-mix-0"]["steps"] == cells["amazon-8-mix-0"]["budget"] == 60
    assert cells["amazon-8-single-0"]["steps"] == 4 * 60
    capsys.readouterr()
    _, again = bench(methods=methods)
    assert again == cells
    assert "4 cells are finished, 0 to do" in capsys.readouterr().out
    # what was left out is run; what was made with other settings is run again
    path = bench.cells / "amazon-8-mix-0.json"
    path.write_text(json.dumps({**cells["amazon-8-mix-0"], "settings": {"learning_rate": 1}}))
    (bench.cells / "amazon-8-mft-0.json").unlink()
    _, again = bench(methods=methods)
    assert "2 cells are finished, 2 to do" in capsys.readouterr().out
    for name, cell in cells.items():
        assert {n: r["correct"] for n, r in again[name]["results"].items()} == {
            n: r["correct"] for n, r in cell["results"].items()
        }


@pytest.mark.parametrize("method", ["trainer", "setfit_equal"])
def test_cells_of_another_budget_are_run_again(modules, tmp_path, method):
    few_shot, _ = modules
    cell = few_shot.Cell("amazon", 16, method, 0)
    found = {"settings": few_shot.settings(cell, {"model": "x"}), "budget": 60, "train_rows": 64}
    few_shot.write(tmp_path / f"{cell.name}.json", found)
    assert few_shot.is_finished(cell, tmp_path, {"model": "x"})
    few_shot.write(tmp_path / f"{cell.name}.json", {**found, "budget": 80})
    assert not few_shot.is_finished(cell, tmp_path, {"model": "x"})


@pytest.mark.parametrize(("method", "package"), [("trainer", "accelerate"), ("setfit_equal", "setfit")])
def test_other_packages_take_as_many_steps(bench, method, package):
    pytest.importorskip(package, reason=f"needs {package}, of the extra bench")
    for options, steps in (([], 60), (["--meta-epochs", "3"], 3)):
        _, cells = bench(*options, methods=(method,))
        cell = cells[f"amazon-8-{method}-0"]
        assert cell["steps"] == cell["budget"] == steps
    assert sum(map(len, cell["results"][method]["correct"].values())) == 32


def test_seeds_and_shots_draw_their_own_rows(bench):
    _, cells = bench(methods=("tfidf",), shots=("8", "16", "full"), seeds=("0", "1"))
    hashes = {name: c["train_hash"] for name, c in cells.items()}
    assert len({h for n, h in hashes.items() if "full" not in n}) == 4
    assert hashes["amazon-full-tfidf-0"] == hashes["amazon-full-tfidf-1"]
    assert cells["amazon-full-tfidf-0"]["train_rows"] == 96
    assert len({c["test_hash"] for c in cells.values()}) == 1


def test_a_failure_leaves_the_other_cells(bench, modules, monkeypatch, capsys):
    def broken(data):
        raise RuntimeError("no luck")

    monkeypatch.setitem(modules[0].METHODS, "mtl", broken)
    code, cells = bench(methods=("mtl", "tfidf"))
    assert code == 1
    assert list(cells) == ["amazon-8-tfidf-0"]
    assert "amazon-8-mtl-0: RuntimeError: no luck" in capsys.readouterr().err


def test_budget_of_hours(bench):
    code, cells = bench("--hours", "0")
    assert code == 0
    assert not cells
    _, cells = bench("--plan")
    assert not cells


@pytest.mark.skipif(not os.environ.get("SKMFT_DATA_HOME"), reason="needs SKMFT_DATA_HOME")
def test_cells_in_processes_are_those_of_one_process(tmp_path):
    found = {}
    for jobs in ("1", "2"):
        options = f"--tasks hypernyms --shots 16 --methods tfidf --seeds 0 1 --jobs {jobs} --cells".split()
        subprocess.run([sys.executable, BENCHMARKS / "few_shot.py", *options, tmp_path / jobs], check=True)
        cells = {p.name: json.loads(p.read_text()) for p in (tmp_path / jobs).glob("*.json")}
        found[jobs] = {n: (c["train_hash"], c["results"]["tfidf"]["correct"]) for n, c in cells.items()}
    assert len(found["1"]) == 2
    assert found["1"] == found["2"]


def test_an_interrupted_write_leaves_no_cell(bench, modules, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(modules[0].os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench(methods=("tfidf",))
    assert not list(bench.cells.glob("*"))
    _, cells = bench(methods=("tfidf",))
    assert "amazon-8-tfidf-0" in cells


def test_verify_runs_a_cell_again(bench, capsys):
    bench(methods=("mix",))
    assert bench("--verify", "1")[0] == 0
    assert "the same, to the last row" in capsys.readouterr().out
    path = bench.cells / "amazon-8-mix-0.json"
    cell = json.loads(path.read_text())
    bits = cell["results"]["mix"]["correct"]["books"]
    cell["results"]["mix"]["correct"]["books"] = ("1" if bits[0] == "0" else "0") + bits[1:]
    path.write_text(json.dumps(cell))
    assert bench("--verify", "1")[0] == 1
    assert "DIFFERENT: 1 of 32 answers" in capsys.readouterr().out
    path.write_text(json.dumps({**cell, "machine": "another"}))
    assert bench("--verify", "1")[0] == 0
    assert "agrees within its interval: 1 of 32 answers" in capsys.readouterr().out
    path.unlink()
    assert bench("--verify", "1")[0] == 1
    assert "has none of these cells" in capsys.readouterr().err


def test_cells_of_two_machines_are_compared(bench, tmp_path, capsys):
    bench(methods=("mix",))
    other = tmp_path / "again"
    shutil.copytree(bench.cells, other)
    path = other / "amazon-8-mix-0.json"
    cell = {**json.loads(path.read_text()), "machine": "another"}
    bits = cell["results"]["mix"]["correct"]
    n, right = sum(map(len, bits.values())), sum(b.count("1") for b in bits.values())
    for flips in (1, len(bits["books"])):  # of one domain's answers
        flipped = "".join("1" if b == "0" else "0" for b in bits["books"][:flips]) + bits["books"][flips:]
        path.write_text(
            json.dumps({**cell, "results": {"mix": {**cell["results"]["mix"], "correct": {**bits, "books": flipped}}}})
        )
        assert bench("--against", str(other), methods=("mix",))[0] == 0
        out, there = capsys.readouterr().out, right - bits["books"].count("1") + flipped.count("1")
        points, within = 100 * (right - there) / n, 196 * flips**0.5 / n
        assert f"{flips} of {n} answers, {points:+.2f} points, interval ± {within:.2f}" in out
        assert ("agrees within its interval" in out) == (abs(points) <= within)
        beyond = abs(points) > 196 * (there / n * (1 - there / n) / n) ** 0.5
        assert f"1 results: {int(abs(points) > within)} differ by more than the interval of their changed" in out
        assert f"{int(beyond)} by more than the 95% interval of their test rows" in out
    path.write_text(json.dumps({**cell, "train_hash": "other"}))
    assert bench("--against", str(other), methods=("mix",))[0] == 1
    assert "amazon-8-mix-0: of other training or test rows" in capsys.readouterr().out
    assert bench("--against", str(tmp_path / "none"), methods=("mix",))[0] == 1
    assert "have no cells of one name and of the same rows" in capsys.readouterr().err


def test_pair_features(modules, monkeypatch):
    few_shot, _ = modules
    monkeypatch.setattr(few_shot, "_embedded", {("m", "a"): np.array([1.0, 2.0]), ("m", "b"): np.array([3.0, -1.0])})
    got = few_shot.embed(pd.DataFrame({"text": ["a", "b"], "text2": ["b", "b"]}), "m")
    np.testing.assert_array_equal(got, [[1, 2, 3, -1, 2, 3, 3, -2], [3, -1, 3, -1, 0, 0, 9, 1]])


# ---------------------------------------------------------------------- report


def write_cells(folder, chance, shots=(16, 64), seeds=range(4), n=40, task="amazon"):
    """Cells whose methods are right with the given chance, on rows that are easy or hard for all."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
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
            cell |= {
                "budget": 60,
                "steps": 60,
                "settings": {"model": "m", "random_state": seed},
                "train_rows": 2 * count,
            }
            cell["precision"] = "float32" if seed else "bfloat16"
            cell |= {"train_hash": f"{count} {seed}", "test_hash": "t", "machine": "one", "versions": {"torch": "2"}}
            (folder / f"{task}-{count}-{method}-{seed}.json").write_text(json.dumps(cell))


CHANCE = {"mft": {"meta": 0.9, "adapted": 0.9}, "mix": {"mix": 0.9}, "single": {"single": 0.6}}


def test_holm_by_hand(modules):
    _, report = modules
    np.testing.assert_allclose(report.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(report.holm([0.5, 0.9]), [1.0, 1.0])


def test_t_interval_by_hand(modules):
    _, report = modules
    assert report.half_interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / 3**0.5)
    assert np.isnan(report.half_interval([1.0]))


@pytest.mark.parametrize("size", [1, 4])
def test_bootstrap_is_the_plain_one(modules, tmp_path, size):
    """Intervals agree with a loop that draws seeds and, shared by both methods and all seeds, rows or clusters of rows."""
    _, report = modules
    write_cells(tmp_path, CHANCE, shots=(16,))
    scores, _ = report.read(tmp_path)
    column = report.Column("amazon", "16")
    members = [np.arange(0, 8), *np.arange(8, 40).reshape(-1, size)] if size > 1 else np.arange(40)[:, None]
    together = np.concatenate([np.full(len(m), i) for i, m in enumerate(members)])
    frame = report.compare(scores, "adapted", {"amazon": dict.fromkeys("ab", together)} if size > 1 else None)
    frame = frame[frame["column"] == column].set_index("other")
    for other in ("mix", "single"):
        got = frame.loc[other]
        a, b = scores[column]["adapted"], scores[column][other]
        rng, by_rows, by_seeds = np.random.default_rng(5), [], []
        change = np.array([100 * (a[s].accuracy - b[s].accuracy) for s in a])
        for _ in range(4000):
            rows = {
                d: np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))]) for d in "ab"
            }
            by_rows.append(
                100
                * np.mean([a[s].correct[d][rows[d]].mean() - b[s].correct[d][rows[d]].mean() for d in rows for s in a])
            )
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
    frame = report.compare(scores, "adapted").sort_values("p", kind="stable")
    p, n = frame["p"].tolist(), len(frame)
    expected = [min(1, max((n - j) * p[j] for j in range(i + 1))) for i in range(n)]  # Holm, step by step
    np.testing.assert_allclose(frame["holm"], expected)
    frame = frame[frame["column"] == column].set_index("other")
    assert frame.loc["single", "holm"] < frame.loc["mix", "holm"]


def test_clusters_are_those_of_the_rows_that_were_scored(modules, monkeypatch):
    few_shot, report = modules
    test = pd.DataFrame({"text": list("abcd"), "text2": ["Tree", "fish", "tree", "tree"], "group": [7, 8, 7, 9]})
    test = test.assign(y="other", domain=["x", "x", "x", "z"], hash=["3", "2", "1", "0"])
    monkeypatch.setattr(report, "split", lambda source: (None, test))
    cells = [{"source": s, "test_hash": few_shot.digest(test["hash"].sort_values())} for s in ("hypernyms 2", "mnli")]
    found = report.find_clusters(cells)
    assert {s: {d: v.tolist() for d, v in by.items()} for s, by in found.items()} == {
        "hypernyms 2": {"x": [0, 1, 0], "z": [0]},
        "mnli": {"x": [0, 1, 0], "z": [0]},
    }
    special = [
        sys.modules["tasks"].text_hash("tree"),
        "x",
        "y",
        "z",
    ]  # the first pair is a reversed one
    test["group"] = special
    monkeypatch.setattr(report, "split", lambda source: (None, test.replace({"text2": {"Tree": "TREE"}})))
    assert report.find_clusters(cells)["hypernyms 2"]["x"].tolist() == [0, 1, 2]
    test["group"] = range(4)
    assert report.find_clusters(cells)["mnli"]["x"].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="other test rows"):
        report.find_clusters([{"source": "mnli", "test_hash": "0"}])


@pytest.mark.parametrize("n", [3, 5, 8])
def test_intervals_over_few_seeds_cover(modules, monkeypatch, n):
    """Of differences that vary over seeds alone, about 95% of the intervals hold the true mean; of a plain bootstrap fewer.

    And a p of less than 0.01 is found about once in a hundred times.
    """
    _, report = modules
    monkeypatch.setattr(report, "REPLICATES", 1000)
    rng = np.random.default_rng(0)
    covered = plain = small = 0
    trials = 2000
    for trial in range(trials):
        values = rng.normal(0, 1, n)
        drawn = report.resample_seeds(report.Column("amazon", "16"), [trial, *range(-n, -1)], values)
        low, high, p = report.interval(values.mean(), [report.Spread(np.zeros(1000), drawn, 100.0, n - 1)])
        covered += low <= 0 <= high
        small += p < 0.01
        low, high = np.percentile(values[rng.integers(n, size=(1000, n))].mean(axis=1), [2.5, 97.5])
        plain += low <= 0 <= high
    assert covered / trials == pytest.approx(0.95, abs=0.02)
    assert small / trials == pytest.approx(0.01, abs=0.007)
    assert plain / trials < 0.92


def test_interval_by_hand(modules):
    """Welch's: of two parts with variances 1 and 4 and 4 and 9 degrees of freedom."""
    _, report = modules
    low, high, p = report.interval(3.0, [report.Spread(np.array([-1.0, 1.0]), np.array([-2.0, 2.0]), 4, 9)])
    freedom = 25 / (1 / 4 + 16 / 9)
    half = stats.t.ppf(0.975, freedom) * np.sqrt(5)
    np.testing.assert_allclose([low, high, p], [3 - half, 3 + half, 2 * stats.t.sf(3 / np.sqrt(5), freedom)])
    two = [report.Spread(np.zeros(2), np.array([-1.0, 1.0]), 99, 4)] * 2  # of two tasks: a variance of (1 + 1) / 4
    half = stats.t.ppf(0.975, 8) * np.sqrt(0.5)
    np.testing.assert_allclose(report.interval(0.0, two), [-half, half, 1.0])
    assert report.interval(0.0, [report.Spread(np.zeros(2), np.zeros(2), 1, 1)]) == (0.0, 0.0, 1.0)


def test_seeds_that_share_a_split_are_drawn_together(modules):
    """Eight seeds of hypernyms, five splits: the seeds of one split tell of that split."""
    _, report = modules
    column, values = report.Column("hypernyms", "16"), [3.0, 1.0, 2.0, 4.0, 0.0, 3.0, 1.0, 2.0]
    scores = {s: report.Score(f"hypernyms {s % 5}", {"a": np.array([True])}, 0.0, None) for s in range(8)}
    drawn = report.units(column, scores)
    assert drawn == [f"hypernyms {s % 5}" for s in range(8)]
    assert report.units(report.Column("amazon", "16"), scores) == list(range(8))
    means = [3.0, 1.0, 2.0, 4.0, 0.0]  # the second seed of a split is as its first
    expected = stats.t.ppf(0.975, 4) * np.std(means, ddof=1) / np.sqrt(5)
    assert report.half_interval(values, drawn) == pytest.approx(expected)
    replicates = report.resample_seeds(column, drawn, values)
    names = list(dict.fromkeys(drawn))
    rng, by_hand = np.random.default_rng(0), []
    for _ in range(20_000):
        chosen = [names[i] for i in rng.integers(5, size=5)]
        by_hand.append(np.mean([v for name in chosen for v, own in zip(values, drawn) if own == name]))
    assert replicates.std() == pytest.approx(np.sqrt(5 / 4) * np.std(by_hand), rel=0.03)


def test_equal_methods_do_not_differ(modules, tmp_path):
    _, report = modules
    write_cells(tmp_path, CHANCE)
    for path in tmp_path.glob("*-mix-*"):
        cell, twin = json.loads(path.read_text()), json.loads(Path(str(path).replace("-mix-", "-mft-")).read_text())
        path.write_text(json.dumps({**cell, "results": {"mix": twin["results"]["meta"]}}))
    frame = report.compare(report.read(tmp_path)[0], "meta")
    same = frame[frame["other"] == "mix"]
    assert (same[["difference", "low", "high"]].to_numpy() == 0).all()
    assert (same["p"] == 1).all() and (same["win"] == 0).all() and (same["tie"] > 0).all()


def test_columns_of_one_task_share_the_seeds_that_are_drawn(modules, tmp_path):
    """So two columns with the same answers tell as little as one of them."""
    _, report = modules
    write_cells(tmp_path, CHANCE, shots=(16,))
    scores, _ = report.read(tmp_path)
    [(column, methods)] = scores.items()
    frame = report.compare({column: methods, report.Column(column.task, "64"): methods}, "meta")
    frame = frame[frame["other"] == "single"]
    assert len(frame) == 3
    for bound in ("low", "high"):
        np.testing.assert_allclose(frame[bound], frame[bound].iloc[0])


def test_over_all_is_the_mean_over_tasks_of_the_mean_over_shots(modules, tmp_path):
    _, report = modules
    write_cells(tmp_path, CHANCE)
    write_cells(tmp_path, CHANCE, shots=(64, 256), task="mnli")
    scores, _ = report.read(tmp_path)
    frame = report.compare(scores, "meta")
    own = frame[frame["other"] == "single"]
    by = {c: own.loc[own["column"] == c, "difference"].item() for c in scores}
    expected = np.mean(
        [np.mean([by[report.Column("amazon", n)] for n in ("16", "64")]), by[report.Column("mnli", "256")]]
    )
    assert own.loc[own["column"] == "all", "difference"].item() == pytest.approx(expected)


def test_report_is_deterministic_and_complete(modules, tmp_path, monkeypatch, capsys):
    _, report = modules
    monkeypatch.setattr(report, "HERE", tmp_path)
    monkeypatch.setattr(report, "REPLICATES", 500)
    monkeypatch.setattr(report, "find_clusters", lambda cells: {"amazon": dict.fromkeys("ab", np.arange(40) // 2)})
    write_cells(tmp_path / "cells", CHANCE)
    (tmp_path / "cells" / "amazon-64-single-3.json").unlink()
    made = []
    for _ in range(2):
        assert report.main(["--cells", str(tmp_path / "cells")]) == 0
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
        assert report.NAMES[name] in text
    assert "of `python benchmarks/few_shot.py --model m` (encoder m)" in text and "Note:" not in text
    for path in (tmp_path / "cells").glob("*.json"):
        cell = json.loads(path.read_text())
        settings = {**cell["settings"], "meta_epochs": 66, "model": report.DEFAULT_MODEL}
        path.write_text(json.dumps({**cell, "settings": settings, "note": "slow"}))
    assert report.main(["--cells", str(tmp_path / "cells"), "--name", "longer", "--no-figure"]) == 0
    text = (tmp_path / "results" / "longer.md").read_text()
    assert "of `python benchmarks/few_shot.py --meta-epochs 66` (encoder" in text and text.count("Note: slow.") == 1
    capsys.readouterr()
    assert report.main(["--cells", str(tmp_path / "nothing")]) == 1


def test_harm_by_hand(modules, tmp_path):
    _, report = modules
    chance = {"mft": {"meta": 0.9, "adapted": 0.9}, "mix": {"mix": 0.5}, "tw": {"tw": 0.99}}
    write_cells(tmp_path, chance, shots=(16, 64), seeds=range(6))
    scores, _ = report.read(tmp_path)
    lines = [line for line in report.harm(scores, None) if line.startswith("| reviews")]
    assert [line.split(" | ")[0] for line in lines] == ["| reviews, 16", "| reviews, 64", "| reviews, all"]
    frame = report.compare(scores, "adapted").set_index(["column", "other"])
    for line, column in zip(lines, [*scores, "all"]):
        meta, mix = frame.loc[(column, "meta")], frame.loc[(column, "mix")]
        assert f"| {meta.difference:+.1f} [{meta.low:+.1f}, {meta.high:+.1f}] |" in line
        assert f"[{mix.low:+.1f}, {mix.high:+.1f}] (Mix: fine-tuning on the mix)" in line  # tw is a part of ours
        assert line.endswith("| yes |" if min(meta.low, mix.low) > -1 else "| no |")


def test_one_seed_gives_no_interval(modules, tmp_path):
    _, report = modules
    write_cells(tmp_path, CHANCE, seeds=[0])
    scores, _ = report.read(tmp_path)
    frame = report.compare(scores, "adapted")
    assert np.isneginf(frame["low"]).all() and np.isposinf(frame["high"]).all() and (frame["holm"] == 1).all()
    assert report.with_interval(next(frame.itertuples())) == f"{frame['difference'].iloc[0]:+.1f}"
    lines = [line for line in report.harm(scores, None) if line.startswith("| reviews")]
    assert len(lines) == 3 and all(line.endswith("| too few seeds |") for line in lines)
    assert "inf" not in "\n".join(lines + report.differences(scores, "adapted", None))
    # seeds of one split of the terms are one draw
    hypernyms = {report.Column("hypernyms", c.shots): m for c, m in scores.items()}
    for methods in hypernyms.values():
        for name, seeds in methods.items():
            methods[name] = {s: dataclasses.replace(seeds[0], source="hypernyms 0") for s in (0, 5, 10, 15, 20)}
    frame = report.compare(hypernyms, "adapted")
    assert (frame["seeds"] == 5).all() and (frame["units"] == 1).all() and np.isneginf(frame["low"]).all()


@pytest.mark.parametrize(
    ("key", "value"), [("train_hash", "other"), ("test_hash", "other"), ("settings", {"model": "n", "random_state": 0})]
)
def test_cells_that_cannot_be_compared_are_refused(modules, tmp_path, key, value):
    _, report = modules
    write_cells(tmp_path, CHANCE)
    path = tmp_path / "amazon-16-mix-0.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(ValueError, match="differ in the"):
        report.read(tmp_path)


# ---------------------------------------------------------------------- the README's table


@pytest.fixture
def readme(modules, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import readme_table

    monkeypatch.setattr(readme_table, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme_table, "COLUMNS", [("amazon", "16"), ("mnli", "256")])
    monkeypatch.setattr(readme_table, "FEWER_COLUMNS", list(readme_table.COLUMNS))
    monkeypatch.setattr(readme_table, "ROWS", {"mix": "mix", "adapted": "mft"})
    for task, count in readme_table.COLUMNS:
        write_cells(tmp_path / "cells", CHANCE, (int(count),), range(5), task=task)
    return readme_table


def test_readme_table_is_written_between_its_marks(readme, modules, tmp_path, capsys):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{readme.BEGIN}old\n{readme.END}\nafter\n")
    assert readme.main(["--write", "--cells", str(tmp_path / "cells")]) == 0
    before, head, _, mix, ours, end, after = path.read_text().splitlines()[0:1] + path.read_text().splitlines()[2:]
    assert (before, after) == ("before", "after") and end == readme.END
    assert head == "| labelled in each domain | reviews, 16 | inference, 256 |"
    scores, _ = modules[1].read(tmp_path / "cells")
    for line, name in ((mix, "mix"), (ours, "adapted")):
        columns = [modules[1].Column(*c) for c in readme.COLUMNS]
        values = [[100 * s.accuracy for s in scores[c][name].values()] for c in columns]
        assert line == f"| {modules[0].NAMES[name]} | " + " | ".join(map(modules[1].plus_minus, values)) + " |"


def test_readme_without_marks_is_left_alone(readme, tmp_path, capsys):
    (tmp_path / "README.md").write_text("no marks\n")
    with pytest.raises(SystemExit):
        readme.main(["--write", "--cells", str(tmp_path / "cells")])
    assert "lacks the lines" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "no marks\n"


def test_readme_table_leaves_out_what_lacks_a_cell(readme, tmp_path):
    (tmp_path / "cells" / "mnli-256-mix-3.json").unlink()
    head, _, mix, ours, empty, told = readme.short_table(tmp_path / "cells", readme.SEEDS).splitlines()
    assert head == "| labelled in each domain | reviews, 16 | inference, 256 |" and not empty
    assert mix.endswith("|  |") and not ours.endswith("|  |")
    assert told == "Not run yet on all of these seeds: inference, 256, Mix."
    (tmp_path / "cells" / "mnli-256-mft-3.json").unlink()
    head, *_, told = readme.short_table(tmp_path / "cells", readme.SEEDS).splitlines()
    assert head == "| labelled in each domain | reviews, 16 |" and told.endswith("inference, 256, Mix, MFT.")
    (tmp_path / "cells" / "amazon-16-mft-0.json").unlink()
    with pytest.raises(ValueError, match="lacks cells of 'MFT: adapted to each domain' in every column"):
        readme.short_table(tmp_path / "cells", readme.SEEDS)


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
    readme, modules, tmp_path, monkeypatch, capsys, native, more, methods
):
    asked = []
    monkeypatch.setattr(readme, "COLUMNS", [*readme.COLUMNS, ("hypernyms", "64")])  # as --write has, which is not run
    monkeypatch.setattr(readme, "has_native_bfloat16", lambda device: native)
    monkeypatch.setattr(readme, "ROWS", {**readme.ROWS, "setfit": "setfit"})
    monkeypatch.setattr(readme, "FEWER_ROWS", ("adapted",))
    monkeypatch.setattr(readme.few_shot, "run", lambda cells, options: asked.extend(cells))
    committed = tmp_path / "committed"
    monkeypatch.setattr(readme.few_shot, "CELLS", committed)
    shutil.copytree(tmp_path / "cells", committed)
    path = committed / "amazon-16-mix-0.json"
    cell = json.loads(path.read_text())
    bits = cell["results"]["mix"]["correct"]
    first, right = next(iter(bits.items()))
    flipped = ("0" if right[0] == "1" else "1") + right[1:]
    path.write_text(
        json.dumps({**cell, "results": {"mix": {**cell["results"]["mix"], "correct": {**bits, first: flipped}}}})
    )
    path = committed / "mnli-256-mix-1.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "train_hash": "other"}))
    assert readme.main(["--cells", str(tmp_path / "cells"), *more]) == 0
    assert sorted({c.method for c in asked}) == methods and {c.seed for c in asked} == {0, 1}
    out = capsys.readouterr().out
    n = sum(map(len, bits.values()))
    assert (
        f"amazon-16-mix-0, {modules[0].NAMES['mix']}: 1 of {n} answers differ, {100 / n * (1 if right[0] == '1' else -1):+.1f}"
        in out
    )
    assert "mnli-256-mix-1: of other training or test rows" in out
    assert "| labelled in each domain | reviews, 16 | inference, 256 |\n" in out and "hypernyms" not in out


def test_every_name_has_a_method_and_a_colour(modules):
    few_shot, report = modules
    given = [name for method in few_shot.METHODS for name in report.GIVES.get(method, (method,))]
    assert sorted(given) == sorted(few_shot.NAMES) == sorted(report.COLOURS)
    assert isinstance(few_shot.arguments([]), argparse.Namespace)
