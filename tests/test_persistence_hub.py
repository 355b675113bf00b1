"""`push_to_hub` and `from_pretrained`; the hub's functions are replaced, and there is no network."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skmft import MetaFineTunedClassifier, PersistenceError
from skmft.baselines import MixedDomainClassifier


class Hub:
    """A hub of folders: what `create_repo`, `upload_folder` and `snapshot_download` of huggingface_hub do, in small."""

    def __init__(self, home):
        self.home, self.calls = home, []

    def create_repo(self, repo_id, *, private=None, exist_ok=False, token=None):
        (self.home / repo_id).mkdir(parents=True, exist_ok=exist_ok)
        self.calls.append(("create_repo", repo_id, {"private": private, "token": token}))

    def upload_folder(self, *, repo_id, folder_path, delete_patterns=(), **more):
        repository, folder = self.home / repo_id, Path(folder_path)
        for pattern in delete_patterns:
            for path in repository.rglob("*"):
                if path.is_file() and path.relative_to(repository).match(pattern):
                    path.unlink()
        shutil.copytree(folder, repository, dirs_exist_ok=True)
        self.calls.append(("upload_folder", repo_id, more))
        return f"https://hub/{repo_id}/commit/{len(self.calls)}"

    def snapshot_download(self, repo_id, *, revision=None):
        self.calls.append(("snapshot_download", repo_id, {"revision": revision}))
        if not (self.home / repo_id).is_dir():
            raise OSError(f"404 for {repo_id}\nand more lines")
        return str(self.home / repo_id)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    for name in ("create_repo", "upload_folder", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", getattr(hub, name))
    return hub


def test_push_and_pull(later, data, hub):
    address = later.push_to_hub("me/reviews", private=True, notes="On nothing.", token="secret", commit_message="First")
    assert address == "https://hub/me/reviews/commit/2"
    assert hub.calls == [
        ("create_repo", "me/reviews", {"private": True, "token": "secret"}),
        ("upload_folder", "me/reviews", {"token": "secret", "commit_message": "First"}),
    ]
    card = (hub.home / "me" / "reviews" / "README.md").read_text()
    assert "On nothing." in card and "secret" not in card
    loaded = MetaFineTunedClassifier.from_pretrained("me/reviews", revision="abc")
    assert hub.calls[-1] == ("snapshot_download", "me/reviews", {"revision": "abc"})
    for domain in (None, "books", "music"):
        np.testing.assert_array_equal(loaded.predict_proba(data[0], domain), later.predict_proba(data[0], domain))


def test_push_again_with_fewer_domains(later, fitted, data, hub):
    """Files of the earlier model would be refused, as no manifest lists them."""
    later.push_to_hub("me/reviews")
    (hub.home / "me" / "reviews" / ".gitattributes").write_text("lfs")
    fitted.push_to_hub("me/reviews")
    loaded = MetaFineTunedClassifier.from_pretrained("me/reviews")
    assert loaded.adapted_domains_.tolist() == ["books", "kitchen"]
    np.testing.assert_array_equal(loaded.predict_proba(data[0]), fitted.predict_proba(data[0]))
    assert (hub.home / "me" / "reviews" / ".gitattributes").exists()


def test_push_of_a_baseline(tiny, data, hub):
    X, y, _ = data
    clf = MixedDomainClassifier(tiny, epochs=1, random_state=0).fit(X, y)
    clf.push_to_hub("me/mix")
    np.testing.assert_array_equal(
        MixedDomainClassifier.from_pretrained("me/mix").predict_proba(X), clf.predict_proba(X)
    )
    with pytest.raises(PersistenceError, match=r"load it by MixedDomainClassifier.load"):
        MetaFineTunedClassifier.from_pretrained("me/mix")


def test_what_cannot_be_saved_is_not_pushed(fitted, hub):
    with pytest.raises(NotFittedError):
        clone(fitted).push_to_hub("me/reviews")
    assert hub.calls == []


def test_nothing_in_the_hub(hub):
    with pytest.raises(
        PersistenceError,
        match=r"'some/where', revision=None: no folder here .*, nor on the hub \(OSError: 404 for some/where",
    ):
        MetaFineTunedClassifier.from_pretrained("some/where")


def test_from_pretrained_of_the_hubs_cache(saved, later, data, tmp_path, monkeypatch):
    """There files are links to blobs beside the snapshot; anywhere else a link that leads out of the folder is refused."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    for number, path in enumerate(p for p in saved.rglob("*") if p.is_file()):
        shutil.copy(path, blobs / str(number))
        link = snapshot / path.relative_to(saved)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blobs / str(number))
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda name, revision: asked.append((name, revision)) or str(snapshot)
    )
    loaded = MetaFineTunedClassifier.from_pretrained("some/where", revision="abc")
    assert asked == [("some/where", "abc")]
    for domain in (None, "books", "music"):
        np.testing.assert_array_equal(loaded.predict_proba(data[0], domain), later.predict_proba(data[0], domain))
    elsewhere = snapshot.rename(tmp_path / "elsewhere")
    with pytest.raises(PersistenceError, match="lies outside of the folder; expected no links"):
        MetaFineTunedClassifier.load(elsewhere)


def test_from_pretrained_where_a_save_was_cut_off(copied, later, data, monkeypatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: 1 / 0)
    copied.rename(copied.parent / ".model.old")
    found = MetaFineTunedClassifier.from_pretrained(copied).predict_proba(data[0])
    np.testing.assert_array_equal(found, later.predict_proba(data[0]))


def test_a_revision_of_a_folder_is_refused(saved):
    """By huggingface_hub, before it goes to the network."""
    with pytest.raises(PersistenceError, match=r"revision='v1': no folder here .*, nor on the hub \(HFValidationError"):
        MetaFineTunedClassifier.from_pretrained(saved, revision="v1")
