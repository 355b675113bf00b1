"""Names for what Python cannot type more closely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]  # labels or names of any dtype
Name = Any  # a domain: str, int or bool
Texts = Any  # X in any of the forms that `fit` describes
Domains = Any  # domains in any of the forms that `fit` describes
Params = dict[str, Any]
Batch = Mapping[str, Any]  # tensors, and the share of steps done
Record = dict[str, Any]  # an entry of `history_`
Json = Any
Estimator = Any  # any of scikit-learn's, searches and pipelines included
Labels = Any  # y in any of the forms that `fit` describes
Values = Any  # a column of X: a Series, an array, a dataset's column, a list
Tokenizer = Any  # a transformers.PreTrainedTokenizerBase
Axes = Any  # of matplotlib
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Tensors = Mapping[str, torch.Tensor]
