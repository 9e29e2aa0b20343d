"""Shared by all prep commands: getting archives and unpacking them.

A download continues where it broke (HTTP Range into NAME.part) and takes its name only
when size and hash are right. An archive is unpacked file by file, each whole or not at
all; files that are already there with their size are passed over, so both may be
interrupted and started again. Links, devices and paths that lead out of the folder are
refused: an archive writes below its folder and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import gzip
import hashlib
import http.client
import lzma
import os
import shutil
import stat
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from diffup_jax.files import whole_or_absent
from diffup_jax.types import DiffUpError

_ATTEMPTS = 5
_WAIT = 1.0  # seconds before the second attempt, then twice as long each time
_TIMEOUT = 60.0
_BLOCK = 1 << 20
_DAMAGED = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    gzip.BadGzipFile,
    EOFError,
)


@dataclasses.dataclass(frozen=True)
class Archive:
    """A published file: where it is, its bytes and its MD5; None = not known for sure.

    Its name on disk is the last part of the address.
    """

    url: str
    size: int | None
    md5: str | None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def obtain(archive: Archive, folder: Path, *, download: bool) -> Path | None:
    """The verified archive in `folder`; None when it is absent and may not be fetched.

    An archive that the user put there is verified too. Raises DiffUpError for one with
    another size or hash, and when the download fails.
    """
    path = folder / archive.name
    if download or path.exists():
        return fetch(archive.url, path, size=archive.size, md5=archive.md5)
    return None


def fetch(
    url: str,
    to: str | os.PathLike[str],
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
) -> Path:
    """Downloads `url` (http or https) to the file `to`, or finds it already whole.

    size in bytes and hashes in hexadecimal digits; None = not known. Continues a broken
    download from `to`.part; a server that cannot continue starts over. Raises
    DiffUpError when the server cannot be reached or keeps breaking off, when the disk
    is too small, and when size or hash is not the expected one: a wrong `to`.part is
    then removed, a wrong `to` is left for the user to look at.
    """
    path = Path(to)
    if path.exists():
        verify(path, size=size, md5=md5, sha256=sha256)
        return path
    if not url.startswith(("http://", "https://")):
        raise DiffUpError(f"cannot download {url!r}: expected an http(s) address.")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if size is not None and part.exists() and part.stat().st_size > size:
        part.unlink()  # bytes of something else
    _download(url, part, size)
    try:
        verify(part, size=size, md5=md5, sha256=sha256)
    except DiffUpError as error:
        part.unlink()
        raise DiffUpError(
            f"{url} did not give the expected file ({error}) The download was removed; "
            f"start again, or put the right file at {path}."
        ) from error
    os.replace(part, path)
    return path


def verify(
    path: Path,
    *,
    size: int | None = None,
    md5: str | None = None,
    sha256: str | None = None,
) -> None:
    """Raises DiffUpError unless the file has the size and the hashes that are given."""
    found = path.stat().st_size
    if size is not None and found != size:
        raise DiffUpError(
            f"{path} has {found} bytes; expected {size}. Remove it and get it again."
        )
    for kind, expected in (("md5", md5), ("sha256", sha256)):
        if expected is None:
            continue
        # MD5 is what the publishers name; here it finds damage, it is no signature.
        digest = hashlib.new(kind, usedforsecurity=False)
        progress = _bytes(f"{kind} {path.name}", found, 0)
        with open(path, "rb") as file, progress:
            while block := file.read(_BLOCK):
                digest.update(block)
                progress.update(len(block))
        if digest.hexdigest() != expected.lower():
            raise DiffUpError(
                f"{path} has {kind} {digest.hexdigest()}; expected {expected}. Remove "
                "it and get it again."
            )


def unpack(
    archive: str | os.PathLike[str],
    to: str | os.PathLike[str],
    *,
    members: Callable[[str], str | None],
) -> int:
    """Writes the files of a zip or (compressed) tar below `to`; answers how many.

    members: member name -> its path below `to`, or None to leave it packed. The number
    counts the wanted files, whether written now or found with their size. Raises
    DiffUpError for a damaged archive, and for a wanted member that is a link or a
    device or whose path leads out of `to`.
    """
    path, count = Path(archive), 0
    progress = tqdm(desc=f"unpack {path.name}", unit="file", disable=None)
    with readable(path), progress, contextlib.closing(packed(path)) as entries:
        for member in entries:
            target = members(member.name)
            if target is not None:
                _require_safe(path, member, target)
                _place(member, Path(to) / target)
                count += 1
                progress.update()
    return count


class Member(NamedTuple):
    """One entry of an archive: `plain` = a file, no link or device; `open` its bytes.

    `open` works until the next member is asked for.
    """

    name: str
    size: int
    plain: bool
    open: Callable[[], BinaryIO]


def packed(path: Path) -> Iterator[Member]:
    """The entries of a zip or tar that are not folders, in their order.

    To be used within `readable`, which tells of damage, and closed by whoever stops
    before its end (contextlib.closing): else the archive stays open.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            yield from _zip_members(file)
    else:
        with tarfile.open(path, "r:*") as file:
            yield from _tar_members(file)


@contextlib.contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns what is raised for a damaged archive into one DiffUpError."""
    try:
        yield
    except _DAMAGED as error:
        raise DiffUpError(
            f"{path} is damaged or no zip or tar archive ({error}). Remove it and get "
            "it again; what was unpacked from it so far is whole."
        ) from error


def below(prefix: str, folders: Sequence[str]) -> Callable[[str], str | None]:
    """A choice of members for `unpack`: those in `folders` below `prefix`, less it.

    below("VOCdevkit/VOC2012", ["JPEGImages"]) puts VOCdevkit/VOC2012/JPEGImages/a.jpg
    at JPEGImages/a.jpg and leaves everything else packed. An empty prefix takes off
    nothing.
    """
    start = f"{prefix.rstrip('/')}/" if prefix else ""

    def choose(name: str) -> str | None:
        name = name.removeprefix("./")
        rest = name.removeprefix(start)
        if not name.startswith(start):
            return None
        return rest if any(rest.startswith(f"{f}/") for f in folders) else None

    return choose


def _download(url: str, part: Path, size: int | None) -> None:
    problem = "nothing came"
    for attempt in range(_ATTEMPTS):
        if attempt:
            time.sleep(_WAIT * 2 ** (attempt - 1))
        try:
            if _continue(url, part, size):
                return
            problem = f"the connection broke at {part.stat().st_size} bytes"
        except urllib.error.HTTPError as error:
            error.close()
            problem = f"it answers {error.code} {error.reason}"
            if error.code < 500:
                break  # asking again would not help
        except (http.client.HTTPException, OSError) as error:
            if error.__class__ is OSError and error.errno == errno.ENOSPC:
                raise DiffUpError(f"no space left for {part}: make room.") from error
            problem = str(error)
    raise DiffUpError(
        f"cannot download {url}: {problem}. Run the same command again to continue, or "
        f"get the file another way and put it at {part.with_suffix('')}."
    )


def _continue(url: str, part: Path, size: int | None) -> bool:
    """One request for what `part` lacks; whether the file is complete afterwards."""
    have = part.stat().st_size if part.exists() else 0
    if size is not None and have == size:
        return True
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        answer = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        # Nothing after these bytes: they are the whole file, or of another one.
        error.close()
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if total == str(have):
            return True
        part.unlink()
        return False
    with answer:
        start = answer.headers.get("Content-Range", "").removeprefix("bytes ")
        goes_on = answer.status == http.HTTPStatus.PARTIAL_CONTENT
        if goes_on and start.partition("-")[0] != str(have):
            raise http.client.HTTPException(f"asked for byte {have}, was sent {start}")
        have = have if goes_on else 0
        length = answer.headers.get("Content-Length")
        total = size if length is None else have + int(length)
        _require_space(part, (total or have) - have)
        mode = "ab" if goes_on else "wb"
        with open(part, mode) as file, _bytes(part.stem, total, have) as progress:
            while block := answer.read(_BLOCK):
                file.write(block)
                progress.update(len(block))
                have += len(block)
    return total is None or have >= total


def _require_space(part: Path, wanted: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if wanted > free:
        raise DiffUpError(
            f"{part.parent} has {free / 1e9:.1f} GB free but {part.stem} needs "
            f"{wanted / 1e9:.1f} GB more. Make room, or choose another disk."
        )


def _zip_members(file: zipfile.ZipFile) -> Iterator[Member]:
    for info in file.infolist():
        if not info.is_dir():
            link = stat.S_ISLNK(info.external_attr >> 16)
            opened = functools.partial(file.open, info)
            yield Member(info.filename, info.file_size, not link, opened)


def _tar_members(file: tarfile.TarFile) -> Iterator[Member]:
    for info in file:
        if not info.isdir():
            opened = functools.partial(file.extractfile, info)
            yield Member(info.name, info.size, info.isreg(), opened)


def _require_safe(archive: Path, member: Member, target: str) -> None:
    parts = PurePosixPath(target).parts
    inside = bool(parts) and not target.startswith("/") and ".." not in parts
    # A backslash or a drive is a path on Windows and a strange file name elsewhere.
    if not (member.plain and inside) or "\\" in target or ":" in parts[0]:
        kind = "leads out of the folder" if member.plain else "is a link or a device"
        raise DiffUpError(
            f"{archive}: the member {member.name!r} {kind}; such archives are not "
            "unpacked. Get the official file."
        )


def _place(member: Member, target: Path) -> None:
    if target.is_file() and target.stat().st_size == member.size:
        return
    with whole_or_absent(target) as partial:
        with member.open() as packed_file, open(partial, "wb") as file:
            shutil.copyfileobj(packed_file, file, _BLOCK)
        if partial.stat().st_size != member.size:
            raise EOFError(f"{member.name} is cut short")


def _bytes(what: str, total: int | None, done: int) -> tqdm:
    scale = {"unit": "B", "unit_scale": True, "disable": None, "leave": False}
    return tqdm(desc=what, total=total, initial=done, **scale)
