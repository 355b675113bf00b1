"""Synthetic texts of pseudo-words."""

import itertools
from numbers import Integral, Real

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

from .._typing import Array


def make_multi_domain_texts(
    n_samples: int = 200,
    n_domains: int = 3,
    n_classes: int = 2,
    *,
    domain_shift: float = 0.5,
    n_words: int = 4,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[Array, Array, Array]:
    """Make texts of pseudo-words in several domains, with a known shift between them.

    Every text has, in random order, words of its class, of its domain, and filler, each from 8 that no other has. With
    probability `domain_shift` a class word is of the class in this domain alone, otherwise of the class in all domains.

    Parameters
    ----------
    n_samples : int, default=200
        Number of texts; the classes of all domains have equally many, give or take one.
    n_domains, n_classes : int, default=3 and 2
        How many "domain 0", "domain 1", ... and "class 0", "class 1", ... there are.
    domain_shift : float, default=0.5
        Expected share of class words, from 0 to 1, that other domains do not teach.
    n_words : int, default=4
        Number of words of each kind in a text.
    random_state : int, RandomState instance or None, default=None
        Draws the words and the order of the rows.

    Returns
    -------
    X, y, domains : ndarray of str objects, shape (n_samples,)
        Texts, their classes, and their domains.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> from skmft.datasets import make_multi_domain_texts
    >>> X, y, domains = make_multi_domain_texts(4, n_domains=2, domain_shift=0.3, random_state=0)
    >>> sorted(zip(domains.tolist(), y.tolist()))
    [('domain 0', 'class 0'), ('domain 0', 'class 1'), ('domain 1', 'class 0'), ('domain 1', 'class 1')]
    """
    sizes = {"n_samples": n_samples, "n_domains": n_domains, "n_classes": n_classes, "n_words": n_words}
    valid = {name: [Interval(Integral, 2 if name == "n_classes" else 1, None, closed="left")] for name in sizes}
    valid["domain_shift"] = [Interval(Real, 0, 1, closed="both")]
    validate_parameter_constraints(valid, {**sizes, "domain_shift": domain_shift}, "make_multi_domain_texts")
    rng, n_own = check_random_state(random_state), 8  # words of a lexicon
    syllables = list(map("".join, itertools.product("bdfgklmnprstvz", "aeiou")))
    words = ("".join(word) for length in itertools.count(2) for word in itertools.product(syllables, repeat=length))
    n_lexicons = 1 + n_classes + n_domains + n_domains * n_classes
    filler, *lexicons = (list(itertools.islice(words, n_own)) for _ in range(n_lexicons))
    of_class, of_domain, of_both = np.split(np.array(lexicons), np.cumsum([n_classes, n_domains]))
    rows = []
    for i in rng.permutation(n_samples):
        c, d = i % n_classes, i // n_classes % n_domains
        own = rng.random_sample(n_words) < domain_shift
        text = [(of_both[d * n_classes + c] if o else of_class[c])[rng.randint(n_own)] for o in own]
        text += [of_domain[d][j] for j in rng.randint(n_own, size=n_words)]
        text += [filler[j] for j in rng.randint(n_own, size=n_words)]
        rows.append((" ".join(text[j] for j in rng.permutation(len(text))), f"class {c}", f"domain {d}"))
    X, y, domains = np.array(rows, dtype=object).T.copy()
    return X, y, domains
