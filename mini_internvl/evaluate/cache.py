"""Answers that were already given, kept in one SQLite file by the content of their question.

The key of an answer is a hash of all that it depends on (see :mod:`mini_internvl.evaluate.keys`), so one file serves
any number of models, benchmarks and runs, and nothing in it can be taken for the answer to another question. Several
processes may use the file at once. An answer that is there is never replaced: what was scored once stays.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from mini_internvl.records import Item

LOCK_SECONDS = 60.0  # seconds to wait for another process's write
KEYS_PER_QUERY = 500
TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, item TEXT NOT NULL, answer TEXT NOT NULL, seconds REAL NOT NULL
) WITHOUT ROWID
"""


class CacheError(ValueError):
    """The cache's file cannot be used; the message names it and says what to do."""


@dataclass(frozen=True, kw_only=True)
class CachedAnswer:
    """One kept answer."""

    text: str
    seconds: float = 0.0
    item: str = ""  # id of the item that was asked first; for people who look into the file


class AnswerCache:
    """A file of answers; made, with its folder, when it is missing. A context manager that closes it.

    Raises:
        CacheError: the file is damaged, or cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._as_cache_error():
            path.parent.mkdir(parents=True, exist_ok=True)
            # Each statement commits by itself; transactions are opened where they are needed.
            self.connection = sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)
        try:
            with self._as_cache_error():
                _retry_locked(lambda: self.connection.execute("PRAGMA journal_mode=WAL"))
                self.connection.execute("PRAGMA synchronous=NORMAL")  # safe against kills; a power cut loses the last
                self.connection.execute(TABLE)
        except CacheError:
            self.connection.close()
            raise

    def get(self, keys: Sequence[str]) -> dict[str, CachedAnswer]:
        """The answers that are there."""
        found = {}
        with self._as_cache_error():
            for begin in range(0, len(keys), KEYS_PER_QUERY):
                some = keys[begin : begin + KEYS_PER_QUERY]
                slots = ",".join("?" * len(some))
                rows = self.connection.execute(
                    f"SELECT key, answer, seconds, item FROM answers WHERE key IN ({slots})", some
                )
                for key, text, seconds, item in rows:
                    found[key] = CachedAnswer(text=text, seconds=seconds, item=item)
        return found

    def put(self, answers: Mapping[str, CachedAnswer]) -> None:
        """Add answers, all or none; one whose key is there already is left as it is."""
        with self._as_cache_error():
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                self.connection.executemany(
                    "INSERT OR IGNORE INTO answers (key, item, answer, seconds) VALUES (?, ?, ?, ?)",
                    [(key, a.item, a.text, a.seconds) for key, a in answers.items()],
                )
                self.connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    self.connection.execute("ROLLBACK")
                raise

    def close(self) -> None:
        self.connection.close()

    def __enter__(self) -> AnswerCache:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _as_cache_error(self) -> Iterator[None]:
        """SQLite's errors in words that say what to do."""
        try:
            yield
        except sqlite3.ProgrammingError:  # ours, not the file's
            raise
        except sqlite3.OperationalError as error:
            fix = "another process holds it" if "locked" in str(error) else "check that its folder can be written"
            raise CacheError(f"the answer cache {self.path} cannot be used ({error}); {fix}") from None
        except sqlite3.DatabaseError as error:
            raise CacheError(
                f"the answer cache {self.path} is damaged ({error}); "
                "move it away, with its -wal and -shm files, and the questions are asked again"
            ) from None
        except OSError as error:
            raise CacheError(f"the answer cache {self.path} cannot be made ({error.strerror})") from None


def _retry_locked(work: Callable[[], object]) -> None:
    """Do what SQLite does not wait for by itself: two processes that open a new file at once lock each other out."""
    end = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            work()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.05)


def answer(item: Item, text: str, seconds: float = 0.0) -> CachedAnswer:
    """An item's answer, as it is kept."""
    return CachedAnswer(text=text, seconds=round(seconds, 4), item=item.id)
