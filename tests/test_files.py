"""Files: whole or absent whatever happens, and one clear error when one is read."""

from __future__ import annotations

import codecs
import os
from pathlib import Path

import pytest

from diffup_jax import files
from diffup_jax.types import DiffUpError

FIX = "Make it again."


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_with_its_folder_and_replaces_the_old(tmp_path):
    path = tmp_path / "new" / "file.txt"
    for content in ("é\n", b"\x00\x01"):
        files.write_whole(path, content)
        told = content.encode() if isinstance(content, str) else content
        assert path.read_bytes() == told
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, error, kind):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error), files.whole_or_absent(path) as partial:
        assert partial.parent == tmp_path and partial.suffix == ".txt"
        if kind == "folder":
            partial.mkdir()
            partial /= "inside"
        partial.write_text("half")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["file.txt"]


def test_a_block_that_makes_nothing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), files.whole_or_absent(tmp_path / "a"):
        pass
    assert names(tmp_path) == []


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    for content in ("old", "new"):
        with files.whole_or_absent(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / content).write_text(content)
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["new"]


def test_a_folder_that_cannot_move_leaves_the_old_one(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError("refused")

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()
    monkeypatch.setattr(files.os, "replace", refused)
    with (
        pytest.raises(OSError, match="refused"),
        files.whole_or_absent(tmp_path / "folder") as partial,
    ):
        partial.mkdir()
    assert names(tmp_path) == ["folder"] and names(tmp_path / "folder") == ["old"]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    path = tmp_path / "file"
    with files.whole_or_absent(path) as one, files.whole_or_absent(path) as two:
        assert one != two
        one.write_text("one")
        two.write_text("two")
        assert sorted(files.left_aside(path)) == sorted([one, two])
        assert files.left_aside(tmp_path / "other") == []
    assert path.read_text() == "one" and names(tmp_path) == ["file"]


def test_a_file_that_is_already_so_is_left_alone(tmp_path):
    path = tmp_path / "file"
    files.write_changed(path, "a\n")
    os.utime(path, ns=(0, 12345))
    files.write_changed(path, "a\n")
    assert path.stat().st_mtime_ns == 12345
    files.write_changed(path, b"b\n")
    assert path.read_text() == "b\n"


def test_the_cache_folder_is_named_or_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFUP_CACHE", str(tmp_path))
    assert files.cache_folder("index") == tmp_path / "index"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DIFFUP_CACHE", "~/mine")
    assert files.cache_folder("index") == tmp_path / "mine" / "index"
    monkeypatch.setenv("DIFFUP_CACHE", "")
    assert files.cache_folder("index") == tmp_path / ".cache" / "diffup" / "index"


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_text_is_read_with_any_mark_and_line_end(tmp_path, mark, end):
    path = tmp_path / "list.txt"
    path.write_bytes(mark + f"Zoë{end}猫{end}".encode())
    assert files.read_text(path, fix=FIX) == "Zoë\n猫\n"
    path.write_bytes(mark + b'{"a": [1, "\xc3\xab"]}')
    assert files.read_json(path, fix=FIX) == {"a": [1, "ë"]}


@pytest.mark.parametrize("read", [files.read_text, files.read_json])
def test_what_cannot_be_read_is_told_in_one_error(tmp_path, read):
    path = tmp_path / "list.txt"
    with pytest.raises(DiffUpError, match=rf"list.txt is missing\. {FIX}"):
        read(path, fix=FIX)
    for mark in (b"", codecs.BOM_UTF8):
        path.write_bytes(mark + "Zoë".encode("latin-1"))
        told = rf"list.txt is not UTF-8 .* byte {len(mark) + 2} is 0xeb.* {FIX}"
        with pytest.raises(DiffUpError, match=told):
            read(path, fix=FIX)
    with pytest.raises(DiffUpError, match=rf"cannot read .*{tmp_path.name}.* {FIX}"):
        read(tmp_path, fix=FIX)


def test_text_that_is_no_json_is_told(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("{")
    with pytest.raises(DiffUpError, match=rf"a.json is not valid JSON .*\. {FIX}"):
        files.read_json(path, fix=FIX)
