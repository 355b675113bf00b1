"""Texts of several domains made up of pseudo-words, with a domain shift that is known because it is put in."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real

import numpy as np
from sklearn.utils import check_random_state

from .._typing import Array

_LEXICON = 8  # words of a lexicon


def make_multi_domain_texts(
    n_samples: int = 200,
    n_domains: int = 3,
    n_classes: int = 2,
    *,
    domain_shift: float = 0.5,
    n_class_words: int = 4,
    n_domain_words: int = 4,
    n_filler_words: int = 4,
    random_state: int | np.random.RandomState | None = None,
) -> tuple[Array, Array, Array]:
    """Make texts of pseudo-words, of several domains that share a part of the words that tell the class.

    Every text has, in random order, `n_class_words` that tell its class, `n_domain_words` that tell its domain and
    nothing of the class, and `n_filler_words` that tell nothing. Each class word is, with probability `domain_shift`,
    from the lexicon of its class in its domain alone, and otherwise from the lexicon of its class in all domains. So the
    expected share of a text's class words that another domain cannot teach is `domain_shift`: at 0 a classifier of
    other domains reads them all, at 1 it can only guess. All lexicons have 8 words, no two have a word in common, and
    they do not depend on `random_state`.

    Parameters
    ----------
    n_samples : int, default=200
        Number of texts; every class in every domain has as many, to a row.
    n_domains : int, default=3
        Number of domains, named "domain 0", "domain 1", ...
    n_classes : int, default=2
        Number of classes, named "class 0", "class 1", ...
    domain_shift : float, default=0.5
        Share of the class words, from 0 to 1, that belong to the domain.
    n_class_words, n_domain_words, n_filler_words : int, default=4
        Words of each sort in a text.
    random_state : int, RandomState instance or None, default=None
        Draws the words and the order of the rows.

    Returns
    -------
    X : ndarray of str objects, shape (n_samples,)
        Texts.
    y : ndarray of str objects, shape (n_samples,)
        Classes.
    domains : ndarray of str objects, shape (n_samples,)
        Domains.

    Raises
    ------
    ValueError
        If a number is out of range.

    Examples
    --------
    >>> from skmft.datasets import make_multi_domain_texts
    >>> X, y, domains = make_multi_domain_texts(4, n_domains=2, domain_shift=0.3, random_state=0)
    >>> len(X[0].split())
    12
    >>> sorted(zip(domains.tolist(), y.tolist()))
    [('domain 0', 'class 0'), ('domain 0', 'class 1'), ('domain 1', 'class 0'), ('domain 1', 'class 1')]
    """
    sizes = {"n_samples": (n_samples, 1), "n_domains": (n_domains, 1), "n_classes": (n_classes, 2)}
    sizes |= {"n_class_words": (n_class_words, 0), "n_domain_words": (n_domain_words, 0)}
    sizes |= {"n_filler_words": (n_filler_words, 0)}
    for name, (value, least) in sizes.items():
        if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
            raise ValueError(f"{name}={value!r}; expected an int of {least} or more.")
    if isinstance(domain_shift, bool) or not isinstance(domain_shift, Real) or not 0 <= domain_shift <= 1:
        raise ValueError(f"domain_shift={domain_shift!r}; expected a share from 0 to 1.")
    rng = check_random_state(random_state)
    words = _pseudo_words()
    filler = _lexicon(words)
    of_class = [_lexicon(words) for _ in range(n_classes)]
    of_domain = [_lexicon(words) for _ in range(n_domains)]
    of_both = [[_lexicon(words) for _ in range(n_classes)] for _ in range(n_domains)]
    rows = []
    for i in rng.permutation(n_samples):
        c, d = i % n_classes, i // n_classes % n_domains
        own = rng.random_sample(n_class_words) < domain_shift
        text = [(of_both[d][c] if o else of_class[c])[rng.randint(_LEXICON)] for o in own]
        text += [of_domain[d][j] for j in rng.randint(_LEXICON, size=n_domain_words)]
        text += [filler[j] for j in rng.randint(_LEXICON, size=n_filler_words)]
        rows.append((" ".join(text[j] for j in rng.permutation(len(text))), f"class {c}", f"domain {d}"))
    X, y, domains = (np.array(column, dtype=object) for column in zip(*rows))
    return X, y, domains


def _pseudo_words() -> Iterator[str]:
    """Words of two syllables and more, each once: baba, babe, ..."""
    syllables = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
    words = syllables
    while True:
        words = [first + second for first in words for second in syllables]
        yield from words


def _lexicon(words: Iterator[str]) -> list[str]:
    return [next(words) for _ in range(_LEXICON)]
