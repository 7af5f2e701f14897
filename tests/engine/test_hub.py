"""Names of models: local folders, hub ids in the cache, and what is neither."""

from __future__ import annotations

import shutil

import huggingface_hub
import pytest
from huggingface_hub import constants

from mini_internvl.engine import hub, load
from mini_internvl.model.files import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(checkpoint, tmp_path, monkeypatch):
    """A hub cache that holds the tiny checkpoint as org/tiny, and no network."""
    repository = tmp_path / "models--org--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    shutil.copytree(checkpoint, repository / "snapshots" / COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return repository / "snapshots" / COMMIT


def test_a_cached_model_is_found_without_a_network(cache, checkpoint):
    assert hub.resolve("org/tiny") == cache
    assert hub.resolve("org/tiny@main") == cache
    assert hub.resolve(f"org/tiny@{COMMIT}") == cache
    question = [{"role": "user", "content": "Hi"}]
    assert load("org/tiny", device="cpu").chat(question).text == load(checkpoint, device="cpu").chat(question).text


def test_the_cache_is_listed(cache):
    [(name, folder, size)] = hub.cached()
    assert (name, folder) == ("org/tiny@main", cache)
    assert size > 100_000


@pytest.mark.parametrize("name", ["org/other", "org/tiny@v2"])
def test_what_the_cache_lacks_is_named(cache, name):
    with pytest.raises(CheckpointError, match=f"{name} is no local folder and could not be fetched from the hub"):
        hub.resolve(name)


@pytest.mark.parametrize("name", ["nowhere", "/tmp/no/such", "./a/b", "a/b/c", "~/x", "org/"])
def test_names_that_are_neither_are_refused_without_asking_the_hub(monkeypatch, name):
    def asked(*args, **kwargs):
        raise AssertionError("the hub was asked")

    if name != "org/":
        monkeypatch.setattr(huggingface_hub, "snapshot_download", asked)
    with pytest.raises(CheckpointError, match="is neither a checkpoint folder nor a hub id"):
        hub.resolve(name)


def test_the_revision_and_only_data_files_are_asked_for(monkeypatch, tmp_path):
    seen = {}

    def fetch(name, **settings):
        seen.update(name=name, **settings)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert hub.resolve("org/name@abc") == tmp_path
    assert (seen["name"], seen["revision"]) == ("org/name", "abc")
    assert not any(pattern.endswith((".py", ".bin", "*")) for pattern in seen["allow_patterns"])


def test_a_folder_whose_save_was_killed_between_two_renames_is_found(checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / ".m.old")
    assert hub.resolve(tmp_path / "m") == tmp_path / "m"
    assert (tmp_path / "m" / "config.json").exists()


def test_whatever_the_transport_raises_is_told_in_one_line(monkeypatch):
    class ProxyError(Exception):
        """Stands for an error of the hub library's transport, which is no OSError."""

    def fails(*args, **kwargs):
        raise ProxyError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(CheckpointError, match="could not be fetched from the hub: ProxyError; check the name"):
        hub.resolve("org/name")
