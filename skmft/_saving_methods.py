"""How a fitted classifier leaves Python: folders, the hub, sentence-transformers, ONNX."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from . import recipes
from ._persistence import export, loading, saving
from ._persistence.state import FittedState
from ._typing import Name, Params


class SavingMixin:
    """Saving, loading and export, by way of `FittedState`; the estimator makes one, and is made of one."""

    _fitted_state: Callable[[], FittedState]
    _checked: Callable[[Params], Self]
    _from_state: Callable[[FittedState], Self]

    def save(self, path: str | os.PathLike, *, notes: str = "") -> None:
        """Save the fitted estimator to a folder of safetensors and JSON files, with a model card.

        An earlier save in it is replaced at once: a crash leaves the old or the new. Other files stay. Parameters that JSON
        cannot hold, such as callbacks, are left out, with a warning.

        Parameters
        ----------
        path : path
            A new or empty folder, or one that `save` wrote.
        notes : str, default=""
            Markdown for the model card, such as a ``domain_report`` of held-out rows; `load` refuses a card edited later.

        Raises
        ------
        FileExistsError, ValueError
            If the path, or ``.name.old`` beside it, holds something else; or if `load` would refuse the parameters.
        """
        saving.save(self._fitted_state(), type(self), self._checked, path, notes)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Load an estimator that `save` wrote; on any machine, and without the pre-trained encoder.

        Nothing in it is executed, and every file is checked against its manifest, domains' weights when first asked for. The
        encoder's are mapped, so that processes share them: replace a folder in use as `save` does; do not write into its files.

        Parameters
        ----------
        path : path

        Returns
        -------
        object of the class
            It predicts as the saved one did, bit for bit on the same machine. `memory` and what JSON could not hold are None;
            set a recipe that held such a thing, or is not of skmft, before `fit` or `adapt`.

        Raises
        ------
        ValueError
            If a file is missing, altered, cut short or of a newer format; the message names it.
        """
        return cls._from_state(loading.load(cls, cls._checked, recipes.make_recipe, path))

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, *, revision: str | None = None) -> Self:
        """`load` from a folder, or from the Hugging Face hub.

        Parameters
        ----------
        path : path or str
            Folder that `save` wrote, or the hub's name of a repository.
        revision : str, default=None
            Commit, branch or tag on the hub.

        Returns
        -------
        object of the class

        Raises
        ------
        ValueError
            As for `load`, or if there is no such folder or repository; a folder has no revision.
        """
        return cls.load(loading.fetch(path, revision))

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, notes: str = "", **upload: Any) -> str:
        """Upload what `save` writes to a repository of the Hugging Face hub, which is created if need be.

        Parameters
        ----------
        repo_id, private : as in ``huggingface_hub.create_repo``
        notes : as in `save`
        **upload : as in ``huggingface_hub.upload_folder``, such as ``token`` or ``commit_message``

        Returns
        -------
        str
            Address of the commit.
        """
        from huggingface_hub import create_repo, upload_folder

        upload = {"delete_patterns": ["encoder/*", "domains/*"], **upload}  # `load` refuses files of an earlier model
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model"
            self.save(target, notes=notes)
            create_repo(repo_id, private=private, exist_ok=True, token=upload.get("token"))
            return str(upload_folder(repo_id=repo_id, folder_path=target, **upload))

    def to_sentence_transformer(self, domain: Name = None) -> Any:
        """Make a stock SentenceTransformer (Transformer and Pooling) of a model's encoder.

        Parameters
        ----------
        domain : str, int or bool, default=None
            Domain whose adapted model is taken; None takes the meta-learner.

        Returns
        -------
        sentence_transformers.SentenceTransformer
            On the CPU. Its ``encode(X)`` is `transform` in float32 where domain is None; for pairs under
            ``pair_encoding="bi"`` it embeds single texts.

        Raises
        ------
        ImportError, ValueError
            Without the extra ``skmft[sentence-transformers]``; or if the domain has no adapted model.
        """
        return export.to_sentence_transformer(self._fitted_state(), domain)

    def to_onnx(self, path: str | os.PathLike, domain: Name = None) -> list[str]:
        """Write a model as an ONNX file, from token ids to label logits, for any batch and length.

        Parameters
        ----------
        path : path
        domain : as in `to_sentence_transformer`

        Returns
        -------
        list of str
            Names of the inputs, int64 of shape (batch, tokens), as ``clf.tokenizer_(X, padding=True, truncation=True,
            max_length=clf.max_length, return_token_type_ids="token_type_ids" in names, return_tensors="np")`` makes them of
            texts, or of two lists of texts. The output is ``"logits"``, float32 of shape (batch, n_classes). For pairs under
            ``pair_encoding="bi"`` a row holds the tokens of one text and then those of the other, each with its special
            tokens and cut to `max_length`; ``token_type_ids`` (0 and 1) tells them apart.

        Raises
        ------
        ImportError, ValueError
            Without the extra ``skmft[onnx]``; or if the domain has no adapted model.
        """
        return export.to_onnx(self._fitted_state(), path, domain)
