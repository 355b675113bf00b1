"""The methods of the few-shot benchmark: each learns from the same rows, and is scored on the same rows."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from . import engine
from .tasks import fit, inputs, text_columns

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
SETFIT_PAIRS = 16  # per batch, so that a step reads 32 texts as everywhere else
SETFIT_STEPS = 132  # its default, an epoch of its pairs, at 16 labelled reviews per domain; more took over 10 minutes


@dataclass
class Data:
    """Rows of one cell, and the settings that all estimators share."""

    train: pd.DataFrame
    test: pd.DataFrame
    seed: int
    common: dict[str, Any]
    about: dict[str, Any] = field(default_factory=dict)  # steps, settings; goes into the cell

    @property
    def steps(self) -> int:
        """Optimiser steps of stage 2 on these rows: the budget of every model that is fine-tuned."""
        return engine.budget(len(self.train), epochs=self.common.get("meta_epochs"))

    @property
    def folder(self) -> str:
        """Of the encoder."""
        return engine.find_encoder(self.common["model"]).folder

    @property
    def classes(self) -> list[Any]:
        return sorted(self.train["y"].unique())

    @property
    def class_numbers(self) -> list[int]:
        number = {y: i for i, y in enumerate(self.classes)}
        return [number[y] for y in self.train["y"]]


Results = dict[str, tuple[np.ndarray, float]]  # of a name in NAMES: predicted labels, seconds of fitting
BATCH = 32


def max_length() -> int:
    return engine.MetaFineTunedClassifier().max_length


# ---------------------------------------------------------------------- skmft's


@dataclass(frozen=True)
class Ours:
    """A classifier of skmft, scored under one name, or under two: the meta-learner, and what stage 3 makes of it."""

    names: tuple[str, ...]
    classifier: str  # in `engine`
    params: dict[str, Any] = field(default_factory=dict)

    def make(self, seed: int, common: dict[str, Any]) -> Any:
        if self.classifier == "exact":
            return engine.MetaFineTunedClassifier.from_paper(common["model"], random_state=seed)
        names = {} if self.classifier in ("paper", "MetaFineTunedClassifier") else {"meta_epochs": "epochs"}
        given = {names.get(name, name): value for name, value in common.items()}
        return getattr(engine, self.classifier)(random_state=seed, **given, **self.params)

    def __call__(self, data: Data) -> Results:
        clf, start = self.make(data.seed, data.common), time.perf_counter()
        fit(clf, data.train)
        seconds = time.perf_counter() - start
        sizes = data.train["domain"].value_counts()
        epochs = [h for h in clf.history_ if h["stage"] == "meta"]
        rows = [sizes[h["domain"]] if "domain" in h else len(data.train) for h in epochs]
        data.about["steps"] = int(sum(math.ceil(n / clf.batch_size) for n in rows))
        X = inputs(data.test)
        *meta, adapted = self.names
        adapting = sum(h.get("seconds", 0.0) for h in clf.history_ if h["stage"] == "adaptation")
        return {
            **{name: (clf.predict(X), seconds - adapting) for name in meta},
            adapted: (clf.predict(X, domains=data.test["domain"].to_numpy()), seconds),
        }


# ---------------------------------------------------------------------- others'


def tfidf(data: Data) -> Results:
    """Words and pairs of words of each text, all domains together; C by cross-validation on the training rows."""
    from sklearn.compose import ColumnTransformer
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.svm import LinearSVC

    vectorizer = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    features = ColumnTransformer([(c, vectorizer, c) for c in text_columns(data.train)])
    start = time.perf_counter()
    clf = choose_c(
        make_pipeline(features, LinearSVC(max_iter=20_000)), "linearsvc__C", data.train, data.train["y"], data.seed
    )
    return {"tfidf": (clf.predict(data.test), time.perf_counter() - start)}


def embeddings(data: Data) -> Results:
    """Logistic regression on sentence-transformers' embeddings, all domains together and each by itself.

    Of a pair (u, v) the features are u, v, |u - v| and u * v (Conneau et al., EMNLP 2017); C by cross-validation.
    """
    start = time.perf_counter()
    Z, y, d = embed(data.train, data.common["model"]), data.train["y"].to_numpy(), data.train["domain"].to_numpy()
    embedding = time.perf_counter() - start
    Z_test, d_test = embed(data.test, data.common["model"]), data.test["domain"].to_numpy()
    start = time.perf_counter()
    pooled, seconds = logistic(Z, y, data.seed).predict(Z_test), time.perf_counter() - start
    start, alone = time.perf_counter(), np.empty(len(Z_test), dtype=object)
    for domain in sorted(set(d)):
        own = logistic(Z[d == domain], y[d == domain], data.seed)
        alone[d_test == domain] = own.predict(Z_test[d_test == domain])
    return {
        "embeddings": (pooled, embedding + seconds),
        "embeddings_single": (alone, embedding + time.perf_counter() - start),
    }


_embedded: dict[tuple[str, str], np.ndarray] = {}


def embed(frame: pd.DataFrame, model: str) -> np.ndarray:
    """Features of a frame's rows, shape (n_rows, dim or 4 * dim); a text is embedded once per process."""
    columns = text_columns(frame)
    missing = sorted({t for c in columns for t in frame[c] if (model, t) not in _embedded})
    if missing:
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(engine.find_encoder(model).folder)
        encoder.max_seq_length = max_length()
        encoder.tokenizer.backend_tokenizer.no_padding()
        vectors = encoder.encode(missing, normalize_embeddings=True, show_progress_bar=False)
        _embedded.update({(model, text): vector for text, vector in zip(missing, vectors)})
    u, *rest = (np.stack([_embedded[model, t] for t in frame[c]]) for c in columns)
    return np.hstack([u, rest[0], np.abs(u - rest[0]), u * rest[0]]) if rest else u


def logistic(Z: np.ndarray, y: np.ndarray, seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return choose_c(LogisticRegression(max_iter=2000), "C", Z, y, seed)


def choose_c(clf: Any, name: str, X: Any, y: Any, seed: int) -> Any:
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    folds = StratifiedKFold(int(min(5, pd.Series(y).value_counts().min())), shuffle=True, random_state=seed)
    return GridSearchCV(clf, {name: [0.1, 1.0, 10.0, 100.0]}, cv=folds).fit(X, y)


QUIET = {"save_strategy": "no", "logging_strategy": "no", "report_to": "none"}  # of either package's trainer


def trainer(data: Data) -> Results:
    """The Hugging Face Trainer on all domains together, at its defaults but for what makes it comparable.

    That is: the learning rate, warm-up, weight decay, batch and steps of all others, bfloat16 where the device multiplies it,
    length 128.
    """
    import transformers

    transformers.logging.set_verbosity_error()
    columns = text_columns(data.train)
    tokenizer = transformers.AutoTokenizer.from_pretrained(data.folder)
    tokenizer.backend_tokenizer.no_padding()

    def rows(frame: pd.DataFrame, labels: list[int]) -> list[dict[str, Any]]:
        encoded = tokenizer(*(frame[c].tolist() for c in columns), truncation=True, max_length=max_length())
        return [{**{k: v[i] for k, v in encoded.items()}, "labels": label} for i, label in enumerate(labels)]

    start = time.perf_counter()
    transformers.set_seed(data.seed)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(data.folder, num_labels=len(data.classes))
    with tempfile.TemporaryDirectory() as out:
        arguments = transformers.TrainingArguments(
            output_dir=out,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            max_steps=data.steps,
            **engine.optimiser(data.common.get("learning_rate")),
            bf16=engine.precision() == "bfloat16",
            use_cpu=engine.resolve_device("auto").type == "cpu",
            seed=data.seed,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **QUIET,
        )
        collate = transformers.DataCollatorWithPadding(tokenizer)
        training = rows(data.train, data.class_numbers)
        run = transformers.Trainer(model, arguments, train_dataset=training, data_collator=collate)
        run.train()
        seconds = time.perf_counter() - start
        logits = run.predict(rows(data.test, [0] * len(data.test))).predictions
    data.about["steps"] = run.state.global_step
    return {"trainer": (np.array(data.classes, dtype=object)[logits.argmax(1)], seconds)}


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
    start = time.perf_counter()
    model = SetFitModel.from_pretrained(data.folder, local_files_only=True)
    model.model_body.max_seq_length = max_length()
    model.model_body.tokenizer.backend_tokenizer.no_padding()
    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, batch_size=SETFIT_PAIRS, max_steps=steps, seed=data.seed, show_progress_bar=False, **QUIET
        )
        rows = Dataset.from_dict({"text": data.train["text"].tolist(), "label": data.class_numbers})
        run = Trainer(model=model, args=arguments, train_dataset=rows)
        run.st_trainer.args.disable_tqdm = True
        run.st_trainer.args.dataloader_pin_memory = False
        run.train()
    seconds = time.perf_counter() - start
    predicted = model.predict(data.test["text"].tolist(), as_numpy=True, show_progress_bar=False)
    data.about["steps"] = run.st_trainer.state.global_step
    return np.array(data.classes, dtype=object)[predicted], seconds


TW = {"corruption_weight": 0.0, "adaptation": None}
DC = {"typicality_weighting": False, "adaptation": None}
METHODS: dict[str, Callable[[Data], Results]] = {
    "tfidf": tfidf,
    "embeddings": embeddings,
    "mix": Ours(("mix",), "MixedDomainClassifier"),
    "mtl": Ours(("mtl",), "MultiTaskClassifier"),
    "adv": Ours(("adv",), "DomainAdversarialClassifier"),
    "mix_bi": Ours(("mix_bi",), "MixedDomainClassifier", {"pair_encoding": "bi"}),
    "tw": Ours(("tw",), "paper", TW),
    "dc": Ours(("dc",), "paper", DC),
    "paper": Ours(("paper", "paper_adapted"), "paper"),
    "exact": Ours(("exact", "exact_adapted"), "exact"),
    "mft": Ours(("meta", "adapted"), "MetaFineTunedClassifier"),
    "trainer": trainer,
    "setfit": setfit,
    "setfit_equal": setfit_equal,
    "single": Ours(("single",), "SingleDomainClassifier"),
}
GIVES = {name: (name,) for name in METHODS} | {"embeddings": ("embeddings", "embeddings_single")}  # by one fit
GIVES |= {name: method.names for name, method in METHODS.items() if isinstance(method, Ours)}


def applies(method: str, task: str) -> bool:
    """SetFit takes no pairs of texts, and only the texts of a pair can be encoded separately."""
    if method in ("setfit", "setfit_equal"):
        return task == "amazon"
    return method != "mix_bi" or task != "amazon"


def settings(method: str, seed: int, common: dict[str, Any]) -> dict[str, Any]:
    """The parameters that a cell's estimator is made with, so that cells of other defaults are told apart."""
    encoder = {"model": common["model"], "max_length": max_length()}
    own: dict[str, dict[str, Any]] = {
        "tfidf": {},
        "embeddings": encoder,
        "setfit": {**encoder, "pairs_a_step": SETFIT_PAIRS, "steps": SETFIT_STEPS},
        "setfit_equal": {**encoder, "pairs_a_step": SETFIT_PAIRS, "steps": "the budget"},
    }
    if method == "trainer":
        return {**encoder, **engine.optimiser(common.get("learning_rate"))}
    return own[method] if method in own else engine.settings_of(METHODS[method].make(seed, common))  # type: ignore
