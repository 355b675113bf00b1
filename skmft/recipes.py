"""Recipes: what stage 2 adds to the model, which rows it trains on, what it minimises, and what it does at the end.

A recipe is given to a classifier as ``recipe=``. It answers six questions, each with a default; a new loss usually answers two.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from numbers import Real
from typing import ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import Interval, StrOptions
from torch import nn

from ._engine.batches import Column
from ._engine.model import ModelOutput, TextClassifier
from ._engine.training import Term
from ._inputs.rows import Rows
from ._method.adversarial import adversarial_ramp, reverse_gradient
from ._method.contrastive import contrastive_loss
from ._method.corruption import CORRUPTION_LABELS, CorruptionHead, corruption_loss, domain_head, draw_corrupted_labels
from ._method.label_loss import interpolate, label_loss, label_terms
from ._stage import Stage, Trained
from ._typing import Batch, Params, Tensors

__all__ = ["DomainAdversarial", "MetaFineTuning", "MultiTask", "Recipe", "SingleDomain", "Stage", "Trained"]


class Recipe(BaseEstimator):
    """Plain fine-tuning of one model on all rows, and the base of every other recipe.

    Subclass it and answer the questions that are new, each a method here. Its parameters are those of ``__init__``, as in any
    scikit-learn estimator, so that a search can set ``recipe__weight``.

    Attributes
    ----------
    description : str
        Label of the progress bar.
    unknown : {"model", "mean"}
        What answers a row whose domain is not known: the trained model, or the mean of the probabilities of all domains'
        models.

    Notes
    -----
    The questions are asked with these arguments:

    - ``stage``, a `Stage`, makes, trains and asks models.
    - ``rows`` have ``labels`` and ``domains`` as numbers, ``classes``, ``domain_names``, ``weights`` (of mean 1), and
      ``where(mask)``, some of them.
    - ``width`` is that of an embedding.
    - ``model``, a `torch.nn.Module`, has an ``encoder``, a ``label_head``, and in training ``heads``.
    - ``output``, the model's, has ``logits``, ``embedding`` (the pooled last layer) and ``layers`` (the pooled `layers`).
    - ``batch`` maps ``"y"``, ``"weight"`` and the columns to tensors, and ``"progress"`` to the share of steps done.
    - ``start`` has the model's weights before training, or nothing where its label head started from random numbers.
    - ``interpolation`` is the classifier's ``weight_interpolation``.

    Examples
    --------
    >>> import torch
    >>> from skmft import MetaFineTunedClassifier
    >>> from skmft.recipes import Recipe
    >>> class MeanMatching(Recipe):
    ...     def __init__(self, weight=1.0):
    ...         self.weight = weight
    ...     def columns(self, rows):
    ...         return {"domain": rows.domains}
    ...     def terms(self, model, output, batch):
    ...         z, d = output.embedding, batch["domain"]
    ...         means = torch.stack([z[d == k].mean(0) for k in d.unique()])
    ...         distance = (means - means.mean(0)).square().sum(1).mean()
    ...         return {**super().terms(model, output, batch), "mean_distance": (self.weight, distance)}
    >>> MetaFineTunedClassifier(recipe=MeanMatching(0.5)).get_params()["recipe__weight"]
    0.5
    """

    description = "fine-tuning"
    unknown = "model"
    seed_of_heads = "heads"  # what the seed of `heads` is derived from
    _parameter_constraints: ClassVar[dict[str, list]] = {}  # a subclass need not have any

    def train(self, stage: Stage, rows: Rows) -> Trained:
        """Which rows train which models, in how many rounds, and which tensors does a domain have of its own?

        By default one model, all rows, one round, and none.
        """
        return stage.train(self, stage.new_model(self, rows), rows)

    def layers(self, rows: Rows) -> Sequence[int]:
        """Of which layers does `terms` need the pooled outputs, counted from 0 or from the end? By default none."""
        return ()

    def heads(self, rows: Rows, width: int) -> Mapping[str, nn.Module]:
        """Which heads does it add while it trains? By default none. Torch's generator is seeded."""
        return {}

    def columns(self, rows: Rows) -> Mapping[str, Column]:
        """Which columns does a batch carry besides tokens, ``"y"`` and ``"weight"``? By default none.

        They are numbers, the first axis being the rows; or callables ``column(batches, rng)`` that make them anew each epoch,
        given the row numbers of every batch and a NumPy generator.
        """
        return {}

    def terms(self, model: TextClassifier, output: ModelOutput, batch: Batch) -> dict[str, Term]:
        """Which named terms does it minimise? By default the label loss.

        They are scalar tensors, or pairs of a weight and a scalar tensor; one of weight 0 is recorded in ``history_`` and not
        minimised. A batch may lack a term, but not under `distributed`.
        """
        return {**label_terms(model, output, batch)}

    def finish(self, model: TextClassifier, start: Tensors, interpolation: float) -> None:
        """What is done with the weights when training has ended? By default they go back some way to the start."""
        interpolate(model, start, interpolation)


@dataclass(repr=False, eq=False)
class MissingRecipe(Recipe):
    """Stands for a recipe that `load` does not make: not of skmft, or its `params` not kept (None). Training needs another."""

    name: str
    params: Params | None

    def about(self) -> tuple[str, Params | None]:
        """What a saved folder says of the recipe that it stands for."""
        return self.name, self.params

    def refuse(self) -> None:
        """Say what training lacks."""
        found = f"the model was trained by the recipe {self!r}, which load does not make"
        raise ValueError(f"{found}; before fit or adapt import its class and call set_params(recipe={self!r}).")

    def __repr__(self) -> str:
        if self.params is None:
            return f"{self.name}(...)"
        given = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"{self.name}({given})"


@dataclass(repr=False, eq=False)
class MetaFineTuning(Recipe):
    """Meta Fine-Tuning: the label loss, domain corruption, and a contrastive loss (an extension).

    ``L = L_T + corruption_weight * L_C + contrastive_weight * L_S``. With one domain there is the label loss alone.

    Parameters
    ----------
    corruption_weight : float, default=None
        The paper's lambda, 0 or more; None takes the classifier's.
    contrastive_weight : float, default=None
        0 or more; None takes the classifier's.
    corruption_layers : sequence of int, default=(-1,)
        Layers of the encoder that feed the corruption heads, counted from 0, or from the end if negative. The paper's are
        ``(2, 5, 8, 11)`` for BERT-base.
    corruption_labels : {"epoch", "batch", "uniform"}, default="epoch"
        How corrupted domain labels are drawn: the training set's domains permuted each epoch; each batch's permuted
        inside it (the authors' form, which gives true domains away where batches of similar length hold one domain); or
        uniformly.
    contrastive_temperature : float, default=0.1
        Cosines are divided by it.

    References
    ----------
    C. Wang, M. Qiu, J. Huang, X. He, "Meta Fine-Tuning Neural Language Models for Multi-Domain Text Mining", EMNLP 2020,
    section 3.3; P. Khosla et al., "Supervised Contrastive Learning", NeurIPS 2020.

    Examples
    --------
    >>> from skmft.recipes import MetaFineTuning
    >>> MetaFineTuning(corruption_labels="uniform")
    MetaFineTuning(corruption_labels='uniform')
    """

    description = "meta fine-tuning"
    seed_of_heads = "corruption head"

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "corruption_weight": [Interval(Real, 0, None, closed="left"), None],
        "contrastive_weight": [Interval(Real, 0, None, closed="left"), None],
        "corruption_layers": ["array-like"],
        "corruption_labels": [StrOptions(set(CORRUPTION_LABELS))],
        "contrastive_temperature": [Interval(Real, 0, None, closed="neither")],
    }

    corruption_weight: float | None = None
    contrastive_weight: float | None = None
    _: KW_ONLY
    corruption_layers: Sequence[int] = (-1,)
    corruption_labels: str = "epoch"
    contrastive_temperature: float = 0.1

    def _corrupts(self, rows: Rows) -> bool:
        return bool(self.corruption_weight) and len(rows.domain_names) > 1

    def layers(self, rows: Rows) -> Sequence[int]:
        """Those of the corruption heads."""
        layers = np.asarray(self.corruption_layers)
        if layers.ndim != 1 or not len(layers) or layers.dtype.kind not in "iu":
            raise ValueError(f"corruption_layers={self.corruption_layers!r}; expected layer numbers, such as (-1,).")
        return self.corruption_layers if self._corrupts(rows) else ()

    def heads(self, rows: Rows, width: int) -> Mapping[str, nn.Module]:
        """The domain corruption head (section 3.3)."""
        if not self._corrupts(rows):
            return {}
        return {"corruption": CorruptionHead(width, len(rows.domain_names), len(self.corruption_layers))}

    def columns(self, rows: Rows) -> Mapping[str, Column]:
        """True domains, and corrupted ones drawn anew each epoch."""
        if len(rows.domain_names) == 1:
            return {}
        columns: dict[str, Column] = {"domain": rows.domains}
        if self._corrupts(rows):
            k, method = len(rows.domain_names), self.corruption_labels
            columns["corrupted"] = partial(draw_corrupted_labels, rows.domains, n_domains=k, method=method)
        return columns

    def terms(self, model: TextClassifier, output: ModelOutput, batch: Batch) -> dict[str, Term]:
        """L_T, L_C and L_S, and how well the corruption head tells the true and the corrupted domain."""
        terms = super().terms(model, output, batch)
        if "corruption" in model.heads:
            q, z = model.heads["corruption"](output.layers, batch["domain"]), batch["corrupted"]
            terms["corruption_loss"] = (float(self.corruption_weight or 0), corruption_loss(q, z, batch["weight"]))
            guess = q.detach().argmax(-1)  # (n_layers, batch)
            terms["domain_accuracy"] = (0.0, (guess == batch["domain"]).float().mean())
            terms["corrupted_label_accuracy"] = (0.0, (guess == z).float().mean())
        if self.contrastive_weight and "domain" in batch:
            rows = (output.embedding, batch["y"], batch["domain"], batch["weight"])
            terms["contrastive_loss"] = (self.contrastive_weight, contrastive_loss(*rows, self.contrastive_temperature))
        return terms


class SingleDomain(Recipe):
    """A model for each domain, trained on that domain's rows alone ("S" in the paper)."""

    unknown = "mean"

    def train(self, stage: Stage, rows: Rows) -> Trained:
        """One training a domain, each with the optimiser steps that one model of all rows would take."""
        size = stage.settings.batch_size
        steps = stage.epochs(len(rows)) * math.ceil(len(rows) / size)
        models, history = {}, []
        for k, name in enumerate(rows.domain_names.tolist()):
            mine = rows.where(rows.domains == k)
            if not mine.class_balance.any():
                raise ValueError(f"domains: {name!r} has no row of class_weight above 0; leave it out, or raise that.")
            auto = math.ceil(steps / math.ceil(len(mine) / size))
            epochs = auto if isinstance(stage.meta_epochs, str) else stage.meta_epochs
            label = f"{self.description}, domain {name!r}"
            trained = stage.train(self, stage.new_model(self, mine), mine, epochs=epochs, description=label)
            models[name] = trained.model
            history += [{**entry, "domain": name} for entry in trained.history]
        own = {name: {n: p.detach().cpu() for n, p in model.named_parameters()} for name, model in models.items()}
        return Trained(next(iter(models.values())), history, own)


class MultiTask(Recipe):
    """One encoder for all domains, with a label head for each ("MTL" in the paper)."""

    def train(self, stage: Stage, rows: Rows) -> Trained:
        """One training of all heads; the model's own becomes their mean, which answers for unknown domains."""
        rows = replace(rows, probe=None)  # these heads start from random numbers
        names, n_classes = rows.domain_names.tolist(), len(rows.classes)
        trained = stage.train(self, stage.new_model(self, rows, len(names) * n_classes), rows)
        head = trained.model.label_head
        weights = head.weight.detach().view(len(names), n_classes, -1)
        biases = head.bias.detach().view(len(names), n_classes)
        mean = nn.Linear(weights.shape[2], n_classes, device="meta").to_empty(device=weights.device)
        mean.load_state_dict({"weight": weights.mean(0), "bias": biases.mean(0)})
        trained.model.label_head = mean
        own = {
            name: {"label_head.weight": weight.cpu().clone(), "label_head.bias": bias.cpu().clone()}
            for name, weight, bias in zip(names, weights, biases)
        }
        return replace(trained, own=own)

    def columns(self, rows: Rows) -> Mapping[str, Column]:
        """Which outputs of the joint head are those of the row's own domain."""
        n_classes = len(rows.classes)
        return {"own_outputs": rows.domains[:, None] * n_classes + np.arange(n_classes)}

    def terms(self, model: TextClassifier, output: ModelOutput, batch: Batch) -> dict[str, Term]:
        """The label loss of every row at its own domain's head."""
        own = output.logits.gather(1, batch["own_outputs"])
        return {"label_loss": label_loss(own, batch["y"], batch["weight"])}


@dataclass(repr=False, eq=False)
class DomainAdversarial(Recipe):
    """One model for all domains, whose encoder is trained against a discriminator of domains ("Adv" in the paper).

    Parameters
    ----------
    weight : float, default=0.1
        Factor of the reversed gradient, 0 or more (the reference's lambda, at the end of its schedule). At 0 there is no
        discriminator.
    schedule : {"ramp", "constant"}, default="ramp"
        Whether the factor rises by ``2 / (1 + exp(-10 p)) - 1``, p being the share of steps done, or is the same throughout.

    References
    ----------
    Y. Ganin et al., "Domain-Adversarial Training of Neural Networks", JMLR 17, 2016: the reversal in section 4.2, the schedule
    in section 5.2.2.

    Examples
    --------
    >>> from skmft.recipes import DomainAdversarial
    >>> DomainAdversarial(weight=1.0)
    DomainAdversarial(weight=1.0)
    """

    seed_of_heads = "domain discriminator"

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "weight": [Interval(Real, 0, None, closed="left")],
        "schedule": [StrOptions({"ramp", "constant"})],
    }

    weight: float = 0.1
    _: KW_ONLY
    schedule: str = "ramp"

    def _has_discriminator(self, rows: Rows) -> bool:
        return self.weight > 0 and len(rows.domain_names) > 1

    def layers(self, rows: Rows) -> Sequence[int]:
        """The last one."""
        return (-1,) if self._has_discriminator(rows) else ()

    def heads(self, rows: Rows, width: int) -> Mapping[str, nn.Module]:
        """The discriminator."""
        return {"domain": domain_head(width, len(rows.domain_names))} if self._has_discriminator(rows) else {}

    def columns(self, rows: Rows) -> Mapping[str, Column]:
        """True domains."""
        return {"domain": rows.domains}

    def terms(self, model: TextClassifier, output: ModelOutput, batch: Batch) -> dict[str, Term]:
        """The label loss, and the discriminator's at the true domain, its gradient reversed on the way into the encoder."""
        terms = super().terms(model, output, batch)
        if "domain" in model.heads:
            strength = self.weight * (adversarial_ramp(batch["progress"]) if self.schedule == "ramp" else 1.0)
            logits = model.heads["domain"](reverse_gradient(output.layers[0], strength))
            terms["domain_loss"] = label_loss(logits, batch["domain"], batch["weight"])
            terms["domain_accuracy"] = (0.0, (logits.detach().argmax(-1) == batch["domain"]).float().mean())
        return terms


def make_recipe(name: str, params: Params | None) -> Recipe:
    """A recipe of skmft by its class's name, or a `MissingRecipe`; nothing is imported."""
    module, _, kind = name.rpartition(".")
    known = globals()[kind] if module == __name__ and kind in __all__ else None
    if params is None or not (isinstance(known, type) and issubclass(known, Recipe)):
        return MissingRecipe(name, params)
    return known(**params)
