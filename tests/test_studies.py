"""The benchmarks beside the few-shot one: new domains, the paper's studies and the hypotheses, on a tiny encoder."""

import functools
import json
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import import_benchmarks, make_texts

from skmft import MetaFineTunedClassifier


def make_rows(n, seed, first=0):
    X, y, d = make_texts(n, seed=seed, n_domains=4)
    numbers = np.arange(first, first + n)
    return pd.DataFrame(
        {
            "text": [f"{x} {i}" for x, i in zip(X, numbers)],
            "y": y,
            "domain": d,
            "group": numbers,
            "hash": [f"{i:05d}" for i in numbers],
        }
    )


POOL, TEST = make_rows(160, 0), make_rows(40, 1, first=1000)


@pytest.fixture(scope="module")
def modules():
    names = ("new_domain", "studies", "hypotheses", "interpolation")
    return dict(zip(names, import_benchmarks(*names)))


@pytest.fixture
def small(modules, tiny, monkeypatch):
    """The modules on small data and a tiny encoder, and as "fits" the texts and domains of every training."""
    fits, plain = [], MetaFineTunedClassifier._fit

    def fit(self, X, y, domains, *args):
        fits.append((list(X), list(domains)))
        return plain(self, X, y, domains, *args)

    def classifier(**params):
        return MetaFineTunedClassifier(tiny, max_length=16, **{"meta_epochs": 1, **params})

    monkeypatch.setattr(MetaFineTunedClassifier, "_fit", fit)
    monkeypatch.setattr(modules["new_domain"], "MetaFineTunedClassifier", classifier)
    for name in ("hypotheses", "interpolation"):
        monkeypatch.setattr(modules[name], "MetaFineTunedClassifier", classifier)
        monkeypatch.setattr(modules[name], "never_tested", lambda task: POOL)
    paper = functools.partial(modules["studies"].paper, tiny, max_length=16)
    monkeypatch.setattr(modules["studies"], "paper", lambda **params: paper(**{"meta_epochs": 1, **params}))
    for name in ("new_domain", "studies"):
        monkeypatch.setattr(modules[name], "split", lambda task: (POOL, TEST))
    return {**modules, "fits": fits}


# ---------------------------------------------------------------------- new domains


@pytest.mark.parametrize("method", ["mft", "mix", "reptile"])
def test_methods_that_adapt_never_train_on_the_new_domain_before(small, monkeypatch, method):
    new_domain, adapting, plain = small["new_domain"], [], MetaFineTunedClassifier.adapt

    def adapt(self, X, y, domain):
        adapting.append((list(X), list(y), domain, self.net_))
        return plain(self, X, y, domain)

    monkeypatch.setattr(MetaFineTunedClassifier, "adapt", adapt)
    cell = new_domain.run("amazon", method, "dvd", 8, 0)
    [(texts, domains)] = small["fits"]
    assert sorted(domains) == ["books"] * 8 + ["kitchen"] * 8 + ["music"] * 8
    assert {n: len(bits) for n, bits in cell["correct"].items()} == dict.fromkeys(map(str, new_domain.SHOTS), 10)
    # nested shots of the new domain, balanced, none of them a test row, each time from the same meta-learner
    assert [len(X) for X, *_ in adapting] == [4, 8, 16, 32]
    assert {name for _, _, name, _ in adapting} == {"dvd"} and len({id(net) for *_, net in adapting}) == 1
    for X, y, *_ in adapting:
        assert X == adapting[-1][0][: len(X)] and y.count("pos") == len(y) // 2
        assert set(X) <= set(POOL.loc[POOL["domain"] == "dvd", "text"]) - set(texts)


def test_methods_that_start_anew(small):
    cell = small["new_domain"].run("amazon", "alone", "dvd", 8, 0)
    assert [(len(d), set(d)) for _, d in small["fits"]] == [(n, {"dvd"}) for n in (4, 8, 16, 32)]
    assert list(cell["correct"]) == ["4", "8", "16", "32"]
    small["fits"].clear()
    cell = small["new_domain"].run("amazon", "joint", "dvd", 8, 0)
    assert [d.count("dvd") for _, d in small["fits"]] == [0, 4, 8, 16, 32]
    assert all(len(d) - d.count("dvd") == 24 for _, d in small["fits"])


def test_reptile_moves_as_far_as_its_outer_steps_say(small, monkeypatch):
    """With an inner loop that adds 1 to every tensor: by the sum of the outer step sizes, which fall linearly to 0."""
    new_domain, starts, taken = small["new_domain"], [], []

    def add_one(module, rows, criterion, settings, *, epochs, seed):
        assert len(rows) <= 40  # of one domain; the pool has 160
        starts.append([t.detach().clone() for t in module.parameters()])
        taken.append(epochs * -(-len(rows) // settings.batch_size))
        for tensor in module.parameters():
            tensor.data += 1

    monkeypatch.setattr(new_domain, "fine_tune", add_one)
    clf = new_domain.classifier("reptile", 0).set_params(meta_epochs=5)
    new_domain.fit(clf, POOL, new_domain.reptile)
    steps = 5 * 5  # 160 rows in batches of 32
    before = np.cumsum([0, *taken[:-1]])
    assert len(taken) > 2 and before[-1] < steps <= sum(taken)
    expected = np.sum(1 - before / steps)
    for tensor, start in zip(clf.net_.module_.parameters(), starts[0], strict=True):
        np.testing.assert_allclose((tensor - start).detach().numpy(), expected, rtol=1e-4)


def new_domain_cells(right):
    """Cells of `right`: (method, seed) -> right answers of 10 in each of the four domains, None where a cell is missing."""
    return [
        {"task": "amazon", "source": "amazon", "labelled": 64, "method": method, "seed": seed, "new": new}
        | {"machine": "one", "code": "c", "settings": {"random_state": seed}, "test_hash": "t"}
        | {"correct": {"8": "1" * n + "0" * (10 - n)}}
        for (method, seed), counts in right.items()
        for new, n in zip(("books", "dvd", "electronics", "kitchen"), counts)
        if n is not None
    ]


@pytest.fixture
def single_rows(modules, monkeypatch):
    """Every test row drawn for itself, of whichever domains."""
    domains = ("books", "dvd", "electronics", "kitchen", "music")
    together = {"amazon": {d: np.arange(10) for d in domains}}
    monkeypatch.setattr(modules["new_domain"], "find_clusters", lambda cells: together)


def test_table_of_new_domains_by_hand(modules, single_rows):
    """A seed counts where all held-out domains are there; differences are paired by seed."""
    right = {
        ("mft", 0): (9, 7, 8, 8),
        ("mft", 1): (9, 9, 9, 9),
        ("mft", 2): (10, None, 10, 10),
        ("mix", 0): (6, 6, 6, 6),
        ("mix", 1): (5, 7, 6, 6),
    }
    text = modules["new_domain"].report(new_domain_cells(right))
    parts = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    row = {cells[0]: cells[1:] for cells in parts if cells}
    names = modules["new_domain"].NAMES
    assert row[names["mft"]][:4] == ["2", "", "", "85.0 ± 63.5"]  # shots 0, 4 and 8; 12.706 * 7.071 / sqrt(2)
    assert row[names["mix"]][3] == "60.0 ± 0.0"
    seeds, _, _, difference = row[f"MFT less: {names['mix']}"][:4]
    low, high = map(float, difference.removeprefix("+25.0 [").removesuffix("]").split(","))
    assert seeds == "2" and 25 - low == pytest.approx(high - 25) and 10 < high - 25 < 150
    assert "in each of the other 3 domains" in text
    assert "- amazon, 64, MFT on the others, adapted, seed 2: has books, electronics, kitchen alone" in text


def test_mean_over_tasks_counts_each_once(modules, single_rows, monkeypatch):
    """Reviews +20 and inference -10 points, of three seeds each; a method that one task lacks is told."""
    together = {name: {d: np.arange(10) for d in "abcde"} for name in ("amazon", "mnli")}
    monkeypatch.setattr(modules["new_domain"], "find_clusters", lambda cells: together)
    cells = []
    for task, domains, right in (("amazon", "abcd", (8, 6)), ("mnli", "abcde", (5, 6))):
        for seed in range(3):
            for method, n in zip(("mft", "mix", "joint")[: 3 if task == "amazon" else 2], (*right, 8)):
                for new, cell in zip(
                    domains, new_domain_cells({(method, seed): (n,) * 4}) + new_domain_cells({(method, seed): (n,)})
                ):
                    cells.append({**cell, "task": task, "source": task, "new": new})
    text = modules["new_domain"].report(cells)
    _, _, section = text.partition("## The mean over tasks, 64 labelled rows")
    names = modules["new_domain"].NAMES
    [line] = [line for line in section.splitlines() if line.startswith(f"| MFT less: {names['mix']} |")]
    low, high = map(float, line.partition("+5.0 [")[2].partition("]")[0].split(","))
    assert low < 5 < high and 5 - low == pytest.approx(high - 5, abs=0.11)
    [line] = [line for line in section.splitlines() if line.startswith(f"| MFT less: {names['joint']} |")]
    assert "+0.0 [" in line and line.endswith("(1 of 2 tasks) |  |  |")


def test_reports_of_new_domains_that_lack_cells(modules, single_rows):
    new_domain = modules["new_domain"]
    with pytest.raises(ValueError, match="there are no cells yet"):
        new_domain.report([])
    text = new_domain.report(new_domain_cells({("mix", 0): (6, 6, 6, 6), ("mft", 0): (9, None, 9, 9)}))
    assert "| 60.0 |" in text and "MFT less" not in text
    cells = new_domain_cells({("mix", 0): (6, 6, 6, 6), ("mix", 1): (6, 6, 6, 6)})
    cells[-1]["settings"] = {"random_state": 1, "learning_rate": 1}
    with pytest.raises(ValueError, match="cells of 'mix' have different settings"):
        new_domain.report(cells)


def test_new_domains_run_what_is_missing_or_was_made_otherwise(small, single_rows, tmp_path, monkeypatch, capsys):
    new_domain, ran = small["new_domain"], []

    def run(task, method, new, labelled, seed):
        ran.append((new, method, seed))
        [cell] = new_domain_cells({(method, seed): (6, None, None, None)})
        return {**cell, "new": new, "settings": new_domain.settings(method, seed)}

    monkeypatch.setattr(new_domain, "run", run)
    monkeypatch.setattr(new_domain, "HERE", tmp_path)
    monkeypatch.setattr(new_domain.logging, "disable", lambda level: None)
    monkeypatch.setattr(new_domain.torch, "set_num_threads", lambda threads: None)
    (tmp_path / "results").mkdir()
    call = ["new_domain.py", "--tasks", "amazon", "--cells", str(tmp_path / "cells"), "--methods", "mft", "reptile"]

    def main(*more):
        monkeypatch.setattr(sys, "argv", [*call, *more])
        new_domain.main()

    main("--seeds", "0")
    main("--seeds", "0", "1")
    assert len(ran) == len(set(ran)) == 4 * 2 * 2
    monkeypatch.setattr(new_domain, "INNER_STEPS", 50)
    main("--seeds", "0")
    assert {method for _, method, _ in ran[16:]} == {"reptile"} and len(ran) == 20
    monkeypatch.setitem(new_domain.AUTO, "adaptation_learning_rate", {"full": 1e-3})
    main("--seeds", "0", "1")
    assert len(ran) == 36
    main("--report")
    assert "| MFT less: Reptile on the others, adapted | 2 |" in (tmp_path / "results" / "new_domain.md").read_text()
    capsys.readouterr()


# ---------------------------------------------------------------------- the paper's studies


def test_most_typical_rows_of_every_class_and_domain(modules):
    rows = pd.DataFrame({"domain": list("aaaaaab"), "y": [0, 0, 0, 0, 1, 1, 1]})
    kept = modules["studies"].most_typical(rows, np.array([0.1, 0.4, 0.3, 0.2, 0.5, 0.6, 0.0]), 0.5)
    assert sorted(kept.index) == [1, 2, 5, 6]  # at least one of each


def test_studies_train_on_the_share_they_say(small):
    studies = small["studies"]
    for setting, sizes in (("paper", [32]), ("typical 0.2", [32, 8]), ("random 0.6", [16])):
        small["fits"].clear()
        cell = studies.run("amazon", 8, 0, setting)
        assert [len(X) for X, _ in small["fits"]] == sizes  # "typical" scores all rows first
        assert cell["n_train"] == sizes[-1] and cell["n_test"] == 40
        if setting == "paper":
            reference = cell
            t = {text: value for key in ("most", "least") for *_, value, text in cell["extremes"][key]}
            assert set(t) <= set(small["fits"][0][0])
            assert len(cell["extremes"]["most"]) == 4 * 2 * 3
    seeds = [{**c, "seed": s} for c in (reference, {**cell, "setting": "weight 0", "accuracy": 0.5}) for s in range(2)]
    with pytest.raises(ValueError, match="there are no cells yet"):
        studies.report([])
    assert "The paper's recipe, the reference, has not been run." in studies.report(seeds[2:])
    text = studies.report(seeds)
    assert "## amazon, 8 labelled a domain (40 test rows)" in text
    assert f"| 0 | 2 | 50.0 ± 0.0 | {50 - 100 * reference['accuracy']:+.1f} ± 0.0 |" in text


# ---------------------------------------------------------------------- hypotheses


def test_hypotheses_are_scored_on_rows_of_the_pool_that_training_has_not_seen(small, monkeypatch):
    hypotheses, scored, plain = small["hypotheses"], [], MetaFineTunedClassifier.predict
    monkeypatch.setattr(MetaFineTunedClassifier, "predict", lambda self, X: scored.append(list(X)) or plain(self, X))
    cell = hypotheses.run("amazon", 8, 0, "all, twice the steps")
    [(texts, _)] = small["fits"]
    [valid] = scored
    assert len(texts) == 32 and cell["n_valid"] == len(valid) == 128
    assert not set(valid) & set(texts) and set(valid) <= set(POOL["text"])
    assert cell["params"]["meta_epochs"] == 2 * 60  # 32 rows are one batch, and auto is 60 steps


def test_hypotheses_run_what_is_missing_and_report_it(small, tmp_path, monkeypatch, capsys):
    hypotheses, ran = small["hypotheses"], []
    monkeypatch.setattr(hypotheses, "CELLS", tmp_path / "cells")
    monkeypatch.setattr(hypotheses, "HERE", tmp_path)
    monkeypatch.setattr(hypotheses.logging, "disable", lambda level: None)
    (tmp_path / "results").mkdir()

    def run(task, shots, seed, setting):
        ran.append((seed, setting))
        accuracy = {"mix": 0.7, "probe": 0.75}[setting] + 0.01 * seed
        return {"task": task, "shots": shots, "seed": seed, "setting": setting, "accuracy": accuracy} | {
            "params": hypotheses.SETTINGS[setting],
            "n_train": 32,
            "n_valid": 128,
            "seconds": 1.0,
            "machine": "one",
        }

    monkeypatch.setattr(hypotheses, "run", run)
    call = ["hypotheses.py", "--tasks", "amazon", "--shots", "8", "--settings", "mix", "probe", "--seeds"]
    for seeds in ("0", "1"), ("0", "1", "2"):
        monkeypatch.setattr(sys, "argv", [*call, *seeds])
        hypotheses.main()
    assert sorted(ran) == [(s, name) for s in range(3) for name in ("mix", "probe")]
    monkeypatch.setitem(hypotheses.SETTINGS, "probe", {**hypotheses.SETTINGS["probe"], "warmup_ratio": 0.2})
    hypotheses.main()
    assert ran[6:] == [(s, "probe") for s in range(3)]  # what was made with other settings is run again
    assert all(json.loads(p.read_text())["task"] == "amazon" for p in (tmp_path / "cells").glob("*"))
    monkeypatch.setattr(sys, "argv", ["hypotheses.py", "--report"])
    hypotheses.main()
    assert "| probe | 3 | 76.0 | +5.0 ± 0.0 |" in (tmp_path / "results" / "hypotheses.md").read_text()
    capsys.readouterr()


def test_interpolation_scores_the_weights_that_the_parameter_gives(small):
    interpolation = small["interpolation"]
    cell = interpolation.run("mnli", 8, 2, 0)
    texts = small["fits"][0][0]
    assert len(texts) == cell["n_train"] == 32 and cell["n_valid"] == 128
    assert cell["settings"]["weight_interpolation"] == 1 and list(cell["accuracy"]) == [
        "0",
        "0.25",
        "0.5",
        "0.75",
        "1.0",
    ]
    valid = POOL[~POOL["text"].isin(texts)]
    train = POOL.set_index("text").loc[texts].reset_index()
    for share in (0.5, 1.0):
        clf = interpolation.MetaFineTunedClassifier(adaptation=None, random_state=0, weight_interpolation=share)
        clf.fit(texts, train["y"], domains=train["domain"].to_numpy())
        assert clf.score(valid["text"], valid["y"]) == cell["accuracy"][str(share)]
    cells = [{**cell, "seed": s, "accuracy": {"0.5": a, "1.0": 0.5}} for s, a in ((3, 0.6), (4, 0.7))]
    *_, accuracy, difference = interpolation.report(cells).splitlines()
    assert accuracy == "| mnli, 8 labelled a domain (32 rows, 128 scored) | 3 4 | 65.0 ± 63.5 | 50.0 ± 0.0 |"
    assert difference == "| less the end |  | +15.0 ± 63.5 |  |"


def test_interpolation_of_stage_3_goes_from_the_meta_learner_to_the_domains(small):
    interpolation = small["interpolation"]
    cell = interpolation.run("amazon", 8, 3, 0)
    texts, domains = small["fits"][0]
    valid, train = POOL[~POOL["text"].isin(texts)], POOL.set_index("text").loc[texts].reset_index()
    clf = interpolation.MetaFineTunedClassifier(random_state=0).fit(texts, train["y"], domains=domains)
    assert cell["settings"]["adaptation"] == "full" and cell["n_valid"] == len(valid)
    assert cell["accuracy"]["0"] == clf.score(valid["text"], valid["y"])
    assert cell["accuracy"]["1.0"] == clf.score(valid["text"], valid["y"], domains=valid["domain"].to_numpy())
    accuracies = ({"0": 0.5, "1.0": 0.6}, {"0": 0.5, "1.0": 0.7})
    text = interpolation.report([{**cell, "seed": s, "accuracy": a} for s, a in zip((3, 4), accuracies)])
    assert "## Stage 3" in text and "## Stage 2" not in text
    assert text.splitlines()[-1] == "| less the start |  |  | +15.0 ± 63.5 |"
