"""Is A a kind of B? Pairs of English nouns from Open English WordNet, in place of the paper's own, unpublished, pairs.

Three domains: animal, plant, vehicle. The class is "hypernym" if the first noun is a kind of the second, else "other";
every domain has equally many of both. The others are, where there are enough, a third each of reversed pairs, co-hyponyms
(two kinds of the same thing, neither a kind of the other), and a term with the hypernym of another pair.

Source: Open English WordNet, noun hypernymy below these three words, first name of each synset. Licence: CC BY 4.0;
credit Open English WordNet (J. P. McCrae et al., "English WordNet 2020", GWC 2021) and Princeton WordNet (G. A. Miller,
"WordNet: a lexical database for English", Communications of the ACM 1995).
"""

from __future__ import annotations

import gzip
import json
import os
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pooch
from sklearn.utils import Bunch

URL = "https://github.com/globalwordnet/english-wordnet/releases/download/2025-edition/english-wordnet-2025-json.zip"
SHA256 = "7d749f6e2c39e6970e4997839dcf6e42fd281f3c2fae0171d2192bae8cfa4b51"
ARCHIVE, TABLE = "english-wordnet-2025-json.zip", "oewn_hypernym_pairs.tsv.gz"
ROOTS = {"animal": "00015568-n", "plant": "00017402-n", "vehicle": "04531608-n"}
COUNTS = {"animal": 29679, "plant": 21769, "vehicle": 2368}  # rows of the table
MARGIN = 0.05  # how far an edition of WordNet may be from the table
HEADER = ["domain", "hyponym", "hypernym", "distance"]


class Pair(NamedTuple):
    """A row; `kind` says how it was made, `distance` how many steps up a hypernym is, `group` is the more special term."""

    domain: str
    term: str
    candidate: str
    kind: str
    distance: int
    group: str


def fetch_hypernym_pairs(subset: str = "train", *, random_state: int = 0, test_size: float = 0.2) -> Bunch:
    """Pairs of terms, split by terms into "train" and "test", which have no term in common.

    Terms are dealt to train and test at random, all domains together because some are in more than one, and regardless
    of capitals. A pair stays where both of its terms fell on one side, so at `test_size` 0.2 about 64% of the pairs are
    left to train on and 4% to test on. Test pairs of vehicles are few (62 to 166 positive ones over `random_state` 0 to
    7): average over several values of `random_state`.

    The table or the archive is looked for in the folder taxonomy of SKMFT_DATA_HOME and of the user's cache; else the
    archive (10 MB) is downloaded to the cache. Returns `data` (term, candidate), `target`, `domains`, `kinds`
    ("hypernym", "reversed", "co-hyponym", "random"), `distances` (0 for the others) and `groups`.
    """
    if subset not in ("train", "test"):
        raise ValueError(f"subset={subset!r}; expected 'train' or 'test'.")
    if not isinstance(random_state, Integral):
        raise ValueError(f"random_state={random_state!r}; expected an int, the same for train and test.")
    path = find_or_fetch()
    positives = list(read_table(path) if path.suffix == ".gz" else read_wordnet(path))
    rng = np.random.RandomState(random_state)
    test_terms = _deal_terms(positives, test_size, rng)
    side = {subset == "test"}
    pairs = [p for p in positives if {_key(p.term) in test_terms, _key(p.candidate) in test_terms} == side]
    seeds = rng.randint(2**31 - 1, size=(2, len(ROOTS)))[int(subset == "test")]
    true = {(_key(p.term), _key(p.candidate)) for p in positives}
    rows: list[Pair] = []
    for domain, seed in zip(ROOTS, seeds):
        found = _balance(domain, pairs, positives, true, np.random.RandomState(seed))
        if not found:
            raise ValueError(
                f"test_size={test_size!r} leaves no {subset} pairs of the domain {domain}: both terms of a pair have to be "
                f"on that side. {'Raise' if subset == 'test' else 'Lower'} test_size."
            )
        rows += found
    columns = {name: np.array(values, dtype=object) for name, values in zip(Pair._fields, zip(*rows))}
    return Bunch(
        data=np.column_stack([columns["term"], columns["candidate"]]),
        target=np.where(columns["kind"] == "hypernym", "hypernym", "other").astype(object),
        domains=columns["domain"],
        kinds=columns["kind"],
        distances=columns["distance"].astype(int),
        groups=columns["group"],
    )


def find_or_fetch() -> Path:
    """Where the archive or the table is."""
    cache = pooch.os_cache("skmft")
    for home in (Path(os.environ.get("SKMFT_DATA_HOME") or cache).expanduser(), cache):
        for name in (ARCHIVE, TABLE):
            if (path := home / "taxonomy" / name).exists():
                return path
    return Path(pooch.retrieve(URL, SHA256, ARCHIVE, cache / "taxonomy", progressbar=True))


def _key(term: str) -> str:
    return term.casefold()


def unique(rows: Iterable[tuple[str, str, str, int]]) -> Iterator[Pair]:
    """Every pair once, over all domains, at its least distance, sorted; no term with itself, no pair that goes both ways."""
    best: dict[tuple[str, str], tuple[str, str, str, int]] = {}
    for row in rows:
        pair = (_key(row[1]), _key(row[2]))
        if pair not in best or row[::-1] < best[pair][::-1]:
            best[pair] = row
    for (term, candidate), (domain, hyponym, hypernym, distance) in sorted(best.items()):
        if (candidate, term) not in best:
            yield Pair(domain, hyponym, hypernym, "hypernym", distance, _key(hyponym))


def read_table(path: Path) -> Iterator[Pair]:
    """Pairs of the table, which has to have its known counts."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        header = file.readline().rstrip("\n").split("\t")
        if header != HEADER:
            raise ValueError(f"{path} has the columns {header}, expected {HEADER}; get it again.")
        rows = []
        for number, line in enumerate(file, start=2):
            cells = line.rstrip("\n").split("\t")
            if len(cells) != 4 or cells[0] not in ROOTS or not all(cells) or not cells[3].isdigit():
                raise ValueError(f"{path}, line {number} is {line[:60]!r}; expected {HEADER}; get it again.")
            rows.append((cells[0], cells[1], cells[2], int(cells[3])))
    if (counts := dict(Counter(row[0] for row in rows))) != COUNTS:
        raise ValueError(f"{path}: domain counts {counts}, expected {COUNTS}; get it again.")
    return unique(rows)


def read_wordnet(path: Path) -> Iterator[Pair]:
    """Each synset below a root with each synset above it, up to the root, by the shortest path."""
    if (found := pooch.file_hash(str(path))) != SHA256:
        raise ValueError(f"{path} has sha256 {found}, expected {SHA256}; delete it and get it again.")
    synsets: dict[str, Any] = {}
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if Path(name).name.startswith("noun.") and name.endswith(".json"):
                synsets.update(json.loads(archive.read(name).decode("utf-8")))
    below = defaultdict(list)
    for identifier, synset in synsets.items():
        for parent in synset.get("hypernym", []):
            below[parent].append(identifier)
    rows = []
    for domain, root in ROOTS.items():
        inside = _steps(root, lambda synset: below.get(synset, []))
        for synset in list(inside)[1:]:
            above = _steps(synset, lambda s: [p for p in synsets[s].get("hypernym", []) if p in inside])  # noqa: B023
            for ancestor, distance in list(above.items())[1:]:
                rows.append((domain, synsets[synset]["members"][0], synsets[ancestor]["members"][0], distance))
    counts = Counter(row[0] for row in rows)
    for domain, known in COUNTS.items():
        if abs(counts[domain] - known) > MARGIN * known:
            raise ValueError(f"{path} has {counts[domain]} pairs of the domain {domain}, expected about {known}.")
    return unique(rows)


def _steps(start: str, neighbours: Callable[[str], list[str]]) -> dict[str, int]:
    """All that can be reached from `start`, itself first, with the least number of steps."""
    steps, queue = {start: 0}, [start]
    for synset in queue:
        for other in neighbours(synset):
            if other not in steps:
                steps[other] = steps[synset] + 1
                queue.append(other)
    return steps


def _deal_terms(positives: list[Pair], test_size: float, rng: np.random.RandomState) -> set[str]:
    terms = sorted({_key(term) for pair in positives for term in (pair.term, pair.candidate)})
    return {terms[i] for i in rng.permutation(len(terms))[: round(test_size * len(terms))]}


def _balance(
    domain: str,
    side: list[Pair],
    everything: list[Pair],
    true: set[tuple[str, str]],
    rng: np.random.RandomState,
) -> list[Pair]:
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

    def draw_reversed() -> Pair:
        p = pairs[rng.randint(len(pairs))]
        return Pair(domain, p.candidate, p.term, "reversed", 0, _key(p.term))

    def draw_siblings() -> Pair:
        terms = families[np.searchsorted(weights, rng.randint(weights[-1]), side="right")]
        a, b = (terms[i] for i in rng.randint(len(terms), size=2))
        return Pair(domain, a, b, "co-hyponym", 0, _key(a))

    def draw_random() -> Pair:
        a, b = (pairs[i] for i in rng.randint(len(pairs), size=2))
        return Pair(domain, a.term, b.candidate, "random", 0, _key(a.term))

    taken: set[tuple[str, str]] = set()

    def add(others: list[Pair], draw: Callable[[], Pair], number: int) -> None:
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

    others: list[Pair] = []
    third = len(pairs) // 3
    add(others, draw_reversed, third)
    if families:
        add(others, draw_siblings, third)
    add(others, draw_random, len(pairs) - len(others))
    if len(others) < len(pairs):
        add(others, draw_reversed, len(pairs) - len(others))
    kept = [pairs[i] for i in sorted(rng.permutation(len(pairs))[: len(others)])]
    return kept + others
