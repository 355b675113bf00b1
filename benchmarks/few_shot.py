"""Few-shot learning curves on the paper's three tasks: every method, shot count and seed a cell, one JSON file each.

Within a cell's task, shots and seed, all methods learn from the same rows and are scored on the same frozen test rows. All
methods that fine-tune take the same number of optimiser steps a model: those of stage 2 at the defaults, batches of 32 rows
(stage 3 comes on top; of "single", every domain's model takes them; "setfit" takes 132, and "exact" 2 epochs). The cells that
cost least come first; finished cells are skipped, so that a run can be stopped at any time and gone on with later. `report.py`
makes tables and curves of the cells.

    python benchmarks/few_shot.py --plan                     # what is to do and about how long it takes
    python benchmarks/few_shot.py --hours 2                  # as much of it as 2 CPU hours hold
    python benchmarks/few_shot.py --shots headline           # two columns of each task, those of the report's means
    python benchmarks/few_shot.py --shots 16 mnli:256        # 16 labelled rows of the tasks that have it, 256 of inference
    python benchmarks/few_shot.py --threads 1 --jobs 2       # two cells at a time, a thread each
    python benchmarks/few_shot.py --verify 3                 # runs 3 finished cells again and compares
    python benchmarks/few_shot.py --against benchmarks/cells/few_shot_again   # compares two machines' cells
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tasks import CODE, HERE, draw, inputs, machine, paper, split, text_columns

from skmft import MetaFineTunedClassifier
from skmft.baselines import (
    DomainAdversarialClassifier,
    MixedDomainClassifier,
    MultiTaskClassifier,
    SingleDomainClassifier,
)
from skmft.classifier import MOST_ROWS_APART
from skmft.networks import DEFAULT_MODEL, find_encoder
from skmft.stages import ADAPTATION_EPOCHS, ADAPTATION_LEARNING_RATES, META_EPOCHS
from skmft.training import auto_epochs, has_native_bfloat16, resolve_device

CELLS = HERE / "cells" / "few_shot"
FEW = (8, 16, 32, 64, 128, "full")
SHOTS = {"amazon": FEW, "mnli": (64, 256, 1000, 4000), "hypernyms": FEW}  # labelled rows a domain
HEADLINE = ("amazon:16", "amazon:64", "mnli:256", "mnli:1000", "hypernyms:16", "hypernyms:64")  # what means are over
DOMAINS = {"amazon": 4, "mnli": 5, "hypernyms": 3}
HYPERNYM_SPLITS = 5  # few pairs of vehicles are left in one split of the terms, so seeds take turns among these
NAMES = {  # what is scored; one fit may give two
    "tfidf": "TF-IDF + linear SVM",
    "embeddings": "un-tuned embeddings + logistic regression",
    "embeddings_single": "the same, a domain alone",
    "setfit": "SetFit",
    "setfit_equal": "SetFit, in as many steps as the others",
    "trainer": "Hugging Face Trainer on the mix",
    "single": "S: fine-tuning, a domain alone",
    "mix": "Mix: fine-tuning on the mix",
    "mtl": "MTL: shared encoder, a head a domain",
    "adv": "Adv: domain-adversarial",
    "mix_bi": "Mix, the texts of pairs encoded apart",
    "tw": "TW: the paper's typicality weights alone",
    "dc": "DC: the paper's domain corruption alone",
    "paper": "the paper's MFT: meta-learner",
    "paper_adapted": "the paper's MFT: adapted to each domain",
    "exact": "the paper's MFT at its own learning rate and epochs: meta-learner",
    "exact_adapted": "the same, adapted to each domain",
    "meta": "MFT: meta-learner",
    "adapted": "MFT: adapted to each domain",
}
SETFIT_PAIRS = 16  # a batch, so that a step reads 32 texts as everywhere else
SETFIT_STEPS = (
    132  # its default, an epoch of its pairs, at 16 labelled reviews a domain; more took over 10 minutes a cell
)
AUTO = {  # what "auto" stands for, so that cells tell when it changes
    "meta_epochs": META_EPOCHS,
    "adaptation_epochs": ADAPTATION_EPOCHS,
    "adaptation_learning_rate": ADAPTATION_LEARNING_RATES,
    "pair_encoding": MOST_ROWS_APART,
}


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

    @property
    def source(self) -> str:
        """The task's name in `tasks`."""
        return f"hypernyms {self.seed % HYPERNYM_SPLITS}" if self.task == "hypernyms" else self.task


@dataclass
class Data:
    """Rows of one cell, and the settings that all estimators share."""

    train: pd.DataFrame
    test: pd.DataFrame
    seed: int
    common: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)  # steps, settings; goes into the file

    @property
    def steps(self) -> int:
        """Optimiser steps of stage 2 on these rows: the budget of every model that is fine-tuned."""
        return budget(len(self.train), self.batch_size, self.common.get("meta_epochs"))

    @property
    def batch_size(self) -> int:
        return MetaFineTunedClassifier().batch_size


def budget(n_rows: int, batch_size: int = 32, epochs: int | None = None) -> int:
    return (epochs or auto_epochs(n_rows, batch_size, **META_EPOCHS)) * math.ceil(n_rows / batch_size)


Results = dict[str, tuple[np.ndarray, float]]  # of a name in NAMES: predicted labels, seconds of fitting


# ---------------------------------------------------------------------- methods


def ours(cls: Callable[..., Any], **params: Any) -> Callable[[Data], Any]:
    def make(data: Data) -> Any:
        return cls(random_state=data.seed, **data.common, **params)

    return make


def exact(data: Data) -> Any:
    return MetaFineTunedClassifier.from_paper(data.common["model"], random_state=data.seed)


def fit(data: Data, make: Callable[[Data], Any]) -> tuple[Any, float]:
    clf = make(data)
    start = time.perf_counter()
    clf.fit(inputs(data.train), data.train["y"].to_numpy(), domains=data.train["domain"].to_numpy())
    sizes = data.train["domain"].value_counts()
    epochs = [h for h in clf.history_ if h["stage"] == "meta"]
    rows = [sizes[h["domain"]] if "domain" in h else len(data.train) for h in epochs]
    data.about["steps"] = int(sum(math.ceil(n / clf.batch_size) for n in rows))
    return clf, time.perf_counter() - start


def one_model(name: str, make: Callable[[Data], Any]) -> Callable[[Data], Results]:
    def run(data: Data) -> Results:
        clf, seconds = fit(data, make)
        return {name: (clf.predict(inputs(data.test), domains=data.test["domain"].to_numpy()), seconds)}

    run.make = make  # type: ignore[attr-defined]
    return run


def two_models(meta: str, adapted: str, make: Callable[[Data], Any]) -> Callable[[Data], Results]:
    """One fit for both: the meta-learner, and what stage 3 makes of it."""

    def run(data: Data) -> Results:
        clf, seconds = fit(data, make)
        adapting = sum(h.get("seconds", 0.0) for h in clf.history_ if h["stage"] == "adaptation")
        X = inputs(data.test)
        return {
            meta: (clf.predict(X), seconds - adapting),
            adapted: (clf.predict(X, domains=data.test["domain"].to_numpy()), seconds),
        }

    run.make = make  # type: ignore[attr-defined]
    return run


def tfidf(data: Data) -> Results:
    """Words and pairs of words of each text, all domains together; C by cross-validation on the training rows."""
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    columns = text_columns(data.train)
    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    features = ColumnTransformer([(c, vectorizer, c) for c in columns])
    start = time.perf_counter()
    clf = choose_c(
        make_pipeline(features, LinearSVC(max_iter=20_000)), "linearsvc__C", data.train, data.train["y"], data.seed
    )
    return {"tfidf": (clf.predict(data.test), time.perf_counter() - start)}


def embeddings(data: Data) -> Results:
    """Logistic regression on sentence-transformers' embeddings, all domains together and each alone.

    Of a pair (u, v) the features are u, v, |u - v| and u * v (Conneau et al., EMNLP 2017); C by cross-validation.
    """
    from sklearn.linear_model import LogisticRegression

    start = time.perf_counter()
    Z, y, d = embed(data.train, data.common["model"]), data.train["y"].to_numpy(), data.train["domain"].to_numpy()
    embedding = time.perf_counter() - start
    Z_test, d_test = embed(data.test, data.common["model"]), data.test["domain"].to_numpy()
    start = time.perf_counter()
    clf = choose_c(LogisticRegression(max_iter=2000), "C", Z, y, data.seed)
    pooled, seconds = clf.predict(Z_test), time.perf_counter() - start
    start, alone = time.perf_counter(), np.empty(len(Z_test), dtype=object)
    for domain in sorted(set(d)):
        own = choose_c(LogisticRegression(max_iter=2000), "C", Z[d == domain], y[d == domain], data.seed)
        alone[d_test == domain] = own.predict(Z_test[d_test == domain])
    return {
        "embeddings": (pooled, embedding + seconds),
        "embeddings_single": (alone, embedding + time.perf_counter() - start),
    }


_embedded: dict[tuple[str, str], np.ndarray] = {}


def embed(frame: pd.DataFrame, model: str) -> np.ndarray:
    """Features of a frame's rows, shape (n_rows, dim or 4 * dim); a text is embedded once a process."""
    from sentence_transformers import SentenceTransformer

    columns = text_columns(frame)
    missing = sorted({t for c in columns for t in frame[c] if (model, t) not in _embedded})
    if missing:
        encoder = SentenceTransformer(find_encoder(model).folder)
        encoder.max_seq_length = MetaFineTunedClassifier().max_length
        encoder.tokenizer.backend_tokenizer.no_padding()
        vectors = encoder.encode(missing, normalize_embeddings=True, show_progress_bar=False)
        _embedded.update({(model, text): vector for text, vector in zip(missing, vectors)})
    u, *rest = (np.stack([_embedded[model, t] for t in frame[c]]) for c in columns)
    return np.hstack([u, rest[0], np.abs(u - rest[0]), u * rest[0]]) if rest else u


def choose_c(clf: Any, name: str, X: Any, y: Any, seed: int) -> Any:
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    folds = StratifiedKFold(int(min(5, pd.Series(y).value_counts().min())), shuffle=True, random_state=seed)
    return GridSearchCV(clf, {name: [0.1, 1.0, 10.0, 100.0]}, cv=folds).fit(X, y)


def trainer(data: Data) -> Results:
    """The Hugging Face Trainer on all domains together, at its defaults but for what makes it comparable.

    That is: the learning rate, warm-up, weight decay, batch and steps of all others, bfloat16 where the device multiplies it,
    length 128.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folder, columns, device = (
        find_encoder(data.common["model"]).folder,
        text_columns(data.train),
        resolve_device("auto"),
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.no_padding()
    classes = sorted(data.train["y"].unique())

    def rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
        texts = [frame[c].tolist() for c in columns]
        encoded = tokenizer(*texts, truncation=True, max_length=MetaFineTunedClassifier().max_length)
        labels = [classes.index(y) for y in frame["y"]]
        return [{**{k: v[i] for k, v in encoded.items()}, "labels": label} for i, label in enumerate(labels)]

    start = time.perf_counter()
    transformers.set_seed(data.seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(classes))
    with tempfile.TemporaryDirectory() as out:
        arguments = transformers.TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=data.batch_size,
            per_device_eval_batch_size=data.batch_size,
            max_steps=data.steps,
            **optimiser(data.common),
            bf16=has_native_bfloat16(device),
            use_cpu=device.type == "cpu",
            seed=data.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        collate = transformers.DataCollatorWithPadding(tokenizer)
        run = transformers.Trainer(model, arguments, train_dataset=rows(data.train), data_collator=collate)
        run.train()
        seconds = time.perf_counter() - start
        logits = run.predict(rows(data.test)).predictions
    data.about.update(steps=run.state.global_step)
    return {"trainer": (np.array(classes, dtype=object)[logits.argmax(1)], seconds)}


def setfit(data: Data) -> Results:
    """The package setfit at its defaults on all domains together, but for the steps.

    Its default is one epoch over its pairs of texts: 132 steps for 64 training rows, 2,064 for 256.
    """
    return {"setfit": fit_setfit(data, SETFIT_STEPS)}


def setfit_equal(data: Data) -> Results:
    """The same within the budget of all others."""
    return {"setfit_equal": fit_setfit(data, data.steps)}


def fit_setfit(data: Data, steps: int) -> tuple[np.ndarray, float]:
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments
    from setfit import logging as setfit_logging

    setfit_logging.set_verbosity_error()
    classes = sorted(data.train["y"].unique())
    start = time.perf_counter()
    model = SetFitModel.from_pretrained(find_encoder(data.common["model"]).folder, local_files_only=True)
    model.model_body.max_seq_length = MetaFineTunedClassifier().max_length
    model.model_body.tokenizer.backend_tokenizer.no_padding()
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out,
            batch_size=SETFIT_PAIRS,
            max_steps=steps,
            seed=data.seed,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            show_progress_bar=False,
        )
        rows = {"text": data.train["text"].tolist(), "label": [classes.index(y) for y in data.train["y"]]}
        run = Trainer(model=model, args=arguments, train_dataset=Dataset.from_dict(rows))
        run.st_trainer.args.disable_tqdm = True
        run.st_trainer.args.dataloader_pin_memory = False
        run.train()
    seconds = time.perf_counter() - start
    predicted = model.predict(data.test["text"].tolist(), as_numpy=True, show_progress_bar=False)
    data.about.update(steps=run.st_trainer.state.global_step)
    return np.array(classes, dtype=object)[predicted], seconds


TW = {"corruption_weight": 0.0, "adaptation": None}
DC = {"typicality_weighting": False, "adaptation": None}
METHODS: dict[str, Callable[[Data], Results]] = {
    "tfidf": tfidf,
    "embeddings": embeddings,
    "mix": one_model("mix", ours(MixedDomainClassifier)),
    "mtl": one_model("mtl", ours(MultiTaskClassifier)),
    "adv": one_model("adv", ours(DomainAdversarialClassifier)),
    "mix_bi": one_model("mix_bi", ours(MixedDomainClassifier, pair_encoding="bi")),
    "tw": one_model("tw", ours(paper, **TW)),
    "dc": one_model("dc", ours(paper, **DC)),
    "paper": two_models("paper", "paper_adapted", ours(paper)),
    "exact": two_models("exact", "exact_adapted", exact),
    "mft": two_models("meta", "adapted", ours(MetaFineTunedClassifier)),
    "trainer": trainer,
    "setfit": setfit,
    "setfit_equal": setfit_equal,
    "single": one_model("single", ours(SingleDomainClassifier)),
}
# Time of a method's training step against that of "mix", measured; and training rows a second on one core (AMD EPYC).
COST = {
    "tw": 1.05,
    "dc": 1.05,
    "paper": 1.4,
    "mft": 1.4,
    "adv": 1.02,
    "trainer": 2.0,
    "setfit": 3.0,
    "setfit_equal": 3.0,
}
ROWS_A_SECOND = {"amazon": 28.0, "mnli": 70.0, "hypernyms": 200.0}


# ---------------------------------------------------------------------- cells


def optimiser(common: dict[str, Any]) -> dict[str, float]:
    """Arguments that give the Trainer what the others have by default; a fraction of steps is a ratio to it."""
    clf = MetaFineTunedClassifier()
    return {
        "learning_rate": common.get("learning_rate", clf.learning_rate),
        "warmup_steps": clf.warmup_ratio,
        "weight_decay": clf.weight_decay,
        "max_grad_norm": clf.max_grad_norm,
    }


def plan(args: argparse.Namespace) -> list[Cell]:
    """The cells asked for."""
    cells = [
        Cell(task, shots, method, seed)
        for task in args.tasks
        for shots in SHOTS[task]
        for method in args.methods
        for seed in args.seeds
        if selected(task, shots, args.shots)
    ]
    return [cell for cell in cells if applies(cell.method, cell.task)]


def selected(task: str, shots: int | str, given: list[str] | None) -> bool:
    """Whether `--shots` asks for this column: for all, by its number, by task and number, or among the headline's."""
    name = f"{task}:{shots}"
    return not given or str(shots) in given or name in given or ("headline" in given and name in HEADLINE)


def applies(method: str, task: str) -> bool:
    """SetFit takes no pairs of texts, and texts that are no pairs are not encoded apart."""
    return not (method in ("setfit", "setfit_equal") and task != "amazon") and not (
        method == "mix_bi" and task == "amazon"
    )


def estimate(cell: Cell, measured: dict[tuple[str, str, str], list[float]], epochs: int | None = None) -> float:
    """CPU seconds that a cell will take: those of finished ones, else by the rows that pass through the encoder."""
    seen = measured.get((cell.task, str(cell.shots), cell.method))
    if seen:
        return float(np.median(seen))
    sizes = {"amazon": 1760, "mnli": 5000, "hypernyms": 21000}
    n_rows = DOMAINS[cell.task] * (sizes[cell.task] if cell.shots == "full" else int(cell.shots))
    if cell.method in ("tfidf", "embeddings"):
        return 5 + n_rows / ROWS_A_SECOND[cell.task] * (cell.method == "embeddings")
    steps = budget(n_rows, epochs=epochs) * (DOMAINS[cell.task] if cell.method == "single" else 1)
    if cell.method == "setfit":
        steps = SETFIT_STEPS
    return 20 + COST.get(cell.method, 1.0) * 32 * steps / ROWS_A_SECOND[cell.task]


def settings(cell: Cell, common: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a cell's estimator is made with, so that cells of other defaults can be told apart."""
    encoder = {"model": common["model"], "max_length": MetaFineTunedClassifier().max_length}
    if cell.method == "embeddings":
        return encoder
    if cell.method == "setfit":
        return {**encoder, "pairs_a_step": SETFIT_PAIRS, "steps": SETFIT_STEPS}
    if cell.method == "setfit_equal":
        return {**encoder, "pairs_a_step": SETFIT_PAIRS, "steps": "the budget"}
    if cell.method == "trainer":
        return {**encoder, **optimiser(common)}
    make = getattr(METHODS[cell.method], "make", None)
    if make is None:
        return {}
    return {**params_of(make(Data(pd.DataFrame(), pd.DataFrame(), cell.seed, common))), "auto": AUTO}


def params_of(clf: Any) -> dict[str, Any]:
    """Parameters, as a file holds them."""
    return json.loads(json.dumps(clf.get_params(), default=str))


def versions(method: str) -> dict[str, str]:
    names = ["skmft", "torch", "transformers", "scikit-learn"]
    names += {"embeddings": ["sentence-transformers"]}.get(method, [])
    names += ["sentence-transformers", "setfit"] if method.startswith("setfit") else []
    names += ["accelerate"] if method == "trainer" else []
    return {name: metadata.version(name) if _installed(name) else "not installed" for name in names}


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def digest(hashes: pd.Series) -> str:
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()[:16]


def run_cell(cell: Cell, common: dict[str, Any], pool: pd.DataFrame, test: pd.DataFrame) -> dict[str, Any]:
    """What a cell's file holds. The bits of `correct` are in the order of the test rows' hashes."""
    train, _ = draw(pool, None if cell.shots == "full" else int(cell.shots), cell.seed)
    test = test.sort_values("hash", ignore_index=True)
    data = Data(train, test, cell.seed, common, {"settings": settings(cell, common)})
    if cell.method == "trainer" or hasattr(METHODS[cell.method], "make"):
        data.about["precision"] = "bfloat16" if has_native_bfloat16(resolve_device("auto")) else "float32"
    wall, cpu = time.perf_counter(), time.process_time()
    results = {}
    for name, (predicted, seconds) in METHODS[cell.method](data).items():
        right = pd.Series(np.asarray(predicted) == test["y"].to_numpy())
        by_domain = {d: own.astype(int) for d, own in right.groupby(test["domain"])}
        results[name] = {
            "accuracy": {d: float(own.mean()) for d, own in by_domain.items()},
            "correct": {d: "".join(map(str, own)) for d, own in by_domain.items()},
            "fit_seconds": round(seconds, 2),
        }
    return {
        "task": cell.task,
        "source": cell.source,
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
        "code": CODE if hasattr(METHODS[cell.method], "make") else None,  # the others run nothing of skmft's engine
        "versions": versions(cell.method),
    }


def write(path: Path, content: dict[str, Any]) -> None:
    """At once: there is the whole file or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        part.write_text(json.dumps(content, indent=1) + "\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def is_finished(cell: Cell, folder: Path, common: dict[str, Any]) -> bool:
    """Whether there is a file, made with the settings of now and as many steps."""
    path = folder / f"{cell.name}.json"
    if not path.exists():
        return False
    found, wanted = json.loads(path.read_text()), settings(cell, common)
    if cell.method in ("trainer", "setfit_equal") and found["budget"] != budget(
        found["train_rows"], epochs=common.get("meta_epochs")
    ):
        return False
    return not wanted or found["settings"] == wanted


@cache
def rows_of(source: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Pool and test rows; a source is loaded once a process."""
    return split(source)


def attempt(cell: Cell, common: dict[str, Any], threads: int | None) -> tuple[Cell, dict[str, Any] | None, str]:
    """A cell with what its file will hold, or with what went wrong. In whatever process this is."""
    import torch
    import transformers

    logging.disable(logging.WARNING)
    transformers.logging.disable_progress_bar()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if threads:
        torch.set_num_threads(threads)
    try:
        return cell, run_cell(cell, common, *rows_of(cell.source)), ""
    except Exception as error:  # the other cells still count
        return cell, None, f"{cell.name}: {type(error).__name__}: {error}"


def run_cells(
    todo: list[Cell], seconds: dict[Cell, float], common: dict[str, Any], args: argparse.Namespace
) -> list[str]:
    """Run cells, write each as soon as it is finished, and return what failed."""
    from joblib import Parallel, delayed
    from tqdm.auto import tqdm

    failed: list[str] = []
    left = 3600 * args.hours

    def affordable() -> Iterator[Any]:
        nonlocal left
        for cell in todo:
            if seconds[cell] > left:
                tqdm.write(f"the {args.hours:g} CPU hours would not hold {cell.name}; stopped")
                return
            left -= seconds[cell]
            yield delayed(attempt)(cell, common, args.threads)

    with tqdm(total=len(todo), unit="cell") as bar:
        parallel = Parallel(n_jobs=args.jobs, return_as="generator_unordered", pre_dispatch="n_jobs")
        for cell, content, error in parallel(affordable()):
            if content is None:
                failed.append(error)
                tqdm.write(error)
            else:
                left += seconds[cell] - content["cpu_seconds"]
                write(args.cells / f"{cell.name}.json", content)
                scores = [f"{n} {np.mean(list(r['accuracy'].values())):.3f}" for n, r in content["results"].items()]
                tqdm.write(f"{cell.name}: {', '.join(scores)}, {content['cell_seconds']:.0f} s")
            bar.update()
    return failed


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(SHOTS), default=list(SHOTS))
    parser.add_argument("--shots", nargs="+", help="such as 16, mnli:256, headline; default all")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), help="default 0 1 2 3 4")
    parser.add_argument(
        "--hours", type=float, default=math.inf, help="CPU hours: no cell is begun that would pass them"
    )
    parser.add_argument("--threads", type=int, help="threads of torch; default all cores")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each in a process; give --threads too")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="encoder; another one needs a --cells folder of its own")
    parser.add_argument("--learning-rate", type=float, help="of everything that is fine-tuned (but SetFit)")
    parser.add_argument(
        "--meta-epochs", type=int, help="of the same; default as many as make at least 60 steps, and 2 at least"
    )
    parser.add_argument("--cells", type=Path, default=CELLS, help="folder of the cells' files")
    parser.add_argument("--plan", action="store_true", help="only say what is to do")
    parser.add_argument("--verify", type=int, metavar="N", help="run N finished cells again and compare")
    parser.add_argument(
        "--against", type=Path, help="only compare --cells with those of another machine in this folder"
    )
    args = parser.parse_args(argv)
    known = {str(s) for task in args.tasks for s in SHOTS[task]}
    exact = {f"{task}:{s}" for task in args.tasks for s in SHOTS[task]}
    if args.shots and not set(args.shots) <= known | exact | {"headline"}:
        parser.error(
            f"--shots {' '.join(args.shots)}: the tasks have {' '.join(sorted(known, key=lambda s: (len(s), s)))}"
        )
    if (args.model != DEFAULT_MODEL or args.learning_rate or args.meta_epochs) and args.cells == CELLS:
        parser.error("another --model, --learning-rate or --meta-epochs needs another folder of --cells")
    return args


def show_plan(cells: list[Cell], seconds: dict[Cell, float], n_finished: int) -> None:
    table = pd.DataFrame([{**vars(c), "hours": seconds[c] / 3600} for c in cells])
    print(f"{n_finished} cells are finished, {len(cells)} to do, about {sum(seconds.values()) / 3600:.1f} CPU hours")
    if cells:
        sums = table.groupby(["task", "method"])["hours"].sum().unstack("task", fill_value=0)
        print(sums.assign(all=sums.sum(axis=1)).sort_values("all").to_string(float_format="{:.2f}".format))


def compare(then: dict[str, Any], now: dict[str, Any]) -> tuple[list[str], int]:
    """What to say of two runs of a cell, and how many of its names differ: in any answer, or in accuracy on another machine."""
    there = then["machine"] != now["machine"]
    said, differ = [], 0
    for name in now["results"]:
        old, new = (np.array(list("".join(c["results"][name]["correct"].values())), int) for c in (then, now))
        changed = int((old != new).sum())
        if not changed:
            said.append(f"{name} the same, to the last row")
            continue
        points, within = 100 * (new - old).mean(), 196 * math.sqrt(changed) / len(old)  # as in McNemar's test
        agrees = there and abs(points) <= within
        differ += not agrees
        word = "agrees within its interval" if agrees else "DIFFERENT"
        said.append(f"{name} {word}: {changed} of {len(old)} answers, {points:+.2f} points, interval ± {within:.2f}")
    return said, differ


def verify(args: argparse.Namespace, cells: list[Cell], common: dict[str, Any]) -> int:
    """Run cells again, drawn at random; how many differ."""
    drawn = np.random.default_rng().choice(len(cells), min(args.verify, len(cells)), replace=False)
    differ = 0
    for cell in (cells[i] for i in drawn):
        then = json.loads((args.cells / f"{cell.name}.json").read_text())
        _, now, error = attempt(cell, common, args.threads)
        if now is None:
            raise RuntimeError(error)
        there = "" if then["machine"] == now["machine"] else f" (then on {then['machine']}, now on {now['machine']})"
        said, count = compare(then, now)
        differ += count
        print(f"{cell.name}: {'; '.join(said)}{there}", flush=True)
    return differ


def against(folder: Path, other: Path) -> int:
    """Compare the cells of one name in two folders, and print it; 1 if there are none to compare.

    Counted by two intervals: by the changed answers, which another training run changes together, so that more than 5% are
    outside; and that of the accuracy itself, by its number of test rows.
    """
    differ, points, beyond = 0, [], 0
    for path in sorted(folder.glob("*.json")):
        if not (other / path.name).exists():
            continue
        then, now = (json.loads((place / path.name).read_text()) for place in (other, folder))
        if (then["train_hash"], then["test_hash"]) != (now["train_hash"], now["test_hash"]):
            print(f"{path.stem}: of other training or test rows")
            continue
        said, count = compare(then, now)
        differ += count
        print(f"{path.stem}: {'; '.join(said)}")
        for name in now["results"]:
            old, new = ("".join(c["results"][name]["correct"].values()) for c in (then, now))
            share, n = old.count("1") / len(old), len(old)
            points.append(100 * (new.count("1") / n - share))
            beyond += abs(points[-1]) > 196 * math.sqrt(share * (1 - share) / n)
    if not points:
        print(f"{folder} and {other} have no cells of one name and of the same rows", file=sys.stderr)
        return 1
    print(
        f"{len(points)} results: {differ} differ by more than the interval of their changed answers, {beyond} by more than the "
        f"95% interval of their test rows; the mean difference is {np.mean(points):+.2f} points (standard deviation "
        f"{np.std(points):.2f})"
    )
    return 0


def run(wanted: list[Cell], args: argparse.Namespace) -> int:
    """What the command line does, with these cells."""
    common: dict[str, Any] = {"model": args.model}
    if args.learning_rate:
        common["learning_rate"] = args.learning_rate
    if args.meta_epochs:
        common["meta_epochs"] = args.meta_epochs
    finished = [cell for cell in wanted if is_finished(cell, args.cells, common)]
    if args.verify:
        if not finished:
            print(f"{args.cells} has none of these cells with the settings of now", file=sys.stderr)
            return 1
        return min(1, verify(args, finished, common))
    measured: dict[tuple[str, str, str], list[float]] = {}
    for path in args.cells.glob("*.json"):
        c = json.loads(path.read_text())
        measured.setdefault((c["task"], str(c["shots"]), c["method"]), []).append(c["cpu_seconds"])
    todo = [cell for cell in wanted if cell not in set(finished)]
    seconds = {cell: estimate(cell, measured, args.meta_epochs) for cell in todo}
    todo.sort(key=lambda cell: (seconds[cell], cell.seed, cell.name))
    show_plan(todo, seconds, len(finished))
    if args.plan:
        return 0
    failed = run_cells(todo, seconds, common, args)
    if failed:
        print(f"{len(failed)} cells failed", *failed, sep="\n", file=sys.stderr)
    return min(1, len(failed))


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    return against(args.cells, args.against) if args.against else run(plan(args), args)


if __name__ == "__main__":
    import few_shot  # other processes find functions by the module's name, and this one is called __main__

    sys.exit(few_shot.main())
