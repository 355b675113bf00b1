"""What a recipe trains with, and what a training returns."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ._engine.batches import Column, TrainingRows
from ._engine.encoder import Encoder
from ._engine.inference import run_in_batches
from ._engine.model import ModelOutput, TextClassifier, layer_indices
from ._engine.pooling import embedding_width
from ._engine.runtime import Runtime
from ._engine.training import Term, TrainingSettings, auto_epochs, fine_tune
from ._inputs.rows import Rows
from ._method.probe import linear_probe
from ._typing import Batch, Name, Record, Tensors

META_EPOCHS = {"min_epochs": 2, "min_steps": 60}  # "auto": as many epochs as make 60 optimiser steps, but 2 at least


class TrainingRecipe(Protocol):
    """What `Stage` asks of a recipe; `skmft.recipes.Recipe` says what each answer is."""

    description: str
    seed_of_heads: str

    def layers(self, rows: Rows) -> Sequence[int]: ...
    def heads(self, rows: Rows, width: int) -> Mapping[str, nn.Module]: ...
    def columns(self, rows: Rows) -> Mapping[str, Column]: ...
    def terms(self, model: TextClassifier, output: ModelOutput, batch: Batch) -> dict[str, Term]: ...
    def finish(self, model: TextClassifier, start: Tensors, interpolation: float) -> None: ...


@dataclass(frozen=True)
class Trained:
    """What a training found.

    Parameters
    ----------
    model : TextClassifier
        Answers rows of unknown domains; the start of stage 3.
    history : list of dict
    own : mapping of domain to mapping of str to Tensor
        By domain, what its model has in place of the model's tensors of the same names.
    """

    model: TextClassifier
    history: list[Record]
    own: Mapping[Name, Tensors] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """What a recipe trains with: the pre-trained encoder and the classifier's settings.

    Parameters
    ----------
    encoder : transformers.PreTrainedModel
        As it was pre-trained; every model gets a copy.
    pooling, meta_epochs, weight_interpolation : str, int or "auto", float
        As in the classifier.
    settings : TrainingSettings
        ``learning_rate``, ``batch_size`` and more.
    runtime : Runtime
        Device, precision, and seeds by purpose: ``derive("purpose")``.
    max_tokens : int
        Most tokens of a batch in inference.
    """

    encoder: Encoder
    pooling: str
    meta_epochs: int | str
    weight_interpolation: float
    settings: TrainingSettings
    runtime: Runtime
    max_tokens: int

    def new_model(self, recipe: TrainingRecipe, rows: Rows, n_outputs: int | None = None) -> TextClassifier:
        """A model around a copy of the pre-trained encoder, with the recipe's heads.

        Parameters
        ----------
        recipe : Recipe
        rows : Rows
            Where they hold embeddings, the label head starts as a logistic regression on those.
        n_outputs : int, default=None
            Outputs of the label head; None is one for each class.

        Returns
        -------
        TextClassifier
        """
        with self.runtime.generators("label head"):
            outputs = len(rows.classes) if n_outputs is None else n_outputs
            model = TextClassifier(copy.deepcopy(self.encoder), outputs, self.pooling, rows.tokens.bi_encoded)
        if rows.probe is not None and n_outputs is None:
            few, embeddings = rows.probe
            found = linear_probe(embeddings, rows.labels[few], rows.weights[few], outputs)
            head = model.label_head
            with torch.no_grad():
                for own, value in zip((head.weight, head.bias), self.runtime.processes.first(found)):
                    own.copy_(value)
        model.layers = layer_indices(recipe.layers(rows), self.encoder.config.num_hidden_layers, "layers")
        with self.runtime.generators(recipe.seed_of_heads):
            model.heads.update(recipe.heads(rows, embedding_width(self.encoder, rows.tokens.bi_encoded)))
        return model

    def train(
        self,
        recipe: TrainingRecipe,
        model: TextClassifier,
        rows: Rows,
        *,
        epochs: int | None = None,
        purpose: str = "meta",
        description: str | None = None,
    ) -> Trained:
        """Train a model on rows, in place, by the recipe's terms; then the recipe finishes it, and its heads go.

        Parameters
        ----------
        recipe : Recipe
        model : TextClassifier
        rows : Rows
        epochs : int, default=None
            None takes the classifier's ``meta_epochs``.
        purpose : str, default="meta"
            What the seed is derived from; a second round takes another.
        description : str, default=None
            Label of the progress bar; None takes the recipe's.

        Returns
        -------
        Trained
        """
        start: dict[str, torch.Tensor] = {}
        if rows.probe is not None and self.weight_interpolation < 1:
            start = {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters()}
        epochs = self.epochs(len(rows)) if epochs is None else epochs
        records = fine_tune(
            model,
            TrainingRows(rows.tokens, rows.labels, rows.weights, recipe.columns(rows)),
            recipe.terms,
            self.settings,
            self.runtime,
            epochs=epochs,
            seed=self.runtime.derive(purpose),
            description=recipe.description if description is None else description,
        )
        recipe.finish(model, start, self.weight_interpolation)
        model.heads.clear()
        model.layers = []
        return Trained(model, [{"stage": "meta", "epochs": epochs, **record} for record in records])

    def logits(self, model: TextClassifier, rows: Rows) -> NDArray[np.float32]:
        """Logits of a trained model.

        Parameters
        ----------
        model : TextClassifier
        rows : Rows

        Returns
        -------
        ndarray of float32, shape (n_rows, n_outputs)
        """
        model = model.to(self.runtime.device).eval()
        width = model.label_head.out_features
        return run_in_batches(model.label_logits, rows.tokens, width, self.max_tokens, self.runtime)

    def epochs(self, n_rows: int) -> int:
        """Epochs on so many rows: the classifier's ``meta_epochs``, "auto" resolved.

        Parameters
        ----------
        n_rows : int

        Returns
        -------
        int
        """
        if isinstance(self.meta_epochs, str):
            return auto_epochs(n_rows, self.settings.batch_size, **META_EPOCHS)
        return self.meta_epochs
