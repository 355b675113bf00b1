"""Where data sets lie: one answer for all of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch


def find_local(folder: str, names: Sequence[str], data_home: str | os.PathLike | None) -> Path | None:
    """First file or folder ``<home>/<folder>/<name>`` that exists, over all homes, or None.

    Homes: `data_home` alone where it is given, else the environment variable SKMFT_DATA_HOME, then the user's cache.
    """
    for home in _homes(data_home):
        for name in names:
            if (found := home / folder / name).exists():
                return found
    return None


def cache_folder(folder: str, data_home: str | os.PathLike | None) -> Path:
    """Where a fetched data set is kept: below `data_home`, or below the user's cache."""
    path = (_homes(data_home)[-1]) / folder
    path.mkdir(parents=True, exist_ok=True)
    return path


def _homes(data_home: str | os.PathLike | None) -> list[Path]:
    if data_home is not None:
        return [Path(data_home).expanduser()]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "skmft"
    given = os.environ.get("SKMFT_DATA_HOME")
    return [*([Path(given)] if given else []), cache]


def select_domains(domains: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The domains asked for, all by default.

    Raises
    ------
    ValueError
        If one is not known.
    """
    if domains is None:
        return list(known)
    unknown = [d for d in domains if d not in known]
    if isinstance(domains, str) or unknown:
        raise ValueError(f"domains={domains!r}; expected a list of names among {list(known)}.")
    return list(domains)


def bunch(
    texts: Sequence[str], labels: Sequence[str], domains: Sequence[str], return_tuple: bool, **more: Any
) -> Bunch | tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """The common answer of all loaders."""
    data, target, domain = (
        np.array(texts, dtype=object),
        np.array(labels, dtype=object),
        np.array(domains, dtype=object),
    )
    if return_tuple:
        return data, target, domain
    return Bunch(
        data=data,
        target=target,
        domains=domain,
        target_names=sorted(set(labels)),
        domain_names=sorted(set(domains)),
        **more,
    )
