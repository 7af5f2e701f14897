"""A benchmark folder as one archive, and back: for machines that reach each other by a disk or a copy command only.

The archive is a plain tar (gzipped where its name says so) whose first member is a manifest: path, size and SHA-256 of
every file. Packing the same folder twice gives the same bytes. Unpacking writes each file under a temporary name,
compares its hash and only then gives it its name, so what stands under a final name is whole, a stopped run goes on,
and a damaged file is named instead of kept. Nothing in an archive decides where a file goes but a checked path.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

MANIFEST = "minivl-manifest.json"
INSIDE = "files/"
"""Where an archive keeps the folder's files."""
PARTIAL = ".minivl-partial"
"""Folder inside a target that holds the one file being written."""
LARGEST_MANIFEST = 1 << 28
CHUNK = 1 << 20

Progress = Callable[[int, int], None]
"""Called with the megabytes done and their number."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file of the manifest."""

    path: str
    """Relative, with forward slashes."""
    size: int
    """Bytes."""
    sha256: str
    """Of its content, in lower-case hexadecimal."""


class _Meter:
    """Adds up bytes and reports megabytes."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total, self.progress, self.done, self.shown = max(1, -(-total // 10**6)), progress, 0, -1

    def add(self, count: int) -> None:
        self.done += count
        now = min(self.total, self.done // 10**6)
        if self.progress and now != self.shown:
            self.shown = now
            self.progress(now, self.total)

    def finish(self) -> None:
        if self.progress and self.shown != self.total:
            self.progress(self.total, self.total)


def pack(folder: Path, archive: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write the folder's files into a new archive; links are followed and stored as what they lead to.

    Args:
        folder: what to pack.
        archive: a name that ends in .tar, .tar.gz or .tgz; it must be new and outside of ``folder``.
        progress: called with the megabytes hashed and written.

    Returns:
        The number of files, their bytes and the archive's path.

    Raises:
        ValueError: the folder is missing or empty, has something that is no file, or the archive's name will not do.
    """
    packed = _gzipped(archive)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one that holds the benchmark's files")
    if archive.exists():
        raise ValueError(f"{archive} exists already; give a new name")
    if archive.resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{archive} lies inside {folder}; put the archive elsewhere")
    paths = _files(folder)
    check_names(paths, str(folder))
    meter = _Meter(2 * sum((folder / path).stat().st_size for path in paths), progress)
    entries = [_entry(folder, path, meter) for path in paths]
    with _new_file(archive) as file, _compressed(file, packed) as out, tarfile.open(fileobj=out, mode="w|") as tar:
        manifest = json.dumps({"format": 1, "files": [asdict(entry) for entry in entries]}, indent=0).encode()
        tar.addfile(_member(MANIFEST, len(manifest)), io.BytesIO(manifest))
        for entry in entries:
            _add(tar, folder, entry, meter)
    meter.finish()
    return {"archive": str(archive), "files": len(entries), "bytes": sum(entry.size for entry in entries)}


def check_names(paths: Sequence[str], where: str) -> None:
    """Refuse paths that could lead out of a folder, mean two things, or be impossible on another system.

    Raises:
        ValueError: names the first few.
    """
    parents = {str(parent) for path in paths for parent in PurePosixPath(path).parents}
    seen: set[str] = set()
    bad = []
    for path in paths:
        parts = path.split("/")
        odd = "\\" in path or (len(path) > 1 and path[1] == ":") or any(ord(sign) < 32 for sign in path)
        if odd or not {"", ".", "..", PARTIAL}.isdisjoint(parts) or path in seen or path in parents:
            bad.append(path)
        seen.add(path)
    if bad:
        raise ValueError(f"{where} has unsafe or doubled paths: {', '.join(map(repr, bad[:8]))}; refused")


def _gzipped(archive: Path) -> bool:
    name = archive.name.lower()
    if name.endswith((".tar.gz", ".tgz")):
        return True
    if name.endswith(".tar"):
        return False
    raise ValueError(f"{archive}: an archive's name ends in .tar, .tar.gz or .tgz")


def _files(folder: Path) -> list[str]:
    """Relative paths of all files below a folder, links followed, sorted."""
    found: list[str] = []
    faults: list[str] = []
    for place, names, files in os.walk(folder, followlinks=True):
        here = Path(place)
        if PARTIAL in names:
            names.remove(PARTIAL)  # of an unpacking that was stopped
        if any(here.resolve() == parent.resolve() for parent in here.parents if parent.is_relative_to(folder)):
            names.clear()
            faults.append(f"{here} leads back to a folder above it")
            continue
        for name in files:
            path = here / name
            if path.is_file():
                found.append(path.relative_to(folder).as_posix())
            else:
                faults.append(f"{path} is {'a broken link' if path.is_symlink() else 'no file'}")
    if faults:
        raise ValueError(f"not packed: {'; '.join(sorted(faults))}")
    if not found:
        raise ValueError(f"{folder} holds no files")
    return sorted(found)


def _entry(folder: Path, path: str, meter: _Meter) -> Entry:
    digest, size = _hash(folder / path, meter)
    return Entry(path=path, size=size, sha256=digest)


def _hash(path: Path, meter: _Meter | None = None) -> tuple[str, int]:
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            if meter:
                meter.add(len(chunk))
    return digest.hexdigest(), size


def _member(name: str, size: int) -> tarfile.TarInfo:
    """A header without owner, rights and time, so that equal folders give equal archives."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member


class _Hashing(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes], meter: _Meter) -> None:
        self.file, self.meter, self.digest = file, meter, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        chunk = self.file.read(size)
        self.digest.update(chunk)
        self.meter.add(len(chunk))
        return chunk


def _add(tar: tarfile.TarFile, folder: Path, entry: Entry, meter: _Meter) -> None:
    changed = f"{folder / entry.path} changed while it was packed; pack again"
    with (folder / entry.path).open("rb") as file:
        source = _Hashing(file, meter)
        try:
            tar.addfile(_member(INSIDE + entry.path, entry.size), source)
        except OSError as error:
            if "unexpected end of data" in str(error):
                raise ValueError(changed) from None
            raise
        if file.read(1) or source.digest.hexdigest() != entry.sha256:
            raise ValueError(changed)


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _compressed(file: IO[bytes], packed: bool) -> Iterator[IO[bytes] | gzip.GzipFile]:
    if not packed:
        yield file
        return
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as out:
        yield out


def unpack(archive: Path, folder: Path, *, progress: Progress | None = None) -> dict[str, Any]:
    """Write an archive's files below ``folder``, each compared with the manifest; whole ones already there are kept.

    Args:
        archive: what :func:`pack` wrote.
        folder: a new or empty folder, or one that an earlier call filled in part.
        progress: called with the megabytes read.

    Returns:
        The number of files, how many of them were there before, their bytes and the folder's path.

    Raises:
        ValueError: no archive of ours, an unsafe path or member, a folder that holds other things, too little room, or
            damaged files, all of which are named; the whole ones stay.
    """
    if not archive.is_file():
        raise ValueError(f"{archive} is not there")
    try:
        with tarfile.open(archive, mode="r|*") as tar:
            entries = _manifest(tar, archive)
            total = sum(entry.size for entry in entries)
            kept = _already(folder, entries)
            waiting = {INSIDE + entry.path: entry for entry in entries if entry.path not in kept}
            _check_room(folder, sum(entry.size for entry in waiting.values()))
            faults = _unpack_members(tar, archive, folder, entries, waiting, _Meter(total, progress))
    except tarfile.TarError as error:
        raise ValueError(f"{archive} is no tar archive ({error}); copy it again") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{archive} is damaged at its beginning ({error}); copy it again") from None
    if faults:
        raise ValueError(
            f"{archive} is damaged: {'; '.join(faults)}; the other files are in {folder}. "
            "Copy the archive again and repeat the command"
        )
    return {"folder": str(folder), "files": len(entries), "kept": len(kept), "bytes": total}


def _manifest(tar: tarfile.TarFile, archive: Path) -> list[Entry]:
    """The entries of an archive's first member, checked."""
    member = tar.next()
    wrong = f"{archive} was not written by minivl data pack: "
    if member is None or member.name != MANIFEST or not member.isreg() or member.size > LARGEST_MANIFEST:
        raise ValueError(f"{wrong}its first member is not {MANIFEST}")
    file = tar.extractfile(member)
    assert file is not None
    try:
        raw = json.loads(file.read())
        entries = [Entry(path=row["path"], size=row["size"], sha256=row["sha256"]) for row in raw["files"]]
        known = raw["format"] == 1
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{wrong}its manifest cannot be read ({type(error).__name__}: {error})") from None
    if not known:
        raise ValueError(f"{archive} has manifest format {raw['format']!r}; a newer mini-internvl may read it")
    for entry in entries:
        sound = isinstance(entry.path, str) and isinstance(entry.sha256, str) and type(entry.size) is int
        if not sound or entry.size < 0:
            raise ValueError(f"{wrong}its manifest has the entry {entry}")
    check_names([entry.path for entry in entries], str(archive))
    return entries


def _already(folder: Path, entries: Sequence[Entry]) -> set[str]:
    """Paths that stand whole in the folder; anything else in it is refused."""
    if not folder.exists():
        return set()
    if not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")
    shutil.rmtree(folder / PARTIAL, ignore_errors=True)
    known = {entry.path: entry for entry in entries}
    parents = {str(parent) for path in known for parent in PurePosixPath(path).parents}
    whole, other = set(), []
    for place, names, files in os.walk(folder):
        for name in sorted(names + files):
            full = Path(place) / name
            path, mode = full.relative_to(folder).as_posix(), full.lstat().st_mode
            if stat.S_ISDIR(mode):
                if path not in parents:
                    other.append(path)
                continue
            entry = known.get(path) if stat.S_ISREG(mode) else None
            if entry and full.stat().st_size == entry.size and _hash(full)[0] == entry.sha256:
                whole.add(path)
            else:
                other.append(path)
    if other:
        shown = ", ".join(sorted(other)[:8]) + (f" and {len(other) - 8} more" if len(other) > 8 else "")
        raise ValueError(f"{folder} holds other things than the archive: {shown}; give an empty folder")
    return whole


def _check_room(folder: Path, needed: int) -> None:
    place = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise ValueError(f"{folder}: {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free")


def _unpack_members(
    tar: tarfile.TarFile,
    archive: Path,
    folder: Path,
    entries: Sequence[Entry],
    waiting: dict[str, Entry],
    meter: _Meter,
) -> list[str]:
    """Write what is waiting; returns a sentence for every file that did not come whole."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {INSIDE + entry.path: entry for entry in entries}
    temporary = folder / PARTIAL
    faults: list[str] = []
    broken = ""
    try:
        while waiting and (member := tar.next()) is not None:
            entry = names.pop(member.name, None)
            if entry is None or not member.isreg():
                raise ValueError(f"{archive} holds {member.name!r}, {_what(member)}; refused, nothing of it is written")
            if member.name not in waiting:
                meter.add(entry.size)
                continue
            source = tar.extractfile(member)
            assert source is not None
            broken = entry.path
            temporary.mkdir(exist_ok=True)
            if _write(source, temporary / "file", entry, meter):
                target = folder / entry.path
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(temporary / "file", target)
            else:
                faults.append(f"{entry.path} differs from its hash")
            del waiting[member.name]
            broken = ""
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        faults.append(f"{broken or 'the archive'} breaks off ({error})")
        waiting.pop(INSIDE + broken, None)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    meter.finish()
    return faults + [f"{entry.path} is missing" for entry in waiting.values()]


def _what(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return f"a link to {member.linkname!r}"
    return "which the manifest does not list" if member.isreg() else "which is no file"


def _write(source: IO[bytes], path: Path, entry: Entry, meter: _Meter) -> bool:
    """Copy to ``path``; whether size and hash are the manifest's."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        while chunk := source.read(CHUNK):
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
            meter.add(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    return size == entry.size and digest.hexdigest() == entry.sha256
