"""The benchmarks beside the few-shot one: new domains, the paper's studies, domain invariance and more, on a tiny encoder."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import import_benchmarks, make_texts

from skmft import MetaFineTunedClassifier
from skmft._engine.model import ModelOutput
from skmft.recipes import Stage, Trained


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
    names = [
        "new_domain",
        "studies",
        "hypotheses",
        "interpolation",
        "domain_invariance",
        "many_domains",
        "choose_defaults",
    ]
    names += ["engine_accuracy", "lib.engine", "lib.tasks", "lib.cells", "lib.recipes", "lib.report", "lib.statistics"]
    return {name.removeprefix("lib."): module for name, module in zip(names, import_benchmarks(*names))}


@pytest.fixture
def small(modules, tiny, tmp_path, monkeypatch):
    """The modules on small data and a tiny encoder, with results of their own; "fits": what every training was given."""
    fits, fit = [], MetaFineTunedClassifier.fit

    def watched(self, X, y, domains=None, sample_weight=None):
        fits.append((list(X), list(domains)))
        return fit(self, X, y, domains, sample_weight)

    def classifier(**params):
        return MetaFineTunedClassifier(tiny, max_length=16, **{"meta_epochs": 1, **params})

    plain = modules["engine"].paper
    monkeypatch.setattr(MetaFineTunedClassifier, "fit", watched)
    monkeypatch.setattr(modules["engine"], "MetaFineTunedClassifier", classifier)
    monkeypatch.setattr(modules["engine"], "DEFAULT_MODEL", tiny)
    classifier.from_paper = MetaFineTunedClassifier.from_paper
    paper = functools.partial(plain, tiny, max_length=16)
    monkeypatch.setattr(modules["engine"], "paper", lambda **params: paper(**{"meta_epochs": 1, **params}))
    monkeypatch.setattr(modules["tasks"], "never_tested", lambda task: POOL)
    for name in ("tasks", "domain_invariance", "many_domains", "choose_defaults", "engine_accuracy"):
        monkeypatch.setattr(modules[name], "rows_of", lambda source: (POOL, TEST))
    for name in ("new_domain", "hypotheses", "interpolation", "domain_invariance"):
        monkeypatch.setattr(modules[name], "start", lambda threads=None: None)
    monkeypatch.setattr(modules["report"], "RESULTS", tmp_path / "results")
    return {**modules, "fits": fits, "cells": modules["cells"].Cells(tmp_path / "cells")}


# ---------------------------------------------------------------------- new domains


@pytest.mark.parametrize("method", ["mft", "mix", "reptile"])
def test_methods_that_adapt_never_train_on_the_new_domain_before(small, monkeypatch, method):
    new_domain, adapting, plain = small["new_domain"], [], MetaFineTunedClassifier.adapt

    def adapt(self, X, y, domain):
        adapting.append((list(X), list(y), domain, self.meta_learner_))
        return plain(self, X, y, domain)

    monkeypatch.setattr(MetaFineTunedClassifier, "adapt", adapt)
    cell = new_domain.run("amazon", 8, "dvd", method, 0)
    [(texts, domains)] = small["fits"]
    assert sorted(domains) == ["books"] * 8 + ["kitchen"] * 8 + ["music"] * 8
    assert {n: len(bits) for n, bits in cell["correct"].items()} == dict.fromkeys(map(str, new_domain.SHOTS), 10)
    # nested shots of the new domain, balanced, none of them a test row, each time from the same meta-learner
    assert [len(X) for X, *_ in adapting] == [4, 8, 16, 32]
    assert {name for _, _, name, _ in adapting} == {"dvd"} and len({id(model) for *_, model in adapting}) == 1
    for X, y, *_ in adapting:
        assert X == adapting[-1][0][: len(X)] and y.count("pos") == len(y) // 2
        assert set(X) <= set(POOL.loc[POOL["domain"] == "dvd", "text"]) - set(texts)


def test_methods_that_start_anew(small):
    cell = small["new_domain"].run("amazon", 8, "dvd", "alone", 0)
    assert [(len(d), set(d)) for _, d in small["fits"]] == [(n, {"dvd"}) for n in (4, 8, 16, 32)]
    assert list(cell["correct"]) == ["4", "8", "16", "32"]
    small["fits"].clear()
    cell = small["new_domain"].run("amazon", 8, "dvd", "joint", 0)
    assert [d.count("dvd") for _, d in small["fits"]] == [0, 4, 8, 16, 32]
    assert all(len(d) - d.count("dvd") == 24 for _, d in small["fits"])


def test_reptile_moves_as_far_as_its_outer_steps_say(small, monkeypatch):
    """With an inner loop that adds 1 to every tensor: by the sum of the outer step sizes, which fall linearly to 0."""
    starts, taken, purposes = [], [], []

    def add_one(stage, recipe, model, rows, *, epochs, purpose):
        assert len(rows) <= 40 and len(set(rows.domains.tolist())) == 1  # the pool has 160, of four domains
        assert stage.settings.warmup_ratio == 0
        starts.append([t.detach().clone() for t in model.parameters()])
        taken.append(epochs * -(-len(rows) // stage.settings.batch_size))
        purposes.append(purpose)
        for tensor in model.parameters():
            tensor.data += 1
        return Trained(model, [{"stage": "meta"}])

    monkeypatch.setattr(Stage, "train", add_one)
    clf = small["new_domain"].classifier("reptile", 0).set_params(meta_epochs=5)
    clf.fit(POOL["text"], POOL["y"], domains=POOL["domain"].to_numpy())
    steps = 5 * 5  # 160 rows in batches of 32
    before = np.cumsum([0, *taken[:-1]])
    assert len(taken) > 2 and before[-1] < steps <= sum(taken)
    assert len(set(purposes)) == len(taken) == len(clf.history_)
    expected = np.sum(1 - before / steps)
    for tensor, start in zip(clf.meta_learner_.parameters(), starts[0], strict=True):
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
    lines = modules["new_domain"].report(new_domain_cells(right))
    text = "\n".join(lines)
    parts = [[c.strip() for c in line.split("|")[1:-1]] for line in lines]
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
    text = "\n".join(modules["new_domain"].report(cells))
    _, _, section = text.partition("## The mean over tasks, 64 labelled rows")
    names = modules["new_domain"].NAMES
    [line] = [line for line in section.splitlines() if line.startswith(f"| MFT less: {names['mix']} |")]
    low, high = map(float, line.partition("+5.0 [")[2].partition("]")[0].split(","))
    assert low < 5 < high and 5 - low == pytest.approx(high - 5, abs=0.11)
    [line] = [line for line in section.splitlines() if line.startswith(f"| MFT less: {names['joint']} |")]
    assert "+0.0 [" in line and line.endswith("(1 of 2 tasks) |  |  |")


def test_reports_of_new_domains_that_lack_cells(small, single_rows):
    new_domain = small["new_domain"]
    with pytest.raises(SystemExit, match=r"cells.jsonl has no cells"):
        new_domain.main(["--report", "--cells", str(small["cells"])])
    text = "\n".join(new_domain.report(new_domain_cells({("mix", 0): (6, 6, 6, 6), ("mft", 0): (9, None, 9, 9)})))
    assert "| 60.0 |" in text and "MFT less" not in text
    cells = new_domain_cells({("mix", 0): (6, 6, 6, 6), ("mix", 1): (6, 6, 6, 6)})
    cells[-1]["settings"] = {"random_state": 1, "learning_rate": 1}
    for i, cell in enumerate(cells):
        small["cells"].add(str(i), cell)
    with pytest.raises(SystemExit, match="cells of 'mix' have different settings"):
        new_domain.main(["--report", "--cells", str(small["cells"])])


def test_new_domains_run_what_is_missing_or_was_made_otherwise(small, single_rows, monkeypatch):
    new_domain, ran = small["new_domain"], []

    def run(task, labelled, new, method, seed):
        ran.append((new, method, seed))
        [cell] = new_domain_cells({(method, seed): (6, None, None, None)})
        return {**cell, "new": new, "settings": new_domain.settings(method, seed)}

    monkeypatch.setattr(new_domain, "run", run)

    def main(*more):
        new_domain.main(["--tasks", "amazon", "--cells", str(small["cells"]), "--methods", "mft", "reptile", *more])

    main("--seeds", "0")
    main("--seeds", "0", "1")
    assert len(ran) == len(set(ran)) == 4 * 2 * 2
    monkeypatch.setattr(new_domain, "INNER_STEPS", 50)
    main("--seeds", "0")
    assert {method for _, method, _ in ran[16:]} == {"reptile"} and len(ran) == 20
    monkeypatch.setattr(small["engine"], "ADAPTATION_LEARNING_RATES", {"full": 1e-3})
    main("--seeds", "0", "1")
    assert len(ran) == 36
    main("--report")
    page = (small["report"].RESULTS / "new_domain.md").read_text()
    assert "| MFT less: Reptile on the others, adapted | 2 |" in page


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
    seeds = [
        {**c, "seed": s, "machine": "one"} for s in range(2) for c in (reference, {**reference, "setting": "weight 0"})
    ]
    for cell in seeds[1::2]:
        cell["accuracy"] = 0.5
    seeds = [{"task": "amazon", "shots": 8, "setting": "paper", **cell} for cell in seeds]
    assert "The paper's recipe, the reference, has not been run." in studies.report(seeds[1::2])
    lines = studies.report(seeds)
    assert "## amazon, 8 labelled a domain (40 test rows)" in lines
    assert f"| 0 | 2 | 50.0 ± 0.0 | {50 - 100 * reference['accuracy']:+.1f} ± 0.0 |" in lines
    layers = studies.classifier("layers middle and last", 0).recipe
    assert layers.corruption_layers == (2, 5)


# ---------------------------------------------------------------------- hypotheses


def test_hypotheses_are_scored_on_rows_of_the_pool_that_training_has_not_seen(small, monkeypatch):
    hypotheses, scored, plain = small["hypotheses"], [], MetaFineTunedClassifier.predict
    monkeypatch.setattr(MetaFineTunedClassifier, "predict", lambda self, X: scored.append(list(X)) or plain(self, X))
    monkeypatch.setattr(small["engine"], "epochs_of", lambda n_rows: 2 if n_rows == 32 else None)
    cell = hypotheses.run("amazon", 8, 0, "all, twice the steps")
    [(texts, _)] = small["fits"]
    [valid] = scored
    assert len(texts) == 32 and cell["n_valid"] == len(valid) == 128
    assert not set(valid) & set(texts) and set(valid) <= set(POOL["text"])
    assert cell["params"]["meta_epochs"] == 2 * 2


def test_hypotheses_run_what_is_missing_and_report_it(small, monkeypatch):
    hypotheses, ran = small["hypotheses"], []

    def run(task, shots, seed, setting):
        ran.append((seed, setting))
        accuracy = {"mix": 0.7, "probe": 0.75}[setting] + 0.01 * seed
        cell = {"accuracy": accuracy, "params": hypotheses.SETTINGS[setting], "n_train": 32, "n_valid": 128}
        return {**cell, "seconds": 1.0}

    monkeypatch.setattr(hypotheses, "run", run)
    call = ["--tasks", "amazon", "--shots", "8", "--settings", "mix", "probe", "--cells", str(small["cells"])]
    for seeds in ("0", "1"), ("0", "1", "2"):
        hypotheses.main([*call, "--seeds", *seeds])
    assert sorted(ran) == [(s, name) for s in range(3) for name in ("mix", "probe")]
    monkeypatch.setitem(hypotheses.SETTINGS, "probe", {**hypotheses.SETTINGS["probe"], "learning_rate": 0.2})
    hypotheses.main([*call, "--seeds", "0", "1", "2"])
    assert ran[6:] == [(s, "probe") for s in range(3)]  # what was made with other settings is run again
    hypotheses.main(["--report", "--cells", str(small["cells"])])
    assert "| probe | 3 | 76.0 | +5.0 ± 0.0 |" in (small["report"].RESULTS / "hypotheses.md").read_text()


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
        clf = small["engine"].MetaFineTunedClassifier(adaptation=None, random_state=0, weight_interpolation=share)
        clf.fit(texts, train["y"], domains=train["domain"].to_numpy())
        assert clf.score(valid["text"], valid["y"]) == cell["accuracy"][str(share)]
    keys = {"task": "mnli", "shots": 8, "stage": 2, "machine": "one", "code": "c"}
    cells = [{**cell, **keys, "seed": s, "accuracy": {"0.5": a, "1.0": 0.5}} for s, a in ((3, 0.6), (4, 0.7))]
    *_, accuracy, difference = interpolation.report(cells)
    assert accuracy == "| mnli, 8 labelled a domain (32 rows, 128 scored) | 3 4 | 65.0 ± 63.5 | 50.0 ± 0.0 |"
    assert difference == "| less the end |  | +15.0 ± 63.5 |  |"


def test_interpolation_of_stage_3_goes_from_the_meta_learner_to_the_domains(small):
    interpolation = small["interpolation"]
    cell = interpolation.run("amazon", 8, 3, 0)
    texts, domains = small["fits"][0]
    valid, train = POOL[~POOL["text"].isin(texts)], POOL.set_index("text").loc[texts].reset_index()
    clf = small["engine"].MetaFineTunedClassifier(random_state=0).fit(texts, train["y"], domains=domains)
    assert cell["settings"]["adaptation"] == "full" and cell["n_valid"] == len(valid)
    assert cell["accuracy"]["0"] == clf.score(valid["text"], valid["y"])
    assert cell["accuracy"]["1.0"] == clf.score(valid["text"], valid["y"], domains=valid["domain"].to_numpy())
    accuracies = ({"0": 0.5, "1.0": 0.6}, {"0": 0.5, "1.0": 0.7})
    keys = {"task": "amazon", "shots": 8, "stage": 3, "machine": "one", "code": "c"}
    lines = interpolation.report([{**cell, **keys, "seed": s, "accuracy": a} for s, a in zip((3, 4), accuracies)])
    assert [line for line in lines if line.startswith("## ")] == [
        "## Stage 3: from the meta-learner to each domain's model"
    ]
    assert lines[-1] == "| less the start |  |  | +15.0 ± 63.5 |"


# ---------------------------------------------------------------------- domain invariance


@pytest.mark.parametrize(
    ("kind", "names"), [("corruption", {"label", "corruption"}), ("adversarial", None), ("means", None)]
)
def test_losses_against_domains(small, monkeypatch, kind, names):
    domain_invariance = small["domain_invariance"]
    monkeypatch.setattr(domain_invariance, "VALIDATION", 8)
    monkeypatch.setattr(domain_invariance, "draw", lambda pool, shots, seed: small["tasks"].draw(pool, 8, seed))
    cell = domain_invariance.run(kind, 0.5, 0)
    [(texts, _)] = small["fits"]
    assert len(texts) == 32 and 0 < cell["corruption_loss"] < 3
    assert (cell["domain_accuracy"] is None) == (kind == "means")
    for when in ("gradients_before", "gradients_after"):
        assert (set(cell[when]) if when in cell else None) == names
    cells = [{**cell, "kind": kind, "weight": 0.5, "seed": s, "machine": "one", "code": "c"} for s in range(2)]
    ours = [{**c, "kind": "corruption", "weight": 0.0, "probe_before": 0.5} for c in cells]
    lines = domain_invariance.report(cells + ours)
    name = {"corruption": "domain corruption", "means": "distance of domain means"}.get(kind, kind)
    [line] = [line for line in lines if line.startswith(f"| {name} | 0.5 |")]
    assert f"| {cell['accuracy']:.3f} ± 0.000 | {cell['probe']:.3f} ± 0.000 | {cell['corruption_loss']:.3f} |" in line
    (small["report"].RESULTS).mkdir()
    domain_invariance.draw_figure(ours)
    assert (small["report"].RESULTS / "domain_invariance.png").stat().st_size > 1000


def test_the_domain_probe(modules):
    rng = np.random.default_rng(0)
    d = np.repeat(["books", "dvd"], [300, 100])
    scores = []
    for shift in (0, 1, 6):
        embeddings = rng.normal(size=(400, 4))
        embeddings[:, 0] += shift * (d == "dvd")
        scores.append(modules["statistics"].domain_probe(embeddings, d))
    assert abs(scores[0]) < 0.1
    assert scores[0] < scores[1] < scores[2]
    assert scores[2] > 0.95
    assert scores[2] == modules["statistics"].domain_probe(embeddings, d)


def test_the_share_between_domains_by_hand(modules):
    model, Z = None, torch.tensor([[0.0, 0.0], [2.0, 0.0], [4.0, 4.0], [6.0, 4.0]])
    output = ModelOutput(torch.zeros(4, 2), Z, [])
    batch = {"y": torch.tensor([0, 1, 0, 1]), "weight": torch.ones(4), "domain": torch.tensor([0, 0, 1, 1])}
    weight, share = modules["recipes"].MeanDistance(0.3).terms(model, output, batch)["domain_loss"]
    assert weight == 0.3 and float(share) == pytest.approx(32 / 36)  # means (-2, -2) and (2, 2) of 36 in all


def test_the_adversary_turns_the_gradient_round(modules):
    recipe, Z = modules["recipes"].Adversarial(1.0), torch.randn(4, 3, requires_grad=True)
    head = torch.nn.Linear(3, 2)
    model = type("Model", (), {"heads": {"domain": head}})
    batch = {"y": torch.tensor([0, 1, 0, 1]), "weight": torch.ones(4), "domain": torch.tensor([0, 0, 1, 1])}
    terms = recipe.terms(model, ModelOutput(torch.zeros(4, 2), Z, []), batch)
    plain = torch.nn.functional.cross_entropy(head(Z), batch["domain"])
    assert terms["domain_loss"][1].item() == pytest.approx(plain.item())
    for of, sign in ((Z, -1), (head.weight, 1)):
        [ours] = torch.autograd.grad(terms["domain_loss"][1], of, retain_graph=True)
        [theirs] = torch.autograd.grad(plain, of, retain_graph=True)
        torch.testing.assert_close(ours, sign * theirs)


# ---------------------------------------------------------------------- cost, the engine, the defaults


@pytest.mark.slow
def test_cost_of_many_domains(small, monkeypatch):
    pytest.importorskip("peft", reason="needs the extra skmft[lora]")
    many_domains, pool = small["many_domains"], make_rows(800, 0)
    pool["hash"] = [small["tasks"].text_hash(text) for text in pool["text"]]
    monkeypatch.setattr(many_domains, "rows_of", lambda source: (pool, TEST))
    monkeypatch.setattr(many_domains, "REPEATS", 2)
    many_domains.sixteen_domains.cache_clear()
    found = {method: many_domains.cost("cpu", method, 64) for method in many_domains.METHODS}
    held = {method: cell["held"] / cell["encoder"] for method, cell in found.items()}
    assert 1 < held["head"] < held["lora"] < held["full"] and held["full"] == pytest.approx(17, abs=1.5)
    memory, meta = found["full"]["memory"], found["full"]["memory_of_meta"]
    assert memory["weights"] == pytest.approx(2 * found["full"]["encoder"], rel=0.1)  # one other network at a time
    assert meta["weights"] == pytest.approx(found["full"]["encoder"], rel=0.1) and memory["peak"] > memory["weights"]
    assert set(found["lora"]["throughput"]) == set(many_domains.NAMES)
    assert all(len(rates) == 2 for rates in found["lora"]["throughput"].values())
    for method, cell in found.items():
        small["cells"].add(method, {**cell, "device": "cpu", "method": method, "machine": "one"})
    monkeypatch.setattr("sys.argv", ["many_domains.py", "report", "--cells", str(small["cells"])])
    many_domains.main()
    assert f"| lora | {held['lora']:.3f} |" in (small["report"].RESULTS / "many_domains.md").read_text()


@pytest.mark.slow
def test_the_plain_loop_learns_what_the_engine_learns(small, monkeypatch):
    engine_accuracy, engine = small["engine_accuracy"], small["engine"]
    monkeypatch.setattr(engine_accuracy, "EXTRA_PER_DOMAIN", 10)
    settings = {**engine.optimiser(), "learning_rate": 3e-3}
    monkeypatch.setattr(engine, "optimiser", lambda: settings)
    paper = engine.paper
    monkeypatch.setattr(engine, "paper", lambda **params: paper(**{"learning_rate": 3e-3, "meta_epochs": 60, **params}))
    cell = engine_accuracy.run(8, 0)
    assert cell["n_test"] == 40 + 4 * 10 and min(cell["accuracy"].values()) > 0.9


def test_defaults_are_chosen_on_a_grid(small, monkeypatch):
    choose = small["choose_defaults"]
    grids = {"META_GRID": {("snippets", 8): (2, (4,))}, "META_RATES": (1e-4, 1e-3), "META_BETWEEN": []}
    grids |= {"VALIDATION_PER_DOMAIN": 10, "ADAPTATION_GRID": {("snippets", 8): 2}}
    grids |= {"SETTINGS": {"adaptation": [("head", 1e-3, 1)], "new": [("head", 1e-3, 1)]}}
    for name, value in grids.items():
        monkeypatch.setattr(choose, name, value)
    monkeypatch.setattr(choose, "start", lambda: None)
    with pytest.raises(SystemExit, match="has no cells"):
        choose.main(["report", "--cells", str(small["cells"])])
    for what in ("adaptation", "meta", "meta"):
        choose.main([what, "--cells", str(small["cells"])])
    assert len(small["fits"]) == 2 + 2 * 2 == len(small["cells"].read())
    choose.main(["report", "--cells", str(small["cells"])])
    page = (small["report"].RESULTS / "choose_defaults.md").read_text()
    found = small["cells"].read()
    mean = 50 * sum(found[f"meta-snippets-8-{seed}-0.001-4"]["accuracy"] for seed in range(2))
    assert f"| 0.001 | 4 | {mean:.1f} | {mean:.1f} |" in page and "| head 0.001 x 1 | " in page
