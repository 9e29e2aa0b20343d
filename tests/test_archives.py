"""Downloads that break and continue, archives that lie, and the summary."""

from __future__ import annotations

import hashlib
import http.server
import io
import itertools
import stat
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data_prep import archives
from data_prep.archives import Archive, below, fetch, obtain, unpack
from data_prep.command import Row, summary
from diffup_jax.types import DiffUpError

CONTENT = np.random.default_rng(0).bytes(300_000)
MD5 = hashlib.md5(CONTENT).hexdigest()
SHA = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT; `server.rules` says how it misbehaves."""

    def do_GET(self):
        rules = self.server.rules
        asked = self.headers.get("Range")
        self.server.asked.append(asked)
        if rules.get("status"):
            self.send_error(rules["status"])
            return
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if asked and rules.get("no_range"):
            asked, start = None, 0
        if start >= len(CONTENT):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(CONTENT)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if asked else 200)
        if asked:
            last = len(CONTENT) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(CONTENT)}")
        self.send_header("Content-Length", str(len(CONTENT) - start))
        self.end_headers()
        cut = next(rules.get("cuts", iter(())), None)
        self.wfile.write(CONTENT[start : None if cut is None else start + cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(archives, "_WAIT", 0.0)
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.rules, serving.asked = {}, []
    serving.url = f"http://127.0.0.1:{serving.server_port}/data.zip"
    thread = threading.Thread(target=serving.serve_forever, args=(0.01,))
    thread.start()
    yield serving
    serving.shutdown()
    thread.join()
    serving.server_close()


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_fetch_and_again(server, tmp_path):
    target = tmp_path / "deep" / "data.zip"
    for _ in range(2):
        path = fetch(server.url, target, size=len(CONTENT), md5=MD5, sha256=SHA)
        assert path == target and target.read_bytes() == CONTENT
    assert len(server.asked) == 1, "a whole file is not downloaded again"
    assert names(target.parent) == ["data.zip"]


def test_broken_transfers_are_continued(server, tmp_path):
    server.rules["cuts"] = iter([100_000, 50_000])
    fetch(server.url, tmp_path / "a", size=len(CONTENT), md5=MD5)
    assert (tmp_path / "a").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


def test_a_later_command_continues(server, tmp_path):
    server.rules["cuts"] = itertools.repeat(10_000)
    with pytest.raises(DiffUpError, match="again to continue"):
        fetch(server.url, tmp_path / "a", md5=MD5)
    assert names(tmp_path) == ["a.part"]
    begun = (tmp_path / "a.part").stat().st_size
    assert begun == 50_000
    server.rules.clear()
    fetch(server.url, tmp_path / "a", md5=MD5)
    assert server.asked[-1] == f"bytes={begun}-"
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_server_that_cannot_continue_starts_over(server, tmp_path):
    server.rules |= {"no_range": True, "cuts": iter([100_000])}
    fetch(server.url, tmp_path / "a", sha256=SHA)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_complete_part_of_unknown_size_is_recognised(server, tmp_path):
    (tmp_path / "a.part").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "a", md5=MD5)
    assert server.asked == [f"bytes={len(CONTENT)}-"]
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_part_that_is_too_long_starts_over(server, tmp_path, size):
    (tmp_path / "a.part").write_bytes(CONTENT + b"more")
    fetch(server.url, tmp_path / "a", size=size, md5=MD5)
    assert (tmp_path / "a").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "wrong", [{"md5": "0" * 32}, {"sha256": "0" * 64}, {"size": 7}, {"size": 400_000}]
)
def test_a_wrong_download_never_takes_its_name(server, tmp_path, wrong):
    with pytest.raises(DiffUpError):
        fetch(server.url, tmp_path / "a", **wrong)
    assert "a" not in names(tmp_path)
    # and does not stand in the way of the next attempt
    fetch(server.url, tmp_path / "a", size=len(CONTENT), md5=MD5)
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_a_wrong_file_of_the_user_is_told_and_kept(server, tmp_path):
    (tmp_path / "a").write_bytes(b"mine")
    with pytest.raises(DiffUpError, match="4 bytes; expected 300000"):
        fetch(server.url, tmp_path / "a", size=len(CONTENT))
    with pytest.raises(DiffUpError, match="has md5"):
        fetch(server.url, tmp_path / "a", md5=MD5)
    assert (tmp_path / "a").read_bytes() == b"mine" and not server.asked


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (503, 5)])
def test_refusals_are_told_with_the_address(server, tmp_path, status, requests):
    server.rules["status"] = status
    with pytest.raises(DiffUpError, match=f"127.0.0.1.*answers {status}"):
        fetch(server.url, tmp_path / "a")
    assert len(server.asked) == requests and names(tmp_path) == []


def test_other_addresses_are_refused(tmp_path):
    with pytest.raises(DiffUpError, match="http"):
        fetch("file:///etc/hosts", tmp_path / "a")


def test_no_room_is_told_before_anything_is_written(server, tmp_path, monkeypatch):
    free = archives.shutil._ntuple_diskusage(0, 0, 1000)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda _: free)
    with pytest.raises(DiffUpError, match="free"):
        fetch(server.url, tmp_path / "a")
    assert names(tmp_path) == []


def test_obtain_downloads_only_when_asked(server, tmp_path):
    archive = Archive(server.url, len(CONTENT), MD5)
    assert archive.name == "data.zip"
    assert obtain(archive, tmp_path, download=False) is None and not server.asked
    path = obtain(archive, tmp_path, download=True)
    assert path == tmp_path / "data.zip"
    assert obtain(archive, tmp_path, download=False) == path
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(DiffUpError, match="md5"):
        obtain(archive, tmp_path, download=False)


FILES = {"top/a/one.txt": b"1" * 5000, "top/a/two.txt": b"22", "top/b/three.txt": b""}


def pack(path, files, **extra):
    """A zip or tar of `files`; extra: name -> kind of evil ("symlink", "hardlink")."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            file.mkdir("top/empty")
            for name, content in files.items():
                file.writestr(name, content)
            for name in extra:
                info = zipfile.ZipInfo(name)
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                file.writestr(info, "/etc/passwd")
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as file:
        folder = tarfile.TarInfo("top/empty")
        folder.type = tarfile.DIRTYPE
        file.addfile(folder)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for name, kind in extra.items():
            info = tarfile.TarInfo(name)
            info.type = {
                "symlink": tarfile.SYMTYPE,
                "hardlink": tarfile.LNKTYPE,
                "device": tarfile.CHRTYPE,
            }[kind]
            info.linkname = "/etc/passwd"
            file.addfile(info)
    return path


def tree(folder):
    return {
        p.relative_to(folder).as_posix(): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file()
    }


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tgz"])
def test_unpack_and_again(tmp_path, ending):
    archive = pack(tmp_path / f"x{ending}", FILES)
    out = tmp_path / "out"
    assert unpack(archive, out, members=lambda name: name) == 3
    assert tree(out) == FILES
    (out / "top/a/one.txt").unlink()  # lost
    (out / "top/a/two.txt").write_bytes(b"2")  # cut short
    kept = (out / "top/b/three.txt").stat().st_mtime_ns
    assert unpack(archive, out, members=lambda name: name) == 3
    assert tree(out) == FILES
    assert (out / "top/b/three.txt").stat().st_mtime_ns == kept


def test_a_choice_of_members(tmp_path):
    archive = pack(tmp_path / "x.tar", {f"./{k}": v for k, v in FILES.items()})
    count = unpack(archive, tmp_path / "out", members=below("top", ["a"]))
    assert count == 2
    assert set(tree(tmp_path / "out")) == {"a/one.txt", "a/two.txt"}
    choose = below("", ["top/b"])
    assert choose("top/b/three.txt") == "top/b/three.txt"
    assert choose("top/bc/x") is None and choose("other/top/b/x") is None


@pytest.mark.parametrize("ending", [".zip", ".tar"])
@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/evil", "..", "C:/evil", "a\\..\\evil"]
)
def test_paths_that_lead_out_are_refused(tmp_path, ending, name):
    archive = pack(tmp_path / f"x{ending}", {name: b"evil"})
    with pytest.raises(DiffUpError, match="out of the folder"):
        unpack(archive, tmp_path / "deep" / "out", members=lambda name: name)
    assert names(tmp_path) == [f"x{ending}"]


@pytest.mark.parametrize(
    ("ending", "kind"),
    [(".zip", "symlink"), *((".tar", k) for k in ("symlink", "hardlink", "device"))],
)
def test_links_and_devices_are_refused_when_wanted(tmp_path, ending, kind):
    archive = pack(tmp_path / f"x{ending}", FILES, **{"top/c/link": kind})
    out = tmp_path / "out"
    with pytest.raises(DiffUpError, match="link or a device"):
        unpack(archive, out, members=lambda name: name)
    assert not (out / "top/c").exists()
    assert unpack(archive, out, members=below("top", ["a"])) == 2


@pytest.mark.parametrize("ending", [".zip", ".tar", ".tgz"])
def test_damage_is_told_and_leaves_only_whole_files(tmp_path, ending):
    content = np.random.default_rng(1).bytes(200_000)
    files = {"first": b"1" * 100, "second": content, "third": content}
    archive = pack(tmp_path / f"x{ending}", files)
    data = bytearray(archive.read_bytes())
    if ending == ".zip":
        data[100_000] ^= 255  # inside the second file: its checksum tells
    else:
        del data[100_000:]
    archive.write_bytes(data)
    with pytest.raises(DiffUpError, match=f"x{ending} is damaged") as told:
        unpack(archive, tmp_path / "out", members=lambda name: name)
    assert told.tb is not None  # keeps what the failed call held
    assert tree(tmp_path / "out") == {"first": files["first"]}
    held = Path("/proc/self/fd")
    if held.is_dir():  # Linux tells which files are open
        assert archive.resolve() not in [each.resolve() for each in held.iterdir()]


def test_what_is_no_archive_is_told(tmp_path):
    (tmp_path / "x.zip").write_bytes(b"<html>not found</html>")
    with pytest.raises(DiffUpError, match="no zip or tar archive"):
        unpack(tmp_path / "x.zip", tmp_path / "out", members=lambda name: name)


def test_summary(capsys):
    rows = [Row("images", "there", "5"), Row("masks", "missing", "get them")]
    assert summary("DATA", rows[:1]) == 0
    assert "Everything is there" in capsys.readouterr().out
    assert summary("DATA", rows) == 1
    told = capsys.readouterr().out
    assert "MISSING masks" in told and "1 of 2 items" in told
