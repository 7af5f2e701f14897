"""Where InternVL's domain data lies: as published (``val/`` beside ``images/``), or all in one folder."""

from __future__ import annotations

from pathlib import Path

from mini_internvl.benchmarks._files import locate


def annotation(root: str | Path, benchmark: str, name: str) -> Path:
    """The annotation file, in ``root/benchmark`` or ``root``, directly or in ``val/``.

    Raises:
        DataError: the folder or the file is missing.
    """
    for folder in (Path(root) / benchmark, Path(root)):
        if (folder / "val" / name).is_file():
            return folder / "val" / name
    return locate(root, benchmark, name)[0]


def image_folders(path: Path, *below: str) -> list[Path]:
    """Folders to search for the images of an annotation file.

    Args:
        path: the annotation file.
        below: the folders' places in the published layout, below ``images/``.
    """
    base = path.parent.parent if path.parent.name == "val" else path.parent
    folders = [base / "images" / place for place in below] + [base / place for place in below]
    return list(dict.fromkeys([*folders, base / "images", base]))
