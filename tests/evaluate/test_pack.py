"""Packing a folder and taking it out again: equal bytes, damage named, nothing unsafe, nothing half-written."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import tarfile

import pytest

from mini_internvl import cli
from mini_internvl.evaluate import pack as packing
from mini_internvl.evaluate.pack import INSIDE, MANIFEST, PARTIAL, pack, unpack

CONTENTS = {
    "test.jsonl": b'{"a": 1}\n',
    "ChartQA Dataset/test/png/\u00e4 1.png": bytes(range(256)) * 9000,
    "empty": b"",
    f"{'deep/' * 30}{'long' * 25}.txt": b"far down",
}


@pytest.fixture
def folder(tmp_path):
    for name, content in CONTENTS.items():
        path = tmp_path / "chartqa" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "chartqa"


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def handmade(path, members, listed=None):
    """An archive with any members: (name or TarInfo, content)."""
    files = [
        {"path": name.removeprefix(INSIDE), "size": len(data), "sha256": packing.hashlib.sha256(data).hexdigest()}
        for name, data in members
        if isinstance(name, str)
    ]
    manifest = json.dumps({"format": 1, "files": files if listed is None else listed}).encode()
    with tarfile.open(path, "w") as tar:
        for name, data in [(MANIFEST, manifest), *members]:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz", "b.TGZ"])
def test_a_folder_comes_back_equal(folder, tmp_path, name):
    told = []
    done = pack(folder, tmp_path / "out" / name, progress=lambda *n: told.append(n))
    assert done["files"] == len(CONTENTS)
    assert done["bytes"] == sum(map(len, CONTENTS.values()))
    assert told[-1][0] == told[-1][1]
    told.clear()
    found = unpack(tmp_path / "out" / name, tmp_path / "back", progress=lambda *n: told.append(n))
    assert contents(tmp_path / "back") == CONTENTS
    assert (found["files"], found["kept"]) == (len(CONTENTS), 0)
    assert told[-1][0] == told[-1][1]
    assert os.listdir(tmp_path / "out") == [name]
    assert not (tmp_path / "back" / PARTIAL).exists()


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_equal_folders_give_equal_archives_with_the_manifest_first(folder, tmp_path, name):
    pack(folder, tmp_path / name)
    os.utime(folder / "empty", (1, 1))
    (folder / "empty").chmod(0o600)
    pack(folder, tmp_path / f"again-{name}")
    assert (tmp_path / name).read_bytes() == (tmp_path / f"again-{name}").read_bytes()
    with tarfile.open(tmp_path / name) as tar:
        assert tar.next().name == MANIFEST
        assert {m.name.removeprefix(INSIDE) for m in tar.getmembers()[1:]} == CONTENTS.keys()


def test_links_are_stored_as_what_they_lead_to(folder, tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "1.jpg").write_bytes(b"jpg")
    (folder / "val2014").symlink_to(tmp_path / "coco")
    (folder / "one.jpg").symlink_to(tmp_path / "coco" / "1.jpg")
    pack(folder, tmp_path / "a.tar")
    unpack(tmp_path / "a.tar", tmp_path / "back")
    assert contents(tmp_path / "back")["val2014/1.jpg"] == b"jpg"
    assert contents(tmp_path / "back")["one.jpg"] == b"jpg"
    assert not any(path.is_symlink() for path in (tmp_path / "back").rglob("*"))


def test_what_cannot_be_packed_is_named(folder, tmp_path):
    (folder / "gone").symlink_to(tmp_path / "nowhere")
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    with pytest.raises(ValueError, match="broken link") as caught:
        pack(folder, tmp_path / "a.tar")
    assert "pipe is no file" in str(caught.value)
    assert "leads back" in str(caught.value)
    assert not list(tmp_path.glob("*a.tar*"))


def test_wrong_places_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="ends in"):
        pack(folder, tmp_path / "a.zip")
    with pytest.raises(ValueError, match="lies inside"):
        pack(folder, folder / "a.tar")
    with pytest.raises(ValueError, match="is no folder"):
        pack(tmp_path / "none", tmp_path / "a.tar")
    (tmp_path / "bare").mkdir()
    with pytest.raises(ValueError, match="holds no files"):
        pack(tmp_path / "bare", tmp_path / "a.tar")
    pack(folder, tmp_path / "a.tar")
    with pytest.raises(ValueError, match="exists already"):
        pack(folder, tmp_path / "a.tar")
    with pytest.raises(ValueError, match="is not there"):
        unpack(tmp_path / "none.tar", tmp_path / "back")
    with pytest.raises(ValueError, match="is a file"):
        unpack(tmp_path / "a.tar", folder / "empty")


def test_a_file_that_changes_meanwhile_leaves_no_archive(folder, tmp_path, monkeypatch):
    real = packing._add

    def grow(tar, folder, entry, meter):
        with (folder / "test.jsonl").open("ab") as file:
            file.write(b"x")
        real(tar, folder, entry, meter)

    monkeypatch.setattr(packing, "_add", grow)
    with pytest.raises(ValueError, match=r"test\.jsonl changed"):
        pack(folder, tmp_path / "a.tar")
    assert not list(tmp_path.glob("*a.tar*"))


def test_damaged_files_are_named_and_whole_ones_stay(folder, tmp_path):
    pack(folder, tmp_path / "a.tar")
    raw = bytearray((tmp_path / "a.tar").read_bytes())
    for piece in (b'{"a": 1}\n', b"far down"):
        raw[raw.index(piece)] ^= 1
    (tmp_path / "bad.tar").write_bytes(raw)
    with pytest.raises(ValueError, match="is damaged") as caught:
        unpack(tmp_path / "bad.tar", tmp_path / "back")
    assert "test.jsonl differs" in str(caught.value)
    assert "long.txt differs" in str(caught.value)
    assert contents(tmp_path / "back").keys() == {"empty", "ChartQA Dataset/test/png/\u00e4 1.png"}
    done = unpack(tmp_path / "a.tar", tmp_path / "back")  # with a good copy the rest follows
    assert done["kept"] == 2
    assert contents(tmp_path / "back") == CONTENTS


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_truncated_archive_leaves_only_whole_files(folder, tmp_path, name, share):
    (folder / "z.bin").write_bytes(os.urandom(200_000))
    pack(folder, tmp_path / name)
    raw = (tmp_path / name).read_bytes()
    (tmp_path / f"cut-{name}").write_bytes(raw[: int(len(raw) * share)])
    with pytest.raises(ValueError, match="is damaged"):
        unpack(tmp_path / f"cut-{name}", tmp_path / "back")
    whole = contents(folder)
    assert all(whole[path] == content for path, content in contents(tmp_path / "back").items())
    unpack(tmp_path / name, tmp_path / "back")
    assert contents(tmp_path / "back") == whole


def test_noise_in_a_gzipped_archive_is_damage(folder, tmp_path):
    (folder / "z.bin").write_bytes(os.urandom(300_000))
    pack(folder, tmp_path / "a.tar.gz")
    raw = bytearray((tmp_path / "a.tar.gz").read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 40] = b"\xff" * 40
    (tmp_path / "bad.tar.gz").write_bytes(raw)
    with pytest.raises(ValueError, match="damaged") as caught:
        unpack(tmp_path / "bad.tar.gz", tmp_path / "back")
    assert "z.bin" in str(caught.value)
    assert "z.bin" not in contents(tmp_path / "back")


def test_a_stopped_run_goes_on(folder, tmp_path, monkeypatch):
    pack(folder, tmp_path / "a.tar")
    real, calls = packing._write, []

    def stop(source, path, entry, meter):
        calls.append(entry.path)
        if len(calls) == 3:
            path.write_bytes(b"half")
            raise KeyboardInterrupt
        return real(source, path, entry, meter)

    monkeypatch.setattr(packing, "_write", stop)
    with pytest.raises(KeyboardInterrupt):
        unpack(tmp_path / "a.tar", tmp_path / "back")
    assert all(CONTENTS[path] == content for path, content in contents(tmp_path / "back").items())
    monkeypatch.setattr(packing, "_write", real)
    (tmp_path / "back" / PARTIAL).mkdir()  # as a kill leaves it
    (tmp_path / "back" / PARTIAL / "file").write_bytes(b"half")
    assert unpack(tmp_path / "a.tar", tmp_path / "back")["kept"] == 2
    assert contents(tmp_path / "back") == CONTENTS
    assert unpack(tmp_path / "a.tar", tmp_path / "back")["kept"] == len(CONTENTS)


def test_a_folder_with_other_things_is_refused_and_left_alone(folder, tmp_path):
    pack(folder, tmp_path / "a.tar")
    back = tmp_path / "back"
    back.mkdir()
    (back / "test.jsonl").write_text("mine")
    (back / "extra").write_text("mine too")
    (back / "ChartQA Dataset").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="holds other things") as caught:
        unpack(tmp_path / "a.tar", back)
    assert all(name in str(caught.value) for name in ("test.jsonl", "extra", "ChartQA Dataset"))
    assert (back / "test.jsonl").read_text() == "mine"
    assert not (back / "empty").exists()


@pytest.mark.parametrize(
    "path",
    ["/etc/x", "../x", "a/../../x", "a//x", "./x", "", "a/", "C:/x", "a\\..\\x", "a\nb", f"{PARTIAL}/file", "nul\0"],
)
def test_unsafe_paths_are_refused(tmp_path, path):
    archive = handmade(tmp_path / "a.tar", [], [{"path": path, "size": 0, "sha256": "0" * 64}])
    with pytest.raises(ValueError, match="unsafe"):
        unpack(archive, tmp_path / "in" / "back")
    assert not (tmp_path / "in").exists()


def test_doubled_paths_and_files_that_are_folders_are_refused(tmp_path):
    for paths in (["a", "a"], ["a", "a/b"]):
        listed = [{"path": path, "size": 0, "sha256": "0" * 64} for path in paths]
        with pytest.raises(ValueError, match="doubled"):
            unpack(handmade(tmp_path / "a.tar", [], listed), tmp_path / "back")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    member = tarfile.TarInfo(f"{INSIDE}a")
    member.type, member.linkname = kind, "/etc/passwd"
    listed = [{"path": "a", "size": 0, "sha256": packing.hashlib.sha256(b"").hexdigest()}]
    with pytest.raises(ValueError, match="refused"):
        unpack(handmade(tmp_path / "a.tar", [(member, b"")], listed), tmp_path / "back")
    assert os.listdir(tmp_path / "back") == []


def test_members_outside_the_manifest_and_doubled_ones_are_refused(tmp_path):
    good = (f"{INSIDE}a", b"one")
    listed = [
        {"path": "a", "size": 3, "sha256": packing.hashlib.sha256(b"one").hexdigest()},
        {"path": "b", "size": 3, "sha256": packing.hashlib.sha256(b"one").hexdigest()},
    ]
    for other in (("../b", b"two"), (f"{INSIDE}c", b"two"), good):
        with pytest.raises(ValueError, match="refused"):
            unpack(handmade(tmp_path / "a.tar", [good, other], listed), tmp_path / f"back-{len(other[0])}-{other[1]}")


def test_a_file_that_is_longer_or_missing_is_damage(tmp_path):
    listed = [
        {"path": "a", "size": 2, "sha256": packing.hashlib.sha256(b"on").hexdigest()},
        {"path": "b", "size": 1, "sha256": "0" * 64},
    ]
    with pytest.raises(ValueError, match="a differs from its hash; b is missing"):
        unpack(handmade(tmp_path / "a.tar", [(f"{INSIDE}a", b"one")], listed), tmp_path / "back")
    assert contents(tmp_path / "back") == {}


@pytest.mark.parametrize("content", [b"", b"no archive", gzip.compress(b"no tar"), b"\x1f\x8b\x08broken"])
def test_other_files_are_no_archives(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.tar"):
        unpack(tmp_path / "a.tar", tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 2, "files": []}',
        '{"format": 1, "files": [{"path": "a"}]}',
        '{"format": 1, "files": [{"path": 1, "size": 0, "sha256": ""}]}',
        '{"format": 1, "files": [{"path": "a", "size": -1, "sha256": ""}]}',
    ],
)
def test_a_broken_manifest_is_refused(tmp_path, manifest):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        member = tarfile.TarInfo(MANIFEST)
        member.size = len(manifest)
        tar.addfile(member, io.BytesIO(manifest.encode()))
    with pytest.raises(ValueError, match="manifest"):
        unpack(tmp_path / "a.tar", tmp_path / "back")


def test_too_little_room_is_said_before(folder, tmp_path, monkeypatch):
    pack(folder, tmp_path / "a.tar")
    usage = packing.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(packing.shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(ValueError, match="are needed"):
        unpack(tmp_path / "a.tar", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_the_commands(folder, tmp_path, monkeypatch, capsys):
    def minivl(*arguments):
        monkeypatch.setattr(sys, "argv", ["minivl", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as end:
            return end.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    code, out, err = minivl("data", "pack", folder, tmp_path / "a.tar")
    assert code == 0
    assert "4 files" in out
    assert "packing" in err
    code, out, _ = minivl("data", "unpack", tmp_path / "a.tar", tmp_path / "back", "--json")
    assert json.loads(out)["files"] == 4
    code, _, err = minivl("data", "pack", folder, tmp_path / "a.tar")
    assert code == 1
    assert err.count("\n") == 1
