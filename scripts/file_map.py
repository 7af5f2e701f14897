"""Write docs/files.md: every module with the first sentence of its docstring.

Run ``python scripts/file_map.py`` after adding, removing or renaming a module; a test compares the page with it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "files.md"
HEAD = """# Where things are

Every module with the first sentence of its docstring, written by `scripts/file_map.py`.
"""
OTHERS = {
    "recipes/": "YAML recipes, one file a run; `recipes/nano/` holds nano's configuration and tokenizer",
    "tests/": "mirrors the package; `tests/golden/` compares with recorded outputs of the original implementation",
    "docs/": "one page per noun",
    "bench/": "speed and memory beside plain references",
    "scripts/": "`check` and `test`, which CI runs too, and what made the files that ship with the package",
}
PROGRAMS = ("bench/", "scripts/")
"""Folders whose files are listed too."""


def first_sentence(path: Path) -> str:
    """The first sentence of a module's docstring, without its full stop."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(docstring.split("\n\n")[0].split()).replace("``", "`")
    paragraph = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", paragraph)
    return re.split(r"(?<=[\w)`\"]{2})\. (?=[A-Z`])", paragraph, maxsplit=1)[0].removesuffix(".")


def entries(folder: Path, depth: int = 0) -> Iterator[str]:
    """List items of a package folder: its modules, then its packages."""
    indent = "  " * depth
    for path in sorted(folder.glob("*.py")):
        if path.name != "__init__.py":
            yield f"{indent}- `{path.name}` {first_sentence(path)}"
    for package in sorted(path.parent for path in folder.glob("*/__init__.py")):
        yield f"{indent}- `{package.name}/` {first_sentence(package / '__init__.py')}"
        yield from entries(package, depth + 1)


def holds_files(folder: Path) -> bool:
    """Whether a folder has anything that a fresh clone would have too."""
    return any(path.is_file() and "__pycache__" not in path.parts for path in folder.rglob("*"))


def file_map(root: Path = ROOT) -> str:
    """The page as Markdown."""
    package = root / "mini_internvl"
    lines = [f"- `mini_internvl/` {first_sentence(package / '__init__.py')}", *entries(package, 1)]
    if holds_files(package / "nano"):
        lines.append("  - `nano/` the nano model: weights, tokenizer, model card")
    for name, what in OTHERS.items():
        if holds_files(root / name):
            lines.append(f"- `{name}` {what}")
            lines += entries(root / name, 1) if name in PROGRAMS else []
    return "\n".join([HEAD, *lines, ""])


def main() -> None:
    """Write the page."""
    PAGE.write_text(file_map(), encoding="utf-8")


if __name__ == "__main__":
    main()
