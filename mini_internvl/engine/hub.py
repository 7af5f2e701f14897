"""A model's name -> its folder: local, or a snapshot of the Hugging Face hub, fetched once and kept in the hub's cache.

``org/name@revision`` names a branch, tag or commit. A download that broke off goes on where it stopped. Without a
network, or with ``HF_HUB_OFFLINE=1`` (``minivl --offline``), only the cache is asked. No code of a repository is
fetched.
"""

from __future__ import annotations

from pathlib import Path

from mini_internvl.files import recover_folder
from mini_internvl.model.adapter import find_base, is_adapter
from mini_internvl.model.files import CheckpointError

NANO = Path(__file__).parent.parent / "nano"
PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def resolve(name: str | Path | None) -> Path:
    """The folder of a checkpoint or adapter: nano's for ``None``, a local one, or a snapshot of a hub id, fetched.

    CheckpointError when it is neither, or could not be fetched.
    """
    if name is None:
        return NANO
    path = Path(name)
    recover_folder(path)
    if path.is_dir():
        return path
    text = str(name)
    neither = f"{text} is neither a checkpoint folder nor a hub id such as OpenGVLab/InternVL2-1B"
    repository, _, revision = text.partition("@")
    if path.exists() or repository.count("/") != 1 or repository.startswith((".", "/", "~")):
        raise CheckpointError(neither)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(repository, revision=revision or None, allow_patterns=list(PATTERNS)))
    except HFValidationError:
        raise CheckpointError(neither) from None
    except Exception as error:  # the library passes on whatever its transport raises
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{text} is no local folder and could not be fetched from the hub: {first}; "
            "check the name, the network and HF_TOKEN, or give a local folder"
        ) from error


def base_folder(folder: Path, base: str | None = None) -> Path:
    """Where a model's tokenizer and whole weights are: its folder, or for an adapter its base, fetched.

    ``base`` overrides the one that the adapter names. CheckpointError when it cannot be found.
    """
    if not is_adapter(folder):
        return folder
    name = find_base(folder, base)
    try:
        return resolve(name)
    except CheckpointError as error:
        if base is not None:
            raise
        hint = "fetch it, or to merge give it with --base"
        raise CheckpointError(f"the base that {folder} names is not here: {error}; {hint}") from None


def cached() -> list[tuple[str, Path, int]]:
    """Models that the hub's cache holds, by name: ``org/name@revision``, folder, bytes on disk."""
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        found = scan_cache_dir()
    except CacheNotFound:
        return []
    rows = []
    for repo in found.repos:
        for revision in repo.revisions if repo.repo_type == "model" else ():
            name = f"{repo.repo_id}@{min(revision.refs, default=revision.commit_hash[:12])}"
            rows.append((name, revision.snapshot_path, revision.size_on_disk))
    return sorted(rows)
