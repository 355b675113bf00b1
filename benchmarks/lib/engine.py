"""All that the benchmarks take from skmft, found when it is first used: the one file to change when skmft's modules move.

`import skmft` takes seconds, and a script's `--help` needs none of it. So `engine.find_encoder` imports its module on access.
"""

from __future__ import annotations

import math
import sys
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
    "skmft.metrics": ["make_domain_scorer"],
    "skmft.model_selection": ["DomainStratifiedKFold"],
    "skmft.recipes": ["MetaFineTuning"],
    "skmft._base": ["MOST_PAIRS_BI"],
    "skmft._engine.encoder": ["DEFAULT_MODEL", "find_encoder", "load_tokenizer"],
    "skmft._engine.inference": ["run_in_batches"],
    "skmft._engine.model": ["TextClassifier", "reads_token_types"],
    "skmft._engine.pooling": ["pool"],
    "skmft._engine.runtime": ["Runtime", "has_native_bfloat16", "resolve_device"],
    "skmft._engine.tokens": ["tokenize"],
    "skmft._engine.training": ["auto_epochs"],
    "skmft._inputs.weights": ["normalized_weights"],
    "skmft._method.adaptation": ["ADAPTATION_EPOCHS", "ADAPTATION_LEARNING_RATES", "domain_model"],
    "skmft._method.adversarial": ["reverse_gradient"],
    "skmft._method.corruption": ["CorruptionHead", "domain_head"],
    "skmft._method.label_loss": ["label_loss"],
    "skmft._method.lora": ["adapted_layers", "add_adapters"],
    "skmft._method.typicality": ["PrototypeSums", "similarities", "typicality"],
    "skmft._parameters": ["OPTIMIZER_DEFAULTS"],
    "skmft._stage": ["META_EPOCHS"],
}
_MODULE_OF = {name: module for module, names in _PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"{__name__} has no {name!r}; add it to the names that are taken from skmft")
    return getattr(import_module(_MODULE_OF[name]), name)


def _take(name: str) -> Any:
    """The same for this module's own functions."""
    return getattr(sys.modules[__name__], name)


def paper(model: str | None = None, **params: Any) -> Any:
    """The paper's losses under the optimisation of the defaults, so that results stay when defaults of extensions change."""
    auto_ = dict.fromkeys(("meta_epochs", "adaptation_epochs", "adaptation_learning_rate"), "auto")
    return _take("MetaFineTunedClassifier").from_paper(
        model or _take("DEFAULT_MODEL"), **{"learning_rate": 1e-4, **auto_, **params}
    )


def params_of(clf: Any) -> dict[str, Any]:
    """An estimator's parameters, as a cell holds them."""
    return plain(clf.get_params(deep=False))


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
            "pair_encoding": _take("MOST_PAIRS_BI"),
        }
    )


def optimiser(learning_rate: float | None = None) -> dict[str, float]:
    """The optimisation that all classifiers have by default, under the names of transformers' arguments."""
    params = dict(_take("OPTIMIZER_DEFAULTS"))
    warmup = params.pop("warmup_ratio")  # a fraction of steps is a ratio to transformers
    return {
        "learning_rate": learning_rate or _take("MetaFineTunedClassifier")().learning_rate,
        "warmup_steps": warmup,
        **params,
    }


def epochs_of(n_rows: int, batch_size: int = 32) -> int:
    """What meta_epochs="auto" gives for so many rows."""
    return _take("auto_epochs")(n_rows, batch_size, **_take("META_EPOCHS"))


def budget(n_rows: int, batch_size: int = 32, epochs: int | None = None) -> int:
    """Optimiser steps of stage 2 on so many rows."""
    return (epochs or epochs_of(n_rows, batch_size)) * math.ceil(n_rows / batch_size)


def precision(device: str = "auto") -> str:
    """Of fine-tuning on a device."""
    native = _take("has_native_bfloat16")(_take("resolve_device")(device))
    return "bfloat16" if native else "float32"


def tokens_of(clf: Any, texts: list[Any]) -> Any:
    """Token ids of texts, as a fitted classifier reads them."""
    rows = [text if isinstance(text, str) else tuple(text) for text in texts]
    token_types = _take("reads_token_types")(clf.meta_learner_.encoder)
    return _take("tokenize")(clf.tokenizer_, rows, clf.max_length, token_types, clf.pair_encoding_ == "bi")


def run_texts(clf: Any, forward: Any, tokens: Any) -> Any:
    """A forward pass over all texts, in the batches in which a fitted classifier predicts."""
    runtime = _take("Runtime").start(clf.device, clf.precision, clf.seed_)
    size = clf.batch_size * clf.max_length
    width = len(clf.classes_)
    return _take("run_in_batches")(forward, tokens, width=width, max_tokens=size, runtime=runtime)
