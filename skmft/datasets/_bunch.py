"""What all loaders are asked, and the form of their answer."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import Bunch


def select_domains(subset: str, domains: Sequence[str] | None, known: Mapping[str, Sequence[str]]) -> list[str]:
    """The domains asked for, by default all of the subset. `known` has the domains of every subset.

    Raises
    ------
    ValueError
        If the subset or a domain is not known.
    """
    if subset not in known:
        raise ValueError(f"subset={subset!r}; expected " + " or ".join(map(repr, known)) + ".")
    names = list(known[subset])
    if domains is None:
        return names
    is_list = isinstance(domains, (list, tuple, np.ndarray, pd.Series, pd.Index))
    if not is_list or not len(domains) or any(domain not in names for domain in domains):
        raise ValueError(f"domains={domains!r}; expected a list of names among {names}.")
    return list(dict.fromkeys(map(str, domains)))


def make_bunch(
    rows: Sequence[Sequence[Any]], names: Sequence[str], return_X_y_domains: bool, as_frame: bool, DESCR: str
) -> Bunch | tuple[Any, Any, Any]:
    """Rows as columns: one of texts, or two of pairs, then "target", "domains", and others."""
    columns: Any = {name: _array(values) for name, values in zip(names, zip(*rows))}
    frame = pd.DataFrame(columns) if as_frame else None
    texts, others = list(names[: names.index("target")]), names[names.index("target") :]
    if as_frame:
        columns = frame
        data = columns[texts] if len(texts) > 1 else columns[texts[0]]
    else:
        data = np.column_stack([columns[name] for name in texts]) if len(texts) > 1 else columns[texts[0]]
    if return_X_y_domains:
        return data, columns["target"], columns["domains"]
    return Bunch(
        data=data,
        frame=frame,
        target_names=sorted(set(columns["target"]) - {None}),
        domain_names=sorted(set(columns["domains"])),
        DESCR=DESCR,
        **{name: columns[name] for name in others},
    )


def _array(values: Sequence[Any]) -> Any:
    array = np.empty(len(values), dtype=float if isinstance(values[0], float) else object)
    array[:] = values
    return array
