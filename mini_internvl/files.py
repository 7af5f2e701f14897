"""Files read with clear errors, and written whole or not at all.

Only regular files of a sane size are opened: a pipe would wait for ever, /dev/zero never ends. A file or folder is
written beside its place under a temporary name, flushed to disk and renamed; what a kill leaves of a folder is cleared
away by the next save. Imports nothing but the standard library, so that every part of the package can use it.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

MAX_TEXT = 1 << 28  # bytes of the largest file that is read as a whole, unless the caller knows better
LFS_POINTER = b"version https://git-lfs"  # how a file begins that Git LFS has not fetched


class FileError(ValueError):
    """A file that cannot be read; the message names it and the remedy."""


def file_hash(*paths: Path) -> str:
    """SHA-256 of the files' bytes, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def drop_half_line(path: Path) -> None:
    """Cut off the last line of a file where it has no end: what a killed process had begun to add."""
    with path.open("rb+") as file:
        end = place = file.seek(0, os.SEEK_END)
        while place:
            begin = max(0, place - (1 << 16))
            file.seek(begin)
            found = file.read(place - begin).rfind(b"\n")
            place = begin + found + 1
            if found >= 0:
                break
            place = begin
        if place < end:
            file.truncate(place)


def check_file(path: Path, *, limit: int | None = None, error: type[ValueError] = FileError) -> int:
    """Size in bytes of a regular file of at most ``limit`` bytes; ``error`` says why it may not be opened."""
    try:
        facts = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise error(f"{path} is missing; check the path") from None
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read ({problem}); check the path and its permissions") from None
    if not stat.S_ISREG(facts.st_mode):
        kind = "a folder" if stat.S_ISDIR(facts.st_mode) else "a pipe or device"
        raise error(f"{path} is {kind}, not a regular file; put the file itself there")
    if limit is not None and facts.st_size > limit:
        raise error(f"{path} has {facts.st_size:,} bytes, more than the {limit:,} that such a file may have")
    return facts.st_size


def read_bytes(path: Path, *, limit: int = MAX_TEXT, error: type[ValueError] = FileError) -> bytes:
    """A whole file of at most ``limit`` bytes; ``error`` names the file and what is wrong with it."""
    check_file(path, limit=limit, error=error)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as problem:
        raise error(f"{path} cannot be read ({problem.strerror}); check its permissions") from None
    if content.startswith(LFS_POINTER):
        raise error(f"{path} is a Git LFS pointer, not the file itself; run git lfs pull in its folder")
    if len(content) > limit:
        raise error(f"{path} has more than the {limit:,} bytes that such a file may have")
    return content


def read_text(path: Path, *, limit: int = MAX_TEXT, error: type[ValueError] = FileError) -> str:
    """A whole UTF-8 file, with or without a byte order mark."""
    try:
        return read_bytes(path, limit=limit, error=error).decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise error(f"{path} is not UTF-8 text ({problem}); save or fetch it again") from None


def read_json(path: Path, *, limit: int = MAX_TEXT, error: type[ValueError] = FileError) -> Any:
    """The value of a JSON file; ``error`` names the file when it is missing, broken or nested without end."""
    text = read_text(path, limit=limit, error=error)
    try:
        return json.loads(text)
    except RecursionError:
        raise error(f"{path} is not valid JSON (nested too deep); fetch the file again") from None
    except ValueError as problem:
        raise error(f"{path} is not valid JSON ({problem}); fetch the file again") from None


def read_object(path: Path, *, limit: int = MAX_TEXT, error: type[ValueError] = FileError) -> dict[str, Any]:
    """The object of a JSON file; ``error`` when it holds anything else."""
    value = read_json(path, limit=limit, error=error)
    if not isinstance(value, dict):
        raise error(f"{path} holds no JSON object; fetch the file again")
    return value


def copy_file(source: Path, target: Path, *, error: type[ValueError] = FileError) -> Path:
    """Copy a regular file; returns the copy."""
    check_file(source, error=error)
    return shutil.copyfile(source, target)


@contextmanager
def new_file(path: Path, *, flush: bool = True) -> Iterator[Path]:
    """A temporary path that takes the place of ``path`` when the block ends without an error.

    The folder is made when it is missing. ``flush`` waits for the disk: leave it out for many small files that can be
    made again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.part")
    try:
        yield temporary
        if flush:
            flush_file(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def clear_drafts(path: Path) -> None:
    """Delete what processes that are gone have left of :func:`new_file`."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        number = re.fullmatch(r"(\d+)-\d+\.part", draft.name.removeprefix(f".{path.name}."))
        if number and not _runs(int(number[1])):
            draft.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, flush: bool = True) -> None:
    """Write a file, whole or not at all."""
    with new_file(path, flush=flush) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str, *, errors: str = "strict", flush: bool = True) -> None:
    """Write a UTF-8 file with plain line ends, whole or not at all."""
    write_bytes(path, text.encode("utf-8", errors), flush=flush)


def write_json(path: Path, value: Any, *, indent: int | None = 2, flush: bool = True) -> None:
    """Write a JSON file, readable and in UTF-8; half a character is written as its escape, so that it reads back."""
    text = json.dumps(value, indent=indent, ensure_ascii=False) + "\n"
    write_text(path, text, errors="backslashreplace", flush=flush)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` when the block ends without an error.

    What earlier saves of processes that are gone have left beside it is removed first. A link is followed.
    """
    folder = folder.resolve()
    folder.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(folder)
    temporary = Path(tempfile.mkdtemp(prefix=f"{_prefix(folder)}{os.getpid()}-", dir=folder.parent))
    try:
        yield temporary
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(folder: Path) -> None:
    """FileError when the folder exists and is not empty: nothing that people keep is ever replaced unasked."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileError(f"{folder} exists already; give a new folder")


def replace_folder(temporary: Path, folder: Path) -> None:
    """Put a finished temporary folder in the place of ``folder``, flushed to disk first."""
    for path in temporary.rglob("*"):
        if path.is_dir():
            _sync_folder(path)
        else:
            flush_file(path)
            path.chmod(0o644)  # safetensors writes files that only their owner can read
    temporary.chmod(0o755)
    _sync_folder(temporary)
    recover_folder(folder)
    old = _old(folder)
    for last in (False, True):
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        try:
            os.replace(temporary, folder)
            break
        except OSError:  # a reader may have put the old folder back in between: once more then
            recover_folder(folder)
            if last:
                raise
    _sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Put the old folder back when a kill fell between the two renames of :func:`replace_folder`."""
    folder = folder.resolve()
    if not folder.exists() and _old(folder).exists():
        with suppress(FileNotFoundError):  # another process was quicker
            os.replace(_old(folder), folder)


def flush_file(path: Path) -> None:
    """Wait until the disk has a file's bytes."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to disk, where the system can."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _old(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.old")


def _prefix(folder: Path) -> str:
    """Begin of the temporary names of this computer; other computers may share the disk."""
    return f".{folder.name}.{socket.gethostname()}-"


def _clear_leftovers(folder: Path) -> None:
    for path in folder.parent.glob(f"{glob.escape(_prefix(folder))}*"):
        number = re.match(r"(\d+)-", path.name.removeprefix(_prefix(folder)))
        if number and not _runs(int(number[1])):
            shutil.rmtree(path, ignore_errors=True)


def _runs(process: int) -> bool:
    if os.name == "nt":
        return True  # there is no harmless way to ask
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
