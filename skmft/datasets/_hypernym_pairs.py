"""Is A a kind of B? Term pairs of three domains from Open English WordNet, in place of the paper's own, unpublished, pairs."""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import Bunch

from .._typing import Params
from ._cache import bunch, check_counts, check_sha256, check_subset, find_or_fetch, reading, select_domains

_URL = "https://github.com/globalwordnet/english-wordnet/releases/download/2025-edition/english-wordnet-2025-json.zip"
_SHA256 = "7d749f6e2c39e6970e4997839dcf6e42fd281f3c2fae0171d2192bae8cfa4b51"
_TABLE = "oewn_hypernym_pairs.tsv.gz"
_ROOTS = {"animal": "00015568-n", "plant": "00017402-n", "vehicle": "04531608-n"}
_COUNTS = {"animal": 29679, "plant": 21769, "vehicle": 2368}  # rows of the table
_MARGIN = 0.05  # how far an edition of WordNet may be from the table
_HEADER = ["domain", "hyponym", "hypernym", "distance"]
_DESCR = """Pairs of English nouns of three domains (animal, plant, vehicle): "hypernym" where the first is a kind of the
second, "other" where it is not. As many of each in every domain. The others are a third each, where there are enough:
reversed pairs, co-hyponyms (two kinds of the same thing, neither a kind of the other), and a term with another pair's
hypernym. No term is in both train and test, over all domains and whatever its capitals; pairs with a term of each side
are dropped. `kinds` says how a row was made, `distances` how many steps up a hypernym is (0 for the others), `groups`
is the more special term. These are {subset}, test_size={test_size}, random_state={random_state!r}: {sizes}.
Source: Open English WordNet, noun hypernymy below these three words, first name of each synset. Licence: CC BY 4.0;
credit Open English WordNet (J. P. McCrae et al., "English WordNet 2020", GWC 2021) and Princeton WordNet (G. A. Miller,
"WordNet: a lexical database for English", Communications of the ACM 1995)."""


class _Pair(NamedTuple):
    domain: str
    term: str
    candidate: str
    kind: str
    distance: int
    group: str


def fetch_hypernym_pairs(
    *,
    data_home: str | os.PathLike | None = None,
    subset: str = "train",
    domains: Sequence[str] | None = None,
    test_size: float = 0.2,
    random_state: int = 0,
    return_X_y_domains: bool = False,
    as_frame: bool = False,
    download_if_missing: bool = True,
) -> Bunch | tuple[Any, Any, Any]:
    """Load pairs of terms, hypernyms and others, split by terms; the first call fetches 10 MB.

    Terms are dealt to train and test at random, all domains together because some are in more than one. A pair stays
    where both of its terms fell on one side, so at `test_size` 0.2 about 64% of the pairs are left to train on and 4%
    to test on. Test pairs of vehicles are few (62 to 166
    positive ones over `random_state` 0 to 7, of 1,148 to 1,625 to train on); average over several values of `random_state`.

    Parameters
    ----------
    data_home : path, default=None
        Folder that holds ``taxonomy/english-wordnet-2025-json.zip``, or ``taxonomy/oewn_hypernym_pairs.tsv.gz`` (columns
        domain, hyponym, hypernym, distance). By default they are looked for in the environment variable SKMFT_DATA_HOME
        and in ``~/.cache/skmft``; a fetched archive is kept in the latter. They need not be of one edition: the table
        must have its known counts, the archive its sha256, and pairs within 5% of those counts.
    subset : {"train", "test"}, default="train"
        The side of the split.
    domains : list of str, default=None
        Some of ``["animal", "plant", "vehicle"]``; all by default. The rows are the same as with all.
    test_size : float, default=0.2
        Share of the terms, between 0 and 1, that make the test pairs.
    random_state : int, default=0
        Deals the terms and draws the pairs that are no hypernyms. No generator and no None: train and test are drawn by
        two calls, which agree on the split of the terms by this number alone.
    return_X_y_domains : bool, default=False
        Return ``(data, target, domains)`` in place of a Bunch.
    as_frame : bool, default=False
        Give pandas objects; the Bunch then has `frame` with a column for each of term, candidate, target, domains,
        kinds, distances and groups.
    download_if_missing : bool, default=True
        Whether to fetch the archive where there is no local copy.

    Returns
    -------
    Bunch
        With `data` (term and candidate), an object array of shape (n_rows, 2); `target` ("hypernym": the term is a kind
        of the candidate; "other"), `domains`, `kinds` ("hypernym", "reversed", "co-hyponym", "random") and `groups` (the
        more special term), object arrays of shape (n_rows,); `distances`, int, shape (n_rows,), steps from a term to its
        hypernym, 0 for the others; `frame` (DataFrame or None), `target_names`, `domain_names` and `DESCR`.

    Raises
    ------
    FileNotFoundError
        If there is no local copy and it may not, or cannot, be fetched.
    ValueError
        If a file is damaged or of another content, `test_size` is not between 0 and 1 or leaves no pairs of a domain, or
        `random_state` is no int.

    Examples
    --------
    >>> from skmft.datasets import fetch_hypernym_pairs
    >>> fetch_hypernym_pairs(test_size=80)
    Traceback (most recent call last):
    ValueError: test_size=80; expected a share of the terms, greater than 0 and less than 1.
    """
    check_subset(subset, ["train", "test"])
    wanted = select_domains(domains, list(_ROOTS))
    if not isinstance(test_size, Real) or not 0 < test_size < 1:
        raise ValueError(f"test_size={test_size!r}; expected a share of the terms, greater than 0 and less than 1.")
    if not isinstance(random_state, Integral) or not 0 <= random_state < 2**32:
        raise ValueError(
            f"random_state={random_state!r}; expected an int from 0 to 2**32 - 1, the same for train and test, so that "
            "no term is in both."
        )
    names = [_URL.rsplit("/", 1)[-1], _TABLE]
    path = find_or_fetch("taxonomy", names, _URL, _SHA256, data_home, download_if_missing)
    with reading(path):
        positives = list(_read_table(path)) if path.suffix == ".gz" else list(_read_wordnet(path))
    rng = np.random.RandomState(random_state)
    test_terms = _deal_terms(positives, test_size, rng)
    side = {subset == "test"}
    pairs = [p for p in positives if {_key(p.term) in test_terms, _key(p.candidate) in test_terms} == side]
    # a seed for every domain and side: rows do not depend on what else is asked for
    seeds = dict(zip(_ROOTS, rng.randint(2**31 - 1, size=(2, len(_ROOTS)))[int(subset == "test")]))
    true = {(_key(p.term), _key(p.candidate)) for p in positives}
    rows = [row for d in wanted for row in _balance(d, pairs, positives, true, np.random.RandomState(seeds[d]))]
    if lacking := [d for d in wanted if d not in {row.domain for row in rows}]:
        raise ValueError(
            f"test_size={test_size!r} leaves no {subset} pairs of the domains {lacking}: both terms of a pair have to be on "
            f"that side. {'Raise' if subset == 'test' else 'Lower'} test_size."
        )
    sizes = ", ".join(f"{d} {n:,}" for d, n in Counter(row.domain for row in rows).items())
    return bunch(
        {"term": [r.term for r in rows], "candidate": [r.candidate for r in rows]},
        ["hypernym" if r.kind == "hypernym" else "other" for r in rows],
        [r.domain for r in rows],
        return_X_y_domains=return_X_y_domains,
        as_frame=as_frame,
        DESCR=_DESCR.format(subset=subset, test_size=test_size, random_state=random_state, sizes=sizes),
        kinds=[r.kind for r in rows],
        distances=[r.distance for r in rows],
        groups=[r.group for r in rows],
    )


def _key(term: str) -> str:
    return term.casefold()


def _unique(rows: Iterable[tuple[str, str, str, int]]) -> Iterator[_Pair]:
    """Every pair once, over all domains, at its least distance, sorted; no term with itself, no pair that goes both ways."""
    best: dict[tuple[str, str], tuple[str, str, str, int]] = {}
    for row in rows:
        pair = (_key(row[1]), _key(row[2]))
        if pair not in best or row[::-1] < best[pair][::-1]:
            best[pair] = row
    for (term, candidate), (domain, hyponym, hypernym, distance) in sorted(best.items()):
        if (candidate, term) not in best:
            yield _Pair(domain, hyponym, hypernym, "hypernym", distance, _key(hyponym))


def _read_table(path: Path) -> Iterator[_Pair]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        header = file.readline().rstrip("\n").split("\t")
        if header != _HEADER:
            raise ValueError(f"{path} has the columns {header}, expected {_HEADER}; get it again.")
        rows = []
        for number, line in enumerate(file, start=2):
            cells = line.rstrip("\n").split("\t")
            if len(cells) != 4 or cells[0] not in _ROOTS or not all(cells) or not cells[3].isdigit():
                raise ValueError(f"{path}, line {number} is {line[:60]!r}; expected {_HEADER}; get it again.")
            rows.append((cells[0], cells[1], cells[2], int(cells[3])))
    check_counts(path, "domain", Counter(row[0] for row in rows), _COUNTS)
    return _unique(rows)


def _read_wordnet(path: Path) -> Iterator[_Pair]:
    """Each synset below a root with each synset above it, up to the root, by the shortest way."""
    check_sha256(path, _SHA256)
    synsets: Params = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if Path(name).name.startswith("noun.") and name.endswith(".json"):
                synsets.update(json.loads(archive.read(name).decode("utf-8")))
    below = defaultdict(list)
    for identifier, synset in synsets.items():
        for parent in synset.get("hypernym", []):
            below[parent].append(identifier)
    rows = []
    for domain, root in _ROOTS.items():
        inside = _steps(root, lambda synset: below.get(synset, []))
        for synset in list(inside)[1:]:
            above = _steps(synset, lambda s: [p for p in synsets[s].get("hypernym", []) if p in inside])  # noqa: B023
            for ancestor, distance in list(above.items())[1:]:
                rows.append((domain, synsets[synset]["members"][0], synsets[ancestor]["members"][0], distance))
    counts = Counter(row[0] for row in rows)
    for domain, known in _COUNTS.items():
        if abs(counts[domain] - known) > _MARGIN * known:
            raise ValueError(f"{path} has {counts[domain]} pairs of the domain {domain}, expected about {known}.")
    return _unique(rows)


def _steps(start: str, neighbours: Callable[[str], list[str]]) -> dict[str, int]:
    """All that can be reached from `start`, itself first, with the least number of steps."""
    steps, queue = {start: 0}, [start]
    for synset in queue:
        for other in neighbours(synset):
            if other not in steps:
                steps[other] = steps[synset] + 1
                queue.append(other)
    return steps


def _deal_terms(positives: list[_Pair], test_size: float, rng: np.random.RandomState) -> set[str]:
    terms = sorted({_key(term) for pair in positives for term in (pair.term, pair.candidate)})
    return {terms[i] for i in rng.permutation(len(terms))[: round(test_size * len(terms))]}


def _balance(
    domain: str,
    side: list[_Pair],
    everything: list[_Pair],
    true: set[tuple[str, str]],
    rng: np.random.RandomState,
) -> list[_Pair]:
    """A domain's pairs on one side, and as many that are no hypernyms; fewer of both where there are not enough."""
    pairs = [p for p in side if p.domain == domain]
    if not pairs:
        return []
    siblings = defaultdict(list)  # terms right below the same one, wherever that one fell
    here = {_key(term): term for p in side for term in (p.term, p.candidate)}
    for p in everything:
        if p.domain == domain and p.distance == 1 and _key(p.term) in here:
            siblings[_key(p.candidate)].append(p.term)
    families = [terms for terms in siblings.values() if len(terms) > 1]
    weights = np.cumsum([len(terms) for terms in families])

    def draw_reversed() -> _Pair:
        p = pairs[rng.randint(len(pairs))]
        return _Pair(domain, p.candidate, p.term, "reversed", 0, _key(p.term))

    def draw_siblings() -> _Pair:
        terms = families[np.searchsorted(weights, rng.randint(weights[-1]), side="right")]
        a, b = (terms[i] for i in rng.randint(len(terms), size=2))
        return _Pair(domain, a, b, "co-hyponym", 0, _key(a))

    def draw_random() -> _Pair:
        a, b = (pairs[i] for i in rng.randint(len(pairs), size=2))
        return _Pair(domain, a.term, b.candidate, "random", 0, _key(a.term))

    taken: set[tuple[str, str]] = set()

    def add(others: list[_Pair], draw: Callable[[], _Pair], number: int) -> None:
        for _ in range(50 * number):  # then there are no more, or nearly
            if number <= 0:
                return
            p = draw()
            a, b = _key(p.term), _key(p.candidate)
            known = (a, b) in true or (p.kind != "reversed" and (b, a) in true)
            if a != b and not known and (a, b) not in taken:
                taken.add((a, b))
                others.append(p)
                number -= 1

    others: list[_Pair] = []
    third = len(pairs) // 3
    add(others, draw_reversed, third)
    if families:
        add(others, draw_siblings, third)
    add(others, draw_random, len(pairs) - len(others))
    if len(others) < len(pairs):
        add(others, draw_reversed, len(pairs) - len(others))
    kept = [pairs[i] for i in sorted(rng.permutation(len(pairs))[: len(others)])]
    return kept + others
