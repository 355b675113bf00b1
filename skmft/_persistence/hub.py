"""The Hugging Face hub: a repository holds what `save` writes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .folder import PersistenceError, kept_aside


def fetch(path: str | os.PathLike, revision: str | None = None) -> Path:
    """The folder itself, or the local snapshot of a repository of the hub."""
    folder = Path(path).expanduser().resolve()
    if folder.is_dir() or kept_aside(folder).is_dir():  # `load` takes the latter where a save was cut off
        if revision is not None:
            raise ValueError(
                f"revision={revision!r} is for repositories of the hub, but path={os.fspath(path)!r} is a folder here; leave "
                "revision out, or give the hub's name of a repository."
            )
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(os.fspath(path), revision=revision))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise PersistenceError(
            f"path={os.fspath(path)!r} is neither a folder nor a repository of the hub ({type(error).__name__}: {reason})."
        ) from error


def push(save: Callable[..., None], repo_id: str, *, private: bool | None, notes: str, **upload: Any) -> str:
    """Upload what ``save(folder, notes=...)`` writes."""
    from huggingface_hub import create_repo, upload_folder

    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "model"
        save(target, notes=notes)
        create_repo(repo_id, private=private, exist_ok=True, token=upload.get("token"))
        upload = {"delete_patterns": ["encoder/*", "domains/*"], **upload}  # files that no manifest lists are refused
        return str(upload_folder(repo_id=repo_id, folder_path=target, **upload))
