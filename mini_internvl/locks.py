"""One process at a time in a folder: a lock file that the kernel holds, and lets go when the process ends.

It holds over containers that share a disk. A forked worker lets go of it at once, so that a killed process leaves no
lock behind with its workers. Windows has no such lock; there nothing is locked.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path

from mini_internvl.files import FileError

if sys.platform != "win32":
    import fcntl

_locks: set[int] = set()


def lock(path: Path, *, remedy: str, error: type[ValueError] = FileError) -> int:
    """Descriptor of the locked file; its folder must exist.

    ``error`` says that another process holds it or that it cannot be locked; ``remedy`` is what to do instead.
    """
    while True:
        try:
            held = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as problem:
            raise error(unusable(path.parent, problem, remedy)) from None
        try:
            if sys.platform != "win32":
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(held), path.stat()):
                    break
        except BlockingIOError:
            owner = os.read(held, 300).decode(errors="replace").strip() or "another process"
            os.close(held)
            raise error(f"{path.parent} is in use by {owner}; wait for it, or {remedy}") from None
        except OSError as problem:  # for instance a network disk without locks
            os.close(held)
            raise error(unusable(path.parent, problem, remedy)) from None
        os.close(held)  # its last owner has removed it in between
    _locks.add(held)
    name = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M:%S')}\n"
    with suppress(OSError):  # the lock holds without the name, on a full disk too
        os.ftruncate(held, 0)
        os.write(held, name.encode())
    return held


def unlock(held: int) -> None:
    """Let go of what :func:`lock` gave."""
    _locks.discard(held)
    os.close(held)


def unusable(folder: Path, problem: OSError, remedy: str) -> str:
    """Why a folder cannot be locked."""
    return f"{folder} cannot be locked for a run ({problem.strerror}); check the disk, or {remedy}"


def _close_locks() -> None:
    """In a forked worker: it must not hold the lock of a run whose process was killed."""
    while _locks:  # once: a fork of the worker may have another file under the same number
        os.close(_locks.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_locks)
