"""Recipes of the studies: losses that know the true domain, how far gradients reach, and a meta-learner of another kind."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from skmft.recipes import MetaFineTuning, Recipe

from . import engine


class TrueDomain(Recipe):
    """Plain fine-tuning, and a term that sees the true domains.

    Parameters
    ----------
    weight : float
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def columns(self, rows: Any) -> Mapping[str, Any]:
        """True domains."""
        return {"domain": rows.domains}


class Adversarial(TrueDomain):
    """The head of domain corruption has to tell the true domain, and its gradient is reversed on the way into the encoder."""

    def heads(self, rows: Any, width: int) -> Mapping[str, Any]:
        """The head of one layer."""
        return {"domain": engine.domain_head(width, len(rows.domain_names))}

    def terms(self, model: Any, output: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The label loss, and the head's."""
        logits = model.heads["domain"](engine.reverse_gradient(output.embedding, 1.0))
        loss = engine.label_loss(logits, batch["domain"], batch["weight"])
        accuracy = (logits.detach().argmax(-1) == batch["domain"]).float().mean()
        terms = super().terms(model, output, batch)
        return {**terms, "domain_loss": (self.weight, loss), "domain_accuracy": (0.0, accuracy)}


class MeanDistance(TrueDomain):
    """The share of a batch's variance that lies between the mean embeddings of its domains."""

    def terms(self, model: Any, output: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The label loss, and that share."""
        centred, domain = output.embedding - output.embedding.mean(0), batch["domain"]
        means = [centred[domain == k].mean(0).square().sum() * (domain == k).sum() for k in domain.unique()]
        share = sum(means) / centred.square().sum()
        return {**super().terms(model, output, batch), "domain_loss": (self.weight, share)}


class WithGradients(MetaFineTuning):
    """Meta Fine-Tuning whose last epoch's record says how much of each loss's gradient reaches the encoder.

    Norms over the encoder's parameters, by the losses of 64 training rows without dropout, before and after training; corrupted
    labels are drawn uniformly for it.
    """

    def train(self, stage: Any, rows: Any) -> Any:
        """As ever, with the norms."""
        few = np.random.default_rng(0).choice(len(rows), min(64, len(rows)), replace=False)
        batch = {"y": torch.from_numpy(rows.labels[few]), "domain": torch.from_numpy(rows.domains[few])}
        batch["weight"] = torch.ones(len(few))
        z = np.random.default_rng(0).integers(len(rows.domain_names), size=len(few))
        self.sample_ = rows.tokens.batch(few), {**batch, "corrupted": torch.from_numpy(z)}
        model = stage.new_model(self, rows)
        before = self.norms(model.eval())
        trained = stage.train(self, model, rows)
        *others, last = trained.history
        return replace(trained, history=[*others, {**last, "gradients_before": before, "gradients_after": self.after_}])

    def finish(self, model: Any, start: Mapping[str, Any], interpolation: float) -> None:
        """As ever; then the model still has its heads."""
        super().finish(model, start, interpolation)
        self.after_ = self.norms(model)

    def norms(self, model: Any) -> dict[str, float]:
        """By loss."""
        device = next(model.parameters()).device
        tokens, batch = ({name: tensor.to(device) for name, tensor in part.items()} for part in self.sample_)
        terms = self.terms(model, model(**tokens), batch)
        losses = {"label": terms["label_loss"]}
        if "corruption_loss" in terms:
            losses["corruption"] = terms["corruption_loss"][1]
        norms = {}
        for name, loss in losses.items():
            found = torch.autograd.grad(loss, list(model.encoder.parameters()), retain_graph=True, allow_unused=True)
            norms[name] = float(torch.sqrt(sum((g**2).sum() for g in found if g is not None)))
        return norms


class Reptile(Recipe):
    """An initialisation that moves toward what a few steps on one domain make of it.

    A. Nichol, J. Achiam, J. Schulman, "On First-Order Meta-Learning Algorithms", 2018 (algorithm 1), with as many optimiser
    steps as stage 2 takes, or a few more; AdamW starts anew in every round, and the outer step size falls linearly to 0.

    Parameters
    ----------
    inner_steps : int
        Optimiser steps on one domain before the initialisation moves.
    """

    def __init__(self, inner_steps: int = 5) -> None:
        self.inner_steps = inner_steps

    def train(self, stage: Any, rows: Any) -> Any:
        """A round for each drawn domain."""
        model, size = stage.new_model(self, rows), stage.settings.batch_size
        steps = stage.epochs(len(rows)) * math.ceil(len(rows) / size)
        inner_stage = replace(stage, settings=replace(stage.settings, warmup_ratio=0.0))
        rng = np.random.default_rng(stage.runtime.derive("reptile"))
        taken, history = 0, []
        while taken < steps:
            own = np.flatnonzero(rows.domains == rng.integers(len(rows.domain_names)))
            chosen = rng.choice(own, min(len(own), self.inner_steps * size), replace=False)
            mine = rows.where(np.isin(np.arange(len(rows)), chosen))
            per_epoch = math.ceil(len(mine) / size)
            epochs = max(1, round(self.inner_steps / per_epoch))
            inner = copy.deepcopy(model)
            found = inner_stage.train(self, inner, mine, epochs=epochs, purpose=f"reptile {len(history)}")
            with torch.no_grad():
                for outer, end in zip(model.parameters(), inner.parameters()):
                    outer.lerp_(end.to(outer.device), 1 - taken / steps)
            taken += epochs * per_epoch
            history.append({**found.history[-1], "domain": rows.domain_names.tolist()[rows.domains[chosen[0]]]})
        return replace(found, model=model.eval(), history=history)
