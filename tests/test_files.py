"""Files are opened only when they are files of a sane size, read with clear errors, written whole or not at all."""

from __future__ import annotations

import json
import os

import pytest

from mini_internvl.files import (
    FileError,
    check_file,
    new_file,
    read_json,
    read_object,
    read_text,
    write_json,
    write_text,
)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_devices_and_folders_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    (tmp_path / "folder.json").mkdir()
    for name, kind in (("pipe", "a pipe or device"), ("zero", "a pipe or device"), ("folder", "a folder")):
        with pytest.raises(FileError, match=rf"{name}\.json is {kind}, not a regular file"):
            read_json(tmp_path / f"{name}.json")


def test_a_file_larger_than_its_kind_may_be_is_not_read(tmp_path):
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(1 << 40)  # holds no byte on disk
    with pytest.raises(FileError, match=r"a\.json has 1,099,511,627,776 bytes, more than the 268,435,456"):
        read_json(tmp_path / "a.json")
    assert check_file(tmp_path / "a.json") == 1 << 40


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not valid JSON"),
        (b"[" * 100_000, "nested too deep"),
        (b"9" * 5000, "is not valid JSON"),
        (b"\xff\xfe\x00", "is not UTF-8 text"),
        (b"[1]", "holds no JSON object"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, content, message):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(FileError, match=rf"a\.json {message}|a\.json .*{message}"):
        read_object(tmp_path / "a.json")
    with pytest.raises(FileError, match=r"b\.json is missing"):
        read_object(tmp_path / "b.json")


def test_json_is_read_back_as_written(tmp_path):
    value = {"text": "caf\u00e9 \ud83d", "list": [1, None, 0.5]}  # half a character is valid JSON, not valid UTF-8
    write_json(tmp_path / "deep" / "a.json", value)
    assert read_json(tmp_path / "deep" / "a.json") == value
    (tmp_path / "mark.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_object(tmp_path / "mark.json") == {"a": 1}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(FileNotFoundError), new_file(tmp_path / "a.txt"):
        pass  # nothing was written
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "\ud83d")
    assert read_text(tmp_path / "a.txt") == "old"
    assert os.listdir(tmp_path) == ["a.txt"]
