"""The answer cache: first answers stay, several processes write at once, a damaged file is named."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mini_internvl.evaluate.cache import AnswerCache, CachedAnswer, CacheError


def test_the_first_answer_stays(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cache.put({"k": CachedAnswer(text="one", seconds=0.5, item="i")})
        cache.put({"k": CachedAnswer(text="two"), "l": CachedAnswer(text="three")})
        assert cache.get(["k", "l", "m"]) == {
            "k": CachedAnswer(text="one", seconds=0.5, item="i"),
            "l": CachedAnswer(text="three"),
        }
        assert cache.get([]) == {}


def test_many_keys_at_once(tmp_path: Path) -> None:
    keys = [f"{i:064x}" for i in range(2500)]
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        cache.put({key: CachedAnswer(text=key[-4:]) for key in keys})
        assert len(cache.get([*keys, "other"])) == 2500


def test_answers_are_put_all_or_none(tmp_path: Path) -> None:
    with AnswerCache(tmp_path / "a.sqlite") as cache:
        with pytest.raises(sqlite3.ProgrammingError):
            cache.put({"a": CachedAnswer(text="good"), "b": CachedAnswer(text=object())})
        assert cache.get(["a", "b"]) == {}
        cache.put({"a": CachedAnswer(text="again")})
        assert cache.get(["a"])["a"].text == "again"


WRITER = """
import sys
from pathlib import Path
from mini_internvl.evaluate.cache import CachedAnswer, AnswerCache
with AnswerCache(Path(sys.argv[1])) as cache:
    for i in range(60):
        cache.put({f"{sys.argv[2]}-{i}": CachedAnswer(text=sys.argv[2]), f"shared-{i}": CachedAnswer(text=sys.argv[2])})
"""


def test_processes_write_at_once(tmp_path: Path) -> None:
    """The module needs no torch, so its processes start fast; the package is kept from importing it."""
    stub = (
        "import sys, types\n"
        "package = types.ModuleType('mini_internvl.evaluate')\n"
        "import mini_internvl, pathlib\n"
        "package.__path__ = [str(pathlib.Path(mini_internvl.__file__).parent / 'evaluate')]\n"
        "sys.modules['mini_internvl.evaluate'] = package\n"
    )
    path = tmp_path / "a.sqlite"
    command = [sys.executable, "-c", stub + WRITER, str(path)]
    running = [subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in "abc"]
    for process in running:
        _, error = process.communicate(timeout=60)
        assert process.returncode == 0, error
    keys = [f"{name}-{i}" for name in (*"abc", "shared") for i in range(60)]
    with AnswerCache(path) as cache:
        assert len(cache.get(keys)) == 240


@pytest.mark.parametrize("content", [b"no database at all" * 100, b"SQLite format 3\0" + b"\xff" * 4000])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(content)
    with pytest.raises(CacheError, match=r"a\.sqlite is damaged .*move it away"):
        AnswerCache(path)


def test_damage_inside_is_named_when_it_is_met(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with AnswerCache(path) as cache:
        cache.put({f"{i:064x}": CachedAnswer(text="x" * 200) for i in range(300)})
    raw = bytearray(path.read_bytes())
    raw[8192:] = b"\xff" * (len(raw) - 8192)
    path.write_bytes(raw)
    with AnswerCache(path) as cache, pytest.raises(CacheError, match="is damaged"):
        cache.get([f"{i:064x}" for i in range(300)])


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CacheError, match=r"file/a\.sqlite cannot be made"):
        AnswerCache(tmp_path / "file" / "a.sqlite")
    (tmp_path / "folder.sqlite").mkdir()
    with pytest.raises(CacheError, match=r"folder\.sqlite cannot be used"):
        AnswerCache(tmp_path / "folder.sqlite")
