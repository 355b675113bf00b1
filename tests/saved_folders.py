"""Folders that `save` wrote, and what somebody who alters one on purpose does."""

import hashlib
import json

from skmft._persistence.folder import MANIFEST


def rewrite_manifest(folder, all_files=False):
    """What somebody who alters a folder on purpose does."""
    content = json.loads((folder / MANIFEST).read_text())
    names = content["files"]
    if all_files:  # those that were added, and not those that were removed
        names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    content["files"] = {n: hashlib.sha256((folder / n).read_bytes()).hexdigest() for n in sorted(names)}
    (folder / MANIFEST).write_text(json.dumps(content))


def alter(folder, **changes):
    about = folder / "estimator.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), **changes}))
    rewrite_manifest(folder)


def answers(clf, X):
    return [clf.predict_proba(X, domains=d) for d in (None, "books", "kitchen", "music")]


def read_domains(clf):
    """Domains of a loaded estimator whose tensors have been read."""
    return [domain for domain, tensors in clf.adapted_weights_.data.items() if not callable(tensors)]
