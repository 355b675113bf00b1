"""All that the benchmarks take from skmft, found when it is first used: the one file to change when skmft's modules move.

`import skmft` takes seconds, and a script's `--help` needs none of it. So `engine.find_encoder` imports its module on access.
"""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

from .cells import plain

_PLACES = {
    "skmft": ["MetaFineTunedClassifier"],
    "skmft.baselines": [
        "DomainAdversarialClassifier",
        "MixedDomainClassifier",
        "MultiTaskClassifier",
        "SingleDomainClassifier",
    ],
    "skmft.adaptation": ["domain_logits", "domain_model"],
    "skmft.batches": ["TrainingRows"],
    "skmft.classifier": ["MOST_ROWS_APART"],
    "skmft.corruption": [
        "CorruptionHead",
        "MetaFineTuningLoss",
        "corruption_loss",
        "draw_corrupted_labels",
        "label_loss",
    ],
    "skmft.inputs": ["positions"],
    "skmft.lora": ["LoraSettings", "adapted_layers", "add_adapters", "rowwise_logits"],
    "skmft.metrics": ["domain_invariance_score", "make_domain_scorer"],
    "skmft.model_selection": ["DomainStratifiedKFold"],
    "skmft.networks": [
        "DEFAULT_MODEL",
        "TextClassifier",
        "find_encoder",
        "load_tokenizer",
        "pool",
        "reads_token_types",
    ],
    "skmft.stages": ["ADAPTATION_EPOCHS", "ADAPTATION_LEARNING_RATES", "META_EPOCHS", "Run"],
    "skmft.training": ["auto_epochs", "has_native_bfloat16", "resolve_device"],
    "skmft.typicality": ["class_domain_prototypes", "normalized_weights", "similarities", "typicality"],
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"{__name__} has no {name!r}; add it to the names that are taken from skmft")
    return getattr(import_module(_MODULE_OF[name]), name)


_take = __getattr__  # for this module's own functions


def paper(model: str | None = None, **params: Any) -> Any:
    """The paper's losses under the optimisation of the defaults, so that results stay when defaults of extensions change."""
    auto_ = dict.fromkeys(("meta_epochs", "adaptation_epochs", "adaptation_learning_rate"), "auto")
    return _take("MetaFineTunedClassifier").from_paper(
        model or _take("DEFAULT_MODEL"), **{"learning_rate": 1e-4, **auto_, **params}
    )


def params_of(clf: Any) -> dict[str, Any]:
    """An estimator's parameters, as a cell holds them."""
    return plain(clf.get_params())


def settings_of(clf: Any) -> dict[str, Any]:
    """The same, and what "auto" stands for: all that a cell was made with, so that cells of other defaults are told apart."""
    return {**params_of(clf), "auto": auto()}


def auto() -> dict[str, Any]:
    """What "auto" stands for."""
    return plain(
        {
            "meta_epochs": _take("META_EPOCHS"),
            "adaptation_epochs": _take("ADAPTATION_EPOCHS"),
            "adaptation_learning_rate": _take("ADAPTATION_LEARNING_RATES"),
            "pair_encoding": _take("MOST_ROWS_APART"),
        }
    )


def optimiser(learning_rate: float | None = None) -> dict[str, float]:
    """The optimisation that all classifiers have by default, under the names of transformers' arguments."""
    clf = _take("MetaFineTunedClassifier")()
    return {
        "learning_rate": learning_rate or clf.learning_rate,
        "warmup_steps": clf.warmup_ratio,  # a fraction of steps is a ratio to it
        "weight_decay": clf.weight_decay,
        "max_grad_norm": clf.max_grad_norm,
    }


def epochs_of(n_rows: int, batch_size: int = 32) -> int:
    """What meta_epochs="auto" gives for so many rows."""
    return _take("auto_epochs")(n_rows, batch_size, **_take("META_EPOCHS"))


def budget(n_rows: int, batch_size: int = 32, epochs: int | None = None) -> int:
    """Optimiser steps of stage 2 on so many rows."""
    return (epochs or epochs_of(n_rows, batch_size)) * math.ceil(n_rows / batch_size)


def precision() -> str:
    """Of fine-tuning on the device that is used here."""
    native = _take("has_native_bfloat16")(_take("resolve_device")("auto"))
    return "bfloat16" if native else "float32"


def tokens_of(clf: Any, texts: list[Any]) -> Any:
    """Token ids of texts, as a fitted estimator reads them."""
    return clf._tokenize(texts)[0]
